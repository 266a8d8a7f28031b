//! Asking the running agent over its Unix socket.

use std::path::Path;

use anyhow::Context as _;
use axum::body::Bytes;
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::{Method, Request};
use hyper_util::rt::TokioIo;
use serde_json::Value;

/// Largest answer read, in bytes.
const ANSWER_BYTES_MAX: usize = 16 << 20;

/// One request, one JSON answer.
///
/// # Errors
/// When no agent serves the socket, or with what it answered.
pub(crate) async fn call(socket: &Path, method: Method, path: &str) -> anyhow::Result<Value> {
    let stream = tokio::net::UnixStream::connect(socket).await.with_context(|| {
        format!(
            "reach the agent at {}: is it running? `fulmar serve` or `systemctl start fulmar` \
             starts it",
            socket.display()
        )
    })?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .context("ask the agent")?;
    let connection = tokio::spawn(connection);
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header("host", "fulmar")
        .body(Empty::<Bytes>::new())
        .context("ask the agent")?;
    let response = sender.send_request(request).await.context("ask the agent")?;
    let status = response.status();
    let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX)
        .collect()
        .await
        .map_err(|error| anyhow::anyhow!("read the agent's answer: {error}"))?
        .to_bytes();
    drop(sender);
    // The connection ends with its sender; what it says then changes nothing.
    let _ = connection.await;
    let value: Value = serde_json::from_slice(&body).context("read the agent's answer")?;
    if !status.is_success() {
        let message = value["error"]["message"].as_str().unwrap_or("no reason given");
        anyhow::bail!("ask the agent: {status}: {message}");
    }
    Ok(value)
}
