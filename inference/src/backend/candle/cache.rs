//! The paged cache of keys and values.
//!
//! Everything in it is finite, whatever was written: a query multiplies what it does not see by
//! zero.

use candle_core::{D, DType, Device, Tensor};

use super::held;
use crate::backend::{BLOCK_TOKENS, BackendOptions, Batch, KvType};
use crate::model::Architecture;

/// Values that share a scale in [`KvType::Q8`].
const GROUP: usize = 32;
/// What is added to an 8-bit code, for candle has no signed bytes.
const ZERO_CODE: f64 = 128.0;
/// The largest finite half float.
const F16_MAX: f32 = 65504.0;

/// Bytes of the caches of all layers.
pub(super) fn cache_bytes(architecture: &Architecture, options: &BackendOptions) -> u64 {
    let width = architecture.kv_len();
    let position_bytes = match options.kv_type {
        KvType::F32 => width * 4,
        KvType::F16 => width * 2,
        KvType::Q8 => width.div_ceil(GROUP) * (GROUP + size_of::<f32>()),
    };
    [architecture.layers.len(), options.kv_blocks, BLOCK_TOKENS, 2, position_bytes]
        .into_iter()
        .fold(1_u64, |product, factor| product.saturating_mul(factor as u64))
}

/// Keys and values of one layer.
pub(super) struct Cache {
    pub(super) keys: Part,
    pub(super) values: Part,
}

/// The keys or the values of one layer, a row for each position.
pub(super) struct Part {
    /// Values of a row.
    width: usize,
    /// `[blocks * BLOCK_TOKENS, width]` of floats, or of codes, with `width` in whole groups.
    rows: Tensor,
    /// `[blocks * BLOCK_TOKENS, groups]`, where there are codes.
    scales: Option<Tensor>,
}

impl Cache {
    pub(super) fn new(
        architecture: &Architecture,
        options: &BackendOptions,
        device: &Device,
    ) -> candle_core::Result<Self> {
        let part = || Part::new(architecture.kv_len(), options, device);
        Ok(Self { keys: part()?, values: part()? })
    }

    /// Bytes of its tensors' storage.
    pub(super) fn held_bytes(&self) -> u64 {
        self.keys.held_bytes() + self.values.held_bytes()
    }

    /// Writes the keys and values of a step's tokens, each `[tokens, kv_heads, head_dims]`.
    pub(super) fn write(
        &self,
        batch: &Batch<'_>,
        keys: &Tensor,
        values: &Tensor,
    ) -> candle_core::Result<()> {
        self.keys.write(batch, keys)?;
        self.values.write(batch, values)
    }

    pub(super) fn copy_block(&self, from: usize, to: usize) -> candle_core::Result<()> {
        self.keys.copy_block(from, to)?;
        self.values.copy_block(from, to)
    }
}

impl Part {
    fn new(width: usize, options: &BackendOptions, device: &Device) -> candle_core::Result<Self> {
        let slots = options.kv_blocks * BLOCK_TOKENS;
        let groups = width.div_ceil(GROUP);
        let (rows, scales) = match options.kv_type {
            KvType::F32 => (Tensor::zeros((slots, width), DType::F32, device)?, None),
            KvType::F16 => (Tensor::zeros((slots, width), DType::F16, device)?, None),
            KvType::Q8 => (
                Tensor::zeros((slots, groups * GROUP), DType::U8, device)?,
                Some(Tensor::zeros((slots, groups), DType::F32, device)?),
            ),
        };
        Ok(Self { width, rows, scales })
    }

    fn tensors(&self) -> impl Iterator<Item = &Tensor> {
        std::iter::once(&self.rows).chain(&self.scales)
    }

    fn held_bytes(&self) -> u64 {
        self.tensors().map(held::of_tensor).sum()
    }

    fn copy_block(&self, from: usize, to: usize) -> candle_core::Result<()> {
        for tensor in self.tensors() {
            let block = tensor.narrow(0, from * BLOCK_TOKENS, BLOCK_TOKENS)?.copy()?;
            tensor.slice_set(&block, 0, to * BLOCK_TOKENS)?;
        }
        Ok(())
    }

    /// Writes `x`, `[tokens, kv_heads, head_dims]`, at the places of a step's tokens.
    fn write(&self, batch: &Batch<'_>, x: &Tensor) -> candle_core::Result<()> {
        let most = if self.rows.dtype() == DType::F16 { F16_MAX } else { f32::MAX };
        let x = x.flatten_from(1)?.contiguous()?;
        let x = x.eq(&x)?.where_cond(&x, &x.zeros_like()?)?.clamp(-most, most)?;
        match &self.scales {
            None => place(batch, &x.to_dtype(self.rows.dtype())?, &self.rows),
            Some(scales) => {
                let (codes, of_groups) = coded(&x)?;
                place(batch, &codes, &self.rows)?;
                place(batch, &of_groups, scales)
            }
        }
    }

    /// Some blocks' rows as `f32`, `[positions, width]`.
    pub(super) fn read(&self, blocks: &[u32]) -> candle_core::Result<Tensor> {
        let index = Tensor::new(blocks, self.rows.device())?;
        let gathered = |tensor: &Tensor| -> candle_core::Result<Tensor> {
            let (slots, width) = tensor.dims2()?;
            tensor
                .reshape((slots / BLOCK_TOKENS, BLOCK_TOKENS * width))?
                .index_select(&index, 0)?
                .reshape((blocks.len() * BLOCK_TOKENS, width))?
                .to_dtype(DType::F32)
        };
        let rows = gathered(&self.rows)?;
        match &self.scales {
            None => Ok(rows),
            Some(scales) => decoded(&rows, &gathered(scales)?)?.narrow(1, 0, self.width),
        }
    }
}

/// Writes rows, one for each token of a step, at the tokens' places.
fn place(batch: &Batch<'_>, rows: &Tensor, cache: &Tensor) -> candle_core::Result<()> {
    for span in batch.spans {
        let mut done = 0;
        while done < span.len {
            let position = span.position + done;
            let within = position % BLOCK_TOKENS;
            let len = (BLOCK_TOKENS - within).min(span.len - done);
            let slot = span.blocks[position / BLOCK_TOKENS] as usize * BLOCK_TOKENS + within;
            cache.slice_set(&rows.narrow(0, span.start + done, len)?, 0, slot)?;
            done += len;
        }
    }
    Ok(())
}

/// Rows as 8-bit codes, in whole groups, and each group's scale.
fn coded(x: &Tensor) -> candle_core::Result<(Tensor, Tensor)> {
    let (rows, width) = x.dims2()?;
    let groups = width.div_ceil(GROUP);
    let x = x.pad_with_zeros(1, 0, groups * GROUP - width)?.reshape((rows, groups, GROUP))?;
    let scales = (x.abs()?.max_keepdim(D::Minus1)? / 127.0)?;
    // A group of zeros has the scale 0, by which nothing can be divided.
    let codes = x.broadcast_div(&scales.maximum(f32::MIN_POSITIVE)?)?.round()?;
    let codes = (codes + ZERO_CODE)?.to_dtype(DType::U8)?.reshape((rows, groups * GROUP))?;
    Ok((codes, scales.reshape((rows, groups))?))
}

/// The values of codes, `[rows, groups * GROUP]`, by their groups' scales.
fn decoded(codes: &Tensor, scales: &Tensor) -> candle_core::Result<Tensor> {
    let (rows, groups) = scales.dims2()?;
    (codes.reshape((rows, groups, GROUP))? - ZERO_CODE)?
        .broadcast_mul(&scales.reshape((rows, groups, 1))?)?
        .reshape((rows, groups * GROUP))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_give_values_back_to_half_a_step_and_zeros_and_extremes_exactly() {
        let mut values: Vec<f32> = (0..80).map(|i| ((i * 37 % 101) as f32 - 50.0) / 7.0).collect();
        values[32..64].fill(0.0);
        values[70] = -1e30;
        let x = Tensor::from_vec(values.clone(), (2, 40), &Device::Cpu).expect("a tensor");
        let (codes, scales) = coded(&x).expect("codes");
        assert_eq!(
            (codes.dtype(), codes.dims(), scales.dims()),
            (DType::U8, &[2, 64][..], &[2, 2][..])
        );
        let back = decoded(&codes.to_dtype(DType::F32).expect("floats"), &scales).expect("values");
        let back = back.narrow(1, 0, 40).expect("rows").to_vec2::<f32>().expect("values");
        for (row, (found, expected)) in back.iter().zip(values.chunks(40)).enumerate() {
            for (group, (found, expected)) in found.chunks(32).zip(expected.chunks(32)).enumerate()
            {
                let largest = expected.iter().fold(0.0_f32, |most, v| most.max(v.abs()));
                for (found, expected) in found.iter().zip(expected) {
                    let (off, step) = ((found - expected).abs(), largest / 127.0);
                    assert!(off <= step * 0.5001, "{found}, not {expected}: row {row}, {group}");
                }
            }
        }
        assert!((back[1][30] / -1e30 - 1.0).abs() < 1e-6 && back[0][33] == 0.0, "{back:?}");
    }
}
