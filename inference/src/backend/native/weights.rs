//! A model's weights, regrouped for the kernels.
//!
//! Embedding rows are read from the model file as tokens come: they need no regrouping, and where
//! the file ties them to the head they would otherwise be kept twice.

use std::cell::Cell;
use std::collections::HashMap;
use std::sync::Arc;

use fulmar_kernels::activations::Forms;
use fulmar_kernels::cpu::Isa;
use fulmar_kernels::formats::{I2_S_TAIL_BYTES, TensorType, dequantize};
use fulmar_kernels::matrix::{Matrix, Shape};
use fulmar_kernels::memory::Buffer;
use fulmar_kernels::team::Team;

use super::stored::Stored;
use super::{LoadError, refused};
use crate::backend::WeightCopies;
use crate::backend::pages::EmbeddingPages;
use crate::gguf::{Gguf, Tensor};
use crate::model::{Architecture, Layer, Linear};

/// Where a matrix's regrouped bytes start: whole pages.
const ALIGNMENT: usize = 4096;

/// Everything that a step multiplies with.
pub(super) struct Weights {
    pub(super) blocks: Vec<Block>,
    pub(super) output_norm: Vec<f32>,
    pub(super) output: Matrix,
    pub(super) embeddings: Embeddings,
    /// Bytes of the allocations that matrices and vectors lie in.
    pub(super) held_bytes: usize,
}

/// One layer's weights, as [`Layer`] has them.
pub(super) struct Block {
    pub(super) attention_norm: Vec<f32>,
    pub(super) query: Matrix,
    pub(super) key: Matrix,
    pub(super) value: Matrix,
    pub(super) query_norm: Option<Vec<f32>>,
    pub(super) key_norm: Option<Vec<f32>>,
    pub(super) attention_sub_norm: Option<Vec<f32>>,
    pub(super) attention_output: Matrix,
    pub(super) post_attention_norm: Option<Vec<f32>>,
    pub(super) feed_forward_norm: Vec<f32>,
    pub(super) gate: Matrix,
    pub(super) up: Matrix,
    pub(super) feed_forward_sub_norm: Option<Vec<f32>>,
    pub(super) down: Matrix,
    pub(super) post_feed_forward_norm: Option<Vec<f32>>,
}

impl Block {
    /// Forms that the attention's projections need.
    pub(super) fn attention_forms(&self) -> Forms {
        let forms = |m: &Matrix| m.shape().forms();
        forms(&self.query).and(forms(&self.key)).and(forms(&self.value))
    }

    /// Forms that gate and up need.
    pub(super) fn feed_forward_forms(&self) -> Forms {
        self.gate.shape().forms().and(self.up.shape().forms())
    }
}

/// The rows of the token embedding, in the model file.
pub(super) struct Embeddings {
    gguf: Gguf,
    name: String,
    ty: TensorType,
    row_bytes: usize,
    pages: EmbeddingPages,
}

impl Embeddings {
    fn new(gguf: &Gguf, a: &Architecture) -> Result<Self, LoadError> {
        let name = a.token_embedding.clone();
        let tensor = tensor(gguf, &name)?;
        let ty = tensor.info.ty;
        let row_bytes = ty.row_bytes(a.embedding_len).filter(|_| ty.can_dequantize());
        let row_bytes = match row_bytes {
            Some(bytes) if ty != TensorType::I2S => bytes,
            _ => {
                let reason = format!("type {ty} has no single rows to embed tokens with");
                return Err(LoadError::Tensor { name, reason });
            }
        };
        Ok(Self { gguf: gguf.clone(), name, ty, row_bytes, pages: EmbeddingPages::default() })
    }

    /// Writes a token's embedding. False when the file has none.
    pub(super) fn row(&self, token: u32, out: &mut [f32]) -> bool {
        let start = token as usize * self.row_bytes;
        let tensor = self.gguf.tensor(&self.name);
        let row = tensor.and_then(|t| t.data.get(start..start + self.row_bytes));
        row.is_some_and(|row| dequantize(self.ty, row, out).is_ok())
    }

    /// Says that the rows of so many tokens were read.
    pub(super) fn read(&self, tokens: usize) {
        self.pages.read(&self.gguf, tokens);
    }
}

fn tensor<'a>(gguf: &'a Gguf, name: &str) -> Result<Tensor<'a>, LoadError> {
    gguf.tensor(name).ok_or_else(|| LoadError::Tensor {
        name: name.to_owned(),
        reason: "not in the file".to_owned(),
    })
}

/// Which rows of which tensor a matrix has.
type Key<'a> = (&'a str, usize, usize);

/// A model file and where each of its matrices will lie.
pub(super) struct Source<'a> {
    gguf: &'a Gguf,
    architecture: &'a Architecture,
    isa: Isa,
    places: HashMap<Key<'a>, usize>,
    order: Vec<&'a Linear>,
    /// Where the vectors lie behind the matrices in a stored copy.
    vectors_at: usize,
    vectors: HashMap<Key<'a>, Vec<f32>>,
    bytes: usize,
    /// Bytes of the vectors that were handed out.
    handed_bytes: Cell<usize>,
}

/// Every vector that a model's weights have: norms and biases.
fn vectors_of(a: &Architecture) -> Vec<Key<'_>> {
    let mut all: Vec<Key<'_>> = vec![(&a.output_norm, 0, a.embedding_len)];
    for layer in &a.layers {
        let heads = a.heads * a.head_dims;
        let norms = [
            (Some(&layer.attention_norm), a.embedding_len),
            (layer.query_norm.as_ref(), a.head_dims),
            (layer.key_norm.as_ref(), a.head_dims),
            (layer.attention_sub_norm.as_ref(), heads),
            (layer.post_attention_norm.as_ref(), a.embedding_len),
            (Some(&layer.feed_forward_norm), a.embedding_len),
            (layer.feed_forward_sub_norm.as_ref(), layer.gate.outputs),
            (layer.post_feed_forward_norm.as_ref(), a.embedding_len),
        ];
        all.extend(norms.into_iter().filter_map(|(name, len)| Some((name?.as_str(), 0, len))));
    }
    all.extend(
        a.linears()
            .filter_map(|linear| Some((linear.bias.as_deref()?, linear.first_row, linear.outputs))),
    );
    all
}

/// Why a copy of the weights was not made.
#[derive(Debug)]
enum StoreError {
    /// The weights themselves are at fault.
    Load(LoadError),
    /// The file is.
    Io(std::io::Error),
}

impl From<std::io::Error> for StoreError {
    fn from(error: std::io::Error) -> Self {
        Self::Io(error)
    }
}

impl<'a> Source<'a> {
    /// Lays out a model's matrices, each once however often it is used.
    pub(super) fn new(
        gguf: &'a Gguf,
        architecture: &'a Architecture,
        isa: Isa,
    ) -> Result<Self, LoadError> {
        let (places, order, vectors) = (HashMap::new(), Vec::new(), HashMap::new());
        let (vectors_at, bytes, handed_bytes) = (0, 0, Cell::new(0));
        let mut source = Self {
            gguf,
            architecture,
            isa,
            places,
            order,
            vectors_at,
            vectors,
            bytes,
            handed_bytes,
        };
        for linear in architecture.linears() {
            if source.places.contains_key(&key(linear)) {
                continue;
            }
            let shape = source.shape(linear)?;
            let bytes = shape.regrouped_bytes(isa).map_err(|e| unfit(linear, &e))?;
            source.places.insert(key(linear), source.bytes);
            source.order.push(linear);
            source.bytes += bytes.next_multiple_of(ALIGNMENT);
        }
        source.vectors_at = source.bytes;
        let values: usize = vectors_of(architecture).iter().map(|(_, _, len)| len).sum();
        source.bytes += (values * 4).next_multiple_of(ALIGNMENT);
        Ok(source)
    }

    /// Bytes that the weights hold at most: those from a copy have the vectors twice, as they were
    /// read and as they are used.
    pub(super) fn held_bytes_max(&self) -> usize {
        self.bytes + (self.bytes - self.vectors_at)
    }

    /// Takes the regrouped weights from the copy in `folder`, or makes them (and the copy).
    pub(super) fn load(
        mut self,
        team: &Team,
        copies: Option<&WeightCopies>,
    ) -> Result<Weights, LoadError> {
        // Without a digest there is nothing to bind a copy to.
        let stored = copies
            .zip(self.gguf.sha256())
            .map(|(copies, sha256)| Stored::new(copies, sha256, self.isa, self.bytes));
        let runs = self.runs();
        if let Some(stored) = &stored
            && let Some(kept) = stored.open(team, &runs)
        {
            return self.assemble_kept(kept);
        }
        // All of the file is read from here on.
        self.gguf.verify_all().map_err(|e| refused(&e))?;
        for (name, first, len) in vectors_of(self.architecture) {
            let values = self.read_vector(name, first, len)?;
            self.vectors.insert((name, first, len), values);
        }
        if let Some(stored) = &stored {
            match self.store(team, stored, &runs) {
                // Read as the next start will: what was not written well is seen now.
                Ok(()) => {
                    if let Some(kept) = stored.open(team, &runs) {
                        return self.assemble_kept(kept);
                    }
                }
                Err(StoreError::Load(error)) => return Err(error),
                // The copy saves time, nothing else.
                Err(StoreError::Io(error)) => {
                    tracing::warn!(%error, "regrouped weights are not stored");
                }
            }
        }
        let mut buffer = Buffer::zeroed(self.vectors_at).map_err(|e| refused(&e))?;
        for linear in &self.order {
            let place = self.places[&key(linear)];
            self.regroup(linear, team, &mut buffer[place..])?;
            self.gguf.release();
        }
        self.assemble(&Arc::new(buffer))
    }

    /// The weights from a copy: of the file, embedding rows alone are used.
    fn assemble_kept(mut self, kept: Buffer) -> Result<Weights, LoadError> {
        let embedding = [self.architecture.token_embedding.as_str()];
        self.gguf.verify(embedding).map_err(|e| refused(&e))?;
        let mut values = kept[self.vectors_at..]
            .chunks_exact(4)
            .map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap_or_default()));
        for (name, first, len) in vectors_of(self.architecture) {
            self.vectors.insert((name, first, len), values.by_ref().take(len).collect());
        }
        let weights = self.assemble(&Arc::new(kept))?;
        self.gguf.release();
        Ok(weights)
    }

    /// Bytes from each matrix to the next, and of the vectors.
    fn runs(&self) -> Vec<usize> {
        let ends = self.order.iter().skip(1).map(|linear| self.places[&key(linear)]);
        let mut start = 0;
        let ends = ends.chain([self.vectors_at, self.bytes]);
        ends.map(|end| end - std::mem::replace(&mut start, end)).collect()
    }

    fn store(&self, team: &Team, stored: &Stored, runs: &[usize]) -> Result<(), StoreError> {
        let mut copy = stored.create()?;
        let longest = runs.iter().copied().max().unwrap_or(0);
        let mut buffer = Buffer::zeroed(longest)?;
        for (linear, run) in self.order.iter().zip(runs) {
            buffer[..*run].fill(0);
            self.regroup(linear, team, &mut buffer).map_err(StoreError::Load)?;
            copy.write(team, &mut buffer[..*run])?;
            self.gguf.release();
        }
        let mut vectors = Vec::with_capacity(self.bytes - self.vectors_at);
        for key in vectors_of(self.architecture) {
            vectors.extend(self.vectors[&key].iter().flat_map(|value| value.to_le_bytes()));
        }
        vectors.resize(self.bytes - self.vectors_at, 0);
        copy.write(team, &mut vectors)?;
        Ok(copy.finish()?)
    }

    fn shape(&self, linear: &Linear) -> Result<Shape, LoadError> {
        let info = self.gguf.info(&linear.tensor);
        let ty = info.ok_or_else(|| unfit(linear, &"it is not in the file"))?.ty;
        Ok(Shape { ty, rows: linear.outputs, columns: linear.inputs })
    }

    fn regroup(&self, linear: &Linear, team: &Team, out: &mut [u8]) -> Result<(), LoadError> {
        let shape = self.shape(linear)?;
        let tensor = tensor(self.gguf, &linear.tensor)?;
        let row_bytes = shape.ty.row_bytes(shape.columns).unwrap_or(0);
        let start = linear.first_row * row_bytes;
        let rows = tensor.data.get(start..start + shape.rows * row_bytes);
        let rows = rows.ok_or_else(|| unfit(linear, &"its rows are not all there"))?;
        let bytes = shape.regrouped_bytes(self.isa).map_err(|e| unfit(linear, &e))?;
        shape.regroup(self.isa, team, rows, &mut out[..bytes]).map_err(|e| unfit(linear, &e))
    }

    fn assemble(&self, storage: &Arc<Buffer>) -> Result<Weights, LoadError> {
        let a = self.architecture;
        let blocks = a.layers.iter().map(|layer| self.block(storage, layer));
        Ok(Weights {
            blocks: blocks.collect::<Result<_, _>>()?,
            output_norm: self.vector(&a.output_norm, 0, a.embedding_len)?,
            output: self.matrix(storage, &a.output)?,
            embeddings: Embeddings::new(self.gguf, a)?,
            held_bytes: storage.len() + self.handed_bytes.get(),
        })
    }

    fn block(&self, storage: &Arc<Buffer>, layer: &Layer) -> Result<Block, LoadError> {
        let a = self.architecture;
        let matrix = |linear| self.matrix(storage, linear);
        let norm = |name: &str| self.vector(name, 0, a.embedding_len);
        let norm_if = |name: &Option<String>, len| {
            name.as_ref().map(|name| self.vector(name, 0, len)).transpose()
        };
        Ok(Block {
            attention_norm: norm(&layer.attention_norm)?,
            query: matrix(&layer.query)?,
            key: matrix(&layer.key)?,
            value: matrix(&layer.value)?,
            query_norm: norm_if(&layer.query_norm, a.head_dims)?,
            key_norm: norm_if(&layer.key_norm, a.head_dims)?,
            attention_sub_norm: norm_if(&layer.attention_sub_norm, a.heads * a.head_dims)?,
            attention_output: matrix(&layer.attention_output)?,
            post_attention_norm: norm_if(&layer.post_attention_norm, a.embedding_len)?,
            feed_forward_norm: norm(&layer.feed_forward_norm)?,
            gate: matrix(&layer.gate)?,
            up: matrix(&layer.up)?,
            feed_forward_sub_norm: norm_if(&layer.feed_forward_sub_norm, layer.gate.outputs)?,
            down: matrix(&layer.down)?,
            post_feed_forward_norm: norm_if(&layer.post_feed_forward_norm, a.embedding_len)?,
        })
    }

    fn matrix(&self, storage: &Arc<Buffer>, linear: &Linear) -> Result<Matrix, LoadError> {
        let shape = self.shape(linear)?;
        let place = self.places[&key(linear)];
        let matrix = Matrix::new(self.isa, shape, storage.clone(), place);
        let mut matrix = matrix.map_err(|e| unfit(linear, &e))?.scaled(linear.scale);
        if shape.ty == TensorType::I2S {
            let data = tensor(self.gguf, &linear.tensor)?.data;
            matrix =
                matrix.scaled(tensor_scale(data).ok_or_else(|| unfit(linear, &"it has no scale"))?);
        }
        match &linear.bias {
            Some(bias) => Ok(matrix.biased(self.vector(bias, linear.first_row, linear.outputs)?)),
            None => Ok(matrix),
        }
    }

    /// Values `first..first + len` of a small tensor.
    fn vector(&self, name: &str, first: usize, len: usize) -> Result<Vec<f32>, LoadError> {
        let values = match self.vectors.get(&(name, first, len)) {
            Some(values) => values.clone(),
            None => self.read_vector(name, first, len)?,
        };
        self.handed_bytes.set(self.handed_bytes.get() + values.capacity() * size_of::<f32>());
        Ok(values)
    }

    fn read_vector(&self, name: &str, first: usize, len: usize) -> Result<Vec<f32>, LoadError> {
        let tensor = tensor(self.gguf, name)?;
        let failed = |reason| LoadError::Tensor { name: name.to_owned(), reason };
        let mut values = vec![0.0; tensor.info.elements()];
        dequantize(tensor.info.ty, tensor.data, &mut values).map_err(|e| failed(e.to_string()))?;
        let part = values.get(first..first + len).map(<[f32]>::to_vec);
        part.ok_or_else(|| failed(format!("values {first} to {} are not in it", first + len)))
    }
}

/// The factor of a whole `I2_S` tensor.
fn tensor_scale(data: &[u8]) -> Option<f32> {
    let tail = data.get(data.len().checked_sub(I2_S_TAIL_BYTES)?..)?;
    Some(f32::from_le_bytes(*tail.first_chunk()?))
}

fn key(linear: &Linear) -> Key<'_> {
    (&linear.tensor, linear.first_row, linear.outputs)
}

fn unfit(linear: &Linear, reason: &dyn std::fmt::Display) -> LoadError {
    LoadError::Tensor { name: linear.tensor.clone(), reason: reason.to_string() }
}
