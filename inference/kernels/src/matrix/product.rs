//! Products of several matrices with the same activations, and the gated product.

use std::cell::RefCell;

use super::Matrix;
use crate::activations::{Activations, DIRECT_BATCH_MAX};
use crate::disjoint::Disjoint;
use crate::memory::Buffer;
use crate::ops::{self, Gate, GatedTile};
use crate::panel::PANEL_GROUPS;
use crate::simd::{self, lanes};
use crate::team::Team;

/// Tiles of a run whose products pass through a buffer.
const RUN_TILES: usize = 4;
/// Room for them: tiles of 6 tokens with two groups of 16 rows.
const RUN_VALUES: usize = RUN_TILES * 6 * 32;

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
    for_units(team, units, tokens, &|unit| {
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
            &|first, tokens, group, groups| {
                // Whole groups need nothing between the kernel and the result.
                let plain = matrix.scale == 1.0 && matrix.bias.is_none();
                let whole = (group + groups) * lanes <= rows;
                let len = (tokens - 1) * rows + groups * lanes;
                (whole && plain).then(|| out.pointer(first * rows + group * lanes, len))
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
    for_units(team, groups, tokens, &|group| {
        let count = lanes.min(rows - group * lanes);
        let plain = [gate, up].iter().all(|m| m.scale == 1.0 && m.bias.is_none());
        // Gates tokens whose outputs lie `stride` apart.
        let finish = |(first, tokens): (usize, usize), g: &mut [f32], u: &mut [f32], stride| {
            let from = first * rows + group * lanes;
            if plain && count == lanes {
                assert!(g.len().min(u.len()) >= (tokens - 1) * stride + lanes, "a tile");
                let kernel = GatedTile {
                    gate: activation,
                    g: g.as_ptr(),
                    up: u.as_ptr(),
                    stride,
                    tokens,
                    out: out.pointer(from, (tokens - 1) * rows + lanes),
                    out_stride: rows,
                };
                // SAFETY: both sides hold whole registers of every token; one thread has the group.
                return unsafe { simd::run(gate.isa, kernel) };
            }
            for t in 0..tokens {
                let (g, u) = (&mut g[t * stride..][..count], &mut u[t * stride..][..count]);
                gate.finish(group, lanes, g);
                up.finish(group, lanes, u);
                // SAFETY: one part per token and group.
                let out = unsafe { out.slice(from + t * rows, count) };
                ops::gated(gate.isa, activation, g, u, out);
            }
        };
        if tokens <= DIRECT_BATCH_MAX || (gate.kind.is_float() && up.kind.is_float()) {
            let (mut g, mut u) = ([0.0f32; 128], [0.0f32; 128]);
            for tile in acts.tiles() {
                gate.direct(group, acts, *tile, &mut g, lanes);
                up.direct(group, acts, *tile, &mut u, lanes);
                finish((tile.first, tile.tokens), &mut g, &mut u, lanes);
            }
        } else if gate.kind == up.kind {
            with_panel(gate.panel_bytes(), |panel| {
                gate.unpack(group, 0, panel);
                up.unpack(group, 1, panel);
                let mut values = [0.0f32; RUN_VALUES];
                for run in acts.runs(RUN_TILES) {
                    gate.panel(panel, acts, run, &mut values);
                    let mut up = values;
                    finish((run.first, run.tokens), &mut values, &mut up[lanes..], 2 * lanes);
                }
            });
        } else {
            with_panel(gate.panel_bytes() + up.panel_bytes(), |panel| {
                let (first, second) = panel.split_at_mut(gate.panel_bytes());
                for (matrix, panel) in [(gate, &mut *first), (up, &mut *second)] {
                    if !matrix.kind.is_float() {
                        matrix.unpack(group, 0, panel);
                    }
                }
                let (mut g, mut u) = ([0.0f32; 256], [0.0f32; 256]);
                for run in acts.runs(1) {
                    for (matrix, panel, out) in [(gate, &*first, &mut g), (up, &*second, &mut u)] {
                        if matrix.kind.is_float() {
                            matrix.direct(group, acts, run.tile(), out, 2 * lanes);
                        } else {
                            matrix.panel(panel, acts, run, out);
                        }
                    }
                    finish((run.first, run.tokens), &mut g, &mut u, 2 * lanes);
                }
            });
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

/// Calls `f` once for each unit: panels one by one, groups for few tokens in shares, since those
/// are read from memory once and fetched ahead.
fn for_units(team: &Team, units: usize, tokens: usize, f: &(dyn Fn(usize) + Sync)) {
    if tokens > DIRECT_BATCH_MAX {
        return team.for_each(units, 1, &|_, unit| f(unit));
    }
    let chunk = (units / (team.threads() * 32)).clamp(1, 16);
    team.for_each_in_shares(units, chunk, &|_, unit| f(unit));
}

/// Where the products of tokens `first..first + tokens` with some groups go.
type Place<'a> = dyn Fn(usize, usize, usize, usize) -> Option<*mut f32> + 'a;

/// Computes a unit: whole tiles straight to where `place(first, tokens, group, groups)` says, or by
/// `put(group, token, values)`.
fn for_unit(
    matrix: &Matrix,
    unit: usize,
    acts: &Activations,
    place: &Place<'_>,
    put: &mut dyn FnMut(usize, usize, &mut [f32]),
) {
    let (lanes, rows) = (lanes(matrix.isa), matrix.shape.rows);
    if acts.tokens() <= DIRECT_BATCH_MAX || matrix.kind.is_float() {
        let mut values = [0.0f32; 128];
        for tile in acts.tiles() {
            let whole = tile.tokens == tile.width;
            if let Some(out) = place(tile.first, tile.tokens, unit, 1).filter(|_| whole) {
                // SAFETY: `place` gives room for the group's outputs of the tile's tokens.
                unsafe { matrix.direct_at(unit, acts, *tile, out, rows) };
                continue;
            }
            matrix.direct(unit, acts, *tile, &mut values, lanes);
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
        let direct =
            (groups == PANEL_GROUPS).then(|| place(0, acts.tokens(), group, groups)).flatten();
        let mut values = [0.0f32; RUN_VALUES];
        for run in acts.runs(if direct.is_some() { usize::MAX } else { RUN_TILES }) {
            if let Some(out) = direct.filter(|_| run.is_whole()) {
                let out = out.wrapping_add(run.first * rows);
                // SAFETY: `place` gave room for both groups' outputs of all tokens.
                unsafe { matrix.panel_at(panel, acts, run, out, rows) };
                continue;
            }
            matrix.panel(panel, acts, run, &mut values);
            for t in 0..run.tokens {
                for place in 0..groups {
                    let at = (t * PANEL_GROUPS + place) * lanes;
                    put(group + place, run.first + t, &mut values[at..at + lanes]);
                }
            }
        }
    });
}
