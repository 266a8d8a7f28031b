//! AArch64 NEON: 8 lanes, as pairs of registers. Dot products at three levels, chosen at start:
//! widened products on every processor, `sdot` from 2017 on, `smmla` (tiles of several tokens)
//! from 2021 on. All give the same sums.

use super::{Kernel, Simd};
use std::arch::aarch64::*;
use std::arch::asm;

/// What every AArch64 processor has.
const PLAIN: u8 = 0;
/// And `sdot`.
const DOTPROD: u8 = 1;
/// And `smmla`.
const I8MM: u8 = 2;

#[target_feature(enable = "neon")]
pub(super) unsafe fn run<K: Kernel>(kernel: K) -> K::Output {
    kernel.run::<Neon<PLAIN>>()
}

#[target_feature(enable = "neon,dotprod")]
pub(super) unsafe fn run_dotprod<K: Kernel>(kernel: K) -> K::Output {
    kernel.run::<Neon<DOTPROD>>()
}

#[target_feature(enable = "neon,dotprod,i8mm")]
pub(super) unsafe fn run_i8mm<K: Kernel>(kernel: K) -> K::Output {
    kernel.run::<Neon<I8MM>>()
}

/// NEON at one of the levels above.
#[derive(Clone, Copy)]
pub(crate) struct Neon<const LEVEL: u8>;

/// `acc[i] += a[4i..4i + 4] . b[4i..4i + 4]`, signed. The intrinsic is not in stable Rust.
#[inline(always)]
unsafe fn sdot(mut acc: int32x4_t, a: uint8x16_t, b: uint8x16_t) -> int32x4_t {
    asm!(
        "sdot {acc:v}.4s, {a:v}.16b, {b:v}.16b",
        acc = inout(vreg) acc, a = in(vreg) a, b = in(vreg) b,
        options(pure, nomem, nostack, preserves_flags)
    );
    acc
}

/// `acc[2i + j] += a[8i..8i + 8] . b[8j..8j + 8]`, signed: two rows of weights by two tokens. The
/// intrinsic is not in stable Rust.
#[inline(always)]
unsafe fn smmla(mut acc: int32x4_t, a: uint8x16_t, b: uint8x16_t) -> int32x4_t {
    asm!(
        "smmla {acc:v}.4s, {a:v}.16b, {b:v}.16b",
        acc = inout(vreg) acc, a = in(vreg) a, b = in(vreg) b,
        options(pure, nomem, nostack, preserves_flags)
    );
    acc
}

/// What [`sdot`] gives, without the extension. No product of two signed bytes overflows 16 bits.
#[inline(always)]
unsafe fn widened_dot(acc: int32x4_t, a: uint8x16_t, b: uint8x16_t) -> int32x4_t {
    let (a, b) = (vreinterpretq_s8_u8(a), vreinterpretq_s8_u8(b));
    let low = vpaddlq_s16(vmull_s8(vget_low_s8(a), vget_low_s8(b)));
    let high = vpaddlq_s16(vmull_high_s8(a, b));
    vaddq_s32(acc, vpaddq_s32(low, high))
}

/// [`Simd::dot16`] of two tokens, whose activations are 32 bytes apart: `smmla` takes eight bytes
/// of two rows, so registers of four rows are paired lane by lane, and the sums go through the
/// same pairing and back. The compiler drops "back and forth" between two calls.
#[inline(always)]
unsafe fn dot16_pair(
    dots: [[uint8x16_t; 2]; 2],
    w: &[[uint8x16_t; 2]; 4],
    x: *const i8,
) -> [[uint8x16_t; 2]; 2] {
    let x = x.cast::<u8>();
    let pair = |at: usize| vcombine_u8(vld1_u8(x.add(at)), vld1_u8(x.add(32 + at)));
    let x = [pair(0), pair(8)];
    let words = |v| vreinterpretq_u32_u8(v);
    let mut out = dots;
    for half in 0..2 {
        let first = vreinterpretq_s32_u8(dots[0][half]);
        let second = vreinterpretq_s32_u8(dots[1][half]);
        let mut rows = [vzip1q_s32(first, second), vzip2q_s32(first, second)];
        for (k, x) in x.iter().enumerate() {
            let (a, b) = (words(w[2 * k][half]), words(w[2 * k + 1][half]));
            rows[0] = smmla(rows[0], vreinterpretq_u8_u32(vzip1q_u32(a, b)), *x);
            rows[1] = smmla(rows[1], vreinterpretq_u8_u32(vzip2q_u32(a, b)), *x);
        }
        out[0][half] = vreinterpretq_u8_s32(vuzp1q_s32(rows[0], rows[1]));
        out[1][half] = vreinterpretq_u8_s32(vuzp2q_s32(rows[0], rows[1]));
    }
    out
}

/// Four half floats, widened.
#[inline(always)]
unsafe fn widen_half(p: *const u16) -> float32x4_t {
    let halves = vld1_u16(p);
    let wide: float32x4_t;
    asm!(
        "fcvtl {wide:v}.4s, {halves:v}.4h",
        wide = out(vreg) wide, halves = in(vreg) halves,
        options(pure, nomem, nostack, preserves_flags)
    );
    wide
}

impl<const LEVEL: u8> Simd for Neon<LEVEL> {
    const LANES: usize = 8;
    const BIASED8: bool = false;
    type F = [float32x4_t; 2];
    type I = [uint8x16_t; 2];

    #[inline(always)]
    unsafe fn zero() -> Self::F {
        [vdupq_n_f32(0.0); 2]
    }
    #[inline(always)]
    unsafe fn splat(x: f32) -> Self::F {
        [vdupq_n_f32(x); 2]
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self::F {
        [vld1q_f32(p), vld1q_f32(p.add(4))]
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, v: Self::F) {
        vst1q_f32(p, v[0]);
        vst1q_f32(p.add(4), v[1]);
    }
    #[inline(always)]
    unsafe fn load_f16(p: *const u16) -> Self::F {
        [widen_half(p), widen_half(p.add(4))]
    }
    #[inline(always)]
    unsafe fn load_bf16(p: *const u16) -> Self::F {
        let v = vld1q_u16(p);
        [
            vreinterpretq_f32_u32(vshll_n_u16::<16>(vget_low_u16(v))),
            vreinterpretq_f32_u32(vshll_n_u16::<16>(vget_high_u16(v))),
        ]
    }
    #[inline(always)]
    unsafe fn load_u8(p: *const u8) -> Self::F {
        let v = vmovl_u8(vld1_u8(p));
        [vcvtq_f32_u32(vmovl_u16(vget_low_u16(v))), vcvtq_f32_u32(vmovl_u16(vget_high_u16(v)))]
    }
    #[inline(always)]
    unsafe fn load_i8(p: *const i8) -> Self::F {
        let v = vmovl_s8(vld1_s8(p));
        [vcvtq_f32_s32(vmovl_s16(vget_low_s16(v))), vcvtq_f32_s32(vmovl_s16(vget_high_s16(v)))]
    }
    #[inline(always)]
    unsafe fn store_i8(p: *mut i8, v: Self::F) {
        let halves = vcombine_s16(vmovn_s32(vcvtnq_s32_f32(v[0])), vmovn_s32(vcvtnq_s32_f32(v[1])));
        vst1_s8(p, vmovn_s16(halves));
    }
    #[inline(always)]
    unsafe fn add(a: Self::F, b: Self::F) -> Self::F {
        [vaddq_f32(a[0], b[0]), vaddq_f32(a[1], b[1])]
    }
    #[inline(always)]
    unsafe fn sub(a: Self::F, b: Self::F) -> Self::F {
        [vsubq_f32(a[0], b[0]), vsubq_f32(a[1], b[1])]
    }
    #[inline(always)]
    unsafe fn mul(a: Self::F, b: Self::F) -> Self::F {
        [vmulq_f32(a[0], b[0]), vmulq_f32(a[1], b[1])]
    }
    #[inline(always)]
    unsafe fn div(a: Self::F, b: Self::F) -> Self::F {
        [vdivq_f32(a[0], b[0]), vdivq_f32(a[1], b[1])]
    }
    #[inline(always)]
    unsafe fn max(a: Self::F, b: Self::F) -> Self::F {
        [vmaxq_f32(a[0], b[0]), vmaxq_f32(a[1], b[1])]
    }
    #[inline(always)]
    unsafe fn min(a: Self::F, b: Self::F) -> Self::F {
        [vminq_f32(a[0], b[0]), vminq_f32(a[1], b[1])]
    }
    #[inline(always)]
    unsafe fn abs(a: Self::F) -> Self::F {
        [vabsq_f32(a[0]), vabsq_f32(a[1])]
    }
    #[inline(always)]
    unsafe fn fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        [vfmaq_f32(c[0], a[0], b[0]), vfmaq_f32(c[1], a[1], b[1])]
    }
    #[inline(always)]
    unsafe fn round(a: Self::F) -> Self::F {
        [vrndnq_f32(a[0]), vrndnq_f32(a[1])]
    }
    #[inline(always)]
    unsafe fn exp2_whole(n: Self::F) -> Self::F {
        let one = |n| {
            // SAFETY: NEON is there, by the contract of the trait.
            unsafe {
                let biased = vaddq_s32(vcvtnq_s32_f32(n), vdupq_n_s32(127));
                vreinterpretq_f32_s32(vshlq_n_s32::<23>(biased))
            }
        };
        [one(n[0]), one(n[1])]
    }
    #[inline(always)]
    unsafe fn sum(a: Self::F) -> f32 {
        vaddvq_f32(vaddq_f32(a[0], a[1]))
    }
    #[inline(always)]
    unsafe fn largest(a: Self::F) -> f32 {
        vmaxvq_f32(vmaxq_f32(a[0], a[1]))
    }
    #[inline(always)]
    unsafe fn keep(a: Self::F, from: usize, to: usize, other: f32) -> Self::F {
        let mut lanes = [0.0f32; 8];
        Self::store(lanes.as_mut_ptr(), a);
        for (lane, value) in lanes.iter_mut().enumerate() {
            if lane < from || lane >= to {
                *value = other;
            }
        }
        Self::load(lanes.as_ptr())
    }
    #[inline(always)]
    unsafe fn zero_i() -> Self::I {
        [vdupq_n_u8(0); 2]
    }
    #[inline(always)]
    unsafe fn load_i(p: *const u8) -> Self::I {
        [vld1q_u8(p), vld1q_u8(p.add(16))]
    }
    #[inline(always)]
    unsafe fn store_i(p: *mut u8, v: Self::I) {
        vst1q_u8(p, v[0]);
        vst1q_u8(p.add(16), v[1]);
    }
    #[inline(always)]
    unsafe fn splat_byte(x: u8) -> Self::I {
        [vdupq_n_u8(x); 2]
    }
    #[inline(always)]
    unsafe fn spread(p: *const u8) -> Self::I {
        [vreinterpretq_u8_u32(vdupq_n_u32(p.cast::<u32>().read_unaligned())); 2]
    }
    #[inline(always)]
    unsafe fn shl32(a: Self::I, bits: u32) -> Self::I {
        // A shift by 32 gives 0 here, too.
        let by = vdupq_n_s32(bits as i32);
        let one = |a| {
            // SAFETY: NEON is there, by the contract of the trait.
            unsafe { vreinterpretq_u8_u32(vshlq_u32(vreinterpretq_u32_u8(a), by)) }
        };
        [one(a[0]), one(a[1])]
    }
    #[inline(always)]
    unsafe fn shl32_by<const BITS: u32>(a: Self::I) -> Self::I {
        Self::shl32(a, BITS)
    }
    #[inline(always)]
    unsafe fn nonzero(a: Self::F) -> Self::I {
        [
            vmvnq_u8(vreinterpretq_u8_u32(vceqzq_f32(a[0]))),
            vmvnq_u8(vreinterpretq_u8_u32(vceqzq_f32(a[1]))),
        ]
    }
    #[inline(always)]
    unsafe fn choose(mask: Self::I, a: Self::I, b: Self::I) -> Self::I {
        [vbslq_u8(mask[0], a[0], b[0]), vbslq_u8(mask[1], a[1], b[1])]
    }
    #[inline(always)]
    unsafe fn bits(a: Self::F) -> Self::I {
        [vreinterpretq_u8_f32(a[0]), vreinterpretq_u8_f32(a[1])]
    }
    #[inline(always)]
    unsafe fn add_bits(a: Self::F, bits: Self::I) -> Self::F {
        let add = |a, bits| {
            // SAFETY: NEON is there, by the contract of the trait.
            unsafe {
                let sum = vaddq_u32(vreinterpretq_u32_f32(a), vreinterpretq_u32_u8(bits));
                vreinterpretq_f32_u32(sum)
            }
        };
        [add(a[0], bits[0]), add(a[1], bits[1])]
    }
    #[inline(always)]
    unsafe fn shl16(a: Self::I, bits: u32) -> Self::I {
        // By bytes: what callers keep afterwards is the same.
        [constant_shift!(vshlq_n_u8, a[0], bits), constant_shift!(vshlq_n_u8, a[1], bits)]
    }
    #[inline(always)]
    unsafe fn shr16(a: Self::I, bits: u32) -> Self::I {
        [constant_shift!(vshrq_n_u8, a[0], bits), constant_shift!(vshrq_n_u8, a[1], bits)]
    }
    #[inline(always)]
    unsafe fn and(a: Self::I, b: Self::I) -> Self::I {
        [vandq_u8(a[0], b[0]), vandq_u8(a[1], b[1])]
    }
    #[inline(always)]
    unsafe fn or(a: Self::I, b: Self::I) -> Self::I {
        [vorrq_u8(a[0], b[0]), vorrq_u8(a[1], b[1])]
    }
    #[inline(always)]
    unsafe fn lookup16(table: *const u8, a: Self::I) -> Self::I {
        let table = vld1q_u8(table);
        [vqtbl1q_u8(table, a[0]), vqtbl1q_u8(table, a[1])]
    }
    #[inline(always)]
    unsafe fn to_f(a: Self::I) -> Self::F {
        [vcvtq_f32_s32(vreinterpretq_s32_u8(a[0])), vcvtq_f32_s32(vreinterpretq_s32_u8(a[1]))]
    }
    #[inline(always)]
    unsafe fn dot16<const BITS: u32>(acc: Self::I, w: [Self::I; 4], x: *const i8) -> Self::I {
        // Weights below 8 bits are positive as signed bytes, too.
        let p = x.cast::<u8>();
        let mut sums = [vreinterpretq_s32_u8(acc[0]), vreinterpretq_s32_u8(acc[1])];
        for (j, w) in w.iter().enumerate() {
            let x = Self::spread(p.add(j * 4));
            for half in 0..2 {
                sums[half] = if LEVEL == PLAIN {
                    widened_dot(sums[half], w[half], x[half])
                } else {
                    sdot(sums[half], w[half], x[half])
                };
            }
        }
        [vreinterpretq_u8_s32(sums[0]), vreinterpretq_u8_s32(sums[1])]
    }
    #[inline(always)]
    unsafe fn dot16_tile<const BITS: u32, const T: usize>(
        dots: &mut [[Self::I; 2]; T],
        w: *const u8,
        x: *const i8,
    ) {
        for g in 0..2 {
            let w = w.add(g * 8 * Self::LANES * 4);
            let w = [0, 1, 2, 3].map(|j| Self::load_i(w.add(j * Self::LANES * 4)));
            let mut t = 0;
            while LEVEL == I8MM && t + 2 <= T {
                let pair = dot16_pair([dots[t][g], dots[t + 1][g]], &w, x.add(t * 32));
                (dots[t][g], dots[t + 1][g]) = (pair[0], pair[1]);
                t += 2;
            }
            for t in t..T {
                dots[t][g] = Self::dot16::<BITS>(dots[t][g], w, x.add(t * 32));
            }
        }
    }
    #[inline(always)]
    unsafe fn prefetch(p: *const u8) {
        asm!("prfm pldl1strm, [{p}]", p = in(reg) p, options(readonly, nostack, preserves_flags));
    }
}
