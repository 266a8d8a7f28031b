//! The draw: an exponential race with numbers that belong to (seed, position, token).

use super::Candidate;

/// The candidate that wins at this position; `None` when no weight is above zero.
pub(super) fn winner(candidates: &[Candidate], seed: u64, position: u64) -> Option<u32> {
    let key = mix(seed ^ mix(position.wrapping_add(0x9e37_79b9_7f4a_7c15)));
    let (mut best, mut best_time) = (None, f64::INFINITY);
    for c in candidates {
        let weight = f64::from(c.value);
        let u = uniform(key, c.id);
        // -ln(u) is at least 1 - u: most candidates lose without their logarithm.
        if 1.0 - u >= best_time * weight {
            continue;
        }
        let time = -u.ln() / weight;
        if time < best_time {
            (best, best_time) = (Some(c.id), time);
        }
    }
    best
}

/// A number in 0..=1, never 0, that belongs to a token.
fn uniform(key: u64, id: u32) -> f64 {
    let bits = mix(key ^ u64::from(id).wrapping_mul(0xd1b5_4a32_d192_ed03));
    ((bits >> 11) + 1) as f64 * (1.0 / (1u64 << 53) as f64)
}

/// The finaliser of SplitMix64.
pub(crate) fn mix(mut z: u64) -> u64 {
    z = z.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
