//! Fair shares: who has been served how much, among those who have something to do.
//!
//! Each principal has a count of tokens computed for it; the one with the least goes first. Who
//! comes back after a pause starts level with the least served of those present, so that idling
//! saves nothing up.

use std::sync::Arc;

use ahash::AHashMap;

#[derive(Debug, Default)]
pub(crate) struct Shares {
    present: AHashMap<Arc<str>, Share>,
    /// What somebody starts with when nobody is present.
    level: u64,
}

#[derive(Debug, Default)]
struct Share {
    served: u64,
    sequences: usize,
    running: usize,
}

impl Shares {
    /// A sequence of this principal is there, waiting.
    pub(crate) fn arrive(&mut self, principal: &Arc<str>) {
        let level = self.least();
        let share = self.present.entry(Arc::clone(principal)).or_insert(Share {
            served: level,
            sequences: 0,
            running: 0,
        });
        share.sequences += 1;
    }

    /// A sequence that waited is gone for good.
    pub(crate) fn leave(&mut self, principal: &Arc<str>) {
        let Some(share) = self.present.get_mut(principal) else { return };
        share.sequences = share.sequences.saturating_sub(1);
        if share.sequences == 0 {
            self.level = self.least();
            self.present.remove(principal);
        }
    }

    fn least(&self) -> u64 {
        self.present.values().map(|s| s.served).min().unwrap_or(self.level).max(self.level)
    }

    pub(crate) fn start(&mut self, principal: &Arc<str>) {
        if let Some(share) = self.present.get_mut(principal) {
            share.running += 1;
        }
    }

    /// A running sequence went back to waiting.
    pub(crate) fn stop(&mut self, principal: &Arc<str>) {
        if let Some(share) = self.present.get_mut(principal) {
            share.running = share.running.saturating_sub(1);
        }
    }

    pub(crate) fn serve(&mut self, principal: &Arc<str>, tokens: usize) {
        if let Some(share) = self.present.get_mut(principal) {
            share.served = share.served.saturating_add(tokens as u64);
        }
    }

    pub(crate) fn served(&self, principal: &str) -> u64 {
        self.present.get(principal).map_or(self.level, |s| s.served)
    }

    pub(crate) fn running(&self, principal: &str) -> usize {
        self.present.get(principal).map_or(0, |s| s.running)
    }

    /// Principals with something to do.
    pub(crate) fn len(&self) -> usize {
        self.present.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_comes_back_starts_level_with_the_least_served() {
        let (a, b): (Arc<str>, Arc<str>) = ("a".into(), "b".into());
        let mut shares = Shares::default();
        shares.arrive(&a);
        shares.serve(&a, 100);
        shares.arrive(&b);
        assert_eq!(shares.served("b"), 100);
        shares.serve(&b, 50);
        shares.leave(&a);
        shares.arrive(&a);
        assert_eq!(shares.served("a"), 150);
    }

    #[test]
    fn nobody_is_remembered_who_has_nothing_to_do() {
        let a: Arc<str> = "a".into();
        let mut shares = Shares::default();
        shares.arrive(&a);
        shares.arrive(&a);
        shares.leave(&a);
        assert_eq!(shares.len(), 1);
        shares.leave(&a);
        assert_eq!(shares.len(), 0);
    }
}
