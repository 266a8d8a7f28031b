//! How weights lie in memory for the kernels.
//!
//! The rows of a matrix are regrouped by the lanes of a register: a *group* is that many rows side
//! by side. Along the columns, a group is a chain of *super-blocks*, each a header (what a row
//! keeps once per super-block) and 1 or 8 *cells* of 32 columns: scales, then codes. A code is a
//! small unsigned number; [`Layout::codes`] unpacks a cell into eight registers, of which register
//! `j` holds, in the four bytes of lane `r`, the codes of row `r` in columns `4j..4j + 4`.
//!
//! A weight is `scale * (code - ZERO) + minimum`, with scale and minimum per cell or half cell.
//! Most types take as many bytes as in the file; the six-bit scales of Q4_K, Q5_K and Q3_K are kept
//! as bytes (1.6 to 3.6 % more), and TQ1_0 is kept with two bits a value like TQ2_0.

#![allow(clippy::needless_range_loop)] // Indices name registers in several arrays at once.
#![allow(unsafe_op_in_unsafe_fn)] // Functions here follow the contract of `Simd`.

use crate::simd::Simd;

/// One of the ways to lay out quantised weights.
///
/// The contract of the functions is that of [`Simd`]; `cell` points to a cell's first byte (its
/// scales), `head` to its super-block's header.
pub(crate) trait Layout: Copy {
    /// Cells in a super-block.
    const CELLS: usize = 1;
    /// Bytes of a row in the header.
    const HEAD: usize = 0;
    /// Bytes of a row for a cell's scales, in front of the codes.
    const SCALES: usize = 2;
    /// Bytes of a row for a cell's codes.
    const CODES: usize;
    /// Scales per cell and row: 1, or 2 for the columns `0..16` and `16..32`.
    const HALVES: usize = 1;
    /// Whether there are minimums.
    const MINIMUM: bool = false;
    /// Width of the unpacked codes: how many of their products a dot product may add up.
    const BITS: u32;
    /// The code that means zero as a power of two; above 31 for code 0.
    #[inline(always)]
    fn zero_bits<S: Simd>() -> u32 {
        NO_ZERO
    }
    /// Unpacks the codes at `p`.
    unsafe fn codes<S: Simd>(p: *const u8) -> [S::I; 8];
    /// What every cell of a super-block needs of its header: scale and scale of the minimums.
    #[inline(always)]
    unsafe fn head<S: Simd>(head: *const u8) -> (S::F, S::F) {
        let _ = head;
        (S::zero(), S::zero())
    }
    /// Scales and minimums of a cell's halves (the first where there is one): where nothing else is
    /// said, a half-precision scale per row and behind them, where there are minimums, one of each.
    #[inline(always)]
    unsafe fn scales<S: Simd>(cell: *const u8, _: (S::F, S::F)) -> ([S::F; 2], [S::F; 2]) {
        let scale = S::load_f16(cell.cast());
        let minimum =
            if Self::MINIMUM { S::load_f16(cell.add(S::LANES * 2).cast()) } else { S::zero() };
        ([scale, S::zero()], [minimum, S::zero()])
    }
}

/// Bytes of a cell per row.
pub(crate) const fn cell_bytes<L: Layout>() -> usize {
    L::SCALES + L::CODES
}

/// Bytes of a super-block per row.
pub(crate) const fn block_bytes<L: Layout>() -> usize {
    L::HEAD + L::CELLS * cell_bytes::<L>()
}

/// No code means zero: a shift by this leaves nothing of the sum.
pub(crate) const NO_ZERO: u32 = 32;

/// Loads `N` registers of codes.
#[inline(always)]
unsafe fn registers<S: Simd, const N: usize>(p: *const u8) -> [S::I; N] {
    let mut v = [S::zero_i(); N];
    for (i, v) in v.iter_mut().enumerate() {
        *v = S::load_i(p.add(i * S::LANES * 4));
    }
    v
}

/// Four registers of nibbles: the low ones are columns 0 to 15, the high ones 16 to 31.
#[inline(always)]
unsafe fn nibbles<S: Simd>(p: *const u8) -> [S::I; 8] {
    let v = registers::<S, 4>(p);
    let low = S::splat_byte(15);
    [
        S::and(v[0], low),
        S::and(v[1], low),
        S::and(v[2], low),
        S::and(v[3], low),
        S::and(S::shr16(v[0], 4), low),
        S::and(S::shr16(v[1], 4), low),
        S::and(S::shr16(v[2], 4), low),
        S::and(S::shr16(v[3], 4), low),
    ]
}

/// Nibbles and, behind them, a register whose bit `j` is bit 4 of the codes in register `j`.
#[inline(always)]
unsafe fn five_bits<S: Simd>(p: *const u8) -> [S::I; 8] {
    let n = nibbles::<S>(p);
    let high = S::load_i(p.add(S::LANES * 16));
    let bit = S::splat_byte(16);
    [
        S::or(n[0], S::and(S::shl16(high, 4), bit)),
        S::or(n[1], S::and(S::shl16(high, 3), bit)),
        S::or(n[2], S::and(S::shl16(high, 2), bit)),
        S::or(n[3], S::and(S::shl16(high, 1), bit)),
        S::or(n[4], S::and(high, bit)),
        S::or(n[5], S::and(S::shr16(high, 1), bit)),
        S::or(n[6], S::and(S::shr16(high, 2), bit)),
        S::or(n[7], S::and(S::shr16(high, 3), bit)),
    ]
}

/// Two registers of two-bit codes: bits `2s..2s + 2` of register `i` are code register `4i + s`.
#[inline(always)]
unsafe fn two_bits<S: Simd>(p: *const u8) -> [S::I; 8] {
    let v = registers::<S, 2>(p);
    let low = S::splat_byte(3);
    [
        S::and(v[0], low),
        S::and(S::shr16(v[0], 2), low),
        S::and(S::shr16(v[0], 4), low),
        S::and(S::shr16(v[0], 6), low),
        S::and(v[1], low),
        S::and(S::shr16(v[1], 2), low),
        S::and(S::shr16(v[1], 4), low),
        S::and(S::shr16(v[1], 6), low),
    ]
}

/// Q8_0. Codes are signed, or plus 128 where the processor wants them unsigned.
#[derive(Clone, Copy)]
pub(crate) struct Q8;
impl Layout for Q8 {
    const CODES: usize = 32;
    const BITS: u32 = 8;
    #[inline(always)]
    fn zero_bits<S: Simd>() -> u32 {
        if S::BIASED8 { 7 } else { NO_ZERO }
    }
    #[inline(always)]
    unsafe fn codes<S: Simd>(p: *const u8) -> [S::I; 8] {
        registers::<S, 8>(p)
    }
}

/// Q4_0.
#[derive(Clone, Copy)]
pub(crate) struct Q4;
impl Layout for Q4 {
    const CODES: usize = 16;
    const BITS: u32 = 4;
    #[inline(always)]
    fn zero_bits<S: Simd>() -> u32 {
        3
    }
    #[inline(always)]
    unsafe fn codes<S: Simd>(p: *const u8) -> [S::I; 8] {
        nibbles::<S>(p)
    }
}

/// Q4_1.
#[derive(Clone, Copy)]
pub(crate) struct Q4Min;
impl Layout for Q4Min {
    const SCALES: usize = 4;
    const CODES: usize = 16;
    const MINIMUM: bool = true;
    const BITS: u32 = 4;
    #[inline(always)]
    unsafe fn codes<S: Simd>(p: *const u8) -> [S::I; 8] {
        nibbles::<S>(p)
    }
}

/// Q5_0.
#[derive(Clone, Copy)]
pub(crate) struct Q5;
impl Layout for Q5 {
    const CODES: usize = 20;
    const BITS: u32 = 5;
    #[inline(always)]
    fn zero_bits<S: Simd>() -> u32 {
        4
    }
    #[inline(always)]
    unsafe fn codes<S: Simd>(p: *const u8) -> [S::I; 8] {
        five_bits::<S>(p)
    }
}

/// Q5_1.
#[derive(Clone, Copy)]
pub(crate) struct Q5Min;
impl Layout for Q5Min {
    const SCALES: usize = 4;
    const CODES: usize = 20;
    const MINIMUM: bool = true;
    const BITS: u32 = 5;
    #[inline(always)]
    unsafe fn codes<S: Simd>(p: *const u8) -> [S::I; 8] {
        five_bits::<S>(p)
    }
}

/// What the codes of IQ4_NL and IQ4_XS stand for.
static NON_LINEAR_SIGNED: [i8; 16] =
    [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];
/// The same plus 128.
static NON_LINEAR_BIASED: [u8; 16] =
    [1, 24, 45, 63, 79, 93, 106, 118, 129, 141, 153, 166, 181, 197, 217, 241];

/// Twice the values of MXFP4's 4-bit floats (OCP Microscaling Formats 1.0, section 5.3.3: E2M1).
static FLOAT4_SIGNED: [i8; 16] = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12];
/// The same plus 128.
static FLOAT4_BIASED: [u8; 16] =
    [128, 129, 130, 131, 132, 134, 136, 140, 128, 127, 126, 125, 124, 122, 120, 116];

/// Nibbles replaced by what a table says of them: 8-bit codes, as the processor wants those.
#[inline(always)]
unsafe fn looked_up<S: Simd>(
    p: *const u8,
    signed: &'static [i8; 16],
    biased: &'static [u8; 16],
) -> [S::I; 8] {
    let table = if S::BIASED8 { biased.as_ptr() } else { signed.as_ptr().cast() };
    let mut v = nibbles::<S>(p);
    for v in &mut v {
        *v = S::lookup16(table, *v);
    }
    v
}

/// IQ4_NL: nibbles that index a table of 8-bit codes.
#[derive(Clone, Copy)]
pub(crate) struct NonLinear4;
impl Layout for NonLinear4 {
    const CODES: usize = 16;
    const BITS: u32 = 8;
    #[inline(always)]
    fn zero_bits<S: Simd>() -> u32 {
        Q8::zero_bits::<S>()
    }
    #[inline(always)]
    unsafe fn codes<S: Simd>(p: *const u8) -> [S::I; 8] {
        looked_up::<S>(p, &NON_LINEAR_SIGNED, &NON_LINEAR_BIASED)
    }
}

/// IQ4_XS: the same table; a signed byte per row and cell times the header's scale.
#[derive(Clone, Copy)]
pub(crate) struct NonLinear4K;
impl Layout for NonLinear4K {
    const CELLS: usize = 8;
    const HEAD: usize = 2;
    const SCALES: usize = 1;
    const CODES: usize = 16;
    const BITS: u32 = 8;
    #[inline(always)]
    fn zero_bits<S: Simd>() -> u32 {
        Q8::zero_bits::<S>()
    }
    #[inline(always)]
    unsafe fn codes<S: Simd>(p: *const u8) -> [S::I; 8] {
        looked_up::<S>(p, &NON_LINEAR_SIGNED, &NON_LINEAR_BIASED)
    }
    #[inline(always)]
    unsafe fn head<S: Simd>(head: *const u8) -> (S::F, S::F) {
        (S::load_f16(head.cast()), S::zero())
    }
    #[inline(always)]
    unsafe fn scales<S: Simd>(cell: *const u8, head: (S::F, S::F)) -> ([S::F; 2], [S::F; 2]) {
        ([S::mul(head.0, S::load_i8(cell.cast())), S::zero()], [S::zero(); 2])
    }
}

/// MXFP4: 4-bit floats under a power of two, which is kept as bfloat16.
#[derive(Clone, Copy)]
pub(crate) struct Float4;
impl Layout for Float4 {
    const CODES: usize = 16;
    const BITS: u32 = 8;
    #[inline(always)]
    fn zero_bits<S: Simd>() -> u32 {
        Q8::zero_bits::<S>()
    }
    #[inline(always)]
    unsafe fn codes<S: Simd>(p: *const u8) -> [S::I; 8] {
        looked_up::<S>(p, &FLOAT4_SIGNED, &FLOAT4_BIASED)
    }
    #[inline(always)]
    unsafe fn scales<S: Simd>(cell: *const u8, _: (S::F, S::F)) -> ([S::F; 2], [S::F; 2]) {
        ([S::load_bf16(cell.cast()), S::zero()], [S::zero(); 2])
    }
}

/// Header of two half floats per row: scale, and scale of the minimums (subtracted in the types
/// that have it).
#[inline(always)]
unsafe fn scale_head<S: Simd>(head: *const u8) -> (S::F, S::F) {
    let minimums = S::load_f16(head.add(S::LANES * 2).cast());
    (S::load_f16(head.cast()), S::sub(S::zero(), minimums))
}

/// Byte scale and byte minimum per row and cell, times the header's.
#[inline(always)]
unsafe fn byte_scales<S: Simd>(cell: *const u8, head: (S::F, S::F)) -> ([S::F; 2], [S::F; 2]) {
    let scale = S::mul(head.0, S::load_u8(cell));
    let minimum = S::mul(head.1, S::load_u8(cell.add(S::LANES)));
    ([scale, S::zero()], [minimum, S::zero()])
}

/// Signed byte scales of both halves, times the header's.
#[inline(always)]
unsafe fn half_scales<S: Simd>(cell: *const u8, head: (S::F, S::F)) -> ([S::F; 2], [S::F; 2]) {
    let first = S::mul(head.0, S::load_i8(cell.cast()));
    let second = S::mul(head.0, S::load_i8(cell.add(S::LANES).cast()));
    ([first, second], [S::zero(); 2])
}

/// Q4_K.
#[derive(Clone, Copy)]
pub(crate) struct K4;
impl Layout for K4 {
    const CELLS: usize = 8;
    const HEAD: usize = 4;
    const CODES: usize = 16;
    const MINIMUM: bool = true;
    const BITS: u32 = 4;
    #[inline(always)]
    unsafe fn codes<S: Simd>(p: *const u8) -> [S::I; 8] {
        nibbles::<S>(p)
    }
    #[inline(always)]
    unsafe fn head<S: Simd>(head: *const u8) -> (S::F, S::F) {
        scale_head::<S>(head)
    }
    #[inline(always)]
    unsafe fn scales<S: Simd>(cell: *const u8, head: (S::F, S::F)) -> ([S::F; 2], [S::F; 2]) {
        byte_scales::<S>(cell, head)
    }
}

/// Q5_K.
#[derive(Clone, Copy)]
pub(crate) struct K5;
impl Layout for K5 {
    const CELLS: usize = 8;
    const HEAD: usize = 4;
    const CODES: usize = 20;
    const MINIMUM: bool = true;
    const BITS: u32 = 5;
    #[inline(always)]
    unsafe fn codes<S: Simd>(p: *const u8) -> [S::I; 8] {
        five_bits::<S>(p)
    }
    #[inline(always)]
    unsafe fn head<S: Simd>(head: *const u8) -> (S::F, S::F) {
        scale_head::<S>(head)
    }
    #[inline(always)]
    unsafe fn scales<S: Simd>(cell: *const u8, head: (S::F, S::F)) -> ([S::F; 2], [S::F; 2]) {
        byte_scales::<S>(cell, head)
    }
}

/// Q6_K: nibbles and two registers of upper bit pairs.
#[derive(Clone, Copy)]
pub(crate) struct K6;
impl Layout for K6 {
    const CELLS: usize = 8;
    const HEAD: usize = 2;
    const CODES: usize = 24;
    const HALVES: usize = 2;
    const BITS: u32 = 6;
    #[inline(always)]
    fn zero_bits<S: Simd>() -> u32 {
        5
    }
    #[inline(always)]
    unsafe fn codes<S: Simd>(p: *const u8) -> [S::I; 8] {
        let n = nibbles::<S>(p);
        let high = registers::<S, 2>(p.add(S::LANES * 16));
        let bits = S::splat_byte(0x30);
        [
            S::or(n[0], S::and(S::shl16(high[0], 4), bits)),
            S::or(n[1], S::and(S::shl16(high[0], 2), bits)),
            S::or(n[2], S::and(high[0], bits)),
            S::or(n[3], S::and(S::shr16(high[0], 2), bits)),
            S::or(n[4], S::and(S::shl16(high[1], 4), bits)),
            S::or(n[5], S::and(S::shl16(high[1], 2), bits)),
            S::or(n[6], S::and(high[1], bits)),
            S::or(n[7], S::and(S::shr16(high[1], 2), bits)),
        ]
    }
    #[inline(always)]
    unsafe fn head<S: Simd>(head: *const u8) -> (S::F, S::F) {
        (S::load_f16(head.cast()), S::zero())
    }
    #[inline(always)]
    unsafe fn scales<S: Simd>(cell: *const u8, head: (S::F, S::F)) -> ([S::F; 2], [S::F; 2]) {
        half_scales::<S>(cell, head)
    }
}

/// Q3_K: two-bit codes and a register whose bit `j` is bit 2 of the codes in register `j`.
#[derive(Clone, Copy)]
pub(crate) struct K3;
impl Layout for K3 {
    const CELLS: usize = 8;
    const HEAD: usize = 2;
    const CODES: usize = 12;
    const HALVES: usize = 2;
    const BITS: u32 = 3;
    #[inline(always)]
    fn zero_bits<S: Simd>() -> u32 {
        2
    }
    #[inline(always)]
    unsafe fn codes<S: Simd>(p: *const u8) -> [S::I; 8] {
        let v = two_bits::<S>(p);
        let high = S::load_i(p.add(S::LANES * 8));
        let bit = S::splat_byte(4);
        [
            S::or(v[0], S::and(S::shl16(high, 2), bit)),
            S::or(v[1], S::and(S::shl16(high, 1), bit)),
            S::or(v[2], S::and(high, bit)),
            S::or(v[3], S::and(S::shr16(high, 1), bit)),
            S::or(v[4], S::and(S::shr16(high, 2), bit)),
            S::or(v[5], S::and(S::shr16(high, 3), bit)),
            S::or(v[6], S::and(S::shr16(high, 4), bit)),
            S::or(v[7], S::and(S::shr16(high, 5), bit)),
        ]
    }
    #[inline(always)]
    unsafe fn head<S: Simd>(head: *const u8) -> (S::F, S::F) {
        (S::load_f16(head.cast()), S::zero())
    }
    #[inline(always)]
    unsafe fn scales<S: Simd>(cell: *const u8, head: (S::F, S::F)) -> ([S::F; 2], [S::F; 2]) {
        half_scales::<S>(cell, head)
    }
}

/// Q2_K: a byte per row and half, scale in its low nibble, minimum in its high one.
#[derive(Clone, Copy)]
pub(crate) struct K2;
impl Layout for K2 {
    const CELLS: usize = 8;
    const HEAD: usize = 4;
    const CODES: usize = 8;
    const HALVES: usize = 2;
    const MINIMUM: bool = true;
    const BITS: u32 = 2;
    #[inline(always)]
    unsafe fn codes<S: Simd>(p: *const u8) -> [S::I; 8] {
        two_bits::<S>(p)
    }
    #[inline(always)]
    unsafe fn head<S: Simd>(head: *const u8) -> (S::F, S::F) {
        scale_head::<S>(head)
    }
    #[inline(always)]
    unsafe fn scales<S: Simd>(cell: *const u8, head: (S::F, S::F)) -> ([S::F; 2], [S::F; 2]) {
        let both = [S::load_u8(cell), S::load_u8(cell.add(S::LANES))];
        let mut scales = [S::zero(); 2];
        let mut minimums = [S::zero(); 2];
        for h in 0..2 {
            // Exact in floats: the high nibble is the floor of a sixteenth.
            let lower = S::sub(S::mul(both[h], S::splat(1.0 / 16.0)), S::splat(0.5 - 1.0 / 32.0));
            let high = S::round(lower);
            let low = S::fma(high, S::splat(-16.0), both[h]);
            scales[h] = S::mul(head.0, low);
            minimums[h] = S::mul(head.1, high);
        }
        (scales, minimums)
    }
}

/// TQ1_0, TQ2_0, I2_S: 0, 1, 2 for -1, 0, 1.
#[derive(Clone, Copy)]
pub(crate) struct Ternary;
impl Layout for Ternary {
    const CELLS: usize = 8;
    const HEAD: usize = 2;
    const SCALES: usize = 0;
    const CODES: usize = 8;
    const BITS: u32 = 2;
    #[inline(always)]
    fn zero_bits<S: Simd>() -> u32 {
        0
    }
    #[inline(always)]
    unsafe fn codes<S: Simd>(p: *const u8) -> [S::I; 8] {
        two_bits::<S>(p)
    }
    #[inline(always)]
    unsafe fn head<S: Simd>(head: *const u8) -> (S::F, S::F) {
        (S::load_f16(head.cast()), S::zero())
    }
    #[inline(always)]
    unsafe fn scales<S: Simd>(_: *const u8, head: (S::F, S::F)) -> ([S::F; 2], [S::F; 2]) {
        ([head.0, S::zero()], [S::zero(); 2])
    }
}
