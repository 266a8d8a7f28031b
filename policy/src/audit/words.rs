//! Words that a device signs with its audit key besides checkpoints: files of reports.

use ring::signature::{ED25519, UnparsedPublicKey};

use super::AuditKey;

const REPORTS: &[u8] = b"fulmar report file 1\n";

impl AuditKey {
    /// Signs the bytes of a file of reports.
    #[must_use]
    pub fn sign_reports(&self, bytes: &[u8]) -> Vec<u8> {
        self.pair.sign(&[REPORTS, bytes].concat()).as_ref().to_vec()
    }
}

/// Whether `signature` by `public` (Ed25519, 32 bytes) is over this file of reports.
#[must_use]
pub fn reports_signature_holds(public: &[u8], bytes: &[u8], signature: &[u8]) -> bool {
    UnparsedPublicKey::new(&ED25519, public).verify(&[REPORTS, bytes].concat(), signature).is_ok()
}
