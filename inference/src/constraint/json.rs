//! What JSON schemas need beyond the compiler: rigid white space, bounds it would get wrong, and
//! numbers that every reader can hold.

use serde_json::{Map, Number, Value, json};
use toktrie::SimpleVob;

/// Readies a schema for the compiler.
pub(super) fn prepare(schema: &Value) -> Value {
    // White space is fixed, so that a model can't spend its answer on it.
    let options = json!({ "whitespace_flexible": false });
    match inclusive(schema) {
        Value::Object(mut object) => {
            object.insert("x-guidance".to_owned(), options);
            Value::Object(object)
        }
        Value::Bool(true) => json!({ "x-guidance": options }),
        other => other,
    }
}

/// The keyword that asks for a whole number which the compiler, counting in floats, would change.
pub(super) fn inexact(schema: &Value) -> Option<&'static str> {
    let big = |n: &Number| n.as_i64().is_none_or(|n| n.unsigned_abs() > 1 << 53) && !n.is_f64();
    fn any(value: &Value, test: &impl Fn(&Number) -> bool) -> bool {
        match value {
            Value::Number(number) => test(number),
            Value::Array(items) => items.iter().any(|v| any(v, test)),
            Value::Object(fields) => fields.values().any(|v| any(v, test)),
            _ => false,
        }
    }
    match schema {
        Value::Array(items) => items.iter().find_map(inexact),
        Value::Object(fields) => fields.iter().find_map(|(name, value)| match name.as_str() {
            "const" => any(value, &big).then_some("const"),
            "enum" => any(value, &big).then_some("enum"),
            _ => inexact(value),
        }),
        _ => None,
    }
}

/// Keywords whose values are data, not schemas.
const DATA: [&str; 4] = ["const", "enum", "default", "examples"];
/// How far inside an exclusive bound the inclusive one lies, relative to the bound (or to 1).
const INSIDE: f64 = 1e-12;
/// From here on a bound is left as it is: the step inside would be lost to rounding.
const BOUND_MAX: f64 = 1e6;

/// Writes exclusive bounds as inclusive ones a hair inside: the compiler lets an exclusive bound
/// itself through where both bounds have the same whole part. Bounds of integers round to the same
/// integers either way.
fn inclusive(schema: &Value) -> Value {
    match schema {
        Value::Array(items) => items.iter().map(inclusive).collect(),
        Value::Object(fields) => {
            let mut out = Map::new();
            for (name, value) in fields {
                let value =
                    if DATA.contains(&name.as_str()) { value.clone() } else { inclusive(value) };
                out.insert(name.clone(), value);
            }
            tighten(&mut out, "exclusiveMinimum", "minimum", 1.0, f64::max);
            tighten(&mut out, "exclusiveMaximum", "maximum", -1.0, f64::min);
            bound_multiples(&mut out);
            strict_format(&mut out);
            Value::Object(out)
        }
        other => other.clone(),
    }
}

/// Multiples up to this one only, where the schema sets no bound.
const MULTIPLE_MAX: f64 = 1e9;

/// A multiple may need one more digit to become one, again and again, until readers round it: an
/// unbounded one gets bounds.
fn bound_multiples(fields: &mut Map<String, Value>) {
    if !fields.contains_key("multipleOf") {
        return;
    }
    let bound = |name: &str| fields.get(name).and_then(Value::as_f64);
    let (low, high) = (bound("minimum"), bound("maximum"));
    if high.is_none() && low.is_none_or(|low| low < MULTIPLE_MAX / 2.0) {
        fields.insert("maximum".to_owned(), json!(MULTIPLE_MAX));
    }
    if low.is_none() && high.is_none_or(|high| high > -MULTIPLE_MAX / 2.0) {
        fields.insert("minimum".to_owned(), json!(-MULTIPLE_MAX));
    }
}

const DATE: &str = "(?:[1-9][0-9]{3}-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])\
    |(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)|02-(?:0[1-9]|1[0-9]|2[0-8]))\
    |(?:[1-9][0-9](?:0[48]|[2468][048]|[13579][26])|(?:[2468][048]|[13579][26])00)-02-29)";
const TIME: &str = "(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:\\.[0-9]{1,6})?\
    (?:Z|[+-](?:[01][0-9]|2[0-3]):[0-5][0-9])";
const EMAIL: &str = "[a-zA-Z0-9_+-]{1,30}(?:\\.[a-zA-Z0-9_+-]{1,30})?\
    @(?:[a-zA-Z0-9](?:[a-zA-Z0-9-]{0,30}[a-zA-Z0-9])?\\.){1,3}[a-zA-Z]{2,10}";

/// Formats of which the compiler knows more than validators accept (29 February in every year, leap
/// seconds at any time, addresses without an end) become narrower patterns.
fn strict_format(fields: &mut Map<String, Value>) {
    if fields.contains_key("pattern") {
        return;
    }
    let pattern = match fields.get("format").and_then(Value::as_str) {
        Some("date") => format!("^{DATE}$"),
        Some("time") => format!("^{TIME}$"),
        Some("date-time") => format!("^{DATE}T{TIME}$"),
        Some("email") => format!("^{EMAIL}$"),
        _ => return,
    };
    fields.remove("format");
    fields.insert("pattern".to_owned(), Value::String(pattern));
}

fn tighten(
    fields: &mut Map<String, Value>,
    exclusive: &str,
    inclusive: &str,
    direction: f64,
    tighter: fn(f64, f64) -> f64,
) {
    let Some(bound) = fields.get(exclusive).and_then(Value::as_f64) else { return };
    if bound.abs() >= BOUND_MAX {
        return;
    }
    let inside = bound + direction * INSIDE * bound.abs().max(1.0);
    let bound =
        fields.get(inclusive).and_then(Value::as_f64).map_or(inside, |b| tighter(b, inside));
    let Some(number) = Number::from_f64(bound) else { return };
    fields.remove(exclusive);
    fields.insert(inclusive.to_owned(), Value::Number(number));
}

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

    #[test]
    fn exclusive_bounds_become_inclusive_ones_inside() {
        let got = prepare(&json!({ "exclusiveMinimum": 5, "maximum": 5.5 }));
        let minimum = got["minimum"].as_f64().unwrap();
        assert!(minimum > 5.0 && minimum < 5.000_001 && got.get("exclusiveMinimum").is_none());
        let both = prepare(&json!({ "exclusiveMaximum": 3, "maximum": 2 }));
        assert_eq!(both["maximum"], json!(2.0));
        let data = json!({ "const": { "exclusiveMinimum": 5 } });
        assert_eq!(prepare(&data)["const"], data["const"]);
    }
}
