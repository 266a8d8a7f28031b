//! From ggml's blocks to the layouts of [`crate::layout`]: which layout a type takes, and the
//! regrouping of rows. Plain safe code; it runs once per model.

use crate::formats::TensorType;
use crate::layout::{self, Layout};

/// A layout by name, for data that says which one it has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Kind {
    Q8,
    Q4,
    Q4Min,
    Q5,
    Q5Min,
    NonLinear4,
    NonLinear4K,
    Float4,
    K2,
    K3,
    K4,
    K5,
    K6,
    Ternary,
    F32,
    F16,
    Bf16,
}

/// Runs `$quantised` with `$L` as the layout's type, or `$float` for floats.
macro_rules! with_layout {
    ($kind:expr, $L:ident => $quantised:expr, float => $float:expr) => {
        match $kind {
            $crate::pack::Kind::Q8 => {
                type $L = $crate::layout::Q8;
                $quantised
            }
            $crate::pack::Kind::Q4 => {
                type $L = $crate::layout::Q4;
                $quantised
            }
            $crate::pack::Kind::Q4Min => {
                type $L = $crate::layout::Q4Min;
                $quantised
            }
            $crate::pack::Kind::Q5 => {
                type $L = $crate::layout::Q5;
                $quantised
            }
            $crate::pack::Kind::Q5Min => {
                type $L = $crate::layout::Q5Min;
                $quantised
            }
            $crate::pack::Kind::NonLinear4 => {
                type $L = $crate::layout::NonLinear4;
                $quantised
            }
            $crate::pack::Kind::NonLinear4K => {
                type $L = $crate::layout::NonLinear4K;
                $quantised
            }
            $crate::pack::Kind::Float4 => {
                type $L = $crate::layout::Float4;
                $quantised
            }
            $crate::pack::Kind::K2 => {
                type $L = $crate::layout::K2;
                $quantised
            }
            $crate::pack::Kind::K3 => {
                type $L = $crate::layout::K3;
                $quantised
            }
            $crate::pack::Kind::K4 => {
                type $L = $crate::layout::K4;
                $quantised
            }
            $crate::pack::Kind::K5 => {
                type $L = $crate::layout::K5;
                $quantised
            }
            $crate::pack::Kind::K6 => {
                type $L = $crate::layout::K6;
                $quantised
            }
            $crate::pack::Kind::Ternary => {
                type $L = $crate::layout::Ternary;
                $quantised
            }
            $crate::pack::Kind::F32 | $crate::pack::Kind::F16 | $crate::pack::Kind::Bf16 => $float,
        }
    };
}
pub(crate) use with_layout;

/// Changed whenever a layout's bytes change, so that stored copies are made again.
pub const LAYOUT_VERSION: u32 = 1;

impl Kind {
    /// The layout for a tensor type, if there are kernels for it.
    pub(crate) fn of(ty: TensorType) -> Option<Self> {
        Some(match ty {
            TensorType::Q8_0 => Self::Q8,
            TensorType::Q4_0 => Self::Q4,
            TensorType::Q4_1 => Self::Q4Min,
            TensorType::Q5_0 => Self::Q5,
            TensorType::Q5_1 => Self::Q5Min,
            TensorType::Iq4Nl => Self::NonLinear4,
            TensorType::Iq4Xs => Self::NonLinear4K,
            TensorType::Mxfp4 => Self::Float4,
            TensorType::Q2K => Self::K2,
            TensorType::Q3K => Self::K3,
            TensorType::Q4K => Self::K4,
            TensorType::Q5K => Self::K5,
            TensorType::Q6K => Self::K6,
            TensorType::Tq1_0 | TensorType::Tq2_0 | TensorType::I2S => Self::Ternary,
            TensorType::F32 => Self::F32,
            TensorType::F16 => Self::F16,
            TensorType::Bf16 => Self::Bf16,
            _ => return None,
        })
    }

    /// Columns of a super-block.
    pub(crate) fn block_columns(self) -> usize {
        with_layout!(self, L => L::CELLS * 32, float => 1)
    }

    /// Bytes of a row's super-block.
    pub(crate) fn block_bytes(self) -> usize {
        with_layout!(self, L => layout::block_bytes::<L>(), float => match self {
            Self::F32 => 4,
            _ => 2,
        })
    }

    pub(crate) fn is_float(self) -> bool {
        matches!(self, Self::F32 | Self::F16 | Self::Bf16)
    }

    /// Bytes of a group of `lanes` rows of `columns` columns, the last super-block padded.
    pub(crate) fn group_bytes(self, columns: usize, lanes: usize) -> usize {
        columns.div_ceil(self.block_columns()) * self.block_bytes() * lanes
    }
}

/// A row's super-block taken apart.
struct Split {
    /// One code per column.
    codes: [u8; 256],
    /// The header's bytes, in units of two.
    head: [u8; 4],
    /// Each cell's bytes for scales.
    scales: [[u8; 4]; 8],
}

/// Regroups `sources` (at most `lanes` rows, each the row's bytes in the file) of `columns`
/// columns into `out`, a group. Missing rows and columns become zero.
pub(crate) fn regroup(
    ty: TensorType,
    kind: Kind,
    sources: &[&[u8]],
    columns: usize,
    lanes: usize,
    biased8: bool,
    out: &mut [u8],
) {
    assert_eq!(out.len(), kind.group_bytes(columns, lanes), "a group's bytes");
    assert!(sources.len() <= lanes, "rows of a group");
    out.fill(0);
    if kind.is_float() {
        return regroup_floats(kind.block_bytes(), sources, columns, lanes, out);
    }
    let blocks = columns.div_ceil(kind.block_columns());
    let mut splits: Vec<Split> =
        (0..lanes).map(|_| Split { codes: [0; 256], head: [0; 4], scales: [[0; 4]; 8] }).collect();
    let cells = kind.block_columns() / 32;
    let source_bytes = cells * 32 / ty.block_len() * ty.block_bytes();
    for (block, out) in out.chunks_exact_mut(kind.block_bytes() * lanes).enumerate() {
        assert!(block < blocks, "blocks of a group");
        for (split, source) in splits.iter_mut().zip(sources) {
            let from = block * source_bytes;
            take_apart(ty, &source[from..source.len().min(from + source_bytes)], split);
        }
        with_layout!(kind, L => put_together::<L>(&splits, lanes, biased8, out), float => ());
    }
}

fn regroup_floats(bytes: usize, sources: &[&[u8]], columns: usize, lanes: usize, out: &mut [u8]) {
    for (row, source) in sources.iter().enumerate() {
        for column in 0..columns {
            let to = (column * lanes + row) * bytes;
            out[to..to + bytes].copy_from_slice(&source[column * bytes..(column + 1) * bytes]);
        }
    }
}

/// Writes one super-block of a group.
fn put_together<L: Layout>(splits: &[Split], lanes: usize, biased8: bool, out: &mut [u8]) {
    for (row, split) in splits.iter().enumerate() {
        for half in 0..L::HEAD / 2 {
            let to = (half * lanes + row) * 2;
            out[to..to + 2].copy_from_slice(&split.head[half * 2..half * 2 + 2]);
        }
    }
    let cell_bytes = layout::cell_bytes::<L>() * lanes;
    let cells = out[L::HEAD * lanes..].chunks_exact_mut(cell_bytes);
    // Scales are half floats in types with one cell per super-block, bytes in the others.
    let unit = if L::CELLS == 1 { 2 } else { 1 };
    for (cell, out) in cells.enumerate() {
        for (row, split) in splits.iter().enumerate() {
            for part in 0..L::SCALES / unit {
                let to = (part * lanes + row) * unit;
                let from = part * unit;
                out[to..to + unit].copy_from_slice(&split.scales[cell][from..from + unit]);
            }
        }
        let mut registers = [[0u8; 64]; 8];
        for (row, split) in splits.iter().enumerate() {
            for (j, register) in registers.iter_mut().enumerate() {
                let from = cell * 32 + j * 4;
                register[row * 4..row * 4 + 4].copy_from_slice(&split.codes[from..from + 4]);
            }
        }
        put_codes(L::CODES, biased8, &registers, lanes * 4, &mut out[L::SCALES * lanes..]);
    }
}

/// Writes a cell's codes; `codes_bytes` per row tells the packing.
fn put_codes(codes_bytes: usize, biased8: bool, r: &[[u8; 64]; 8], width: usize, out: &mut [u8]) {
    let (nibbles, rest) = out.split_at_mut(out.len().min(width * 4));
    match codes_bytes {
        32 => {
            let bias = if biased8 { 128 } else { 0 };
            for (j, register) in nibbles.chunks_exact_mut(width).enumerate() {
                each(register, |i| r[j][i] ^ bias);
            }
            for (j, register) in rest.chunks_exact_mut(width).take(4).enumerate() {
                each(register, |i| r[4 + j][i] ^ bias);
            }
        }
        16 | 20 | 24 => {
            for (j, register) in nibbles.chunks_exact_mut(width).enumerate() {
                each(register, |i| r[j][i] & 15 | r[j + 4][i] << 4);
            }
            if codes_bytes == 20 {
                each(&mut rest[..width], |i| {
                    (0..8).fold(0, |bits, j| bits | (r[j][i] >> 4 & 1) << j)
                });
            }
            if codes_bytes == 24 {
                for (half, register) in rest.chunks_exact_mut(width).take(2).enumerate() {
                    each(register, |i| pairs([0, 1, 2, 3].map(|s| r[half * 4 + s][i] >> 4)));
                }
            }
        }
        _ => {
            let (low, high) = out.split_at_mut(width * 2);
            for (half, register) in low.chunks_exact_mut(width).enumerate() {
                each(register, |i| pairs([0, 1, 2, 3].map(|s| r[half * 4 + s][i])));
            }
            if codes_bytes == 12 {
                each(&mut high[..width], |i| {
                    (0..8).fold(0, |bits, j| bits | (r[j][i] >> 2 & 1) << j)
                });
            }
        }
    }
}

/// The lower two bits of four bytes in one.
#[inline(always)]
fn pairs(codes: [u8; 4]) -> u8 {
    codes[0] & 3 | (codes[1] & 3) << 2 | (codes[2] & 3) << 4 | (codes[3] & 3) << 6
}

/// Writes `f(i)` to each byte of a register of at most 64.
#[inline(always)]
fn each(register: &mut [u8], f: impl Fn(usize) -> u8) {
    assert!(register.len() <= 64, "bytes of a register");
    register.iter_mut().enumerate().for_each(|(i, byte)| *byte = f(i));
}

/// Takes a row's super-block apart, by ggml's definition of the type.
fn take_apart(ty: TensorType, b: &[u8], split: &mut Split) {
    match ty {
        TensorType::Q8_0 => {
            split.scales[0][..2].copy_from_slice(&b[..2]);
            split.codes[..32].copy_from_slice(&b[2..34]);
        }
        TensorType::Q4_0 | TensorType::Iq4Nl => {
            split.scales[0][..2].copy_from_slice(&b[..2]);
            nibbles(&b[2..18], &mut split.codes[..32]);
        }
        TensorType::Q4_1 => {
            split.scales[0].copy_from_slice(&b[..4]);
            nibbles(&b[4..20], &mut split.codes[..32]);
        }
        TensorType::Q5_0 => {
            split.scales[0][..2].copy_from_slice(&b[..2]);
            five_bits(&b[2..6], &b[6..22], &mut split.codes[..32]);
        }
        TensorType::Q5_1 => {
            split.scales[0].copy_from_slice(&b[..4]);
            five_bits(&b[4..8], &b[8..24], &mut split.codes[..32]);
        }
        TensorType::Iq4Xs => iq4_xs(b, split),
        TensorType::Mxfp4 => {
            // Half of the power of two, since the table holds doubled values. What has no normal
            // float (below 1e-37) is zero.
            let exponent = u16::from(b[0]).saturating_sub(1);
            split.scales[0][..2].copy_from_slice(&(exponent << 7).to_le_bytes());
            nibbles(&b[1..17], &mut split.codes[..32]);
        }
        TensorType::Q2K => q2_k(b, split),
        TensorType::Q3K => q3_k(b, split),
        TensorType::Q4K | TensorType::Q5K => q4_k_or_q5_k(b, split),
        TensorType::Q6K => q6_k(b, split),
        TensorType::Tq1_0 => tq1_0(b, split),
        TensorType::Tq2_0 => tq2_0(b, split),
        TensorType::I2S => i2_s(b, split),
        _ => unreachable!("a type without a quantised layout"),
    }
}

fn nibbles(bytes: &[u8], codes: &mut [u8]) {
    let (low, high) = codes.split_at_mut(bytes.len());
    for ((low, high), byte) in low.iter_mut().zip(high).zip(bytes) {
        *low = byte & 15;
        *high = byte >> 4;
    }
}

fn five_bits(high: &[u8], bytes: &[u8], codes: &mut [u8]) {
    nibbles(bytes, codes);
    for (i, code) in codes.iter_mut().enumerate() {
        *code |= (high[i / 8] >> (i % 8) & 1) << 4;
    }
}

fn iq4_xs(b: &[u8], split: &mut Split) {
    split.head[..2].copy_from_slice(&b[..2]);
    let high = u16::from_le_bytes([b[2], b[3]]);
    for (cell, scales) in split.scales.iter_mut().enumerate() {
        let low = b[4 + cell / 2] >> (cell % 2 * 4) & 15;
        let high = (high >> (2 * cell) & 3) as u8;
        // Six bits that count from -32.
        scales[0] = (low | high << 4).wrapping_sub(32);
        let from = 8 + cell * 16;
        nibbles(&b[from..from + 16], &mut split.codes[cell * 32..cell * 32 + 32]);
    }
}

fn q2_k(b: &[u8], split: &mut Split) {
    for (cell, scales) in split.scales.iter_mut().enumerate() {
        scales[..2].copy_from_slice(&b[cell * 2..cell * 2 + 2]);
    }
    quarters(&b[16..80], &mut split.codes);
    split.head.copy_from_slice(&b[80..84]);
}

/// 64 bytes of two-bit codes as ggml's 256-blocks order them.
fn quarters(bytes: &[u8], codes: &mut [u8; 256]) {
    for (i, code) in codes.iter_mut().enumerate() {
        *code = bytes[i / 128 * 32 + i % 32] >> (i % 128 / 32 * 2) & 3;
    }
}

fn q3_k(b: &[u8], split: &mut Split) {
    quarters(&b[32..96], &mut split.codes);
    for (i, code) in split.codes.iter_mut().enumerate() {
        *code |= (b[i % 32] >> (i / 32) & 1) << 2;
    }
    let packed = &b[96..108];
    for i in 0..16 {
        let low = if i < 8 { packed[i] & 15 } else { packed[i - 8] >> 4 };
        let high = packed[8 + i % 4] >> (i / 4 * 2) & 3;
        split.scales[i / 2][i % 2] = (low | high << 4).wrapping_sub(32);
    }
    split.head[..2].copy_from_slice(&b[108..110]);
}

fn q4_k_or_q5_k(b: &[u8], split: &mut Split) {
    split.head.copy_from_slice(&b[..4]);
    let packed = &b[4..16];
    for (i, scales) in split.scales.iter_mut().enumerate() {
        (scales[0], scales[1]) = if i < 4 {
            (packed[i] & 63, packed[i + 4] & 63)
        } else {
            let (low, minimum) = (packed[i + 4] & 15, packed[i + 4] >> 4);
            (low | packed[i - 4] >> 6 << 4, minimum | packed[i] >> 6 << 4)
        };
    }
    let (high, low) = b[16..].split_at(b.len() - 16 - 128);
    for (pair, bytes) in low.chunks_exact(32).enumerate() {
        nibbles(bytes, &mut split.codes[pair * 64..pair * 64 + 64]);
    }
    if high.len() == 32 {
        for (i, code) in split.codes.iter_mut().enumerate() {
            *code |= (high[i % 32] >> (i / 32) & 1) << 4;
        }
    }
}

fn q6_k(b: &[u8], split: &mut Split) {
    let (low, high, scales) = (&b[..128], &b[128..192], &b[192..208]);
    for (i, code) in split.codes.iter_mut().enumerate() {
        let (part, quarter, l) = (i / 128, i % 128 / 32, i % 32);
        let byte = low[part * 64 + quarter % 2 * 32 + l];
        let nibble = if quarter < 2 { byte & 15 } else { byte >> 4 };
        *code = nibble | (high[part * 32 + l] >> (quarter * 2) & 3) << 4;
    }
    for (cell, to) in split.scales.iter_mut().enumerate() {
        to[..2].copy_from_slice(&scales[cell * 2..cell * 2 + 2]);
    }
    split.head[..2].copy_from_slice(&b[208..210]);
}

fn tq1_0(b: &[u8], split: &mut Split) {
    // Byte `b` holds five trits as the fraction b / 256 in base 3: digits by repeated tripling.
    let digit = |byte: u8, n: usize| {
        let shifted = byte.wrapping_mul([1, 3, 9, 27, 81][n]);
        ((u16::from(shifted) * 3) >> 8) as u8
    };
    for (i, code) in split.codes.iter_mut().enumerate() {
        *code = match i {
            0..160 => digit(b[i % 32], i / 32),
            160..240 => digit(b[32 + (i - 160) % 16], (i - 160) / 16),
            _ => digit(b[48 + (i - 240) % 4], (i - 240) / 4),
        };
    }
    split.head[..2].copy_from_slice(&b[52..54]);
}

fn tq2_0(b: &[u8], split: &mut Split) {
    quarters(&b[..64], &mut split.codes);
    split.head[..2].copy_from_slice(&b[64..66]);
}

fn i2_s(b: &[u8], split: &mut Split) {
    // One block of 128, or two: in each byte the columns m, m + 32, m + 64, m + 96 from the top.
    split.codes.fill(1);
    for (block, bytes) in b.chunks_exact(32).enumerate() {
        for (i, code) in split.codes[block * 128..block * 128 + 128].iter_mut().enumerate() {
            *code = bytes[i % 32] >> (6 - i / 32 * 2) & 3;
        }
    }
    split.head[..2].copy_from_slice(&half::f16::ONE.to_le_bytes());
}
