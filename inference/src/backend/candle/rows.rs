//! Products in which a row's result depends on that row alone, bit by bit.
//!
//! The libraries below choose other kernels for other numbers of rows, and their sums differ in the
//! last bits: at a near tie, or where activations are rounded, a text would depend on what else is
//! in the batch. So on a CPU every product has the same number of rows. On a GPU the products are
//! its library's, and no such promise is made.
//!
//! What it costs, measured with 4 layers of width 512 on two Zen 5 cores that others used, too: a third
//! of the prompt's speed is left (200 tokens/s instead of 600) and a token in 45 ms instead of 11 with dense
//! weights; 590 instead of 780 tokens/s and 54 ms instead of 34 with candle's quantised products.

use candle_core::{Device, Tensor};

/// Rows of a product on a CPU: few, for a sequence that decodes has one of them.
pub(super) const TILE_ROWS: usize = 8;

/// Whether products are computed in tiles.
pub(super) fn tiled(device: &Device) -> bool {
    device.is_cpu()
}

/// `x` with rows of zeros up to a whole number of tiles.
pub(super) fn padded(x: &Tensor) -> candle_core::Result<Tensor> {
    let rows = x.dim(0)?;
    match rows.next_multiple_of(TILE_ROWS) - rows {
        0 => x.contiguous(),
        missing => x.pad_with_zeros(0, 0, missing)?.contiguous(),
    }
}

/// The product of `x`, `[rows, inputs]`, computed tile by tile where that is needed.
pub(super) fn product(
    x: &Tensor,
    multiply: impl Fn(&Tensor) -> candle_core::Result<Tensor>,
) -> candle_core::Result<Tensor> {
    if !tiled(x.device()) {
        return multiply(&x.contiguous()?);
    }
    let rows = x.dim(0)?;
    let x = padded(x)?;
    let tiles = (0..rows).step_by(TILE_ROWS);
    let mut parts = tiles
        .map(|first| multiply(&x.narrow(0, first, TILE_ROWS)?))
        .collect::<candle_core::Result<Vec<_>>>()?;
    let all = if parts.len() == 1 { parts.swap_remove(0) } else { Tensor::cat(&parts, 0)? };
    all.narrow(0, 0, rows)
}
