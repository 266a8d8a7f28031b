//! Weight matrices and their products with activations.

use std::sync::Arc;

use crate::activations::Forms;
use crate::cpu::Isa;
use crate::disjoint::Disjoint;
use crate::formats::TensorType;
use crate::memory::Buffer;
use crate::pack::{Kind, regroup};
use crate::panel::panel_bytes;
use crate::simd::{biased8, lanes};
use crate::team::Team;

mod product;
mod tiles;

pub use product::{Product, multiply, multiply_gated};

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
    storage: Arc<Buffer>,
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
        storage: Arc<Buffer>,
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

    /// Cells of 32 columns, in whole super-blocks.
    fn cells(&self) -> usize {
        self.blocks() * self.kind.block_columns() / 32
    }

    /// A group's bytes.
    fn group(&self, group: usize) -> &[u8] {
        &self.storage[self.start + group * self.group_bytes..][..self.group_bytes]
    }

    fn panel_bytes(&self) -> usize {
        panel_bytes(lanes(self.isa), self.cells())
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
