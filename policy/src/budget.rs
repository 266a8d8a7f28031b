//! What a principal has used: requests in flight and tokens per minute, held against the limits
//! of its permit.
//!
//! Counted in memory: a restart forgets the minute, never the rule. The time is an argument.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::Permit;

/// Principals remembered at most; beyond that, those who have nothing in flight and their full
/// minute before them are forgotten.
pub const PRINCIPALS_MAX: usize = 10_000;
const MINUTE_MS: u64 = 60_000;

/// A limit that a request met.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Exceeded {
    /// Too many requests at once.
    #[error(
        "{subject} has {found} requests in flight, its limit requests_in_flight_max is {max}; \
         retry when one has ended"
    )]
    InFlight {
        /// Who.
        subject: String,
        /// Requests in flight.
        found: u32,
        /// The limit.
        max: u32,
    },
    /// Too many tokens in a minute.
    #[error(
        "{subject} has used its limit tokens_per_minute_max of {max}; retry in {retry_after_ms} ms"
    )]
    TokensPerMinute {
        /// Who.
        subject: String,
        /// The limit.
        max: u64,
        /// When there is room again.
        retry_after_ms: u64,
    },
}

impl Exceeded {
    /// When it makes sense to ask again, in milliseconds.
    #[must_use]
    pub fn retry_after_ms(&self) -> u64 {
        match self {
            Self::InFlight { .. } => 1_000,
            Self::TokensPerMinute { retry_after_ms, .. } => *retry_after_ms,
        }
    }
}

#[derive(Debug, Clone, Copy)]
struct Use {
    in_flight: u32,
    /// Tokens that may still be used; below zero after an answer that was longer than the rest.
    tokens_left: i64,
    at_ms: u64,
}

impl Use {
    /// Tokens come back evenly, up to one minute's worth.
    fn refill(&mut self, per_minute_max: u64, now_ms: u64) {
        let full = i64::try_from(per_minute_max).unwrap_or(i64::MAX);
        let passed_ms = now_ms.saturating_sub(self.at_ms).min(10 * MINUTE_MS);
        let back = u128::from(passed_ms) * u128::from(per_minute_max) / u128::from(MINUTE_MS);
        let back = i64::try_from(back).unwrap_or(i64::MAX);
        if back > 0 {
            self.tokens_left = self.tokens_left.saturating_add(back).min(full);
            self.at_ms = now_ms;
        }
    }
}

/// Counts what principals use.
#[derive(Debug, Default)]
pub struct Meter {
    uses: Mutex<HashMap<String, Use>>,
}

/// A request under way; dropping it ends it.
#[derive(Debug)]
pub struct InFlight {
    meter: Arc<Meter>,
    subject: String,
    tokens_per_minute_max: u64,
}

impl Meter {
    /// Begins a request, or says which limit it meets.
    ///
    /// # Errors
    /// [`Exceeded`]; nothing is counted then.
    pub fn begin(self: &Arc<Self>, permit: &Permit, now_ms: u64) -> Result<InFlight, Exceeded> {
        let (subject, limits) = (permit.principal().subject.clone(), permit.limits());
        let per_minute = limits.tokens_per_minute_max;
        let mut uses = self.lock();
        if uses.len() >= PRINCIPALS_MAX {
            uses.retain(|_, used| {
                used.in_flight > 0 || now_ms.saturating_sub(used.at_ms) < MINUTE_MS
            });
        }
        let used = uses.entry(subject.clone()).or_insert(Use {
            in_flight: 0,
            tokens_left: i64::try_from(per_minute).unwrap_or(i64::MAX),
            at_ms: now_ms,
        });
        used.refill(per_minute, now_ms);
        if used.in_flight >= limits.requests_in_flight_max {
            return Err(Exceeded::InFlight {
                subject,
                found: used.in_flight,
                max: limits.requests_in_flight_max,
            });
        }
        if used.tokens_left <= 0 {
            let missing = u128::from(used.tokens_left.unsigned_abs()) + 1;
            let wait_ms = missing * u128::from(MINUTE_MS) / u128::from(per_minute.max(1));
            return Err(Exceeded::TokensPerMinute {
                subject,
                max: per_minute,
                retry_after_ms: u64::try_from(wait_ms).unwrap_or(u64::MAX).max(1),
            });
        }
        used.in_flight += 1;
        drop(uses);
        Ok(InFlight { meter: Arc::clone(self), subject, tokens_per_minute_max: per_minute })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Use>> {
        // Every change is a single assignment; a panic elsewhere leaves the counts whole.
        self.uses.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl InFlight {
    /// Counts tokens of prompt and answer.
    pub fn spend(&self, tokens: u64, now_ms: u64) {
        if let Some(used) = self.meter.lock().get_mut(&self.subject) {
            used.refill(self.tokens_per_minute_max, now_ms);
            let tokens = i64::try_from(tokens).unwrap_or(i64::MAX);
            used.tokens_left = used.tokens_left.saturating_sub(tokens);
        }
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        if let Some(used) = self.meter.lock().get_mut(&self.subject) {
            used.in_flight = used.in_flight.saturating_sub(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Action, Policy, Principal, Role, Via};

    fn permit(in_flight: u32, tokens: u64) -> Permit {
        let text = format!(
            r#"{{"schema":1,"version":1,"roles":{{"app":{{"actions":["model.run"],"limits":
            {{"max_tokens":9,"requests_in_flight_max":{in_flight},
            "tokens_per_minute_max":{tokens},"priority":5}}}}}}}}"#
        );
        let app = Principal {
            subject: "a".into(),
            roles: vec![Role::App],
            via: Via::Token { id: "t".into() },
        };
        Policy::parse(text.as_bytes()).unwrap().decide(&app, Action::ModelRun, "m").unwrap()
    }

    #[test]
    fn a_request_over_the_limit_is_refused_until_one_ends() {
        let meter = Arc::new(Meter::default());
        let first = meter.begin(&permit(1, 100), 0).unwrap();
        let refused = meter.begin(&permit(1, 100), 0).unwrap_err();
        assert_eq!(refused, Exceeded::InFlight { subject: "a".into(), found: 1, max: 1 });
        drop(first);
        assert!(meter.begin(&permit(1, 100), 0).is_ok());
    }

    #[test]
    fn tokens_come_back_with_time_and_never_beyond_a_minutes_worth() {
        let meter = Arc::new(Meter::default());
        let begin = |now_ms| meter.begin(&permit(9, 60), now_ms);
        begin(0).unwrap().spend(120, 0);
        let refused = begin(0).unwrap_err();
        assert_eq!(refused.retry_after_ms(), 61_000);
        assert!(begin(60_000).is_err());
        assert!(begin(61_000).is_ok());
        begin(10_000_000).unwrap().spend(60, 10_000_000);
        assert!(begin(10_000_000).is_err());
    }

    #[test]
    fn a_clock_that_goes_back_neither_panics_nor_gives_tokens() {
        let meter = Arc::new(Meter::default());
        meter.begin(&permit(9, 10), 1_000_000).unwrap().spend(10, 1_000_000);
        assert!(meter.begin(&permit(9, 10), 0).is_err());
    }
}
