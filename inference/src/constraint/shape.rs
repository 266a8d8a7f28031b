//! What a whole answer must look like: reasoning that may stand before it, calls of tools, and the
//! constraint that the request names.

use llguidance::api::{GrammarWithLexer, TopLevelGrammar};
use serde_json::{Value, json};

use super::schema::Document;
use super::{ConstraintError, Guide, Vocabulary, grammar};
use crate::chat;
pub(super) use crate::chat::{THOUGHT_CLOSE as CLOSE, THOUGHT_OPEN as OPEN};
use crate::engine::Constraint;

/// What an answer must follow. By default, nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct Shape<'a> {
    /// What the request asks of the content.
    pub constraint: Option<&'a Constraint>,
    /// Calls of tools, as a Lark grammar.
    pub calls: Option<&'a str>,
    /// Reasoning before either.
    pub reasoning: Reasoning,
}

/// Whether reasoning may stand before what is constrained. It is free itself, but for its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Reasoning {
    /// It may not.
    #[default]
    None,
    /// It may, from `<think>` on.
    Possible,
    /// The prompt has opened it: the answer must close it.
    Begun,
}

/// A schema of a tool's arguments, readied for the compiler, and spaced as templates write JSON.
pub(crate) fn arguments(schema: &Value) -> Value {
    // One that is refused was refused before it came here.
    let compiled = Document::open(schema).and_then(|document| document.compiled(&document.start()));
    let mut schema = compiled.unwrap_or(Value::Bool(false));
    if let Some(options) = schema.get_mut("x-guidance").and_then(Value::as_object_mut) {
        options.insert("item_separator".into(), json!(", "));
        options.insert("key_separator".into(), json!(": "));
    }
    schema
}

impl Vocabulary {
    /// Compiles all that an answer must follow; `None`: it is free.
    ///
    /// # Errors
    /// [`ConstraintError`].
    pub fn compile_shape(&self, shape: &Shape<'_>) -> Result<Option<Guide>, ConstraintError> {
        let named = |name: &str, grammar: TopLevelGrammar| {
            let one = grammar.grammars.into_iter().next().unwrap_or_default();
            GrammarWithLexer { name: Some(name.to_owned()), ..one }
        };
        let lark = |text: &str| {
            TopLevelGrammar::from_grammar(GrammarWithLexer::from_lark(text.to_owned()))
        };
        let content = shape.constraint.map(grammar).transpose()?.map(|g| named("content", g));
        let calls = shape.calls.map(|text| named("calls", lark(text)));
        let answer = match (&calls, &content) {
            (None, None) => return Ok(None),
            (Some(_), Some(_)) => "@calls | @content",
            (Some(_), None) => "@calls",
            (None, Some(_)) => "@content",
        };
        let thought = self.thought();
        let main = match shape.reasoning {
            Reasoning::None => format!("start: {answer}\n"),
            Reasoning::Possible => format!(
                "start: answer | {} thought blank answer\nanswer: {answer}\n{thought}",
                chat::lark_mark(OPEN, self.mark(OPEN)),
            ),
            Reasoning::Begun => {
                format!("start: thought blank answer\nanswer: {answer}\n{thought}")
            }
        };
        let mut whole = lark(&main);
        whole.grammars.extend(calls);
        whole.grammars.extend(content);
        let is_json = shape
            .constraint
            .is_none_or(|c| matches!(c, Constraint::JsonSchema(_) | Constraint::Json));
        let json = is_json.then_some(shape.reasoning);
        self.build(whole, json).map(Some).map_err(|reason| self.blame(shape.constraint, reason))
    }

    /// The Lark rules of reasoning, from behind its opening to behind its end, be that written out
    /// or the vocabulary's own token.
    fn thought(&self) -> String {
        let written = format!("written[suffix=\"{CLOSE}\"]: /(?s:.*)/\nblank: /\\s{{0,2}}/\n");
        match self.mark(CLOSE) {
            Some(id) => format!("thought: written | (/(?s:.+)/)? <[{id}]>\n{written}"),
            None => format!("thought: written\n{written}"),
        }
    }
}
