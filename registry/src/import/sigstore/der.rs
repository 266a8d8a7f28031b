//! Just enough DER to take certificates and timestamps apart without losing a byte.

use ring::digest::{Algorithm, SHA256, SHA384, SHA512, digest};

pub(super) const INTEGER: u8 = 0x02;
pub(super) const OCTET_STRING: u8 = 0x04;
pub(super) const OBJECT_IDENTIFIER: u8 = 0x06;
pub(super) const UTF8_STRING: u8 = 0x0c;
pub(super) const GENERALIZED_TIME: u8 = 0x18;
pub(super) const SEQUENCE: u8 = 0x30;
pub(super) const SET: u8 = 0x31;

/// A constructed, context-specific tag.
pub(super) const fn context(number: u8) -> u8 {
    0xa0 | number
}

/// What is wrong with the bytes, in words.
pub(super) type Wrong = String;

/// One value with its header.
#[derive(Debug, Clone, Copy)]
pub(super) struct Value<'a> {
    /// With the header.
    pub(super) whole: &'a [u8],
    /// Without it.
    pub(super) content: &'a [u8],
}

/// Values one behind the other.
#[derive(Debug, Clone)]
pub(super) struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The tag of the next value.
    pub(super) fn peek(&self) -> Option<u8> {
        self.0.first().copied()
    }

    /// The next value, whatever it is. Lengths in their shortest form, as DER wants it; tags of
    /// one byte.
    pub(super) fn next(&mut self) -> Result<Value<'a>, Wrong> {
        let cut = || "it ends within a value".to_owned();
        let (&tag, rest) = self.0.split_first().ok_or_else(cut)?;
        if tag & 0x1f == 0x1f {
            return Err(format!("tag {tag:#04x} has several bytes"));
        }
        let (&first, rest) = rest.split_first().ok_or_else(cut)?;
        let (length, rest) = match first {
            0..=0x7f => (usize::from(first), rest),
            0x81..=0x84 => {
                let (bytes, rest) =
                    rest.split_at_checked(usize::from(first & 0x7f)).ok_or_else(cut)?;
                let length = bytes.iter().fold(0, |sum, byte| sum << 8 | usize::from(*byte));
                if length < 0x80 || bytes.first() == Some(&0) {
                    return Err("a length is not in its shortest form".to_owned());
                }
                (length, rest)
            }
            _ => return Err(format!("a length begins with {first:#04x}")),
        };
        let (content, rest) = rest.split_at_checked(length).ok_or_else(cut)?;
        let whole = self.0.get(..self.0.len() - rest.len()).ok_or_else(cut)?;
        self.0 = rest;
        Ok(Value { whole, content })
    }

    /// The next value, which must have that tag.
    pub(super) fn expect(&mut self, tag: u8) -> Result<Value<'a>, Wrong> {
        match self.peek() {
            Some(found) if found != tag => {
                Err(format!("found a value with tag {found:#04x}, expected {tag:#04x}"))
            }
            _ => self.next(),
        }
    }

    /// What is within the next value, which must have that tag.
    pub(super) fn within(&mut self, tag: u8) -> Result<Self, Wrong> {
        Ok(Self(self.expect(tag)?.content))
    }

    /// The next value if it has that tag.
    pub(super) fn optional(&mut self, tag: u8) -> Result<Option<Value<'a>>, Wrong> {
        if self.peek() == Some(tag) { self.next().map(Some) } else { Ok(None) }
    }
}

/// A value of its own.
pub(super) fn encode(tag: u8, content: &[u8]) -> Vec<u8> {
    let length = content.len().to_be_bytes();
    let short: Vec<u8> = length.into_iter().skip_while(|byte| *byte == 0).collect();
    let mut bytes = vec![tag];
    match content.len() {
        0 => bytes.push(0),
        1..=0x7f => bytes.extend(short),
        _ => {
            bytes.push(0x80 | short.len() as u8);
            bytes.extend(short);
        }
    }
    bytes.extend_from_slice(content);
    bytes
}

/// A hash of the SHA-2 family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Hash {
    Sha256,
    Sha384,
    Sha512,
}

impl Hash {
    /// By the content of an object identifier.
    pub(super) fn from_oid(oid: &[u8]) -> Result<Self, Wrong> {
        match oid {
            [0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, last @ 1..=3] => Ok(match last {
                1 => Self::Sha256,
                2 => Self::Sha384,
                _ => Self::Sha512,
            }),
            _ => Err(format!("hash algorithm {}, expected SHA-256, SHA-384 or SHA-512", hex(oid))),
        }
    }

    /// By the name that a log entry gives it.
    pub(super) fn from_name(name: &str) -> Option<Self> {
        match name {
            "sha256" | "SHA2_256" => Some(Self::Sha256),
            "sha384" | "SHA2_384" => Some(Self::Sha384),
            "sha512" | "SHA2_512" => Some(Self::Sha512),
            _ => None,
        }
    }

    pub(super) fn of(self, bytes: &[u8]) -> Vec<u8> {
        let algorithm: &'static Algorithm = match self {
            Self::Sha256 => &SHA256,
            Self::Sha384 => &SHA384,
            Self::Sha512 => &SHA512,
        };
        digest(algorithm, bytes).as_ref().to_vec()
    }
}

fn hex(oid: &[u8]) -> String {
    format!("of object identifier {}", hex::encode(oid))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_encoded_is_read_again_whatever_its_length() {
        for length in [0, 1, 0x7f, 0x80, 0xff, 0x100, 0x1_0000] {
            let content = vec![7; length];
            let bytes = encode(SEQUENCE, &content);
            let mut reader = Reader::new(&bytes);
            let value = reader.expect(SEQUENCE).unwrap();
            assert_eq!((value.whole, value.content), (bytes.as_slice(), content.as_slice()));
            assert!(reader.is_empty());
        }
    }

    #[test]
    fn bytes_that_are_no_der_are_refused() {
        for bytes in [
            &[][..],
            &[0x30],
            &[0x30, 0x02, 0x00],
            &[0x30, 0x80, 0x00, 0x00],
            &[0x30, 0x81, 0x01, 0x00],
            &[0x30, 0x82, 0x00, 0x80],
            &[0x3f, 0x21, 0x00],
            &[0x30, 0x85, 0, 0, 0, 0, 0],
        ] {
            assert!(Reader::new(bytes).next().is_err(), "{bytes:?}");
        }
    }
}
