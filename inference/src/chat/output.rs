//! A model's answer, taken apart while it comes: reasoning, content, tool calls.
//!
//! [`OutputParser`] is fed the answer's text in pieces of any size, and the marks among its control
//! tokens beside it, and gives out [`Delta`]s; [`parse_output`] is the same for a whole answer.
//! What looks like a tool call but is none stays content, unchanged; control tokens are never
//! content.

mod family;
mod parse;

use serde_json::Value as Json;

use super::calls::Calls;
use family::END;
pub use family::Family;
pub(crate) use family::{CLOSE, MARKS, OPEN, mark};
use parse::{marked_calls, whole_calls};

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
    /// The mark before an unfinished call as content: nothing where a control token was it.
    open: &'static str,
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
            open: "",
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

    /// Takes a control token of the answer behind the text so far: what
    /// [`Event::Token`](crate::engine::Event::Token) calls its mark. Where it is none here, nothing
    /// comes of it.
    pub fn push_mark(&mut self, mark: &str) -> Vec<Delta> {
        let mut deltas = Vec::new();
        let at = self.waiting.len();
        match self.mode {
            _ if self.is_over() => {}
            Mode::Beginning
                if mark == OPEN && !self.was_reasoning && self.waiting.trim().is_empty() =>
            {
                self.open_reasoning(at);
            }
            Mode::Reasoning if mark == CLOSE => self.close_reasoning(at, 0, &mut deltas),
            Mode::Beginning | Mode::Content if self.tools == Tools::Offered => {
                if let Some(number) = self.family.opened_by(mark) {
                    self.open_call(number, at, "", &mut deltas);
                }
            }
            Mode::Call(number) if self.family.marks()[number].1 == mark => {
                self.close_call(number, at, "", &mut deltas);
            }
            _ => {}
        }
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
                self.calls(calls, &format!("{}{waiting}", self.open), &mut deltas);
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
            let behind = self.waiting.len() - text.len() + OPEN.len();
            self.open_reasoning(behind);
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

    /// What waits is reasoning from `at` on.
    fn open_reasoning(&mut self, at: usize) {
        self.waiting.drain(..at);
        self.was_reasoning = true;
        self.mode = Mode::Reasoning;
    }

    fn reason(&mut self, deltas: &mut Vec<Delta>) -> bool {
        if let Some(at) = self.waiting.find(CLOSE) {
            self.close_reasoning(at, CLOSE.len(), deltas);
            return true;
        }
        let end = self.waiting.len() - tail_of_mark(&self.waiting, &[CLOSE]);
        let end = self.waiting[..end].trim_end().len();
        let text: String = self.waiting.drain(..end).collect();
        self.reasoning(&text, deltas);
        false
    }

    /// What waits is reasoning up to a mark of `len` bytes at `at`.
    fn close_reasoning(&mut self, at: usize, len: usize, deltas: &mut Vec<Delta>) {
        let text = self.waiting[..at].trim_end().to_owned();
        self.waiting = self.waiting[at + len..].trim_start().to_owned();
        self.reasoning(&text, deltas);
        self.mode = Mode::Beginning;
    }

    fn talk(&mut self, deltas: &mut Vec<Delta>) -> bool {
        let marks = match self.tools {
            Tools::Offered => self.family.marks(),
            Tools::None => &[],
        };
        let first = marks
            .iter()
            .enumerate()
            .filter_map(|(mark, (open, _))| Some((self.waiting.find(open)?, mark, *open)))
            .min();
        if let Some((at, mark, open)) = first {
            self.open_call(mark, at, open, deltas);
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

    /// What waits is content up to the opening mark of this number at `at`, of which `open` stands
    /// in the text.
    fn open_call(&mut self, mark: usize, at: usize, open: &'static str, deltas: &mut Vec<Delta>) {
        let text = self.waiting[..at].trim_end().to_owned();
        self.blanks = self.waiting[text.len()..at].to_owned();
        self.waiting.drain(..at + open.len());
        self.content(&text, deltas);
        self.open = open;
        self.mode = Mode::Call(mark);
    }

    fn call(&mut self, mark: usize, deltas: &mut Vec<Delta>) -> bool {
        let (_, close) = self.family.marks()[mark];
        if close == END {
            return false;
        }
        let Some(at) = self.waiting.find(close) else { return false };
        self.close_call(mark, at, close, deltas);
        true
    }

    /// What waits is a call up to the closing mark at `at`, of which `close` stands in the text.
    fn close_call(&mut self, mark: usize, at: usize, close: &str, deltas: &mut Vec<Delta>) {
        let inside = self.waiting[..at].to_owned();
        self.waiting.drain(..at + close.len());
        let calls = marked_calls(self.family, self.family.marks()[mark].0, &inside);
        self.calls(calls, &format!("{}{inside}{close}", self.open), deltas);
        self.mode = Mode::Content;
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

    /// A piece of an answer: text, or a control token.
    type Piece<'a> = Result<&'a str, &'a str>;

    fn parse_pieces(family: Family, tools: Tools, pieces: &[Piece<'_>]) -> Output {
        let mut parser = OutputParser::new(family, tools, Start::Content);
        let mut output = Output::default();
        let mut take = |deltas: Vec<Delta>| {
            for delta in deltas {
                match delta {
                    Delta::Content(text) => output.content += &text,
                    Delta::Reasoning(text) => *output.reasoning.get_or_insert_default() += &text,
                    Delta::ToolCall(call) => output.tool_calls.push(call),
                }
            }
        };
        for piece in pieces {
            match piece {
                Ok(text) => text.chars().for_each(|c| take(parser.push(&c.to_string()))),
                Err(mark) => take(parser.push_mark(mark)),
            }
        }
        take(parser.finish());
        output
    }

    #[test]
    fn marks_that_are_control_tokens_part_an_answer_as_marks_in_its_text_do() {
        let call = r#"{"name": "get_weather", "arguments": {"city": "Rome"}}"#;
        let list = format!("[{call}]");
        let pieces: [(Family, Vec<Piece<'_>>); 4] = [
            (
                Family::Phi4,
                vec![Ok("Yes. \n"), Err("<|tool_call|>"), Ok(&list), Err("<|/tool_call|>")],
            ),
            (Family::Phi4, vec![Ok("Yes. "), Err("<|tool_call|>"), Ok(&list)]),
            (Family::Llama3, vec![Ok("Yes."), Err("<|python_tag|>"), Ok(call)]),
            (
                Family::Hermes,
                vec![
                    Ok("\n"),
                    Err("<think>"),
                    Ok("\nhm\n"),
                    Err("</think>"),
                    Ok("\n\nYes.\n"),
                    Err("<tool_call>"),
                    Ok(call),
                    Err("</tool_call>"),
                ],
            ),
        ];
        for (family, pieces) in pieces {
            let output = parse_pieces(family, Tools::Offered, &pieces);
            assert_eq!(output.tool_calls, [weather("Rome")], "{family:?}");
            assert_eq!(output.content, "Yes.", "{family:?}");
            let thought = (family == Family::Hermes).then_some("hm");
            assert_eq!(output.reasoning.as_deref(), thought);
        }
    }

    #[test]
    fn a_control_token_is_never_content() {
        let none = |family, tools, pieces: &[Piece<'_>], content: &str| {
            let output = parse_pieces(family, tools, pieces);
            assert_eq!(output.content, content, "{family:?} {pieces:?}");
            assert!(output.tool_calls.is_empty() && output.reasoning.is_none());
        };
        let (open, close) = (Err("<|tool_call|>"), Err("<|/tool_call|>"));
        none(
            Family::Phi4,
            Tools::Offered,
            &[Ok("a "), open, Ok("[1] b"), close, Ok(" c")],
            "a [1] b c",
        );
        none(Family::Phi4, Tools::Offered, &[Ok("a "), open, Ok("b")], "a b");
        none(Family::Phi4, Tools::None, &[Ok("a"), open, Ok("b"), close], "ab");
        none(Family::Hermes, Tools::Offered, &[Ok("a"), Err("<think>"), Ok("b")], "ab");
        none(Family::Plain, Tools::Offered, &[Err("</think>"), open, Ok("b")], "b");
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
