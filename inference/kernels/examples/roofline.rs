//! Measures what the machine can do, for the roofline in `tests/performance/README.md`: bytes read
//! from memory and 8-bit multiply-accumulates per second, with 1 thread and with all. JSON lines.
//!
//! ```text
//! roofline [THREADS]
//! ```

use fulmar_kernels::memory::Buffer;
use fulmar_kernels::team::{Pinning, Team};
use std::hint::black_box;
use std::time::Instant;

/// Much more than any cache holds.
const READ_BYTES: usize = 1 << 30;
/// What a thread reads at a time.
const PART_BYTES: usize = 1 << 20;
/// Times that the buffer is read, and the arithmetic runs; the best one counts.
const ROUNDS: usize = 5;
/// Rounds of independent multiply-accumulates.
const STEPS: u64 = 20_000_000;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let all = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let threads = std::env::args().nth(1).map_or(Ok(all), |text| text.parse())?;
    for threads in if threads > 1 { vec![1, threads] } else { vec![1] } {
        let team = Team::new(threads, Pinning::Cores);
        let read = read(&team)?;
        let dots = dots(&team).map_or("null".to_owned(), |rate| format!("{rate:.0}"));
        println!(
            "{{\"threads\":{threads},\"read_gb_per_s\":{read:.1},\"dots_gmac_per_s\":{dots}}}"
        );
    }
    Ok(())
}

/// Gigabytes per second that the threads read together, in order, from huge pages.
fn read(team: &Team) -> std::io::Result<f64> {
    let mut buffer = Buffer::zeroed(READ_BYTES)?;
    buffer.fill(1);
    let mut best = f64::INFINITY;
    for _ in 0..ROUNDS {
        let begun = Instant::now();
        team.for_each(READ_BYTES / PART_BYTES, 1, &|_, part| {
            let (words, _) = buffer[part * PART_BYTES..][..PART_BYTES].as_chunks::<64>();
            let mut sums = [0u64; 8];
            for word in words {
                for (sum, bytes) in sums.iter_mut().zip(word.as_chunks::<8>().0) {
                    *sum ^= u64::from_le_bytes(*bytes);
                }
            }
            black_box(sums);
        });
        best = best.min(begun.elapsed().as_secs_f64());
    }
    Ok(READ_BYTES as f64 / best / 1e9)
}

/// Billions of 8-bit multiply-accumulates per second in registers; none where there is no loop
/// for the processor.
fn dots(team: &Team) -> Option<f64> {
    let lanes = lanes()?;
    let mut best = f64::INFINITY;
    for _ in 0..ROUNDS {
        let begun = Instant::now();
        team.run(&|_| spin());
        best = best.min(begun.elapsed().as_secs_f64());
    }
    Some(STEPS as f64 * (CHAINS * lanes * team.threads()) as f64 / best / 1e9)
}

/// Independent sums, so that the units' latency is hidden.
const CHAINS: usize = 12;

#[cfg(target_arch = "x86_64")]
fn lanes() -> Option<usize> {
    is_x86_feature_detected!("avx512vnni").then_some(64)
}

#[cfg(not(target_arch = "x86_64"))]
fn lanes() -> Option<usize> {
    None
}

#[cfg(target_arch = "x86_64")]
fn spin() {
    #[target_feature(enable = "avx512f,avx512vnni")]
    fn run() {
        use std::arch::x86_64::{_mm512_dpbusd_epi32, _mm512_set1_epi8};
        let mut sums = [_mm512_set1_epi8(0); CHAINS];
        let (a, b) = (black_box(_mm512_set1_epi8(3)), black_box(_mm512_set1_epi8(5)));
        for _ in 0..STEPS {
            for sum in &mut sums {
                *sum = _mm512_dpbusd_epi32(*sum, a, b);
            }
            // Otherwise the compiler may do the rounds' work at once.
            black_box(());
        }
        black_box(sums);
    }
    // SAFETY: `lanes` has found the features, or nothing calls this.
    unsafe { run() }
}

#[cfg(not(target_arch = "x86_64"))]
fn spin() {}
