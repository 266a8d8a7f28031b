//! One vector register of each instruction set behind one trait, so that every kernel is written
//! once and runs on all of them.
//!
//! A kernel is a value of a type that implements [`Kernel`]; [`run`] calls it inside a function
//! that has the instruction set's features enabled. Everything between there and the intrinsics is
//! `#[inline(always)]`, which is what lets the compiler use the features in generic code.
//!
//! All functions of [`Simd`] share one contract: the processor has the features of the
//! implementing type, and pointers are valid for what the function reads or writes (a whole
//! register where nothing else is said). No alignment is asked for.

// The methods of the implementations are unsafe as a whole, under the contract above.
#![allow(unsafe_op_in_unsafe_fn)]

use crate::cpu::Isa;

/// A shift by a number that is constant after inlining.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
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

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "aarch64")]
mod neon;
mod scalar;

pub(crate) use scalar::Scalar;

/// A computation over any instruction set.
pub(crate) trait Kernel {
    type Output;
    /// # Safety
    /// As [`Simd`] says; what else is asked for is the kernel's to say.
    unsafe fn run<S: Simd>(self) -> Self::Output;
}

/// Runs a kernel with an instruction set.
///
/// # Safety
/// `isa` is available on this processor, and the kernel's own contract holds.
pub(crate) unsafe fn run<K: Kernel>(isa: Isa, kernel: K) -> K::Output {
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => avx512::run(kernel),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => avx2::run(kernel),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2Vnni => avx2::run_vnni(kernel),
        #[cfg(target_arch = "aarch64")]
        Isa::Neon => neon::run(kernel),
        #[cfg(target_arch = "aarch64")]
        Isa::NeonDotprod => neon::run_dotprod(kernel),
        #[cfg(target_arch = "aarch64")]
        Isa::NeonI8mm => neon::run_i8mm(kernel),
        _ => kernel.run::<Scalar<8>>(),
    }
}

/// Rows of a weight group under an instruction set: the lanes of its float register.
pub(crate) fn lanes(isa: Isa) -> usize {
    match isa {
        Isa::Avx512 => 16,
        _ => 8,
    }
}

/// Whether 8-bit weights are stored plus 128, because the dot product takes them unsigned.
pub(crate) fn biased8(isa: Isa) -> bool {
    matches!(isa, Isa::Avx512 | Isa::Avx2Vnni)
}

/// A float register of `LANES` lanes and an integer register of the same size, seen as 32-bit
/// lanes or as four bytes in each of them.
pub(crate) trait Simd: Copy {
    const LANES: usize;
    /// See [`biased8`].
    const BIASED8: bool;
    type F: Copy;
    type I: Copy;

    unsafe fn zero() -> Self::F;
    unsafe fn splat(x: f32) -> Self::F;
    unsafe fn load(p: *const f32) -> Self::F;
    unsafe fn store(p: *mut f32, v: Self::F);
    /// `LANES` IEEE half floats.
    unsafe fn load_f16(p: *const u16) -> Self::F;
    /// Stores the lanes as IEEE half floats, rounded to nearest, ties to even.
    #[inline(always)]
    unsafe fn store_f16(p: *mut u16, v: Self::F) {
        let mut lanes = [0.0f32; 16];
        Self::store(lanes.as_mut_ptr(), v);
        for (i, lane) in lanes[..Self::LANES].iter().enumerate() {
            p.add(i).write_unaligned(half::f16::from_f32(*lane).to_bits());
        }
    }
    /// `LANES` bfloat16.
    unsafe fn load_bf16(p: *const u16) -> Self::F;
    /// `LANES` bytes.
    unsafe fn load_u8(p: *const u8) -> Self::F;
    unsafe fn load_i8(p: *const i8) -> Self::F;
    /// Stores the low byte of each lane, which holds whole numbers from -128 to 127.
    unsafe fn store_i8(p: *mut i8, v: Self::F);
    unsafe fn add(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn sub(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn mul(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn div(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn max(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn min(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn abs(a: Self::F) -> Self::F;
    /// `a * b + c`.
    unsafe fn fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// To the nearest whole number, ties to even.
    unsafe fn round(a: Self::F) -> Self::F;
    /// `2^n` for whole `n` from -126 to 127.
    unsafe fn exp2_whole(n: Self::F) -> Self::F;
    unsafe fn sum(a: Self::F) -> f32;
    unsafe fn largest(a: Self::F) -> f32;
    /// Keeps lanes `from..to`, the others become `other`.
    unsafe fn keep(a: Self::F, from: usize, to: usize, other: f32) -> Self::F;

    unsafe fn zero_i() -> Self::I;
    unsafe fn load_i(p: *const u8) -> Self::I;
    unsafe fn store_i(p: *mut u8, v: Self::I);
    /// The same byte everywhere.
    unsafe fn splat_byte(x: u8) -> Self::I;
    /// The four bytes at `p` in every 32-bit lane.
    unsafe fn spread(p: *const u8) -> Self::I;
    /// Every 32-bit lane shifted left; 0 where `bits` is above 31.
    unsafe fn shl32(a: Self::I, bits: u32) -> Self::I;
    /// Every 32-bit lane shifted left by less than 32.
    unsafe fn shl32_by<const BITS: u32>(a: Self::I) -> Self::I;
    /// All bits of each lane that is not 0.
    unsafe fn nonzero(a: Self::F) -> Self::I;
    /// Bits of `a` where those of `mask` are set, else of `b`.
    unsafe fn choose(mask: Self::I, a: Self::I, b: Self::I) -> Self::I;
    /// The bits of each lane.
    unsafe fn bits(a: Self::F) -> Self::I;
    /// Adds to the bits of each lane, as whole numbers that wrap.
    unsafe fn add_bits(a: Self::F, bits: Self::I) -> Self::F;
    /// Every 16-bit lane shifted left, `bits` a constant up to 7.
    unsafe fn shl16(a: Self::I, bits: u32) -> Self::I;
    /// Every 16-bit lane shifted right, `bits` a constant up to 7.
    unsafe fn shr16(a: Self::I, bits: u32) -> Self::I;
    unsafe fn and(a: Self::I, b: Self::I) -> Self::I;
    unsafe fn or(a: Self::I, b: Self::I) -> Self::I;
    /// Each byte (0 to 15) replaced by the entry of a table of 16.
    unsafe fn lookup16(table: *const u8, a: Self::I) -> Self::I;
    unsafe fn to_f(a: Self::I) -> Self::F;
    /// Adds to each 32-bit lane of `acc` the products of 16 weights (the lane's four bytes of four
    /// registers) with the 16 activations at `x`. `BITS` is the weights' width: below 8 they are
    /// unsigned; with 8 they are unsigned where [`Simd::BIASED8`] and signed elsewhere.
    unsafe fn dot16<const BITS: u32>(acc: Self::I, w: [Self::I; 4], x: *const i8) -> Self::I;
    /// [`Simd::dot16`] of `T` tokens, whose activations are 32 bytes apart, with two sets of four
    /// registers of weights: at `w` and eight registers further.
    #[inline(always)]
    unsafe fn dot16_tile<const BITS: u32, const T: usize>(
        dots: &mut [[Self::I; 2]; T],
        w: *const u8,
        x: *const i8,
    ) {
        for g in 0..2 {
            let w = w.add(g * 8 * Self::LANES * 4);
            let w = [
                Self::load_i(w),
                Self::load_i(w.add(Self::LANES * 4)),
                Self::load_i(w.add(Self::LANES * 8)),
                Self::load_i(w.add(Self::LANES * 12)),
            ];
            for (t, dots) in dots.iter_mut().enumerate() {
                dots[g] = Self::dot16::<BITS>(dots[g], w, x.add(t * 32));
            }
        }
    }
    unsafe fn prefetch(p: *const u8);
}

/// `e^x`, relative error about 1e-7; below -87 as at -87.
#[inline(always)]
pub(crate) unsafe fn exp<S: Simd>(x: S::F) -> S::F {
    let x = S::min(S::max(x, S::splat(-87.0)), S::splat(88.0));
    let n = S::round(S::mul(x, S::splat(std::f32::consts::LOG2_E)));
    // The logarithm of 2 in two parts, so that the remainder is exact.
    let r = S::fma(n, S::splat(-0.693_145_75), x);
    let r = S::fma(n, S::splat(-1.428_606_8e-6), r);
    let mut p = S::splat(1.0 / 720.0);
    p = S::fma(p, r, S::splat(1.0 / 120.0));
    p = S::fma(p, r, S::splat(1.0 / 24.0));
    p = S::fma(p, r, S::splat(1.0 / 6.0));
    p = S::fma(p, r, S::splat(0.5));
    p = S::fma(p, r, S::splat(1.0));
    p = S::fma(p, r, S::splat(1.0));
    S::mul(p, S::exp2_whole(n))
}
