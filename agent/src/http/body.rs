//! Request bodies: from JSON to fields, with errors that name the field at fault.

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::error::ApiError;

/// Reads a body as a JSON object.
///
/// # Errors
/// 400, with the place in the text.
pub(crate) fn object(body: &[u8]) -> Result<Map<String, Value>, ApiError> {
    serde_json::from_slice(body)
        .map_err(|error| ApiError::invalid(None, format!("read the request: {error}")))
}

/// Reads the fields of an object.
///
/// # Errors
/// 400, naming the field that is unknown, missing or of another type.
pub(crate) fn fields<T: DeserializeOwned>(object: Map<String, Value>) -> Result<T, ApiError> {
    serde_path_to_error::deserialize(Value::Object(object)).map_err(|error| {
        let path = error.path().to_string();
        let reason = error.into_inner().to_string();
        match path.as_str() {
            // The object itself: which field it is, stands in the reason.
            "." => ApiError::invalid(quoted(&reason), format!("read the request: {reason}")),
            // A request's own fields are read in groups, so what was expected is not the whole list.
            path if !path.contains(['.', '[']) && reason.starts_with("unknown field") => {
                let why = "what would change the answer is refused, not ignored";
                ApiError::invalid(Some(path), format!("unknown field {path}: {why}"))
            }
            path => ApiError::invalid(Some(path), format!("read {path}: {reason}")),
        }
    })
}

/// The name between back quotes.
fn quoted(reason: &str) -> Option<&str> {
    reason.split('`').nth(1)
}

/// Bodies that a client might send, sound and hostile, for the tests of what reads them.
#[cfg(test)]
pub(crate) mod any {
    use proptest::collection::{btree_map, vec};
    use proptest::prelude::*;
    use serde_json::{Value, json};

    /// Fields of the OpenAI and Ollama APIs that are more than a name and a word.
    const FIELDS: [&str; 37] = [
        "model",
        "messages",
        "prompt",
        "input",
        "tools",
        "tool_choice",
        "parallel_tool_calls",
        "chat_template_kwargs",
        "max_tokens",
        "max_completion_tokens",
        "logprobs",
        "top_logprobs",
        "temperature",
        "top_p",
        "top_k",
        "min_p",
        "seed",
        "stop",
        "stream",
        "stream_options",
        "logit_bias",
        "n",
        "response_format",
        "grammar",
        "format",
        "options",
        "think",
        "keep_alive",
        "system",
        "raw",
        "images",
        "context",
        "dimensions",
        "encoding_format",
        "best_of",
        "echo",
        "suffix",
    ];

    /// Values that get further than any others.
    fn known() -> impl Strategy<Value = Value> {
        prop::sample::select(vec![
            json!("m"),
            json!([{ "role": "user", "content": "hi" }]),
            json!([{ "role": "user", "content": null, "images": [1], "tool_calls": [{}] }]),
            json!([{ "type": "function", "function": { "name": "f", "parameters": {} } }]),
            json!({ "type": "function", "function": { "name": "f" } }),
            json!({ "type": "json_object" }),
            json!({ "type": "json_schema", "json_schema": { "name": "s", "schema": {} } }),
            json!({ "type": "grammar", "syntax": "gbnf", "definition": "root ::= \"a\"" }),
            json!({ "include_usage": true }),
            json!({ "1": 5, "4294967296": -1 }),
            json!({ "num_predict": -1, "temperature": 0.5, "num_ctx": 100, "stop": ["x"] }),
            json!("1h30m"),
            json!("-9999999999999h"),
            json!("json"),
            json!(["a", ""]),
            json!([1, 2, 3]),
            json!([[1], []]),
            json!(1e300),
            json!(-1),
            json!(1),
            json!(true),
            json!(null),
        ])
    }

    fn value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            any::<Option<bool>>().prop_map(|b| json!(b)),
            any::<i64>().prop_map(|n| json!(n)),
            any::<u64>().prop_map(|n| json!(n)),
            any::<f64>().prop_map(|n| json!(n)),
            ".{0,8}".prop_map(Value::String),
        ];
        leaf.prop_recursive(3, 16, 4, |inner| {
            prop_oneof![
                vec(inner.clone(), 0..4).prop_map(Value::Array),
                btree_map("[a-z_]{1,8}", inner, 0..4).prop_map(|fields| json!(fields)),
            ]
        })
    }

    /// Any bytes: mostly objects of known fields with a model, some of them cut.
    pub(crate) fn body() -> impl Strategy<Value = Vec<u8>> {
        let name = prop_oneof![
            20 => prop::sample::select(FIELDS.to_vec()).prop_map(str::to_owned),
            1 => ".{0,8}",
        ];
        let fields = btree_map(name, prop_oneof![3 => known(), 1 => value()], 0..5);
        let object =
            (fields, any::<prop::sample::Index>(), 0..10_u8).prop_map(|(fields, cut, die)| {
                let mut object = json!({
                    "model": "m", "messages": [{ "role": "user", "content": "hi" }], "prompt": "p",
                    "input": "i",
                });
                for (name, value) in fields {
                    object[name] = value;
                }
                let mut bytes = object.to_string().into_bytes();
                if die == 0 {
                    bytes.truncate(cut.index(bytes.len()));
                }
                bytes
            });
        prop_oneof![9 => object, 1 => vec(any::<u8>(), 0..64)]
    }

    /// The body without the fields that this API does not have.
    pub(crate) fn only(body: &[u8], fields: &[&str]) -> Vec<u8> {
        match serde_json::from_slice(body) {
            Ok(Value::Object(mut object)) => {
                object.retain(|name, _| {
                    fields.contains(&name.as_str())
                        || !["messages", "prompt", "input"].contains(&name.as_str())
                });
                Value::Object(object).to_string().into_bytes()
            }
            _ => body.to_vec(),
        }
    }
}
