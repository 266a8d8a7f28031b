//! A fast sum over bytes that shows accidental damage. Not for security.

use crate::team::Team;
use std::sync::Mutex;

const PRIME: u64 = 0x9E37_79B9_7F4A_7C15;
/// Bytes that a thread takes at a time.
const PART_BYTES: usize = 1 << 20;

/// A sum that grows by runs of bytes. The same runs in the same order give the same sum.
#[derive(Debug, Clone, Copy, Default)]
pub struct Sum(u64);

impl Sum {
    /// Adds a run of bytes.
    pub fn add(&mut self, team: &Team, bytes: &[u8]) {
        let parts = bytes.len().div_ceil(PART_BYTES);
        let sums = Mutex::new(vec![0u64; parts]);
        team.for_each(parts, 1, &|_, index| {
            let from = index * PART_BYTES;
            let sum = part(&bytes[from..bytes.len().min(from + PART_BYTES)]);
            if let Ok(mut sums) = sums.lock() {
                sums[index] = sum;
            }
        });
        let sums = sums.into_inner().unwrap_or_default();
        for sum in sums {
            self.0 = mix(self.0, sum);
        }
        self.0 = mix(self.0, bytes.len() as u64);
    }

    /// The sum so far.
    pub fn value(self) -> u64 {
        self.0
    }
}

fn mix(sum: u64, word: u64) -> u64 {
    (sum.rotate_left(23) ^ word).wrapping_mul(PRIME)
}

/// The sum of one part: four chains that the processor computes side by side.
fn part(bytes: &[u8]) -> u64 {
    let mut chains = [1u64, 2, 3, 4];
    let (blocks, rest) = bytes.as_chunks::<32>();
    for block in blocks {
        for (chain, word) in chains.iter_mut().zip(block.as_chunks::<8>().0) {
            *chain = mix(*chain, u64::from_le_bytes(*word));
        }
    }
    let tail = rest.iter().fold(5, |sum, byte| mix(sum, u64::from(*byte)));
    chains.into_iter().fold(tail, mix)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::team::Pinning;

    fn sum(team: &Team, bytes: &[u8]) -> u64 {
        let mut all = Sum::default();
        all.add(team, bytes);
        all.value()
    }

    #[test]
    fn every_flipped_bit_and_lost_byte_shows_whatever_the_threads() {
        let bytes: Vec<u8> = (0..3 * PART_BYTES / 2 + 5).map(|i| (i * 7) as u8).collect();
        let teams = [Team::new(1, Pinning::None), Team::new(3, Pinning::None)];
        let whole = sum(&teams[0], &bytes);
        assert_eq!(whole, sum(&teams[1], &bytes));
        assert_ne!(whole, sum(&teams[1], &bytes[..bytes.len() - 1]));
        for at in [0, 31, 40, PART_BYTES - 1, PART_BYTES, bytes.len() - 1] {
            let mut damaged = bytes.clone();
            damaged[at] ^= 4;
            assert_ne!(whole, sum(&teams[1], &damaged), "byte {at}");
        }
    }
}
