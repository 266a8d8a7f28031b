//! Weight matrices and their products with activations.

use std::cell::RefCell;
use std::marker::PhantomData;
use std::sync::Arc;

use crate::activations::{Activations, DIRECT_BATCH_MAX, Forms, Tile};
use crate::cpu::Isa;
use crate::disjoint::Disjoint;
use crate::dot::{Direct, PANEL_GROUPS, Panel, Unpack, panel_cell_bytes};
use crate::float::{FloatDirect, FloatKind};
use crate::formats::TensorType;
use crate::layout::Layout;
use crate::mapped::MappedFile;
use crate::memory::Buffer;
use crate::ops::{self, Gate, GatedTile};
use crate::pack::{Kind, regroup, with_layout};
use crate::simd::{self, biased8, lanes};
use crate::team::Team;

/// Where regrouped weights lie.
#[derive(Debug)]
pub enum Storage {
    /// In memory of this process.
    Owned(Buffer),
    /// In a file.
    Mapped(MappedFile),
}

impl std::ops::Deref for Storage {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        match self {
            Self::Owned(buffer) => buffer,
            Self::Mapped(file) => file,
        }
    }
}

/// Why a matrix cannot be made.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum MatrixError {
    /// No kernels.
    #[error("multiply with type {0}: not supported, convert the model to another type")]
    Unsupported(TensorType),
    /// The number of columns does not fill blocks.
    #[error("multiply with {columns} columns of type {ty}: not a multiple of {}", .ty.block_len())]
    Columns {
        /// The type.
        ty: TensorType,
        /// Columns asked for.
        columns: usize,
    },
    /// The bytes are not those of the matrix.
    #[error(
        "lay out a {rows} x {columns} matrix of type {ty}: found {found_bytes} bytes, expected {expected_bytes}"
    )]
    Length {
        /// The type.
        ty: TensorType,
        /// Rows.
        rows: usize,
        /// Columns.
        columns: usize,
        /// Bytes given.
        found_bytes: usize,
        /// Bytes expected.
        expected_bytes: usize,
    },
}

/// A matrix's type and size: enough to say how many bytes it takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Shape {
    /// Element type in the file.
    pub ty: TensorType,
    /// Rows: outputs.
    pub rows: usize,
    /// Columns: inputs.
    pub columns: usize,
}

impl Shape {
    fn kind(&self) -> Result<Kind, MatrixError> {
        let kind = Kind::of(self.ty).ok_or(MatrixError::Unsupported(self.ty))?;
        if !self.columns.is_multiple_of(self.ty.block_len()) {
            return Err(MatrixError::Columns { ty: self.ty, columns: self.columns });
        }
        Ok(kind)
    }

    /// Bytes of the regrouped matrix.
    ///
    /// # Errors
    /// [`MatrixError`] when there are no kernels for the type or it does not fit the columns.
    pub fn regrouped_bytes(&self, isa: Isa) -> Result<usize, MatrixError> {
        let lanes = lanes(isa);
        Ok(self.rows.div_ceil(lanes) * self.kind()?.group_bytes(self.columns, lanes))
    }

    /// The forms of activations that the matrix is multiplied with.
    pub fn forms(&self) -> Forms {
        let float = Kind::of(self.ty).is_some_and(Kind::is_float);
        Forms { codes: !float, floats: float }
    }

    /// Regroups the matrix's rows (as in the file, without what follows them) into `out`.
    ///
    /// # Errors
    /// [`MatrixError`] when the type has no kernels or a length is wrong.
    pub fn regroup(
        &self,
        isa: Isa,
        team: &Team,
        source: &[u8],
        out: &mut [u8],
    ) -> Result<(), MatrixError> {
        let kind = self.kind()?;
        let row_bytes = self.columns / self.ty.block_len() * self.ty.block_bytes();
        self.check(source.len(), row_bytes * self.rows)?;
        self.check(out.len(), self.regrouped_bytes(isa)?)?;
        let lanes = lanes(isa);
        let group_bytes = kind.group_bytes(self.columns, lanes);
        let groups = self.rows.div_ceil(lanes);
        let out = Disjoint::new(out);
        team.for_each(groups, 4, &|_, group| {
            let rows = lanes.min(self.rows - group * lanes);
            let from = group * lanes * row_bytes;
            let sources: Vec<&[u8]> =
                source[from..from + rows * row_bytes].chunks_exact(row_bytes).collect();
            // SAFETY: one part per group.
            let out = unsafe { out.slice(group * group_bytes, group_bytes) };
            regroup(self.ty, kind, &sources, self.columns, lanes, biased8(isa), out);
        });
        Ok(())
    }

    fn check(&self, found_bytes: usize, expected_bytes: usize) -> Result<(), MatrixError> {
        if found_bytes == expected_bytes {
            return Ok(());
        }
        let Self { ty, rows, columns } = *self;
        Err(MatrixError::Length { ty, rows, columns, found_bytes, expected_bytes })
    }
}

/// A regrouped matrix with what belongs to its product: `y = scale * (W x) + bias`.
#[derive(Debug, Clone)]
pub struct Matrix {
    shape: Shape,
    kind: Kind,
    isa: Isa,
    storage: Arc<Storage>,
    start: usize,
    group_bytes: usize,
    scale: f32,
    bias: Option<Vec<f32>>,
}

impl Matrix {
    /// The matrix whose regrouped bytes start at `start` of `storage`.
    ///
    /// # Errors
    /// [`MatrixError`] when they do not fit.
    pub fn new(
        isa: Isa,
        shape: Shape,
        storage: Arc<Storage>,
        start: usize,
    ) -> Result<Self, MatrixError> {
        let expected = shape.regrouped_bytes(isa)?;
        let found = storage.len().saturating_sub(start).min(expected);
        shape.check(found, expected)?;
        let kind = shape.kind()?;
        let group_bytes = kind.group_bytes(shape.columns, lanes(isa));
        Ok(Self { shape, kind, isa, storage, start, group_bytes, scale: 1.0, bias: None })
    }

    /// With a factor for every output.
    #[must_use]
    pub fn scaled(mut self, scale: f32) -> Self {
        self.scale *= scale;
        self
    }

    /// With values added to the outputs.
    ///
    /// # Panics
    /// When they are not one per row.
    #[must_use]
    pub fn biased(mut self, bias: Vec<f32>) -> Self {
        assert_eq!(bias.len(), self.shape.rows, "a bias per row");
        self.bias = Some(bias);
        self
    }

    /// Type and size.
    pub fn shape(&self) -> Shape {
        self.shape
    }

    fn groups(&self) -> usize {
        self.shape.rows.div_ceil(lanes(self.isa))
    }

    fn blocks(&self) -> usize {
        self.shape.columns.div_ceil(self.kind.block_columns())
    }

    /// A group's bytes.
    fn group(&self, group: usize) -> &[u8] {
        &self.storage[self.start + group * self.group_bytes..][..self.group_bytes]
    }

    fn panel_bytes(&self) -> usize {
        self.blocks() * (self.kind.block_columns() / 32) * panel_cell_bytes(lanes(self.isa))
    }

    /// Unpacks a group into one of the places of a panel.
    fn unpack(&self, group: usize, place: usize, panel: &mut [u8]) {
        assert!(panel.len() >= self.panel_bytes() && place < PANEL_GROUPS, "room for a panel");
        let weights = self.group(group).as_ptr();
        let (blocks, panel) = (self.blocks(), panel.as_mut_ptr());
        with_layout!(self.kind, L => {
            let kernel = Unpack::<L> { weights, blocks, panel, place, layout: PhantomData };
            // SAFETY: the group has `blocks` super-blocks; the panel has room for their cells.
            unsafe { simd::run(self.isa, kernel) }
        }, float => unreachable!("floats have no panels"));
    }

    /// A group times a tile: `out[t * lanes + r]`.
    fn direct(&self, group: usize, acts: &Activations, tile: Tile, out: &mut [f32]) {
        let stride = lanes(self.isa);
        assert!(out.len() >= tile.width * stride, "room for a tile");
        // SAFETY: the room is asserted.
        unsafe { self.direct_at(group, acts, tile, out.as_mut_ptr(), stride) }
    }

    /// A group times a tile: `out[t * stride + r]`.
    ///
    /// # Safety
    /// `out` can be written there for every token of the tile's width and every lane.
    unsafe fn direct_at(
        &self,
        group: usize,
        acts: &Activations,
        tile: Tile,
        out: *mut f32,
        stride: usize,
    ) {
        let weights = self.group(group).as_ptr();
        let blocks = self.blocks();
        if self.kind.is_float() {
            let x = acts.floats_of(tile).as_ptr();
            let columns = self.shape.columns;
            macro_rules! float {
                ($($width:literal)*) => {
                    match tile.width {
                        $($width => {
                            let kernel = FloatDirect::<$width> { kind: FloatKind::of(self.kind), weights, columns, x, out, stride };
                            // SAFETY: a group and a tile of `columns`, and room for the products.
                            unsafe { simd::run(self.isa, kernel) }
                        })*
                        _ => unreachable!("a tile's width"),
                    }
                };
            }
            return float!(1 2 4 6 8);
        }
        let records = acts.codes_of(tile);
        assert!(
            records.len()
                >= blocks * self.kind.block_columns() / 32 * crate::dot::record_bytes(tile.width)
        );
        let records = records.as_ptr();
        macro_rules! direct {
            ($($width:literal)*) => {
                match tile.width {
                    $($width => with_layout!(self.kind, L => {
                        let kernel = Direct::<L, $width> { weights, blocks, records, out, stride, layout: PhantomData };
                        // SAFETY: a group of `blocks` super-blocks, as many records, and room for
                        // the products.
                        unsafe { simd::run(self.isa, kernel) }
                    }, float => unreachable!("handled above")),)*
                    _ => unreachable!("a tile's width"),
                }
            };
        }
        direct!(1 2 4 8);
    }

    /// A panel times a tile: `out[t * 2 * lanes + g * lanes + r]`.
    fn panel(&self, panel: &[u8], acts: &Activations, tile: Tile, out: &mut [f32]) {
        let stride = PANEL_GROUPS * lanes(self.isa);
        assert!(out.len() >= tile.width * stride, "room for a tile");
        // SAFETY: the room is asserted.
        unsafe { self.panel_at(panel, acts, tile, out.as_mut_ptr(), stride) }
    }

    /// A panel times a tile: `out[t * stride + g * lanes + r]`.
    ///
    /// # Safety
    /// `out` can be written there for every token of the tile's width and every lane.
    unsafe fn panel_at(
        &self,
        panel: &[u8],
        acts: &Activations,
        tile: Tile,
        out: *mut f32,
        stride: usize,
    ) {
        let lanes = lanes(self.isa);
        let cells = self.blocks() * self.kind.block_columns() / 32;
        let records = acts.codes_of(tile);
        assert!(records.len() >= cells * crate::dot::record_bytes(tile.width), "records of a tile");
        assert!(panel.len() >= cells * panel_cell_bytes(lanes), "cells of a panel");
        let zero_bits = with_layout!(self.kind, L => zero_bits::<L>(self.isa), float => 32);
        let out = [out, out.wrapping_add(lanes)];
        let (panel, records) = (panel.as_ptr(), records.as_ptr());
        macro_rules! panel {
            ($bits:literal, $halves:literal, $minimum:literal, $($width:literal)*) => {
                match tile.width {
                    $($width => {
                        let kernel = Panel::<$bits, $halves, $minimum, $width> {
                            panel, cells, records, zero_bits, out, stride,
                        };
                        // SAFETY: lengths are asserted above.
                        unsafe { simd::run(self.isa, kernel) }
                    })*
                    _ => unreachable!("a tile's width"),
                }
            };
        }
        match self.kind {
            Kind::Q8 | Kind::NonLinear4 => panel!(8, 1, false, 2 4 6),
            Kind::Q4 | Kind::Q5 | Kind::Ternary => panel!(5, 1, false, 2 4 6),
            Kind::Q4Min | Kind::Q5Min | Kind::K4 | Kind::K5 => panel!(5, 1, true, 2 4 6),
            Kind::K3 | Kind::K6 => panel!(6, 2, false, 2 4 6),
            Kind::K2 => panel!(5, 2, true, 2 4 6),
            Kind::F32 | Kind::F16 | Kind::Bf16 => unreachable!("floats have no panels"),
        }
    }

    /// Scale and bias on a group's outputs.
    fn finish(&self, group: usize, lanes: usize, out: &mut [f32]) {
        if self.scale != 1.0 {
            out.iter_mut().for_each(|y| *y *= self.scale);
        }
        if let Some(bias) = &self.bias {
            let bias = &bias[group * lanes..];
            out.iter_mut().zip(bias).for_each(|(y, b)| *y += b);
        }
    }
}

fn zero_bits<L: Layout>(isa: Isa) -> u32 {
    if biased8(isa) {
        L::zero_bits::<simd::Scalar<8, true>>()
    } else {
        L::zero_bits::<simd::Scalar<8>>()
    }
}

thread_local! {
    static PANEL: RefCell<Option<Buffer>> = const { RefCell::new(None) };
}

/// Calls `f` with this thread's panel of at least `bytes` bytes.
fn with_panel<R>(bytes: usize, f: impl FnOnce(&mut [u8]) -> R) -> R {
    PANEL.with_borrow_mut(|panel| {
        if panel.as_ref().is_none_or(|p| p.len() < bytes) {
            *panel = Buffer::zeroed(bytes).ok();
        }
        match panel {
            Some(panel) => f(&mut panel[..bytes]),
            // The system is out of memory for a panel; the allocator has the last word.
            None => f(&mut vec![0; bytes]),
        }
    })
}

/// A product to compute: `out[token * rows + row]`.
pub struct Product<'a> {
    /// The matrix.
    pub matrix: &'a Matrix,
    /// `tokens * rows` values.
    pub out: &'a mut [f32],
}

/// Computes several products with the same activations in one part.
///
/// # Panics
/// When lengths or the form of the activations do not fit a matrix.
pub fn multiply(team: &Team, acts: &Activations, products: &mut [Product<'_>]) {
    let tokens = acts.tokens();
    let mut units = 0;
    let jobs: Vec<(usize, &Matrix, Disjoint<'_, f32>)> = products
        .iter_mut()
        .map(|product| {
            check(product.matrix, acts);
            assert!(product.out.len() >= tokens * product.matrix.shape.rows, "room for a product");
            let first = units;
            units += units_of(product.matrix, tokens);
            (first, product.matrix, Disjoint::new(&mut *product.out))
        })
        .collect();
    team.for_each(units, chunk(units, team, tokens), &|_, unit| {
        let (first, matrix, out) = match jobs.iter().rposition(|job| job.0 <= unit) {
            Some(at) => &jobs[at],
            None => return,
        };
        let lanes = lanes(matrix.isa);
        let rows = matrix.shape.rows;
        let put = &mut |group: usize, token: usize, values: &mut [f32]| {
            let values = &mut values[..lanes.min(rows - group * lanes)];
            matrix.finish(group, lanes, values);
            // SAFETY: one part per token and group, and each group is in one unit.
            let out = unsafe { out.slice(token * rows + group * lanes, values.len()) };
            out.copy_from_slice(values);
        };
        for_unit(
            matrix,
            unit - first,
            acts,
            &|tile, group, groups| {
                // Whole groups of whole tiles need nothing between the kernel and the result.
                let whole = tile.tokens == tile.width && (group + groups) * lanes <= rows;
                let plain = matrix.scale == 1.0 && matrix.bias.is_none();
                let len = (tile.width - 1) * rows + groups * lanes;
                (whole && plain).then(|| out.pointer(tile.first * rows + group * lanes, len))
            },
            put,
        );
    });
}

/// `out = gate(Wg x) * (Wu x)`, in one part. Both matrices have as many rows.
///
/// # Panics
/// When lengths or the form of the activations do not fit a matrix.
pub fn multiply_gated(
    team: &Team,
    acts: &Activations,
    activation: Gate,
    gate: &Matrix,
    up: &Matrix,
    out: &mut [f32],
) {
    let (tokens, rows) = (acts.tokens(), gate.shape.rows);
    check(gate, acts);
    check(up, acts);
    assert!(rows == up.shape.rows && out.len() >= tokens * rows, "lengths of a gated product");
    let out = Disjoint::new(out);
    let lanes = lanes(gate.isa);
    let groups = gate.groups();
    team.for_each(groups, chunk(groups * 2, team, tokens).div_ceil(2), &|_, group| {
        let count = lanes.min(rows - group * lanes);
        let plain = [gate, up].iter().all(|m| m.scale == 1.0 && m.bias.is_none());
        // Gates a tile whose outputs lie `stride` apart per token.
        let finish = |tile: &Tile, g: &mut [f32], u: &mut [f32], stride: usize| {
            let from = tile.first * rows + group * lanes;
            if plain && count == lanes {
                assert!(g.len().min(u.len()) >= (tile.tokens - 1) * stride + lanes, "a tile");
                let kernel = GatedTile {
                    gate: activation,
                    g: g.as_ptr(),
                    up: u.as_ptr(),
                    stride,
                    tokens: tile.tokens,
                    out: out.pointer(from, (tile.tokens - 1) * rows + lanes),
                    out_stride: rows,
                };
                // SAFETY: both sides hold whole registers of every token; one thread has the group.
                return unsafe { simd::run(gate.isa, kernel) };
            }
            for t in 0..tile.tokens {
                let (g, u) = (&mut g[t * stride..][..count], &mut u[t * stride..][..count]);
                gate.finish(group, lanes, g);
                up.finish(group, lanes, u);
                // SAFETY: one part per token and group.
                let out = unsafe { out.slice(from + t * rows, count) };
                ops::gated(gate.isa, activation, g, u, out);
            }
        };
        if tokens <= DIRECT_BATCH_MAX || gate.kind != up.kind || gate.kind.is_float() {
            let (mut g, mut u) = ([0.0f32; 128], [0.0f32; 128]);
            for tile in acts.tiles() {
                direct_or_alone(gate, group, acts, *tile, &mut g);
                direct_or_alone(up, group, acts, *tile, &mut u);
                finish(tile, &mut g, &mut u, lanes);
            }
        } else {
            with_panel(gate.panel_bytes(), |panel| {
                gate.unpack(group, 0, panel);
                up.unpack(group, 1, panel);
                let mut values = [0.0f32; 256];
                for tile in acts.tiles() {
                    gate.panel(panel, acts, *tile, &mut values);
                    let mut up = values;
                    finish(tile, &mut values, &mut up[lanes..], 2 * lanes);
                }
            });
        }
    });
}

/// One group with a tile of any width: direct where there is a kernel, else by a panel whose other
/// half is not used. `out[t * lanes + r]`.
fn direct_or_alone(matrix: &Matrix, group: usize, acts: &Activations, tile: Tile, out: &mut [f32]) {
    if matrix.kind.is_float() || tile.width != 6 {
        return matrix.direct(group, acts, tile, out);
    }
    let lanes = lanes(matrix.isa);
    with_panel(matrix.panel_bytes(), |panel| {
        matrix.unpack(group, 0, panel);
        let mut values = [0.0f32; 256];
        matrix.panel(panel, acts, tile, &mut values);
        for t in 0..tile.width {
            out[t * lanes..(t + 1) * lanes].copy_from_slice(&values[t * 2 * lanes..][..lanes]);
        }
    });
}

fn check(matrix: &Matrix, acts: &Activations) {
    let (needed, there) = (matrix.shape.forms(), acts.forms());
    assert_eq!(matrix.shape.columns, acts.columns(), "columns of matrix and activations");
    assert_eq!(matrix.isa, acts.isa(), "instruction set of matrix and activations");
    assert!(there.and(needed) == there, "form of the activations");
}

/// Units of work: groups, or panels of two.
fn units_of(matrix: &Matrix, tokens: usize) -> usize {
    if tokens <= DIRECT_BATCH_MAX || matrix.kind.is_float() {
        matrix.groups()
    } else {
        matrix.groups().div_ceil(PANEL_GROUPS)
    }
}

fn chunk(units: usize, team: &Team, tokens: usize) -> usize {
    if tokens > DIRECT_BATCH_MAX { 1 } else { (units / (team.threads() * 8)).clamp(1, 64) }
}

/// Computes a unit: for each tile either straight to where `place(tile, group, groups)` says, or by
/// `put(group, token, values)`.
fn for_unit(
    matrix: &Matrix,
    unit: usize,
    acts: &Activations,
    place: &dyn Fn(&Tile, usize, usize) -> Option<*mut f32>,
    put: &mut dyn FnMut(usize, usize, &mut [f32]),
) {
    let (lanes, rows) = (lanes(matrix.isa), matrix.shape.rows);
    if acts.tokens() <= DIRECT_BATCH_MAX || matrix.kind.is_float() {
        let mut values = [0.0f32; 128];
        for tile in acts.tiles() {
            if let Some(out) = place(tile, unit, 1) {
                // SAFETY: `place` gives room for the group's outputs of the tile's tokens.
                unsafe { matrix.direct_at(unit, acts, *tile, out, rows) };
                continue;
            }
            matrix.direct(unit, acts, *tile, &mut values);
            for t in 0..tile.tokens {
                put(unit, tile.first + t, &mut values[t * lanes..(t + 1) * lanes]);
            }
        }
        return;
    }
    with_panel(matrix.panel_bytes(), |panel| {
        let group = unit * PANEL_GROUPS;
        let groups = PANEL_GROUPS.min(matrix.groups() - group);
        for place in 0..groups {
            matrix.unpack(group + place, place, panel);
        }
        let mut values = [0.0f32; 256];
        for tile in acts.tiles() {
            if let Some(out) = place(tile, group, groups).filter(|_| groups == PANEL_GROUPS) {
                // SAFETY: `place` gives room for both groups' outputs of the tile's tokens.
                unsafe { matrix.panel_at(panel, acts, *tile, out, rows) };
                continue;
            }
            matrix.panel(panel, acts, *tile, &mut values);
            for t in 0..tile.tokens {
                for place in 0..groups {
                    let at = (t * PANEL_GROUPS + place) * lanes;
                    put(group + place, tile.first + t, &mut values[at..at + lanes]);
                }
            }
        }
    });
}
