//! Secrets of operators and join tokens: drawn at random, kept as hashes only.
//!
//! Passwords are hashed slowly (PBKDF2, HMAC-SHA-256, own salt). Tokens carry 256 random bits and
//! need no slow hash: SHA-256 suffices.

use std::num::NonZeroU32;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::pbkdf2;
use ring::rand::{SecureRandom, SystemRandom};

/// Rounds of PBKDF2 for a new hash.
pub(crate) const ROUNDS: NonZeroU32 = NonZeroU32::new(600_000).expect("not zero");
/// Rounds that a stored hash may ask for.
const ROUNDS_MAX: u32 = 10_000_000;
const SALT_BYTES: usize = 16;

/// The system gave no random numbers.
#[derive(Debug, thiserror::Error)]
#[error("draw random numbers")]
pub struct RandomError;

/// `len` random bytes as base64url.
pub(crate) fn secret(len: usize) -> Result<String, RandomError> {
    let mut bytes = vec![0_u8; len];
    SystemRandom::new().fill(&mut bytes).map_err(|_| RandomError)?;
    Ok(URL_SAFE_NO_PAD.encode(bytes))
}

/// A password for people to type: 5 groups of 5, about 123 bits.
pub(crate) fn generate() -> Result<String, RandomError> {
    // No 0/o, 1/l/i: read aloud and typed without doubt. 31 signs; bytes from 248 are drawn again.
    const SIGNS: &[u8] = b"abcdefghjkmnpqrstuvwxyz23456789";
    let random = SystemRandom::new();
    let mut text = String::new();
    while text.len() < 29 {
        if text.len() % 6 == 5 {
            text.push('-');
        }
        let mut byte = [0_u8];
        random.fill(&mut byte).map_err(|_| RandomError)?;
        let limit = SIGNS.len() * (256 / SIGNS.len());
        if usize::from(byte[0]) < limit {
            text.push(char::from(SIGNS[usize::from(byte[0]) % SIGNS.len()]));
        } else if text.ends_with('-') {
            text.pop();
        }
    }
    Ok(text)
}

/// `pbkdf2-sha256$rounds$salt$hash`.
pub(crate) fn hash(password: &str, rounds: NonZeroU32) -> Result<String, RandomError> {
    let mut salt = [0_u8; SALT_BYTES];
    SystemRandom::new().fill(&mut salt).map_err(|_| RandomError)?;
    let mut out = [0_u8; 32];
    pbkdf2::derive(pbkdf2::PBKDF2_HMAC_SHA256, rounds, &salt, password.as_bytes(), &mut out);
    Ok(format!(
        "pbkdf2-sha256${rounds}${}${}",
        URL_SAFE_NO_PAD.encode(salt),
        URL_SAFE_NO_PAD.encode(out)
    ))
}

/// A hash that no password has, as slow to compare with as a real one.
pub(crate) fn hash_of_nothing() -> Result<String, RandomError> {
    Ok(format!("pbkdf2-sha256${ROUNDS}${}${}", secret(SALT_BYTES)?, secret(32)?))
}

/// Whether `password` is the one that was hashed. A stored hash that is not one matches nothing.
pub(crate) fn matches(password: &str, stored: &str) -> bool {
    let mut parts = stored.split('$');
    let (Some("pbkdf2-sha256"), Some(rounds), Some(salt), Some(expected), None) =
        (parts.next(), parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return false;
    };
    let rounds = rounds.parse().ok().filter(|n| *n <= ROUNDS_MAX).and_then(NonZeroU32::new);
    let (Some(rounds), Ok(salt), Ok(expected)) =
        (rounds, URL_SAFE_NO_PAD.decode(salt), URL_SAFE_NO_PAD.decode(expected))
    else {
        return false;
    };
    pbkdf2::verify(pbkdf2::PBKDF2_HMAC_SHA256, rounds, &salt, password.as_bytes(), &expected)
        .is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_matches_its_own_hash_only() {
        let rounds = NonZeroU32::new(10).unwrap();
        let stored = hash("right", rounds).unwrap();
        assert!(matches("right", &stored));
        assert!(!matches("wrong", &stored));
        assert_ne!(stored, hash("right", rounds).unwrap(), "own salt each time");
        for broken in ["", "pbkdf2-sha256$0$AA$AA", "pbkdf2-sha256$10$AA", "md5$1$AA$AA"] {
            assert!(!matches("right", broken), "{broken}");
        }
    }

    #[test]
    fn a_generated_password_is_five_groups_of_five() {
        for _ in 0..100 {
            let password = generate().unwrap();
            let groups: Vec<_> = password.split('-').map(str::len).collect();
            assert_eq!(groups, [5, 5, 5, 5, 5], "{password}");
        }
    }
}
