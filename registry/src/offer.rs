//! What the trusted registry offers to this device: the models that its verified metadata name, by
//! name and digest, with what the signed targets say of them. Read from the database alone, so it
//! works without a link; how old the metadata are is part of the answer.
//!
//! A device holds the top-level targets, and delegated roles as far as its own models need them:
//! what other teams publish is not known to it, and the answer counts such roles.

use std::collections::BTreeMap;

use rusqlite::Connection;
use serde_json::Value;

use crate::catalog::{self, CatalogError, Filter, Installed, Slot};
use crate::facts::Facts;
use crate::trust::{Repo, TargetEntry, TrustError, Trusted};
use crate::{Barred, Digest, ModelName, Standing};

/// Why the offers could not be read.
#[derive(Debug, thiserror::Error)]
pub enum OfferError {
    /// The state of trust.
    #[error("read what the registry offers: {0}")]
    Trust(#[from] Box<TrustError>),
    /// The catalog.
    #[error("read what is installed: {0}")]
    Catalog(#[from] CatalogError),
}

impl From<fulmar_store::StoreError> for OfferError {
    fn from(error: fulmar_store::StoreError) -> Self {
        Self::Catalog(error.into())
    }
}

/// How a model stands on this device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Here {
    /// Not at all.
    Absent,
    /// Only another release of it.
    OtherRelease,
    /// Installed, without a place.
    Installed,
    /// Installed, in this place.
    In(Slot),
}

impl Here {
    /// As JSON and people have it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Absent => "absent",
            Self::OtherRelease => "other_release",
            Self::Installed => "installed",
            Self::In(slot) => slot.as_str(),
        }
    }
}

/// A model that may run here, or could.
#[derive(Debug, Clone, PartialEq)]
pub struct Offer {
    /// Its name.
    pub name: ModelName,
    /// The manifest's digest.
    pub digest: Digest,
    /// The release counter, where the target says it.
    pub release: Option<u64>,
    /// What it is, as far as that is known.
    pub facts: Option<Facts>,
    /// How it stands on this device.
    pub here: Here,
    /// The director says that this device should have it.
    pub wanted: bool,
    /// Why it may not run, if the owner's policy says so.
    pub barred: Option<Barred>,
}

/// Where offers were read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// On a device of no fleet: what is installed.
    Local,
    /// The registry's verified metadata.
    Registry {
        /// When they were signed, seconds since 1970, where they say so.
        signed_at_s: Option<i64>,
        /// When the first of them ends, seconds since 1970; `None` while some are missing.
        expires_s: Option<i64>,
        /// Delegated roles whose metadata are not on this device.
        roles_not_held: usize,
    },
}

/// What was found.
#[derive(Debug, Clone, PartialEq)]
pub struct Offers {
    /// Where.
    pub source: Source,
    /// By name.
    pub models: Vec<Offer>,
    /// Models left out because what the filter asks of is not known of them.
    pub unknown: usize,
}

/// What passes the filter; its slot is not looked at.
///
/// # Errors
/// [`OfferError`].
pub fn search(connection: &Connection, filter: &Filter) -> Result<Offers, OfferError> {
    let load = |repo| Trusted::load(connection, repo).map_err(Box::new);
    let (director, registry) = (load(Repo::Director)?, load(Repo::Registry)?);
    let standing = Standing::load(connection).map_err(Box::new)?;
    let installed = catalog::list(connection, &Filter::default())?;
    let (source, all) = match (&director, &registry) {
        (None, _) => (Source::Local, installed.iter().map(local).collect()),
        (Some(_), None) => {
            let source = Source::Registry { signed_at_s: None, expires_s: None, roles_not_held: 0 };
            (source, Vec::new())
        }
        (Some(director), Some(registry)) => {
            let source = Source::Registry {
                signed_at_s: registry.signed_at_s(),
                expires_s: registry.expires_s(),
                roles_not_held: registry.roles_not_held(),
            };
            (source, offered(registry, director, &installed))
        }
    };
    let mut offers = Offers { source, models: Vec::new(), unknown: 0 };
    let files: BTreeMap<Digest, &Installed> = installed.iter().map(|i| (i.digest, i)).collect();
    for mut offer in all {
        match filter.fits(&offer.name, offer.facts.as_ref()) {
            Some(true) => {}
            Some(false) => continue,
            None => {
                offers.unknown += 1;
                continue;
            }
        }
        let files = files.get(&offer.digest).map(|i| i.manifest.files.as_slice());
        let digests = files.unwrap_or_default().iter().map(|file| &file.digest);
        offer.barred = standing.check_model(std::iter::once(&offer.digest).chain(digests)).err();
        offers.models.push(offer);
    }
    Ok(offers)
}

fn local(model: &Installed) -> Offer {
    Offer {
        name: model.name().clone(),
        digest: model.digest,
        release: Some(model.manifest.release),
        facts: Some(Facts::of(&model.manifest)),
        here: model.slot.map_or(Here::Installed, Here::In),
        wanted: false,
        barred: None,
    }
}

fn offered(registry: &Trusted, director: &Trusted, installed: &[Installed]) -> Vec<Offer> {
    let mut offers = Vec::new();
    for (path, entry) in registry.targets() {
        let fulmar = |field: &str| entry.custom.as_ref().and_then(|c| c.get("fulmar")?.get(field));
        if fulmar("kind").and_then(Value::as_str) != Some("model") {
            continue;
        }
        let (Ok(name), Some(digest)) = (ModelName::from_target_path(path), entry.digest()) else {
            continue;
        };
        let of_name: Vec<&Installed> = installed.iter().filter(|i| *i.name() == name).collect();
        let same = of_name.iter().find(|i| i.digest == digest);
        let here = match same {
            Some(model) => model.slot.map_or(Here::Installed, Here::In),
            None if of_name.is_empty() => Here::Absent,
            None => Here::OtherRelease,
        };
        // The manifest itself says more than the target does, where it is here.
        let facts = match same {
            Some(model) => Some(Facts::of(&model.manifest)),
            None => Facts::of_custom(entry.custom.as_ref()),
        };
        offers.push(Offer {
            release: fulmar("release").and_then(Value::as_u64),
            wanted: director.target(path).and_then(TargetEntry::digest) == Some(digest),
            barred: None,
            name,
            digest,
            facts,
            here,
        });
    }
    offers.sort_by(|a, b| a.name.cmp(&b.name));
    offers
}
