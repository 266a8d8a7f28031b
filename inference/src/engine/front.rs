//! What callers need of a loaded model before their request reaches the engine's thread.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock, PoisonError, RwLock};

use crate::chat::{self, ChatTemplate};
use crate::constraint::{ConstraintError, Vocabulary};
use crate::model::Pooling;
use crate::tokenizer::Tokenizer;

#[derive(Debug)]
pub(crate) struct Front {
    pub(crate) name: String,
    /// Tells a model from an earlier one of the same name.
    pub(crate) ordinal: u64,
    pub(crate) tokenizer: Arc<Tokenizer>,
    /// The file's chat template; a broken one refuses conversations, not the model.
    pub(crate) template: Result<Option<ChatTemplate>, String>,
    pub(crate) pooling: Pooling,
    pub(crate) context_tokens: usize,
    /// Rows of the logits: at least the tokenizer's tokens.
    pub(crate) vocab_len: usize,
    /// Built when the first constraint comes.
    vocabulary: OnceLock<Result<Vocabulary, ConstraintError>>,
}

impl Front {
    pub(crate) fn new(
        name: String,
        ordinal: u64,
        tokenizer: Arc<Tokenizer>,
        template: Result<Option<ChatTemplate>, String>,
        pooling: Pooling,
        context_tokens: usize,
        vocab_len: usize,
    ) -> Self {
        let vocabulary = OnceLock::new();
        Self { name, ordinal, tokenizer, template, pooling, context_tokens, vocab_len, vocabulary }
    }

    /// Bytes of the tables of tokenizer and constraints, as far as they were built.
    pub(crate) fn held_bytes(&self) -> u64 {
        let vocabulary = self.vocabulary.get().and_then(|built| built.as_ref().ok());
        self.tokenizer.held_bytes() + vocabulary.map_or(0, Vocabulary::held_bytes)
    }

    /// The model's vocabulary, ready to compile constraints against.
    pub(crate) fn vocabulary(&self) -> Result<&Vocabulary, ConstraintError> {
        let vocabulary = self.vocabulary.get_or_init(|| {
            let count = self.tokenizer.vocab_len() as u32;
            // Tokens that are not text can't be part of a constrained one, but marks around it.
            let tokenizer = &self.tokenizer;
            let word = |id| if tokenizer.is_reserved(id) { &[] } else { tokenizer.token_bytes(id) };
            let words: Vec<Vec<u8>> = (0..count).map(|id| word(id).to_vec()).collect();
            let mark = |text| Some((tokenizer.special(text)?, text));
            let is_mark = |(id, _): &(u32, _)| tokenizer.is_reserved(*id) && !tokenizer.is_end(*id);
            let marks = chat::MARKS.into_iter().filter_map(mark).filter(is_mark).collect();
            Vocabulary::with_marks(words, tokenizer.ends(), marks)
        });
        vocabulary.as_ref().map_err(Clone::clone)
    }
}

/// All loaded models' fronts, by name.
#[derive(Debug, Default)]
pub(crate) struct Fronts(RwLock<BTreeMap<String, Arc<Front>>>);

impl Fronts {
    pub(crate) fn get(&self, name: &str) -> Option<Arc<Front>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).get(name).cloned()
    }

    pub(crate) fn insert(&self, front: Arc<Front>) {
        let mut all = self.0.write().unwrap_or_else(PoisonError::into_inner);
        all.insert(front.name.clone(), front);
    }

    pub(crate) fn remove(&self, name: &str) {
        self.0.write().unwrap_or_else(PoisonError::into_inner).remove(name);
    }
}
