//! A model's answer, taken apart while it comes: reasoning, content, tool calls.
//!
//! [`OutputParser`] is fed the answer's text in pieces of any size (control tokens included, the
//! end token left out) and gives out [`Delta`]s; [`parse_output`] is the same for a whole answer.
//! What looks like a tool call but is none stays content, unchanged.

use serde_json::Value as Json;

use super::calls::Calls;

/// How a family of models writes tool calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// Not at all.
    Plain,
    /// Qwen and Hermes: `<tool_call>{"name": …, "arguments": {…}}</tool_call>`.
    Hermes,
    /// Llama 3: the whole answer is `{"name": …, "parameters": {…}}`, perhaps behind
    /// `<|python_tag|>`, several parted by `;`; or `<function=name>{…}</function>`.
    Llama3,
    /// Phi-4-mini: `<|tool_call|>[…]<|/tool_call|>` or `functools[…]`.
    Phi4,
    /// Gemma: the whole answer is JSON, perhaps in a fenced block.
    Gemma,
}

impl Family {
    /// The family that a chat template is written for.
    pub fn of_template(source: &str) -> Self {
        let has = |text: &str| source.contains(text);
        match () {
            () if has("<tool_call>") => Self::Hermes,
            () if has("<|tool_call|>") || has("<|tool|>") => Self::Phi4,
            () if has("<|python_tag|>") || has("ipython") => Self::Llama3,
            () if has("<start_of_turn>") => Self::Gemma,
            () => Self::Plain,
        }
    }

    /// Its name: `hermes`, `llama3`, `phi4`, `gemma` or `plain`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Hermes => "hermes",
            Self::Llama3 => "llama3",
            Self::Phi4 => "phi4",
            Self::Gemma => "gemma",
        }
    }

    /// Marks around a call, anywhere in the answer.
    fn marks(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Self::Plain | Self::Gemma => &[],
            Self::Hermes => &[("<tool_call>", "</tool_call>")],
            Self::Llama3 => &[("<|python_tag|>", END), ("<function=", "</function>")],
            Self::Phi4 => &[("<|tool_call|>", "<|/tool_call|>"), ("functools[", END)],
        }
    }

    /// What an answer begins with that may as a whole be calls.
    fn whole_starts(self) -> &'static [&'static str] {
        match self {
            Self::Llama3 => &["{"],
            Self::Gemma => &["{", "[", "```json", "```tool_code", "```tool_call"],
            // Where the vocabulary makes the marks control tokens, they are not in the text.
            Self::Phi4 => &["[{"],
            Self::Plain | Self::Hermes => &[],
        }
    }
}

/// Stands for a closing mark that is the end of the answer.
const END: &str = "";

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

const OPEN: &str = "<think>";
const CLOSE: &str = "</think>";

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

/// Takes a whole answer apart.
pub fn parse_output(family: Family, tools: Tools, start: Start, text: &str) -> Output {
    let mut parser = OutputParser::new(family, tools, start);
    let mut deltas = parser.push(text);
    deltas.extend(parser.finish());
    let mut output = Output::default();
    for delta in deltas {
        match delta {
            Delta::Content(text) => output.content += &text,
            Delta::Reasoning(text) => *output.reasoning.get_or_insert_default() += &text,
            Delta::ToolCall(call) => output.tool_calls.push(call),
        }
    }
    output
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    /// Nothing but blanks so far.
    Beginning,
    Reasoning,
    Content,
    /// Behind the opening mark of this number.
    Call(usize),
    /// The answer may as a whole be calls: kept to the end.
    Whole,
}

/// Takes an answer apart while it comes.
#[derive(Debug)]
pub struct OutputParser {
    family: Family,
    tools: Tools,
    mode: Mode,
    /// Text that is not decided yet: the beginning of a mark, blanks, an unfinished call.
    waiting: String,
    /// Blanks before a mark, to be dropped when it opens a call.
    blanks: String,
    /// Whether content was given out, so that blanks before it no longer count.
    has_content: bool,
    has_reasoning: bool,
    has_calls: bool,
    was_reasoning: bool,
    limit: Calls,
}

impl OutputParser {
    /// A parser for one answer.
    pub fn new(family: Family, tools: Tools, start: Start) -> Self {
        let mode = match start {
            Start::Content => Mode::Beginning,
            Start::Reasoning => Mode::Reasoning,
        };
        Self {
            family,
            tools,
            mode,
            waiting: String::new(),
            blanks: String::new(),
            has_content: false,
            has_reasoning: false,
            has_calls: false,
            was_reasoning: start == Start::Reasoning,
            limit: Calls::Many,
        }
    }

    /// With this limit on calls. Behind the last one the answer is over: what the model says there
    /// is not given out.
    #[must_use]
    pub fn with_calls(self, limit: Calls) -> Self {
        Self { limit, ..self }
    }

    /// Whether the answer is over, because it holds as many calls as it may.
    pub fn is_over(&self) -> bool {
        self.limit == Calls::One && self.has_calls
    }

    /// Takes more of the answer; gives what is decided by it.
    pub fn push(&mut self, text: &str) -> Vec<Delta> {
        self.waiting.push_str(text);
        let mut deltas = Vec::new();
        while !self.is_over() && self.step(&mut deltas) {}
        deltas
    }

    /// Ends the answer; gives the rest.
    pub fn finish(&mut self) -> Vec<Delta> {
        let mut deltas = Vec::new();
        if self.is_over() {
            return deltas;
        }
        let waiting = std::mem::take(&mut self.waiting);
        match self.mode {
            Mode::Reasoning => self.reasoning(waiting.trim_end(), &mut deltas),
            Mode::Beginning | Mode::Content => self.content(&waiting, &mut deltas),
            Mode::Whole => {
                let calls = whole_calls(self.family, &waiting);
                self.calls(calls, &waiting, &mut deltas);
            }
            Mode::Call(mark) => {
                let (open, _) = self.family.marks()[mark];
                let calls = marked_calls(self.family, open, &waiting);
                self.calls(calls, &format!("{open}{waiting}"), &mut deltas);
            }
        }
        deltas
    }

    /// Decides what it can; false when it needs more text.
    fn step(&mut self, deltas: &mut Vec<Delta>) -> bool {
        match self.mode {
            Mode::Beginning => self.begin(),
            Mode::Reasoning => self.reason(deltas),
            Mode::Content => self.talk(deltas),
            Mode::Call(mark) => self.call(mark, deltas),
            Mode::Whole => false,
        }
    }

    fn begin(&mut self) -> bool {
        let text = self.waiting.trim_start();
        if !self.was_reasoning && text.starts_with(OPEN) {
            self.waiting = text[OPEN.len()..].to_owned();
            self.was_reasoning = true;
            self.mode = Mode::Reasoning;
            return true;
        }
        let starts = match self.tools {
            Tools::Offered => self.family.whole_starts(),
            Tools::None => &[],
        };
        if starts.iter().any(|start| text.starts_with(start)) {
            self.mode = Mode::Whole;
            return false;
        }
        let undecided = |mark: &&str| mark.starts_with(text);
        if (!self.was_reasoning && undecided(&OPEN))
            || starts.iter().any(undecided)
            || text.is_empty()
        {
            return false;
        }
        self.mode = Mode::Content;
        true
    }

    fn reason(&mut self, deltas: &mut Vec<Delta>) -> bool {
        if let Some(at) = self.waiting.find(CLOSE) {
            let text = self.waiting[..at].trim_end().to_owned();
            self.waiting = self.waiting[at + CLOSE.len()..].trim_start().to_owned();
            self.reasoning(&text, deltas);
            self.mode = Mode::Beginning;
            return true;
        }
        let end = self.waiting.len() - tail_of_mark(&self.waiting, &[CLOSE]);
        let end = self.waiting[..end].trim_end().len();
        let text: String = self.waiting.drain(..end).collect();
        self.reasoning(&text, deltas);
        false
    }

    fn talk(&mut self, deltas: &mut Vec<Delta>) -> bool {
        let marks = match self.tools {
            Tools::Offered => self.family.marks(),
            Tools::None => &[],
        };
        let first = marks
            .iter()
            .enumerate()
            .filter_map(|(mark, (open, _))| Some((self.waiting.find(open)?, mark, open.len())))
            .min();
        if let Some((at, mark, len)) = first {
            let text = self.waiting[..at].trim_end().to_owned();
            self.blanks = self.waiting[text.len()..at].to_owned();
            self.waiting.drain(..at + len);
            self.content(&text, deltas);
            self.mode = Mode::Call(mark);
            return true;
        }
        let opens: Vec<&str> = marks.iter().map(|(open, _)| *open).collect();
        let mut end = self.waiting.len() - tail_of_mark(&self.waiting, &opens);
        if !opens.is_empty() {
            end = self.waiting[..end].trim_end().len(); // blanks before a call are dropped
        }
        let text: String = self.waiting.drain(..end).collect();
        self.content(&text, deltas);
        false
    }

    fn call(&mut self, mark: usize, deltas: &mut Vec<Delta>) -> bool {
        let (open, close) = self.family.marks()[mark];
        if close == END {
            return false;
        }
        let Some(at) = self.waiting.find(close) else { return false };
        let inside = self.waiting[..at].to_owned();
        self.waiting.drain(..at + close.len());
        let calls = marked_calls(self.family, open, &inside);
        self.calls(calls, &format!("{open}{inside}{close}"), deltas);
        self.mode = Mode::Content;
        true
    }

    fn calls(&mut self, calls: Option<Vec<ToolCall>>, text: &str, deltas: &mut Vec<Delta>) {
        match calls {
            Some(calls) => {
                self.has_calls = true;
                let most = if self.limit == Calls::One { 1 } else { usize::MAX };
                deltas.extend(calls.into_iter().take(most).map(Delta::ToolCall));
            }
            None => {
                let text = std::mem::take(&mut self.blanks) + text;
                self.content(&text, deltas);
            }
        }
    }

    fn content(&mut self, text: &str, deltas: &mut Vec<Delta>) {
        // Blanks behind reasoning or a call part them from the content and are none of it.
        let parted = self.was_reasoning || self.has_calls;
        let text = if parted && !self.has_content { text.trim_start() } else { text };
        let text = if self.has_calls && text.trim().is_empty() { "" } else { text };
        if !text.is_empty() {
            self.has_content = true;
            deltas.push(Delta::Content(text.to_owned()));
        }
    }

    fn reasoning(&mut self, text: &str, deltas: &mut Vec<Delta>) {
        let text = if self.has_reasoning { text } else { text.trim_start() };
        if !text.is_empty() {
            self.has_reasoning = true;
            deltas.push(Delta::Reasoning(text.to_owned()));
        }
    }
}

/// Bytes at the end of a text that may be the beginning of a mark.
fn tail_of_mark(text: &str, marks: &[&str]) -> usize {
    let longest = marks.iter().map(|mark| mark.len()).max().unwrap_or(0).saturating_sub(1);
    (1..=longest.min(text.len()))
        .rev()
        .find(|len| {
            let tail = text.get(text.len() - len..);
            tail.is_some_and(|tail| marks.iter().any(|mark| mark.starts_with(tail)))
        })
        .unwrap_or(0)
}

/// The calls between two marks; `None` when they are not calls.
fn marked_calls(family: Family, open: &str, inside: &str) -> Option<Vec<ToolCall>> {
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
fn whole_calls(family: Family, text: &str) -> Option<Vec<ToolCall>> {
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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn parse(family: Family, text: &str) -> Output {
        let whole = parse_output(family, Tools::Offered, Start::Content, text);
        // Cut anywhere, the answer is the same.
        for size in [1, 2, 3, 7] {
            let mut parser = OutputParser::new(family, Tools::Offered, Start::Content);
            let characters: Vec<char> = text.chars().collect();
            let mut deltas = Vec::new();
            for piece in characters.chunks(size) {
                deltas.extend(parser.push(&piece.iter().collect::<String>()));
            }
            deltas.extend(parser.finish());
            let mut output = Output::default();
            for delta in deltas {
                match delta {
                    Delta::Content(text) => output.content += &text,
                    Delta::Reasoning(text) => *output.reasoning.get_or_insert_default() += &text,
                    Delta::ToolCall(call) => output.tool_calls.push(call),
                }
            }
            assert_eq!(output, whole, "in pieces of {size}: {text:?}");
        }
        whole
    }

    fn weather(city: &str) -> ToolCall {
        ToolCall { name: "get_weather".into(), arguments: json!({"city": city}) }
    }

    #[test]
    fn reasoning_is_kept_apart() {
        let output = parse(Family::Hermes, "<think>\nhm, 1 < 2\n</think>\n\nYes.\n");
        assert_eq!(output.reasoning.as_deref(), Some("hm, 1 < 2"));
        assert_eq!(output.content, "Yes.\n");
        let output = parse(Family::Hermes, "<think>\n\n</think>\n\nYes");
        assert_eq!((output.reasoning, output.content.as_str()), (None, "Yes"));
        let output = parse(Family::Plain, "<think>never ends ");
        assert_eq!(output.reasoning.as_deref(), Some("never ends"));
        let output = parse(Family::Plain, "I <think> not</think>");
        assert_eq!(output.content, "I <think> not</think>");
        let started =
            parse_output(Family::Hermes, Tools::None, Start::Reasoning, "a\n</think>\n\nb");
        assert_eq!((started.reasoning.as_deref(), started.content.as_str()), (Some("a"), "b"));
    }

    #[test]
    fn each_familys_calls_are_found() {
        let call = r#"{"name": "get_weather", "arguments": {"city": "Paris"}}"#;
        let parameters = r#"{"name": "get_weather", "parameters": {"city": "Paris"}}"#;
        let two = vec![weather("Paris"), weather("Paris")];
        let cases = [
            (
                Family::Hermes,
                format!("<tool_call>\n{call}\n</tool_call>\n<tool_call>{call}</tool_call>"),
            ),
            (Family::Llama3, format!("<|python_tag|>{parameters}; {parameters}")),
            (Family::Llama3, format!("{parameters};{parameters}")),
            (Family::Llama3, "<function=get_weather>{\"city\": \"Paris\"}</function>".repeat(2)),
            (Family::Phi4, format!("<|tool_call|>[{call}, {call}]<|/tool_call|>")),
            (Family::Phi4, format!("functools[{call}, {call}]")),
            (Family::Phi4, format!("[{call}, {call}]")),
            (Family::Gemma, format!("```json\n[{parameters}, {parameters}]\n```")),
            (Family::Gemma, format!("\n[{call}, {{\"type\":\"function\",\"function\":{call}}}]")),
        ];
        for (family, text) in cases {
            let output = parse(family, &text);
            assert_eq!(output.tool_calls, two, "{family:?} {text}");
            assert_eq!(output.content, "", "{family:?} {text}");
        }
    }

    #[test]
    fn text_and_reasoning_may_stand_before_a_call() {
        let text = "<think>\nlook\n</think>\n\nLet me see.\n<tool_call>\n{\"name\": \"get_weather\", \
                    \"arguments\": \"{\\\"city\\\": \\\"Rome\\\"}\"}\n</tool_call>";
        let output = parse(Family::Hermes, text);
        assert_eq!(output.reasoning.as_deref(), Some("look"));
        assert_eq!(output.content, "Let me see.");
        assert_eq!(output.tool_calls, [weather("Rome")]);
    }

    #[test]
    fn what_is_no_call_stays_content() {
        for (family, text) in [
            (Family::Hermes, "<tool_call>{\"name\": 1}</tool_call> x"),
            (Family::Hermes, "a <tool_call>{\"name\""),
            (Family::Hermes, "a < b <tool"),
            (Family::Llama3, "{\"answer\": 42}"),
            (Family::Llama3, "{not json"),
            (Family::Phi4, "functools[1]"),
            (Family::Phi4, "[{\"a\": 1}]"),
            (Family::Gemma, "```json\n{\"a\": 1}\n```\nand more"),
            (Family::Plain, "{\"name\": \"x\", \"arguments\": {}}"),
            (Family::Gemma, "  spaces "),
        ] {
            let output = parse(family, text);
            assert_eq!(output.content, text, "{family:?}");
            assert!(output.tool_calls.is_empty());
        }
        let json = "{\"name\": \"x\", \"parameters\": {}}";
        let output = parse_output(Family::Llama3, Tools::None, Start::Content, json);
        assert_eq!((output.content.as_str(), output.tool_calls.len()), (json, 0));
    }

    #[test]
    fn behind_the_last_call_that_it_may_hold_the_answer_is_over() {
        let call = r#"{"name": "get_weather", "arguments": {"city": "Rome"}}"#;
        for (family, text) in [
            (
                Family::Hermes,
                format!("<tool_call>{call}</tool_call>\n<tool_call>{call}</tool_call>"),
            ),
            (Family::Phi4, format!("functools[{call}, {call}] and more")),
            (Family::Llama3, format!("{call}; {call}")),
        ] {
            let mut parser =
                OutputParser::new(family, Tools::Offered, Start::Content).with_calls(Calls::One);
            let mut deltas = parser.push(&text);
            assert_eq!(parser.is_over(), family == Family::Hermes);
            deltas.extend(parser.finish());
            let expected: &[Delta] = match family {
                // What is no call as a whole is content.
                Family::Phi4 => &[Delta::Content(text)],
                _ => &[Delta::ToolCall(weather("Rome"))],
            };
            assert_eq!(deltas, expected, "{family:?}");
        }
    }

    #[test]
    fn content_streams_as_it_comes() {
        let mut parser = OutputParser::new(Family::Hermes, Tools::Offered, Start::Content);
        assert_eq!(parser.push("Hello"), [Delta::Content("Hello".into())]);
        assert_eq!(parser.push(" <"), []);
        assert_eq!(parser.push("b>"), [Delta::Content(" <b>".into())]);
        assert_eq!(parser.finish(), []);
    }

    proptest::proptest! {
        #[test]
        fn no_answer_panics_and_plain_text_is_kept(text in r"(<think>|</think>|<tool_call>|\{|\PC| ){0,20}") {
            for family in [Family::Plain, Family::Hermes, Family::Llama3, Family::Phi4, Family::Gemma] {
                parse(family, &text);
            }
            if !text.contains("<think>") {
                let output = parse_output(Family::Plain, Tools::None, Start::Content, &text);
                proptest::prop_assert_eq!(output.content, text);
            }
        }
    }
}
