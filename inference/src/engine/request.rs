//! What a caller asks of the engine and what comes back.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::chat::ToolOffer;

/// One request to generate text.
#[derive(Debug, Clone)]
pub struct Request {
    /// Name under which the model was loaded.
    pub model: String,
    /// What the model is to go on from.
    pub prompt: Prompt,
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// Tokens generated at most; `None`: until the context is full.
    pub max_tokens: Option<u32>,
    /// Texts that end the answer; they are not part of it. At most [`STOPS_MAX`], none empty.
    pub stop: Vec<String>,
    /// What the answer must look like.
    pub constraint: Option<Constraint>,
    /// Log-probabilities wanted: of the chosen token and of this many most likely ones
    /// (at most [`LOGPROBS_MAX`]).
    pub logprobs: Option<u8>,
    /// Who asks: fair shares are between principals.
    pub principal: String,
    /// Higher goes first; within one priority, principals share fairly.
    pub priority: u8,
    /// Milliseconds from now after which the answer ends with [`FinishReason::Deadline`].
    pub deadline_ms: Option<u64>,
}

/// Stop strings of one request at most.
pub const STOPS_MAX: usize = 16;
/// Bytes of one stop string at most.
pub const STOP_BYTES_MAX: usize = 1024;
/// Most likely tokens reported per token at most.
pub const LOGPROBS_MAX: u8 = 20;
/// Entries of a logit bias at most.
pub const LOGIT_BIAS_MAX: usize = 1024;

impl Default for Request {
    fn default() -> Self {
        Self {
            model: String::new(),
            prompt: Prompt::Text(String::new()),
            sampling: Sampling::default(),
            max_tokens: None,
            stop: Vec::new(),
            constraint: None,
            logprobs: None,
            principal: String::new(),
            priority: PRIORITY_DEFAULT,
            deadline_ms: None,
        }
    }
}

/// Priority of a request that names none: the middle of the range.
pub const PRIORITY_DEFAULT: u8 = 128;

/// What the model goes on from.
#[derive(Debug, Clone)]
pub enum Prompt {
    /// Messages in the shape of OpenAI's chat API, rendered by the model's own template.
    Chat {
        /// The conversation, oldest first.
        messages: Vec<Value>,
        /// Tools that the model may or must call.
        tools: Option<ToolOffer>,
        /// More names for the template, such as `enable_thinking`. Null or an object.
        template_kwargs: Value,
    },
    /// Raw text: special tokens are not parsed, the beginning token is added where the model
    /// wants one.
    Text(String),
    /// Token ids, taken as they are.
    Tokens(Vec<u32>),
}

/// How the next token is chosen. The order is: penalties, bias, constraint, top-k, temperature,
/// top-p, min-p.
#[derive(Debug, Clone, PartialEq)]
pub struct Sampling {
    /// 0: always the most likely token. At least 0.
    pub temperature: f32,
    /// Only this many most likely tokens; 0: all.
    pub top_k: u32,
    /// Only the most likely tokens that make up this mass, in 0..=1; 1: all.
    pub top_p: f32,
    /// Only tokens at least this likely relative to the most likely one, in 0..=1; 0: all.
    pub min_p: f32,
    /// Divides (or multiplies, where negative) the logits of recent tokens; 1: none. Above 0.
    pub repeat_penalty: f32,
    /// How many of the last tokens, prompt included, `repeat_penalty` looks at.
    pub repeat_last_n: u32,
    /// Subtracted from the logit of every token generated so far; 0: none.
    pub presence_penalty: f32,
    /// Subtracted once per occurrence among the generated tokens; 0: none.
    pub frequency_penalty: f32,
    /// Added to the logits of these tokens.
    pub logit_bias: Vec<(u32, f32)>,
    /// Same seed, same text, whatever else is in the batch. `None`: a fresh one.
    pub seed: Option<u64>,
}

impl Default for Sampling {
    fn default() -> Self {
        Self {
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repeat_penalty: 1.0,
            repeat_last_n: 64,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            logit_bias: Vec::new(),
            seed: None,
        }
    }
}

impl Sampling {
    /// Always the most likely token.
    #[must_use]
    pub fn greedy() -> Self {
        Self { temperature: 0.0, ..Self::default() }
    }
}

/// What a finished answer must look like.
#[derive(Debug, Clone, PartialEq)]
pub enum Constraint {
    /// Valid under this JSON schema.
    JsonSchema(Value),
    /// Any JSON value.
    Json,
    /// Matches this regular expression, in the syntax of the `regex` crate.
    Regex(String),
    /// Follows this Lark grammar (llguidance's dialect).
    Lark(String),
    /// Follows this GBNF grammar (llama.cpp's).
    Gbnf(String),
}

/// What a [`Generation`](super::Generation) yields: `Started`, then tokens, then exactly one of
/// `Done` and `Failed`.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// The request left the queue.
    Started {
        /// Tokens of the prompt.
        prompt_tokens: u32,
        /// How many of them were found in the prefix cache.
        cached_tokens: u32,
    },
    /// One token.
    Token {
        /// Text that became certain with this token. Empty while a character is incomplete or
        /// while the text may still turn out to be a stop string.
        text: String,
        /// The token's id.
        id: u32,
        /// Which mark around reasoning or a call the token is, behind the text, where it is a
        /// control token and so none of the text: for
        /// [`OutputParser::push_mark`](crate::chat::OutputParser::push_mark), not to be shown.
        mark: Option<&'static str>,
        /// When asked for.
        logprob: Option<Logprobs>,
    },
    /// The answer is complete.
    Done {
        /// Why it ended.
        reason: FinishReason,
        /// What it took.
        usage: Usage,
    },
    /// This request failed; others go on.
    Failed {
        /// Why, to follow "failed to generate:".
        message: String,
    },
}

/// Log-probabilities of one position, of the model's own distribution (before penalties,
/// temperature and constraint).
#[derive(Debug, Clone, PartialEq)]
pub struct Logprobs {
    /// Of the chosen token.
    pub chosen: f32,
    /// The chosen token's bytes, which need not be whole characters.
    pub bytes: Vec<u8>,
    /// The most likely tokens, best first.
    pub top: Vec<TopToken>,
}

/// One of the most likely tokens at a position.
#[derive(Debug, Clone, PartialEq)]
pub struct TopToken {
    /// The token's id.
    pub id: u32,
    /// Its log-probability.
    pub logprob: f32,
    /// Its bytes, which need not be whole characters.
    pub bytes: Vec<u8>,
}

/// Why an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FinishReason {
    /// An end token, a stop string, or the constraint was fulfilled.
    Stop,
    /// `max_tokens` or the context's end.
    Length,
    /// The model was unloaded or the engine shut down. (When the caller goes, nobody is told.)
    Cancelled,
    /// `deadline_ms` passed.
    Deadline,
}

/// What an answer took.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Usage {
    /// Tokens of the prompt.
    pub prompt_tokens: u32,
    /// Tokens generated, an end token included.
    pub completion_tokens: u32,
    /// Prompt tokens that came from the prefix cache.
    pub cached_tokens: u32,
    /// From acceptance to the first token, the time in the queue left out.
    pub prompt_ms: u64,
    /// From the first token to the last, in microseconds: a small model is done within a millisecond.
    pub decode_us: u64,
    /// In the queue.
    pub queue_ms: u64,
}

/// Why a request was not accepted. Nothing was computed.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Refused {
    /// The queue is full.
    #[error("queue is full: {len} requests wait, at most {max}; retry in {retry_after_ms} ms")]
    QueueFull {
        /// Requests waiting.
        len: usize,
        /// Limit on them.
        max: usize,
        /// When a place is likely to be free.
        retry_after_ms: u64,
    },
    /// The prompts that wait, and constraints, hold too many bytes.
    #[error(
        "queue is full: waiting prompts and constraints hold {bytes} bytes, at most {bytes_max}; \
         retry in {retry_after_ms} ms"
    )]
    QueueBytes {
        /// Bytes that the queue would hold with this request.
        bytes: u64,
        /// Limit on them.
        bytes_max: u64,
        /// When room is likely to be free.
        retry_after_ms: u64,
    },
    /// No model of this name is loaded.
    #[error("model \"{name}\" is not loaded")]
    ModelNotLoaded {
        /// The name asked for.
        name: String,
    },
    /// The prompt leaves no room for an answer.
    #[error(
        "prompt has {tokens} tokens; the context holds {tokens_max}, one of them for the answer"
    )]
    PromptTooLong {
        /// Tokens of the prompt.
        tokens: usize,
        /// Tokens of the context.
        tokens_max: usize,
    },
    /// A field is out of its range or contradicts the model.
    #[error("{field}: {reason}")]
    Invalid {
        /// The field of [`Request`].
        field: &'static str,
        /// What was found, what was expected.
        reason: String,
    },
    /// The chat template refused the messages.
    #[error("{0}")]
    Template(String),
    /// The grammar or schema can't be used.
    #[error("compile the constraint: {0}")]
    Constraint(#[from] crate::constraint::ConstraintError),
    /// The engine is shutting down.
    #[error("engine is shutting down")]
    ShuttingDown,
}

/// Texts to turn into vectors.
#[derive(Debug, Clone)]
pub struct EmbedRequest {
    /// Name under which the model was loaded.
    pub model: String,
    /// One vector each.
    pub inputs: Vec<Prompt>,
    /// Who asks.
    pub principal: String,
    /// Higher goes first.
    pub priority: u8,
    /// Milliseconds from now after which the request fails.
    pub deadline_ms: Option<u64>,
}

/// Vectors of the model's hidden width, each of Euclidean length 1.
#[derive(Debug, Clone, PartialEq)]
pub struct Embeddings {
    /// One per input, in order.
    pub vectors: Vec<Vec<f32>>,
    /// Tokens of all inputs.
    pub prompt_tokens: u32,
}

/// Why there are no vectors.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum EmbedError {
    /// Not accepted.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// Accepted, but `deadline_ms` passed.
    #[error("compute embeddings: the deadline passed")]
    Late,
    /// Accepted, but failed or ended early.
    #[error("compute embeddings: {0}")]
    Failed(String),
}
