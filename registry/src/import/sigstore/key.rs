//! Public keys of signers, logs and authorities.

use ring::signature::{
    ECDSA_P256_SHA256_ASN1, ECDSA_P256_SHA384_ASN1, ECDSA_P384_SHA256_ASN1, ECDSA_P384_SHA384_ASN1,
    ED25519, RSA_PKCS1_2048_8192_SHA256, RSA_PKCS1_2048_8192_SHA384, RSA_PKCS1_2048_8192_SHA512,
    UnparsedPublicKey, VerificationAlgorithm,
};
use x509_parser::prelude::FromDer as _;
use x509_parser::x509::SubjectPublicKeyInfo;

use super::der::Hash;
use crate::Digest;

/// A public key.
#[derive(Debug, Clone)]
pub(in crate::import) struct Key {
    kind: Kind,
    public: Vec<u8>,
    id: Digest,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::import) enum Kind {
    P256,
    P384,
    Ed25519,
    Rsa,
}

impl Key {
    /// Of a SubjectPublicKeyInfo in DER.
    pub(in crate::import) fn from_der(der: &[u8]) -> Result<Self, String> {
        match SubjectPublicKeyInfo::from_der(der) {
            Ok(([], spki)) => Self::from_spki(&spki),
            Ok(_) => Err("bytes behind the public key".to_owned()),
            Err(error) => Err(format!("no public key: {error}")),
        }
    }

    /// Of a SubjectPublicKeyInfo.
    pub(in crate::import) fn from_spki(spki: &SubjectPublicKeyInfo<'_>) -> Result<Self, String> {
        let curve = spki.algorithm.parameters.as_ref().and_then(|p| p.as_oid().ok());
        let curve = curve.map(|oid| oid.to_id_string());
        let algorithm = spki.algorithm.algorithm.to_id_string();
        let kind = match (algorithm.as_str(), curve.as_deref()) {
            ("1.2.840.10045.2.1", Some("1.2.840.10045.3.1.7")) => Kind::P256,
            ("1.2.840.10045.2.1", Some("1.3.132.0.34")) => Kind::P384,
            ("1.3.101.112", _) => Kind::Ed25519,
            ("1.2.840.113549.1.1.1", _) => Kind::Rsa,
            (algorithm, curve) => {
                let found = curve.unwrap_or(algorithm);
                return Err(format!("a key of {found}, expected P-256, P-384, Ed25519 or RSA"));
            }
        };
        let public = spki.subject_public_key.data.to_vec();
        Ok(Self { kind, public, id: Digest::of(spki.raw) })
    }

    /// SHA-256 of the SubjectPublicKeyInfo.
    pub(in crate::import) fn id(&self) -> &Digest {
        &self.id
    }

    /// What key it is.
    pub(in crate::import) fn kind(&self) -> Kind {
        self.kind
    }

    /// Whether it made the signature, with the hash that belongs to its kind.
    pub(in crate::import) fn made(&self, message: &[u8], signature: &[u8]) -> bool {
        let hash = if self.kind == Kind::P384 { Hash::Sha384 } else { Hash::Sha256 };
        self.made_with(hash, message, signature)
    }

    /// Whether it made the signature with that hash; Ed25519 brings its own.
    pub(super) fn made_with(&self, hash: Hash, message: &[u8], signature: &[u8]) -> bool {
        let algorithm: &'static dyn VerificationAlgorithm = match (self.kind, hash) {
            (Kind::P256, Hash::Sha256) => &ECDSA_P256_SHA256_ASN1,
            (Kind::P256, Hash::Sha384) => &ECDSA_P256_SHA384_ASN1,
            (Kind::P384, Hash::Sha256) => &ECDSA_P384_SHA256_ASN1,
            (Kind::P384, Hash::Sha384) => &ECDSA_P384_SHA384_ASN1,
            (Kind::Ed25519, _) => &ED25519,
            (Kind::Rsa, Hash::Sha256) => &RSA_PKCS1_2048_8192_SHA256,
            (Kind::Rsa, Hash::Sha384) => &RSA_PKCS1_2048_8192_SHA384,
            (Kind::Rsa, Hash::Sha512) => &RSA_PKCS1_2048_8192_SHA512,
            // ring has no such pair.
            (Kind::P256 | Kind::P384, Hash::Sha512) => return false,
        };
        UnparsedPublicKey::new(algorithm, &self.public).verify(message, signature).is_ok()
    }
}
