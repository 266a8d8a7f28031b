//! May this happen, within which limits, and what did happen.
//!
//! - [`Policy::decide`] turns a [`Principal`], an [`Action`] and a resource into a [`Permit`] or a
//!   [`Denied`]. Nothing else makes a permit, so a function that takes one cannot be reached
//!   without a decision.
//! - [`token`] mints and checks the tokens of apps: JWT, EdDSA only, bound to one device.
//! - [`audit`] is the log: append-only, in the same transaction as what it records, a Merkle tree
//!   whose head the device signs.
//!
//! Invariants: no principal without a proof of who it is; an unknown role, action or field in a
//! policy is an error; the roles' table is tested as a whole (`tests/roles.txt`).
//!
//! Deliberately absent: a policy language. Roles, actions and scopes are enough, and can be read.

pub mod audit;
mod bounds;
pub mod budget;
mod jwt;
mod principal;
mod revoked;
mod rules;
pub mod token;

pub use principal::{Action, Principal, Role, UnknownRole, Via};
pub use revoked::{Revoked, RevokedError};
pub use rules::{
    Denied, Limits, LogContent, Permit, Policy, PolicyError, RoleRules, RunningAnswers, VERSION_MAX,
};
