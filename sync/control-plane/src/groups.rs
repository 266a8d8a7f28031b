//! Groups of devices: names for sets of devices that belong together, such as a plant's.
//!
//! - A device is in any number of groups, up to [`GROUPS_MAX`]. A group is there while a device is
//!   in it.
//! - What was deployed to a group is for those too who join it later: whoever joins gets, of each
//!   model, what the newest deployment to one of its groups or to all says, if that is newer than
//!   what it should hold already.
//! - Leaving a group takes nothing back: what a device should hold stays until a later deployment
//!   says otherwise.

use rusqlite::{Connection, Transaction};
use serde::Serialize;

use crate::deploy;
use crate::failure::Failure;
use crate::fleet;
use crate::number::from_sql;

/// Groups of one device, or named at once.
pub(crate) const GROUPS_MAX: usize = 64;
/// Devices put into a group, or taken out of it, in one request.
pub(crate) const CHANGED_MAX: usize = 500;

/// A group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct GroupRow {
    /// Its name.
    pub(crate) name: String,
    /// Devices in it.
    pub(crate) devices: u64,
}

/// What a change did to one device's groups.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Changed {
    /// The device.
    pub(crate) device_id: String,
    /// Groups that it is in from now on.
    pub(crate) added: Vec<String>,
    /// Groups that it is in no more.
    pub(crate) removed: Vec<String>,
    /// Deployments to the groups that it is part of from now on.
    pub(crate) deployments: Vec<i64>,
}

/// Names out of a text that has them separated by spaces, sorted.
pub(crate) fn names(text: Option<&str>) -> Vec<String> {
    let mut names: Vec<String> =
        text.unwrap_or_default().split_whitespace().map(str::to_owned).collect();
    names.sort_unstable();
    names.dedup();
    names
}

/// Refuses names that are none, and too many of them.
pub(crate) fn check(groups: &[String]) -> Result<(), Failure> {
    if groups.len() > GROUPS_MAX {
        return Err(Failure::invalid(
            "groups_too_many",
            format!("groups has {} names, the limit is {GROUPS_MAX}", groups.len()),
        ));
    }
    // The rule of devices' names.
    match groups.iter().find(|name| !fulmar_protocol::device_name_is_valid(name)) {
        None => Ok(()),
        Some(name) => Err(Failure::invalid(
            "group_invalid",
            format!(
                "the group's name is {:?}, expected 1 to 63 of [a-z0-9-]",
                name.chars().take(80).collect::<String>()
            ),
        )),
    }
}

/// The groups, by name.
pub(crate) fn list(connection: &Connection) -> Result<Vec<GroupRow>, Failure> {
    let mut statement = connection
        .prepare_cached("SELECT name, count(*) FROM device_group GROUP BY name ORDER BY name")?;
    let rows = statement
        .query_map([], |row| Ok(GroupRow { name: row.get(0)?, devices: from_sql(row.get(1)?) }))?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// Refuses a group that nobody is in: most often its name is mistyped.
pub(crate) fn members(connection: &Connection, group: &str) -> Result<Vec<String>, Failure> {
    check(std::slice::from_ref(&group.to_owned()))?;
    let ids = column(connection, "SELECT device_id FROM device_group WHERE name = ?1", group)?;
    if ids.is_empty() {
        return Err(Failure::not_found("group", format!("{group}: no device is in it")));
    }
    Ok(ids)
}

/// The devices that are in at least one of these groups, each of which has to be there.
pub(crate) fn union(connection: &Connection, groups: &[String]) -> Result<Vec<String>, Failure> {
    if groups.is_empty() {
        return Err(Failure::invalid("groups_invalid", "groups is empty, expected names"));
    }
    check(groups)?;
    let mut devices = Vec::new();
    for group in groups {
        devices.extend(members(connection, group)?);
    }
    devices.sort_unstable();
    devices.dedup();
    Ok(devices)
}

/// Notes that a deployment is for these groups, for those too who join later.
pub(crate) fn note_deployment(
    tx: &Transaction<'_>,
    deployment: i64,
    groups: &[String],
) -> Result<(), Failure> {
    let mut statement = tx.prepare_cached(
        "INSERT OR IGNORE INTO deployment_group (deployment_id, name) VALUES (?1, ?2)",
    )?;
    for group in groups {
        statement.execute((deployment, group))?;
    }
    Ok(())
}

/// Puts a device into groups; those that it is in already are left alone. Returns the new ones.
pub(crate) fn join(
    tx: &Transaction<'_>,
    device: &str,
    groups: &[String],
    by: &str,
    now_s: i64,
) -> Result<Vec<String>, Failure> {
    check(groups)?;
    let mut statement = tx.prepare_cached(
        "INSERT OR IGNORE INTO device_group (name, device_id, added_s, added_by)
         VALUES (?1, ?2, ?3, ?4)",
    )?;
    let mut added = Vec::new();
    for group in groups {
        if statement.execute((group, device, now_s, by))? == 1 {
            added.push(group.clone());
        }
    }
    Ok(added)
}

/// What is to become of one device's groups.
#[derive(Debug, Clone)]
pub(crate) enum Change {
    /// It is in these and no others.
    Set(Vec<String>),
    /// It is in this one too.
    Join(String),
    /// It is in this one no more.
    Leave(String),
}

/// Changes the groups of a device, named by id or by a name that is its alone, and gives it what
/// was deployed to those that are new to it.
pub(crate) fn change(
    tx: &Transaction<'_>,
    device: &str,
    change: &Change,
    by: &str,
    now_s: i64,
) -> Result<Changed, Failure> {
    let id = fleet::find(tx, device)?;
    let before = column(tx, "SELECT name FROM device_group WHERE device_id = ?1", &id)?;
    let after = match change {
        Change::Set(groups) => names(Some(&groups.join(" "))),
        Change::Join(group) => names(Some(&format!("{} {group}", before.join(" ")))),
        Change::Leave(group) => before.iter().filter(|name| *name != group).cloned().collect(),
    };
    match change {
        Change::Set(groups) => check(groups)?,
        Change::Join(group) => check(std::slice::from_ref(group))?,
        Change::Leave(group) if before.contains(group) => {}
        Change::Leave(group) => {
            return Err(Failure::not_found("group", format!("{group} that device {id} is in")));
        }
    }
    check(&after)?;
    let removed: Vec<String> =
        before.iter().filter(|name| !after.contains(name)).cloned().collect();
    for group in &removed {
        tx.execute("DELETE FROM device_group WHERE name = ?1 AND device_id = ?2", (group, &id))?;
    }
    let added = join(tx, &id, &after, by, now_s)?;
    let deployments = if added.is_empty() { Vec::new() } else { deploy::assign_standing(tx, &id)? };
    Ok(Changed { device_id: id, added, removed, deployments })
}

fn column(connection: &Connection, sql: &str, value: &str) -> Result<Vec<String>, Failure> {
    let mut statement = connection.prepare_cached(sql)?;
    let mut rows: Vec<String> =
        statement.query_map([value], |row| row.get(0))?.collect::<Result<_, _>>()?;
    rows.sort_unstable();
    Ok(rows)
}
