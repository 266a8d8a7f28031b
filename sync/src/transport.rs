//! Requests to the control plane. Every answer has a longest length; every refusal comes back as
//! the control plane worded it.

use std::error::Error as _;
use std::ops::Range;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use fulmar_protocol::{
    ApiError, BODY_BYTES_MAX, CheckIn, CheckInResponse, EnrollRequest, EnrollResponse, OutboxAck,
    OutboxBatch, RenewRequest, RenewResponse,
};
use fulmar_registry::Digest;
use fulmar_registry::trust::{Fetched, Repo, Want};
use reqwest::{Method, RequestBuilder, Response, StatusCode};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::clock::SignedClock;
use crate::identity::Identity;
use crate::mirror::BlobUrlError;
use crate::tls::{self, TlsError};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest silence within an answer.
const READ_TIMEOUT: Duration = Duration::from_secs(30);
/// Longest time for a small request as a whole.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub enum TransportError {
    /// No answer: no network, no server, no TLS, or too slow.
    #[error("reach the control plane at {url}: {reason}")]
    Unreachable {
        /// Its address.
        url: String,
        /// The innermost causes in words.
        reason: String,
    },
    /// It answered that it will not.
    #[error("ask the control plane for {path}: it refused with {status}, {answer}")]
    Refused {
        /// The request's path.
        path: String,
        /// HTTP status.
        status: u16,
        /// Code and message.
        answer: ApiError,
    },
    /// The answer is longer than allowed.
    #[error("read the answer to {path}: more than {limit} bytes came")]
    TooLong {
        /// The request's path.
        path: String,
        /// The limit in bytes.
        limit: u64,
    },
    /// The answer is not what the protocol says.
    #[error("read the answer to {path}: {reason}")]
    Answer {
        /// The request's path.
        path: String,
        /// What was found.
        reason: String,
    },
    /// A source of blobs has no address of HTTP.
    #[error(transparent)]
    BlobUrl(#[from] BlobUrlError),
    /// TLS could not be set up.
    #[error(transparent)]
    Tls(#[from] TlsError),
}

impl TransportError {
    /// Whether trying again later may help without anybody doing anything.
    #[must_use]
    pub fn is_offline(&self) -> bool {
        match self {
            Self::Unreachable { .. } => true,
            Self::Refused { status, .. } => *status == 429 || *status >= 500,
            _ => false,
        }
    }
}

/// A part of a blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Part {
    /// Its first byte.
    start: u64,
    /// Where it ends, where that is before the blob does.
    end: Option<u64>,
}

impl Part {
    /// Of a blob of that length.
    pub(crate) fn of(range: Range<u64>, size_bytes: u64) -> Self {
        Self { start: range.start, end: (range.end < size_bytes).then_some(range.end) }
    }

    /// As `Range` says it; the whole blob needs none.
    pub(crate) fn header(self) -> Option<String> {
        match (self.start, self.end) {
            (0, None) => None,
            (start, None) => Some(format!("bytes={start}-")),
            (start, Some(end)) => Some(format!("bytes={start}-{}", end.saturating_sub(1))),
        }
    }
}

/// A connection to the control plane; cloning is cheap, and all clones change certificates
/// together.
#[derive(Debug, Clone)]
pub struct Transport {
    http: Arc<RwLock<reqwest::Client>>,
    base: String,
}

impl Transport {
    /// As a member, with the device's certificate.
    ///
    /// # Errors
    /// [`TransportError::Tls`].
    pub fn member(identity: &Identity, clock: Arc<SignedClock>) -> Result<Self, TransportError> {
        Self::new(&identity.url, tls::member(identity, clock)?)
    }

    /// For enrolment: the server is checked against the CA's fingerprint.
    pub(crate) fn pinned(
        url: &str,
        ca_sha256: [u8; 32],
        clock: Arc<SignedClock>,
    ) -> Result<Self, TransportError> {
        Self::new(url, tls::pinned(ca_sha256, clock)?)
    }

    fn new(url: &str, tls: rustls::ClientConfig) -> Result<Self, TransportError> {
        let base = url.trim_end_matches('/').to_owned();
        let http = Arc::new(RwLock::new(client(&base, tls)?));
        Ok(Self { http, base })
    }

    /// Takes up a renewed certificate; requests under way end with the old one.
    pub(crate) fn renewed(
        &self,
        identity: &Identity,
        clock: Arc<SignedClock>,
    ) -> Result<(), TransportError> {
        let renewed = client(&self.base, tls::member(identity, clock)?)?;
        *self.http.write().unwrap_or_else(PoisonError::into_inner) = renewed;
        Ok(())
    }

    /// The control plane's address.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.base
    }

    /// Joins the fleet.
    pub(crate) async fn enroll(
        &self,
        request: &EnrollRequest,
    ) -> Result<EnrollResponse, TransportError> {
        self.post("/device/v1/enroll", request).await
    }

    /// Renews the device's certificate.
    pub(crate) async fn renew(
        &self,
        request: &RenewRequest,
    ) -> Result<RenewResponse, TransportError> {
        self.post("/device/v1/renew", request).await
    }

    /// Checks in.
    pub(crate) async fn check_in(
        &self,
        check_in: &CheckIn,
    ) -> Result<CheckInResponse, TransportError> {
        self.post("/device/v1/check-in", check_in).await
    }

    /// Hands reports in.
    pub(crate) async fn outbox(&self, batch: &OutboxBatch) -> Result<OutboxAck, TransportError> {
        self.post("/device/v1/outbox", batch).await
    }

    /// A file of a repository's metadata.
    pub(crate) async fn metadata(
        &self,
        repo: Repo,
        want: &Want,
    ) -> Result<Fetched, TransportError> {
        let path = format!("/device/v1/{}/{}", repo.as_str(), want.file_name);
        let request = self.request(Method::GET, &path).timeout(REQUEST_TIMEOUT);
        let response = request.send().await.map_err(|error| unreachable(&self.base, &error))?;
        match response.status() {
            StatusCode::OK => {
                Ok(Fetched::Found(self.body(&path, response, want.length_max).await?))
            }
            StatusCode::NOT_FOUND => Ok(Fetched::NotFound),
            _ => Err(self.refusal(&path, response).await),
        }
    }

    /// The whole of a small blob.
    pub(crate) async fn small_blob(
        &self,
        digest: &Digest,
        length_max: u64,
    ) -> Result<Vec<u8>, TransportError> {
        let path = format!("/device/v1/blobs/{digest}");
        let request = self.request(Method::GET, &path).timeout(REQUEST_TIMEOUT);
        let response = request.send().await.map_err(|error| unreachable(&self.base, &error))?;
        match response.status() {
            StatusCode::OK => self.body(&path, response, length_max).await,
            _ => Err(self.refusal(&path, response).await),
        }
    }

    /// A blob's bytes, as they come: to the end of the range, or of the blob where that is open. The answer's status is 200 or 206; the
    /// caller checks where it begins.
    pub(crate) async fn blob(
        &self,
        digest: &Digest,
        range: Part,
    ) -> Result<Response, TransportError> {
        let path = format!("/device/v1/blobs/{digest}");
        let mut request = self.request(Method::GET, &path);
        if let Some(range) = range.header() {
            request = request.header(reqwest::header::RANGE, range);
        }
        let response = request.send().await.map_err(|error| unreachable(&self.base, &error))?;
        match response.status() {
            StatusCode::OK | StatusCode::PARTIAL_CONTENT => Ok(response),
            _ => Err(self.refusal(&path, response).await),
        }
    }

    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        let http = self.http.read().unwrap_or_else(PoisonError::into_inner).clone();
        http.request(method, format!("{}{path}", self.base))
    }

    async fn post<Q: Serialize, A: DeserializeOwned>(
        &self,
        path: &str,
        body: &Q,
    ) -> Result<A, TransportError> {
        let request = self.request(Method::POST, path).timeout(REQUEST_TIMEOUT).json(body);
        let response = request.send().await.map_err(|error| unreachable(&self.base, &error))?;
        if response.status() != StatusCode::OK {
            return Err(self.refusal(path, response).await);
        }
        let bytes = self.body(path, response, BODY_BYTES_MAX as u64).await?;
        serde_json::from_slice(&bytes).map_err(|error| TransportError::Answer {
            path: path.to_owned(),
            reason: format!("{error}; is the control plane of a newer version?"),
        })
    }

    /// Reads an answer up to its limit.
    async fn body(
        &self,
        path: &str,
        mut response: Response,
        limit: u64,
    ) -> Result<Vec<u8>, TransportError> {
        let too_long = || TransportError::TooLong { path: path.to_owned(), limit };
        if response.content_length().is_some_and(|length| length > limit) {
            return Err(too_long());
        }
        let mut bytes = Vec::new();
        while let Some(part) =
            response.chunk().await.map_err(|error| unreachable(&self.base, &error))?
        {
            if (bytes.len() + part.len()) as u64 > limit {
                return Err(too_long());
            }
            bytes.extend_from_slice(&part);
        }
        Ok(bytes)
    }

    async fn refusal(&self, path: &str, response: Response) -> TransportError {
        let status = response.status();
        let answer = match self.body(path, response, BODY_BYTES_MAX as u64).await {
            Ok(bytes) => serde_json::from_slice(&bytes).ok(),
            Err(error) => return error,
        };
        let answer = answer.unwrap_or_else(|| ApiError {
            code: "unknown".to_owned(),
            message: format!("{status} without an explanation"),
        });
        TransportError::Refused { path: path.to_owned(), status: status.as_u16(), answer }
    }
}

fn client(base: &str, tls: rustls::ClientConfig) -> Result<reqwest::Client, TransportError> {
    reqwest::Client::builder()
        .tls_backend_preconfigured(tls)
        .https_only(true)
        // A control plane has no reason to send a device elsewhere.
        .redirect(reqwest::redirect::Policy::none())
        .connect_timeout(CONNECT_TIMEOUT)
        .read_timeout(READ_TIMEOUT)
        .user_agent(concat!("fulmar/", env!("CARGO_PKG_VERSION")))
        .build()
        .map_err(|error| unreachable(base, &error))
}

/// reqwest's own text says little; what happened is in its sources.
fn unreachable(base: &str, error: &reqwest::Error) -> TransportError {
    let mut reason = String::new();
    let mut source = error.source();
    while let Some(error) = source {
        let text = error.to_string();
        if !reason.ends_with(&text) {
            if !reason.is_empty() {
                reason.push_str(": ");
            }
            reason.push_str(&text);
        }
        source = error.source();
    }
    if error.is_timeout() {
        reason = format!("no answer in time ({reason})");
    } else if reason.is_empty() {
        reason = error.to_string();
    }
    TransportError::Unreachable { url: base.to_owned(), reason }
}
