use super::*;
use crate::trust::Ed25519Key;
use crate::trust::director::DirectorSigner;

const NOW_S: i64 = 2_000_000_000;

fn blobs() -> (tempfile::TempDir, Blobs) {
    let dir = tempfile::tempdir().unwrap();
    let blobs = Blobs::open(dir.path(), 1 << 30).unwrap();
    (dir, blobs)
}

fn key() -> Ed25519Key {
    Ed25519Key::generate().unwrap()
}

fn director(key: &Ed25519Key) -> DirectorSigner<Ed25519Key> {
    DirectorSigner::new(Ed25519Key::from_file_text(&key.to_pem(), None).unwrap())
}

fn trusted(key: &Ed25519Key) -> Trusted {
    Trusted::from_root(Repo::Director, director(key).root(NOW_S + 1_000).unwrap()).unwrap()
}

fn written(dir: &Path) -> (PathBuf, Digest, Digest) {
    signed(dir, &key())
}

fn signed(dir: &Path, key: &Ed25519Key) -> (PathBuf, Digest, Digest) {
    let (_from_dir, from) = blobs();
    let (one, two) = (from.put(b"one blob").unwrap(), from.put(b"another").unwrap());
    let mut header = Header::new(5, 7);
    header.add_registry("1.root.json", b"{}");
    header.add_director("d-1", "targets.json", b"[]");
    header.add_blob(one, 8);
    header.add_blob(one, 8);
    header.add_blob(two, 7);
    let path = dir.join("a.bundle");
    write(&path, &header, &from, key).unwrap();
    (path, one, two)
}

fn want(file_name: &str) -> Want {
    Want { file_name: file_name.to_owned(), length_max: 100 }
}

#[test]
fn a_bundle_carries_metadata_and_the_wanted_blobs() {
    let (dir, into) = blobs();
    let (path, one, two) = written(dir.path());
    let mut bundle = Bundle::open(&path).unwrap();
    bundle.check_blobs().unwrap();
    bundle.check_device("d-1").unwrap();
    assert!(matches!(bundle.check_device("d-2"), Err(BundleError::OtherDevice { .. })));
    let header = bundle.header().clone();
    assert_eq!(header.registry_file(&want("1.root.json")), Fetched::Found(b"{}".to_vec()));
    assert_eq!(header.director_file("d-1", &want("x.json")), Fetched::NotFound);
    assert_eq!(header.director_file("d-2", &want("targets.json")), Fetched::NotFound);
    assert_eq!(bundle.take_blobs(&into, &[two].into()).unwrap(), 7);
    into.open_verified(&two).unwrap();
    assert!(!into.contains(&one, 8));
}

#[test]
fn a_file_too_short_for_a_bundle_is_named_so() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("short");
    std::fs::write(&path, b"f").unwrap();
    let refused = Bundle::open(&path).unwrap_err().to_string();
    assert!(
        refused.ends_with("it ends before its index: it is no bundle, or was cut off"),
        "{refused}"
    );
}

#[test]
fn a_cut_or_changed_bundle_brings_no_wrong_blob() {
    let (dir, into) = blobs();
    let (path, one, two) = written(dir.path());
    let whole = std::fs::read(&path).unwrap();
    let wanted = BTreeSet::from([one, two]);
    for len in 0..whole.len() {
        std::fs::write(&path, &whole[..len]).unwrap();
        let taken = Bundle::open(&path).and_then(|mut b| b.take_blobs(&into, &wanted));
        assert!(taken.is_err(), "cut to {len}");
    }
    for at in whole.len() - 15..whole.len() {
        into.remove(&one).unwrap();
        into.remove(&two).unwrap();
        let mut changed = whole.clone();
        changed[at] ^= 1;
        std::fs::write(&path, &changed).unwrap();
        let taken = Bundle::open(&path).and_then(|mut b| b.take_blobs(&into, &wanted));
        assert!(matches!(taken, Err(BundleError::Blobs(BlobError::Mismatch { .. }))));
    }
}

/// Opens a bundle and makes all checks that come before anything of it is taken.
fn checked(path: &Path, trusted: &Trusted) -> Result<(), BundleError> {
    let mut bundle = Bundle::open(path)?;
    bundle.check_signature(trusted.clone(), "d-1", NOW_S)?;
    bundle.check_blobs()
}

#[test]
fn every_flipped_bit_and_every_added_byte_is_found_before_anything_is_taken() {
    let (dir, key) = (tempfile::tempdir().unwrap(), key());
    let (path, ..) = signed(dir.path(), &key);
    let trusted = trusted(&key);
    checked(&path, &trusted).unwrap();
    let whole = std::fs::read(&path).unwrap();
    let mut harmless = 0;
    // A step without a common divisor with 8 meets every bit of a byte.
    for bit in (0..whole.len() * 8).step_by(5) {
        let mut changed = whole.clone();
        changed[bit / 8] ^= 1 << (bit % 8);
        std::fs::write(&path, &changed).unwrap();
        if checked(&path, &trusted).is_ok() {
            // Upper case in the hex of the signature says the same.
            assert!(changed.eq_ignore_ascii_case(&whole), "bit {bit} was not found");
            harmless += 1;
        }
    }
    assert!(harmless < 64, "{harmless}");
    std::fs::write(&path, [whole.as_slice(), b"x"].concat()).unwrap();
    assert!(matches!(checked(&path, &trusted), Err(BundleError::Form { .. })));
}

#[test]
fn only_the_director_signs_bundles_and_its_successor_is_followed() {
    let (dir, old, new) = (tempfile::tempdir().unwrap(), key(), key());
    let (path, ..) = signed(dir.path(), &new);
    let refused = checked(&path, &trusted(&old)).unwrap_err();
    assert!(matches!(refused, BundleError::Signature { .. }), "{refused}");
    // With the root that hands over to the new key, the same signature holds.
    let root = director(&old).root(NOW_S + 1_000).unwrap();
    let next = director(&old).next_root(&root, Some(&new), NOW_S + 2_000).unwrap();
    let mut header = Header::new(5, 8);
    header.add_director("d-1", "2.root.json", &next);
    let (_from_dir, from) = blobs();
    write(&path, &header, &from, &new).unwrap();
    let trusted = Trusted::from_root(Repo::Director, root).unwrap();
    checked(&path, &trusted).unwrap();
    assert_eq!(trusted.root_version(), 1);
}
