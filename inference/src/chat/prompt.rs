//! A conversation as token ids: the template's control tokens are parsed, those in the users' text
//! are not.
//!
//! Every text of the conversation is shielded before it is rendered ([`Tokenizer::shield`]), so
//! that it cannot hold a control token, whatever the template does with it. Mark-up that the
//! vocabulary's author added as ordinary tokens (`<think>`, `<tool_call>`) is shielded in what
//! users and tools say, and left alone in what the assistant said: templates look for it there.

use std::borrow::Cow;

use serde_json::{Value as Json, json};

use super::{ChatError, ChatTemplate, RenderInput, Start};
use crate::tokenizer::{SHIELD, Special, Tokenizer};

/// A prompt, ready for the model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Encoded {
    /// Token ids; the template writes the beginning token itself where the model wants one.
    pub ids: Vec<u32>,
    /// The text that was encoded.
    pub text: String,
    /// Whether the answer begins inside the model's reasoning.
    pub start: Start,
}

/// Renders and encodes a conversation. What clients of OpenAI's API send is first brought into the
/// shape that templates expect: arguments of tool calls as objects instead of text, contents in
/// parts as one text, and tools for templates that take them in a message.
///
/// # Errors
/// [`ChatError`].
pub fn encode(
    template: &ChatTemplate,
    tokenizer: &Tokenizer,
    input: &RenderInput<'_>,
) -> Result<Encoded, ChatError> {
    let mut messages: Vec<Json> = input.messages.iter().map(|m| message(tokenizer, m)).collect();
    let tools =
        input.tools.filter(|tools| !is_empty(tools)).map(|tools| shielded(tokenizer, tools));
    if let Some(tools) = &tools {
        offer_tools(template.source(), tools, &mut messages);
    }
    let kwargs = shielded(tokenizer, input.kwargs);
    let rendered = template.render(&RenderInput {
        messages: &messages,
        tools: tools.as_ref(),
        kwargs: &kwargs,
        ..*input
    })?;
    let ids = tokenizer.encode(&rendered, Special::Parse);
    let text = rendered.replace(SHIELD, "");
    let start = Start::after(&text);
    Ok(Encoded { ids, text, start })
}

fn is_empty(tools: &Json) -> bool {
    tools.is_null() || tools.as_array().is_some_and(Vec::is_empty)
}

/// A copy in which no text holds a reserved token.
fn shielded(tokenizer: &Tokenizer, value: &Json) -> Json {
    map_texts(value, &|text| tokenizer.shield(text))
}

fn map_texts<'a>(value: &'a Json, map: &impl Fn(&'a str) -> Cow<'a, str>) -> Json {
    match value {
        Json::String(text) => Json::String(map(text).into_owned()),
        Json::Array(items) => items.iter().map(|item| map_texts(item, map)).collect(),
        Json::Object(entries) => {
            let entry = |(key, value): (&'a String, &'a Json)| {
                (map(key).into_owned(), map_texts(value, map))
            };
            Json::Object(entries.iter().map(entry).collect())
        }
        other => other.clone(),
    }
}

/// A message in the shape that templates expect, shielded.
fn message(tokenizer: &Tokenizer, message: &Json) -> Json {
    let assistant = message["role"] == "assistant";
    let mut message = map_texts(message, &|text| match assistant {
        true => tokenizer.shield_control(text),
        false => tokenizer.shield(text),
    });
    let Some(fields) = message.as_object_mut() else { return message };
    match fields.get("content") {
        Some(Json::Array(parts)) => {
            if let Some(text) = joined(parts) {
                fields.insert("content".into(), text.into());
            }
        }
        Some(Json::Null) | None => drop(fields.insert("content".into(), "".into())),
        Some(_) => {}
    }
    let calls = fields.get_mut("tool_calls").and_then(Json::as_array_mut);
    for call in calls.into_iter().flatten() {
        let arguments = call.pointer_mut("/function/arguments");
        if let Some(arguments @ Json::String(_)) = arguments
            && let Some(parsed) =
                arguments.as_str().and_then(|text| serde_json::from_str(text).ok())
        {
            *arguments = parsed;
        }
    }
    message
}

/// The text of parts, when all of them are text.
fn joined(parts: &[Json]) -> Option<String> {
    parts
        .iter()
        .map(|part| if part["type"] == "text" { part["text"].as_str() } else { None })
        .collect::<Option<Vec<&str>>>()
        .map(|texts| texts.concat())
}

/// Gives tools to a template that does not read `tools` itself: Phi-4-mini takes them as a text in
/// the system message; others get an instruction there.
fn offer_tools(source: &str, tools: &Json, messages: &mut Vec<Json>) {
    let in_message = source.contains("message['tools']") || source.contains("message.tools");
    if !in_message && source.contains("tools") {
        return;
    }
    if messages.first().is_none_or(|first| first["role"] != "system") {
        messages.insert(0, json!({"role": "system", "content": ""}));
    }
    let Some(system) = messages.first_mut().and_then(Json::as_object_mut) else { return };
    if in_message {
        system.insert("tools".into(), bare_functions(tools).to_string().into());
        return;
    }
    let content = system.get("content").and_then(Json::as_str).unwrap_or_default();
    let gap = if content.is_empty() { "" } else { "\n\n" };
    let content = format!(
        "{content}{gap}You have access to functions. If you decide to invoke any of them, answer \
         with nothing but JSON in the format {{\"name\": function name, \"parameters\": \
         dictionary of argument name and its value}}.\n{tools}"
    );
    system.insert("content".into(), content.into());
}

/// `{"type": "function", "function": {…}}` without the wrapping.
fn bare_functions(tools: &Json) -> Json {
    let bare = |tool: &Json| tool.get("function").unwrap_or(tool).clone();
    tools.as_array().map_or_else(|| tools.clone(), |tools| tools.iter().map(bare).collect())
}
