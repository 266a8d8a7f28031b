//! Products of every type on every instruction set against plain arithmetic over the dequantised
//! weights, over odd shapes; and that a token's result does not depend on its batch.

#![allow(clippy::unwrap_used)] // A failed step fails the test.

use fulmar_kernels::activations::Activations;
use fulmar_kernels::cpu::Isa;
use fulmar_kernels::formats::{I2_S_TAIL_BYTES, TensorType, dequantize, quantize};
use fulmar_kernels::matrix::{Matrix, Product, Shape, multiply, multiply_gated};
use fulmar_kernels::memory::Buffer;
use fulmar_kernels::ops::{self, Gate};
use fulmar_kernels::team::{Pinning, Team};
use proptest::prelude::*;
use std::sync::Arc;

const TYPES: [TensorType; 19] = [
    TensorType::Q8_0,
    TensorType::Q4_0,
    TensorType::Q4_1,
    TensorType::Q5_0,
    TensorType::Q5_1,
    TensorType::Q2K,
    TensorType::Q3K,
    TensorType::Q4K,
    TensorType::Q5K,
    TensorType::Q6K,
    TensorType::Iq4Nl,
    TensorType::Iq4Xs,
    TensorType::Mxfp4,
    TensorType::Tq1_0,
    TensorType::Tq2_0,
    TensorType::I2S,
    TensorType::F16,
    TensorType::Bf16,
    TensorType::F32,
];

/// Values in -2..2 that repeat for a seed.
fn values(len: usize, seed: u64) -> Vec<f32> {
    let mut state = seed | 1;
    (0..len)
        .map(|_| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f32 / (1 << 22) as f32 - 2.0
        })
        .collect()
}

struct Weights {
    shape: Shape,
    scale: f32,
    bytes: Vec<u8>,
    values: Vec<f32>,
}

/// Blocks of a type that nothing here quantises to: any bytes are some, under a sensible scale.
fn random_iq4_xs(blocks: usize, seed: u64) -> Vec<u8> {
    let random = values(blocks * 136, seed);
    let mut bytes: Vec<u8> = random.iter().map(|v| (v * 1e6) as i32 as u8).collect();
    for block in bytes.chunks_exact_mut(136) {
        // 0.0005 as a half float.
        block[..2].copy_from_slice(&[0x19, 0x10]);
    }
    bytes
}

fn weights(ty: TensorType, rows: usize, columns: usize, seed: u64) -> Weights {
    let mut bytes = match ty {
        TensorType::Iq4Xs => random_iq4_xs(rows * columns / 256, seed),
        _ => quantize(ty, &values(rows * columns, seed)).unwrap(),
    };
    let mut values = vec![0.0; rows * columns];
    dequantize(ty, &bytes, &mut values).unwrap();
    let mut scale = 1.0;
    if ty == TensorType::I2S {
        let tail = bytes.split_off(bytes.len() - I2_S_TAIL_BYTES);
        scale = f32::from_le_bytes([tail[0], tail[1], tail[2], tail[3]]);
    }
    Weights { shape: Shape { ty, rows, columns }, scale, bytes, values }
}

fn matrix(isa: Isa, team: &Team, w: &Weights) -> Matrix {
    let mut buffer = Buffer::zeroed(w.shape.regrouped_bytes(isa).unwrap()).unwrap();
    w.shape.regroup(isa, team, &w.bytes, &mut buffer).unwrap();
    let storage = Arc::new(buffer);
    Matrix::new(isa, w.shape, storage, 0).unwrap().scaled(w.scale)
}

fn product(isa: Isa, team: &Team, m: &Matrix, x: &[f32], tokens: usize) -> Vec<f32> {
    let Shape { rows, columns, .. } = m.shape();
    let mut acts = Activations::new(isa, tokens, columns).unwrap();
    acts.fill(team, tokens, columns, m.shape().forms(), (&mut [], 0), &|t, _, out| {
        out.copy_from_slice(&x[t * columns..(t + 1) * columns]);
    });
    let mut out = vec![f32::NAN; tokens * rows];
    multiply(team, &acts, &mut [Product { matrix: m, out: &mut out }]);
    out
}

/// Activations as the kernels round them.
fn rounded(x: &[f32], float: bool) -> Vec<f64> {
    let mut out = Vec::new();
    for cell in x.chunks(32) {
        let largest = cell.iter().fold(0.0f32, |m, v| m.max(v.abs()));
        let scale = (largest / 127.0).max(1e-18).log2().ceil().exp2();
        for v in cell {
            let code = (v / scale).round_ties_even();
            out.push(if float { f64::from(*v) } else { f64::from(code) * f64::from(scale) });
        }
    }
    out
}

fn check(isa: Isa, ty: TensorType, rows: usize, blocks: usize, tokens: usize, seed: u64) {
    let columns = blocks * ty.block_len().max(if ty.block_len() == 1 { 5 } else { 1 });
    let team = Team::new(2, Pinning::None);
    let w = weights(ty, rows, columns, seed);
    let m = matrix(isa, &team, &w);
    let x = values(tokens * columns, seed + 1);
    let out = product(isa, &team, &m, &x, tokens);
    for t in 0..tokens {
        let row = rounded(&x[t * columns..(t + 1) * columns], ty.block_len() == 1);
        for r in 0..rows {
            let w = &w.values[r * columns..(r + 1) * columns];
            let expected: f64 = w.iter().zip(&row).map(|(w, x)| f64::from(*w) * x).sum();
            let size: f64 = w.iter().zip(&row).map(|(w, x)| (f64::from(*w) * x).abs()).sum();
            let found = f64::from(out[t * rows + r]);
            // The rounded activations may differ by one code where a value lies at a half.
            let slack = if ty.block_len() == 1 { 1e-5 } else { 2e-3 };
            assert!(
                (found - expected).abs() <= slack * size.max(1e-3),
                "{isa:?} {ty} {rows}x{columns} token {t} of {tokens} row {r}: {found} for {expected}"
            );
        }
    }
}

#[test]
fn every_type_multiplies_like_its_dequantised_values() {
    for isa in Isa::available() {
        for ty in TYPES.into_iter().filter(|ty| ty.can_quantize()) {
            for (rows, blocks, tokens) in
                [(1, 1, 1), (16, 2, 3), (33, 3, 8), (40, 1, 17), (70, 2, 50)]
            {
                check(isa, ty, rows, blocks, tokens, 7 + rows as u64);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn odd_shapes_multiply_like_their_dequantised_values(
        ty in 0..TYPES.len(), rows in 1usize..70, blocks in 1usize..5, tokens in 1usize..40, seed: u64,
    ) {
        let ty = TYPES[ty];
        prop_assume!(ty.can_quantize());
        for isa in Isa::available() {
            check(isa, ty, rows, blocks, tokens, seed >> 8);
        }
    }
}

#[test]
fn a_tokens_product_is_the_same_bits_in_every_batch_and_team() {
    for isa in Isa::available() {
        for ty in TYPES.into_iter().filter(|ty| ty.can_quantize()) {
            let (rows, columns) = (50, 2 * ty.block_len().max(64));
            let one = Team::new(1, Pinning::None);
            let w = weights(ty, rows, columns, 3);
            let m = matrix(isa, &one, &w);
            let x = values(60 * columns, 4);
            let alone: Vec<Vec<f32>> =
                x.chunks(columns).map(|x| product(isa, &one, &m, x, 1)).collect();
            let team = Team::new(3, Pinning::None);
            for tokens in [2, 3, 4, 5, 6, 7, 8, 13, 16, 17, 60] {
                let out = product(isa, &team, &m, &x[..tokens * columns], tokens);
                assert_eq!(out, alone[..tokens].concat(), "{isa:?} {ty} {tokens} tokens");
            }
        }
    }
}

#[test]
fn a_gated_product_is_the_two_products_gated_whatever_the_types() {
    let team = Team::new(2, Pinning::None);
    for isa in Isa::available() {
        let pairs = [
            (TensorType::Q4_0, TensorType::Q4_0),
            (TensorType::Q6K, TensorType::Q4K),
            (TensorType::F16, TensorType::Q8_0),
        ];
        for (gate_type, up_type) in pairs {
            for tokens in [1, 5, 20, 33] {
                let (rows, columns) = (35, 256);
                let gate = matrix(isa, &team, &weights(gate_type, rows, columns, 1));
                let up = matrix(isa, &team, &weights(up_type, rows, columns, 2));
                let x = values(tokens * columns, 9);
                let mut acts = Activations::new(isa, tokens, columns).unwrap();
                let forms = gate.shape().forms().and(up.shape().forms());
                acts.fill(&team, tokens, columns, forms, (&mut [], 0), &|t, _, out| {
                    out.copy_from_slice(&x[t * columns..(t + 1) * columns]);
                });
                let mut out = vec![0.0; tokens * rows];
                multiply_gated(&team, &acts, Gate::Silu, &gate, &up, &mut out);
                let g = product(isa, &team, &gate, &x, tokens);
                let u = product(isa, &team, &up, &x, tokens);
                let mut expected = vec![0.0; tokens * rows];
                ops::gated(isa, Gate::Silu, &g, &u, &mut expected);
                assert_eq!(out, expected, "{isa:?} {gate_type} {up_type} {tokens}");
            }
        }
    }
}

#[test]
fn what_is_not_finite_shows_in_every_batch() {
    let team = Team::new(2, Pinning::None);
    for isa in Isa::available() {
        for ty in [TensorType::Q8_0, TensorType::Q5_1, TensorType::Q6K] {
            for tokens in [1, 16, 40] {
                let (rows, columns) = (40, 512);
                let mut w = weights(ty, rows, columns, 5);
                let mut x = values(tokens * columns, 6);
                x[300] = f32::INFINITY;
                let out = product(isa, &team, &matrix(isa, &team, &w), &x, tokens);
                assert!(out[..rows].iter().all(|y| !y.is_finite()), "{isa:?} {ty} {tokens}");
                assert!(out[rows..].iter().all(|y| y.is_finite()), "{isa:?} {ty} {tokens}");
                x[300] = 1.0;
                // The scale of a block in row 2 becomes infinite: it is last in Q6_K's blocks.
                let row = w.bytes.len() / rows;
                let block = ty.block_bytes();
                let at = 2 * row + block + if ty == TensorType::Q6K { block - 2 } else { 0 };
                w.bytes[at..at + 2].copy_from_slice(&[0, 0x7c]);
                let out = product(isa, &team, &matrix(isa, &team, &w), &x, tokens);
                for (i, y) in out.iter().enumerate() {
                    assert_eq!(y.is_finite(), i % rows != 2, "{isa:?} {ty} {tokens} {i}");
                }
            }
        }
    }
}

#[test]
fn rows_without_a_scale_and_tokens_of_zeros_give_zeros() {
    let team = Team::new(1, Pinning::None);
    for isa in Isa::available() {
        for ty in TYPES.into_iter().filter(|ty| ty.can_quantize() && ty.block_len() > 1) {
            let (rows, columns) = (20, 512);
            let mut w = weights(ty, rows, columns, 5);
            let mut weight_values = values(rows * columns, 5);
            weight_values[3 * columns..4 * columns].fill(0.0);
            let mut bytes = quantize(ty, &weight_values).unwrap();
            bytes.truncate(w.bytes.len());
            w.bytes = bytes;
            let mut x = values(20 * columns, 6);
            x[7 * columns..8 * columns].fill(0.0);
            let out = product(isa, &team, &matrix(isa, &team, &w), &x, 20);
            for (i, y) in out.iter().enumerate() {
                let zero = i / rows == 7 || i % rows == 3;
                assert_eq!(*y == 0.0, zero, "{isa:?} {ty} {i}: {y}");
            }
        }
    }
}
