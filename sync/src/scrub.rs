//! The background scrub: all blobs are read now and then, so that a flipped bit is found before it
//! is needed. When that was last done is known across restarts: a device that is switched off each
//! night is scrubbed too.

use std::path::Path;
use std::time::{Duration, SystemTime};

use fulmar_registry::{Blobs, Digest};

/// A device that has just started has other things to read.
const AFTER_START_MAX: Duration = Duration::from_secs(600);
/// Left to others after each blob.
const PAUSE: Duration = Duration::from_millis(100);

/// Scrubs every `interval_s` seconds; 0: never. `corrupt` hears of blobs that were moved to
/// quarantine, and is done with them before the next scrub.
pub async fn scrub<F: Future<Output = ()>>(
    blobs: Blobs,
    interval_s: u64,
    corrupt: impl Fn(Vec<Digest>) -> F,
) {
    if interval_s == 0 {
        return;
    }
    let (interval, mark) = (Duration::from_secs(interval_s), blobs.dir().join("scrubbed"));
    loop {
        tokio::time::sleep(wait(&mark, interval)).await;
        let store = blobs.clone();
        let between = || {
            std::thread::sleep(PAUSE);
            true
        };
        match tokio::task::spawn_blocking(move || store.scrub(between)).await {
            Ok(Ok(report)) if report.corrupt.is_empty() => {
                tracing::info!(report.blobs, report.bytes, "all blobs are sound");
            }
            Ok(Ok(report)) => {
                tracing::error!(corrupt = ?report.corrupt, "the scrub found corrupt blobs");
                corrupt(report.corrupt).await;
            }
            Ok(Err(error)) => tracing::warn!(%error, "the scrub did not end"),
            Err(_) => return,
        }
        // Not worth a failure: the next start scrubs again.
        if let Err(error) = std::fs::write(&mark, b"") {
            tracing::warn!(%error, path = %mark.display(), "the scrub left no mark");
            tokio::time::sleep(interval).await;
        }
    }
}

/// What is left of the interval since the mark; soon where there is none, or where it is of a day
/// to come: clocks of devices jump.
fn wait(mark: &Path, interval: Duration) -> Duration {
    let modified = std::fs::metadata(mark).and_then(|meta| meta.modified());
    let age = modified.ok().and_then(|at| SystemTime::now().duration_since(at).ok());
    let left = age.map_or(Duration::ZERO, |age| interval.saturating_sub(age));
    left.max(interval.min(AFTER_START_MAX))
}
