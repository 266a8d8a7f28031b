//! Pages of a model's file that are resident while it is used.
//!
//! A backend reads a file's tensors when it loads them, and gives their pages back one tensor at a
//! time. Rows of the embedding are read from the file as tokens come: their pages are given back
//! whenever they may have become many. What is resident in between is part of a model's plan.

use std::sync::atomic::{AtomicUsize, Ordering};

use super::BackendOptions;
use crate::gguf::Gguf;
use crate::model::Architecture;

/// Pages that the system maps with the one that was asked for.
const AROUND_BYTES: usize = 64 << 10;
/// Embedding rows after which their pages are given back: 4 MiB with what is mapped around them.
const ROWS_MAX: usize = 64;

/// Counts the embedding rows that were read.
#[derive(Debug, Default)]
pub(super) struct EmbeddingPages {
    rows: AtomicUsize,
}

impl EmbeddingPages {
    /// Says that rows were read.
    pub(super) fn read(&self, gguf: &Gguf, rows: usize) {
        if self.rows.fetch_add(rows, Ordering::Relaxed) + rows >= ROWS_MAX {
            gguf.release();
            self.rows.store(0, Ordering::Relaxed);
        }
    }
}

/// Bytes of a file that are resident at most while a model is loaded and used, where
/// `scratch_bytes` are allocated only after its tensors were read: the longest tensor at first, then
/// embedding rows.
pub(crate) fn file_bytes(
    gguf: &Gguf,
    architecture: &Architecture,
    options: &BackendOptions,
    scratch_bytes: u64,
) -> u64 {
    let longest = gguf.tensors().iter().map(|tensor| tensor.size_bytes).max().unwrap_or(0) as u64;
    let table = gguf.info(&architecture.token_embedding);
    let table = table.map_or(0, |tensor| tensor.size_bytes as u64);
    let row = table / architecture.vocab_len.max(1) as u64 + AROUND_BYTES as u64;
    let rows = (ROWS_MAX + options.batch_tokens_max) as u64 * row;
    longest.saturating_sub(scratch_bytes).max(rows.min(table))
}
