//! Failing system calls under the whole worker, the database's too: strace answers in the kernel's
//! place.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, ensure};

use crate::work;

/// What writes, and what makes it last.
const CALLS: &str =
    "write,pwrite64,writev,fsync,fdatasync,ftruncate,fallocate,rename,renameat,renameat2";

/// Whether the disk comes back after the failure.
#[derive(Debug, Clone, Copy)]
enum Lasting {
    /// One call fails.
    Once,
    /// All from that one on.
    Ever,
}

/// Lets the first release through, then fails the calls of the second in turn, every `step`-th of
/// them: the first goes on serving, or the second does; once the disk is well, the second goes
/// through.
pub(crate) fn every_call_fails(step: usize) -> anyhow::Result<()> {
    let template = tempfile::tempdir()?;
    // By a process of its own: when that has ended, nobody has the database open any more.
    let made = Command::new(std::env::current_exe()?)
        .args(["--release", "1", "--one-cycle"])
        .arg(template.path())
        .status()?;
    ensure!(made.success(), "the first release did not go through: {made}");
    let mut counted = Vec::new();
    for error in ["EIO", "ENOSPC"] {
        for lasting in [Lasting::Once, Lasting::Ever] {
            let mut failed = 0;
            for number in (1..).step_by(step) {
                let dir = tempfile::tempdir()?;
                copy(template.path(), dir.path())?;
                let what = format!("{error} {lasting:?} at call {number}");
                let (injected, went_through) = run(dir.path(), error, lasting, number)?;
                if !injected {
                    break;
                }
                failed += 1;
                let serving = work::check(dir.path()).with_context(|| what.clone())?;
                ensure!((1..=2).contains(&serving), "{what}: release {serving} serves");
                ensure!(!went_through || serving == 2, "{what}: it was swallowed");
                let registry = work::open(dir.path())?;
                work::cycle(registry.store(), registry.blobs(), registry.owner(), 2)
                    .with_context(|| format!("{what}: on the well disk"))?;
                ensure!(work::check(dir.path())? == 2, "{what}: release 2 did not come after");
            }
            counted.push(format!("{failed} with {error} {lasting:?}"));
        }
    }
    println!("write, fsync and rename failed under worker and database: {}", counted.join(", "));
    Ok(())
}

/// Runs one cycle; says whether a call failed and whether the cycle went through. Calls are
/// counted in each thread alone, so one number may fail several.
fn run(dir: &Path, error: &str, lasting: Lasting, number: usize) -> anyhow::Result<(bool, bool)> {
    let log = dir.join("strace.log");
    let more = match lasting {
        Lasting::Once => "",
        Lasting::Ever => "+",
    };
    let status = Command::new("strace")
        .args(["-f", "-qq", "-o"])
        .arg(&log)
        .args(["-e", &format!("trace={CALLS}")])
        .args(["-e", &format!("inject={CALLS}:error={error}:when={number}{more}")])
        .arg(std::env::current_exe()?)
        .arg("--one-cycle")
        .arg(dir)
        .stderr(Stdio::null())
        .status()
        .context("start strace (tests/run installs it)")?;
    let text = fs::read_to_string(&log).context("read what strace saw")?;
    fs::remove_file(&log)?;
    ensure!(!text.is_empty(), "strace saw no call: it may not trace here");
    Ok((text.contains("(INJECTED)"), status.success()))
}

fn copy(from: &Path, to: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let (path, target) = {
            let entry = entry?;
            (entry.path(), to.join(entry.file_name()))
        };
        if path.is_dir() {
            copy(&path, &target)?;
        } else {
            fs::copy(&path, &target).with_context(|| format!("copy {}", path.display()))?;
        }
    }
    Ok(())
}
