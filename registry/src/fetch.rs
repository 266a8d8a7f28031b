//! Blobs over HTTP with `Range`: taken up where they stopped, checked chunk by chunk on the way,
//! under one rate. Who is asked, and how, is the caller's: it opens an answer at an offset.

use std::future::Future;
use std::ops::Range;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use reqwest::{Response, StatusCode};
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::Digest;
use crate::blobs::{Begin, BlobError, Blobs, Donors, Expected, Incoming};

/// How often one download begins anew without having come on, after a broken chunk or a cut
/// connection.
pub const TRIES_MAX: u32 = 4;
/// Pieces of an answer that wait for the disk.
const PIECES_WAITING_MAX: usize = 16;

/// What to do with a server that sends a blob from its beginning when asked for the rest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WithoutResume {
    /// Begin anew.
    Restart,
    /// Give up: every byte costs.
    Refuse,
}

/// Why a blob did not come. `E` is what opening an answer can fail with.
#[derive(Debug, thiserror::Error)]
pub enum FetchError<E: std::error::Error + 'static> {
    /// The server was not reached, or refused.
    #[error("download blob {digest}: {source}")]
    Open {
        /// The blob.
        digest: Digest,
        /// What happened.
        source: E,
    },
    /// The store, a chunk, the disk.
    #[error("download: {0}")]
    Blobs(#[from] BlobError),
    /// The server does not go on where the download stopped.
    #[error("download blob {digest} from offset {offset}: the server sent {found} instead")]
    NoResume {
        /// The blob.
        digest: Digest,
        /// Where it was to go on.
        offset: u64,
        /// What came.
        found: String,
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

/// How one try ended without failing for good.
enum Tried {
    Done,
    /// All that was asked for came; what follows is on the device.
    Filled(Box<Incoming>),
    Again {
        last: String,
    },
}

/// Brings a blob in; returns when it is durable. Dropped on the way, what came stays. `open` asks
/// for the bytes from an offset on and returns an answer with status 200 or 206.
///
/// # Errors
/// [`FetchError`].
pub async fn fetch<E, F>(
    blobs: &Blobs,
    expected: &Expected,
    pace: &Pace,
    without_resume: WithoutResume,
    open: impl Fn(u64) -> F,
) -> Result<(), FetchError<E>>
where
    E: std::error::Error + 'static,
    F: Future<Output = Result<Response, E>>,
{
    let donors = Arc::default();
    fetch_missing(blobs, expected, &donors, pace, without_resume, |range| open(range.start)).await
}

/// [`fetch`] of what donors do not have: `open` is asked for ranges, the last of which ends with
/// the blob.
///
/// # Errors
/// [`FetchError`].
pub async fn fetch_missing<E, F>(
    blobs: &Blobs,
    expected: &Expected,
    donors: &Arc<Donors>,
    pace: &Pace,
    without_resume: WithoutResume,
    open: impl Fn(Range<u64>) -> F,
) -> Result<(), FetchError<E>>
where
    E: std::error::Error + 'static,
    F: Future<Output = Result<Response, E>>,
{
    let digest = expected.digest;
    let mut tries = 0;
    let mut held = None;
    loop {
        let (store, wanted, local) = (blobs.clone(), expected.clone(), Arc::clone(donors));
        let begin = move || {
            let mut incoming = match held {
                Some(incoming) => incoming,
                None => match store.begin(&wanted)? {
                    Begin::Present => return Ok(None),
                    Begin::Incoming(incoming) => incoming,
                },
            };
            incoming.fill(&local)?;
            Ok::<_, BlobError>(Some(incoming))
        };
        let Some(mut incoming) = blocking(digest, begin).await?? else { return Ok(()) };
        held = None;
        let offset = incoming.offset();
        let tried = if incoming.remaining() == 0 {
            commit(incoming).await?
        } else {
            let mut end = incoming.gap_end(donors);
            let answer =
                open(offset..end).await.map_err(|source| FetchError::Open { digest, source })?;
            if answer.status() == StatusCode::OK {
                // It sends all, whatever it was asked for.
                end = expected.size_bytes;
            }
            if let Err(found) = begins_at(&answer, offset) {
                if without_resume == WithoutResume::Refuse || answer.status() != StatusCode::OK {
                    return Err(FetchError::NoResume { digest, offset, found });
                }
                incoming =
                    blocking(digest, move || incoming.restart().map(|()| incoming)).await??;
            }
            receive(incoming, answer, pace, end).await?
        };
        let last = match tried {
            Tried::Done => return Ok(()),
            Tried::Filled(incoming) => {
                (held, tries) = (Some(incoming), 0);
                continue;
            }
            Tried::Again { last } => last,
        };
        // A try that brought something does not count: slow links get there too.
        tries = if blobs.bytes_present(&digest) > offset { 1 } else { tries + 1 };
        if tries >= TRIES_MAX {
            return Err(FetchError::GivenUp { digest, tries, last });
        }
        tracing::info!(%digest, last, "a download begins again where it stopped");
    }
}

/// Network and disk side by side: the answer is read here, hashed and written over there.
async fn receive<E: std::error::Error + 'static>(
    mut incoming: Box<Incoming>,
    mut answer: Response,
    pace: &Pace,
    end: u64,
) -> Result<Tried, FetchError<E>> {
    let (digest, size_bytes) = (incoming.expected().digest, incoming.expected().size_bytes);
    // More than the whole blob is an error that the writer finds; more than a part is left.
    let mut wanted = if end < size_bytes { end - incoming.offset() } else { u64::MAX };
    let (sender, mut receiver) = mpsc::channel::<Vec<u8>>(PIECES_WAITING_MAX);
    let writer = tokio::task::spawn_blocking(move || {
        while let Some(piece) = receiver.blocking_recv() {
            incoming.write(&piece)?;
        }
        Ok::<_, BlobError>(incoming)
    });
    let cut = loop {
        match answer.chunk().await {
            Ok(Some(mut piece)) => {
                piece.truncate(usize::try_from(wanted).unwrap_or(usize::MAX));
                wanted -= piece.len() as u64;
                pace.take(piece.len()).await;
                // A writer that has failed tells below.
                if sender.send(piece.into()).await.is_err() || wanted == 0 {
                    break None;
                }
            }
            Ok(None) => break None,
            Err(error) => break Some(in_words(&error)),
        }
    };
    drop(sender);
    let written = writer.await.map_err(|_| FetchError::Stopped { digest })?;
    match (written, cut) {
        (Ok(incoming), None) if incoming.remaining() == 0 => commit(incoming).await,
        (Ok(incoming), _) if incoming.offset() == end => Ok(Tried::Filled(incoming)),
        (Ok(incoming), cut) => {
            let early = || format!("the answer ended {} bytes early", incoming.remaining());
            Ok(Tried::Again { last: cut.unwrap_or_else(early) })
        }
        (Err(error @ (BlobError::Chunk { .. } | BlobError::TooLong { .. })), _) => {
            Ok(Tried::Again { last: error.to_string() })
        }
        (Err(error), _) => Err(error.into()),
    }
}

async fn commit<E: std::error::Error + 'static>(
    incoming: Box<Incoming>,
) -> Result<Tried, FetchError<E>> {
    let digest = incoming.expected().digest;
    match blocking(digest, move || incoming.commit()).await? {
        Ok(()) => Ok(Tried::Done),
        Err(error @ BlobError::Mismatch { .. }) => Ok(Tried::Again { last: error.to_string() }),
        Err(error) => Err(error.into()),
    }
}

/// Runs disk work off the runtime's threads.
async fn blocking<T: Send + 'static, E: std::error::Error + 'static>(
    digest: Digest,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, FetchError<E>> {
    tokio::task::spawn_blocking(work).await.map_err(|_| FetchError::Stopped { digest })
}

/// Whether an answer's first byte is the one at `offset`; if not, what it says.
fn begins_at(answer: &Response, offset: u64) -> Result<(), String> {
    let status = answer.status();
    if status == StatusCode::OK {
        return if offset == 0 { Ok(()) } else { Err("the whole blob".to_owned()) };
    }
    let range = answer.headers().get(reqwest::header::CONTENT_RANGE);
    let text = range.and_then(|value| value.to_str().ok()).unwrap_or("no Content-Range");
    match first_byte(text) {
        Some(first) if first == offset => Ok(()),
        _ => Err(format!("{status} with {text:?}")),
    }
}

/// The first byte that a `Content-Range` names.
pub(crate) fn first_byte(content_range: &str) -> Option<u64> {
    let range = content_range.strip_prefix("bytes ")?;
    range.split('-').next()?.trim().parse().ok()
}

/// An error with its sources: reqwest's own text says little.
pub(crate) fn in_words(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let more = error.to_string();
        if !text.ends_with(&more) {
            text = format!("{text}: {more}");
        }
        source = error.source();
    }
    text
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
