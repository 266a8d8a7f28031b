//! Constrained output: from a schema or grammar to a mask over the vocabulary.

/// Why a constraint can't be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConstraintError {
    /// The JSON schema uses something that can't be enforced.
    #[error("schema keyword \"{keyword}\" is not supported: {reason}")]
    Keyword {
        /// The keyword to blame.
        keyword: String,
        /// What the compiler said.
        reason: String,
    },
    /// The schema, regular expression or grammar is not well formed, or too big.
    #[error("{0}")]
    Grammar(String),
}
