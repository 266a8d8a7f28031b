//! Log-probabilities of the model's own distribution.

use super::{Candidate, Scratch, better, keep_best};

/// The distribution of one row, taken before the row is changed.
#[derive(Debug)]
pub(crate) struct Report {
    row: Vec<f32>,
    log_sum: f32,
    top: Vec<(u32, f32)>,
}

impl Report {
    /// Looks at a row: its normaliser and its `top` most likely tokens.
    pub(crate) fn new(row: &[f32], top: usize, scratch: &mut Scratch) -> Self {
        let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let sum: f64 = row.iter().map(|&v| f64::from((v - max).exp())).sum();
        let log_sum = max + sum.ln() as f32;
        let candidates = &mut scratch.candidates;
        candidates.clear();
        if top > 0 {
            let all = row.iter().enumerate();
            candidates.extend(all.map(|(id, &value)| Candidate { id: id as u32, value }));
            keep_best(candidates, top);
            candidates.sort_unstable_by(better);
        }
        let top = candidates.iter().map(|c| (c.id, c.value - log_sum)).collect();
        Self { row: row.to_vec(), log_sum, top }
    }

    /// Of one token.
    pub(crate) fn of(&self, id: u32) -> f32 {
        self.row.get(id as usize).map_or(f32::NEG_INFINITY, |v| v - self.log_sum)
    }

    /// The most likely tokens and their log-probabilities, best first.
    pub(crate) fn top(&self) -> &[(u32, f32)] {
        &self.top
    }
}
