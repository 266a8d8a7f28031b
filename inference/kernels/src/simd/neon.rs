//! AArch64 NEON with the dot product extension: 8 lanes, as pairs of registers.

use super::{Kernel, Simd};
use std::arch::aarch64::*;
use std::arch::asm;

#[target_feature(enable = "neon,dotprod")]
pub(super) unsafe fn run<K: Kernel>(kernel: K) -> K::Output {
    kernel.run::<Neon>()
}

/// NEON with `sdot`.
#[derive(Clone, Copy)]
pub(crate) struct Neon;

/// A shift by a number that is constant after inlining.
macro_rules! constant_shift {
    ($f:ident, $a:expr, $bits:expr) => {
        match $bits {
            0 => $a,
            1 => $f::<1>($a),
            2 => $f::<2>($a),
            3 => $f::<3>($a),
            4 => $f::<4>($a),
            5 => $f::<5>($a),
            6 => $f::<6>($a),
            _ => $f::<7>($a),
        }
    };
}

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

impl Simd for Neon {
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
            sums[0] = sdot(sums[0], w[0], x[0]);
            sums[1] = sdot(sums[1], w[1], x[1]);
        }
        [vreinterpretq_u8_s32(sums[0]), vreinterpretq_u8_s32(sums[1])]
    }
    #[inline(always)]
    unsafe fn prefetch(p: *const u8) {
        asm!("prfm pldl1strm, [{p}]", p = in(reg) p, options(readonly, nostack, preserves_flags));
    }
}
