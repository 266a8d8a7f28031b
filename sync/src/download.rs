//! Blobs over HTTP with `Range`: taken up where they stopped, checked chunk by chunk on the way,
//! within the caps of bandwidth and of metered links.

use std::sync::Mutex;
use std::time::Duration;

use bytes::Bytes;
use fulmar_registry::Digest;
use fulmar_registry::blobs::{Begin, BlobError, Blobs, Expected, Incoming};
use reqwest::{Response, StatusCode};
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::transport::{Transport, TransportError, unreachable};

/// How often one download begins anew after a broken chunk or a cut connection.
const TRIES_MAX: u32 = 4;
/// Pieces of an answer that wait for the disk.
const PIECES_WAITING_MAX: usize = 16;

/// What the network costs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LinkCost {
    /// Nobody said.
    #[default]
    Unknown,
    /// By the byte: large downloads wait.
    Metered,
    /// Nothing.
    Unmetered,
}

impl LinkCost {
    /// As in check-ins.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Metered => "metered",
            Self::Unmetered => "unmetered",
        }
    }
}

/// Limits of downloads.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Bytes per second over all downloads; 0: no limit.
    pub bytes_per_s_max: u64,
    /// What one blob may still cost on a metered link, in bytes.
    pub metered_bytes_max: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { bytes_per_s_max: 0, metered_bytes_max: 16 << 20 }
    }
}

/// Why a blob did not come.
#[derive(Debug, thiserror::Error)]
pub enum DownloadError {
    /// The network or the control plane.
    #[error("download blob {digest}: {source}")]
    Transport {
        /// The blob.
        digest: Digest,
        /// What happened.
        source: TransportError,
    },
    /// The store, a chunk, the disk.
    #[error("download: {0}")]
    Blobs(#[from] BlobError),
    /// The server does not go on where the device stopped.
    #[error(
        "download blob {digest} from offset {offset}: the server sent {found} instead; on a \
         metered link the device does not begin anew by itself"
    )]
    NoResume {
        /// The blob.
        digest: Digest,
        /// Where it was to go on.
        offset: u64,
        /// What came.
        found: String,
    },
    /// Too large for a metered link.
    #[error(
        "download blob {digest}: {remaining} bytes are missing, on a metered link at most {limit} \
         are fetched; it goes on when the link is unmetered"
    )]
    Metered {
        /// The blob.
        digest: Digest,
        /// Bytes missing.
        remaining: u64,
        /// The limit in bytes.
        limit: u64,
    },
    /// Tried too often.
    #[error("download blob {digest}: given up for now after {tries} tries; last: {last}")]
    GivenUp {
        /// The blob.
        digest: Digest,
        /// How often.
        tries: u32,
        /// The last failure in words.
        last: String,
    },
    /// The process is ending.
    #[error("download blob {digest}: stopped")]
    Stopped {
        /// The blob.
        digest: Digest,
    },
}

/// Keeps all downloads together under one rate. Each take moves a mark on; who takes past now
/// waits until the mark.
#[derive(Debug)]
pub struct Pace {
    bytes_per_s_max: u64,
    free_at: Mutex<Option<Instant>>,
}

impl Pace {
    /// With a rate in bytes per second; 0: no limit.
    #[must_use]
    pub fn new(bytes_per_s_max: u64) -> Self {
        Self { bytes_per_s_max, free_at: Mutex::new(None) }
    }

    /// Accounts for bytes that came, and waits as long as they were too many.
    async fn take(&self, bytes: usize) {
        if let Some(until) = self.mark(bytes, Instant::now()) {
            tokio::time::sleep_until(until).await;
        }
    }

    fn mark(&self, bytes: usize, now: Instant) -> Option<Instant> {
        if self.bytes_per_s_max == 0 {
            return None;
        }
        let cost = Duration::from_secs_f64(bytes as f64 / self.bytes_per_s_max as f64);
        let mut free_at = self.free_at.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let from = free_at.map_or(now, |at| at.max(now));
        *free_at = Some(from + cost);
        (from > now).then_some(from)
    }
}

/// Fetches blobs into a store.
#[derive(Debug)]
pub struct Downloader {
    transport: Transport,
    blobs: Blobs,
    limits: Limits,
    pace: Pace,
}

/// Whether a failed try is worth another.
enum Tried {
    Done,
    Again { last: String },
}

impl Downloader {
    /// From the control plane into `blobs`.
    #[must_use]
    pub fn new(transport: Transport, blobs: Blobs, limits: Limits) -> Self {
        Self { transport, blobs, limits, pace: Pace::new(limits.bytes_per_s_max) }
    }

    /// Brings a blob in; returns when it is durable. Dropped on the way, what came stays.
    ///
    /// # Errors
    /// [`DownloadError`].
    pub async fn fetch(&self, expected: &Expected, cost: LinkCost) -> Result<(), DownloadError> {
        let digest = expected.digest;
        let mut tries = 0;
        loop {
            let Some(incoming) = self.begin(expected).await? else { return Ok(()) };
            let offset_before = incoming.offset();
            let last = match self.try_once(incoming, cost).await? {
                Tried::Done => return Ok(()),
                Tried::Again { last } => last,
            };
            // A try that brought something does not count: slow links get there too.
            let came_on = self.blobs.bytes_present(&digest) > offset_before;
            tries = if came_on { 1 } else { tries + 1 };
            if tries >= TRIES_MAX {
                return Err(DownloadError::GivenUp { digest, tries, last });
            }
            tracing::info!(%digest, last, "a download begins again where it stopped");
        }
    }

    async fn begin(&self, expected: &Expected) -> Result<Option<Box<Incoming>>, DownloadError> {
        let (blobs, expected) = (self.blobs.clone(), expected.clone());
        let digest = expected.digest;
        let begun = blocking(digest, move || blobs.begin(&expected)).await??;
        Ok(match begun {
            Begin::Present => None,
            Begin::Incoming(incoming) => Some(incoming),
        })
    }

    async fn try_once(
        &self,
        mut incoming: Box<Incoming>,
        cost: LinkCost,
    ) -> Result<Tried, DownloadError> {
        let digest = incoming.expected().digest;
        let (offset, remaining) = (incoming.offset(), incoming.remaining());
        let limit = self.limits.metered_bytes_max;
        if cost == LinkCost::Metered && remaining > limit {
            return Err(DownloadError::Metered { digest, remaining, limit });
        }
        if remaining == 0 {
            return self.commit(incoming).await;
        }
        let response = self
            .transport
            .blob_from(&digest, offset)
            .await
            .map_err(|source| DownloadError::Transport { digest, source })?;
        if let Err(found) = begins_at(&response, offset) {
            if cost == LinkCost::Metered || response.status() != StatusCode::OK {
                return Err(DownloadError::NoResume { digest, offset, found });
            }
            // The whole comes again; on a link that costs nothing that is better than nothing.
            incoming = blocking(digest, move || incoming.restart().map(|()| incoming)).await??;
        }
        self.receive(incoming, response).await
    }

    /// Network and disk side by side: the answer is read here, hashed and written over there.
    async fn receive(
        &self,
        mut incoming: Box<Incoming>,
        mut response: Response,
    ) -> Result<Tried, DownloadError> {
        let digest = incoming.expected().digest;
        let (sender, mut receiver) = mpsc::channel::<Bytes>(PIECES_WAITING_MAX);
        let writer = tokio::task::spawn_blocking(move || {
            while let Some(piece) = receiver.blocking_recv() {
                incoming.write(&piece)?;
            }
            Ok::<_, BlobError>(incoming)
        });
        let cut = loop {
            match response.chunk().await {
                Ok(Some(piece)) => {
                    self.pace.take(piece.len()).await;
                    // A writer that has failed tells below.
                    if sender.send(piece).await.is_err() {
                        break None;
                    }
                }
                Ok(None) => break None,
                Err(error) => break Some(unreachable(self.transport.url(), &error)),
            }
        };
        drop(sender);
        let written = writer.await.map_err(|_| DownloadError::Stopped { digest })?;
        match (written, cut) {
            (Ok(incoming), None) if incoming.remaining() == 0 => self.commit(incoming).await,
            (Ok(incoming), cut) => {
                let last = cut.map_or_else(
                    || format!("the answer ended {} bytes early", incoming.remaining()),
                    |cut| cut.to_string(),
                );
                Ok(Tried::Again { last })
            }
            (Err(error @ (BlobError::Chunk { .. } | BlobError::TooLong { .. })), _) => {
                Ok(Tried::Again { last: error.to_string() })
            }
            (Err(error), _) => Err(error.into()),
        }
    }

    async fn commit(&self, incoming: Box<Incoming>) -> Result<Tried, DownloadError> {
        let digest = incoming.expected().digest;
        match blocking(digest, move || incoming.commit()).await? {
            Ok(()) => Ok(Tried::Done),
            Err(error @ BlobError::Mismatch { .. }) => Ok(Tried::Again { last: error.to_string() }),
            Err(error) => Err(error.into()),
        }
    }
}

/// Runs disk work off the runtime's threads.
async fn blocking<T: Send + 'static>(
    digest: Digest,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, DownloadError> {
    tokio::task::spawn_blocking(work).await.map_err(|_| DownloadError::Stopped { digest })
}

/// Whether an answer's first byte is the one at `offset`; if not, what it says.
fn begins_at(response: &Response, offset: u64) -> Result<(), String> {
    let status = response.status();
    if status == StatusCode::OK {
        return if offset == 0 { Ok(()) } else { Err("the whole blob".to_owned()) };
    }
    let range = response.headers().get(reqwest::header::CONTENT_RANGE);
    let text = range.and_then(|value| value.to_str().ok()).unwrap_or("no Content-Range");
    let first = text.strip_prefix("bytes ").and_then(|rest| rest.split('-').next());
    match first.and_then(|first| first.trim().parse::<u64>().ok()) {
        Some(first) if first == offset => Ok(()),
        _ => Err(format!("{status} with {text:?}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pace_lets_through_as_many_bytes_as_its_rate() {
        let pace = Pace::new(1_000);
        let now = Instant::now();
        assert_eq!(pace.mark(500, now), None);
        assert_eq!(pace.mark(500, now), Some(now + Duration::from_millis(500)));
        assert_eq!(pace.mark(500, now), Some(now + Duration::from_secs(1)));
        assert_eq!(pace.mark(500, now + Duration::from_secs(9)), None);
        assert_eq!(Pace::new(0).mark(usize::MAX, now), None);
    }
}
