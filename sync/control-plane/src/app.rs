//! What every handler shares.

use std::sync::Arc;

use fulmar_store::Store;

use crate::ca::Ca;
use crate::config::Config;

/// The control plane's parts, made once at start.
pub(crate) struct App {
    pub(crate) config: Config,
    pub(crate) store: Store,
    pub(crate) ca: Ca,
    /// Where devices connect.
    pub(crate) device_url: String,
    /// Where operators connect.
    pub(crate) console_url: String,
}

impl App {
    pub(crate) fn new(
        config: Config,
        store: Store,
        ca: Ca,
        device_url: String,
        console_url: String,
    ) -> Arc<Self> {
        Arc::new(Self { config, store, ca, device_url, console_url })
    }
}
