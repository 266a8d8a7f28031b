//! A text depends on the request only, on real backends too: alone or with fifteen others, preempted
//! or not, guessed ahead or not, its prompt computed or found in the prefix cache; on every
//! architecture, with every precision that the cache has on devices, and with quantised weights.
//!
//! The engine goes round when the test says so: what is to happen is seen to happen.

use fulmar_kernels::formats::TensorType;

use super::*;
use crate::backend::{BackendOptions, candle, native};
use crate::gguf::Gguf;
use crate::model::Architecture;
use crate::tokenizer::Special;

/// How a model is run.
#[derive(Debug, Clone, Copy)]
struct Way {
    family: &'static str,
    backend: BackendChoice,
    kv_type: KvType,
    weights: TensorType,
    /// Whether candle multiplies the weights as they are in the file, as it does for large models.
    packed: bool,
}

fn ways() -> Vec<Way> {
    use TensorType::{F32, Q4_0};
    let mut ways = Vec::new();
    for family in Sample::families() {
        for (backend, kv_type, weights, packed) in [
            (BackendChoice::Native, KvType::F16, F32, false),
            (BackendChoice::Native, KvType::Q8, Q4_0, false),
            (BackendChoice::Candle, KvType::Q8, F32, false),
            (BackendChoice::Candle, KvType::F16, Q4_0, false),
            (BackendChoice::Candle, KvType::Q8, Q4_0, true),
        ] {
            ways.push(Way { family, backend, kv_type, weights, packed });
        }
    }
    ways
}

impl Way {
    fn gguf(self) -> Gguf {
        let sample = Sample { weight_type: self.weights, layers: 2, ..Sample::of(self.family) };
        sample.gguf().expect("a sample")
    }

    fn stage(self, gguf: &Gguf, setup: Setup) -> Stage {
        let options = BackendOptions {
            threads: setup.threads,
            context_tokens_max: 256,
            kv_blocks: setup.blocks,
            kv_type: self.kv_type,
            batch_tokens_max: setup.batch_tokens,
            cpus: Vec::new(),
            weight_copies: None,
        };
        let architecture = Architecture::from_gguf(gguf).expect("read");
        let backend = match self.backend {
            BackendChoice::Candle => {
                let dense_bytes_max = if self.packed { 0 } else { candle::DENSE_BYTES_MAX };
                candle::load_within(dense_bytes_max, gguf, &architecture, &options)
            }
            _ => native::load(gguf, &architecture, &options),
        };
        let tokenizer = Arc::new(Tokenizer::from_gguf(gguf).expect("a tokenizer"));
        Stage::over(backend.expect("loads"), setup, tokenizer, Arc::default())
    }
}

fn tokens(text: &str) -> Vec<u32> {
    tokenizer().encode(text, Special::Plain)
}

/// Runs requests that are all there before the first step: the answers, and how many sequences ran
/// at once at most.
fn together(stage: &mut Stage, requests: &[Wanted]) -> (Vec<Got>, usize) {
    let events: Vec<_> = requests.iter().map(|wanted| stage.ask(wanted)).collect();
    let mut most = 0;
    for turn in 0.. {
        assert!(turn < 10_000, "the engine goes round without an end");
        if stage.loaded.is_idle() {
            break;
        }
        stage.turn();
        most = most.max(stage.loaded.status(stage.now).running);
    }
    (events.into_iter().map(read).collect(), most)
}

fn ids(got: &[Got]) -> Vec<&[u32]> {
    got.iter().map(|got| &got.ids[..]).collect()
}

#[test]
fn on_every_architecture_sixteen_requests_together_get_the_text_they_get_alone() {
    let requests = TEXTS.map(|text| Wanted { tokens_max: 24, ..wanted(&tokens(text)) });
    for way in ways() {
        let gguf = way.gguf();
        let setup = Setup {
            blocks: 128,
            batch_tokens: 256,
            prefix_cache: PrefixCache::Off,
            ..Setup::default()
        };
        let mut alone = way.stage(&gguf, setup.clone());
        let expected: Vec<Got> = requests
            .iter()
            .flat_map(|wanted| together(&mut alone, std::slice::from_ref(wanted)).0)
            .collect();
        let mut crowd = way.stage(&gguf, Setup { threads: 3, ..setup });
        let (got, most) = together(&mut crowd, &requests);
        assert_eq!(most, 16, "all at once: {way:?}");
        assert_eq!(crowd.loaded.totals().preemptions, 0, "{way:?}");
        assert_eq!(ids(&got), ids(&expected), "{way:?}");
        assert!(got.iter().all(|got| got.reason.is_some()), "{way:?}");
        let different: std::collections::BTreeSet<_> = ids(&got).into_iter().collect();
        assert!(different.len() > 8, "the texts tell the requests apart: {way:?}");
    }
}

/// Prompts that share more than a block, half of them drawn and half of them greedy. No answer ends
/// early, so that every model's steps are alike; the last ones are of two tokens only, and so repeat
/// what was said and can be guessed.
fn mixed() -> Vec<Wanted> {
    let shared = "You are a bird that lives at sea; say on and on and on what you see. ";
    let wanted = |(i, text): (usize, &&str)| {
        let temperature = if i % 2 == 0 { 0.0 } else { 0.7 };
        let ends = tokenizer().ends().to_vec().into_iter().map(|end| (end, -100.0));
        let two = [(97, 50.0), (98, 50.0)].into_iter().filter(|_| i >= 5);
        let logit_bias = ends.chain(two).collect();
        let sampling = Sampling { temperature, logit_bias, ..Sampling::default() };
        let prompt = tokens(&format!("{shared}{text}"));
        Wanted { sampling, seed: i as u64, tokens_max: 40, ..wanted(&prompt) }
    };
    TEXTS.iter().take(7).enumerate().map(wanted).collect()
}

#[test]
fn preempted_or_guessed_or_from_the_prefix_cache_the_texts_are_the_same() {
    let requests = mixed();
    for way in ways() {
        let gguf = way.gguf();
        let setup = Setup { blocks: 80, batch_tokens: 128, ..Setup::default() };
        let off = Setup { prefix_cache: PrefixCache::Off, ..setup.clone() };
        let mut plain = way.stage(&gguf, off.clone());
        let (got, _) = together(&mut plain, &requests);
        let (expected, totals) = (ids(&got), plain.loaded.totals());
        let happened = (totals.preemptions, totals.cached_tokens, totals.drafted_tokens);
        assert_eq!(happened, (0, 0, 0), "{way:?}");

        let mut tight = way.stage(&gguf, Setup { blocks: 11, ..off.clone() });
        let (got, _) = together(&mut tight, &requests);
        assert_eq!(ids(&got), expected, "preempted: {way:?}");
        let totals = tight.loaded.totals();
        assert!(totals.preemptions > 0 && totals.recomputed_tokens > 0, "{way:?}: {totals:?}");

        let mut guessing = way.stage(&gguf, Setup { guesses_max: 4, sequences: 3, ..off });
        let (got, _) = together(&mut guessing, &requests);
        assert_eq!(ids(&got), expected, "guessed: {way:?}");
        assert!(guessing.loaded.totals().drafted_tokens > 0, "{way:?}");

        let mut cached = way.stage(&gguf, setup);
        together(&mut cached, &requests[..1]);
        let (got, _) = together(&mut cached, &requests);
        assert_eq!(ids(&got), expected, "from the prefix cache: {way:?}");
        assert!(got.iter().all(|got| got.cached > 0), "each prompt starts alike: {way:?}");
    }
}
