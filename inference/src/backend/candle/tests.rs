use fulmar_kernels::formats::TensorType;

use crate::backend::{
    BLOCK_TOKENS, Backend, BackendOptions, Batch, KvType, Rows, Span, StepOutput, candle, native,
};
use crate::gguf::Gguf;
use crate::model::Architecture;
use crate::model::sample::Sample;

const TOKENS: usize = 70;

fn options(kv_type: KvType) -> BackendOptions {
    BackendOptions {
        threads: 1,
        context_tokens_max: 128,
        kv_blocks: 16,
        kv_type,
        batch_tokens_max: 128,
        cpus: Vec::new(),
        weight_copies: None,
    }
}

fn load(sample: &Sample, kv_type: KvType) -> (Box<dyn Backend>, Architecture) {
    let gguf = sample.gguf().expect("a sample");
    let architecture = Architecture::from_gguf(&gguf).expect("read");
    let backend = candle::load(&gguf, &architecture, &options(kv_type)).expect("loaded");
    (backend, architecture)
}

fn tokens(seed: usize) -> Vec<u32> {
    (0..TOKENS).map(|i| ((i * i * 31 + i * 17 + seed * 101) % 269) as u32).collect()
}

fn run(backend: &mut dyn Backend, tokens: &[u32], spans: &[Span<'_>]) -> Vec<f32> {
    let mut output = StepOutput::default();
    let batch = Batch { tokens, spans, hidden: false };
    backend.step(&batch, &mut output).expect("a step");
    output.values
}

fn span<'a>(start: usize, len: usize, position: usize, blocks: &'a [u32], rows: Rows) -> Span<'a> {
    Span { start, len, position, blocks, rows }
}

/// The last row's logits of the whole sequence at once.
fn at_once(backend: &mut dyn Backend, tokens: &[u32]) -> Vec<f32> {
    run(backend, tokens, &[span(0, tokens.len(), 0, &[0, 1, 2], Rows::Last)])
}

fn assert_close(found: &[f32], expected: &[f32], nmse_max: f64, what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    let square = |v: f64| v * v;
    let error: f64 = found.iter().zip(expected).map(|(a, b)| square(f64::from(a - b))).sum();
    let power: f64 = expected.iter().map(|b| square(f64::from(*b))).sum();
    assert!(power > 0.0 && error / power <= nmse_max, "{what}: {}", error / power);
}

#[test]
fn a_sequence_in_pieces_gives_what_it_gives_at_once_in_every_family() {
    for family in Sample::families() {
        let (mut backend, _) = load(&Sample::of(family), KvType::F32);
        let tokens = tokens(1);
        let expected = at_once(backend.as_mut(), &tokens);
        let blocks = [5, 9, 7];
        for (from, to) in [(0, 1), (1, 37), (37, 69)] {
            let none = span(0, to - from, from, &blocks, Rows::None);
            assert!(run(backend.as_mut(), &tokens[from..to], &[none]).is_empty());
        }
        let last = span(0, 1, 69, &blocks, Rows::Last);
        let found = run(backend.as_mut(), &tokens[69..], &[last]);
        assert_close(&found, &expected, 1e-10, family);
    }
}

#[test]
fn sequences_together_give_what_each_gives_alone_in_every_family() {
    for family in Sample::families() {
        let (mut backend, architecture) = load(&Sample::of(family), KvType::F32);
        let (one, two) = (tokens(1), tokens(2));
        let expected_one = at_once(backend.as_mut(), &one);
        let expected_two = at_once(backend.as_mut(), &two[..33]);
        let (blocks_one, blocks_two) = ([8, 3, 11], [4, 10]);
        let first = span(0, 60, 0, &blocks_one, Rows::None);
        run(backend.as_mut(), &one[..60], &[first]);
        let both = [one[60..].to_vec(), two[..33].to_vec()].concat();
        let spans =
            [span(0, 10, 60, &blocks_one, Rows::Last), span(10, 33, 0, &blocks_two, Rows::All)];
        let found = run(backend.as_mut(), &both, &spans);
        let vocab = architecture.vocab_len;
        assert_eq!(found.len(), 34 * vocab);
        assert_close(&found[..vocab], &expected_one, 1e-10, family);
        assert_close(&found[33 * vocab..], &expected_two, 1e-10, family);
    }
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

/// A model that is loaded as a large one would be: its weights stay in the file's type.
fn load_packed(sample: &Sample, kv_type: KvType) -> Box<dyn Backend> {
    let gguf = sample.gguf().expect("a sample");
    let architecture = Architecture::from_gguf(&gguf).expect("read");
    candle::load_within(0, &gguf, &architecture, &options(kv_type)).expect("loaded")
}

/// The same bits, whatever else is in the batch and however a sequence is cut into steps.
fn assert_alike(backend: &mut dyn Backend, what: &str) {
    let all = tokens(1);
    let expected = bits(&run(backend, &all, &[span(0, TOKENS, 0, &[0, 1, 2], Rows::All)]));
    let vocab = expected.len() / TOKENS;
    let blocks = [5, 9, 7];
    let mut from = 0;
    for (len, others) in [(1, 0), (1, 3), (11, 0), (20, 1), (2, 15), (30, 0), (1, 1), (4, 7)] {
        let mut batch = all[from..from + len].to_vec();
        let mut spans = vec![span(0, len, from, &blocks, Rows::All)];
        let (other, elsewhere) = (tokens(from + 2), [12, 13]);
        if others > 0 {
            batch.extend(&other[..others]);
            spans.push(span(len, others, 0, &elsewhere, Rows::All));
        }
        let found = bits(&run(backend, &batch, &spans));
        let (found, expected) = (&found[..len * vocab], &expected[from * vocab..][..len * vocab]);
        assert!(found == expected, "{len} tokens from {from}, beside {others}: {what}");
        from += len;
    }
    assert_eq!(from, TOKENS);
}

#[test]
fn a_tokens_logits_depend_on_its_sequence_alone_bit_by_bit_in_every_family() {
    for family in Sample::families() {
        for kv_type in [KvType::F32, KvType::F16, KvType::Q8] {
            let (mut dense, _) = load(&Sample::of(family), kv_type);
            assert_alike(dense.as_mut(), &format!("{family}, {kv_type:?}"));
        }
        let sample = Sample { weight_type: TensorType::Q4_0, ..Sample::of(family) };
        let mut packed = load_packed(&sample, KvType::Q8);
        assert_alike(packed.as_mut(), &format!("{family}, packed"));
    }
}

#[test]
fn candles_own_products_give_the_same_bits_in_any_company_for_every_type() {
    use TensorType::{Q2K, Q3K, Q4_0, Q4_1, Q4K, Q5_0, Q5_1, Q5K, Q6K, Q8_0, Tq2_0};
    for ty in [Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2K, Q3K, Q4K, Q5K, Q6K, Tq2_0] {
        // Wide enough for the kernels that interleave rows.
        let sample = Sample {
            embedding_len: 256,
            heads: 4,
            kv_heads: 2,
            head_dims: 64,
            feed_forward_len: 256,
            layers: 2,
            weight_type: ty,
            ..Sample::of("bitnet")
        };
        assert_alike(load_packed(&sample, KvType::Q8).as_mut(), ty.name());
    }
}

#[test]
fn what_is_left_in_a_block_by_another_sequence_is_not_heard() {
    let (mut backend, _) = load(&Sample::of("llama"), KvType::F32);
    let expected = bits(&at_once(backend.as_mut(), &tokens(8)[..10]));
    for seed in 0..3 {
        let other = tokens(seed);
        run(backend.as_mut(), &other, &[span(0, TOKENS, 0, &[0, 1, 2], Rows::None)]);
        assert_eq!(bits(&at_once(backend.as_mut(), &tokens(8)[..10])), expected);
    }
}

#[test]
fn a_copied_block_serves_as_the_original() {
    let (mut backend, _) = load(&Sample::of("llama"), KvType::F16);
    let tokens = tokens(3);
    let expected = at_once(backend.as_mut(), &tokens);
    backend.copy_blocks(&[(0, 12), (1, 13)]).expect("blocks exist");
    let blocks = [12, 13, 14];
    let rest = &tokens[2 * BLOCK_TOKENS..];
    let tail = span(0, rest.len(), 2 * BLOCK_TOKENS, &blocks, Rows::Last);
    assert_close(&run(backend.as_mut(), rest, &[tail]), &expected, 1e-10, "copy");
    assert!(backend.copy_blocks(&[(0, 16)]).is_err());
}

#[test]
fn narrower_caches_cost_little_and_are_smaller() {
    for family in ["qwen3", "gemma3"] {
        let (mut exact, _) = load(&Sample::of(family), KvType::F32);
        let expected = at_once(exact.as_mut(), &tokens(4));
        for (kv_type, nmse_max) in [(KvType::F16, 2e-5), (KvType::Q8, 3e-3)] {
            let (mut narrow, _) = load(&Sample::of(family), kv_type);
            let found = at_once(narrow.as_mut(), &tokens(4));
            assert_close(&found, &expected, nmse_max, family);
            // A scale of four bytes for each 32 codes.
            let part = if kv_type == KvType::F16 { 16 } else { 9 };
            assert_eq!(narrow.memory().kv_bytes * 32, exact.memory().kv_bytes * part);
        }
    }
}

#[test]
fn the_hidden_state_is_the_heads_input() {
    let (mut backend, architecture) = load(&Sample::of("qwen2"), KvType::F32);
    let tokens = tokens(5);
    let mut output = StepOutput::default();
    let spans = [span(0, 8, 0, &[0], Rows::All)];
    let batch = Batch { tokens: &tokens[..8], spans: &spans, hidden: true };
    backend.step(&batch, &mut output).expect("a step");
    assert_eq!(output.width, architecture.embedding_len);
    assert_eq!(output.values.len(), 8 * architecture.embedding_len);
}

#[test]
fn what_is_held_is_within_what_is_planned_and_close_to_it() {
    for (family, ty) in [("phi3", TensorType::F32), ("bitnet", TensorType::Q8_0)] {
        let sample = Sample { weight_type: ty, ..Sample::of(family) };
        let gguf = sample.gguf().expect("a sample");
        let architecture = Architecture::from_gguf(&gguf).expect("read");
        let planned = candle::plan(&gguf, &architecture, &options(KvType::F16));
        let (backend, _) = load(&sample, KvType::F16);
        let held = backend.memory();
        assert_eq!((planned.kv_bytes, held.scratch_bytes), (held.kv_bytes, 0));
        assert!(planned.weights_bytes >= held.weights_bytes);
        assert!(planned.weights_bytes < held.weights_bytes + held.weights_bytes / 20);
    }
}

#[test]
fn a_batch_against_the_rules_is_an_error_and_the_next_one_runs() {
    let (mut backend, _) = load(&Sample::of("llama"), KvType::F32);
    let mut output = StepOutput::default();
    let spans = [span(0, 1, 0, &[99], Rows::Last)];
    let batch = Batch { tokens: &[1], spans: &spans, hidden: false };
    assert!(backend.step(&batch, &mut output).is_err());
    assert!(!at_once(backend.as_mut(), &tokens(6)).is_empty());
}

#[test]
fn weights_that_stay_in_the_files_type_cost_what_rounded_activations_cost() {
    use TensorType::{Bf16, F16, I2S, Q4_0, Q4K, Q5_1, Q6K, Q8_0, Tq2_0};
    for ty in [F16, Bf16, Q4_0, Q5_1, Q8_0, Q4K, Q6K, Tq2_0, I2S] {
        let family = if ty == I2S { "bitnet-b1.58" } else { "phi3" };
        let sample = Sample {
            embedding_len: 256,
            heads: 4,
            kv_heads: 2,
            head_dims: 64,
            feed_forward_len: 256,
            weight_type: ty,
            ..Sample::of(family)
        };
        let (mut dense, architecture) = load(&sample, KvType::F32);
        let expected = at_once(dense.as_mut(), &tokens(7));
        let gguf = sample.gguf().expect("a sample");
        let mut packed =
            candle::load_within(0, &gguf, &architecture, &options(KvType::F32)).expect("loaded");
        let found = at_once(packed.as_mut(), &tokens(7));
        let streamed = matches!(ty, F16 | Bf16 | Tq2_0 | I2S);
        assert_close(&found, &expected, if streamed { 1e-10 } else { 2e-2 }, ty.name());
        assert!(
            packed.memory().weights_bytes < dense.memory().weights_bytes * 2 / 3,
            "{}",
            ty.name()
        );
    }
}

/// Damages a file's header in some places: bytes, or whole words of telling numbers.
fn damaged(mut bytes: Vec<u8>, header: usize, hits: &[(usize, u8, bool)]) -> Vec<u8> {
    const WORDS: [u64; 8] = [0, 1, 7, 255, 65_537, 1 << 31, u64::MAX / 2, u64::MAX];
    for (at, value, word) in hits {
        let at = at % header;
        if *word {
            let number = WORDS[usize::from(*value) % WORDS.len()].to_le_bytes();
            let len = if value % 2 == 0 { 4 } else { 8 };
            bytes[at..at + len].copy_from_slice(&number[..len]);
        } else {
            bytes[at] = *value;
        }
    }
    bytes
}

proptest::proptest! {
    #![proptest_config(proptest::test_runner::Config::with_cases(100))]

    #[test]
    fn a_damaged_file_is_refused_or_runs_but_never_panics(
        family in 0..7_usize,
        hits in proptest::collection::vec(proptest::prelude::any::<(usize, u8, bool)>(), 1..6),
    ) {
        let name = Sample::families().nth(family).expect("seven families");
        let small = Sample { layers: 1, embedding_len: 32, feed_forward_len: 32, ..Sample::of(name) };
        let bytes = small.bytes().expect("a sample");
        // The weights of the small samples are about 300 kB; what is before them is the header.
        let whole = Gguf::from_bytes(bytes.clone()).expect("well-formed");
        let weights: usize = whole.tensors().iter().map(|t| t.size_bytes.next_multiple_of(32)).sum();
        let header = bytes.len() - weights - 8;
        let Ok(gguf) = Gguf::from_bytes(damaged(bytes, header, &hits)) else { return Ok(()) };
        let Ok(architecture) = Architecture::from_gguf(&gguf) else { return Ok(()) };
        let planned = crate::backend::plan(&gguf, &architecture, &options(KvType::F16));
        proptest::prop_assert!(planned.weights_bytes < 1 << 30);
        let prepared = options(KvType::F16);
        let native = native::load(&gguf, &architecture, &prepared);
        let candle = candle::load(&gguf, &architecture, &prepared);
        for mut backend in native.into_iter().chain(candle) {
            let mut output = StepOutput::default();
            let spans = [span(0, 2, 0, &[0], Rows::Last)];
            let batch = Batch { tokens: &[0, 1], spans: &spans, hidden: false };
            let _ = backend.step(&batch, &mut output);
        }
    }
}
