//! The attacks of the TUF specification's section 1.5.2, against repositories that another
//! implementation made: each folder of `attacks/` holds a script over python-tuf that builds a
//! repository, attacks it in steps, and says what must become of each.
//!
//! `FULMAR_TEST_PYTHON` names a Python with `tuf` and `securesystemslib[crypto]`; `tests/run` sets
//! it, and without it they fail.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use fulmar_registry::trust::{Fetched, Refresh, Repo, SCHEMA, Scope, TrustError, Trusted, Want};
use fulmar_store::Store;
use serde::Deserialize;

/// What the client has to make of one step.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Step {
    /// The clock, in seconds since 1970.
    at: i64,
    /// The error that the refresh must end with.
    refused: Option<String>,
    /// What is trusted afterwards.
    versions: BTreeMap<String, u64>,
    /// What becomes of each target.
    targets: BTreeMap<String, String>,
    /// The error that the search for a path must end with.
    names: BTreeMap<String, String>,
}

/// The variant's name: `Expired { … }` is `Expired`.
fn name_of(error: &TrustError) -> String {
    format!("{error:?}").split([' ', '(', '{']).next().unwrap_or_default().to_owned()
}

/// Reads as a careful downloader does: never more than the limit, plus one byte to tell.
fn fetch(folder: &Path, want: &Want) -> Fetched {
    use std::io::Read;
    let Ok(file) = std::fs::File::open(folder.join(&want.file_name)) else {
        return Fetched::NotFound;
    };
    let mut bytes = Vec::new();
    file.take(want.length_max.saturating_add(1)).read_to_end(&mut bytes).unwrap();
    Fetched::Found(bytes)
}

fn refresh(
    store: &Store,
    folder: &Path,
    at: i64,
    paths: Vec<String>,
) -> Result<(Trusted, Vec<String>), TrustError> {
    let trusted = store.read_blocking(|c| Trusted::load(c, Repo::Registry))?.unwrap();
    let mut refresh = Refresh::new(trusted, at).scope(Scope::Paths(paths));
    let ended = refresh.feed_all(|want| fetch(&folder.join("metadata"), want));
    let names = refresh.refused().iter().map(name_of).collect();
    let progress = refresh.into_progress();
    let trusted = progress.clone();
    store.write_blocking(move |tx| progress.store(tx))?;
    ended.map(|()| (trusted, names))
}

fn target(folder: &Path, trusted: &Trusted, path: &str) -> String {
    let Some(entry) = trusted.target(path) else { return "unknown".to_owned() };
    let (dir, base) = path.rsplit_once('/').unwrap_or(("", path));
    let file_name = match trusted.root().consistent_snapshot {
        true => format!("{}.{base}", entry.digest().unwrap().hex()),
        false => base.to_owned(),
    };
    let want = Want { file_name, length_max: entry.length };
    match fetch(&folder.join("targets").join(dir), &want) {
        Fetched::NotFound => "missing".to_owned(),
        Fetched::Found(bytes) if bytes.len() as u64 > want.length_max => "TooLong".to_owned(),
        Fetched::Found(bytes) => match entry.verify(path, &bytes) {
            Ok(()) => "verified".to_owned(),
            Err(error) => name_of(&error),
        },
    }
}

fn check(story: &Path, number: usize, step: &Step, store: &Store) {
    let folder = story.join(number.to_string());
    let place = format!("step {number} of {}", story.display());
    let paths = step.targets.keys().cloned().collect();
    let outcome = refresh(store, &folder, step.at, paths);
    let refused = outcome.as_ref().err().map(name_of);
    assert_eq!(refused, step.refused, "{place}: {outcome:?}");
    let trusted = store.read_blocking(|c| Trusted::load(c, Repo::Registry)).unwrap().unwrap();
    let found: BTreeMap<_, _> = trusted.files().map(|(role, v, _)| (role.to_owned(), v)).collect();
    for (role, version) in &step.versions {
        assert_eq!(found.get(role), Some(version), "{place}: {role}");
    }
    for (path, expected) in &step.targets {
        assert_eq!(&target(&folder, &trusted, path), expected, "{place}: {path}");
    }
    for (path, expected) in &step.names {
        let (trusted, refused) = refresh(store, &folder, step.at, vec![path.clone()]).unwrap();
        assert_eq!(refused, std::slice::from_ref(expected), "{place}: {path}");
        assert!(trusted.target(path).is_none(), "{place}: {path}");
    }
}

fn attack(name: &str) {
    let python = std::env::var_os("FULMAR_TEST_PYTHON")
        .expect("FULMAR_TEST_PYTHON names a Python with tuf: run this with tests/run");
    let scripts = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/attacks");
    let dir = tempfile::tempdir().unwrap();
    let story = dir.path().join(name);
    let status = Command::new(python)
        .arg("-B")
        .arg(scripts.join(name).join("attack.py"))
        .arg(&story)
        .env("PYTHONPATH", &scripts)
        .status()
        .unwrap();
    assert!(status.success(), "the script of {name} failed");
    let store = Store::open(&dir.path().join("state.db"), &[&SCHEMA]).unwrap();
    let root = std::fs::read(story.join("root.json")).unwrap();
    store.write_blocking(move |tx| Trusted::bootstrap(tx, Repo::Registry, &root, 0)).unwrap();
    let steps = std::fs::read(story.join("steps.json")).unwrap();
    let steps: Vec<Step> = serde_json::from_slice(&steps).unwrap();
    assert!(steps.len() > 1);
    for (index, step) in steps.iter().enumerate() {
        check(&story, index + 1, step, &store);
    }
}

#[test]
fn a_rollback_is_refused() {
    attack("rollback");
}

#[test]
fn a_freeze_is_noticed() {
    attack("freeze");
}

#[test]
fn a_fast_forward_is_recovered_from() {
    attack("fast-forward");
}

#[test]
fn mixed_and_matched_metadata_is_refused() {
    attack("mix-and-match");
}

#[test]
fn endless_data_ends_at_the_limit() {
    attack("endless-data");
}

#[test]
fn nothing_arbitrary_is_installed() {
    attack("arbitrary-installation");
}

#[test]
fn a_wrong_name_is_refused() {
    attack("wrong-name");
}

#[test]
fn an_extraneous_delegation_counts_for_nothing() {
    attack("extraneous-delegation");
}

#[test]
fn too_few_stolen_keys_are_worth_nothing() {
    attack("key-compromise");
}

#[test]
fn hash_prefixes_delegate_what_hashes_so_and_nothing_else() {
    attack("hash-prefixes");
}

#[test]
fn files_that_are_replaced_in_place_are_never_mixed() {
    attack("plain-names");
}
