//! Accepting connections, on TCP and on the Unix socket, and draining them.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use axum::{Extension, Router};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::Config;
use super::auth::Peer;

/// Sockets that are open but not served yet.
#[derive(Debug)]
pub(crate) struct Listeners {
    tcp: Vec<TcpListener>,
    unix: UnixListener,
}

impl Listeners {
    /// Opens all addresses and the socket at `path`. A socket left by a dead agent is replaced;
    /// one of a living agent is not.
    ///
    /// # Errors
    /// Names the address.
    pub(crate) async fn open(config: &Config, path: &Path) -> anyhow::Result<Self> {
        config.check()?;
        let mut tcp = Vec::new();
        for address in &config.listen {
            let listener = TcpListener::bind(address)
                .await
                .with_context(|| format!("listen on {address} (http.listen)"))?;
            tcp.push(listener);
        }
        if tokio::net::UnixStream::connect(path).await.is_ok() {
            anyhow::bail!(
                "listen on {}: another agent serves this state directory",
                path.display()
            );
        }
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("replace {}", path.display()));
            }
            _ => {}
        }
        let unix =
            UnixListener::bind(path).with_context(|| format!("listen on {}", path.display()))?;
        Ok(Self { tcp, unix })
    }

    /// The TCP addresses, with the ports that the system chose.
    pub(crate) fn addresses(&self) -> Vec<SocketAddr> {
        self.tcp.iter().filter_map(|listener| listener.local_addr().ok()).collect()
    }
}

/// What all accept loops share.
#[derive(Clone)]
struct Acceptor {
    router: Router,
    places: Arc<Semaphore>,
    tracker: TaskTracker,
    stop: CancellationToken,
    header_timeout: Duration,
}

/// Serves until `stop`, then lets answers under way end, for `drain_timeout_ms` at most.
pub(crate) async fn serve(
    listeners: Listeners,
    router: Router,
    config: &Config,
    stop: CancellationToken,
) {
    let acceptor = Acceptor {
        router,
        places: Arc::new(Semaphore::new(config.connections_max)),
        tracker: TaskTracker::new(),
        stop: stop.clone(),
        header_timeout: config.header_timeout(),
    };
    for listener in listeners.tcp {
        let acceptor = acceptor.clone();
        acceptor.tracker.clone().spawn(async move { acceptor.accept_tcp(listener).await });
    }
    let unix = acceptor.clone();
    acceptor.tracker.spawn(async move { unix.accept_unix(listeners.unix).await });
    stop.cancelled().await;
    acceptor.tracker.close();
    let limit = Duration::from_millis(config.drain_timeout_ms);
    if tokio::time::timeout(limit, acceptor.tracker.wait()).await.is_err() {
        tracing::warn!(open = acceptor.tracker.len(), "connections were cut at the drain's end");
    }
}

impl Acceptor {
    async fn accept_tcp(&self, listener: TcpListener) {
        loop {
            let Some(place) = self.place().await else { return };
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = self.stop.cancelled() => return,
            };
            match accepted {
                Ok((stream, _)) => {
                    // Tokens are small and must leave at once.
                    let _ = stream.set_nodelay(true);
                    self.spawn(stream, Peer::Tcp, place);
                }
                Err(error) => accept_failed(&error).await,
            }
        }
    }

    async fn accept_unix(&self, listener: UnixListener) {
        loop {
            let Some(place) = self.place().await else { return };
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = self.stop.cancelled() => return,
            };
            match accepted.and_then(|(stream, _)| Ok((stream.peer_cred()?.uid(), stream))) {
                Ok((uid, stream)) => self.spawn(stream, Peer::Unix { uid }, place),
                Err(error) => accept_failed(&error).await,
            }
        }
    }

    async fn place(&self) -> Option<tokio::sync::OwnedSemaphorePermit> {
        tokio::select! {
            place = Arc::clone(&self.places).acquire_owned() => place.ok(),
            () = self.stop.cancelled() => None,
        }
    }

    fn spawn(
        &self,
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        peer: Peer,
        place: tokio::sync::OwnedSemaphorePermit,
    ) {
        let service = TowerToHyperService::new(self.router.clone().layer(Extension(peer)));
        let mut builder = auto::Builder::new(TokioExecutor::new());
        builder.http1().timer(TokioTimer::new()).header_read_timeout(self.header_timeout);
        builder.http2().timer(TokioTimer::new());
        let stop = self.stop.clone();
        self.tracker.spawn(async move {
            let _place = place;
            let connection = builder.serve_connection(TokioIo::new(stream), service);
            let mut connection = std::pin::pin!(connection);
            let outcome = tokio::select! {
                outcome = connection.as_mut() => outcome,
                () = stop.cancelled() => {
                    connection.as_mut().graceful_shutdown();
                    connection.await
                }
            };
            if let Err(error) = outcome {
                tracing::debug!(error = %error, "a connection ended early");
            }
        });
    }
}

/// Out of file descriptors, mostly: wait a little, so that the loop does not burn the processor.
async fn accept_failed(error: &std::io::Error) {
    tracing::warn!(%error, "a connection could not be accepted");
    tokio::time::sleep(Duration::from_millis(100)).await;
}
