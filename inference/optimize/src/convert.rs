//! A Hugging Face folder to GGUF: `config.json`, one or several `*.safetensors`, the tokenizer,
//! the chat template.
//!
//! Names, metadata keys and transformations are llama.cpp's (`convert_hf_to_gguf.py`), so that
//! both programs read the result alike. Weights of two dimensions get the type asked for; norms and
//! biases stay F32.
//!
//! Invariants: a tensor of the folder that nothing would read is an error, and so is a missing
//! one; nothing is guessed where a wrong guess would change the model's answers (an unknown
//! pre-tokenizer or rotary scaling is refused by name).
//!
//! Deliberately absent: pickled checkpoints (they run code when read), adapters, vision towers
//! (their tensors are left out), mixtures of experts.

mod config;
mod metadata;
mod names;
mod sentencepiece;
mod source;
mod vocab;

use std::path::{Path, PathBuf};

use fulmar_inference::gguf::{TensorWriter, WriteError, Writer};
use fulmar_kernels::formats::{self, FormatError, TensorType};

use crate::output::{OutputError, OutputFile};
use crate::{Progress, Summary};
use config::Config;
use names::{Family, Transform};
use source::Shards;

/// Values converted at a time: 4 MiB of f32.
const CHUNK_VALUES: usize = 1 << 20;

/// What to make.
#[derive(Debug, Clone)]
pub struct ConvertOptions {
    /// Type of the weights: F32, F16 or BF16.
    pub ty: TensorType,
    /// `general.name`; the folder's name where it is not given.
    pub name: Option<String>,
    /// `general.license`, an SPDX expression.
    pub license: Option<String>,
}

/// Why a folder could not be converted.
#[derive(Debug, thiserror::Error)]
pub enum ConvertError {
    /// A file of the folder could not be read.
    #[error("read {}", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// The folder lacks a file.
    #[error("find {wanted} in {}", .folder.display())]
    MissingFile {
        /// What was looked for.
        wanted: &'static str,
        /// Where.
        folder: PathBuf,
    },
    /// A file's content is not what its name says.
    #[error("read {}: {reason}", .path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A field of a JSON file is missing or cannot be used.
    #[error("use field {field} of {file}: {reason}")]
    Field {
        /// The file.
        file: &'static str,
        /// The field, with dots between levels.
        field: String,
        /// What was found and what is expected.
        reason: String,
    },
    /// A tensor is missing, left over, or of a kind that cannot be converted.
    #[error("convert tensor {name}: {reason}")]
    Tensor {
        /// The tensor, under its name in the folder.
        name: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A tensor's values cannot be written in the type asked for.
    #[error("convert tensor {name}")]
    Format {
        /// The tensor.
        name: String,
        /// What stood in the way.
        source: FormatError,
    },
    /// The type asked for is not one that conversion writes.
    #[error("convert to {found}: expected F32, F16 or BF16; quantize the result afterwards")]
    Type {
        /// The type asked for.
        found: TensorType,
    },
    /// The output's structure was refused.
    #[error(transparent)]
    Write(#[from] WriteError),
    /// The output could not be written.
    #[error(transparent)]
    Output(#[from] OutputError),
}

/// One tensor of the output.
struct Planned {
    /// Its name in the folder; none for one that is computed from the configuration.
    from: Option<String>,
    to: String,
    /// GGUF order.
    shape: Vec<usize>,
    ty: TensorType,
    transform: Transform,
    /// The values of a computed tensor.
    values: Vec<f32>,
}

/// Converts `folder` to the GGUF file `output`, atomically.
///
/// # Errors
/// [`ConvertError`]; the output's old content, if any, is then untouched.
pub fn convert(
    folder: &Path,
    output: &Path,
    options: &ConvertOptions,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<Summary, ConvertError> {
    if !matches!(options.ty, TensorType::F32 | TensorType::F16 | TensorType::Bf16) {
        return Err(ConvertError::Type { found: options.ty });
    }
    let config = Config::read(folder)?;
    let family = Family::of(&config)?;
    let shards = Shards::open(folder)?;
    let mut writer = Writer::new(family.name());
    metadata::general(&mut writer, folder, options);
    metadata::dimensions(&mut writer, &config, family)?;
    vocab::write(&mut writer, folder, &config, shards.vocab_len())?;
    let planned = plan(&shards, &config, family, options.ty)?;
    let mut total_bytes = 0;
    for tensor in &planned {
        total_bytes += writer.declare(&tensor.to, &tensor.shape, tensor.ty)? as u64;
    }
    let mut file = OutputFile::create(output)?;
    let mut tensors = writer.begin(&mut file)?;
    let mut summary = Summary { tensors: planned.len(), input_bytes: 0, output_bytes: 0 };
    for tensor in &planned {
        let (read, written) = write_tensor(&mut tensors, &shards, tensor)?;
        summary.input_bytes += read;
        summary.output_bytes += written;
        progress(Progress { tensor: &tensor.to, done_bytes: summary.output_bytes, total_bytes });
    }
    tensors.finish()?;
    file.commit()?;
    Ok(summary)
}

/// What to write, in the order of llama.cpp's files: embedding, head, then layer by layer.
fn plan(
    shards: &Shards,
    config: &Config,
    family: Family,
    ty: TensorType,
) -> Result<Vec<Planned>, ConvertError> {
    let tied = config.tied();
    let mut planned = Vec::new();
    for (name, tensor) in shards.tensors()? {
        let Some((to, transform)) = names::target(&name, config, family, tied)? else { continue };
        let mut shape = tensor.shape().to_vec();
        shape.reverse();
        if shape.is_empty() || shape.len() > 2 {
            let reason = format!("it has {} dimensions, expected 1 or 2", shape.len());
            return Err(ConvertError::Tensor { name, reason });
        }
        if let Transform::Interleave { heads } = transform
            && !shape.get(1).is_some_and(|rows| rows.is_multiple_of(2 * heads))
        {
            let reason = format!("its rows are not an even number for each of {heads} heads");
            return Err(ConvertError::Tensor { name, reason });
        }
        let ty = if shape.len() == 1 { TensorType::F32 } else { ty };
        planned.push(Planned { from: Some(name), to, shape, ty, transform, values: Vec::new() });
    }
    for (to, values) in metadata::rotary_tensors(config, family)? {
        planned.push(Planned {
            from: None,
            to: to.to_owned(),
            shape: vec![values.len()],
            ty: TensorType::F32,
            transform: Transform::None,
            values,
        });
    }
    planned.sort_by_key(|tensor| names::order(&tensor.to));
    names::check_complete(config, family, tied, &|name| planned.iter().any(|t| t.to == name))?;
    Ok(planned)
}

/// Converts one tensor; returns the bytes read and written.
fn write_tensor<W: std::io::Write>(
    out: &mut TensorWriter<W>,
    shards: &Shards,
    planned: &Planned,
) -> Result<(u64, u64), ConvertError> {
    let Some(name) = &planned.from else {
        let data = formats::quantize(planned.ty, &planned.values)
            .map_err(|source| ConvertError::Format { name: planned.to.clone(), source })?;
        out.tensor(&data)?;
        return Ok((0, data.len() as u64));
    };
    let tensor = shards.tensor(name)?;
    let from = source::tensor_type(name, tensor.dtype())?;
    let row = planned.shape[0];
    let rows: usize = planned.shape.iter().skip(1).product();
    let row_bytes = row * from.block_bytes();
    let chunk_rows = (CHUNK_VALUES / row).max(1);
    let mut data = Vec::new();
    let mut written = 0;
    for first in (0..rows).step_by(chunk_rows) {
        data.clear();
        for index in first..rows.min(first + chunk_rows) {
            let at = planned.transform.source_row(index, rows) * row_bytes;
            data.extend_from_slice(&tensor.data()[at..at + row_bytes]);
        }
        let converted = convert_values(name, from, &data, planned)?;
        written += converted.len() as u64;
        out.part(&converted)?;
    }
    Ok((tensor.data().len() as u64, written))
}

fn convert_values(
    name: &str,
    from: TensorType,
    data: &[u8],
    planned: &Planned,
) -> Result<Vec<u8>, ConvertError> {
    let failed = |source| ConvertError::Format { name: name.to_owned(), source };
    let mut values = vec![0.0_f32; data.len() / from.block_bytes()];
    formats::dequantize(from, data, &mut values).map_err(failed)?;
    let most = match planned.ty {
        TensorType::F16 => 65504.0,
        _ => f32::MAX,
    };
    for value in &mut values {
        if planned.transform == Transform::AddOne {
            *value += 1.0;
        }
        if value.is_nan() || value.abs() > most {
            let reason = format!("the value {value} does not fit {}, try BF16 or F32", planned.ty);
            return Err(ConvertError::Tensor { name: name.to_owned(), reason });
        }
    }
    formats::quantize(planned.ty, &values).map_err(failed)
}

#[cfg(test)]
mod tests;
