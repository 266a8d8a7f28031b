//! The paged cache of keys and values.
//!
//! A block holds [`BLOCK_TOKENS`] positions of one layer, head by head: keys column-wise
//! (`[dims][positions]`, so that one register holds the same dimension of many keys), values
//! row-wise (`[positions][dims]`, padded to [`DIMS_MULTIPLE`]). 8-bit entries have one scale per
//! key or value and 32 dimensions. Everything in it is finite, whatever was written.

#![allow(unsafe_op_in_unsafe_fn)] // The kernel follows the contract of `Simd`.

use std::io;

use crate::cpu::Isa;
use crate::disjoint::Disjoint;
use crate::memory::Buffer;
use crate::ops::{RotaryKind, rms_norm_in_place, rotate};
use crate::simd::{Kernel, Simd, run};
use crate::team::Team;
use half::f16;

/// Positions of a block.
pub const BLOCK_TOKENS: usize = 32;
/// What the dimensions of values are padded to, and what shares a scale.
pub(crate) const DIMS_MULTIPLE: usize = 32;
/// Elements that are made half floats at a time.
const HALVES_MAX: usize = 256;
/// Tokens that the owner prepares alone.
const ALONE_MAX: usize = 2;

/// How keys and values are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Precision {
    /// 32-bit floats.
    F32,
    /// 16-bit floats.
    F16,
    /// 8-bit integers, a scale per 32.
    Q8,
}

/// The size of a cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CacheShape {
    /// How entries are kept.
    pub precision: Precision,
    /// Layers of the model.
    pub layers: usize,
    /// Blocks, each [`BLOCK_TOKENS`] positions of every layer.
    pub blocks: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Dimensions of a head.
    pub dims: usize,
}

impl CacheShape {
    pub(crate) fn dims_padded(&self) -> usize {
        self.dims.next_multiple_of(DIMS_MULTIPLE)
    }

    pub(crate) fn element_bytes(&self) -> usize {
        match self.precision {
            Precision::F32 => 4,
            Precision::F16 => 2,
            Precision::Q8 => 1,
        }
    }

    /// Scales of one key or value.
    pub(crate) fn scales(&self) -> usize {
        if self.precision == Precision::Q8 { self.dims_padded() / DIMS_MULTIPLE } else { 0 }
    }

    /// Where a unit's values start.
    pub(crate) fn values_at(&self) -> usize {
        self.dims_padded() * BLOCK_TOKENS * self.element_bytes()
    }

    /// Where a unit's scales start: those of the keys `[scales][positions]`, then those of the
    /// values `[positions][scales]`.
    pub(crate) fn scales_at(&self) -> usize {
        self.values_at() * 2
    }

    /// Bytes of one head in one block of one layer.
    pub(crate) fn unit_bytes(&self) -> usize {
        self.scales_at() + 2 * self.scales() * BLOCK_TOKENS * 4
    }

    /// Bytes of one layer.
    fn layer_bytes(&self) -> usize {
        self.blocks * self.block_bytes()
    }

    /// Bytes of a block in one layer.
    fn block_bytes(&self) -> usize {
        self.kv_heads * self.unit_bytes()
    }

    /// Bytes of the whole cache.
    pub fn bytes(&self) -> usize {
        self.layers * self.layer_bytes()
    }
}

/// Keys and values of all layers.
#[derive(Debug)]
pub struct Cache {
    shape: CacheShape,
    data: Buffer,
}

/// Where a token's keys and values go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// The block.
    pub block: u32,
    /// The position within it.
    pub offset: u32,
}

/// One layer's queries, keys and values of a batch, and what is done to them before attention.
pub struct Heads<'a> {
    /// `[tokens][heads * dims]`; left normed and rotated.
    pub queries: &'a mut [f32],
    /// `[tokens][kv_heads * dims]`; left normed and rotated.
    pub keys: &'a mut [f32],
    /// `[tokens][kv_heads * dims]`.
    pub values: &'a [f32],
    /// Norm on each query head, `[dims]`.
    pub query_norm: Option<&'a [f32]>,
    /// Norm on each key head, `[dims]`.
    pub key_norm: Option<&'a [f32]>,
    /// Added to mean squares.
    pub epsilon: f32,
    /// How heads are rotated.
    pub rotary: RotaryKind,
    /// Cosines `[tokens][pairs]`.
    pub cos: &'a [f32],
    /// Sines `[tokens][pairs]`.
    pub sin: &'a [f32],
    /// Rotated pairs of a head.
    pub pairs: usize,
}

impl Cache {
    /// An empty cache. Memory is taken from the system as blocks are first written.
    ///
    /// # Errors
    /// The system's error when it has no such memory.
    pub fn new(shape: CacheShape) -> io::Result<Self> {
        Ok(Self { shape, data: Buffer::zeroed(shape.bytes())? })
    }

    /// Its size.
    pub fn shape(&self) -> &CacheShape {
        &self.shape
    }

    /// Bytes that are held.
    pub fn bytes(&self) -> usize {
        self.data.len()
    }

    /// One head of one block.
    pub(crate) fn unit(&self, layer: usize, block: u32, head: usize) -> &[u8] {
        &self.data[self.unit_at(layer, block, head)..][..self.shape.unit_bytes()]
    }

    fn unit_at(&self, layer: usize, block: u32, head: usize) -> usize {
        let shape = &self.shape;
        assert!(layer < shape.layers && (block as usize) < shape.blocks && head < shape.kv_heads);
        layer * shape.layer_bytes()
            + block as usize * shape.block_bytes()
            + head * shape.unit_bytes()
    }

    /// Copies a block of every layer. False when one of them is not there.
    pub fn copy_block(&mut self, from: u32, to: u32) -> bool {
        let (blocks, bytes) = (self.shape.blocks, self.shape.block_bytes());
        let (from, to) = (from as usize, to as usize);
        if from >= blocks || to >= blocks {
            return false;
        }
        for layer in self.data.chunks_exact_mut(blocks * bytes) {
            layer.copy_within(from * bytes..(from + 1) * bytes, to * bytes);
        }
        true
    }

    /// Norms and rotates the queries and keys of a layer, and writes keys and values at the tokens'
    /// places.
    ///
    /// # Panics
    /// When lengths do not agree or a place does not exist.
    pub fn prepare(
        &mut self,
        isa: Isa,
        team: &Team,
        layer: usize,
        places: &[Place],
        heads: Heads<'_>,
    ) {
        let shape = self.shape;
        let (tokens, dims) = (places.len(), shape.dims);
        let kv_len = shape.kv_heads * dims;
        let query_len = heads.queries.len() / tokens.max(1);
        assert!(
            heads.keys.len() == tokens * kv_len && heads.values.len() == tokens * kv_len,
            "keys and values of a batch"
        );
        assert!(
            heads.queries.len() == tokens * query_len && query_len.is_multiple_of(dims),
            "queries of a batch"
        );
        assert!(
            heads.cos.len() == tokens * heads.pairs && heads.sin.len() == heads.cos.len(),
            "angles of a batch"
        );
        let units: Vec<usize> = places
            .iter()
            .map(|place| {
                assert!((place.offset as usize) < BLOCK_TOKENS, "offset in a block");
                self.unit_at(layer, place.block, 0)
            })
            .collect();
        let Heads { query_norm, key_norm, epsilon, rotary, cos, sin, pairs, .. } = heads;
        let data = Disjoint::new(&mut self.data);
        let queries = Disjoint::new(heads.queries);
        let keys = Disjoint::new(heads.keys);
        let values = heads.values;
        let turn = |row: &mut [f32], norm: Option<&[f32]>, token: usize| {
            let angles = token * pairs..(token + 1) * pairs;
            for head in row.chunks_exact_mut(dims) {
                if let Some(norm) = norm {
                    rms_norm_in_place(isa, head, norm, epsilon);
                }
                rotate(isa, rotary, head, &cos[angles.clone()], &sin[angles.clone()]);
            }
        };
        let each = |_: usize, token: usize| {
            // SAFETY: one part per token.
            let (q, k) = unsafe {
                (queries.slice(token * query_len, query_len), keys.slice(token * kv_len, kv_len))
            };
            turn(q, query_norm, token);
            turn(k, key_norm, token);
            let v = &values[token * kv_len..(token + 1) * kv_len];
            for (head, (k, v)) in k.chunks_exact(dims).zip(v.chunks_exact(dims)).enumerate() {
                let at = units[token] + head * shape.unit_bytes();
                let writer = Writer {
                    isa,
                    shape: &shape,
                    data: &data,
                    at,
                    offset: places[token].offset as usize,
                };
                writer.write(k, v);
            }
        };
        if tokens <= ALONE_MAX {
            (0..tokens).for_each(|token| each(0, token));
        } else {
            // Threads with whole blocks don't write to the same lines of keys.
            let whole = tokens >= 2 * BLOCK_TOKENS * team.threads();
            team.for_each(tokens, if whole { BLOCK_TOKENS } else { 4 }, &each);
        }
    }
}

/// Writes one position of one unit. Two writers of one unit write different bytes, since their
/// positions differ.
struct Writer<'a> {
    isa: Isa,
    shape: &'a CacheShape,
    data: &'a Disjoint<'a, u8>,
    at: usize,
    offset: usize,
}

impl Writer<'_> {
    fn write(&self, key: &[f32], value: &[f32]) {
        let shape = self.shape;
        let bytes = shape.element_bytes();
        let row = shape.values_at() + self.offset * shape.dims_padded() * bytes;
        match shape.precision {
            Precision::F32 => {
                for (d, (k, v)) in key.iter().zip(value).enumerate() {
                    self.put(
                        (d * BLOCK_TOKENS + self.offset) * 4,
                        &finite(*k, f32::MAX).to_le_bytes(),
                    );
                    self.put(row + d * 4, &finite(*v, f32::MAX).to_le_bytes());
                }
            }
            Precision::F16 => {
                let chunks = key.chunks(HALVES_MAX).zip(value.chunks(HALVES_MAX));
                for (chunk, (k, v)) in chunks.enumerate() {
                    let (mut keys, mut values) = ([0u16; HALVES_MAX], [0u16; HALVES_MAX]);
                    halves(self.isa, k, &mut keys[..k.len()]);
                    halves(self.isa, v, &mut values[..v.len()]);
                    let first = chunk * HALVES_MAX;
                    let end = (first + k.len() - 1) * BLOCK_TOKENS + self.offset + 1;
                    let column = self.data.pointer(self.at, end * 2).cast::<u16>();
                    for (i, half) in keys[..k.len()].iter().enumerate() {
                        let at = (first + i) * BLOCK_TOKENS + self.offset;
                        // SAFETY: below `end`, for which there is room; these bytes belong to this
                        // position alone, and one thread has the token.
                        unsafe { column.add(at).write_unaligned(half.to_le()) }
                    }
                    self.put(row + first * 2, bytemuck::cast_slice(&values[..v.len()]));
                }
            }
            Precision::Q8 => {
                let scales = shape.scales();
                let chunks = key.chunks(DIMS_MULTIPLE).zip(value.chunks(DIMS_MULTIPLE));
                for (chunk, (k, v)) in chunks.enumerate() {
                    let (key_scale, value_scale) = (scale_of(k), scale_of(v));
                    for (i, (k, v)) in k.iter().zip(v).enumerate() {
                        let d = chunk * DIMS_MULTIPLE + i;
                        self.put(d * BLOCK_TOKENS + self.offset, &[code(*k, key_scale)]);
                        self.put(row + d, &[code(*v, value_scale)]);
                    }
                    let keys = shape.scales_at();
                    self.put(
                        keys + (chunk * BLOCK_TOKENS + self.offset) * 4,
                        &key_scale.to_le_bytes(),
                    );
                    let values = keys + scales * BLOCK_TOKENS * 4;
                    self.put(
                        values + (self.offset * scales + chunk) * 4,
                        &value_scale.to_le_bytes(),
                    );
                }
            }
        }
    }

    #[inline]
    fn put(&self, at: usize, bytes: &[u8]) {
        // SAFETY: these bytes belong to this position alone, and one thread has the token.
        unsafe { self.data.slice(self.at + at, bytes.len()) }.copy_from_slice(bytes);
    }
}

/// As finite half floats.
fn halves(isa: Isa, values: &[f32], out: &mut [u16]) {
    assert_eq!(values.len(), out.len(), "room for halves");
    let kernel = Halves { x: values.as_ptr(), out: out.as_mut_ptr(), len: values.len() };
    // SAFETY: `isa` comes from detection; the lengths are equal.
    if values.len().is_multiple_of(DIMS_MULTIPLE) && unsafe { run(isa, kernel) } {
        return;
    }
    for (to, from) in out.iter_mut().zip(values) {
        *to = f16::from_f32(finite(*from, 65504.0)).to_bits();
    }
}

/// Rounds whole registers to half floats, those too large to the largest; says whether all of them
/// are finite.
struct Halves {
    x: *const f32,
    out: *mut u16,
    len: usize,
}

impl Kernel for Halves {
    type Output = bool;
    #[inline(always)]
    unsafe fn run<S: Simd>(self) -> bool {
        let mut finite = S::zero();
        let mut i = 0;
        while i < self.len {
            let v = S::load(self.x.add(i));
            finite = S::fma(v, S::zero(), finite);
            S::store_f16(self.out.add(i), S::min(S::max(v, S::splat(-65504.0)), S::splat(65504.0)));
            i += S::LANES;
        }
        S::sum(finite) == 0.0
    }
}

/// `x` within `-limit..=limit`; not a number becomes 0.
fn finite(x: f32, limit: f32) -> f32 {
    if x.is_nan() { 0.0 } else { x.clamp(-limit, limit) }
}

fn scale_of(values: &[f32]) -> f32 {
    values.iter().fold(0.0f32, |largest, x| largest.max(finite(*x, f32::MAX).abs())) / 127.0
}

fn code(x: f32, scale: f32) -> u8 {
    if scale == 0.0 { 0 } else { (finite(x, f32::MAX) / scale).round_ties_even() as i8 as u8 }
}
