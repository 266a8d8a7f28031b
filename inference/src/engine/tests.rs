//! The engine's properties, over a backend whose logits depend on every token in the cache, and
//! over real ones.

mod alike;
mod calls;
mod failures;
mod fairness;
mod measured;
mod texts;
mod vectors;
mod whole;

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::answer::{Answer, Ask};
use super::fake::{self, Fake, Faults, Log};
use super::loaded::{Allowance, Loaded, Parts, Stay, Work};
use super::queue::Queue;
use super::sequence::{Kind, Sequence};
use super::unread::EventReceiver;
use super::*;
use crate::backend::{Backend, KvType, MemoryUse};
use crate::kv::BlockPool;
use crate::model::sample::Sample;
use crate::sampler::Sampler;

/// How a test's model is set up.
#[derive(Clone)]
struct Setup {
    blocks: usize,
    batch_tokens: usize,
    sequences: usize,
    threads: usize,
    prefix_cache: PrefixCache,
    guesses_max: usize,
    /// Last tokens that the fake's logits depend on.
    sees: usize,
    faults: Faults,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            blocks: 64,
            batch_tokens: 64,
            sequences: 16,
            threads: 1,
            prefix_cache: PrefixCache::Shared,
            guesses_max: 0,
            sees: usize::MAX,
            faults: Faults::default(),
        }
    }
}

/// A model that goes round when a test says so.
struct Stage {
    loaded: Loaded,
    log: Arc<Log>,
    queue: Arc<Queue>,
    setup: Setup,
    ids: u64,
    now: Instant,
}

/// A request of a test.
#[derive(Clone)]
struct Wanted {
    prompt: Vec<u32>,
    tokens_max: usize,
    sampling: Sampling,
    seed: u64,
    stops: Vec<String>,
    logprobs: Option<u8>,
    principal: &'static str,
    priority: u8,
    deadline: Option<Duration>,
    /// Choosing this many tokens panics.
    panics_after: Option<usize>,
}

fn wanted(prompt: &[u32]) -> Wanted {
    Wanted {
        prompt: prompt.to_vec(),
        tokens_max: 40,
        sampling: Sampling::greedy(),
        seed: 5,
        stops: Vec::new(),
        logprobs: None,
        principal: "app",
        priority: PRIORITY_DEFAULT,
        deadline: None,
        panics_after: None,
    }
}

/// A prompt of `len` tokens that no other seed's prompt shares a block with.
fn prompt(seed: u32, len: usize) -> Vec<u32> {
    (0..len as u32).map(|i| (seed * 37 + i * 11 + i * i * seed) % 256).collect()
}

fn tokenizer() -> Arc<Tokenizer> {
    let gguf = Sample::of("llama").gguf().expect("a sample");
    Arc::new(Tokenizer::from_gguf(&gguf).expect("a tokenizer"))
}

impl Stage {
    fn new(setup: Setup) -> Self {
        let (log, tokenizer) = (Arc::<Log>::default(), tokenizer());
        let (vocab, faults) = (tokenizer.vocab_len(), setup.faults.clone());
        let fake = Fake::new(setup.blocks, vocab, setup.sees, faults, Arc::clone(&log));
        Self::over(Box::new(fake), setup, tokenizer, log)
    }

    /// Of a backend with the setup's blocks.
    fn over(
        backend: Box<dyn Backend>,
        setup: Setup,
        tokenizer: Arc<Tokenizer>,
        log: Arc<Log>,
    ) -> Self {
        let (queue, vocab) = (Queue::new(1000, 1 << 30), tokenizer.vocab_len());
        let info = ModelInfo {
            name: "staged".to_owned(),
            architecture: "staged".to_owned(),
            backend: backend.name().to_owned(),
            backend_reason: String::new(),
            context_tokens: setup.blocks * 32,
            vocabulary: vocab,
            kv_tokens: setup.blocks * 32,
            kv_type: KvType::F32,
            planned: MemoryUse::default(),
            tokenizer_bytes: 0,
            speculation: Speculation::Auto,
            draft: None,
            load_ms: 0,
        };
        let parts = Parts {
            info,
            stay: Stay::Idle,
            planned: MemoryUse::default(),
            backend,
            tokenizer,
            pool: BlockPool::new(setup.blocks, setup.prefix_cache),
            draft: None,
            queue: Arc::clone(&queue),
            block_bytes: 128,
        };
        let now = Instant::now();
        Self { loaded: Loaded::new(parts, now), log, queue, setup, ids: 0, now }
    }

    fn ask(&mut self, wanted: &Wanted) -> EventReceiver {
        self.ids += 1;
        let vocab = self.loaded.info.vocabulary;
        let place = self.queue.take().expect("a place");
        let constraint = place.keep(0).expect("room");
        let (mut answer, events) = Answer::new(Ask {
            place,
            constraint,
            sampler: Sampler::new(wanted.sampling.clone(), wanted.seed, vocab).expect("in range"),
            guide: None,
            stops: wanted.stops.clone(),
            logprobs: wanted.logprobs,
            tokens_max: wanted.tokens_max,
            prompt_tokens: wanted.prompt.len(),
            accepted_at: self.now,
            deadline: wanted.deadline.map(|d| self.now + d),
        });
        answer.panics_after = wanted.panics_after;
        let sequence = Sequence::new(
            self.ids,
            Arc::from(wanted.principal),
            wanted.priority,
            Kind::Generate,
            wanted.prompt.clone(),
            Work::Generate(Box::new(answer)),
        );
        self.loaded.add(sequence, self.now);
        events
    }

    fn turn(&mut self) {
        let strength = Strength {
            threads: self.setup.threads,
            batch_tokens: self.setup.batch_tokens,
            sequences: self.setup.sequences,
        };
        self.loaded.turn(self.now, Allowance { strength, guesses_max: self.setup.guesses_max });
    }

    fn run(&mut self) {
        let mut turns = 0;
        while !self.loaded.is_idle() {
            self.turn();
            turns += 1;
            assert!(turns < 100_000, "the engine goes round without an end");
        }
        let kv = self.loaded.kv();
        assert_eq!(kv.used, 0, "blocks are held by nobody: {kv:?}");
    }
}

/// Texts of many lengths, none the start of another.
const TEXTS: [&str; 16] = [
    "the quick brown fox",
    "once upon a time there was a bird that lived far out at sea, and it came ashore when it suited it",
    "x",
    "1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30",
    "the other one",
    "äöü → the",
    "on and on and on and on and on",
    "0",
    "{\"json\": [true, null, -1.5e3]}",
    "\n\n\t",
    "Why is the sky blue, and the sea grey?",
    "日本語のテキスト",
    "fn main() { println!(\"{}\", 7); }",
    "a",
    "The Fulmar nests on cliffs.",
    "zzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzz",
];

/// What came of a request.
#[derive(Debug, Default, PartialEq)]
struct Got {
    ids: Vec<u32>,
    text: String,
    cached: u32,
    reason: Option<FinishReason>,
    failed: Option<String>,
    usage: Usage,
}

fn read(mut events: EventReceiver) -> Got {
    let mut got = Got::default();
    while let Ok(event) = events.try_recv() {
        assert!(got.reason.is_none() && got.failed.is_none(), "{event:?} after the last event");
        match event {
            Event::Started { cached_tokens, .. } => got.cached = cached_tokens,
            Event::Token { text, id, .. } => {
                got.ids.push(id);
                got.text.push_str(&text);
            }
            Event::Done { reason, usage } => {
                got.reason = Some(reason);
                got.usage = usage;
            }
            Event::Failed { message } => got.failed = Some(message),
        }
    }
    got
}

/// The greedy answer, computed without an engine.
fn reference(wanted: &Wanted, sees: usize) -> Vec<u32> {
    let tokenizer = tokenizer();
    let mut text = wanted.prompt.clone();
    for _ in 0..wanted.tokens_max {
        let seen = text.len().saturating_sub(sees);
        let row = fake::logits(text[seen..].iter().copied(), tokenizer.vocab_len());
        let best = row.iter().copied().fold(f32::MIN, f32::max);
        let token = row.iter().position(|v| *v == best).expect("a best one") as u32;
        text.push(token);
        if tokenizer.is_end(token) {
            break;
        }
    }
    text.split_off(wanted.prompt.len())
}
