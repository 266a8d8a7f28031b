//! The owner's policy as a target: read as it stands, staged under the next version.

use serde_json::{Value, json};

use super::{Published, Repository, RepositoryError, files};
use crate::trust::metadata::Targets;
use crate::trust::policy::POLICY_PATH;
use fulmar_policy::Policy;

impl Repository {
    /// The policy's text, as staged or else published; `None` where there is none yet.
    ///
    /// # Errors
    /// [`RepositoryError::Read`], [`RepositoryError::Target`] when its file is missing.
    pub fn draft_policy(&self) -> Result<Option<Vec<u8>>, RepositoryError> {
        let refuse = |reason: String| RepositoryError::Target { path: POLICY_PATH.into(), reason };
        let role = self.role_for(POLICY_PATH)?;
        let draft = self.draft_targets(&role)?;
        let entry = draft.and_then(|mut targets| targets.targets.remove(POLICY_PATH));
        let Some(entry) = entry else { return Ok(None) };
        let digest = entry.digest().ok_or_else(|| refuse("it has no sha256".to_owned()))?;
        let file = self.files.target(POLICY_PATH, &digest.hex());
        let bytes = files::read_bounded(&file)?
            .ok_or_else(|| refuse(format!("{} is missing", file.display())))?;
        entry.verify(POLICY_PATH, &bytes).map_err(RepositoryError::Verify)?;
        Ok(Some(bytes))
    }

    /// Stages `policy`, the JSON of one, under the version after the published one; `schema` and
    /// `version` in it are set here. Returns the version too.
    ///
    /// # Errors
    /// [`RepositoryError::Policy`] for one that devices would refuse; as
    /// [`Repository::publish_target`].
    pub fn publish_policy(
        &self,
        mut policy: Value,
        role: Option<&str>,
        now_s: i64,
    ) -> Result<(Published, u64), RepositoryError> {
        let version = self.published_policy_version()? + 1;
        policy["schema"] = 1.into();
        policy["version"] = version.into();
        let text = serde_json::to_string_pretty(&policy).map_err(fulmar_policy::PolicyError::from);
        let bytes = (text? + "\n").into_bytes();
        Policy::parse(&bytes)?;
        let custom = json!({ "fulmar": { "kind": "policy", "version": version } });
        let published = self.publish_target(POLICY_PATH, &bytes, Some(custom), role, now_s)?;
        Ok((published, version))
    }

    /// The version that devices may hold already; 0 where none was published.
    fn published_policy_version(&self) -> Result<u64, RepositoryError> {
        let role = self.role_for(POLICY_PATH)?;
        let published = self.files.newest::<Targets>(&role)?;
        let entry = published.as_ref().and_then(|role| role.body.targets.get(POLICY_PATH));
        let custom = entry.and_then(|entry| entry.custom.as_ref());
        Ok(custom.and_then(|c| c["fulmar"]["version"].as_u64()).unwrap_or(0))
    }
}
