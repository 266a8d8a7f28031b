//! The time that certificates and metadata are judged by: the clock, but never before the latest
//! time that somebody signed.

use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls::time_provider::TimeProvider;
use rustls_pki_types::UnixTime;

/// The clock with a floor.
#[derive(Debug, Default)]
pub struct SignedClock {
    floor_s: AtomicI64,
}

impl SignedClock {
    /// With the highest signed time known so far, seconds since 1970.
    #[must_use]
    pub fn new(floor_s: i64) -> Self {
        Self { floor_s: AtomicI64::new(floor_s) }
    }

    /// Seconds since 1970, never before the floor.
    #[must_use]
    pub fn now_s(&self) -> i64 {
        self.clock_s().max(self.floor_s.load(Ordering::Relaxed))
    }

    /// Seconds since 1970 by the clock alone, for whoever knows the floor better.
    pub(crate) fn clock_s(&self) -> i64 {
        // A clock before 1970 counts as 0.
        let clock = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        i64::try_from(clock.as_secs()).unwrap_or(i64::MAX)
    }

    /// Has the floor where the database has it: the owner may have taken a signed time back.
    pub(crate) fn follow(&self, signed_s: i64) {
        self.floor_s.store(signed_s, Ordering::Relaxed);
    }

    /// Raises the floor to a signed time.
    pub fn raise(&self, signed_s: i64) {
        self.floor_s.fetch_max(signed_s, Ordering::Relaxed);
    }
}

impl TimeProvider for SignedClock {
    fn current_time(&self) -> Option<UnixTime> {
        let seconds = u64::try_from(self.now_s()).unwrap_or_default();
        Some(UnixTime::since_unix_epoch(Duration::from_secs(seconds)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_never_falls_below_what_was_signed() {
        let clock = SignedClock::new(0);
        let before = clock.now_s();
        clock.raise(before + 1_000_000);
        clock.raise(5);
        assert!(clock.now_s() >= before + 1_000_000);
    }
}
