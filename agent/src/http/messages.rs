//! The messages of a conversation, checked: what a template would print as it is, or leave out, is
//! refused by its place instead. Roles are the template's to know.

use serde_json::Value;

use super::error::ApiError;

/// Holds messages against what models here read: objects with a role and a text, or parts that are
/// all texts. Only the assistant may have said nothing, where it called tools.
///
/// # Errors
/// 400, naming the message and the field.
pub(crate) fn check(messages: &[Value]) -> Result<(), ApiError> {
    for (number, message) in messages.iter().enumerate() {
        let place = format!("messages[{number}]");
        let refused = |field: &str, reason: String| {
            Err(ApiError::invalid(Some("messages"), format!("{place}{field} {reason}")))
        };
        if !message.is_object() {
            return refused("", format!("is {}; expected an object", kind(message)));
        }
        let Some(role) = message["role"].as_str() else {
            return refused(".role", format!("is {}; expected a text", kind(&message["role"])));
        };
        match &message["content"] {
            Value::String(_) => {}
            Value::Null if role == "assistant" => {}
            Value::Array(parts) => {
                for (number, part) in parts.iter().enumerate() {
                    let field = format!(".content[{number}]");
                    match part["type"].as_str() {
                        Some("text") if part["text"].is_string() => {}
                        Some("text") => {
                            let found = kind(&part["text"]);
                            return refused(
                                &field,
                                format!("is of type \"text\", and its text is {found}"),
                            );
                        }
                        Some(other) => {
                            let reason = "models here read text: send parts of type \"text\"";
                            return refused(&field, format!("is of type {other:?}; {reason}"));
                        }
                        None => {
                            let reason = "has no type; expected {\"type\": \"text\", \"text\": …}";
                            return refused(&field, reason.into());
                        }
                    }
                }
            }
            other => {
                let expected = "expected a text, or parts of type \"text\"";
                return refused(".content", format!("is {}; {expected}", kind(other)));
            }
        }
    }
    Ok(())
}

/// What a value is, for people.
fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "missing",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn texts_and_parts_of_text_are_taken() {
        let messages = json!([
            { "role": "system", "content": "be brief" },
            { "role": "user", "content": [{ "type": "text", "text": "a" }] },
            { "role": "assistant", "content": null, "tool_calls": [{}] },
            { "role": "assistant", "tool_calls": [{}] },
            { "role": "tool", "tool_call_id": "1", "content": "3" },
        ]);
        check(messages.as_array().unwrap()).unwrap();
    }

    #[test]
    fn what_is_no_text_is_refused_by_its_place() {
        for (message, said) in [
            (json!("hi"), "messages[0] is a text; expected an object"),
            (json!({ "content": "hi" }), "messages[0].role is missing"),
            (json!({ "role": "user" }), "messages[0].content is missing"),
            (json!({ "role": "user", "content": 5 }), "messages[0].content is a number"),
            (json!({ "role": "user", "content": [{}] }), "messages[0].content[0] has no type"),
            (
                json!({ "role": "user", "content": [{ "type": "text" }] }),
                "messages[0].content[0] is of type \"text\", and its text is missing",
            ),
            (
                json!({ "role": "user", "content": [{ "type": "image_url", "image_url": {} }] }),
                "messages[0].content[0] is of type \"image_url\"",
            ),
        ] {
            let body = check(&[message]).unwrap_err().body();
            let found = body["error"]["message"].as_str().unwrap();
            assert!(found.starts_with(said), "{found}");
            assert_eq!(body["error"]["param"], "messages");
        }
    }
}
