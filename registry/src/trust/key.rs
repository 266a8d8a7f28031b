//! Public keys as metadata carries them, and the check of a signature.
//!
//! Known: Ed25519 (hex), ECDSA on P-256 with SHA-256 (PEM, or the uncompressed point in hex) and
//! RSA-PSS with SHA-256 (PEM, 2048 bits or more). A key of another kind is kept, so that signatures
//! over the metadata hold, but it never counts towards a threshold.

use ring::signature::{self, UnparsedPublicKey};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::canonical;

/// A public key object of metadata.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PublicKey {
    /// `ed25519`, `ecdsa`, `rsa`.
    pub keytype: String,
    /// `ed25519`, `ecdsa-sha2-nistp256`, `rsassa-pss-sha256`.
    pub scheme: String,
    /// The key itself.
    pub keyval: KeyValue,
    /// Fields this program does not know; part of what is signed.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

/// The `keyval` of a [`PublicKey`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyValue {
    /// Hex or PEM, as the key type asks.
    pub public: String,
    /// Fields this program does not know.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

/// A key that can check signatures. Equal keys under different ids are equal here.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Verifier {
    scheme: Scheme,
    bytes: Vec<u8>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Scheme {
    Ed25519,
    EcdsaP256,
    RsaPss,
}

impl PublicKey {
    /// The key object of an Ed25519 public key of 32 bytes.
    #[must_use]
    pub fn ed25519(public: &[u8]) -> Self {
        Self {
            keytype: "ed25519".to_owned(),
            scheme: "ed25519".to_owned(),
            keyval: KeyValue { public: hex::encode(public), extra: Map::new() },
            extra: Map::new(),
        }
    }

    /// The key's id: SHA-256 over its canonical JSON, in hex.
    #[must_use]
    pub fn key_id(&self) -> String {
        let canonical = serde_json::to_value(self)
            .ok()
            .and_then(|value| canonical::to_vec(&value).ok())
            // Only a fraction in an unknown field gets here; any id that cannot collide will do.
            .unwrap_or_else(|| format!("{self:?}").into_bytes());
        crate::Digest::of(&canonical).hex()
    }

    /// Whether this program can check signatures of this key.
    #[must_use]
    pub fn is_known(&self) -> bool {
        self.verifier().is_some()
    }

    pub(crate) fn verifier(&self) -> Option<Verifier> {
        let public = self.keyval.public.as_str();
        let (scheme, bytes) = match (self.keytype.as_str(), self.scheme.as_str()) {
            ("ed25519", "ed25519") => {
                (Scheme::Ed25519, hex::decode(public).ok().filter(|b| b.len() == 32)?)
            }
            ("ecdsa" | "ecdsa-sha2-nistp256", "ecdsa-sha2-nistp256") => {
                let point = match hex::decode(public) {
                    Ok(point) => point,
                    Err(_) => key_from_pem(public)?,
                };
                (Scheme::EcdsaP256, Some(point).filter(|p| p.len() == 65 && p[0] == 4)?)
            }
            ("rsa", "rsassa-pss-sha256") => (Scheme::RsaPss, key_from_pem(public)?),
            _ => return None,
        };
        Some(Verifier { scheme, bytes })
    }
}

impl Verifier {
    /// Whether `signature` is this key's over `message`.
    pub(crate) fn verify(&self, message: &[u8], signature: &[u8]) -> bool {
        let algorithm: &'static dyn signature::VerificationAlgorithm = match self.scheme {
            Scheme::Ed25519 => &signature::ED25519,
            Scheme::EcdsaP256 => &signature::ECDSA_P256_SHA256_ASN1,
            Scheme::RsaPss => &signature::RSA_PSS_2048_8192_SHA256,
        };
        UnparsedPublicKey::new(algorithm, &self.bytes).verify(message, signature).is_ok()
    }
}

/// The bit string of a PEM public key: the point of an elliptic key, the RSAPublicKey structure of
/// an RSA key.
fn key_from_pem(text: &str) -> Option<Vec<u8>> {
    let (_, pem) = x509_parser::pem::parse_x509_pem(text.as_bytes()).ok()?;
    match pem.label.as_str() {
        "PUBLIC KEY" => {
            use x509_parser::prelude::FromDer;
            let (rest, info) =
                x509_parser::x509::SubjectPublicKeyInfo::from_der(&pem.contents).ok()?;
            rest.is_empty().then(|| info.subject_public_key.data.to_vec())
        }
        "RSA PUBLIC KEY" => Some(pem.contents),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_id_is_the_digest_of_the_canonical_key() {
        let key = PublicKey::ed25519(&[7; 32]);
        let canonical = format!(
            r#"{{"keytype":"ed25519","keyval":{{"public":"{}"}},"scheme":"ed25519"}}"#,
            "07".repeat(32)
        );
        assert_eq!(key.key_id(), crate::Digest::of(canonical.as_bytes()).hex());
    }

    #[test]
    fn unknown_and_broken_keys_are_kept_but_never_verify() {
        for (keytype, scheme, public) in [
            ("ed25519", "ed25519", "00"),
            ("ed25519", "ed448", "00"),
            (
                "ecdsa",
                "ecdsa-sha2-nistp256",
                "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n",
            ),
            ("rsa", "rsassa-pss-sha256", "not pem"),
            ("sigstore-oidc", "Fulcio", "x"),
        ] {
            let mut key = PublicKey::ed25519(&[7; 32]);
            (key.keytype, key.scheme) = (keytype.to_owned(), scheme.to_owned());
            key.keyval.public = public.to_owned();
            assert!(!key.is_known(), "{keytype} {public}");
        }
    }
}
