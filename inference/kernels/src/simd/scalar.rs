//! Plain Rust: what every other implementation is compared with. `LANES` rows as the layout under
//! test has; multiplication and addition round separately.

use super::Simd;
use half::{bf16, f16};

/// Registers as arrays. `BIASED` as [`Simd::BIASED8`].
#[derive(Clone, Copy)]
pub(crate) struct Scalar<const LANES: usize, const BIASED: bool = false>;

/// Applies a function to each lane.
macro_rules! each {
    ($r:ident = $body:expr) => {{
        let mut out = [Default::default(); LANES];
        for ($r, lane) in out.iter_mut().enumerate() {
            *lane = $body;
        }
        out
    }};
}

/// Applies a function to each of the two 16-bit halves of a lane.
fn halves(a: u32, f: impl Fn(u16) -> u16) -> u32 {
    u32::from(f(a as u16)) | u32::from(f((a >> 16) as u16)) << 16
}

impl<const LANES: usize, const BIASED: bool> Simd for Scalar<LANES, BIASED> {
    const LANES: usize = LANES;
    const BIASED8: bool = BIASED;
    type F = [f32; LANES];
    type I = [u32; LANES];

    #[inline(always)]
    unsafe fn zero() -> Self::F {
        [0.0; LANES]
    }
    #[inline(always)]
    unsafe fn splat(x: f32) -> Self::F {
        [x; LANES]
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self::F {
        p.cast::<Self::F>().read_unaligned()
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, v: Self::F) {
        p.cast::<Self::F>().write_unaligned(v);
    }
    #[inline(always)]
    unsafe fn load_f16(p: *const u16) -> Self::F {
        each!(r = f16::from_bits(p.add(r).read_unaligned()).to_f32())
    }
    #[inline(always)]
    unsafe fn load_bf16(p: *const u16) -> Self::F {
        each!(r = bf16::from_bits(p.add(r).read_unaligned()).to_f32())
    }
    #[inline(always)]
    unsafe fn load_u8(p: *const u8) -> Self::F {
        each!(r = f32::from(*p.add(r)))
    }
    #[inline(always)]
    unsafe fn load_i8(p: *const i8) -> Self::F {
        each!(r = f32::from(*p.add(r)))
    }
    #[inline(always)]
    unsafe fn store_i8(p: *mut i8, v: Self::F) {
        for (r, x) in v.iter().enumerate() {
            *p.add(r) = *x as i8;
        }
    }
    #[inline(always)]
    unsafe fn add(a: Self::F, b: Self::F) -> Self::F {
        each!(r = a[r] + b[r])
    }
    #[inline(always)]
    unsafe fn sub(a: Self::F, b: Self::F) -> Self::F {
        each!(r = a[r] - b[r])
    }
    #[inline(always)]
    unsafe fn mul(a: Self::F, b: Self::F) -> Self::F {
        each!(r = a[r] * b[r])
    }
    #[inline(always)]
    unsafe fn div(a: Self::F, b: Self::F) -> Self::F {
        each!(r = a[r] / b[r])
    }
    #[inline(always)]
    unsafe fn max(a: Self::F, b: Self::F) -> Self::F {
        each!(r = if a[r] > b[r] { a[r] } else { b[r] })
    }
    #[inline(always)]
    unsafe fn min(a: Self::F, b: Self::F) -> Self::F {
        each!(r = if a[r] < b[r] { a[r] } else { b[r] })
    }
    #[inline(always)]
    unsafe fn abs(a: Self::F) -> Self::F {
        each!(r = a[r].abs())
    }
    #[inline(always)]
    unsafe fn fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        each!(r = a[r] * b[r] + c[r])
    }
    #[inline(always)]
    unsafe fn round(a: Self::F) -> Self::F {
        each!(r = a[r].round_ties_even())
    }
    #[inline(always)]
    unsafe fn exp2_whole(n: Self::F) -> Self::F {
        each!(r = f32::from_bits(((n[r] as i32 + 127) as u32) << 23))
    }
    #[inline(always)]
    unsafe fn sum(a: Self::F) -> f32 {
        a.iter().sum()
    }
    #[inline(always)]
    unsafe fn largest(a: Self::F) -> f32 {
        a.iter().copied().fold(f32::NEG_INFINITY, f32::max)
    }
    #[inline(always)]
    unsafe fn keep(a: Self::F, from: usize, to: usize, other: f32) -> Self::F {
        each!(r = if r >= from && r < to { a[r] } else { other })
    }
    #[inline(always)]
    unsafe fn zero_i() -> Self::I {
        [0; LANES]
    }
    #[inline(always)]
    unsafe fn load_i(p: *const u8) -> Self::I {
        each!(r = u32::from_le(p.cast::<u32>().add(r).read_unaligned()))
    }
    #[inline(always)]
    unsafe fn store_i(p: *mut u8, v: Self::I) {
        for (r, x) in v.iter().enumerate() {
            p.cast::<u32>().add(r).write_unaligned(x.to_le());
        }
    }
    #[inline(always)]
    unsafe fn splat_byte(x: u8) -> Self::I {
        [u32::from_ne_bytes([x; 4]); LANES]
    }
    #[inline(always)]
    unsafe fn spread(p: *const u8) -> Self::I {
        [u32::from_le(p.cast::<u32>().read_unaligned()); LANES]
    }
    #[inline(always)]
    unsafe fn shl32(a: Self::I, bits: u32) -> Self::I {
        each!(r = a[r].checked_shl(bits).unwrap_or(0))
    }
    #[inline(always)]
    unsafe fn shl32_by<const BITS: u32>(a: Self::I) -> Self::I {
        each!(r = a[r] << BITS)
    }
    #[inline(always)]
    unsafe fn nonzero(a: Self::F) -> Self::I {
        each!(r = if a[r] == 0.0 { 0 } else { u32::MAX })
    }
    #[inline(always)]
    unsafe fn choose(mask: Self::I, a: Self::I, b: Self::I) -> Self::I {
        each!(r = (a[r] & mask[r]) | (b[r] & !mask[r]))
    }
    #[inline(always)]
    unsafe fn bits(a: Self::F) -> Self::I {
        each!(r = a[r].to_bits())
    }
    #[inline(always)]
    unsafe fn add_bits(a: Self::F, bits: Self::I) -> Self::F {
        each!(r = f32::from_bits(a[r].to_bits().wrapping_add(bits[r])))
    }
    #[inline(always)]
    unsafe fn shl16(a: Self::I, bits: u32) -> Self::I {
        each!(r = halves(a[r], |h| h << bits))
    }
    #[inline(always)]
    unsafe fn shr16(a: Self::I, bits: u32) -> Self::I {
        each!(r = halves(a[r], |h| h >> bits))
    }
    #[inline(always)]
    unsafe fn and(a: Self::I, b: Self::I) -> Self::I {
        each!(r = a[r] & b[r])
    }
    #[inline(always)]
    unsafe fn or(a: Self::I, b: Self::I) -> Self::I {
        each!(r = a[r] | b[r])
    }
    #[inline(always)]
    unsafe fn lookup16(table: *const u8, a: Self::I) -> Self::I {
        each!(r = u32::from_le_bytes(a[r].to_le_bytes().map(|i| *table.add(usize::from(i & 15)))))
    }
    #[inline(always)]
    unsafe fn to_f(a: Self::I) -> Self::F {
        each!(r = a[r] as i32 as f32)
    }
    #[inline(always)]
    unsafe fn dot16<const BITS: u32>(acc: Self::I, w: [Self::I; 4], x: *const i8) -> Self::I {
        each!(
            r = {
                let mut sum = acc[r] as i32;
                for (j, w) in w.iter().enumerate() {
                    for (i, byte) in w[r].to_le_bytes().into_iter().enumerate() {
                        let signed = BITS == 8 && !BIASED;
                        let w = if signed { i32::from(byte as i8) } else { i32::from(byte) };
                        sum += w * i32::from(*x.add(j * 4 + i));
                    }
                }
                sum as u32
            }
        )
    }
    #[inline(always)]
    unsafe fn prefetch(_: *const u8) {}
}
