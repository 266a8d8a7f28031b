//! What each family of models writes around reasoning and calls.

/// Where reasoning begins.
pub(crate) const OPEN: &str = "<think>";
/// Where it ends.
pub(crate) const CLOSE: &str = "</think>";

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

    /// Marks around a call, anywhere in the answer.
    pub(super) fn marks(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Self::Plain | Self::Gemma => &[],
            Self::Hermes => &[("<tool_call>", "</tool_call>")],
            Self::Llama3 => &[("<|python_tag|>", END), ("<function=", "</function>")],
            Self::Phi4 => &[("<|tool_call|>", "<|/tool_call|>"), ("functools[", END)],
        }
    }

    /// The number of the mark that begins so.
    pub(super) fn opened_by(self, open: &str) -> Option<usize> {
        self.marks().iter().position(|(mark, _)| *mark == open)
    }

    /// What an answer begins with that may as a whole be calls.
    pub(super) fn whole_starts(self) -> &'static [&'static str] {
        match self {
            Self::Llama3 => &["{"],
            Self::Gemma => &["{", "[", "```json", "```tool_code", "```tool_call"],
            // The model may leave the marks out.
            Self::Phi4 => &["[{"],
            Self::Plain | Self::Hermes => &[],
        }
    }
}

/// Stands for a closing mark that is the end of the answer.
pub(super) const END: &str = "";

/// Marks that vocabularies have tokens for.
pub(crate) const MARKS: [&str; 7] = [
    OPEN,
    CLOSE,
    "<tool_call>",
    "</tool_call>",
    "<|python_tag|>",
    "<|tool_call|>",
    "<|/tool_call|>",
];

/// The mark that a token of these bytes is.
pub(crate) fn mark(token: &[u8]) -> Option<&'static str> {
    MARKS.into_iter().find(|mark| mark.as_bytes() == token)
}
