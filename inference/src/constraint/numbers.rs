//! Numbers in JSON texts, kept so short that every reader can hold them.

use toktrie::SimpleVob;

/// Significant digits of a number at most: as many as survive a 64-bit float, so that a number
/// means the same to every reader and stays within bounds after reading.
const DIGITS_MAX: u32 = 15;
/// Digits of an exponent at most: with them, no number leaves the range of a 64-bit float.
const EXPONENT_DIGITS_MAX: u32 = 2;

/// Keeps numbers in a JSON text short. JSON itself allows numbers of any length, which many
/// readers refuse or round.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct NumberGuard {
    place: Place,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Place {
    #[default]
    Between,
    Text,
    Escape,
    Number {
        part: Part,
        /// Of whole part and fraction together.
        digits: u32,
        /// Of this part.
        here: u32,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Whole,
    Fraction,
    Exponent,
}

/// A number would become too long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct TooLong;

impl NumberGuard {
    /// Takes a token's bytes that became part of the text.
    pub(super) fn take(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            // Where the grammar left no shorter number, the longer one goes on.
            self.place = step(self.place, byte).unwrap_or(self.place);
        }
    }

    /// Takes tokens that make a number too long out of the mask, unless none would be left.
    pub(super) fn narrow<'w>(
        &self,
        mask: &mut SimpleVob,
        tokens: impl Iterator<Item = (u32, &'w [u8])>,
    ) {
        let mut taken_out = Vec::new();
        for (id, bytes) in tokens {
            if mask.is_allowed(id) && self.is_too_long(bytes) {
                mask.disallow_token(id);
                taken_out.push(id);
            }
        }
        if !taken_out.is_empty() && mask.is_zero() {
            taken_out.into_iter().for_each(|id| mask.allow_token(id));
        }
    }

    fn is_too_long(&self, bytes: &[u8]) -> bool {
        bytes.iter().try_fold(self.place, |place, &byte| step(place, byte)).is_err()
    }
}

fn step(place: Place, byte: u8) -> Result<Place, TooLong> {
    Ok(match (place, byte) {
        (Place::Escape, _) => Place::Text,
        (Place::Text, b'\\') => Place::Escape,
        (Place::Text, b'"') => Place::Between,
        (Place::Text, _) => Place::Text,
        (Place::Number { part, digits, here }, b'0'..=b'9') => {
            let full = match part {
                Part::Exponent => here >= EXPONENT_DIGITS_MAX,
                // A fraction must have a digit.
                Part::Whole | Part::Fraction => here >= 1 && digits >= DIGITS_MAX,
            };
            if full {
                return Err(TooLong);
            }
            let digits = if part == Part::Exponent { digits } else { digits + 1 };
            Place::Number { part, digits, here: here + 1 }
        }
        (Place::Number { digits, .. }, b'.') => {
            Place::Number { part: Part::Fraction, digits, here: 0 }
        }
        (Place::Number { digits, .. }, b'e' | b'E') => {
            Place::Number { part: Part::Exponent, digits, here: 0 }
        }
        (Place::Number { .. }, b'+' | b'-') => place,
        (_, b'"') => Place::Text,
        (_, b'0'..=b'9') => Place::Number { part: Part::Whole, digits: 1, here: 1 },
        (_, b'-') => Place::Number { part: Part::Whole, digits: 0, here: 0 },
        _ => Place::Between,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn too_long(text: &str) -> bool {
        NumberGuard::default().is_too_long(text.as_bytes())
    }

    #[test]
    fn numbers_that_survive_a_float_pass_and_longer_ones_do_not() {
        for ok in ["123456789012345", "-1.5e-99", "[1,2,333333333333333]", "0.12345678901234"] {
            assert!(!too_long(ok), "{ok}");
        }
        for long in ["1234567890123456", "1e100", "0.123456789012345", "{\"a\":1E+999}"] {
            assert!(too_long(long), "{long}");
        }
    }

    #[test]
    fn digits_in_texts_are_not_numbers() {
        assert!(!too_long("\"12345678901234567890 1e999\""));
        assert!(!too_long("\"a\\\"12345678901234567890\""));
        assert!(too_long("\"a\\\\\",12345678901234567890"));
    }

    #[test]
    fn where_only_a_long_number_is_left_it_stays() {
        let guard = NumberGuard { place: step_all("1e99") };
        let mut mask = SimpleVob::alloc(8);
        mask.allow_token(3);
        guard.narrow(&mut mask, [(3, b"9".as_slice())].into_iter());
        assert!(mask.is_allowed(3));
        mask.allow_token(4);
        guard.narrow(&mut mask, [(3, b"9".as_slice())].into_iter());
        assert!(!mask.is_allowed(3) && mask.is_allowed(4));
    }

    fn step_all(text: &str) -> Place {
        text.bytes().try_fold(Place::Between, step).expect("short enough")
    }
}
