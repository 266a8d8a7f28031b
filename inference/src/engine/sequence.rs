//! One sequence, as the scheduler sees it.

use std::sync::Arc;

use crate::backend::BLOCK_TOKENS;
use crate::held;
use crate::kv::{BlockPool, Link, blocks_for};

/// What is wanted from a sequence's steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Logits.
    Generate,
    /// Hidden states.
    Embed,
}

/// A sequence; `W` is what its owner keeps with it.
#[derive(Debug)]
pub(crate) struct Sequence<W> {
    /// Order of arrival.
    pub(crate) id: u64,
    pub(crate) principal: Arc<str>,
    pub(crate) priority: u8,
    pub(crate) kind: Kind,
    /// Prompt and what was generated.
    pub(crate) tokens: Vec<u32>,
    /// Tokens guessed to follow, to be checked in the next step.
    pub(crate) guesses: Vec<u32>,
    pub(crate) work: W,
    /// Tokens whose keys and values the cache holds.
    computed: usize,
    /// The most that was ever computed: what is computed again after a preemption is not news.
    reached: usize,
    blocks: Vec<u32>,
    /// Links of the blocks whose content is known.
    links: Vec<Link>,
    /// The step it last took part in.
    pub(super) stepped: u64,
    /// What its priority counted as when it was let in; at least that from then on.
    pub(super) right: u64,
}

impl<W> Sequence<W> {
    pub(crate) fn new(
        id: u64,
        principal: Arc<str>,
        priority: u8,
        kind: Kind,
        tokens: Vec<u32>,
        work: W,
    ) -> Self {
        Self {
            id,
            principal,
            priority,
            kind,
            tokens,
            guesses: Vec::new(),
            work,
            computed: 0,
            reached: 0,
            blocks: Vec::new(),
            links: Vec::new(),
            stepped: 0,
            right: 0,
        }
    }

    /// Bytes of its lists.
    pub(crate) fn held_bytes(&self) -> u64 {
        let tokens = held::of_vec(&self.tokens) + held::of_vec(&self.guesses);
        tokens + held::of_vec(&self.blocks) + held::of_vec(&self.links)
    }

    pub(crate) fn computed(&self) -> usize {
        self.computed
    }

    pub(crate) fn blocks(&self) -> &[u32] {
        &self.blocks
    }

    /// Tokens that must be computed before the next one can be chosen.
    pub(crate) fn pending(&self) -> usize {
        self.tokens.len() - self.computed
    }

    /// Whether only the last token is to be computed.
    pub(crate) fn is_decoding(&self) -> bool {
        self.kind == Kind::Generate && self.pending() == 1 && self.computed > 0
    }

    /// How many blocks the sequence would have to take to be computed to its end, and how many
    /// idle ones it would take up again.
    pub(super) fn wants(&self, pool: &BlockPool) -> (usize, usize) {
        let (known, idle) = match self.kind {
            Kind::Generate => pool.peek(&self.tokens),
            Kind::Embed => (0, 0),
        };
        (blocks_for(self.tokens.len() + 1).min(pool.len()).saturating_sub(known), idle)
    }

    /// Takes up what the cache knows of the tokens. Where it knows all of them, the last block is
    /// copied: its last token is computed again, for its logits, and a shared block is never
    /// written.
    pub(super) fn resume(&mut self, pool: &mut BlockPool, copies: &mut Vec<(u32, u32)>) {
        debug_assert!(self.blocks.is_empty());
        if self.kind == Kind::Embed {
            return;
        }
        let mut found = pool.find(&self.tokens);
        if found.blocks.len() * BLOCK_TOKENS == self.tokens.len()
            && let Some(shared) = found.blocks.pop()
        {
            found.links.pop();
            if let Some(own) = pool.take() {
                copies.push((shared, own));
                found.blocks.push(own);
                self.computed = self.tokens.len() - 1;
            } else {
                self.computed = found.blocks.len() * BLOCK_TOKENS;
            }
            // The copy is made before anything is written in this step, so the block may be idle.
            pool.release(&[shared]);
        } else {
            self.computed = found.blocks.len() * BLOCK_TOKENS;
        }
        self.blocks = found.blocks;
        self.links = found.links;
    }

    /// Takes blocks until `tokens` fit. What was taken is kept when there are too few.
    pub(super) fn reserve(&mut self, tokens: usize, pool: &mut BlockPool) -> Result<(), NoBlock> {
        while self.blocks.len() < blocks_for(tokens) {
            self.blocks.push(pool.take().ok_or(NoBlock)?);
        }
        Ok(())
    }

    /// Whether nobody else reads the blocks that the next tokens go to.
    pub(super) fn writes_alone(&self, pool: &BlockPool) -> bool {
        self.blocks[self.computed / BLOCK_TOKENS..].iter().all(|&block| !pool.is_shared(block))
    }

    /// Gives all blocks back; everything is to be computed again.
    pub(super) fn release(&mut self, pool: &mut BlockPool) {
        pool.release(&self.blocks);
        self.blocks.clear();
        self.links.clear();
        self.guesses.clear();
        self.computed = 0;
    }

    /// `tokens` more are computed; whole blocks become known. Returns how many of them had been
    /// computed before.
    pub(super) fn advance(&mut self, tokens: usize, pool: &mut BlockPool) -> usize {
        let before = self.computed;
        self.computed += tokens;
        let again = self.reached.min(self.computed).saturating_sub(before);
        self.reached = self.reached.max(self.computed);
        if self.kind == Kind::Generate {
            self.publish(pool);
        }
        again
    }

    fn publish(&mut self, pool: &mut BlockPool) {
        for at in self.links.len()..self.computed / BLOCK_TOKENS {
            let before = self.links.last().copied().unwrap_or(Link::START);
            let tokens = &self.tokens[at * BLOCK_TOKENS..(at + 1) * BLOCK_TOKENS];
            match pool.publish(self.blocks[at], before, tokens) {
                Some(link) => self.links.push(link),
                None => return,
            }
        }
    }
}

/// The cache has no block left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct NoBlock;
