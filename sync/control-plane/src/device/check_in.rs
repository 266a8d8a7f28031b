//! Check-in and outbox: what a device says, made durable before it is answered.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use fulmar_policy::audit::{AuditKey, Outcome};
use fulmar_protocol::{
    AuditCheckpoint, CheckIn, CheckInResponse, DeviceFacts, OutboxAck, OutboxBatch,
};
use rusqlite::Transaction;

use super::peer::Device;
use crate::app::App;
use crate::body::Body;
use crate::failure::Failure;
use crate::number::to_sql;
use crate::{act, deploy, fleet, mirror, now_s, reports, witness};

/// Models that one device may list.
const MODELS_MAX: usize = 256;
/// Longest text in a device's words, in bytes.
const TEXT_BYTES_MAX: usize = 1_024;

/// `POST /device/v1/check-in`.
pub(super) async fn check_in(
    State(app): State<Arc<App>>,
    device: Device,
    Body(request): Body<CheckIn>,
) -> Result<Json<CheckInResponse>, Failure> {
    check(&request)?;
    let worker = Arc::clone(&app);
    let response =
        app.store.write(move |tx| answer(&worker, tx, &device, &request, now_s())).await?;
    Ok(Json(response))
}

/// `POST /device/v1/outbox`: acknowledged after the commit.
pub(super) async fn outbox(
    State(app): State<Arc<App>>,
    device: Device,
    Body(batch): Body<OutboxBatch>,
) -> Result<Json<OutboxAck>, Failure> {
    let acked_through =
        app.store.write(move |tx| reports::take(tx, &device.id, &batch.reports, now_s())).await?;
    Ok(Json(OutboxAck { acked_through }))
}

fn answer(
    app: &App,
    tx: &Transaction<'_>,
    device: &Device,
    request: &CheckIn,
    now_s: i64,
) -> Result<CheckInResponse, Failure> {
    if !device.by_certificate_before {
        fleet::renewed(tx, &device.id)?;
    }
    let address = device.address.ip().to_string();
    let (device_id, check_in) = (device.id.as_str(), request);
    take_state(tx, &Told { device_id, address: &address, check_in, now_s })?;
    let audit_cosignature = match &request.audit_checkpoint {
        Some(checkpoint) => cosign(tx, &app.cosigner, &device.id, checkpoint, now_s)?,
        None => None,
    };
    app.director.ensure_root(tx, now_s)?;
    let minted = app.director.minted(tx, &device.id, now_s)?;
    let commands = fleet::take_commands(tx, &device.id)?;
    Ok(CheckInResponse {
        generation: minted.generation,
        registry_timestamp_version: mirror::timestamp_version(tx)?,
        director_timestamp_version: minted.serial,
        commands,
        next_check_in_ms: app.config.check_in_interval_ms,
        audit_cosignature,
    })
}

/// What a device says of itself, and how it came.
pub(crate) struct Told<'a> {
    pub(crate) device_id: &'a str,
    /// Where it connected from, or `by file`.
    pub(crate) address: &'a str,
    pub(crate) check_in: &'a CheckIn,
    pub(crate) now_s: i64,
}

/// Takes the device's state in.
pub(crate) fn take_state(tx: &Transaction<'_>, told: &Told<'_>) -> Result<(), Failure> {
    let (id, request, now_s) = (told.device_id, told.check_in, told.now_s);
    note(tx, told)?;
    if let Some(facts) = &request.facts {
        fleet::set_facts(tx, id, facts)?;
    }
    fleet::set_models(tx, id, &request.models, now_s)?;
    deploy::note_done(tx, id, now_s)
}

fn note(tx: &Transaction<'_>, told: &Told<'_>) -> Result<(), Failure> {
    let request = told.check_in;
    tx.prepare_cached(
        "UPDATE device SET seen_s = ?2, address = ?3, boot_id = ?4,
            generation_seen = min(?5, generation), generation_applied = min(?6, generation),
            disk_free_bytes = ?7, clock_s = ?8, link = ?9
         WHERE id = ?1",
    )?
    .execute((
        told.device_id,
        told.now_s,
        told.address,
        &request.boot_id,
        to_sql(request.generation_seen),
        to_sql(request.generation_applied),
        to_sql(request.disk_free_bytes),
        request.clock_s,
        &request.link,
    ))?;
    Ok(())
}

/// Co-signs the device's checkpoint. A refusal is recorded when it is a new one.
pub(crate) fn cosign(
    tx: &Transaction<'_>,
    cosigner: &AuditKey,
    device: &str,
    checkpoint: &AuditCheckpoint,
    now_s: i64,
) -> Result<Option<String>, Failure> {
    let before = witness::of(tx, device)?.fault;
    match reports::cosign(tx, cosigner, device, checkpoint, now_s)? {
        Ok(cosignature) => Ok(cosignature),
        Err(_) if before.is_some() => Ok(None),
        Err(refusal) => {
            let reason = refusal.as_str();
            tracing::error!(device, reason, "no co-signature");
            let actor = format!("{device} (device)");
            let detail = serde_json::json!({ "reason": reason, "entries": checkpoint.entries });
            act::append(tx, &actor, "checkpoint.cosign", device, Outcome::Denied, detail)?;
            Ok(None)
        }
    }
}

/// Refuses a check-in that is longer than check-ins are.
pub(crate) fn check(request: &CheckIn) -> Result<(), Failure> {
    if request.models.len() > MODELS_MAX {
        return Err(Failure::invalid(
            "models_too_many",
            format!("models has {} entries, the limit is {MODELS_MAX}", request.models.len()),
        ));
    }
    for model in &request.models {
        text("models.name", &model.name)?;
        text("models.digest", &model.digest)?;
        text("models.reason", model.reason.as_deref().unwrap_or(""))?;
    }
    text("boot_id", &request.boot_id)?;
    if !["unmetered", "metered", "unknown"].contains(&request.link.as_str()) {
        return Err(Failure::invalid(
            "link_invalid",
            format!("link is {:?}, expected unmetered, metered or unknown", request.link),
        ));
    }
    request.facts.as_ref().map_or(Ok(()), check_facts)
}

/// Refuses facts that are longer than facts are.
pub(super) fn check_facts(facts: &DeviceFacts) -> Result<(), Failure> {
    text("facts.arch", &facts.arch)?;
    text("facts.os", &facts.os)?;
    text("facts.agent_version", &facts.agent_version)
}

fn text(field: &str, value: &str) -> Result<(), Failure> {
    if value.len() <= TEXT_BYTES_MAX {
        return Ok(());
    }
    Err(Failure::invalid(
        "text_too_long",
        format!("{field} has {} bytes, the limit is {TEXT_BYTES_MAX}", value.len()),
    ))
}
