//! From trained weights to the file a device runs: convert, quantise, measure.
//!
//! - [`convert`](convert::convert): a Hugging Face folder to GGUF.
//! - [`quantize`](quantize::quantize): GGUF to GGUF with smaller weights.
//! - [`bench`](bench::bench): tokens per second of a GGUF file on this machine.
//!
//! Invariants: the output appears under its name complete and durable, or not at all; tensors are
//! streamed, so memory does not grow with the model; an error names the tensor or the field.
//! What a model loses is measured elsewhere: nothing here judges quality.

pub mod bench;
pub mod convert;
mod output;
pub mod quantize;

pub use fulmar_kernels::formats::TensorType;
pub use output::OutputError;

/// How far a conversion has come, told after every tensor.
#[derive(Debug, Clone, Copy)]
pub struct Progress<'a> {
    /// The tensor just written, under its GGUF name.
    pub tensor: &'a str,
    /// Bytes of tensors written so far.
    pub done_bytes: u64,
    /// Bytes of all tensors of the output.
    pub total_bytes: u64,
}

/// What was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Summary {
    /// Tensors in the output.
    pub tensors: usize,
    /// Bytes of the tensors that were read.
    pub input_bytes: u64,
    /// Bytes of the tensors that were written.
    pub output_bytes: u64,
}
