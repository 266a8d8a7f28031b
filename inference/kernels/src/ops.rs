//! Row operations: norms, activation functions, rotation, quantisation of activations.

#![allow(clippy::needless_range_loop)] // Indices name registers in several arrays at once.
#![allow(unsafe_op_in_unsafe_fn)] // The kernels follow the contract of `Simd`.

use crate::cpu::Isa;
use crate::dot::record_bytes;
use crate::simd::{Kernel, Simd, exp, run};

/// The activation function of a gated feed-forward block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gate {
    /// `x * sigmoid(x)`.
    Silu,
    /// The tanh approximation of GELU.
    GeluTanh,
    /// `max(x, 0)` squared.
    ReluSquared,
}

/// `out = x / rms(x) * weight`; `epsilon` is added to the mean square.
///
/// # Panics
/// When the lengths differ.
pub fn rms_norm(isa: Isa, x: &[f32], weight: &[f32], epsilon: f32, out: &mut [f32]) {
    assert!(x.len() == weight.len() && x.len() == out.len(), "lengths of a norm");
    // SAFETY: `isa` comes from detection; the lengths are equal.
    unsafe {
        run(
            isa,
            RmsNorm {
                x: x.as_ptr(),
                weight: weight.as_ptr(),
                out: out.as_mut_ptr(),
                len: x.len(),
                epsilon,
            },
        )
    }
}

/// [`rms_norm`] in place.
///
/// # Panics
/// When the lengths differ.
pub fn rms_norm_in_place(isa: Isa, x: &mut [f32], weight: &[f32], epsilon: f32) {
    assert_eq!(x.len(), weight.len(), "lengths of a norm");
    let out = x.as_mut_ptr();
    // SAFETY: as above; the kernel reads each value before it writes it.
    unsafe { run(isa, RmsNorm { x: out, weight: weight.as_ptr(), out, len: x.len(), epsilon }) }
}

struct RmsNorm {
    x: *const f32,
    weight: *const f32,
    out: *mut f32,
    len: usize,
    epsilon: f32,
}

impl Kernel for RmsNorm {
    type Output = ();
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let whole = self.len / S::LANES * S::LANES;
        let mut squares = [S::zero(); 2];
        let mut i = 0;
        while i < whole {
            let v = S::load(self.x.add(i));
            let which = i / S::LANES % 2;
            squares[which] = S::fma(v, v, squares[which]);
            i += S::LANES;
        }
        let mut sum = S::sum(S::add(squares[0], squares[1]));
        for i in whole..self.len {
            sum += *self.x.add(i) * *self.x.add(i);
        }
        let scale = 1.0 / (sum / self.len as f32 + self.epsilon).sqrt();
        let factor = S::splat(scale);
        let mut i = 0;
        while i < whole {
            let v = S::mul(S::mul(S::load(self.x.add(i)), factor), S::load(self.weight.add(i)));
            S::store(self.out.add(i), v);
            i += S::LANES;
        }
        for i in whole..self.len {
            *self.out.add(i) = *self.x.add(i) * scale * *self.weight.add(i);
        }
    }
}

/// `x += y`.
///
/// # Panics
/// When the lengths differ.
pub fn add(isa: Isa, x: &mut [f32], y: &[f32]) {
    assert_eq!(x.len(), y.len(), "lengths of a sum");
    let len = x.len();
    // SAFETY: `isa` comes from detection; the lengths are equal.
    unsafe { run(isa, Add { x: x.as_mut_ptr(), y: y.as_ptr(), len }) }
}

struct Add {
    x: *mut f32,
    y: *const f32,
    len: usize,
}

impl Kernel for Add {
    type Output = ();
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let mut i = 0;
        while i + S::LANES <= self.len {
            S::store(self.x.add(i), S::add(S::load(self.x.add(i)), S::load(self.y.add(i))));
            i += S::LANES;
        }
        while i < self.len {
            *self.x.add(i) += *self.y.add(i);
            i += 1;
        }
    }
}

/// `out = gate(g) * up`.
///
/// # Panics
/// When the lengths differ.
pub fn gated(isa: Isa, gate: Gate, g: &[f32], up: &[f32], out: &mut [f32]) {
    assert!(g.len() == up.len() && g.len() == out.len(), "lengths of a gate");
    let len = g.len();
    // SAFETY: `isa` comes from detection; the lengths are equal.
    unsafe { run(isa, Gated { gate, g: g.as_ptr(), up: up.as_ptr(), out: out.as_mut_ptr(), len }) }
}

struct Gated {
    gate: Gate,
    g: *const f32,
    up: *const f32,
    out: *mut f32,
    len: usize,
}

impl Kernel for Gated {
    type Output = ();
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let mut i = 0;
        while i + S::LANES <= self.len {
            let v = gate_one::<S>(self.gate, S::load(self.g.add(i)));
            S::store(self.out.add(i), S::mul(v, S::load(self.up.add(i))));
            i += S::LANES;
        }
        if i < self.len {
            // The rest through a register's worth of padding.
            let mut padded = [[0.0f32; 16]; 2];
            let rest = self.len - i;
            std::ptr::copy_nonoverlapping(self.g.add(i), padded[0].as_mut_ptr(), rest);
            std::ptr::copy_nonoverlapping(self.up.add(i), padded[1].as_mut_ptr(), rest);
            let v = gate_one::<S>(self.gate, S::load(padded[0].as_ptr()));
            let product = S::mul(v, S::load(padded[1].as_ptr()));
            S::store(padded[0].as_mut_ptr(), product);
            std::ptr::copy_nonoverlapping(padded[0].as_ptr(), self.out.add(i), rest);
        }
    }
}

/// Gates whole registers of a tile: `out[t * out_stride] = gate(g[t * stride]) * up[t * stride]`.
pub(crate) struct GatedTile {
    pub(crate) gate: Gate,
    pub(crate) g: *const f32,
    pub(crate) up: *const f32,
    pub(crate) stride: usize,
    pub(crate) tokens: usize,
    pub(crate) out: *mut f32,
    pub(crate) out_stride: usize,
}

impl Kernel for GatedTile {
    type Output = ();
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        for t in 0..self.tokens {
            let v = gate_one::<S>(self.gate, S::load(self.g.add(t * self.stride)));
            let v = S::mul(v, S::load(self.up.add(t * self.stride)));
            S::store(self.out.add(t * self.out_stride), v);
        }
    }
}

#[inline(always)]
unsafe fn gate_one<S: Simd>(gate: Gate, x: S::F) -> S::F {
    let one = S::splat(1.0);
    match gate {
        Gate::Silu => S::div(x, S::add(one, exp::<S>(S::sub(S::zero(), x)))),
        Gate::ReluSquared => {
            let positive = S::max(x, S::zero());
            S::mul(positive, positive)
        }
        Gate::GeluTanh => {
            // x * (1 + tanh(u)) / 2 = x / (1 + e^(-2u)), u = sqrt(2 / pi) * (x + 0.044715 x^3).
            let cubic = S::fma(S::mul(S::mul(x, x), x), S::splat(0.044_715), x);
            let exponent = S::mul(cubic, S::splat(-1.595_769));
            S::div(x, S::add(one, exp::<S>(exponent)))
        }
    }
}

/// Which dimensions of a head are rotated together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RotaryKind {
    /// `2i` with `2i + 1`.
    Adjacent,
    /// `i` with `i + dims / 2`.
    Halves,
}

/// Rotates the first `2 * cos.len()` dimensions of a head.
///
/// # Panics
/// When the tables are longer than half the head or differ in length.
pub fn rotate(isa: Isa, kind: RotaryKind, head: &mut [f32], cos: &[f32], sin: &[f32]) {
    let pairs = cos.len();
    assert!(pairs == sin.len() && pairs * 2 <= head.len(), "lengths of a rotation");
    match kind {
        RotaryKind::Adjacent => {
            for ((pair, cos), sin) in head.as_chunks_mut::<2>().0.iter_mut().zip(cos).zip(sin) {
                let [a, b] = *pair;
                *pair = [a * cos - b * sin, a * sin + b * cos];
            }
        }
        RotaryKind::Halves => {
            let kernel = RotateHalves {
                head: head.as_mut_ptr(),
                cos: cos.as_ptr(),
                sin: sin.as_ptr(),
                pairs,
            };
            // SAFETY: `isa` comes from detection; the head holds twice the pairs.
            unsafe { run(isa, kernel) }
        }
    }
}

struct RotateHalves {
    head: *mut f32,
    cos: *const f32,
    sin: *const f32,
    pairs: usize,
}

impl Kernel for RotateHalves {
    type Output = ();
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let (first, second) = (self.head, self.head.add(self.pairs));
        let mut i = 0;
        while i + S::LANES <= self.pairs {
            let (a, b) = (S::load(first.add(i)), S::load(second.add(i)));
            let (cos, sin) = (S::load(self.cos.add(i)), S::load(self.sin.add(i)));
            S::store(first.add(i), S::sub(S::mul(a, cos), S::mul(b, sin)));
            S::store(second.add(i), S::add(S::mul(a, sin), S::mul(b, cos)));
            i += S::LANES;
        }
        while i < self.pairs {
            let (a, b) = (*first.add(i), *second.add(i));
            let (cos, sin) = (*self.cos.add(i), *self.sin.add(i));
            *first.add(i) = a * cos - b * sin;
            *second.add(i) = a * sin + b * cos;
            i += 1;
        }
    }
}

/// The smallest power of two that brings `largest` to 127 at most, and its inverse. Between
/// `2^-60` and `2^60`, so that a product with a weight's scale stays in a float's range.
fn power_of_two(largest: f32) -> (f32, f32) {
    let up = (largest / 127.0).to_bits().saturating_add(0x007f_ffff) >> 23;
    let exponent = up.clamp(127 - 60, 127 + 60);
    (f32::from_bits(exponent << 23), f32::from_bits((254 - exponent) << 23))
}

/// Quantises one row of activations into its place in a tile of `tokens` records per cell. Scales
/// are powers of two: that costs half a bit of the codes, and saves the panels a multiplication
/// per output and cell.
pub(crate) struct Quantise {
    pub(crate) x: *const f32,
    /// Whole cells of 32.
    pub(crate) cells: usize,
    /// The tile's records, and the tile's width.
    pub(crate) records: *mut u8,
    pub(crate) tokens: usize,
    /// Which of the tile's tokens this is.
    pub(crate) token: usize,
}

impl Kernel for Quantise {
    /// 0, or not a number where a value is not finite.
    type Output = f32;
    #[inline(always)]
    unsafe fn run<S: Simd>(self) -> f32 {
        let (n, t) = (self.tokens, self.token);
        let mut start = S::zero();
        for cell in 0..self.cells {
            let x = self.x.add(cell * 32);
            let record = self.records.add(cell * record_bytes(n));
            let mut largest = S::zero();
            let mut finite = S::zero();
            let mut i = 0;
            while i < 32 {
                let v = S::load(x.add(i));
                largest = S::max(largest, S::abs(v));
                finite = S::fma(v, S::zero(), finite);
                i += S::LANES;
            }
            start = S::add(start, finite);
            let (scale, inverse) = power_of_two(S::largest(largest));
            let mut sums = [0i32; 2];
            for half in 0..2 {
                let mut sum = S::zero();
                let mut i = 0;
                while i < 16 {
                    let v = S::mul(S::load(x.add(half * 16 + i)), S::splat(inverse));
                    let v = S::round(S::min(S::max(v, S::splat(-127.0)), S::splat(127.0)));
                    S::store_i8(record.add(t * 32 + half * 16 + i).cast(), v);
                    sum = S::add(sum, v);
                    i += S::LANES;
                }
                sums[half] = -(S::sum(sum) as i32);
            }
            let minus = sums[0] + sums[1];
            let put = |at: usize, bits: u32| {
                // SAFETY: within the token's record, by the contract of the kernel.
                unsafe { record.add(n * at + t * 4).cast::<u32>().write_unaligned(bits) }
            };
            put(32, scale.to_bits());
            put(36, (-scale * minus as f32).to_bits());
            put(40, minus as u32);
            put(44, sums[0] as u32);
            put(48, sums[1] as u32);
        }
        let start = S::sum(start);
        if start.is_nan() {
            // The codes hide it, so the scales say it.
            for cell in 0..self.cells {
                let scale = self.records.add(cell * record_bytes(n) + n * 32 + t * 4);
                scale.cast::<f32>().write_unaligned(f32::NAN);
            }
        }
        start
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(a: f32, b: f64) -> bool {
        (f64::from(a) - b).abs() <= 2e-6 * b.abs().max(1.0)
    }

    #[test]
    fn norms_agree_with_plain_arithmetic_on_every_instruction_set() {
        for isa in Isa::available() {
            for len in [1usize, 7, 16, 33, 160] {
                let x: Vec<f32> = (0..len).map(|i| (i as f32 * 0.7).sin() * 3.0).collect();
                let w: Vec<f32> = (0..len).map(|i| 1.0 + i as f32 * 0.01).collect();
                let mut out = vec![0.0; len];
                rms_norm(isa, &x, &w, 1e-6, &mut out);
                let square: f64 = x.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>() / len as f64;
                for i in 0..len {
                    let expected = f64::from(x[i]) / (square + 1e-6).sqrt() * f64::from(w[i]);
                    assert!(close(out[i], expected), "{isa:?} {len} {i}");
                }
                let mut in_place = x.clone();
                rms_norm_in_place(isa, &mut in_place, &w, 1e-6);
                assert_eq!(in_place, out);
            }
        }
    }

    #[test]
    fn gates_agree_with_their_definitions_on_every_instruction_set() {
        let g: Vec<f32> = (-50..51).map(|i| i as f32 * 0.37).collect();
        let up: Vec<f32> = g.iter().map(|v| v.cos()).collect();
        for isa in Isa::available() {
            for gate in [Gate::Silu, Gate::GeluTanh, Gate::ReluSquared] {
                let mut out = vec![0.0; g.len()];
                gated(isa, gate, &g, &up, &mut out);
                for i in 0..g.len() {
                    let x = f64::from(g[i]);
                    let value = match gate {
                        Gate::Silu => x / (1.0 + (-x).exp()),
                        Gate::ReluSquared => x.max(0.0).powi(2),
                        Gate::GeluTanh => {
                            let u =
                                (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x.powi(3));
                            0.5 * x * (1.0 + u.tanh())
                        }
                    };
                    assert!(close(out[i], value * f64::from(up[i])), "{isa:?} {gate:?} {x}");
                }
            }
        }
    }

    #[test]
    fn both_kinds_of_rotation_turn_pairs_by_the_angle() {
        let (cos, sin) = (vec![0.0, 1.0], vec![1.0, 0.0]);
        let mut head = vec![1.0, 2.0, 3.0, 4.0, 9.0];
        rotate(Isa::Scalar, RotaryKind::Adjacent, &mut head, &cos, &sin);
        assert_eq!(head, [-2.0, 1.0, 3.0, 4.0, 9.0]);
        for isa in Isa::available() {
            let mut head = vec![1.0, 2.0, 3.0, 4.0, 9.0];
            rotate(isa, RotaryKind::Halves, &mut head, &cos, &sin);
            assert_eq!(head, [-3.0, 2.0, 1.0, 4.0, 9.0]);
        }
    }
}
