//! Local HTTP: the OpenAI-compatible routes for apps, and the routes that the command line uses.
//!
//! Every request but `/health` is somebody's: a bearer token over TCP, or the peer's user id on
//! the Unix socket. Every handler reads authenticate, decide, act.

mod auth;
mod body;
mod chat;
mod completions;
mod deadline;
mod embeddings;
mod error;
#[cfg(feature = "fuzzing")]
pub(crate) mod fuzzing;
mod generation;
mod listen;
mod local;
mod messages;
mod metrics;
mod models;
mod ollama;
mod openai;
mod prompts;
mod reply;
mod search;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::routing::{get, post};
use serde::{Deserialize, Serialize};
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::trace::TraceLayer;

pub(crate) use listen::{Listeners, serve};
pub(crate) use metrics::Metrics;
pub(crate) use reply::tokens_per_s;

use crate::app::App;

/// Local HTTP.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Config {
    /// Addresses to listen on. Tokens travel in clear text, so anything but loopback is refused
    /// unless `exposure` says otherwise.
    pub(crate) listen: Vec<SocketAddr>,
    /// `loopback-only`, or `behind-proxy` where a proxy on the way speaks TLS.
    pub(crate) exposure: Exposure,
    /// Bytes of a request's body.
    pub(crate) body_bytes_max: usize,
    /// Connections open at once; more wait in the kernel's queue.
    pub(crate) connections_max: usize,
    /// Time for a request's headers, in milliseconds.
    pub(crate) header_timeout_ms: u64,
    /// Time that answers under way have to end when the agent stops, in milliseconds.
    pub(crate) drain_timeout_ms: u64,
}

/// Who can reach the TCP addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Exposure {
    /// Only this machine: other addresses are refused.
    LoopbackOnly,
    /// A proxy in front speaks TLS; any address may be listened on.
    BehindProxy,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: vec![SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 11480)],
            exposure: Exposure::LoopbackOnly,
            body_bytes_max: 4 << 20,
            connections_max: 512,
            header_timeout_ms: 10_000,
            drain_timeout_ms: 15_000,
        }
    }
}

impl Config {
    /// Refuses addresses that would carry tokens over a network in clear text, and limits that leave
    /// room for nothing.
    ///
    /// # Errors
    /// Names the address or the limit, and the setting.
    pub(crate) fn check(&self) -> anyhow::Result<()> {
        for (limit, nothing) in [
            ("body_bytes_max", self.body_bytes_max == 0),
            ("connections_max", self.connections_max == 0),
            ("header_timeout_ms", self.header_timeout_ms == 0),
        ] {
            anyhow::ensure!(!nothing, "read http.{limit}: found 0, expected 1 or more");
        }
        for address in &self.listen {
            anyhow::ensure!(
                address.ip().is_loopback() || self.exposure == Exposure::BehindProxy,
                "listen on {address}: tokens would cross the network in clear text; listen on \
                 127.0.0.1 or set http.exposure = \"behind-proxy\" where a proxy speaks TLS"
            );
        }
        Ok(())
    }

    fn header_timeout(&self) -> Duration {
        Duration::from_millis(self.header_timeout_ms)
    }
}

/// All routes.
pub(crate) fn router(app: Arc<App>) -> Router {
    let body_bytes_max = app.config().http.body_bytes_max;
    Router::new()
        .route("/health", get(local::health))
        .route("/metrics", get(metrics::metrics))
        .route("/v1/models", get(models::list))
        .route("/v1/models/{*name}", get(models::show))
        .route("/v1/chat/completions", post(chat::chat))
        .route("/v1/completions", post(completions::complete))
        .route("/v1/embeddings", post(embeddings::embed))
        .merge(ollama::routes())
        .route("/fulmar/v1/search", get(search::search))
        .route("/fulmar/v1/status", get(local::status))
        .route("/fulmar/v1/ps", get(local::ps))
        .route("/fulmar/v1/sync", post(local::sync_now))
        .fallback(error::not_found)
        .method_not_allowed_fallback(error::method_not_allowed)
        .layer(DefaultBodyLimit::max(body_bytes_max))
        .layer(CatchPanicLayer::custom(error::panicked))
        .layer(TraceLayer::new_for_http())
        .with_state(app)
}
