//! From what is desired and what is there to the steps in between. Pure: no clock, no disk.

use std::collections::BTreeSet;

use fulmar_registry::trust::{Active, Admitted};
use fulmar_registry::{Digest, ModelName, Slot};

use crate::desired::Desired;

/// Whether a model's files are all there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Files {
    /// They are.
    Complete,
    /// One is gone: it was found corrupt, or removed.
    Missing,
    /// Nobody knows which they are: the manifest in the catalog is damaged.
    Unknown,
}

/// Who said that a model may be on the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// The fleet: what it no longer names goes.
    Fleet,
    /// The local owner: the fleet has no say in whether it stays.
    Local,
}

/// One installed release.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    /// Its name.
    pub name: ModelName,
    /// The manifest's digest.
    pub digest: Digest,
    /// Its place, if it has one.
    pub slot: Option<Slot>,
    /// Whether its files are all there.
    pub files: Files,
    /// Who said that it may be here.
    pub origin: Origin,
    /// Kept by a person.
    pub pinned: bool,
    /// Taken back by the owner's policy.
    pub revoked: bool,
}

/// What is on the device.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Actual {
    /// Installed releases.
    pub held: Vec<Held>,
    /// Releases that failed for good, installed or not.
    pub failed: Vec<(ModelName, Digest, String)>,
}

/// One step towards the desired state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Fetch what is missing, and install it.
    Install(Box<Admitted>),
    /// Fetch the files of an installed release that broke or are gone. It was admitted once and its
    /// manifest says which bytes they are, so this needs no new word of the fleet: metadata may have
    /// expired meanwhile, and names nothing new.
    Repair {
        /// Its name.
        name: ModelName,
        /// The manifest's digest.
        digest: Digest,
    },
    /// Check its health and let it serve.
    Activate {
        /// Its name.
        name: ModelName,
        /// The manifest's digest.
        digest: Digest,
    },
    /// Take it out of service.
    Deactivate {
        /// Its name.
        name: ModelName,
    },
    /// Forget it; its files go with the next garbage collection.
    Remove {
        /// Its name.
        name: ModelName,
        /// The manifest's digest.
        digest: Digest,
    },
}

/// A desired model that no step leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Blocked {
    /// Its name.
    pub name: ModelName,
    /// The manifest's digest.
    pub digest: Digest,
    /// Why not.
    pub reason: String,
}

/// What to do, and what cannot be done.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// In this order.
    pub steps: Vec<Step>,
    /// Needs somebody to do something.
    pub blocked: Vec<Blocked>,
}

/// The steps from `actual` to `desired`. What nobody wants goes first, to make room; then each
/// model in turn, so that one that is stuck does not hold up the others.
#[must_use]
pub fn plan(desired: &Desired, actual: &Actual) -> Plan {
    let mut plan = Plan::default();
    let names: BTreeSet<&ModelName> = desired.models.iter().map(|model| &model.name).collect();
    for held in actual.held.iter().filter(|held| held.origin == Origin::Fleet) {
        if names.contains(&held.name) {
            continue;
        }
        if held.slot == Some(Slot::Active) {
            plan.steps.push(Step::Deactivate { name: held.name.clone() });
        }
        if !held.pinned {
            plan.steps.push(Step::Remove { name: held.name.clone(), digest: held.digest });
        }
    }
    for model in &desired.models {
        let (name, digest) = (model.name.clone(), model.digest);
        let same = |n: &ModelName, d: &Digest| *n == name && *d == digest;
        let failed = actual.failed.iter().find(|(n, d, _)| same(n, d));
        let held = actual.held.iter().find(|held| same(&held.name, &held.digest));
        let files = held.filter(|h| h.origin == Origin::Fleet).map(|h| h.files);
        let serving = held.is_some_and(|h| h.slot == Some(Slot::Active));
        if let Some(reason) = &model.revoked {
            if serving {
                plan.steps.push(Step::Deactivate { name: name.clone() });
            }
            plan.blocked.push(Blocked { name, digest, reason: reason.clone() });
            continue;
        }
        if let (Some((_, _, reason)), false) = (failed, serving) {
            plan.blocked.push(Blocked { name, digest, reason: reason.clone() });
            continue;
        }
        match (files, &model.admission) {
            (Some(Files::Complete), _) => {}
            (Some(Files::Missing), _) => {
                plan.steps.push(Step::Repair { name: name.clone(), digest });
            }
            (Some(Files::Unknown) | None, Ok(admitted)) => {
                plan.steps.push(Step::Install(Box::new(admitted.clone())))
            }
            (Some(Files::Unknown) | None, Err(reason)) => {
                plan.blocked.push(Blocked { name, digest, reason: reason.clone() });
                continue;
            }
        }
        match model.active {
            Active::Serve if !serving => plan.steps.push(Step::Activate { name, digest }),
            Active::Hold if actual.serves(&name) => plan.steps.push(Step::Deactivate { name }),
            _ => {}
        }
    }
    plan.steps.extend(
        actual
            .held
            .iter()
            .filter(|held| needs_mending(held, desired, actual))
            .map(|held| Step::Repair { name: held.name.clone(), digest: held.digest }),
    );
    plan
}

/// Whether an installed release is broken that nobody asks for by its digest, and that a rollback
/// would want, or that serves until the desired one does.
fn needs_mending(held: &Held, desired: &Desired, actual: &Actual) -> bool {
    let is_of_the_fleet = held.origin == Origin::Fleet
        && desired.models.iter().any(|model| model.name == held.name)
        && !desired.wants(&held.name, &held.digest);
    let failed = || actual.failed.iter().any(|(n, d, _)| (n, d) == (&held.name, &held.digest));
    held.files == Files::Missing
        && held.slot.is_some()
        && is_of_the_fleet
        && !held.revoked
        && !failed()
}

impl Actual {
    fn serves(&self, name: &ModelName) -> bool {
        self.held.iter().any(|held| held.name == *name && held.slot == Some(Slot::Active))
    }
}

#[cfg(test)]
mod tests;
