//! Reading the super-blocks of 256 values: `Q2_K` to `Q6_K`, `Q8_K`.
//!
//! A super-block holds groups of 16 or 32 values; each group has a small integer scale (and, in
//! `Q2_K`, `Q4_K` and `Q5_K`, a small integer minimum), multiplied by the block's f16 scale.

use super::simple::half_at;

/// Scale and minimum of group `group` (0 to 7) out of the 12 bytes of `Q4_K` and `Q5_K`: eight
/// 6-bit scales and eight 6-bit minima, the upper bits of the last four packed into the first.
pub(super) fn scale_min_k4(packed: &[u8], group: usize) -> (u8, u8) {
    if group < 4 {
        (packed[group] & 63, packed[group + 4] & 63)
    } else {
        let scale = (packed[group + 4] & 15) | ((packed[group - 4] >> 6) << 4);
        let min = (packed[group + 4] >> 4) | ((packed[group] >> 6) << 4);
        (scale, min)
    }
}

/// The 6-bit scale of group `group` (0 to 15) out of the 12 bytes of `Q3_K`, less its bias.
fn scale_q3(packed: &[u8], group: usize) -> i8 {
    let low = if group < 8 { packed[group] & 15 } else { packed[group - 8] >> 4 };
    let high = (packed[8 + group % 4] >> (2 * (group / 4))) & 3;
    (low | (high << 4)).cast_signed() - 32
}

pub(super) fn dequantize_q2_k(data: &[u8], values: &mut [f32]) {
    for (block, out) in data.as_chunks::<84>().0.iter().zip(values.as_chunks_mut::<256>().0) {
        let (scales, levels) = (&block[..16], &block[16..80]);
        let (scale, min) = (half_at(block, 80), half_at(block, 82));
        for (group, out) in out.as_chunks_mut::<16>().0.iter_mut().enumerate() {
            let step = scale * f32::from(scales[group] & 15);
            let low = min * f32::from(scales[group] >> 4);
            let (from, shift) = (group / 8 * 32 + group % 2 * 16, group % 8 / 2 * 2);
            for (value, byte) in out.iter_mut().zip(&levels[from..]) {
                *value = step * f32::from((byte >> shift) & 3) - low;
            }
        }
    }
}

pub(super) fn dequantize_q3_k(data: &[u8], values: &mut [f32]) {
    for (block, out) in data.as_chunks::<110>().0.iter().zip(values.as_chunks_mut::<256>().0) {
        let (high, levels, scales) = (&block[..32], &block[32..96], &block[96..108]);
        let scale = half_at(block, 108);
        for (group, out) in out.as_chunks_mut::<16>().0.iter_mut().enumerate() {
            let step = scale * f32::from(scale_q3(scales, group));
            let (half, shift) = (group % 2 * 16, group % 8 / 2 * 2);
            let from = group / 8 * 32 + half;
            for (i, value) in out.iter_mut().enumerate() {
                let low = ((levels[from + i] >> shift) & 3).cast_signed();
                let bias = if (high[half + i] >> (group / 2)) & 1 == 1 { 0 } else { 4 };
                *value = step * f32::from(low - bias);
            }
        }
    }
}

pub(super) fn dequantize_q4_k(data: &[u8], values: &mut [f32]) {
    for (block, out) in data.as_chunks::<144>().0.iter().zip(values.as_chunks_mut::<256>().0) {
        let (scale, min) = (half_at(block, 0), half_at(block, 2));
        let (packed, levels) = (&block[4..16], &block[16..]);
        for (group, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
            let (group_scale, group_min) = scale_min_k4(packed, group);
            let (step, low) = (scale * f32::from(group_scale), min * f32::from(group_min));
            for (value, byte) in out.iter_mut().zip(&levels[group / 2 * 32..]) {
                *value = step * f32::from((byte >> (group % 2 * 4)) & 15) - low;
            }
        }
    }
}

pub(super) fn dequantize_q5_k(data: &[u8], values: &mut [f32]) {
    for (block, out) in data.as_chunks::<176>().0.iter().zip(values.as_chunks_mut::<256>().0) {
        let (scale, min) = (half_at(block, 0), half_at(block, 2));
        let (packed, high, levels) = (&block[4..16], &block[16..48], &block[48..]);
        for (group, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
            let (group_scale, group_min) = scale_min_k4(packed, group);
            let (step, low) = (scale * f32::from(group_scale), min * f32::from(group_min));
            for (i, value) in out.iter_mut().enumerate() {
                let nibble = (levels[group / 2 * 32 + i] >> (group % 2 * 4)) & 15;
                let fifth = (high[i] >> group) & 1;
                *value = step * f32::from(nibble | (fifth << 4)) - low;
            }
        }
    }
}

pub(super) fn dequantize_q6_k(data: &[u8], values: &mut [f32]) {
    for (block, out) in data.as_chunks::<210>().0.iter().zip(values.as_chunks_mut::<256>().0) {
        let (low, high, scales) = (&block[..128], &block[128..192], &block[192..208]);
        let scale = half_at(block, 208);
        for (group, out) in out.as_chunks_mut::<16>().0.iter_mut().enumerate() {
            let step = scale * f32::from(scales[group].cast_signed());
            let (half, quarter, from) = (group / 8, group % 8 / 2, group % 2 * 16);
            for (i, value) in out.iter_mut().enumerate() {
                let nibble = low[half * 64 + quarter % 2 * 32 + from + i] >> (quarter / 2 * 4);
                let upper = high[half * 32 + from + i] >> (quarter * 2);
                let level = ((nibble & 15) | ((upper & 3) << 4)).cast_signed() - 32;
                *value = step * f32::from(level);
            }
        }
    }
}

pub(super) fn dequantize_q8_k(data: &[u8], values: &mut [f32]) {
    for (block, out) in data.as_chunks::<292>().0.iter().zip(values.as_chunks_mut::<256>().0) {
        let scale = f32::from_le_bytes([block[0], block[1], block[2], block[3]]);
        for (value, byte) in out.iter_mut().zip(&block[4..260]) {
            *value = scale * f32::from(byte.cast_signed());
        }
    }
}
