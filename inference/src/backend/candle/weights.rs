//! Tensors of the file as candle tensors.

use std::borrow::Cow;

use candle_core::quantized::{GgmlDType, QMatMul, QStorage, QTensor};
use candle_core::{D, DType, Device, Module, Tensor};
use fulmar_kernels::formats::{TensorType, dequantize};

use super::{held, rows};
use crate::backend::LoadError;
use crate::backend::pages::EmbeddingPages;
use crate::gguf::Gguf;
use crate::model::{Architecture, Linear};

/// Above this, dequantised projections would cost more memory than a reference is worth, and they
/// stay quantised.
pub const DENSE_BYTES_MAX: u64 = 2 << 30;

/// Values dequantised at a time where a projection stays in the file.
const STREAM_VALUES_MAX: usize = 4 << 20;

/// Where weights come from, and how they are to be held.
pub(super) struct Source {
    gguf: Gguf,
    device: Device,
    norm_epsilon: f64,
    dense: bool,
    pages: EmbeddingPages,
}

/// How one projection is held.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    /// `f32`.
    Dense,
    /// As it is in the file, multiplied by candle's quantised kernels.
    Quantized(GgmlDType),
    /// 16-bit floats on a GPU.
    Half(DType),
    /// In the mapped file, dequantised anew in every step: exact, slow, and free.
    Streamed,
}

/// A projection's product, `[tokens, inputs]` to `[tokens, outputs]`.
pub(super) struct Projection {
    weight: Weight,
    scale: f64,
    bias: Option<Tensor>,
}

enum Weight {
    Dense(Tensor),
    Half(Tensor),
    Quantized(QMatMul),
    Streamed { gguf: Gguf, linear: Linear, rows: usize },
}

/// A root-mean-square norm over the last dimension.
pub(super) struct Norm {
    weight: Tensor,
    epsilon: f64,
}

/// Bytes that the projections and norms of a model will hold.
pub(super) fn plan(gguf: &Gguf, architecture: &Architecture, cpu: bool) -> u64 {
    let dense = dense_bytes(architecture) <= DENSE_BYTES_MAX;
    let mut bytes = 0_u64;
    for linear in architecture.linears() {
        let Some(info) = gguf.info(&linear.tensor) else { continue };
        let form = form(info.ty, dense, cpu);
        bytes = bytes.saturating_add(form_bytes(form, cpu, info.ty, linear));
    }
    bytes.saturating_add(vector_bytes(architecture))
}

/// Bytes of norms and biases, from above.
fn vector_bytes(architecture: &Architecture) -> u64 {
    let a = architecture;
    let widest = a.embedding_len.max(a.heads * a.head_dims).max(a.feed_forward_len_max());
    let norms = (a.layers.len() * 8 + 1) * widest;
    let biased = a.linears().filter(|linear| linear.bias.is_some());
    let biases: usize = biased.map(|linear| linear.outputs).sum();
    (norms as u64 + biases as u64) * 4
}

fn dense_bytes(architecture: &Architecture) -> u64 {
    architecture
        .linears()
        .map(|linear| (linear.inputs as u64).saturating_mul(linear.outputs as u64))
        .fold(0, u64::saturating_add)
        .saturating_mul(4)
}

fn form(ty: TensorType, dense: bool, cpu: bool) -> Form {
    match (dense, ty) {
        (true, _) => Form::Dense,
        (false, TensorType::F16) if !cpu => Form::Half(DType::F16),
        (false, TensorType::Bf16) if !cpu => Form::Half(DType::BF16),
        (false, _) => match candle_type(ty) {
            Some(known) => Form::Quantized(known),
            None if cpu => Form::Streamed,
            None => Form::Half(DType::F16),
        },
    }
}

fn form_bytes(form: Form, cpu: bool, ty: TensorType, linear: &Linear) -> u64 {
    let (rows, columns) = (linear.outputs as u64, linear.inputs as u64);
    match form {
        Form::Dense => rows.saturating_mul(columns).saturating_mul(4),
        Form::Half(_) => rows.saturating_mul(columns).saturating_mul(2),
        Form::Quantized(_) => {
            let row_bytes = ty.row_bytes(linear.inputs).unwrap_or(0) as u64;
            let copy_bytes = if cpu { interleaved_bytes(ty, row_bytes) } else { 0 };
            rows.saturating_mul(row_bytes.saturating_add(copy_bytes))
        }
        Form::Streamed => 0,
    }
}

/// Bytes of a row in the copy that candle interleaves for its kernels on a CPU: on x86-64 with the
/// scales of `Q4_K` and `Q6_K` as floats, and the codes of `Q6_K` a byte each.
fn interleaved_bytes(ty: TensorType, row_bytes: u64) -> u64 {
    match ty {
        TensorType::Q4K => row_bytes.div_ceil(144).saturating_mul(192),
        TensorType::Q6K => row_bytes.div_ceil(210).saturating_mul(320),
        _ => row_bytes,
    }
}

/// The quantised types whose products candle computes.
fn candle_type(ty: TensorType) -> Option<GgmlDType> {
    match ty {
        TensorType::Q4_0 => Some(GgmlDType::Q4_0),
        TensorType::Q4_1 => Some(GgmlDType::Q4_1),
        TensorType::Q5_0 => Some(GgmlDType::Q5_0),
        TensorType::Q5_1 => Some(GgmlDType::Q5_1),
        TensorType::Q8_0 => Some(GgmlDType::Q8_0),
        TensorType::Q2K => Some(GgmlDType::Q2K),
        TensorType::Q3K => Some(GgmlDType::Q3K),
        TensorType::Q4K => Some(GgmlDType::Q4K),
        TensorType::Q5K => Some(GgmlDType::Q5K),
        TensorType::Q6K => Some(GgmlDType::Q6K),
        _ => None,
    }
}

/// Values of `rows` whole rows of a tensor, from row `first` on.
fn read_rows(
    gguf: &Gguf,
    name: &str,
    columns: usize,
    first: usize,
    rows: usize,
) -> Result<Vec<f32>, LoadError> {
    let refused = |reason: String| LoadError::Tensor { name: name.to_owned(), reason };
    let tensor = gguf.tensor(name).ok_or_else(|| refused("not in the file".to_owned()))?;
    let mut values = vec![0.0_f32; rows * columns];
    let bytes = row_slice(&tensor, columns, first, rows).ok_or_else(|| {
        let (ty, end) = (tensor.info.ty.name(), first + rows);
        refused(format!("rows {first} to {end} of it cannot be read alone, type {ty}"))
    })?;
    dequantize(tensor.info.ty, bytes, &mut values).map_err(|error| refused(error.to_string()))?;
    Ok(values)
}

/// The bytes of whole rows. A type with one scale for the whole tensor has only all of them.
fn row_slice<'a>(
    tensor: &crate::gguf::Tensor<'a>,
    columns: usize,
    first: usize,
    rows: usize,
) -> Option<&'a [u8]> {
    if tensor.info.ty == TensorType::I2S {
        return (first == 0 && tensor.info.rows() == rows).then_some(tensor.data);
    }
    let row_bytes = tensor.info.ty.row_bytes(columns)?;
    let start = first.checked_mul(row_bytes)?;
    tensor.data.get(start..start.checked_add(rows.checked_mul(row_bytes)?)?)
}

fn backend_error(error: &candle_core::Error) -> LoadError {
    LoadError::Backend { backend: "candle", reason: error.to_string() }
}

impl Source {
    pub(super) fn new(
        gguf: &Gguf,
        architecture: &Architecture,
        device: Device,
        dense_bytes_max: u64,
    ) -> Self {
        Self {
            gguf: gguf.clone(),
            device,
            norm_epsilon: f64::from(architecture.norm_epsilon),
            dense: dense_bytes(architecture) <= dense_bytes_max,
            pages: EmbeddingPages::default(),
        }
    }

    /// Where the tensors go.
    pub(super) fn device(&self) -> &Device {
        &self.device
    }

    /// Proves that single rows of a tensor can be read, before a step has to.
    pub(super) fn check_rows(&self, name: &str, columns: usize) -> Result<(), LoadError> {
        read_rows(&self.gguf, name, columns, 0, 1).map(drop)
    }

    pub(super) fn norm(&mut self, name: &str, len: usize) -> Result<Norm, LoadError> {
        Ok(Norm { weight: self.vector(name, 0, len)?, epsilon: self.norm_epsilon })
    }

    pub(super) fn norm_if(
        &mut self,
        name: Option<&str>,
        len: usize,
    ) -> Result<Option<Norm>, LoadError> {
        name.map(|name| self.norm(name, len)).transpose()
    }

    fn vector(&mut self, name: &str, first: usize, len: usize) -> Result<Tensor, LoadError> {
        // A vector is read whole: its type may have blocks longer than a part of it.
        let whole = self.gguf.info(name).map_or(len, |info| info.shape.iter().product());
        let values = read_rows(&self.gguf, name, whole, 0, 1)?;
        let part = values.get(first..first + len).unwrap_or_default().to_vec();
        Tensor::from_vec(part, len, &self.device).map_err(|error| backend_error(&error))
    }

    pub(super) fn projection(&mut self, linear: &Linear) -> Result<Projection, LoadError> {
        let tensor = self.gguf.tensor(&linear.tensor).ok_or_else(|| LoadError::Tensor {
            name: linear.tensor.clone(),
            reason: "not in the file".to_owned(),
        })?;
        let ty = tensor.info.ty;
        let cpu = self.device.is_cpu();
        let form = form(ty, self.dense, cpu);
        let weight = self.weight(form, linear).map_err(|error| match error {
            Refused::Load(error) => error,
            Refused::Candle(error) => {
                LoadError::Tensor { name: linear.tensor.clone(), reason: error.to_string() }
            }
        })?;
        // What was read is held elsewhere now.
        self.gguf.release();
        let bias = match &linear.bias {
            Some(name) => Some(self.vector(name, linear.first_row, linear.outputs)?),
            None => None,
        };
        Ok(Projection { weight, scale: f64::from(linear.scale), bias })
    }

    fn weight(&self, form: Form, linear: &Linear) -> Result<Weight, Refused> {
        let shape = (linear.outputs, linear.inputs);
        let (name, first) = (linear.tensor.as_str(), linear.first_row);
        let dense = || -> Result<Tensor, Refused> {
            let values = read_rows(&self.gguf, name, linear.inputs, first, linear.outputs)?;
            Ok(Tensor::from_vec(values, shape, &self.device)?)
        };
        match form {
            Form::Dense => Ok(Weight::Dense(dense()?)),
            Form::Half(ty) => Ok(Weight::Half(dense()?.to_dtype(ty)?)),
            Form::Streamed => {
                // Proves the type before a step has to.
                let rows = self.rows_at_once(linear);
                read_rows(&self.gguf, name, linear.inputs, first, rows)?;
                Ok(Weight::Streamed { gguf: self.gguf.clone(), linear: linear.clone(), rows })
            }
            Form::Quantized(known) => {
                let bytes = self
                    .gguf
                    .tensor(name)
                    .and_then(|t| row_slice(&t, linear.inputs, first, linear.outputs))
                    .unwrap_or_default();
                let storage = QStorage::from_data(aligned(bytes), &self.device, known)?;
                Ok(Weight::Quantized(QMatMul::from_qtensor(QTensor::new(storage, shape)?)?))
            }
        }
    }

    /// Rows that are dequantised at a time where a projection stays in the file.
    fn rows_at_once(&self, linear: &Linear) -> usize {
        let info = self.gguf.info(&linear.tensor);
        if info.is_some_and(|info| info.ty == TensorType::I2S) {
            return linear.outputs;
        }
        (STREAM_VALUES_MAX / linear.inputs).clamp(1, linear.outputs)
    }

    /// The embeddings of tokens, `[tokens, columns]`.
    pub(super) fn embed(
        &self,
        name: &str,
        columns: usize,
        tokens: &[u32],
    ) -> candle_core::Result<Tensor> {
        let mut values = Vec::with_capacity(tokens.len() * columns);
        for token in tokens {
            let row = read_rows(&self.gguf, name, columns, *token as usize, 1);
            values.extend(row.map_err(candle_core::Error::wrap)?);
        }
        self.pages.read(&self.gguf, tokens.len());
        Tensor::from_vec(values, (tokens.len(), columns), &self.device)
    }
}

/// Candle insists on aligned blocks; a file's alignment may be anything.
fn aligned(bytes: &[u8]) -> Cow<'_, [u8]> {
    if bytes.as_ptr().align_offset(align_of::<u64>()) == 0 {
        return Cow::Borrowed(bytes);
    }
    let mut words = vec![0_u64; bytes.len().div_ceil(8)];
    let copy: &mut [u8] = bytemuck::cast_slice_mut(&mut words);
    copy[..bytes.len()].copy_from_slice(bytes);
    // A vector of bytes of any real size comes from the allocator aligned for words.
    Cow::Owned(copy[..bytes.len()].to_vec())
}

enum Refused {
    Load(LoadError),
    Candle(candle_core::Error),
}

impl From<LoadError> for Refused {
    fn from(error: LoadError) -> Self {
        Self::Load(error)
    }
}

impl From<candle_core::Error> for Refused {
    fn from(error: candle_core::Error) -> Self {
        Self::Candle(error)
    }
}

impl Projection {
    /// Bytes of its tensors' storage.
    pub(super) fn held_bytes(&self) -> u64 {
        let weight = match &self.weight {
            Weight::Dense(weight) | Weight::Half(weight) => held::of_tensor(weight),
            Weight::Quantized(weight) => held::of_quantized(weight),
            // In the file, which the page cache holds.
            Weight::Streamed { .. } => 0,
        };
        weight + self.bias.as_ref().map_or(0, held::of_tensor)
    }

    pub(super) fn forward(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        let mut y = match &self.weight {
            Weight::Dense(weight) => rows::product(x, |x| x.matmul(&weight.t()?))?,
            Weight::Half(weight) => {
                x.to_dtype(weight.dtype())?.matmul(&weight.t()?)?.to_dtype(DType::F32)?
            }
            Weight::Quantized(weight) => rows::product(x, |x| weight.forward(x))?,
            Weight::Streamed { gguf, linear, rows } => streamed(gguf, linear, *rows, x)?,
        };
        if self.scale != 1.0 {
            y = (y * self.scale)?;
        }
        match &self.bias {
            Some(bias) => y.broadcast_add(bias),
            None => Ok(y),
        }
    }
}

/// The product with rows that are dequantised a few at a time.
fn streamed(gguf: &Gguf, linear: &Linear, step: usize, x: &Tensor) -> candle_core::Result<Tensor> {
    let mut parts = Vec::new();
    for first in (0..linear.outputs).step_by(step) {
        let rows = step.min(linear.outputs - first);
        let values = read_rows(gguf, &linear.tensor, linear.inputs, linear.first_row + first, rows)
            .map_err(candle_core::Error::wrap)?;
        let weight = Tensor::from_vec(values, (rows, linear.inputs), x.device())?;
        parts.push(rows::product(x, |x| x.matmul(&weight.t()?))?);
        gguf.release();
    }
    Tensor::cat(&parts, D::Minus1)
}

impl Norm {
    /// Bytes of its tensor's storage.
    pub(super) fn held_bytes(&self) -> u64 {
        held::of_tensor(&self.weight)
    }

    pub(super) fn forward(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        let mean = x.sqr()?.mean_keepdim(D::Minus1)?;
        x.broadcast_div(&(mean + self.epsilon)?.sqrt()?)?.broadcast_mul(&self.weight)
    }
}
