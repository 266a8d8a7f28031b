//! Deployments and releases as operators see them.

use rusqlite::{Connection, OptionalExtension as _, Row};
use serde::Serialize;

use crate::failure::Failure;
use crate::groups;
use crate::number::from_sql;

/// A deployment with its devices counted by state.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct DeploymentRow {
    /// Its number.
    pub(crate) id: i64,
    /// The model's name.
    pub(crate) model: String,
    /// The manifest's digest.
    pub(crate) digest: String,
    /// The release's number.
    pub(crate) release: u64,
    /// `active` or `installed`.
    pub(crate) use_as: &'static str,
    /// `all`, `groups` or `devices`.
    pub(crate) scope: String,
    /// The groups it was made for.
    pub(crate) groups: Vec<String>,
    /// When it was made.
    pub(crate) created_s: i64,
    /// By whom.
    pub(crate) created_by: String,
    /// When it was stopped.
    pub(crate) stopped_s: Option<i64>,
    /// By whom.
    pub(crate) stopped_by: Option<String>,
    /// Devices it was made for.
    pub(crate) devices: u64,
    /// Devices that got there.
    pub(crate) done: u64,
    /// Devices that say that it failed.
    pub(crate) failed: u64,
    /// Devices that something else ended it for.
    pub(crate) ended: u64,
}

impl DeploymentRow {
    /// `stopped`, `done`, `failing` or `running`.
    pub(crate) fn state(&self) -> &'static str {
        if self.stopped_s.is_some() {
            "stopped"
        } else if self.devices > 0 && self.done + self.ended >= self.devices {
            "done"
        } else if self.failed > 0 {
            "failing"
        } else {
            "running"
        }
    }

    /// Whether there is something to stop.
    pub(crate) fn can_stop(&self) -> bool {
        self.stopped_s.is_none()
            && (self.scope != "devices" || self.done + self.ended < self.devices)
    }
}

/// One device in a deployment.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct DeploymentDevice {
    /// The device's id.
    pub(crate) device_id: String,
    /// Its name.
    pub(crate) name: String,
    /// `waiting`, `seen`, `downloading`, `installed`, `active`, `failed`, `stopped`, `superseded`
    /// or `removed`.
    pub(crate) state: String,
    /// Bytes that it has.
    pub(crate) bytes_done: u64,
    /// Of how many.
    pub(crate) bytes_total: u64,
    /// What went wrong.
    pub(crate) reason: Option<String>,
    /// When it got there.
    pub(crate) done_s: Option<i64>,
}

/// A release.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct ReleaseRow {
    /// The model's name.
    pub(crate) model: String,
    /// The manifest's digest.
    pub(crate) digest: String,
    /// The release's number.
    pub(crate) release: u64,
    /// When it was handed in.
    pub(crate) published_s: i64,
    /// By whom.
    pub(crate) published_by: String,
    /// When the registry stopped to name it.
    pub(crate) withdrawn_s: Option<i64>,
    /// Devices that say they serve it.
    pub(crate) devices_active: u64,
    /// The manifest as it was signed.
    pub(crate) manifest: serde_json::Value,
}

const DEPLOYMENTS: &str = "SELECT d.id, d.model, d.digest, d.number, d.active, d.scope,
        d.created_s, d.created_by, d.stopped_s, d.stopped_by,
        count(x.device_id), count(x.done_s),
        count(CASE WHEN x.done_s IS NULL AND x.ended IS NULL AND m.state = 'failed' THEN 1 END),
        count(CASE WHEN x.done_s IS NULL AND x.ended IS NOT NULL THEN 1 END),
        (SELECT group_concat(g.name, ' ') FROM deployment_group g WHERE g.deployment_id = d.id)
     FROM deployment d
     LEFT JOIN deployment_device x ON x.deployment_id = d.id
     LEFT JOIN device_model m
        ON m.device_id = x.device_id AND m.name = d.model AND m.digest = d.digest";

/// The newest deployments; with `model`, of that one.
pub(crate) fn deployments(
    connection: &Connection,
    len_max: u32,
) -> Result<Vec<DeploymentRow>, Failure> {
    let mut statement = connection
        .prepare_cached(&format!("{DEPLOYMENTS} GROUP BY d.id ORDER BY d.id DESC LIMIT ?1"))?;
    Ok(statement.query_map([len_max], read_deployment)?.collect::<Result<_, _>>()?)
}

/// One deployment.
pub(crate) fn deployment(
    connection: &Connection,
    id: i64,
) -> Result<Option<DeploymentRow>, Failure> {
    Ok(connection
        .prepare_cached(&format!("{DEPLOYMENTS} WHERE d.id = ?1 GROUP BY d.id"))?
        .query_row([id], read_deployment)
        .optional()?)
}

fn read_deployment(row: &Row<'_>) -> rusqlite::Result<DeploymentRow> {
    let groups = groups::names(row.get::<_, Option<String>>(14)?.as_deref());
    Ok(DeploymentRow {
        id: row.get(0)?,
        model: row.get(1)?,
        digest: row.get(2)?,
        release: from_sql(row.get(3)?),
        use_as: if row.get(4)? { "active" } else { "installed" },
        scope: if groups.is_empty() { row.get(5)? } else { "groups".to_owned() },
        groups,
        created_s: row.get(6)?,
        created_by: row.get(7)?,
        stopped_s: row.get(8)?,
        stopped_by: row.get(9)?,
        devices: from_sql(row.get(10)?),
        done: from_sql(row.get(11)?),
        failed: from_sql(row.get(12)?),
        ended: from_sql(row.get(13)?),
    })
}

/// The devices of a deployment, those first that need looking at.
pub(crate) fn deployment_devices(
    connection: &Connection,
    id: i64,
    len_max: u32,
) -> Result<Vec<DeploymentDevice>, Failure> {
    let mut statement = connection.prepare_cached(
        "SELECT x.device_id, v.name,
            CASE WHEN x.done_s IS NOT NULL AND d.active THEN 'active'
                 WHEN x.done_s IS NOT NULL THEN 'installed'
                 WHEN x.ended IS NOT NULL THEN x.ended
                 WHEN v.generation_seen < x.generation THEN 'waiting'
                 WHEN m.state IS NOT NULL THEN m.state
                 ELSE 'seen' END AS state,
            coalesce(m.bytes_done, 0), coalesce(m.bytes_total, 0), m.reason, x.done_s
         FROM deployment_device x
         JOIN deployment d ON d.id = x.deployment_id
         JOIN device v ON v.id = x.device_id
         LEFT JOIN device_model m
            ON m.device_id = x.device_id AND m.name = d.model AND m.digest = d.digest
         WHERE x.deployment_id = ?1
         ORDER BY state <> 'failed', x.done_s IS NOT NULL, v.name, x.device_id LIMIT ?2",
    )?;
    let rows = statement.query_map((id, len_max), |row| {
        Ok(DeploymentDevice {
            device_id: row.get(0)?,
            name: row.get(1)?,
            state: row.get(2)?,
            bytes_done: from_sql(row.get(3)?),
            bytes_total: from_sql(row.get(4)?),
            reason: row.get(5)?,
            done_s: row.get(6)?,
        })
    })?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// Releases, those that the registry names now first; with `model`, of that one.
pub(crate) fn releases(
    connection: &Connection,
    model: Option<&str>,
    len_max: u32,
) -> Result<Vec<ReleaseRow>, Failure> {
    let mut statement = connection.prepare_cached(
        "SELECT r.model, r.digest, r.number, r.published_s, r.published_by, r.withdrawn_s,
            (SELECT count(*) FROM device_model m JOIN device v ON v.id = m.device_id
             WHERE m.digest = r.digest AND m.name = r.model AND m.state = 'active'
               AND v.removed_s IS NULL),
            r.manifest
         FROM release r WHERE ?1 IS NULL OR r.model = ?1
         ORDER BY r.withdrawn_s IS NOT NULL, r.model, r.number DESC LIMIT ?2",
    )?;
    let mut rows = statement.query((model, len_max))?;
    let mut releases = Vec::new();
    while let Some(row) = rows.next()? {
        let manifest: String = row.get(7)?;
        releases.push(ReleaseRow {
            model: row.get(0)?,
            digest: row.get(1)?,
            release: from_sql(row.get(2)?),
            published_s: row.get(3)?,
            published_by: row.get(4)?,
            withdrawn_s: row.get(5)?,
            devices_active: from_sql(row.get(6)?),
            manifest: serde_json::from_str(&manifest)
                .map_err(|e| Failure::internal("read a manifest", e))?,
        });
    }
    Ok(releases)
}

/// What a device should hold.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct DesiredRow {
    /// The model's name.
    pub(crate) model: String,
    /// The manifest's digest.
    pub(crate) digest: String,
    /// The release's number.
    pub(crate) release: u64,
    /// `active` or `installed`.
    pub(crate) use_as: &'static str,
    /// The deployment that says so.
    pub(crate) deployment_id: i64,
}

/// The desired state of a device.
pub(crate) fn desired(connection: &Connection, device: &str) -> Result<Vec<DesiredRow>, Failure> {
    let mut statement = connection.prepare_cached(
        "SELECT model, digest, number, active, deployment_id FROM desired
         WHERE device_id = ?1 ORDER BY model",
    )?;
    let rows = statement.query_map([device], |row| {
        Ok(DesiredRow {
            model: row.get(0)?,
            digest: row.get(1)?,
            release: from_sql(row.get(2)?),
            use_as: if row.get(3)? { "active" } else { "installed" },
            deployment_id: row.get(4)?,
        })
    })?;
    Ok(rows.collect::<Result<_, _>>()?)
}
