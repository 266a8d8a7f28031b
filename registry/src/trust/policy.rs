//! The owner's policy: a target of the registry repository, kept with the metadata that names it.
//!
//! Invariants:
//! - A [`SignedPolicy`] is made of exactly the bytes that the registry names, and of nothing else.
//! - Its version never goes back, and never stands for two texts.
//! - What is refused changes nothing: the policy held before goes on holding. A registry that names
//!   no policy any more takes none away.

use fulmar_policy::{Policy, PolicyError};
use rusqlite::{Connection, OptionalExtension as _, Transaction};
use serde_json::Value;

use super::date::Date;
use super::error::TrustError;
use super::trusted::{Found, Repo, Trusted};
use crate::Digest;

/// The target path of the fleet's policy.
pub const POLICY_PATH: &str = "policy/fleet.json";
/// Longest policy, in bytes.
pub const POLICY_BYTES_MAX: u64 = 1 << 20;
/// How far a version may rise at once: whoever holds the keys for an hour cannot use the counter up.
const VERSION_STEP_MAX: u64 = 1_000_000;

/// Why a policy was not taken. The one before holds.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PolicyRefused {
    /// The target is something else.
    #[error(
        "accept the policy {POLICY_PATH}: the registry's entry {reason}; publish policies with \
         `fulmar registry policy`"
    )]
    Entry {
        /// What is wrong with the entry.
        reason: String,
    },
    /// The metadata that names it has ended, or does not hold.
    #[error("accept the policy {POLICY_PATH}: {0}")]
    Metadata(#[source] Box<TrustError>),
    /// Other bytes than the owner signed for.
    #[error("accept the policy {POLICY_PATH}: {0}")]
    Content(#[source] Box<TrustError>),
    /// Not a policy that this program can follow.
    #[error("accept the policy {POLICY_PATH}: {0}")]
    Policy(#[from] PolicyError),
    /// An older one.
    #[error(
        "accept the policy {POLICY_PATH}: its version is {found}, this device holds version {held}; \
         to go back, publish the older rules again under a higher version"
    )]
    Older {
        /// The version held.
        held: u64,
        /// The version offered.
        found: u64,
    },
    /// The same version with another text.
    #[error(
        "accept the policy {POLICY_PATH}: version {version} was taken before with digest {before}, \
         now it has {found}; changed rules need a higher version"
    )]
    Reused {
        /// The version.
        version: u64,
        /// The digest held.
        before: Digest,
        /// The digest offered.
        found: Digest,
    },
    /// A version out of reach.
    #[error(
        "accept the policy {POLICY_PATH}: its version is {found}, this device holds {held}, and a \
         version rises by at most {VERSION_STEP_MAX} at once"
    )]
    Leap {
        /// The version held; 0 where there is none.
        held: u64,
        /// The version offered.
        found: u64,
    },
}

/// A policy as the registry names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamedPolicy {
    /// Its digest.
    pub digest: Digest,
    /// Its length in bytes.
    pub length: u64,
    version: u64,
    role: String,
}

/// A policy whose bytes are those that the owner signed for.
#[derive(Debug, Clone)]
pub struct SignedPolicy {
    policy: Policy,
    bytes: Vec<u8>,
    digest: Digest,
    role: String,
}

/// The policy that a device holds.
#[derive(Debug, Clone)]
pub struct HeldPolicy {
    /// What it says.
    pub policy: Policy,
    /// Its text, as it was signed.
    pub bytes: Vec<u8>,
    /// Its digest.
    pub digest: Digest,
    /// The registry's role that named it.
    pub role: String,
    /// When it was taken, seconds since 1970.
    pub taken_at_s: i64,
}

/// What the next policy must not fall below.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PolicyFloor {
    version: u64,
    /// The one text of that version, where it can be read.
    digest: Option<Digest>,
}

impl PolicyFloor {
    fn of(held: &HeldPolicy) -> Self {
        Self { version: held.policy.version(), digest: Some(held.digest) }
    }
}

impl HeldPolicy {
    /// What the next policy must not fall below.
    #[must_use]
    pub fn floor(&self) -> PolicyFloor {
        PolicyFloor::of(self)
    }
}

impl Trusted {
    /// The policy that this registry names, if it names one. `now_s` is the clock: what has ended
    /// brings nothing new.
    ///
    /// # Errors
    /// [`PolicyRefused::Entry`], [`PolicyRefused::Metadata`].
    pub fn named_policy(&self, now_s: i64) -> Result<Option<NamedPolicy>, PolicyRefused> {
        if self.repo() != Repo::Registry {
            return Ok(None);
        }
        let Found::Target { entry, chain } = self.search(POLICY_PATH) else { return Ok(None) };
        let metadata = |error| PolicyRefused::Metadata(Box::new(error));
        self.check_chain_expiry(&chain, Date(self.time(now_s))).map_err(metadata)?;
        let wrong = |reason: &str| Err(PolicyRefused::Entry { reason: reason.to_owned() });
        let fulmar = entry.custom.as_ref().and_then(|custom| custom.get("fulmar"));
        let field = |name: &str| fulmar.and_then(|fulmar| fulmar.get(name));
        if field("kind").and_then(Value::as_str) != Some("policy") {
            return wrong("is not of kind \"policy\" (custom.fulmar.kind)");
        }
        let Some(version) = field("version").and_then(Value::as_u64) else {
            return wrong("has no version (custom.fulmar.version)");
        };
        let Some(digest) = entry.digest() else { return wrong("has no sha256") };
        if entry.length > POLICY_BYTES_MAX {
            return Err(PolicyRefused::Entry {
                reason: format!("has {} bytes, at most {POLICY_BYTES_MAX}", entry.length),
            });
        }
        let role = chain.last().cloned().unwrap_or_default();
        Ok(Some(NamedPolicy { digest, length: entry.length, version, role }))
    }
}

impl NamedPolicy {
    /// Whether `held` is this policy already.
    #[must_use]
    pub fn is_held(&self, held: Option<&HeldPolicy>) -> bool {
        held.is_some_and(|held| held.digest == self.digest)
    }

    /// Takes the bytes if they are the named ones, and not older than what is held.
    ///
    /// # Errors
    /// [`PolicyRefused`].
    pub fn accept(
        &self,
        bytes: Vec<u8>,
        floor: Option<PolicyFloor>,
    ) -> Result<SignedPolicy, PolicyRefused> {
        let found = (bytes.len() as u64, Digest::of(&bytes));
        if found != (self.length, self.digest) {
            return Err(PolicyRefused::Content(Box::new(TrustError::Content {
                what: POLICY_PATH.to_owned(),
                kind: "length and sha256",
                expected: format!("{} bytes, {}", self.length, self.digest),
                found: format!("{} bytes, {}", found.0, found.1),
            })));
        }
        let policy = Policy::parse(&bytes)?;
        if policy.version() != self.version {
            let (said, is) = (self.version, policy.version());
            return Err(PolicyRefused::Entry {
                reason: format!("says version {said}, the policy itself {is}"),
            });
        }
        check_version(policy.version(), self.digest, floor)?;
        Ok(SignedPolicy { policy, bytes, digest: self.digest, role: self.role.clone() })
    }
}

fn check_version(
    found: u64,
    digest: Digest,
    floor: Option<PolicyFloor>,
) -> Result<(), PolicyRefused> {
    let version = floor.map_or(0, |floor| floor.version);
    if found < version {
        return Err(PolicyRefused::Older { held: version, found });
    }
    if found - version > VERSION_STEP_MAX {
        return Err(PolicyRefused::Leap { held: version, found });
    }
    match floor.and_then(|floor| floor.digest) {
        Some(before) if found == version && digest != before => {
            Err(PolicyRefused::Reused { version, before, found: digest })
        }
        _ => Ok(()),
    }
}

impl SignedPolicy {
    /// What it says.
    #[must_use]
    pub fn policy(&self) -> &Policy {
        &self.policy
    }

    /// Its digest.
    #[must_use]
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// Makes it the policy held. To be called in the transaction that stores the metadata which
    /// name it; what was stored meanwhile by somebody else is held against its version again.
    ///
    /// # Errors
    /// [`PolicyRefused`] inside, or the database's.
    pub fn store(
        &self,
        tx: &Transaction<'_>,
        now_s: i64,
    ) -> Result<Result<(), PolicyRefused>, TrustError> {
        let floor = policy_floor(tx)?;
        if let Err(refused) = check_version(self.policy.version(), self.digest, floor) {
            return Ok(Err(refused));
        }
        tx.execute(
            "INSERT INTO trust_policy (id, version, digest, bytes, role, taken_at_s)
             VALUES (1, ?1, ?2, ?3, ?4, ?5)
             ON CONFLICT (id) DO UPDATE SET version = excluded.version, digest = excluded.digest,
                bytes = excluded.bytes, role = excluded.role, taken_at_s = excluded.taken_at_s",
            (self.policy.version() as i64, self.digest, &self.bytes, &self.role, now_s),
        )?;
        Ok(Ok(()))
    }
}

/// The policy held; `None` before the owner signed one.
///
/// # Errors
/// [`TrustError::PolicyDamaged`] when the stored bytes are not those that were taken.
pub fn held_policy(connection: &Connection) -> Result<Option<HeldPolicy>, TrustError> {
    let row = connection
        .prepare_cached("SELECT digest, bytes, role, taken_at_s FROM trust_policy WHERE id = 1")?
        .query_row([], |row| {
            Ok((row.get::<_, String>(0)?, row.get::<_, Vec<u8>>(1)?, row.get(2)?, row.get(3)?))
        })
        .optional()?;
    let Some((digest, bytes, role, taken_at_s)) = row else { return Ok(None) };
    let damaged = |reason: String| TrustError::PolicyDamaged { reason };
    let digest: Digest = digest.parse().map_err(|_| damaged("its digest is none".to_owned()))?;
    if Digest::of(&bytes) != digest {
        return Err(damaged(format!("its bytes do not give the digest {digest}")));
    }
    let policy = Policy::parse(&bytes).map_err(|error| damaged(error.to_string()))?;
    Ok(Some(HeldPolicy { policy, bytes, digest, role, taken_at_s }))
}

/// What the next policy must not fall below: the policy held, or what is left of it.
///
/// # Errors
/// What the database says.
pub fn policy_floor(connection: &Connection) -> Result<Option<PolicyFloor>, TrustError> {
    match held_policy(connection) {
        Ok(held) => Ok(held.as_ref().map(PolicyFloor::of)),
        Err(TrustError::PolicyDamaged { .. }) => {
            let version: i64 = connection.query_row(
                "SELECT version FROM trust_policy WHERE id = 1",
                [],
                |row| row.get(0),
            )?;
            Ok(Some(PolicyFloor { version: version.max(0) as u64, digest: None }))
        }
        Err(error) => Err(error),
    }
}

/// The digest of the policy held, for noticing a change at little cost.
///
/// # Errors
/// What the database says.
pub fn held_policy_digest(connection: &Connection) -> Result<Option<Digest>, TrustError> {
    let text: Option<String> = connection
        .prepare_cached("SELECT digest FROM trust_policy WHERE id = 1")?
        .query_row([], |row| row.get(0))
        .optional()?;
    let damaged = || TrustError::PolicyDamaged { reason: "its digest is none".to_owned() };
    text.map(|text| text.parse().map_err(|_| damaged())).transpose()
}
