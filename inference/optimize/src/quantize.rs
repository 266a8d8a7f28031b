//! GGUF to GGUF with other weight types.
//!
//! Which tensor gets which type follows llama.cpp's `llama-quantize` (`choice`), so that files of
//! the same name mean the same. Rows are converted in chunks, on several threads.
//!
//! Deliberately absent: importance matrices, and requantising a file that is already quantised
//! (the loss of both steps would add up): the source must be F32, F16 or BF16.

mod choice;

use std::path::Path;

use fulmar_inference::gguf::{Gguf, GgufError, Tensor, TensorWriter, WriteError, Writer};
use fulmar_kernels::formats::{self, FormatError, TensorType};

use crate::output::{OutputError, OutputFile};
use crate::{Progress, Summary};

pub use choice::Mix;

/// Values converted at a time by one thread: 4 MiB of f32.
const CHUNK_VALUES: usize = 1 << 20;
/// Most threads.
pub const THREADS_MAX: usize = 256;

/// What to make.
#[derive(Debug, Clone)]
pub struct QuantizeOptions {
    /// The mix of types.
    pub mix: Mix,
    /// Threads that convert, 1 to [`THREADS_MAX`].
    pub threads: usize,
}

/// Why a file could not be quantised.
#[derive(Debug, thiserror::Error)]
pub enum QuantizeError {
    /// The source could not be read.
    #[error(transparent)]
    Source(#[from] GgufError),
    /// The source is already quantised.
    #[error(
        "quantize tensor {name}: it is {found} already; start from the F32, F16 or BF16 file, \
         or the losses add up"
    )]
    AlreadyQuantized {
        /// The tensor.
        name: String,
        /// Its type.
        found: TensorType,
    },
    /// A tensor's values cannot be converted.
    #[error("quantize tensor {name} to {to}")]
    Convert {
        /// The tensor.
        name: String,
        /// The type asked for.
        to: TensorType,
        /// What stood in the way.
        source: FormatError,
    },
    /// A weight is no number.
    #[error("quantize tensor {name}: value {index} is {value}, expected a finite number")]
    NotFinite {
        /// The tensor.
        name: String,
        /// Which value.
        index: usize,
        /// The value.
        value: f32,
    },
    /// The number of threads is out of range.
    #[error("quantize with {found} threads: expected 1 to {THREADS_MAX}")]
    Threads {
        /// The number given.
        found: usize,
    },
    /// The output's structure was refused.
    #[error(transparent)]
    Write(#[from] WriteError),
    /// The output could not be written.
    #[error(transparent)]
    Output(#[from] OutputError),
}

/// Writes `source` with the weight types of `options.mix` to `output`, atomically.
///
/// # Errors
/// [`QuantizeError`]; the output's old content, if any, is then untouched.
pub fn quantize(
    source: &Path,
    output: &Path,
    options: &QuantizeOptions,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<Summary, QuantizeError> {
    if !(1..=THREADS_MAX).contains(&options.threads) {
        return Err(QuantizeError::Threads { found: options.threads });
    }
    let gguf = Gguf::open(source)?;
    let types = choice::types(&gguf, options.mix)?;
    let mut writer = Writer::with_metadata_of(&gguf);
    writer
        .set("general.file_type", options.mix.file_type())
        .set("general.quantization_version", 2u32);
    let mut total_bytes = 0;
    for (info, ty) in gguf.tensors().iter().zip(&types) {
        total_bytes += writer.declare(&info.name, &info.shape, *ty)? as u64;
    }
    let mut file = OutputFile::create(output)?;
    let mut tensors = writer.begin(&mut file)?;
    let mut summary = Summary { tensors: types.len(), input_bytes: 0, output_bytes: 0 };
    for (info, ty) in gguf.tensors().iter().zip(&types) {
        let Some(tensor) = gguf.tensor(&info.name) else { continue };
        let written = write_tensor(&mut tensors, tensor, *ty, options.threads)?;
        summary.input_bytes += info.size_bytes as u64;
        summary.output_bytes += written;
        progress(Progress { tensor: &info.name, done_bytes: summary.output_bytes, total_bytes });
    }
    tensors.finish()?;
    file.commit()?;
    Ok(summary)
}

/// Converts one tensor, chunk by chunk; returns the bytes written.
fn write_tensor<W: std::io::Write>(
    out: &mut TensorWriter<W>,
    tensor: Tensor<'_>,
    to: TensorType,
    threads: usize,
) -> Result<u64, QuantizeError> {
    let info = tensor.info;
    if info.ty == to {
        out.tensor(tensor.data)?;
        return Ok(tensor.data.len() as u64);
    }
    let row = info.shape[0];
    let row_bytes = tensor.data.len() / info.rows();
    let chunk_rows = (CHUNK_VALUES / row).max(1);
    let chunks: Vec<&[u8]> = tensor.data.chunks(chunk_rows * row_bytes).collect();
    let mut written = 0;
    for (group, batch) in chunks.chunks(threads).enumerate() {
        let first = |index: usize| (group * threads + index) * chunk_rows * row;
        let converted: Vec<Result<Vec<u8>, QuantizeError>> = std::thread::scope(|scope| {
            let workers: Vec<_> = batch
                .iter()
                .enumerate()
                .map(|(i, data)| {
                    scope.spawn(move || convert(&info.name, info.ty, data, to, first(i)))
                })
                .collect();
            workers
                .into_iter()
                .map(|w| w.join().unwrap_or_else(|e| std::panic::resume_unwind(e)))
                .collect()
        });
        for data in converted {
            let data = data?;
            written += data.len() as u64;
            out.part(&data)?;
        }
    }
    Ok(written)
}

/// Converts whole rows; `first` is the index of the first value, for the error.
fn convert(
    name: &str,
    from: TensorType,
    data: &[u8],
    to: TensorType,
    first: usize,
) -> Result<Vec<u8>, QuantizeError> {
    let failed = |source| QuantizeError::Convert { name: name.to_owned(), to, source };
    let mut values = vec![0.0; data.len() / from.block_bytes() * from.block_len()];
    formats::dequantize(from, data, &mut values).map_err(failed)?;
    if let Some(at) = values.iter().position(|value| !value.is_finite()) {
        let (index, value) = (first + at, values[at]);
        return Err(QuantizeError::NotFinite { name: name.to_owned(), index, value });
    }
    formats::quantize(to, &values).map_err(failed)
}

#[cfg(test)]
mod tests;
