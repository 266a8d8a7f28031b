//! `propertyNames` as properties: the compiler knows names only by a list or a pattern.

use serde_json::{Map, Value, json};

use super::pattern;

/// Keywords that say nothing about values.
const ANNOTATIONS: [&str; 9] = [
    "title",
    "description",
    "default",
    "examples",
    "$comment",
    "deprecated",
    "readOnly",
    "writeOnly",
    "type",
];

/// A schema that objects satisfy whose names this one allows; `None` where it allows all.
pub(super) fn as_properties(names: &Value) -> Result<Option<Value>, String> {
    let fields = match names {
        Value::Bool(true) => return Ok(None),
        Value::Bool(false) => return Ok(Some(json!({ "maxProperties": 0 }))),
        Value::Object(fields) if fields.get("type").is_none_or(|t| t == "string") => fields,
        _ => return Err("names are texts".to_owned()),
    };
    let stated: Vec<&str> =
        fields.keys().map(String::as_str).filter(|k| !ANNOTATIONS.contains(k)).collect();
    let listed = |values: &[Value]| {
        let names = values.iter().filter_map(Value::as_str);
        let names: Map<String, Value> =
            names.map(|name| (name.to_owned(), Value::Bool(true))).collect();
        json!({ "properties": names, "additionalProperties": false })
    };
    let matched = |pattern: String| json!({ "patternProperties": { pattern: true }, "additionalProperties": false });
    let length = |name: &str| fields.get(name).and_then(Value::as_u64);
    Ok(Some(match stated.as_slice() {
        [] => return Ok(None),
        ["const"] => listed(&[fields["const"].clone()]),
        ["enum"] => listed(fields["enum"].as_array().map_or(&[], Vec::as_slice)),
        ["pattern"] => matched(pattern::ecma(fields["pattern"].as_str().unwrap_or_default())?),
        lengths if lengths.iter().all(|k| ["minLength", "maxLength"].contains(k)) => {
            let most = length("maxLength").map_or(String::new(), |most| most.to_string());
            matched(format!("^(?s:.{{{},{most}}})$", length("minLength").unwrap_or(0)))
        }
        _ => {
            return Err(
                "names are followed by one of \"enum\", \"const\", \"pattern\" and lengths \
                        alone"
                    .to_owned(),
            );
        }
    }))
}
