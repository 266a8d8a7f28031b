//! GGUF, versions 2 and 3: metadata and tensors of a model file, read through a memory map.
//!
//! Invariants:
//! - Weights are never copied: a [`Tensor`]'s bytes are a slice of the map. Arrays of the metadata
//!   (a vocabulary has 150 000 strings) stay in the map as well, and are read when asked for.
//! - A [`Gguf`] that exists is well-formed: every length, offset, type, alignment and name was
//!   checked with arithmetic that cannot overflow; keys and tensor names are unique; tensors lie
//!   inside the file and do not overlap.
//! - No number from the file sizes an allocation before the bytes it speaks of were seen.
//!
//! Deliberately absent: version 1, big-endian files, nested arrays, files in several parts. Each
//! is refused in words. What the keys *mean* is for the modules that read them.

mod read;
mod value;
mod write;

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::ops::{Deref, Range};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use fulmar_kernels::formats::{FormatError, TensorType};
use fulmar_kernels::mapped::MappedFile;

pub use value::{Array, Value, ValueType};
pub use write::{NewValue, TensorWriter, WriteError, Writer};

/// Most key-value pairs in a file.
pub const VALUES_LEN_MAX: usize = 65_536;
/// Most tensors in a file.
pub const TENSORS_LEN_MAX: usize = 65_536;
/// Longest key, in bytes.
pub const KEY_BYTES_MAX: usize = 65_535;
/// Longest string value, in bytes (templates are the long ones).
pub const STRING_BYTES_MAX: usize = 16 << 20;
/// Most elements of an array.
pub const ARRAY_LEN_MAX: usize = 16 << 20;
/// Longest tensor name, in bytes; ggml has room for 64 with the closing zero.
pub const NAME_BYTES_MAX: usize = 63;
/// Most dimensions of a tensor.
pub const DIMENSIONS_LEN_MAX: usize = 4;
/// Alignment of tensor data where the file does not say another, in bytes.
pub const ALIGNMENT_BYTES_DEFAULT: usize = 32;
/// Largest alignment, in bytes.
pub const ALIGNMENT_BYTES_MAX: usize = 1 << 20;

/// Why a file was refused, or a value could not be had.
#[derive(Debug, thiserror::Error)]
pub enum GgufError {
    /// The file could not be opened or mapped.
    #[error("open {name}")]
    Open {
        /// The file.
        name: String,
        /// What the operating system said.
        source: io::Error,
    },
    /// The first bytes are not those of a GGUF file.
    #[error("read {name}: not a GGUF file (starts with {found:?}, expected \"GGUF\")")]
    Magic {
        /// The file.
        name: String,
        /// The first bytes.
        found: String,
    },
    /// A version this program does not read.
    #[error("read {name}: GGUF version {found}, this program reads 2 and 3{hint}")]
    Version {
        /// The file.
        name: String,
        /// The version found.
        found: u32,
        /// What may be the reason.
        hint: &'static str,
    },
    /// The file ends in the middle of something.
    #[error("read {what} at byte {at}: needs {needed} bytes, the file has {available} left")]
    Truncated {
        /// What was being read.
        what: String,
        /// Where.
        at: usize,
        /// Bytes needed.
        needed: u64,
        /// Bytes there.
        available: usize,
    },
    /// A number in the file is above a limit of this program.
    #[error("read {what}: {found} is above the limit of {limit}")]
    Limit {
        /// What was being read.
        what: String,
        /// The number found.
        found: u64,
        /// The limit.
        limit: u64,
    },
    /// Something in the header breaks the format.
    #[error("read {what}: {reason}")]
    Malformed {
        /// What was being read.
        what: String,
        /// What is wrong.
        reason: String,
    },
    /// A tensor has a type this program does not know.
    #[error("read tensor {name:?}")]
    TensorType {
        /// The tensor.
        name: String,
        /// Which type.
        source: FormatError,
    },
    /// Bytes are not those that were signed.
    #[error("verify {what}: {reason}")]
    Unverified {
        /// What was to be used.
        what: String,
        /// What whoever verifies the file said.
        reason: String,
    },
    /// A key is not there.
    #[error("read key {key:?}: it is missing")]
    Missing {
        /// The key.
        key: String,
    },
    /// A key has another type than the reader needs, or its number does not fit.
    #[error("read key {key:?}: found {found}, expected {expected}")]
    Type {
        /// The key.
        key: String,
        /// What the file has.
        found: String,
        /// What is needed.
        expected: &'static str,
    },
}

/// Where a tensor lies.
#[derive(Debug, Clone)]
pub struct TensorInfo {
    /// Its name, for example `blk.0.attn_q.weight`.
    pub name: String,
    /// Dimensions in ggml's order: `shape[0]` is the length of a row, contiguous in memory.
    /// One to four, none of them 0.
    pub shape: Vec<usize>,
    /// The element type.
    pub ty: TensorType,
    /// Bytes of the whole tensor.
    pub size_bytes: usize,
    place: Place,
}

impl TensorInfo {
    /// Elements of the whole tensor.
    pub fn elements(&self) -> usize {
        // Bounded by the byte size, which was checked.
        self.shape.iter().product()
    }

    /// Where its bytes begin in its file.
    pub fn file_offset(&self) -> u64 {
        self.place.range.start as u64
    }

    /// Rows: the product of all dimensions but the first.
    pub fn rows(&self) -> usize {
        self.shape.iter().skip(1).product()
    }
}

/// A tensor with its bytes.
#[derive(Debug, Clone, Copy)]
pub struct Tensor<'a> {
    /// Name, shape and type.
    pub info: &'a TensorInfo,
    /// `info.size_bytes` bytes, in rows of `info.shape[0]` values.
    pub data: &'a [u8],
}

/// Which bytes of which segment.
#[derive(Debug, Clone)]
struct Place {
    segment: usize,
    range: Range<usize>,
}

/// Bytes that tensors lie in.
#[derive(Debug)]
enum Segment {
    Mapped(MappedFile),
    Owned(Vec<u8>),
}

impl Deref for Segment {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Mapped(map) => map,
            Self::Owned(bytes) => bytes,
        }
    }
}

/// Verifies ranges of a file's bytes, or says why they do not hold.
pub type VerifyBytes = dyn Fn(&[Range<u64>]) -> Result<(), String> + Send + Sync;

/// A model file. Clones share it.
#[derive(Debug, Clone)]
pub struct Gguf {
    inner: Arc<Inner>,
    sha256: Option<[u8; 32]>,
    parts: Option<Arc<Parts>>,
}

/// Which tensors of a file that is verified as it is used were verified.
struct Parts {
    verify: Box<VerifyBytes>,
    sound: Vec<AtomicBool>,
}

impl std::fmt::Debug for Parts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let sound = self.sound.iter().filter(|sound| sound.load(Ordering::Relaxed)).count();
        write!(f, "Parts({sound} of {} tensors verified)", self.sound.len())
    }
}

#[derive(Debug)]
struct Inner {
    name: String,
    version: u32,
    alignment: usize,
    /// `segments[0]` has the header. More only where the source was not one GGUF file.
    segments: Vec<Segment>,
    values: Vec<Entry>,
    value_index: HashMap<String, usize>,
    tensors: Vec<TensorInfo>,
    tensor_index: HashMap<String, usize>,
}

/// One key with its value and where the value's bytes (type included) stand in the header.
#[derive(Debug)]
struct Entry {
    key: String,
    value: Value,
    raw: Range<usize>,
}

impl Gguf {
    /// Opens and checks a file.
    ///
    /// # Errors
    /// [`GgufError`].
    pub fn open(path: &Path) -> Result<Self, GgufError> {
        let name = path.display().to_string();
        let file =
            File::open(path).map_err(|source| GgufError::Open { name: name.clone(), source })?;
        Self::from_file(file, &name)
    }

    /// Maps and checks an open file; `name` stands in errors.
    ///
    /// # Errors
    /// [`GgufError`].
    pub fn from_file(file: File, name: &str) -> Result<Self, GgufError> {
        let map = MappedFile::open(&file)
            .map_err(|source| GgufError::Open { name: name.to_owned(), source })?;
        read::read(Segment::Mapped(map), name)
    }

    /// Checks a file in memory.
    ///
    /// # Errors
    /// [`GgufError`].
    pub fn from_bytes(bytes: Vec<u8>) -> Result<Self, GgufError> {
        read::read(Segment::Owned(bytes), "model in memory")
    }

    /// Maps and checks an open file whose bytes are known to have the given SHA-256 if they pass
    /// `verify`, which is asked about the header here and about each tensor before it is first
    /// given out: a start that does not need all weights does not read all of them.
    ///
    /// # Errors
    /// [`GgufError`]; [`GgufError::Unverified`] where the header does not hold.
    pub fn in_parts(
        file: File,
        name: &str,
        sha256: [u8; 32],
        verify: Box<VerifyBytes>,
    ) -> Result<Self, GgufError> {
        let gguf = Self::from_file(file, name)?;
        let end = gguf.tensors().iter().map(TensorInfo::file_offset).min();
        let header = 0..end.unwrap_or(gguf.size_bytes());
        verify(&[header]).map_err(|reason| GgufError::Unverified {
            what: format!("the header of {name}"),
            reason,
        })?;
        let sound = gguf.tensors().iter().map(|_| AtomicBool::new(false)).collect();
        let parts = Some(Arc::new(Parts { verify, sound }));
        Ok(Self { sha256: Some(sha256), parts, ..gguf })
    }

    /// Verifies tensors together, which is faster than one by one; names that the file does not have
    /// are passed over. Nothing to do for a file that was verified before it was opened.
    ///
    /// # Errors
    /// [`GgufError::Unverified`].
    pub fn verify<'a>(&self, names: impl IntoIterator<Item = &'a str>) -> Result<(), GgufError> {
        let Some(parts) = &self.parts else { return Ok(()) };
        let index = |name| self.inner.tensor_index.get(name).copied();
        let wanted: Vec<usize> = names
            .into_iter()
            .filter_map(index)
            .filter(|index| !parts.sound[*index].load(Ordering::Acquire))
            .collect();
        let ranges: Vec<Range<u64>> = wanted
            .iter()
            .map(|index| &self.inner.tensors[*index].place.range)
            .map(|range| range.start as u64..range.end as u64)
            .collect();
        (parts.verify)(&ranges).map_err(|reason| GgufError::Unverified {
            what: format!("{} tensors of {}", wanted.len(), self.inner.name),
            reason,
        })?;
        wanted.iter().for_each(|index| parts.sound[*index].store(true, Ordering::Release));
        Ok(())
    }

    /// [`Gguf::verify`] for all tensors.
    ///
    /// # Errors
    /// As there.
    pub fn verify_all(&self) -> Result<(), GgufError> {
        self.verify(self.tensors().iter().map(|tensor| tensor.name.as_str()))
    }

    /// The same file with the SHA-256 of its bytes, from whoever verified them in this process.
    /// What is derived from the file may be kept under that digest.
    #[must_use]
    pub fn verified_as(self, sha256: [u8; 32]) -> Self {
        Self { sha256: Some(sha256), ..self }
    }

    /// The SHA-256 of the file's bytes, where somebody verified them: see [`Gguf::verified_as`].
    pub fn sha256(&self) -> Option<&[u8; 32]> {
        self.sha256.as_ref()
    }

    /// The file's name, as given when it was opened.
    pub fn name(&self) -> &str {
        &self.inner.name
    }

    /// The format's version, 2 or 3.
    pub fn version(&self) -> u32 {
        self.inner.version
    }

    /// Alignment of tensor data, in bytes.
    pub fn alignment(&self) -> usize {
        self.inner.alignment
    }

    /// Bytes of the whole file (of all files, where there are several).
    pub fn size_bytes(&self) -> u64 {
        self.inner.segments.iter().map(|segment| segment.len() as u64).sum()
    }

    /// Starts reading the whole file ahead, in the background.
    pub fn prefetch(&self) {
        for segment in &self.inner.segments {
            if let Segment::Mapped(map) = segment {
                map.prefetch();
            }
        }
    }

    /// Gives back the memory of what was read so far; it comes back from the file when read again.
    pub fn release(&self) {
        for segment in &self.inner.segments {
            if let Segment::Mapped(map) = segment {
                map.release();
            }
        }
    }

    /// All keys with their values, in the file's order.
    pub fn values(&self) -> impl ExactSizeIterator<Item = (&str, &Value)> {
        self.inner.values.iter().map(|entry| (entry.key.as_str(), &entry.value))
    }

    /// All tensors, in the file's order.
    pub fn tensors(&self) -> &[TensorInfo] {
        &self.inner.tensors
    }

    /// A tensor by name. Its bytes are verified first where the file is verified in parts; one whose
    /// bytes do not hold is not given out, as if the file had none.
    pub fn tensor(&self, name: &str) -> Option<Tensor<'_>> {
        let index = *self.inner.tensor_index.get(name)?;
        let sound = self.parts.as_ref().is_none_or(|p| p.sound[index].load(Ordering::Acquire));
        if !sound && let Err(error) = self.verify([name]) {
            tracing::error!(%error, tensor = name, "a tensor is not used");
            return None;
        }
        let info = &self.inner.tensors[index];
        let data = &self.inner.segments[info.place.segment][info.place.range.clone()];
        Some(Tensor { info, data })
    }

    /// What the file says of a tensor, without its bytes.
    pub fn info(&self, name: &str) -> Option<&TensorInfo> {
        self.inner.tensor_index.get(name).map(|index| &self.inner.tensors[*index])
    }

    /// The header's bytes: what [`Array`]s point into.
    fn header(&self) -> &[u8] {
        &self.inner.segments[0]
    }
}

#[cfg(test)]
mod tests;
