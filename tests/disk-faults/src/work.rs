//! The worker's cycle, and what must be true between any two of its instructions.

use std::io::Write as _;
use std::path::Path;

use anyhow::{Context as _, ensure};
use fulmar_policy::audit::{self, Event, Outcome};
use fulmar_registry::blobs::{Begin, Blobs, Expected};
use fulmar_registry::catalog::{self, CatalogError, Slot};
use fulmar_registry::gc::{self, GcError, Keep};
use fulmar_registry::import::{self, ModelFacts};
use fulmar_registry::manifest::FileRole;
use fulmar_registry::{
    Digest, Manifest, ManifestFile, ModelName, ModelRef, OwnerKey, Registry, SCHEMAS,
};
use fulmar_store::Store;
use rusqlite::Transaction;
use serde_json::json;

const NAME: &str = "faults/tiny:v1";
/// Bytes of each release's weights.
pub(crate) const WEIGHTS_BYTES: usize = 300_000;
/// Bytes written at once, as a network would bring them.
const PIECE_BYTES: usize = 16_384;

pub(crate) fn name() -> anyhow::Result<ModelName> {
    Ok(NAME.parse()?)
}

/// The weights of a release: the same whenever it is asked for.
pub(crate) fn weights(release: u64) -> Vec<u8> {
    let byte = |i: usize| ((i as u64).wrapping_mul(2_654_435_761).wrapping_add(release) >> 7) as u8;
    (0..WEIGHTS_BYTES).map(byte).collect()
}

/// A release's manifest, with chunks as if tensors began every 50 kB.
pub(crate) fn manifest(release: u64) -> anyhow::Result<Manifest> {
    let borders = (0..WEIGHTS_BYTES as u64).step_by(50_000).collect();
    let bytes = weights(release);
    let role = FileRole::Weights;
    let file =
        ManifestFile::describe(&mut &bytes[..], borders, role, "m.gguf", import::GGUF_MEDIA_TYPE)?;
    let facts = ModelFacts { architecture: "none".into(), ..ModelFacts::default() };
    let mut manifest = import::manifest(&name()?, release, vec![file], &facts);
    // The same release must be the same bytes after a restart.
    manifest.created_at = "2026-01-01T00:00:00Z".parse().context("a constant time")?;
    Ok(manifest)
}

pub(crate) fn open_store(dir: &Path) -> anyhow::Result<Store> {
    Ok(Store::open(&dir.join("state.db"), &[SCHEMAS[0], SCHEMAS[1], &audit::SCHEMA])?)
}

pub(crate) fn open(dir: &Path) -> anyhow::Result<Registry> {
    Ok(Registry::open(dir, open_store(dir)?, &fulmar_registry::Options::default())?)
}

/// Release after release until killed; tells on standard output what is durable.
pub(crate) fn forever(dir: &Path) -> anyhow::Result<()> {
    let registry = open(dir)?;
    let name = name()?;
    if let Some(digest) =
        registry.store().read_blocking(|c| catalog::slot(c, &name, Slot::Active))?
    {
        let reference = ModelRef { name: name.clone(), digest: Some(digest) };
        let model = registry.verified_model(&reference)?;
        say(&format!("serving {}", model.manifest.release))?;
    }
    say("ready")?;
    loop {
        let floor = registry.store().read_blocking(|c| catalog::release_floor(c, &name))?;
        let (store, blobs) = (registry.store(), registry.blobs());
        told_cycle(store, blobs, registry.owner(), floor + 1, &|phase| {
            say(&format!("in {phase}"))
        })?;
        say(&format!("active {}", floor + 1))?;
    }
}

fn say(line: &str) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}")?;
    Ok(out.flush()?)
}

/// Brings a release in, once.
pub(crate) fn one(dir: &Path, release: u64) -> anyhow::Result<()> {
    let registry = open(dir)?;
    cycle(registry.store(), registry.blobs(), registry.owner(), release)
}

/// One release: downloaded, verified, installed, activated; garbage collected.
pub(crate) fn cycle(
    store: &Store,
    blobs: &Blobs,
    owner: &OwnerKey,
    release: u64,
) -> anyhow::Result<()> {
    told_cycle(store, blobs, owner, release, &|_| Ok(()))
}

/// What a cycle goes through, as [`told_cycle`] tells it.
pub(crate) const PHASES: [&str; 5] = ["download", "verify", "install", "activate", "gc"];

/// [`cycle`], told as it goes.
fn told_cycle(
    store: &Store,
    blobs: &Blobs,
    owner: &OwnerKey,
    release: u64,
    tell: &dyn Fn(&str) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let manifest = manifest(release)?;
    let signed = owner.sign(&manifest)?;
    let (name, digest) = (name()?, signed.digest());
    let hold = gc::hold(blobs)?;
    tell("download")?;
    for file in &manifest.files {
        let bytes = weights(release);
        let Begin::Incoming(mut incoming) = blobs.begin(&Expected::from(file))? else { continue };
        let offset = usize::try_from(incoming.offset())?;
        for piece in bytes[offset..].chunks(PIECE_BYTES) {
            incoming.write(piece)?;
        }
        incoming.commit()?;
        tell("verify")?;
        blobs.open_verified(&file.digest)?;
    }
    tell("install")?;
    let shared = blobs.clone();
    write(store, move |tx| {
        catalog::install(tx, &signed, &shared, 1)?;
        record(tx, "model.install", digest)
    })?;
    drop(hold);
    tell("activate")?;
    write(store, move |tx| {
        catalog::activate(tx, &name, &digest, 2)?;
        record(tx, "model.activate", digest)
    })?;
    tell("gc")?;
    let lock = gc::lock(blobs)?;
    let shared = blobs.clone();
    let (garbage, lock) = store.write_blocking(move |tx| {
        Ok::<_, GcError>((gc::collect(tx, &shared, &Keep::default(), &lock)?, lock))
    })?;
    Ok(garbage.sweep(blobs, &lock)?)
}

fn write(
    store: &Store,
    work: impl FnOnce(&Transaction<'_>) -> anyhow::Result<()> + Send + 'static,
) -> anyhow::Result<()> {
    store.write_blocking::<_, anyhow::Error, _>(work)
}

fn record(tx: &Transaction<'_>, action: &str, digest: Digest) -> anyhow::Result<()> {
    let event = Event {
        at_s: 1,
        actor: "faults",
        action,
        resource: NAME,
        outcome: Outcome::Completed,
        opened: None,
        detail: json!({ "digest": digest }),
    };
    audit::append(tx, &event)?;
    Ok(())
}

/// What is true whatever happened; returns the release that serves, 0 for none.
pub(crate) fn check(dir: &Path) -> anyhow::Result<u64> {
    let registry = open(dir)?;
    let store = registry.store();
    let damage = store.integrity_check()?;
    ensure!(damage.is_empty(), "the database is damaged: {damage:?}");
    store.read_blocking(|c| audit::verify(c, "faults", &[0; 32], None)).context("the audit log")?;
    let name = name()?;
    let slot = |slot| store.read_blocking(|c| catalog::slot(c, &name, slot));
    let active = slot(Slot::Active)?;
    let told = last_activation(store)?;
    ensure!(active == told, "{active:?} is active, the audit log says {told:?}");
    let mut serving = 0;
    for digest in [active, slot(Slot::Previous)?].into_iter().flatten() {
        let reference = ModelRef { name: name.clone(), digest: Some(digest) };
        let model = registry.verified_model(&reference)?;
        let size_bytes = model.weights.size_bytes();
        ensure!(size_bytes == WEIGHTS_BYTES as u64, "{digest} has {size_bytes} bytes");
        model.weights.verify(std::slice::from_ref(&(0..size_bytes)))?;
        if Some(digest) == active {
            serving = model.manifest.release;
        }
    }
    let scrubbed = registry.blobs().scrub(|| true)?;
    ensure!(scrubbed.corrupt.is_empty(), "partial or wrong blobs: {:?}", scrubbed.corrupt);
    Ok(serving)
}

/// The release of the last activation in the audit log.
fn last_activation(store: &Store) -> anyhow::Result<Option<Digest>> {
    let detail: Option<String> = store
        .read_blocking(|connection| {
            let found = connection.query_row(
                "SELECT detail FROM audit_entry WHERE action = 'model.activate'
                 ORDER BY seq DESC LIMIT 1",
                [],
                |row| row.get(0),
            );
            match found {
                Err(rusqlite::Error::QueryReturnedNoRows) => Ok(None),
                other => other.map(Some).map_err(CatalogError::from),
            }
        })
        .context("read the audit log")?;
    let Some(detail) = detail else { return Ok(None) };
    let detail: serde_json::Value = serde_json::from_str(&detail)?;
    Ok(Some(detail["digest"].as_str().unwrap_or_default().parse()?))
}
