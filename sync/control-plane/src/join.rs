//! Join tokens: made by operators, used once by a device, stored as hashes.

use rusqlite::{Connection, OptionalExtension as _, Transaction};
use serde::Serialize;

use crate::ca::sha256_hex;
use crate::failure::Failure;
use crate::{groups, password};

/// Longest life of a join token, in seconds.
pub(crate) const LIFE_S_MAX: i64 = 30 * 86_400;
/// Its life unless asked otherwise, in seconds.
pub(crate) const LIFE_S: i64 = 3_600;
/// Longest note on a token, in characters.
const NOTE_LEN_MAX: usize = 200;

/// A join token as operators see it; never its secret.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct JoinTokenRow {
    /// Its id.
    pub(crate) id: String,
    /// What it is for.
    pub(crate) note: String,
    /// Who made it.
    pub(crate) created_by: String,
    /// When it was made.
    pub(crate) created_s: i64,
    /// Until when it is good.
    pub(crate) expires_s: i64,
    /// When it was used.
    pub(crate) used_s: Option<i64>,
    /// The device that used it.
    pub(crate) used_by: Option<String>,
    /// When it was revoked.
    pub(crate) revoked_s: Option<i64>,
    /// The groups that the device belongs to from the start.
    pub(crate) groups: Vec<String>,
}

/// How a token stands.
impl JoinTokenRow {
    /// `open`, `used`, `revoked` or `expired`.
    pub(crate) fn state(&self, now_s: i64) -> &'static str {
        if self.used_s.is_some() {
            "used"
        } else if self.revoked_s.is_some() {
            "revoked"
        } else if self.expires_s <= now_s {
            "expired"
        } else {
            "open"
        }
    }
}

/// What a token is to be.
pub(crate) struct NewToken<'a> {
    /// Who makes it.
    pub(crate) by: &'a str,
    /// What it is for.
    pub(crate) note: &'a str,
    /// For how many seconds it is good.
    pub(crate) life_s: i64,
    /// The groups that the device belongs to from the start.
    pub(crate) groups: &'a [String],
}

/// Makes a token; returns its id, its secret and when it expires.
pub(crate) fn create(
    tx: &Transaction<'_>,
    new: &NewToken<'_>,
    now_s: i64,
) -> Result<(String, String, i64), Failure> {
    let &NewToken { by, note, life_s, groups } = new;
    groups::check(groups)?;
    if !(1..=LIFE_S_MAX).contains(&life_s) {
        return Err(Failure::invalid(
            "life_invalid",
            format!("life_s is {life_s}, expected 1 to {LIFE_S_MAX} seconds"),
        ));
    }
    if note.chars().count() > NOTE_LEN_MAX {
        return Err(Failure::invalid(
            "note_too_long",
            format!("note is longer than {NOTE_LEN_MAX} characters"),
        ));
    }
    let draw = |len| password::secret(len).map_err(|e| Failure::internal("make a join token", e));
    let (id, secret) = (format!("j-{}", draw(6)?), draw(32)?);
    let expires_s = now_s + life_s;
    tx.execute(
        "INSERT INTO join_token (id, secret_sha256, note, created_by, created_s, expires_s,
            groups)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
        (&id, sha256_hex(secret.as_bytes()), note, by, now_s, expires_s, groups.join(" ")),
    )?;
    Ok((id, secret, expires_s))
}

/// Uses a token up for `device_id`, in the transaction that makes the device a member.
pub(crate) fn consume(
    tx: &Transaction<'_>,
    secret: &str,
    device_id: &str,
    now_s: i64,
) -> Result<JoinTokenRow, Failure> {
    let refused = |code, message: &str| {
        Failure::refused(http::StatusCode::FORBIDDEN, code, message.to_owned())
    };
    let hash = sha256_hex(secret.as_bytes());
    let row = tx
        .query_row(&format!("{SELECT} WHERE secret_sha256 = ?1"), [hash], read)
        .optional()?
        .ok_or_else(|| {
            refused("join_token_unknown", "the join token is not one of this control plane")
        })?;
    match row.state(now_s) {
        "open" => {}
        "used" => {
            return Err(refused(
                "join_token_used",
                "the join token was used already: each is for one device; ask for another",
            ));
        }
        "revoked" => {
            return Err(refused("join_token_revoked", "the join token was revoked"));
        }
        _ => {
            return Err(refused(
                "join_token_expired",
                "the join token has expired; ask for another",
            ));
        }
    }
    tx.execute(
        "UPDATE join_token SET used_s = ?2, used_by = ?3 WHERE id = ?1",
        (&row.id, now_s, device_id),
    )?;
    Ok(row)
}

/// Ends a token before its time.
pub(crate) fn revoke(tx: &Transaction<'_>, id: &str, now_s: i64) -> Result<(), Failure> {
    let changed = tx.execute(
        "UPDATE join_token SET revoked_s = ?2
         WHERE id = ?1 AND used_s IS NULL AND revoked_s IS NULL",
        (id, now_s),
    )?;
    if changed == 1 {
        return Ok(());
    }
    let there: bool =
        tx.query_row("SELECT EXISTS (SELECT 1 FROM join_token WHERE id = ?1)", [id], |r| r.get(0))?;
    Err(if there {
        Failure::conflict(
            "join_token_closed",
            format!("join token {id} is used or revoked already"),
        )
    } else {
        Failure::not_found("join token", id)
    })
}

/// The newest tokens.
pub(crate) fn list(connection: &Connection, len_max: u32) -> Result<Vec<JoinTokenRow>, Failure> {
    let mut statement =
        connection.prepare_cached(&format!("{SELECT} ORDER BY created_s DESC, id LIMIT ?1"))?;
    let rows = statement.query_map([len_max], read)?.collect::<Result<_, _>>()?;
    Ok(rows)
}

const SELECT: &str =
    "SELECT id, note, created_by, created_s, expires_s, used_s, used_by, revoked_s,
        groups
     FROM join_token";

fn read(row: &rusqlite::Row<'_>) -> rusqlite::Result<JoinTokenRow> {
    Ok(JoinTokenRow {
        id: row.get(0)?,
        note: row.get(1)?,
        created_by: row.get(2)?,
        created_s: row.get(3)?,
        expires_s: row.get(4)?,
        used_s: row.get(5)?,
        used_by: row.get(6)?,
        revoked_s: row.get(7)?,
        groups: groups::names(Some(&row.get::<_, String>(8)?)),
    })
}
