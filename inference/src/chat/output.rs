//! A model's answer, taken apart while it comes: reasoning, content, tool calls.
//!
//! [`OutputParser`] is fed the answer's text in pieces of any size, and the marks among its control
//! tokens beside it, and gives out [`Delta`]s; [`parse_output`] is the same for a whole answer.
//! What looks like a tool call but is none stays content, unchanged; control tokens are never
//! content.

mod family;
mod parse;
mod parser;
#[cfg(test)]
mod tests;

use serde_json::Value as Json;

pub use family::Family;
pub(crate) use family::{CLOSE, MARKS, OPEN, mark};
pub use parser::OutputParser;

/// Whether the request offered tools. Without, JSON in an answer is content and nothing else.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tools {
    /// It did.
    Offered,
    /// It did not.
    None,
}

/// Where an answer begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// With content, or with `<think>`.
    Content,
    /// Inside of reasoning: the template has written `<think>` already.
    Reasoning,
}

impl Start {
    /// What the prompt's end means for the answer.
    pub fn after(prompt: &str) -> Self {
        if prompt.trim_end().ends_with(OPEN) { Self::Reasoning } else { Self::Content }
    }
}

/// A call that the model asks for.
#[derive(Debug, Clone, PartialEq)]
pub struct ToolCall {
    /// The function's name.
    pub name: String,
    /// Its arguments, an object.
    pub arguments: Json,
}

/// What is new in an answer.
#[derive(Debug, Clone, PartialEq)]
pub enum Delta {
    /// More content.
    Content(String),
    /// More reasoning.
    Reasoning(String),
    /// A whole call.
    ToolCall(ToolCall),
}

/// A whole answer, taken apart.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Output {
    /// What the user is shown.
    pub content: String,
    /// What the model thought before, if it did.
    pub reasoning: Option<String>,
    /// Calls, in order.
    pub tool_calls: Vec<ToolCall>,
}

impl FromIterator<Delta> for Output {
    fn from_iter<T: IntoIterator<Item = Delta>>(deltas: T) -> Self {
        let mut output = Self::default();
        for delta in deltas {
            match delta {
                Delta::Content(text) => output.content += &text,
                Delta::Reasoning(text) => *output.reasoning.get_or_insert_default() += &text,
                Delta::ToolCall(call) => output.tool_calls.push(call),
            }
        }
        output
    }
}

/// Takes a whole answer apart.
pub fn parse_output(family: Family, tools: Tools, start: Start, text: &str) -> Output {
    let mut parser = OutputParser::new(family, tools, start);
    let mut deltas = parser.push(text);
    deltas.extend(parser.finish());
    deltas.into_iter().collect()
}
