//! Who asks, and what can be asked for.

use serde::{Deserialize, Serialize};

/// A role: what its holder may do is the policy's business ([`crate::Policy`]).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// An application on the device: asks models.
    App,
    /// Runs devices: installs, activates, rolls out.
    Operator,
    /// Reads what happened; changes nothing.
    Auditor,
    /// All of it, and who may do what.
    Admin,
}

impl Role {
    /// Every role, in the order of the table.
    pub const ALL: [Self; 4] = [Self::App, Self::Operator, Self::Auditor, Self::Admin];

    /// The role's name in tokens, policies and output.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::App => "app",
            Self::Operator => "operator",
            Self::Auditor => "auditor",
            Self::Admin => "admin",
        }
    }
}

impl std::fmt::Display for Role {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A role's name that is none.
#[derive(Debug, thiserror::Error)]
#[error("read role {0:?}: expected app, operator, auditor or admin")]
pub struct UnknownRole(String);

impl std::str::FromStr for Role {
    type Err = UnknownRole;

    fn from_str(text: &str) -> Result<Self, UnknownRole> {
        Self::ALL
            .into_iter()
            .find(|role| role.as_str() == text)
            .ok_or_else(|| UnknownRole(text.to_owned()))
    }
}

/// How a principal proved who it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Via {
    /// A token with this id.
    Token {
        /// The token's `jti`.
        id: String,
    },
    /// The peer of a Unix socket, by its user id as the kernel tells it.
    UnixUid(u32),
    /// The owner of the state directory, at the command line.
    Local,
    /// A browser session at the control plane.
    Session,
    /// A device, by its client certificate.
    Device,
}

/// Somebody who asks. There is no anonymous one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Principal {
    /// Who: a token's subject, `uid:1000`, `local`, a user's or a device's name.
    pub subject: String,
    /// The roles held.
    pub roles: Vec<Role>,
    /// How that is known.
    pub via: Via,
}

impl Principal {
    /// Whoever can open the state directory owns the device.
    #[must_use]
    pub fn local() -> Self {
        Self { subject: "local".into(), roles: vec![Role::Admin], via: Via::Local }
    }

    /// What stands in the audit log: subject and the way it was proven.
    #[must_use]
    pub fn audit_name(&self) -> String {
        match &self.via {
            Via::Token { id } => format!("{} (token {id})", self.subject),
            Via::UnixUid(_) | Via::Local => self.subject.clone(),
            Via::Session => format!("{} (session)", self.subject),
            Via::Device => format!("{} (device)", self.subject),
        }
    }
}

macro_rules! actions {
    ($($(#[doc = $doc:literal])+ $variant:ident = $name:literal,)+) => {
        /// What can be asked for. The name is what policies, audit and errors say.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub enum Action {
            $($(#[doc = $doc])+ #[serde(rename = $name)] $variant,)+
        }

        impl Action {
            /// Every action, in the order of the table.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// The action's name.
            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $name,)+ }
            }
        }
    };
}

actions! {
    /// See which models are there. Resource: a model's name.
    ModelList = "model.list",
    /// See one model's manifest and state.
    ModelShow = "model.show",
    /// Ask a model.
    ModelRun = "model.run",
    /// Bring a model onto the device.
    ModelInstall = "model.install",
    /// Take a model off the device.
    ModelRemove = "model.remove",
    /// Choose which installed model serves, or go back to the one before.
    ModelActivate = "model.activate",
    /// Make an app token.
    TokenMint = "token.mint",
    /// See which tokens are there; never the tokens themselves.
    TokenList = "token.list",
    /// End a token before its time.
    TokenRevoke = "token.revoke",
    /// Read and verify the audit log.
    AuditRead = "audit.read",
    /// Read the device's state.
    StatusRead = "status.read",
    /// Read metrics.
    MetricsRead = "metrics.read",
    /// Meet the control plane now.
    SyncNow = "sync.now",
    /// Read the configuration.
    ConfigRead = "config.read",
    /// See the fleet: devices, releases, deployments.
    FleetRead = "fleet.read",
    /// Let a device join.
    DeviceEnroll = "device.enroll",
    /// Take a device out of the fleet.
    DeviceRemove = "device.remove",
    /// Say which groups devices belong to: what was deployed to a group goes to those who join it.
    DeviceGroup = "device.group",
    /// Make a join token.
    JoinTokenCreate = "join_token.create",
    /// Hand in a signed release.
    ReleasePublish = "release.publish",
    /// Say which devices should run a release.
    DeploymentCreate = "deployment.create",
    /// Stop a deployment.
    DeploymentStop = "deployment.stop",
    /// Read what devices reported.
    ReportRead = "report.read",
}

impl std::fmt::Display for Action {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}
