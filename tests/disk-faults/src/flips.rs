//! Single bits that flip, at rest and on the way.

use std::fs::{File, OpenOptions, Permissions};
use std::os::unix::fs::{FileExt as _, PermissionsExt as _};

use anyhow::{Context as _, bail, ensure};
use fulmar_registry::blobs::{Begin, BlobError, Blobs, Expected};
use fulmar_registry::fetch::{Pace, WithoutResume, fetch};

use crate::random::Random;
use crate::server::Server;
use crate::work::{self, WEIGHTS_BYTES};

/// Flips bits of a stored blob, one at a time; every one is found before use.
pub(crate) fn in_files(count: u64, seed: u64) -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let blobs = Blobs::open(dir.path(), 1 << 30)?;
    let bytes = work::weights(1);
    let digest = blobs.put(&bytes)?;
    let path = blobs.path(&digest);
    let mut random = Random::new(seed);
    for round in 1..=count {
        let (at, bit) = (random.below(WEIGHTS_BYTES as u64), random.below(8));
        std::fs::set_permissions(&path, Permissions::from_mode(0o644))?;
        flip(&OpenOptions::new().read(true).write(true).open(&path)?, at, bit)?;
        match blobs.open_verified(&digest) {
            Err(BlobError::Corrupt { .. }) => {}
            other => bail!("flip {round} of bit {bit} at {at} was not found: {other:?}"),
        }
        ensure!(!path.exists(), "flip {round}: the corrupt blob is still visible");
        blobs.put(&bytes).context("repair")?;
        blobs.open_verified(&digest).context("after the repair")?;
    }
    println!("{count} bits flipped in files: all found before use, all repaired");
    Ok(())
}

fn flip(file: &File, at: u64, bit: u64) -> anyhow::Result<()> {
    let mut byte = [0];
    file.read_exact_at(&mut byte, at)?;
    file.write_all_at(&[byte[0] ^ (1 << bit)], at)?;
    Ok(())
}

/// Flips bits of a blob on its way, one at a time; every one is found at its chunk's end, and the
/// rest of the blob is not fetched again for it.
pub(crate) fn in_transit(count: u64, seed: u64) -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let blobs = Blobs::open(dir.path(), 1 << 30)?;
    let bytes = work::weights(1);
    let manifest = work::manifest(1)?;
    let expected = Expected::from(manifest.weights().context("a manifest has weights")?);
    let mut random = Random::new(seed);
    for round in 1..=count {
        let (at, bit) = (random.below(WEIGHTS_BYTES as u64) as usize, random.below(8));
        let Begin::Incoming(mut incoming) = blobs.begin(&expected)? else {
            bail!("flip {round}: the blob is there already")
        };
        let mut wrong = bytes.clone();
        wrong[at] ^= 1 << bit;
        match incoming.write(&wrong) {
            Err(BlobError::Chunk { .. }) => {}
            other => bail!("flip {round} of bit {bit} at {at} was not found: {other:?}"),
        }
        let good = usize::try_from(incoming.offset())?;
        ensure!(good <= at, "flip {round}: {good} bytes were kept, the flip is at {at}");
        incoming.write(&bytes[good..])?;
        incoming.commit()?;
        blobs.remove(&expected.digest)?;
    }
    println!("{count} bits flipped in transit: all found before the end");
    Ok(())
}

/// Flips bits of a blob on its way over HTTP, one in each download, under the download as devices do
/// it: every one is found, and the download goes on before the chunk that it broke.
pub(crate) fn over_http(count: u64, seed: u64) -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let blobs = Blobs::open(dir.path(), 1 << 30)?;
    let manifest = work::manifest(1)?;
    let expected = Expected::from(manifest.weights().context("a manifest has weights")?);
    let server = Server::start(work::weights(1))?;
    // Only where nobody has set one.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let http = reqwest::Client::builder().no_proxy().build()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let mut random = Random::new(seed);
    for round in 1..=count {
        let (at, bit) = (random.below(WEIGHTS_BYTES as u64) as usize, random.below(8) as u8);
        server.flip(at, bit);
        let open =
            |from: u64| http.get(&server.url).header("range", format!("bytes={from}-")).send();
        let pace = Pace::new(0);
        runtime
            .block_on(fetch(&blobs, &expected, &pace, WithoutResume::Refuse, open))
            .with_context(|| format!("flip {round} of bit {bit} at {at}"))?;
        let asked = server.asked();
        ensure!(
            asked.len() == 2 && asked[0] == 0 && asked[1] <= at as u64,
            "flip {round} of bit {bit} at {at}: the server was asked from {asked:?}"
        );
        blobs.open_verified(&expected.digest).context("what was downloaded")?;
        blobs.remove(&expected.digest)?;
    }
    println!("{count} bits flipped on the way over HTTP: all found before the end");
    Ok(())
}
