//! Values of the metadata, and typed access to them.

use std::ops::Range;

use super::{Gguf, GgufError};

/// The types a value can have, with GGUF's numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ValueType {
    /// 8-bit unsigned integer.
    U8,
    /// 8-bit signed integer.
    I8,
    /// 16-bit unsigned integer.
    U16,
    /// 16-bit signed integer.
    I16,
    /// 32-bit unsigned integer.
    U32,
    /// 32-bit signed integer.
    I32,
    /// 32-bit float.
    F32,
    /// One byte, 0 or 1.
    Bool,
    /// UTF-8 text.
    String,
    /// Elements of one type.
    Array,
    /// 64-bit unsigned integer.
    U64,
    /// 64-bit signed integer.
    I64,
    /// 64-bit float.
    F64,
}

impl ValueType {
    const ALL: [Self; 13] = [
        Self::U8,
        Self::I8,
        Self::U16,
        Self::I16,
        Self::U32,
        Self::I32,
        Self::F32,
        Self::Bool,
        Self::String,
        Self::Array,
        Self::U64,
        Self::I64,
        Self::F64,
    ];

    pub(super) fn from_id(id: u32) -> Option<Self> {
        Self::ALL.get(usize::try_from(id).ok()?).copied()
    }

    pub(super) fn id(self) -> u32 {
        self as u32
    }

    /// Bytes of one value; none for those whose length varies.
    pub(super) fn size_bytes(self) -> Option<usize> {
        match self {
            Self::U8 | Self::I8 | Self::Bool => Some(1),
            Self::U16 | Self::I16 => Some(2),
            Self::U32 | Self::I32 | Self::F32 => Some(4),
            Self::U64 | Self::I64 | Self::F64 => Some(8),
            Self::String | Self::Array => None,
        }
    }

    /// The name used in errors.
    pub fn name(self) -> &'static str {
        match self {
            Self::U8 => "u8",
            Self::I8 => "i8",
            Self::U16 => "u16",
            Self::I16 => "i16",
            Self::U32 => "u32",
            Self::I32 => "i32",
            Self::F32 => "f32",
            Self::Bool => "bool",
            Self::String => "string",
            Self::Array => "array",
            Self::U64 => "u64",
            Self::I64 => "i64",
            Self::F64 => "f64",
        }
    }
}

/// An array that stays in the file; read it with the getters of [`Gguf`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Array {
    /// Type of the elements; never [`ValueType::Array`].
    pub ty: ValueType,
    /// Number of elements.
    pub len: usize,
    /// Where the elements stand in the header.
    pub(super) range: Range<usize>,
}

/// A value of the metadata.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)] // the variants are the types above
pub enum Value {
    U8(u8),
    I8(i8),
    U16(u16),
    I16(i16),
    U32(u32),
    I32(i32),
    F32(f32),
    Bool(bool),
    String(String),
    Array(Array),
    U64(u64),
    I64(i64),
    F64(f64),
}

impl Value {
    /// Reads a scalar from exactly its bytes, little-endian. `None` for strings, arrays, other
    /// lengths, and a bool that is neither 0 nor 1.
    pub(super) fn scalar(ty: ValueType, bytes: &[u8]) -> Option<Self> {
        Some(match ty {
            ValueType::U8 => Self::U8(u8::from_le_bytes(bytes.try_into().ok()?)),
            ValueType::I8 => Self::I8(i8::from_le_bytes(bytes.try_into().ok()?)),
            ValueType::U16 => Self::U16(u16::from_le_bytes(bytes.try_into().ok()?)),
            ValueType::I16 => Self::I16(i16::from_le_bytes(bytes.try_into().ok()?)),
            ValueType::U32 => Self::U32(u32::from_le_bytes(bytes.try_into().ok()?)),
            ValueType::I32 => Self::I32(i32::from_le_bytes(bytes.try_into().ok()?)),
            ValueType::F32 => Self::F32(f32::from_le_bytes(bytes.try_into().ok()?)),
            ValueType::U64 => Self::U64(u64::from_le_bytes(bytes.try_into().ok()?)),
            ValueType::I64 => Self::I64(i64::from_le_bytes(bytes.try_into().ok()?)),
            ValueType::F64 => Self::F64(f64::from_le_bytes(bytes.try_into().ok()?)),
            ValueType::Bool => match bytes {
                [0] => Self::Bool(false),
                [1] => Self::Bool(true),
                _ => return None,
            },
            ValueType::String | ValueType::Array => return None,
        })
    }

    /// The value's type.
    pub fn ty(&self) -> ValueType {
        match self {
            Self::U8(_) => ValueType::U8,
            Self::I8(_) => ValueType::I8,
            Self::U16(_) => ValueType::U16,
            Self::I16(_) => ValueType::I16,
            Self::U32(_) => ValueType::U32,
            Self::I32(_) => ValueType::I32,
            Self::F32(_) => ValueType::F32,
            Self::Bool(_) => ValueType::Bool,
            Self::String(_) => ValueType::String,
            Self::Array(_) => ValueType::Array,
            Self::U64(_) => ValueType::U64,
            Self::I64(_) => ValueType::I64,
            Self::F64(_) => ValueType::F64,
        }
    }

    /// The number of an integer of any width; a bool is none.
    fn integer(&self) -> Option<i128> {
        match self {
            Self::U8(v) => Some((*v).into()),
            Self::I8(v) => Some((*v).into()),
            Self::U16(v) => Some((*v).into()),
            Self::I16(v) => Some((*v).into()),
            Self::U32(v) => Some((*v).into()),
            Self::I32(v) => Some((*v).into()),
            Self::U64(v) => Some((*v).into()),
            Self::I64(v) => Some((*v).into()),
            Self::F32(_) | Self::F64(_) | Self::Bool(_) | Self::String(_) | Self::Array(_) => None,
        }
    }

    /// The number of a float of any width.
    fn float(&self) -> Option<f32> {
        match self {
            Self::F32(v) => Some(*v),
            Self::F64(v) => Some(*v as f32),
            _ => None,
        }
    }
}

impl std::fmt::Display for Value {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::F32(v) => write!(f, "{v}"),
            Self::F64(v) => write!(f, "{v}"),
            Self::Bool(v) => write!(f, "{v}"),
            Self::String(v) => f.write_str(v),
            Self::Array(v) => write!(f, "[{} × {}]", v.ty.name(), v.len),
            other => match other.integer() {
                Some(v) => write!(f, "{v}"),
                None => Ok(()),
            },
        }
    }
}

/// `found` of [`GgufError::Type`]: the type, and for numbers the number.
fn describe(value: &Value) -> String {
    match value {
        Value::Array(array) => format!("an array of {}", array.ty.name()),
        Value::String(_) => "a string".to_owned(),
        other => format!("{} {other}", other.ty().name()),
    }
}

fn mismatch(key: &str, value: &Value, expected: &'static str) -> GgufError {
    GgufError::Type { key: key.to_owned(), found: describe(value), expected }
}

/// Typed access. Every getter gives `Ok(None)` when the key is not there, and an error when its
/// value is of another kind. Integers of any width are taken where the number fits.
impl Gguf {
    /// The value of a key, whatever its type.
    pub fn value(&self, key: &str) -> Option<&Value> {
        self.inner.value_index.get(key).map(|at| &self.inner.values[*at].value)
    }

    /// The value's bytes with the type before them, as they stand in the file.
    pub(super) fn raw_value(&self, key: &str) -> Option<&[u8]> {
        let at = *self.inner.value_index.get(key)?;
        Some(&self.header()[self.inner.values[at].raw.clone()])
    }

    /// `general.architecture`, which every file has.
    pub fn architecture(&self) -> &str {
        match self.value("general.architecture") {
            Some(Value::String(name)) => name,
            _ => "", // refused when read
        }
    }

    fn typed<'a, T>(
        &'a self,
        key: &str,
        expected: &'static str,
        read: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, GgufError> {
        let Some(value) = self.value(key) else { return Ok(None) };
        read(value).map(Some).ok_or_else(|| mismatch(key, value, expected))
    }

    /// An unsigned number.
    ///
    /// # Errors
    /// [`GgufError::Type`].
    pub fn u32(&self, key: &str) -> Result<Option<u32>, GgufError> {
        self.typed(key, "an unsigned 32-bit number", |v| u32::try_from(v.integer()?).ok())
    }

    /// A large unsigned number.
    ///
    /// # Errors
    /// [`GgufError::Type`].
    pub fn u64(&self, key: &str) -> Result<Option<u64>, GgufError> {
        self.typed(key, "an unsigned 64-bit number", |v| u64::try_from(v.integer()?).ok())
    }

    /// A float.
    ///
    /// # Errors
    /// [`GgufError::Type`].
    pub fn f32(&self, key: &str) -> Result<Option<f32>, GgufError> {
        self.typed(key, "a float", Value::float)
    }

    /// A truth value.
    ///
    /// # Errors
    /// [`GgufError::Type`].
    pub fn bool(&self, key: &str) -> Result<Option<bool>, GgufError> {
        self.typed(key, "a bool", |v| match v {
            Value::Bool(v) => Some(*v),
            _ => None,
        })
    }

    /// A text.
    ///
    /// # Errors
    /// [`GgufError::Type`].
    pub fn str(&self, key: &str) -> Result<Option<&str>, GgufError> {
        self.typed(key, "a string", |v| match v {
            Value::String(v) => Some(v.as_str()),
            _ => None,
        })
    }

    /// The same as [`Gguf::u32`], for a key that must be there.
    ///
    /// # Errors
    /// [`GgufError::Missing`] and [`GgufError::Type`].
    pub fn require_u32(&self, key: &str) -> Result<u32, GgufError> {
        self.u32(key)?.ok_or_else(|| GgufError::Missing { key: key.to_owned() })
    }

    /// The same as [`Gguf::f32`], for a key that must be there.
    ///
    /// # Errors
    /// [`GgufError::Missing`] and [`GgufError::Type`].
    pub fn require_f32(&self, key: &str) -> Result<f32, GgufError> {
        self.f32(key)?.ok_or_else(|| GgufError::Missing { key: key.to_owned() })
    }

    /// The same as [`Gguf::str`], for a key that must be there.
    ///
    /// # Errors
    /// [`GgufError::Missing`] and [`GgufError::Type`].
    pub fn require_str(&self, key: &str) -> Result<&str, GgufError> {
        self.str(key)?.ok_or_else(|| GgufError::Missing { key: key.to_owned() })
    }

    /// The elements of an array as scalars.
    fn elements<T>(
        &self,
        key: &str,
        expected: &'static str,
        read: impl Fn(&Value) -> Option<T>,
    ) -> Result<Option<Vec<T>>, GgufError> {
        let Some(value) = self.value(key) else { return Ok(None) };
        let Value::Array(array) = value else { return Err(mismatch(key, value, expected)) };
        let Some(size) = array.ty.size_bytes() else { return Err(mismatch(key, value, expected)) };
        let mut elements = Vec::with_capacity(array.len);
        for bytes in self.header()[array.range.clone()].chunks_exact(size) {
            let Some(scalar) = Value::scalar(array.ty, bytes) else {
                return Err(mismatch(key, value, expected));
            };
            elements.push(read(&scalar).ok_or_else(|| mismatch(key, &scalar, expected))?);
        }
        Ok(Some(elements))
    }

    /// An array of unsigned numbers.
    ///
    /// # Errors
    /// [`GgufError::Type`].
    pub fn u32s(&self, key: &str) -> Result<Option<Vec<u32>>, GgufError> {
        self.elements(key, "an array of unsigned 32-bit numbers", |v| {
            u32::try_from(v.integer()?).ok()
        })
    }

    /// An array of signed numbers.
    ///
    /// # Errors
    /// [`GgufError::Type`].
    pub fn i32s(&self, key: &str) -> Result<Option<Vec<i32>>, GgufError> {
        self.elements(key, "an array of 32-bit numbers", |v| i32::try_from(v.integer()?).ok())
    }

    /// An array of floats.
    ///
    /// # Errors
    /// [`GgufError::Type`].
    pub fn f32s(&self, key: &str) -> Result<Option<Vec<f32>>, GgufError> {
        self.elements(key, "an array of floats", Value::float)
    }

    /// An array of truth values.
    ///
    /// # Errors
    /// [`GgufError::Type`].
    pub fn bools(&self, key: &str) -> Result<Option<Vec<bool>>, GgufError> {
        self.elements(key, "an array of bools", |v| match v {
            Value::Bool(v) => Some(*v),
            _ => None,
        })
    }

    /// A number per layer: an array of `layers` numbers, or one number for all of them.
    ///
    /// # Errors
    /// [`GgufError::Type`], also for an array of another length.
    pub fn u32_per_layer(&self, key: &str, layers: usize) -> Result<Option<Vec<u32>>, GgufError> {
        let expected = "a number, or an array with one number per layer";
        match self.value(key) {
            None => Ok(None),
            Some(Value::Array(array)) if array.len == layers => self.u32s(key),
            Some(value @ Value::Array(_)) => Err(mismatch(key, value, expected)),
            Some(_) => Ok(self.u32(key)?.map(|number| vec![number; layers])),
        }
    }

    /// An array of texts, borrowed from the file.
    ///
    /// # Errors
    /// [`GgufError::Type`], also when one of them is not UTF-8.
    pub fn strings(&self, key: &str) -> Result<Option<Vec<&str>>, GgufError> {
        let Some(bytes) = self.byte_strings(key)? else { return Ok(None) };
        let mut strings = Vec::with_capacity(bytes.len());
        for (at, text) in bytes.into_iter().enumerate() {
            strings.push(std::str::from_utf8(text).map_err(|_| GgufError::Type {
                key: key.to_owned(),
                found: format!("bytes that are not UTF-8 in element {at}"),
                expected: "an array of strings",
            })?);
        }
        Ok(Some(strings))
    }

    /// An array of texts as bytes, borrowed from the file.
    ///
    /// # Errors
    /// [`GgufError::Type`].
    pub fn byte_strings(&self, key: &str) -> Result<Option<Vec<&[u8]>>, GgufError> {
        let expected = "an array of strings";
        let Some(value) = self.value(key) else { return Ok(None) };
        let Value::Array(array @ Array { ty: ValueType::String, .. }) = value else {
            return Err(mismatch(key, value, expected));
        };
        let mut rest = &self.header()[array.range.clone()];
        let mut strings = Vec::with_capacity(array.len);
        // The lengths were checked when the file was read.
        while let Some((len, after)) = rest.split_first_chunk::<8>() {
            let len = usize::try_from(u64::from_le_bytes(*len)).unwrap_or(usize::MAX);
            let Some((text, after)) = after.split_at_checked(len) else { break };
            strings.push(text);
            rest = after;
        }
        Ok(Some(strings))
    }
}
