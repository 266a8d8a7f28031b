//! The engine: GGUF, tokenizer, chat template, architectures, backends, scheduler, sampler,
//! constrained output.

pub mod backend;
