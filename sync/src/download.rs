//! Blobs from the control plane, within the caps of bandwidth and of metered links.

use std::sync::Arc;

use fulmar_registry::ModelName;
use fulmar_registry::blobs::{Blobs, Donors, Expected};
use fulmar_registry::fetch::{FetchError, Pace, WithoutResume, fetch_missing};

use crate::mirror::Mirror;
use crate::transport::{Part, Transport, TransportError};

/// What the network costs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LinkCost {
    /// Nobody said.
    #[default]
    Unknown,
    /// By the byte: large downloads wait.
    Metered,
    /// Nothing.
    Unmetered,
}

impl LinkCost {
    /// As in check-ins.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Metered => "metered",
            Self::Unmetered => "unmetered",
        }
    }
}

/// Limits of downloads.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Bytes per second over all downloads; 0: no limit.
    pub bytes_per_s_max: u64,
    /// What one release, all its files together, may still cost on a metered link, in bytes.
    pub metered_bytes_max: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { bytes_per_s_max: 0, metered_bytes_max: 16 << 20 }
    }
}

/// Why a blob did not come.
#[derive(Debug, thiserror::Error)]
pub enum DownloadError {
    /// On the way.
    #[error(transparent)]
    Fetch(#[from] FetchError<TransportError>),
    /// Too large for a metered link.
    #[error(
        "download {model}: {remaining} bytes are missing, on a metered link at most {limit} are \
         fetched for a release (sync.metered_bytes_max); it goes on when the link is unmetered"
    )]
    Metered {
        /// The release's name.
        model: ModelName,
        /// Bytes missing.
        remaining: u64,
        /// The limit in bytes.
        limit: u64,
    },
}

impl DownloadError {
    /// Whether only the way to the control plane is to blame.
    #[must_use]
    pub fn is_offline(&self) -> bool {
        match self {
            Self::Fetch(FetchError::Open { source, .. }) => source.is_offline(),
            Self::Fetch(FetchError::GivenUp { .. }) => true,
            _ => false,
        }
    }
}

/// Fetches blobs into a store.
#[derive(Debug)]
pub struct Downloader {
    transport: Transport,
    blobs: Blobs,
    limits: Limits,
    pace: Pace,
    mirrors: Vec<Mirror>,
}

impl Downloader {
    /// From the control plane into `blobs`.
    #[must_use]
    pub fn new(transport: Transport, blobs: Blobs, limits: Limits) -> Self {
        Self {
            transport,
            blobs,
            limits,
            pace: Pace::new(limits.bytes_per_s_max),
            mirrors: Vec::new(),
        }
    }

    /// With sources that are asked before the control plane, in their order.
    #[must_use]
    pub(crate) fn with_mirrors(self, mirrors: Vec<Mirror>) -> Self {
        Self { mirrors, ..self }
    }

    /// Refuses a release of which too many bytes are missing for a metered link.
    ///
    /// # Errors
    /// [`DownloadError::Metered`].
    pub fn check_cost(
        &self,
        model: &ModelName,
        remaining: u64,
        cost: LinkCost,
    ) -> Result<(), DownloadError> {
        let limit = self.limits.metered_bytes_max;
        match cost {
            LinkCost::Metered if remaining > limit => {
                Err(DownloadError::Metered { model: model.clone(), remaining, limit })
            }
            _ => Ok(()),
        }
    }

    /// Brings a blob in, without the chunks that donors have; returns when it is durable. Dropped on
    /// the way, what came stays. On a metered link it does not begin anew by itself.
    ///
    /// # Errors
    /// [`DownloadError`].
    pub async fn fetch(
        &self,
        expected: &Expected,
        donors: &Arc<Donors>,
        cost: LinkCost,
    ) -> Result<(), DownloadError> {
        let (digest, size_bytes) = (expected.digest, expected.size_bytes);
        let without_resume = match cost {
            LinkCost::Metered => WithoutResume::Refuse,
            LinkCost::Unknown | LinkCost::Unmetered => WithoutResume::Restart,
        };
        for mirror in &self.mirrors {
            let open = |range| mirror.blob(&digest, Part::of(range, size_bytes));
            let (blobs, pace) = (&self.blobs, &self.pace);
            match fetch_missing(blobs, expected, donors, pace, without_resume, open).await {
                Ok(()) => return Ok(()),
                // No other source has more room.
                Err(error @ (FetchError::Blobs(_) | FetchError::Stopped { .. })) => {
                    return Err(error.into());
                }
                Err(error) => tracing::info!(url = mirror.url(), %error, "a source failed"),
            }
        }
        let open = |range| self.transport.blob(&digest, Part::of(range, size_bytes));
        let (blobs, pace) = (&self.blobs, &self.pace);
        Ok(fetch_missing(blobs, expected, donors, pace, without_resume, open).await?)
    }
}
