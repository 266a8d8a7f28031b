//! Constrained output: from a schema or grammar to a mask over the vocabulary.
//!
//! llguidance does the work. A [`Vocabulary`] is built once per model; each constrained sequence
//! has its own [`Guide`]. Invariants:
//! - Every token a guide allows leads to a text that can still be finished; an end token is allowed
//!   only where the text is complete. So an answer that ended by itself is valid; one cut by
//!   `max_tokens` says so.
//! - Numbers in JSON have at most 15 digits and exponents below 100, where the schema leaves the
//!   choice: what every reader reads the same.
//! - What can't be enforced is refused, with the keyword to blame, not ignored.
//! - A schema or grammar is bounded in size and depth before a recursive parser sees it.

mod blame;
mod gbnf;
mod numbers;
mod schema;
mod shape;

use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use llguidance::api::{GrammarWithLexer, StopReason, TopLevelGrammar};
use llguidance::{Matcher, ParserFactory};
use serde_json::Value;
use toktrie::{InferenceCapabilities, SimpleVob, TokRxInfo, TokTrie, TokenizerEnv};

use crate::engine::Constraint;
use crate::held;
use numbers::NumberGuard;
use schema::Document;

pub(crate) use shape::arguments;
pub use shape::{Reasoning, Shape};

/// Bytes of a schema or grammar at most.
pub const GRAMMAR_BYTES_MAX: usize = 512 * 1024;
/// Nesting of a schema's values or a grammar's brackets at most.
pub const GRAMMAR_DEPTH_MAX: usize = 64;

/// Why a constraint can't be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConstraintError {
    /// The JSON schema uses something that can't be enforced.
    #[error("schema keyword \"{keyword}\" at {pointer:?} is not supported here: {reason}")]
    Keyword {
        /// The keyword to blame.
        keyword: String,
        /// Where it stands in the schema: a JSON pointer.
        pointer: String,
        /// Why.
        reason: String,
    },
    /// The schema, regular expression or grammar is not well formed, or can't be fulfilled.
    #[error("{0}")]
    Grammar(String),
    /// It is too big.
    #[error("grammar has {found} {what}, at most {max}")]
    TooBig {
        /// Of what: bytes, or levels of nesting.
        what: &'static str,
        /// How many.
        found: usize,
        /// Limit.
        max: usize,
    },
    /// The model has no end token, so a constrained answer could not end.
    #[error("the model's vocabulary can't be constrained: {0}")]
    Vocabulary(String),
}

/// A model's vocabulary, ready to compile constraints against.
pub struct Vocabulary {
    factory: ParserFactory,
    words: Arc<Words>,
    marks: Vec<(u32, &'static str)>,
    held_bytes: u64,
}

/// Tokens' bytes, those of marks too, and which of them have digits.
struct Words {
    all: Vec<Vec<u8>>,
    with_digits: Vec<u32>,
}

impl std::fmt::Debug for Vocabulary {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Vocabulary")
    }
}

/// The trie alone: tokens are not forced ahead, so no canonical tokenisation is needed.
struct Trie(TokTrie);

impl TokenizerEnv for Trie {
    fn tok_trie(&self) -> &TokTrie {
        &self.0
    }

    fn tokenize_bytes(&self, s: &[u8]) -> Vec<u32> {
        self.0.greedy_tokenize(s)
    }

    fn tokenize_is_canonical(&self) -> bool {
        false
    }
}

impl Vocabulary {
    /// `words` are the tokens' bytes by id, empty for tokens that never stand for text (special
    /// ones); `ends` the tokens that end an answer.
    ///
    /// # Errors
    /// [`ConstraintError::Vocabulary`].
    pub fn new(words: Vec<Vec<u8>>, ends: &[u32]) -> Result<Self, ConstraintError> {
        Self::with_marks(words, ends, Vec::new())
    }

    /// The same with `marks`: tokens that are not text, and that the marks around reasoning and
    /// calls may be. They come where a mark may stand, and nowhere else.
    ///
    /// # Errors
    /// [`ConstraintError::Vocabulary`].
    pub(crate) fn with_marks(
        mut words: Vec<Vec<u8>>,
        ends: &[u32],
        marks: Vec<(u32, &'static str)>,
    ) -> Result<Self, ConstraintError> {
        let refuse = |text: &str| ConstraintError::Vocabulary(text.to_owned());
        let count = u32::try_from(words.len()).map_err(|_| refuse("it is too big"))?;
        let ends: Vec<u32> = ends.iter().copied().filter(|&id| id < count).collect();
        let Some(&end) = ends.first() else { return Err(refuse("it has no end token")) };
        let build = || {
            let trie = TokTrie::from(&TokRxInfo::new(count, end), &words).with_eos_tokens(&ends);
            let env: toktrie::TokEnv = Arc::new(Trie(trie));
            let slices = llguidance::earley::SlicedBiasComputer::general_slices();
            ParserFactory::new(&env, InferenceCapabilities::default(), &slices)
        };
        let mut factory =
            guarded(build)?.map_err(|e| ConstraintError::Vocabulary(e.to_string()))?;
        factory.quiet();
        factory.limits_mut().verbose_errors = false;
        let digits = |id: &u32| words[*id as usize].iter().any(u8::is_ascii_digit);
        let with_digits = (0..count).filter(digits).collect();
        for (id, mark) in &marks {
            words[*id as usize] = mark.as_bytes().to_vec();
        }
        let words = Words { all: words, with_digits };
        let held_bytes = trie_bytes(factory.tok_env().tok_trie()) + words.held_bytes();
        Ok(Self { factory, words: Arc::new(words), marks, held_bytes })
    }

    /// Bytes of its tables: the tokens' bytes and their tree. The smaller trees that llguidance cuts
    /// out of that one are its own, and are not among them.
    pub(crate) fn held_bytes(&self) -> u64 {
        self.held_bytes
    }

    /// The token that is this mark.
    pub(crate) fn mark(&self, text: &str) -> Option<u32> {
        self.marks.iter().find(|(_, mark)| *mark == text).map(|(id, _)| *id)
    }

    /// Compiles a constraint.
    ///
    /// # Errors
    /// [`ConstraintError`].
    pub fn compile(&self, constraint: &Constraint) -> Result<Guide, ConstraintError> {
        let is_json = matches!(constraint, Constraint::JsonSchema(_) | Constraint::Json);
        self.build(grammar(constraint)?, is_json.then_some(Reasoning::None))
            .map_err(|reason| self.blame(Some(constraint), reason))
    }

    /// `json`: the text is JSON, so that its numbers are kept short; reasoning before it is not.
    /// What comes back instead of a guide is what the compiler said.
    fn build(&self, grammar: TopLevelGrammar, json: Option<Reasoning>) -> Result<Guide, String> {
        // The compiler is not written for hostile input everywhere; a panic of its is a refusal.
        let parser = guarded(|| self.factory.create_parser(grammar))
            .map_err(|error| error.to_string())?
            .map_err(|error| error.to_string())?;
        let matcher = Matcher::new(Ok(parser));
        if let Some(reason) = matcher.get_error() {
            return Err(reason);
        }
        let numbers = json.map(|reasoning| Numbers {
            guard: NumberGuard::default(),
            words: Arc::clone(&self.words),
            before: (reasoning != Reasoning::None).then(|| (reasoning, Vec::new())),
        });
        Ok(Guide { matcher, mask: SimpleVob::new(), numbers })
    }
}

impl Words {
    fn held_bytes(&self) -> u64 {
        let each: u64 = self.all.iter().map(held::of_vec).sum();
        each + held::of_vec(&self.all) + held::of_vec(&self.with_digits)
    }
}

/// Bytes of a tree's nodes and of its tokens' table.
fn trie_bytes(trie: &TokTrie) -> u64 {
    let nodes = trie.root().subtree_size() * size_of_val(trie.root());
    let tokens = (0..trie.vocab_size() as u32).map(|id| trie.token_len(id)).sum::<usize>();
    // A token's place and length, and its number in the order of their bytes.
    (nodes + tokens + trie.vocab_size() * 3 * size_of::<u32>()) as u64
}

/// The compiler is not written for hostile input everywhere; a panic of its is a refusal.
fn guarded<T>(work: impl FnOnce() -> T) -> Result<T, ConstraintError> {
    std::panic::catch_unwind(AssertUnwindSafe(work))
        .map_err(|_| ConstraintError::Grammar("the grammar compiler gave up".to_owned()))
}

fn grammar(constraint: &Constraint) -> Result<TopLevelGrammar, ConstraintError> {
    Ok(match constraint {
        Constraint::JsonSchema(schema) => {
            check_depth(schema)?;
            check_bytes(schema.to_string().len())?;
            let document = Document::open(schema)?;
            TopLevelGrammar::from_json_schema(document.compiled(&document.start())?)
        }
        Constraint::Json => {
            let any = Value::Bool(true);
            let document = Document::open(&any)?;
            TopLevelGrammar::from_json_schema(document.compiled(&document.start())?)
        }
        Constraint::Regex(regex) => {
            check_text(regex)?;
            TopLevelGrammar::from_regex(regex)
        }
        Constraint::Lark(lark) => {
            check_text(lark)?;
            TopLevelGrammar::from_grammar(GrammarWithLexer::from_lark(lark.clone()))
        }
        Constraint::Gbnf(text) => {
            check_text(text)?;
            let lark = gbnf::to_lark(text)
                .map_err(|e| ConstraintError::Grammar(format!("read GBNF: {e}")))?;
            TopLevelGrammar::from_grammar(GrammarWithLexer::from_lark(lark))
        }
    })
}

fn check_bytes(found: usize) -> Result<(), ConstraintError> {
    if found > GRAMMAR_BYTES_MAX {
        return Err(ConstraintError::TooBig { what: "bytes", found, max: GRAMMAR_BYTES_MAX });
    }
    Ok(())
}

fn too_deep(found: usize) -> Result<(), ConstraintError> {
    if found > GRAMMAR_DEPTH_MAX {
        let max = GRAMMAR_DEPTH_MAX;
        return Err(ConstraintError::TooBig { what: "levels of nesting", found, max });
    }
    Ok(())
}

fn check_depth(schema: &Value) -> Result<(), ConstraintError> {
    let mut level: Vec<&Value> = vec![schema];
    let mut depth = 0;
    while !level.is_empty() {
        depth += 1;
        too_deep(depth)?;
        let inner = |v: &&Value| matches!(v, Value::Array(_) | Value::Object(_));
        level = level
            .into_iter()
            .flat_map(|v| match v {
                Value::Array(items) => items.iter().filter(inner).collect::<Vec<_>>(),
                Value::Object(fields) => fields.values().filter(inner).collect(),
                _ => Vec::new(),
            })
            .collect();
    }
    Ok(())
}

fn check_text(text: &str) -> Result<(), ConstraintError> {
    check_bytes(text.len())?;
    let (mut depth, mut deepest) = (0usize, 0);
    for byte in text.bytes() {
        match byte {
            b'(' | b'[' | b'{' => depth += 1,
            b')' | b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        deepest = deepest.max(depth);
    }
    too_deep(deepest)
}

fn first_lines(message: &str) -> String {
    let text: Vec<&str> =
        message.lines().map(str::trim).filter(|l| !l.is_empty()).take(2).collect();
    let text = text.join("; ");
    match text.char_indices().nth(300) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text,
    }
}

/// Where one answer stands in its grammar.
pub struct Guide {
    matcher: Matcher,
    mask: SimpleVob,
    /// For JSON only.
    numbers: Option<Numbers>,
}

/// Keeps numbers short.
struct Numbers {
    guard: NumberGuard,
    words: Arc<Words>,
    /// The text so far, as much as counts, while it is or may become reasoning.
    before: Option<(Reasoning, Vec<u8>)>,
}

impl Numbers {
    fn narrow(&self, mask: &mut SimpleVob) {
        if self.before.is_none() {
            let words = &self.words;
            let tokens =
                words.with_digits.iter().map(|&id| (id, words.all[id as usize].as_slice()));
            self.guard.narrow(mask, tokens);
        }
    }

    fn take(&mut self, token: u32) {
        let bytes = self.words.all.get(token as usize).map_or(&[][..], Vec::as_slice);
        let Some((reasoning, before)) = &mut self.before else {
            self.guard.take(bytes);
            return;
        };
        before.extend_from_slice(bytes);
        if *reasoning == Reasoning::Possible {
            let open = shape::OPEN.as_bytes();
            if before.starts_with(open) {
                *reasoning = Reasoning::Begun;
            } else if !open.starts_with(before) {
                self.guard.take(before);
                self.before = None;
                return;
            }
        }
        let close = shape::CLOSE.as_bytes();
        if let Some(at) = before.windows(close.len()).position(|window| window == close) {
            self.guard.take(&before[at + close.len()..]);
            self.before = None;
        } else if *reasoning == Reasoning::Begun {
            before.drain(..before.len().saturating_sub(close.len()));
        }
    }
}

impl std::fmt::Debug for Guide {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Guide")
    }
}

impl Guide {
    /// One bit per token, set where the token may come next. Where the text is complete and
    /// nothing may follow, only end tokens.
    ///
    /// # Errors
    /// What llguidance says when the grammar is too complex here.
    pub fn mask(&mut self) -> Result<&[u32], ConstraintError> {
        self.mask = self
            .matcher
            .compute_mask_or_eos()
            .map_err(|e| ConstraintError::Grammar(first_lines(&e.to_string())))?;
        if let Some(numbers) = &self.numbers {
            numbers.narrow(&mut self.mask);
        }
        Ok(self.mask.as_slice())
    }

    /// Takes a token that the mask allowed.
    ///
    /// # Errors
    /// When the token is not allowed.
    pub fn take(&mut self, token: u32) -> Result<Progress, ConstraintError> {
        self.matcher
            .consume_token(token)
            .map_err(|e| ConstraintError::Grammar(first_lines(&e.to_string())))?;
        if let Some(numbers) = &mut self.numbers {
            numbers.take(token);
        }
        match self.matcher.stop_reason() {
            StopReason::NotStopped => Ok(Progress::Open),
            StopReason::NoExtension | StopReason::EndOfSentence => Ok(Progress::Complete),
            other => Err(ConstraintError::Grammar(format!("it leads nowhere from here: {other}"))),
        }
    }
}

/// Where a text stands after a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// It may go on.
    Open,
    /// It is complete and nothing may follow.
    Complete,
}

#[cfg(test)]
mod tests;
