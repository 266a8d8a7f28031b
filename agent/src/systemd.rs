//! What systemd is told: ready, alive, stopping. Without systemd these do nothing.

use std::time::Duration;

use sd_notify::NotifyState;
use tokio_util::sync::CancellationToken;

pub(crate) fn ready() {
    notify(&[NotifyState::Ready]);
}

pub(crate) fn stopping() {
    notify(&[NotifyState::Stopping]);
}

/// Says that the agent is alive, twice per watchdog interval, until `stop`. It runs on the
/// runtime that serves requests: when that hangs, systemd hears nothing and restarts the agent.
pub(crate) async fn watchdog(stop: CancellationToken) {
    let Some(interval) = sd_notify::watchdog_enabled() else { return };
    let half = (interval / 2).max(Duration::from_millis(100));
    loop {
        tokio::select! {
            () = tokio::time::sleep(half) => notify(&[NotifyState::Watchdog]),
            () = stop.cancelled() => return,
        }
    }
}

fn notify(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::warn!(%error, "systemd was not told");
    }
}
