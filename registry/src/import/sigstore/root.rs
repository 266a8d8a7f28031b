//! A Sigstore's trusted root (`trusted_root.json`): certificate authorities, transparency logs and
//! timestamp authorities, and when each of them was to be trusted.

use std::fmt;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use rustls_pki_types::CertificateDer;
use serde::Deserialize;

use super::SigstoreError;
use super::bundle::{Base64, Certificate, LogId};
use super::key::Key;

/// Longest trusted root accepted, in bytes.
const ROOT_BYTES_MAX: u64 = 4 << 20;
const MEDIA_TYPES: [&str; 2] = [
    "application/vnd.dev.sigstore.trustedroot+json;version=0.1",
    "application/vnd.dev.sigstore.trustedroot.v0.2+json",
];

/// Whom one Sigstore's signatures rest on. Configured by the device's owner; nothing is fetched.
#[derive(Debug, Clone)]
pub struct TrustedRoot {
    /// The file.
    pub(super) path: String,
    pub(super) authorities: Vec<Authority>,
    /// Rekor's.
    pub(super) logs: Vec<Log>,
    /// Of certificates.
    pub(super) certificate_logs: Vec<Log>,
    pub(super) timestamp_authorities: Vec<Authority>,
}

/// A chain of certificates: intermediate ones (in timestamp authorities the signer first), then
/// the root.
#[derive(Debug, Clone)]
pub(super) struct Authority {
    pub(super) uri: String,
    pub(super) certificates: Vec<CertificateDer<'static>>,
    pub(super) period: Period,
}

/// A transparency log.
#[derive(Debug, Clone)]
pub(super) struct Log {
    pub(super) url: String,
    /// SHA-256 of its key, or what else names it.
    pub(super) id: Vec<u8>,
    /// The first bytes of this stand before its signatures in checkpoints.
    pub(super) checkpoint_id: Vec<u8>,
    /// Or why the key cannot be used: that matters only once the log is asked for.
    pub(super) key: Result<Key, String>,
    pub(super) period: Period,
}

/// From when to when, both included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Period {
    start: Timestamp,
    end: Option<Timestamp>,
}

impl Period {
    pub(super) fn contains(self, time: Timestamp) -> bool {
        self.start <= time && self.end.is_none_or(|end| time <= end)
    }
}

impl fmt::Display for Period {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "from {}", self.start)?;
        self.end.map_or(Ok(()), |end| write!(f, " to {end}"))
    }
}

impl fmt::Display for Log {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.url, STANDARD.encode(&self.id))
    }
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct File {
    #[serde(default)]
    media_type: String,
    #[serde(default)]
    tlogs: Vec<FileLog>,
    #[serde(default)]
    certificate_authorities: Vec<FileAuthority>,
    #[serde(default)]
    ctlogs: Vec<FileLog>,
    #[serde(default)]
    timestamp_authorities: Vec<FileAuthority>,
    /// In a client's configuration, which has a trusted root among other things.
    trusted_root: Option<Box<File>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct FileLog {
    #[serde(default)]
    base_url: String,
    public_key: FileKey,
    log_id: Option<LogId>,
    checkpoint_key_id: Option<LogId>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct FileKey {
    raw_bytes: Base64,
    valid_for: Option<FilePeriod>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct FileAuthority {
    #[serde(default)]
    uri: String,
    cert_chain: FileChain,
    valid_for: Option<FilePeriod>,
}

#[derive(Debug, Deserialize)]
struct FileChain {
    certificates: Vec<Certificate>,
}

#[derive(Debug, Deserialize)]
struct FilePeriod {
    start: Option<Timestamp>,
    end: Option<Timestamp>,
}

impl TrustedRoot {
    /// Reads a trusted root, or a client's configuration with one in it.
    ///
    /// # Errors
    /// [`SigstoreError::Root`].
    pub fn read(path: &Path) -> Result<Self, SigstoreError> {
        let refuse =
            |reason: String| SigstoreError::Root { path: path.display().to_string(), reason };
        let size_bytes = std::fs::metadata(path).map_err(|error| refuse(error.to_string()))?.len();
        if size_bytes > ROOT_BYTES_MAX {
            return Err(refuse(format!(
                "it has {size_bytes} bytes, the limit is {ROOT_BYTES_MAX}"
            )));
        }
        let bytes = std::fs::read(path).map_err(|error| refuse(error.to_string()))?;
        Self::from_json(&path.display().to_string(), &bytes)
    }

    /// A trusted root's JSON; `path` is for messages.
    ///
    /// # Errors
    /// [`SigstoreError::Root`].
    pub fn from_json(path: &str, bytes: &[u8]) -> Result<Self, SigstoreError> {
        let refuse = |reason: String| SigstoreError::Root { path: path.to_owned(), reason };
        let mut file: File = serde_json::from_slice(bytes)
            .map_err(|error| refuse(format!("no trusted root in JSON: {error}")))?;
        if let Some(inner) = file.trusted_root.take() {
            file = *inner;
        }
        if !MEDIA_TYPES.contains(&file.media_type.as_str()) {
            let found = &file.media_type;
            return Err(refuse(format!("mediaType is {found:?}, expected {:?}", MEDIA_TYPES[0])));
        }
        let logs = |name: &str, logs: Vec<FileLog>| {
            let read =
                |(index, log)| log_of(log).map_err(|e| refuse(format!("{name}[{index}]: {e}")));
            logs.into_iter().enumerate().map(read).collect::<Result<Vec<Log>, _>>()
        };
        let authorities = |name: &str, authorities: Vec<FileAuthority>| {
            let read =
                |(index, a)| authority_of(a).map_err(|e| refuse(format!("{name}[{index}]: {e}")));
            authorities.into_iter().enumerate().map(read).collect::<Result<Vec<Authority>, _>>()
        };
        Ok(Self {
            path: path.to_owned(),
            authorities: authorities("certificateAuthorities", file.certificate_authorities)?,
            logs: logs("tlogs", file.tlogs)?,
            certificate_logs: logs("ctlogs", file.ctlogs)?,
            timestamp_authorities: authorities("timestampAuthorities", file.timestamp_authorities)?,
        })
    }
}

/// A period needs its beginning: a missing one would be all of the past.
fn period_of(period: Option<&FilePeriod>) -> Result<Period, String> {
    match period {
        Some(FilePeriod { start: Some(start), end }) => Ok(Period { start: *start, end: *end }),
        _ => Err("validFor.start is missing, expected when it began to be trusted".to_owned()),
    }
}

fn log_of(log: FileLog) -> Result<Log, String> {
    let period = period_of(log.public_key.valid_for.as_ref())?;
    let der = log.public_key.raw_bytes.0;
    let id =
        log.log_id.map_or_else(|| crate::Digest::of(&der).as_bytes().to_vec(), |id| id.key_id.0);
    let checkpoint_id = log.checkpoint_key_id.map_or_else(|| id.clone(), |id| id.key_id.0);
    Ok(Log { url: log.base_url, id, checkpoint_id, key: Key::from_der(&der), period })
}

fn authority_of(authority: FileAuthority) -> Result<Authority, String> {
    let period = period_of(authority.valid_for.as_ref())?;
    let certificates: Vec<CertificateDer<'static>> =
        authority.cert_chain.certificates.into_iter().map(|c| c.der.0.into()).collect();
    if certificates.is_empty() {
        return Err("certChain has no certificates, expected at least a root".to_owned());
    }
    for certificate in &certificates {
        webpki::anchor_from_trusted_cert(certificate)
            .map_err(|error| format!("certChain: no certificate: {error}"))?;
    }
    Ok(Authority { uri: authority.uri, certificates, period })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(body: &str) -> Result<TrustedRoot, String> {
        TrustedRoot::from_json("root.json", body.as_bytes()).map_err(|error| error.to_string())
    }

    const TYPE: &str =
        r#""mediaType": "application/vnd.dev.sigstore.trustedroot+json;version=0.1""#;

    #[test]
    fn a_root_says_what_is_wrong_with_it_and_where() {
        for (body, expected) in [
            ("[]".to_owned(), "no trusted root in JSON"),
            ("{}".to_owned(), "mediaType is \"\""),
            (
                format!(r#"{{{TYPE}, "tlogs": [{{"publicKey": {{"rawBytes": "AAAA"}}}}]}}"#),
                "tlogs[0]: validFor.start is missing",
            ),
            (
                format!(
                    r#"{{{TYPE}, "certificateAuthorities": [{{"certChain": {{"certificates": []}},
                        "validFor": {{"start": "2024-01-01T00:00:00Z"}}}}]}}"#
                ),
                "certificateAuthorities[0]: certChain has no certificates",
            ),
            (
                format!(
                    r#"{{{TYPE}, "timestampAuthorities": [{{"certChain": {{"certificates":
                        [{{"rawBytes": "AAAA"}}]}}, "validFor": {{"start": "2024-01-01T00:00:00Z"}}
                        }}]}}"#
                ),
                "timestampAuthorities[0]: certChain: no certificate",
            ),
        ] {
            let refused = read(&body).unwrap_err();
            assert!(refused.contains("root.json") && refused.contains(expected), "{refused}");
        }
    }

    #[test]
    fn a_log_with_a_key_of_another_kind_stays_and_says_so_when_it_is_asked_for() {
        let body = format!(
            r#"{{{TYPE}, "tlogs": [{{"baseUrl": "https://log", "publicKey": {{"rawBytes": "AAAA",
                "validFor": {{"start": "2024-01-01T00:00:00Z"}}}}}}]}}"#
        );
        let root = read(&body).unwrap();
        assert!(root.logs[0].key.as_ref().is_err_and(|reason| reason.contains("no public key")));
        let inside = read(&format!(r#"{{"mediaType": "x", "trustedRoot": {body}}}"#)).unwrap();
        assert_eq!(inside.logs.len(), 1);
    }

    #[test]
    fn both_ends_of_a_period_are_in_it() {
        let time = |text: &str| text.parse::<Timestamp>().unwrap();
        let (start, end) = (time("2024-01-01T00:00:00Z"), time("2024-12-31T23:59:59Z"));
        let period = Period { start, end: Some(end) };
        assert!(period.contains(start) && period.contains(end));
        assert!(!period.contains(time("2025-01-01T00:00:00Z")));
        assert!(!period.contains(time("2023-12-31T23:59:59Z")));
        assert!(Period { start, end: None }.contains(time("2999-01-01T00:00:00Z")));
    }
}
