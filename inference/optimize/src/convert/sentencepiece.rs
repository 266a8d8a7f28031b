//! `tokenizer.model`: the pieces of a SentencePiece model, read from its protocol buffer.
//!
//! Only what GGUF keeps is read: field 1 of the message (repeated: piece, score, type).

use std::path::Path;

use super::ConvertError;

/// One piece: its text, its score and GGUF's token type, which has SentencePiece's numbers.
#[derive(Debug, PartialEq)]
pub(super) struct Piece {
    pub(super) text: String,
    pub(super) score: f32,
    pub(super) kind: i32,
}

/// The pieces in order of their ids; nothing if the folder has no `tokenizer.model`.
pub(super) fn read(folder: &Path) -> Result<Option<Vec<Piece>>, ConvertError> {
    let path = folder.join("tokenizer.model");
    match std::fs::read(&path) {
        Ok(bytes) => pieces(&bytes).map(Some).ok_or_else(|| ConvertError::Malformed {
            path,
            reason: "it is no SentencePiece model".into(),
        }),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(ConvertError::Read { path, source }),
    }
}

enum Field<'a> {
    Number(u64),
    Fixed32([u8; 4]),
    Bytes(&'a [u8]),
    Skipped,
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

fn take<'a>(bytes: &mut &'a [u8], len: u64) -> Option<&'a [u8]> {
    let (head, rest) = bytes.split_at_checked(usize::try_from(len).ok()?)?;
    *bytes = rest;
    Some(head)
}

/// The next field's number and value.
fn field<'a>(bytes: &mut &'a [u8]) -> Option<(u64, Field<'a>)> {
    let tag = varint(bytes)?;
    let value = match tag & 7 {
        0 => Field::Number(varint(bytes)?),
        1 => take(bytes, 8).map(|_| Field::Skipped)?,
        2 => {
            let len = varint(bytes)?;
            Field::Bytes(take(bytes, len)?)
        }
        5 => Field::Fixed32(take(bytes, 4)?.try_into().ok()?),
        _ => return None,
    };
    Some((tag >> 3, value))
}

fn pieces(mut bytes: &[u8]) -> Option<Vec<Piece>> {
    let mut pieces = Vec::new();
    while !bytes.is_empty() {
        if let (1, Field::Bytes(mut message)) = field(&mut bytes)? {
            let mut piece = Piece { text: String::new(), score: 0.0, kind: 1 };
            while !message.is_empty() {
                match field(&mut message)? {
                    (1, Field::Bytes(text)) => {
                        piece.text = String::from_utf8(text.to_vec()).ok()?
                    }
                    (2, Field::Fixed32(score)) => piece.score = f32::from_le_bytes(score),
                    (3, Field::Number(kind)) => piece.kind = i32::try_from(kind).ok()?,
                    _ => {}
                }
            }
            pieces.push(piece);
        }
    }
    (!pieces.is_empty()).then_some(pieces)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_read_with_text_score_and_kind() {
        let mut bytes =
            vec![0x0a, 14, 0x0a, 5, b'<', b'u', b'n', b'k', b'>', 0x15, 0, 0, 0x80, 0xbf, 0x18, 2];
        bytes.extend([0x0a, 3, 0x0a, 1, b'a']);
        bytes.extend([0x12, 2, 0x08, 1]);
        let read = pieces(&bytes).unwrap();
        assert_eq!(read[0], Piece { text: "<unk>".into(), score: -1.0, kind: 2 });
        assert_eq!(read[1], Piece { text: "a".into(), score: 0.0, kind: 1 });
    }

    #[test]
    fn cut_or_foreign_bytes_are_refused_without_a_panic() {
        let whole = [0x0a, 3, 0x0a, 1, b'a'];
        for len in 0..whole.len() {
            assert!(pieces(&whole[..len]).is_none());
        }
        assert!(pieces(&[0xff; 40]).is_none());
        assert!(pieces(b"{\"json\": true}").is_none());
    }
}
