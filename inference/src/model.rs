//! What a model file's decoder looks like, as data.
//!
//! [`Architecture::from_gguf`] reads the metadata and checks it against the shape of every tensor,
//! so that a backend can run any family with one block and without a branch on the family's name.
//! A family that differs only in data is one entry of the table in `family` and a test.
//!
//! Invariants of a value of [`Architecture`]: every tensor it names exists with the shape it says;
//! every tensor of the file is named (an unnamed one would mean an answer computed without it); all
//! lengths are at least 1; `heads` is a multiple of `kv_heads`; the rotated dimensions are even and
//! fit the head.
//!
//! Deliberately absent: mixtures of experts, encoders, recurrent blocks, vision towers, attention
//! soft-capping. A file that asks for one of them is refused by the field that asks.

mod family;
mod fields;
mod rope;
pub mod sample;
mod tensors;
#[cfg(test)]
mod tests;

pub use family::Family;
pub use rope::{Rope, RotaryKind};

use crate::gguf::{Gguf, GgufError};

/// A decoder-only transformer, complete enough to run it.
#[derive(Debug, Clone, PartialEq)]
pub struct Architecture {
    /// The family's entry in the table.
    pub family: &'static Family,
    /// Tokens in the vocabulary: rows of the embedding and of the logits.
    pub vocab_len: usize,
    /// Width of the residual stream.
    pub embedding_len: usize,
    /// Context size in tokens the model was trained for.
    pub context_tokens: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; query head `h` reads key head `h / (heads / kv_heads)`.
    pub kv_heads: usize,
    /// Dimensions of one head, the same for queries, keys and values.
    pub head_dims: usize,
    /// Added to the mean square in every root-mean-square norm.
    pub norm_epsilon: f32,
    /// Multiplies the token's embedding before the first layer (Gemma; otherwise 1).
    pub embedding_scale: f32,
    /// Multiplies the dot product of query and key.
    pub attention_scale: f32,
    /// `cap * tanh(logit / cap)` on the logits, where the file asks for it.
    pub logit_cap: Option<f32>,
    /// The gate's activation in every feed-forward block.
    pub activation: Activation,
    /// How an embedding is made from the hidden states.
    pub pooling: Pooling,
    /// Tensor `[embedding_len, vocab_len]` whose rows are the tokens' embeddings.
    pub token_embedding: String,
    /// Weight `[embedding_len]` of the norm before the head.
    pub output_norm: String,
    /// The head; its tensor is the token embedding's where the file ties them.
    pub output: Linear,
    /// The rotary embeddings that the layers point to.
    pub ropes: Vec<Rope>,
    /// The blocks, first to last.
    pub layers: Vec<Layer>,
}

/// One block: `x += post(attention(norm(x)))`, then `x += post(feed_forward(norm(x)))`.
///
/// Norms are root-mean-square norms with the weight tensor named; an absent one is the identity.
#[derive(Debug, Clone, PartialEq)]
pub struct Layer {
    /// Index into [`Architecture::ropes`].
    pub rope: usize,
    /// Positions a token sees, itself included: the position `p` sees `q` where `p - q < window`.
    pub window: Option<usize>,
    /// Before attention, `[embedding_len]`.
    pub attention_norm: String,
    /// `embedding_len` to `heads * head_dims`.
    pub query: Linear,
    /// `embedding_len` to `kv_heads * head_dims`.
    pub key: Linear,
    /// `embedding_len` to `kv_heads * head_dims`.
    pub value: Linear,
    /// On each query head before rotation, `[head_dims]`.
    pub query_norm: Option<String>,
    /// On each key head before rotation, `[head_dims]`.
    pub key_norm: Option<String>,
    /// On the concatenated heads before the output projection, `[heads * head_dims]`.
    pub attention_sub_norm: Option<String>,
    /// `heads * head_dims` to `embedding_len`.
    pub attention_output: Linear,
    /// On attention's result before it is added, `[embedding_len]`.
    pub post_attention_norm: Option<String>,
    /// Before the feed-forward block, `[embedding_len]`.
    pub feed_forward_norm: String,
    /// `embedding_len` to the feed-forward length; goes through the activation.
    pub gate: Linear,
    /// `embedding_len` to the feed-forward length; multiplies the activated gate.
    pub up: Linear,
    /// On the product of gate and up, `[feed-forward length]`.
    pub feed_forward_sub_norm: Option<String>,
    /// The feed-forward length to `embedding_len`.
    pub down: Linear,
    /// On the feed-forward block's result before it is added, `[embedding_len]`.
    pub post_feed_forward_norm: Option<String>,
}

/// `y = scale * (W x) + bias`, with `W` some whole rows of a tensor `[inputs, rows]`.
///
/// Several of these may share a tensor: Phi's fused projections are row ranges of one.
#[derive(Debug, Clone, PartialEq)]
pub struct Linear {
    /// Name of the weight tensor.
    pub tensor: String,
    /// First row of the tensor that belongs to this projection.
    pub first_row: usize,
    /// Rows, that is, the length of `y`.
    pub outputs: usize,
    /// Columns, that is, the length of `x`.
    pub inputs: usize,
    /// Name of the bias tensor; the values `first_row..first_row + outputs` belong to this
    /// projection.
    pub bias: Option<String>,
    /// One factor for the whole product, 1 where the file has no `.scale` tensor beside the weight.
    pub scale: f32,
}

/// The gate's activation function.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// `x * sigmoid(x)`.
    Silu,
    /// The tanh approximation of GELU.
    GeluTanh,
    /// `max(x, 0)` squared.
    ReluSquared,
}

/// How a text's embedding is made from its tokens' hidden states.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Pooling {
    /// The file names none: the engine's choice.
    None,
    /// The mean over all tokens.
    Mean,
    /// The first token's.
    Cls,
    /// The last token's.
    Last,
}

/// Why a file's architecture was refused.
#[derive(Debug, thiserror::Error)]
pub enum ArchitectureError {
    /// The file's metadata has the wrong type.
    #[error(transparent)]
    Metadata(#[from] GgufError),
    /// The family is not in the table.
    #[error("run architecture {found:?}: this build runs {known}")]
    UnknownFamily {
        /// `general.architecture`.
        found: String,
        /// The families that are there.
        known: String,
    },
    /// A required field is not there.
    #[error("find metadata field {field}, which every {family} model has")]
    MissingField {
        /// The metadata key.
        field: String,
        /// The family's name.
        family: &'static str,
    },
    /// A field has a value that cannot be run.
    #[error("use metadata field {field}: found {found}, expected {expected}")]
    Field {
        /// The metadata key.
        field: String,
        /// Its value.
        found: String,
        /// What it would have to be.
        expected: String,
    },
    /// A tensor is not there.
    #[error("find tensor {name} of shape {expected:?}")]
    MissingTensor {
        /// The tensor's name.
        name: String,
        /// Its shape, fastest dimension first.
        expected: Vec<usize>,
    },
    /// A tensor has another shape than the metadata says.
    #[error("use tensor {name}: found shape {found:?}, expected {expected:?} by the metadata")]
    Shape {
        /// The tensor's name.
        name: String,
        /// Its shape in the file, fastest dimension first.
        found: Vec<usize>,
        /// The shape that the metadata implies.
        expected: Vec<usize>,
    },
    /// A tensor that this family's block would not use.
    #[error(
        "use tensor {name}: the {family} block has no place for it, and leaving it out would change the answer"
    )]
    UnusedTensor {
        /// The tensor's name.
        name: String,
        /// The family's name.
        family: &'static str,
    },
    /// A tensor whose values are metadata (factors, scales) cannot be read.
    #[error("read the values of tensor {name}: {reason}")]
    Values {
        /// The tensor's name.
        name: String,
        /// What is wrong with them.
        reason: String,
    },
}

impl Architecture {
    /// Reads the architecture from a file's metadata and checks it against the file's tensors.
    ///
    /// # Errors
    /// [`ArchitectureError`] naming the field or tensor, what was found and what was expected.
    pub fn from_gguf(gguf: &Gguf) -> Result<Self, ArchitectureError> {
        let family = Family::of(gguf)?;
        let dims = fields::Dimensions::read(gguf, family)?;
        let mut tensors = tensors::Claims::new(gguf, family);
        let layers = (0..dims.layers)
            .map(|index| tensors.layer(index, &dims))
            .collect::<Result<Vec<_>, _>>()?;
        // After the layers, whose tensors prove that a head is as long as the metadata says.
        let ropes = rope::read(gguf, family, &dims, &mut tensors)?;
        let token_embedding =
            tensors.required("token_embd.weight", &[dims.embedding_len, dims.vocab_len])?;
        let output_norm = tensors.required("output_norm.weight", &[dims.embedding_len])?;
        let output = tensors.head(&dims)?;
        tensors.all_claimed()?;
        Ok(Self {
            family,
            vocab_len: dims.vocab_len,
            embedding_len: dims.embedding_len,
            context_tokens: dims.context_tokens,
            heads: dims.heads,
            kv_heads: dims.kv_heads,
            head_dims: dims.head_dims,
            norm_epsilon: dims.norm_epsilon,
            embedding_scale: dims.embedding_scale,
            attention_scale: dims.attention_scale,
            logit_cap: dims.logit_cap,
            activation: family.activation,
            pooling: dims.pooling,
            token_embedding,
            output_norm,
            output,
            ropes,
            layers,
        })
    }

    /// Values of one token's keys in one layer, which is also that of its values.
    pub fn kv_len(&self) -> usize {
        self.kv_heads * self.head_dims
    }

    /// The longest feed-forward block's inner length.
    pub fn feed_forward_len_max(&self) -> usize {
        self.layers.iter().map(|l| l.gate.outputs).max().unwrap_or(0)
    }

    /// The matrices of all blocks, in order, and the output's.
    pub(crate) fn linears(&self) -> impl Iterator<Item = &Linear> {
        let layers = self.layers.iter().flat_map(|layer| {
            [
                &layer.query,
                &layer.key,
                &layer.value,
                &layer.attention_output,
                &layer.gate,
                &layer.up,
                &layer.down,
            ]
        });
        layers.chain([&self.output])
    }
}
