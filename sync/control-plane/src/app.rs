//! What every handler shares.

use std::sync::{Arc, Mutex};

use fulmar_policy::Policy;
use fulmar_policy::audit::AuditKey;
use fulmar_registry::blobs::Blobs;
use fulmar_store::Store;
use tokio::sync::Semaphore;

use crate::ca::Ca;
use crate::config::Config;
use crate::director::Director;
use crate::throttle::Throttle;

/// How the control plane is called in checkpoints of its own audit log.
pub(crate) const AUDIT_NAME: &str = "control-plane";

/// Password checks at once: each keeps a core busy.
const HASHING_MAX: usize = 2;

/// The control plane's parts, made once at start.
pub(crate) struct App {
    pub(crate) config: Config,
    pub(crate) store: Store,
    pub(crate) blobs: Blobs,
    pub(crate) ca: Ca,
    pub(crate) director: Director,
    /// Co-signs checkpoints of devices' audit logs.
    pub(crate) cosigner: AuditKey,
    pub(crate) policy: Policy,
    pub(crate) throttle: Mutex<Throttle>,
    pub(crate) hashing: Semaphore,
    /// Compared with when the name is unknown, so that it takes as long.
    pub(crate) dummy_hash: String,
    /// Where devices connect.
    pub(crate) device_url: String,
    /// Where operators connect.
    pub(crate) console_url: String,
    pub(crate) started_s: i64,
}

/// What [`App::new`] is made of.
pub(crate) struct Parts {
    pub(crate) config: Config,
    pub(crate) store: Store,
    pub(crate) blobs: Blobs,
    pub(crate) ca: Ca,
    pub(crate) director: Director,
    pub(crate) cosigner: AuditKey,
    pub(crate) dummy_hash: String,
    pub(crate) device_url: String,
    pub(crate) console_url: String,
}

impl App {
    pub(crate) fn new(parts: Parts) -> Arc<Self> {
        Arc::new(Self {
            config: parts.config,
            store: parts.store,
            blobs: parts.blobs,
            ca: parts.ca,
            director: parts.director,
            cosigner: parts.cosigner,
            policy: Policy::builtin(),
            throttle: Mutex::default(),
            hashing: Semaphore::new(HASHING_MAX),
            dummy_hash: parts.dummy_hash,
            device_url: parts.device_url,
            console_url: parts.console_url,
            started_s: crate::now_s(),
        })
    }

    /// Whether operators connect over TLS.
    pub(crate) fn console_is_tls(&self) -> bool {
        self.console_url.starts_with("https://")
    }
}
