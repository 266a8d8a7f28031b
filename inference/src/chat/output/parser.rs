//! The parser of an answer that comes in pieces.

use super::family::{CLOSE, END, Family, OPEN};
use super::parse::{marked_calls, whole_calls};
use super::{Delta, Start, ToolCall, Tools};
use crate::chat::calls::Calls;

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
