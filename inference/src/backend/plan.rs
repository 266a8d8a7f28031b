//! What a model will need, known before anything is loaded.

use super::{BackendOptions, MemoryUse, candle};
use crate::gguf::Gguf;
use crate::model::Architecture;

/// Bytes that a model loaded with these options holds at most, by the widest backend: `candle`.
pub fn plan(gguf: &Gguf, architecture: &Architecture, options: &BackendOptions) -> MemoryUse {
    candle::plan(gguf, architecture, options)
}
