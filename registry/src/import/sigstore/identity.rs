//! Whose keyless signatures count: who says who they are (an OpenID issuer), and who they are.

use std::fmt;

use regex_automata::meta::Regex;

use super::SigstoreError;

/// An identity that the device's owner accepts.
#[derive(Debug, Clone)]
pub struct Identity {
    issuer: String,
    subject: Subject,
}

#[derive(Debug, Clone)]
enum Subject {
    Exactly(String),
    Matching { pattern: String, regex: Regex },
}

impl Identity {
    /// One subject, as `releases@acme.example` or a workflow's address, of one issuer.
    ///
    /// # Errors
    /// [`SigstoreError::Identity`] where one of them is empty.
    pub fn exactly(issuer: &str, subject: &str) -> Result<Self, SigstoreError> {
        Self::new(issuer, subject, || Ok(Subject::Exactly(subject.to_owned())))
    }

    /// All subjects of one issuer that a regular expression matches from their first to their last
    /// character. It begins with `^` and ends with `$`, so that nobody is surprised.
    ///
    /// # Errors
    /// [`SigstoreError::Identity`] where it does not, or is no regular expression.
    pub fn matching(issuer: &str, pattern: &str) -> Result<Self, SigstoreError> {
        let refuse = |reason: String| SigstoreError::Identity {
            identity: format!("{issuer}, {pattern}"),
            reason,
        };
        Self::new(issuer, pattern, || {
            if !(pattern.starts_with('^') && pattern.ends_with('$')) {
                let reason = "the pattern must begin with ^ and end with $: without them it \
                              would match parts of other identities";
                return Err(refuse(reason.to_owned()));
            }
            // By itself first: `^a)|(b$` must not become whole by what is put around it.
            let regex = Regex::new(pattern)
                .and_then(|_| Regex::new(&format!(r"\A(?:{pattern})\z")))
                .map_err(|error| refuse(format!("no regular expression: {error}")))?;
            Ok(Subject::Matching { pattern: pattern.to_owned(), regex })
        })
    }

    fn new(
        issuer: &str,
        subject: &str,
        made: impl FnOnce() -> Result<Subject, SigstoreError>,
    ) -> Result<Self, SigstoreError> {
        if issuer.is_empty() || subject.is_empty() {
            return Err(SigstoreError::Identity {
                identity: format!("{issuer:?}, {subject:?}"),
                reason: "expected both an issuer and a subject".to_owned(),
            });
        }
        Ok(Self { issuer: issuer.to_owned(), subject: made()? })
    }

    pub(super) fn accepts(&self, issuer: &str, subject: &str) -> bool {
        self.issuer == issuer
            && match &self.subject {
                Subject::Exactly(exactly) => exactly == subject,
                Subject::Matching { regex, .. } => regex.is_match(subject),
            }
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.subject {
            Subject::Exactly(subject) => write!(f, "{subject} of {}", self.issuer),
            Subject::Matching { pattern, .. } => write!(f, "{pattern} of {}", self.issuer),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_is_accepted_whole_or_not_at_all() {
        let exact = Identity::exactly("https://id", "a@acme.example").unwrap();
        assert!(exact.accepts("https://id", "a@acme.example"));
        assert!(!exact.accepts("https://id.evil", "a@acme.example"));
        assert!(!exact.accepts("https://id", "aa@acme.example"));
        let any = Identity::matching("https://id", r"^[a-z]+@acme\.example|b$").unwrap();
        assert!(any.accepts("https://id", "someone@acme.example"));
        assert!(any.accepts("https://id", "b"));
        // The anchors hold for every alternative.
        assert!(!any.accepts("https://id", "a@acme.example.evil"));
        assert!(!any.accepts("https://id", "evil b"));
        assert!(!any.accepts("https://id", "b\nevil"));
    }

    #[test]
    fn patterns_without_anchors_and_empty_names_are_refused() {
        for pattern in ["acme", "^acme", "acme$", "^a)|(b$", "^[$"] {
            let refused = Identity::matching("https://id", pattern).unwrap_err().to_string();
            assert!(refused.contains(pattern), "{refused}");
        }
        assert!(Identity::exactly("", "a").is_err());
        assert!(Identity::exactly("https://id", "").is_err());
    }
}
