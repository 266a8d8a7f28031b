//! Attention over the paged cache against plain arithmetic, on every instruction set; and that it
//! does not depend on how a sequence came in.

#![allow(clippy::unwrap_used)] // A failed step fails the test.

use fulmar_kernels::attention::{Attend, HeadCount, Sequence, attend, plan};
use fulmar_kernels::cache::{BLOCK_TOKENS, Cache, CacheShape, Heads, Place, Precision};
use fulmar_kernels::cpu::Isa;
use fulmar_kernels::ops::RotaryKind;
use fulmar_kernels::team::{Pinning, Team};

struct Model {
    heads: usize,
    kv_heads: usize,
    dims: usize,
    window: Option<usize>,
}

fn values(len: usize, seed: usize) -> Vec<f32> {
    (0..len).map(|i| ((i * 7919 + seed * 104_729) % 2003) as f32 / 500.0 - 2.0).collect()
}

/// Attention of `len` tokens, given in pieces of `piece`; blocks in descending order.
fn run(isa: Isa, m: &Model, precision: Precision, len: usize, piece: usize) -> Vec<f32> {
    let team = Team::new(3, Pinning::None);
    let blocks: Vec<u32> = (0..len.div_ceil(BLOCK_TOKENS) as u32).rev().collect();
    let shape = CacheShape {
        precision,
        layers: 2,
        blocks: blocks.len(),
        kv_heads: m.kv_heads,
        dims: m.dims,
    };
    let mut cache = Cache::new(shape).unwrap();
    let (q_len, kv_len) = (m.heads * m.dims, m.kv_heads * m.dims);
    let (q, k, v) = (values(len * q_len, 1), values(len * kv_len, 2), values(len * kv_len, 3));
    let mut out = Vec::new();
    for start in (0..len).step_by(piece) {
        let n = piece.min(len - start);
        let mut queries = q[start * q_len..(start + n) * q_len].to_vec();
        let mut keys = k[start * kv_len..(start + n) * kv_len].to_vec();
        let places: Vec<Place> = (start..start + n)
            .map(|p| Place { block: blocks[p / BLOCK_TOKENS], offset: (p % BLOCK_TOKENS) as u32 })
            .collect();
        let heads = Heads {
            queries: &mut queries,
            keys: &mut keys,
            values: &v[start * kv_len..(start + n) * kv_len],
            query_norm: None,
            key_norm: None,
            epsilon: 0.0,
            rotary: RotaryKind::Halves,
            cos: &[],
            sin: &[],
            pairs: 0,
        };
        cache.prepare(isa, &team, 1, &places, heads);
        let sequences = [Sequence { start: 0, len: n, position: start, blocks: &blocks }];
        let tasks = plan(isa, &sequences, HeadCount { heads: m.heads, kv_heads: m.kv_heads });
        let job = Attend {
            layer: 1,
            sequences: &sequences,
            tasks: &tasks,
            queries: &queries,
            heads: m.heads,
            scale: 0.3,
            window: m.window,
        };
        let mut part = vec![f32::NAN; n * q_len];
        attend(isa, &team, &cache, &job, &mut part);
        out.extend(part);
    }
    out
}

fn expected(m: &Model, len: usize) -> Vec<f64> {
    let (q_len, kv_len) = (m.heads * m.dims, m.kv_heads * m.dims);
    let (q, k, v) = (values(len * q_len, 1), values(len * kv_len, 2), values(len * kv_len, 3));
    let mut out = vec![0.0; len * q_len];
    for token in 0..len {
        for head in 0..m.heads {
            let kv = head / (m.heads / m.kv_heads) * m.dims;
            let query = &q[token * q_len + head * m.dims..][..m.dims];
            let first = m.window.map_or(0, |w| (token + 1).saturating_sub(w));
            let scores: Vec<f64> = (first..=token)
                .map(|p| {
                    let key = &k[p * kv_len + kv..][..m.dims];
                    query.iter().zip(key).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>()
                        * 0.3
                })
                .collect();
            let largest = scores.iter().copied().fold(f64::MIN, f64::max);
            let weights: Vec<f64> = scores.iter().map(|s| (s - largest).exp()).collect();
            let total: f64 = weights.iter().sum();
            for d in 0..m.dims {
                let sum: f64 = (first..=token)
                    .zip(&weights)
                    .map(|(p, w)| w * f64::from(v[p * kv_len + kv + d]))
                    .sum();
                out[token * q_len + head * m.dims + d] = sum / total;
            }
        }
    }
    out
}

const MODELS: [Model; 4] = [
    Model { heads: 4, kv_heads: 2, dims: 16, window: None },
    Model { heads: 4, kv_heads: 1, dims: 64, window: Some(40) },
    Model { heads: 3, kv_heads: 3, dims: 80, window: None },
    Model { heads: 20, kv_heads: 1, dims: 32, window: Some(129) },
];

#[test]
fn attention_agrees_with_plain_arithmetic_for_every_shape_and_precision() {
    for isa in Isa::available() {
        for (index, model) in MODELS.iter().enumerate() {
            let expected = expected(model, 200);
            for (precision, slack) in
                [(Precision::F32, 2e-5), (Precision::F16, 4e-3), (Precision::Q8, 8e-2)]
            {
                let found = run(isa, model, precision, 200, 64);
                for (i, (found, expected)) in found.iter().zip(&expected).enumerate() {
                    let error = (f64::from(*found) - expected).abs();
                    assert!(
                        error <= slack,
                        "{isa:?} model {index} {precision:?} value {i}: {found} for {expected}"
                    );
                }
            }
        }
    }
}

#[test]
fn attention_is_the_same_bits_however_a_prompt_is_cut() {
    for isa in Isa::available() {
        for model in &MODELS {
            for precision in [Precision::F32, Precision::F16, Precision::Q8] {
                let whole = run(isa, model, precision, 150, 150);
                for piece in [1, 7, 32, 100] {
                    assert!(
                        whole == run(isa, model, precision, 150, piece),
                        "{isa:?} {precision:?} {piece}"
                    );
                }
            }
        }
    }
}

#[test]
fn copied_blocks_answer_alike_and_missing_ones_are_told() {
    let shape =
        CacheShape { precision: Precision::F16, layers: 2, blocks: 3, kv_heads: 1, dims: 16 };
    let mut cache = Cache::new(shape).unwrap();
    assert!(cache.copy_block(0, 2));
    assert!(!cache.copy_block(0, 3));
}
