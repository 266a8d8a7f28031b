//! A matrix's groups and panels with one tile of tokens: which kernel does it.

use std::marker::PhantomData;

use super::Matrix;
use crate::activations::{Activations, Run, Tile};
use crate::dot::{Direct, record_bytes};
use crate::float::{FloatDirect, FloatKind};
use crate::layout::NO_ZERO;
use crate::pack::{Kind, with_layout};
use crate::panel::{PANEL_GROUPS, Panel, Unpack, panel_bytes};
use crate::simd::{self, biased8, lanes};

impl Matrix {
    /// Unpacks a group into one of the places of a panel.
    pub(super) fn unpack(&self, group: usize, place: usize, panel: &mut [u8]) {
        assert!(panel.len() >= self.panel_bytes() && place < PANEL_GROUPS, "room for a panel");
        let weights = self.group(group).as_ptr();
        let (blocks, panel) = (self.blocks(), panel.as_mut_ptr());
        with_layout!(self.kind, L => {
            let kernel = Unpack::<L> { weights, blocks, panel, place, layout: PhantomData };
            // SAFETY: the group has `blocks` super-blocks; the panel has room for their cells.
            unsafe { simd::run(self.isa, kernel) }
        }, float => unreachable!("floats have no panels"));
    }

    /// A group times a tile: `out[t * stride + r]`.
    pub(super) fn direct(
        &self,
        group: usize,
        acts: &Activations,
        tile: Tile,
        out: &mut [f32],
        stride: usize,
    ) {
        let lanes = lanes(self.isa);
        assert!(stride >= lanes && out.len() >= (tile.width - 1) * stride + lanes, "a tile's room");
        // SAFETY: the room is asserted.
        unsafe { self.direct_at(group, acts, tile, out.as_mut_ptr(), stride) }
    }

    /// A group times a tile: `out[t * stride + r]`.
    ///
    /// # Safety
    /// `out` can be written there for every token of the tile's width and every lane.
    pub(super) unsafe fn direct_at(
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
            records.len() >= blocks * self.kind.block_columns() / 32 * record_bytes(tile.width)
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

    /// A panel times a run of tiles: `out[t * 2 * lanes + g * lanes + r]`.
    pub(super) fn panel(&self, panel: &[u8], acts: &Activations, run: Run, out: &mut [f32]) {
        let stride = PANEL_GROUPS * lanes(self.isa);
        assert!(out.len() >= run.tiles * run.width * stride, "room for a run");
        // SAFETY: the room is asserted.
        unsafe { self.panel_at(panel, acts, run, out.as_mut_ptr(), stride) }
    }

    /// A panel times a run of tiles: `out[t * stride + g * lanes + r]`.
    ///
    /// # Safety
    /// `out` can be written there for every token that the tiles are wide and every lane.
    pub(super) unsafe fn panel_at(
        &self,
        panel: &[u8],
        acts: &Activations,
        run: Run,
        out: *mut f32,
        stride: usize,
    ) {
        let (cells, tiles) = (self.cells(), run.tiles);
        let ((records, tile_bytes), starts) = (acts.codes_of_run(run, cells), acts.starts_of(run));
        assert!(panel.len() >= panel_bytes(lanes(self.isa), cells), "cells of a panel");
        let (panel, records, starts) = (panel.as_ptr(), records.as_ptr(), starts.as_ptr());
        macro_rules! panel {
            ($bits:literal, $halves:literal, $minimum:literal, $zero:expr, $($width:literal)*) => {
                match run.width {
                    $($width => {
                        let kernel = Panel::<$bits, $halves, $minimum, { $zero }, $width> {
                            panel, cells, records, starts, tiles, tile_bytes, out, stride,
                        };
                        // SAFETY: records, starts and cells are there; room by the caller.
                        unsafe { simd::run(self.isa, kernel) }
                    })*
                    _ => unreachable!("a tile's width"),
                }
            };
        }
        match self.kind {
            Kind::Q8 | Kind::NonLinear4 | Kind::NonLinear4K | Kind::Float4 => {
                if biased8(self.isa) {
                    panel!(8, 1, false, 7, 2 4 6);
                } else {
                    panel!(8, 1, false, NO_ZERO, 2 4 6);
                }
            }
            Kind::Q4 => panel!(5, 1, false, 3, 2 4 6),
            Kind::Q5 => panel!(5, 1, false, 4, 2 4 6),
            Kind::Ternary => panel!(5, 1, false, 0, 2 4 6),
            Kind::Q4Min | Kind::Q5Min | Kind::K4 | Kind::K5 => panel!(5, 1, true, NO_ZERO, 2 4 6),
            Kind::K3 => panel!(6, 2, false, 2, 2 4 6),
            Kind::K6 => panel!(6, 2, false, 5, 2 4 6),
            Kind::K2 => panel!(5, 2, true, NO_ZERO, 2 4 6),
            Kind::F32 | Kind::F16 | Kind::Bf16 => unreachable!("floats have no panels"),
        }
    }
}
