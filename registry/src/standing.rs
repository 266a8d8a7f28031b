//! How this device stands with its owner: which policy holds, what was taken back, and how long ago
//! the fleet was heard of. Evaluated offline; the same answer at the door to the engine, for what
//! runs already, and for `fulmar doctor`.
//!
//! The time since the last word is the longer of two: the device's time (never before the highest
//! signed time) minus the newest signed time that both repositories stand behind, and the time that
//! the agent itself was running since then. So neither a clock at 1970 nor one that is set back
//! every morning prolongs anything. A clock far ahead ends what the policy says it ends; when it is
//! right again, all goes on.

use std::collections::BTreeMap;
use std::sync::Arc;

use fulmar_policy::Policy;
use rusqlite::{Connection, OptionalExtension as _, Transaction};

use crate::trust::{self, Repo, TrustError, Trusted};
use crate::{Digest, Manifest};

/// Why a model must not run, whoever asks.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Barred {
    /// The owner took the model back.
    #[error(
        "it was revoked by the owner's policy version {policy_version} ({digest}): {reason}; use \
         another release"
    )]
    Model {
        /// The manifest's digest, or that of one of its files.
        digest: String,
        /// The owner's words.
        reason: String,
        /// The policy that says so.
        policy_version: u64,
    },
    /// The owner took the device back.
    #[error(
        "this device, {device}, was revoked by the owner's policy version {policy_version}: {reason}"
    )]
    Device {
        /// The device's id.
        device: String,
        /// The owner's words.
        reason: String,
        /// The policy that says so.
        policy_version: u64,
    },
    /// What the owner and the fleet said cannot be read.
    #[error(
        "the state of trust on this device cannot be read ({reason}), and without it nobody says \
         what may run; let the device sync (`fulmar sync`), import a bundle, or enroll it again"
    )]
    Unreadable {
        /// What is damaged.
        reason: String,
    },
    /// The device has not heard of its fleet for longer than the policy allows.
    #[error(
        "this device has heard nothing new from its fleet for {silent_s} s, the owner's policy \
         version {policy_version} allows {max_s} s (max_offline_s); let it sync (`fulmar sync`), \
         import a bundle, or set the clock if it is wrong"
    )]
    Offline {
        /// Seconds since the last word.
        silent_s: u64,
        /// Seconds allowed.
        max_s: u64,
        /// The policy that says so.
        policy_version: u64,
    },
}

/// The device's standing, read from the database at once.
#[derive(Debug, Clone)]
pub struct Standing {
    policy: Arc<Policy>,
    policy_digest: Option<Digest>,
    /// The id in the fleet, as the director's metadata name it.
    device_id: Option<String>,
    /// The newest time, seconds since 1970, that both repositories stand behind; `None` on a device
    /// of no fleet.
    heard_s: Option<i64>,
    /// Seconds that the agent was running since then.
    ran_s: u64,
    /// Why nothing may run, where trust cannot be read.
    unreadable: Option<String>,
}

impl Standing {
    /// Of a device whose trust cannot be read: nothing runs, whatever it is, until it was mended.
    /// Requests are judged by the built-in policy.
    #[must_use]
    pub fn unreadable(error: &TrustError) -> Self {
        let mut reason = error.to_string();
        let mut source = std::error::Error::source(error);
        while let Some(cause) = source {
            reason.push_str(&format!(": {cause}"));
            source = cause.source();
        }
        Self {
            policy: Policy::builtin().into(),
            policy_digest: None,
            device_id: None,
            heard_s: None,
            ran_s: 0,
            unreadable: Some(reason),
        }
    }

    /// As it is stored.
    ///
    /// # Errors
    /// [`TrustError`] where the stored trust or policy does not verify: then nothing may run by it.
    pub fn load(connection: &Connection) -> Result<Self, TrustError> {
        let held = trust::held_policy(connection)?;
        let policy_digest = held.as_ref().map(|held| held.digest);
        let policy = held.map_or_else(Policy::builtin, |held| held.policy);
        let director = Trusted::load(connection, Repo::Director)?;
        let registry = Trusted::load(connection, Repo::Registry)?;
        let heard_s = director.as_ref().map(|director| heard_s(director, registry.as_ref()));
        let ran_s = match heard_s {
            Some(heard_s) => stored_run(connection, heard_s)?,
            None => 0,
        };
        let device_id = director.and_then(|director| director.device_id().map(str::to_owned));
        let policy = policy.into();
        Ok(Self { policy, policy_digest, device_id, heard_s, ran_s, unreadable: None })
    }

    /// The policy in force.
    #[must_use]
    pub fn policy(&self) -> &Arc<Policy> {
        &self.policy
    }

    /// The digest of the signed policy in force; `None` under the built-in one.
    #[must_use]
    pub fn policy_digest(&self) -> Option<Digest> {
        self.policy_digest
    }

    /// The newest time that both repositories stand behind, seconds since 1970.
    #[must_use]
    pub fn heard_s(&self) -> Option<i64> {
        self.heard_s
    }

    /// Seconds since the last word at `now_s`, the device's time; `None` on a device of no fleet.
    #[must_use]
    pub fn silent_s(&self, now_s: i64) -> Option<u64> {
        let heard_s = self.heard_s?;
        let by_clock = u64::try_from(now_s.saturating_sub(heard_s)).unwrap_or(0);
        Some(by_clock.max(self.ran_s))
    }

    /// Refuses on a revoked device and on one that was offline for too long. `now_s` is the
    /// device's time: its clock, and never before the highest signed time.
    ///
    /// # Errors
    /// [`Barred::Device`], [`Barred::Offline`].
    pub fn check_device(&self, now_s: i64) -> Result<(), Barred> {
        if let Some(reason) = &self.unreadable {
            return Err(Barred::Unreadable { reason: reason.clone() });
        }
        let policy_version = self.policy.version();
        if let Some(device) = &self.device_id
            && let Some(reason) = self.policy.revoked().devices.get(device)
        {
            let (device, reason) = (device.clone(), reason.clone());
            return Err(Barred::Device { device, reason, policy_version });
        }
        match (self.policy.max_offline_s(), self.silent_s(now_s)) {
            (Some(max_s), Some(silent_s)) if silent_s > max_s => {
                Err(Barred::Offline { silent_s, max_s, policy_version })
            }
            _ => Ok(()),
        }
    }

    /// Refuses a revoked model: by its manifest's digest, or by that of any of its files.
    ///
    /// # Errors
    /// [`Barred::Model`].
    pub fn check_model<'a>(
        &self,
        digests: impl IntoIterator<Item = &'a Digest>,
    ) -> Result<(), Barred> {
        let revoked: &BTreeMap<String, String> = &self.policy.revoked().models;
        if revoked.is_empty() {
            return Ok(());
        }
        for digest in digests.into_iter().map(Digest::to_string) {
            if let Some(reason) = revoked.get(&digest) {
                let (reason, policy_version) = (reason.clone(), self.policy.version());
                return Err(Barred::Model { digest, reason, policy_version });
            }
        }
        Ok(())
    }

    /// Both checks, for one model.
    ///
    /// # Errors
    /// [`Barred`].
    pub fn check(&self, digest: &Digest, manifest: &Manifest, now_s: i64) -> Result<(), Barred> {
        let files = manifest.files.iter().map(|file| &file.digest);
        self.check_model(std::iter::once(digest).chain(files))?;
        self.check_device(now_s)
    }
}

/// The director's signed time, but not after the owner's metadata ended: a control plane alone does
/// not keep a device going for ever.
pub(crate) fn heard_s(director: &Trusted, registry: Option<&Trusted>) -> i64 {
    let director_s = director.signed_at_s().unwrap_or(0);
    match registry {
        // Damage makes nothing last longer.
        Some(registry) if registry.lost_something() => 0,
        registry => registry.and_then(Trusted::expires_s).map_or(director_s, |s| director_s.min(s)),
    }
}

fn stored_run(connection: &Connection, heard_s: i64) -> Result<u64, TrustError> {
    let row: Option<(i64, i64)> = connection
        .prepare_cached("SELECT heard_s, ran_s FROM trust_run WHERE id = 1")?
        .query_row([], |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()?;
    Ok(match row {
        Some((stored_s, ran_s)) if stored_s == heard_s => u64::try_from(ran_s).unwrap_or(0),
        _ => 0,
    })
}

/// Notes that the agent ran for `more_s` seconds on, by a clock that cannot be set. What was noted
/// under an older word from the fleet is forgotten.
///
/// # Errors
/// What the database says.
pub fn note_running(tx: &Transaction<'_>, heard_s: i64, more_s: u64) -> Result<(), TrustError> {
    let more_s = i64::try_from(more_s).unwrap_or(i64::MAX);
    tx.execute(
        "INSERT INTO trust_run (id, heard_s, ran_s) VALUES (1, ?1, ?2)
         ON CONFLICT (id) DO UPDATE SET
            ran_s = CASE WHEN heard_s = excluded.heard_s
                THEN min(ran_s, 9000000000000000000 - excluded.ran_s) + excluded.ran_s
                ELSE excluded.ran_s END,
            heard_s = excluded.heard_s",
        (heard_s, more_s.min(1 << 40)),
    )?;
    Ok(())
}

/// What changes whenever the standing does, but for the time: cheap to read, and compared with what
/// was read before.
///
/// # Errors
/// What the database says.
pub fn mark(connection: &Connection) -> Result<String, TrustError> {
    let policy = trust::held_policy_digest(connection)?.map(|digest| digest.to_string());
    let versions: String = connection
        .prepare_cached(
            "SELECT coalesce(group_concat(repo || role || version), '') FROM trust_role
             WHERE role IN ('root', 'timestamp')",
        )?
        .query_row([], |row| row.get(0))?;
    Ok(format!("{}{versions}", policy.unwrap_or_default()))
}
