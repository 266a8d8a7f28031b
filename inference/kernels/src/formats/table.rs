//! Types whose four bits choose from a table: `IQ4_NL`, `IQ4_XS`, `MXFP4`.

use super::simple::{extreme, half_at, inverse, put_half};

/// The sixteen levels of `IQ4_NL` and `IQ4_XS`, denser around zero.
const NON_LINEAR: [i8; 16] =
    [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

/// Twice the sixteen values of a 4-bit float with two bits of exponent and one of mantissa.
const FLOAT4_DOUBLED: [i8; 16] = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12];

pub(super) fn dequantize_iq4_nl(data: &[u8], values: &mut [f32]) {
    for (block, out) in data.as_chunks::<18>().0.iter().zip(values.as_chunks_mut::<32>().0) {
        look_up(&NON_LINEAR, half_at(block, 0), &block[2..], out);
    }
}

pub(super) fn dequantize_iq4_xs(data: &[u8], values: &mut [f32]) {
    for (block, out) in data.as_chunks::<136>().0.iter().zip(values.as_chunks_mut::<256>().0) {
        let scale = half_at(block, 0);
        let scales_high = u16::from_le_bytes([block[2], block[3]]);
        let scales_low = &block[4..8];
        for (group, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
            let low = u16::from((scales_low[group / 2] >> (group % 2 * 4)) & 15);
            let high = (scales_high >> (2 * group)) & 3;
            let step = scale * (f32::from(low | (high << 4)) - 32.0);
            look_up(&NON_LINEAR, step, &block[8 + group * 16..24 + group * 16], out);
        }
    }
}

pub(super) fn dequantize_mxfp4(data: &[u8], values: &mut [f32]) {
    for (block, out) in data.as_chunks::<17>().0.iter().zip(values.as_chunks_mut::<32>().0) {
        look_up(&FLOAT4_DOUBLED, half_power(block[0]), &block[1..], out);
    }
}

/// Half of the power of two that an 8-bit exponent stands for (the table holds doubled values).
fn half_power(exponent: u8) -> f32 {
    match exponent {
        0 | 1 => f32::from_bits(0x0020_0000 << exponent),
        _ => f32::from_bits((u32::from(exponent) - 1) << 23),
    }
}

/// 16 bytes: low nibbles are the first 16 values, high nibbles the others.
fn look_up(table: &[i8; 16], scale: f32, nibbles: &[u8], out: &mut [f32; 32]) {
    for (i, byte) in nibbles.iter().enumerate() {
        out[i] = scale * f32::from(table[usize::from(byte & 15)]);
        out[i + 16] = scale * f32::from(table[usize::from(byte >> 4)]);
    }
}

/// Index of the table's value that is nearest to `x`.
fn nearest(table: &[i8; 16], x: f32) -> u8 {
    let mut best = (0u8, f32::INFINITY);
    for (index, level) in (0u8..).zip(table) {
        let distance = (x - f32::from(*level)).abs();
        if distance < best.1 {
            best = (index, distance);
        }
    }
    best.0
}

/// The scale that fits the values best through the non-linear table: tries a range of scales
/// around the one that maps the largest value to the table's end, each improved by least squares
/// weighted with the values' squares.
fn fit_non_linear(x: &[f32; 32]) -> f32 {
    let largest = extreme(x);
    if !(largest.abs() > 1e-15 && largest.is_finite()) {
        return 0.0;
    }
    let mut best = (0.0, 0.0);
    for attempt in -7i8..=7 {
        let inverse = (f32::from(attempt) + f32::from(NON_LINEAR[0])) / largest;
        let (mut xq, mut qq) = (0.0, 0.0);
        for value in x {
            let level = f32::from(NON_LINEAR[usize::from(nearest(&NON_LINEAR, inverse * value))]);
            let weight = value * value;
            xq += weight * level * value;
            qq += weight * level * level;
        }
        if qq > 0.0 && xq * xq / qq > best.1 {
            best = (xq / qq, xq * xq / qq);
        }
    }
    best.0
}

pub(super) fn quantize_iq4_nl(values: &[f32], data: &mut [u8]) {
    for (x, block) in values.as_chunks::<32>().0.iter().zip(data.as_chunks_mut::<18>().0) {
        let scale = fit_non_linear(x);
        put_half(block, 0, scale);
        let inverse = inverse(scale);
        for i in 0..16 {
            let low = nearest(&NON_LINEAR, x[i] * inverse);
            block[2 + i] = low | (nearest(&NON_LINEAR, x[i + 16] * inverse) << 4);
        }
    }
}

pub(super) fn quantize_mxfp4(values: &[f32], data: &mut [u8]) {
    for (x, block) in values.as_chunks::<32>().0.iter().zip(data.as_chunks_mut::<17>().0) {
        // The largest 4-bit float is 6 = 1.5 * 2^2, so the shared exponent is two less than the
        // largest value's.
        let exponent = extreme(x).abs().log2().floor() + 125.0;
        let exponent = exponent.clamp(0.0, 254.0) as u8; // of NaN: 0
        let inverse = 1.0 / half_power(exponent);
        block[0] = exponent;
        for i in 0..16 {
            let low = nearest(&FLOAT4_DOUBLED, x[i] * inverse);
            block[1 + i] = low | (nearest(&FLOAT4_DOUBLED, x[i + 16] * inverse) << 4);
        }
    }
}
