//! Start and drain, told as a story.

use std::fs::File;
use std::future::Future;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use fulmar_policy::audit::{self, AuditError, AuditKey};
use fulmar_registry::blobs::{BlobError, Blobs};
use fulmar_store::{Store, StoreError};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;

use crate::app::{AUDIT_NAME, App, Parts};
use crate::ca::{Ca, CaError};
use crate::config::{Config, ConfigError, ConsoleTls};
use crate::director::{Director, DirectorError};
use crate::failure::chain;
use crate::init::AUDIT_KEY_FILE;
use crate::listen::Port;
use crate::tls::{self, Current, TlsError};
use crate::{console, device, files, gc, guard, operator, password, reports, schema};

/// How often the server's certificate is renewed, in hours.
const CERTIFICATE_RENEW_HOURS: u64 = 24;

/// Why the control plane did not start, or ended.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The configuration is refused.
    #[error("use the configuration")]
    Config(#[from] ConfigError),
    /// There is no state directory.
    #[error("open the control plane in {dir}: not found; make one with `fulmar-control init`")]
    NotInitialised {
        /// The directory.
        dir: PathBuf,
    },
    /// Another process has it open.
    #[error("open the control plane in {dir}: another process serves it")]
    Locked {
        /// The directory.
        dir: PathBuf,
    },
    /// A file could not be read or written.
    #[error("read or write the state directory")]
    File(#[from] files::FileError),
    /// The database could not be opened.
    #[error("open the database")]
    Store(#[from] StoreError),
    /// The CA could not be opened.
    #[error("open the fleet CA")]
    Ca(#[from] CaError),
    /// The blobs could not be opened.
    #[error("open the blob store")]
    Blobs(#[from] BlobError),
    /// The director's key could not be read.
    #[error("open the director")]
    Director(#[from] DirectorError),
    /// The audit key could not be read.
    #[error("open the audit key")]
    Audit(#[from] AuditError),
    /// No random numbers.
    #[error("draw random numbers")]
    Random(#[from] password::RandomError),
    /// TLS could not be set up.
    #[error("set TLS up")]
    Tls(#[from] TlsError),
    /// A port could not be opened.
    #[error("listen on {address}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the system said.
        source: std::io::Error,
    },
    /// A serving task panicked.
    #[error("serve: {0}")]
    Task(#[from] tokio::task::JoinError),
}

/// A control plane that serves. Dropping it does not stop it; its shutdown future does.
#[derive(Debug)]
pub struct Running {
    /// Where devices connect, `https://host:port`.
    pub device_url: String,
    /// Where operators connect, `http://host:port` or `https://host:port`.
    pub console_url: String,
    task: JoinHandle<()>,
}

impl Running {
    /// Waits until the shutdown future has completed and open requests have finished.
    ///
    /// # Errors
    /// [`ServeError::Task`] when a serving task panicked.
    pub async fn stopped(self) -> Result<(), ServeError> {
        Ok(self.task.await?)
    }
}

/// Starts the control plane of `config.dir` and returns once both ports are open. When
/// `shutdown` completes, it stops to accept, lets open requests finish within the drain limit and
/// ends; wait for that with [`Running::stopped`].
///
/// # Errors
/// [`ServeError`], by step.
pub async fn serve(
    config: Config,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> Result<Running, ServeError> {
    config.check()?;
    if !config.dir.join("control.db").exists() {
        return Err(ServeError::NotInitialised { dir: config.dir.clone() });
    }
    let lock = lock(&config)?;
    let ca = Ca::open(&config.dir)?;
    let store = Store::open(&config.dir.join("control.db"), &schema::ALL)?;
    let blobs = Blobs::open(&config.dir, config.blob_bytes_max)?;
    let director = Director::open(&config.dir)?;
    let cosigner = AuditKey::from_pkcs8(&files::read(&config.dir.join(AUDIT_KEY_FILE))?)?;
    let dummy_hash = password::hash_of_nothing()?;

    let device_listener = listen(config.device.listen).await?;
    let console_listener = listen(config.console.listen).await?;
    let device_address = address(&device_listener, config.device.listen)?;
    let console_address = address(&console_listener, config.console.listen)?;
    let device_url =
        config.device.url.clone().unwrap_or_else(|| format!("https://{}", dialled(device_address)));

    let current = Current::new(ca.server(&config.server_names(), crate::now_s())?)?;
    let device_tls = TlsAcceptor::from(tls::device(&ca, Arc::clone(&current))?);
    let console_tls = console_tls(&config, &current)?;
    let scheme = if console_tls.is_some() { "https" } else { "http" };
    let console_url = format!("{scheme}://{}", dialled(console_address));

    let limits = config.limits.clone();
    let app = App::new(Parts {
        config,
        store,
        blobs,
        ca,
        director,
        cosigner,
        dummy_hash,
        device_url: device_url.clone(),
        console_url: console_url.clone(),
    });
    let device_port = Port {
        listener: device_listener,
        tls: Some(device_tls),
        router: device::router(Arc::clone(&app)),
        limits: limits.clone(),
    };
    let console_port = Port {
        listener: console_listener,
        router: guard::wrap(
            operator::router(Arc::clone(&app)).merge(console::router(Arc::clone(&app))),
            &app,
        ),
        tls: console_tls,
        limits,
    };

    let (stop, stopping) = watch::channel(false);
    let task = tokio::spawn(async move {
        let _lock = lock;
        let upkeep = tokio::spawn(upkeep(Arc::clone(&app), current));
        let ports = [
            tokio::spawn(device_port.serve(stopping.clone())),
            tokio::spawn(console_port.serve(stopping)),
        ];
        shutdown.await;
        tracing::info!("stopping: no new connections, open requests finish");
        stop.send_replace(true);
        for port in ports {
            if let Err(error) = port.await {
                tracing::error!(%error, "a port ended badly");
            }
        }
        upkeep.abort();
        sign_audit_log(&app).await;
    });
    tracing::info!(device = %device_url, console = %console_url, "the control plane serves");
    Ok(Running { device_url, console_url, task })
}

fn lock(config: &Config) -> Result<File, ServeError> {
    let path = config.dir.join("lock");
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .map_err(|source| files::FileError::Write { path: path.clone(), source })?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(std::fs::TryLockError::WouldBlock) => {
            Err(ServeError::Locked { dir: config.dir.clone() })
        }
        Err(std::fs::TryLockError::Error(source)) => {
            Err(files::FileError::Write { path, source }.into())
        }
    }
}

async fn listen(address: SocketAddr) -> Result<TcpListener, ServeError> {
    TcpListener::bind(address).await.map_err(|source| ServeError::Listen { address, source })
}

fn address(listener: &TcpListener, asked: SocketAddr) -> Result<SocketAddr, ServeError> {
    listener.local_addr().map_err(|source| ServeError::Listen { address: asked, source })
}

/// The address to dial for one that is listened on.
fn dialled(address: SocketAddr) -> String {
    if address.ip().is_unspecified() {
        format!("localhost:{}", address.port())
    } else {
        address.to_string()
    }
}

fn console_tls(config: &Config, current: &Arc<Current>) -> Result<Option<TlsAcceptor>, ServeError> {
    let server =
        match (config.console.tls, &config.console.certificate_file, &config.console.key_file) {
            (ConsoleTls::Off, ..) => return Ok(None),
            (ConsoleTls::FleetCa, ..) => tls::console(Arc::clone(current))?,
            (ConsoleTls::Files, Some(chain), Some(key)) => {
                tls::console(Current::new(tls::from_files(chain, key)?)?)?
            }
            (ConsoleTls::Files, ..) => {
                return Err(ConfigError::FileMissing { field: "console.certificate_file" }.into());
            }
        };
    Ok(Some(TlsAcceptor::from(server)))
}

/// What a process that runs for years has to do from time to time.
async fn upkeep(app: Arc<App>, current: Arc<Current>) {
    let mut hour = 0_u64;
    loop {
        sign_audit_log(&app).await;
        forget_old_reports(&app).await;
        free_old_releases(&app).await;
        tokio::time::sleep(Duration::from_secs(3_600)).await;
        hour += 1;
        if hour.is_multiple_of(CERTIFICATE_RENEW_HOURS) {
            renew(&app, &current);
        }
    }
}

fn renew(app: &App, current: &Current) {
    let fresh = app
        .ca
        .server(&app.config.server_names(), crate::now_s())
        .map_err(TlsError::from)
        .and_then(|certificate| current.replace(certificate));
    if let Err(error) = fresh {
        tracing::error!(error = %chain(&error), "failed to renew the server's certificate");
    }
}

/// Signs the head of the control plane's own audit log: what was before cannot be cut off unseen.
async fn sign_audit_log(app: &Arc<App>) {
    let worker = Arc::clone(app);
    let signed = app
        .store
        .write(move |tx| {
            audit::checkpoint(tx, &worker.cosigner, AUDIT_NAME, crate::now_s())?;
            Ok::<_, AuditError>(())
        })
        .await;
    if let Err(error) = signed {
        tracing::error!(error = %chain(&error), "failed to sign the audit log");
    }
}

async fn free_old_releases(app: &Arc<App>) {
    let worker = Arc::clone(app);
    let freed = app
        .store
        .write(move |tx| {
            gc::collect(tx, &worker.blobs, &worker.config, "control-plane", crate::now_s())
        })
        .await;
    match freed {
        Ok(garbage) if garbage.blobs.is_empty() => {}
        Ok(garbage) => tracing::info!(garbage.bytes, "old releases' files are freed"),
        Err(error) => {
            tracing::error!(error = %chain(&error), "failed to free old releases' files");
        }
    }
}

async fn forget_old_reports(app: &App) {
    let before_s = crate::now_s() - i64::from(app.config.report_days_max) * 86_400;
    loop {
        match app.store.write(move |tx| reports::prune(tx, before_s)).await {
            Ok(reports::PRUNED_MAX) => {}
            Ok(_) => return,
            Err(error) => {
                tracing::error!(error = %chain(&error), "failed to forget old reports");
                return;
            }
        }
    }
}
