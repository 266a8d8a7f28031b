//! Join tokens as text: what an operator hands to whoever sets a device up.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use crate::JoinToken;

/// What every join token begins with; the digit is the format's version.
pub const JOIN_TOKEN_PREFIX: &str = "fjt1.";
/// Longest join token, in bytes.
const LEN_MAX: usize = 2_048;

/// Why a text is not a join token.
#[derive(Debug, thiserror::Error)]
pub enum JoinTokenError {
    /// It begins with something else.
    #[error("read the join token: it should begin with \"{JOIN_TOKEN_PREFIX}\"; copy it whole")]
    Prefix,
    /// It is longer than any join token.
    #[error("read the join token: {found} bytes, the limit is {LEN_MAX}")]
    TooLong {
        /// Its length in bytes.
        found: usize,
    },
    /// It was cut or changed.
    #[error("read the join token: it is cut or mistyped; copy it whole")]
    Encoding,
    /// A field does not hold what it should.
    #[error("read the join token: {field} should be {expected}")]
    Field {
        /// The field.
        field: &'static str,
        /// What it should hold.
        expected: &'static str,
    },
}

impl JoinToken {
    /// The token as text.
    #[must_use]
    pub fn encode(&self) -> String {
        // Strings and a number always serialise.
        let json = serde_json::to_vec(self).unwrap_or_default();
        format!("{JOIN_TOKEN_PREFIX}{}", URL_SAFE_NO_PAD.encode(json))
    }

    /// Reads a token; white space around it is ignored.
    ///
    /// # Errors
    /// [`JoinTokenError`] says what is wrong; the token itself is never repeated.
    pub fn decode(text: &str) -> Result<Self, JoinTokenError> {
        let text = text.trim();
        if text.len() > LEN_MAX {
            return Err(JoinTokenError::TooLong { found: text.len() });
        }
        let body = text.strip_prefix(JOIN_TOKEN_PREFIX).ok_or(JoinTokenError::Prefix)?;
        let json = URL_SAFE_NO_PAD.decode(body).map_err(|_| JoinTokenError::Encoding)?;
        let token: Self = serde_json::from_slice(&json).map_err(|_| JoinTokenError::Encoding)?;
        if !token.url.starts_with("https://") {
            return Err(JoinTokenError::Field { field: "url", expected: "an https:// address" });
        }
        let is_hex = |c: char| c.is_ascii_digit() || ('a'..='f').contains(&c);
        let is_digest = |text: &str| text.len() == 64 && text.chars().all(is_hex);
        let expected = "64 lower-case hexadecimal digits";
        if !is_digest(&token.ca_sha256) {
            return Err(JoinTokenError::Field { field: "ca_sha256", expected });
        }
        if token.registry_root.as_ref().is_some_and(|root| !is_digest(&root.sha256)) {
            return Err(JoinTokenError::Field { field: "registry_root.sha256", expected });
        }
        if token.secret.is_empty() {
            return Err(JoinTokenError::Field { field: "secret", expected: "not empty" });
        }
        Ok(token)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::RegistryRoot;

    fn token() -> JoinToken {
        JoinToken {
            url: "https://127.0.0.1:7443".to_owned(),
            ca_sha256: "0a".repeat(32),
            secret: "s3cret".to_owned(),
            registry_root: Some(RegistryRoot { version: 3, sha256: "0b".repeat(32) }),
        }
    }

    #[test]
    fn a_token_is_read_as_it_was_written_with_white_space_around() {
        let read = JoinToken::decode(&format!("  {}\n", token().encode())).unwrap();
        assert_eq!((read.url, read.secret), (token().url, token().secret));
        assert_eq!(read.registry_root, token().registry_root);
    }

    #[test]
    fn a_cut_or_foreign_token_is_refused() {
        let text = token().encode();
        assert!(matches!(
            JoinToken::decode(&text[..text.len() - 4]),
            Err(JoinTokenError::Encoding)
        ));
        assert!(matches!(JoinToken::decode("fjt2.AAAA"), Err(JoinTokenError::Prefix)));
        assert!(matches!(
            JoinToken::decode(&"x".repeat(5_000)),
            Err(JoinTokenError::TooLong { .. })
        ));
    }

    #[test]
    fn a_token_to_an_unprotected_address_or_without_a_pin_is_refused() {
        let plain = JoinToken { url: "http://a:1".to_owned(), ..token() };
        assert!(matches!(
            JoinToken::decode(&plain.encode()),
            Err(JoinTokenError::Field { field: "url", .. })
        ));
        let unpinned = JoinToken { ca_sha256: String::new(), ..token() };
        assert!(matches!(
            JoinToken::decode(&unpinned.encode()),
            Err(JoinTokenError::Field { field: "ca_sha256", .. })
        ));
        let root = RegistryRoot { version: 1, sha256: "0B".repeat(32) };
        let shouted = JoinToken { registry_root: Some(root), ..token() };
        assert!(matches!(
            JoinToken::decode(&shouted.encode()),
            Err(JoinTokenError::Field { field: "registry_root.sha256", .. })
        ));
    }

    #[test]
    fn a_token_of_before_there_was_a_root_to_name_is_still_read() {
        let old = JoinToken { registry_root: None, ..token() };
        assert!(!old.encode().is_empty());
        assert_eq!(JoinToken::decode(&old.encode()).unwrap().registry_root, None);
    }
}
