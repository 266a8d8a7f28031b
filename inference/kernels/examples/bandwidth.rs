//! Gigabytes of weights a second that products with few tokens read, per type, from memory and from
//! the caches, beside what plain reads of memory give. JSON lines.
//!
//! ```text
//! bandwidth [key=value ...]
//!   threads=4 tokens=1 megabytes=256 rounds=7 rows=3072 columns=1024 types=q8_0,q4_0
//! ```

use std::collections::HashMap;
use std::error::Error;
use std::sync::Arc;
use std::time::Instant;

use fulmar_kernels::activations::{Activations, Forms};
use fulmar_kernels::cpu::Isa;
use fulmar_kernels::formats::TensorType;
use fulmar_kernels::matrix::{Matrix, Product, Shape, multiply};
use fulmar_kernels::memory::Buffer;
use fulmar_kernels::team::{Pinning, Team};

const TYPES: [(&str, TensorType); 12] = [
    ("q8_0", TensorType::Q8_0),
    ("q4_0", TensorType::Q4_0),
    ("q4_k", TensorType::Q4K),
    ("q6_k", TensorType::Q6K),
    ("q5_1", TensorType::Q5_1),
    ("tq2_0", TensorType::Tq2_0),
    ("q4_1", TensorType::Q4_1),
    ("q5_0", TensorType::Q5_0),
    ("q5_k", TensorType::Q5K),
    ("q3_k", TensorType::Q3K),
    ("q2_k", TensorType::Q2K),
    ("iq4_nl", TensorType::Iq4Nl),
];

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: HashMap<String, String> = std::env::args()
        .skip(1)
        .filter_map(|a| a.split_once('=').map(|(k, v)| (k.to_owned(), v.to_owned())))
        .collect();
    let number = |key: &str, default: usize| -> Result<usize, Box<dyn Error>> {
        arguments.get(key).map_or(Ok(default), |value| Ok(value.parse()?))
    };
    let team = Team::new(number("threads", 4)?, Pinning::None);
    let (tokens, rounds) = (number("tokens", 1)?, number("rounds", 7)?);
    let (rows, columns) = (number("rows", 3072)?, number("columns", 1024)?);
    let bytes = number("megabytes", 256)? << 20;
    let isa = Isa::detect()?;
    let wanted = arguments.get("types").map_or("", String::as_str);
    let mut buffer = Buffer::zeroed(bytes)?;
    // Any bytes will do that are no infinite or subnormal half floats.
    buffer.iter_mut().enumerate().for_each(|(i, byte)| *byte = 0x11 + (i * 7 % 0x22) as u8);
    report("read", &team, rounds, bytes, || read(&team, &buffer));
    let storage = Arc::new(buffer);
    for (name, ty) in TYPES {
        if !wanted.is_empty() && !wanted.split(',').any(|w| w == name) {
            continue;
        }
        let shape = Shape { ty, rows, columns };
        let each = shape.regrouped_bytes(isa)?.next_multiple_of(4096);
        let matrices = (0..bytes / each)
            .map(|i| Matrix::new(isa, shape, storage.clone(), i * each))
            .collect::<Result<Vec<_>, _>>()?;
        let mut out = vec![0.0; rows * tokens];
        let mut acts = Activations::new(isa, tokens, columns)?;
        let mut work = |matrices: &[Matrix]| {
            for matrix in matrices {
                let forms = Forms { codes: true, floats: false };
                acts.fill(&team, tokens, columns, forms, (&mut [], 0), &|token, _, row| {
                    row.iter_mut().enumerate().for_each(|(i, x)| *x = ((i + token) % 17) as f32);
                });
                multiply(&team, &acts, &mut [Product { matrix, out: &mut out }]);
            }
        };
        report(name, &team, rounds, matrices.len() * each, || work(&matrices));
        // One matrix over and over stays in the caches: what the instructions cost.
        let same: Vec<Matrix> = matrices.iter().map(|_| matrices[0].clone()).collect();
        report(&format!("{name} cached"), &team, rounds, same.len() * each, || work(&same));
    }
    Ok(())
}

/// Reads everything once, a few instructions for each line of the caches.
fn read(team: &Team, buffer: &Buffer) {
    let parts: Vec<&[u64]> = buffer.as_slice::<u64>().chunks(1 << 17).collect();
    team.for_each(parts.len(), 1, &|_, index| {
        let mut sums = [0u64; 16];
        for words in parts[index].as_chunks::<16>().0 {
            sums.iter_mut().zip(words).for_each(|(sum, word)| *sum ^= word);
        }
        std::hint::black_box(sums);
    });
}

fn report(name: &str, team: &Team, rounds: usize, bytes: usize, mut work: impl FnMut()) {
    work();
    let mut seconds: Vec<f64> = (0..rounds)
        .map(|_| {
            let begun = Instant::now();
            work();
            begun.elapsed().as_secs_f64()
        })
        .collect();
    seconds.sort_by(f64::total_cmp);
    let rate = |seconds: f64| bytes as f64 / seconds / 1e9;
    println!(
        "{{\"what\":\"{name}\",\"threads\":{},\"median_gb_per_s\":{:.1},\"best_gb_per_s\":{:.1}}}",
        team.threads(),
        rate(seconds[rounds / 2]),
        rate(seconds[0])
    );
}
