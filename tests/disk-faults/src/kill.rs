//! kill -9 at random moments.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};

use crate::random::Random;
use crate::work;

/// How long a killed worker may take to serve again.
const SERVING_WITHIN: Duration = Duration::from_secs(5);

/// How often a restart is timed where it was too slow: the machine may have had other things to do.
const RESTARTS_MAX: usize = 3;
/// How long a worker may say nothing before it counts as stuck.
const SILENCE_MAX: Duration = Duration::from_secs(60);

/// So many kills cannot miss a phase by chance.
const KILLS_FOR_ALL_PHASES: u64 = 500;

/// What a worker said until it was killed.
struct Life {
    /// The newest release that it said is active, 0 for none.
    said_active: u64,
    /// What it was at when it was killed.
    at: String,
}

/// Kills a worker `count` times at random moments of its cycle and checks what it left.
pub(crate) fn rounds(count: u64, seed: u64) -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let mut random = Random::new(seed);
    let (mut before, mut slowest, mut releases) = (0, Duration::ZERO, 0);
    let mut hits: BTreeMap<String, u64> = BTreeMap::new();
    let started = Instant::now();
    for round in 1..=count {
        // A cycle takes some ten milliseconds; the start of the process is hit now and then.
        let delay = Duration::from_micros(random.below(120_000));
        let life = live(dir.path(), delay)?;
        *hits.entry(life.at.clone()).or_default() += 1;
        let serving = work::check(dir.path())
            .with_context(|| format!("kill {round} of {count} after {delay:?} (seed {seed})"))?;
        let known = life.said_active.max(before);
        ensure!(
            serving >= known,
            "kill {round}: release {serving} serves, {known} was durable before"
        );
        let took = restart(dir.path(), serving).with_context(|| format!("kill {round}"))?;
        slowest = slowest.max(took);
        releases += serving - before;
        before = serving;
    }
    ensure!(releases > 0, "no kill came late enough for a release to be activated");
    let missed: Vec<&str> = work::PHASES.into_iter().filter(|p| !hits.contains_key(*p)).collect();
    ensure!(missed.is_empty() || count < KILLS_FOR_ALL_PHASES, "no kill fell into {missed:?}");
    println!("kills fell into: {hits:?}");
    println!(
        "killed {count} times: {releases} releases went through, serving again after {slowest:?} \
         at most, {:?} in all",
        started.elapsed()
    );
    Ok(())
}

/// Starts a worker after a kill and lets it live until it serves `serving` again, all of its bytes
/// verified, or says that nothing is there; gives how long that took.
fn restart(dir: &Path, serving: u64) -> anyhow::Result<Duration> {
    let mut fastest = Duration::MAX;
    for _ in 0..RESTARTS_MAX {
        fastest = fastest.min(serves_after(dir, serving)?);
        if fastest < SERVING_WITHIN {
            return Ok(fastest);
        }
    }
    anyhow::bail!("serving again took {fastest:?}, the fastest of {RESTARTS_MAX} starts")
}

fn serves_after(dir: &Path, serving: u64) -> anyhow::Result<Duration> {
    let started = Instant::now();
    let (mut child, stdout) = start(dir)?;
    let (sender, lines) = mpsc::channel();
    thread::spawn(move || {
        let _ =
            BufReader::new(stdout).lines().map_while(Result::ok).try_for_each(|l| sender.send(l));
    });
    let first = lines.recv_timeout(SILENCE_MAX);
    let took = started.elapsed();
    child.kill().context("kill the worker")?;
    child.wait()?;
    let first = first.context("the worker was killed and does not serve again")?;
    // A worker whose last start ended in mid-cycle may have brought a later release in.
    let serves = match first.strip_prefix("serving ") {
        Some(release) => release.parse::<u64>()? >= serving,
        None => first == "ready" && serving == 0,
    };
    ensure!(serves, "the worker said {first:?}, release {serving} was active");
    Ok(took)
}

fn start(dir: &Path) -> anyhow::Result<(Child, ChildStdout)> {
    let mut child = Command::new(std::env::current_exe()?)
        .arg("--worker")
        .arg(dir)
        .stdout(Stdio::piped())
        .spawn()
        .context("start a worker")?;
    let stdout = child.stdout.take().context("read what the worker says")?;
    Ok((child, stdout))
}

fn live(dir: &Path, delay: Duration) -> anyhow::Result<Life> {
    let (mut child, stdout) = start(dir)?;
    let listener = thread::spawn(move || {
        let mut life = Life { said_active: 0, at: "start".to_owned() };
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            if let Some(phase) = line.strip_prefix("in ") {
                phase.clone_into(&mut life.at);
            } else if let Some(release) = line.strip_prefix("active ") {
                life.said_active = release.parse().unwrap_or(0);
            }
        }
        life
    });
    thread::sleep(delay);
    child.kill().context("kill the worker")?;
    let status = child.wait()?;
    ensure!(status.code().is_none(), "the worker ended by itself: {status}");
    listener.join().map_err(|_| anyhow::anyhow!("the listener panicked"))
}
