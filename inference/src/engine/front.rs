//! What callers need of a loaded model before their request reaches the engine's thread.

use std::collections::BTreeMap;
use std::ops::Deref;
use std::sync::atomic::{AtomicUsize, Ordering};
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
    /// Requests on their way to the engine's thread.
    coming: AtomicUsize,
}

/// A request on its way to the engine's thread. Its model is not unloaded for being idle meanwhile.
#[derive(Debug)]
pub(crate) struct Coming(Arc<Front>);

impl Deref for Coming {
    type Target = Front;

    fn deref(&self) -> &Front {
        &self.0
    }
}

impl Clone for Coming {
    fn clone(&self) -> Self {
        self.0.coming.fetch_add(1, Ordering::AcqRel);
        Self(Arc::clone(&self.0))
    }
}

impl Drop for Coming {
    fn drop(&mut self) {
        self.0.coming.fetch_sub(1, Ordering::AcqRel);
    }
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
        let (vocabulary, coming) = (OnceLock::new(), AtomicUsize::new(0));
        Self {
            name,
            ordinal,
            tokenizer,
            template,
            pooling,
            context_tokens,
            vocab_len,
            vocabulary,
            coming,
        }
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

    /// The front of a model that a request is on its way to.
    pub(crate) fn enter(&self, name: &str) -> Option<Coming> {
        let all = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let front = all.get(name)?;
        front.coming.fetch_add(1, Ordering::AcqRel);
        Some(Coming(Arc::clone(front)))
    }

    /// Whether a request is on its way to a model.
    pub(crate) fn is_awaited(&self, name: &str) -> bool {
        self.get(name).is_some_and(|front| front.coming.load(Ordering::Acquire) > 0)
    }

    /// Removes a model's front unless a request is on its way to it; says whether it is gone.
    pub(crate) fn retire(&self, name: &str) -> bool {
        let mut all = self.0.write().unwrap_or_else(PoisonError::into_inner);
        // Nobody enters while the lock is held.
        if all.get(name).is_some_and(|front| front.coming.load(Ordering::Acquire) > 0) {
            return false;
        }
        all.remove(name);
        true
    }

    pub(crate) fn insert(&self, front: Arc<Front>) {
        let mut all = self.0.write().unwrap_or_else(PoisonError::into_inner);
        all.insert(front.name.clone(), front);
    }

    pub(crate) fn remove(&self, name: &str) {
        self.0.write().unwrap_or_else(PoisonError::into_inner).remove(name);
    }
}
