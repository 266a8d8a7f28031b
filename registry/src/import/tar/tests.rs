use std::io::Cursor;

use super::*;
use crate::manifest::FileRole;
use crate::{Digest, Options, SCHEMAS};

/// An entry as `tar` writes it.
fn entry(path: &str, kind: u8, data: &[u8]) -> Vec<u8> {
    let mut block = [0_u8; 512];
    block[..path.len()].copy_from_slice(path.as_bytes());
    block[124..135].copy_from_slice(format!("{:011o}", data.len()).as_bytes());
    block[156] = kind;
    block[257..265].copy_from_slice(b"ustar\x0000");
    seal(&mut block);
    let mut bytes = block.to_vec();
    bytes.extend(data);
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    bytes
}

/// Writes the sum of a header into it.
fn seal(block: &mut [u8]) {
    block[148..156].fill(b' ');
    let sum: u64 = block[..512].iter().map(|byte| u64::from(*byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}

fn archive(entries: &[Vec<u8>]) -> Vec<u8> {
    [entries.concat(), vec![0; 1024]].concat()
}

fn read(bytes: &[u8]) -> Result<Vec<(String, Vec<u8>)>, TarError> {
    let place = |entry: Entry| {
        let start = usize::try_from(entry.offset).unwrap();
        let end = start + usize::try_from(entry.size_bytes).unwrap();
        (entry.path, bytes[start..end].to_vec())
    };
    Ok(files(&mut Cursor::new(bytes))?.into_iter().map(place).collect())
}

#[test]
fn files_are_found_under_short_long_and_extended_names() {
    let long = format!("models/{}.gguf", "x".repeat(150));
    let extended = format!("{} path={long}\n", long.len() + 10);
    assert_eq!(extended.len(), long.len() + 10);
    let bytes = archive(&[
        entry("models/", b'5', b""),
        entry("models/LICENSE", b'0', b"MIT"),
        entry("PaxHeader", b'x', extended.as_bytes()),
        entry("short", b'0', b"weights"),
        entry("././@LongLink", b'L', format!("{long}2\0").as_bytes()),
        entry("short", 0, &[7; 513]),
        entry("link", b'2', b""),
    ]);
    let expected = [
        ("models/LICENSE".to_owned(), b"MIT".to_vec()),
        (long.clone(), b"weights".to_vec()),
        (format!("{long}2"), vec![7; 513]),
    ];
    assert_eq!(read(&bytes).unwrap(), expected);
}

#[test]
fn sizes_in_binary_are_read_and_what_is_longer_than_the_archive_is_refused() {
    let mut big = entry("m.gguf", b'0', b"weights");
    let binary = |size: u64| [&[0x80, 0, 0, 0][..], &size.to_be_bytes()].concat();
    big[124..136].copy_from_slice(&binary(7));
    seal(&mut big);
    assert_eq!(read(&archive(std::slice::from_ref(&big))).unwrap()[0].1, b"weights");
    for size in [1 << 20, u64::MAX] {
        big[124..136].copy_from_slice(&binary(size));
        seal(&mut big);
        let refused = read(&archive(std::slice::from_ref(&big))).unwrap_err();
        assert!(refused.to_string().contains("longer than the archive"), "{refused}");
    }
}

#[test]
fn what_is_no_archive_is_refused_with_the_place() {
    let good = archive(&[entry("m.gguf", b'0', b"weights")]);
    let mut spoiled = good.clone();
    spoiled[3] ^= 1;
    for (bytes, place) in [(&b"GGUF"[..], "at byte 0"), (&spoiled, "at byte 0: no tar header")] {
        let refused = read(bytes).unwrap_err().to_string();
        assert!(refused.contains(place), "{refused}");
    }
    // Cut anywhere, it is refused or shorter, and nothing panics.
    for len in 0..good.len() {
        if let Ok(found) = read(&good[..len]) {
            assert!(len == 0 || len >= 512 + 7, "{len}: {found:?}");
        }
    }
    let many: Vec<_> = (0..=ENTRIES_MAX).map(|_| entry("x", b'0', b"")).collect();
    assert!(matches!(read(&archive(&many)), Err(TarError::TooMany)));
    let sparse = entry("x", b'x', b"22 GNU.sparse.major=1\n");
    assert!(read(&archive(&[sparse])).unwrap_err().to_string().contains("pax header"));
}

fn registry() -> (tempfile::TempDir, Registry) {
    let dir = tempfile::tempdir().unwrap();
    let store = fulmar_store::Store::open(&dir.path().join("state.db"), &SCHEMAS).unwrap();
    let registry = Registry::open(dir.path(), store, &Options::default()).unwrap();
    (dir, registry)
}

/// A model whose weights are in this archive, which is in the store.
fn resolved(registry: &Registry, archive: &[u8]) -> Resolved {
    let layer = RemoteFile {
        role: FileRole::Weights,
        path: "model.gguf".to_owned(),
        media_type: super::super::GGUF_MEDIA_TYPE.to_owned(),
        size_bytes: archive.len() as u64,
        digest: registry.blobs().put(archive).unwrap(),
        urls: Vec::new(),
        packing: Packing::Tar,
    };
    Resolved {
        source: "oci://here/model".to_owned(),
        name: "a/b:c".parse().unwrap(),
        license: String::new(),
        files: vec![layer],
        bundles: Vec::new(),
    }
}

#[test]
fn the_one_gguf_file_becomes_a_blob_and_the_archive_leaves() {
    let (dir, registry) = registry();
    let bytes = archive(&[
        entry("LICENSE", b'0', b"MIT"),
        entry("../../../../etc/m.gguf", b'0', b"weights"),
    ]);
    let packed = resolved(&registry, &bytes);
    let unpacked = unpack(&registry, packed.clone()).unwrap();
    let weights = unpacked.weights().unwrap();
    assert_eq!((weights.path.as_str(), weights.size_bytes), ("m.gguf", 7));
    assert_eq!(weights.digest, Digest::of(b"weights"));
    assert_eq!(registry.blobs().read(&weights.digest, 7).unwrap(), b"weights");
    assert_eq!(registry.blobs().list().unwrap(), [(weights.digest, 7)]);
    assert!(!dir.path().join("etc").exists());
    assert_eq!(unpack(&registry, unpacked.clone()).unwrap(), unpacked, "nothing is packed in it");
}

#[test]
fn an_archive_without_exactly_one_model_is_refused_with_what_is_in_it() {
    let (_dir, registry) = registry();
    let two = [entry("a.gguf", b'0', b"a"), entry("b.GGUF", b'0', b"b")];
    for (entries, expected) in
        [(&two[..], "2 GGUF files"), (&[entry("a.safetensors", b'0', b"a")], "\"a.safetensors\"")]
    {
        let packed = resolved(&registry, &archive(entries));
        let refused = unpack(&registry, packed).unwrap_err().to_string();
        assert!(refused.contains(expected), "{refused}");
    }
}
