//! Attention over the paged cache, with the softmax computed as the positions go by.
//!
//! A task is a few rows: the query heads that share a key head, for one or more neighbouring tokens
//! of a sequence. Rows pass over their positions in steps that start at multiples of
//! [`STEP_TOKENS`], and each row's sums have a fixed order, so a row's result depends neither on the
//! rows beside it nor on whether its prompt came in one batch or in many.

#![allow(clippy::needless_range_loop)] // Indices name registers in several arrays at once.
#![allow(unsafe_op_in_unsafe_fn)] // The kernels follow the contract of `Simd`.

use std::cell::RefCell;

use crate::cache::{BLOCK_TOKENS, Cache, CacheShape, DIMS_MULTIPLE, Precision};
use crate::cpu::Isa;
use crate::disjoint::Disjoint;
use crate::simd::{self, Kernel, Simd, exp};
use crate::team::Team;

/// Positions between two corrections of the softmax.
const STEP_TOKENS: usize = 128;
/// The score of a position that a row does not see.
const UNSEEN: f32 = -1e30;

thread_local! {
    static SCRATCH: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// A sequence's tokens in a batch.
#[derive(Debug, Clone, Copy)]
pub struct Sequence<'a> {
    /// Index of its first token in the batch.
    pub start: usize,
    /// Tokens.
    pub len: usize,
    /// Position of the first.
    pub position: usize,
    /// Cache blocks of all positions up to the last token's.
    pub blocks: &'a [u32],
}

/// The heads of a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeadCount {
    /// Query heads.
    pub heads: usize,
    /// Key and value heads, which divide the query heads.
    pub kv_heads: usize,
}

/// A piece of a step's attention.
#[derive(Debug, Clone, Copy)]
pub struct Task {
    sequence: usize,
    kv_head: usize,
    first_head: usize,
    heads: usize,
    first_token: usize,
    tokens: usize,
}

/// Cuts a step's attention into tasks, the longest first.
pub fn plan(isa: Isa, sequences: &[Sequence<'_>], count: HeadCount) -> Vec<Task> {
    let rows_max = if isa == Isa::Avx512 { 12 } else { 6 };
    let group = count.heads / count.kv_heads;
    let heads = group.min(rows_max);
    let tokens = (rows_max / heads).max(1);
    let mut tasks = Vec::new();
    for (sequence, s) in sequences.iter().enumerate() {
        for first_token in (0..s.len).step_by(tokens).rev() {
            for kv_head in 0..count.kv_heads {
                for first in (0..group).step_by(heads) {
                    tasks.push(Task {
                        sequence,
                        kv_head,
                        first_head: kv_head * group + first,
                        heads: heads.min(group - first),
                        first_token,
                        tokens: tokens.min(s.len - first_token),
                    });
                }
            }
        }
    }
    let end = |task: &Task| sequences[task.sequence].position + task.first_token;
    tasks.sort_by_key(|task| std::cmp::Reverse(end(task)));
    tasks
}

/// What attention is asked to do in one layer.
pub struct Attend<'a> {
    /// The layer of the cache.
    pub layer: usize,
    /// The batch's sequences.
    pub sequences: &'a [Sequence<'a>],
    /// From [`plan`].
    pub tasks: &'a [Task],
    /// `[tokens][heads * dims]`, normed and rotated.
    pub queries: &'a [f32],
    /// Query heads.
    pub heads: usize,
    /// Multiplies the scores.
    pub scale: f32,
    /// Positions that a token sees, itself included.
    pub window: Option<usize>,
}

/// Computes a layer's attention into `out`, `[tokens][heads * dims]`.
///
/// # Panics
/// When lengths do not agree or a block does not exist.
pub fn attend(isa: Isa, team: &Team, cache: &Cache, job: &Attend<'_>, out: &mut [f32]) {
    let dims = cache.shape().dims;
    assert_eq!(job.queries.len(), out.len(), "room for the result");
    for s in job.sequences {
        assert!(s.blocks.len() * BLOCK_TOKENS >= s.position + s.len, "blocks of a sequence");
        assert!((s.start + s.len) * job.heads * dims <= out.len(), "tokens of a sequence");
    }
    let out = Disjoint::new(out);
    team.for_each(job.tasks.len(), 1, &|_, index| {
        let task = &job.tasks[index];
        SCRATCH.with_borrow_mut(|scratch| one(isa, cache, job, task, scratch, &out));
    });
}

/// A task's rows: what they read and where they write.
struct Rows<'a> {
    shape: &'a CacheShape,
    /// The units of the task's head, block by block.
    units: &'a dyn Fn(usize) -> &'a [u8],
    /// First and last-but-one position that row `r` sees.
    sees: [(usize, usize); 12],
    rows: usize,
    /// `[dims][R]`, then scores `[R][STEP_TOKENS]`, then results `[R][dims_padded]`.
    scratch: *mut f32,
    width: usize,
}

/// The widths that there are kernels for.
fn width_of(rows: usize, lanes: usize) -> usize {
    match rows {
        1 | 2 => rows,
        3 | 4 => 4,
        5 | 6 if lanes == 8 => 6,
        5..=8 => 8,
        _ => 12,
    }
}

fn one(
    isa: Isa,
    cache: &Cache,
    job: &Attend<'_>,
    task: &Task,
    scratch: &mut Vec<f32>,
    out: &Disjoint<'_, f32>,
) {
    let shape = cache.shape();
    let (dims, padded) = (shape.dims, shape.dims_padded());
    let sequence = &job.sequences[task.sequence];
    let rows = task.tokens * task.heads;
    let width = width_of(rows, simd::lanes(isa));
    let len = width * (dims + STEP_TOKENS + padded);
    if scratch.len() < len + 16 {
        scratch.resize(len + 16, 0.0);
    }
    let row_len = job.heads * dims;
    let mut sees = [(0, 0); 12];
    scratch[..width * dims].fill(0.0);
    for r in 0..rows {
        let (token, head) = (task.first_token + r / task.heads, task.first_head + r % task.heads);
        let end = sequence.position + token + 1;
        sees[r] = (job.window.map_or(0, |window| end.saturating_sub(window)), end);
        let query = &job.queries[(sequence.start + token) * row_len + head * dims..][..dims];
        for (d, q) in query.iter().enumerate() {
            scratch[d * width + r] = q * job.scale;
        }
    }
    let units = |block: usize| cache.unit(job.layer, sequence.blocks[block], task.kv_head);
    let kernel = Rows { shape, units: &units, sees, rows, scratch: scratch.as_mut_ptr(), width };
    // SAFETY: the scratch holds what `width` rows need; `isa` comes from detection.
    let sums = unsafe { simd::run(isa, kernel) };
    let results = &scratch[width * (dims + STEP_TOKENS)..];
    for r in 0..rows {
        let (token, head) = (task.first_token + r / task.heads, task.first_head + r % task.heads);
        // SAFETY: a token's head belongs to one task.
        let out = unsafe { out.slice((sequence.start + token) * row_len + head * dims, dims) };
        let inverse = 1.0 / sums[r];
        out.iter_mut().zip(&results[r * padded..]).for_each(|(o, x)| *o = x * inverse);
    }
}

impl Kernel for Rows<'_> {
    /// The rows' sums of weights.
    type Output = [f32; 12];
    #[inline(always)]
    unsafe fn run<S: Simd>(self) -> [f32; 12] {
        match self.shape.precision {
            Precision::F16 => self.of_width::<S, 2>(),
            Precision::F32 => self.of_width::<S, 4>(),
            Precision::Q8 => self.of_width::<S, 1>(),
        }
    }
}

impl Rows<'_> {
    #[inline(always)]
    unsafe fn of_width<S: Simd, const BYTES: usize>(self) -> [f32; 12] {
        match self.width {
            1 => self.pass::<S, BYTES, 1>(),
            2 => self.pass::<S, BYTES, 2>(),
            4 => self.pass::<S, BYTES, 4>(),
            6 if S::LANES == 8 => self.pass::<S, BYTES, 6>(),
            8 if S::LANES == 16 => self.pass::<S, BYTES, 8>(),
            12 if S::LANES == 16 => self.pass::<S, BYTES, 12>(),
            _ => unreachable!("a width"),
        }
    }

    #[inline(always)]
    unsafe fn pass<S: Simd, const BYTES: usize, const R: usize>(self) -> [f32; 12] {
        let (dims, padded) = (self.shape.dims, self.shape.dims_padded());
        let queries: *const f32 = self.scratch;
        let scores = self.scratch.add(R * dims);
        let results = scores.add(R * STEP_TOKENS);
        std::ptr::write_bytes(results, 0, R * padded);
        let mut maxima = [UNSEEN; R];
        let mut sums = [0.0f32; 12];
        let seen = &self.sees[..self.rows];
        let end = seen.iter().map(|s| s.1).max().unwrap_or(0);
        let mut base = seen.iter().map(|s| s.0).min().unwrap_or(0) / STEP_TOKENS * STEP_TOKENS;
        while base < end {
            let blocks = (end - base).min(STEP_TOKENS).div_ceil(BLOCK_TOKENS);
            let positions = blocks * BLOCK_TOKENS;
            let mut units = [&[][..]; STEP_TOKENS / BLOCK_TOKENS];
            for (block, unit) in units[..blocks].iter_mut().enumerate() {
                *unit = (self.units)(base / BLOCK_TOKENS + block);
            }
            let mut first = 0;
            while R <= 2 && first + 4 * S::LANES <= positions {
                key_scores::<S, BYTES, R, 4>(self.shape, &units, first, queries, scores);
                first += 4 * S::LANES;
            }
            while first < positions {
                key_scores::<S, BYTES, R, 2>(self.shape, &units, first, queries, scores);
                first += 2 * S::LANES;
            }
            for r in 0..self.rows {
                let from = self.sees[r].0.saturating_sub(base).min(positions);
                let to = self.sees[r].1.saturating_sub(base).min(positions);
                let row = scores.add(r * STEP_TOKENS);
                soften::<S>(
                    row,
                    positions,
                    (from, to),
                    &mut maxima[r],
                    &mut sums[r],
                    results.add(r * padded),
                    padded,
                );
            }
            let to = (end - base).min(positions);
            for block in 0..blocks {
                let unit = units[block];
                let positions = (to - block * BLOCK_TOKENS).min(BLOCK_TOKENS);
                let next = (base + STEP_TOKENS) / BLOCK_TOKENS + block;
                let ahead = if next * BLOCK_TOKENS < end { (self.units)(next) } else { unit };
                let (ahead, weights) = (ahead.as_ptr(), scores.add(block * BLOCK_TOKENS));
                let mut d = 0;
                while R <= 2 && d + 4 * S::LANES <= padded {
                    let part = (d, positions);
                    add_values::<S, BYTES, R, 4>(self.shape, unit, ahead, part, weights, results);
                    d += 4 * S::LANES;
                }
                while d < padded {
                    let part = (d, positions);
                    add_values::<S, BYTES, R, 2>(self.shape, unit, ahead, part, weights, results);
                    d += 2 * S::LANES;
                }
            }
            base += STEP_TOKENS;
        }
        sums
    }
}

/// `LANES` elements of the cache.
#[inline(always)]
unsafe fn load<S: Simd, const BYTES: usize>(p: *const u8, index: usize) -> S::F {
    match BYTES {
        4 => S::load(p.cast::<f32>().add(index)),
        2 => S::load_f16(p.cast::<u16>().add(index)),
        _ => S::load_i8(p.cast::<i8>().add(index)),
    }
}

/// Scores of `N` registers of keys, from the first position of `units` on:
/// `scores[r * STEP_TOKENS + position]`. Meanwhile fetches the units' values.
#[inline(always)]
unsafe fn key_scores<S: Simd, const BYTES: usize, const R: usize, const N: usize>(
    shape: &CacheShape,
    units: &[&[u8]],
    first: usize,
    queries: *const f32,
    scores: *mut f32,
) {
    let mut keys = [std::ptr::null(); N];
    let mut key_scales = [std::ptr::null(); N];
    for i in 0..N {
        let at = first + i * S::LANES;
        let unit = units[at / BLOCK_TOKENS].as_ptr();
        keys[i] = unit.add(at % BLOCK_TOKENS * BYTES);
        key_scales[i] = unit.add(shape.scales_at()).cast::<f32>().wrapping_add(at % BLOCK_TOKENS);
    }
    let mut acc = [[S::zero(); N]; R];
    let mut scale = [S::zero(); N];
    for d in 0..shape.dims {
        let mut k = [S::zero(); N];
        for i in 0..N {
            let key = keys[i].add(d * BLOCK_TOKENS * BYTES);
            S::prefetch(key.wrapping_add(shape.values_at()));
            k[i] = load::<S, BYTES>(key, 0);
            if BYTES == 1 {
                if d % DIMS_MULTIPLE == 0 {
                    scale[i] = S::load(key_scales[i].add(d / DIMS_MULTIPLE * BLOCK_TOKENS));
                }
                k[i] = S::mul(k[i], scale[i]);
            }
        }
        for (r, acc) in acc.iter_mut().enumerate() {
            let q = S::splat(*queries.add(d * R + r));
            for i in 0..N {
                acc[i] = S::fma(q, k[i], acc[i]);
            }
        }
    }
    for (r, acc) in acc.iter().enumerate() {
        for i in 0..N {
            S::store(scores.add(r * STEP_TOKENS + first + i * S::LANES), acc[i]);
        }
    }
}

/// Turns a row's scores into weights relative to the largest score so far, and corrects what was
/// summed relative to an older one.
#[inline(always)]
unsafe fn soften<S: Simd>(
    row: *mut f32,
    positions: usize,
    (from, to): (usize, usize),
    maximum: &mut f32,
    sum: &mut f32,
    results: *mut f32,
    padded: usize,
) {
    let whole = from == 0 && to == positions;
    let mut largest = S::splat(*maximum);
    let mut i = 0;
    while i < positions {
        let mut score = S::load(row.add(i));
        if !whole {
            score = S::keep(score, from.saturating_sub(i), to.saturating_sub(i), UNSEEN);
        }
        largest = S::max(largest, score);
        i += S::LANES;
    }
    let new = S::largest(largest);
    let mut total = S::zero();
    i = 0;
    while i < positions {
        let mut weight = exp::<S>(S::sub(S::load(row.add(i)), S::splat(new)));
        if !whole {
            weight = S::keep(weight, from.saturating_sub(i), to.saturating_sub(i), 0.0);
        }
        total = S::add(total, weight);
        S::store(row.add(i), weight);
        i += S::LANES;
    }
    if new != *maximum {
        let mut factor = [0.0f32; 16];
        S::store(factor.as_mut_ptr(), exp::<S>(S::splat(*maximum - new)));
        *maximum = new;
        *sum *= factor[0];
        let factor = S::splat(factor[0]);
        i = 0;
        while i < padded {
            S::store(results.add(i), S::mul(S::load(results.add(i)), factor));
            i += S::LANES;
        }
    }
    *sum += S::sum(total);
}

/// Adds `N` registers of a block's values from dimension `d` on, weighted:
/// `results[r * dims_padded + d]`. Meanwhile fetches as many bytes from `ahead`.
#[inline(always)]
unsafe fn add_values<S: Simd, const BYTES: usize, const R: usize, const N: usize>(
    shape: &CacheShape,
    unit: &[u8],
    ahead: *const u8,
    (d, positions): (usize, usize),
    weights: *const f32,
    results: *mut f32,
) {
    let padded = shape.dims_padded();
    let values = unit.as_ptr().add(shape.values_at());
    let scales =
        unit.as_ptr().add(shape.scales_at()).cast::<f32>().add(shape.scales() * BLOCK_TOKENS);
    let mut acc = [[S::zero(); N]; R];
    for (r, acc) in acc.iter_mut().enumerate() {
        for i in 0..N {
            acc[i] = S::load(results.add(r * padded + d + i * S::LANES));
        }
    }
    for position in 0..positions {
        let mut v = [S::zero(); N];
        for i in 0..N {
            let at = d + i * S::LANES;
            S::prefetch(
                ahead.wrapping_add((d * BLOCK_TOKENS + (position * N + i) * S::LANES) * BYTES),
            );
            v[i] = load::<S, BYTES>(values, position * padded + at);
            if BYTES == 1 {
                let scale = *scales.add(position * shape.scales() + at / DIMS_MULTIPLE);
                v[i] = S::mul(v[i], S::splat(scale));
            }
        }
        for (r, acc) in acc.iter_mut().enumerate() {
            let w = S::splat(*weights.add(r * STEP_TOKENS + position));
            for i in 0..N {
                acc[i] = S::fma(w, v[i], acc[i]);
            }
        }
    }
    for (r, acc) in acc.iter().enumerate() {
        for i in 0..N {
            S::store(results.add(r * padded + d + i * S::LANES), acc[i]);
        }
    }
}
