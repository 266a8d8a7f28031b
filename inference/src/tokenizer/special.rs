//! Tokens that are not ordinary text, and how they are found in one.

use std::collections::HashMap;

use aho_corasick::{AhoCorasick, AhoCorasickKind, MatchKind};

use super::TokenizerError;
use super::vocab::{Kind, Vocab};
use crate::held;

/// Bytes of all tokens that are not ordinary text, together. Real vocabularies have 0.1 MB.
const SPECIAL_BYTES_MAX: usize = 4 << 20;

/// Texts of tokens that end a turn, where the file does not name one; the first known counts.
pub(super) const END_OF_TURN: &[&str] = &[
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<EOT>",
    "<end_of_utterance>",
];

/// Texts of tokens after which generation ends, as llama.cpp has them.
pub(super) const ENDS: &[&str] = &[
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "<|eom_id|>",
    "</s>",
    "<eos>",
    "<EOT>",
    "<|end_of_text|>",
    "<end_of_utterance>",
    "<|fim_pad|>",
    "<|repo_name|>",
    "<|fim_repo|>",
    "<|file_sep|>",
];

/// A token in a text.
#[derive(Debug, Clone, Copy)]
pub(super) struct Found {
    pub(super) start: usize,
    pub(super) end: usize,
    pub(super) id: u32,
}

/// A part of a text.
pub(super) enum Piece<'a> {
    Text(&'a str),
    Token(u32),
}

/// Finds the longest of a set of texts at the leftmost place, in time that grows with the text and
/// not with the set.
#[derive(Debug)]
struct Finder {
    ids: Vec<u32>,
    by_text: HashMap<Box<str>, u32, ahash::RandomState>,
    search: Option<AhoCorasick>,
}

impl Finder {
    fn held_bytes(&self) -> u64 {
        let texts: usize = self.by_text.keys().map(|text| text.len()).sum();
        let search = self.search.as_ref().map_or(0, AhoCorasick::memory_usage);
        held::of_vec(&self.ids) + held::of_map(&self.by_text) + (texts + search) as u64
    }

    /// Of tokens with the same text the first counts.
    fn new(tokens: &[(&str, u32)]) -> Result<Self, TokenizerError> {
        let key = "tokenizer.ggml.tokens";
        let (found, limit) = (tokens.iter().map(|(text, _)| text.len()).sum(), SPECIAL_BYTES_MAX);
        if found > limit {
            return Err(TokenizerError::Limit { key, found, limit });
        }
        let mut by_text = HashMap::default();
        for (text, id) in tokens {
            by_text.entry(Box::from(*text)).or_insert(*id);
        }
        let search = AhoCorasick::builder()
            .match_kind(MatchKind::LeftmostLongest)
            .kind(Some(AhoCorasickKind::ContiguousNFA))
            .build(tokens.iter().map(|(text, _)| text))
            .map_err(|_| TokenizerError::Limit { key, found, limit })?;
        let ids = tokens.iter().map(|(_, id)| *id).collect();
        Ok(Self { ids, by_text, search: (!tokens.is_empty()).then_some(search) })
    }

    fn find(&self, text: &str) -> Option<Found> {
        let found = self.search.as_ref()?.find(text)?;
        let id = self.ids[found.pattern().as_usize()];
        Some(Found { start: found.start(), end: found.end(), id })
    }
}

/// The tokens of a vocabulary that are not ordinary.
#[derive(Debug)]
pub(super) struct SpecialIndex {
    /// What [`super::Special::Parse`] finds and plain text must not have.
    reserved: Finder,
    /// What the vocabulary's author added and any text may have.
    defined: Finder,
    /// Those of them that end an answer all the same: Phi-3's `</s>`.
    ends: Finder,
    sentence_piece: bool,
}

impl SpecialIndex {
    pub(super) fn held_bytes(&self) -> u64 {
        [&self.reserved, &self.defined, &self.ends].into_iter().map(Finder::held_bytes).sum()
    }

    pub(super) fn new(vocab: &Vocab, sentence_piece: bool) -> Result<Self, TokenizerError> {
        let (mut reserved, mut defined) = (Vec::new(), Vec::new());
        for id in vocab.ids() {
            let reserves = is_reserved(vocab, sentence_piece, id);
            if !reserves && vocab.kind(id) != Kind::UserDefined {
                continue;
            }
            match std::str::from_utf8(vocab.bytes(id)) {
                Ok("") | Err(_) => {}
                Ok(text) if reserves => reserved.push((text, id)),
                Ok(text) => defined.push((text, id)),
            }
        }
        let (reserved, defined) = (Finder::new(&reserved)?, Finder::new(&defined)?);
        Ok(Self { reserved, defined, ends: Finder::new(&[])?, sentence_piece })
    }

    /// Notes which tokens end an answer.
    pub(super) fn note_ends(&mut self, vocab: &Vocab, ends: &[u32]) -> Result<(), TokenizerError> {
        let defined = ends
            .iter()
            .filter(|id| vocab.kind(**id) == Kind::UserDefined && !self.is_reserved(vocab, **id));
        let texts =
            defined.filter_map(|id| Some((std::str::from_utf8(vocab.bytes(*id)).ok()?, *id)));
        let texts: Vec<(&str, u32)> = texts.filter(|(text, _)| !text.is_empty()).collect();
        self.ends = Finder::new(&texts)?;
        Ok(())
    }

    /// The first token in a text that any text may have and that ends an answer.
    pub(super) fn find_end(&self, text: &str) -> Option<Found> {
        self.ends.find(text)
    }

    pub(super) fn is_reserved(&self, vocab: &Vocab, id: u32) -> bool {
        is_reserved(vocab, self.sentence_piece, id)
    }

    /// The first reserved token in a text.
    pub(super) fn find_reserved(&self, text: &str) -> Option<Found> {
        self.reserved.find(text)
    }

    /// Cuts a text at the tokens that any text may have, but for those that end an answer and have
    /// one of `shields` (places in the text, in order) inside: these are cut in two there.
    pub(super) fn split_defined(
        &self,
        text: &str,
        shields: &[usize],
        mut piece: impl FnMut(Piece<'_>),
    ) {
        let mut at = 0;
        while let Some(found) = self.defined.find(&text[at..]) {
            let (start, end) = (at + found.start, at + found.end);
            let shield = shields.iter().find(|shield| (start + 1..end).contains(*shield));
            let shield = shield.filter(|_| self.ends.ids.contains(&found.id));
            let text_end = shield.copied().unwrap_or(start);
            if text_end > at {
                piece(Piece::Text(&text[at..text_end]));
            }
            at = match shield {
                Some(shield) => *shield,
                None => {
                    piece(Piece::Token(found.id));
                    end
                }
            };
        }
        if at < text.len() {
            piece(Piece::Text(&text[at..]));
        }
    }

    pub(super) fn id(&self, text: &str) -> Option<u32> {
        let found = self.reserved.by_text.get(text).or_else(|| self.defined.by_text.get(text));
        found.copied()
    }
}

/// See [`super::Tokenizer::is_reserved`].
fn is_reserved(vocab: &Vocab, sentence_piece: bool, id: u32) -> bool {
    match vocab.kind(id) {
        Kind::Control | Kind::Unknown => true,
        Kind::UserDefined => {
            !sentence_piece && !vocab.bytes(id).iter().all(u8::is_ascii_whitespace)
        }
        _ => false,
    }
}
