//! What could run here, for `fulmar search` and local HTTP: what the trusted registry offers, or on
//! a device of no fleet what is installed. Works without a link.

use fulmar_policy::{Action, Denied, Policy, Principal};
use fulmar_registry::catalog::Filter;
use fulmar_registry::manifest::{Evaluation, SizeClass};
use fulmar_registry::offer::{self, Offer, OfferError, Offers, Source};
use fulmar_registry::{Manifest, facts};
use fulmar_store::Store;
use serde::{Deserialize, Serialize};

/// Which models, on the command line and as the query of a URL.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, clap::Args)]
#[serde(deny_unknown_fields)]
pub(crate) struct Wanted {
    /// Only this architecture.
    #[arg(long)]
    #[serde(default)]
    pub(crate) architecture: Option<String>,
    /// Only this size class: nano (below 100M parameters), micro (below 1.5B), small (below 14B),
    /// medium (up to 30B), large.
    #[arg(long, value_parser = size_class)]
    #[serde(default)]
    pub(crate) size_class: Option<SizeClass>,
    /// Only models that are known to need at most that many bytes of memory.
    #[arg(long)]
    #[serde(default)]
    pub(crate) memory_bytes_max: Option<u64>,
    /// Only this quantisation.
    #[arg(long)]
    #[serde(default)]
    pub(crate) quantization: Option<String>,
    /// Only models whose licence holds this text.
    #[arg(long)]
    #[serde(default)]
    pub(crate) license: Option<String>,
    /// Only models with at least this many tokens of context.
    #[arg(long)]
    #[serde(default)]
    pub(crate) context_tokens_min: Option<u32>,
    /// Only models whose name, source or evaluation holds this text.
    #[arg(skip)]
    #[serde(default)]
    pub(crate) text: Option<String>,
}

fn size_class(text: &str) -> Result<SizeClass, &'static str> {
    text.parse().map_err(|_| "expected nano, micro, small, medium or large")
}

impl Wanted {
    /// As the registry's filter.
    pub(crate) fn filter(&self) -> Filter {
        Filter {
            text: self.text.clone(),
            architecture: self.architecture.clone(),
            quantization: self.quantization.clone(),
            license: self.license.clone(),
            context_tokens_min: self.context_tokens_min,
            size_class: self.size_class,
            memory_bytes_max: self.memory_bytes_max,
            slot: None,
        }
    }
}

/// Why nothing could be found.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SearchError {
    /// The policy said no.
    #[error(transparent)]
    Denied(#[from] Denied),
    /// The registry.
    #[error(transparent)]
    Offers(#[from] OfferError),
}

/// A model, as people and programs see it.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Found {
    /// `namespace/name:tag`.
    pub(crate) name: String,
    /// The manifest's digest.
    pub(crate) digest: String,
    /// `NAME@sha256:…`: exactly this release, in every place that takes a model.
    pub(crate) reference: String,
    /// The release counter, where it is known.
    pub(crate) release: Option<u64>,
    /// `active`, `candidate`, `previous` or `installed`; `other_release` where only another one is
    /// here; `absent`.
    pub(crate) here: &'static str,
    /// The fleet says that this device should have it.
    pub(crate) wanted: bool,
    /// Why the owner's policy does not let it run.
    pub(crate) barred: Option<String>,
    /// What it is; `null` where the registry does not say.
    pub(crate) facts: Option<Facts>,
}

/// What a model is.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Facts {
    /// `qwen3`, …
    pub(crate) architecture: String,
    /// Number of parameters.
    pub(crate) parameters: u64,
    /// `nano`, `micro`, `small`, `medium` or `large`.
    pub(crate) size_class: &'static str,
    /// `Q8_0`, …
    pub(crate) quantization: String,
    /// Tokens.
    pub(crate) context_tokens: u32,
    /// SPDX expression.
    pub(crate) license: String,
    /// Where it came from.
    pub(crate) source: String,
    /// The chat template's family.
    pub(crate) template: String,
    /// Bytes of memory with its whole context; 0 where not known.
    pub(crate) memory_bytes: u64,
    /// Bytes on disk.
    pub(crate) size_bytes: u64,
    /// What was measured.
    pub(crate) evaluation: Vec<Evaluation>,
}

impl Facts {
    /// What a manifest says, as a registry's target does.
    pub(crate) fn of(manifest: &Manifest) -> Self {
        facts::Facts::of(manifest).into()
    }
}

impl From<facts::Facts> for Facts {
    fn from(facts: facts::Facts) -> Self {
        Self {
            architecture: facts.architecture,
            parameters: facts.parameters,
            size_class: facts.size_class.as_str(),
            quantization: facts.quantization,
            context_tokens: facts.context_tokens,
            license: facts.license,
            source: facts.source,
            template: facts.template,
            memory_bytes: facts.memory_bytes,
            size_bytes: facts.size_bytes,
            evaluation: facts.evaluation,
        }
    }
}

impl From<Offer> for Found {
    fn from(offer: Offer) -> Self {
        let (name, digest) = (offer.name.to_string(), offer.digest.to_string());
        Self {
            reference: format!("{name}@{digest}"),
            name,
            digest,
            release: offer.release,
            here: offer.here.as_str(),
            wanted: offer.wanted,
            barred: offer.barred.map(|barred| barred.to_string()),
            facts: offer.facts.map(Facts::from),
        }
    }
}

/// What was found, and how far to believe that it is all there is.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Results {
    /// `registry`: the fleet's, by verified metadata; `local`: what is installed here.
    pub(crate) source: &'static str,
    /// When the metadata were signed, seconds since 1970.
    pub(crate) signed_at_s: Option<i64>,
    /// How long ago that was by the device's time, in seconds.
    pub(crate) age_s: Option<u64>,
    /// When the metadata end, seconds since 1970: after that nothing new is admitted.
    pub(crate) expires_s: Option<i64>,
    /// Delegated roles whose metadata are not on this device.
    pub(crate) roles_not_held: usize,
    /// Models left out because the registry does not say what the filter asks.
    pub(crate) unknown: usize,
    /// By name.
    pub(crate) models: Vec<Found>,
}

/// Searches for whoever may: of each model, whoever may see it.
///
/// # Errors
/// [`SearchError`].
pub(crate) async fn search(
    store: &Store,
    policy: &Policy,
    principal: &Principal,
    wanted: &Wanted,
    now_s: i64,
) -> Result<Results, SearchError> {
    policy.decide(principal, Action::ModelList, "-")?;
    let filter = wanted.filter();
    let offers: Result<Offers, OfferError> =
        store.read(move |connection| offer::search(connection, &filter)).await;
    let offers = offers?;
    let (source, signed_at_s, expires_s, roles_not_held) = match offers.source {
        Source::Local => ("local", None, None, 0),
        Source::Registry { signed_at_s, expires_s, roles_not_held } => {
            ("registry", signed_at_s, expires_s, roles_not_held)
        }
    };
    let seen = |offer: &Offer| {
        policy.decide(principal, Action::ModelShow, &offer.name.to_string()).is_ok()
    };
    Ok(Results {
        source,
        signed_at_s,
        age_s: signed_at_s.map(|at_s| u64::try_from(now_s.saturating_sub(at_s)).unwrap_or(0)),
        expires_s,
        roles_not_held,
        unknown: offers.unknown,
        models: offers.models.into_iter().filter(seen).map(Found::from).collect(),
    })
}
