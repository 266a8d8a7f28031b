//! Floats, and the blocks of 32 values with one scale: `Q4_0`, `Q4_1`, `Q5_0`, `Q5_1`, `Q8_0`.
//!
//! Every function takes whole blocks; [`super::dequantize`] and [`super::quantize`] check that.

use half::{bf16, f16};

/// Reads the f16 at `at`.
pub(super) fn half_at(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

/// Writes a f16 at `at`.
pub(super) fn put_half(block: &mut [u8], at: usize, value: f32) {
    block[at..at + 2].copy_from_slice(&f16::from_f32(value).to_le_bytes());
}

pub(super) fn f32_to_f32(data: &[u8], values: &mut [f32]) {
    for (value, bytes) in values.iter_mut().zip(data.as_chunks::<4>().0) {
        *value = f32::from_le_bytes(*bytes);
    }
}

pub(super) fn f16_to_f32(data: &[u8], values: &mut [f32]) {
    for (value, bytes) in values.iter_mut().zip(data.as_chunks::<2>().0) {
        *value = f16::from_le_bytes(*bytes).to_f32();
    }
}

pub(super) fn bf16_to_f32(data: &[u8], values: &mut [f32]) {
    for (value, bytes) in values.iter_mut().zip(data.as_chunks::<2>().0) {
        *value = bf16::from_le_bytes(*bytes).to_f32();
    }
}

pub(super) fn f64_to_f32(data: &[u8], values: &mut [f32]) {
    for (value, bytes) in values.iter_mut().zip(data.as_chunks::<8>().0) {
        *value = f64::from_le_bytes(*bytes) as f32;
    }
}

pub(super) fn f32_from_f32(values: &[f32], data: &mut [u8]) {
    for (value, bytes) in values.iter().zip(data.as_chunks_mut::<4>().0) {
        *bytes = value.to_le_bytes();
    }
}

pub(super) fn f16_from_f32(values: &[f32], data: &mut [u8]) {
    for (value, bytes) in values.iter().zip(data.as_chunks_mut::<2>().0) {
        *bytes = f16::from_f32(*value).to_le_bytes();
    }
}

pub(super) fn bf16_from_f32(values: &[f32], data: &mut [u8]) {
    for (value, bytes) in values.iter().zip(data.as_chunks_mut::<2>().0) {
        *bytes = bf16::from_f32(*value).to_le_bytes();
    }
}

pub(super) fn dequantize_q4_0(data: &[u8], values: &mut [f32]) {
    for (block, out) in data.as_chunks::<18>().0.iter().zip(values.as_chunks_mut::<32>().0) {
        let scale = half_at(block, 0);
        for (i, byte) in block[2..].iter().enumerate() {
            out[i] = (f32::from(byte & 15) - 8.0) * scale;
            out[i + 16] = (f32::from(byte >> 4) - 8.0) * scale;
        }
    }
}

pub(super) fn dequantize_q4_1(data: &[u8], values: &mut [f32]) {
    for (block, out) in data.as_chunks::<20>().0.iter().zip(values.as_chunks_mut::<32>().0) {
        let (scale, min) = (half_at(block, 0), half_at(block, 2));
        for (i, byte) in block[4..].iter().enumerate() {
            out[i] = f32::from(byte & 15) * scale + min;
            out[i + 16] = f32::from(byte >> 4) * scale + min;
        }
    }
}

/// The two five-bit numbers of byte `i`: low nibbles in `nibbles`, fifth bits in `high`.
fn five_bits(nibble_pair: u8, high: u32, i: usize) -> (f32, f32) {
    let low_high = ((high >> i) & 1) << 4;
    let high_high = ((high >> (i + 16)) & 1) << 4;
    let low = u32::from(nibble_pair & 15) | low_high;
    let high = u32::from(nibble_pair >> 4) | high_high;
    (low as f32, high as f32)
}

pub(super) fn dequantize_q5_0(data: &[u8], values: &mut [f32]) {
    for (block, out) in data.as_chunks::<22>().0.iter().zip(values.as_chunks_mut::<32>().0) {
        let scale = half_at(block, 0);
        let high = u32::from_le_bytes([block[2], block[3], block[4], block[5]]);
        for (i, byte) in block[6..].iter().enumerate() {
            let (a, b) = five_bits(*byte, high, i);
            out[i] = (a - 16.0) * scale;
            out[i + 16] = (b - 16.0) * scale;
        }
    }
}

pub(super) fn dequantize_q5_1(data: &[u8], values: &mut [f32]) {
    for (block, out) in data.as_chunks::<24>().0.iter().zip(values.as_chunks_mut::<32>().0) {
        let (scale, min) = (half_at(block, 0), half_at(block, 2));
        let high = u32::from_le_bytes([block[4], block[5], block[6], block[7]]);
        for (i, byte) in block[8..].iter().enumerate() {
            let (a, b) = five_bits(*byte, high, i);
            out[i] = a * scale + min;
            out[i + 16] = b * scale + min;
        }
    }
}

pub(super) fn dequantize_q8_0(data: &[u8], values: &mut [f32]) {
    for (block, out) in data.as_chunks::<34>().0.iter().zip(values.as_chunks_mut::<32>().0) {
        let scale = half_at(block, 0);
        for (value, byte) in out.iter_mut().zip(&block[2..]) {
            *value = f32::from(byte.cast_signed()) * scale;
        }
    }
}

/// The value of largest magnitude with its sign; the first of equals, as ggml has it.
pub(super) fn extreme(values: &[f32]) -> f32 {
    let mut found = 0.0f32;
    for value in values {
        if value.abs() > found.abs() {
            found = *value;
        }
    }
    found
}

pub(super) fn min_max(values: &[f32]) -> (f32, f32) {
    values.iter().fold((f32::MAX, f32::MIN), |(low, high), v| (low.min(*v), high.max(*v)))
}

/// `1 / x`, or 0 for 0.
pub(super) fn inverse(x: f32) -> f32 {
    if x == 0.0 { 0.0 } else { 1.0 / x }
}

/// Truncates and clamps to `0..=max`; what is not a number becomes 0.
fn clamp_level(x: f32, max: u8) -> u8 {
    (x as u8).min(max)
}

pub(super) fn quantize_q4_0(values: &[f32], data: &mut [u8]) {
    for (x, block) in values.as_chunks::<32>().0.iter().zip(data.as_chunks_mut::<18>().0) {
        let scale = extreme(x) / -8.0;
        let inverse = inverse(scale);
        put_half(block, 0, scale);
        for i in 0..16 {
            let low = clamp_level(x[i] * inverse + 8.5, 15);
            let high = clamp_level(x[i + 16] * inverse + 8.5, 15);
            block[2 + i] = low | (high << 4);
        }
    }
}

pub(super) fn quantize_q4_1(values: &[f32], data: &mut [u8]) {
    for (x, block) in values.as_chunks::<32>().0.iter().zip(data.as_chunks_mut::<20>().0) {
        let (min, max) = min_max(x);
        let scale = (max - min) / 15.0;
        let inverse = inverse(scale);
        put_half(block, 0, scale);
        put_half(block, 2, min);
        for i in 0..16 {
            let low = clamp_level((x[i] - min) * inverse + 0.5, 15);
            let high = clamp_level((x[i + 16] - min) * inverse + 0.5, 15);
            block[4 + i] = low | (high << 4);
        }
    }
}

/// Stores 32 five-bit levels: low nibbles from `at + 4`, fifth bits as a u32 at `at`.
fn put_five_bits(levels: &[u8; 32], block: &mut [u8], at: usize) {
    let mut high = 0u32;
    for i in 0..16 {
        block[at + 4 + i] = (levels[i] & 15) | ((levels[i + 16] & 15) << 4);
        high |= u32::from(levels[i] >> 4) << i;
        high |= u32::from(levels[i + 16] >> 4) << (i + 16);
    }
    block[at..at + 4].copy_from_slice(&high.to_le_bytes());
}

pub(super) fn quantize_q5_0(values: &[f32], data: &mut [u8]) {
    for (x, block) in values.as_chunks::<32>().0.iter().zip(data.as_chunks_mut::<22>().0) {
        let scale = extreme(x) / -16.0;
        let inverse = inverse(scale);
        put_half(block, 0, scale);
        let levels = x.map(|value| clamp_level(value * inverse + 16.5, 31));
        put_five_bits(&levels, block, 2);
    }
}

pub(super) fn quantize_q5_1(values: &[f32], data: &mut [u8]) {
    for (x, block) in values.as_chunks::<32>().0.iter().zip(data.as_chunks_mut::<24>().0) {
        let (min, max) = min_max(x);
        let scale = (max - min) / 31.0;
        let inverse = inverse(scale);
        put_half(block, 0, scale);
        put_half(block, 2, min);
        let levels = x.map(|value| clamp_level((value - min) * inverse + 0.5, 31));
        put_five_bits(&levels, block, 4);
    }
}

pub(super) fn quantize_q8_0(values: &[f32], data: &mut [u8]) {
    for (x, block) in values.as_chunks::<32>().0.iter().zip(data.as_chunks_mut::<34>().0) {
        let scale = extreme(x).abs() / 127.0;
        let inverse = inverse(scale);
        put_half(block, 0, scale);
        for (byte, value) in block[2..].iter_mut().zip(x) {
            *byte = ((value * inverse).round() as i8).cast_unsigned();
        }
    }
}
