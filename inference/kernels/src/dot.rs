//! The inner loops of matrix multiplication, for any layout and instruction set.
//!
//! *Direct*: one group of rows with a tile of up to 8 tokens, straight from the packed weights: for
//! decoding, where weights come from memory and are used once or a few times. *Panel*: two groups
//! are unpacked once and then used by all tokens: for prompts.
//!
//! Every path computes the same numbers: the integer sums are exact, and each output adds its
//! cells' terms in column order with the same two operations ([`add_cell`]). So an answer does not
//! depend on what else is in the batch.

#![allow(clippy::needless_range_loop)] // Indices name registers in several arrays at once.
#![allow(unsafe_op_in_unsafe_fn)] // Functions here follow the contract of `Simd`.

use crate::layout::{Layout, cell_bytes};
use crate::simd::{Kernel, Simd};

/// Tokens of one direct tile at most.
pub(crate) const DIRECT_TOKENS: usize = 8;
/// How far ahead of use weights are fetched.
pub(crate) const AHEAD_BYTES: usize = 16 << 10;

/// Bytes of a cell of 32 activations of a tile of `tokens`: `[tokens][32]` codes, then per token
/// scale, scale times sum of codes, and minus the sums of codes of the whole cell, its first half and its
/// second half.
pub(crate) const fn record_bytes(tokens: usize) -> usize {
    tokens * 52
}

/// What a cell of activations says about token `t` of `T`.
pub(crate) struct Record<const T: usize>(pub(crate) *const u8);

impl<const T: usize> Record<T> {
    #[inline(always)]
    pub(crate) unsafe fn codes(&self, t: usize) -> *const i8 {
        self.0.add(t * 32).cast()
    }
    #[inline(always)]
    unsafe fn scale<S: Simd>(&self, t: usize) -> S::F {
        S::splat(self.0.add(T * 32 + t * 4).cast::<f32>().read_unaligned())
    }
    #[inline(always)]
    unsafe fn scaled_sum<S: Simd>(&self, t: usize) -> S::F {
        S::splat(self.0.add(T * 36 + t * 4).cast::<f32>().read_unaligned())
    }
    /// The bits of the scale, a power of two.
    #[inline(always)]
    pub(crate) unsafe fn scale_bits<S: Simd>(&self, t: usize) -> S::I {
        S::spread(self.0.add(T * 32 + t * 4))
    }
    /// Minus the sum of codes: of the cell, or of half `h` where there are two.
    #[inline(always)]
    pub(crate) unsafe fn minus_sum<S: Simd>(&self, t: usize, halves: usize, h: usize) -> S::I {
        let of = if halves == 1 { 40 } else { 44 + 4 * h };
        S::spread(self.0.add(T * of + t * 4))
    }
}

/// Adds one (half) cell's term to an output: the one formula of all paths.
#[inline(always)]
unsafe fn add_cell<S: Simd>(acc: S::F, dot: S::I, weight_scale: S::F, scale: S::F) -> S::F {
    S::fma(S::to_f(dot), S::mul(weight_scale, scale), acc)
}

/// Adds one (half) cell's minimum.
#[inline(always)]
pub(crate) unsafe fn add_minimum<S: Simd, const T: usize>(
    acc: S::F,
    minimum: S::F,
    record: &Record<T>,
    t: usize,
    halves: usize,
    h: usize,
) -> S::F {
    let scaled_sum = if halves == 1 {
        record.scaled_sum::<S>(t)
    } else {
        let sum = S::sub(S::zero(), S::to_f(record.minus_sum::<S>(t, halves, h)));
        S::mul(sum, record.scale::<S>(t))
    };
    S::fma(minimum, scaled_sum, acc)
}

/// One group with `T` tokens. Output `t` of row `r` goes to `out[t * stride + r]`.
pub(crate) struct Direct<L: Layout, const T: usize> {
    /// The group's super-blocks.
    pub(crate) weights: *const u8,
    /// How many there are.
    pub(crate) blocks: usize,
    /// The tile's records.
    pub(crate) records: *const u8,
    pub(crate) out: *mut f32,
    pub(crate) stride: usize,
    pub(crate) layout: std::marker::PhantomData<L>,
}

impl<L: Layout, const T: usize> Kernel for Direct<L, T> {
    type Output = ();
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let mut acc = [S::zero(); T];
        let mut block = self.weights;
        let mut records = self.records;
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
                direct_cell::<S, L, T>(cell, head, &Record(records), &mut acc);
                cell = cell.add(bytes);
                records = records.add(record_bytes(T));
            }
            block = cell;
        }
        for (t, acc) in acc.iter().enumerate() {
            S::store(self.out.add(t * self.stride), *acc);
        }
    }
}

#[inline(always)]
unsafe fn direct_cell<S: Simd, L: Layout, const T: usize>(
    cell: *const u8,
    head: (S::F, S::F),
    record: &Record<T>,
    acc: &mut [S::F; T],
) {
    let (scales, minimums) = L::scales::<S>(cell, head);
    let w = L::codes::<S>(cell.add(L::SCALES * S::LANES));
    let first = [w[0], w[1], w[2], w[3]];
    let second = [w[4], w[5], w[6], w[7]];
    let zero_bits = L::zero_bits::<S>();
    for t in 0..T {
        let x = record.codes(t);
        let mut dots = [S::zero_i(); 2];
        if zero_bits < 32 {
            for h in 0..L::HALVES {
                dots[h] = S::shl32(record.minus_sum::<S>(t, L::HALVES, h), zero_bits);
            }
        }
        if L::HALVES == 2 {
            dots[0] = dot::<S, L>(dots[0], first, x);
            dots[1] = dot::<S, L>(dots[1], second, x.add(16));
        } else {
            dots[0] = dot::<S, L>(dots[0], first, x);
            dots[0] = dot::<S, L>(dots[0], second, x.add(16));
        }
        for h in 0..L::HALVES {
            acc[t] = add_cell::<S>(acc[t], dots[h], scales[h], record.scale::<S>(t));
            if L::MINIMUM {
                acc[t] = add_minimum::<S, T>(acc[t], minimums[h], record, t, L::HALVES, h);
            }
        }
    }
}

/// [`Simd::dot16`] with the layout's width, which a generic constant cannot name.
#[inline(always)]
unsafe fn dot<S: Simd, L: Layout>(acc: S::I, w: [S::I; 4], x: *const i8) -> S::I {
    match L::BITS {
        8 => S::dot16::<8>(acc, w, x),
        6 => S::dot16::<6>(acc, w, x),
        _ => S::dot16::<5>(acc, w, x),
    }
}
