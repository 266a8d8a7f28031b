//! Calls out of the text that holds them.

use serde_json::Value as Json;

use super::{Family, ToolCall};

/// The calls between two marks; `None` when they are not calls.
pub(super) fn marked_calls(family: Family, open: &str, inside: &str) -> Option<Vec<ToolCall>> {
    match (family, open) {
        (Family::Llama3, "<function=") => {
            let (name, arguments) = inside.split_once('>')?;
            let arguments = serde_json::from_str(arguments.trim()).ok()?;
            Some(vec![checked(name.trim().to_owned(), arguments)?])
        }
        (Family::Phi4, "functools[") => calls_of(&format!("[{inside}")),
        _ => calls_of(inside),
    }
}

/// The calls that an answer is as a whole; `None` when it is something else.
pub(super) fn whole_calls(family: Family, text: &str) -> Option<Vec<ToolCall>> {
    let text = text.trim();
    if family != Family::Gemma || !text.starts_with("```") {
        return calls_of(text);
    }
    let inside = text.strip_prefix("```")?.strip_suffix("```")?;
    let (_, inside) = inside.split_once('\n')?;
    calls_of(inside)
}

/// One call, an array of them, or several parted by `;` or blanks.
fn calls_of(text: &str) -> Option<Vec<ToolCall>> {
    let mut calls = Vec::new();
    let mut rest = text.trim();
    while !rest.is_empty() {
        let mut values = serde_json::Deserializer::from_str(rest).into_iter::<Json>();
        let value = values.next()?.ok()?;
        let end = values.byte_offset();
        match value {
            Json::Array(values) => {
                for value in values {
                    calls.push(call_of(value)?);
                }
            }
            value => calls.push(call_of(value)?),
        }
        rest = rest[end..].trim_start_matches(|c: char| c.is_whitespace() || c == ';');
    }
    (!calls.is_empty()).then_some(calls)
}

/// `{"name": …, "arguments" or "parameters": …}`, perhaps inside of `{"function": …}`.
fn call_of(mut value: Json) -> Option<ToolCall> {
    if let Some(function @ Json::Object(_)) = value.get_mut("function") {
        value = function.take();
    }
    let fields = value.as_object_mut()?;
    let name = match fields.remove("name")? {
        Json::String(name) => name,
        _ => return None,
    };
    let arguments = ["arguments", "parameters"].iter().find_map(|key| fields.remove(*key));
    let arguments = match arguments {
        Some(Json::String(text)) => serde_json::from_str(&text).ok()?,
        Some(arguments) => arguments,
        None => Json::Object(serde_json::Map::new()),
    };
    checked(name, arguments)
}

fn checked(name: String, arguments: Json) -> Option<ToolCall> {
    (!name.is_empty() && arguments.is_object()).then_some(ToolCall { name, arguments })
}
