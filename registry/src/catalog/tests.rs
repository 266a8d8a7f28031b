use fulmar_store::Store;

use super::*;
use crate::owner::OwnerKey;
use crate::testing::manifest;

struct Device {
    _dir: tempfile::TempDir,
    store: Store,
    blobs: Blobs,
    owner: OwnerKey,
}

fn device() -> Device {
    let dir = tempfile::tempdir().unwrap();
    Device {
        store: Store::open(&dir.path().join("state.db"), &[&SCHEMA, &crate::trust::SCHEMA])
            .unwrap(),
        blobs: Blobs::open(dir.path(), 1 << 30).unwrap(),
        owner: OwnerKey::open_or_create(&dir.path().join("owner.key")).unwrap(),
        _dir: dir,
    }
}

impl Device {
    fn signed(&self, release: u64, weights: &[u8]) -> Signed {
        self.owner.sign(&manifest("acme/tiny:v1", release, weights)).unwrap()
    }

    fn write<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Transaction<'_>) -> Result<T, CatalogError> + Send + 'static,
    ) -> Result<T, CatalogError> {
        self.store.write_blocking(work)
    }

    fn install(&self, release: u64, weights: &[u8]) -> Result<Digest, CatalogError> {
        self.blobs.put(weights).unwrap();
        let (signed, blobs) = (self.signed(release, weights), self.blobs.clone());
        self.write(move |tx| install(tx, &signed, &blobs, 10).map(|()| signed.digest()))
    }

    fn activate(&self, digest: Digest) -> Result<Activated, CatalogError> {
        self.write(move |tx| activate(tx, &name(), &digest, 20))
    }

    fn slots(&self) -> [Option<Digest>; 3] {
        [Slot::Active, Slot::Previous, Slot::Candidate]
            .map(|s| self.store.read_blocking(|c| slot(c, &name(), s)).unwrap())
    }

    fn find(&self, reference: &str) -> Result<Installed, CatalogError> {
        let reference = reference.parse().unwrap();
        self.store.read_blocking(|c| find(c, &reference))
    }
}

fn name() -> ModelName {
    "acme/tiny:v1".parse().unwrap()
}

#[test]
fn nothing_is_installed_before_its_blobs_are_complete() {
    let device = device();
    let (signed, blobs) = (device.signed(1, b"absent"), device.blobs.clone());
    let refused = device.write(move |tx| install(tx, &signed, &blobs, 0));
    assert!(matches!(refused, Err(CatalogError::BlobMissing { .. })));
}

#[test]
fn a_release_goes_from_candidate_to_active_to_previous() {
    let device = device();
    let one = device.install(1, b"one").unwrap();
    assert_eq!(device.slots(), [None, None, Some(one)]);
    assert!(matches!(device.find("acme/tiny:v1"), Err(CatalogError::NotActive { .. })));
    assert_eq!(device.activate(one).unwrap(), Activated::Now { previous: None });
    assert_eq!(device.activate(one).unwrap(), Activated::Already);
    assert_eq!(device.find("acme/tiny:v1").unwrap().digest, one);
    let two = device.install(2, b"two").unwrap();
    assert_eq!(device.slots(), [Some(one), None, Some(two)]);
    assert_eq!(device.activate(two).unwrap(), Activated::Now { previous: Some(one) });
    assert_eq!(device.slots(), [Some(two), Some(one), None]);
    assert_eq!(device.find(&format!("acme/tiny:v1@{one}")).unwrap().slot, Some(Slot::Previous));
}

#[test]
fn a_rollback_returns_to_the_previous_and_remembers_why() {
    let device = device();
    let one = device.install(1, b"one").unwrap();
    device.activate(one).unwrap();
    let nowhere = device.write(|tx| rollback(tx, &name(), "", 30));
    assert!(matches!(nowhere, Err(CatalogError::NoPrevious { .. })));
    let two = device.install(2, b"two").unwrap();
    device.activate(two).unwrap();
    let back = device.write(|tx| rollback(tx, &name(), "too slow", 30)).unwrap();
    assert_eq!(back, RolledBack { from: two, to: one });
    assert_eq!(device.slots(), [Some(one), None, Some(two)]);
    assert_eq!(
        device.find(&format!("acme/tiny:v1@{two}")).unwrap().failure.as_deref(),
        Some("too slow")
    );
    device.activate(two).unwrap();
    assert!(device.store.read_blocking(failures).unwrap().is_empty());
}

#[test]
fn the_release_counter_never_goes_back_even_after_removal() {
    let device = device();
    let five = device.install(5, b"five").unwrap();
    device.write(move |tx| remove(tx, &name(), &five)).unwrap();
    assert!(matches!(device.find("acme/tiny:v1"), Err(CatalogError::NotInstalled { .. })));
    match device.install(4, b"four") {
        Err(CatalogError::Older { release: 4, floor: 5, .. }) => {}
        other => panic!("{other:?}"),
    }
    device.install(5, b"five").unwrap();
}

#[test]
fn a_failed_write_changes_no_slot() {
    let device = device();
    let one = device.install(1, b"one").unwrap();
    let failed: Result<(), CatalogError> = device.write(move |tx| {
        activate(tx, &name(), &one, 20)?;
        Err(CatalogError::NoPrevious { name: name() })
    });
    assert!(failed.is_err());
    assert_eq!(device.slots(), [None, None, Some(one)]);
}

#[test]
fn a_row_that_was_tampered_with_is_not_believed() {
    let device = device();
    let one = device.install(1, b"one").unwrap();
    device.activate(one).unwrap();
    device
        .write(|tx| {
            tx.execute("UPDATE model SET manifest = X'7b7d'", [])?;
            Ok(())
        })
        .unwrap();
    let refused = device.find("acme/tiny:v1");
    assert!(matches!(refused, Err(CatalogError::Damaged { column: "manifest", .. })));
}

#[test]
fn lists_are_filtered_by_what_the_manifest_says() {
    let device = device();
    device.install(1, b"one").unwrap();
    let count = |filter: Filter| device.store.read_blocking(|c| list(c, &filter)).unwrap().len();
    assert_eq!(count(Filter::default()), 1);
    assert_eq!(count(Filter { text: Some("TINY".into()), ..Filter::default() }), 1);
    assert_eq!(count(Filter { quantization: Some("q8_0".into()), ..Filter::default() }), 1);
    assert_eq!(count(Filter { architecture: Some("llama".into()), ..Filter::default() }), 0);
    assert_eq!(count(Filter { context_tokens_min: Some(513), ..Filter::default() }), 0);
    assert_eq!(count(Filter { memory_bytes_max: Some(1), ..Filter::default() }), 0);
    assert_eq!(count(Filter { slot: Some(Slot::Active), ..Filter::default() }), 0);
}

#[test]
fn a_damaged_row_costs_its_own_release_only_and_is_written_anew() {
    let device = device();
    let good = device.install(1, b"weights one").unwrap();
    let bad = device.install(2, b"weights two").unwrap();
    let name: ModelName = "acme/tiny:v1".parse().unwrap();
    let model = name.clone();
    device.write(move |tx| activate(tx, &model, &bad, 20)).unwrap();
    device
        .write(move |tx| {
            let sql = "SELECT manifest FROM model WHERE digest = ?1";
            let mut bytes: Vec<u8> = tx.query_row(sql, [bad], |row| row.get(0))?;
            bytes[20] ^= 4;
            tx.execute("UPDATE model SET manifest = ?2 WHERE digest = ?1", (bad, bytes))?;
            Ok(())
        })
        .unwrap();
    let read = |store: &Store| {
        let models = store.read_blocking(|c| list(c, &Filter::default())).unwrap();
        let left: Vec<Digest> = models.into_iter().map(|model| model.digest).collect();
        (left, store.read_blocking(damaged).unwrap())
    };
    let (left, broken) = read(&device.store);
    assert_eq!(left, [good]);
    let [row] = broken.as_slice() else { panic!("{broken:?}") };
    assert_eq!((row.digest, row.slot), (Some(bad), Some(Slot::Active)));
    assert!(row.reason.contains("its manifest is damaged"), "{}", row.reason);
    let reference = ModelRef { name: name.clone(), digest: None };
    let found = device.store.read_blocking(move |c| find(c, &reference));
    assert!(matches!(found, Err(CatalogError::Damaged { .. })));
    assert_eq!(device.store.read_blocking(active_names).unwrap(), [name.to_string()]);
    // Its files stay, and so does its place.
    let keep = crate::gc::Keep::default();
    let garbage = device.store.read_blocking(|c| crate::gc::plan(c, &device.blobs, &keep)).unwrap();
    assert!(!garbage.blobs.iter().any(|(blob, _)| *blob == Digest::of(b"weights two")));
    assert_eq!(device.install(2, b"weights two").unwrap(), bad);
    let (left, broken) = read(&device.store);
    assert_eq!((left, broken), (vec![bad, good], Vec::new()));
    assert_eq!(
        device.store.read_blocking(move |c| slot(c, &name, Slot::Active)).unwrap(),
        Some(bad)
    );
}

#[test]
fn a_damaged_release_counter_shuts_no_newer_release_out() {
    let device = device();
    device.install(5, b"five").unwrap();
    let name: ModelName = "acme/tiny:v1".parse().unwrap();
    let floor = |device: &Device| {
        let name = name.clone();
        device.store.read_blocking(move |c| release_floor(c, &name)).unwrap()
    };
    assert_eq!(floor(&device), 5);
    let flip = "UPDATE model_release_floor SET release = release | 1099511627776";
    device.write(move |tx| Ok(tx.execute(flip, [])?)).unwrap();
    device.install(6, b"six").unwrap();
    assert_eq!(floor(&device), 6);
    assert!(matches!(device.install(5, b"five"), Err(CatalogError::Older { floor: 6, .. })));
}

#[test]
fn a_short_name_means_the_same_model_everywhere() {
    let device = device();
    let bring = |full: &str, serves: bool| {
        device.blobs.put(full.as_bytes()).unwrap();
        let signed = device.owner.sign(&manifest(full, 1, full.as_bytes())).unwrap();
        let blobs = device.blobs.clone();
        let work = move |tx: &Transaction<'_>| {
            install(tx, &signed, &blobs, 10)?;
            match serves {
                true => activate(tx, signed.name(), &signed.digest(), 20).map(drop),
                false => Ok(()),
            }
        };
        device.write(work).unwrap();
    };
    let means = |text: &str| {
        let found = device.store.read_blocking(|c| resolve(c, text));
        found.map(|reference| reference.to_string())
    };
    assert_eq!(means("tiny").unwrap(), "library/tiny:latest", "nothing is there: as it is written");
    bring("local/tiny:latest", true);
    bring("acme/other:v1", false);
    for (text, full) in [
        ("tiny", "local/tiny:latest"),
        ("local/tiny", "local/tiny:latest"),
        ("local/tiny:latest", "local/tiny:latest"),
        ("other", "acme/other:v1"),
        ("acme/other", "acme/other:v1"),
        ("acme/tiny", "acme/tiny:latest"),
    ] {
        assert_eq!(means(text).unwrap(), full, "{text}");
    }
    let digest = Digest::of(b"x");
    assert_eq!(means(&format!("tiny@{digest}")).unwrap(), format!("local/tiny:latest@{digest}"));
    // What serves goes before what is only there, and a full name before both.
    bring("acme/tiny:v1", false);
    assert_eq!(means("tiny").unwrap(), "local/tiny:latest");
    bring("acme/tiny:v2", true);
    let refused = means("tiny").unwrap_err().to_string();
    assert!(refused.contains("acme/tiny:v2, local/tiny:latest go by that name"), "{refused}");
    bring("library/tiny:latest", false);
    assert_eq!(means("tiny").unwrap(), "library/tiny:latest");
    assert!(matches!(means("Tiny model"), Err(CatalogError::Name(_))));
}
