//! The left side of a matrix multiplication: the tokens' rows, prepared for the kernels.
//!
//! Tokens are taken in tiles. A tile's rows are interleaved per cell of 32 columns, as 8-bit codes
//! with one scale per cell for quantised weights, and per column as floats for float weights.

use std::cell::RefCell;
use std::io;

use crate::cpu::Isa;
use crate::disjoint::Disjoint;
use crate::dot::{DIRECT_TOKENS, record_bytes};
use crate::memory::Buffer;
use crate::ops::Quantise;
use crate::simd;
use crate::team::Team;

/// Tokens up to which the direct kernels are used.
pub(crate) const DIRECT_BATCH_MAX: usize = 16;
/// Rows that the owner prepares alone: handing them out takes longer.
const ALONE_MAX: usize = 2;

thread_local! {
    static ROW: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// Tokens that the kernels take together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Tile {
    pub(crate) first: usize,
    /// Tokens that exist.
    pub(crate) tokens: usize,
    /// Tokens that the kernel computes.
    pub(crate) width: usize,
}

/// Neighbouring tiles of one width; only a run of one tile may lack tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Run {
    pub(crate) first: usize,
    /// Tokens that exist.
    pub(crate) tokens: usize,
    /// Tokens of a tile.
    pub(crate) width: usize,
    pub(crate) tiles: usize,
}

impl Run {
    /// Whether every token that the kernel computes exists.
    pub(crate) fn is_whole(&self) -> bool {
        self.tokens == self.tiles * self.width
    }

    pub(crate) fn tile(&self) -> Tile {
        Tile { first: self.first, tokens: self.tokens.min(self.width), width: self.width }
    }
}

/// The forms that the multiplied matrices need.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Forms {
    /// 8-bit codes.
    pub codes: bool,
    /// Floats.
    pub floats: bool,
}

impl Forms {
    /// What both need.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self { codes: self.codes || other.codes, floats: self.floats || other.floats }
    }
}

/// Writes a row: the token's index, its state, and where the row goes.
pub type WriteRow<'a> = dyn Fn(usize, &mut [f32], &mut [f32]) + Sync + 'a;

/// Rows of activations.
#[derive(Debug)]
pub struct Activations {
    isa: Isa,
    columns: usize,
    tokens: usize,
    forms: Forms,
    tiles: Vec<Tile>,
    codes: Buffer,
    /// Per token: 0, or not a number where a value is not finite.
    starts: Vec<f32>,
    floats: Buffer,
}

/// Cells of a row, in whole super-blocks of the largest kind.
fn cells(columns: usize) -> usize {
    columns.div_ceil(256) * 8
}

impl Activations {
    /// Room for `tokens_max` rows of `columns_max` columns.
    ///
    /// # Errors
    /// The system's error when it has no such memory.
    pub fn new(isa: Isa, tokens_max: usize, columns_max: usize) -> io::Result<Self> {
        // The last tile may be wider than its tokens.
        let rows = tokens_max + DIRECT_TOKENS;
        Ok(Self {
            isa,
            columns: 0,
            tokens: 0,
            forms: Forms::default(),
            tiles: Vec::new(),
            codes: Buffer::zeroed(rows * cells(columns_max) * record_bytes(1))?,
            starts: vec![0.0; rows],
            floats: Buffer::zeroed(rows * columns_max * 4)?,
        })
    }

    /// Bytes that are held.
    pub fn bytes(&self) -> usize {
        self.codes.len() + self.floats.len()
    }

    /// Rows that are held.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// Columns of the rows.
    pub fn columns(&self) -> usize {
        self.columns
    }

    pub(crate) fn isa(&self) -> Isa {
        self.isa
    }

    pub(crate) fn forms(&self) -> Forms {
        self.forms
    }

    pub(crate) fn tiles(&self) -> &[Tile] {
        &self.tiles
    }

    /// The records of a tile.
    pub(crate) fn codes_of(&self, tile: Tile) -> &[u8] {
        &self.codes[self.codes_at(tile)..][..self.cells() * record_bytes(tile.width)]
    }

    fn codes_at(&self, tile: Tile) -> usize {
        tile.first * self.cells() * record_bytes(1)
    }

    fn cells(&self) -> usize {
        cells(self.columns)
    }

    /// The tiles as runs of at most `tiles_max` tiles.
    pub(crate) fn runs(&self, tiles_max: usize) -> impl Iterator<Item = Run> {
        let alike = |a: &Tile, b: &Tile| a.width == b.width && b.tokens == b.width;
        self.tiles.chunk_by(alike).flat_map(move |tiles| tiles.chunks(tiles_max)).map(|tiles| Run {
            first: tiles[0].first,
            tokens: tiles.iter().map(|tile| tile.tokens).sum(),
            width: tiles[0].width,
            tiles: tiles.len(),
        })
    }

    /// The records of a run's first `cells` cells tile by tile, and how far apart the tiles are.
    pub(crate) fn codes_of_run(&self, run: Run, cells: usize) -> (&[u8], usize) {
        let tile_bytes = self.cells() * record_bytes(run.width);
        let all = &self.codes[self.codes_at(run.tile())..][..run.tiles * tile_bytes];
        assert!(run.tiles > 0 && cells <= self.cells(), "cells of a run");
        (all, tile_bytes)
    }

    /// What the sums of a run's tokens start from.
    pub(crate) fn starts_of(&self, run: Run) -> &[f32] {
        &self.starts[run.first..][..run.tiles * run.width]
    }

    /// The floats of a tile: `[columns][width]`.
    pub(crate) fn floats_of(&self, tile: Tile) -> &[f32] {
        let floats = self.floats.as_slice::<f32>();
        &floats[tile.first * self.columns..][..self.columns * tile.width]
    }

    /// Takes `tokens` rows of `columns` columns. `row(token, state, out)` writes a row; `state` is
    /// the token's part (`state_columns` long) of `states`, free to change.
    ///
    /// # Panics
    /// When the rows are more or wider than room was made for, or `states` is too short.
    pub fn fill(
        &mut self,
        team: &Team,
        tokens: usize,
        columns: usize,
        forms: Forms,
        (states, state_columns): (&mut [f32], usize),
        row: &WriteRow<'_>,
    ) {
        assert!(tokens * state_columns <= states.len(), "a state for every token");
        let states = Disjoint::new(states);
        self.take(team, tokens, columns, forms, &|token, values, done| {
            // SAFETY: one part per token.
            let state = unsafe { states.slice(token * state_columns, state_columns) };
            row(token, state, &mut values[..columns]);
            done(values);
        });
    }

    /// Takes rows as they are: `[tokens][columns]`.
    ///
    /// # Panics
    /// As [`Activations::fill`].
    pub fn fill_from(
        &mut self,
        team: &Team,
        tokens: usize,
        columns: usize,
        forms: Forms,
        rows: &[f32],
    ) {
        assert!(tokens * columns <= rows.len(), "a row for every token");
        self.take(team, tokens, columns, forms, &|token, values, done| {
            let row = &rows[token * columns..(token + 1) * columns];
            if values.len() == columns {
                return done(row);
            }
            values[..columns].copy_from_slice(row);
            done(values);
        });
    }

    /// Takes what `row(token, buffer, done)` gives to `done`: a row in whole super-blocks.
    fn take(
        &mut self,
        team: &Team,
        tokens: usize,
        columns: usize,
        forms: Forms,
        row: &(dyn Fn(usize, &mut [f32], &mut dyn FnMut(&[f32])) + Sync),
    ) {
        let padded = cells(columns);
        let rows = tokens + DIRECT_TOKENS;
        assert!(rows * padded * record_bytes(1) <= self.codes.len(), "room for codes");
        assert!(rows * columns * 4 <= self.floats.len(), "room for floats");
        assert!(rows <= self.starts.len(), "room for tokens");
        (self.tokens, self.columns, self.forms) = (tokens, columns, forms);
        split(tokens, self.isa, &mut self.tiles);
        let (isa, tiles) = (self.isa, &self.tiles);
        let codes = Disjoint::new(&mut self.codes);
        let floats = Disjoint::new(self.floats.as_mut_slice::<f32>());
        let starts = Disjoint::new(&mut self.starts);
        let each = |_: usize, index: usize| {
            let tile = tiles[index];
            // SAFETY: the tiles are disjoint in tokens, and so are these parts.
            let (codes, floats) = unsafe {
                (
                    codes.slice(
                        tile.first * padded * record_bytes(1),
                        padded * record_bytes(tile.width),
                    ),
                    floats.slice(tile.first * columns, columns * tile.width),
                )
            };
            for t in 0..tile.tokens {
                let token = tile.first + t;
                let mut done = |values: &[f32]| {
                    if forms.codes {
                        // SAFETY: `values` and `codes` hold whole cells of this tile; one part per
                        // token.
                        unsafe {
                            starts.slice(token, 1)[0] = quantise(isa, values, codes, tile.width, t);
                        }
                    }
                    if forms.floats {
                        for (to, from) in floats.chunks_exact_mut(tile.width).zip(values) {
                            to[t] = *from;
                        }
                    }
                };
                with_row(padded * 32, columns, |values| row(token, values, &mut done));
            }
        };
        if tokens <= ALONE_MAX {
            (0..tiles.len()).for_each(|index| each(0, index));
        } else {
            team.for_each(tiles.len(), 1, &each);
        }
    }
}

/// Calls `f` with the thread's row buffer of `padded` values, zero from `columns` on.
fn with_row(padded: usize, columns: usize, f: impl FnOnce(&mut [f32])) {
    ROW.with_borrow_mut(|values| {
        if values.len() < padded {
            values.resize(padded, 0.0);
        }
        values[columns..padded].fill(0.0);
        f(&mut values[..padded]);
    });
}

/// Quantises a token's row, and says what its sums start from.
///
/// # Safety
/// `codes` is the records of a tile `width` wide for as many whole cells as `values` has.
unsafe fn quantise(isa: Isa, values: &[f32], codes: &mut [u8], width: usize, token: usize) -> f32 {
    let cells = values.len() / 32;
    debug_assert!(codes.len() == cells * record_bytes(width) && token < width);
    let kernel =
        Quantise { x: values.as_ptr(), cells, records: codes.as_mut_ptr(), tokens: width, token };
    // SAFETY: by the caller; `isa` comes from detection.
    unsafe { simd::run(isa, kernel) }
}

/// Splits `tokens` into tiles of widths that there are kernels for.
fn split(tokens: usize, isa: Isa, tiles: &mut Vec<Tile>) {
    tiles.clear();
    let direct = tokens <= DIRECT_BATCH_MAX;
    let widest = match (direct, isa) {
        (true, Isa::Avx512) => 8,
        (false, Isa::Avx512) => 6,
        _ => 4,
    };
    let mut first = 0;
    while first < tokens {
        let rest = tokens - first;
        let width = if rest >= widest {
            widest
        } else {
            // The next width that exists, if it wastes at most one token; else the one below.
            match (direct, rest) {
                (_, 1) if direct => 1,
                (_, 1 | 2) => 2,
                (_, 3 | 4) => 4,
                (true, 7) => 8,
                (true, _) => 4,
                (false, _) => 6,
            }
        };
        tiles.push(Tile { first, tokens: rest.min(width), width });
        first += width;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_cover_every_token_once_and_waste_little() {
        for isa in [Isa::Avx512, Isa::Avx2, Isa::Scalar] {
            let mut tiles = Vec::new();
            for tokens in 1..200 {
                split(tokens, isa, &mut tiles);
                let mut next = 0;
                for tile in &tiles {
                    assert_eq!(tile.first, next);
                    assert!(tile.tokens >= 1 && tile.tokens <= tile.width && tile.width <= 8);
                    next += tile.tokens;
                }
                assert_eq!(next, tokens);
            }
        }
    }
}
