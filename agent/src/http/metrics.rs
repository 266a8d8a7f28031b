//! `/metrics`, in Prometheus' text format.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use fulmar_inference::engine::{Engine, Usage};
use fulmar_inference::governor::Cause;
use fulmar_policy::Action;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

use super::auth::Caller;
use super::error::ApiError;
use crate::app::App;
use crate::governor::{Board, Sensor};

/// Counts of the agent.
#[derive(Debug)]
pub(crate) struct Metrics {
    registry: Registry,
    questions: Family<Vec<(&'static str, String)>, Counter<u64, AtomicU64>>,
    prompt_seconds: Histogram,
    decode_tokens_per_s: Histogram,
}

impl Metrics {
    pub(crate) fn new(engine: Engine, board: Board) -> Self {
        let mut registry = Registry::with_prefix("fulmar");
        let questions = Family::default();
        registry.register(
            "questions",
            "Questions given to the engine, by model",
            questions.clone(),
        );
        let prompt_seconds = Histogram::new(exponential_buckets(0.005, 2.0, 14));
        registry.register_with_unit(
            "first_token",
            "Time from acceptance to the first token, the queue left out",
            Unit::Seconds,
            prompt_seconds.clone(),
        );
        let decode_tokens_per_s = Histogram::new(exponential_buckets(1.0, 2.0, 14));
        registry.register(
            "decode_tokens_per_second",
            "Speed of finished answers, in tokens per second",
            decode_tokens_per_s.clone(),
        );
        registry.register_collector(Box::new(SignalsCollector(engine.clone(), board)));
        registry.register_collector(Box::new(EngineCollector(engine)));
        Self { registry, questions, prompt_seconds, decode_tokens_per_s }
    }

    /// A question was given to the engine.
    pub(crate) fn asked(&self, model: &str) {
        self.questions.get_or_create(&vec![("model", model.to_owned())]).inc();
    }

    /// An answer was finished.
    pub(crate) fn answered(&self, usage: &Usage) {
        self.prompt_seconds.observe(usage.prompt_ms as f64 / 1000.0);
        let speed = super::reply::tokens_per_s(usage);
        if speed > 0.0 {
            self.decode_tokens_per_s.observe(speed);
        }
    }
}

/// Asks the engine when metrics are read, so that nothing is counted twice.
#[derive(Debug)]
struct EngineCollector(Engine);

impl prometheus_client::collector::Collector for EngineCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let status = self.0.status();
        let (memory, queue, totals) = (status.memory, status.queue, status.totals);
        let gauges = [
            ("engine_budget_bytes", "The byte budget", memory.budget_bytes),
            ("engine_planned_bytes", "Bytes planned of the budget", memory.planned_bytes),
            (
                "engine_measured_bytes",
                "Bytes held by models, sequences and queues, by their allocations",
                memory.measured_bytes,
            ),
            (
                "engine_resident_bytes",
                "The process's resident memory",
                memory.resident_bytes.unwrap_or(0),
            ),
            (
                "engine_resident_file_bytes",
                "The process's resident memory that is pages of mapped files",
                memory.resident_file_bytes.unwrap_or(0),
            ),
            (
                "engine_resident_peak_bytes",
                "The process's resident memory at its peak",
                memory.resident_peak_bytes.unwrap_or(0),
            ),
            ("engine_models", "Models loaded", status.models.len() as u64),
            ("engine_threads", "Threads that compute now", status.threads as u64),
            ("engine_queue_length", "Requests that wait", queue.len as u64),
            (
                "engine_running",
                "Answers under way",
                status.models.iter().map(|m| m.running as u64).sum(),
            ),
        ];
        for (name, help, value) in gauges {
            let gauge = ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX));
            let metric = encoder.encode_descriptor(name, help, None, gauge.metric_type())?;
            gauge.encode(metric)?;
        }
        let counters = [
            ("engine_requests", "Requests accepted", totals.requests),
            ("engine_refused", "Requests refused because a queue was full", totals.refused),
            ("engine_failed", "Requests that failed", totals.failed),
            ("engine_cancelled", "Requests whose caller went away", totals.cancelled),
            ("engine_prompt_tokens", "Prompt tokens computed", totals.prompt_tokens),
            (
                "engine_cached_tokens",
                "Prompt tokens found in the prefix cache",
                totals.cached_tokens,
            ),
            ("engine_completion_tokens", "Tokens generated", totals.completion_tokens),
            ("engine_preemptions", "Answers set back for want of cache blocks", totals.preemptions),
            ("engine_drafted_tokens", "Tokens guessed ahead", totals.drafted_tokens),
            ("engine_accepted_tokens", "Guessed tokens that were right", totals.accepted_tokens),
            ("engine_steps", "Steps", totals.steps),
        ];
        for (name, help, value) in counters {
            let counter = ConstCounter::new(value);
            let metric = encoder.encode_descriptor(name, help, None, counter.metric_type())?;
            counter.encode(metric)?;
        }
        Ok(())
    }
}

/// Sensors, and what the governor makes of them.
#[derive(Debug)]
struct SignalsCollector(Engine, Board);

impl prometheus_client::collector::Collector for SignalsCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let narrowing = self.0.status().governor;
        let causes = Cause::ALL.map(|cause| {
            let set_in = narrowing.reasons.iter().any(|reason| reason.cause == cause);
            (("cause", cause.as_str()), f64::from(u8::from(set_in)))
        });
        let help = "1 while this cause makes the engine go slower";
        labelled(&mut encoder, "engine_narrowed", help, &causes)?;
        let Some(sensors) = self.1.sensors() else { return Ok(()) };
        let failed = sensors.each().map(|(name, sensor)| {
            let failed = matches!(sensor, Sensor::Failed { .. });
            (("sensor", name), f64::from(u8::from(failed)))
        });
        labelled(&mut encoder, "sensor_failed", "1 while this sensor can't be read", &failed)?;
        let readings: Vec<_> = sensors
            .each()
            .into_iter()
            .filter_map(|(name, sensor)| match sensor {
                Sensor::Reads { value } => Some((("sensor", name), f64::from(*value))),
                Sensor::Calm | Sensor::Absent | Sensor::Failed { .. } => None,
            })
            .collect();
        labelled(&mut encoder, "sensor_reading", "What this sensor says, in its unit", &readings)
    }
}

/// One gauge per label.
fn labelled(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    values: &[((&str, &str), f64)],
) -> std::fmt::Result {
    let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
    for (label, value) in values {
        let gauge = ConstGauge::new(*value);
        gauge.encode(family.encode_family(&[*label])?)?;
    }
    Ok(())
}

/// The metrics, for principals that may read them.
pub(crate) async fn metrics(
    State(app): State<Arc<App>>,
    Caller(principal): Caller,
) -> Result<Response, ApiError> {
    app.policy().decide(&principal, Action::MetricsRead, "-")?;
    let mut text = String::new();
    text::encode(&mut text, &app.metrics().registry)
        .map_err(|error| ApiError::internal("write the metrics", &error))?;
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    Ok(([(CONTENT_TYPE, kind)], text).into_response())
}
