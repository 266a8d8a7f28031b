//! Panels: two groups of rows unpacked once and then multiplied with all tokens of a prompt.
//!
//! A cell costs its dot products and one multiply-add per output: the activations' scales are powers
//! of two ([`crate::ops::Quantise`]), so a weight's scale is multiplied by one by adding to its exponent,
//! which leaves the multipliers to the dot products. Panels keep scales with the exponent's bias
//! taken off; a scale of 0 has no exponent to add to, so it becomes 1 and its codes those that mean
//! zero.

#![allow(clippy::needless_range_loop)] // Indices name registers in several arrays at once.
#![allow(unsafe_op_in_unsafe_fn)] // Functions here follow the contract of `Simd`.

use crate::dot::{AHEAD_BYTES, Record, add_minimum, record_bytes};
use crate::layout::{Layout, NO_ZERO, cell_bytes};
use crate::simd::{Kernel, Simd};

/// Groups in a panel.
pub(crate) const PANEL_GROUPS: usize = 2;
/// What a float's exponent is counted from, in its place in the float's bits.
const EXPONENT_BIAS: i32 = 127 << 23;

/// Bytes of a panel's cell: per group eight code registers, two scales and two minimums.
const fn panel_cell_bytes(lanes: usize) -> usize {
    PANEL_GROUPS * (8 * 4 + 4 * 4) * lanes
}

/// Bytes in front of a panel's cells: what each group's sums start from, which is 0, or not a number
/// for rows with a scale that is not finite: adding to its exponent would hide that.
const fn head_bytes(lanes: usize) -> usize {
    PANEL_GROUPS * lanes * 4
}

/// Bytes of a panel of `cells` cells.
pub(crate) const fn panel_bytes(lanes: usize, cells: usize) -> usize {
    head_bytes(lanes) + cells * panel_cell_bytes(lanes)
}

/// Where the scales of a panel's cell start.
const fn panel_scales(lanes: usize) -> usize {
    PANEL_GROUPS * 8 * 4 * lanes
}

/// Unpacks one group into its place in a panel.
pub(crate) struct Unpack<L: Layout> {
    pub(crate) weights: *const u8,
    pub(crate) blocks: usize,
    pub(crate) panel: *mut u8,
    /// 0 or 1: which of the panel's groups.
    pub(crate) place: usize,
    pub(crate) layout: std::marker::PhantomData<L>,
}

impl<L: Layout> Kernel for Unpack<L> {
    type Output = ();
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let mut block = self.weights;
        let mut panel = self.panel.add(head_bytes(S::LANES));
        let mut start = S::zero();
        for _ in 0..self.blocks {
            let head = L::head::<S>(block);
            let mut cell = block.add(L::HEAD * S::LANES);
            for _ in 0..L::CELLS {
                let bytes = cell_bytes::<L>() * S::LANES;
                let mut line = 0;
                while line < bytes {
                    S::prefetch(cell.wrapping_add(AHEAD_BYTES + line));
                    line += 64;
                }
                let scales = unpack_cell::<S, L>(cell, head, panel, self.place);
                for scale in &scales[..L::HALVES] {
                    start = S::fma(*scale, S::zero(), start);
                }
                cell = cell.add(bytes);
                panel = panel.add(panel_cell_bytes(S::LANES));
            }
            block = cell;
        }
        S::store(self.panel.add(self.place * S::LANES * 4).cast(), start);
    }
}

/// Unpacks a cell and says its scales.
#[inline(always)]
unsafe fn unpack_cell<S: Simd, L: Layout>(
    cell: *const u8,
    head: (S::F, S::F),
    panel: *mut u8,
    place: usize,
) -> [S::F; 2] {
    let (scales, minimums) = L::scales::<S>(cell, head);
    let codes = L::codes::<S>(cell.add(L::SCALES * S::LANES));
    let zero_bits = L::zero_bits::<S>();
    let zero = S::splat_byte(if zero_bits == NO_ZERO { 0 } else { 1 << zero_bits });
    let bias = (-EXPONENT_BIAS).to_le_bytes();
    let floats = panel.add(panel_scales(S::LANES)).cast::<f32>();
    for h in 0..L::HALVES {
        let there = S::nonzero(scales[h]);
        for j in h * 4..(h + 2 / L::HALVES) * 4 {
            let codes = S::choose(there, codes[j], zero);
            S::store_i(panel.add((place * 8 + j) * S::LANES * 4), codes);
        }
        let scale = S::bits(S::add_bits(scales[h], S::spread(bias.as_ptr())));
        S::store_i(floats.add((place * 4 + h) * S::LANES).cast(), S::and(there, scale));
        if L::MINIMUM {
            S::store(floats.add((place * 4 + 2 + h) * S::LANES), minimums[h]);
        }
    }
    scales
}

/// A panel with tiles of `T` tokens. Output `t` of the panel's group `g`, row `r` goes to
/// `out[t * stride + g * LANES + r]`. `ZERO` is the layout's [`Layout::zero_bits`].
pub(crate) struct Panel<
    const BITS: u32,
    const HALVES: usize,
    const MINIMUM: bool,
    const ZERO: u32,
    const T: usize,
> {
    pub(crate) panel: *const u8,
    pub(crate) cells: usize,
    pub(crate) records: *const u8,
    /// What the tokens' sums start from: 0, or not a number for activations that are not finite.
    pub(crate) starts: *const f32,
    pub(crate) tiles: usize,
    /// Bytes from one tile's records to the next one's.
    pub(crate) tile_bytes: usize,
    pub(crate) out: *mut f32,
    pub(crate) stride: usize,
}

impl<const BITS: u32, const HALVES: usize, const MINIMUM: bool, const ZERO: u32, const T: usize>
    Kernel for Panel<BITS, HALVES, MINIMUM, ZERO, T>
{
    type Output = ();
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        for tile in 0..self.tiles {
            let mut acc = [[S::zero(); PANEL_GROUPS]; T];
            for t in 0..T {
                let start = S::splat(*self.starts.add(tile * T + t));
                for g in 0..PANEL_GROUPS {
                    let group = S::load(self.panel.add(g * S::LANES * 4).cast());
                    acc[t][g] = S::add(group, start);
                }
            }
            let mut panel = self.panel.add(head_bytes(S::LANES));
            let mut records = self.records.add(tile * self.tile_bytes);
            for _ in 0..self.cells {
                let record = Record::<T>(records);
                for h in 0..HALVES {
                    panel_half::<S, BITS, HALVES, MINIMUM, ZERO, T>(panel, &record, h, &mut acc);
                }
                panel = panel.add(panel_cell_bytes(S::LANES));
                records = records.add(record_bytes(T));
            }
            for t in 0..T {
                let out = self.out.add((tile * T + t) * self.stride);
                for g in 0..PANEL_GROUPS {
                    S::store(out.add(g * S::LANES), acc[t][g]);
                }
            }
        }
    }
}

#[inline(always)]
unsafe fn panel_half<
    S: Simd,
    const BITS: u32,
    const HALVES: usize,
    const MINIMUM: bool,
    const ZERO: u32,
    const T: usize,
>(
    panel: *const u8,
    record: &Record<T>,
    h: usize,
    acc: &mut [[S::F; PANEL_GROUPS]; T],
) {
    let mut dots = [[S::zero_i(); PANEL_GROUPS]; T];
    if ZERO != NO_ZERO {
        for t in 0..T {
            dots[t] = [S::shl32_by::<ZERO>(record.minus_sum::<S>(t, HALVES, h)); PANEL_GROUPS];
        }
    }
    for half in if HALVES == 2 { h..h + 1 } else { 0..2 } {
        let weights = panel.add(half * 4 * S::LANES * 4);
        let x = record.codes(0).add(half * 16);
        S::dot16_tile::<BITS, T>(&mut dots, weights, x);
    }
    let floats = panel.add(panel_scales(S::LANES)).cast::<f32>();
    let scales = [S::load(floats.add(h * S::LANES)), S::load(floats.add((4 + h) * S::LANES))];
    for t in 0..T {
        let scale = record.scale_bits::<S>(t);
        for g in 0..PANEL_GROUPS {
            // As `add_cell` does, since the activations' scale is a power of two.
            let scale = S::add_bits(scales[g], scale);
            acc[t][g] = S::fma(S::to_f(dots[t][g]), scale, acc[t][g]);
        }
    }
    if MINIMUM {
        for g in 0..PANEL_GROUPS {
            let minimum = S::load(floats.add((g * 4 + 2 + h) * S::LANES));
            for t in 0..T {
                acc[t][g] = add_minimum::<S, T>(acc[t][g], minimum, record, t, HALVES, h);
            }
        }
    }
}
