//! How tensors lie in memory: ggml's types, their sizes, and conversions to and from `f32`.
//!
//! Everything here is plain scalar code, written for being right: the reference that the fast
//! kernels are compared with. Names, ids and layouts are ggml's (`ggml.h`, `ggml-quants.c`);
//! [`TensorType::I2S`] is Microsoft's (`bitnet.cpp`, the layout written on x86, which the published
//! files have).
//!
//! Deliberately absent: importance matrices, and the types that need ggml's large code books
//! (`IQ1_*`, `IQ2_*`, `IQ3_*`): a file with those is refused by the type's name.

mod fit;
mod k;
mod simple;
mod table;
mod ternary;

/// Bytes behind the values of a whole [`TensorType::I2S`] tensor: the scale, padded.
pub const I2_S_TAIL_BYTES: usize = 32;

/// A tensor's element type, with every id that ggml has given out and not withdrawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TensorType {
    /// 32-bit float.
    F32,
    /// IEEE 16-bit float.
    F16,
    /// 4 bits, one f16 scale per 32 values.
    Q4_0,
    /// 4 bits, f16 scale and minimum per 32 values.
    Q4_1,
    /// 5 bits, one f16 scale per 32 values.
    Q5_0,
    /// 5 bits, f16 scale and minimum per 32 values.
    Q5_1,
    /// 8 bits, one f16 scale per 32 values.
    Q8_0,
    /// 8 bits, f16 scale and sum per 32 values; activations only.
    Q8_1,
    /// 2 bits in super-blocks of 256.
    Q2K,
    /// 3 bits in super-blocks of 256.
    Q3K,
    /// 4 bits in super-blocks of 256.
    Q4K,
    /// 5 bits in super-blocks of 256.
    Q5K,
    /// 6 bits in super-blocks of 256.
    Q6K,
    /// 8 bits in super-blocks of 256; activations only.
    Q8K,
    /// Not supported.
    Iq2Xxs,
    /// Not supported.
    Iq2Xs,
    /// Not supported.
    Iq3Xxs,
    /// Not supported.
    Iq1S,
    /// 4 bits through a non-linear table, one f16 scale per 32 values.
    Iq4Nl,
    /// Not supported.
    Iq3S,
    /// Not supported.
    Iq2S,
    /// 4 bits through a non-linear table in super-blocks of 256.
    Iq4Xs,
    /// 8-bit integer.
    I8,
    /// 16-bit integer.
    I16,
    /// 32-bit integer.
    I32,
    /// 64-bit integer.
    I64,
    /// 64-bit float.
    F64,
    /// Not supported.
    Iq1M,
    /// The upper half of a 32-bit float.
    Bf16,
    /// Ternary, five values in a byte, one f16 scale per 256.
    Tq1_0,
    /// Ternary, four values in a byte, one f16 scale per 256.
    Tq2_0,
    /// Microsoft's ternary: four values in a byte, one f32 scale per tensor behind the values.
    I2S,
    /// 4-bit floats with a shared 8-bit exponent per 32 values.
    Mxfp4,
    /// Not supported.
    Nvfp4,
    /// Not supported.
    Q1_0,
}

struct Row {
    ty: TensorType,
    id: u32,
    name: &'static str,
    block_len: usize,
    block_bytes: usize,
}

#[rustfmt::skip]
const TABLE: &[Row] = &[
    Row { ty: TensorType::F32, id: 0, name: "F32", block_len: 1, block_bytes: 4 },
    Row { ty: TensorType::F16, id: 1, name: "F16", block_len: 1, block_bytes: 2 },
    Row { ty: TensorType::Q4_0, id: 2, name: "Q4_0", block_len: 32, block_bytes: 18 },
    Row { ty: TensorType::Q4_1, id: 3, name: "Q4_1", block_len: 32, block_bytes: 20 },
    Row { ty: TensorType::Q5_0, id: 6, name: "Q5_0", block_len: 32, block_bytes: 22 },
    Row { ty: TensorType::Q5_1, id: 7, name: "Q5_1", block_len: 32, block_bytes: 24 },
    Row { ty: TensorType::Q8_0, id: 8, name: "Q8_0", block_len: 32, block_bytes: 34 },
    Row { ty: TensorType::Q8_1, id: 9, name: "Q8_1", block_len: 32, block_bytes: 36 },
    Row { ty: TensorType::Q2K, id: 10, name: "Q2_K", block_len: 256, block_bytes: 84 },
    Row { ty: TensorType::Q3K, id: 11, name: "Q3_K", block_len: 256, block_bytes: 110 },
    Row { ty: TensorType::Q4K, id: 12, name: "Q4_K", block_len: 256, block_bytes: 144 },
    Row { ty: TensorType::Q5K, id: 13, name: "Q5_K", block_len: 256, block_bytes: 176 },
    Row { ty: TensorType::Q6K, id: 14, name: "Q6_K", block_len: 256, block_bytes: 210 },
    Row { ty: TensorType::Q8K, id: 15, name: "Q8_K", block_len: 256, block_bytes: 292 },
    Row { ty: TensorType::Iq2Xxs, id: 16, name: "IQ2_XXS", block_len: 256, block_bytes: 66 },
    Row { ty: TensorType::Iq2Xs, id: 17, name: "IQ2_XS", block_len: 256, block_bytes: 74 },
    Row { ty: TensorType::Iq3Xxs, id: 18, name: "IQ3_XXS", block_len: 256, block_bytes: 98 },
    Row { ty: TensorType::Iq1S, id: 19, name: "IQ1_S", block_len: 256, block_bytes: 50 },
    Row { ty: TensorType::Iq4Nl, id: 20, name: "IQ4_NL", block_len: 32, block_bytes: 18 },
    Row { ty: TensorType::Iq3S, id: 21, name: "IQ3_S", block_len: 256, block_bytes: 110 },
    Row { ty: TensorType::Iq2S, id: 22, name: "IQ2_S", block_len: 256, block_bytes: 82 },
    Row { ty: TensorType::Iq4Xs, id: 23, name: "IQ4_XS", block_len: 256, block_bytes: 136 },
    Row { ty: TensorType::I8, id: 24, name: "I8", block_len: 1, block_bytes: 1 },
    Row { ty: TensorType::I16, id: 25, name: "I16", block_len: 1, block_bytes: 2 },
    Row { ty: TensorType::I32, id: 26, name: "I32", block_len: 1, block_bytes: 4 },
    Row { ty: TensorType::I64, id: 27, name: "I64", block_len: 1, block_bytes: 8 },
    Row { ty: TensorType::F64, id: 28, name: "F64", block_len: 1, block_bytes: 8 },
    Row { ty: TensorType::Iq1M, id: 29, name: "IQ1_M", block_len: 256, block_bytes: 56 },
    Row { ty: TensorType::Bf16, id: 30, name: "BF16", block_len: 1, block_bytes: 2 },
    Row { ty: TensorType::Tq1_0, id: 34, name: "TQ1_0", block_len: 256, block_bytes: 54 },
    Row { ty: TensorType::Tq2_0, id: 35, name: "TQ2_0", block_len: 256, block_bytes: 66 },
    Row { ty: TensorType::I2S, id: 36, name: "I2_S", block_len: 128, block_bytes: 32 },
    Row { ty: TensorType::Mxfp4, id: 39, name: "MXFP4", block_len: 32, block_bytes: 17 },
    Row { ty: TensorType::Nvfp4, id: 40, name: "NVFP4", block_len: 64, block_bytes: 36 },
    Row { ty: TensorType::Q1_0, id: 41, name: "Q1_0", block_len: 128, block_bytes: 18 },
];

/// Types that ggml once had, for the wording of a refusal.
const WITHDRAWN: &[(u32, &str)] = &[
    (4, "Q4_2"),
    (5, "Q4_3"),
    (31, "Q4_0_4_4"),
    (32, "Q4_0_4_8"),
    (33, "Q4_0_8_8"),
    (37, "IQ4_NL_4_8"),
    (38, "IQ4_NL_8_8"),
];

/// What can go wrong when a tensor is converted.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum FormatError {
    /// The id means nothing to ggml or was withdrawn.
    #[error("read tensor type {id}: {meaning}")]
    UnknownType {
        /// The id found.
        id: u32,
        /// What is known about it.
        meaning: String,
    },
    /// The type is known by name, but this program cannot compute with it.
    #[error("convert tensor type {}: not supported, convert the model to another type", .ty.name())]
    Unsupported {
        /// The type.
        ty: TensorType,
    },
    /// The number of values does not fill whole blocks.
    #[error("convert {values} values of type {}: not a multiple of {}", .ty.name(), .ty.block_len())]
    PartialBlock {
        /// The type.
        ty: TensorType,
        /// How many values were asked for.
        values: usize,
    },
    /// The number of bytes does not belong to the number of values.
    #[error(
        "convert {values} values of type {}: found {found_bytes} bytes, expected {expected_bytes}",
        .ty.name()
    )]
    Length {
        /// The type.
        ty: TensorType,
        /// How many values were asked for.
        values: usize,
        /// Bytes given.
        found_bytes: usize,
        /// Bytes that this many values take.
        expected_bytes: usize,
    },
}

impl TensorType {
    fn row(self) -> &'static Row {
        // The table has one row per variant in the variants' order; a test holds that.
        &TABLE[self as usize]
    }

    /// The type that ggml gave this id.
    ///
    /// # Errors
    /// [`FormatError::UnknownType`] for an id without a type, by its name where it once had one.
    pub fn from_ggml_id(id: u32) -> Result<Self, FormatError> {
        if let Some(row) = TABLE.iter().find(|row| row.id == id) {
            return Ok(row.ty);
        }
        let meaning = match WITHDRAWN.iter().find(|(withdrawn, _)| *withdrawn == id) {
            Some((_, name)) => format!("{name} was withdrawn, convert the model again"),
            None => "unknown, the file may need a newer program".to_owned(),
        };
        Err(FormatError::UnknownType { id, meaning })
    }

    /// The type of this name, as [`TensorType::name`] writes it, in any case.
    pub fn from_name(name: &str) -> Option<Self> {
        TABLE.iter().find(|row| row.name.eq_ignore_ascii_case(name)).map(|row| row.ty)
    }

    /// All types.
    pub fn all() -> impl Iterator<Item = Self> {
        TABLE.iter().map(|row| row.ty)
    }

    /// ggml's id.
    pub fn ggml_id(self) -> u32 {
        self.row().id
    }

    /// ggml's name, for example `Q4_K`.
    pub fn name(self) -> &'static str {
        self.row().name
    }

    /// Values in a block.
    pub fn block_len(self) -> usize {
        self.row().block_len
    }

    /// Bytes of a block.
    pub fn block_bytes(self) -> usize {
        self.row().block_bytes
    }

    /// Bytes of a row of `values` values, or `None` when they do not fill whole blocks or the
    /// number is too large for this machine.
    pub fn row_bytes(self, values: usize) -> Option<usize> {
        if !values.is_multiple_of(self.block_len()) {
            return None;
        }
        (values / self.block_len()).checked_mul(self.block_bytes())
    }

    /// Bytes of a whole tensor, or `None` when its rows do not fill whole blocks or the number is
    /// too large. `shape[0]` is the length of a row. More than the rows only for
    /// [`TensorType::I2S`], whose scale stands behind them.
    pub fn tensor_bytes(self, shape: &[usize]) -> Option<usize> {
        let (row, others) = shape.split_first()?;
        let mut bytes = self.row_bytes(*row)?;
        for dimension in others {
            bytes = bytes.checked_mul(*dimension)?;
        }
        match self {
            Self::I2S => bytes.checked_add(I2_S_TAIL_BYTES),
            _ => Some(bytes),
        }
    }

    /// Whether [`dequantize`] can read it.
    pub fn can_dequantize(self) -> bool {
        dequantizer(self).is_some()
    }

    /// Whether [`quantize`] can write it.
    pub fn can_quantize(self) -> bool {
        quantizer(self).is_some()
    }
}

impl std::fmt::Display for TensorType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// Converts whole blocks: bytes of `n` blocks into `n * block_len` values.
type Dequantizer = fn(&[u8], &mut [f32]);
/// Converts whole blocks the other way.
type Quantizer = fn(&[f32], &mut [u8]);

fn dequantizer(ty: TensorType) -> Option<Dequantizer> {
    use TensorType as T;
    Some(match ty {
        T::F32 => simple::f32_to_f32,
        T::F16 => simple::f16_to_f32,
        T::Bf16 => simple::bf16_to_f32,
        T::F64 => simple::f64_to_f32,
        T::Q4_0 => simple::dequantize_q4_0,
        T::Q4_1 => simple::dequantize_q4_1,
        T::Q5_0 => simple::dequantize_q5_0,
        T::Q5_1 => simple::dequantize_q5_1,
        T::Q8_0 => simple::dequantize_q8_0,
        T::Q2K => k::dequantize_q2_k,
        T::Q3K => k::dequantize_q3_k,
        T::Q4K => k::dequantize_q4_k,
        T::Q5K => k::dequantize_q5_k,
        T::Q6K => k::dequantize_q6_k,
        T::Q8K => k::dequantize_q8_k,
        T::Iq4Nl => table::dequantize_iq4_nl,
        T::Iq4Xs => table::dequantize_iq4_xs,
        T::Mxfp4 => table::dequantize_mxfp4,
        T::Tq1_0 => ternary::dequantize_tq1_0,
        T::Tq2_0 => ternary::dequantize_tq2_0,
        T::I2S => ternary::dequantize_i2_s,
        _ => return None,
    })
}

fn quantizer(ty: TensorType) -> Option<Quantizer> {
    use TensorType as T;
    Some(match ty {
        T::F32 => simple::f32_from_f32,
        T::F16 => simple::f16_from_f32,
        T::Bf16 => simple::bf16_from_f32,
        T::Q4_0 => simple::quantize_q4_0,
        T::Q4_1 => simple::quantize_q4_1,
        T::Q5_0 => simple::quantize_q5_0,
        T::Q5_1 => simple::quantize_q5_1,
        T::Q8_0 => simple::quantize_q8_0,
        T::Q2K => fit::quantize_q2_k,
        T::Q3K => fit::quantize_q3_k,
        T::Q4K => fit::quantize_q4_k,
        T::Q5K => fit::quantize_q5_k,
        T::Q6K => fit::quantize_q6_k,
        T::Iq4Nl => table::quantize_iq4_nl,
        T::Mxfp4 => table::quantize_mxfp4,
        T::Tq1_0 => ternary::quantize_tq1_0,
        T::Tq2_0 => ternary::quantize_tq2_0,
        T::I2S => ternary::quantize_i2_s,
        _ => return None,
    })
}

/// Converts a row, or a whole tensor, to `f32`; `values.len()` says how many values there are.
/// [`TensorType::I2S`] needs the whole tensor, since its scale stands at the end.
///
/// # Errors
/// [`FormatError`]: the type is not supported, or the lengths do not belong together.
pub fn dequantize(ty: TensorType, data: &[u8], values: &mut [f32]) -> Result<(), FormatError> {
    let convert = dequantizer(ty).ok_or(FormatError::Unsupported { ty })?;
    let expected_bytes = expected_bytes(ty, values.len())?;
    if data.len() != expected_bytes {
        return Err(FormatError::Length {
            ty,
            values: values.len(),
            found_bytes: data.len(),
            expected_bytes,
        });
    }
    convert(data, values);
    Ok(())
}

/// Converts values from `f32`, with ggml's rounding. Values that are not finite become zero or
/// the nearest finite value in the integer types.
///
/// # Errors
/// [`FormatError`]: the type cannot be written, or the values do not fill whole blocks.
pub fn quantize(ty: TensorType, values: &[f32]) -> Result<Vec<u8>, FormatError> {
    let convert = quantizer(ty).ok_or(FormatError::Unsupported { ty })?;
    let mut data = vec![0; expected_bytes(ty, values.len())?];
    convert(values, &mut data);
    Ok(data)
}

fn expected_bytes(ty: TensorType, values: usize) -> Result<usize, FormatError> {
    ty.tensor_bytes(&[values]).ok_or(FormatError::PartialBlock { ty, values })
}

#[cfg(test)]
mod tests;
