//! `oneOf` whose alternatives share no value is `anyOf`, which can be followed.

use std::cell::Cell;

use serde_json::{Map, Value};

use super::definition;

/// Steps through references and alternatives at most, one behind the other.
const DEPTH_MAX: usize = 6;
/// Pairs of schemas looked at in all; where that is not enough, `oneOf` stays.
const PAIRS_MAX: u32 = 50_000;
/// What may be anything.
static ANY: Value = Value::Bool(true);

/// All schemas, and how many pairs may still be looked at.
struct Schemas<'a> {
    all: &'a [Value],
    left: Cell<u32>,
}

/// Writes `anyOf` for each `oneOf` of which no two alternatives share a value. Schemas are the root,
/// then the definitions.
pub(super) fn settle(schemas: &mut [Value]) {
    let copies = schemas.to_vec();
    let all = Schemas { all: &copies, left: Cell::new(PAIRS_MAX) };
    for schema in schemas {
        rewrite(schema, &all);
    }
}

fn rewrite(schema: &mut Value, all: &Schemas<'_>) {
    match schema {
        Value::Object(fields) => {
            if let Some(Value::Array(options)) = fields.get("oneOf")
                && !fields.contains_key("anyOf")
                && options.len() <= 64
                && options.iter().enumerate().all(|(at, option)| {
                    options[..at].iter().all(|other| disjoint(option, other, all, DEPTH_MAX))
                })
                && let Some(options) = fields.shift_remove("oneOf")
            {
                fields.insert("anyOf".to_owned(), options);
            }
            let inner =
                fields.iter_mut().filter(|(name, _)| !matches!(name.as_str(), "const" | "enum"));
            inner.for_each(|(_, value)| rewrite(value, all));
        }
        Value::Array(items) => items.iter_mut().for_each(|item| rewrite(item, all)),
        _ => {}
    }
}

/// Whether no value satisfies both, as far as is seen from here.
fn disjoint(one: &Value, other: &Value, all: &Schemas<'_>, depth: usize) -> bool {
    if one == &Value::Bool(false) || other == &Value::Bool(false) {
        return true;
    }
    let Some(left) = all.left.get().checked_sub(1) else { return false };
    all.left.set(left);
    let (Value::Object(a), Value::Object(b)) = (one, other) else { return false };
    if apart(a, b, all, depth) {
        return true;
    }
    let Some(depth) = depth.checked_sub(1) else { return false };
    leads_apart(a, other, all, depth) || leads_apart(b, one, all, depth)
}

/// Whether what these fields refer to is disjoint from the other.
fn leads_apart(
    fields: &Map<String, Value>,
    other: &Value,
    all: &Schemas<'_>,
    depth: usize,
) -> bool {
    let apart = |schema: &Value| disjoint(schema, other, all, depth);
    let list = |name: &str| fields.get(name).and_then(Value::as_array);
    definition(fields).and_then(|at| all.all.get(at)).is_some_and(apart)
        || list("allOf").is_some_and(|parts| parts.iter().any(apart))
        || list("anyOf").is_some_and(|options| options.iter().all(apart))
        || list("oneOf").is_some_and(|options| options.iter().all(apart))
}

/// Whether these keywords by themselves exclude each other.
fn apart(a: &Map<String, Value>, b: &Map<String, Value>, all: &Schemas<'_>, depth: usize) -> bool {
    let (types_a, types_b) = (types(a), types(b));
    if types_a & types_b == 0 {
        return true;
    }
    if let (Some(a), Some(b)) = (values(a), values(b)) {
        return !a.iter().any(|x| b.iter().any(|y| same(x, y)));
    }
    if types_a & types_b == NUMBER && (below(a, b) || below(b, a)) {
        return true;
    }
    types_a == OBJECT
        && types_b == OBJECT
        && depth > 0
        && (key_apart(a, b, all, depth) || key_apart(b, a, all, depth))
}

const NUMBER: u8 = 1;
const OBJECT: u8 = 2;

fn type_bit(name: &str) -> u8 {
    match name {
        "number" | "integer" => NUMBER,
        "object" => OBJECT,
        "array" => 4,
        "string" => 8,
        "boolean" => 16,
        _ => 32,
    }
}

fn types(fields: &Map<String, Value>) -> u8 {
    let stated = match fields.get("type") {
        Some(Value::String(name)) => type_bit(name),
        Some(Value::Array(names)) => {
            names.iter().filter_map(Value::as_str).map(type_bit).fold(0, |bits, bit| bits | bit)
        }
        _ => u8::MAX,
    };
    let of_value = |value: &Value| match value {
        Value::Null => 32,
        Value::Bool(_) => 16,
        Value::Number(_) => NUMBER,
        Value::String(_) => 8,
        Value::Array(_) => 4,
        Value::Object(_) => OBJECT,
    };
    let of_values = values(fields);
    stated & of_values.map_or(u8::MAX, |v| v.into_iter().map(of_value).fold(0, |x, y| x | y))
}

/// The only values there are, where they are listed.
fn values(fields: &Map<String, Value>) -> Option<Vec<&Value>> {
    let one = fields.get("const").map(|value| vec![value]);
    one.or_else(|| fields.get("enum")?.as_array().map(|values| values.iter().collect()))
}

fn same(a: &Value, b: &Value) -> bool {
    match (a.as_f64(), b.as_f64()) {
        (Some(a), Some(b)) => a == b,
        (None, None) if a.is_array() || a.is_object() => true, // not looked into
        _ => a == b,
    }
}

/// Whether the first one's numbers all lie below the other's.
fn below(a: &Map<String, Value>, b: &Map<String, Value>) -> bool {
    let bound = |fields: &Map<String, Value>, name: &str| fields.get(name).and_then(Value::as_f64);
    match (bound(a, "maximum"), bound(b, "minimum")) {
        (Some(high), Some(low)) => high < low,
        _ => false,
    }
}

/// Whether a name that the first requires must have another value in the other, or none.
fn key_apart(
    a: &Map<String, Value>,
    b: &Map<String, Value>,
    all: &Schemas<'_>,
    depth: usize,
) -> bool {
    let required = a.get("required").and_then(Value::as_array);
    required
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .any(|name| disjoint(property(a, name), property(b, name), all, depth - 1))
}

/// What the value of a name must satisfy.
fn property<'v>(fields: &'v Map<String, Value>, name: &str) -> &'v Value {
    let named = fields.get("properties").and_then(|properties| properties.get(name));
    let other = fields.get("additionalProperties");
    // A pattern may be what rules there.
    let other = other.filter(|_| !fields.contains_key("patternProperties"));
    named.or(other).unwrap_or(&ANY)
}
