//! Garbage collection: what no one needs, said before it is freed.
//!
//! Never touched: active and previous releases, candidates that have not failed, pinned ones, and
//! what the caller keeps (models that the engine holds, blobs that a download wants).
//!
//! Rows go first, in one transaction with whatever the caller records; files after the commit. A
//! crash in between leaves files that the next collection finds. A [`GcLock`] keeps installations
//! of all processes out meanwhile.

use std::collections::BTreeSet;
use std::fs::File;

use rusqlite::{Connection, Transaction};
use rustix::fs::FlockOperation;

use crate::blobs::{self, BlobError, Blobs};
use crate::catalog::{self, CatalogError, Filter, Installed, Slot};
use crate::{Digest, ModelName};

/// What the caller needs besides what the catalog knows.
#[derive(Debug, Clone, Default)]
pub struct Keep {
    /// Releases that run, or are wanted, whatever their slot.
    pub models: BTreeSet<Digest>,
    /// Blobs that are wanted, complete or not.
    pub blobs: BTreeSet<Digest>,
}

/// A release that goes.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct GarbageModel {
    /// Its name.
    pub name: ModelName,
    /// Its digest.
    pub digest: Digest,
    /// Its files' bytes; shared ones may stay.
    pub size_bytes: u64,
}

/// What a collection frees.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
pub struct Garbage {
    /// Releases.
    pub models: Vec<GarbageModel>,
    /// Complete blobs and their bytes.
    pub blobs: Vec<(Digest, u64)>,
    /// Partial blobs and their bytes.
    pub incoming: Vec<(Digest, u64)>,
    /// Blobs in quarantine and their bytes.
    pub quarantine: Vec<(Digest, u64)>,
    /// Copies that were derived from blobs which go or are gone, by file name, and their bytes.
    pub copies: Vec<(String, u64)>,
}

impl Garbage {
    /// Bytes that it frees.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        [&self.blobs, &self.incoming, &self.quarantine]
            .into_iter()
            .flatten()
            .map(|(_, bytes)| bytes)
            .chain(self.copies.iter().map(|(_, bytes)| bytes))
            .sum()
    }

    /// Frees the files. To be called after the transaction of [`collect`] has committed, under the
    /// same lock.
    ///
    /// # Errors
    /// [`BlobError::Io`]; what was not freed is found by the next collection.
    pub fn sweep(&self, blobs: &Blobs, _lock: &GcLock) -> Result<(), BlobError> {
        for (digest, _) in self.blobs.iter().chain(&self.incoming) {
            blobs.remove(digest)?;
        }
        self.copies.iter().try_for_each(|(name, _)| blobs.remove_copy(name))?;
        self.quarantine.iter().try_for_each(|(digest, _)| blobs.remove_quarantined(digest))
    }
}

/// Held shared by whoever brings blobs in, exclusively by a collection; across processes.
#[derive(Debug)]
pub struct GcLock(#[expect(dead_code, reason = "the lock goes when the file closes")] File);

/// Keeps collections away while blobs are brought in, up to the transaction that installs them.
#[derive(Debug)]
pub struct Hold(#[expect(dead_code, reason = "the lock goes when the file closes")] File);

/// The lock could not be had.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// A model is being installed.
    #[error("collect garbage: a model is being installed; try again when it is done")]
    Installing,
    /// A collection runs.
    #[error("bring in blobs: garbage is being collected; try again in a moment")]
    Collecting,
    /// The lock file could not be opened.
    #[error("open the blob store's lock: {0}")]
    File(#[from] std::io::Error),
}

/// Takes the lock for a collection.
///
/// # Errors
/// [`LockError::Installing`] where another process or task holds it; [`LockError::File`].
pub fn lock(blobs: &Blobs) -> Result<GcLock, LockError> {
    let file = lock_file(blobs)?;
    rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive)
        .map_err(|_| LockError::Installing)?;
    Ok(GcLock(file))
}

/// Keeps collections away until it is dropped.
///
/// # Errors
/// [`LockError::Collecting`], [`LockError::File`].
pub fn hold(blobs: &Blobs) -> Result<Hold, LockError> {
    let file = lock_file(blobs)?;
    rustix::fs::flock(&file, FlockOperation::NonBlockingLockShared)
        .map_err(|_| LockError::Collecting)?;
    Ok(Hold(file))
}

fn lock_file(blobs: &Blobs) -> std::io::Result<File> {
    let path = blobs.dir().join("gc.lock");
    File::options().create(true).truncate(false).write(true).open(path)
}

/// What goes wrong while garbage is looked for.
#[derive(Debug, thiserror::Error)]
pub enum GcError {
    /// In the catalog.
    #[error("collect garbage: {0}")]
    Catalog(#[from] CatalogError),
    /// In the blob store.
    #[error("collect garbage: {0}")]
    Blobs(#[from] BlobError),
    /// In the database.
    #[error("collect garbage: {0}")]
    Store(#[from] fulmar_store::StoreError),
}

/// What a collection would free now; changes nothing.
///
/// # Errors
/// [`GcError`].
pub fn plan(connection: &Connection, blobs: &Blobs, keep: &Keep) -> Result<Garbage, GcError> {
    let all = catalog::list(connection, &Filter::default())?;
    let (garbage, kept): (Vec<_>, Vec<_>) =
        all.into_iter().partition(|model| is_garbage(model, keep));
    let mut wanted = keep.blobs.clone();
    wanted.extend(kept.iter().flat_map(|model| &model.manifest.files).map(|file| file.digest));
    // A damaged row keeps its files: they are good, and wanted when it is written anew.
    wanted.extend(catalog::damaged(connection)?.into_iter().flat_map(|row| row.blobs));
    let unwanted = |list: Vec<(Digest, u64)>| {
        list.into_iter().filter(|(digest, _)| !wanted.contains(digest)).collect()
    };
    Ok(Garbage {
        models: garbage
            .iter()
            .map(|model| GarbageModel {
                name: model.name().clone(),
                digest: model.digest,
                size_bytes: model.manifest.size_bytes(),
            })
            .collect(),
        blobs: unwanted(blobs.list()?),
        incoming: unwanted(blobs.list_incoming()?),
        // What is still to be mended has sound chunks that need not be fetched again.
        quarantine: blobs
            .list_quarantined()?
            .into_iter()
            .filter(|(digest, _)| !wanted.contains(digest) || blobs.path(digest).exists())
            .collect(),
        copies: blobs
            .list_copies()?
            .into_iter()
            .filter(|(name, _)| blobs::copy_of(name).is_none_or(|blob| !wanted.contains(&blob)))
            .collect(),
    })
}

fn is_garbage(model: &Installed, keep: &Keep) -> bool {
    let in_use = match model.slot {
        Some(Slot::Active | Slot::Previous) => true,
        Some(Slot::Candidate) => model.failure.is_none(),
        None => false,
    };
    !in_use && !model.pinned && !keep.models.contains(&model.digest)
}

/// Forgets the releases that nobody needs, and says which files go with them. The caller records
/// it in the same transaction, commits, and calls [`Garbage::sweep`].
///
/// # Errors
/// [`GcError`].
pub fn collect(
    tx: &Transaction<'_>,
    blobs: &Blobs,
    keep: &Keep,
    _lock: &GcLock,
) -> Result<Garbage, GcError> {
    let garbage = plan(tx, blobs, keep)?;
    for model in &garbage.models {
        catalog::remove(tx, &model.name, &model.digest)?;
    }
    Ok(garbage)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Device;

    #[test]
    fn only_what_no_one_needs_is_freed() {
        let device = Device::new();
        let one = device.install("acme/tiny:v1", 1, b"weights one");
        device.activate("acme/tiny:v1", one);
        let two = device.install("acme/tiny:v1", 2, b"weights two");
        device.activate("acme/tiny:v1", two);
        let three = device.install("acme/tiny:v1", 3, b"weights three");
        device.activate("acme/tiny:v1", three);
        std::fs::create_dir(device.blobs.copies_dir()).unwrap();
        let copy = |weights: &[u8]| {
            let name = format!("{}-avx2-1.weights", Digest::of(weights).hex());
            std::fs::write(device.blobs.copies_dir().join(&name), b"copy").unwrap();
            name
        };
        let (gone, _stays) = (copy(b"weights one"), copy(b"weights three"));
        let stray = device.blobs.put(b"stray").unwrap();
        let kept = device.blobs.put(b"kept for a download").unwrap();
        let keep = Keep { blobs: [kept].into(), ..Keep::default() };
        let planned = device.store.read_blocking(|c| plan(c, &device.blobs, &keep)).unwrap();
        let names: Vec<Digest> = planned.models.iter().map(|m| m.digest).collect();
        assert_eq!(names, [one]);
        assert_eq!(planned.copies, [(gone, 4)]);
        assert_eq!(planned.bytes(), 11 + 5 + 4);
        assert_eq!(device.blobs.usage().unwrap().copies_bytes, 8);
        let running = Keep { models: [one].into(), ..keep.clone() };
        let spared = device.store.read_blocking(|c| plan(c, &device.blobs, &running)).unwrap();
        assert!(spared.models.is_empty());
        assert_eq!(spared.blobs, [(stray, 5)]);

        let lock = lock(&device.blobs).unwrap();
        let blobs = device.blobs.clone();
        let (garbage, lock) = device
            .store
            .write_blocking(move |tx| Ok::<_, GcError>((collect(tx, &blobs, &keep, &lock)?, lock)))
            .unwrap();
        assert_eq!(garbage, planned);
        garbage.sweep(&device.blobs, &lock).unwrap();
        assert_eq!(device.blobs.list().unwrap().len(), 3);
        assert_eq!(device.blobs.list_copies().unwrap().len(), 1);
        device.blobs.open_verified(&kept).unwrap();
    }

    #[test]
    fn what_is_in_quarantine_stays_until_it_is_mended() {
        let device = Device::new();
        let one = device.install("acme/tiny:v1", 1, b"weights one");
        device.activate("acme/tiny:v1", one);
        let weights = Digest::of(b"weights one");
        let path = device.blobs.path(&weights);
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, b"weights two").unwrap();
        device.blobs.open_verified(&weights).unwrap_err();
        let plan_now =
            || device.store.read_blocking(|c| plan(c, &device.blobs, &Keep::default())).unwrap();
        assert_eq!(plan_now(), Garbage::default());
        device.blobs.put(b"weights one").unwrap();
        assert_eq!(plan_now().quarantine, [(weights, 11)]);
    }

    #[test]
    fn a_failed_candidate_is_garbage_and_a_pinned_release_is_not() {
        let device = Device::new();
        let one = device.install("acme/tiny:v1", 1, b"one");
        let plan_now =
            || device.store.read_blocking(|c| plan(c, &device.blobs, &Keep::default())).unwrap();
        assert!(plan_now().models.is_empty());
        device
            .write(move |tx| catalog::fail(tx, &"acme/tiny:v1".parse().unwrap(), &one, "slow", 5));
        assert_eq!(plan_now().models.len(), 1);
        device.write(move |tx| catalog::pin(tx, &"acme/tiny:v1".parse().unwrap(), &one));
        assert!(plan_now().models.is_empty());
    }

    #[test]
    fn a_collection_and_an_installation_keep_out_of_each_others_way() {
        let device = Device::new();
        let held = hold(&device.blobs).unwrap();
        let held_too = hold(&device.blobs).unwrap();
        assert!(matches!(lock(&device.blobs), Err(LockError::Installing)));
        drop((held, held_too));
        let collecting = lock(&device.blobs).unwrap();
        assert!(matches!(hold(&device.blobs), Err(LockError::Collecting)));
        drop(collecting);
        hold(&device.blobs).unwrap();
    }
}
