//! Measures a backend on a model file: prompt and decoding speed, load time, memory. JSON lines.
//!
//! ```text
//! throughput MODEL.gguf [key=value ...]
//!   backend=native threads=4 prompt=512 generate=128 sequences=1 depth=0 repeat=1 kv=f16
//!   cache=FOLDER batch=512 cpus=0,1,2,3
//! ```
//! With `cache`, what is used of the file is hashed first, in parts on all threads as a device
//! verifies its models, and the regrouped weights are kept in the folder.
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
/// Bytes of a part that is hashed, like the chunks of a manifest.
const PART_BYTES: u64 = 4 << 20;

/// Hashes the parts of a file that cover some ranges, on all threads, each once: what a device does
/// to verify what it uses of a model. Here nobody said what the digests should be.
struct Hashed {
    file: std::fs::File,
    threads: usize,
    done: std::sync::Mutex<std::collections::HashMap<u64, ring::digest::Digest>>,
}

impl Hashed {
    fn hash(&self, ranges: &[std::ops::Range<u64>]) -> std::io::Result<()> {
        use ring::digest::{SHA256, digest};
        let len = self.file.metadata()?.len();
        let mut done = self.done.lock().map_err(|_| std::io::ErrorKind::Other)?;
        let wanted = |part: &u64| {
            let (from, to) = (part * PART_BYTES, (part + 1) * PART_BYTES);
            !done.contains_key(part) && ranges.iter().any(|r| r.start < to && from < r.end)
        };
        let parts: Vec<u64> = (0..len.div_ceil(PART_BYTES)).filter(wanted).collect();
        let next = std::sync::atomic::AtomicUsize::new(0);
        let found = std::sync::Mutex::new(Vec::new());
        let work = || -> std::io::Result<()> {
            let mut buffer = vec![0; PART_BYTES as usize];
            loop {
                let index = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                let Some(part) = parts.get(index) else { return Ok(()) };
                let start = part * PART_BYTES;
                let bytes = &mut buffer[..PART_BYTES.min(len - start) as usize];
                std::os::unix::fs::FileExt::read_exact_at(&self.file, bytes, start)?;
                let digest = digest(&SHA256, bytes);
                if let Ok(mut found) = found.lock() {
                    found.push((*part, digest));
                }
            }
        };
        std::thread::scope(|scope| {
            let workers: Vec<_> = (0..self.threads).map(|_| scope.spawn(work)).collect();
            workers.into_iter().try_for_each(|w| w.join().unwrap_or(Ok(())))
        })?;
        done.extend(found.into_inner().unwrap_or_default());
        Ok(())
    }
}

/// Opens a model as a device does: what is used of it is hashed first.
fn verified(model: &std::path::Path, threads: usize) -> Result<Gguf, Failure> {
    let file = std::fs::File::open(model)?;
    // What the copy is bound to. A device has the digest from the signed manifest.
    let about = format!("{} {:?}", model.display(), file.metadata()?);
    let name = ring::digest::digest(&ring::digest::SHA256, about.as_bytes());
    let hashed = Hashed { file: file.try_clone()?, threads, done: std::sync::Mutex::default() };
    let verify = move |ranges: &[_]| hashed.hash(ranges).map_err(|error| error.to_string());
    let name = name.as_ref().try_into()?;
    Ok(Gguf::in_parts(file, &model.display().to_string(), name, Box::new(verify))?)
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
        let in_parts = arguments.0.contains_key("cache");
        let gguf = if in_parts { verified(model, threads)? } else { Gguf::open(model)? };
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
