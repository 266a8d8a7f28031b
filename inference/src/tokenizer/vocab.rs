//! The tokens' bytes and kinds, in one block, and a table to find a token by its bytes.

use super::{TOKENS_LEN_MAX, TokenizerError};
use crate::gguf::Gguf;
use crate::held;

/// What a token is for; `tokenizer.ggml.token_type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Normal,
    Unknown,
    Control,
    UserDefined,
    Unused,
    Byte,
}

impl Kind {
    fn from_number(number: i32) -> Self {
        match number {
            2 => Self::Unknown,
            3 => Self::Control,
            4 => Self::UserDefined,
            5 => Self::Unused,
            6 => Self::Byte,
            _ => Self::Normal,
        }
    }
}

/// How the file writes a token's bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Alphabet {
    /// GPT-2's: every byte is a printable character (`Ġ` is a space).
    ByteLevel,
    /// Text with `▁` for a space, `<0x0A>` for a byte.
    SentencePiece,
}

#[derive(Debug)]
pub(super) struct Vocab {
    bytes: Vec<u8>,
    /// Where each token's bytes end; they begin where the token before ends.
    ends: Vec<u32>,
    kinds: Vec<Kind>,
    /// Longest token, in bytes.
    pub(super) token_bytes_max: usize,
}

impl Vocab {
    pub(super) fn held_bytes(&self) -> u64 {
        held::of_vec(&self.bytes) + held::of_vec(&self.ends) + held::of_vec(&self.kinds)
    }

    pub(super) fn read(gguf: &Gguf, alphabet: Alphabet) -> Result<Self, TokenizerError> {
        let key = "tokenizer.ggml.tokens";
        let missing = || crate::gguf::GgufError::Missing { key: key.into() };
        let texts = gguf.byte_strings(key)?.ok_or_else(missing)?;
        let (found, limit) = (texts.len(), TOKENS_LEN_MAX);
        if found > limit {
            return Err(TokenizerError::Limit { key, found, limit });
        }
        let kinds = read_kinds(gguf, found)?;
        let size: usize = texts.iter().map(|text| text.len()).sum();
        if u32::try_from(size).is_err() {
            return Err(TokenizerError::Limit { key, found: size, limit: u32::MAX as usize });
        }
        let mut vocab = Self {
            bytes: Vec::with_capacity(size),
            ends: Vec::with_capacity(found),
            kinds,
            token_bytes_max: 0,
        };
        for (at, text) in texts.iter().enumerate() {
            let start = vocab.bytes.len();
            match alphabet {
                Alphabet::ByteLevel => push_byte_level(text, vocab.kinds[at], &mut vocab.bytes),
                Alphabet::SentencePiece => push_piece(text, vocab.kinds[at], &mut vocab.bytes),
            }
            vocab.token_bytes_max = vocab.token_bytes_max.max(vocab.bytes.len() - start);
            vocab.ends.push(vocab.bytes.len() as u32); // no longer than `size`, checked above
        }
        Ok(vocab)
    }

    pub(super) fn len(&self) -> usize {
        self.ends.len()
    }

    /// Empty for an id outside.
    pub(super) fn bytes(&self, id: u32) -> &[u8] {
        let id = id as usize;
        let Some(end) = self.ends.get(id) else { return &[] };
        let start = id.checked_sub(1).map_or(0, |before| self.ends[before]);
        &self.bytes[start as usize..*end as usize]
    }

    /// `Unused` for an id outside.
    pub(super) fn kind(&self, id: u32) -> Kind {
        self.kinds.get(id as usize).copied().unwrap_or(Kind::Unused)
    }

    pub(super) fn ids(&self) -> impl Iterator<Item = u32> {
        0..self.ends.len() as u32
    }
}

fn read_kinds(gguf: &Gguf, tokens: usize) -> Result<Vec<Kind>, TokenizerError> {
    let key = "tokenizer.ggml.token_type";
    let Some(numbers) = gguf.i32s(key)? else { return Ok(vec![Kind::Normal; tokens]) };
    if numbers.len() != tokens {
        return Err(TokenizerError::Length { key, found: numbers.len(), expected: tokens });
    }
    Ok(numbers.into_iter().map(Kind::from_number).collect())
}

/// Whether GPT-2's alphabet writes this byte as the Latin-1 character of the same number.
const fn stands_for_itself(byte: u8) -> bool {
    matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff)
}

/// The bytes that do not, in order: they are written as the characters from U+0100 on.
const SHIFTED: [u8; 68] = {
    let mut shifted = [0; 68];
    let (mut byte, mut at) = (0, 0);
    while at < shifted.len() {
        if !stands_for_itself(byte) {
            shifted[at] = byte;
            at += 1;
        }
        byte += 1;
    }
    shifted
};

/// The byte that GPT-2's alphabet writes as this character.
fn byte_of(character: char) -> Option<u8> {
    let code = u32::from(character);
    match u8::try_from(code) {
        Ok(byte) => stands_for_itself(byte).then_some(byte),
        Err(_) => SHIFTED.get((code - 0x100) as usize).copied(),
    }
}

/// Appends a token's bytes. Tokens that are not ordinary, and text outside the alphabet, stand
/// for themselves.
pub(super) fn push_byte_level(text: &[u8], kind: Kind, out: &mut Vec<u8>) {
    let start = out.len();
    let ordinary = matches!(kind, Kind::Normal | Kind::Unused);
    if let (true, Ok(text)) = (ordinary, std::str::from_utf8(text)) {
        if text.chars().all(|character| {
            byte_of(character).is_some_and(|byte| {
                out.push(byte);
                true
            })
        }) {
            return;
        }
        out.truncate(start);
    }
    out.extend_from_slice(text);
}

/// Appends a piece's bytes: `▁` becomes a space, `<0x0A>` a byte.
fn push_piece(text: &[u8], kind: Kind, out: &mut Vec<u8>) {
    if let (Kind::Byte, [b'<', b'0', b'x', digits @ .., b'>']) = (kind, text) {
        let digits = std::str::from_utf8(digits).unwrap_or_default();
        if let Ok(byte) = u8::from_str_radix(digits, 16) {
            out.push(byte);
            return;
        }
    }
    let mut rest = text;
    while let Some(at) = rest.windows(3).position(|window| window == "▁".as_bytes()) {
        out.extend_from_slice(&rest[..at]);
        out.push(b' ');
        rest = &rest[at + 3..];
    }
    out.extend_from_slice(rest);
}

/// Finds tokens by their bytes: open addressing over ids, the bytes stay in the vocabulary.
#[derive(Debug)]
pub(super) struct Words {
    slots: Vec<u32>,
    hasher: ahash::RandomState,
}

const EMPTY: u32 = u32::MAX;

impl Words {
    pub(super) fn held_bytes(&self) -> u64 {
        held::of_vec(&self.slots)
    }

    /// A table of the tokens that `keep` chooses; empty ones are left out.
    pub(super) fn new(vocab: &Vocab, keep: impl Fn(Kind) -> bool) -> Result<Self, TokenizerError> {
        let capacity = (vocab.len() * 2).next_power_of_two().max(16);
        let mut words = Self { slots: vec![EMPTY; capacity], hasher: ahash::RandomState::new() };
        for id in vocab.ids() {
            let bytes = vocab.bytes(id);
            if bytes.is_empty() || !keep(vocab.kind(id)) {
                continue;
            }
            match words.slot(vocab, bytes) {
                (slot, EMPTY) => words.slots[slot] = id,
                (_, first) => {
                    let text = String::from_utf8_lossy(bytes).into_owned();
                    return Err(TokenizerError::Duplicate { first, second: id, text });
                }
            }
        }
        Ok(words)
    }

    /// The slot of these bytes, and what stands in it. At most half of the slots are taken.
    fn slot(&self, vocab: &Vocab, bytes: &[u8]) -> (usize, u32) {
        let mask = self.slots.len() - 1;
        let mut at = self.hasher.hash_one(bytes) as usize & mask;
        loop {
            let id = self.slots[at];
            if id == EMPTY || vocab.bytes(id) == bytes {
                return (at, id);
            }
            at = (at + 1) & mask;
        }
    }

    pub(super) fn get(&self, vocab: &Vocab, bytes: &[u8]) -> Option<u32> {
        Some(self.slot(vocab, bytes).1).filter(|id| *id != EMPTY)
    }
}
