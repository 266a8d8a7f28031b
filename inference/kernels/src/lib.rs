//! CPU kernels and tensor formats: the only unsafe code.

pub mod formats;
pub mod mapped;
