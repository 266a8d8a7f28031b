//! Signed time: what raises the floor below which no clock is believed, what must not, and the way
//! back.
//!
//! A repository's timestamp says when it was signed. Whoever signs it could say anything; a floor
//! in the far future would end all metadata, certificates and tokens for good. So a signed time
//! counts only where the owner's registry metadata, all four top-level roles, lasts beyond it: the
//! offline keys say how far anybody's clock may be wrong. What claims more is refused whole.
//!
//! The way back from a floor that is too high within these bounds is the owner's too: a root that
//! carries [`RESET_FIELD`]. A device that takes it forgets, once, every signed time after the one
//! in the field.

use rusqlite::{Connection, OptionalExtension, Transaction};

use super::date::Date;
use super::envelope::Loaded;
use super::error::TrustError;
use super::metadata::{ROOT, Root, SNAPSHOT, TARGETS, TIMESTAMP};
use super::trusted::{Repo, Trusted};

/// Field of the registry's root: no signed time after this one is to be believed any more.
pub(crate) const RESET_FIELD: &str = "x-fulmar-time-reset";

/// What a refresh learned about the time, to be stored with it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Learned {
    /// The owner's reset: the floor falls to it, if it was above.
    reset_s: Option<i64>,
    /// A signed time that the owner's metadata bear out; 0 for none.
    signed_s: i64,
}

/// A signed time that was refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Ahead {
    /// Whose timestamp.
    pub(crate) repo: String,
    /// What it said, seconds since 1970.
    pub(crate) signed_s: i64,
    /// The role of the owner's metadata that ends before.
    pub(crate) role: String,
    /// When it ends, seconds since 1970.
    pub(crate) ends_s: i64,
    /// The device's clock then, seconds since 1970.
    pub(crate) seen_s: i64,
}

impl Trusted {
    /// Believes the time that this repository's timestamp was signed at, where `owner`, the
    /// refreshed registry, lasts beyond it. Without an owner's word nothing is believed.
    ///
    /// # Errors
    /// [`TrustError::TimeAhead`]; the metadata is not to be stored then.
    pub fn believe_time(&mut self, owner: Option<&Self>) -> Result<(), TrustError> {
        let Some((role, end)) = owner.and_then(Self::first_end) else { return Ok(()) };
        let learned = self.borne_out(role, end)?;
        self.learn(learned);
        Ok(())
    }

    /// The same for the registry itself: its own roles are the owner's word.
    pub(super) fn believe_own_time(&mut self) -> Result<(), TrustError> {
        let Some((role, end)) = self.first_end() else { return Ok(()) };
        let learned = self.borne_out(role, end)?;
        self.learn(learned);
        Ok(())
    }

    fn borne_out(&self, role: &str, end: Date) -> Result<i64, TrustError> {
        let Some(signed_at) = self.said_at() else { return Ok(0) };
        if signed_at < end {
            return Ok(signed_at.0);
        }
        Err(TrustError::TimeAhead {
            repo: self.repo.as_str(),
            version: self.timestamp_version().unwrap_or(0),
            signed_at,
            role: role.to_owned(),
            ends_at: end,
        })
    }

    fn learn(&mut self, signed_s: i64) {
        self.learned.signed_s = self.learned.signed_s.max(signed_s);
        self.time_floor_s = self.time_floor_s.max(signed_s);
    }

    /// Judges by the time that `owner`, the registry refreshed just before, leaves in force.
    #[must_use]
    pub fn under_time_of(mut self, owner: &Self) -> Self {
        self.time_floor_s = owner.time_floor_s;
        self
    }

    /// Follows the owner's reset, where the new root brings one that `old` did not have.
    pub(super) fn follow_reset(&mut self, old: &Loaded<Root>) {
        let reset = |root: &Loaded<Root>| {
            root.body.extra.get(RESET_FIELD).and_then(|v| v.as_str()).and_then(Date::parse)
        };
        let Some(Date(reset_s)) = reset(&self.root).filter(|new| reset(old) != Some(*new)) else {
            return;
        };
        if self.repo == Repo::Registry {
            self.time_floor_s = self.time_floor_s.min(reset_s);
            self.learned = Learned { reset_s: Some(reset_s), signed_s: 0 };
        }
    }

    /// When the trusted timestamp says that it was signed.
    fn said_at(&self) -> Option<Date> {
        let timestamp = self.timestamp.as_ref()?;
        Date::parse(timestamp.body.extra.get(super::SIGNED_AT_FIELD)?.as_str()?)
    }

    /// When the trusted timestamp was signed, seconds since 1970, where it says so and does not
    /// contradict its own end.
    #[must_use]
    pub fn signed_at_s(&self) -> Option<i64> {
        let end = self.timestamp.as_ref()?.expires();
        self.said_at().filter(|at| *at < end).map(|at| at.0)
    }

    /// The top-level role that ends first; `None` while one is missing.
    fn first_end(&self) -> Option<(&'static str, Date)> {
        let ends = [
            (ROOT, self.root.expires()),
            (TARGETS, self.targets.get(TARGETS)?.expires()),
            (SNAPSHOT, self.snapshot.as_ref()?.expires()),
            (TIMESTAMP, self.timestamp.as_ref()?.expires()),
        ];
        ends.into_iter().min_by_key(|(_, end)| *end)
    }

    /// When the first of the top-level roles ends, seconds since 1970; `None` while one is missing.
    #[must_use]
    pub fn expires_s(&self) -> Option<i64> {
        self.first_end().map(|(_, end)| end.0)
    }

    /// The time to hold expiry against: the later of `now_s` and the highest signed time seen.
    #[must_use]
    pub fn time(&self, now_s: i64) -> i64 {
        now_s.max(self.time_floor_s)
    }

    /// Stores what was learned. A time that another refresh learned meanwhile stays, unless the
    /// owner's reset is newer than it.
    pub(super) fn store_time(&self, tx: &Transaction<'_>) -> Result<(), TrustError> {
        let Learned { reset_s, signed_s } = self.learned;
        let known_s = signed_time(tx)?;
        let known_s = reset_s.map_or(known_s, |reset_s| known_s.min(reset_s));
        let signed_s = known_s.max(signed_s);
        tx.execute(
            "INSERT OR REPLACE INTO trust_time (id, signed_s, inverse_s) VALUES (1, ?1, ?2)",
            (signed_s, !signed_s),
        )?;
        Ok(())
    }
}

/// The highest signed time that this device has seen, in seconds since 1970; 0 at first. The time
/// to judge any expiry by (metadata, certificates, tokens) is the later of this and the clock.
///
/// # Errors
/// What the database says.
pub fn signed_time(connection: &Connection) -> Result<i64, TrustError> {
    let row: Option<(i64, Option<i64>)> = connection
        .query_row("SELECT signed_s, inverse_s FROM trust_time WHERE id = 1", [], |row| {
            Ok((row.get(0)?, row.get(1)?))
        })
        .optional()?;
    match row {
        None => Ok(0),
        Some((signed_s, None)) => Ok(signed_s),
        Some((signed_s, Some(inverse_s))) if inverse_s == !signed_s => Ok(signed_s),
        // Damaged: what is trusted says it again.
        Some(_) => Ok(said_by_what_is_trusted(connection)),
    }
}

fn said_by_what_is_trusted(connection: &Connection) -> i64 {
    let said = |repo| Trusted::load_under(connection, repo, 0).ok().flatten()?.signed_at_s();
    let said = [Repo::Registry, Repo::Director].into_iter().filter_map(said).max().unwrap_or(0);
    tracing::warn!(said, "the signed time in the database was damaged: the metadata say it again");
    said
}

/// Notes a refused time, so that `fulmar doctor` can tell it; other errors are none.
/// `clock_s` is the clock, seconds since 1970.
///
/// # Errors
/// What the database says.
pub fn note_time_refused(
    tx: &Transaction<'_>,
    error: &TrustError,
    clock_s: i64,
) -> Result<(), TrustError> {
    let TrustError::TimeAhead { repo, signed_at, role, ends_at, .. } = error else { return Ok(()) };
    tx.execute(
        "INSERT OR REPLACE INTO trust_time_refused (id, repo, signed_s, role, ends_s, seen_s)
         VALUES (1, ?1, ?2, ?3, ?4, ?5)",
        (repo, signed_at.0, role, ends_at.0, clock_s),
    )?;
    Ok(())
}

/// Forgets what [`note_time_refused`] noted: both repositories were taken.
///
/// # Errors
/// What the database says.
pub fn time_is_accepted(tx: &Transaction<'_>) -> Result<(), TrustError> {
    tx.execute("DELETE FROM trust_time_refused", [])?;
    Ok(())
}

pub(super) fn time_refused(connection: &Connection) -> Result<Option<Ahead>, TrustError> {
    let sql = "SELECT repo, signed_s, role, ends_s, seen_s FROM trust_time_refused WHERE id = 1";
    Ok(connection
        .query_row(sql, [], |row| {
            Ok(Ahead {
                repo: row.get(0)?,
                signed_s: row.get(1)?,
                role: row.get(2)?,
                ends_s: row.get(3)?,
                seen_s: row.get(4)?,
            })
        })
        .optional()?)
}
