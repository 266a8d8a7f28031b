//! The policy: which role may do what, to which models, within which limits.
//!
//! The built-in policy holds until a signed one arrives. A signed policy is a target of the
//! registry repository, `policy.json`; it is read here as bytes and evaluated offline.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{Action, Principal, Role};

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

/// Which roles may do what. Made by [`Policy::builtin`] or read by [`Policy::parse`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Policy {
    schema: u32,
    /// Rises with every change; stands in every permit.
    version: u64,
    roles: BTreeMap<Role, RoleRules>,
    /// Unix user ids and the role they have on the local socket.
    #[serde(default)]
    unix_users: BTreeMap<u32, Role>,
    #[serde(default)]
    log_content: LogContent,
    /// Longest life of an app token, in seconds.
    #[serde(default = "default_token_life")]
    token_life_s_max: u64,
    /// How long a device may go on running its models after the last signed word from its owner,
    /// in seconds; absent: for ever.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    max_offline_s: Option<u64>,
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
    "{subject} may not do {action} to {resource}: {reason} (policy version {policy_version}); \
     ask the device's owner for a token with a role that may"
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
        Self {
            schema: 1,
            version: 0,
            roles: BTreeMap::from([
                (Role::App, rules(&app)),
                (Role::Operator, rules(&operator)),
                (Role::Auditor, rules(&auditor)),
                (Role::Admin, rules(Action::ALL)),
            ]),
            unix_users: BTreeMap::from([(0, Role::Admin)]),
            log_content: LogContent::Never,
            token_life_s_max: default_token_life(),
            max_offline_s: None,
        }
    }

    /// Reads a policy's JSON. Call it only with bytes that the trust client verified.
    ///
    /// # Errors
    /// [`PolicyError`] names the field.
    pub fn parse(bytes: &[u8]) -> Result<Self, PolicyError> {
        let policy: Self = serde_json::from_slice(bytes)?;
        if policy.schema != 1 {
            return Err(PolicyError::Schema { found: policy.schema });
        }
        for rules in policy.roles.values() {
            if rules.limits.priority > 9 {
                return Err(PolicyError::Range {
                    field: "limits.priority",
                    found: rules.limits.priority.into(),
                    expected: "0 to 9",
                });
            }
        }
        Ok(policy)
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
            .filter_map(|role| self.roles.get(role))
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

fn covers(patterns: &[String], model: &str) -> bool {
    patterns.iter().any(|pattern| match pattern.strip_suffix('*') {
        Some(prefix) => model.starts_with(prefix),
        None => model == pattern,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Via;

    fn principal(roles: &[Role]) -> Principal {
        Principal {
            subject: "pump-app".into(),
            roles: roles.to_vec(),
            via: Via::Token { id: "t1".into() },
        }
    }

    /// The whole table of who may do what, as one file that a change must change too.
    #[test]
    fn the_roles_table_is_the_golden_one() {
        let policy = Policy::builtin();
        let mut table = format!("{:<20}", "action");
        for role in Role::ALL {
            table += &format!("{:<10}", role.as_str());
        }
        table = table.trim_end().to_owned() + "\n";
        for action in Action::ALL {
            let mut line = format!("{:<20}", action.as_str());
            for role in Role::ALL {
                let allowed = policy.decide(&principal(&[role]), *action, "a/b:1").is_ok();
                line += &format!("{:<10}", if allowed { "yes" } else { "-" });
            }
            table += line.trim_end();
            table += "\n";
        }
        assert_eq!(table, include_str!("../tests/roles.txt"), "\n{table}");
    }

    #[test]
    fn nobody_without_a_role_may_do_anything() {
        for action in Action::ALL {
            assert!(Policy::builtin().decide(&principal(&[]), *action, "-").is_err());
        }
    }

    fn scoped(models: &str) -> Policy {
        let text = format!(
            r#"{{"schema":1,"version":7,"roles":{{"app":{{"actions":["model.run"],
                "models":{models},"limits":{{"max_tokens":100,"requests_in_flight_max":1,
                "tokens_per_minute_max":1000,"priority":2}}}}}}}}"#
        );
        Policy::parse(text.as_bytes()).unwrap()
    }

    #[test]
    fn a_scope_lets_through_its_models_and_no_other() {
        let policy = scoped(r#"["plant/*","office/chat:1"]"#);
        let app = principal(&[Role::App]);
        let may = |model| policy.decide(&app, Action::ModelRun, model).is_ok();
        assert!(may("plant/pumps:3"));
        assert!(may("office/chat:1"));
        assert!(!may("office/chat:10"));
        assert!(!may("plants/pumps:3"));
        let permit = policy.decide(&app, Action::ModelRun, "plant/pumps:3").unwrap();
        assert_eq!((permit.limits().max_tokens, permit.policy_version()), (100, 7));
    }

    #[test]
    fn two_roles_give_the_wider_limit_of_those_that_allow() {
        let text = r#"{"schema":1,"version":1,"roles":{
            "app":{"actions":["model.run"],"limits":{"max_tokens":10,"requests_in_flight_max":9,
                "tokens_per_minute_max":5,"priority":1}},
            "operator":{"actions":["model.run"],"models":["x/*"],"limits":{"max_tokens":99,
                "requests_in_flight_max":1,"tokens_per_minute_max":50,"priority":0}}}}"#;
        let policy = Policy::parse(text.as_bytes()).unwrap();
        let both = principal(&[Role::App, Role::Operator]);
        let inside = policy.decide(&both, Action::ModelRun, "x/y:1").unwrap().limits();
        assert_eq!((inside.max_tokens, inside.requests_in_flight_max), (99, 9));
        let outside = policy.decide(&both, Action::ModelRun, "z/y:1").unwrap().limits();
        assert_eq!(outside.max_tokens, 10);
    }

    #[test]
    fn an_unknown_field_role_or_action_in_a_policy_is_refused() {
        for text in [
            r#"{"schema":1,"version":1,"roles":{},"surprise":1}"#,
            r#"{"schema":1,"version":1,"roles":{"root":{"actions":[]}}}"#,
            r#"{"schema":1,"version":1,"roles":{"app":{"actions":["model.fly"]}}}"#,
            r#"{"schema":2,"version":1,"roles":{}}"#,
            r#"{"schema":1,"version":1,"roles":{"app":{"actions":[],"limits":{"max_tokens":1,
                "requests_in_flight_max":1,"tokens_per_minute_max":1,"priority":10}}}}"#,
        ] {
            assert!(Policy::parse(text.as_bytes()).is_err(), "{text}");
        }
    }

    #[test]
    fn a_refusal_says_who_what_and_why() {
        let denied = Policy::builtin()
            .decide(&principal(&[Role::App]), Action::TokenMint, "-")
            .unwrap_err()
            .to_string();
        assert!(denied.contains("pump-app may not do token.mint"), "{denied}");
        assert!(denied.contains("(app)"), "{denied}");
    }
}
