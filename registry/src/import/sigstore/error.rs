//! Why a keyless signature does not count: which step did not hold, what was expected there and
//! what was found.

/// Why a keyless signature was not accepted.
#[derive(Debug, thiserror::Error)]
pub enum SigstoreError {
    /// Nobody has said which Sigstore to trust.
    #[error(
        "no trusted root of Sigstore is known here; name a trusted_root.json in \
         registry.signing_trusted_roots (or --trusted-root), and whose signatures count in \
         registry.signing_identities (or --identity and --identity-provider)"
    )]
    NoRoot,
    /// Nobody has said whose signatures count.
    #[error(
        "no identity is accepted here; name issuer and subject in registry.signing_identities \
         (or --identity and --identity-provider)"
    )]
    NoIdentity,
    /// A trusted root that cannot be used.
    #[error("read the trusted root {path}: {reason}")]
    Root {
        /// The file.
        path: String,
        /// What is wrong with it.
        reason: String,
    },
    /// An accepted identity that cannot be used.
    #[error("read the accepted identity {identity}: {reason}")]
    Identity {
        /// As configured.
        identity: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A part of the bundle.
    #[error("{field} is {found}, expected {expected}")]
    Bundle {
        /// Which part.
        field: &'static str,
        /// What was found.
        found: String,
        /// What is accepted.
        expected: &'static str,
    },
    /// Nobody says when it was signed.
    #[error("nobody who is trusted says when it was signed: {reason}")]
    Time {
        /// What was looked at.
        reason: String,
    },
    /// Signed in the future.
    #[error(
        "it was signed at {signed}, this device's clock says {now}; set the clock if it is wrong"
    )]
    Future {
        /// When.
        signed: String,
        /// By the clock.
        now: String,
    },
    /// No certificate authority was valid then.
    #[error("no certificate authority is trusted for {time}; there are {found}")]
    Authority {
        /// The time of signing.
        time: String,
        /// Authorities and their periods.
        found: String,
    },
    /// The certificate does not lead to an authority.
    #[error(
        "the certificate of {subject} does not lead to a trusted authority at {time}: {reason}"
    )]
    Chain {
        /// Whom the certificate names.
        subject: String,
        /// The time of signing.
        time: String,
        /// What each authority said.
        reason: String,
    },
    /// The certificate is not in a certificate transparency log.
    #[error("the certificate was not promised to a trusted certificate transparency log: {reason}")]
    CertificateLog {
        /// What was found, and what is trusted.
        reason: String,
    },
    /// The certificate is not made for this.
    #[error("the certificate's {field} is {found}, expected {expected}")]
    Certificate {
        /// Which part.
        field: &'static str,
        /// What was found.
        found: String,
        /// What is accepted.
        expected: &'static str,
    },
    /// Somebody else signed.
    #[error(
        "it was signed by {subject} of {issuer}; accepted are {accepted}; name them in \
         registry.signing_identities if you know them"
    )]
    NotAccepted {
        /// The certificate's subject.
        subject: String,
        /// Who vouches for the subject.
        issuer: String,
        /// Who would be.
        accepted: String,
    },
    /// A log that nobody trusts.
    #[error("its log entry is of log {found}; trusted are {trusted}")]
    UnknownLog {
        /// The log's key id.
        found: String,
        /// The logs of the trusted root.
        trusted: String,
    },
    /// A log was not valid then.
    #[error("log {log} is trusted {period}, the entry is of {time}")]
    LogPeriod {
        /// The log.
        log: String,
        /// From when to when.
        period: String,
        /// The time of signing.
        time: String,
    },
    /// The log's signature over the entry and its time.
    #[error("the signed entry timestamp is not of log {log} over this entry (index {index})")]
    Promise {
        /// The log.
        log: String,
        /// The entry's index.
        index: u64,
    },
    /// The log's signature over its tree.
    #[error("the checkpoint of log {log}: {reason}")]
    Checkpoint {
        /// The log.
        log: String,
        /// What did not hold.
        reason: String,
    },
    /// The way from the entry to the tree's root.
    #[error("the inclusion proof of log {log}: {reason}")]
    Inclusion {
        /// The log.
        log: String,
        /// What did not hold.
        reason: String,
    },
    /// The entry speaks of something else.
    #[error("the log entry's {field} is {found}, expected {expected}")]
    Entry {
        /// Which part.
        field: &'static str,
        /// What was found.
        found: String,
        /// What this bundle asks for.
        expected: String,
    },
    /// The signature itself.
    #[error("the key in the certificate of {subject} did not make the signature")]
    Signature {
        /// Whom the certificate names.
        subject: String,
    },
    /// Several trusted roots, and none has verified it.
    #[error("{0}")]
    EveryRoot(String),
}

/// A part of the bundle that is not as it should be; long findings are cut.
pub(super) fn bundle(
    field: &'static str,
    found: impl ToString,
    expected: &'static str,
) -> SigstoreError {
    SigstoreError::Bundle { field, found: short(found), expected }
}

/// In quotes, and not longer than a line or two.
pub(super) fn short(found: impl ToString) -> String {
    let text: String = found.to_string().chars().take(200).collect();
    format!("{text:?}")
}
