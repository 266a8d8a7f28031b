use fulmar_kernels::formats::TensorType;

use super::sample::Sample;
use super::{Architecture, Pooling, RotaryKind};
use crate::gguf::{Gguf, NewValue, Writer};

fn sample(family: &str) -> Gguf {
    Sample::of(family).gguf().expect("a sample")
}

/// The sample with some metadata changed.
fn changed(family: &str, change: impl FnOnce(&mut Writer)) -> Gguf {
    rewritten(&sample(family), change, |name| Some(name.to_owned()))
}

/// A copy of a file with metadata changed and tensors renamed or left out.
fn rewritten(
    gguf: &Gguf,
    change: impl FnOnce(&mut Writer),
    rename: impl Fn(&str) -> Option<String>,
) -> Gguf {
    let mut writer = Writer::with_metadata_of(gguf);
    change(&mut writer);
    let mut data = Vec::new();
    for info in gguf.tensors() {
        if let Some(name) = rename(&info.name) {
            writer.declare(&name, &info.shape, info.ty).expect("declared before");
            data.push(gguf.tensor(&info.name).expect("listed").data.to_vec());
        }
    }
    Gguf::from_bytes(writer.into_bytes(&data).expect("complete")).expect("well-formed")
}

fn refusal(gguf: &Gguf) -> String {
    Architecture::from_gguf(gguf).expect_err("refused").to_string()
}

fn set(key: &'static str, value: impl Into<NewValue>) -> impl FnOnce(&mut Writer) {
    move |writer| {
        writer.set(key, value);
    }
}

#[test]
fn every_family_in_the_table_is_read_from_its_sample() {
    for family in Sample::families() {
        let architecture = Architecture::from_gguf(&sample(family)).expect(family);
        assert_eq!(architecture.family.name, family);
        assert_eq!(architecture.layers.len(), 3, "{family}");
        assert_eq!(architecture.vocab_len, 269, "{family}");
        assert_eq!(architecture.kv_len(), 64, "{family}");
    }
}

#[test]
fn phi_splits_its_fused_tensors_by_rows() {
    let architecture = Architecture::from_gguf(&sample("phi3")).expect("phi3");
    let layer = &architecture.layers[1];
    let rows = [&layer.query, &layer.key, &layer.value].map(|l| (l.first_row, l.outputs));
    assert_eq!(rows, [(0, 192), (192, 64), (256, 64)]);
    assert_eq!(layer.key.tensor, "blk.1.attn_qkv.weight");
    assert_eq!((layer.gate.first_row, layer.up.first_row), (0, 160));
    assert_eq!(layer.gate.tensor, layer.up.tensor);
}

#[test]
fn phi_chooses_its_factors_by_the_context_size_alone() {
    let architecture = Architecture::from_gguf(&sample("phi3")).expect("phi3");
    let rope = &architecture.ropes[0];
    assert_eq!((rope.dims, rope.kind), (24, RotaryKind::Halves));
    let base = |pair: f64| 10_000_f64.powf(-2.0 * pair / 24.0);
    assert_eq!(rope.frequencies(128)[2], (base(2.0) / f64::from(1.06_f32)) as f32);
    assert_eq!(rope.frequencies(129)[2], (base(2.0) / 4.0) as f32);
}

#[test]
fn gemma_has_a_window_and_a_base_of_its_own_on_all_but_each_sixth_layer() {
    let seven = Sample { layers: 7, ..Sample::of("gemma3") };
    let gguf = rewritten(
        &seven.gguf().expect("a sample"),
        |writer| {
            writer.set("gemma3.rope.freq_base", 1e6_f32);
            writer.set("gemma3.rope.scaling.type", "linear");
            writer.set("gemma3.rope.scaling.factor", 8.0_f32);
        },
        |name| Some(name.to_owned()),
    );
    let architecture = Architecture::from_gguf(&gguf).expect("gemma3");
    let windows: Vec<_> = architecture.layers.iter().map(|l| (l.window, l.rope)).collect();
    let (near, far) = ((Some(24), 1), (None, 0));
    assert_eq!(windows, [near, near, near, near, near, far, near]);
    assert_eq!(architecture.ropes[0].frequencies(512)[0], 0.125);
    assert_eq!(architecture.ropes[1].frequencies(512)[0], 1.0);
    assert!((architecture.embedding_scale - 96_f32.sqrt()).abs() < 1e-6);
}

#[test]
fn gemma_takes_its_pattern_from_the_file() {
    let by_period = changed("gemma3", set("gemma3.attention.sliding_window_pattern", 2_u32));
    let key = "gemma3.attention.sliding_window_pattern";
    let by_layer = changed("gemma3", set(key, NewValue::Bools(vec![true, false, true])));
    for gguf in [by_period, by_layer] {
        let architecture = Architecture::from_gguf(&gguf).expect("gemma3");
        let windows: Vec<_> = architecture.layers.iter().map(|l| l.window.is_some()).collect();
        assert_eq!(windows, [true, false, true]);
    }
    let short = changed("gemma3", set(key, NewValue::Bools(vec![true])));
    assert!(refusal(&short).contains("1 truth values"), "{}", refusal(&short));
}

#[test]
fn a_head_without_a_tensor_is_the_embedding() {
    let keep = |name: &str| (name != "output.weight").then(|| name.to_owned());
    let gguf = rewritten(&sample("llama"), |_| (), keep);
    let architecture = Architecture::from_gguf(&gguf).expect("tied");
    assert_eq!(architecture.output.tensor, "token_embd.weight");
}

#[test]
fn yarn_keeps_fast_pairs_and_stretches_slow_ones() {
    let gguf = changed("qwen2", |writer| {
        writer.set("qwen2.rope.scaling.type", "yarn");
        writer.set("qwen2.rope.scaling.factor", 4.0_f32);
    });
    let rope = Architecture::from_gguf(&gguf).expect("qwen2").ropes.remove(0);
    let plain = |pair: f64| 10_000_f64.powf(-2.0 * pair / 32.0);
    assert_eq!(rope.frequencies(1)[0], 1.0);
    assert_eq!(rope.frequencies(1)[15], (plain(15.0) / 4.0) as f32);
    assert!((rope.magnitude - 1.138_629_4).abs() < 1e-6);
}

#[test]
fn the_pooling_type_is_read() {
    let gguf = changed("qwen3", set("qwen3.pooling_type", 3_u32));
    assert_eq!(Architecture::from_gguf(&gguf).expect("qwen3").pooling, Pooling::Last);
    let unknown = changed("qwen3", set("qwen3.pooling_type", 4_u32));
    assert!(refusal(&unknown).contains("qwen3.pooling_type"));
}

#[test]
fn every_impossible_number_is_refused_by_its_field() {
    let cases: [(&'static str, NewValue, &str); 17] = [
        ("llama.block_count", 0_u32.into(), "at least 1"),
        ("llama.block_count", 1_000_000_u32.into(), "at most the file's"),
        ("llama.embedding_length", 1_000_000_000_u32.into(), "expected 96"),
        ("llama.context_length", 0_u32.into(), "at least 1"),
        ("llama.attention.head_count", 0_u32.into(), "at least 1"),
        ("llama.attention.head_count_kv", 4_u32.into(), "a divisor"),
        ("llama.attention.head_count_kv", 0_u32.into(), "at least 1"),
        ("llama.attention.key_length", u32::MAX.into(), "a length"),
        ("llama.attention.value_length", 31_u32.into(), "attention.key_length, 32"),
        ("llama.attention.layer_norm_rms_epsilon", f32::NAN.into(), "a finite number"),
        ("llama.attention.causal", false.into(), "expected true"),
        ("llama.rope.dimension_count", 7_u32.into(), "even"),
        ("llama.rope.dimension_count", 34_u32.into(), "at most the head's 32"),
        ("llama.rope.freq_base", 0.0_f32.into(), "above 1"),
        ("llama.rope.scaling.type", "spiral".into(), "found spiral"),
        ("llama.rope.scaling.factor", (-1.0_f32).into(), "above 0"),
        ("llama.expert_count", 8_u32.into(), "found 8"),
    ];
    for (field, value, part) in cases {
        let message = refusal(&changed("llama", set(field, value)));
        assert!(message.contains(field) && message.contains(part), "{field}: {message}");
    }
}

#[test]
fn a_missing_field_is_named() {
    for field in ["block_count", "attention.head_count", "feed_forward_length"] {
        let key = format!("llama.{field}");
        let message = refusal(&changed("llama", |writer| {
            writer.unset(&key);
        }));
        assert!(message.contains(&key), "{message}");
    }
}

#[test]
fn another_vocabulary_than_the_embedding_has_rows_is_refused() {
    let tokens = NewValue::Strings(vec!["a".to_owned()]);
    let message = refusal(&changed("llama", set("tokenizer.ggml.tokens", tokens)));
    assert!(message.contains("found 1 tokens, expected 269"), "{message}");
}

#[test]
fn a_missing_tensor_and_one_too_many_are_named() {
    let without = |name: &str| (name != "blk.2.ffn_up.weight").then(|| name.to_owned());
    let message = refusal(&rewritten(&sample("llama"), |_| (), without));
    assert!(message.contains("blk.2.ffn_up.weight of shape [96, 160]"), "{message}");
    let fewer_layers = changed("llama", set("llama.block_count", 2_u32));
    assert!(refusal(&fewer_layers).contains("use tensor blk.2."));
}

#[test]
fn a_tensor_of_another_shape_is_refused() {
    let message = refusal(&changed("llama", set("llama.feed_forward_length", 150_u32)));
    assert!(message.contains("found shape [96, 160], expected [96, 150]"), "{message}");
}

#[test]
fn rotary_factors_must_be_finite_and_not_zero() {
    let gguf = sample("llama");
    let mut writer = Writer::with_metadata_of(&gguf);
    let mut data = Vec::new();
    for info in gguf.tensors() {
        writer.declare(&info.name, &info.shape, info.ty).expect("declared before");
        data.push(gguf.tensor(&info.name).expect("listed").data.to_vec());
    }
    writer.declare("rope_freqs.weight", &[16], TensorType::F32).expect("new");
    data.push(vec![0; 64]);
    let gguf = Gguf::from_bytes(writer.into_bytes(&data).expect("complete")).expect("well-formed");
    assert!(refusal(&gguf).contains("rope_freqs.weight: value 0 is 0"));
}

#[test]
fn the_name_of_a_model_changes_nothing() {
    let plain = Architecture::from_gguf(&sample("llama")).expect("llama");
    let named = changed("llama", set("general.name", "Meta Llama 3.1 8B"));
    assert_eq!(Architecture::from_gguf(&named).expect("llama"), plain);
}
