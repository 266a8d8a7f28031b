//! The engine: GGUF, tokenizer, chat template, architectures, backends, scheduler, sampler,
//! constrained output.

pub mod backend;
pub mod chat;
pub mod constraint;
pub mod engine;
pub mod gguf;
pub mod governor;
mod held;
mod kv;
pub mod model;
mod sampler;
mod speculate;
pub mod tokenizer;
