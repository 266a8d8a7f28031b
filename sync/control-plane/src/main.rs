//! The fulmar control plane.

fn main() {}
