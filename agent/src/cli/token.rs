//! `fulmar token`: the tokens of apps.

use std::process::ExitCode;

use fulmar_policy::audit::{AuditError, Event, Outcome};
use fulmar_policy::token::{self, MintRequest, TokenError, TokenKey};
use fulmar_policy::{Action, Principal, Role};
use rusqlite::Transaction;
use serde_json::json;

use super::{Place, output};
use crate::state::{self, State};

/// Arguments of `fulmar token`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Make a token; it is printed once and kept nowhere.
    Mint(Mint),
    /// List tokens, without the tokens themselves.
    List {
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// End a token now.
    Revoke {
        /// The token's id, from `fulmar token list`.
        id: String,
    },
}

/// What is asked of a new token.
#[derive(Debug, clap::Args)]
pub(crate) struct Mint {
    /// Who will hold it: an app's name.
    #[arg(long, default_value = "app")]
    pub(crate) subject: String,
    /// The role it gives: app, operator, auditor or admin. May be given several times.
    #[arg(long = "role", default_value = "app")]
    pub(crate) roles: Vec<Role>,
    /// How long it holds, in hours.
    #[arg(long, default_value_t = 24)]
    pub(crate) hours: u64,
    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

impl Default for Mint {
    fn default() -> Self {
        Self { subject: "app".into(), roles: vec![Role::App], hours: 24, json: false }
    }
}

/// What can go wrong when a token and its entry are written.
#[derive(Debug, thiserror::Error)]
enum WriteError {
    #[error(transparent)]
    Token(#[from] TokenError),
    #[error(transparent)]
    Audit(#[from] AuditError),
    #[error(transparent)]
    Store(#[from] fulmar_store::StoreError),
}

/// Runs the command.
pub(crate) fn run(place: &Place, args: Args) -> anyhow::Result<ExitCode> {
    let state = place.open()?;
    match args.command {
        Command::Mint(request) => {
            let (text, claims) = mint(&state, &request)?;
            if request.json {
                output::json(&json!({ "token": text, "claims": claims }))?;
            } else {
                println!("{text}");
            }
        }
        Command::List { json } => list(&state, json)?,
        Command::Revoke { id } => revoke(&state, &id)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn record(
    tx: &Transaction<'_>,
    at_s: i64,
    action: Action,
    resource: &str,
    detail: serde_json::Value,
) -> Result<(), AuditError> {
    let event = Event {
        at_s,
        actor: &Principal::local().audit_name(),
        action: action.as_str(),
        resource,
        outcome: Outcome::Completed,
        opened: None,
        detail,
    };
    state::record(tx, &event).map(|_| ())
}

/// Mints a token with its audit entry.
pub(crate) fn mint(state: &State, request: &Mint) -> anyhow::Result<(String, token::Claims)> {
    let policy = state.policy()?;
    policy.decide(&Principal::local(), Action::TokenMint, &request.subject)?;
    let key = TokenKey::from_pkcs8(state.token_key().to_pkcs8())?;
    let (subject, roles) = (request.subject.clone(), request.roles.clone());
    let (device, now_s) = (state.device(), state.clock().now_s());
    let life_s = request.hours.saturating_mul(3600);
    let life_s_max = policy.token_life_s_max();
    let minted = state.store().write_blocking::<_, WriteError, _>(move |tx| {
        let request = MintRequest {
            subject: &subject,
            roles: &roles,
            device: &device,
            now_s,
            life_s,
            life_s_max,
        };
        let (text, claims) = key.mint(tx, &request)?;
        let detail = json!({ "id": claims.jti, "roles": claims.roles, "expires_at_s": claims.exp });
        record(tx, now_s, Action::TokenMint, &subject, detail)?;
        Ok((text, claims))
    })?;
    Ok(minted)
}

fn list(state: &State, as_json: bool) -> anyhow::Result<()> {
    let rows = state.store().read_blocking(token::list)?;
    if as_json {
        return output::json(&rows);
    }
    let now_s = state.clock().now_s();
    let mut table = output::table(&["id", "subject", "roles", "expires", "state"]);
    for row in rows {
        let standing = match row.revoked_at_s {
            Some(at_s) => format!("revoked {}", output::time(at_s)),
            None if row.expires_at_s <= now_s => "expired".into(),
            None => "valid".into(),
        };
        table.add_row([row.id, row.subject, row.roles, output::time(row.expires_at_s), standing]);
    }
    println!("{table}");
    Ok(())
}

fn revoke(state: &State, id: &str) -> anyhow::Result<()> {
    state.policy()?.decide(&Principal::local(), Action::TokenRevoke, id)?;
    let (wanted, now_s) = (id.to_owned(), state.clock().now_s());
    let ended = state.store().write_blocking::<_, WriteError, _>(move |tx| {
        let ended = token::revoke(tx, &wanted, now_s)?;
        if ended {
            record(tx, now_s, Action::TokenRevoke, &wanted, json!({}))?;
        }
        Ok(ended)
    })?;
    anyhow::ensure!(
        ended,
        "revoke token {id}: no token with this id holds; see `fulmar token list`"
    );
    println!("revoked {id}");
    Ok(())
}
