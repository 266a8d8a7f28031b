//! App tokens: JSON Web Tokens (RFC 7519) signed with Ed25519 (RFC 8037), bound to one device by
//! their audience, with an end and an id that can be revoked.
//!
//! The verifier takes the time as an argument: the device's clock may be wrong, its signed time is
//! the floor.

use std::collections::BTreeMap;

use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use ring::rand::SystemRandom;
use ring::signature::{Ed25519KeyPair, KeyPair};
use rusqlite::{Connection, OptionalExtension, Transaction};
use serde::{Deserialize, Serialize};

use fulmar_store::Schema;

use crate::{Policy, Principal, Role, Via, jwt};

/// Longest token that is looked at, in bytes.
pub const TOKEN_BYTES_MAX: usize = 4096;
/// How far clocks may differ, in seconds.
pub const LEEWAY_S: i64 = 60;
const ISSUER: &str = "fulmar";

/// Tokens that were minted here, so that they can be listed and revoked.
pub const SCHEMA: Schema = Schema {
    name: "policy.token",
    steps: &["CREATE TABLE token (
        id TEXT PRIMARY KEY,
        subject TEXT NOT NULL,
        roles TEXT NOT NULL,
        minted_at_s INTEGER NOT NULL,
        expires_at_s INTEGER NOT NULL,
        revoked_at_s INTEGER
    ) STRICT"],
};

/// What can go wrong with tokens.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// The key could not be made or read.
    #[error(
        "read the token key: not an Ed25519 key in PKCS#8; restore it from a backup, or remove it to make a new one (all tokens end then)"
    )]
    Key,
    /// The subject cannot stand in a token.
    #[error(
        "mint a token: subject {0:?} must have 1 to 63 characters of a-z, A-Z, 0-9, '-', '_', '.'"
    )]
    Subject(String),
    /// The life asked for is longer than the policy allows.
    #[error("mint a token: a life of {asked_s} s was asked for, the policy allows 1 to {max_s} s")]
    Life {
        /// Seconds asked for.
        asked_s: u64,
        /// Seconds allowed.
        max_s: u64,
    },
    /// Not a token at all, or one with another algorithm.
    #[error("check the token: not a fulmar token; mint one with `fulmar token mint`")]
    Malformed,
    /// Signed with a key that this device does not have.
    #[error(
        "check the token: it was not signed by this device; mint one here with `fulmar token mint`"
    )]
    UnknownKey,
    /// The signature is wrong.
    #[error("check the token: its signature is wrong")]
    Signature,
    /// Made for another device.
    #[error("check the token: it is for device {found}, this is {expected}")]
    Audience {
        /// The device that the token names.
        found: String,
        /// This device.
        expected: String,
    },
    /// Its time is over.
    #[error(
        "check the token: it expired at {expired_at_s} (seconds since 1970), now is {now_s}; mint a new one"
    )]
    Expired {
        /// When it ended.
        expired_at_s: i64,
        /// The time here.
        now_s: i64,
    },
    /// Its time has not come.
    #[error(
        "check the token: it is valid from {not_before_s} (seconds since 1970), now is {now_s}; check the clock"
    )]
    NotYet {
        /// When it begins.
        not_before_s: i64,
        /// The time here.
        now_s: i64,
    },
    /// Ended before its time.
    #[error("check the token: {id} was revoked")]
    Revoked {
        /// The token's id.
        id: String,
    },
    /// Ended by the owner's signed policy.
    #[error(
        "check the token: {id} was revoked by the owner's policy version {policy_version}: {reason}"
    )]
    RevokedByOwner {
        /// The token's id.
        id: String,
        /// The owner's words.
        reason: String,
        /// The policy that says so.
        policy_version: u64,
    },
    /// Signed with a key that the owner's signed policy ended.
    #[error(
        "check the token: the key {id} that signed it was revoked by the owner's policy version \
         {policy_version}: {reason}; remove token.key in the state directory, start the agent again \
         and mint new tokens"
    )]
    KeyRevoked {
        /// The key's id.
        id: String,
        /// The owner's words.
        reason: String,
        /// The policy that says so.
        policy_version: u64,
    },
    /// The database refused.
    #[error("look the token up")]
    Store(#[from] fulmar_store::StoreError),
}

impl From<rusqlite::Error> for TokenError {
    fn from(error: rusqlite::Error) -> Self {
        Self::Store(error.into())
    }
}

/// What a token says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claims {
    /// Always `fulmar`.
    pub iss: String,
    /// Who holds it.
    pub sub: String,
    /// The device that it is for.
    pub aud: String,
    /// Seconds since 1970 when it was made.
    pub iat: i64,
    /// Seconds since 1970 from which it holds.
    pub nbf: i64,
    /// Seconds since 1970 at which it ends.
    pub exp: i64,
    /// Its id.
    pub jti: String,
    /// The roles it gives.
    pub roles: Vec<Role>,
}

/// The device's key for tokens.
pub struct TokenKey {
    pkcs8: Vec<u8>,
    public: Vec<u8>,
}

impl std::fmt::Debug for TokenKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TokenKey").field("id", &self.id()).finish_non_exhaustive()
    }
}

/// What is asked for when a token is minted.
#[derive(Debug, Clone)]
pub struct MintRequest<'a> {
    /// Who will hold it.
    pub subject: &'a str,
    /// The roles it gives.
    pub roles: &'a [Role],
    /// The device it is for.
    pub device: &'a str,
    /// Seconds since 1970 now.
    pub now_s: i64,
    /// How long it holds, in seconds.
    pub life_s: u64,
    /// The longest life that the policy allows, in seconds.
    pub life_s_max: u64,
}

impl TokenKey {
    /// A new key.
    ///
    /// # Errors
    /// [`TokenError::Key`] when the system gives no random numbers.
    pub fn generate() -> Result<Self, TokenError> {
        let document =
            Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).map_err(|_| TokenError::Key)?;
        Self::from_pkcs8(document.as_ref())
    }

    /// Reads a key in PKCS#8, as [`TokenKey::to_pkcs8`] gave it.
    ///
    /// # Errors
    /// [`TokenError::Key`].
    pub fn from_pkcs8(pkcs8: &[u8]) -> Result<Self, TokenError> {
        let pair = Ed25519KeyPair::from_pkcs8(pkcs8).map_err(|_| TokenError::Key)?;
        Ok(Self { pkcs8: pkcs8.to_vec(), public: pair.public_key().as_ref().to_vec() })
    }

    /// The key's bytes, a secret, for a file that only the agent reads.
    #[must_use]
    pub fn to_pkcs8(&self) -> &[u8] {
        &self.pkcs8
    }

    /// The public key, 32 bytes.
    #[must_use]
    pub fn public(&self) -> &[u8] {
        &self.public
    }

    /// The key's id: the first 8 bytes of the SHA-256 of the public key, hex.
    #[must_use]
    pub fn id(&self) -> String {
        key_id(&self.public)
    }

    /// Mints a token and notes it in the table of tokens.
    ///
    /// # Errors
    /// [`TokenError::Subject`], [`TokenError::Life`], or the database's.
    pub fn mint(
        &self,
        tx: &Transaction<'_>,
        request: &MintRequest<'_>,
    ) -> Result<(String, Claims), TokenError> {
        let subject_fits = (1..=63).contains(&request.subject.len())
            && request.subject.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b));
        if !subject_fits {
            return Err(TokenError::Subject(request.subject.to_owned()));
        }
        if request.life_s == 0 || request.life_s > request.life_s_max {
            return Err(TokenError::Life { asked_s: request.life_s, max_s: request.life_s_max });
        }
        let life_s = i64::try_from(request.life_s).unwrap_or(i64::MAX);
        let claims = Claims {
            iss: ISSUER.into(),
            sub: request.subject.into(),
            aud: request.device.into(),
            iat: request.now_s,
            nbf: request.now_s,
            exp: request.now_s.saturating_add(life_s),
            jti: uuid::Uuid::new_v4().simple().to_string(),
            roles: request.roles.to_vec(),
        };
        tx.execute(
            "INSERT INTO token (id, subject, roles, minted_at_s, expires_at_s)
             VALUES (?1, ?2, ?3, ?4, ?5)",
            (&claims.jti, &claims.sub, role_names(&claims.roles), claims.iat, claims.exp),
        )?;
        Ok((self.sign(&claims)?, claims))
    }

    fn sign(&self, claims: &Claims) -> Result<String, TokenError> {
        jwt::use_ring();
        let mut header = Header::new(Algorithm::EdDSA);
        header.kid = Some(self.id());
        jsonwebtoken::encode(&header, claims, &EncodingKey::from_ed_der(&self.pkcs8))
            .map_err(|_| TokenError::Key)
    }
}

fn key_id(public: &[u8]) -> String {
    hex::encode(&ring::digest::digest(&ring::digest::SHA256, public).as_ref()[..8])
}

fn role_names(roles: &[Role]) -> String {
    roles.iter().map(|role| role.as_str()).collect::<Vec<_>>().join(",")
}

/// Checks tokens for one device.
pub struct Verifier {
    keys: BTreeMap<String, DecodingKey>,
    device: String,
}

impl std::fmt::Debug for Verifier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Verifier").field("device", &self.device).finish_non_exhaustive()
    }
}

impl Verifier {
    /// Trusts these public keys (32 bytes each) for tokens that name `device`.
    #[must_use]
    pub fn new<'a>(keys: impl IntoIterator<Item = &'a [u8]>, device: &str) -> Self {
        let keys =
            keys.into_iter().map(|key| (key_id(key), DecodingKey::from_ed_der(key))).collect();
        Self { keys, device: device.to_owned() }
    }

    /// Checks signature, device and time; not revocation, which [`check_not_revoked`] does.
    ///
    /// # Errors
    /// [`TokenError`] says which check failed.
    pub fn verify(&self, token: &str, now_s: i64) -> Result<Principal, TokenError> {
        jwt::use_ring();
        if token.len() > TOKEN_BYTES_MAX {
            return Err(TokenError::Malformed);
        }
        let header = jsonwebtoken::decode_header(token).map_err(|_| TokenError::Malformed)?;
        if header.alg != Algorithm::EdDSA {
            return Err(TokenError::Malformed);
        }
        let key = header.kid.as_deref().and_then(|kid| self.keys.get(kid));
        let key = key.ok_or(TokenError::UnknownKey)?;
        let claims = jsonwebtoken::decode::<Claims>(token, key, &signature_only())
            .map_err(|error| match error.kind() {
                jsonwebtoken::errors::ErrorKind::InvalidSignature => TokenError::Signature,
                _ => TokenError::Malformed,
            })?
            .claims;
        self.check(claims, now_s)
    }

    fn check(&self, claims: Claims, now_s: i64) -> Result<Principal, TokenError> {
        if claims.iss != ISSUER {
            return Err(TokenError::Malformed);
        }
        if claims.aud != self.device {
            return Err(TokenError::Audience { found: claims.aud, expected: self.device.clone() });
        }
        if claims.exp.saturating_add(LEEWAY_S) <= now_s {
            return Err(TokenError::Expired { expired_at_s: claims.exp, now_s });
        }
        if claims.nbf.saturating_sub(LEEWAY_S) > now_s {
            return Err(TokenError::NotYet { not_before_s: claims.nbf, now_s });
        }
        Ok(Principal {
            subject: claims.sub,
            roles: claims.roles,
            via: Via::Token { id: claims.jti },
        })
    }
}

/// The library checks the signature; times and names are checked here, against our own clock.
fn signature_only() -> Validation {
    let mut validation = Validation::new(Algorithm::EdDSA);
    validation.validate_exp = false;
    validation.validate_nbf = false;
    validation.validate_aud = false;
    validation.required_spec_claims.clear();
    validation
}

/// One minted token, without the token itself, which is never kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TokenRow {
    /// Its id.
    pub id: String,
    /// Who holds it.
    pub subject: String,
    /// Its roles, comma-separated.
    pub roles: String,
    /// Seconds since 1970.
    pub minted_at_s: i64,
    /// Seconds since 1970.
    pub expires_at_s: i64,
    /// Seconds since 1970, when it was revoked.
    pub revoked_at_s: Option<i64>,
}

/// All tokens minted here, newest first.
///
/// # Errors
/// The database's.
pub fn list(connection: &Connection) -> Result<Vec<TokenRow>, TokenError> {
    let mut statement = connection.prepare_cached(
        "SELECT id, subject, roles, minted_at_s, expires_at_s, revoked_at_s
         FROM token ORDER BY minted_at_s DESC, id",
    )?;
    let rows = statement.query_map([], |row| {
        Ok(TokenRow {
            id: row.get(0)?,
            subject: row.get(1)?,
            roles: row.get(2)?,
            minted_at_s: row.get(3)?,
            expires_at_s: row.get(4)?,
            revoked_at_s: row.get(5)?,
        })
    })?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// Ends a token. Says whether there was one that still held.
///
/// # Errors
/// The database's.
pub fn revoke(tx: &Transaction<'_>, id: &str, now_s: i64) -> Result<bool, TokenError> {
    let changed = tx.execute(
        "UPDATE token SET revoked_at_s = ?2 WHERE id = ?1 AND revoked_at_s IS NULL",
        (id, now_s),
    )?;
    Ok(changed == 1)
}

/// Refuses a token that was revoked, and one that this device's table does not know: a token
/// signed with our key that we never noted was minted from a stolen copy of the key.
///
/// # Errors
/// [`TokenError::Revoked`], or the database's.
pub fn check_not_revoked(connection: &Connection, id: &str) -> Result<(), TokenError> {
    let revoked: Option<Option<i64>> = connection
        .prepare_cached("SELECT revoked_at_s FROM token WHERE id = ?1")?
        .query_row([id], |row| row.get(0))
        .optional()?;
    match revoked {
        Some(None) => Ok(()),
        Some(Some(_)) | None => Err(TokenError::Revoked { id: id.to_owned() }),
    }
}

/// Refuses a token that the owner's policy took back, by itself or with `key_id`, the key that
/// signs this device's tokens. Other ways to prove who one is have no token to take back.
///
/// # Errors
/// [`TokenError::RevokedByOwner`], [`TokenError::KeyRevoked`].
pub fn check_owners_word(
    policy: &Policy,
    principal: &Principal,
    key_id: &str,
) -> Result<(), TokenError> {
    let Via::Token { id } = &principal.via else { return Ok(()) };
    let (revoked, policy_version) = (policy.revoked(), policy.version());
    if let Some(reason) = revoked.tokens.get(id) {
        let (id, reason) = (id.clone(), reason.clone());
        return Err(TokenError::RevokedByOwner { id, reason, policy_version });
    }
    match revoked.keys.get(key_id) {
        Some(reason) => {
            let (id, reason) = (key_id.to_owned(), reason.clone());
            Err(TokenError::KeyRevoked { id, reason, policy_version })
        }
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests;
