use std::collections::HashMap;
use std::fs;

use fulmar_inference::gguf::Gguf;
use fulmar_inference::model::Architecture;
use safetensors::tensor::{Dtype, TensorView};
use serde_json::json;

use super::*;

const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// A folder of one layer: hidden 8, two heads of 4, one key head, feed-forward 16, 6 tokens.
struct Folder {
    dir: tempfile::TempDir,
    config: serde_json::Value,
    tensors: Vec<(String, Vec<usize>)>,
}

impl Folder {
    fn new(architecture: &str) -> Self {
        let config = json!({
            "architectures": [architecture], "hidden_size": 8, "intermediate_size": 16,
            "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1,
            "head_dim": 4, "max_position_embeddings": 64, "rms_norm_eps": 1e-6,
            "rope_theta": 10000.0, "tie_word_embeddings": true, "eos_token_id": 5,
        });
        let mut tensors: Vec<(String, Vec<usize>)> = [
            ("embed_tokens", vec![6, 8]),
            ("norm", vec![8]),
            ("layers.0.input_layernorm", vec![8]),
            ("layers.0.self_attn.q_proj", vec![8, 8]),
            ("layers.0.self_attn.k_proj", vec![4, 8]),
            ("layers.0.self_attn.v_proj", vec![4, 8]),
            ("layers.0.self_attn.o_proj", vec![8, 8]),
            ("layers.0.post_attention_layernorm", vec![8]),
            ("layers.0.mlp.gate_proj", vec![16, 8]),
            ("layers.0.mlp.up_proj", vec![16, 8]),
            ("layers.0.mlp.down_proj", vec![8, 16]),
        ]
        .map(|(name, shape)| (format!("model.{name}.weight"), shape))
        .to_vec();
        if architecture.starts_with("Qwen3") {
            for part in ["q_norm", "k_norm"] {
                tensors.push((format!("model.layers.0.self_attn.{part}.weight"), vec![4]));
            }
        }
        Self { dir: tempfile::tempdir().unwrap(), config, tensors }
    }

    /// Writes all files; the values of a tensor are its name's length, then counted up by 1/8.
    fn write(&self) {
        let path = |name: &str| self.dir.path().join(name);
        fs::write(path("config.json"), self.config.to_string()).unwrap();
        let tokenizer = json!({
            "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "c": 2, "ab": 3},
                      "merges": [["a", "b"]]},
            "added_tokens": [{"id": 5, "content": "<|end|>", "special": true}],
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": QWEN2}, "behavior": "Isolated"},
                {"type": "ByteLevel", "add_prefix_space": false, "use_regex": false}]},
        });
        fs::write(path("tokenizer.json"), tokenizer.to_string()).unwrap();
        let settings = json!({"eos_token": "<|end|>", "chat_template": "{{ messages }}"});
        fs::write(path("tokenizer_config.json"), settings.to_string()).unwrap();
        // two shards
        let (first, second) = self.tensors.split_at(5);
        for (name, part) in [("model-1.safetensors", first), ("model-2.safetensors", second)] {
            let data: Vec<Vec<u8>> = part
                .iter()
                .map(|(name, shape)| {
                    (0..shape.iter().product::<usize>())
                        .flat_map(|i| (name.len() as f32 + i as f32 / 8.0).to_le_bytes())
                        .collect()
                })
                .collect();
            let views: HashMap<String, TensorView<'_>> = part
                .iter()
                .zip(&data)
                .map(|((name, shape), data)| {
                    (name.clone(), TensorView::new(Dtype::F32, shape.clone(), data).unwrap())
                })
                .collect();
            safetensors::serialize_to_file(views, None, &path(name)).unwrap();
        }
    }

    fn convert(&self, ty: TensorType) -> Result<Gguf, ConvertError> {
        self.write();
        let output = self.dir.path().join("model.gguf");
        let options = ConvertOptions { ty, name: Some("gull".into()), license: Some("MIT".into()) };
        convert(self.dir.path(), &output, &options, &mut |_| ())?;
        Ok(Gguf::open(&output).unwrap())
    }

    fn refusal(&self) -> String {
        match self.convert(TensorType::F16) {
            Ok(_) => panic!("it was converted"),
            Err(error) => {
                assert!(!self.dir.path().join("model.gguf").exists());
                error.to_string()
            }
        }
    }
}

fn values(gguf: &Gguf, name: &str) -> Vec<f32> {
    let tensor = gguf.tensor(name).unwrap();
    let mut values = vec![0.0; tensor.info.elements()];
    formats::dequantize(tensor.info.ty, tensor.data, &mut values).unwrap();
    values
}

#[test]
fn a_qwen3_folder_becomes_a_model_that_the_decoder_accepts() {
    let gguf = Folder::new("Qwen3ForCausalLM").convert(TensorType::F16).unwrap();
    let architecture = Architecture::from_gguf(&gguf).unwrap();
    assert_eq!((architecture.vocab_len, architecture.head_dims), (6, 4));
    assert_eq!(gguf.str("general.name").unwrap(), Some("gull"));
    assert_eq!(gguf.str("tokenizer.ggml.pre").unwrap(), Some("qwen2"));
    assert_eq!(gguf.strings("tokenizer.ggml.merges").unwrap().unwrap(), ["a b"]);
    let tokens = gguf.strings("tokenizer.ggml.tokens").unwrap().unwrap();
    assert_eq!(tokens, ["a", "b", "c", "ab", "[PAD4]", "<|end|>"]);
    assert_eq!(gguf.i32s("tokenizer.ggml.token_type").unwrap().unwrap(), [1, 1, 1, 1, 5, 3]);
    assert_eq!(gguf.u32("tokenizer.ggml.eos_token_id").unwrap(), Some(5));
    assert_eq!(gguf.str("tokenizer.chat_template").unwrap(), Some("{{ messages }}"));
    assert_eq!(gguf.tensor("token_embd.weight").unwrap().info.ty, TensorType::F16);
    assert_eq!(gguf.tensor("blk.0.attn_norm.weight").unwrap().info.ty, TensorType::F32);
    assert_eq!(values(&gguf, "token_embd.weight")[8], 25.0 + "model.".len() as f32 - 5.0);
}

#[test]
fn llama_rows_that_rotate_together_become_neighbours() {
    let gguf = Folder::new("LlamaForCausalLM").convert(TensorType::F32).unwrap();
    Architecture::from_gguf(&gguf).unwrap();
    let first_of_row = |row: usize| values(&gguf, "blk.0.attn_q.weight")[row * 8];
    let start = "model.layers.0.self_attn.q_proj.weight".len() as f32;
    let rows: Vec<f32> = (0..8).map(|row| first_of_row(row) - start).collect();
    assert_eq!(rows, [0.0, 2.0, 1.0, 3.0, 4.0, 6.0, 5.0, 7.0]);
}

#[test]
fn llama_3_scaling_becomes_factors_between_one_and_the_factor() {
    let mut folder = Folder::new("LlamaForCausalLM");
    folder.config["rope_scaling"] = json!({
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 128,
    });
    let gguf = folder.convert(TensorType::F16).unwrap();
    let factors = values(&gguf, "rope_freqs.weight");
    assert_eq!((factors[0], factors[1]), (1.0, 8.0));
    Architecture::from_gguf(&gguf).unwrap();
}

#[test]
fn a_missing_or_left_over_tensor_is_named() {
    let mut folder = Folder::new("Qwen3ForCausalLM");
    folder.tensors.retain(|(name, _)| !name.contains("up_proj"));
    let refused = folder.refusal();
    assert_eq!(refused, "convert tensor model.layers.0.mlp.up_proj.weight: it is missing");
    let mut folder = Folder::new("Qwen2ForCausalLM");
    folder.tensors.push(("model.layers.0.self_attn.q_norm.weight".into(), vec![4]));
    assert!(folder.refusal().contains("q_norm.weight: a qwen2 model has no place for it"));
    let mut folder = Folder::new("Qwen3ForCausalLM");
    folder.config["tie_word_embeddings"] = json!(false);
    assert!(folder.refusal().contains("lm_head.weight: it is missing"));
}

#[test]
fn a_field_that_cannot_be_used_is_named() {
    let cases = [
        ("hidden_size", json!(0), "hidden_size"),
        ("num_hidden_layers", json!("one"), "num_hidden_layers"),
        ("architectures", json!(["GPT2LMHeadModel"]), "GPT2LMHeadModel"),
        ("rope_scaling", json!({"rope_type": "dynamic"}), "dynamic"),
        ("num_experts", json!(4), "num_experts"),
        ("rope_theta", json!(-1), "rope_theta"),
    ];
    for (field, value, expected) in cases {
        let mut folder = Folder::new("Qwen3ForCausalLM");
        folder.config[field] = value;
        let refused = folder.refusal();
        assert!(refused.contains(expected), "{field}: {refused}");
    }
}

#[test]
fn heads_that_do_not_divide_the_rows_are_refused() {
    let mut folder = Folder::new("LlamaForCausalLM");
    folder.config["num_attention_heads"] = json!(3);
    assert!(folder.refusal().contains("each of 3 heads"));
}

#[test]
fn a_value_above_f16_is_named_instead_of_becoming_infinite() {
    let mut folder = Folder::new("Qwen3ForCausalLM");
    folder.config["vocab_size"] = json!(6);
    folder.write();
    let big: Vec<u8> = (0..48).flat_map(|_| 1e6_f32.to_le_bytes()).collect();
    let name = "model.embed_tokens.weight".to_owned();
    folder.tensors.retain(|(known, _)| *known != name);
    folder.write();
    let view = TensorView::new(Dtype::F32, vec![6, 8], &big).unwrap();
    let extra = folder.dir.path().join("model-3.safetensors");
    safetensors::serialize_to_file([(name, view)], None, &extra).unwrap();
    assert!(folder.refusal().contains("does not fit F16"));
    assert!(folder.convert(TensorType::Bf16).is_ok());
}

#[test]
fn an_unknown_pre_tokenizer_is_refused_rather_than_guessed() {
    let folder = Folder::new("Qwen3ForCausalLM");
    folder.write();
    let path = folder.dir.path().join("tokenizer.json");
    let text = fs::read_to_string(&path).unwrap().replace("{L}+", "{L}*");
    fs::write(&path, text).unwrap();
    let options = ConvertOptions { ty: TensorType::F16, name: None, license: None };
    let output = folder.dir.path().join("x.gguf");
    let refused = convert(folder.dir.path(), &output, &options, &mut |_| ()).unwrap_err();
    assert!(refused.to_string().contains("pre_tokenizer"), "{refused}");
}

#[test]
fn damaged_weights_are_refused_by_file() {
    let folder = Folder::new("Qwen3ForCausalLM");
    folder.write();
    fs::write(folder.dir.path().join("model-1.safetensors"), b"garbage").unwrap();
    let options = ConvertOptions { ty: TensorType::F16, name: None, license: None };
    let output = folder.dir.path().join("x.gguf");
    let refused = convert(folder.dir.path(), &output, &options, &mut |_| ()).unwrap_err();
    assert!(refused.to_string().contains("model-1.safetensors"), "{refused}");
}
