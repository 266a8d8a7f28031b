//! What a signed policy can not change, whoever signed it.
//!
//! A role that a policy does not name keeps its built-in row. A role that it names has that row
//! instead, between two bounds:
//!
//! - a *ceiling*: an app never acts on others, an operator never mints tokens (it could make itself
//!   anything), an auditor never changes anything. A policy that says otherwise is refused whole;
//! - a *floor*: an admin can always look, take a corrected policy in, and end a token. A mistake in
//!   a policy must not lock out whoever is to mend it.
//!
//! Signatures, the rule of two repositories, the audit log and the revocations themselves are no
//! actions: no policy turns them off.

use crate::{Action, Role};

/// What an admin keeps under every policy.
pub(crate) const ADMIN_FLOOR: [Action; 8] = [
    Action::ModelList,
    Action::TokenList,
    Action::TokenRevoke,
    Action::AuditRead,
    Action::StatusRead,
    Action::MetricsRead,
    Action::SyncNow,
    Action::ConfigRead,
];

/// Whether a signed policy may give this action to this role.
pub(crate) fn may_be_given(role: Role, action: Action) -> bool {
    use Action::*;
    match role {
        Role::App => matches!(action, ModelList | ModelShow | ModelRun | StatusRead | MetricsRead),
        Role::Auditor => matches!(
            action,
            ModelList
                | ModelShow
                | TokenList
                | AuditRead
                | StatusRead
                | MetricsRead
                | ConfigRead
                | FleetRead
                | ReportRead
        ),
        Role::Operator => action != TokenMint,
        Role::Admin => true,
    }
}
