//! Failures injected into the blob store's file operations, for tests of what a broken disk does.
//!
//! A store opened by [`super::Blobs::open`] has none, and no environment variable or message can
//! give it any.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// One kind of file operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    /// Making a folder or opening a file for writing.
    Create,
    /// Reserving room.
    Reserve,
    /// Writing bytes.
    Write,
    /// Cutting a file.
    Truncate,
    /// `fsync` of a file.
    Sync,
    /// Renaming.
    Rename,
    /// `fsync` of a folder.
    SyncDir,
    /// Removing.
    Remove,
}

/// Which failure, as an `errno`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The disk is broken.
    Io,
    /// The disk is full.
    NoSpace,
}

impl Fault {
    fn error(self) -> io::Error {
        match self {
            Self::Io => rustix::io::Errno::IO.into(),
            Self::NoSpace => rustix::io::Errno::NOSPC.into(),
        }
    }
}

#[derive(Debug)]
struct Plan {
    fault: Fault,
    fail_at: u64,
    /// The first operation that goes well again.
    well_from: u64,
    done: AtomicU64,
}

/// Which operation fails, counted from 0 over all kinds.
#[derive(Debug, Clone)]
pub struct Faults(Option<Arc<Plan>>);

impl Faults {
    /// Nothing fails.
    #[must_use]
    pub fn none() -> Self {
        Self(None)
    }

    /// The operation number `fail_at` fails with `fault`, and all after it too, as on a disk that
    /// has died or is full.
    #[must_use]
    pub fn from(fail_at: u64, fault: Fault) -> Self {
        Self::between(fail_at, u64::MAX, fault)
    }

    /// The operation number `fail_at` fails with `fault`, and no other.
    #[must_use]
    pub fn once(fail_at: u64, fault: Fault) -> Self {
        Self::between(fail_at, fail_at + 1, fault)
    }

    fn between(fail_at: u64, well_from: u64, fault: Fault) -> Self {
        Self(Some(Arc::new(Plan { fault, fail_at, well_from, done: AtomicU64::new(0) })))
    }

    /// How many operations were tried so far.
    #[must_use]
    pub fn seen(&self) -> u64 {
        self.0.as_ref().map_or(0, |plan| plan.done.load(Ordering::Relaxed))
    }

    pub(super) fn check(&self, _op: Op) -> io::Result<()> {
        let Some(plan) = &self.0 else { return Ok(()) };
        let number = plan.done.fetch_add(1, Ordering::Relaxed);
        if (plan.fail_at..plan.well_from).contains(&number) {
            Err(plan.fault.error())
        } else {
            Ok(())
        }
    }
}
