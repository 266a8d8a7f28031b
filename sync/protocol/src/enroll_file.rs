//! Joining a fleet by file, for a device that never has a link: its request goes out, the control
//! plane's answer comes back, signed by the fleet's CA, whose fingerprint the join token carries.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

use crate::{EnrollRequest, EnrollResponse};

/// Largest file of either kind, in bytes.
pub const ENROLL_FILE_BYTES_MAX: usize = 4 << 20;

const WORDS: &[u8] = b"fulmar enrollment 1\n";

/// A device's request. It holds the join token's secret: carry it as you would the token.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EnrollRequestFile {
    /// 1.
    pub schema: u32,
    /// What would go over the link.
    pub request: EnrollRequest,
}

/// The control plane's answer.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EnrollAnswerFile {
    /// 1.
    pub schema: u32,
    /// [`EnrollResponse`] as JSON, base64.
    pub body: String,
    /// By the fleet's CA (ECDSA P-256, SHA-256, ASN.1) over [`enroll_words`] of the body's bytes,
    /// hex.
    pub signature: String,
}

/// The words that the CA signs.
#[must_use]
pub fn enroll_words(body: &[u8]) -> Vec<u8> {
    [WORDS, body].concat()
}

/// Why a file is of no use for joining.
#[derive(Debug, thiserror::Error)]
#[error("read the enrollment file: {0}")]
pub struct EnrollFileError(String);

fn schema(found: u32) -> Result<(), EnrollFileError> {
    match found {
        1 => Ok(()),
        found => Err(EnrollFileError(format!("schema {found}, this program knows 1"))),
    }
}

impl EnrollRequestFile {
    /// Reads a request.
    ///
    /// # Errors
    /// [`EnrollFileError`].
    pub fn read(bytes: &[u8]) -> Result<EnrollRequest, EnrollFileError> {
        let file: Self =
            serde_json::from_slice(bytes).map_err(|e| EnrollFileError(e.to_string()))?;
        schema(file.schema)?;
        Ok(file.request)
    }
}

impl EnrollAnswerFile {
    /// An answer; `sign` signs the words that it is given.
    ///
    /// # Errors
    /// What the signer says.
    pub fn make<E: std::fmt::Display>(
        response: &EnrollResponse,
        sign: impl FnOnce(&[u8]) -> Result<String, E>,
    ) -> Result<Self, EnrollFileError> {
        let body = serde_json::to_vec(response).map_err(|e| EnrollFileError(e.to_string()))?;
        let signature = sign(&enroll_words(&body)).map_err(|e| EnrollFileError(e.to_string()))?;
        Ok(Self { schema: 1, body: STANDARD.encode(body), signature })
    }

    /// Reads an answer, and what was signed of it: response, words, signature (hex). Nothing of it
    /// is believed yet.
    ///
    /// # Errors
    /// [`EnrollFileError`].
    pub fn read(bytes: &[u8]) -> Result<(EnrollResponse, Vec<u8>, String), EnrollFileError> {
        let file: Self =
            serde_json::from_slice(bytes).map_err(|e| EnrollFileError(e.to_string()))?;
        schema(file.schema)?;
        let body = STANDARD
            .decode(&file.body)
            .map_err(|_| EnrollFileError("field body is no base64".to_owned()))?;
        let response = serde_json::from_slice(&body).map_err(|e| EnrollFileError(e.to_string()))?;
        Ok((response, enroll_words(&body), file.signature))
    }
}
