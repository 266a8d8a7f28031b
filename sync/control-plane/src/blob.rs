//! Blobs over HTTP: served in ranges, taken in where an upload stopped.

use std::io::SeekFrom;

use axum::body::{Body, BodyDataStream};
use axum::response::{IntoResponse as _, Response};
use fulmar_registry::Digest;
use fulmar_registry::blobs::{Begin, BlobError, Blobs, Expected, Incoming};
use futures_util::StreamExt as _;
use http::{HeaderMap, StatusCode, header};
use tokio::io::{AsyncReadExt as _, AsyncSeekExt as _};
use tokio_util::io::ReaderStream;

use crate::failure::{Failure, chain};

/// Bytes read at once when a blob is served.
const READ_BYTES: usize = 256 << 10;

/// The part of a blob that is asked for: the first byte, and one behind the last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    /// All of it.
    Whole,
    /// These bytes.
    Range { start: u64, end: u64 },
    /// A range that lies outside.
    Outside,
}

/// Answers with a blob, or the range of it that `headers` ask for. The reader verifies what it
/// gets by the digest; here only the length is known for certain.
pub(crate) async fn serve(
    blobs: &Blobs,
    digest: Digest,
    headers: &HeaderMap,
) -> Result<Response, Failure> {
    let missing = || {
        Failure::refused(
            StatusCode::NOT_FOUND,
            "blob_missing",
            format!("blob {digest} is not here; publish its release again"),
        )
    };
    let mut file = tokio::fs::File::open(blobs.path(&digest)).await.map_err(|e| {
        if e.kind() == std::io::ErrorKind::NotFound {
            missing()
        } else {
            Failure::internal("open a blob", e)
        }
    })?;
    let size = file.metadata().await.map_err(|e| Failure::internal("open a blob", e))?.len();
    let etag = format!("\"{digest}\"");
    let common = [
        (header::ETAG, etag.clone()),
        (header::ACCEPT_RANGES, "bytes".to_owned()),
        (header::CONTENT_TYPE, "application/octet-stream".to_owned()),
        (header::CACHE_CONTROL, "private, max-age=31536000, immutable".to_owned()),
    ];
    let if_none = text(headers, header::IF_NONE_MATCH);
    if if_none.is_some_and(|tags| tags.split(',').any(|tag| tag.trim() == etag)) {
        return Ok((StatusCode::NOT_MODIFIED, common).into_response());
    }
    // If-Range with another tag: the range belongs to other bytes.
    let same = text(headers, header::IF_RANGE).is_none_or(|tag| tag == etag);
    let asked = if same { text(headers, header::RANGE) } else { None };
    let (start, end, status) = match part(asked, size) {
        Part::Whole => (0, size, StatusCode::OK),
        Part::Range { start, end } => (start, end, StatusCode::PARTIAL_CONTENT),
        Part::Outside => {
            let range = [(header::CONTENT_RANGE, format!("bytes */{size}"))];
            let error = Failure::refused(
                StatusCode::RANGE_NOT_SATISFIABLE,
                "range_outside",
                format!("blob {digest} has {size} bytes"),
            );
            return Ok((range, error).into_response());
        }
    };
    if start > 0 {
        file.seek(SeekFrom::Start(start)).await.map_err(|e| Failure::internal("seek", e))?;
    }
    let stream = ReaderStream::with_capacity(file.take(end - start), READ_BYTES);
    let mut response = (status, common, Body::from_stream(stream)).into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_LENGTH, (end - start).into());
    if status == StatusCode::PARTIAL_CONTENT
        && let Ok(range) = format!("bytes {start}-{}/{size}", end - 1).parse()
    {
        headers.insert(header::CONTENT_RANGE, range);
    }
    Ok(response)
}

fn text(headers: &HeaderMap, name: header::HeaderName) -> Option<&str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

/// One range of `bytes`; anything else asks for the whole (RFC 9110, 14.2).
fn part(range: Option<&str>, size: u64) -> Part {
    let Some(spec) = range.and_then(|r| r.trim().strip_prefix("bytes=")) else {
        return Part::Whole;
    };
    let Some((first, last)) = spec.split_once('-') else { return Part::Whole };
    if spec.contains(',') {
        return Part::Whole;
    }
    let number = |text: &str| text.trim().parse::<u64>();
    match (first.trim(), last.trim()) {
        ("", suffix) => match number(suffix) {
            Ok(0) => Part::Outside,
            Ok(_) if size == 0 => Part::Outside,
            Ok(length) => Part::Range { start: size.saturating_sub(length), end: size },
            Err(_) => Part::Whole,
        },
        (first, last) => {
            let (Ok(start), Ok(last)) =
                (number(first), if last.is_empty() { Ok(u64::MAX) } else { number(last) })
            else {
                return Part::Whole;
            };
            if last < start {
                Part::Whole
            } else if start >= size {
                Part::Outside
            } else {
                Part::Range { start, end: last.saturating_add(1).min(size) }
            }
        }
    }
}

/// Reads a range; for the fuzz target.
#[cfg(feature = "fuzzing")]
pub(crate) fn try_part(range: &str, size: u64) {
    if let Part::Range { start, end } = part(Some(range), size) {
        assert!(start < end && end <= size, "{start} to {end} of {size}");
    }
}

/// Takes an upload of `size_bytes` in, from `offset` on: which must be where the last one stopped.
/// The blob is visible only when it is complete and hashes to `digest`.
pub(crate) async fn take(
    blobs: Blobs,
    digest: Digest,
    size_bytes: u64,
    offset: u64,
    body: BodyDataStream,
) -> Result<(), Failure> {
    let expected = Expected { digest, size_bytes, chunks: Vec::new() };
    let begun = blocking(move || blobs.begin(&expected)).await?;
    let mut incoming = match begun {
        Begin::Present => return Ok(()),
        Begin::Incoming(incoming) => incoming,
    };
    if offset == 0 && incoming.offset() > 0 {
        incoming = blocking(move || incoming.restart().map(|()| incoming)).await?;
    }
    if offset != incoming.offset() {
        return Err(Failure::conflict(
            "offset_wrong",
            format!("the upload goes on at byte {}, not at {offset}", incoming.offset()),
        ));
    }
    let incoming = write_all(incoming, body).await?;
    blocking(move || incoming.commit()).await
}

async fn write_all(
    mut incoming: Box<Incoming>,
    mut body: BodyDataStream,
) -> Result<Box<Incoming>, Failure> {
    while let Some(bytes) = body.next().await {
        let bytes = bytes.map_err(|e| {
            Failure::invalid("body_incomplete", format!("the upload broke off: {e}"))
        })?;
        incoming = blocking(move || incoming.write(&bytes).map(|()| incoming)).await?;
    }
    Ok(incoming)
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, BlobError> + Send + 'static,
) -> Result<T, Failure> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|e| Failure::internal("write a blob", e))?
        .map_err(failure)
}

fn failure(error: BlobError) -> Failure {
    let message = chain(&error);
    match error {
        BlobError::OverLimit { .. } | BlobError::DiskFull { .. } => {
            Failure::refused(StatusCode::INSUFFICIENT_STORAGE, "blob_store_full", message)
        }
        BlobError::Busy { .. } => Failure::conflict("blob_busy", message),
        BlobError::TooLong { .. } | BlobError::TooShort { .. } | BlobError::Mismatch { .. } => {
            Failure::refused(StatusCode::UNPROCESSABLE_ENTITY, "blob_refused", message)
        }
        _ => Failure::internal("write a blob", message),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read_as_rfc_9110_says() {
        for (range, expected) in [
            (None, Part::Whole),
            (Some("bytes=0-9"), Part::Range { start: 0, end: 10 }),
            (Some("bytes=90-"), Part::Range { start: 90, end: 100 }),
            (Some("bytes=90-1000"), Part::Range { start: 90, end: 100 }),
            (Some("bytes=-10"), Part::Range { start: 90, end: 100 }),
            (Some("bytes=-1000"), Part::Range { start: 0, end: 100 }),
            (Some("bytes=100-"), Part::Outside),
            (Some("bytes=-0"), Part::Outside),
            (Some("bytes=9-0"), Part::Whole),
            (Some("bytes=0-1,5-6"), Part::Whole),
            (Some("lines=0-1"), Part::Whole),
            (Some("bytes=x-y"), Part::Whole),
            (Some("bytes=18446744073709551615-18446744073709551615"), Part::Outside),
            (Some("bytes=0-18446744073709551615"), Part::Range { start: 0, end: 100 }),
        ] {
            assert_eq!(part(range, 100), expected, "{range:?}");
        }
        assert_eq!(part(Some("bytes=-5"), 0), Part::Outside);
    }

    proptest::proptest! {
        #[test]
        fn any_range_lies_within_the_blob(
            range in "bytes=[0-9 ]{0,22}-[0-9 ]{0,22}|.{0,20}",
            size in proptest::num::u64::ANY,
        ) {
            if let Part::Range { start, end } = part(Some(&range), size) {
                proptest::prop_assert!(start < end && end <= size, "{start} {end} {size}");
            }
        }
    }
}
