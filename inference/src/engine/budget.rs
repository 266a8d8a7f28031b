//! The byte budget: what fits, what would have to go.
//!
//! Pure arithmetic over what is planned. A [`Reserved`] holds bytes while a model is being loaded
//! and gives them back by its drop, so that a failed load leaves nothing behind.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::backend::MemoryUse;

/// What a model needs before it can be loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Wish {
    /// Weights, scratch and tables: not to be had smaller.
    pub(crate) fixed_bytes: u64,
    pub(crate) block_bytes: u64,
    /// Cache blocks without which it is useless.
    pub(crate) blocks_min: usize,
    /// As many as it would like.
    pub(crate) blocks_wanted: usize,
}

impl Wish {
    /// Bytes without which it can't be loaded.
    pub(crate) fn least_bytes(&self) -> u64 {
        self.fixed_bytes.saturating_add(self.block_bytes.saturating_mul(self.blocks_min as u64))
    }

    /// Blocks that fit these bytes: as many as wanted or as there is room for.
    pub(crate) fn blocks_in(&self, free_bytes: u64) -> Option<usize> {
        if self.least_bytes() > free_bytes {
            return None;
        }
        let room = (free_bytes - self.fixed_bytes) / self.block_bytes.max(1);
        Some(usize::try_from(room).unwrap_or(usize::MAX).min(self.blocks_wanted))
    }
}

/// A model that holds part of the budget.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Holder {
    pub(crate) name: String,
    pub(crate) bytes: u64,
    pub(crate) hold: Hold,
    /// Smaller is longer ago.
    pub(crate) used: u64,
}

/// Whether a model can go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Hold {
    /// Nothing runs or waits.
    Idle,
    /// Requests run or wait.
    Busy,
    /// It was loaded to stay.
    Pinned,
}

/// What has to be done for a wish.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// These idle models go, least recently used first; then it fits.
    Unload(Vec<String>),
    /// It doesn't fit unless these go, which can't be made to; empty: not even then.
    Short { would_have_to_go: Vec<Holder> },
}

/// Decides which models go so that `needed` bytes are free.
pub(crate) fn make_room(needed: u64, free: u64, holders: &[Holder]) -> Verdict {
    let mut by_age: Vec<&Holder> = holders.iter().collect();
    by_age.sort_by_key(|h| (h.hold != Hold::Idle, h.hold == Hold::Pinned, h.used));
    let (mut sum, mut go) = (free, Vec::new());
    for holder in by_age {
        if sum >= needed {
            break;
        }
        sum = sum.saturating_add(holder.bytes);
        go.push(holder.clone());
    }
    if sum < needed {
        return Verdict::Short { would_have_to_go: Vec::new() };
    }
    if go.iter().all(|h| h.hold == Hold::Idle) {
        return Verdict::Unload(go.into_iter().map(|h| h.name).collect());
    }
    Verdict::Short { would_have_to_go: go }
}

/// Bytes held while a model is being loaded.
#[derive(Debug)]
pub(crate) struct Reserved {
    bytes: u64,
    held: Arc<AtomicU64>,
}

impl Reserved {
    pub(crate) fn new(bytes: u64, held: &Arc<AtomicU64>) -> Self {
        held.fetch_add(bytes, Ordering::AcqRel);
        Self { bytes, held: Arc::clone(held) }
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        self.held.fetch_sub(self.bytes, Ordering::AcqRel);
    }
}

/// All parts together.
pub(crate) fn total(memory: &MemoryUse) -> u64 {
    memory.weights_bytes.saturating_add(memory.kv_bytes).saturating_add(memory.scratch_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn holder(name: &str, bytes: u64, hold: Hold, used: u64) -> Holder {
        Holder { name: name.to_owned(), bytes, hold, used }
    }

    #[test]
    fn a_cache_shrinks_to_what_is_free_but_not_below_its_least() {
        let wish = Wish { fixed_bytes: 100, block_bytes: 10, blocks_min: 5, blocks_wanted: 20 };
        assert_eq!(wish.blocks_in(1000), Some(20));
        assert_eq!(wish.blocks_in(180), Some(8));
        assert_eq!(wish.blocks_in(150), Some(5));
        assert_eq!(wish.blocks_in(149), None);
    }

    #[test]
    fn the_least_recently_used_idle_models_go_and_no_more_than_needed() {
        let holders = [
            holder("old", 50, Hold::Idle, 1),
            holder("new", 50, Hold::Idle, 9),
            holder("busy", 50, Hold::Busy, 0),
        ];
        assert_eq!(make_room(40, 40, &holders), Verdict::Unload(vec![]));
        assert_eq!(make_room(80, 40, &holders), Verdict::Unload(vec!["old".into()]));
        assert_eq!(make_room(120, 40, &holders), Verdict::Unload(vec!["old".into(), "new".into()]));
    }

    #[test]
    fn what_does_not_fit_says_what_would_have_to_go() {
        let holders = [
            holder("idle", 50, Hold::Idle, 1),
            holder("pinned", 50, Hold::Pinned, 0),
            holder("busy", 50, Hold::Busy, 5),
        ];
        let names = |verdict| match verdict {
            Verdict::Short { would_have_to_go } => {
                would_have_to_go.into_iter().map(|h| h.name).collect::<Vec<_>>()
            }
            Verdict::Unload(_) => panic!("must not unload"),
        };
        assert_eq!(names(make_room(150, 60, &holders)), ["idle", "busy"]);
        assert_eq!(names(make_room(200, 60, &holders)), ["idle", "busy", "pinned"]);
        assert!(names(make_room(999, 60, &holders)).is_empty(), "too big for the whole budget");
    }

    #[test]
    fn a_failed_load_gives_its_bytes_back() {
        let held = Arc::new(AtomicU64::new(0));
        let reserved = Reserved::new(70, &held);
        assert_eq!(held.load(Ordering::Acquire), 70);
        drop(reserved);
        assert_eq!(held.load(Ordering::Acquire), 0);
    }
}
