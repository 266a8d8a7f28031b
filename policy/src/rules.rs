//! The policy: which role may do what, to which models, within which limits.
//!
//! The built-in policy holds until a signed one arrives. A signed policy is a target of the
//! registry repository, `policy/fleet.json`; it is read here as bytes and evaluated offline. What
//! it cannot change stands in [`crate::bounds`].

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::bounds::{ADMIN_FLOOR, may_be_given};
use crate::revoked::{Revoked, RevokedError};
use crate::{Action, Principal, Role};

/// Highest version of a policy: readers of JSON and SQLite end there.
pub const VERSION_MAX: u64 = i64::MAX as u64;
const YEAR_S: u64 = 365 * 86_400;

/// What a permitted request may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// Tokens one answer may have at most.
    pub max_tokens: u32,
    /// Requests of one principal in flight at most.
    pub requests_in_flight_max: u32,
    /// Prompt and answer tokens of one principal per minute at most.
    pub tokens_per_minute_max: u64,
    /// 0 is served last, 9 first.
    pub priority: u8,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_tokens: 4096,
            requests_in_flight_max: 16,
            tokens_per_minute_max: 1_000_000,
            priority: 5,
        }
    }
}

impl Limits {
    /// The wider of both in every field: two roles give what either gives.
    fn widen(self, other: Self) -> Self {
        Self {
            max_tokens: self.max_tokens.max(other.max_tokens),
            requests_in_flight_max: self.requests_in_flight_max.max(other.requests_in_flight_max),
            tokens_per_minute_max: self.tokens_per_minute_max.max(other.tokens_per_minute_max),
            priority: self.priority.max(other.priority),
        }
    }
}

/// Whether prompts and answers themselves stand in the audit log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogContent {
    /// Digests and counts only.
    #[default]
    Never,
    /// The text too.
    Full,
}

/// What one role may do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RoleRules {
    /// Actions allowed.
    pub actions: Vec<Action>,
    /// Models they may be done to: names, where a trailing `*` stands for any rest.
    #[serde(default = "all_models")]
    pub models: Vec<String>,
    /// Limits of what is allowed.
    #[serde(default)]
    pub limits: Limits,
}

fn all_models() -> Vec<String> {
    vec!["*".into()]
}

/// What becomes of answers under way when their model may not run any more: it was revoked, the
/// device was, or it has been offline for too long. No new ones begin in any case.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RunningAnswers {
    /// They end at once.
    #[default]
    Stop,
    /// They may end by themselves.
    Finish,
}

/// Which roles may do what. Made by [`Policy::builtin`] or read by [`Policy::parse`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Policy {
    schema: u32,
    /// Rises with every change; stands in every permit.
    version: u64,
    /// As written; a role that is not named keeps its built-in row.
    #[serde(default)]
    roles: BTreeMap<Role, RoleRules>,
    /// What holds: with the built-in rows of roles that are not named, and the floor.
    #[serde(skip)]
    in_force: BTreeMap<Role, RoleRules>,
    /// Unix user ids and the role they have on the local socket.
    #[serde(default = "default_unix_users")]
    unix_users: BTreeMap<u32, Role>,
    #[serde(default)]
    log_content: LogContent,
    /// Longest life of an app token, in seconds.
    #[serde(default = "default_token_life")]
    token_life_s_max: u64,
    /// How long a device may go on running its models after the last signed word from its fleet,
    /// in seconds; absent: for ever.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    max_offline_s: Option<u64>,
    #[serde(default)]
    running_answers: RunningAnswers,
    #[serde(default)]
    revoked: Revoked,
}

fn default_unix_users() -> BTreeMap<u32, Role> {
    BTreeMap::from([(0, Role::Admin)])
}

fn default_token_life() -> u64 {
    90 * 24 * 3600
}

/// Why a policy was not taken.
#[derive(Debug, thiserror::Error)]
pub enum PolicyError {
    /// Not the JSON of a policy.
    #[error("read the policy: {0}")]
    Parse(#[from] serde_json::Error),
    /// Written for another program.
    #[error("read the policy: schema {found}, this program knows 1: install the newer fulmar")]
    Schema {
        /// The schema found.
        found: u32,
    },
    /// More than any policy may give.
    #[error(
        "read the policy: roles.{role} names {action}, which no policy may give to that role; take \
         it out, or give it to another role"
    )]
    Never {
        /// The role.
        role: Role,
        /// The action.
        action: Action,
    },
    /// A revocation that is none.
    #[error("read the policy: {0}")]
    Revoked(#[from] RevokedError),
    /// A limit out of range.
    #[error("read the policy: {field} is {found}, expected {expected}")]
    Range {
        /// The field.
        field: &'static str,
        /// Its value.
        found: u64,
        /// What it may be.
        expected: &'static str,
    },
}

/// A refusal, in words for people; programs match on it being a 403.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{subject} may not do {action}{}: {reason} (policy version {policy_version}); ask the device's \
     owner for a token with a role that may",
    to(resource)
)]
pub struct Denied {
    /// Who asked.
    pub subject: String,
    /// What for.
    pub action: Action,
    /// To what.
    pub resource: String,
    /// Why not.
    pub reason: String,
    /// The policy that said so.
    pub policy_version: u64,
}

/// To what, where an action is done to something: `-` stands for nothing.
fn to(resource: &str) -> String {
    if resource == "-" { String::new() } else { format!(" to {resource}") }
}

/// A decision that allows. Only [`Policy::decide`] makes one.
#[derive(Debug, Clone)]
pub struct Permit {
    principal: Principal,
    action: Action,
    resource: String,
    limits: Limits,
    log_content: LogContent,
    policy_version: u64,
}

impl Permit {
    /// Who may.
    #[must_use]
    pub fn principal(&self) -> &Principal {
        &self.principal
    }

    /// What they may.
    #[must_use]
    pub fn action(&self) -> Action {
        self.action
    }

    /// To what.
    #[must_use]
    pub fn resource(&self) -> &str {
        &self.resource
    }

    /// Within which limits.
    #[must_use]
    pub fn limits(&self) -> Limits {
        self.limits
    }

    /// Whether the text of prompt and answer may stand in the audit log.
    #[must_use]
    pub fn log_content(&self) -> LogContent {
        self.log_content
    }

    /// The policy that allowed it.
    #[must_use]
    pub fn policy_version(&self) -> u64 {
        self.policy_version
    }
}

impl Policy {
    /// What holds before the owner signed anything else.
    #[must_use]
    pub fn builtin() -> Self {
        use Action::*;
        let rules = |actions: &[Action]| RoleRules {
            actions: actions.to_vec(),
            models: all_models(),
            limits: Limits::default(),
        };
        let app = [ModelList, ModelShow, ModelRun];
        let operator = [
            ModelList,
            ModelShow,
            ModelRun,
            ModelInstall,
            ModelRemove,
            ModelActivate,
            TokenList,
            StatusRead,
            MetricsRead,
            SyncNow,
            ConfigRead,
            FleetRead,
            DeviceEnroll,
            DeviceGroup,
            JoinTokenCreate,
            ReleasePublish,
            DeploymentCreate,
            DeploymentStop,
            ReportRead,
        ];
        let auditor = [
            ModelList,
            ModelShow,
            TokenList,
            AuditRead,
            StatusRead,
            MetricsRead,
            ConfigRead,
            FleetRead,
            ReportRead,
        ];
        let roles = BTreeMap::from([
            (Role::App, rules(&app)),
            (Role::Operator, rules(&operator)),
            (Role::Auditor, rules(&auditor)),
            (Role::Admin, rules(Action::ALL)),
        ]);
        Self {
            schema: 1,
            version: 0,
            in_force: roles.clone(),
            roles,
            unix_users: default_unix_users(),
            log_content: LogContent::Never,
            token_life_s_max: default_token_life(),
            max_offline_s: None,
            running_answers: RunningAnswers::Stop,
            revoked: Revoked::default(),
        }
    }

    /// Reads a policy's JSON. Call it only with bytes that the trust client verified.
    ///
    /// # Errors
    /// [`PolicyError`] names the field.
    pub fn parse(bytes: &[u8]) -> Result<Self, PolicyError> {
        let mut policy: Self = serde_json::from_slice(bytes)?;
        if policy.schema != 1 {
            return Err(PolicyError::Schema { found: policy.schema });
        }
        policy.check_ranges()?;
        policy.revoked.check()?;
        for (role, rules) in &policy.roles {
            if let Some(action) = rules.actions.iter().find(|a| !may_be_given(*role, **a)) {
                return Err(PolicyError::Never { role: *role, action: *action });
            }
        }
        policy.in_force = Self::builtin().roles;
        policy.in_force.extend(policy.roles.clone());
        if let Some(admin) = policy.in_force.get_mut(&Role::Admin) {
            let missing = ADMIN_FLOOR.into_iter().filter(|a| !admin.actions.contains(a));
            admin.actions.extend(missing.collect::<Vec<_>>());
        }
        Ok(policy)
    }

    fn check_ranges(&self) -> Result<(), PolicyError> {
        let range = |field, found, min, max, expected| match (min..=max).contains(&found) {
            true => Ok(()),
            false => Err(PolicyError::Range { field, found, expected }),
        };
        range("version", self.version, 1, VERSION_MAX, "1 to 2^63 - 1")?;
        let ten_years = "60 (a minute) to 315360000 (ten years)";
        range("token_life_s_max", self.token_life_s_max, 60, 10 * YEAR_S, ten_years)?;
        if let Some(found) = self.max_offline_s {
            range("max_offline_s", found, 60, 10 * YEAR_S, ten_years)?;
        }
        self.roles.values().try_for_each(|rules| {
            range("limits.priority", rules.limits.priority.into(), 0, 9, "0 to 9")
        })
    }

    /// The policy's version; 0 is the built-in one.
    #[must_use]
    pub fn version(&self) -> u64 {
        self.version
    }

    /// Longest life of an app token, in seconds.
    #[must_use]
    pub fn token_life_s_max(&self) -> u64 {
        self.token_life_s_max
    }

    /// How long an active model may run after the last signed word from the owner, in seconds.
    #[must_use]
    pub fn max_offline_s(&self) -> Option<u64> {
        self.max_offline_s
    }

    /// What becomes of answers under way when their model may not run any more.
    #[must_use]
    pub fn running_answers(&self) -> RunningAnswers {
        self.running_answers
    }

    /// What the owner took back.
    #[must_use]
    pub fn revoked(&self) -> &Revoked {
        &self.revoked
    }

    /// The rows in force, for people: role, actions, models, limits.
    pub fn rows(&self) -> impl Iterator<Item = (Role, &RoleRules)> {
        self.in_force.iter().map(|(role, rules)| (*role, rules))
    }

    /// The role that a Unix user has on the local socket, if any.
    #[must_use]
    pub fn unix_role(&self, uid: u32) -> Option<Role> {
        self.unix_users.get(&uid).copied()
    }

    /// May `principal` do `action` to `resource` (a model's name, a device's id, or `-`)?
    ///
    /// # Errors
    /// [`Denied`], with the reason.
    pub fn decide(
        &self,
        principal: &Principal,
        action: Action,
        resource: &str,
    ) -> Result<Permit, Denied> {
        let denied = |reason: String| Denied {
            subject: principal.subject.clone(),
            action,
            resource: resource.to_owned(),
            reason,
            policy_version: self.version,
        };
        let allowing: Vec<&RoleRules> = principal
            .roles
            .iter()
            .filter_map(|role| self.in_force.get(role))
            .filter(|rules| rules.actions.contains(&action))
            .collect();
        if allowing.is_empty() {
            return Err(denied(format!("none of its roles ({}) allows it", names(principal))));
        }
        let limits = allowing
            .iter()
            .filter(|rules| !is_about_models(action) || covers(&rules.models, resource))
            .map(|rules| rules.limits)
            .reduce(Limits::widen)
            .ok_or_else(|| {
                denied(format!("its roles ({}) do not cover this model", names(principal)))
            })?;
        Ok(Permit {
            principal: principal.clone(),
            action,
            resource: resource.to_owned(),
            limits,
            log_content: self.log_content,
            policy_version: self.version,
        })
    }
}

fn names(principal: &Principal) -> String {
    if principal.roles.is_empty() {
        return "none".into();
    }
    principal.roles.iter().map(|role| role.as_str()).collect::<Vec<_>>().join(", ")
}

fn is_about_models(action: Action) -> bool {
    matches!(
        action,
        Action::ModelShow
            | Action::ModelRun
            | Action::ModelInstall
            | Action::ModelRemove
            | Action::ModelActivate
    )
}

/// A rule for a name is for all its releases: one that is asked for by digest (`NAME@sha256:…`) too.
fn covers(patterns: &[String], model: &str) -> bool {
    let model = model.split_once("@sha256:").map_or(model, |(name, _)| name);
    patterns.iter().any(|pattern| match pattern.strip_suffix('*') {
        Some(prefix) => model.starts_with(prefix),
        None => model == pattern,
    })
}

#[cfg(test)]
mod tests;
