//! Products with float weights, computed in 32-bit floats: outputs add their columns in order.

#![allow(clippy::needless_range_loop)] // Indices name registers in several arrays at once.
#![allow(unsafe_op_in_unsafe_fn)] // The kernels follow the contract of `Simd`.

use crate::pack::Kind;
use crate::simd::{Kernel, Simd};

/// The float types.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum FloatKind {
    F32,
    F16,
    Bf16,
}

impl FloatKind {
    pub(crate) fn of(kind: Kind) -> Self {
        match kind {
            Kind::F16 => Self::F16,
            Kind::Bf16 => Self::Bf16,
            _ => Self::F32,
        }
    }
}

/// One group (`[columns][lanes]`) with `T` tokens (`[columns][T]`).
pub(crate) struct FloatDirect<const T: usize> {
    pub(crate) kind: FloatKind,
    pub(crate) weights: *const u8,
    pub(crate) columns: usize,
    pub(crate) x: *const f32,
    pub(crate) out: *mut f32,
    pub(crate) stride: usize,
}

impl<const T: usize> Kernel for FloatDirect<T> {
    type Output = ();
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        match self.kind {
            FloatKind::F32 => self.columns_of::<S, 4>(),
            FloatKind::F16 => self.columns_of::<S, 2>(),
            FloatKind::Bf16 => self.columns_of::<S, 3>(),
        }
    }
}

impl<const T: usize> FloatDirect<T> {
    /// `TYPE`: 4 for f32, 2 for f16, 3 for bf16.
    #[inline(always)]
    unsafe fn columns_of<S: Simd, const TYPE: usize>(&self) {
        let bytes = if TYPE == 4 { 4 } else { 2 };
        let mut acc = [S::zero(); T];
        for column in 0..self.columns {
            let p = self.weights.add(column * S::LANES * bytes);
            S::prefetch(p.wrapping_add(8 << 10));
            let w = match TYPE {
                4 => S::load(p.cast()),
                2 => S::load_f16(p.cast()),
                _ => S::load_bf16(p.cast()),
            };
            let x = self.x.add(column * T);
            for (t, acc) in acc.iter_mut().enumerate() {
                *acc = S::fma(w, S::splat(*x.add(t)), *acc);
            }
        }
        for (t, acc) in acc.iter().enumerate() {
            S::store(self.out.add(t * self.stride), *acc);
        }
    }
}
