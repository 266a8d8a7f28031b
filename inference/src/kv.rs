//! Blocks of the key-value cache: who holds which, and which hold a prefix worth keeping.
//!
//! A block is *free* (holds nothing), *held* (by one or more sequences) or *idle*: held by nobody,
//! but its content is known and a later prompt that starts alike may take it up again. Invariants:
//! - A block's content is known only when all its positions are computed; the key is the exact
//!   tokens and everything before them, not a hash of it, so two prompts share a block only when
//!   they are equal up to its end.
//! - A shared block is never written: whoever has to write into one copies it first.
//! - Idle blocks are taken back least recently used first, ends of texts before their beginnings.
//!
//! Deliberately absent: the cache's bytes (the backend's) and sequences (the scheduler's).

use std::collections::BTreeMap;

use ahash::AHashMap;

use crate::backend::BLOCK_TOKENS;
use crate::engine::PrefixCache;
use crate::held;

/// Names a text by its blocks: equal links, equal texts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Link(u64);

impl Link {
    /// The empty text.
    pub(crate) const START: Self = Self(0);
}

/// A known block: what comes before it, and its tokens.
type Content = (Link, [u32; BLOCK_TOKENS]);

#[derive(Debug, Clone, Copy, Default)]
struct Block {
    /// Sequences that hold it.
    holders: u32,
    /// The text that ends with it, once known.
    link: Option<Link>,
    /// Its place in the order of idle blocks.
    idle_since: Option<u64>,
}

/// All blocks of one model's cache.
#[derive(Debug)]
pub(crate) struct BlockPool {
    blocks: Vec<Block>,
    free: Vec<u32>,
    idle: BTreeMap<u64, u32>,
    known: AHashMap<Content, u32>,
    contents: AHashMap<u32, Content>,
    clock: u64,
    links: u64,
    prefix_cache: PrefixCache,
}

/// A prompt's beginning, found in the cache. The blocks are held by whoever got this.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) blocks: Vec<u32>,
    pub(crate) links: Vec<Link>,
}

impl BlockPool {
    pub(crate) fn new(blocks: usize, prefix_cache: PrefixCache) -> Self {
        let count = u32::try_from(blocks).unwrap_or(u32::MAX);
        Self {
            blocks: vec![Block::default(); count as usize],
            free: (0..count).rev().collect(),
            idle: BTreeMap::new(),
            known: AHashMap::new(),
            contents: AHashMap::new(),
            clock: 0,
            links: 0,
            prefix_cache,
        }
    }

    /// Bytes that the tables of a pool of so many blocks hold at most, prefixes included: a share
    /// for each block, and one for the pool.
    pub(crate) fn held_bytes_max(blocks: usize) -> u64 {
        let listed = size_of::<Block>() + size_of::<u32>();
        // A tree's nodes are half full at least.
        let ordered = 2 * size_of::<(u64, u32)>() + size_of::<usize>();
        // A hash table has a power of two of buckets, of which seven of eight may be taken, and
        // twice as many where names came and went.
        let named = size_of::<(Content, u32)>() + size_of::<(u32, Content)>() + 2;
        let each = listed + ordered + (32 * named).div_ceil(7);
        (blocks * each + 4 * named) as u64
    }

    /// Bytes that the tables hold now.
    pub(crate) fn held_bytes(&self) -> u64 {
        let listed = held::of_vec(&self.blocks) + held::of_vec(&self.free);
        let ordered = (self.idle.len() * size_of::<(u64, u32)>()) as u64;
        listed + ordered + held::of_map(&self.known) + held::of_map(&self.contents)
    }

    pub(crate) fn len(&self) -> usize {
        self.blocks.len()
    }

    /// Blocks that can be had: free ones and idle ones.
    pub(crate) fn available(&self) -> usize {
        self.free.len() + self.idle.len()
    }

    pub(crate) fn idle(&self) -> usize {
        self.idle.len()
    }

    /// Takes a block for writing, forgetting an idle one where none is free.
    pub(crate) fn take(&mut self) -> Option<u32> {
        let block = match self.free.pop() {
            Some(block) => block,
            None => {
                let (_, block) = self.idle.pop_first()?;
                self.forget(block);
                block
            }
        };
        self.blocks[block as usize] = Block { holders: 1, link: None, idle_since: None };
        Some(block)
    }

    fn forget(&mut self, block: u32) {
        if let Some(content) = self.contents.remove(&block) {
            self.known.remove(&content);
        }
    }

    fn hold(&mut self, block: u32) {
        let b = &mut self.blocks[block as usize];
        b.holders += 1;
        if let Some(at) = b.idle_since.take() {
            self.idle.remove(&at);
        }
    }

    /// Gives up holding these blocks of one sequence, in the sequence's order.
    pub(crate) fn release(&mut self, blocks: &[u32]) {
        for &block in blocks.iter().rev() {
            let b = &mut self.blocks[block as usize];
            debug_assert!(b.holders > 0, "block {block} is released more often than taken");
            b.holders = b.holders.saturating_sub(1);
            if b.holders > 0 {
                continue;
            }
            if b.link.is_some() {
                self.clock += 1;
                b.idle_since = Some(self.clock);
                self.idle.insert(self.clock, block);
            } else {
                self.free.push(block);
            }
        }
    }

    /// Whether others hold the block too, or its content is known: then it must not be written.
    pub(crate) fn is_shared(&self, block: u32) -> bool {
        let b = &self.blocks[block as usize];
        b.holders > 1 || b.link.is_some()
    }

    /// Makes a fully computed block's content known. Returns the link of the text that ends with
    /// it.
    pub(crate) fn publish(&mut self, block: u32, before: Link, tokens: &[u32]) -> Option<Link> {
        let content: Content = (before, tokens.try_into().ok()?);
        if self.prefix_cache == PrefixCache::Off {
            return None;
        }
        if let Some(&twin) = self.known.get(&content) {
            // Two sequences computed the same text side by side: the first one's block stays.
            return self.blocks[twin as usize].link;
        }
        self.links += 1;
        let link = Link(self.links);
        self.blocks[block as usize].link = Some(link);
        self.known.insert(content, block);
        self.contents.insert(block, content);
        Some(link)
    }

    /// Finds and holds the longest known beginning of these tokens, in whole blocks.
    pub(crate) fn find(&mut self, tokens: &[u32]) -> Found {
        let mut found = Found::default();
        let mut before = Link::START;
        for chunk in tokens.chunks_exact(BLOCK_TOKENS) {
            let Ok(chunk) = chunk.try_into() else { break };
            let Some(&block) = self.known.get(&(before, chunk)) else { break };
            let Some(link) = self.blocks[block as usize].link else { break };
            self.hold(block);
            found.blocks.push(block);
            found.links.push(link);
            before = link;
        }
        found
    }

    /// How many blocks of these tokens' beginning are known, without holding them, and how many
    /// of those are idle.
    pub(crate) fn peek(&self, tokens: &[u32]) -> (usize, usize) {
        let (mut known, mut idle) = (0, 0);
        let mut before = Link::START;
        for chunk in tokens.chunks_exact(BLOCK_TOKENS) {
            let Ok(chunk) = chunk.try_into() else { break };
            let Some(&block) = self.known.get(&(before, chunk)) else { break };
            let b = &self.blocks[block as usize];
            let Some(link) = b.link else { break };
            known += 1;
            idle += usize::from(b.idle_since.is_some());
            before = link;
        }
        (known, idle)
    }
}

/// Blocks that hold this many tokens.
pub(crate) fn blocks_for(tokens: usize) -> usize {
    tokens.div_ceil(BLOCK_TOKENS)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn text(start: u32, blocks: usize) -> Vec<u32> {
        (start..).take(blocks * BLOCK_TOKENS).collect()
    }

    /// Takes, fills and publishes the blocks of a text.
    fn compute(pool: &mut BlockPool, tokens: &[u32]) -> Vec<u32> {
        let Found { mut blocks, links } = pool.find(tokens);
        let mut before = links.last().copied().unwrap_or(Link::START);
        for chunk in tokens.chunks_exact(BLOCK_TOKENS).skip(blocks.len()) {
            let block = pool.take().expect("a block");
            before = pool.publish(block, before, chunk).unwrap_or(Link::START);
            blocks.push(block);
        }
        blocks
    }

    #[test]
    fn a_text_that_was_computed_is_found_again_up_to_the_first_difference() {
        let mut pool = BlockPool::new(8, PrefixCache::Shared);
        let first = text(0, 3);
        let blocks = compute(&mut pool, &first);
        pool.release(&blocks);
        let mut second = first.clone();
        second[2 * BLOCK_TOKENS + 5] = 9999;
        assert_eq!(pool.find(&second).blocks, blocks[..2]);
    }

    #[test]
    fn equal_blocks_after_different_beginnings_are_not_shared() {
        let mut pool = BlockPool::new(8, PrefixCache::Shared);
        let (a, b, tail) = (text(0, 1), text(1, 1), text(500, 1));
        let held = compute(&mut pool, &[a, tail.clone()].concat());
        compute(&mut pool, &b);
        assert_eq!(pool.find(&[b, tail].concat()).blocks.len(), 1);
        assert_eq!(held.len(), 2);
    }

    #[test]
    fn a_held_block_is_never_given_to_another() {
        let mut pool = BlockPool::new(2, PrefixCache::Shared);
        let held = compute(&mut pool, &text(0, 2));
        assert_eq!(pool.take(), None);
        pool.release(&held);
        assert_eq!(pool.available(), 2);
        assert!(pool.take().is_some());
    }

    #[test]
    fn ends_of_texts_are_forgotten_before_their_beginnings() {
        let mut pool = BlockPool::new(3, PrefixCache::Shared);
        let tokens = text(0, 3);
        let blocks = compute(&mut pool, &tokens);
        pool.release(&blocks);
        pool.take().expect("a block");
        assert_eq!(pool.find(&tokens).blocks, blocks[..2]);
    }

    #[test]
    fn without_a_prefix_cache_nothing_stays() {
        let mut pool = BlockPool::new(2, PrefixCache::Off);
        let tokens = text(0, 2);
        let blocks = compute(&mut pool, &tokens);
        pool.release(&blocks);
        assert_eq!(pool.find(&tokens), Found::default());
        assert_eq!((pool.available(), pool.idle()), (2, 0));
    }

    #[test]
    fn a_twin_computed_side_by_side_does_not_take_the_first_ones_name() {
        let mut pool = BlockPool::new(4, PrefixCache::Shared);
        let tokens = text(0, 1);
        let (a, b) = (pool.take().unwrap(), pool.take().unwrap());
        let first = pool.publish(a, Link::START, &tokens);
        assert_eq!(pool.publish(b, Link::START, &tokens), first);
        pool.release(&[b]);
        assert_eq!(pool.idle(), 0, "the twin is free, not idle");
        assert_eq!(pool.find(&tokens).blocks, [a]);
    }

    #[test]
    fn tables_of_any_size_that_were_filled_anew_again_and_again_are_within_their_plan() {
        let each = BlockPool::held_bytes_max(2) - BlockPool::held_bytes_max(1);
        for blocks in (1..80).chain([511, 512, 513, 1000]) {
            let mut pool = BlockPool::new(blocks, PrefixCache::Shared);
            for start in 0..20 {
                let held = compute(&mut pool, &text(start * 100_000, blocks));
                pool.release(&held);
                let planned = BlockPool::held_bytes_max(blocks);
                assert!(pool.held_bytes() <= planned, "{blocks} blocks: {}", pool.held_bytes());
                assert_eq!(planned - BlockPool::held_bytes_max(0), each * blocks as u64);
            }
            assert_eq!(pool.idle(), blocks);
        }
    }

    proptest! {
        #[test]
        fn every_block_is_free_idle_or_held_and_never_two_of_them(
            steps in prop::collection::vec((0u32..4, 1usize..4, any::<bool>()), 1..60),
        ) {
            let mut pool = BlockPool::new(10, PrefixCache::Shared);
            let mut held: Vec<Vec<u32>> = Vec::new();
            for (start, len, give_back) in steps {
                if give_back && !held.is_empty() {
                    let blocks = held.swap_remove(start as usize % held.len());
                    pool.release(&blocks);
                } else if pool.available() > len {
                    held.push(compute(&mut pool, &text(start * 1000, len)));
                }
                let holders: u32 = pool.blocks.iter().map(|b| b.holders).sum();
                prop_assert_eq!(holders as usize, held.iter().map(Vec::len).sum::<usize>());
                let busy = pool.blocks.iter().filter(|b| b.holders > 0).count();
                prop_assert_eq!(busy + pool.available(), pool.len());
                prop_assert_eq!(pool.known.len(), pool.contents.len());
                let (held, planned) = (pool.held_bytes(), BlockPool::held_bytes_max(pool.len()));
                prop_assert!(held <= planned, "{} bytes held, {} planned", held, planned);
            }
            for blocks in held {
                pool.release(&blocks);
            }
            prop_assert_eq!(pool.available(), pool.len());
        }
    }
}
