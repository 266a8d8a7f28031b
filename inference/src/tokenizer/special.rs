//! Tokens that are not ordinary text, and how they are found in one.

use std::collections::HashMap;

use super::vocab::{Kind, Vocab};

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

/// Finds the longest of a set of texts at the leftmost place.
#[derive(Debug, Default)]
struct Finder {
    ids: HashMap<Box<str>, u32, ahash::RandomState>,
    /// By first byte: the lengths that occur, longest first.
    lengths: HashMap<u8, Vec<usize>, ahash::RandomState>,
}

impl Finder {
    fn insert(&mut self, text: &str, id: u32) {
        let Some(first) = text.bytes().next() else { return };
        self.ids.entry(text.into()).or_insert(id);
        let lengths = self.lengths.entry(first).or_default();
        if let Err(at) = lengths.binary_search_by(|len| text.len().cmp(len)) {
            lengths.insert(at, text.len());
        }
    }

    fn find(&self, text: &str) -> Option<Found> {
        if self.ids.is_empty() {
            return None;
        }
        for (start, byte) in text.bytes().enumerate() {
            let Some(lengths) = self.lengths.get(&byte) else { continue };
            for len in lengths {
                let end = start + len;
                // `get` also refuses a cut inside a character.
                let id = text.get(start..end).and_then(|part| self.ids.get(part));
                if let Some(id) = id {
                    return Some(Found { start, end, id: *id });
                }
            }
        }
        None
    }
}

/// The tokens of a vocabulary that are not ordinary.
#[derive(Debug)]
pub(super) struct SpecialIndex {
    /// What [`super::Special::Parse`] finds and plain text must not have.
    reserved: Finder,
    /// What the vocabulary's author added and any text may have.
    defined: Finder,
    sentence_piece: bool,
}

impl SpecialIndex {
    pub(super) fn new(vocab: &Vocab, sentence_piece: bool) -> Self {
        let (reserved, defined) = (Finder::default(), Finder::default());
        let mut index = Self { reserved, defined, sentence_piece };
        for id in vocab.ids() {
            let Ok(text) = std::str::from_utf8(vocab.bytes(id)) else { continue };
            if index.is_reserved(vocab, id) {
                index.reserved.insert(text, id);
            } else if vocab.kind(id) == Kind::UserDefined {
                index.defined.insert(text, id);
            }
        }
        index
    }

    pub(super) fn is_reserved(&self, vocab: &Vocab, id: u32) -> bool {
        match vocab.kind(id) {
            Kind::Control | Kind::Unknown => true,
            Kind::UserDefined if !self.sentence_piece => {
                !vocab.bytes(id).iter().all(u8::is_ascii_whitespace)
            }
            _ => false,
        }
    }

    /// The first reserved token in a text.
    pub(super) fn find_reserved(&self, text: &str) -> Option<Found> {
        self.reserved.find(text)
    }

    /// Cuts a text at the tokens that any text may have.
    pub(super) fn split_defined(&self, text: &str, mut piece: impl FnMut(Piece<'_>)) {
        let mut rest = text;
        while let Some(found) = self.defined.find(rest) {
            if found.start > 0 {
                piece(Piece::Text(&rest[..found.start]));
            }
            piece(Piece::Token(found.id));
            rest = &rest[found.end..];
        }
        if !rest.is_empty() {
            piece(Piece::Text(rest));
        }
    }

    pub(super) fn id(&self, text: &str) -> Option<u32> {
        let found = self.reserved.ids.get(text).or_else(|| self.defined.ids.get(text));
        found.copied()
    }
}
