//! Text to token ids and back, from the vocabulary in the model's own file.
//!
//! Two kinds of vocabulary: byte-level BPE (`tokenizer.ggml.model = gpt2`, see [`bpe`] and
//! [`pre`]) and SentencePiece with byte fallback (`llama`, see [`spm`]). Ids are those of the
//! reference tokenizers (Hugging Face, SentencePiece, tiktoken); where llama.cpp differs from them
//! (combining marks, NFC, symbols that the vocabulary's author defined) the references win.
//!
//! Invariants:
//! - Reserved tokens (see [`Tokenizer::is_reserved`]) come only out of text that was encoded with
//!   [`Special::Parse`], which is for templates. Text of users is encoded with
//!   [`Special::Plain`], or shielded first ([`Tokenizer::shield`]), which also keeps it from the
//!   tokens that end an answer where a vocabulary counts those as text (Phi-3's `</s>`).
//! - An unknown kind of vocabulary or pre-tokenizer is refused by its name, never guessed.
//! - The vocabulary's strings are kept in one block of memory, not one allocation per token.
//!
//! Deliberately absent: Unigram, WordPiece, RWKV and PLaMo vocabularies; truncation and padding.

mod bpe;
mod pre;
mod special;
mod spm;
mod stream;
mod vocab;

use std::borrow::Cow;

use crate::gguf::{Gguf, GgufError};
use crate::held;

pub use stream::StreamDecoder;

use bpe::Bpe;
use special::SpecialIndex;
use spm::Spm;
use vocab::{Kind, Vocab};

/// Most tokens in a vocabulary.
pub const TOKENS_LEN_MAX: usize = 1 << 20;
/// Most merges of a BPE vocabulary.
pub const MERGES_LEN_MAX: usize = (1 << 24) - 1;

/// What [`Tokenizer::shield`] puts into the text of a reserved token: a code point that is not a
/// character. Text that a user sends loses it.
pub const SHIELD: char = '\u{10fffe}';

/// Why a vocabulary was refused.
#[derive(Debug, thiserror::Error)]
pub enum TokenizerError {
    /// A key is missing or has another type.
    #[error("read the vocabulary")]
    Gguf(#[from] GgufError),
    /// A kind of vocabulary this program does not know.
    #[error("read the vocabulary: kind {0:?} is not supported, expected \"gpt2\" or \"llama\"")]
    Model(String),
    /// A pre-tokenizer this program does not know. Guessing another one would give wrong ids.
    #[error(
        "read the vocabulary: pre-tokenizer {0:?} is not supported, this program needs a newer \
         version to run this model"
    )]
    PreTokenizer(String),
    /// Two arrays that belong together have different lengths.
    #[error("read key {key:?}: found {found} elements, expected {expected}, one per token")]
    Length {
        /// The key.
        key: &'static str,
        /// Elements found.
        found: usize,
        /// Tokens in the vocabulary.
        expected: usize,
    },
    /// More tokens or merges than this program takes.
    #[error("read key {key:?}: {found} elements are above the limit of {limit}")]
    Limit {
        /// The key.
        key: &'static str,
        /// Elements found.
        found: usize,
        /// The limit.
        limit: usize,
    },
    /// Two tokens have the same text.
    #[error("read the vocabulary: tokens {first} and {second} are both {text:?}")]
    Duplicate {
        /// The first of them.
        first: u32,
        /// The second.
        second: u32,
        /// Their text.
        text: String,
    },
    /// A merge is not two known tokens whose text together is a third.
    #[error("read merge number {index}, {text:?}: {reason}")]
    Merge {
        /// Its place in `tokenizer.ggml.merges`.
        index: usize,
        /// As it stands in the file.
        text: String,
        /// What is wrong.
        reason: &'static str,
    },
    /// A special token's id is not in the vocabulary.
    #[error("read key {key:?}: id {id} is outside the vocabulary of {tokens} tokens")]
    OutOfRange {
        /// The key.
        key: &'static str,
        /// The id found.
        id: u32,
        /// Tokens in the vocabulary.
        tokens: usize,
    },
}

/// Which tokens may come out of a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Special {
    /// Ordinary tokens only: `<|im_end|>` in the text becomes `<`, `|`, `im`, …
    Plain,
    /// Every token: for the text of templates, never for text of users.
    Parse,
}

/// How a vocabulary cuts text.
#[derive(Debug)]
enum Model {
    Bpe(Box<Bpe>),
    Spm(Box<Spm>),
}

/// A model's tokenizer.
#[derive(Debug)]
pub struct Tokenizer {
    vocab: Vocab,
    model: Model,
    special: SpecialIndex,
    bos: Option<u32>,
    eos: Option<u32>,
    eot: Option<u32>,
    pad: Option<u32>,
    ends: Vec<u32>,
    add_bos: bool,
    add_eos: bool,
}

impl Tokenizer {
    /// Reads the vocabulary of a model, or of a file that has nothing else.
    ///
    /// # Errors
    /// [`TokenizerError`].
    pub fn from_gguf(gguf: &Gguf) -> Result<Self, TokenizerError> {
        let kind = gguf.require_str("tokenizer.ggml.model")?;
        let (vocab, model, add_bos) = match kind {
            "gpt2" => {
                let name = match gguf.str("tokenizer.ggml.pre")? {
                    // Microsoft's own files leave it out; their vocabulary is Llama 3's.
                    None if gguf.architecture() == "bitnet-b1.58" => "llama-bpe",
                    _ => gguf.require_str("tokenizer.ggml.pre")?,
                };
                let pre =
                    pre::find(name).ok_or_else(|| TokenizerError::PreTokenizer(name.to_owned()))?;
                let vocab = Vocab::read(gguf, vocab::Alphabet::ByteLevel)?;
                let model = Bpe::read(gguf, &vocab, pre)?;
                (vocab, Model::Bpe(Box::new(model)), pre.add_bos)
            }
            "llama" => {
                let vocab = Vocab::read(gguf, vocab::Alphabet::SentencePiece)?;
                let model = Spm::read(gguf, &vocab)?;
                (vocab, Model::Spm(Box::new(model)), true)
            }
            other => return Err(TokenizerError::Model(other.to_owned())),
        };
        let id = |key: &'static str| special_id(gguf, key, vocab.len());
        let bos = id("tokenizer.ggml.bos_token_id")?;
        let eos = id("tokenizer.ggml.eos_token_id")?;
        let eot = id("tokenizer.ggml.eot_token_id")?;
        let eom = id("tokenizer.ggml.eom_token_id")?;
        let pad = id("tokenizer.ggml.padding_token_id")?;
        let mut special = SpecialIndex::new(&vocab, matches!(model, Model::Spm(_)))?;
        let eot = eot.or_else(|| special::END_OF_TURN.iter().find_map(|text| special.id(text)));
        let mut ends: Vec<u32> = special::ENDS.iter().filter_map(|text| special.id(text)).collect();
        ends.extend(eos.into_iter().chain(eot).chain(eom));
        ends.sort_unstable();
        ends.dedup();
        special.note_ends(&vocab, &ends)?;
        let flag = |key: &str| gguf.bool(key);
        let add_bos = flag("tokenizer.ggml.add_bos_token")?.unwrap_or(add_bos) && bos.is_some();
        let add_eos = flag("tokenizer.ggml.add_eos_token")?.unwrap_or(false) && eos.is_some();
        Ok(Self { vocab, model, special, bos, eos, eot, pad, ends, add_bos, add_eos })
    }

    /// Token ids of a text. Nothing is added at its start or end; see [`Tokenizer::add_bos`].
    pub fn encode(&self, text: &str, special: Special) -> Vec<u32> {
        let mut ids = Vec::with_capacity(text.len() / 3 + 1);
        let mut rest = text;
        while !rest.is_empty() {
            let found = match special {
                Special::Plain => None,
                Special::Parse => self.special.find_reserved(rest),
            };
            let end = found.map_or(rest.len(), |found| found.start);
            if end > 0 {
                self.encode_ordinary(&rest[..end], &mut ids);
            }
            let Some(found) = found else { break };
            ids.push(found.id);
            rest = &rest[found.end..];
        }
        ids
    }

    /// A stretch of text without reserved tokens, at the start or behind one of them.
    fn encode_ordinary(&self, text: &str, ids: &mut Vec<u32>) {
        let shielded = text.contains(SHIELD);
        let plain: Cow<'_, str> =
            if shielded { text.replace(SHIELD, "").into() } else { text.into() };
        match &self.model {
            Model::Bpe(bpe) => {
                // Only tokens of blanks are left to find here (a few vocabularies have them).
                self.special.split_defined(&plain, &[], |piece| match piece {
                    special::Piece::Text(text) => bpe.encode(&self.vocab, text, ids),
                    special::Piece::Token(id) => ids.push(id),
                });
            }
            Model::Spm(spm) => {
                let plain = spm.normalize(&plain);
                let shields = if shielded { spm.shields(text) } else { Vec::new() };
                self.special.split_defined(&plain, &shields, |piece| match piece {
                    special::Piece::Text(text) => spm.encode(&self.vocab, text, ids),
                    special::Piece::Token(id) => ids.push(id),
                });
            }
        }
    }

    /// Text of a user or a tool, made safe to stand in a template's text that is encoded with
    /// [`Special::Parse`]: a [`SHIELD`] inside keeps the text of reserved tokens, and of any that
    /// end an answer, from being taken for the tokens, and is dropped by the encoding.
    pub fn shield<'a>(&self, text: &'a str) -> Cow<'a, str> {
        self.shield_where(text, |_| true)
    }

    /// The same, but not for the mark-up among the tokens of [`Tokenizer::is_reserved`].
    pub fn shield_control<'a>(&self, text: &'a str) -> Cow<'a, str> {
        self.shield_where(text, |id| self.is_control(id))
    }

    fn shield_where<'a>(&self, text: &'a str, chosen: impl Fn(u32) -> bool) -> Cow<'a, str> {
        let text: Cow<'a, str> =
            if text.contains(SHIELD) { text.replace(SHIELD, "").into() } else { text.into() };
        let text = shielded(text, |text| self.special.find_reserved(text), chosen);
        shielded(text, |text| self.special.find_end(text), |_| true)
    }

    /// The text of tokens, reserved ones included. Bytes that are not UTF-8 become U+FFFD. The
    /// space that SentencePiece puts before a text is taken off again.
    pub fn decode(&self, ids: &[u32]) -> String {
        let bytes: Vec<u8> = ids.iter().flat_map(|id| self.token_bytes(*id)).copied().collect();
        let text = String::from_utf8_lossy(&bytes);
        let added = match &self.model {
            Model::Spm(spm) if spm.adds_space() => {
                ids.first().is_some_and(|id| !self.is_control(*id))
            }
            _ => false,
        };
        match text.strip_prefix(' ') {
            Some(stripped) if added => stripped.to_owned(),
            _ => text.into_owned(),
        }
    }

    /// The bytes of a token: not always whole characters. Empty for an id outside the vocabulary.
    pub fn token_bytes(&self, id: u32) -> &[u8] {
        self.vocab.bytes(id)
    }

    /// Bytes of its tables. The compiled pattern of a pre-tokenizer, which is the same for all
    /// vocabularies, is not among them.
    pub(crate) fn held_bytes(&self) -> u64 {
        let model = match &self.model {
            Model::Bpe(bpe) => bpe.held_bytes(),
            Model::Spm(spm) => spm.held_bytes(),
        };
        self.vocab.held_bytes() + model + self.special.held_bytes() + held::of_vec(&self.ends)
    }

    /// Number of tokens.
    pub fn vocab_len(&self) -> usize {
        self.vocab.len()
    }

    /// The token that begins a text.
    pub fn bos(&self) -> Option<u32> {
        self.bos
    }

    /// The token that ends a text.
    pub fn eos(&self) -> Option<u32> {
        self.eos
    }

    /// The token that ends a turn in a chat.
    pub fn eot(&self) -> Option<u32> {
        self.eot
    }

    /// The token that fills up.
    pub fn pad(&self) -> Option<u32> {
        self.pad
    }

    /// Whether a text that is not a rendered chat begins with [`Tokenizer::bos`].
    pub fn add_bos(&self) -> bool {
        self.add_bos
    }

    /// Whether a text that is not a rendered chat ends with [`Tokenizer::eos`] (embeddings).
    pub fn add_eos(&self) -> bool {
        self.add_eos
    }

    /// Tokens after which generation ends, sorted.
    pub fn ends(&self) -> &[u32] {
        &self.ends
    }

    /// Whether generation ends with this token.
    pub fn is_end(&self, id: u32) -> bool {
        self.ends.binary_search(&id).is_ok()
    }

    /// Whether the token steers the model and is not text to show: `<|im_end|>`.
    pub fn is_control(&self, id: u32) -> bool {
        matches!(self.vocab.kind(id), Kind::Control | Kind::Unknown)
    }

    /// Whether the token is kept from users' text: control tokens, and the mark-up that a BPE
    /// vocabulary's author added (`<think>`, `<tool_call>`). SentencePiece vocabularies count
    /// their author's additions (runs of spaces, HTML tags) as ordinary text.
    pub fn is_reserved(&self, id: u32) -> bool {
        self.special.is_reserved(&self.vocab, id)
    }

    /// The token with exactly this text, among those that are not ordinary.
    pub fn special(&self, text: &str) -> Option<u32> {
        self.special.id(text)
    }
}

/// With a [`SHIELD`] behind the first character of every token found that is chosen.
fn shielded<'a>(
    mut text: Cow<'a, str>,
    find: impl Fn(&str) -> Option<special::Found>,
    chosen: impl Fn(u32) -> bool,
) -> Cow<'a, str> {
    let mut from = 0;
    while let Some(found) = find(&text[from..]) {
        let first = text[from + found.start..].chars().next().map_or(1, char::len_utf8);
        let at = from + found.start + first;
        if chosen(found.id) {
            text.to_mut().insert(at, SHIELD);
            from = at + SHIELD.len_utf8();
        } else {
            from += found.end;
        }
    }
    text
}

fn special_id(
    gguf: &Gguf,
    key: &'static str,
    tokens: usize,
) -> Result<Option<u32>, TokenizerError> {
    match gguf.u32(key)? {
        Some(id) if id as usize >= tokens => Err(TokenizerError::OutOfRange { key, id, tokens }),
        id => Ok(id),
    }
}

#[cfg(test)]
pub(crate) mod tests;
