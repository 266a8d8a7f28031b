use super::*;

fn manifest() -> Manifest {
    crate::testing::manifest("acme/tiny:v1", 1, &[7; 10])
}

fn refused_field(manifest: &Manifest) -> String {
    // Around `to_bytes`, which would refuse it first.
    match Manifest::parse(&serde_json::to_vec(manifest).unwrap()) {
        Err(ManifestError::Field { field, .. }) => field,
        other => panic!("expected a refused field, got {other:?}"),
    }
}

#[test]
fn a_manifest_reads_back_as_written() {
    let manifest = manifest();
    let bytes = manifest.to_bytes().unwrap();
    assert_eq!(Manifest::parse(&bytes).unwrap(), manifest);
    let text = String::from_utf8(bytes).unwrap();
    assert!(text.contains("\"name\": \"acme/tiny:v1\"") && !text.contains("draft"));
    let with = Manifest { draft: Some("acme/tinier:v1".parse().unwrap()), ..manifest };
    assert_eq!(Manifest::parse(&with.to_bytes().unwrap()).unwrap(), with);
}

#[test]
fn a_newer_schema_is_told_as_such() {
    let refused = Manifest::parse(br#"{"schema":2,"else":true}"#);
    assert!(matches!(refused, Err(ManifestError::Schema { found: 2 })));
}

#[test]
fn unknown_fields_are_refused() {
    let mut json: serde_json::Value = serde_json::to_value(manifest()).unwrap();
    json["trust_me"] = true.into();
    let refused = Manifest::parse(json.to_string().as_bytes());
    assert!(matches!(refused, Err(ManifestError::Parse(_))));
}

#[test]
fn a_path_that_climbs_is_refused() {
    for path in ["../x", "/x", "a//b", "a/..", ".", "", "a\\b", "a\nb"] {
        let mut manifest = manifest();
        manifest.files[0].path = path.into();
        assert_eq!(refused_field(&manifest), "files[0].path", "{path:?}");
    }
}

#[test]
fn chunks_must_cover_the_file_exactly() {
    let mut few = manifest();
    few.files[0].size_bytes = (8 << 20) + 1;
    assert_eq!(refused_field(&few), "files[0].chunks");
    let mut short = manifest();
    short.files[0].chunk_sizes = vec![9];
    assert_eq!(refused_field(&short), "files[0].chunk_sizes");
    let mut none = manifest();
    none.files[0].chunks.clear();
    assert_eq!(refused_field(&none), "files[0].chunks");
}

#[test]
fn exactly_one_file_holds_the_weights() {
    let mut manifest = manifest();
    manifest.files[0].role = FileRole::Other;
    assert_eq!(refused_field(&manifest), "files");
}

#[test]
fn chunks_end_at_tensor_borders() {
    let bytes: Vec<u8> = (0..9_000_000_u32).map(|i| (i % 251) as u8).collect();
    let borders = vec![100, 1_500_000, 1_600_000, 7_000_000];
    let file =
        ManifestFile::describe(&mut &bytes[..], borders, FileRole::Weights, "m", "x/y").unwrap();
    let ends: Vec<u64> = file.chunk_list().iter().map(|c| c.offset + c.size_bytes).collect();
    assert_eq!(ends, [100, 1_500_000, 1_500_000 + (4 << 20), 7_000_000, 9_000_000]);
    for chunk in file.chunk_list() {
        let range = chunk.offset as usize..(chunk.offset + chunk.size_bytes) as usize;
        assert_eq!(Digest::of(&bytes[range]), chunk.digest);
    }
    assert_eq!(file.digest, Digest::of(&bytes));
}

#[test]
fn even_chunks_need_no_list_of_sizes() {
    let bytes = vec![1; (8 << 20) + 5];
    let file =
        ManifestFile::describe(&mut &bytes[..], Vec::new(), FileRole::Weights, "m", "x/y").unwrap();
    assert!(file.chunk_sizes.is_empty());
    let sizes: Vec<u64> = file.chunk_list().iter().map(|c| c.size_bytes).collect();
    assert_eq!(sizes, [4 << 20, 4 << 20, 5]);
}

proptest::proptest! {
    #[test]
    fn no_bytes_make_the_parser_panic(bytes: Vec<u8>) {
        let _ = Manifest::parse(&bytes);
    }

    #[test]
    fn chunks_do_not_depend_on_how_the_bytes_arrive(
        len in 1_usize..3_000_000,
        step in 1_usize..700_000,
        borders in proptest::collection::vec(0_u64..3_000_000, 0..8),
    ) {
        let bytes: Vec<u8> = (0..len).map(|i| (i * 31 % 253) as u8).collect();
        let mut whole = ChunkHasher::new(borders.clone());
        whole.update(&bytes);
        let mut pieces = ChunkHasher::new(borders);
        bytes.chunks(step).for_each(|piece| pieces.update(piece));
        let (a, b) = (
            whole.finish(FileRole::Weights, "m", "x"),
            pieces.finish(FileRole::Weights, "m", "x"),
        );
        proptest::prop_assert_eq!(a, b);
    }
}

#[test]
fn a_result_of_an_evaluation_is_written_in_a_line_and_read_back() {
    let read = |text: &str| text.parse::<Evaluation>();
    for text in ["held-out commands:exact_match=0.951:1000", "mmlu:accuracy=61.5", "a:b=-1e-7"] {
        let evaluation = read(text).unwrap();
        assert_eq!(read(&evaluation.to_string()).unwrap(), evaluation, "{text}");
    }
    let named = read("tables:exact=0.9:12").unwrap();
    assert_eq!((named.task.as_str(), named.value, named.cases), ("tables", 0.9, 12));
    for text in ["", "a=1", ":b=1", "a:=1", "a:b=", "a:b=x", "a:b=1:x", "a:b=inf", "a:b=NaN"] {
        assert!(read(text).is_err(), "{text}");
    }
    let mut manifest = manifest();
    manifest.evaluation = vec![named; EVALUATIONS_MAX + 1];
    assert_eq!(refused_field(&manifest), "evaluation");
    manifest.evaluation.truncate(1);
    manifest.evaluation[0].metric = "\u{1b}[2J".to_owned();
    assert_eq!(refused_field(&manifest), "evaluation[0].metric");
}
