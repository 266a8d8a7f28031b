//! Which tensor of the folder becomes which of the GGUF file.

use super::ConvertError;
use super::config::{self, Config};

/// The families that can be converted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Family {
    Llama,
    Qwen2,
    Qwen3,
    Phi3,
    Gemma3,
    /// BitNet with SiLU, which is what `bitnet` means in GGUF.
    Bitnet,
    /// BitNet with squared ReLU: Microsoft's 2B-4T.
    BitnetB158,
}

impl Family {
    pub(super) fn of(config: &Config) -> Result<Self, ConvertError> {
        match config.architecture()? {
            "LlamaForCausalLM" | "MistralForCausalLM" => Ok(Self::Llama),
            "Qwen2ForCausalLM" => Ok(Self::Qwen2),
            "Qwen3ForCausalLM" => Ok(Self::Qwen3),
            "Phi3ForCausalLM" => Ok(Self::Phi3),
            "Gemma3ForCausalLM" | "Gemma3ForConditionalGeneration" => Ok(Self::Gemma3),
            "BitNetForCausalLM" => Self::bitnet(config),
            other => Err(config::wrong(
                "architectures",
                format!(
                    "found {other:?}, expected LlamaForCausalLM, MistralForCausalLM, \
                     Qwen2ForCausalLM, Qwen3ForCausalLM, Phi3ForCausalLM, Gemma3ForCausalLM, \
                     Gemma3ForConditionalGeneration or BitNetForCausalLM"
                ),
            )),
        }
    }

    /// BitNet's two forms differ in their activation alone. Weights that are packed, or that are to
    /// be rounded to three values when they are loaded, are not converted.
    fn bitnet(config: &Config) -> Result<Self, ConvertError> {
        if config.get("quantization_config").is_some_and(|value| !value.is_null()) {
            let reason = "packed or rounded weights are not converted: take the publisher's GGUF";
            return Err(config::wrong("quantization_config", reason.to_owned()));
        }
        match config.get("hidden_act").and_then(serde_json::Value::as_str) {
            Some("silu") => Ok(Self::Bitnet),
            Some("relu2") | None => Ok(Self::BitnetB158),
            Some(other) => {
                let reason = format!("found {other:?}, expected relu2 or silu");
                Err(config::wrong("hidden_act", reason))
            }
        }
    }

    /// `general.architecture`.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Llama => "llama",
            Self::Qwen2 => "qwen2",
            Self::Qwen3 => "qwen3",
            Self::Phi3 => "phi3",
            Self::Gemma3 => "gemma3",
            Self::Bitnet => "bitnet",
            Self::BitnetB158 => "bitnet-b1.58",
        }
    }

    /// The tensors of a layer that must be there, both names without prefix and `.weight`.
    fn layer(self) -> Vec<(&'static str, &'static str)> {
        let mut parts = vec![
            ("input_layernorm", "attn_norm"),
            ("self_attn.o_proj", "attn_output"),
            ("mlp.down_proj", "ffn_down"),
        ];
        if self == Self::Phi3 {
            parts.extend([("self_attn.qkv_proj", "attn_qkv"), ("mlp.gate_up_proj", "ffn_up")]);
        } else {
            parts.extend([
                ("self_attn.q_proj", "attn_q"),
                ("self_attn.k_proj", "attn_k"),
                ("self_attn.v_proj", "attn_v"),
                ("mlp.gate_proj", "ffn_gate"),
                ("mlp.up_proj", "ffn_up"),
            ]);
        }
        if matches!(self, Self::Qwen3 | Self::Gemma3) {
            parts
                .extend([("self_attn.q_norm", "attn_q_norm"), ("self_attn.k_norm", "attn_k_norm")]);
        }
        if matches!(self, Self::Bitnet | Self::BitnetB158) {
            parts.extend([
                ("self_attn.attn_sub_norm", "attn_sub_norm"),
                ("mlp.ffn_sub_norm", "ffn_sub_norm"),
            ]);
        }
        if self == Self::Gemma3 {
            parts.extend([
                ("post_attention_layernorm", "post_attention_norm"),
                ("pre_feedforward_layernorm", "ffn_norm"),
                ("post_feedforward_layernorm", "post_ffw_norm"),
            ]);
        } else {
            parts.push(("post_attention_layernorm", "ffn_norm"));
        }
        parts
    }
}

/// What happens to a tensor's values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Transform {
    None,
    /// Gemma's norms multiply by one plus the weight.
    AddOne,
    /// Llama's query and key rows, from halves that rotate together to adjacent pairs.
    Interleave {
        heads: usize,
    },
}

impl Transform {
    /// Which source row becomes row `index` of `rows`.
    pub(super) fn source_row(self, index: usize, rows: usize) -> usize {
        let Self::Interleave { heads } = self else { return index };
        let dims = rows / heads;
        let (head, within) = (index / dims, index % dims);
        head * dims + within % 2 * (dims / 2) + within / 2
    }
}

/// The tensor's name in the GGUF file and what happens to it; nothing for one that is left out.
pub(super) fn target(
    name: &str,
    config: &Config,
    family: Family,
    tied: bool,
) -> Result<Option<(String, Transform)>, ConvertError> {
    // Vision towers are not converted; rotary tables and tied copies are computed again.
    let vision = ["vision_tower.", "multi_modal_projector.", "model.vision_tower."];
    if vision.iter().any(|prefix| name.starts_with(prefix)) || name.ends_with("rotary_emb.inv_freq")
    {
        return Ok(None);
    }
    let bare = name.strip_prefix("language_model.").unwrap_or(name);
    let bare = bare.strip_prefix("model.").unwrap_or(bare);
    let bare = bare.strip_prefix("language_model.").unwrap_or(bare);
    let norm = if family == Family::Gemma3 { Transform::AddOne } else { Transform::None };
    match bare {
        "embed_tokens.weight" => return Ok(Some(("token_embd.weight".into(), Transform::None))),
        "norm.weight" => return Ok(Some(("output_norm.weight".into(), norm))),
        "lm_head.weight" if tied => return Ok(None),
        "lm_head.weight" => return Ok(Some(("output.weight".into(), Transform::None))),
        _ => {}
    }
    let unknown = || ConvertError::Tensor {
        name: name.to_owned(),
        reason: format!(
            "a {} model has no place for it, and leaving it out would change the answers",
            family.name()
        ),
    };
    let (layer, part) =
        bare.strip_prefix("layers.").and_then(|rest| rest.split_once('.')).ok_or_else(unknown)?;
    let layer: u32 = layer.parse().map_err(|_| unknown())?;
    let (part, kind) = part.rsplit_once('.').ok_or_else(unknown)?;
    let parts = family.layer();
    let (_, to) = parts.iter().find(|(from, _)| *from == part).ok_or_else(unknown)?;
    let is_norm = to.ends_with("_norm");
    if !(kind == "weight" || (kind == "bias" && !is_norm))
        || layer >= config.count("num_hidden_layers")?
    {
        return Err(unknown());
    }
    let transform = match (family, *to) {
        (_, _) if is_norm => norm,
        (Family::Llama, "attn_q") => interleave(name, config.count("num_attention_heads")?)?,
        (Family::Llama, "attn_k") => interleave(name, config.kv_heads()?)?,
        _ => Transform::None,
    };
    if kind == "bias" && transform != Transform::None {
        let reason = "a bias on rotated rows is not supported".to_owned();
        return Err(ConvertError::Tensor { name: name.to_owned(), reason });
    }
    Ok(Some((format!("blk.{layer}.{to}.{kind}"), transform)))
}

fn interleave(name: &str, heads: u32) -> Result<Transform, ConvertError> {
    match usize::try_from(heads) {
        Ok(heads) => Ok(Transform::Interleave { heads }),
        Err(_) => Err(ConvertError::Tensor {
            name: name.to_owned(),
            reason: format!("{heads} heads are too many"),
        }),
    }
}

/// Sorts embedding, head and norm first, then the layers by number.
pub(super) fn order(name: &str) -> (u32, String) {
    let layer =
        name.strip_prefix("blk.").and_then(|rest| rest.split('.').next()?.parse::<u32>().ok());
    (layer.map_or(0, |layer| layer.saturating_add(1)), name.to_owned())
}

/// Fails with the first tensor that the family needs and `has` does not know.
pub(super) fn check_complete(
    config: &Config,
    family: Family,
    tied: bool,
    has: &dyn Fn(&str) -> bool,
) -> Result<(), ConvertError> {
    let missing = |name: String| ConvertError::Tensor { name, reason: "it is missing".into() };
    for (name, from) in [
        ("token_embd.weight", "model.embed_tokens.weight"),
        ("output_norm.weight", "model.norm.weight"),
        ("output.weight", "lm_head.weight"),
    ] {
        if !(has(name) || (tied && name == "output.weight")) {
            return Err(missing(from.to_owned()));
        }
    }
    for layer in 0..config.count("num_hidden_layers")? {
        for (from, to) in family.layer() {
            if !has(&format!("blk.{layer}.{to}.weight")) {
                return Err(missing(format!("model.layers.{layer}.{from}.weight")));
            }
        }
    }
    Ok(())
}
