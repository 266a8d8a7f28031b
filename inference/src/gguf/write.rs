//! Writes GGUF version 3.
//!
//! A [`Writer`] collects metadata and declares tensors; the bytes of the tensors follow one after
//! the other, so that a model larger than memory can be written.

use std::io::{self, Write};

use fulmar_kernels::formats::TensorType;

use super::{ALIGNMENT_BYTES_DEFAULT, DIMENSIONS_LEN_MAX, Gguf, NAME_BYTES_MAX, ValueType};

/// What can go wrong when a file is written.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// A tensor cannot be declared like this.
    #[error("declare tensor {name:?}: {reason}")]
    Declare {
        /// The tensor.
        name: String,
        /// What is wrong.
        reason: String,
    },
    /// The bytes of a tensor are not those that were declared.
    #[error("write tensor {name:?}: found {found} bytes, expected {expected}")]
    Length {
        /// The tensor.
        name: String,
        /// Bytes given.
        found: usize,
        /// Bytes declared.
        expected: usize,
    },
    /// More or fewer tensors were written than declared.
    #[error("finish the file: {written} tensors were written, {declared} declared")]
    Count {
        /// Tensors written.
        written: usize,
        /// Tensors declared.
        declared: usize,
    },
    /// The output failed.
    #[error("write the file")]
    Io(#[from] io::Error),
}

/// A value to write.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)] // the variants are GGUF's types
pub enum NewValue {
    U8(u8),
    U32(u32),
    I32(i32),
    U64(u64),
    F32(f32),
    Bool(bool),
    String(String),
    Strings(Vec<String>),
    U32s(Vec<u32>),
    I32s(Vec<i32>),
    F32s(Vec<f32>),
    Bools(Vec<bool>),
    U8s(Vec<u8>),
}

impl From<u32> for NewValue {
    fn from(value: u32) -> Self {
        Self::U32(value)
    }
}

impl From<f32> for NewValue {
    fn from(value: f32) -> Self {
        Self::F32(value)
    }
}

impl From<bool> for NewValue {
    fn from(value: bool) -> Self {
        Self::Bool(value)
    }
}

impl From<&str> for NewValue {
    fn from(value: &str) -> Self {
        Self::String(value.to_owned())
    }
}

impl From<String> for NewValue {
    fn from(value: String) -> Self {
        Self::String(value)
    }
}

fn put_text(out: &mut Vec<u8>, text: &[u8]) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text);
}

fn put_type(out: &mut Vec<u8>, ty: ValueType) {
    out.extend(ty.id().to_le_bytes());
}

/// Array of numbers: element type, length, elements.
fn put_array<T, const N: usize>(
    out: &mut Vec<u8>,
    ty: ValueType,
    values: &[T],
    bytes: impl Fn(&T) -> [u8; N],
) {
    put_type(out, ValueType::Array);
    put_type(out, ty);
    out.extend((values.len() as u64).to_le_bytes());
    for value in values {
        out.extend(bytes(value));
    }
}

impl NewValue {
    /// The type and the value, as they stand in a file.
    fn encode(&self) -> Vec<u8> {
        fn scalar<const N: usize>(out: &mut Vec<u8>, ty: ValueType, bytes: [u8; N]) {
            put_type(out, ty);
            out.extend(bytes);
        }
        let mut out = Vec::new();
        match self {
            Self::U8(v) => scalar(&mut out, ValueType::U8, [*v]),
            Self::U32(v) => scalar(&mut out, ValueType::U32, v.to_le_bytes()),
            Self::I32(v) => scalar(&mut out, ValueType::I32, v.to_le_bytes()),
            Self::U64(v) => scalar(&mut out, ValueType::U64, v.to_le_bytes()),
            Self::F32(v) => scalar(&mut out, ValueType::F32, v.to_le_bytes()),
            Self::Bool(v) => scalar(&mut out, ValueType::Bool, [u8::from(*v)]),
            Self::String(v) => {
                put_type(&mut out, ValueType::String);
                put_text(&mut out, v.as_bytes());
            }
            Self::Strings(v) => {
                put_type(&mut out, ValueType::Array);
                put_type(&mut out, ValueType::String);
                out.extend((v.len() as u64).to_le_bytes());
                v.iter().for_each(|text| put_text(&mut out, text.as_bytes()));
            }
            Self::U32s(v) => put_array(&mut out, ValueType::U32, v, |v| v.to_le_bytes()),
            Self::I32s(v) => put_array(&mut out, ValueType::I32, v, |v| v.to_le_bytes()),
            Self::F32s(v) => put_array(&mut out, ValueType::F32, v, |v| v.to_le_bytes()),
            Self::Bools(v) => put_array(&mut out, ValueType::Bool, v, |v| [u8::from(*v)]),
            Self::U8s(v) => put_array(&mut out, ValueType::U8, v, |v| [*v]),
        }
        out
    }
}

#[derive(Debug, Clone)]
struct Declared {
    name: String,
    shape: Vec<usize>,
    ty: TensorType,
    size_bytes: usize,
    offset: usize,
}

/// A file to be written.
#[derive(Debug, Clone)]
pub struct Writer {
    values: Vec<(String, Vec<u8>)>,
    tensors: Vec<Declared>,
    data_bytes: usize,
}

impl Writer {
    /// An empty model of this architecture.
    pub fn new(architecture: &str) -> Self {
        let mut writer = Self { values: Vec::new(), tensors: Vec::new(), data_bytes: 0 };
        writer.set("general.architecture", architecture);
        writer
    }

    /// An empty model with all metadata of another, except its alignment.
    pub fn with_metadata_of(gguf: &Gguf) -> Self {
        let mut writer = Self::new(gguf.architecture());
        for (key, _) in gguf.values() {
            if let Some(raw) = gguf.raw_value(key).filter(|_| key != "general.alignment") {
                writer.set_raw(key, raw.to_vec());
            }
        }
        writer
    }

    /// Sets a key, replacing its earlier value.
    pub fn set(&mut self, key: &str, value: impl Into<NewValue>) -> &mut Self {
        self.set_raw(key, value.into().encode());
        self
    }

    /// Removes a key.
    pub fn unset(&mut self, key: &str) -> &mut Self {
        self.values.retain(|(known, _)| known != key);
        self
    }

    fn set_raw(&mut self, key: &str, raw: Vec<u8>) {
        match self.values.iter_mut().find(|(known, _)| known == key) {
            Some((_, value)) => *value = raw,
            None => self.values.push((key.to_owned(), raw)),
        }
    }

    /// Declares the next tensor. `shape[0]` is the length of a row. Returns its size in bytes.
    ///
    /// # Errors
    /// [`WriteError::Declare`].
    pub fn declare(
        &mut self,
        name: &str,
        shape: &[usize],
        ty: TensorType,
    ) -> Result<usize, WriteError> {
        let refuse =
            |reason: &str| WriteError::Declare { name: name.to_owned(), reason: reason.to_owned() };
        if name.is_empty() || name.len() > NAME_BYTES_MAX {
            return Err(refuse("the name must have 1 to 63 bytes"));
        }
        if self.tensors.iter().any(|tensor| tensor.name == name) {
            return Err(refuse("it is declared twice"));
        }
        if shape.is_empty() || shape.len() > DIMENSIONS_LEN_MAX || shape.contains(&0) {
            return Err(refuse("it must have 1 to 4 dimensions, none of them 0"));
        }
        let size_bytes = ty
            .tensor_bytes(shape)
            .ok_or_else(|| refuse("its rows do not fill whole blocks, or it is too large"))?;
        let offset = self.data_bytes;
        self.data_bytes = offset
            .checked_add(size_bytes)
            .and_then(|end| end.checked_next_multiple_of(ALIGNMENT_BYTES_DEFAULT))
            .ok_or_else(|| refuse("the file would be too large"))?;
        let (name, shape) = (name.to_owned(), shape.to_vec());
        self.tensors.push(Declared { name, shape, ty, size_bytes, offset });
        Ok(size_bytes)
    }

    /// The header, padded to where the tensors' data start.
    fn header(&self) -> Vec<u8> {
        let mut out = b"GGUF".to_vec();
        out.extend(3u32.to_le_bytes());
        out.extend((self.tensors.len() as u64).to_le_bytes());
        out.extend((self.values.len() as u64).to_le_bytes());
        for (key, raw) in &self.values {
            put_text(&mut out, key.as_bytes());
            out.extend(raw);
        }
        for tensor in &self.tensors {
            put_text(&mut out, tensor.name.as_bytes());
            out.extend((tensor.shape.len() as u32).to_le_bytes());
            tensor.shape.iter().for_each(|d| out.extend((*d as u64).to_le_bytes()));
            out.extend(tensor.ty.ggml_id().to_le_bytes());
            out.extend((tensor.offset as u64).to_le_bytes());
        }
        out.resize(out.len().next_multiple_of(ALIGNMENT_BYTES_DEFAULT), 0);
        out
    }

    /// Writes the header; the tensors' data follow through the [`TensorWriter`].
    ///
    /// # Errors
    /// [`WriteError::Io`].
    pub fn begin<W: Write>(self, mut out: W) -> Result<TensorWriter<W>, WriteError> {
        out.write_all(&self.header())?;
        Ok(TensorWriter { out, tensors: self.tensors, written: 0, pending_bytes: 0 })
    }

    /// The whole file in memory, with the tensors' data in the order of declaration.
    ///
    /// # Errors
    /// [`WriteError`].
    pub fn into_bytes<D: AsRef<[u8]>>(self, data: &[D]) -> Result<Vec<u8>, WriteError> {
        let mut writer = self.begin(Vec::new())?;
        for tensor in data {
            writer.tensor(tensor.as_ref())?;
        }
        writer.finish()
    }
}

/// Takes the data of the declared tensors, in order.
#[derive(Debug)]
pub struct TensorWriter<W> {
    out: W,
    tensors: Vec<Declared>,
    /// Complete tensors.
    written: usize,
    /// Bytes of the tensor after those.
    pending_bytes: usize,
}

impl<W: Write> TensorWriter<W> {
    /// Writes the next tensor's data.
    ///
    /// # Errors
    /// [`WriteError`].
    pub fn tensor(&mut self, data: &[u8]) -> Result<(), WriteError> {
        if let Some(tensor) = self.tensors.get(self.written)
            && (data.len() != tensor.size_bytes || self.pending_bytes != 0)
        {
            return Err(WriteError::Length {
                name: tensor.name.clone(),
                found: self.pending_bytes + data.len(),
                expected: tensor.size_bytes,
            });
        }
        self.part(data)
    }

    /// Writes some of the next tensor's data; the tensor ends where its declared size is reached.
    ///
    /// # Errors
    /// [`WriteError`]; a part may not reach into the following tensor.
    pub fn part(&mut self, data: &[u8]) -> Result<(), WriteError> {
        let declared = self.tensors.len();
        let Some(tensor) = self.tensors.get(self.written) else {
            return Err(WriteError::Count { written: self.written + 1, declared });
        };
        let (found, expected) = (self.pending_bytes + data.len(), tensor.size_bytes);
        if found > expected {
            return Err(WriteError::Length { name: tensor.name.clone(), found, expected });
        }
        self.out.write_all(data)?;
        self.pending_bytes = found;
        if found == expected {
            let padding = found.next_multiple_of(ALIGNMENT_BYTES_DEFAULT) - found;
            self.out.write_all(&[0; ALIGNMENT_BYTES_DEFAULT][..padding])?;
            self.written += 1;
            self.pending_bytes = 0;
        }
        Ok(())
    }

    /// Flushes and gives the output back.
    ///
    /// # Errors
    /// [`WriteError`].
    pub fn finish(mut self) -> Result<W, WriteError> {
        if self.written != self.tensors.len() {
            return Err(WriteError::Count { written: self.written, declared: self.tensors.len() });
        }
        self.out.flush()?;
        Ok(self.out)
    }
}
