//! Measures matrix products alone: multiply-accumulates per second of a prompt's batch, per type.
//!
//! ```text
//! gemm [tokens=512] [rows=3072] [columns=1024] [threads=1] [type=Q4_0]
//! ```

#![allow(clippy::unwrap_used)] // A measurement stops at the first failure.

use std::sync::Arc;
use std::time::Instant;

use fulmar_kernels::activations::Activations;
use fulmar_kernels::cpu::Isa;
use fulmar_kernels::formats::{TensorType, quantize};
use fulmar_kernels::matrix::{Matrix, Product, Shape, multiply};
use fulmar_kernels::memory::Buffer;
use fulmar_kernels::team::{Pinning, Team};

const TYPES: [TensorType; 8] = [
    TensorType::Q8_0,
    TensorType::Q4_0,
    TensorType::Q5_1,
    TensorType::Q4K,
    TensorType::Q5K,
    TensorType::Q6K,
    TensorType::Q2K,
    TensorType::Tq2_0,
];

fn main() {
    let given = |key: &str, default: usize| {
        let mut values = std::env::args().filter_map(|a| Some(a.strip_prefix(key)?.to_owned()));
        values.next().map_or(default, |value| value.parse().unwrap())
    };
    let (tokens, threads) = (given("tokens=", 512), given("threads=", 1));
    let (rows, columns) = (given("rows=", 3072), given("columns=", 1024));
    let isa = Isa::detect().unwrap();
    let team = Team::new(threads, Pinning::None);
    let value = |i: usize| ((i * 7919 % 2003) as f32 - 1001.0) / 500.0;
    let floats: Vec<f32> = (0..rows * columns).map(value).collect();
    let x: Vec<f32> = (0..tokens * columns).map(|i| value(i * 3 + 1)).collect();
    for ty in TYPES {
        let name = ty.to_string();
        if !std::env::args().all(|a| a.strip_prefix("type=").is_none_or(|t| t == name)) {
            continue;
        }
        let shape = Shape { ty, rows, columns };
        let mut buffer = Buffer::zeroed(shape.regrouped_bytes(isa).unwrap()).unwrap();
        shape.regroup(isa, &team, &quantize(ty, &floats).unwrap(), &mut buffer).unwrap();
        let matrix = Matrix::new(isa, shape, Arc::new(buffer), 0).unwrap();
        let mut acts = Activations::new(isa, tokens, columns).unwrap();
        acts.fill(&team, tokens, columns, shape.forms(), (&mut [], 0), &|t, _, out| {
            out.copy_from_slice(&x[t * columns..(t + 1) * columns]);
        });
        let mut out = vec![0.0; tokens * rows];
        let mut best = f64::MAX;
        let mut all = Vec::new();
        for _ in 0..given("repeat=", 12) {
            let begun = Instant::now();
            multiply(&team, &acts, &mut [Product { matrix: &matrix, out: &mut out }]);
            best = best.min(begun.elapsed().as_secs_f64());
            all.push(begun.elapsed().as_secs_f64());
        }
        all.sort_by(f64::total_cmp);
        let macs = (tokens * rows * columns) as f64 / 1e9 / threads as f64;
        println!(
            "{name:6} {isa:?} {tokens} tokens, {rows} x {columns}, {threads} threads: {:.1} G a second and thread (median {:.1})",
            macs / best,
            macs / all[all.len() / 2]
        );
    }
}
