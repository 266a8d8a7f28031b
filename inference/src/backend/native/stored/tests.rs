use std::os::unix::fs::{PermissionsExt as _, symlink};

use fulmar_kernels::team::Pinning;
use proptest::prelude::*;

use super::*;

const KEY: [u8; 32] = [7; 32];
const MODEL: [u8; 32] = [0xab; 32];
/// Two matrices; one is longer than what a thread opens at a time.
const RUNS: [usize; 2] = [PART_BYTES + 8192, 4096];
const BYTES: usize = RUNS[0] + RUNS[1];
/// Of the whole file: three parts.
const FILE_BYTES: usize = HEAD_BYTES + BYTES + 3 * TAG_BYTES;

struct Place {
    folder: tempfile::TempDir,
    copies: WeightCopies,
    team: Team,
}

impl Place {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let copies = WeightCopies::new(folder.path().join("copies"), &KEY);
        Self { folder, copies, team: Team::new(2, Pinning::None) }
    }

    fn stored(&self) -> Stored<'_> {
        Stored::new(&self.copies, &MODEL, Isa::Scalar, BYTES)
    }

    fn make(&self) -> PathBuf {
        let stored = self.stored();
        let mut copy = stored.create().expect("a new copy");
        for run in RUNS {
            let mut bytes: Vec<u8> = (0..run).map(|i| (i * 31 / 7) as u8).collect();
            copy.write(&self.team, &mut bytes).expect("written");
        }
        copy.finish().expect("finished");
        stored.path.clone()
    }

    fn opens(&self) -> bool {
        self.stored().open(&self.team, &RUNS).is_some()
    }

    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.copies.folder()).expect("a folder");
        entries.map(|e| e.expect("an entry").file_name().to_string_lossy().into_owned()).collect()
    }
}

#[test]
fn a_copy_is_missing_until_it_was_made_and_then_reads_as_it_was_written() {
    let place = Place::new();
    assert!(!place.opens());
    let path = place.make();
    let weights = place.stored().open(&place.team, &RUNS).expect("a copy");
    let (first, second) = weights.split_at(RUNS[0]);
    let expected = |len| (0..len).map(|i: usize| (i * 31 / 7) as u8);
    assert!(
        first.iter().copied().eq(expected(RUNS[0])) && second.iter().copied().eq(expected(RUNS[1]))
    );
    let sealed = fs::read(&path).expect("the copy");
    assert_ne!(&sealed[HEAD_BYTES..][..4096], &first[..4096], "weights are not kept in the clear");
    assert_eq!(fs::metadata(&path).expect("there").permissions().mode() & 0o777, 0o600);
    assert_eq!(place.names().len(), 1, "nothing else is left behind");
}

#[test]
fn a_copy_that_was_cut_or_has_grown_is_not_used() {
    let place = Place::new();
    let path = place.make();
    let whole = fs::read(&path).expect("the copy");
    for len in [0, 1, SALT_AT, HEAD_BYTES, whole.len() / 2, whole.len() - 1] {
        fs::write(&path, &whole[..len]).expect("cut");
        assert!(!place.opens(), "{len} bytes");
    }
    fs::write(&path, [&whole[..], &[0]].concat()).expect("longer");
    assert!(!place.opens());
    fs::write(&path, &whole).expect("whole");
    assert!(place.opens());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn a_flipped_bit_anywhere_is_seen(at in 0..FILE_BYTES, bit in 0u8..8) {
        let place = Place::new();
        let path = place.make();
        let mut bytes = fs::read(&path).expect("the copy");
        bytes[at] ^= 1 << bit;
        fs::write(&path, &bytes).expect("damaged");
        prop_assert!(!place.opens());
    }
}

#[test]
fn a_flipped_bit_at_every_border_is_seen() {
    let place = Place::new();
    let path = place.make();
    let whole = fs::read(&path).expect("the copy");
    let parts = [HEAD_BYTES, HEAD_BYTES + PART_BYTES, HEAD_BYTES + RUNS[0], HEAD_BYTES + BYTES];
    let edges = [0, 8, 40, 44, 52, SALT_AT, FILE_BYTES - TAG_BYTES, FILE_BYTES];
    let edges = edges.into_iter().chain(parts);
    for at in edges.flat_map(|edge| [edge.wrapping_sub(1), edge]) {
        let Some(byte) = whole.get(at) else { continue };
        let mut bytes = whole.clone();
        bytes[at] = byte ^ 0x80;
        fs::write(&path, &bytes).expect("damaged");
        assert!(!place.opens(), "byte {at}");
    }
}

#[test]
fn a_copy_by_another_key_of_another_model_processor_or_length_is_not_used() {
    let place = Place::new();
    let path = place.make();
    let stranger = WeightCopies::new(place.copies.folder().to_owned(), &[8; 32]);
    let forged = Stored::new(&stranger, &MODEL, Isa::Scalar, BYTES);
    assert!(forged.open(&place.team, &RUNS).is_none(), "another device's key");
    for (sha256, isa, bytes) in [
        ([1; 32], Isa::Scalar, BYTES),
        (MODEL, Isa::Neon, BYTES),
        (MODEL, Isa::Scalar, BYTES - 4096),
    ] {
        let other = Stored::new(&place.copies, &sha256, isa, bytes);
        fs::copy(&path, &other.path).expect("planted");
        assert!(other.open(&place.team, &RUNS).is_none(), "{isa:?} {bytes}");
    }
}

#[test]
fn a_copy_of_another_layout_is_not_used_and_goes_when_a_new_one_comes() {
    let place = Place::new();
    let path = place.make();
    let mut bytes = fs::read(&path).expect("the copy");
    bytes[40] ^= 1;
    fs::write(&path, &bytes).expect("another version");
    assert!(!place.opens());
    let old = place.copies.folder().join(format!("{}scalar-0.weights", place.stored().model));
    let left = place.copies.folder().join(format!("{}avx2-1.99999.part", place.stored().model));
    let foreign = place.copies.folder().join("cd-scalar-0.weights");
    for path in [&old, &left, &foreign] {
        fs::write(path, b"old").expect("written");
    }
    place.make();
    assert!(place.opens());
    assert!(!old.exists() && !left.exists());
    assert!(foreign.exists(), "other models' copies are the garbage collection's");
}

#[test]
fn a_copy_under_way_is_left_alone_and_one_given_up_is_removed() {
    let place = Place::new();
    let stored = place.stored();
    let copy = stored.create().expect("a new copy");
    let other = Stored::new(&place.copies, &MODEL, Isa::Neon, BYTES);
    other.remove_others();
    assert!(copy.part.exists());
    drop(copy);
    assert!(place.names().is_empty());
}

#[test]
fn a_file_that_others_may_change_is_not_used() {
    let place = Place::new();
    let path = place.make();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o620)).expect("mode");
    assert!(!place.opens());
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("mode");
    assert!(place.opens());
    let elsewhere = place.folder.path().join("elsewhere");
    fs::rename(&path, &elsewhere).expect("moved");
    symlink(&elsewhere, &path).expect("a link");
    assert!(!place.opens(), "a link could be turned after the check");
}

#[test]
fn parts_that_changed_places_and_those_of_another_copy_are_seen() {
    let place = Place::new();
    let path = place.make();
    let first = fs::read(&path).expect("the copy");
    let mut swapped = first.clone();
    let (a, b) = (HEAD_BYTES, HEAD_BYTES + PART_BYTES);
    swapped.copy_within(b..b + 4096, a);
    fs::write(&path, &swapped).expect("swapped");
    assert!(!place.opens());
    place.make();
    let second = fs::read(&path).expect("the copy");
    assert_ne!(first, second, "every copy has a key of its own");
    let mut mixed = second.clone();
    mixed[HEAD_BYTES..].copy_from_slice(&first[HEAD_BYTES..]);
    fs::write(&path, &mixed).expect("mixed");
    assert!(!place.opens());
    fs::write(&path, &first).expect("an older copy of the same model");
    assert!(place.opens());
}
