//! When to check in next. No I/O and no clock: the time comes in as milliseconds since any moment,
//! the randomness as a number from 0 to 1.
//!
//! A control plane that answers says when to come again. One that does not is asked again after a
//! wait that doubles from [`Options::retry_ms_min`] to [`Options::retry_ms_max`], of which a random
//! half is taken off, so that a fleet does not come back all at once.

/// Limits of the schedule, in milliseconds.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// First wait after a failure.
    pub retry_ms_min: u64,
    /// Longest wait after failures.
    pub retry_ms_max: u64,
    /// Shortest wait that the control plane can ask for.
    pub interval_ms_min: u64,
    /// Longest wait that the control plane can ask for.
    pub interval_ms_max: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            retry_ms_min: 1_000,
            retry_ms_max: 300_000,
            interval_ms_min: 200,
            interval_ms_max: 24 * 3_600_000,
        }
    }
}

/// The schedule of check-ins.
#[derive(Debug, Clone)]
pub struct Schedule {
    options: Options,
    due_ms: u64,
    failures: u32,
}

impl Schedule {
    /// The first check-in is due at once.
    #[must_use]
    pub fn new(options: Options, now_ms: u64) -> Self {
        Self { options, due_ms: now_ms, failures: 0 }
    }

    /// How long to wait from `now_ms` on.
    #[must_use]
    pub fn wait_ms(&self, now_ms: u64) -> u64 {
        self.due_ms.saturating_sub(now_ms)
    }

    /// Failures since the last success.
    #[must_use]
    pub fn failures(&self) -> u32 {
        self.failures
    }

    /// The control plane answered and asked to be visited again after `next_ms`.
    pub fn succeeded(&mut self, now_ms: u64, next_ms: u64, jitter: f64) {
        self.failures = 0;
        let next_ms = next_ms.clamp(self.options.interval_ms_min, self.options.interval_ms_max);
        // Up to a tenth later, never earlier than asked for.
        self.due_ms = now_ms.saturating_add(next_ms).saturating_add(part(next_ms / 10, jitter));
    }

    /// The control plane did not answer, or not as it should.
    pub fn failed(&mut self, now_ms: u64, jitter: f64) {
        let doubled = self.options.retry_ms_min.saturating_mul(1 << self.failures.min(32));
        let wait_ms = doubled.min(self.options.retry_ms_max);
        self.failures = self.failures.saturating_add(1);
        self.due_ms = now_ms.saturating_add(wait_ms - part(wait_ms / 2, jitter));
    }

    /// Somebody wants a check-in now.
    pub fn nudged(&mut self, now_ms: u64) {
        self.due_ms = now_ms;
    }
}

fn part(of: u64, jitter: f64) -> u64 {
    // A float's cast saturates, and NaN is 0.
    (of as f64 * jitter.clamp(0.0, 1.0)) as u64
}

/// A random number from 0 to 1 for jitter; not for secrets.
pub(crate) fn jitter() -> f64 {
    use ring::rand::SecureRandom;
    let mut bytes = [0; 4];
    // Without randomness, all waits are as long as can be: that harms nobody.
    match ring::rand::SystemRandom::new().fill(&mut bytes) {
        Ok(()) => f64::from(u32::from_le_bytes(bytes)) / f64::from(u32::MAX),
        Err(_) => 0.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn failures_double_the_wait_up_to_its_limit() {
        let mut schedule = Schedule::new(Options::default(), 0);
        assert_eq!(schedule.wait_ms(0), 0);
        let waits: Vec<u64> = (0..12)
            .map(|_| {
                schedule.failed(0, 0.0);
                schedule.wait_ms(0)
            })
            .collect();
        assert_eq!(&waits[..4], [1_000, 2_000, 4_000, 8_000]);
        assert_eq!(waits[11], 300_000);
    }

    #[test]
    fn success_forgets_failures_and_a_nudge_forgets_the_wait() {
        let mut schedule = Schedule::new(Options::default(), 0);
        schedule.failed(0, 0.0);
        schedule.succeeded(10, 60_000, 0.0);
        assert_eq!((schedule.failures(), schedule.wait_ms(10)), (0, 60_000));
        schedule.nudged(20);
        assert_eq!(schedule.wait_ms(20), 0);
    }

    proptest! {
        #[test]
        fn no_answer_makes_a_device_come_too_often_or_never(
            next_ms: u64, now_ms in 0..u64::MAX / 2, jitter: f64, failures in 0_u32..100,
        ) {
            let options = Options::default();
            let mut schedule = Schedule::new(options, now_ms);
            schedule.succeeded(now_ms, next_ms, jitter);
            let longest = options.interval_ms_max + options.interval_ms_max / 10;
            prop_assert!((options.interval_ms_min..=longest).contains(&schedule.wait_ms(now_ms)));
            for _ in 0..=failures {
                schedule.failed(now_ms, jitter);
            }
            let wait_ms = schedule.wait_ms(now_ms);
            prop_assert!((options.retry_ms_min / 2..=options.retry_ms_max).contains(&wait_ms));
        }
    }
}
