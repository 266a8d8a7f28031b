//! A decoder in plain arithmetic over `f64`, for tests: what the descriptions of Llama, Qwen 2 and
//! Qwen 3 say, with the tensors and numbers taken from the file by their names.
//!
//! It shares no code with [`Architecture`] or a backend, so that these can be held against it.

use fulmar_kernels::formats::dequantize;

use super::*;
use crate::gguf::Gguf;
use crate::model::Architecture;
use crate::model::sample::Sample;

/// The families that differ only in what is written below.
const FAMILIES: [&str; 3] = ["llama", "qwen2", "qwen3"];

pub(crate) struct Plain<'a> {
    gguf: &'a Gguf,
    /// Whether biases are added where the file has them.
    biased: bool,
    width: usize,
    heads: usize,
    kv_heads: usize,
    dims: usize,
}

impl<'a> Plain<'a> {
    pub(crate) fn new(gguf: &'a Gguf) -> Self {
        assert!(FAMILIES.contains(&gguf.architecture()));
        let mut plain = Self { gguf, biased: true, width: 0, heads: 0, kv_heads: 0, dims: 0 };
        plain.width = plain.number("embedding_length");
        plain.heads = plain.number("attention.head_count");
        plain.kv_heads = plain.number("attention.head_count_kv");
        plain.dims = plain.number("attention.key_length");
        plain
    }

    fn number(&self, key: &str) -> usize {
        let key = format!("{}.{key}", self.gguf.architecture());
        self.gguf.u32(&key).expect("a number").expect("is there") as usize
    }

    fn tensor(&self, name: &str) -> Option<Vec<f64>> {
        let tensor = self.gguf.tensor(name)?;
        let mut values = vec![0.0; tensor.info.elements()];
        dequantize(tensor.info.ty, tensor.data, &mut values).expect("converts");
        Some(values.into_iter().map(f64::from).collect())
    }

    /// `W x + b` for each row.
    fn linear(&self, name: &str, rows: &[Vec<f64>]) -> Vec<Vec<f64>> {
        let weight = self.tensor(&format!("{name}.weight")).expect("a weight");
        let outputs = weight.len() / rows[0].len();
        let bias = self.tensor(&format!("{name}.bias")).filter(|_| self.biased);
        let bias = bias.unwrap_or_else(|| vec![0.0; outputs]);
        let product = |x: &Vec<f64>| {
            let columns = weight.chunks_exact(x.len());
            columns.zip(&bias).map(|(w, b)| b + dot(w, x)).collect()
        };
        rows.iter().map(product).collect()
    }

    /// Root-mean-square norm of each `len` values of each row.
    fn norm(&self, name: &str, len: usize, rows: &[Vec<f64>]) -> Vec<Vec<f64>> {
        let weight = self.tensor(&format!("{name}.weight")).expect("a weight");
        let key = format!("{}.attention.layer_norm_rms_epsilon", self.gguf.architecture());
        let epsilon = f64::from(self.gguf.f32(&key).expect("a number").expect("is there"));
        let normed = |row: &Vec<f64>| {
            let part = |x: &[f64]| {
                let root = (dot(x, x) / len as f64 + epsilon).sqrt();
                x.iter().zip(&weight).map(move |(x, w)| x / root * w).collect::<Vec<_>>()
            };
            row.chunks_exact(len).flat_map(part).collect()
        };
        rows.iter().map(normed).collect()
    }

    /// Turns each head of each row by its position.
    fn rotate(&self, rows: &mut [Vec<f64>]) {
        let turned = self.number("rope.dimension_count");
        let key = format!("{}.rope.freq_base", self.gguf.architecture());
        let base = f64::from(self.gguf.f32(&key).expect("a number").expect("is there"));
        for (position, row) in rows.iter_mut().enumerate() {
            for head in row.chunks_exact_mut(self.dims) {
                for pair in 0..turned / 2 {
                    // Llama's files have the halves interleaved.
                    let (a, b) = match self.gguf.architecture() {
                        "llama" => (2 * pair, 2 * pair + 1),
                        _ => (pair, pair + turned / 2),
                    };
                    let angle = position as f64 * base.powf(-2.0 * pair as f64 / turned as f64);
                    let (sin, cos) = angle.sin_cos();
                    (head[a], head[b]) =
                        (head[a] * cos - head[b] * sin, head[a] * sin + head[b] * cos);
                }
            }
        }
    }

    /// What each row hears of those up to itself.
    fn attend(&self, q: &[Vec<f64>], k: &[Vec<f64>], v: &[Vec<f64>]) -> Vec<Vec<f64>> {
        let share = self.heads / self.kv_heads;
        let part = |row: &'_ [f64], head: usize| row[head * self.dims..][..self.dims].to_vec();
        let heard = |(at, row): (usize, &Vec<f64>)| {
            let of_head = |head: usize| {
                let query = part(row, head);
                let scale = (self.dims as f64).sqrt();
                let scores = k[..=at].iter().map(|k| dot(&query, &part(k, head / share)) / scale);
                let powers: Vec<f64> = scores.map(f64::exp).collect();
                let sum: f64 = powers.iter().sum();
                let mut heard = vec![0.0; self.dims];
                for (power, v) in powers.iter().zip(v) {
                    for (heard, v) in heard.iter_mut().zip(part(v, head / share)) {
                        *heard += power / sum * v;
                    }
                }
                heard
            };
            (0..self.heads).flat_map(of_head).collect()
        };
        q.iter().enumerate().map(heard).collect()
    }

    /// The hidden states of a text's tokens, after the output norm.
    pub(crate) fn hidden(&self, tokens: &[u32]) -> Vec<Vec<f64>> {
        let embedding = self.tensor("token_embd.weight").expect("is there");
        let row = |token: &u32| embedding[*token as usize * self.width..][..self.width].to_vec();
        let mut rows: Vec<Vec<f64>> = tokens.iter().map(row).collect();
        for layer in 0..self.number("block_count") {
            let at = |part: &str| format!("blk.{layer}.{part}");
            let x = self.norm(&at("attn_norm"), self.width, &rows);
            let (mut q, mut k, v) = (
                self.linear(&at("attn_q"), &x),
                self.linear(&at("attn_k"), &x),
                self.linear(&at("attn_v"), &x),
            );
            if self.gguf.tensor(&at("attn_q_norm.weight")).is_some() {
                q = self.norm(&at("attn_q_norm"), self.dims, &q);
                k = self.norm(&at("attn_k_norm"), self.dims, &k);
            }
            self.rotate(&mut q);
            self.rotate(&mut k);
            add(&mut rows, &self.linear(&at("attn_output"), &self.attend(&q, &k, &v)));
            let x = self.norm(&at("ffn_norm"), self.width, &rows);
            let (mut gate, up) = (self.linear(&at("ffn_gate"), &x), self.linear(&at("ffn_up"), &x));
            for (gate, up) in gate.iter_mut().flatten().zip(up.iter().flatten()) {
                *gate *= up / (1.0 + (-*gate).exp());
            }
            add(&mut rows, &self.linear(&at("ffn_down"), &gate));
        }
        self.norm("output_norm", self.width, &rows)
    }

    /// The logits that follow the last token.
    pub(crate) fn logits(&self, tokens: &[u32]) -> Vec<f64> {
        let last = self.hidden(tokens).pop().expect("a token");
        self.linear("output", &[last]).remove(0)
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn add(rows: &mut [Vec<f64>], others: &[Vec<f64>]) {
    for (value, other) in rows.iter_mut().flatten().zip(others.iter().flatten()) {
        *value += other;
    }
}

/// Normalised mean square error.
fn error(found: &[f32], expected: &[f64]) -> f64 {
    assert_eq!(found.len(), expected.len());
    let square = |(a, b): (&f32, &f64)| (f64::from(*a) - b).powi(2);
    found.iter().zip(expected).map(square).sum::<f64>() / dot(expected, expected)
}

const TOKENS: usize = 70;

fn tokens() -> Vec<u32> {
    (0..TOKENS).map(|i| ((i * i * 29 + i * 13 + 5) % 269) as u32).collect()
}

/// The last token's logits on both backends.
fn logits(gguf: &Gguf, tokens: &[u32]) -> [Vec<f32>; 2] {
    let architecture = Architecture::from_gguf(gguf).expect("read");
    let options = BackendOptions {
        threads: 2,
        context_tokens_max: 128,
        kv_blocks: 4,
        kv_type: KvType::F32,
        batch_tokens_max: 128,
        cpus: Vec::new(),
        weight_copies: None,
    };
    [native::load, candle::load].map(|load| {
        let mut backend = load(gguf, &architecture, &options).expect("loads");
        let (start, position, blocks) = (0, 0, &[2, 0, 3]);
        let span = Span { start, len: tokens.len(), position, blocks, rows: Rows::Last };
        let mut output = StepOutput::default();
        let batch = Batch { tokens, spans: &[span], hidden: false };
        backend.step(&batch, &mut output).expect("a step");
        output.values
    })
}

#[test]
fn llama_and_qwen_give_the_logits_of_plain_arithmetic_on_both_backends() {
    for family in FAMILIES {
        // The samples name a window of 24 tokens, as Mistral's files do: these families have none.
        let gguf = Sample::of(family).gguf().expect("a sample");
        let expected = Plain::new(&gguf).logits(&tokens());
        for found in logits(&gguf, &tokens()) {
            let error = error(&found, &expected);
            assert!(error < 1e-9, "{family}: {error}");
        }
    }
}

#[test]
fn the_biases_of_qwen_2_are_part_of_its_logits() {
    let gguf = Sample::of("qwen2").gguf().expect("a sample");
    let without = Plain { biased: false, ..Plain::new(&gguf) }.logits(&tokens());
    for found in logits(&gguf, &tokens()) {
        assert!(error(&found, &without) > 1e-3, "the biases change nothing");
    }
}
