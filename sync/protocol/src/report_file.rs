//! What a device hands in by file, where it has no link: its state and its reports, signed by its
//! audit key. The control plane takes it as if it had come over the link.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

use crate::{CheckIn, Report};

/// Largest file, in bytes.
pub const REPORT_FILE_BYTES_MAX: usize = 256 << 20;
/// Reports in one file at most; the rest follows when these are acknowledged.
pub const REPORT_FILE_LEN_MAX: usize = 50_000;

/// The file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReportFile {
    /// 1.
    pub schema: u32,
    /// The device; believed only with the signature.
    pub device_id: String,
    /// [`ReportFileBody`] as JSON, base64: the bytes that were signed.
    pub body: String,
    /// Ed25519 signature by the device's audit key, hex.
    pub signature: String,
}

/// What the file says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReportFileBody {
    /// The device.
    pub device_id: String,
    /// Counts up with every file of the device: an older one never undoes what a newer one said.
    pub serial: u64,
    /// The device as it stands.
    pub check_in: CheckIn,
    /// Reports that wait, `seq` rising.
    pub reports: Vec<Report>,
}

/// Why a file is none of reports.
#[derive(Debug, thiserror::Error)]
#[error("read the report file: {0}; write it again with `fulmar bundle report`")]
pub struct ReportFileError(String);

impl ReportFile {
    /// A file of `body`; `sign` signs the bytes that it is given.
    ///
    /// # Errors
    /// When the body is no JSON.
    pub fn make(
        body: &ReportFileBody,
        sign: impl FnOnce(&[u8]) -> String,
    ) -> Result<Self, ReportFileError> {
        let bytes = serde_json::to_vec(body).map_err(|e| ReportFileError(e.to_string()))?;
        let signature = sign(&bytes);
        let device_id = body.device_id.clone();
        Ok(Self { schema: 1, device_id, body: STANDARD.encode(bytes), signature })
    }

    /// Reads a file; nothing in it is believed yet.
    ///
    /// # Errors
    /// [`ReportFileError`].
    pub fn read(bytes: &[u8]) -> Result<Self, ReportFileError> {
        if bytes.len() > REPORT_FILE_BYTES_MAX {
            let (found, max) = (bytes.len(), REPORT_FILE_BYTES_MAX);
            return Err(ReportFileError(format!("it has {found} bytes, at most {max}")));
        }
        let file: Self =
            serde_json::from_slice(bytes).map_err(|e| ReportFileError(e.to_string()))?;
        match file.schema {
            1 => Ok(file),
            found => Err(ReportFileError(format!("schema {found}, this program knows 1"))),
        }
    }

    /// What it says, if `holds` finds the signature (hex) over these bytes to be the device's.
    ///
    /// # Errors
    /// [`ReportFileError`].
    pub fn open(
        &self,
        holds: impl FnOnce(&[u8], &str) -> Result<(), String>,
    ) -> Result<ReportFileBody, ReportFileError> {
        let bytes = STANDARD
            .decode(&self.body)
            .map_err(|_| ReportFileError("field body is no base64".to_owned()))?;
        holds(&bytes, &self.signature).map_err(ReportFileError)?;
        let body: ReportFileBody =
            serde_json::from_slice(&bytes).map_err(|e| ReportFileError(e.to_string()))?;
        if body.device_id != self.device_id {
            let (said, is) = (&self.device_id, &body.device_id);
            return Err(ReportFileError(format!("it says device {said}, its body {is}")));
        }
        if body.reports.len() > REPORT_FILE_LEN_MAX {
            let (found, max) = (body.reports.len(), REPORT_FILE_LEN_MAX);
            return Err(ReportFileError(format!("it has {found} reports, at most {max}")));
        }
        Ok(body)
    }
}
