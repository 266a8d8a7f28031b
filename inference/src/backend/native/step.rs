//! One step: the decoder over preallocated buffers, part by part.

use std::io;

use fulmar_kernels::activations::{Activations, Forms};
use fulmar_kernels::attention::{Attend, HeadCount, Sequence, Task, attend, plan};
use fulmar_kernels::cache::{Heads, Place};
use fulmar_kernels::cpu::Isa;
use fulmar_kernels::matrix::{Product, multiply, multiply_gated};
use fulmar_kernels::memory::Buffer;
use fulmar_kernels::ops::{self, Gate, RotaryKind as Rotary};
use fulmar_kernels::team::Team;

use super::weights::Block;
use super::{BackendOptions, Batch, NAME, Native, StepError, StepOutput};
use crate::backend::{BLOCK_TOKENS, output_rows};
use crate::model::{Activation, Architecture, Layer, Rope, RotaryKind};

/// Buffers of a step, for `batch_tokens_max` tokens.
pub(super) struct Scratch {
    activations: Activations,
    /// The residual stream.
    x: Buffer,
    /// What is to be added to it.
    y: Buffer,
    query: Buffer,
    key: Buffer,
    value: Buffer,
    attended: Buffer,
    inner: Buffer,
}

fn widest(a: &Architecture) -> usize {
    a.embedding_len.max(a.heads * a.head_dims).max(a.feed_forward_len_max())
}

impl Scratch {
    pub(super) fn new(a: &Architecture, options: &BackendOptions, isa: Isa) -> io::Result<Self> {
        let tokens = options.batch_tokens_max;
        let rows = |len: usize| Buffer::zeroed(tokens * len * 4);
        Ok(Self {
            activations: Activations::new(isa, tokens, widest(a))?,
            x: rows(a.embedding_len)?,
            y: rows(a.embedding_len)?,
            query: rows(a.heads * a.head_dims)?,
            key: rows(a.kv_len())?,
            value: rows(a.kv_len())?,
            attended: rows(a.heads * a.head_dims)?,
            inner: rows(a.feed_forward_len_max())?,
        })
    }

    /// Bytes of all buffers. The threads' panels are theirs, and not among them.
    pub(super) fn held_bytes(&self) -> usize {
        let Self { activations, x, y, query, key, value, attended, inner } = self;
        let rows = [x, y, query, key, value, attended, inner];
        activations.bytes() + rows.iter().map(|buffer| buffer.len()).sum::<usize>()
    }
}

/// Bytes of a step's buffers, from above.
pub(super) fn scratch_bytes(a: &Architecture, options: &BackendOptions) -> u64 {
    let heads = a.heads * a.head_dims;
    let rows = 2 * a.embedding_len + 2 * heads + 2 * a.kv_len() + a.feed_forward_len_max();
    // Codes and floats of the activations, tiles padded by at most 8 tokens; unpacked panels of
    // two groups per thread, two where gate and up differ in type.
    let activations = (options.batch_tokens_max + 8) * (widest(a) + 256) * 6;
    let panels = options.threads * (widest(a) * 48 + 256) * 2;
    (options.batch_tokens_max * rows * 4 + activations + panels) as u64
}

/// What all layers of a step share.
struct Plan<'a> {
    sequences: Vec<Sequence<'a>>,
    tasks: Vec<Task>,
    places: Vec<Place>,
    /// Per rotary embedding: cosines and sines, `[tokens][pairs]`.
    angles: Vec<(Vec<f32>, Vec<f32>)>,
}

impl<'a> Plan<'a> {
    fn new(native: &Native, batch: &Batch<'a>) -> Self {
        let a = &native.architecture;
        let sequences: Vec<Sequence<'a>> = batch
            .spans
            .iter()
            .map(|s| Sequence {
                start: s.start,
                len: s.len,
                position: s.position,
                blocks: s.blocks,
            })
            .collect();
        let positions: Vec<usize> =
            batch.spans.iter().flat_map(|s| s.position..s.position + s.len).collect();
        let places = batch.spans.iter().flat_map(|s| {
            (s.position..s.position + s.len).map(|position| Place {
                block: s.blocks[position / BLOCK_TOKENS],
                offset: (position % BLOCK_TOKENS) as u32,
            })
        });
        let context = native.options.context_tokens_max;
        Self {
            tasks: plan(native.isa, &sequences, HeadCount { heads: a.heads, kv_heads: a.kv_heads }),
            places: places.collect(),
            angles: a.ropes.iter().map(|r| angles(r, context, &positions, &native.team)).collect(),
            sequences,
        }
    }
}

/// Cosines and sines of each position's pairs.
fn angles(rope: &Rope, context: usize, positions: &[usize], team: &Team) -> (Vec<f32>, Vec<f32>) {
    let frequencies = rope.frequencies(context);
    let pairs = frequencies.len();
    let mut both = vec![0.0; positions.len() * pairs * 2];
    team.for_rows(&mut both, pairs * 2, &|row, values| {
        let (cos, sin) = values.split_at_mut(pairs);
        for ((cos, sin), frequency) in cos.iter_mut().zip(sin).zip(frequencies) {
            let angle = f64::from(positions[row] as f32 * frequency);
            *cos = angle.cos() as f32 * rope.magnitude;
            *sin = angle.sin() as f32 * rope.magnitude;
        }
    });
    let rows = || both.chunks_exact(pairs * 2);
    (
        rows().flat_map(|row| &row[..pairs]).copied().collect(),
        rows().flat_map(|row| &row[pairs..]).copied().collect(),
    )
}

/// A buffer's first rows.
fn floats(buffer: &mut Buffer, len: usize) -> &mut [f32] {
    &mut buffer.as_mut_slice::<f32>()[..len]
}

impl Native {
    pub(super) fn run(
        &mut self,
        batch: &Batch<'_>,
        output: &mut StepOutput,
    ) -> Result<(), StepError> {
        let a = &self.architecture;
        output.values.clear();
        output.width = if batch.hidden { a.embedding_len } else { a.vocab_len };
        let rows = output_rows(batch);
        let plan = Plan::new(self, batch);
        self.embed(batch.tokens)?;
        let mut tokens = batch.tokens.len();
        for index in 0..self.weights.blocks.len() {
            self.attend(index, tokens, &plan);
            if index + 1 == self.weights.blocks.len() {
                // Only the rows asked for go on from here.
                if rows.is_empty() {
                    return Ok(());
                }
                self.keep(&rows);
                tokens = rows.len();
            }
            self.feed_forward(index, tokens);
        }
        self.output(tokens, batch.hidden, output);
        Ok(())
    }

    fn embed(&mut self, tokens: &[u32]) -> Result<(), StepError> {
        let a = &self.architecture;
        let embeddings = &self.weights.embeddings;
        let missing = std::sync::atomic::AtomicBool::new(false);
        let x = floats(&mut self.scratch.x, tokens.len() * a.embedding_len);
        self.team.for_rows(x, a.embedding_len, &|index, row| {
            if !embeddings.row(tokens[index], row) {
                missing.store(true, std::sync::atomic::Ordering::Relaxed);
            }
            if a.embedding_scale != 1.0 {
                row.iter_mut().for_each(|value| *value *= a.embedding_scale);
            }
        });
        embeddings.read(tokens.len());
        if missing.into_inner() {
            let reason = "a token's embedding is not in the model file".to_owned();
            return Err(StepError::Compute { backend: NAME, reason });
        }
        Ok(())
    }

    /// A layer up to the attended values, which are left in the scratch.
    fn attend(&mut self, index: usize, tokens: usize, plan: &Plan<'_>) {
        let (a, isa, team) = (&self.architecture, self.isa, &self.team);
        let (layer, block) = (&a.layers[index], &self.weights.blocks[index]);
        let post = match index {
            0 => None,
            _ => Some(self.weights.blocks[index - 1].post_feed_forward_norm.as_deref()),
        };
        let scratch = &mut self.scratch;
        let norm = &block.attention_norm;
        scratch.add_and_norm(a, isa, team, tokens, block.attention_forms(), (post, norm));
        let heads = a.heads * a.head_dims;
        let (query, key, value) = (
            floats(&mut scratch.query, tokens * heads),
            floats(&mut scratch.key, tokens * a.kv_len()),
            floats(&mut scratch.value, tokens * a.kv_len()),
        );
        let products = &mut [
            Product { matrix: &block.query, out: query },
            Product { matrix: &block.key, out: key },
            Product { matrix: &block.value, out: value },
        ];
        multiply(team, &scratch.activations, products);
        let (cos, sin) = &plan.angles[layer.rope];
        let heads_of_layer = Heads {
            queries: query,
            keys: key,
            values: value,
            query_norm: block.query_norm.as_deref(),
            key_norm: block.key_norm.as_deref(),
            epsilon: a.norm_epsilon,
            rotary: rotary(&a.ropes[layer.rope]),
            cos,
            sin,
            pairs: cos.len() / tokens,
        };
        self.cache.prepare(isa, team, index, &plan.places, heads_of_layer);
        let job = Attend {
            layer: index,
            sequences: &plan.sequences,
            tasks: &plan.tasks,
            queries: floats(&mut scratch.query, tokens * heads),
            heads: a.heads,
            scale: a.attention_scale,
            window: layer.window,
        };
        attend(isa, team, &self.cache, &job, floats(&mut scratch.attended, tokens * heads));
    }

    /// Keeps some rows, in ascending order, of the residual stream and the attended values.
    fn keep(&mut self, rows: &[u32]) {
        let a = &self.architecture;
        let kept = [
            (&mut self.scratch.x, a.embedding_len),
            (&mut self.scratch.attended, a.heads * a.head_dims),
        ];
        for (buffer, width) in kept {
            let values = buffer.as_mut_slice::<f32>();
            for (to, from) in rows.iter().enumerate() {
                let from = *from as usize * width;
                values.copy_within(from..from + width, to * width);
            }
        }
    }

    /// The rest of a layer, up to what is to be added to the residual stream.
    fn feed_forward(&mut self, index: usize, tokens: usize) {
        let (a, isa, team) = (&self.architecture, self.isa, &self.team);
        let (layer, block) = (&a.layers[index], &self.weights.blocks[index]);
        let scratch = &mut self.scratch;
        scratch.project_attended(a, isa, team, tokens, block);
        let post = Some(block.post_attention_norm.as_deref());
        let norm = &block.feed_forward_norm;
        scratch.add_and_norm(a, isa, team, tokens, block.feed_forward_forms(), (post, norm));
        scratch.gate_and_project(a, isa, team, tokens, (layer, block));
    }

    fn output(&mut self, tokens: usize, hidden: bool, output: &mut StepOutput) {
        let (a, isa, team) = (&self.architecture, self.isa, &self.team);
        let scratch = &mut self.scratch;
        output.values.resize(tokens * output.width, 0.0);
        let post = self.weights.blocks.last().map(|block| block.post_feed_forward_norm.as_deref());
        let norm = &self.weights.output_norm;
        let head = &self.weights.output;
        scratch.add_and_norm(a, isa, team, tokens, head.shape().forms(), (post, norm));
        if hidden {
            let x = floats(&mut scratch.x, tokens * a.embedding_len);
            let rows = output.values.chunks_exact_mut(a.embedding_len);
            for (x, out) in x.chunks_exact(a.embedding_len).zip(rows) {
                ops::rms_norm(isa, x, norm, a.norm_epsilon, out);
            }
            return;
        }
        let out = &mut output.values[..];
        multiply(team, &scratch.activations, &mut [Product { matrix: head, out }]);
        if let Some(cap) = a.logit_cap {
            output.values.iter_mut().for_each(|logit| *logit = (*logit / cap).tanh() * cap);
        }
    }
}

impl Scratch {
    /// `x += post(y)`, where there is a `y` yet; then the activations become `norm(x)`.
    fn add_and_norm(
        &mut self,
        a: &Architecture,
        isa: Isa,
        team: &Team,
        tokens: usize,
        forms: Forms,
        (post, norm): (Option<Option<&[f32]>>, &[f32]),
    ) {
        let len = a.embedding_len;
        let (x, y) = (self.x.as_mut_slice::<f32>(), self.y.as_slice::<f32>());
        let epsilon = a.norm_epsilon;
        self.activations.fill(team, tokens, len, forms, (x, len), &|token, x, out| {
            let y = &y[token * len..(token + 1) * len];
            match post {
                None => {}
                Some(None) => ops::add(isa, x, y),
                Some(Some(post)) => {
                    ops::rms_norm(isa, y, post, epsilon, out);
                    ops::add(isa, x, out);
                }
            }
            ops::rms_norm(isa, x, norm, epsilon, out);
        });
    }

    /// `y = Wo sub_norm(attended)`.
    fn project_attended(
        &mut self,
        a: &Architecture,
        isa: Isa,
        team: &Team,
        tokens: usize,
        block: &Block,
    ) {
        let heads = a.heads * a.head_dims;
        let attended = self.attended.as_slice::<f32>();
        let forms = block.attention_output.shape().forms();
        let norm = block.attention_sub_norm.as_deref().map(|norm| (norm, a.norm_epsilon));
        take_normed(&mut self.activations, isa, team, (tokens, heads), forms, attended, norm);
        let out = floats(&mut self.y, tokens * a.embedding_len);
        multiply(team, &self.activations, &mut [Product { matrix: &block.attention_output, out }]);
    }

    /// `y = Wd sub_norm(gate(Wg x) * (Wu x))`.
    fn gate_and_project(
        &mut self,
        a: &Architecture,
        isa: Isa,
        team: &Team,
        tokens: usize,
        (layer, block): (&Layer, &Block),
    ) {
        let len = layer.gate.outputs;
        let gate = match a.activation {
            Activation::Silu => Gate::Silu,
            Activation::GeluTanh => Gate::GeluTanh,
            Activation::ReluSquared => Gate::ReluSquared,
        };
        let inner = floats(&mut self.inner, tokens * len);
        multiply_gated(team, &self.activations, gate, &block.gate, &block.up, inner);
        let inner = &*inner;
        let forms = block.down.shape().forms();
        let norm = block.feed_forward_sub_norm.as_deref().map(|norm| (norm, a.norm_epsilon));
        take_normed(&mut self.activations, isa, team, (tokens, len), forms, inner, norm);
        let out = floats(&mut self.y, tokens * a.embedding_len);
        multiply(team, &self.activations, &mut [Product { matrix: &block.down, out }]);
    }
}

/// The activations become the rows, normed where there is a norm: its weights and epsilon.
fn take_normed(
    activations: &mut Activations,
    isa: Isa,
    team: &Team,
    (tokens, len): (usize, usize),
    forms: Forms,
    rows: &[f32],
    norm: Option<(&[f32], f32)>,
) {
    match norm {
        None => activations.fill_from(team, tokens, len, forms, rows),
        Some((norm, epsilon)) => {
            activations.fill(team, tokens, len, forms, (&mut [], 0), &|token, _, out| {
                ops::rms_norm(isa, &rows[token * len..(token + 1) * len], norm, epsilon, out);
            });
        }
    }
}

fn rotary(rope: &Rope) -> Rotary {
    match rope.kind {
        RotaryKind::Adjacent => Rotary::Adjacent,
        RotaryKind::Halves => Rotary::Halves,
    }
}
