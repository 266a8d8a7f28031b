//! What systemd is told: ready, alive, stopping. Without systemd these do nothing.

use std::time::Duration;

use sd_notify::NotifyState;

pub(crate) fn ready() {
    notify(&[NotifyState::Ready]);
}

pub(crate) fn stopping() {
    notify(&[NotifyState::Stopping]);
}

/// Says that the control plane is alive, twice per watchdog interval, for as long as it is polled:
/// when the runtime that serves requests hangs, systemd hears nothing and restarts it.
pub(crate) async fn watchdog() {
    let Some(interval) = sd_notify::watchdog_enabled() else { return };
    let half = (interval / 2).max(Duration::from_millis(100));
    loop {
        tokio::time::sleep(half).await;
        notify(&[NotifyState::Watchdog]);
    }
}

fn notify(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::warn!(%error, "failed to tell systemd");
    }
}
