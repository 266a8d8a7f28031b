use super::*;

/// A small model of our own: a few keys of every kind and two tensors.
fn small() -> Writer {
    let mut writer = Writer::new("qwen3");
    writer
        .set("qwen3.block_count", 2u32)
        .set("qwen3.rope.freq_base", 1e6f32)
        .set("general.name", "gull")
        .set("tokenizer.ggml.add_bos_token", false)
        .set(
            "tokenizer.ggml.tokens",
            NewValue::Strings(vec!["a".into(), "ä".into(), String::new()]),
        )
        .set("tokenizer.ggml.scores", NewValue::F32s(vec![0.5, -1.0, 2.0]))
        .set("tokenizer.ggml.token_type", NewValue::I32s(vec![1, 3, -6]))
        .set("large", NewValue::U64(1 << 40));
    writer.declare("token_embd.weight", &[4, 3], TensorType::F32).unwrap();
    writer.declare("blk.0.attn_q.weight", &[32, 2], TensorType::Q8_0).unwrap();
    writer
}

fn small_bytes() -> Vec<u8> {
    small().into_bytes(&[vec![1; 48], vec![2; 68]]).unwrap()
}

#[test]
fn what_is_written_is_read_back() {
    let gguf = Gguf::from_bytes(small_bytes()).unwrap();
    assert_eq!(gguf.architecture(), "qwen3");
    assert_eq!(gguf.u32("qwen3.block_count").unwrap(), Some(2));
    assert_eq!(gguf.f32("qwen3.rope.freq_base").unwrap(), Some(1e6));
    assert_eq!(gguf.bool("tokenizer.ggml.add_bos_token").unwrap(), Some(false));
    assert_eq!(gguf.strings("tokenizer.ggml.tokens").unwrap().unwrap(), ["a", "ä", ""]);
    assert_eq!(gguf.f32s("tokenizer.ggml.scores").unwrap().unwrap(), [0.5, -1.0, 2.0]);
    assert_eq!(gguf.i32s("tokenizer.ggml.token_type").unwrap().unwrap(), [1, 3, -6]);
    assert_eq!(gguf.u64("large").unwrap(), Some(1 << 40));
    assert_eq!(gguf.u32("absent").unwrap(), None);
    let tensor = gguf.tensor("blk.0.attn_q.weight").unwrap();
    assert_eq!((tensor.info.shape.as_slice(), tensor.info.ty), (&[32, 2][..], TensorType::Q8_0));
    assert_eq!(tensor.data, vec![2; 68]);
    assert_eq!((tensor.info.elements(), tensor.info.rows()), (64, 2));
    assert!(gguf.tensor("absent").is_none());
}

#[test]
fn a_file_of_version_2_reads_like_one_of_version_3() {
    // The layout is the same; version 3 only adds that a file may be big-endian.
    let (two, three) = (patched("GGUF", 0, &[2, 0, 0, 0]), small_bytes());
    assert_ne!(two, three);
    let (two, three) = (Gguf::from_bytes(two).unwrap(), Gguf::from_bytes(three).unwrap());
    assert_eq!(two.values().collect::<Vec<_>>(), three.values().collect::<Vec<_>>());
    assert_eq!(two.strings("tokenizer.ggml.tokens").unwrap().unwrap(), ["a", "ä", ""]);
    assert_eq!(two.f32s("tokenizer.ggml.scores").unwrap().unwrap(), [0.5, -1.0, 2.0]);
    assert_eq!(two.tensors().len(), 2);
    for tensor in three.tensors() {
        let (found, expected) = (two.tensor(&tensor.name), three.tensor(&tensor.name).unwrap());
        let found = found.unwrap();
        assert_eq!((&found.info.shape, found.info.ty), (&expected.info.shape, expected.info.ty));
        assert_eq!(found.data, expected.data);
    }
}

#[test]
fn a_file_reads_like_its_bytes_and_survives_the_removal_of_its_name() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("small.gguf");
    std::fs::write(&path, small_bytes()).unwrap();
    let gguf = Gguf::open(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    assert_eq!(gguf.tensor("token_embd.weight").unwrap().data, vec![1; 48]);
    assert!(matches!(Gguf::open(&path), Err(GgufError::Open { .. })));
}

#[test]
fn wrong_types_and_numbers_that_do_not_fit_name_key_found_and_expected() {
    let gguf = Gguf::from_bytes(small_bytes()).unwrap();
    let refused = gguf.u32("general.name").unwrap_err().to_string();
    assert_eq!(
        refused,
        "read key \"general.name\": found a string, expected an unsigned 32-bit number"
    );
    let refused = gguf.u32("large").unwrap_err().to_string();
    assert!(refused.contains("u64 1099511627776"), "{refused}");
    let refused = gguf.u32s("tokenizer.ggml.token_type").unwrap_err().to_string();
    assert!(refused.contains("i32 -6"), "{refused}");
    assert!(matches!(gguf.require_u32("absent"), Err(GgufError::Missing { .. })));
    assert_eq!(gguf.u32_per_layer("qwen3.block_count", 3).unwrap().unwrap(), [2, 2, 2]);
    assert!(gguf.u32_per_layer("tokenizer.ggml.scores", 2).is_err());
}

#[test]
fn metadata_can_be_taken_over_and_changed() {
    let gguf = Gguf::from_bytes(small_bytes()).unwrap();
    let mut writer = Writer::with_metadata_of(&gguf);
    writer.set("general.name", "tern").unset("large");
    let copy = Gguf::from_bytes(writer.into_bytes::<Vec<u8>>(&[]).unwrap()).unwrap();
    assert_eq!(copy.str("general.name").unwrap(), Some("tern"));
    assert_eq!(copy.value("large"), None);
    assert_eq!(copy.strings("tokenizer.ggml.tokens").unwrap().unwrap(), ["a", "ä", ""]);
    assert!(copy.tensors().is_empty());
}

#[test]
fn the_writer_refuses_what_the_reader_would() {
    let mut writer = small();
    assert!(writer.declare("token_embd.weight", &[4], TensorType::F32).is_err());
    assert!(writer.declare(&"n".repeat(64), &[4], TensorType::F32).is_err());
    assert!(writer.declare("x", &[4, 0], TensorType::F32).is_err());
    assert!(writer.declare("x", &[33], TensorType::Q4_0).is_err());
    let short = small().into_bytes(&[vec![1; 47]]).unwrap_err();
    assert!(matches!(short, WriteError::Length { found: 47, expected: 48, .. }));
    assert!(matches!(small().into_bytes(&[vec![1; 48]]), Err(WriteError::Count { .. })));
}

/// Changes the bytes that follow the first occurrence of `after`.
fn patched(after: &str, skip: usize, bytes: &[u8]) -> Vec<u8> {
    let mut file = small_bytes();
    let at = file.windows(after.len()).position(|w| w == after.as_bytes()).unwrap();
    let at = at + after.len() + skip;
    file[at..at + bytes.len()].copy_from_slice(bytes);
    file
}

fn refusal(bytes: Vec<u8>) -> String {
    Gguf::from_bytes(bytes).unwrap_err().to_string()
}

#[test]
fn a_malformed_file_is_refused_by_what_is_wrong_with_it() {
    let dims = "blk.0.attn_q.weight"; // u32 dimensions, 2 × u64, u32 type, u64 offset
    let cases: Vec<(Vec<u8>, &str)> = vec![
        (Vec::new(), "not a GGUF file"),
        (b"GGML\x03\0\0\0".to_vec(), "not a GGUF file"),
        (patched("GGUF", 0, &[1, 0, 0, 0]), "version 1"),
        (patched("GGUF", 0, &[0, 0, 0, 3]), "big-endian"),
        (patched("GGUF", 4, &[255; 8]), "number of tensors"),
        (patched("GGUF", 4, &30_000u64.to_le_bytes()), "number of tensors"),
        (patched("GGUF", 12, &[255; 8]), "number of keys"),
        (patched("large", 0, &[13]), "unknown value type 13"),
        (patched("add_bos_token", 4, &[2]), "no bool"),
        (patched("general.name", 4, &[255; 8]), "above the limit"),
        (patched("general.name", 4, &[0, 0, 1, 0, 0, 0, 0, 0]), "the file has"),
        (patched("general.name", 12, &[255]), "not UTF-8"),
        (patched("ggml.tokens", 4, &[9]), "arrays of arrays"),
        (patched("ggml.scores", 8, &[255; 8]), "above the limit"),
        (patched("ggml.scores", 8, &[0, 0, 1]), "the file has"),
        (patched(dims, 0, &[0]), "0 dimensions"),
        (patched(dims, 0, &[5]), "5 dimensions"),
        (patched(dims, 4, &[0]), "a dimension of 0"),
        (patched(dims, 4, &[33]), "needs a multiple of 32"),
        (patched(dims, 4, &[0, 0, 0, 0, 0, 0, 0, 128]), "a dimension of"),
        (patched(dims, 12, &[0, 0, 0, 0, 0, 0, 0, 64]), "too large"),
        (patched(dims, 20, &[4]), "read tensor"),
        (patched(dims, 24, &[1]), "alignment"),
        (patched(dims, 24, &[255; 8]), "too large"),
        (patched(dims, 24, &[96]), "data of tensor"),
        (patched(dims, 24, &[32]), "overlaps"),
        (patched(dims, 24, &[0, 0, 0, 0, 1]), "data of tensor"),
    ];
    for (bytes, expected) in cases {
        let refused = refusal(bytes);
        assert!(refused.contains(expected), "{expected}: {refused}");
    }
}

#[test]
fn a_key_or_tensor_that_is_there_twice_is_refused() {
    let twice = patched("general.archit", 0, b"ecture");
    assert!(Gguf::from_bytes(twice).is_ok());
    let mut writer = Writer::new("qwen3");
    writer.set("aa", 1u32).set("ab", 2u32);
    let mut bytes = writer.into_bytes::<Vec<u8>>(&[]).unwrap();
    let at = bytes.windows(2).position(|w| w == b"ab").unwrap();
    bytes[at + 1] = b'a';
    assert!(refusal(bytes).contains("twice"));
    let mut writer = Writer::new("qwen3");
    writer.declare("ta", &[8], TensorType::F32).unwrap();
    writer.declare("tb", &[8], TensorType::F32).unwrap();
    let mut bytes = writer.into_bytes(&[[0; 32]; 2]).unwrap();
    let at = bytes.windows(2).position(|w| w == b"tb").unwrap();
    bytes[at + 1] = b'a';
    assert!(refusal(bytes).contains("twice"));
}

#[test]
fn alignment_parts_and_architecture_are_checked() {
    for (value, expected) in [
        (NewValue::U32(0), "not a power of two"),
        (NewValue::U32(3), "not a power of two"),
        (NewValue::U32(1 << 31), "above the limit"),
        (NewValue::U64(32), "expected u32"),
    ] {
        let mut writer = Writer::new("qwen3");
        writer.set("general.alignment", value);
        assert!(refusal(writer.into_bytes::<Vec<u8>>(&[]).unwrap()).contains(expected));
    }
    let mut writer = Writer::new("qwen3");
    writer.set("split.count", 3u32);
    assert!(refusal(writer.into_bytes::<Vec<u8>>(&[]).unwrap()).contains("merge them first"));
    let mut writer = Writer::new("qwen3");
    writer.set("general.architecture", 5u32);
    assert!(refusal(writer.into_bytes::<Vec<u8>>(&[]).unwrap()).contains("expected a string"));
    let mut writer = Writer::new("qwen3");
    writer.unset("general.architecture");
    assert!(refusal(writer.into_bytes::<Vec<u8>>(&[]).unwrap()).contains("missing"));
    assert!(refusal(Writer::new("").into_bytes::<Vec<u8>>(&[]).unwrap()).contains("empty"));
}

#[test]
fn every_shortened_file_is_refused() {
    let bytes = small_bytes();
    let data_end = bytes.len() - 28; // padding behind the last tensor
    for len in 0..data_end {
        assert!(Gguf::from_bytes(bytes[..len].to_vec()).is_err(), "{len} bytes were taken");
    }
    assert!(Gguf::from_bytes(bytes[..data_end].to_vec()).is_ok());
}

proptest::proptest! {
    #[test]
    fn a_damaged_file_never_panics(
        damage in proptest::collection::vec((0usize..700, 0u8..), 1..8)
    ) {
        let mut bytes = small_bytes();
        for (at, byte) in damage {
            let at = at % bytes.len();
            bytes[at] = byte;
        }
        if let Ok(gguf) = Gguf::from_bytes(bytes) {
            for tensor in gguf.tensors() {
                proptest::prop_assert_eq!(
                    gguf.tensor(&tensor.name).unwrap().data.len(), tensor.size_bytes
                );
            }
            for (key, _) in gguf.values() {
                let _ = (gguf.u32(key), gguf.strings(key), gguf.f32s(key), gguf.bools(key));
            }
        }
    }
}

#[test]
fn a_file_whose_header_does_not_hold_is_refused_before_anything_of_it_is_used() {
    let mut file = tempfile::tempfile().unwrap();
    let bytes = crate::model::sample::Sample::of("llama").bytes().unwrap();
    std::io::Write::write_all(&mut file, &bytes).unwrap();
    let refused = Gguf::in_parts(file, "m", [0; 32], Box::new(|_| Err("changed".to_owned())));
    assert_eq!(refused.unwrap_err().to_string(), "verify the header of m: changed");
}
