//! Doors for the agent's fuzz target `requests` to what reads the bodies, headers and settings that
//! operators and devices hand to the control plane. Not part of the library: only there with the
//! feature `fuzzing`.

use http::header::{AUTHORIZATION, COOKIE, HOST, ORIGIN};
use http::{HeaderMap, HeaderValue};

use crate::config::Config;
use crate::{auth, blob, operator};

/// A body of a route of the operators' API.
pub fn body(route: u8, bytes: &[u8]) {
    operator::try_body(route, bytes);
}

/// The headers that say who asks, and from which page.
pub fn headers(bytes: &[u8]) {
    let Ok(value) = HeaderValue::from_bytes(bytes) else { return };
    let names = [AUTHORIZATION, COOKIE, HOST, ORIGIN];
    let headers = HeaderMap::from_iter(names.map(|name| (name, value.clone())));
    auth::try_headers(&headers);
}

/// The header that says which part of a blob is asked for.
pub fn range(text: &str, size: u64) {
    blob::try_part(text, size);
}

/// The configuration's file.
pub fn config(text: &str) {
    if let Ok(config) = toml::from_str::<Config>(text) {
        let _ = (config.check(), config.server_names());
    }
}
