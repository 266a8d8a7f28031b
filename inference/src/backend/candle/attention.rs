//! Rotation, the paged cache, and attention over it.

use candle_core::{D, DType, Device, Tensor};

use super::held;
use crate::backend::{BLOCK_TOKENS, BackendOptions, Batch, KvType, Span};
use crate::model::{Architecture, Rope, RotaryKind};

/// Attention scores held at a time; longer spans go through in pieces.
pub(super) const SCORES_BYTES_MAX: usize = 32 << 20;

/// Values that share a scale in [`KvType::Q8`].
const Q8_GROUP: usize = 32;

/// Sines and cosines of one rotary embedding for the tokens of one step.
pub(super) struct Rotation {
    kind: RotaryKind,
    dims: usize,
    /// `[tokens, 1, dims / 2]`.
    cosines: Tensor,
    /// `[tokens, 1, dims / 2]`.
    sines: Tensor,
}

impl Rotation {
    pub(super) fn new(
        rope: &Rope,
        batch: &Batch<'_>,
        context_tokens_max: usize,
        device: &Device,
    ) -> candle_core::Result<Self> {
        let frequencies = rope.frequencies(context_tokens_max);
        let len = batch.tokens.len() * frequencies.len();
        let (mut cosines, mut sines) = (Vec::with_capacity(len), Vec::with_capacity(len));
        for span in batch.spans {
            for position in span.position..span.position + span.len {
                for frequency in frequencies {
                    let (sine, cosine) = (position as f32 * frequency).sin_cos();
                    cosines.push(cosine * rope.magnitude);
                    sines.push(sine * rope.magnitude);
                }
            }
        }
        let shape = (batch.tokens.len(), 1, frequencies.len());
        Ok(Self {
            kind: rope.kind,
            dims: rope.dims,
            cosines: Tensor::from_vec(cosines, shape, device)?,
            sines: Tensor::from_vec(sines, shape, device)?,
        })
    }

    /// Rotates `x`, `[tokens, heads, head_dims]`.
    pub(super) fn apply(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        let (tokens, heads, head_dims) = x.dims3()?;
        let pairs = self.dims / 2;
        let rotated = x.narrow(D::Minus1, 0, self.dims)?;
        let (first, second) = match self.kind {
            RotaryKind::Halves => {
                (rotated.narrow(D::Minus1, 0, pairs)?, rotated.narrow(D::Minus1, pairs, pairs)?)
            }
            RotaryKind::Adjacent => {
                let split = rotated.contiguous()?.reshape((tokens, heads, pairs, 2))?;
                let part = |at| split.narrow(D::Minus1, at, 1)?.squeeze(D::Minus1);
                (part(0)?, part(1)?)
            }
        };
        let (cos, sin) = (&self.cosines, &self.sines);
        let turned_first = (first.broadcast_mul(cos)? - second.broadcast_mul(sin)?)?;
        let turned_second = (first.broadcast_mul(sin)? + second.broadcast_mul(cos)?)?;
        let turned = match self.kind {
            RotaryKind::Halves => Tensor::cat(&[turned_first, turned_second], D::Minus1)?,
            RotaryKind::Adjacent => Tensor::stack(&[turned_first, turned_second], D::Minus1)?
                .reshape((tokens, heads, self.dims))?,
        };
        if self.dims == head_dims {
            return Ok(turned);
        }
        let rest = x.narrow(D::Minus1, self.dims, head_dims - self.dims)?;
        Tensor::cat(&[turned, rest], D::Minus1)
    }
}

/// Bytes of the caches of all layers.
pub(super) fn cache_bytes(architecture: &Architecture, options: &BackendOptions) -> u64 {
    let value_bytes = match options.kv_type {
        KvType::F32 => 4,
        // Q8 is emulated: rounded to its grid, held as f16.
        KvType::F16 | KvType::Q8 => 2,
    };
    [
        architecture.layers.len(),
        options.kv_blocks,
        BLOCK_TOKENS,
        architecture.kv_len(),
        2 * value_bytes,
    ]
    .into_iter()
    .fold(1_u64, |product, factor| product.saturating_mul(factor as u64))
}

/// Keys and values of one layer.
pub(super) struct Cache {
    /// `[blocks * BLOCK_TOKENS, kv_heads * head_dims]`.
    keys: Tensor,
    /// `[blocks * BLOCK_TOKENS, kv_heads * head_dims]`.
    values: Tensor,
    kv_type: KvType,
}

impl Cache {
    pub(super) fn new(
        architecture: &Architecture,
        options: &BackendOptions,
        device: &Device,
    ) -> candle_core::Result<Self> {
        let dtype = match options.kv_type {
            KvType::F32 => DType::F32,
            KvType::F16 | KvType::Q8 => DType::F16,
        };
        let shape = (options.kv_blocks * BLOCK_TOKENS, architecture.kv_len());
        Ok(Self {
            keys: Tensor::zeros(shape, dtype, device)?,
            values: Tensor::zeros(shape, dtype, device)?,
            kv_type: options.kv_type,
        })
    }

    /// Bytes of its tensors' storage.
    pub(super) fn held_bytes(&self) -> u64 {
        held::of_tensor(&self.keys) + held::of_tensor(&self.values)
    }

    /// Writes the keys and values of a step's tokens, each `[tokens, kv_heads, head_dims]`.
    pub(super) fn write(
        &self,
        batch: &Batch<'_>,
        keys: &Tensor,
        values: &Tensor,
    ) -> candle_core::Result<()> {
        let keys = self.stored(keys)?;
        let values = self.stored(values)?;
        for span in batch.spans {
            let mut done = 0;
            while done < span.len {
                let position = span.position + done;
                let within = position % BLOCK_TOKENS;
                let len = (BLOCK_TOKENS - within).min(span.len - done);
                let slot = span.blocks[position / BLOCK_TOKENS] as usize * BLOCK_TOKENS + within;
                self.keys.slice_set(&keys.narrow(0, span.start + done, len)?, 0, slot)?;
                self.values.slice_set(&values.narrow(0, span.start + done, len)?, 0, slot)?;
                done += len;
            }
        }
        Ok(())
    }

    /// `[tokens, kv_heads, head_dims]` as the cache holds it, `[tokens, kv_heads * head_dims]`.
    fn stored(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        let x = x.flatten_from(1)?.contiguous()?;
        let x = match self.kv_type {
            KvType::F32 | KvType::F16 => x,
            KvType::Q8 => rounded_to_q8(&x)?,
        };
        x.to_dtype(self.keys.dtype())
    }

    pub(super) fn copy_block(&self, from: usize, to: usize) -> candle_core::Result<()> {
        for tensor in [&self.keys, &self.values] {
            let block = tensor.narrow(0, from * BLOCK_TOKENS, BLOCK_TOKENS)?.copy()?;
            tensor.slice_set(&block, 0, to * BLOCK_TOKENS)?;
        }
        Ok(())
    }

    /// Attention of one span's queries, `[len, heads, head_dims]`, to everything before them and
    /// themselves; the result is `[len, heads * head_dims]`.
    pub(super) fn attend(
        &self,
        architecture: &Architecture,
        window: Option<usize>,
        span: &Span<'_>,
        query: &Tensor,
    ) -> candle_core::Result<Tensor> {
        let end = span.position + span.len;
        let reach = window.unwrap_or(end);
        let first_block = (span.position + 1).saturating_sub(reach) / BLOCK_TOKENS;
        let origin = first_block * BLOCK_TOKENS;
        let blocks = &span.blocks[first_block..end.div_ceil(BLOCK_TOKENS)];
        let keys = self.gather(&self.keys, blocks, architecture)?;
        let values = self.gather(&self.values, blocks, architecture)?;
        let row_bytes = architecture.heads * (end - origin) * size_of::<f32>();
        let rows_max = (SCORES_BYTES_MAX / row_bytes).max(1);
        let mut parts = Vec::new();
        for row in (0..span.len).step_by(rows_max) {
            let rows = rows_max.min(span.len - row);
            let position = span.position + row;
            let seen = Seen {
                first: (position + 1).saturating_sub(reach).max(origin),
                end: position + rows,
                position,
                rows,
                reach,
            };
            let part = |all: &Tensor| all.narrow(0, seen.first - origin, seen.end - seen.first);
            let query = query.narrow(0, row, rows)?;
            parts.push(attend_rows(architecture, &seen, &query, &part(&keys)?, &part(&values)?)?);
        }
        match parts.len() {
            1 => Ok(parts.swap_remove(0)),
            _ => Tensor::cat(&parts, 0),
        }
    }

    /// Some blocks of the cache as `f32`, `[positions, kv_heads, head_dims]`.
    fn gather(
        &self,
        tensor: &Tensor,
        blocks: &[u32],
        architecture: &Architecture,
    ) -> candle_core::Result<Tensor> {
        let width = architecture.kv_len();
        let all = tensor.dim(0)? / BLOCK_TOKENS;
        let index = Tensor::new(blocks, tensor.device())?;
        tensor
            .reshape((all, BLOCK_TOKENS * width))?
            .index_select(&index, 0)?
            .to_dtype(DType::F32)?
            .reshape((blocks.len() * BLOCK_TOKENS, architecture.kv_heads, architecture.head_dims))
    }
}

/// Which positions some queries see.
struct Seen {
    /// First position of the keys at hand.
    first: usize,
    /// Behind their last.
    end: usize,
    /// The first query's position.
    position: usize,
    /// Queries.
    rows: usize,
    /// Positions that a query sees, its own included.
    reach: usize,
}

impl Seen {
    /// `[rows, end - first]` of 0 where the query sees the key and minus infinity elsewhere; nothing
    /// if every query sees every key.
    fn mask(&self, device: &Device) -> candle_core::Result<Option<Tensor>> {
        if self.rows == 1 {
            return Ok(None);
        }
        let width = self.end - self.first;
        let mut mask = vec![f32::NEG_INFINITY; self.rows * width];
        for row in 0..self.rows {
            let position = self.position + row;
            let from = (position + 1).saturating_sub(self.reach).max(self.first);
            let line = &mut mask[row * width..(row + 1) * width];
            line[from - self.first..=position - self.first].fill(0.0);
        }
        Ok(Some(Tensor::from_vec(mask, (self.rows, width), device)?))
    }
}

/// Softmax attention of `query`, `[rows, heads, head_dims]`, to keys and values, `[positions,
/// kv_heads, head_dims]`.
fn attend_rows(
    architecture: &Architecture,
    seen: &Seen,
    query: &Tensor,
    keys: &Tensor,
    values: &Tensor,
) -> candle_core::Result<Tensor> {
    let (kv_heads, head_dims) = (architecture.kv_heads, architecture.head_dims);
    let group = architecture.heads / kv_heads;
    let (rows, width) = (seen.rows, seen.end - seen.first);
    let query = query
        .reshape((rows, kv_heads, group, head_dims))?
        .permute((1, 2, 0, 3))?
        .contiguous()?
        .reshape((kv_heads, group * rows, head_dims))?;
    let keys = keys.transpose(0, 1)?.contiguous()?;
    let values = values.transpose(0, 1)?.contiguous()?;
    let scores = query.matmul(&keys.transpose(1, 2)?)?;
    let scores = (scores * f64::from(architecture.attention_scale))?;
    let scores = match seen.mask(query.device())? {
        Some(mask) => scores
            .reshape((kv_heads * group, rows, width))?
            .broadcast_add(&mask)?
            .reshape((kv_heads, group * rows, width))?,
        None => scores,
    };
    let exponents = scores.broadcast_sub(&scores.max_keepdim(D::Minus1)?)?.exp()?;
    let shares = exponents.broadcast_div(&exponents.sum_keepdim(D::Minus1)?)?;
    shares
        .matmul(&values)?
        .reshape((kv_heads, group, rows, head_dims))?
        .permute((2, 0, 1, 3))?
        .contiguous()?
        .reshape((rows, kv_heads * group * head_dims))
}

/// Rounds each group of a row to 8-bit multiples of an f16 scale.
fn rounded_to_q8(x: &Tensor) -> candle_core::Result<Tensor> {
    let (rows, width) = x.dims2()?;
    let mut values = x.flatten_all()?.to_vec1::<f32>()?;
    for row in values.chunks_mut(width) {
        for group in row.chunks_mut(Q8_GROUP) {
            let largest = group.iter().fold(0.0_f32, |max, v| max.max(v.abs()));
            let scale = half::f16::from_f32(largest / 127.0).to_f32();
            let inverse = if largest == 0.0 { 0.0 } else { 127.0 / largest };
            for value in group {
                *value = (*value * inverse).round() * scale;
            }
        }
    }
    Tensor::from_vec(values, (rows, width), x.device())
}
