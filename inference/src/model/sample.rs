//! Small models with random weights in each family's true form, made from a seed.
//!
//! For tests, benchmarks and fuzzing corpora of the whole project: no file has to be committed or
//! fetched, and every family, tensor type and odd shape can be had. They say nothing sensible.

use fulmar_kernels::formats::{FormatError, TensorType, quantize};

use super::family::FAMILIES;
use crate::gguf::{Gguf, GgufError, NewValue, WriteError, Writer};

/// A template that shows turns, tools and the generation prompt.
const TEMPLATE: &str = "{%- for message in messages -%}<|im_start|>{{ message.role }}\n\
    {{ message.content }}<|im_end|>\n{% endfor -%}\
    {%- if add_generation_prompt -%}<|im_start|>assistant\n{% endif -%}";

/// What the model is to be like. [`Sample::of`] gives a small one.
#[derive(Debug, Clone)]
pub struct Sample {
    /// A family's name.
    pub family: String,
    /// Blocks.
    pub layers: usize,
    /// Width of the residual stream.
    pub embedding_len: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Dimensions of a head.
    pub head_dims: usize,
    /// Inner length of the feed-forward block.
    pub feed_forward_len: usize,
    /// Context the model claims to be trained for, in tokens.
    pub context_tokens: usize,
    /// Window of the layers that have one in this family, in tokens.
    pub window: usize,
    /// Type of the two-dimensional tensors whose rows it fits; the others are `F32`.
    pub weight_type: TensorType,
    /// Same seed, same bytes.
    pub seed: u64,
    /// The chat template; a plain one where none is given.
    pub template: Option<String>,
    /// More tokens that are not ordinary text, each with the number of its kind
    /// (`tokenizer.ggml.token_type`): 3 control, 4 defined by the author.
    pub specials: Vec<(String, i32)>,
}

/// Why a sample could not be made.
#[derive(Debug, thiserror::Error)]
pub enum SampleError {
    /// There is no such family.
    #[error("make a sample of family {0:?}: there is none")]
    Family(String),
    /// The weights cannot be converted.
    #[error("convert the sample's weights")]
    Format(#[from] FormatError),
    /// The file cannot be put together.
    #[error("write the sample")]
    Write(#[from] WriteError),
    /// The file cannot be read back.
    #[error("read the sample")]
    Read(#[from] GgufError),
}

impl Sample {
    /// A model of about 300 thousand parameters, with no dimension a power of two that need not be.
    pub fn of(family: &str) -> Self {
        Self {
            family: family.to_owned(),
            layers: 3,
            embedding_len: 96,
            heads: 6,
            kv_heads: 2,
            head_dims: 32,
            feed_forward_len: 160,
            context_tokens: 512,
            window: 24,
            weight_type: TensorType::F32,
            seed: 1,
            template: None,
            specials: Vec::new(),
        }
    }

    /// The names of all families.
    pub fn families() -> impl Iterator<Item = &'static str> {
        FAMILIES.iter().map(|family| family.name)
    }

    /// The model, in memory.
    ///
    /// # Errors
    /// [`SampleError`].
    pub fn gguf(&self) -> Result<Gguf, SampleError> {
        Ok(Gguf::from_bytes(self.bytes()?)?)
    }

    /// The model's file.
    ///
    /// # Errors
    /// [`SampleError`].
    pub fn bytes(&self) -> Result<Vec<u8>, SampleError> {
        let family = FAMILIES
            .iter()
            .find(|family| family.name == self.family)
            .ok_or_else(|| SampleError::Family(self.family.clone()))?;
        let mut file = Building {
            writer: Writer::new(family.name),
            data: Vec::new(),
            noise: Noise(self.seed),
            ty: self.weight_type,
        };
        let vocab = vocabulary(&self.specials);
        self.metadata(&mut file.writer, family.rope_factors, &vocab);
        let (embedding, inner) = (self.embedding_len, self.feed_forward_len);
        let (heads, kv) = (self.heads * self.head_dims, self.kv_heads * self.head_dims);
        file.matrix("token_embd.weight", embedding, vocab.tokens.len(), 1.0)?;
        file.norm("output_norm.weight", embedding)?;
        file.matrix("output.weight", embedding, vocab.tokens.len(), 2.0)?;
        if family.rope_factors {
            let pairs = self.rotated(true) / 2;
            file.vector("rope_factors_short.weight", pairs, |i| 1.0 + 0.03 * i as f32)?;
            file.vector("rope_factors_long.weight", pairs, |i| 1.0 + 1.5 * i as f32)?;
        }
        for layer in 0..self.layers {
            let at = |part: &str| format!("blk.{layer}.{part}.weight");
            file.norm(&at("attn_norm"), embedding)?;
            file.norm(&at("ffn_norm"), embedding)?;
            if family.fused {
                file.matrix(&at("attn_qkv"), embedding, heads + 2 * kv, 1.0)?;
                file.matrix(&at("ffn_up"), embedding, 2 * inner, 1.0)?;
            } else {
                file.matrix(&at("attn_q"), embedding, heads, 1.0)?;
                file.matrix(&at("attn_k"), embedding, kv, 1.0)?;
                file.matrix(&at("attn_v"), embedding, kv, 1.0)?;
                file.matrix(&at("ffn_gate"), embedding, inner, 1.0)?;
                file.matrix(&at("ffn_up"), embedding, inner, 1.0)?;
            }
            file.matrix(&at("attn_output"), heads, embedding, 1.0)?;
            file.matrix(&at("ffn_down"), inner, embedding, 1.0)?;
            if family.head_norms {
                file.norm(&at("attn_q_norm"), self.head_dims)?;
                file.norm(&at("attn_k_norm"), self.head_dims)?;
            }
            if family.sub_norms {
                file.norm(&at("attn_sub_norm"), heads)?;
                file.norm(&at("ffn_sub_norm"), inner)?;
            }
            if family.post_norms {
                file.norm(&at("post_attention_norm"), embedding)?;
                file.norm(&at("post_ffw_norm"), embedding)?;
            }
            if family.name == "qwen2" {
                for (part, len) in [("attn_q", heads), ("attn_k", kv), ("attn_v", kv)] {
                    file.noise_vector(&format!("blk.{layer}.{part}.bias"), len)?;
                }
            }
        }
        Ok(file.writer.into_bytes(&file.data)?)
    }

    /// Rotated dimensions: three quarters of a head where the family rotates a part.
    fn rotated(&self, partial: bool) -> usize {
        let dims = if partial { self.head_dims * 3 / 4 } else { self.head_dims };
        dims / 2 * 2
    }

    fn metadata(&self, writer: &mut Writer, partial_rotary: bool, vocab: &Vocabulary) {
        let prefix = self.family.clone();
        let mut number = |key: &str, value: usize| {
            writer.set(&format!("{prefix}.{key}"), value as u32);
        };
        number("block_count", self.layers);
        number("context_length", self.context_tokens);
        number("embedding_length", self.embedding_len);
        number("feed_forward_length", self.feed_forward_len);
        number("attention.head_count", self.heads);
        number("attention.head_count_kv", self.kv_heads);
        number("attention.key_length", self.head_dims);
        number("attention.value_length", self.head_dims);
        number("attention.sliding_window", self.window);
        number("rope.dimension_count", self.rotated(partial_rotary));
        number("rope.scaling.original_context_length", self.context_tokens / 4);
        writer.set(&format!("{prefix}.attention.layer_norm_rms_epsilon"), 1e-5_f32);
        writer.set(&format!("{prefix}.rope.freq_base"), 10_000.0_f32);
        writer.set("general.name", "sample");
        writer.set("tokenizer.ggml.model", "gpt2");
        writer.set("tokenizer.ggml.pre", "qwen2");
        writer.set("tokenizer.ggml.tokens", NewValue::Strings(vocab.tokens.clone()));
        writer.set("tokenizer.ggml.token_type", NewValue::I32s(vocab.types.clone()));
        writer.set("tokenizer.ggml.merges", NewValue::Strings(vocab.merges.clone()));
        let end = vocab.tokens.len() as u32 - 1;
        writer.set("tokenizer.ggml.eos_token_id", end);
        writer.set("tokenizer.ggml.padding_token_id", end - 2);
        writer.set("tokenizer.ggml.add_bos_token", false);
        writer.set("tokenizer.chat_template", self.template.as_deref().unwrap_or(TEMPLATE));
    }
}

struct Vocabulary {
    tokens: Vec<String>,
    types: Vec<i32>,
    merges: Vec<String>,
}

/// All bytes, some merges, these special tokens and three more: the last ends a turn.
fn vocabulary(specials: &[(String, i32)]) -> Vocabulary {
    // GPT-2's alphabet: printable bytes stand for themselves, the rest from U+0100 on.
    let mut others = 0x100_u32..;
    let mut tokens: Vec<String> = (0..=255_u8)
        .map(|byte| match byte {
            b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF => char::from(byte),
            _ => others.next().and_then(char::from_u32).unwrap_or(' '),
        })
        .map(String::from)
        .collect();
    let merges = ["h e", "t he", "i n", "e r", "o n", "Ġ the", "a n", "Ġ a", "in g", "o u"];
    tokens.extend(merges.iter().map(|merge| merge.replace(' ', "")));
    let mut types = vec![1; tokens.len()];
    for (text, kind) in specials {
        tokens.push(text.clone());
        types.push(*kind);
    }
    tokens.extend(["<|endoftext|>", "<|im_start|>", "<|im_end|>"].map(String::from));
    types.extend([3; 3]);
    Vocabulary { tokens, types, merges: merges.map(String::from).to_vec() }
}

struct Building {
    writer: Writer,
    data: Vec<Vec<u8>>,
    noise: Noise,
    ty: TensorType,
}

impl Building {
    fn matrix(
        &mut self,
        name: &str,
        columns: usize,
        rows: usize,
        gain: f32,
    ) -> Result<(), SampleError> {
        let ty = match self.ty {
            ty if !columns.is_multiple_of(ty.block_len()) => TensorType::F32,
            // Its one scale per tensor rules out single rows, so published files have these in F16.
            TensorType::I2S if !name.starts_with("blk.") => TensorType::F16,
            ty => ty,
        };
        let spread =
            gain / if name.starts_with("token_embd") { 1.0 } else { (columns as f32).sqrt() };
        let values: Vec<f32> = (0..rows * columns).map(|_| self.noise.next() * spread).collect();
        self.writer.declare(name, &[columns, rows], ty)?;
        self.data.push(quantize(ty, &values)?);
        Ok(())
    }

    fn norm(&mut self, name: &str, len: usize) -> Result<(), SampleError> {
        let values: Vec<f32> = (0..len).map(|_| 1.0 + 0.2 * self.noise.next()).collect();
        self.vector(name, len, |i| values[i])
    }

    fn noise_vector(&mut self, name: &str, len: usize) -> Result<(), SampleError> {
        let values: Vec<f32> = (0..len).map(|_| 0.3 * self.noise.next()).collect();
        self.vector(name, len, |i| values[i])
    }

    fn vector(
        &mut self,
        name: &str,
        len: usize,
        value: impl Fn(usize) -> f32,
    ) -> Result<(), SampleError> {
        self.writer.declare(name, &[len], TensorType::F32)?;
        self.data.push((0..len).flat_map(|i| value(i).to_le_bytes()).collect());
        Ok(())
    }
}

/// A generator of roughly normal numbers (splitmix64).
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> f32 {
        // The sum of four uniform numbers, scaled to variance 1.
        let sum: f32 = (0..4).map(|_| self.uniform()).sum();
        (sum - 2.0) * 3.0_f32.sqrt()
    }

    fn uniform(&mut self) -> f32 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((z ^ (z >> 31)) >> 40) as f32 / (1_u64 << 24) as f32
    }
}
