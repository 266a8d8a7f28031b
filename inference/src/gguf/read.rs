//! Reads and checks a file's header. See the format's description in ggml, `docs/gguf.md`.

use std::collections::HashMap;
use std::sync::Arc;

use fulmar_kernels::formats::TensorType;

use super::{
    ALIGNMENT_BYTES_DEFAULT, ALIGNMENT_BYTES_MAX, ARRAY_LEN_MAX, Array, DIMENSIONS_LEN_MAX, Entry,
    Gguf, GgufError, Inner, KEY_BYTES_MAX, NAME_BYTES_MAX, Place, STRING_BYTES_MAX, Segment,
    TENSORS_LEN_MAX, TensorInfo, VALUES_LEN_MAX, Value, ValueType,
};

/// Bytes of the shortest key-value pair: an empty key's length, a type, one byte.
const VALUE_BYTES_MIN: u64 = 8 + 4 + 1;
/// Bytes of the shortest tensor entry: name length, dimensions, one dimension, type, offset.
const TENSOR_BYTES_MIN: u64 = 8 + 4 + 8 + 4 + 8;

/// A position in the header. Every read says what it is for, so that errors can.
struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    fn take(&mut self, len: u64, what: impl Fn() -> String) -> Result<&'a [u8], GgufError> {
        let available = self.bytes.len() - self.at;
        match usize::try_from(len).ok().filter(|len| *len <= available) {
            Some(len) => {
                let taken = &self.bytes[self.at..self.at + len];
                self.at += len;
                Ok(taken)
            }
            None => Err(GgufError::Truncated { what: what(), at: self.at, needed: len, available }),
        }
    }

    fn array<const N: usize>(&mut self, what: impl Fn() -> String) -> Result<[u8; N], GgufError> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N as u64, what)?);
        Ok(array)
    }

    fn u32(&mut self, what: impl Fn() -> String) -> Result<u32, GgufError> {
        Ok(u32::from_le_bytes(self.array(what)?))
    }

    fn u64(&mut self, what: impl Fn() -> String) -> Result<u64, GgufError> {
        Ok(u64::from_le_bytes(self.array(what)?))
    }

    /// A length or count of at most `limit`.
    fn count(&mut self, limit: usize, what: impl Fn() -> String) -> Result<usize, GgufError> {
        let found = self.u64(&what)?;
        match usize::try_from(found).ok().filter(|found| *found <= limit) {
            Some(count) => Ok(count),
            None => Err(GgufError::Limit { what: what(), found, limit: limit as u64 }),
        }
    }

    /// A count of things that take at least `bytes_min` bytes each, so that it cannot promise
    /// more than the file has.
    fn count_of(
        &mut self,
        limit: usize,
        bytes_min: u64,
        what: impl Fn() -> String,
    ) -> Result<usize, GgufError> {
        let count = self.count(limit, &what)?;
        let needed = (count as u64).saturating_mul(bytes_min);
        let available = self.bytes.len() - self.at;
        if needed > available as u64 {
            return Err(GgufError::Truncated { what: what(), at: self.at, needed, available });
        }
        Ok(count)
    }

    fn text(&mut self, limit: usize, what: impl Fn() -> String) -> Result<&'a [u8], GgufError> {
        let len = self.count(limit, || format!("length of {}", what()))?;
        self.take(len as u64, what)
    }

    fn utf8(&mut self, limit: usize, what: impl Fn() -> String) -> Result<&'a str, GgufError> {
        let bytes = self.text(limit, &what)?;
        std::str::from_utf8(bytes).map_err(|_| malformed(what(), "not UTF-8"))
    }
}

fn malformed(what: impl Into<String>, reason: impl Into<String>) -> GgufError {
    GgufError::Malformed { what: what.into(), reason: reason.into() }
}

/// Reads the header in `segment` and checks everything it says.
pub(super) fn read(segment: Segment, name: &str) -> Result<Gguf, GgufError> {
    let mut cursor = Cursor { bytes: &segment, at: 0 };
    let version = read_version(&mut cursor, name)?;
    let tensors_len =
        cursor.count_of(TENSORS_LEN_MAX, TENSOR_BYTES_MIN, || "number of tensors".into())?;
    let values_len =
        cursor.count_of(VALUES_LEN_MAX, VALUE_BYTES_MIN, || "number of keys".into())?;

    let mut values = Vec::with_capacity(values_len);
    let mut value_index = HashMap::with_capacity(values_len);
    for at in 0..values_len {
        let entry = read_entry(&mut cursor, at)?;
        if value_index.insert(entry.key.clone(), at).is_some() {
            return Err(malformed(format!("key {:?}", entry.key), "it is there twice"));
        }
        values.push(entry);
    }
    let value = |key: &str| value_index.get(key).map(|at: &usize| &values[*at].value);
    check_architecture(value("general.architecture"))?;
    check_parts(value("split.count"))?;
    let alignment = read_alignment(value("general.alignment"))?;

    let mut tensors = Vec::with_capacity(tensors_len);
    for at in 0..tensors_len {
        tensors.push(read_tensor_info(&mut cursor, at, alignment)?);
    }
    let tensors_end = cursor.at;
    let tensors = place_tensors(tensors, tensors_end, alignment, segment.len())?;
    let tensor_index = index_tensors(&tensors)?;

    let name = name.to_owned();
    let segments = vec![segment];
    let inner =
        Inner { name, version, alignment, segments, values, value_index, tensors, tensor_index };
    Ok(Gguf { inner: Arc::new(inner), sha256: None, parts: None })
}

fn read_version(cursor: &mut Cursor<'_>, name: &str) -> Result<u32, GgufError> {
    let found = &cursor.bytes[..cursor.bytes.len().min(4)];
    if found != b"GGUF" {
        let found = found.escape_ascii().to_string();
        return Err(GgufError::Magic { name: name.to_owned(), found });
    }
    cursor.at = 4;
    let found = cursor.u32(|| "version".into())?;
    let hint = match found {
        2 | 3 => return Ok(found),
        1 => ": convert the model again",
        _ if matches!(found.swap_bytes(), 1..=3) => ": the file is big-endian, convert it again",
        _ => "",
    };
    Err(GgufError::Version { name: name.to_owned(), found, hint })
}

fn read_entry(cursor: &mut Cursor<'_>, index: usize) -> Result<Entry, GgufError> {
    let key = cursor.utf8(KEY_BYTES_MAX, || format!("key number {index}"))?;
    if key.is_empty() {
        return Err(malformed(format!("key number {index}"), "it is empty"));
    }
    let raw_start = cursor.at;
    let ty = read_type(cursor, key)?;
    let value = match ty {
        ValueType::String => {
            Value::String(cursor.utf8(STRING_BYTES_MAX, || format!("key {key:?}"))?.to_owned())
        }
        ValueType::Array => Value::Array(read_array(cursor, key)?),
        scalar => read_scalar(cursor, scalar, key)?,
    };
    Ok(Entry { key: key.to_owned(), value, raw: raw_start..cursor.at })
}

fn read_type(cursor: &mut Cursor<'_>, key: &str) -> Result<ValueType, GgufError> {
    let id = cursor.u32(|| format!("type of key {key:?}"))?;
    ValueType::from_id(id)
        .ok_or_else(|| malformed(format!("key {key:?}"), format!("unknown value type {id}")))
}

fn read_scalar(cursor: &mut Cursor<'_>, ty: ValueType, key: &str) -> Result<Value, GgufError> {
    let size = ty.size_bytes().unwrap_or(0) as u64;
    let bytes = cursor.take(size, || format!("key {key:?}"))?;
    Value::scalar(ty, bytes)
        .ok_or_else(|| malformed(format!("key {key:?}"), format!("{bytes:?} is no {}", ty.name())))
}

fn read_array(cursor: &mut Cursor<'_>, key: &str) -> Result<Array, GgufError> {
    let what = || format!("array {key:?}");
    let ty = read_type(cursor, key)?;
    if ty == ValueType::Array {
        return Err(malformed(what(), "arrays of arrays are not supported"));
    }
    let element_bytes_min = ty.size_bytes().unwrap_or(8) as u64;
    let len = cursor.count_of(ARRAY_LEN_MAX, element_bytes_min, what)?;
    let start = cursor.at;
    match ty.size_bytes() {
        Some(size) => {
            let bytes = cursor.take((len as u64).saturating_mul(size as u64), what)?;
            if ty == ValueType::Bool && bytes.iter().any(|byte| *byte > 1) {
                return Err(malformed(what(), "a bool that is neither 0 nor 1"));
            }
        }
        None => {
            for _ in 0..len {
                cursor.text(STRING_BYTES_MAX, what)?;
            }
        }
    }
    Ok(Array { ty, len, range: start..cursor.at })
}

fn check_architecture(value: Option<&Value>) -> Result<(), GgufError> {
    let what = "key \"general.architecture\"";
    match value {
        Some(Value::String(name)) if !name.is_empty() => Ok(()),
        Some(Value::String(_)) => Err(malformed(what, "it is empty")),
        Some(other) => {
            Err(malformed(what, format!("found {}, expected a string", other.ty().name())))
        }
        None => Err(GgufError::Missing { key: "general.architecture".into() }),
    }
}

fn check_parts(value: Option<&Value>) -> Result<(), GgufError> {
    match value {
        None | Some(Value::U8(0 | 1) | Value::U16(0 | 1) | Value::U32(0 | 1)) => Ok(()),
        Some(parts) => Err(malformed(
            "key \"split.count\"",
            format!("the model is in {parts} files, merge them first"),
        )),
    }
}

fn read_alignment(value: Option<&Value>) -> Result<usize, GgufError> {
    let what = "key \"general.alignment\"";
    let alignment = match value {
        None => return Ok(ALIGNMENT_BYTES_DEFAULT),
        Some(Value::U32(alignment)) => *alignment as usize,
        Some(other) => {
            return Err(malformed(what, format!("found {}, expected u32", other.ty().name())));
        }
    };
    if !alignment.is_power_of_two() {
        return Err(malformed(what, format!("{alignment} is not a power of two")));
    }
    if alignment > ALIGNMENT_BYTES_MAX {
        let (found, limit) = (alignment as u64, ALIGNMENT_BYTES_MAX as u64);
        return Err(GgufError::Limit { what: what.into(), found, limit });
    }
    Ok(alignment)
}

/// Reads one tensor entry; its place is still relative to the data's start.
fn read_tensor_info(
    cursor: &mut Cursor<'_>,
    index: usize,
    alignment: usize,
) -> Result<TensorInfo, GgufError> {
    let name = cursor.utf8(NAME_BYTES_MAX, || format!("name of tensor number {index}"))?;
    let what = || format!("tensor {name:?}");
    if name.is_empty() {
        return Err(malformed(format!("tensor number {index}"), "its name is empty"));
    }
    let dimensions = cursor.u32(what)? as usize;
    if dimensions == 0 || dimensions > DIMENSIONS_LEN_MAX {
        let reason = format!("{dimensions} dimensions, expected 1 to {DIMENSIONS_LEN_MAX}");
        return Err(malformed(what(), reason));
    }
    let mut shape = Vec::with_capacity(dimensions);
    for _ in 0..dimensions {
        let dimension = cursor.u64(what)?;
        match usize::try_from(dimension) {
            // ggml counts in signed 64-bit numbers
            Ok(d) if d > 0 && i64::try_from(dimension).is_ok() => shape.push(d),
            _ => return Err(malformed(what(), format!("a dimension of {dimension}"))),
        }
    }
    let ty = TensorType::from_ggml_id(cursor.u32(what)?)
        .map_err(|source| GgufError::TensorType { name: name.to_owned(), source })?;
    let offset = cursor.u64(what)?;
    let size_bytes = ty.tensor_bytes(&shape).ok_or_else(|| {
        let rows = format!("rows of {}, {ty} needs a multiple of {}", shape[0], ty.block_len());
        let reason = if shape[0].is_multiple_of(ty.block_len()) {
            format!("shape {shape:?} is too large")
        } else {
            rows
        };
        malformed(what(), reason)
    })?;
    let start = usize::try_from(offset)
        .ok()
        .filter(|start| start.checked_add(size_bytes).is_some())
        .ok_or_else(|| malformed(what(), format!("offset {offset} is too large")))?;
    if !start.is_multiple_of(alignment) {
        let reason = format!("offset {offset} is not a multiple of the alignment, {alignment}");
        return Err(malformed(what(), reason));
    }
    let place = Place { segment: 0, range: start..start + size_bytes };
    Ok(TensorInfo { name: name.to_owned(), shape, ty, size_bytes, place })
}

/// Moves the tensors' places behind the header and checks that they lie inside the file, apart.
fn place_tensors(
    mut tensors: Vec<TensorInfo>,
    header_end: usize,
    alignment: usize,
    file_bytes: usize,
) -> Result<Vec<TensorInfo>, GgufError> {
    let data_start = header_end.next_multiple_of(alignment);
    for tensor in &mut tensors {
        let range = &tensor.place.range;
        let end = data_start.checked_add(range.end).filter(|end| *end <= file_bytes);
        let Some(end) = end else {
            return Err(GgufError::Truncated {
                what: format!("data of tensor {:?}", tensor.name),
                at: data_start.saturating_add(range.start),
                needed: tensor.size_bytes as u64,
                available: file_bytes.saturating_sub(data_start.saturating_add(range.start)),
            });
        };
        tensor.place.range = data_start + range.start..end;
    }
    let mut order: Vec<&TensorInfo> = tensors.iter().collect();
    order.sort_by_key(|tensor| tensor.place.range.start);
    for pair in order.windows(2) {
        if pair[0].place.range.end > pair[1].place.range.start {
            let reason = format!("its data overlaps that of {:?}", pair[0].name);
            return Err(malformed(format!("tensor {:?}", pair[1].name), reason));
        }
    }
    Ok(tensors)
}

fn index_tensors(tensors: &[TensorInfo]) -> Result<HashMap<String, usize>, GgufError> {
    let mut index = HashMap::with_capacity(tensors.len());
    for (at, tensor) in tensors.iter().enumerate() {
        if index.insert(tensor.name.clone(), at).is_some() {
            return Err(malformed(format!("tensor {:?}", tensor.name), "it is there twice"));
        }
    }
    Ok(index)
}
