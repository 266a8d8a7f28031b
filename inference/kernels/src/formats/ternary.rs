//! Types of the values -1, 0, 1 times a scale: `TQ1_0`, `TQ2_0` (one scale per 256 values) and
//! Microsoft's `I2_S` (one scale per tensor).

use super::I2_S_TAIL_BYTES;
use super::simple::{extreme, half_at, inverse, put_half};

/// Powers of three, which move a base-3 digit to the front of a byte.
const POWERS: [u8; 5] = [1, 3, 9, 27, 81];

/// Where `TQ1_0` keeps its digits: (first byte, bytes, digits per byte), in the values' order.
const TQ1_0_RUNS: [(usize, usize, usize); 3] = [(0, 32, 5), (32, 16, 5), (48, 4, 4)];

/// The base-3 digit `digit` of a byte that holds five of them as a fraction of 256.
fn digit_of(byte: u8, digit: usize) -> u8 {
    let rest = byte.wrapping_mul(POWERS[digit]);
    ((u16::from(rest) * 3) >> 8) as u8
}

pub(super) fn dequantize_tq1_0(data: &[u8], values: &mut [f32]) {
    for (block, out) in data.as_chunks::<54>().0.iter().zip(values.as_chunks_mut::<256>().0) {
        let scale = half_at(block, 52);
        let mut out = out.iter_mut();
        for (first, len, digits) in TQ1_0_RUNS {
            for digit in 0..digits {
                for (byte, value) in block[first..first + len].iter().zip(&mut out) {
                    *value = scale * (f32::from(digit_of(*byte, digit)) - 1.0);
                }
            }
        }
    }
}

pub(super) fn dequantize_tq2_0(data: &[u8], values: &mut [f32]) {
    for (block, out) in data.as_chunks::<66>().0.iter().zip(values.as_chunks_mut::<256>().0) {
        let scale = half_at(block, 64);
        for (group, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
            for (value, byte) in out.iter_mut().zip(&block[group / 4 * 32..]) {
                *value = scale * (f32::from((byte >> (group % 4 * 2)) & 3) - 1.0);
            }
        }
    }
}

/// Groups of 128 values in 32 bytes, the first 32 values in the upper two bits; behind all of them
/// the scale.
pub(super) fn dequantize_i2_s(data: &[u8], values: &mut [f32]) {
    let (levels, tail) = data.split_at(data.len() - I2_S_TAIL_BYTES);
    let scale = f32::from_le_bytes([tail[0], tail[1], tail[2], tail[3]]);
    for (bytes, out) in levels.as_chunks::<32>().0.iter().zip(values.as_chunks_mut::<128>().0) {
        for (group, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
            for (value, byte) in out.iter_mut().zip(bytes) {
                *value = scale * (f32::from((byte >> (6 - 2 * group)) & 3) - 1.0);
            }
        }
    }
}

/// 0, 1 or 2 for the nearest of -1, 0, 1.
fn level(x: f32) -> u8 {
    ((x.round() as i8).clamp(-1, 1) + 1).cast_unsigned()
}

pub(super) fn quantize_tq1_0(values: &[f32], data: &mut [u8]) {
    for (x, block) in values.as_chunks::<256>().0.iter().zip(data.as_chunks_mut::<54>().0) {
        let scale = extreme(x).abs();
        let inverse = inverse(scale);
        let mut start = 0;
        for (first, len, digits) in TQ1_0_RUNS {
            for i in 0..len {
                let mut number = 0u16;
                for digit in 0..5 {
                    // A byte with four digits has a fifth that is 0 and never read.
                    let value = x.get(start + digit * len + i).filter(|_| digit < digits);
                    number = number * 3 + value.map_or(0, |v| u16::from(level(v * inverse)));
                }
                // As a fraction of 256, rounded up so that truncation gives the digits back.
                block[first + i] = ((number * 256).div_ceil(243)) as u8;
            }
            start += len * digits;
        }
        put_half(block, 52, scale);
    }
}

pub(super) fn quantize_tq2_0(values: &[f32], data: &mut [u8]) {
    for (x, block) in values.as_chunks::<256>().0.iter().zip(data.as_chunks_mut::<66>().0) {
        let scale = extreme(x).abs();
        let inverse = inverse(scale);
        for (group, x) in x.as_chunks::<32>().0.iter().enumerate() {
            for (byte, value) in block[group / 4 * 32..].iter_mut().zip(x) {
                *byte |= level(value * inverse) << (group % 4 * 2);
            }
        }
        put_half(block, 64, scale);
    }
}

pub(super) fn quantize_i2_s(values: &[f32], data: &mut [u8]) {
    let (levels, tail) = data.split_at_mut(data.len() - I2_S_TAIL_BYTES);
    let scale = extreme(values).abs();
    for (bytes, x) in levels.as_chunks_mut::<32>().0.iter_mut().zip(values.as_chunks::<128>().0) {
        for (group, x) in x.as_chunks::<32>().0.iter().enumerate() {
            for (byte, value) in bytes.iter_mut().zip(x) {
                // As bitnet.cpp does: the sign of everything that is not nearly zero.
                let sign = if value.abs() < 1e-6 { 0.0 } else { value.signum() };
                *byte |= level(sign) << (6 - 2 * group);
            }
        }
    }
    tail[..4].copy_from_slice(&scale.to_le_bytes());
}
