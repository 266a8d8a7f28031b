//! Chat: messages to a prompt through the model's own template, and the model's answer back to
//! content, reasoning and tool calls.
//!
//! Templates are programs in Jinja, written for transformers. They run in minijinja, set up to
//! print what transformers prints (Python's methods of strings, lists and dicts, its JSON, its
//! floats).
//!
//! Invariants:
//! - A template pays for every instruction, for every 64 bytes it makes or walks ([`FUEL`]), and
//!   for the memory of all it makes, before it is made; what it makes nests to a bounded depth
//!   (`chat/meter.rs`). So whatever a template does ends, in bounded memory and on a bounded stack
//!   ([`STACK_BYTES`]), with a text or an error that names the limit.
//! - It sees no file, no clock but [`RenderInput::now_s`] and nothing of the process.
//! - Text of users cannot become control tokens: see [`encode`].
//!
//! Deliberately absent: `include`, `import` and inheritance (there is only one template), and
//! guessing a template for a model that has none.

mod calls;
mod json;
mod library;
mod meter;
mod operators;
mod output;
mod prompt;
mod rewrite;

use std::collections::BTreeMap;
use std::sync::Arc;

use minijinja::machinery::{eval, make_string_output};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::Serde;
use minijinja::{AutoEscape, Environment, Error, ErrorKind, Value};
use serde_json::Value as Json;

use crate::gguf::{Gguf, GgufError};
use crate::tokenizer::Tokenizer;
use rewrite::Program;

pub use calls::{BadTools, CALLS_MAX, Calls, FUNCTION_NAME_BYTES_MAX, ToolChoice, ToolOffer};
pub(crate) use calls::{Function, functions, grammar as calls_grammar, lark_mark};
pub(crate) use output::{CLOSE as THOUGHT_CLOSE, MARKS, OPEN as THOUGHT_OPEN, mark};
pub use output::{Delta, Family, Output, OutputParser, Start, ToolCall, Tools, parse_output};
pub use prompt::{Encoded, encode};

/// Longest template, in bytes.
pub const TEMPLATE_BYTES_MAX: usize = 256 << 10;
/// What a rendering may use up: about one unit per instruction and per 64 bytes made or searched.
/// Real templates need some thousand for a short conversation.
pub const FUEL: u64 = 1_000_000;
/// More fuel for each byte of the conversation.
pub const FUEL_PER_BYTE: u64 = 16;
/// Longest conversation (messages, tools and names together, as JSON), in bytes.
pub const INPUT_BYTES_MAX: usize = 16 << 20;
/// Stack of the thread that parses and renders a template: what a tag of the longest kind and a
/// value nested as deep as allowed take, several times over.
const STACK_BYTES: usize = 16 << 20;

/// Why a template was refused or did not render.
#[derive(Debug, thiserror::Error)]
pub enum ChatError {
    /// A key of the file has another type.
    #[error("read the chat template")]
    Gguf(#[from] GgufError),
    /// The template is longer than this program takes.
    #[error("read the chat template: {found} bytes are above the limit of {limit}")]
    TemplateTooLong {
        /// Bytes found.
        found: usize,
        /// The limit.
        limit: usize,
    },
    /// The template is not valid Jinja.
    #[error("parse the chat template: {0}")]
    Syntax(String),
    /// The conversation is longer than this program takes.
    #[error("render the chat template: the conversation has {found} bytes, the limit is {limit}")]
    InputTooLong {
        /// Bytes of messages, tools and names.
        found: usize,
        /// The limit.
        limit: usize,
    },
    /// Names for the template were not an object.
    #[error("render the chat template: its arguments are not a JSON object")]
    Arguments,
    /// The template itself refused the conversation, in its own words.
    #[error("render the chat template: {0}")]
    Raised(String),
    /// The template used more than a rendering may.
    #[error("render the chat template: it uses more than {0} units of work; it may never end")]
    OutOfFuel(u64),
    /// The template made more than a rendering may.
    #[error("render the chat template: it makes more than {0} bytes of text and values")]
    TooMuch(u64),
    /// The template nested values deeper than this program walks.
    #[error("render the chat template: it nests values deeper than {0}")]
    TooDeep(usize),
    /// The template failed.
    #[error("render the chat template: {0}")]
    Render(String),
    /// There was no thread to render on.
    #[error("render the chat template: start a thread with {STACK_BYTES} bytes of stack")]
    Thread(#[source] std::io::Error),
    /// The model's file has no template.
    #[error("render the chat template: the model has none; send a prompt instead of messages")]
    NoTemplate,
}

/// What a template is given.
#[derive(Debug, Clone, Copy)]
pub struct RenderInput<'a> {
    /// The conversation, oldest message first, in the shape of OpenAI's chat API.
    pub messages: &'a [Json],
    /// Tools that the model may call, an array; `None` and null mean none.
    pub tools: Option<&'a Json>,
    /// More names for the template, such as `enable_thinking`. Null or an object.
    pub kwargs: &'a Json,
    /// Whether the text ends where the model's answer begins.
    pub add_generation_prompt: bool,
    /// The time that the template may print, in seconds since 1970 (UTC).
    pub now_s: i64,
}

/// A model's chat template, whose syntax was checked.
#[derive(Clone)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    source: String,
    program: Arc<Program>,
    bos: String,
    eos: String,
}

impl std::fmt::Debug for ChatTemplate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ChatTemplate").field("source", &self.source).finish_non_exhaustive()
    }
}

/// The message of `raise_exception`, kept apart from other errors.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Raised(String);

const NAME: &str = "chat template";

impl ChatTemplate {
    /// The template of a model, or `None` when its file has none.
    ///
    /// # Errors
    /// [`ChatError`].
    pub fn from_gguf(gguf: &Gguf, tokenizer: &Tokenizer) -> Result<Option<Self>, ChatError> {
        let Some(source) = gguf.str("tokenizer.chat_template")? else { return Ok(None) };
        let text = |id: Option<u32>| {
            String::from_utf8_lossy(id.map_or(&[][..], |id| tokenizer.token_bytes(id))).into_owned()
        };
        Self::from_source(source, &text(tokenizer.bos()), &text(tokenizer.eos())).map(Some)
    }

    /// Parses a template; `bos` and `eos` are the texts of `bos_token` and `eos_token`.
    ///
    /// # Errors
    /// [`ChatError::TemplateTooLong`] and [`ChatError::Syntax`].
    pub fn from_source(source: &str, bos: &str, eos: &str) -> Result<Self, ChatError> {
        let (found, limit) = (source.len(), TEMPLATE_BYTES_MAX);
        if found > limit {
            return Err(ChatError::TemplateTooLong { found, limit });
        }
        let environment = environment()?;
        let plain = without_generation_tags(source);
        let program = on_a_large_stack(|| rewrite::program(NAME, plain, environment.syntax()))?
            .map_err(|error| bad(&error))?;
        let (source, bos, eos) = (source.to_owned(), bos.to_owned(), eos.to_owned());
        Ok(Self { environment, source, program: Arc::new(program), bos, eos })
    }

    /// The template's text.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Renders a conversation exactly as transformers does.
    ///
    /// # Errors
    /// [`ChatError`].
    pub fn render(&self, input: &RenderInput<'_>) -> Result<String, ChatError> {
        let mut names = match input.kwargs {
            Json::Null => serde_json::Map::new(),
            Json::Object(names) => names.clone(),
            _ => return Err(ChatError::Arguments),
        };
        names.insert("messages".into(), Json::Array(input.messages.to_vec()));
        names.insert("tools".into(), input.tools.cloned().unwrap_or(Json::Null));
        names.insert("documents".into(), Json::Null);
        names.insert("add_generation_prompt".into(), input.add_generation_prompt.into());
        for (name, text) in [("bos_token", &self.bos), ("eos_token", &self.eos)] {
            names.entry(name).or_insert_with(|| text.as_str().into());
        }
        let names = Json::Object(names);
        let (found, limit) = (json::size_bytes(&names), INPUT_BYTES_MAX);
        if found > limit {
            return Err(ChatError::InputTooLong { found, limit });
        }
        let fuel = FUEL + FUEL_PER_BYTE * found as u64;
        let mut environment = self.environment.clone();
        environment.set_fuel(Some(fuel));
        let now_s = input.now_s;
        environment.add_function("strftime_now", move |format: &str| strftime(now_s, format));
        on_a_large_stack(|| self.run(&environment, names, fuel))?
    }

    fn run(
        &self,
        environment: &Environment<'static>,
        names: Json,
        fuel: u64,
    ) -> Result<String, ChatError> {
        let (root, blocks) = (Value::from(Serde(names)), BTreeMap::new());
        let (mut text, program) = (String::new(), self.program.borrow_dependent());
        let out = &mut make_string_output(&mut text);
        eval(environment, program, root, &blocks, out, AutoEscape::None)
            .map_err(|error| refusal(&error, fuel))?;
        Ok(text)
    }
}

/// Does something on a thread whose stack is known; a panic there is an error here.
fn on_a_large_stack<T: Send>(run: impl FnOnce() -> T + Send) -> Result<T, ChatError> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new()
            .name("chat template".to_owned())
            .stack_size(STACK_BYTES)
            .spawn_scoped(scope, run)
            .map_err(ChatError::Thread)?;
        thread.join().map_err(|_| ChatError::Render("it made the renderer panic".to_owned()))
    })
}

fn bad(error: &rewrite::BadTemplate) -> ChatError {
    ChatError::Syntax(match error {
        rewrite::BadTemplate::Syntax(error) => describe(error),
        other => other.to_string(),
    })
}

/// Jinja as transformers sets it up.
fn environment() -> Result<Environment<'static>, ChatError> {
    let mut environment = Environment::empty();
    let syntax = SyntaxConfig::builder()
        .trim_blocks(true)
        .lstrip_blocks(true)
        .build()
        .map_err(|error| ChatError::Syntax(describe(&error)))?;
    environment.set_syntax(syntax);
    library::register(&mut environment);
    operators::register(&mut environment);
    environment.add_function("raise_exception", |message: String| -> Result<Value, Error> {
        Err(Error::new(ErrorKind::InvalidOperation, "raised").with_source(Raised(message)))
    });
    Ok(environment)
}

/// `{% generation %}` marks the assistant's part for training; its text is kept.
fn without_generation_tags(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(at) = rest.find("{%") {
        let (before, tag) = rest.split_at(at);
        out.push_str(before);
        let end = tag.find("%}").map_or(tag.len(), |end| end + 2);
        let (tag, after) = tag.split_at(end);
        let word = tag.trim_matches(|c: char| "{%}-+".contains(c) || c.is_whitespace());
        match word {
            "generation" => out.push_str(&tag.replace(word, "if true")),
            "endgeneration" => out.push_str(&tag.replace(word, "endif")),
            _ => out.push_str(tag),
        }
        rest = after;
    }
    out + rest
}

fn strftime(now_s: i64, format: &str) -> Result<String, Error> {
    let refuse = |error: jiff::Error| Error::new(ErrorKind::InvalidOperation, error.to_string());
    let time = jiff::Timestamp::from_second(now_s).map_err(refuse)?;
    jiff::fmt::strtime::format(format, time).map_err(refuse)
}

/// The words for an error inside minijinja: what, and where in the template.
fn describe(error: &Error) -> String {
    let what = error.detail().map_or_else(|| error.kind().to_string(), str::to_owned);
    match error.line() {
        Some(line) => format!("{what} (line {line} of the template)"),
        None => what,
    }
}

fn refusal(error: &Error, fuel: u64) -> ChatError {
    let mut source: Option<&dyn std::error::Error> = Some(error);
    while let Some(cause) = source {
        if let Some(Raised(message)) = cause.downcast_ref() {
            return ChatError::Raised(message.clone());
        }
        match cause.downcast_ref() {
            Some(meter::Exceeded::Made(limit)) => return ChatError::TooMuch(*limit),
            Some(meter::Exceeded::Depth) => return ChatError::TooDeep(meter::DEPTH_MAX),
            Some(meter::Exceeded::NotData) | None => {}
        }
        if let Some(cause) = cause.downcast_ref::<Error>()
            && cause.kind() == ErrorKind::OutOfFuel
        {
            return ChatError::OutOfFuel(fuel);
        }
        source = cause.source();
    }
    ChatError::Render(describe(error))
}

#[cfg(test)]
mod tests;
