//! How long a client waits: the header `X-Request-Timeout`, in seconds.

use std::time::{Duration, Instant};

use axum::extract::FromRequestParts;
use axum::http::request::Parts;

use super::error::ApiError;

/// The header's name.
pub(crate) const HEADER: &str = "X-Request-Timeout";
/// Seconds that it may name.
const SECONDS_MIN: f64 = 0.001;
const SECONDS_MAX: f64 = 86_400.0;

/// When the answer must be complete; `None`: it takes what it takes. Counted from when the
/// request's headers were read, so that loading a model and waiting in the queue are part of it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Deadline(pub(crate) Option<Instant>);

impl<S: Sync> FromRequestParts<S> for Deadline {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        let Some(value) = parts.headers.get(HEADER) else { return Ok(Self(None)) };
        let patience = patience(value.to_str().unwrap_or("?"))?;
        Ok(Self(Instant::now().checked_add(patience)))
    }
}

pub(super) fn patience(text: &str) -> Result<Duration, ApiError> {
    // Digits and a point: what else is a number in Rust (`inf`, `1e3`) is a slip here.
    let is_plain = text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
    let seconds = text.parse().ok().filter(|seconds| is_plain && in_range(*seconds));
    seconds.map(Duration::from_secs_f64).ok_or_else(|| {
        ApiError::invalid(
            Some(HEADER),
            format!("{HEADER} is {text:?}; expected seconds, {SECONDS_MIN} to {SECONDS_MAX}"),
        )
    })
}

fn in_range(seconds: f64) -> bool {
    (SECONDS_MIN..=SECONDS_MAX).contains(&seconds)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds_may_have_a_fraction_and_anything_else_is_refused_by_the_headers_name() {
        assert_eq!(patience("30").unwrap(), Duration::from_secs(30));
        assert_eq!(patience("0.25").unwrap(), Duration::from_millis(250));
        assert_eq!(patience("86400").unwrap(), Duration::from_secs(86_400));
        for bad in ["", "0", "-1", "1e3", "inf", "NaN", "86400.5", "30s", "1.2.3", " 5"] {
            let body = patience(bad).unwrap_err().body();
            assert_eq!(body["error"]["param"], HEADER, "{bad}");
            assert!(body["error"]["message"].as_str().unwrap().contains("0.001 to 86400"));
        }
    }
}
