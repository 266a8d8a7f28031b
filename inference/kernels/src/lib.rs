//! CPU kernels and tensor formats: the only unsafe code.
//!
//! A model's matrices are regrouped for the processor ([`matrix`]), activations are prepared once
//! per step and part ([`activations`]), and a [`team::Team`] of threads multiplies and attends
//! ([`attention`]) over a paged cache of keys and values ([`cache`]). The same sources are compiled for every
//! instruction set and chosen at start ([`cpu`]).
//!
//! Deliberately absent: anything that knows a model's architecture.

pub mod activations;
pub mod attention;
pub mod cache;
pub mod cpu;
mod disjoint;
mod dot;
mod float;
pub mod formats;
mod layout;
pub mod mapped;
pub mod matrix;
pub mod memory;
pub mod ops;
mod pack;
mod panel;
mod simd;
pub mod team;

pub use pack::LAYOUT_VERSION;
