//! Calls that an answer must hold: a grammar of the model's own syntax for them, with each
//! function's schema for its arguments.
//!
//! Invariant: what follows the grammar is taken apart by [`OutputParser`](super::OutputParser) into
//! calls of functions that were offered, with arguments valid under their schemas.

use std::fmt::Write as _;

use serde_json::{Value as Json, json};

use super::output::{Family, MARKS};

/// Tools that a model may call.
#[derive(Debug, Clone, PartialEq)]
pub struct ToolOffer {
    /// Their descriptions, an array in the shape of OpenAI's API.
    pub tools: Json,
    /// Whether it must call one.
    pub choice: ToolChoice,
    /// How many calls one answer may hold.
    pub calls: Calls,
}

impl ToolOffer {
    /// The model decides.
    pub fn auto(tools: Json) -> Self {
        Self { tools, choice: ToolChoice::Auto, calls: Calls::Many }
    }
}

/// Whether the model must call a tool.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum ToolChoice {
    /// The model decides.
    #[default]
    Auto,
    /// At least one, whichever.
    Required,
    /// The function of this name.
    Function(String),
}

/// How many calls one answer may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Calls {
    /// Up to [`CALLS_MAX`] where calls are required, else any number.
    #[default]
    Many,
    /// One: the answer ends behind it.
    One,
}

/// Calls of one answer at most, where calls are required.
pub const CALLS_MAX: usize = 16;
/// Bytes of a function's name at most: OpenAI's limit.
pub const FUNCTION_NAME_BYTES_MAX: usize = 64;

/// Why tools cannot be offered: the field and the reason.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BadTools {
    /// `tools` or `tool_choice`.
    pub field: &'static str,
    /// What was found, what was expected.
    pub reason: String,
}

/// A function that may be called.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Function {
    pub(crate) name: String,
    /// The schema of its arguments.
    pub(crate) parameters: Json,
}

/// The functions that the choice leaves, checked.
pub(crate) fn functions(offer: &ToolOffer) -> Result<Vec<Function>, BadTools> {
    let bad = |reason| BadTools { field: "tools", reason };
    let tools = offer.tools.as_array().ok_or_else(|| bad("expected a list".to_owned()))?;
    let mut functions: Vec<Function> = Vec::with_capacity(tools.len());
    for (at, tool) in tools.iter().enumerate() {
        let function = function(tool).map_err(|reason| bad(format!("[{at}]{reason}")))?;
        if functions.iter().any(|other| other.name == function.name) {
            return Err(bad(format!("[{at}]: the name {:?} is there twice", function.name)));
        }
        functions.push(function);
    }
    let choice = |reason| BadTools { field: "tool_choice", reason };
    match &offer.choice {
        ToolChoice::Auto => {}
        ToolChoice::Required if functions.is_empty() => {
            return Err(choice("requires a call, and there are no tools".to_owned()));
        }
        ToolChoice::Required => {}
        ToolChoice::Function(name) => {
            functions.retain(|function| function.name == *name);
            if functions.is_empty() {
                return Err(choice(format!("names {name:?}, which is not among the tools")));
            }
        }
    }
    Ok(functions)
}

fn function(tool: &Json) -> Result<Function, String> {
    if tool["type"] != "function" {
        return Err(format!(".type: found {}, expected \"function\"", tool["type"]));
    }
    let name = tool["function"]["name"].as_str().unwrap_or_default();
    let is_plain = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-' || c == '.';
    if name.is_empty() || name.len() > FUNCTION_NAME_BYTES_MAX || !name.chars().all(is_plain) {
        return Err(format!(
            ".function.name: found {}, expected 1 to {FUNCTION_NAME_BYTES_MAX} letters, digits, \
             _, - and .",
            tool["function"]["name"]
        ));
    }
    let parameters = match &tool["function"]["parameters"] {
        // No description of arguments: there are none.
        Json::Null => json!({ "type": "object", "properties": {}, "additionalProperties": false }),
        Json::Object(schema) => {
            let mut schema = schema.clone();
            let ty = schema.entry("type").or_insert_with(|| "object".into());
            if ty != "object" {
                return Err(format!(".function.parameters.type: found {ty}, expected \"object\""));
            }
            Json::Object(schema)
        }
        other => return Err(format!(".function.parameters: found {other}, expected an object")),
    };
    Ok(Function { name: name.to_owned(), parameters })
}

/// How a family writes calls: around all, before the arguments, around each, between them.
struct Syntax {
    /// The ways to write what stands around all; the second where the vocabulary has its marks.
    around: [(&'static str, &'static str); 2],
    open: &'static str,
    each_open: &'static str,
    arguments: &'static str,
    each_close: &'static str,
    between: &'static str,
    close: &'static str,
}

impl Syntax {
    fn of(family: Family, calls: Calls) -> Self {
        let json = Self {
            around: [("", ""); 2],
            open: "",
            each_open: "",
            arguments: "parameters",
            each_close: "",
            between: "; ",
            close: "",
        };
        match (family, calls) {
            (Family::Hermes, _) => Self {
                each_open: "<tool_call>\n",
                arguments: "arguments",
                each_close: "\n</tool_call>",
                between: "\n",
                ..json
            },
            (Family::Phi4, _) => Self {
                around: [("functools", ""), ("<|tool_call|>", "<|/tool_call|>")],
                open: "[",
                arguments: "arguments",
                between: ", ",
                close: "]",
                ..json
            },
            (Family::Gemma | Family::Plain, Calls::Many) => {
                Self { open: "[", between: ", ", close: "]", ..json }
            }
            (Family::Llama3, _) => Self { around: [("", ""), ("<|python_tag|>", "")], ..json },
            (Family::Gemma | Family::Plain, Calls::One) => json,
        }
    }
}

/// A mark in Lark: written out, or the token that is it.
pub(crate) fn lark_mark(text: &str, token: Option<u32>) -> String {
    let quoted = Json::from(text);
    token.map_or_else(|| quoted.to_string(), |id| format!("({quoted} | <[{id}]>)"))
}

/// A text in Lark, in which marks may be tokens.
fn lark_text(text: &str, token: &impl Fn(&str) -> Option<u32>) -> String {
    let found = MARKS.iter().find_map(|mark| Some((*mark, text.split_once(mark)?)));
    match found {
        _ if text.is_empty() => String::new(),
        None => format!("{} ", Json::from(text)),
        Some((mark, (before, behind))) => {
            let mark = lark_mark(mark, token(mark));
            format!("{}{mark} {}", lark_text(before, token), lark_text(behind, token))
        }
    }
}

/// The Lark grammar of an answer that is calls of these functions and nothing else. `token` says
/// which token outside of the text a mark is, if any; `ready` readies a schema for the grammar's
/// compiler.
pub(crate) fn grammar(
    family: Family,
    functions: &[Function],
    calls: Calls,
    token: impl Fn(&str) -> Option<u32>,
    ready: impl Fn(&Json) -> Json,
) -> String {
    let syntax = Syntax::of(family, calls);
    let quoted = |text: &str| Json::from(text).to_string();
    let text = |text: &str| lark_text(text, &token);
    let [(open, close), (mark_open, mark_close)] = syntax.around;
    let mut start = format!("{}calls {}", text(open), text(close));
    if token(mark_open).is_some() {
        let _ = write!(start, "| {}calls {}", text(mark_open), text(mark_close));
    }
    let more = match calls {
        Calls::One => String::new(),
        Calls::Many => format!("({} call){{0,{}}} ", quoted(syntax.between), CALLS_MAX - 1),
    };
    let (open, close) = (text(syntax.open), text(syntax.close));
    let mut lark = format!("start: {start}\ncalls: {open}call {more}{close}\n");
    let (each_open, each_close) = (text(syntax.each_open), text(syntax.each_close));
    let names: Vec<String> = (0..functions.len()).map(|n| format!("call_{n}")).collect();
    let _ = writeln!(lark, "call: {each_open}({}) {each_close}", names.join(" | "));
    for (n, function) in functions.iter().enumerate() {
        let name = quoted(&function.name);
        let head = quoted(&format!("{{\"name\": {name}, \"{}\": ", syntax.arguments));
        let _ = writeln!(lark, "call_{n}: {head} arguments_{n} \"}}\"");
        let _ = writeln!(lark, "arguments_{n}: %json {}", ready(&function.parameters));
    }
    lark
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offer(tools: Json, choice: ToolChoice) -> ToolOffer {
        ToolOffer { tools, choice, calls: Calls::Many }
    }

    fn tool(name: &str) -> Json {
        json!({ "type": "function", "function": { "name": name } })
    }

    #[test]
    fn the_choice_leaves_the_functions_it_names() {
        let tools = json!([tool("a"), tool("b")]);
        let names = |choice| {
            let functions = functions(&offer(tools.clone(), choice)).unwrap();
            functions.into_iter().map(|f| f.name).collect::<Vec<_>>()
        };
        assert_eq!(names(ToolChoice::Auto), ["a", "b"]);
        assert_eq!(names(ToolChoice::Required), ["a", "b"]);
        assert_eq!(names(ToolChoice::Function("b".into())), ["b"]);
    }

    #[test]
    fn tools_that_cannot_be_called_are_refused_with_their_place() {
        let parameters =
            |p: Json| json!([{ "type": "function", "function": { "name": "a", "parameters": p } }]);
        for (tools, word) in [
            (json!({}), "a list"),
            (json!([{ "type": "retrieval" }]), "[0].type"),
            (json!([tool("a"), tool("")]), "[1].function.name"),
            (json!([tool("a b")]), "[0].function.name"),
            (json!([tool("a"), tool("a")]), "twice"),
            (parameters(json!("x")), "[0].function.parameters"),
            (parameters(json!({ "type": "string" })), "parameters.type"),
        ] {
            let bad = functions(&offer(tools.clone(), ToolChoice::Auto)).unwrap_err();
            assert_eq!(bad.field, "tools");
            assert!(bad.reason.contains(word), "{tools}: {}", bad.reason);
        }
        let missing = ToolChoice::Function("c".into());
        for (tools, choice) in [(json!([tool("a")]), missing), (json!([]), ToolChoice::Required)] {
            assert_eq!(functions(&offer(tools, choice)).unwrap_err().field, "tool_choice");
        }
    }
}
