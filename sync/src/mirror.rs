//! Sources of blobs beside the control plane: a cache on site, a web server, an object store. They
//! need no trust: every chunk is held against what the owner signed.

use std::time::Duration;

use fulmar_registry::Digest;
use reqwest::{Response, StatusCode, Url};

use crate::transport::{Part, TransportError};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest silence within an answer.
const READ_TIMEOUT: Duration = Duration::from_secs(30);

/// Files by digest under one address.
#[derive(Debug, Clone)]
pub(crate) struct Mirror {
    http: reqwest::Client,
    base: String,
}

/// An address that cannot be asked for blobs.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("ask {url:?} for blobs: {reason}")]
pub struct BlobUrlError {
    /// The address.
    pub url: String,
    /// What is wrong with it.
    pub reason: String,
}

/// Refuses what cannot be asked for blobs.
///
/// # Errors
/// [`BlobUrlError`] where one is no address of HTTP.
pub fn check_blob_urls(urls: &[String]) -> Result<(), BlobUrlError> {
    for url in urls {
        let refuse = |reason: String| BlobUrlError { url: url.clone(), reason };
        let parsed = Url::parse(url).map_err(|error| refuse(error.to_string()))?;
        if !matches!(parsed.scheme(), "http" | "https") {
            return Err(refuse("expected http:// or https://".to_owned()));
        }
    }
    Ok(())
}

impl Mirror {
    /// Mirrors of these addresses, in their order.
    ///
    /// # Errors
    /// [`TransportError::BlobUrl`] where one is no address of HTTP.
    pub(crate) fn all(urls: &[String]) -> Result<Vec<Self>, TransportError> {
        if urls.is_empty() {
            return Ok(Vec::new());
        }
        check_blob_urls(urls)?;
        // reqwest takes the process's provider; somebody may have set it already.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let http = reqwest::Client::builder()
            .connect_timeout(CONNECT_TIMEOUT)
            .read_timeout(READ_TIMEOUT)
            .user_agent(concat!("fulmar/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(|error| refused("blob_urls", error.to_string()))?;
        let mirror =
            |url: &String| Self { http: http.clone(), base: url.trim_end_matches('/').to_owned() };
        Ok(urls.iter().map(mirror).collect())
    }

    /// Its address.
    pub(crate) fn url(&self) -> &str {
        &self.base
    }

    /// A part of a blob's bytes. The answer's status is 200 or 206; the caller checks where
    /// it begins.
    pub(crate) async fn blob(
        &self,
        digest: &Digest,
        range: Part,
    ) -> Result<Response, TransportError> {
        let url = format!("{}/{digest}", self.base);
        let mut request = self.http.get(&url);
        if let Some(range) = range.header() {
            request = request.header(reqwest::header::RANGE, range);
        }
        let unreachable = |error: reqwest::Error| TransportError::Unreachable {
            url: self.base.clone(),
            reason: error.to_string(),
        };
        let answer = request.send().await.map_err(unreachable)?;
        match answer.status() {
            StatusCode::OK | StatusCode::PARTIAL_CONTENT => Ok(answer),
            status => Err(refused(&url, format!("it answered {status}"))),
        }
    }
}

fn refused(path: &str, reason: String) -> TransportError {
    TransportError::Answer { path: path.to_owned(), reason }
}
