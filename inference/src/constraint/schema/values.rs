//! What a schema says of single values: bounds, lengths, formats.

use serde_json::{Map, Number, Value, json};

use super::pattern::{self, Format};

/// How far inside an exclusive bound the inclusive one lies, relative to the bound (or to 1).
const INSIDE: f64 = 1e-12;
/// From here on a bound is left as it is: the step inside would be lost to rounding.
const BOUND_MAX: f64 = 1e6;
/// Multiples up to this one only, where the schema sets no bound.
const MULTIPLE_MAX: f64 = 1e9;
/// A bound beyond this is no bound: numbers are written with 15 digits at most.
const WRITTEN_MAX: f64 = 1e15;
/// Whole numbers up to here are exact in 64-bit floats.
const EXACT_MAX: u64 = 1 << 53;

/// Why a value can't be written as it is, if so: the compiler counts in floats, and spells each
/// character in one way.
pub(super) fn unwritable(value: &Value) -> Option<&'static str> {
    match value {
        Value::Number(number) => {
            let exact = number.is_f64()
                || number.as_i64().is_some_and(|number| number.unsigned_abs() <= EXACT_MAX);
            (!exact).then_some("whole numbers beyond 2^53 can't be kept exactly")
        }
        Value::String(text) => unwritable_text(text),
        Value::Array(items) => items.iter().find_map(unwritable),
        Value::Object(fields) => fields
            .iter()
            .find_map(|(name, value)| unwritable_text(name).or_else(|| unwritable(value))),
        _ => None,
    }
}

/// The same of a text or a name.
pub(super) fn unwritable_text(text: &str) -> Option<&'static str> {
    let plain = |c: char| !c.is_ascii_control() || "\n\r\t\u{8}\u{c}".contains(c);
    (!text.chars().all(plain)).then_some("control characters are not written")
}

/// Writes exclusive bounds as inclusive ones a hair inside: the compiler lets an exclusive bound
/// itself through where both bounds have the same whole part. Bounds of integers round to the same
/// integers either way.
pub(super) fn bounds(fields: &mut Map<String, Value>) {
    // Draft 4 says of a bound whether it is exclusive.
    for (exclusive, inclusive) in [("exclusiveMinimum", "minimum"), ("exclusiveMaximum", "maximum")]
    {
        if let Some(Value::Bool(is_exclusive)) = fields.get(exclusive).cloned() {
            fields.shift_remove(exclusive);
            if is_exclusive && let Some(bound) = fields.shift_remove(inclusive) {
                fields.insert(exclusive.to_owned(), bound);
            }
        }
    }
    for (name, inclusive) in [
        ("minimum", "minimum"),
        ("exclusiveMinimum", "minimum"),
        ("maximum", "maximum"),
        ("exclusiveMaximum", "maximum"),
    ] {
        let direction = if inclusive == "minimum" { -1.0 } else { 1.0 };
        let far = |bound: f64| bound * direction > WRITTEN_MAX;
        if fields.get(name).and_then(Value::as_f64).is_some_and(far) {
            fields.shift_remove(name);
            fields.entry(inclusive).or_insert(json!(direction * WRITTEN_MAX));
        }
    }
    tighten(fields, "exclusiveMinimum", "minimum", 1.0, f64::max);
    tighten(fields, "exclusiveMaximum", "maximum", -1.0, f64::min);
    bound_multiples(fields);
}

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
    at_least_as_tight(fields, inclusive, inside, tighter);
    fields.shift_remove(exclusive);
}

fn at_least_as_tight(
    fields: &mut Map<String, Value>,
    name: &str,
    bound: f64,
    tighter: fn(f64, f64) -> f64,
) {
    let bound = fields.get(name).and_then(Value::as_f64).map_or(bound, |b| tighter(b, bound));
    if let Some(number) = Number::from_f64(bound) {
        fields.insert(name.to_owned(), Value::Number(number));
    }
}

/// Whether values of this type may be valid, as far as `type` says.
pub(super) fn allows(fields: &Map<String, Value>, name: &str) -> bool {
    match fields.get("type") {
        Some(Value::String(only)) => only == name,
        Some(Value::Array(types)) => types.iter().any(|t| t == name),
        _ => true,
    }
}

/// Follows the format of a string or number: keywords to add, or `None` where it is not known.
/// `fields` are what is written of the schema already.
pub(super) fn format(name: &str, fields: &mut Map<String, Value>) -> Option<Option<Value>> {
    let numeric = fields.contains_key("type")
        && !allows(fields, "string")
        && (allows(fields, "integer") || allows(fields, "number"));
    if numeric {
        if let Some((low, high)) = pattern::number_range(name) {
            at_least_as_tight(fields, "minimum", low, f64::max);
            at_least_as_tight(fields, "maximum", high, f64::min);
        }
        return Some(None);
    }
    if !allows(fields, "string") {
        return Some(None);
    }
    Some(match pattern::format(name)? {
        Format::Native => Some(json!({ "format": name })),
        Format::Pattern(pattern) => Some(json!({ "pattern": pattern })),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exclusive_bounds_become_inclusive_ones_inside() {
        let got = |value: Value| {
            let Value::Object(mut fields) = value else { panic!("fields") };
            bounds(&mut fields);
            fields
        };
        let one = got(json!({ "exclusiveMinimum": 5, "maximum": 5.5 }));
        let minimum = one["minimum"].as_f64().unwrap();
        assert!(minimum > 5.0 && minimum < 5.000_001 && one.get("exclusiveMinimum").is_none());
        let both = got(json!({ "exclusiveMaximum": 3, "maximum": 2 }));
        assert_eq!(both["maximum"], json!(2.0));
        let old = got(json!({ "exclusiveMaximum": true, "maximum": 2, "exclusiveMinimum": false }));
        assert!(old["maximum"].as_f64().unwrap() < 2.0 && old.len() == 1);
        let far = got(json!({ "minimum": -9_007_199_254_740_991_i64, "exclusiveMaximum": 1e300 }));
        assert_eq!((&far["minimum"], &far["maximum"]), (&json!(-1e15), &json!(1e15)));
        assert_eq!(got(json!({ "minimum": 2e15 }))["minimum"], json!(2e15));
    }
}
