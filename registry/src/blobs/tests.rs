use std::os::unix::fs::PermissionsExt;

use super::*;
use crate::manifest::FileRole;

fn store() -> (tempfile::TempDir, Blobs) {
    let dir = tempfile::tempdir().unwrap();
    let blobs = Blobs::open(dir.path(), 1 << 30).unwrap();
    (dir, blobs)
}

fn bytes(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 7 % 251) as u8).collect()
}

fn described(bytes: &[u8], borders: Vec<u64>) -> Expected {
    let file =
        ManifestFile::describe(&mut &bytes[..], borders, FileRole::Weights, "m", "x/y").unwrap();
    Expected::from(&file)
}

fn incoming(blobs: &Blobs, expected: &Expected) -> Incoming {
    match blobs.begin(expected).unwrap() {
        Begin::Incoming(incoming) => *incoming,
        Begin::Present => panic!("it is there already"),
    }
}

/// Changes one bit of a file behind the store's back.
fn flip(path: &Path, at: u64) {
    use std::os::unix::fs::FileExt;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o644)).unwrap();
    let file = std::fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 0x10], at).unwrap();
}

#[test]
fn a_blob_is_visible_only_when_complete() {
    let (_dir, blobs) = store();
    let bytes = bytes(3_000_000);
    let expected = described(&bytes, vec![1_200_000]);
    let mut incoming = incoming(&blobs, &expected);
    incoming.write(&bytes[..2_000_000]).unwrap();
    assert!(!blobs.contains(&expected.digest, expected.size_bytes));
    assert_eq!(blobs.bytes_present(&expected.digest), 2_000_000);
    incoming.write(&bytes[2_000_000..]).unwrap();
    incoming.commit().unwrap();
    assert!(blobs.contains(&expected.digest, expected.size_bytes));
    let mut read = Vec::new();
    blobs.open_verified(&expected.digest).unwrap().file.read_to_end(&mut read).unwrap();
    assert_eq!(read, bytes);
    assert!(matches!(blobs.begin(&expected).unwrap(), Begin::Present));
    assert!(blobs.list_incoming().unwrap().is_empty());
}

#[test]
fn a_download_goes_on_where_it_stopped() {
    let (dir, blobs) = store();
    let bytes = bytes(5_000_000);
    let expected = described(&bytes, vec![1_500_000, 3_000_000]);
    incoming(&blobs, &expected).write(&bytes[..3_200_000]).unwrap();
    drop(blobs);
    let blobs = Blobs::open(dir.path(), 1 << 30).unwrap();
    let mut incoming = incoming(&blobs, &expected);
    assert_eq!(incoming.offset(), 3_200_000);
    incoming.write(&bytes[3_200_000..]).unwrap();
    incoming.commit().unwrap();
    blobs.open_verified(&expected.digest).unwrap();
}

#[test]
fn a_page_lost_in_a_crash_costs_its_chunk_only() {
    let (_dir, blobs) = store();
    let bytes = bytes(5_000_000);
    let expected = described(&bytes, vec![1_500_000, 3_000_000]);
    incoming(&blobs, &expected).write(&bytes[..4_000_000]).unwrap();
    flip(&blobs.incoming_path(&expected.digest), 2_000_000);
    assert_eq!(incoming(&blobs, &expected).offset(), 1_500_000);
}

#[test]
fn a_wrong_chunk_is_refused_and_can_be_sent_again() {
    let (_dir, blobs) = store();
    let good = bytes(5_000_000);
    let expected = described(&good, vec![1_500_000, 3_000_000]);
    let mut bad = good.clone();
    bad[1_600_000] ^= 1;
    let mut incoming = incoming(&blobs, &expected);
    let refused = incoming.write(&bad);
    assert!(matches!(refused, Err(BlobError::Chunk { index: 1, offset: 1_500_000, .. })));
    assert_eq!(incoming.offset(), 1_500_000);
    incoming.write(&good[1_500_000..]).unwrap();
    incoming.commit().unwrap();
}

#[test]
fn without_chunks_wrong_bytes_are_found_at_the_end() {
    let (_dir, blobs) = store();
    let expected = Expected { digest: Digest::of(b"right"), size_bytes: 5, chunks: Vec::new() };
    let mut writer = incoming(&blobs, &expected);
    writer.write(b"wrong").unwrap();
    assert!(matches!(writer.commit(), Err(BlobError::Mismatch { .. })));
    assert_eq!(incoming(&blobs, &expected).offset(), 0);
}

#[test]
fn more_or_fewer_bytes_than_announced_are_refused() {
    let (_dir, blobs) = store();
    let expected = Expected { digest: Digest::of(b"five!"), size_bytes: 5, chunks: Vec::new() };
    let mut writer = incoming(&blobs, &expected);
    assert!(matches!(writer.write(b"sixsix"), Err(BlobError::TooLong { .. })));
    writer.write(b"five").unwrap();
    assert!(matches!(writer.commit(), Err(BlobError::TooShort { found: 4, .. })));
    let mut writer = incoming(&blobs, &expected);
    assert_eq!(writer.offset(), 4);
    writer.write(b"!").unwrap();
    writer.commit().unwrap();
}

#[test]
fn one_writer_at_a_time() {
    let (_dir, blobs) = store();
    let expected = described(b"some bytes", Vec::new());
    let first = incoming(&blobs, &expected);
    assert!(matches!(blobs.begin(&expected), Err(BlobError::Busy { .. })));
    drop(first);
    incoming(&blobs, &expected);
}

#[test]
fn the_limit_counts_promises_too() {
    let dir = tempfile::tempdir().unwrap();
    let blobs = Blobs::open(dir.path(), 100).unwrap();
    let (a, b) = (described(&bytes(60), Vec::new()), described(&bytes(61), Vec::new()));
    let first = incoming(&blobs, &a);
    match blobs.begin(&b) {
        Err(BlobError::OverLimit { needed: 61, limit: 100, free: 40, .. }) => {}
        other => panic!("{other:?}"),
    }
    drop(first);
    incoming(&blobs, &b).write(&bytes(61)).unwrap();
    let usage = blobs.usage().unwrap();
    assert_eq!((usage.incoming_bytes, usage.reserved_bytes, usage.free_bytes), (61, 0, 39));
}

#[test]
fn what_another_process_was_promised_counts_until_it_ends() {
    const MIB: usize = 1 << 20;
    let dir = tempfile::tempdir().unwrap();
    let limit_bytes = 10 * MIB as u64;
    // Handles of their own know of each other only what is on the disk, as processes do.
    let open = || Blobs::open(dir.path(), limit_bytes).unwrap();
    let (ours, theirs) = (open(), open());
    let (a, b) = (described(&bytes(6 * MIB), Vec::new()), described(&bytes(5 * MIB), Vec::new()));
    let refused = || match ours.begin(&b) {
        Err(BlobError::OverLimit { free, .. }) => {
            // Reserved are whole blocks of the file system.
            let exact = 4 * MIB as u64;
            assert!(free <= exact && free > exact - (64 << 10), "{free}");
        }
        other => panic!("{other:?}"),
    };
    let mut first = incoming(&theirs, &a);
    refused();
    first.write(&bytes(MIB)).unwrap();
    refused();
    first.restart().unwrap();
    refused();
    first.write(&bytes(MIB)).unwrap();
    drop(first);
    assert_eq!(ours.promised(&a.digest), 0);
    let second = incoming(&ours, &b);
    assert_eq!(ours.usage().unwrap().incoming_bytes, MIB as u64, "what was written stays");
    drop(second);
}

#[test]
fn what_a_killed_writer_was_promised_is_given_back() {
    const MIB: usize = 1 << 20;
    let (_dir, blobs) = store();
    let (a, b) = (described(&bytes(6 * MIB), Vec::new()), described(&bytes(5 * MIB), Vec::new()));
    incoming(&blobs, &a).write(&bytes(MIB)).unwrap();
    // As it lies there after a kill.
    let file = File::options().write(true).open(blobs.incoming_path(&a.digest)).unwrap();
    blobs.inner.files.reserve(&file, Path::new("a"), MIB as u64, 5 * MIB as u64).unwrap();
    drop(file);
    assert_eq!(blobs.promised(&a.digest), 5 * MIB as u64);
    let _other = incoming(&blobs, &b);
    assert_eq!(blobs.promised(&a.digest), 0);
    assert_eq!(blobs.bytes_present(&a.digest), MIB as u64);
}

#[test]
fn a_flipped_bit_is_found_before_use_and_quarantined() {
    let (dir, blobs) = store();
    let digest = blobs.put(&bytes(100_000)).unwrap();
    blobs.open_verified(&digest).unwrap();
    flip(&blobs.path(&digest), 77_777);
    assert!(matches!(blobs.open_verified(&digest), Err(BlobError::Corrupt { .. })));
    assert!(matches!(blobs.open_verified(&digest), Err(BlobError::Missing { .. })));
    assert!(dir.path().join("quarantine").join(digest.hex()).exists());
    assert_eq!(blobs.put(&bytes(100_000)).unwrap(), digest);
    blobs.open_verified(&digest).unwrap();
}

#[test]
fn a_scrub_finds_what_no_one_has_opened() {
    let (_dir, blobs) = store();
    let (a, b) = (blobs.put(b"aaaa").unwrap(), blobs.put(b"bbbb").unwrap());
    flip(&blobs.path(&b), 2);
    let report = blobs.scrub(|| true).unwrap();
    assert_eq!((report.blobs, report.bytes, report.corrupt), (2, 8, vec![b]));
    assert_eq!(blobs.list().unwrap(), [(a, 4)]);
}

/// Runs `put` with the operation number `at` and all later ones failing.
fn put_with_fault(dir: &Path, at: u64, fault: Fault) -> (Result<Digest, BlobError>, u64) {
    let faults = Faults::from(at, fault);
    let result = Blobs::open_with_faults(dir, 1 << 30, faults.clone())
        .and_then(|blobs| blobs.put(b"precious bytes"));
    (result, faults.seen())
}

#[test]
fn whatever_operation_fails_the_blob_is_whole_or_absent_and_the_next_try_works() {
    let digest = Digest::of(b"precious bytes");
    for fault in [Fault::Io, Fault::NoSpace] {
        for at in 0.. {
            let dir = tempfile::tempdir().unwrap();
            let (result, seen) = put_with_fault(dir.path(), at, fault);
            if result.is_ok() {
                assert!(seen <= at, "a failure of operation {at} was swallowed");
                assert!(at > 8, "only {at} operations were counted");
                break;
            }
            let blobs = Blobs::open(dir.path(), 1 << 30).unwrap();
            match blobs.open_verified(&digest) {
                Ok(file) => assert_eq!(file.size_bytes, 14),
                Err(error) => assert!(matches!(error, BlobError::Missing { .. }), "{error}"),
            }
            assert_eq!(blobs.put(b"precious bytes").unwrap(), digest);
            blobs.open_verified(&digest).unwrap();
        }
    }
}
