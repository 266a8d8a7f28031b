use std::fs;
use std::ops::Range;
use std::sync::{Arc, Mutex};

use fulmar_kernels::formats::TensorType;

use super::*;
use crate::backend::{BLOCK_TOKENS, Rows, Span, WeightCopies, candle};
use crate::model::sample::Sample;

const TOKENS: usize = 70;
/// The samples' weights are random: the vocabulary's size is what matters.
const VOCABULARY: usize = 269;

fn options(kv_type: KvType) -> BackendOptions {
    BackendOptions {
        threads: 2,
        context_tokens_max: 128,
        kv_blocks: 16,
        kv_type,
        batch_tokens_max: 128,
        cpus: Vec::new(),
        weight_copies: None,
    }
}

/// The sample with matrices of this type where it is one that all its widths can hold.
fn sample(family: &'static str, ty: TensorType) -> Gguf {
    Sample { weight_type: ty, ..Sample::of(family) }.gguf().expect("a sample")
}

fn native(gguf: &Gguf, options: &BackendOptions, isa: Isa) -> Native {
    let architecture = Architecture::from_gguf(gguf).expect("read");
    Native::load(gguf, &architecture, options, isa).expect("loaded")
}

fn tokens(seed: usize) -> Vec<u32> {
    (0..TOKENS).map(|i| ((i * i * 31 + i * 17 + seed * 101) % VOCABULARY) as u32).collect()
}

fn run(backend: &mut dyn Backend, tokens: &[u32], spans: &[Span<'_>]) -> Vec<f32> {
    let mut output = StepOutput::default();
    backend.step(&Batch { tokens, spans, hidden: false }, &mut output).expect("a step");
    output.values
}

fn span<'a>(start: usize, len: usize, position: usize, blocks: &'a [u32], rows: Rows) -> Span<'a> {
    Span { start, len, position, blocks, rows }
}

/// The last row's logits of the whole sequence at once.
fn at_once(backend: &mut dyn Backend, tokens: &[u32]) -> Vec<f32> {
    run(backend, tokens, &[span(0, tokens.len(), 0, &[0, 1, 2], Rows::Last)])
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

/// Normalised mean square error.
fn nmse(found: &[f32], expected: &[f32]) -> f64 {
    assert_eq!(found.len(), expected.len());
    let square = |v: f64| v * v;
    let error: f64 = found.iter().zip(expected).map(|(a, b)| square(f64::from(a - b))).sum();
    let power: f64 = expected.iter().map(|b| square(f64::from(*b))).sum();
    assert!(power > 0.0);
    error / power
}

#[test]
fn every_family_gives_candles_logits_with_every_cache_on_every_instruction_set() {
    for family in Sample::families() {
        let gguf = sample(family, TensorType::F32);
        let architecture = Architecture::from_gguf(&gguf).expect("read");
        let exact = candle::load(&gguf, &architecture, &options(KvType::F32));
        let expected = at_once(exact.expect("loaded").as_mut(), &tokens(1));
        for isa in Isa::available() {
            for (kv_type, nmse_max) in
                [(KvType::F32, 1e-9), (KvType::F16, 2e-5), (KvType::Q8, 3e-3)]
            {
                let found = at_once(&mut native(&gguf, &options(kv_type), isa), &tokens(1));
                let error = nmse(&found, &expected);
                assert!(error <= nmse_max, "{family}, {isa:?}, {kv_type:?}: {error}");
            }
        }
    }
}

#[test]
fn a_sequence_is_the_same_bits_in_pieces_in_a_batch_and_with_any_threads() {
    for (family, isa) in
        Sample::families().flat_map(|f| Isa::available().into_iter().map(move |i| (f, i)))
    {
        let gguf = sample(family, TensorType::F32);
        for kv_type in [KvType::F16, KvType::Q8] {
            let mut backend = native(&gguf, &options(kv_type), isa);
            let (one, two) = (tokens(1), tokens(2));
            let expected = at_once(&mut backend, &one);
            backend.set_threads(3);
            // Blocks in no order, shared with nobody; another sequence starts in the last step.
            let (blocks, others) = ([8, 3, 11], [4, 10]);
            for (from, to) in [(0, 1), (1, 37), (37, 60)] {
                let piece = span(0, to - from, from, &blocks, Rows::None);
                assert!(run(&mut backend, &one[from..to], &[piece]).is_empty());
            }
            let both = [&one[60..], &two[..33]].concat();
            let spans = [span(0, 10, 60, &blocks, Rows::Last), span(10, 33, 0, &others, Rows::All)];
            let found = run(&mut backend, &both, &spans);
            let vocabulary = found.len() / 34;
            let what = format!("{family}, {isa:?}, {kv_type:?}");
            assert_eq!(bits(&found[..vocabulary]), bits(&expected), "{what}");
        }
    }
}

#[test]
fn a_copied_block_serves_as_the_original_and_one_out_of_range_is_refused() {
    let gguf = sample("llama", TensorType::F32);
    for kv_type in [KvType::F32, KvType::F16, KvType::Q8] {
        let mut backend = native(&gguf, &options(kv_type), Isa::available()[0]);
        let tokens = tokens(3);
        let expected = at_once(&mut backend, &tokens);
        backend.copy_blocks(&[(0, 12), (1, 13)]).expect("blocks exist");
        let rest = &tokens[2 * BLOCK_TOKENS..];
        let blocks = [12, 13, 14];
        let tail = span(0, rest.len(), 2 * BLOCK_TOKENS, &blocks, Rows::Last);
        assert_eq!(bits(&run(&mut backend, rest, &[tail])), bits(&expected), "{kv_type:?}");
        assert!(backend.copy_blocks(&[(0, 16)]).is_err());
    }
}

#[test]
fn what_is_held_is_within_what_is_planned_and_close_to_it() {
    for (family, ty) in [("phi3", TensorType::F32), ("bitnet", TensorType::Q8_0)] {
        let gguf = sample(family, ty);
        let architecture = Architecture::from_gguf(&gguf).expect("read");
        let planned = plan(&gguf, &architecture, &options(KvType::F16)).expect("planned");
        let isa = Isa::detect().expect("a set");
        let held = native(&gguf, &options(KvType::F16), isa).memory();
        assert_eq!(held.kv_bytes, planned.kv_bytes);
        let within = |held: u64, planned: u64| held <= planned && planned <= held + held / 20;
        assert!(within(held.weights_bytes, planned.weights_bytes), "{held:?}, {planned:?}");
        // The threads' panels are planned, and theirs.
        assert!(held.scratch_bytes <= planned.scratch_bytes, "{held:?}, {planned:?}");
        assert!(held.scratch_bytes > planned.scratch_bytes / 2, "{held:?}, {planned:?}");
    }
}

/// A folder for copies, and a model that somebody verified.
struct Kept {
    folder: tempfile::TempDir,
    options: BackendOptions,
    gguf: Gguf,
}

impl Kept {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let copies = WeightCopies::new(folder.path().join("regrouped"), &[3; 32]);
        let options = BackendOptions { weight_copies: Some(copies), ..options(KvType::F16) };
        Self { folder, options, gguf: sample("qwen3", TensorType::Q8_0) }
    }

    fn files(&self) -> Vec<std::path::PathBuf> {
        let Ok(entries) = fs::read_dir(self.folder.path().join("regrouped")) else { return vec![] };
        entries.map(|entry| entry.expect("an entry").path()).collect()
    }

    fn logits(&self, gguf: &Gguf) -> Vec<u32> {
        let isa = Isa::available()[0];
        bits(&at_once(&mut native(gguf, &self.options, isa), &tokens(1)))
    }
}

#[test]
fn weights_from_the_stored_copy_are_those_of_the_model_and_damage_is_mended() {
    let kept = Kept::new();
    let expected = kept.logits(&kept.gguf);
    assert!(kept.files().is_empty(), "without a digest there is nothing to bind a copy to");
    let verified = kept.gguf.clone().verified_as([9; 32]);
    assert_eq!(kept.logits(&verified), expected, "made");
    let [path] = &kept.files()[..] else { panic!("one copy: {:?}", kept.files()) };
    let whole = fs::read(path).expect("the copy");
    assert_eq!(kept.logits(&verified), expected, "read");
    let mut damaged = whole.clone();
    let middle = damaged.len() / 2;
    damaged[middle] ^= 1;
    for broken in [&damaged[..], &whole[..whole.len() - 4096], &[]] {
        fs::write(path, broken).expect("damaged");
        assert_eq!(kept.logits(&verified), expected, "{} bytes", broken.len());
        assert_eq!(fs::read(path).expect("made again").len(), whole.len());
    }
}

#[test]
fn a_folder_that_cannot_be_written_costs_time_and_nothing_else() {
    let kept = Kept::new();
    let expected = kept.logits(&kept.gguf);
    fs::write(kept.folder.path().join("regrouped"), b"a file in the way").expect("written");
    assert_eq!(kept.logits(&kept.gguf.clone().verified_as([9; 32])), expected);
}

/// The kept model in a file whose verification notes what it was asked, and refuses from a byte on.
fn in_parts(kept: &Kept, bad_from: u64) -> (Gguf, Arc<Mutex<Vec<Range<u64>>>>) {
    let path = kept.folder.path().join("model.gguf");
    fs::write(
        &path,
        Sample { weight_type: TensorType::Q8_0, ..Sample::of("qwen3") }.bytes().expect("a model"),
    )
    .expect("written");
    let asked = Arc::new(Mutex::new(Vec::new()));
    let noted = Arc::clone(&asked);
    let verify = move |ranges: &[Range<u64>]| {
        noted.lock().expect("notes").extend_from_slice(ranges);
        match ranges.iter().find(|range| range.end > bad_from) {
            Some(range) => Err(format!("bytes {range:?} are not those that were signed")),
            None => Ok(()),
        }
    };
    let file = fs::File::open(&path).expect("open");
    let gguf = Gguf::in_parts(file, "model", [9; 32], Box::new(verify)).expect("a sound header");
    (gguf, asked)
}

#[test]
fn a_start_from_the_copy_verifies_header_and_embedding_alone_and_any_other_all_tensors() {
    let kept = Kept::new();
    let isa = Isa::available()[0];
    let (first, asked) = in_parts(&kept, u64::MAX);
    let expected = bits(&at_once(&mut native(&first, &kept.options, isa), &tokens(1)));
    let tensors: usize = first.tensors().len();
    assert!(asked.lock().expect("notes").len() > tensors, "header and every tensor");
    let (second, asked) = in_parts(&kept, u64::MAX);
    assert_eq!(bits(&at_once(&mut native(&second, &kept.options, isa), &tokens(1))), expected);
    let embedding = second.info("token_embd.weight").expect("there");
    let start = embedding.file_offset();
    let header = second.tensors().iter().map(|t| t.file_offset()).min().expect("tensors");
    let wanted = vec![0..header, start..start + embedding.size_bytes as u64];
    assert_eq!(*asked.lock().expect("notes"), wanted);
}

#[test]
fn tensors_whose_bytes_do_not_hold_reach_no_backend() {
    let kept = Kept::new();
    let (sound, _) = in_parts(&kept, u64::MAX);
    let last = sound.tensors().iter().map(|t| t.file_offset()).max().expect("tensors");
    let (gguf, _) = in_parts(&kept, last);
    let name = &gguf.tensors().iter().find(|t| t.file_offset() == last).expect("it").name;
    assert!(gguf.tensor(name).is_none());
    let architecture = Architecture::from_gguf(&gguf).expect("read");
    for load in [load, crate::backend::candle::load] {
        let refused = load(&gguf, &architecture, &kept.options).err().expect("refused").to_string();
        assert!(refused.contains("not those that were signed"), "{refused}");
    }
    assert!(kept.files().is_empty(), "no copy was made");
}
