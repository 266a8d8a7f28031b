//! The signed model registry.
