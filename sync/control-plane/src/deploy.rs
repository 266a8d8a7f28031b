//! Deployments: which devices should run a release.
//!
//! A deployment changes the desired state of its devices in one transaction and raises each one's
//! generation. Stopping it puts back what was wanted before on the devices that have not got there
//! yet; those that have, keep it. One model has one desired release per device: a later deployment
//! takes the place of an earlier one.

use fulmar_registry::ModelRef;
use rusqlite::{OptionalExtension as _, Transaction};
use serde::{Deserialize, Serialize};

use crate::failure::Failure;
use crate::number::{from_sql, to_sql};
use crate::{director, groups};

/// Devices named in one deployment.
pub(crate) const DEVICES_MAX: usize = 10_000;

/// What is asked for.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Order {
    /// The model's name; `NAME@sha256:…` for exactly one release.
    pub(crate) model: String,
    /// The manifest's digest; without it, the release that the registry names now.
    #[serde(default)]
    pub(crate) digest: Option<String>,
    /// Which devices.
    pub(crate) devices: Devices,
    /// Serve it, or only have it there.
    #[serde(default)]
    pub(crate) use_as: UseAs,
}

/// Which devices: `"all"`, a list of ids, or `{"groups": ["plant-a"]}`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case", untagged)]
pub(crate) enum Devices {
    /// All, those that join later too.
    All(All),
    /// These.
    These(Vec<String>),
    /// Those in a group, those that join it later too.
    In(Groups),
}

/// Names of groups.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Groups {
    /// One of them is enough.
    pub(crate) groups: Vec<String>,
}

/// The word `all`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum All {
    /// All.
    All,
}

/// What a device does with the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum UseAs {
    /// It serves it.
    #[default]
    Active,
    /// It holds it, verified, and serves something else.
    Installed,
}

impl UseAs {
    fn is_active(self) -> bool {
        self == Self::Active
    }
}

/// A deployment that was made.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Created {
    /// Its number.
    pub(crate) id: i64,
    /// The manifest's digest.
    pub(crate) digest: String,
    /// Devices whose desired state it changed.
    pub(crate) devices: u64,
}

#[derive(Debug, Serialize, Deserialize)]
struct Desired {
    digest: String,
    length: u64,
    number: u64,
    active: bool,
    deployment_id: i64,
}

struct Release {
    digest: String,
    length: u64,
    number: u64,
}

/// Makes a deployment.
pub(crate) fn create(
    tx: &Transaction<'_>,
    order: &Order,
    by: &str,
    now_s: i64,
) -> Result<Created, Failure> {
    let (model, digest) = named(order)?;
    let release = release(tx, &model, digest.as_deref())?;
    let (devices, scope) = match &order.devices {
        Devices::All(_) => (all(tx)?, "all"),
        Devices::These(ids) => (these(tx, ids)?, "devices"),
        Devices::In(named) => (groups::union(tx, &named.groups)?, "devices"),
    };
    let active = order.use_as.is_active();
    tx.execute(
        "INSERT INTO deployment (model, digest, number, active, scope, created_s, created_by)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
        (&model, &release.digest, to_sql(release.number), active, scope, now_s, by),
    )?;
    let id = tx.last_insert_rowid();
    let wanted = Desired {
        digest: release.digest.clone(),
        length: release.length,
        number: release.number,
        active,
        deployment_id: id,
    };
    if let Devices::In(named) = &order.devices {
        groups::note_deployment(tx, id, &named.groups)?;
    }
    for device in &devices {
        assign(tx, device, &model, &wanted)?;
    }
    Ok(Created { id, digest: release.digest, devices: devices.len() as u64 })
}

/// The model's name, and the digest that it must have, which may stand after the name too.
fn named(order: &Order) -> Result<(String, Option<String>), Failure> {
    let invalid = |text: String| Failure::invalid("model_invalid", text);
    let model: ModelRef = order.model.parse().map_err(|e| invalid(format!("model: {e}")))?;
    let pinned = model.digest.map(|digest| digest.to_string());
    match (&pinned, &order.digest) {
        (Some(pinned), Some(digest)) if pinned != digest => {
            Err(invalid(format!("model is pinned to {pinned}, and digest is {digest}: give one")))
        }
        (_, digest) => Ok((model.name.to_string(), pinned.or_else(|| digest.clone()))),
    }
}

/// Gives a device that joined the fleet or a group what deployments to all devices and to its
/// groups say, of each model the newest, where that is newer than what the device should hold.
/// Returns the deployments that it is in from now on.
pub(crate) fn assign_standing(tx: &Transaction<'_>, device: &str) -> Result<Vec<i64>, Failure> {
    let mut statement = tx.prepare_cached(
        "SELECT d.id, d.model, d.digest, d.number, d.active, r.length
         FROM deployment d JOIN release r ON r.model = d.model AND r.digest = d.digest
         WHERE d.id IN (
             SELECT max(s.id) FROM deployment s
             WHERE s.stopped_s IS NULL AND (s.scope = 'all' OR EXISTS (
                 SELECT 1 FROM deployment_group g JOIN device_group m ON m.name = g.name
                 WHERE g.deployment_id = s.id AND m.device_id = ?1))
             GROUP BY s.model)
           AND r.withdrawn_s IS NULL
           AND d.id > coalesce((SELECT w.deployment_id FROM desired w
                                WHERE w.device_id = ?1 AND w.model = d.model), 0)
           AND NOT EXISTS (SELECT 1 FROM deployment_device x
                           WHERE x.deployment_id = d.id AND x.device_id = ?1)",
    )?;
    let standing = statement
        .query_map([device], |row| {
            let wanted = Desired {
                deployment_id: row.get(0)?,
                digest: row.get(2)?,
                number: from_sql(row.get(3)?),
                active: row.get(4)?,
                length: from_sql(row.get(5)?),
            };
            Ok((row.get::<_, String>(1)?, wanted))
        })?
        .collect::<Result<Vec<_>, _>>()?;
    for (model, wanted) in &standing {
        assign(tx, device, model, wanted)?;
    }
    Ok(standing.into_iter().map(|(_, wanted)| wanted.deployment_id).collect())
}

/// Stops a deployment; returns the devices whose desired state went back.
pub(crate) fn stop(
    tx: &Transaction<'_>,
    id: i64,
    by: &str,
    now_s: i64,
) -> Result<Vec<String>, Failure> {
    let row: Option<(String, Option<i64>)> = tx
        .query_row("SELECT model, stopped_s FROM deployment WHERE id = ?1", [id], |row| {
            Ok((row.get(0)?, row.get(1)?))
        })
        .optional()?;
    let (model, stopped_s) = row.ok_or_else(|| Failure::not_found("deployment", id))?;
    if stopped_s.is_some() {
        return Err(Failure::conflict(
            "deployment_stopped",
            format!("deployment {id} was stopped already"),
        ));
    }
    tx.execute(
        "UPDATE deployment SET stopped_s = ?2, stopped_by = ?3 WHERE id = ?1",
        (id, now_s, by),
    )?;
    let mut statement = tx.prepare(
        "SELECT device_id, before FROM deployment_device
         WHERE deployment_id = ?1 AND done_s IS NULL AND ended IS NULL",
    )?;
    let waiting = statement
        .query_map([id], |row| Ok((row.get::<_, String>(0)?, row.get::<_, Option<String>>(1)?)))?
        .collect::<Result<Vec<_>, _>>()?;
    for (device, before) in &waiting {
        put_back(tx, device, &model, before.as_deref())?;
        director::raise(tx, device)?;
        tx.execute(
            "UPDATE deployment_device SET ended = 'stopped'
             WHERE deployment_id = ?1 AND device_id = ?2",
            (id, device),
        )?;
    }
    Ok(waiting.into_iter().map(|(device, _)| device).collect())
}

/// Notes which deployments a device has got done, by what it last said it holds.
pub(crate) fn note_done(tx: &Transaction<'_>, device: &str, now_s: i64) -> Result<(), Failure> {
    tx.prepare_cached(
        "UPDATE deployment_device SET done_s = ?2
         WHERE device_id = ?1 AND done_s IS NULL AND ended IS NULL
           AND EXISTS (
             SELECT 1 FROM deployment d
             JOIN device_model m ON m.device_id = ?1 AND m.name = d.model AND m.digest = d.digest
             JOIN device v ON v.id = ?1
             WHERE d.id = deployment_id AND v.generation_seen >= deployment_device.generation
               AND (m.state = 'active' OR (d.active = 0 AND m.state = 'installed')))",
    )?
    .execute((device, now_s))?;
    Ok(())
}

fn release(tx: &Transaction<'_>, model: &str, digest: Option<&str>) -> Result<Release, Failure> {
    let found = tx
        .query_row(
            "SELECT digest, length, number, withdrawn_s IS NOT NULL FROM release
             WHERE model = ?1 AND digest = coalesce(?2, digest)
             ORDER BY withdrawn_s IS NOT NULL, id DESC LIMIT 1",
            (model, digest),
            |row| {
                let release = Release {
                    digest: row.get(0)?,
                    length: from_sql(row.get(1)?),
                    number: from_sql(row.get(2)?),
                };
                Ok((release, row.get::<_, bool>(3)?))
            },
        )
        .optional()?;
    match found {
        None => Err(Failure::not_found("release of model", model)),
        Some((_, true)) => Err(Failure::conflict(
            "release_withdrawn",
            format!(
                "the registry's newest metadata does not name this release of {model}: devices \
                 would refuse it; publish it again"
            ),
        )),
        Some((release, false)) => Ok(release),
    }
}

fn all(tx: &Transaction<'_>) -> Result<Vec<String>, Failure> {
    let mut statement = tx.prepare("SELECT id FROM device WHERE removed_s IS NULL")?;
    Ok(statement.query_map([], |row| row.get(0))?.collect::<Result<_, _>>()?)
}

fn these(tx: &Transaction<'_>, ids: &[String]) -> Result<Vec<String>, Failure> {
    if ids.is_empty() || ids.len() > DEVICES_MAX {
        return Err(Failure::invalid(
            "devices_invalid",
            format!("devices has {} entries, expected 1 to {DEVICES_MAX}, or \"all\"", ids.len()),
        ));
    }
    let mut ids = ids.to_vec();
    ids.sort_unstable();
    ids.dedup();
    let mut statement =
        tx.prepare("SELECT EXISTS (SELECT 1 FROM device WHERE id = ?1 AND removed_s IS NULL)")?;
    for id in &ids {
        if !statement.query_row([id], |row| row.get::<_, bool>(0))? {
            return Err(Failure::not_found("device", id));
        }
    }
    Ok(ids)
}

fn assign(
    tx: &Transaction<'_>,
    device: &str,
    model: &str,
    wanted: &Desired,
) -> Result<(), Failure> {
    let before = desired(tx, device, model)?
        .map(|desired| serde_json::to_string(&desired))
        .transpose()
        .map_err(|e| Failure::internal("note the desired state before", e))?;
    tx.prepare_cached(
        "UPDATE deployment_device SET ended = 'superseded'
         WHERE device_id = ?1 AND done_s IS NULL AND ended IS NULL
           AND deployment_id IN (SELECT id FROM deployment WHERE model = ?2)",
    )?
    .execute((device, model))?;
    set(tx, device, model, wanted)?;
    let generation = director::raise(tx, device)?;
    tx.prepare_cached(
        "INSERT INTO deployment_device (deployment_id, device_id, generation, before)
         VALUES (?1, ?2, ?3, ?4)",
    )?
    .execute((wanted.deployment_id, device, to_sql(generation), before))?;
    Ok(())
}

fn put_back(
    tx: &Transaction<'_>,
    device: &str,
    model: &str,
    before: Option<&str>,
) -> Result<(), Failure> {
    match before {
        Some(before) => {
            let before: Desired = serde_json::from_str(before)
                .map_err(|e| Failure::internal("read the desired state before", e))?;
            set(tx, device, model, &before)
        }
        None => {
            tx.execute("DELETE FROM desired WHERE device_id = ?1 AND model = ?2", (device, model))?;
            Ok(())
        }
    }
}

fn desired(tx: &Transaction<'_>, device: &str, model: &str) -> Result<Option<Desired>, Failure> {
    Ok(tx
        .prepare_cached(
            "SELECT digest, length, number, active, deployment_id FROM desired
             WHERE device_id = ?1 AND model = ?2",
        )?
        .query_row((device, model), |row| {
            Ok(Desired {
                digest: row.get(0)?,
                length: from_sql(row.get(1)?),
                number: from_sql(row.get(2)?),
                active: row.get(3)?,
                deployment_id: row.get(4)?,
            })
        })
        .optional()?)
}

fn set(tx: &Transaction<'_>, device: &str, model: &str, wanted: &Desired) -> Result<(), Failure> {
    tx.prepare_cached(
        "INSERT OR REPLACE INTO desired
            (device_id, model, digest, length, number, active, deployment_id)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
    )?
    .execute((
        device,
        model,
        &wanted.digest,
        to_sql(wanted.length),
        to_sql(wanted.number),
        wanted.active,
        wanted.deployment_id,
    ))?;
    Ok(())
}
