//! Writing the super-blocks of 256 values: `Q2_K` to `Q6_K`.
//!
//! A group's scale (and minimum) is searched around the obvious one: for a range of candidate
//! scales the values are rounded to levels, the best scale for these levels follows by weighted
//! least squares, and the candidate with the smallest error wins. Large values weigh more, since
//! they contribute more to a product.

use super::simple::{extreme, half_at, inverse, min_max, put_half};

/// `x` rounded and clamped to `0..=max`; what is not a number becomes 0.
fn level(x: f32, max: u8) -> u8 {
    (x.round_ties_even() as u8).min(max)
}

/// `x` rounded and clamped to `-levels..levels`.
fn signed_level(x: f32, levels: i8) -> i8 {
    (x.round_ties_even() as i8).clamp(-levels, levels - 1)
}

/// The scale under which `-levels..levels` fits `x` best, and 0 for a group of (nearly) zeros.
fn fit_symmetric(x: &[f32], levels: i8) -> f32 {
    let largest = extreme(x);
    if !(largest.abs() > 1e-15 && largest.is_finite()) {
        return 0.0;
    }
    let mut best = (0.0, 0.0);
    for attempt in -9i8..=9 {
        let inverse = -(f32::from(levels) + 0.1 * f32::from(attempt)) / largest;
        let (mut xl, mut ll) = (0.0, 0.0);
        for value in x {
            let level = f32::from(signed_level(inverse * value, levels));
            let weight = value * value;
            xl += weight * value * level;
            ll += weight * level * level;
        }
        if ll > 0.0 && xl * xl / ll > best.1 {
            best = (xl / ll, xl * xl / ll);
        }
    }
    best.0
}

/// Which candidates [`fit_affine`] tries, and by which error it judges.
struct Search {
    /// Highest level.
    level_max: u8,
    /// What is added to `level_max` for the first candidate.
    first: f32,
    /// Candidates, 0.1 apart.
    attempts: u8,
    /// Judge by the absolute difference instead of its square.
    absolute: bool,
}

/// Scale and minimum (as a number that is subtracted, never below 0) under which the levels
/// `0..=level_max` fit `x` best.
fn fit_affine(x: &[f32], weights: &[f32], search: &Search) -> (f32, f32) {
    let (min, max) = min_max(x);
    let min = min.min(0.0);
    let range = max - min;
    if !(range > 1e-15 && range.is_finite()) {
        return (0.0, if min.is_finite() { -min } else { 0.0 });
    }
    let top = f32::from(search.level_max);
    let mut best = (range / top, min);
    let mut best_error = affine_error(x, weights, search, top / range, min, best);
    for attempt in 0..=search.attempts {
        let inverse = (search.first + 0.1 * f32::from(attempt) + top) / range;
        let Some(candidate) = improve(x, weights, search.level_max, inverse, min) else { continue };
        let error = affine_error(x, weights, search, inverse, min, candidate);
        if error < best_error {
            (best, best_error) = (candidate, error);
        }
    }
    (best.0, -best.1)
}

/// The weighted least-squares scale and minimum for the levels that `inverse` and `min` give.
fn improve(
    x: &[f32],
    weights: &[f32],
    level_max: u8,
    inverse: f32,
    min: f32,
) -> Option<(f32, f32)> {
    let (mut sw, mut sx, mut sl, mut sll, mut sxl) = (0.0f32, 0.0f32, 0.0f32, 0.0f32, 0.0f32);
    for (value, weight) in x.iter().zip(weights) {
        let level = f32::from(level(inverse * (value - min), level_max));
        sw += weight;
        sx += weight * value;
        sl += weight * level;
        sll += weight * level * level;
        sxl += weight * level * value;
    }
    let determinant = sw * sll - sl * sl;
    if determinant <= 0.0 {
        return None;
    }
    let min = (sll * sx - sl * sxl) / determinant;
    if min > 0.0 {
        return Some((sxl / sll, 0.0)); // a minimum above zero cannot be stored
    }
    Some(((sw * sxl - sx * sl) / determinant, min))
}

/// The error of `candidate` (scale, minimum) with the levels that `inverse` and `min` give.
fn affine_error(
    x: &[f32],
    weights: &[f32],
    search: &Search,
    inverse: f32,
    min: f32,
    candidate: (f32, f32),
) -> f32 {
    let mut error = 0.0;
    for (value, weight) in x.iter().zip(weights) {
        let level = f32::from(level(inverse * (value - min), search.level_max));
        let difference = candidate.0 * level + candidate.1 - value;
        let size = if search.absolute { difference.abs() } else { difference * difference };
        error += weight * size;
    }
    error
}

/// Scales and minima of a super-block's groups, rounded to `integer_max` steps of a f16 each.
struct Groups<const N: usize> {
    scale: f32,
    min: f32,
    scales: [u8; N],
    mins: [u8; N],
}

/// Rounds what [`fit_affine`] found for each group, after the two f16 were rounded themselves.
fn round_groups<const N: usize>(fits: &[(f32, f32); N], integer_max: u8) -> Groups<N> {
    let largest = |pick: fn(&(f32, f32)) -> f32| fits.iter().map(pick).fold(0.0, f32::max);
    let round = |x: f32| half::f16::from_f32(x).to_f32();
    let (scale_max, min_max) = (largest(|fit| fit.0), largest(|fit| fit.1));
    let top = f32::from(integer_max);
    let (to_scale, to_min) = (top * inverse(scale_max), top * inverse(min_max));
    Groups {
        scale: round(scale_max / top),
        min: round(min_max / top),
        scales: fits.map(|fit| level(to_scale * fit.0, integer_max)),
        mins: fits.map(|fit| level(to_min * fit.1, integer_max)),
    }
}

impl<const N: usize> Groups<N> {
    /// Levels of one group's values under its rounded scale and minimum.
    fn level(&self, group: usize, x: f32, level_max: u8) -> u8 {
        let step = self.scale * f32::from(self.scales[group]);
        let low = self.min * f32::from(self.mins[group]);
        level((x + low) * inverse(step), level_max)
    }
}

pub(super) fn quantize_q2_k(values: &[f32], data: &mut [u8]) {
    const SEARCH: Search = Search { level_max: 3, first: -0.5, attempts: 15, absolute: true };
    for (x, block) in values.as_chunks::<256>().0.iter().zip(data.as_chunks_mut::<84>().0) {
        let mut fits = [(0.0, 0.0); 16];
        for (x, fit) in x.as_chunks::<16>().0.iter().zip(&mut fits) {
            *fit = fit_affine(x, &x.map(f32::abs), &SEARCH);
        }
        let groups = round_groups(&fits, 15);
        for (group, x) in x.as_chunks::<16>().0.iter().enumerate() {
            block[group] = groups.scales[group] | (groups.mins[group] << 4);
            let (from, shift) = (group / 8 * 32 + group % 2 * 16, group % 8 / 2 * 2);
            for (byte, value) in block[16 + from..80].iter_mut().zip(x) {
                *byte |= groups.level(group, *value, 3) << shift;
            }
        }
        put_half(block, 80, groups.scale);
        put_half(block, 82, groups.min);
    }
}

/// What `Q4_K` and `Q5_K` share: eight groups of 32, weighted by size plus the mean size.
fn fit_eight(x: &[f32; 256], search: &Search) -> Groups<8> {
    let mut fits = [(0.0, 0.0); 8];
    for (x, fit) in x.as_chunks::<32>().0.iter().zip(&mut fits) {
        let mean = (x.iter().map(|v| v * v).sum::<f32>() / 32.0).sqrt();
        *fit = fit_affine(x, &x.map(|v| mean + v.abs()), search);
    }
    round_groups(&fits, 63)
}

/// Packs as [`super::k::scale_min_k4`] reads.
fn put_scales_k4(groups: &Groups<8>, packed: &mut [u8]) {
    for group in 0..8 {
        let (scale, min) = (groups.scales[group], groups.mins[group]);
        if group < 4 {
            packed[group] |= scale;
            packed[group + 4] |= min;
        } else {
            packed[group + 4] = (scale & 15) | ((min & 15) << 4);
            packed[group - 4] |= (scale >> 4) << 6;
            packed[group] |= (min >> 4) << 6;
        }
    }
}

pub(super) fn quantize_q4_k(values: &[f32], data: &mut [u8]) {
    const SEARCH: Search = Search { level_max: 15, first: -1.0, attempts: 20, absolute: false };
    for (x, block) in values.as_chunks::<256>().0.iter().zip(data.as_chunks_mut::<144>().0) {
        let groups = fit_eight(x, &SEARCH);
        put_half(block, 0, groups.scale);
        put_half(block, 2, groups.min);
        put_scales_k4(&groups, &mut block[4..16]);
        for (group, x) in x.as_chunks::<32>().0.iter().enumerate() {
            for (byte, value) in block[16 + group / 2 * 32..].iter_mut().zip(x) {
                *byte |= groups.level(group, *value, 15) << (group % 2 * 4);
            }
        }
    }
}

pub(super) fn quantize_q5_k(values: &[f32], data: &mut [u8]) {
    const SEARCH: Search = Search { level_max: 31, first: -0.5, attempts: 15, absolute: false };
    for (x, block) in values.as_chunks::<256>().0.iter().zip(data.as_chunks_mut::<176>().0) {
        let groups = fit_eight(x, &SEARCH);
        put_half(block, 0, groups.scale);
        put_half(block, 2, groups.min);
        put_scales_k4(&groups, &mut block[4..16]);
        for (group, x) in x.as_chunks::<32>().0.iter().enumerate() {
            for (i, value) in x.iter().enumerate() {
                let level = groups.level(group, *value, 31);
                block[48 + group / 2 * 32 + i] |= (level & 15) << (group % 2 * 4);
                block[16 + i] |= (level >> 4) << group;
            }
        }
    }
}

/// Sixteen groups' scales, rounded to `-integers..integers` steps of a f16: the step, the integers.
fn round_signed(fits: &[f32; 16], integers: i16) -> (f32, [i8; 16]) {
    let largest = extreme(fits);
    let step = half::f16::from_f32(-largest / f32::from(integers)).to_f32();
    let to_integer = -f32::from(integers) * inverse(largest);
    let top = i8::try_from(integers - 1).unwrap_or(i8::MAX);
    (step, fits.map(|fit| ((to_integer * fit).round_ties_even() as i8).min(top)))
}

pub(super) fn quantize_q3_k(values: &[f32], data: &mut [u8]) {
    for (x, block) in values.as_chunks::<256>().0.iter().zip(data.as_chunks_mut::<110>().0) {
        let mut fits = [0.0; 16];
        for (x, fit) in x.as_chunks::<16>().0.iter().zip(&mut fits) {
            *fit = fit_symmetric(x, 4);
        }
        let (step, scales) = round_signed(&fits, 32);
        put_half(block, 108, step);
        let step = half_at(block, 108);
        for (group, x) in x.as_chunks::<16>().0.iter().enumerate() {
            let stored = (scales[group] + 32).cast_unsigned();
            block[96 + group % 8] |= (stored & 15) << (group / 8 * 4);
            block[96 + 8 + group % 4] |= (stored >> 4) << (2 * (group / 4));
            let inverse = inverse(step * f32::from(scales[group]));
            let (half, shift) = (group % 2 * 16, group % 8 / 2 * 2);
            for (i, value) in x.iter().enumerate() {
                let level = (signed_level(value * inverse, 4) + 4).cast_unsigned();
                block[32 + group / 8 * 32 + half + i] |= (level & 3) << shift;
                block[half + i] |= (level >> 2) << (group / 2);
            }
        }
    }
}

pub(super) fn quantize_q6_k(values: &[f32], data: &mut [u8]) {
    for (x, block) in values.as_chunks::<256>().0.iter().zip(data.as_chunks_mut::<210>().0) {
        let mut fits = [0.0; 16];
        for (x, fit) in x.as_chunks::<16>().0.iter().zip(&mut fits) {
            *fit = fit_symmetric(x, 32);
        }
        let (step, scales) = round_signed(&fits, 128);
        put_half(block, 208, step);
        for (group, x) in x.as_chunks::<16>().0.iter().enumerate() {
            block[192 + group] = scales[group].cast_unsigned();
            let inverse = inverse(step * f32::from(scales[group]));
            let (half, quarter, from) = (group / 8, group % 8 / 2, group % 2 * 16);
            for (i, value) in x.iter().enumerate() {
                let level = (signed_level(value * inverse, 32) + 32).cast_unsigned();
                let at = half * 64 + quarter % 2 * 32 + from + i;
                block[at] |= (level & 15) << (quarter / 2 * 4);
                block[128 + half * 32 + from + i] |= (level >> 4) << (quarter * 2);
            }
        }
    }
}
