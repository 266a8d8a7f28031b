//! The metadata keys of a family, from `config.json`.

use std::path::Path;

use fulmar_inference::gguf::Writer;
use fulmar_kernels::formats::TensorType;
use serde_json::Value;

use super::config::{Config, wrong};
use super::names::Family;
use super::{ConvertError, ConvertOptions};

/// Gemma 3's published configurations leave their defaults out.
const GEMMA3_DEFAULTS: [(&str, u32); 4] = [
    ("num_attention_heads", 8),
    ("num_key_value_heads", 4),
    ("head_dim", 256),
    ("max_position_embeddings", 131_072),
];

/// Name, license and kind of the file.
pub(super) fn general(writer: &mut Writer, folder: &Path, options: &ConvertOptions) {
    let folder_name = || {
        let name = folder.canonicalize().ok()?.file_name()?.to_string_lossy().into_owned();
        Some(name)
    };
    writer.set("general.type", "model");
    if let Some(name) = options.name.clone().or_else(folder_name) {
        writer.set("general.name", name);
    }
    if let Some(license) = &options.license {
        writer.set("general.license", license.as_str());
    }
    let file_type: u32 = match options.ty {
        TensorType::F32 => 0,
        TensorType::Bf16 => 32,
        _ => 1,
    };
    writer.set("general.file_type", file_type).set("general.quantization_version", 2u32);
}

/// A count with Gemma's default.
fn count(config: &Config, family: Family, field: &str) -> Result<u32, ConvertError> {
    let default = GEMMA3_DEFAULTS.iter().find(|(name, _)| *name == field).map(|(_, n)| *n);
    match (config.count_if(field)?, family, default) {
        (Some(found), _, _) => Ok(found),
        (None, Family::Gemma3, Some(default)) => Ok(default),
        (None, _, _) => config.count(field),
    }
}

/// Every size and constant that the family's block needs.
pub(super) fn dimensions(
    writer: &mut Writer,
    config: &Config,
    family: Family,
) -> Result<(), ConvertError> {
    check_unsupported(config)?;
    let key = |field: &str| format!("{}.{field}", family.name());
    let heads = count(config, family, "num_attention_heads")?;
    let kv_heads = match family {
        Family::Gemma3 => count(config, family, "num_key_value_heads")?,
        _ => config.kv_heads()?,
    };
    let head_dims = match family {
        Family::Gemma3 => count(config, family, "head_dim")?,
        _ => config.head_dims()?,
    };
    let epsilon = config.number_if("rms_norm_eps")?.unwrap_or(1e-6);
    let context = count(config, family, "max_position_embeddings")?;
    writer
        .set(&key("block_count"), config.count("num_hidden_layers")?)
        .set(&key("context_length"), context)
        .set(&key("embedding_length"), config.count("hidden_size")?)
        .set(&key("feed_forward_length"), config.count("intermediate_size")?)
        .set(&key("attention.head_count"), heads)
        .set(&key("attention.head_count_kv"), kv_heads)
        .set(&key("attention.key_length"), head_dims)
        .set(&key("attention.value_length"), head_dims)
        .set(&key("attention.layer_norm_rms_epsilon"), epsilon)
        .set(&key("rope.freq_base"), rotary_base(config, family)?)
        .set(&key("rope.dimension_count"), rotated_dims(config, head_dims)?);
    if matches!(family, Family::Gemma3 | Family::Phi3)
        && let Some(window) = config.count_if("sliding_window")?
    {
        writer.set(&key("attention.sliding_window"), window);
    }
    scaling(writer, config, family)
}

/// Refuses what no block here computes.
fn check_unsupported(config: &Config) -> Result<(), ConvertError> {
    for field in
        ["num_experts", "num_local_experts", "attn_logit_softcapping", "final_logit_softcapping"]
    {
        if let Some(found) = config.number_if(field)?
            && found != 0.0
        {
            return Err(wrong(field, format!("found {found}, this program does not compute it")));
        }
    }
    if config.get("use_sliding_window").and_then(Value::as_bool) == Some(true) {
        return Err(wrong("use_sliding_window", "found true, expected false".into()));
    }
    Ok(())
}

fn rotary_base(config: &Config, family: Family) -> Result<f32, ConvertError> {
    // Newer configurations keep everything rotary in one object.
    let nested =
        config.get("rope_parameters").and_then(|r| r.get("rope_theta")).and_then(Value::as_f64);
    let default = if family == Family::Gemma3 { 1_000_000.0 } else { 10_000.0 };
    let base = config.number_if("rope_theta")?.or(nested.map(|n| n as f32)).unwrap_or(default);
    match base > 1.0 && base.is_finite() {
        true => Ok(base),
        false => Err(wrong("rope_theta", format!("found {base}, expected a number above 1"))),
    }
}

fn rotated_dims(config: &Config, head_dims: u32) -> Result<u32, ConvertError> {
    let share = config.number_if("partial_rotary_factor")?.unwrap_or(1.0);
    if !(share > 0.0 && share <= 1.0) {
        let reason = format!("found {share}, expected above 0 and at most 1");
        return Err(wrong("partial_rotary_factor", reason));
    }
    Ok((head_dims as f32 * share) as u32)
}

/// The rotary scaling, if there is one: its kind and its fields.
fn rope_scaling(config: &Config) -> Option<(&str, &Value)> {
    let scaling = config
        .get("rope_scaling")
        .or_else(|| config.get("rope_parameters"))
        .filter(|value| value.is_object())?;
    let kind = scaling.get("rope_type").or_else(|| scaling.get("type")).and_then(Value::as_str)?;
    (kind != "default").then_some((kind, scaling))
}

fn field(scaling: &Value, name: &str) -> Result<f64, ConvertError> {
    scaling
        .get(name)
        .and_then(Value::as_f64)
        .filter(|n| n.is_finite() && *n > 0.0)
        .ok_or_else(|| wrong(&format!("rope_scaling.{name}"), "expected a number above 0".into()))
}

fn scaling(writer: &mut Writer, config: &Config, family: Family) -> Result<(), ConvertError> {
    let Some((kind, scaling)) = rope_scaling(config) else { return Ok(()) };
    let key = |field: &str| format!("{}.rope.scaling.{field}", family.name());
    match kind {
        "linear" => {
            writer
                .set(&key("type"), "linear")
                .set(&key("factor"), field(scaling, "factor")? as f32);
        }
        "yarn" => {
            let original = field(scaling, "original_max_position_embeddings")? as u32;
            writer
                .set(&key("type"), "yarn")
                .set(&key("factor"), field(scaling, "factor")? as f32)
                .set(&key("original_context_length"), original);
        }
        "longrope" | "su" if family == Family::Phi3 => {
            let original = config.count("original_max_position_embeddings")?;
            let context = config.count("max_position_embeddings")?;
            let ratio = f64::from(context) / f64::from(original);
            let magnitude = match ratio > 1.0 {
                true => (1.0 + ratio.ln() / f64::from(original).ln()).sqrt(),
                false => 1.0,
            };
            writer
                .set(&key("original_context_length"), original)
                .set(&key("attn_factor"), magnitude as f32);
        }
        // Resolved to factors, below.
        "llama3" if family == Family::Llama => {}
        other => {
            let reason = format!("found {other:?}, expected linear, yarn, llama3 or longrope");
            return Err(wrong("rope_scaling.rope_type", reason));
        }
    }
    Ok(())
}

/// Tensors that are computed from the configuration: factors on the rotary frequencies.
pub(super) fn rotary_tensors(
    config: &Config,
    family: Family,
) -> Result<Vec<(&'static str, Vec<f32>)>, ConvertError> {
    match rope_scaling(config) {
        Some(("llama3", scaling)) if family == Family::Llama => {
            Ok(vec![("rope_freqs.weight", llama3_factors(config, family, scaling)?)])
        }
        Some(("longrope" | "su", scaling)) if family == Family::Phi3 => {
            let pairs = rotated_dims(config, config.head_dims()?)? as usize / 2;
            let factors = |name: &str| {
                let values: Option<Vec<f32>> = scaling
                    .get(name)
                    .and_then(Value::as_array)
                    .map(|list| list.iter().filter_map(Value::as_f64).map(|n| n as f32).collect());
                values.filter(|v| v.len() == pairs).ok_or_else(|| {
                    wrong(&format!("rope_scaling.{name}"), format!("expected {pairs} numbers"))
                })
            };
            Ok(vec![
                ("rope_factors_long.weight", factors("long_factor")?),
                ("rope_factors_short.weight", factors("short_factor")?),
            ])
        }
        _ => Ok(Vec::new()),
    }
}

/// Llama 3.1's stretch: long waves by the factor, short ones not, a ramp between.
fn llama3_factors(
    config: &Config,
    family: Family,
    scaling: &Value,
) -> Result<Vec<f32>, ConvertError> {
    let dims = f64::from(config.head_dims()?);
    let base = f64::from(rotary_base(config, family)?);
    let factor = field(scaling, "factor")?;
    let (low, high) = (field(scaling, "low_freq_factor")?, field(scaling, "high_freq_factor")?);
    let original = field(scaling, "original_max_position_embeddings")?;
    if low >= high {
        let reason = format!("found {low}, expected below high_freq_factor, {high}");
        return Err(wrong("rope_scaling.low_freq_factor", reason));
    }
    Ok((0..dims as usize / 2)
        .map(|pair| {
            let wave = std::f64::consts::TAU * base.powf(2.0 * pair as f64 / dims);
            let stretch = if wave < original / high {
                1.0
            } else if wave > original / low {
                factor
            } else {
                let smooth = (original / wave - low) / (high - low);
                1.0 / ((1.0 - smooth) / factor + smooth)
            };
            stretch as f32
        })
        .collect())
}
