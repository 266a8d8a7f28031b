//! Slows guessing of passwords down: a bucket of attempts per key, refilled over time.
//!
//! Pure: the time is an argument. The table is bounded; when it is full, the bucket that has
//! waited longest is dropped, so an attacker with many addresses gains a few attempts at most.

use std::collections::HashMap;

/// Attempts that a key may make at once.
const ATTEMPTS_MAX: f64 = 8.0;
/// Seconds until one attempt is given back.
const REFILL_S: f64 = 15.0;
/// Keys remembered at most.
const KEYS_MAX: usize = 4_096;

#[derive(Debug, Clone, Copy)]
struct Bucket {
    attempts: f64,
    at_s: i64,
}

/// Attempts left, by key.
#[derive(Debug, Default)]
pub(crate) struct Throttle {
    buckets: HashMap<String, Bucket>,
}

impl Throttle {
    /// Takes one attempt of `key`, or says in how many seconds there is one again.
    pub(crate) fn attempt(&mut self, key: &str, now_s: i64) -> Result<(), u64> {
        if self.buckets.len() >= KEYS_MAX && !self.buckets.contains_key(key) {
            self.forget_oldest();
        }
        let bucket = self
            .buckets
            .entry(key.to_owned())
            .or_insert(Bucket { attempts: ATTEMPTS_MAX, at_s: now_s });
        let passed_s = now_s.saturating_sub(bucket.at_s).max(0) as f64;
        bucket.attempts = (bucket.attempts + passed_s / REFILL_S).min(ATTEMPTS_MAX);
        bucket.at_s = now_s;
        if bucket.attempts < 1.0 {
            return Err(((1.0 - bucket.attempts) * REFILL_S).ceil() as u64);
        }
        bucket.attempts -= 1.0;
        Ok(())
    }

    /// A success gives all attempts back.
    pub(crate) fn forgive(&mut self, key: &str) {
        self.buckets.remove(key);
    }

    fn forget_oldest(&mut self) {
        let oldest = self.buckets.iter().min_by_key(|(_, bucket)| bucket.at_s);
        if let Some(key) = oldest.map(|(key, _)| key.clone()) {
            self.buckets.remove(&key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn after_eight_attempts_one_comes_back_every_fifteen_seconds() {
        let mut throttle = Throttle::default();
        for _ in 0..8 {
            throttle.attempt("a", 100).unwrap();
        }
        assert_eq!(throttle.attempt("a", 100), Err(15));
        throttle.attempt("b", 100).unwrap();
        assert_eq!(throttle.attempt("a", 114), Err(1));
        throttle.attempt("a", 115).unwrap();
        throttle.forgive("a");
        throttle.attempt("a", 115).unwrap();
    }

    #[test]
    fn a_clock_that_goes_back_neither_panics_nor_gives_attempts() {
        let mut throttle = Throttle::default();
        for _ in 0..8 {
            throttle.attempt("a", 100).unwrap();
        }
        assert!(throttle.attempt("a", i64::MIN).is_err());
    }

    #[test]
    fn the_table_does_not_grow_past_its_limit() {
        let mut throttle = Throttle::default();
        for i in 0..KEYS_MAX + 100 {
            throttle.attempt(&i.to_string(), i as i64).unwrap();
        }
        assert_eq!(throttle.buckets.len(), KEYS_MAX);
    }
}
