//! SentencePiece's BPE: neighbours whose text together is a token are merged, the token with the
//! highest score first; what is no token in the end becomes bytes.

use std::cmp::Ordering;
use std::collections::BinaryHeap;

use super::vocab::{Kind, Vocab, Words};
use super::{SHIELD, TokenizerError};
use crate::gguf::{Gguf, GgufError};
use crate::held;

#[derive(Debug)]
pub(super) struct Spm {
    words: Words,
    scores: Vec<f32>,
    byte_ids: [Option<u32>; 256],
    unknown: Option<u32>,
    add_space: bool,
}

impl Spm {
    pub(super) fn held_bytes(&self) -> u64 {
        self.words.held_bytes() + held::of_vec(&self.scores)
    }
}

/// Two neighbours that can be merged: the right one starts at `middle`.
#[derive(Debug)]
struct Pair {
    score: f32,
    left: usize,
    right: usize,
    /// Length of both together in bytes, to see whether one was merged since.
    len: usize,
    id: u32,
}

impl PartialEq for Pair {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Pair {}

impl PartialOrd for Pair {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Pair {
    /// Highest score first, then leftmost.
    fn cmp(&self, other: &Self) -> Ordering {
        self.score.total_cmp(&other.score).then(other.left.cmp(&self.left))
    }
}

/// A stretch of the text: a character at first. Merged ones have length 0.
#[derive(Debug, Clone, Copy)]
struct Symbol {
    start: usize,
    len: usize,
    before: usize,
    next: usize,
    id: Option<u32>,
}

impl Spm {
    pub(super) fn read(gguf: &Gguf, vocab: &Vocab) -> Result<Self, TokenizerError> {
        let key = "tokenizer.ggml.scores";
        let missing = || GgufError::Missing { key: key.into() };
        let scores = gguf.f32s(key)?.ok_or_else(missing)?;
        if scores.len() != vocab.len() {
            let (found, expected) = (scores.len(), vocab.len());
            return Err(TokenizerError::Length { key, found, expected });
        }
        // Control and byte tokens are left out: text must not merge into them.
        let keep = |kind| matches!(kind, Kind::Normal | Kind::UserDefined | Kind::Unused);
        let words = Words::new(vocab, keep)?;
        let mut byte_ids = [None; 256];
        for id in vocab.ids().filter(|id| vocab.kind(*id) == Kind::Byte) {
            if let [byte] = vocab.bytes(id) {
                byte_ids[usize::from(*byte)].get_or_insert(id);
            }
        }
        let unknown = super::special_id(gguf, "tokenizer.ggml.unknown_token_id", vocab.len())?
            .or_else(|| vocab.ids().find(|id| vocab.kind(*id) == Kind::Unknown));
        let add_space = gguf.bool("tokenizer.ggml.add_space_prefix")?.unwrap_or(true);
        Ok(Self { words, scores, byte_ids, unknown, add_space })
    }

    /// Whether a space goes before a text.
    pub(super) fn adds_space(&self) -> bool {
        self.add_space
    }

    /// The text as this module works on it, with one more space before it where the vocabulary
    /// asks for it: at the start of a text, and (as llama.cpp has it) behind a control token. SentencePiece writes a space as `▁` and so cannot tell the two apart; here both
    /// are a space, as in [`Vocab`].
    pub(super) fn normalize(&self, text: &str) -> String {
        let prefix = if self.add_space { " " } else { "" };
        format!("{prefix}{}", text.replace('▁', " "))
    }

    /// Where the shields of a text stand in its normal form, which has none.
    pub(super) fn shields(&self, text: &str) -> Vec<usize> {
        let mut at = usize::from(self.add_space);
        let mut shields = Vec::new();
        for character in text.chars() {
            match character {
                SHIELD => shields.push(at),
                '▁' => at += 1,
                other => at += other.len_utf8(),
            }
        }
        shields
    }

    /// Appends the ids of a normalized text.
    pub(super) fn encode(&self, vocab: &Vocab, text: &str, ids: &mut Vec<u32>) {
        let mut symbols: Vec<Symbol> = Vec::with_capacity(text.len());
        for (at, (start, character)) in text.char_indices().enumerate() {
            let len = character.len_utf8();
            let id = self.words.get(vocab, &text.as_bytes()[start..start + len]);
            let before = at.wrapping_sub(1);
            symbols.push(Symbol { start, len, before, next: at + 1, id });
        }
        let mut queue = BinaryHeap::new();
        for right in 1..symbols.len() {
            self.push(vocab, text, &symbols, right - 1, right, &mut queue);
        }
        while let Some(pair) = queue.pop() {
            let (left, right) = (symbols[pair.left], symbols[pair.right]);
            if left.len == 0 || right.len == 0 || left.len + right.len != pair.len {
                continue;
            }
            symbols[pair.left].len = pair.len;
            symbols[pair.left].id = Some(pair.id);
            symbols[pair.left].next = right.next;
            symbols[pair.right].len = 0;
            if let Some(after) = symbols.get_mut(right.next) {
                after.before = pair.left;
            }
            if left.before < symbols.len() {
                self.push(vocab, text, &symbols, left.before, pair.left, &mut queue);
            }
            if right.next < symbols.len() {
                self.push(vocab, text, &symbols, pair.left, right.next, &mut queue);
            }
        }
        for symbol in symbols.iter().filter(|symbol| symbol.len > 0) {
            match symbol.id {
                Some(id) => ids.push(id),
                None => self.push_bytes(&text[symbol.start..symbol.start + symbol.len], ids),
            }
        }
    }

    fn push(
        &self,
        vocab: &Vocab,
        text: &str,
        symbols: &[Symbol],
        left: usize,
        right: usize,
        queue: &mut BinaryHeap<Pair>,
    ) {
        let start = symbols[left].start;
        let len = symbols[left].len + symbols[right].len;
        if len > vocab.token_bytes_max {
            return;
        }
        if let Some(id) = self.words.get(vocab, &text.as_bytes()[start..start + len]) {
            let score = self.scores[id as usize];
            queue.push(Pair { score, left, right, len, id });
        }
    }

    /// A character that is no token: its bytes, or the unknown token where there are no bytes.
    fn push_bytes(&self, character: &str, ids: &mut Vec<u32>) {
        let character = if character == " " { "▁" } else { character };
        let bytes = character.bytes().map(|byte| self.byte_ids[usize::from(byte)]);
        if bytes.clone().all(|id| id.is_some()) {
            ids.extend(bytes.flatten());
        } else {
            ids.extend(self.unknown);
        }
    }
}
