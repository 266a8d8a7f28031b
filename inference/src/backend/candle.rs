//! The backend over candle tensors: the reference in tests, and the way onto a GPU.
//!
//! Everything is computed in `f32`. Projections are dequantised when the model is loaded, unless
//! that took more than [`DENSE_BYTES_MAX`]: then they stay in the file's types, and candle's
//! quantised products (which round activations to 8 bits) take over where it knows the type.
//! Embedding rows are dequantised from the file as tokens come.
//!
//! Invariant, on a CPU: a token's result depends on its sequence alone, bit by bit; see [`rows`].
//!
//! Deliberately absent: fused kernels and preallocated activations. The fast path on a CPU is the
//! `native` backend.

mod attention;
mod cache;
mod held;
mod rows;
#[cfg(test)]
mod tests;
mod weights;

use candle_core::{Device, Tensor};

use self::attention::Rotation;
use self::cache::Cache;
use self::weights::{Norm, Projection, Source};
use super::check::{check_batch, check_blocks, output_rows};
use super::{Backend, BackendOptions, Batch, LoadError, MemoryUse, StepError, StepOutput};
use crate::gguf::Gguf;
use crate::model::{Activation, Architecture, Layer};

pub use self::weights::DENSE_BYTES_MAX;

/// Loads a model onto the best device this build can use: CUDA, then Metal, then the CPU.
///
/// # Errors
/// [`LoadError`] when the options ask for nothing or too much, or a tensor cannot be converted.
pub fn load(
    gguf: &Gguf,
    architecture: &Architecture,
    options: &BackendOptions,
) -> Result<Box<dyn Backend>, LoadError> {
    load_within(DENSE_BYTES_MAX, gguf, architecture, options)
}

/// [`load`], dequantising at most `dense_bytes_max` of projections.
pub(crate) fn load_within(
    dense_bytes_max: u64,
    gguf: &Gguf,
    architecture: &Architecture,
    options: &BackendOptions,
) -> Result<Box<dyn Backend>, LoadError> {
    options.check()?;
    gguf.verify_all()
        .map_err(|error| LoadError::Backend { backend: "candle", reason: error.to_string() })?;
    let source = Source::new(gguf, architecture, device(), dense_bytes_max);
    let pool = pool(options.threads)?;
    let loaded = pool.install(|| Decoder::load(source, architecture, options));
    Ok(Box::new(Candle { decoder: loaded?, pool }))
}

/// Bytes that [`load`] will hold, without loading.
pub fn plan(gguf: &Gguf, architecture: &Architecture, options: &BackendOptions) -> MemoryUse {
    MemoryUse {
        weights_bytes: weights::plan(gguf, architecture, device().is_cpu()),
        kv_bytes: cache::cache_bytes(architecture, options),
        scratch_bytes: scratch_bytes(architecture, options),
    }
}

/// Whether this build can use a GPU here.
pub(crate) fn has_gpu() -> bool {
    !device().is_cpu()
}

/// A device that exists: one that fails to start is not there.
fn device() -> Device {
    #[cfg(feature = "cuda")]
    if let Ok(device) = Device::new_cuda(0) {
        return device;
    }
    #[cfg(feature = "metal")]
    if let Ok(device) = Device::new_metal(0) {
        return device;
    }
    Device::Cpu
}

fn pool(threads: usize) -> Result<rayon::ThreadPool, LoadError> {
    rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .thread_name(|index| format!("candle-{index}"))
        .build()
        .map_err(|error| LoadError::Backend { backend: "candle", reason: error.to_string() })
}

/// The most that a step of `batch_tokens_max` tokens allocates at a time, roughly from above.
fn scratch_bytes(architecture: &Architecture, options: &BackendOptions) -> u64 {
    let tokens = options.batch_tokens_max.next_multiple_of(rows::TILE_ROWS) as u64;
    let heads = (architecture.heads * architecture.head_dims) as u64;
    let inner = architecture.feed_forward_len_max() as u64;
    let wide = architecture.embedding_len as u64 * 6 + heads * 6 + inner * 4;
    let logits = architecture.vocab_len as u64 * 2;
    let context =
        options.context_tokens_max.min(options.kv_blocks.saturating_mul(super::BLOCK_TOKENS));
    let gathered = context as u64 * architecture.kv_len() as u64 * 6;
    let floats = tokens.saturating_mul(wide + logits).saturating_add(gathered);
    let scores = (context.next_multiple_of(attention::TILE_POSITIONS) * architecture.heads) as u64;
    let scores = scores.saturating_mul(4 * rows::TILE_ROWS as u64);
    floats
        .saturating_mul(4)
        .saturating_add(scores.max(attention::SCORES_BYTES_MAX as u64).saturating_mul(3))
}

struct Candle {
    decoder: Decoder,
    pool: rayon::ThreadPool,
}

impl Backend for Candle {
    fn name(&self) -> &'static str {
        self.decoder.name()
    }

    fn step(&mut self, batch: &Batch<'_>, output: &mut StepOutput) -> Result<(), StepError> {
        check_batch(batch, self.decoder.architecture.vocab_len, &self.decoder.options)?;
        let backend = self.name();
        let decoder = &mut self.decoder;
        self.pool
            .install(|| decoder.step(batch, output))
            .map_err(|error| StepError::Compute { backend, reason: error.to_string() })
    }

    fn copy_blocks(&mut self, pairs: &[(u32, u32)]) -> Result<(), StepError> {
        check_blocks(pairs, &self.decoder.options)?;
        let backend = self.name();
        self.decoder
            .copy_blocks(pairs)
            .map_err(|error| StepError::Compute { backend, reason: error.to_string() })
    }

    fn memory(&self) -> MemoryUse {
        MemoryUse {
            weights_bytes: self.decoder.weights_bytes(),
            kv_bytes: self.decoder.caches.iter().map(Cache::held_bytes).sum(),
            // A step allocates its tensors and gives them back.
            scratch_bytes: 0,
        }
    }

    fn set_threads(&mut self, threads: usize) {
        match pool(threads.max(1)) {
            Ok(pool) => self.pool = pool,
            // The old pool goes on: slower or faster than asked for, but right.
            Err(error) => tracing::warn!(%error, threads, "threads of the candle backend stay"),
        }
    }
}

struct Decoder {
    architecture: Architecture,
    options: BackendOptions,
    device: Device,
    source: Source,
    blocks: Vec<Block>,
    caches: Vec<Cache>,
    output_norm: Norm,
    output: Projection,
}

struct Block {
    attention_norm: Norm,
    query: Projection,
    key: Projection,
    value: Projection,
    query_norm: Option<Norm>,
    key_norm: Option<Norm>,
    attention_sub_norm: Option<Norm>,
    attention_output: Projection,
    post_attention_norm: Option<Norm>,
    feed_forward_norm: Norm,
    gate: Projection,
    up: Projection,
    feed_forward_sub_norm: Option<Norm>,
    down: Projection,
    post_feed_forward_norm: Option<Norm>,
}

impl Block {
    fn load(source: &mut Source, layer: &Layer, a: &Architecture) -> Result<Self, LoadError> {
        let heads = a.heads * a.head_dims;
        let inner = layer.gate.outputs;
        Ok(Self {
            attention_norm: source.norm(&layer.attention_norm, a.embedding_len)?,
            query: source.projection(&layer.query)?,
            key: source.projection(&layer.key)?,
            value: source.projection(&layer.value)?,
            query_norm: source.norm_if(layer.query_norm.as_deref(), a.head_dims)?,
            key_norm: source.norm_if(layer.key_norm.as_deref(), a.head_dims)?,
            attention_sub_norm: source.norm_if(layer.attention_sub_norm.as_deref(), heads)?,
            attention_output: source.projection(&layer.attention_output)?,
            post_attention_norm: source
                .norm_if(layer.post_attention_norm.as_deref(), a.embedding_len)?,
            feed_forward_norm: source.norm(&layer.feed_forward_norm, a.embedding_len)?,
            gate: source.projection(&layer.gate)?,
            up: source.projection(&layer.up)?,
            feed_forward_sub_norm: source.norm_if(layer.feed_forward_sub_norm.as_deref(), inner)?,
            down: source.projection(&layer.down)?,
            post_feed_forward_norm: source
                .norm_if(layer.post_feed_forward_norm.as_deref(), a.embedding_len)?,
        })
    }
}

impl Block {
    fn held_bytes(&self) -> u64 {
        let projections = [
            &self.query,
            &self.key,
            &self.value,
            &self.attention_output,
            &self.gate,
            &self.up,
            &self.down,
        ];
        let norms = [
            Some(&self.attention_norm),
            self.query_norm.as_ref(),
            self.key_norm.as_ref(),
            self.attention_sub_norm.as_ref(),
            self.post_attention_norm.as_ref(),
            Some(&self.feed_forward_norm),
            self.feed_forward_sub_norm.as_ref(),
            self.post_feed_forward_norm.as_ref(),
        ];
        let projections: u64 = projections.into_iter().map(Projection::held_bytes).sum();
        projections + norms.into_iter().flatten().map(Norm::held_bytes).sum::<u64>()
    }
}

/// Applies a norm that may be absent.
fn normed(norm: Option<&Norm>, x: Tensor) -> candle_core::Result<Tensor> {
    match norm {
        Some(norm) => norm.forward(&x),
        None => Ok(x),
    }
}

impl Decoder {
    fn load(
        mut source: Source,
        architecture: &Architecture,
        options: &BackendOptions,
    ) -> Result<Self, LoadError> {
        let device = source.device().clone();
        source.check_rows(&architecture.token_embedding, architecture.embedding_len)?;
        let blocks = architecture
            .layers
            .iter()
            .map(|layer| Block::load(&mut source, layer, architecture))
            .collect::<Result<Vec<_>, _>>()?;
        let caches = architecture
            .layers
            .iter()
            .map(|_| Cache::new(architecture, options, &device))
            .collect::<candle_core::Result<Vec<_>>>()
            .map_err(|error| LoadError::Backend { backend: "candle", reason: error.to_string() })?;
        Ok(Self {
            output_norm: source.norm(&architecture.output_norm, architecture.embedding_len)?,
            output: source.projection(&architecture.output)?,
            architecture: architecture.clone(),
            options: options.clone(),
            device,
            source,
            blocks,
            caches,
        })
    }

    /// Bytes of all weights' storage.
    fn weights_bytes(&self) -> u64 {
        let blocks: u64 = self.blocks.iter().map(Block::held_bytes).sum();
        blocks + self.output_norm.held_bytes() + self.output.held_bytes()
    }

    fn name(&self) -> &'static str {
        match self.device {
            Device::Cpu => "candle-cpu",
            Device::Cuda(_) => "candle-cuda",
            Device::Metal(_) => "candle-metal",
        }
    }

    fn step(&mut self, batch: &Batch<'_>, output: &mut StepOutput) -> candle_core::Result<()> {
        let a = &self.architecture;
        let mut x = self.source.embed(&a.token_embedding, a.embedding_len, batch.tokens)?;
        if a.embedding_scale != 1.0 {
            x = (x * f64::from(a.embedding_scale))?;
        }
        let rotations = a
            .ropes
            .iter()
            .map(|rope| Rotation::new(rope, batch, self.options.context_tokens_max, &self.device))
            .collect::<candle_core::Result<Vec<_>>>()?;
        for ((block, layer), cache) in self.blocks.iter().zip(&a.layers).zip(&self.caches) {
            let attended = attend(a, block, layer, cache, &rotations[layer.rope], batch, &x)?;
            x = (x + attended)?;
            let fed = feed_forward(a.activation, block, &x)?;
            x = (x + fed)?;
        }
        let rows = output_rows(batch);
        output.values.clear();
        output.width = if batch.hidden { a.embedding_len } else { a.vocab_len };
        if rows.is_empty() {
            return Ok(());
        }
        let rows = Tensor::from_vec(rows.clone(), rows.len(), &self.device)?;
        let hidden = self.output_norm.forward(&x.index_select(&rows, 0)?)?;
        let result = if batch.hidden { hidden } else { self.logits(&hidden)? };
        output.values = result.flatten_all()?.to_vec1::<f32>()?;
        Ok(())
    }

    fn logits(&self, hidden: &Tensor) -> candle_core::Result<Tensor> {
        let logits = self.output.forward(hidden)?;
        match self.architecture.logit_cap.map(f64::from) {
            Some(cap) => (logits / cap)?.tanh()? * cap,
            None => Ok(logits),
        }
    }

    fn copy_blocks(&mut self, pairs: &[(u32, u32)]) -> candle_core::Result<()> {
        for (from, to) in pairs {
            for cache in &self.caches {
                cache.copy_block(*from as usize, *to as usize)?;
            }
        }
        Ok(())
    }
}

/// Attention of one block over `x`, `[tokens, embedding]`, without the residual.
fn attend(
    a: &Architecture,
    block: &Block,
    layer: &Layer,
    cache: &Cache,
    rotation: &Rotation,
    batch: &Batch<'_>,
    x: &Tensor,
) -> candle_core::Result<Tensor> {
    let tokens = batch.tokens.len();
    let normed_x = block.attention_norm.forward(x)?;
    let heads = |projection: &Projection, count: usize| {
        projection.forward(&normed_x)?.reshape((tokens, count, a.head_dims))
    };
    let query = normed(block.query_norm.as_ref(), heads(&block.query, a.heads)?)?;
    let key = normed(block.key_norm.as_ref(), heads(&block.key, a.kv_heads)?)?;
    let value = heads(&block.value, a.kv_heads)?;
    let query = rotation.apply(&query)?;
    let key = rotation.apply(&key)?;
    cache.write(batch, &key, &value)?;
    let mut parts = Vec::with_capacity(batch.spans.len());
    for span in batch.spans {
        let query = query.narrow(0, span.start, span.len)?;
        parts.push(cache.attend(a, layer.window, span, &query)?);
    }
    let attended = match parts.len() {
        1 => parts.swap_remove(0),
        _ => Tensor::cat(&parts, 0)?,
    };
    let attended = normed(block.attention_sub_norm.as_ref(), attended)?;
    normed(block.post_attention_norm.as_ref(), block.attention_output.forward(&attended)?)
}

/// The feed-forward half of one block over `x`, `[tokens, embedding]`, without the residual.
fn feed_forward(activation: Activation, block: &Block, x: &Tensor) -> candle_core::Result<Tensor> {
    let x = block.feed_forward_norm.forward(x)?;
    let gate = block.gate.forward(&x)?;
    let gate = match activation {
        Activation::Silu => gate.silu()?,
        Activation::GeluTanh => gate.gelu()?,
        Activation::ReluSquared => gate.relu()?.sqr()?,
    };
    let inner = (gate * block.up.forward(&x)?)?;
    let inner = normed(block.feed_forward_sub_norm.as_ref(), inner)?;
    normed(block.post_feed_forward_norm.as_ref(), block.down.forward(&inner)?)
}
