//! Convert, quantise, benchmark.
