//! Random schemas.

use serde_json::{Map, Value, json};

/// A small generator of numbers, the same on every machine.
pub(crate) struct Dice(pub(crate) u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 33) as usize) % sides
    }

    fn chance(&mut self, of: usize) -> bool {
        self.roll(of) == 0
    }
}

pub(crate) fn schema(dice: &mut Dice, depth: usize) -> Value {
    let kinds = if depth == 0 { 8 } else { 15 };
    match dice.roll(kinds) {
        0 => json!({ "type": "null" }),
        1 => json!({ "type": "boolean" }),
        2 => integer(dice),
        3 => number(dice),
        4 | 5 => string(dice),
        6 => json!({ "enum": [1, "two", null, [3], { "four": 5.5 }, "é\n\""] }),
        7 => json!({ "const": { "a": [true, -0.5], "b": "c\\d" } }),
        8 => array(dice, depth),
        9 | 10 => object(dice, depth),
        11 => json!({ "anyOf": [schema(dice, depth - 1), schema(dice, depth - 1)] }),
        12 => {
            json!({ "oneOf": [tagged(dice, depth, "a"), tagged(dice, depth, "b"), { "type": "null" }] })
        }
        13 => names(dice, depth),
        _ => json!({
            "allOf": [object(dice, depth), { "required": ["id"] }, { "properties": { "id": true } }],
        }),
    }
}

fn integer(dice: &mut Dice) -> Value {
    let low = dice.roll(200) as i64 - 100;
    match dice.roll(5) {
        0 => json!({ "type": "integer" }),
        1 => json!({ "type": "integer", "minimum": low, "maximum": low + dice.roll(5000) as i64 }),
        2 => json!({ "type": "integer", "exclusiveMinimum": low }),
        3 => json!({
            "type": "integer", "minimum": 0, "maximum": 1_000_000, "multipleOf": 1 + dice.roll(7),
        }),
        _ => json!({ "type": ["integer", "null"], "maximum": low }),
    }
}

fn number(dice: &mut Dice) -> Value {
    let low = dice.roll(2000) as f64 / 16.0 - 60.0;
    match dice.roll(4) {
        0 => json!({ "type": "number" }),
        3 => json!({ "type": "number", "multipleOf": 0.25 }),
        1 => json!({ "type": "number", "minimum": low, "maximum": low + 7.25 }),
        _ => json!({ "type": "number", "exclusiveMinimum": low, "exclusiveMaximum": low + 0.5 }),
    }
}

/// Every format that is followed.
const FORMATS: [&str; 17] = [
    "date",
    "time",
    "date-time",
    "duration",
    "uuid",
    "ipv4",
    "ipv6",
    "email",
    "idn-email",
    "hostname",
    "idn-hostname",
    "uri",
    "uri-reference",
    "iri",
    "uri-template",
    "json-pointer",
    "relative-json-pointer",
];

fn string(dice: &mut Dice) -> Value {
    let least = dice.roll(4);
    match dice.roll(8) {
        0 => json!({ "type": "string", "minLength": least, "maxLength": least + dice.roll(9) }),
        1 => json!({ "type": "string", "pattern": "^[A-Z]{2}-[0-9]{3,5}$" }),
        2 => json!({ "type": "string", "pattern": "a.b" , "maxLength": 8 }),
        3 => {
            json!({ "type": "string", "format": FORMATS[dice.roll(FORMATS.len())] })
        }
        6 => json!({ "type": "string", "pattern": r"^(\s|\S.|[^\W\d])$" }),
        7 => json!({ "type": "string", "contentEncoding": "base64" }),
        4 => json!({ "type": "string", "enum": ["", "x", "\u{1F600}", "tab\t"] }),
        _ => json!({ "type": "string", "maxLength": 3 }),
    }
}

fn array(dice: &mut Dice, depth: usize) -> Value {
    let least = dice.roll(3);
    let mut array = json!({
        "type": "array",
        "items": schema(dice, depth - 1),
        "minItems": least,
        "maxItems": least + 1 + dice.roll(2),
    });
    if dice.chance(3) {
        array["prefixItems"] = json!([schema(dice, depth - 1)]);
    }
    array
}

fn object(dice: &mut Dice, depth: usize) -> Value {
    let mut properties = Map::new();
    let mut required = Vec::new();
    for name in ["id", "name with space", "é", "tags"].iter().take(1 + dice.roll(4)) {
        properties.insert((*name).to_owned(), schema(dice, depth - 1));
        if !dice.chance(3) {
            required.push(*name);
        }
    }
    let mut object = json!({ "type": "object", "properties": properties, "required": required });
    match dice.roll(3) {
        0 => object["additionalProperties"] = json!(false),
        1 => {
            object["additionalProperties"] =
                json!({ "type": "integer", "minimum": 0, "maximum": 9 });
            // Counted only where nothing may be missing.
            if object["required"].as_array().map(Vec::len) == Some(properties_len(&object)) {
                object["maxProperties"] = json!(properties_len(&object) + 1);
            }
        }
        _ => {
            object["patternProperties"] = json!({ "^x-[a-z]{1,3}$": { "type": "boolean" } });
            object["additionalProperties"] = json!(false);
        }
    }
    object
}

/// One case of several, told by its tag.
fn tagged(dice: &mut Dice, depth: usize, tag: &str) -> Value {
    json!({
        "type": "object",
        "properties": { "kind": { "const": tag }, "value": schema(dice, depth - 1) },
        "required": ["kind"],
        "additionalProperties": false,
    })
}

/// Objects whose names are ruled, and depend on each other.
fn names(dice: &mut Dice, depth: usize) -> Value {
    let value = schema(dice, depth - 1);
    match dice.roll(3) {
        0 => json!({
            "type": "object",
            "propertyNames": { "enum": ["a", "b"] },
            "additionalProperties": value,
        }),
        1 => json!({
            "type": "object",
            "propertyNames": { "pattern": "^[a-z]{1,3}$" },
            "additionalProperties": value,
            "maxProperties": 2,
        }),
        _ => json!({
            "type": "object",
            "properties": { "a": value, "b": { "type": "integer" } },
            "additionalProperties": false,
            "dependentRequired": { "a": ["b"] },
        }),
    }
}

fn properties_len(object: &Value) -> usize {
    object["properties"].as_object().map_or(0, Map::len)
}
