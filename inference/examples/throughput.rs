//! Measures a backend on a model file: prompt and decoding speed, load time, memory. JSON lines.
//!
//! ```text
//! throughput MODEL.gguf [key=value ...]
//!   backend=native threads=4 prompt=512 generate=128 sequences=1 depth=0 repeat=1 kv=f16
//!   cache=FOLDER batch=512 cpus=0,1,2,3
//! ```
//! With `cache`, the file is hashed at the start, in parts on all threads as a device verifies its
//! models, and the regrouped weights are kept in the folder.
//! `depth` tokens are in the cache before decoding is timed; `sequences` decode side by side.

use std::collections::HashMap;
use std::path::PathBuf;
use std::time::Instant;

use fulmar_inference::backend::{
    self, BLOCK_TOKENS, Backend, BackendOptions, Batch, KvType, Rows, Span, StepOutput,
    WeightCopies,
};
use fulmar_inference::gguf::Gguf;
use fulmar_inference::model::Architecture;

type Failure = Box<dyn std::error::Error>;

/// The key of copies that nobody needs to trust.
const MEASURED: [u8; WeightCopies::KEY_BYTES] = *b"for measurements, not for fleets";
/// Bytes that a thread hashes at a time.
const PART_BYTES: u64 = 4 << 20;

/// A digest of the file: of the SHA-256 of its parts, as a manifest's chunks have them.
fn hash(model: &std::path::Path, threads: usize) -> Result<[u8; 32], Failure> {
    use ring::digest::{Digest, SHA256, digest};
    let file = std::fs::File::open(model)?;
    let len = file.metadata()?.len();
    let next = std::sync::atomic::AtomicU64::new(0);
    let parts = std::sync::Mutex::new(Vec::<(u64, Digest)>::new());
    let work = || -> std::io::Result<()> {
        let mut buffer = vec![0; PART_BYTES as usize];
        loop {
            let start = next.fetch_add(PART_BYTES, std::sync::atomic::Ordering::Relaxed);
            if start >= len {
                return Ok(());
            }
            let part = &mut buffer[..PART_BYTES.min(len - start) as usize];
            std::os::unix::fs::FileExt::read_exact_at(&file, part, start)?;
            let digest = digest(&SHA256, part);
            if let Ok(mut parts) = parts.lock() {
                parts.push((start, digest));
            }
        }
    };
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        workers.into_iter().try_for_each(|w| w.join().unwrap_or(Ok(())))
    })?;
    let mut parts = parts.into_inner().unwrap_or_default();
    parts.sort_by_key(|(start, _)| *start);
    let all: Vec<u8> = parts.iter().flat_map(|(_, digest)| digest.as_ref().to_vec()).collect();
    Ok(digest(&SHA256, &all).as_ref().try_into()?)
}

struct Arguments(HashMap<String, String>);

impl Arguments {
    fn number(&self, key: &str, default: usize) -> Result<usize, Failure> {
        match self.0.get(key) {
            Some(value) => Ok(value.parse().map_err(|e| format!("{key}={value}: {e}"))?),
            None => Ok(default),
        }
    }

    fn is(&self, key: &str, value: &str) -> bool {
        self.0.get(key).is_some_and(|found| found == value)
    }
}

fn main() -> Result<(), Failure> {
    let mut given = std::env::args().skip(1);
    let model = PathBuf::from(given.next().ok_or("usage: throughput MODEL.gguf [key=value ...]")?);
    let pairs = given.filter_map(|a| a.split_once('=').map(|(k, v)| (k.to_owned(), v.to_owned())));
    let arguments = Arguments(pairs.collect());
    let begun = Instant::now();
    let mut bench = Bench::load(&model, &arguments)?;
    let load_ms = begun.elapsed().as_secs_f64() * 1e3;
    bench.prompt(1, 1)?;
    let first_ms = begun.elapsed().as_secs_f64() * 1e3;
    println!("{{\"load_ms\":{load_ms:.1},\"first_token_ms\":{first_ms:.1}}}");
    let (prompt, generate) = (arguments.number("prompt", 512)?, arguments.number("generate", 128)?);
    let depth = arguments.number("depth", 0)?;
    for _ in 0..arguments.number("repeat", 1)? {
        if prompt > 0 {
            let (wall, cpu) = bench.timed(|b| b.prompt(prompt, 1))?;
            report("prompt", prompt as f64, wall, cpu);
        }
        if generate > 0 {
            bench.prompt(depth.max(1), bench.sequences)?;
            let (wall, cpu) = bench.timed(|b| b.decode(generate))?;
            report("decode", (generate * bench.sequences) as f64, wall, cpu);
        }
    }
    println!("{{\"peak_bytes\":{}}}", peak_bytes());
    Ok(())
}

fn report(what: &str, tokens: f64, wall: f64, cpu: f64) {
    println!(
        "{{\"{what}_tokens_per_s\":{:.2},\"cpu_s\":{cpu:.4},\"wall_s\":{wall:.4}}}",
        tokens / wall
    );
}

struct Bench {
    backend: Box<dyn Backend>,
    vocabulary: usize,
    sequences: usize,
    batch_max: usize,
    blocks: Vec<Vec<u32>>,
    position: usize,
    output: StepOutput,
}

impl Bench {
    fn load(model: &std::path::Path, arguments: &Arguments) -> Result<Self, Failure> {
        let threads = arguments.number("threads", 4)?;
        let mut gguf = Gguf::open(model)?;
        if arguments.0.contains_key("cache") {
            gguf = gguf.verified_as(hash(model, threads)?);
        }
        let cpus = arguments.0.get("cpus").map_or(Ok(Vec::new()), |list| {
            list.split(',').map(str::parse).collect::<Result<Vec<usize>, _>>()
        })?;
        let architecture = Architecture::from_gguf(&gguf)?;
        let sequences = arguments.number("sequences", 1)?;
        let tokens = arguments
            .number("prompt", 512)?
            .max(arguments.number("depth", 0)?.max(1) + arguments.number("generate", 128)?);
        let each = tokens.div_ceil(BLOCK_TOKENS);
        let batch_max = arguments.number("batch", 512)?;
        let options = BackendOptions {
            threads,
            context_tokens_max: tokens.max(4096),
            kv_blocks: each * sequences,
            kv_type: if arguments.is("kv", "f32") {
                KvType::F32
            } else if arguments.is("kv", "q8") {
                KvType::Q8
            } else {
                KvType::F16
            },
            batch_tokens_max: batch_max,
            cpus,
            weight_copies: arguments
                .0
                .get("cache")
                .map(|folder| WeightCopies::new(PathBuf::from(folder), &MEASURED)),
        };
        let backend = if arguments.is("backend", "candle") {
            backend::candle::load(&gguf, &architecture, &options)?
        } else {
            backend::native::load(&gguf, &architecture, &options)?
        };
        let blocks =
            (0..sequences).map(|s| (0..each).map(|b| (s * each + b) as u32).collect()).collect();
        Ok(Self {
            backend,
            vocabulary: architecture.vocab_len,
            sequences,
            batch_max,
            blocks,
            position: 0,
            output: StepOutput::default(),
        })
    }

    /// Fills the first `sequences` sequences with `len` tokens from the start.
    fn prompt(&mut self, len: usize, sequences: usize) -> Result<(), Failure> {
        for sequence in 0..sequences {
            let mut position = 0;
            while position < len {
                let part = (len - position).min(self.batch_max);
                let tokens: Vec<u32> = (position..position + part)
                    .map(|p| ((p * 7919 + sequence * 31 + 1) % self.vocabulary) as u32)
                    .collect();
                let rows = if position + part == len { Rows::Last } else { Rows::None };
                let blocks = &self.blocks[sequence];
                let span = Span { start: 0, len: part, position, blocks, rows };
                let batch = Batch { tokens: &tokens, spans: &[span], hidden: false };
                self.backend.step(&batch, &mut self.output)?;
                position += part;
            }
        }
        self.position = len;
        Ok(())
    }

    /// Decodes `count` tokens of every sequence.
    fn decode(&mut self, count: usize) -> Result<(), Failure> {
        for step in 0..count {
            let tokens: Vec<u32> = (0..self.sequences)
                .map(|s| ((step * 104_729 + s * 31 + 5) % self.vocabulary) as u32)
                .collect();
            let position = self.position;
            let spans: Vec<Span<'_>> = self
                .blocks
                .iter()
                .enumerate()
                .map(|(start, blocks)| Span { start, len: 1, position, blocks, rows: Rows::Last })
                .collect();
            let batch = Batch { tokens: &tokens, spans: &spans, hidden: false };
            self.backend.step(&batch, &mut self.output)?;
            self.position += 1;
        }
        Ok(())
    }

    fn timed(
        &mut self,
        f: impl FnOnce(&mut Self) -> Result<(), Failure>,
    ) -> Result<(f64, f64), Failure> {
        let (wall, cpu) = (Instant::now(), cpu_seconds());
        f(self)?;
        Ok((wall.elapsed().as_secs_f64(), cpu_seconds() - cpu))
    }
}

/// Seconds of processor time of this process so far (Linux; hundredths).
fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let after_name = stat.rsplit(')').next().unwrap_or_default();
    let ticks =
        after_name.split_whitespace().skip(11).take(2).filter_map(|t| t.parse::<f64>().ok());
    ticks.sum::<f64>() / 100.0
}

/// Most resident memory so far (Linux).
fn peak_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|l| l.split_whitespace().next()).and_then(|n| n.parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}
