//! Rotary position embeddings, resolved to one frequency per rotated pair.
//!
//! Whatever scaling a file asks for (linear, YaRN, Llama 3's and Phi's factors) ends as data here,
//! so a backend only multiplies: the angle of pair `i` at position `p` is `p * frequencies[i]`.

use super::ArchitectureError;
use super::family::{Family, Windows};
use super::fields::{Dimensions, Fields};
use super::tensors::Claims;
use crate::gguf::Gguf;

/// Which dimensions of a head are rotated together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RotaryKind {
    /// `2i` with `2i + 1` (llama.cpp's "norm").
    Adjacent,
    /// `i` with `i + dims / 2` (llama.cpp's "neox").
    Halves,
}

/// One rotary embedding.
#[derive(Debug, Clone, PartialEq)]
pub struct Rope {
    /// Which dimensions go together.
    pub kind: RotaryKind,
    /// Rotated dimensions at the start of each head, even; the rest pass unchanged.
    pub dims: usize,
    /// Multiplies both sine and cosine.
    pub magnitude: f32,
    /// Radians per position for each of the `dims / 2` pairs, up to `short_context_tokens`.
    short: Vec<f32>,
    /// The same for longer contexts, where the file has factors of their own for them.
    long: Option<Vec<f32>>,
    /// The longest context that uses `short` when there is a `long`.
    short_context_tokens: usize,
}

impl Rope {
    /// Radians per position of each of the `dims / 2` pairs.
    ///
    /// `context_tokens_max` is the size of context prepared for, not of the sequence: as in
    /// llama.cpp it alone chooses between Phi's short and long factors, so that keys already in the
    /// cache stay valid while a sequence grows. (Transformers chooses by the sequence's length.)
    pub fn frequencies(&self, context_tokens_max: usize) -> &[f32] {
        match &self.long {
            Some(long) if context_tokens_max > self.short_context_tokens => long,
            _ => &self.short,
        }
    }
}

/// How the file stretches the positions.
enum Scaling {
    None,
    Linear { factor: f64 },
    Yarn { factor: f64, original_tokens: f64, fast: f64, slow: f64 },
}

/// The file's rotary embeddings: the first for layers without a window, the second, where the
/// family has one, for layers with.
pub(super) fn read(
    gguf: &Gguf,
    family: &'static Family,
    dims: &Dimensions,
    tensors: &mut Claims<'_>,
) -> Result<Vec<Rope>, ArchitectureError> {
    let fields = Fields { gguf, family };
    let rotated = fields.length_or("rope.dimension_count", dims.head_dims)?;
    if rotated % 2 != 0 || rotated > dims.head_dims {
        let expected = format!("even and at most the head's {} dimensions", dims.head_dims);
        return Err(fields.wrong("rope.dimension_count", rotated, expected));
    }
    let base = base(&fields, "rope.freq_base", 10_000.0)?;
    let original = fields.length_or("rope.scaling.original_context_length", dims.context_tokens)?;
    let scaling = scaling(&fields, original)?;
    let pairs = rotated / 2;
    let factors = tensors.values("rope_freqs.weight", pairs)?;
    let (mut short, mut long) = (None, None);
    if family.rope_factors {
        short = tensors.values("rope_factors_short.weight", pairs)?;
        long = tensors.values("rope_factors_long.weight", pairs)?;
    }
    if short.is_some() != long.is_some() {
        let name =
            if short.is_some() { "rope_factors_long.weight" } else { "rope_factors_short.weight" };
        return Err(ArchitectureError::MissingTensor {
            name: name.to_owned(),
            expected: vec![pairs],
        });
    }
    let mut magnitude = fields.positive("rope.scaling.attn_factor")?.unwrap_or(1.0);
    if let Scaling::Yarn { factor, .. } = scaling {
        magnitude *= (1.0 + 0.1 * factor.ln()) as f32;
    }
    let resolve = |f: Option<&[f32]>| frequencies(rotated, base, &scaling, f);
    let global = Rope {
        kind: family.rotary,
        dims: rotated,
        magnitude,
        short: resolve(short.as_deref().or(factors.as_deref())),
        long: long.as_deref().map(|f| resolve(Some(f))),
        short_context_tokens: original,
    };
    let mut ropes = vec![global];
    if let (Windows::AllButEach { .. }, Some(_)) = (family.windows, dims.window) {
        let base = self::base(&fields, "rope.freq_base_swa", 10_000.0)?;
        ropes.push(Rope {
            kind: family.rotary,
            dims: rotated,
            magnitude: 1.0,
            short: frequencies(rotated, base, &Scaling::None, None),
            long: None,
            short_context_tokens: original,
        });
    }
    Ok(ropes)
}

fn base(fields: &Fields<'_>, field: &str, default: f32) -> Result<f64, ArchitectureError> {
    match fields.float(field)? {
        Some(found) if found <= 1.0 => Err(fields.wrong(field, found, "a number above 1")),
        found => Ok(f64::from(found.unwrap_or(default))),
    }
}

fn scaling(fields: &Fields<'_>, original: usize) -> Result<Scaling, ArchitectureError> {
    let field = "rope.scaling.type";
    let kind = fields.gguf.str(&fields.family.key(field))?.unwrap_or("linear");
    // `rope.scale_linear` is what old converters wrote.
    let factor = match fields.positive("rope.scaling.factor")? {
        Some(factor) => f64::from(factor),
        None => f64::from(fields.positive("rope.scale_linear")?.unwrap_or(1.0)),
    };
    match kind {
        // The factor of "longrope" is in its tensors and in attn_factor.
        "none" | "longrope" => Ok(Scaling::None),
        "linear" => Ok(Scaling::Linear { factor }),
        "yarn" => Ok(Scaling::Yarn {
            factor,
            original_tokens: original as f64,
            fast: f64::from(fields.positive("rope.scaling.yarn_beta_fast")?.unwrap_or(32.0)),
            slow: f64::from(fields.positive("rope.scaling.yarn_beta_slow")?.unwrap_or(1.0)),
        }),
        other => Err(fields.wrong(field, other, "none, linear, yarn or longrope")),
    }
}

/// One frequency per pair. Computed in f64 and rounded once, as the references do in effect.
fn frequencies(dims: usize, base: f64, scaling: &Scaling, factors: Option<&[f32]>) -> Vec<f32> {
    (0..dims / 2)
        .map(|pair| {
            let plain = base.powf(-2.0 * pair as f64 / dims as f64);
            let plain = plain / factors.map_or(1.0, |f| f64::from(f[pair]));
            let scaled = match *scaling {
                Scaling::None => plain,
                Scaling::Linear { factor } => plain / factor,
                Scaling::Yarn { factor, original_tokens, fast, slow } => {
                    let low = turns(dims, original_tokens, fast, base).floor().max(0.0);
                    let high =
                        turns(dims, original_tokens, slow, base).ceil().min(dims as f64 - 1.0);
                    let ramp = ((pair as f64 - low) / (high - low).max(0.001)).clamp(0.0, 1.0);
                    plain / factor * ramp + plain * (1.0 - ramp)
                }
            };
            scaled as f32
        })
        .collect()
}

/// The pair that turns `rotations` times within the original context (YaRN, equation 17).
fn turns(dims: usize, original_tokens: f64, rotations: f64, base: f64) -> f64 {
    let tau = std::f64::consts::TAU;
    dims as f64 * (original_tokens / (rotations * tau)).ln() / (2.0 * base.ln())
}
