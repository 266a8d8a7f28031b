//! Disks that break and disks that are too small.

use std::path::Path;

use anyhow::{Context as _, ensure};
use fulmar_registry::blobs::{BlobError, Blobs, Fault, Faults};
use fulmar_registry::{OwnerKey, Registry};

use crate::work::{self, WEIGHTS_BYTES};

/// Lets the first release through, then breaks the disk at every operation of the second in turn:
/// the first goes on serving, or the second does; once the disk is well, the second goes through.
pub(crate) fn every_operation_fails() -> anyhow::Result<()> {
    let mut counted = Vec::new();
    let kinds: [(Kind, Fault); 4] = [
        (Faults::from, Fault::Io),
        (Faults::from, Fault::NoSpace),
        (Faults::once, Fault::Io),
        (Faults::once, Fault::NoSpace),
    ];
    for (kind, fault) in kinds {
        for fail_at in 0.. {
            let dir = tempfile::tempdir()?;
            prepare(dir.path())?;
            let faults = kind(fail_at, fault);
            let outcome = broken_cycle(dir.path(), faults.clone());
            let serving = work::check(dir.path())
                .with_context(|| format!("{fault:?} from operation {fail_at} on"))?;
            ensure!(
                (1..=2).contains(&serving),
                "{fault:?} from operation {fail_at} on: release {serving} serves"
            );
            let swallowed = outcome.is_ok() && faults.seen() > fail_at;
            ensure!(!swallowed, "{fault:?} of operation {fail_at} was swallowed");
            if outcome.is_ok() {
                counted.push(fail_at.to_string());
                break;
            }
            let registry = work::open(dir.path())?;
            let (store, blobs) = (registry.store(), registry.blobs());
            work::cycle(store, blobs, registry.owner(), 2)?;
            ensure!(work::check(dir.path())? == 2, "the well disk did not take release 2");
        }
    }
    println!(
        "every operation of the blob store failed in turn (for ever: EIO, ENOSPC; once: EIO, \
         ENOSPC): {}",
        counted.join(", ")
    );
    Ok(())
}

/// For ever or once.
type Kind = fn(u64, Fault) -> Faults;

fn prepare(dir: &Path) -> anyhow::Result<Registry> {
    let registry = work::open(dir)?;
    work::cycle(registry.store(), registry.blobs(), registry.owner(), 1)?;
    Ok(registry)
}

fn broken_cycle(dir: &Path, faults: Faults) -> anyhow::Result<()> {
    let store = work::open_store(dir)?;
    let owner = OwnerKey::open_or_create(&dir.join("owner.key"))?;
    let blobs = Blobs::open_with_faults(dir, 1 << 30, faults)?;
    work::cycle(&store, &blobs, &owner, 2)
}

/// From no room to enough, in `steps`: too little is refused with the number that is short, the
/// first release goes on serving, and nothing is left behind that takes the room away.
pub(crate) fn budgets(steps: u64) -> anyhow::Result<()> {
    // Both releases at once: the one that serves stays until its successor does.
    let need = 2 * WEIGHTS_BYTES as u64;
    let mut refused = 0;
    for step in 0..=steps {
        let limit = need * step / steps;
        let dir = tempfile::tempdir()?;
        let registry = prepare(dir.path())?;
        drop(registry);
        let store = work::open_store(dir.path())?;
        let owner = OwnerKey::open_or_create(&dir.path().join("owner.key"))?;
        let blobs = Blobs::open(dir.path(), limit)?;
        let outcome = work::cycle(&store, &blobs, &owner, 2);
        let serving = work::check(dir.path()).with_context(|| format!("with {limit} bytes"))?;
        match outcome {
            Ok(()) => ensure!(limit >= need && serving == 2, "{limit} bytes were enough"),
            Err(error) => {
                let short = error.downcast_ref::<BlobError>();
                ensure!(
                    matches!(short, Some(BlobError::OverLimit { .. })),
                    "with {limit} bytes: {error:#}"
                );
                ensure!(serving == 1, "with {limit} bytes: release {serving} serves");
                refused += 1;
            }
        }
    }
    println!("{} budgets from 0 to {need} bytes: {refused} refused, the rest enough", steps + 1);
    Ok(())
}
