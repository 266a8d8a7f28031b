//! Which tensor plays which part, with its shape checked, and none left over.

use std::collections::HashSet;

use super::family::{Family, Windows};
use super::fields::Dimensions;
use super::{ArchitectureError, Layer, Linear};
use crate::gguf::Gguf;

/// Tensors found so far.
pub(super) struct Claims<'a> {
    gguf: &'a Gguf,
    family: &'static Family,
    names: HashSet<String>,
}

impl<'a> Claims<'a> {
    pub(super) fn new(gguf: &'a Gguf, family: &'static Family) -> Self {
        Self { gguf, family, names: HashSet::new() }
    }

    /// A tensor that may be absent.
    fn optional(
        &mut self,
        name: &str,
        shape: &[usize],
    ) -> Result<Option<String>, ArchitectureError> {
        let Some(info) = self.gguf.info(name) else { return Ok(None) };
        if !same_shape(&info.shape, shape) {
            return Err(ArchitectureError::Shape {
                name: name.to_owned(),
                found: info.shape.clone(),
                expected: shape.to_vec(),
            });
        }
        self.names.insert(name.to_owned());
        Ok(Some(name.to_owned()))
    }

    pub(super) fn required(
        &mut self,
        name: &str,
        shape: &[usize],
    ) -> Result<String, ArchitectureError> {
        self.optional(name, shape)?.ok_or_else(|| ArchitectureError::MissingTensor {
            name: name.to_owned(),
            expected: shape.to_vec(),
        })
    }

    fn required_if(
        &mut self,
        wanted: bool,
        name: &str,
        len: usize,
    ) -> Result<Option<String>, ArchitectureError> {
        wanted.then(|| self.required(name, &[len])).transpose()
    }

    /// The values of a small tensor that is metadata in disguise: positive, finite factors.
    pub(super) fn values(
        &mut self,
        name: &str,
        len: usize,
    ) -> Result<Option<Vec<f32>>, ArchitectureError> {
        if self.optional(name, &[len])?.is_none() {
            return Ok(None);
        }
        let refused = |reason: String| ArchitectureError::Values { name: name.to_owned(), reason };
        let Some(tensor) = self.gguf.tensor(name) else { return Ok(None) };
        let mut values = vec![0.0; len];
        fulmar_kernels::formats::dequantize(tensor.info.ty, tensor.data, &mut values)
            .map_err(|error| refused(error.to_string()))?;
        match values.iter().position(|v| !v.is_finite() || *v == 0.0) {
            Some(at) => {
                Err(refused(format!("value {at} is {}, expected finite and not 0", values[at])))
            }
            None => Ok(Some(values)),
        }
    }

    /// A projection that has a tensor of its own, with the bias and scale beside it if there are.
    fn linear(
        &mut self,
        stem: &str,
        inputs: usize,
        outputs: usize,
    ) -> Result<Linear, ArchitectureError> {
        let tensor = self.required(&format!("{stem}.weight"), &[inputs, outputs])?;
        let bias = self.optional(&format!("{stem}.bias"), &[outputs])?;
        let scale = self.values(&format!("{stem}.scale"), 1)?.map_or(1.0, |values| values[0]);
        Ok(Linear { tensor, first_row: 0, outputs, inputs, bias, scale })
    }

    /// Projections that lie one after the other in one tensor.
    fn fused<const N: usize>(
        &mut self,
        stem: &str,
        inputs: usize,
        outputs: [usize; N],
    ) -> Result<[Linear; N], ArchitectureError> {
        let rows = outputs.iter().try_fold(0_usize, |sum, rows| sum.checked_add(*rows));
        let whole = self.linear(stem, inputs, rows.unwrap_or(usize::MAX))?;
        let mut first_row = 0;
        Ok(outputs.map(|outputs| {
            let part = Linear { first_row, outputs, ..whole.clone() };
            first_row += outputs;
            part
        }))
    }

    /// The head: a tensor of its own, or the embedding again.
    pub(super) fn head(&mut self, dims: &Dimensions) -> Result<Linear, ArchitectureError> {
        if self.gguf.info("output.weight").is_some() {
            return self.linear("output", dims.embedding_len, dims.vocab_len);
        }
        Ok(Linear {
            tensor: "token_embd.weight".to_owned(),
            first_row: 0,
            outputs: dims.vocab_len,
            inputs: dims.embedding_len,
            bias: self.optional("output.bias", &[dims.vocab_len])?,
            scale: 1.0,
        })
    }

    pub(super) fn layer(
        &mut self,
        index: usize,
        dims: &Dimensions,
    ) -> Result<Layer, ArchitectureError> {
        let family = self.family;
        let at = |part: &str| format!("blk.{index}.{part}");
        let embedding = dims.embedding_len;
        let heads = dims.heads * dims.head_dims;
        let kv = dims.kv_heads * dims.head_dims;
        let inner = dims.feed_forward_len;
        let [query, key, value] = if family.fused {
            self.fused(&at("attn_qkv"), embedding, [heads, kv, kv])?
        } else {
            [
                self.linear(&at("attn_q"), embedding, heads)?,
                self.linear(&at("attn_k"), embedding, kv)?,
                self.linear(&at("attn_v"), embedding, kv)?,
            ]
        };
        let [gate, up] = if family.fused {
            self.fused(&at("ffn_up"), embedding, [inner, inner])?
        } else {
            [
                self.linear(&at("ffn_gate"), embedding, inner)?,
                self.linear(&at("ffn_up"), embedding, inner)?,
            ]
        };
        let windowed = dims.windowed[index];
        let own_rope = matches!(family.windows, Windows::AllButEach { .. });
        let norm = |part: &str| format!("blk.{index}.{part}.weight");
        Ok(Layer {
            rope: usize::from(windowed && own_rope),
            window: dims.window.filter(|_| windowed),
            attention_norm: self.required(&norm("attn_norm"), &[embedding])?,
            query,
            key,
            value,
            query_norm: self.required_if(
                family.head_norms,
                &norm("attn_q_norm"),
                dims.head_dims,
            )?,
            key_norm: self.required_if(family.head_norms, &norm("attn_k_norm"), dims.head_dims)?,
            attention_sub_norm: self.required_if(
                family.sub_norms,
                &norm("attn_sub_norm"),
                heads,
            )?,
            attention_output: self.linear(&at("attn_output"), heads, embedding)?,
            post_attention_norm: self.required_if(
                family.post_norms,
                &norm("post_attention_norm"),
                embedding,
            )?,
            feed_forward_norm: self.required(&norm("ffn_norm"), &[embedding])?,
            gate,
            up,
            feed_forward_sub_norm: self.required_if(
                family.sub_norms,
                &norm("ffn_sub_norm"),
                inner,
            )?,
            down: self.linear(&at("ffn_down"), inner, embedding)?,
            post_feed_forward_norm: self.required_if(
                family.post_norms,
                &norm("post_ffw_norm"),
                embedding,
            )?,
        })
    }

    /// Refuses a file with a tensor that nothing here would read.
    pub(super) fn all_claimed(&self) -> Result<(), ArchitectureError> {
        match self.gguf.tensors().iter().find(|info| !self.names.contains(&info.name)) {
            None => Ok(()),
            Some(info) => Err(ArchitectureError::UnusedTensor {
                name: info.name.chars().take(128).collect(),
                family: self.family.name,
            }),
        }
    }
}

/// Whether two shapes are the same but for trailing dimensions of 1.
fn same_shape(found: &[usize], expected: &[usize]) -> bool {
    let len = found.len().max(expected.len());
    let at = |shape: &[usize], i: usize| shape.get(i).copied().unwrap_or(1);
    (0..len).all(|i| at(found, i) == at(expected, i))
}
