//! Byte-level BPE: text is cut into pieces ([`super::pre`]), and in each piece the pair of
//! neighbours with the lowest rank is merged until none is left.

use super::pre::{Compiled, PreTokenizer};
use super::vocab::{Kind, Vocab, Words};
use super::{MERGES_LEN_MAX, TokenizerError};
use crate::gguf::{Gguf, GgufError};
use crate::held;
use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// Pieces up to this many bytes are merged by looking at all pairs again after each merge.
const SHORT_PIECE_BYTES: usize = 24;

/// A pair's packed key takes 40 bits, its rank 24.
const RANK_BITS: u32 = 24;
const EMPTY: u64 = u64::MAX;

#[derive(Debug)]
pub(super) struct Bpe {
    pre: Compiled,
    merges: Merges,
    /// The token of each byte; [`NO_TOKEN`] where the vocabulary has none.
    pub(super) byte_ids: [u32; 256],
    unknown: Option<u32>,
    /// For vocabularies that take a piece that is a token whole, whatever the merges say.
    words: Option<Words>,
}

const NO_TOKEN: u32 = u32::MAX;

/// Pairs of token ids with their rank and the token they become.
#[derive(Debug)]
struct Merges {
    slots: Vec<u64>,
    /// By rank.
    ids: Vec<u32>,
    seed: u64,
}

impl Bpe {
    pub(super) fn held_bytes(&self) -> u64 {
        let words = self.words.as_ref().map_or(0, Words::held_bytes);
        held::of_vec(&self.merges.slots) + held::of_vec(&self.merges.ids) + words
    }
}

impl Merges {
    fn new(len: usize) -> Self {
        let capacity = (len * 2).next_power_of_two().max(16);
        // A random seed keeps a file from being made for collisions.
        let seed = ahash::RandomState::new().hash_one(0u64) | 1;
        Self { slots: vec![EMPTY; capacity], ids: Vec::with_capacity(len), seed }
    }

    fn slot(&self, left: u32, right: u32) -> (usize, u64) {
        let mask = self.slots.len() - 1;
        let key = (u64::from(left) << 20) | u64::from(right);
        let product = u128::from(key ^ self.seed) * u128::from(self.seed.rotate_left(29) | 1);
        let mut at = ((product >> 64) as u64 ^ product as u64) as usize & mask;
        loop {
            let slot = self.slots[at];
            if slot == EMPTY || slot >> RANK_BITS == key {
                return (at, slot);
            }
            at = (at + 1) & mask;
        }
    }

    /// Adds the next merge; the first of equals counts.
    fn push(&mut self, left: u32, right: u32, id: u32) {
        let rank = self.ids.len() as u64;
        self.ids.push(id);
        if let (slot, EMPTY) = self.slot(left, right) {
            let key = (u64::from(left) << 20) | u64::from(right);
            self.slots[slot] = (key << RANK_BITS) | rank;
        }
    }

    fn rank(&self, left: u32, right: u32) -> Option<u32> {
        match self.slot(left, right) {
            (_, EMPTY) => None,
            (_, slot) => Some(slot as u32 & ((1 << RANK_BITS) - 1)),
        }
    }
}

impl Bpe {
    pub(super) fn read(
        gguf: &Gguf,
        vocab: &Vocab,
        pre: &'static PreTokenizer,
    ) -> Result<Self, TokenizerError> {
        let words = Words::new(vocab, |kind| matches!(kind, Kind::Normal | Kind::Unused))?;
        let merges = read_merges(gguf, vocab, &words)?;
        let mut byte_ids = [NO_TOKEN; 256];
        for (byte, id) in (0u8..=255).zip(&mut byte_ids) {
            *id = words.get(vocab, &[byte]).unwrap_or(NO_TOKEN);
        }
        let key = "tokenizer.ggml.unknown_token_id";
        let unknown = super::special_id(gguf, key, vocab.len())?;
        let words = pre.whole_words.then_some(words);
        Ok(Self { pre: pre.compile(), merges, byte_ids, unknown, words })
    }

    /// Appends the ids of a text.
    pub(super) fn encode(&self, vocab: &Vocab, text: &str, ids: &mut Vec<u32>) {
        let mut symbols = Vec::new();
        self.pre.split(text, &mut |piece| {
            let whole = self.words.as_ref().and_then(|words| words.get(vocab, piece.as_bytes()));
            if let Some(id) = whole {
                ids.push(id);
                return;
            }
            symbols.clear();
            for byte in piece.bytes() {
                match self.byte_ids[usize::from(byte)] {
                    // A byte that the vocabulary cannot write: the unknown token, or nothing, as
                    // the reference does.
                    NO_TOKEN => symbols.extend(self.unknown),
                    id => symbols.push(id),
                }
            }
            if symbols.len() <= SHORT_PIECE_BYTES {
                self.merge_short(&mut symbols);
                ids.extend_from_slice(&symbols);
            } else {
                self.merge_long(&symbols, ids);
            }
        });
    }

    pub(super) fn merge_short(&self, symbols: &mut Vec<u32>) {
        loop {
            let mut best = (u32::MAX, usize::MAX);
            for (at, pair) in symbols.windows(2).enumerate() {
                let rank = self.merges.rank(pair[0], pair[1]).unwrap_or(u32::MAX);
                best = best.min((rank, at));
            }
            let (rank, at) = best;
            if rank == u32::MAX {
                return;
            }
            symbols[at] = self.merges.ids[rank as usize];
            symbols.remove(at + 1);
        }
    }

    /// The same with a queue: pieces can be as long as the text.
    pub(super) fn merge_long(&self, symbols: &[u32], out: &mut Vec<u32>) {
        const GONE: u32 = u32::MAX;
        let len = symbols.len();
        let mut ids = symbols.to_vec();
        let mut next: Vec<usize> = (1..=len).collect();
        let mut before: Vec<usize> = (0..len).map(|at| at.wrapping_sub(1)).collect();
        let mut queue = BinaryHeap::new();
        let push = |queue: &mut BinaryHeap<_>, ids: &[u32], left: usize, right: usize| {
            if let Some(rank) = self.merges.rank(ids[left], ids[right]) {
                queue.push(Reverse((rank, left, ids[left], ids[right])));
            }
        };
        for at in 1..len {
            push(&mut queue, &ids, at - 1, at);
        }
        while let Some(Reverse((rank, left, left_id, right_id))) = queue.pop() {
            let right = next[left];
            // Out of date: one of the two was merged since.
            if ids[left] != left_id || right >= len || ids[right] != right_id {
                continue;
            }
            ids[left] = self.merges.ids[rank as usize];
            ids[right] = GONE;
            next[left] = next[right];
            if let Some(link) = before.get_mut(next[left]) {
                *link = left;
            }
            if before[left] < len {
                push(&mut queue, &ids, before[left], left);
            }
            if next[left] < len {
                push(&mut queue, &ids, left, next[left]);
            }
        }
        out.extend(ids.into_iter().filter(|id| *id != GONE));
    }
}

fn read_merges(gguf: &Gguf, vocab: &Vocab, words: &Words) -> Result<Merges, TokenizerError> {
    let key = "tokenizer.ggml.merges";
    let missing = || GgufError::Missing { key: key.into() };
    let texts = gguf.strings(key)?.ok_or_else(missing)?;
    let (found, limit) = (texts.len(), MERGES_LEN_MAX);
    if found > limit {
        return Err(TokenizerError::Limit { key, found, limit });
    }
    let mut merges = Merges::new(found);
    let mut bytes = Vec::new();
    // Vocabularies made from ranks list every way to make a token, one after the other.
    let mut last: (Vec<u8>, u32) = (Vec::new(), NO_TOKEN);
    for (index, text) in texts.into_iter().enumerate() {
        let refuse = |reason| TokenizerError::Merge { index, text: text.to_owned(), reason };
        // The separator is the first space behind the first character.
        let first = text.chars().next().map_or(0, char::len_utf8);
        let (left, right) = text[first..]
            .find(' ')
            .map(|at| (&text[..first + at], &text[first + at + 1..]))
            .ok_or_else(|| refuse("expected two tokens with a space between them"))?;
        bytes.clear();
        super::vocab::push_byte_level(left.as_bytes(), Kind::Normal, &mut bytes);
        let middle = bytes.len();
        super::vocab::push_byte_level(right.as_bytes(), Kind::Normal, &mut bytes);
        let id = |bytes: &[u8], reason| words.get(vocab, bytes).ok_or_else(|| refuse(reason));
        let left = id(&bytes[..middle], "its first half is not in the vocabulary")?;
        let right = id(&bytes[middle..], "its second half is not in the vocabulary")?;
        if last.0 != bytes {
            last.1 = id(&bytes, "the merged token is not in the vocabulary")?;
            std::mem::swap(&mut last.0, &mut bytes);
        }
        merges.push(left, right, last.1);
    }
    Ok(merges)
}
