//! Text out of a stream of tokens, without halves of characters.

use std::fmt::Write;

/// Collects tokens' bytes and gives out the text that is complete.
///
/// Invariant: at most three bytes wait, the beginning of a character. Bytes that can no longer
/// become a character come out as U+FFFD.
#[derive(Debug, Clone, Default)]
pub struct StreamDecoder {
    waiting: Vec<u8>,
}

impl StreamDecoder {
    /// An empty stream.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes a token's bytes and gives the text that is now complete, often none.
    pub fn push(&mut self, bytes: &[u8]) -> String {
        self.waiting.extend_from_slice(bytes);
        let mut text = String::new();
        let mut taken = 0;
        let mut chunks = self.waiting.utf8_chunks().peekable();
        while let Some(chunk) = chunks.next() {
            text.push_str(chunk.valid());
            taken += chunk.valid().len();
            let broken = chunk.invalid();
            if broken.is_empty() || (chunks.peek().is_none() && may_go_on(broken)) {
                break;
            }
            let _ = text.write_char(char::REPLACEMENT_CHARACTER);
            taken += broken.len();
        }
        drop(chunks);
        self.waiting.drain(..taken);
        text
    }

    /// The rest at the end of the stream: what waits can no longer become a character.
    pub fn finish(&mut self) -> String {
        let text = String::from_utf8_lossy(&self.waiting).into_owned();
        self.waiting.clear();
        text
    }

    /// Whether the beginning of a character waits.
    pub fn is_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }
}

/// Whether these bytes, at the end of the input, are the beginning of a character.
fn may_go_on(bytes: &[u8]) -> bool {
    matches!(std::str::from_utf8(bytes), Err(error) if error.error_len().is_none())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_character_comes_out_when_its_last_byte_is_there() {
        let mut stream = StreamDecoder::new();
        let bird = "🐦".as_bytes();
        assert_eq!(stream.push(b"a"), "a");
        assert_eq!(stream.push(&bird[..1]), "");
        assert_eq!(stream.push(&bird[1..3]), "");
        assert!(stream.is_waiting());
        assert_eq!(stream.push(&[bird[3], b'b']), "🐦b");
        assert_eq!(stream.finish(), "");
    }

    #[test]
    fn bytes_that_cannot_become_a_character_are_replaced_at_once() {
        let mut stream = StreamDecoder::new();
        assert_eq!(stream.push(&[0xff]), "\u{fffd}");
        assert_eq!(stream.push(&[0xe2, 0x82]), "");
        assert_eq!(stream.push(b"x"), "\u{fffd}x");
        assert_eq!(stream.push(&[0xe2]), "");
        assert_eq!(stream.finish(), "\u{fffd}");
        assert!(!stream.is_waiting());
    }

    proptest::proptest! {
        #[test]
        fn any_cut_gives_the_same_text_and_keeps_at_most_three_bytes(
            bytes in proptest::collection::vec(0u8.., 0..60),
            cuts in proptest::collection::vec(1usize..5, 60),
        ) {
            let mut stream = StreamDecoder::new();
            let (mut text, mut rest) = (String::new(), &bytes[..]);
            for cut in cuts {
                let (now, later) = rest.split_at(cut.min(rest.len()));
                text += &stream.push(now);
                proptest::prop_assert!(stream.waiting.len() <= 3);
                rest = later;
            }
            text += &stream.finish();
            proptest::prop_assert_eq!(text, String::from_utf8_lossy(&bytes));
        }
    }
}
