//! Prompts without a conversation, as OpenAI's completions and embeddings take them.

use fulmar_inference::engine::Prompt;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// One prompt or several, as text or as tokens.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(
    untagged,
    expecting = "expected a text, a list of texts, a list of token ids, or a list of such lists"
)]
pub(crate) enum Prompts {
    Text(String),
    Texts(Vec<String>),
    Tokens(Vec<u32>),
    TokenLists(Vec<Vec<u32>>),
}

impl Prompts {
    /// Each prompt, with what the client wrote for it.
    pub(crate) fn each(&self) -> Vec<(Prompt, Value)> {
        let text = |text: &String| (Prompt::Text(text.clone()), json!(text));
        let tokens = |ids: &Vec<u32>| (Prompt::Tokens(ids.clone()), json!(ids));
        match self {
            Self::Text(one) => vec![text(one)],
            Self::Texts(many) => many.iter().map(text).collect(),
            Self::Tokens(one) => vec![tokens(one)],
            Self::TokenLists(many) => many.iter().map(tokens).collect(),
        }
    }
}
