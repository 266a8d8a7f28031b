//! One listening port: accept, TLS handshake, HTTP, drain.
//!
//! Own loop instead of a framework's, for two reasons: the peer's certificate becomes a request
//! extension, and each step has its own limit (connections, handshake, headers, drain).

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::Request;
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::GracefulShutdown;
use rustls_pki_types::CertificateDer;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio_rustls::TlsAcceptor;
use tower::ServiceExt as _;

use crate::config::Limits;

/// Streams in one HTTP/2 connection.
const STREAMS_MAX: u32 = 64;
/// Headers in one request.
const HEADERS_MAX: usize = 64;

/// Who is at the other end of a connection: an extension of every request.
#[derive(Debug, Clone)]
pub(crate) struct Peer {
    /// The other end's address.
    pub(crate) address: SocketAddr,
    /// The certificate that it proved to own; verified against the fleet's CA.
    pub(crate) certificate: Option<CertificateDer<'static>>,
}

/// A port that is open and not served yet.
pub(crate) struct Port {
    pub(crate) listener: TcpListener,
    pub(crate) tls: Option<TlsAcceptor>,
    pub(crate) router: Router,
    pub(crate) limits: Limits,
}

impl Port {
    /// Serves until `stop` turns true, then drains.
    pub(crate) async fn serve(self, mut stop: watch::Receiver<bool>) {
        let graceful = GracefulShutdown::new();
        let slots = Arc::new(Semaphore::new(self.limits.connections_max));
        let connection = Arc::new(Connection {
            tls: self.tls,
            router: self.router,
            limits: self.limits.clone(),
        });
        loop {
            // The slot first: with none free, callers wait in the kernel's bounded queue.
            let slot = tokio::select! {
                _ = stop.wait_for(|stop| *stop) => break,
                slot = Arc::clone(&slots).acquire_owned() => match slot {
                    Ok(slot) => slot,
                    Err(_) => break,
                },
            };
            let accepted = tokio::select! {
                _ = stop.wait_for(|stop| *stop) => break,
                accepted = self.listener.accept() => accepted,
            };
            let (stream, address) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "failed to accept a connection");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            let connection = Arc::clone(&connection);
            let watcher = graceful.watcher();
            tokio::spawn(async move {
                connection.serve(stream, address, watcher).await;
                drop(slot);
            });
        }
        drop(self.listener);
        let limit = Duration::from_millis(self.limits.drain_timeout_ms);
        if tokio::time::timeout(limit, graceful.shutdown()).await.is_err() {
            tracing::warn!("open requests did not finish in {} ms", limit.as_millis());
        }
    }
}

struct Connection {
    tls: Option<TlsAcceptor>,
    router: Router,
    limits: Limits,
}

type Watcher = hyper_util::server::graceful::Watcher;

impl Connection {
    async fn serve(&self, stream: TcpStream, address: SocketAddr, watcher: Watcher) {
        let _ = stream.set_nodelay(true);
        let Some(acceptor) = &self.tls else {
            return self.http(stream, Peer { address, certificate: None }, false, watcher).await;
        };
        let limit = Duration::from_millis(self.limits.handshake_timeout_ms);
        let stream = match tokio::time::timeout(limit, acceptor.accept(stream)).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => {
                tracing::debug!(%address, %error, "a TLS handshake failed");
                return;
            }
            Err(_) => {
                tracing::debug!(%address, "a TLS handshake took too long");
                return;
            }
        };
        let session = stream.get_ref().1;
        let certificate = session
            .peer_certificates()
            .and_then(|chain| chain.first())
            .map(|c| c.clone().into_owned());
        let http2 = session.alpn_protocol() == Some(b"h2");
        self.http(stream, Peer { address, certificate }, http2, watcher).await;
    }

    async fn http<S>(&self, stream: S, peer: Peer, http2: bool, watcher: Watcher)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let router = self.router.clone();
        let address = peer.address;
        let service = hyper::service::service_fn(move |mut request: Request<Incoming>| {
            request.extensions_mut().insert(peer.clone());
            router.clone().oneshot(request)
        });
        // The version is known before the first byte: guessing would wait for it without a limit.
        let mut builder = auto::Builder::new(TokioExecutor::new());
        builder = if http2 { builder.http2_only() } else { builder.http1_only() };
        builder
            .http1()
            .timer(TokioTimer::new())
            .header_read_timeout(Duration::from_millis(self.limits.header_timeout_ms))
            .max_headers(HEADERS_MAX)
            .max_buf_size(self.limits.header_bytes_max.max(8 << 10));
        builder
            .http2()
            .timer(TokioTimer::new())
            .keep_alive_interval(Duration::from_secs(30))
            .keep_alive_timeout(Duration::from_secs(20))
            .max_concurrent_streams(STREAMS_MAX)
            .max_header_list_size(u32::try_from(self.limits.header_bytes_max).unwrap_or(u32::MAX));
        let connection = builder.serve_connection(TokioIo::new(stream), service).into_owned();
        if let Err(error) = watcher.watch(connection).await {
            tracing::debug!(%address, error, "a connection ended early");
        }
    }
}
