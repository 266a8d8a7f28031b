//! Choosing the next token from a row of logits.
//!
//! The order is: penalties, bias, constraint, top-k, temperature, top-p, min-p, draw. The draw is
//! an exponential race: every candidate's random number is a function of the request's seed, the
//! token's position and its id, and the smallest `-ln(u) / weight` wins, which chooses each
//! candidate with a probability in proportion to its weight. So nothing is carried from token to
//! token: the same seed gives the same text whatever else is in the batch, after a preemption, and
//! with or without speculation.
//!
//! Invariants: a row with a NaN or +∞ is refused, not sampled; a token outside the constraint is
//! never chosen; ties go to the lower id.

mod logprobs;
mod race;

pub(crate) use logprobs::Report;

use ahash::AHashMap;

use crate::engine::Sampling;
use crate::held;

/// Why no token could be chosen.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ChooseError {
    #[error("the model's output for token {id} is not a number")]
    NotFinite { id: usize },
    #[error("the constraint leaves no token that the model can give")]
    NothingAllowed,
}

/// A field of [`Sampling`] is out of its range.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct OutOfRange {
    pub(crate) field: &'static str,
    pub(crate) reason: String,
}

/// One candidate: a token, its logit, and later its weight relative to the best one's.
#[derive(Debug, Clone, Copy)]
struct Candidate {
    id: u32,
    value: f32,
}

/// Buffers reused from token to token.
#[derive(Debug, Default)]
pub(crate) struct Scratch {
    candidates: Vec<Candidate>,
    recent: Vec<u32>,
}

impl Scratch {
    /// Bytes that are held now.
    pub(crate) fn held_bytes(&self) -> u64 {
        held::of_vec(&self.candidates) + held::of_vec(&self.recent)
    }

    /// Bytes that choosing from this vocabulary takes at most.
    pub(crate) fn bytes(vocabulary: usize) -> u64 {
        (vocabulary * (size_of::<Candidate>() + size_of::<f32>())) as u64
    }
}

/// Chooses the tokens of one sequence.
#[derive(Debug, Clone)]
pub(crate) struct Sampler {
    sampling: Sampling,
    seed: u64,
    /// How often each token was generated; kept only where a penalty asks.
    generated: AHashMap<u32, u32>,
}

/// Tokens less likely than e⁻³⁵ times the best one are not drawn: together they are below the
/// precision of the logits.
const CUT: f32 = 35.0;

impl Sampler {
    /// `vocabulary` bounds the ids of the bias.
    pub(crate) fn new(
        sampling: Sampling,
        seed: u64,
        vocabulary: usize,
    ) -> Result<Self, OutOfRange> {
        check(&sampling, vocabulary)?;
        Ok(Self { sampling, seed, generated: AHashMap::new() })
    }

    /// Notes a generated token.
    pub(crate) fn note(&mut self, token: u32) {
        if self.sampling.presence_penalty != 0.0 || self.sampling.frequency_penalty != 0.0 {
            *self.generated.entry(token).or_default() += 1;
        }
    }

    /// Chooses from `row`, which is changed. `text` is the sequence so far, prompt included: its
    /// length is the position drawn for. `mask` has a bit per token, set where it is allowed.
    pub(crate) fn choose(
        &self,
        row: &mut [f32],
        text: &[u32],
        mask: Option<&[u32]>,
        scratch: &mut Scratch,
    ) -> Result<u32, ChooseError> {
        self.penalise(row, text, scratch);
        for &(id, bias) in &self.sampling.logit_bias {
            if let Some(logit) = row.get_mut(id as usize) {
                *logit += bias;
            }
        }
        if let Some(mask) = mask {
            apply_mask(row, mask);
        }
        let (best, best_logit) = argmax(row)?;
        if best_logit == f32::NEG_INFINITY {
            return Err(ChooseError::NothingAllowed);
        }
        if self.sampling.temperature == 0.0 || self.sampling.top_k == 1 {
            return Ok(best);
        }
        self.collect(row, best_logit, &mut scratch.candidates);
        self.weigh(best_logit, &mut scratch.candidates);
        Ok(race::winner(&scratch.candidates, self.seed, text.len() as u64).unwrap_or(best))
    }

    fn penalise(&self, row: &mut [f32], text: &[u32], scratch: &mut Scratch) {
        let s = &self.sampling;
        if s.repeat_penalty != 1.0 && s.repeat_last_n > 0 {
            let last = &text[text.len().saturating_sub(s.repeat_last_n as usize)..];
            let recent = &mut scratch.recent;
            recent.clear();
            recent.extend_from_slice(last);
            recent.sort_unstable();
            recent.dedup();
            for &id in recent.iter() {
                if let Some(logit) = row.get_mut(id as usize) {
                    *logit = if *logit > 0.0 {
                        *logit / s.repeat_penalty
                    } else {
                        *logit * s.repeat_penalty
                    };
                }
            }
        }
        for (&id, &count) in &self.generated {
            if let Some(logit) = row.get_mut(id as usize) {
                *logit -= s.presence_penalty + s.frequency_penalty * count as f32;
            }
        }
    }

    /// The candidates that top-k and the cut leave.
    fn collect(&self, row: &[f32], best_logit: f32, out: &mut Vec<Candidate>) {
        out.clear();
        let mut least = best_logit - CUT * self.sampling.temperature;
        let k = self.sampling.top_k as usize;
        if k == 0 || k >= row.len() {
            let all = row.iter().enumerate().filter(|(_, v)| **v >= least);
            out.extend(all.map(|(id, &value)| Candidate { id: id as u32, value }));
            return;
        }
        // Keep a few times k; whenever that is full, raise the threshold to the k-th best so far.
        let room = (4 * k).max(1024);
        for (id, &value) in row.iter().enumerate() {
            if value >= least {
                out.push(Candidate { id: id as u32, value });
                if out.len() == room {
                    keep_best(out, k);
                    least = least.max(out.iter().map(|c| c.value).fold(f32::INFINITY, f32::min));
                }
            }
        }
        keep_best(out, k);
    }

    /// Turns logits into weights relative to the best one's and applies top-p and min-p.
    fn weigh(&self, best_logit: f32, candidates: &mut Vec<Candidate>) {
        let s = &self.sampling;
        let scale = 1.0 / s.temperature;
        for c in candidates.iter_mut() {
            c.value = ((c.value - best_logit) * scale).exp();
        }
        if s.top_p < 1.0 {
            keep_mass(candidates, s.top_p);
        }
        if s.min_p > 0.0 {
            candidates.retain(|c| c.value >= s.min_p);
        }
    }
}

/// Best first; ties by the lower id.
fn better(a: &Candidate, b: &Candidate) -> std::cmp::Ordering {
    b.value.total_cmp(&a.value).then(a.id.cmp(&b.id))
}

fn keep_best(candidates: &mut Vec<Candidate>, k: usize) {
    if candidates.len() > k {
        candidates.select_nth_unstable_by(k - 1, better);
        candidates.truncate(k);
    }
}

/// Keeps the fewest most likely candidates whose weights make up `p` of the whole.
fn keep_mass(candidates: &mut Vec<Candidate>, p: f32) {
    let total: f64 = candidates.iter().map(|c| f64::from(c.value)).sum();
    let wanted = total * f64::from(p);
    // All weights below this one together are less than what may be left out, so the sort can do
    // without them.
    let negligible = (total - wanted) / candidates.len() as f64;
    candidates.retain(|c| f64::from(c.value) >= negligible);
    // Few candidates hold most of the mass: the best are sorted first, more only where needed.
    let (mut mass, mut sorted) = (0.0, 0);
    while sorted < candidates.len() {
        let end = candidates.len().min(sorted.max(32) * 8);
        let rest = &mut candidates[sorted..];
        if end - sorted < rest.len() {
            rest.select_nth_unstable_by(end - sorted - 1, better);
        }
        candidates[sorted..end].sort_unstable_by(better);
        let last = candidates[sorted..end].iter().position(|c| {
            mass += f64::from(c.value);
            mass >= wanted
        });
        if let Some(last) = last {
            candidates.truncate(sorted + last + 1);
            return;
        }
        sorted = end;
    }
}

/// Sets what the mask does not allow to −∞. Tokens beyond the mask are not allowed.
fn apply_mask(row: &mut [f32], mask: &[u32]) {
    let covered = (mask.len() * 32).min(row.len());
    row[covered..].fill(f32::NEG_INFINITY);
    for (logits, &bits) in row.chunks_mut(32).zip(mask) {
        match bits {
            u32::MAX => {}
            0 => logits.fill(f32::NEG_INFINITY),
            _ => {
                for (i, logit) in logits.iter_mut().enumerate() {
                    if bits >> i & 1 == 0 {
                        *logit = f32::NEG_INFINITY;
                    }
                }
            }
        }
    }
}

/// Tokens looked at together: small enough for the first cache level, long enough for SIMD.
const LANES: usize = 1024;

/// The most likely token, ties to the lower id.
fn argmax(row: &[f32]) -> Result<(u32, f32), ChooseError> {
    let (mut best_chunk, mut best) = (0, f32::NEG_INFINITY);
    for (at, chunk) in row.chunks(LANES).enumerate() {
        let mut sum = 0.0f32;
        let mut max = [f32::NEG_INFINITY; 16];
        let mut parts = chunk.chunks_exact(16);
        for part in &mut parts {
            for (m, &v) in max.iter_mut().zip(part) {
                *m = if v > *m { v } else { *m };
            }
            // 0 · v is NaN for NaN and ±∞; a constraint's −∞ is told apart below.
            for &v in part {
                sum += if v == f32::NEG_INFINITY { 0.0 } else { v * 0.0 };
            }
        }
        for &v in parts.remainder() {
            max[0] = if v > max[0] { v } else { max[0] };
            sum += if v == f32::NEG_INFINITY { 0.0 } else { v * 0.0 };
        }
        if sum.is_nan() {
            let within = chunk.iter().position(|v| v.is_nan() || *v == f32::INFINITY);
            return Err(ChooseError::NotFinite { id: at * LANES + within.unwrap_or(0) });
        }
        let chunk_best = max.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        if chunk_best > best {
            (best_chunk, best) = (at, chunk_best);
        }
    }
    let start = best_chunk * LANES;
    let within = row[start..].iter().position(|v| *v == best).unwrap_or(0);
    Ok(((start + within) as u32, best))
}

fn check(s: &Sampling, vocabulary: usize) -> Result<(), OutOfRange> {
    let ranges: [(&'static str, f32, f32, f32); 6] = [
        ("temperature", s.temperature, 0.0, 100.0),
        ("top_p", s.top_p, 0.0, 1.0),
        ("min_p", s.min_p, 0.0, 1.0),
        ("repeat_penalty", s.repeat_penalty, 0.01, 100.0),
        ("presence_penalty", s.presence_penalty, -100.0, 100.0),
        ("frequency_penalty", s.frequency_penalty, -100.0, 100.0),
    ];
    for (field, value, min, max) in ranges {
        if !(min..=max).contains(&value) {
            let reason = format!("is {value}, expected {min} to {max}");
            return Err(OutOfRange { field, reason });
        }
    }
    let bias = |reason| Err(OutOfRange { field: "logit_bias", reason });
    if s.logit_bias.len() > crate::engine::LOGIT_BIAS_MAX {
        let max = crate::engine::LOGIT_BIAS_MAX;
        return bias(format!("has {} entries, at most {max}", s.logit_bias.len()));
    }
    for &(id, value) in &s.logit_bias {
        if id as usize >= vocabulary {
            return bias(format!("names token {id}, the vocabulary has {vocabulary}"));
        }
        if !(-1000.0..=1000.0).contains(&value) {
            return bias(format!("of token {id} is {value}, expected -1000 to 1000"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
