//! CPU kernels and tensor formats: the only unsafe code.
