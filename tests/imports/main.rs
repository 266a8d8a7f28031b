//! Models from elsewhere, with servers of our own that other people's clients accept too.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod checkpoint;
mod downloads;
mod hub;
mod keyless;
mod oci;
mod referrers;
mod servers;
mod signing;
