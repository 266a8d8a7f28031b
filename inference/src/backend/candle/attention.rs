//! Rotation, and attention over the paged cache.

use candle_core::{D, Device, Tensor};

use super::cache::{Cache, Part};
use super::rows::{self, TILE_ROWS};
use crate::backend::{BLOCK_TOKENS, Batch, Span};
use crate::model::{Architecture, Rope, RotaryKind};

/// Positions that are attended to at a time, the same for every query: sums go the same way then.
pub(super) const TILE_POSITIONS: usize = 128;
const TILE_BLOCKS: usize = TILE_POSITIONS / BLOCK_TOKENS;

/// Attention scores held at a time on a GPU; longer spans go through in pieces.
pub(super) const SCORES_BYTES_MAX: usize = 32 << 20;

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

impl Cache {
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
        let tiles_of = |position: usize, rows: usize| {
            let first = (position + 1).saturating_sub(reach) / TILE_POSITIONS;
            first..(position + rows).div_ceil(TILE_POSITIONS)
        };
        let all = tiles_of(span.position, span.len);
        let tiles = all
            .clone()
            .map(|index| self.tile(index, &span.blocks[..end.div_ceil(BLOCK_TOKENS)], architecture))
            .collect::<candle_core::Result<Vec<_>>>()?;
        let (step, query) = if rows::tiled(query.device()) {
            (TILE_ROWS, rows::padded(query)?)
        } else {
            let row_bytes = architecture.heads * tiles.len() * TILE_POSITIONS * size_of::<f32>();
            ((SCORES_BYTES_MAX / row_bytes).max(1), query.contiguous()?)
        };
        let mut parts = Vec::new();
        for row in (0..span.len).step_by(step) {
            let rows = step.min(query.dim(0)? - row);
            let position = span.position + row;
            let seen = tiles_of(position, rows.min(span.len - row));
            let tiles = &tiles[seen.start - all.start..seen.end - all.start];
            let seen = Seen { first: seen.start * TILE_POSITIONS, position, rows, reach };
            parts.push(attend_rows(architecture, &seen, &query.narrow(0, row, rows)?, tiles)?);
        }
        let all = if parts.len() == 1 { parts.swap_remove(0) } else { Tensor::cat(&parts, 0)? };
        all.narrow(0, 0, span.len)
    }

    /// Keys and values of a tile's positions; behind the sequence's last block there are zeros.
    fn tile(
        &self,
        index: usize,
        blocks: &[u32],
        architecture: &Architecture,
    ) -> candle_core::Result<Tile> {
        let first = index * TILE_BLOCKS;
        let blocks = &blocks[first..blocks.len().min(first + TILE_BLOCKS)];
        let whole = |part: &Part| {
            let part = part.read(blocks)?;
            let missing = TILE_POSITIONS - part.dim(0)?;
            part.pad_with_zeros(0, 0, missing)?
                .reshape((TILE_POSITIONS, architecture.kv_heads, architecture.head_dims))?
                .transpose(0, 1)?
                .contiguous()
        };
        Ok(Tile { keys: whole(&self.keys)?, values: whole(&self.values)? })
    }
}

/// Keys and values of [`TILE_POSITIONS`] positions, each `[kv_heads, positions, head_dims]`.
struct Tile {
    keys: Tensor,
    values: Tensor,
}

/// Which positions some queries see.
struct Seen {
    /// First position of the tiles at hand.
    first: usize,
    /// The first query's position.
    position: usize,
    /// Queries.
    rows: usize,
    /// Positions that a query sees, its own included.
    reach: usize,
}

impl Seen {
    /// `[rows, TILE_POSITIONS]` of 1 where a query sees the key of tile `index`, and 0 elsewhere.
    fn mask(&self, index: usize, device: &Device) -> candle_core::Result<Tensor> {
        let start = self.first + index * TILE_POSITIONS;
        let mut mask = vec![0_u8; self.rows * TILE_POSITIONS];
        for (row, line) in mask.chunks_exact_mut(TILE_POSITIONS).enumerate() {
            let position = self.position + row;
            let from = (position + 1).saturating_sub(self.reach).max(start);
            let to = (position + 1).min(start + TILE_POSITIONS);
            if from < to {
                line[from - start..to - start].fill(1);
            }
        }
        Tensor::from_vec(mask, (self.rows, TILE_POSITIONS), device)
    }
}

/// Softmax attention of `query`, `[rows, heads, head_dims]`, to the keys and values of some tiles.
///
/// A tile that a query does not see adds zeros to its sums, so that they are the same whichever
/// queries it is computed with.
fn attend_rows(
    architecture: &Architecture,
    seen: &Seen,
    query: &Tensor,
    tiles: &[Tile],
) -> candle_core::Result<Tensor> {
    let (kv_heads, head_dims) = (architecture.kv_heads, architecture.head_dims);
    let (rows, group) = (seen.rows, architecture.heads / kv_heads);
    let query = query
        .reshape((rows, kv_heads, group, head_dims))?
        .permute((1, 2, 0, 3))?
        .contiguous()?
        .reshape((kv_heads, group * rows, head_dims))?;
    let unseen = Tensor::new(f32::NEG_INFINITY, query.device())?;
    let by_row = (kv_heads * group, rows, TILE_POSITIONS);
    let mut scores = Vec::with_capacity(tiles.len());
    for (index, tile) in tiles.iter().enumerate() {
        let score = query.matmul(&tile.keys.transpose(1, 2)?)?;
        let score = (score * f64::from(architecture.attention_scale))?.reshape(by_row)?;
        let mask = seen.mask(index, query.device())?.broadcast_as(by_row)?;
        let score = mask.where_cond(&score, &unseen.broadcast_as(by_row)?)?;
        scores.push(score.reshape((kv_heads, group * rows, TILE_POSITIONS))?);
    }
    let mut best = scores[0].max_keepdim(D::Minus1)?;
    for score in &scores[1..] {
        best = best.maximum(&score.max_keepdim(D::Minus1)?)?;
    }
    let mut sum = best.zeros_like()?;
    let mut attended = query.zeros_like()?;
    for (score, tile) in scores.iter().zip(tiles) {
        let exponents = score.broadcast_sub(&best)?.exp()?;
        sum = (sum + exponents.sum_keepdim(D::Minus1)?)?;
        attended = (attended + exponents.matmul(&tile.values)?)?;
    }
    attended
        .broadcast_div(&sum)?
        .reshape((kv_heads, group, rows, head_dims))?
        .permute((2, 0, 1, 3))?
        .contiguous()?
        .reshape((rows, kv_heads * group * head_dims))
}
