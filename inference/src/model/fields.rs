//! The numbers of an architecture, read from metadata and checked against each other and against
//! the two tensors that bound them: nothing here may be larger than the file makes true.

use super::family::{Family, Windows};
use super::{ArchitectureError, Pooling};
use crate::gguf::{Gguf, Value, ValueType};

/// Metadata keys (after the family's prefix) that ask for something no block here computes, unless
/// they hold zero.
const UNSUPPORTED: [&str; 5] = [
    "expert_count",
    "attn_logit_softcapping",
    "attention.max_alibi_bias",
    "attention.clamp_kqv",
    "residual_scale",
];

/// Every number that is not a tensor's.
pub(super) struct Dimensions {
    pub(super) layers: usize,
    pub(super) vocab_len: usize,
    pub(super) embedding_len: usize,
    pub(super) feed_forward_len: usize,
    pub(super) context_tokens: usize,
    pub(super) heads: usize,
    pub(super) kv_heads: usize,
    pub(super) head_dims: usize,
    pub(super) norm_epsilon: f32,
    pub(super) embedding_scale: f32,
    pub(super) attention_scale: f32,
    pub(super) logit_cap: Option<f32>,
    pub(super) pooling: Pooling,
    pub(super) window: Option<usize>,
    /// One per layer.
    pub(super) windowed: Vec<bool>,
}

impl Dimensions {
    pub(super) fn read(gguf: &Gguf, family: &'static Family) -> Result<Self, ArchitectureError> {
        let fields = Fields { gguf, family };
        for field in UNSUPPORTED {
            if let Some(found) = fields.number(field)?
                && found != 0.0
            {
                return Err(fields.wrong(field, found, "none: this block does not compute it"));
            }
        }
        if fields.flag("attention.causal")? == Some(false) {
            return Err(fields.wrong("attention.causal", false, "true"));
        }
        let layers = fields.length("block_count")?;
        if layers > gguf.tensors().len() {
            let most = format!("at most the file's {} tensors", gguf.tensors().len());
            return Err(fields.wrong("block_count", layers, most));
        }
        let (embedding_len, vocab_len) = embedding(&fields)?;
        let heads = fields.length("attention.head_count")?;
        let kv_heads = fields.length_or("attention.head_count_kv", heads)?;
        if !heads.is_multiple_of(kv_heads) {
            let expected = format!("a divisor of attention.head_count, {heads}");
            return Err(fields.wrong("attention.head_count_kv", kv_heads, expected));
        }
        let head_dims = head_dims(&fields, embedding_len, heads)?;
        let window = match family.windows {
            Windows::Never => None,
            Windows::Every | Windows::AllButEach { .. } => {
                fields.size("attention.sliding_window")?.filter(|len| *len > 0)
            }
        };
        Ok(Self {
            layers,
            vocab_len,
            embedding_len,
            feed_forward_len: fields.length("feed_forward_length")?,
            context_tokens: fields.length("context_length")?,
            heads,
            kv_heads,
            head_dims,
            norm_epsilon: fields.epsilon()?,
            embedding_scale: if family.embedding_scaled {
                (embedding_len as f32).sqrt()
            } else {
                1.0
            },
            attention_scale: attention_scale(&fields, layers, embedding_len, heads, head_dims)?,
            logit_cap: fields.positive("final_logit_softcapping")?,
            pooling: pooling(&fields)?,
            window,
            windowed: windowed(&fields, layers, window.is_some())?,
        })
    }
}

/// Embedding and vocabulary lengths: the metadata's, which must be the tensor's and the
/// tokenizer's.
fn embedding(fields: &Fields<'_>) -> Result<(usize, usize), ArchitectureError> {
    let len = fields.length("embedding_length")?;
    let name = "token_embd.weight";
    let info = fields.gguf.info(name).ok_or_else(|| ArchitectureError::MissingTensor {
        name: name.to_owned(),
        expected: vec![len],
    })?;
    let [columns, rows] = info.shape[..] else {
        return Err(ArchitectureError::Shape {
            name: name.to_owned(),
            found: info.shape.clone(),
            expected: vec![len, 0],
        });
    };
    if columns != len {
        let expected = format!("{columns}, the row length of {name}");
        return Err(fields.wrong("embedding_length", len, expected));
    }
    if u32::try_from(rows).is_err() {
        return Err(fields.wrong("vocab_size", rows, "a length below 2^32"));
    }
    if let Some(Value::Array(tokens)) = fields.gguf.value("tokenizer.ggml.tokens")
        && tokens.len != rows
    {
        return Err(ArchitectureError::Field {
            field: "tokenizer.ggml.tokens".to_owned(),
            found: format!("{} tokens", tokens.len),
            expected: format!("{rows}, the rows of {name}"),
        });
    }
    Ok((len, rows))
}

fn head_dims(
    fields: &Fields<'_>,
    embedding_len: usize,
    heads: usize,
) -> Result<usize, ArchitectureError> {
    let dims = match fields.length_if("attention.key_length")? {
        Some(dims) => dims,
        None if embedding_len.is_multiple_of(heads) => embedding_len / heads,
        None => {
            let expected = format!(
                "a divisor of embedding_length, {embedding_len}, as there is no attention.key_length"
            );
            return Err(fields.wrong("attention.head_count", heads, expected));
        }
    };
    if heads.checked_mul(dims).is_none_or(|len| len > u32::MAX as usize) {
        let expected = format!("a length that {heads} heads can have");
        return Err(fields.wrong("attention.key_length", dims, expected));
    }
    let value_dims = fields.length_or("attention.value_length", dims)?;
    if value_dims != dims {
        let expected = format!("attention.key_length, {dims}");
        return Err(fields.wrong("attention.value_length", value_dims, expected));
    }
    Ok(dims)
}

fn attention_scale(
    fields: &Fields<'_>,
    layers: usize,
    embedding_len: usize,
    heads: usize,
    head_dims: usize,
) -> Result<f32, ArchitectureError> {
    if let Some(scale) = fields.positive("attention.scale")? {
        return Ok(scale);
    }
    let share = if fields.family.wide_query_layers == Some(layers) {
        (embedding_len / heads).max(1)
    } else {
        head_dims
    };
    Ok(1.0 / (share as f32).sqrt())
}

/// Whether each layer has the sliding window. Files say a period, or a truth value per layer.
fn windowed(
    fields: &Fields<'_>,
    layers: usize,
    window: bool,
) -> Result<Vec<bool>, ArchitectureError> {
    let Windows::AllButEach { period } = fields.family.windows else {
        return Ok(vec![window; layers]);
    };
    let field = "attention.sliding_window_pattern";
    let key = fields.family.key(field);
    if let Some(Value::Array(array)) = fields.gguf.value(&key)
        && array.ty == ValueType::Bool
    {
        let pattern = fields.gguf.bools(&key)?.unwrap_or_default();
        if pattern.len() != layers {
            let found = format!("{} truth values", pattern.len());
            return Err(fields.wrong(field, found, format!("one for each of {layers} layers")));
        }
        return Ok(pattern.into_iter().map(|windowed| windowed && window).collect());
    }
    let period = fields.length_or(field, period)?;
    Ok((0..layers).map(|layer| window && layer % period != period - 1).collect())
}

fn pooling(fields: &Fields<'_>) -> Result<Pooling, ArchitectureError> {
    match fields.size("pooling_type")? {
        None | Some(0) => Ok(Pooling::None),
        Some(1) => Ok(Pooling::Mean),
        Some(2) => Ok(Pooling::Cls),
        Some(3) => Ok(Pooling::Last),
        Some(found) => {
            Err(fields.wrong("pooling_type", found, "0 (none), 1 (mean), 2 (cls) or 3 (last)"))
        }
    }
}

/// Reads the fields of one family from one file.
pub(super) struct Fields<'a> {
    pub(super) gguf: &'a Gguf,
    pub(super) family: &'static Family,
}

impl Fields<'_> {
    pub(super) fn wrong(
        &self,
        field: &str,
        found: impl std::fmt::Display,
        expected: impl Into<String>,
    ) -> ArchitectureError {
        ArchitectureError::Field {
            field: self.family.key(field),
            found: found.to_string(),
            expected: expected.into(),
        }
    }

    /// A count that may be absent or zero. Some converters write one number per layer even where
    /// all are the same.
    pub(super) fn size(&self, field: &str) -> Result<Option<usize>, ArchitectureError> {
        let key = self.family.key(field);
        if let Some(Value::Array(_)) = self.gguf.value(&key)
            && let Some(counts) = self.gguf.u32s(&key)?
        {
            let one = counts.first().copied().filter(|first| counts.iter().all(|n| n == first));
            return match one {
                Some(count) => Ok(Some(count as usize)),
                None => Err(self.wrong(field, "differing numbers", "the same for every layer")),
            };
        }
        Ok(self.gguf.u32(&key)?.map(|n| n as usize))
    }

    /// A count that may be absent but not zero.
    fn length_if(&self, field: &str) -> Result<Option<usize>, ArchitectureError> {
        match self.size(field)? {
            Some(0) => Err(self.wrong(field, 0, "at least 1")),
            other => Ok(other),
        }
    }

    fn length(&self, field: &str) -> Result<usize, ArchitectureError> {
        self.length_if(field)?.ok_or_else(|| ArchitectureError::MissingField {
            field: self.family.key(field),
            family: self.family.name,
        })
    }

    pub(super) fn length_or(
        &self,
        field: &str,
        default: usize,
    ) -> Result<usize, ArchitectureError> {
        Ok(self.length_if(field)?.unwrap_or(default))
    }

    fn flag(&self, field: &str) -> Result<Option<bool>, ArchitectureError> {
        Ok(self.gguf.bool(&self.family.key(field))?)
    }

    /// Any finite number, whatever its type in the file.
    fn number(&self, field: &str) -> Result<Option<f32>, ArchitectureError> {
        let key = self.family.key(field);
        if let Ok(count) = self.gguf.u32(&key) {
            return Ok(count.map(|n| n as f32));
        }
        self.float(field)
    }

    pub(super) fn float(&self, field: &str) -> Result<Option<f32>, ArchitectureError> {
        match self.gguf.f32(&self.family.key(field))? {
            Some(found) if !found.is_finite() => Err(self.wrong(field, found, "a finite number")),
            other => Ok(other),
        }
    }

    /// A number above zero; zero means the same as absent.
    pub(super) fn positive(&self, field: &str) -> Result<Option<f32>, ArchitectureError> {
        match self.float(field)? {
            Some(found) if found < 0.0 => Err(self.wrong(field, found, "a number above 0")),
            other => Ok(other.filter(|found| *found > 0.0)),
        }
    }

    fn epsilon(&self) -> Result<f32, ArchitectureError> {
        let field = "attention.layer_norm_rms_epsilon";
        match self.float(field)? {
            Some(found) if (0.0..1.0).contains(&found) => Ok(found),
            Some(found) => Err(self.wrong(field, found, "at least 0 and below 1")),
            None => Err(ArchitectureError::MissingField {
                field: self.family.key(field),
                family: self.family.name,
            }),
        }
    }
}
