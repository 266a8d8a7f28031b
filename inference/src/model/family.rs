//! The table of families: what a name in `general.architecture` means beyond the metadata.

use super::{Activation, ArchitectureError, RotaryKind};
use crate::gguf::Gguf;

/// What is fixed by a family's name and not written in its files.
#[derive(Debug, PartialEq)]
pub struct Family {
    /// `general.architecture`, also the prefix of the family's metadata keys.
    pub name: &'static str,
    /// Which dimensions of a head are rotated together.
    pub rotary: RotaryKind,
    /// The gate's activation.
    pub activation: Activation,
    /// Whether queries, keys and values, and gate and up, are each one fused tensor.
    pub fused: bool,
    /// Whether query and key heads are normed.
    pub head_norms: bool,
    /// Whether norms stand before the two output projections (BitNet).
    pub sub_norms: bool,
    /// Whether attention's and the feed-forward block's results are normed (Gemma).
    pub post_norms: bool,
    /// Whether embeddings are multiplied by the square root of their length (Gemma).
    pub embedding_scaled: bool,
    /// Whether files have short and long rotary factors, and rotate a part of each head (Phi).
    pub rope_factors: bool,
    /// Which layers have the window that `attention.sliding_window` says.
    pub windows: Windows,
    /// The size at which attention is scaled by the embedding's share of a head instead of by the
    /// head's dimensions: Gemma 3 27B, which files tell apart only by its number of layers.
    pub wide_query_layers: Option<usize>,
}

/// Which layers have a sliding window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Windows {
    /// None, whatever the file says.
    Never,
    /// Every layer, if the file names a window.
    Every,
    /// All but each `period`-th layer; the file may name another period. Windowed layers then
    /// rotate by a base of their own.
    AllButEach {
        /// The period where the file names none.
        period: usize,
    },
}

/// What most families share.
const PLAIN: Family = Family {
    name: "",
    rotary: RotaryKind::Halves,
    activation: Activation::Silu,
    fused: false,
    head_norms: false,
    sub_norms: false,
    post_norms: false,
    embedding_scaled: false,
    rope_factors: false,
    windows: Windows::Never,
    wide_query_layers: None,
};

/// Every family this build runs.
pub(super) static FAMILIES: [Family; 7] = [
    // Llama 2 and 3, Mistral, SmolLM: converters permute query and key rows to adjacent pairs.
    Family { name: "llama", rotary: RotaryKind::Adjacent, ..PLAIN },
    Family { name: "qwen2", ..PLAIN },
    Family { name: "qwen3", head_norms: true, ..PLAIN },
    Family { name: "phi3", fused: true, rope_factors: true, windows: Windows::Every, ..PLAIN },
    Family {
        name: "gemma3",
        activation: Activation::GeluTanh,
        head_norms: true,
        post_norms: true,
        embedding_scaled: true,
        windows: Windows::AllButEach { period: 6 },
        wide_query_layers: Some(62),
        ..PLAIN
    },
    Family { name: "bitnet", sub_norms: true, ..PLAIN },
    // Microsoft's 2B-4T.
    Family { name: "bitnet-b1.58", activation: Activation::ReluSquared, sub_norms: true, ..PLAIN },
];

impl Family {
    /// The family of a file.
    ///
    /// # Errors
    /// [`ArchitectureError::UnknownFamily`], or the field when it is missing or no string.
    pub fn of(gguf: &Gguf) -> Result<&'static Self, ArchitectureError> {
        let field = "general.architecture";
        let found = gguf.str(field)?.ok_or_else(|| ArchitectureError::MissingField {
            field: field.to_owned(),
            family: "GGUF",
        })?;
        FAMILIES.iter().find(|family| family.name == found).ok_or_else(|| {
            ArchitectureError::UnknownFamily {
                found: found.chars().take(64).collect(),
                known: FAMILIES.iter().map(|f| f.name).collect::<Vec<_>>().join(", "),
            }
        })
    }

    /// The full metadata key of one of the family's fields.
    pub fn key(&self, field: &str) -> String {
        format!("{}.{field}", self.name)
    }
}
