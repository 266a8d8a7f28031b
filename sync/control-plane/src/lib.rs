//! The control plane: the fleet's end of the link.
//!
//! It knows devices, join tokens, releases, deployments and reports; it signs, with the director's
//! key, what each device should run; and it shows all that to operators, as a JSON API and as a
//! console in the browser. It cannot make a model: what devices accept must be signed by the
//! registry's owner too, and that key is not here.
//!
//! Two ports. Devices come over TLS with their own certificates. Operators come over plain HTTP on
//! loopback, or over TLS.
//!
//! Invariants:
//! - Every operator action is decided by `fulmar_policy` and leaves an audit entry in the
//!   transaction that does it.
//! - Nothing is acknowledged to a device before it is durable.
//! - Secrets (passwords, sessions, join tokens) are stored as hashes.
//! - Registry metadata is replaced only by metadata that the trust client accepted, all files at
//!   once.
//!
//! Deliberately absent: the owner's registry keys; inline scripts and styles; a message broker.

mod act;
mod app;
mod auth;
mod blob;
mod body;
mod ca;
mod carry;
pub mod cli;
mod config;
mod console;
mod deploy;
mod device;
mod director;
mod director_key;
mod failure;
mod files;
mod fleet;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod gc;
mod groups;
mod guard;
mod hand_in;
mod init;
mod join;
mod listen;
mod mirror;
mod number;
mod operator;
mod password;
mod reports;
mod rollout;
mod schema;
mod serve;
mod session;
mod systemd;
mod throttle;
mod tls;
mod witness;

pub use ca::CaError;
pub use config::{Config, ConfigError, ConsolePort, ConsoleTls, DevicePort, Limits};
pub use director::DirectorError;
pub use director_key::{RotateError, Rotated, rotate_director_key};
pub use files::FileError;
pub use init::{InitError, InitOptions, InitReport, init};
pub use password::RandomError;
pub use serve::{Running, ServeError, serve};
pub use tls::TlsError;

/// The clock, seconds since 1970.
pub(crate) fn now_s() -> i64 {
    jiff::Timestamp::now().as_second()
}
