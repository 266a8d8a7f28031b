//! The governor's signals: sensors are read every few seconds, and what follows is told to the
//! engine.
//!
//! What narrows, by how much, and with which margins is `fulmar_inference::governor`'s; this
//! module reads the host and the clock. Whoever asks `ps` or the metrics sees every sensor, those
//! that fail or are not there too.

mod sensors;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use fulmar_inference::engine::Engine;
use fulmar_inference::governor::{Governor, GovernorConfig, Narrowing};
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

pub(crate) use sensors::{Sensor, Sensors};

/// When the engine goes slower by itself.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Config {
    /// `on` or `off`.
    pub(crate) mode: Mode,
    /// Seconds from one reading to the next, 1 to 3600.
    pub(crate) interval_s: u64,
    /// Where `sys` and `proc` of the host are: `/`, or where a container has them mounted.
    pub(crate) root: PathBuf,
    /// Hours of the day, local time, in which few threads compute: `["22:00-06:30"]`.
    pub(crate) quiet_hours: Vec<QuietHours>,
    /// From which readings on, and how much.
    pub(crate) thresholds: GovernorConfig,
}

/// Whether signals are followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Mode {
    /// They are.
    On,
    /// Nothing is read, nothing narrowed.
    Off,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            mode: Mode::On,
            interval_s: 5,
            root: PathBuf::from("/"),
            quiet_hours: Vec::new(),
            thresholds: GovernorConfig::default(),
        }
    }
}

/// A setting that can't be used.
#[derive(Debug, thiserror::Error)]
#[error("read the configuration: governor.{field} is {found}, expected {expected}")]
pub(crate) struct ConfigError {
    field: &'static str,
    found: String,
    expected: &'static str,
}

impl Config {
    /// Checks every number.
    ///
    /// # Errors
    /// The first field that is out of its range.
    pub(crate) fn check(&self) -> Result<(), ConfigError> {
        let refuse = |field, found: String, expected| Err(ConfigError { field, found, expected });
        if !(1..=3600).contains(&self.interval_s) {
            return refuse("interval_s", self.interval_s.to_string(), "1 to 3600");
        }
        let t = &self.thresholds;
        for (field, value, max, expected) in [
            ("thresholds.battery_low_percent", t.battery_low_percent, 100.0, "0 to 100"),
            ("thresholds.battery_critical_percent", t.battery_critical_percent, 100.0, "0 to 100"),
            ("thresholds.temperature_high_c", t.temperature_high_c, 200.0, "0 to 200"),
            ("thresholds.temperature_critical_c", t.temperature_critical_c, 200.0, "0 to 200"),
            (
                "thresholds.cpu_pressure_high_percent",
                t.cpu_pressure_high_percent,
                101.0,
                "0 to 101",
            ),
            (
                "thresholds.memory_pressure_high_percent",
                t.memory_pressure_high_percent,
                101.0,
                "0 to 101",
            ),
            ("thresholds.quiet_threads_share", t.quiet_threads_share, 1.0, "0 to 1"),
        ] {
            if !(0.0..=max).contains(&value) {
                return refuse(field, value.to_string(), expected);
            }
        }
        Ok(())
    }
}

/// A part of the day, from one minute up to (not including) another; it may go over midnight.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(crate) struct QuietHours {
    from_minute: u16,
    to_minute: u16,
}

impl QuietHours {
    fn contains(self, minute: u16) -> bool {
        if self.from_minute < self.to_minute {
            (self.from_minute..self.to_minute).contains(&minute)
        } else {
            minute >= self.from_minute || minute < self.to_minute
        }
    }
}

impl TryFrom<String> for QuietHours {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let minute = |text: &str| {
            let (hour, minute) = text.split_once(':')?;
            let digits = |part: &str| {
                let two = part.len() == 2 && part.bytes().all(|b| b.is_ascii_digit());
                part.parse::<u16>().ok().filter(|_| two)
            };
            let (hour, minute) = (digits(hour)?, digits(minute)?);
            (hour < 24 && minute < 60).then_some(hour * 60 + minute)
        };
        let range = text.split_once('-').and_then(|(from, to)| Some((minute(from)?, minute(to)?)));
        match range {
            Some((from_minute, to_minute)) if from_minute != to_minute => {
                Ok(Self { from_minute, to_minute })
            }
            _ => Err(format!("quiet hours {text:?}: expected two times such as \"22:00-06:30\"")),
        }
    }
}

impl From<QuietHours> for String {
    fn from(hours: QuietHours) -> Self {
        let (from, to) = (hours.from_minute, hours.to_minute);
        format!("{:02}:{:02}-{:02}:{:02}", from / 60, from % 60, to / 60, to % 60)
    }
}

/// What was read last, for whoever asks.
#[derive(Debug, Clone, Default)]
pub(crate) struct Board(Arc<Mutex<Option<Sensors>>>);

impl Board {
    /// The last readings; `None` while nothing is read.
    pub(crate) fn sensors(&self) -> Option<Sensors> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set(&self, sensors: Sensors) -> Option<Sensors> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).replace(sensors)
    }
}

/// Reads the sensors and tells the engine, until told to stop.
pub(crate) async fn run(config: Config, engine: Engine, board: Board, stop: CancellationToken) {
    if config.mode == Mode::Off {
        return;
    }
    let mut governor = Governor::new(config.thresholds, engine.strength());
    let mut before = Narrowing::default();
    loop {
        let (root, hours) = (config.root.clone(), config.quiet_hours.clone());
        let reading = tokio::task::spawn_blocking(move || (Sensors::read(&root), quiet(&hours)));
        // A reader that panicked reads nothing this time; there is a next one.
        if let Ok((sensors, quiet_hours)) = reading.await {
            let narrowing = governor.update(&sensors.readings(quiet_hours));
            tell_failures(board.set(sensors.clone()).as_ref(), &sensors, &config.root);
            if causes(&narrowing) != causes(&before) {
                let reasons: Vec<_> = narrowing.reasons.iter().map(|r| r.text.as_str()).collect();
                tracing::info!(reasons = reasons.join("; "), "the engine's strength changed");
            }
            before = narrowing.clone();
            engine.govern(narrowing);
        }
        tokio::select! {
            () = tokio::time::sleep(Duration::from_secs(config.interval_s)) => {}
            () = stop.cancelled() => return,
        }
    }
}

fn causes(narrowing: &Narrowing) -> Vec<fulmar_inference::governor::Cause> {
    narrowing.reasons.iter().map(|reason| reason.cause).collect()
}

/// Logs a sensor's failure when it sets in.
fn tell_failures(before: Option<&Sensors>, now: &Sensors, root: &Path) {
    for (at, (name, sensor)) in now.each().into_iter().enumerate() {
        let known = before.is_some_and(|b| matches!(b.each()[at].1, Sensor::Failed { .. }));
        if let Sensor::Failed { reason } = sensor
            && !known
        {
            tracing::warn!(sensor = name, reason, root = %root.display(), "a sensor can't be read");
        }
    }
}

/// Whether it is quiet now; `None` where no quiet hours are set.
fn quiet(hours: &[QuietHours]) -> Option<bool> {
    if hours.is_empty() {
        return None;
    }
    let now = jiff::ZonedDateTime::now();
    let minute = u16::from(now.hour().unsigned_abs()) * 60 + u16::from(now.minute().unsigned_abs());
    Some(hours.iter().any(|h| h.contains(minute)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hours(text: &str) -> Result<QuietHours, String> {
        QuietHours::try_from(text.to_owned())
    }

    #[test]
    fn quiet_hours_may_go_over_midnight() {
        let night = hours("22:00-06:30").unwrap();
        let at = |hour: u16, minute: u16| night.contains(hour * 60 + minute);
        assert!(at(22, 0) && at(23, 59) && at(0, 0) && at(6, 29));
        assert!(!at(6, 30) && !at(12, 0) && !at(21, 59));
        let noon = hours("12:00-13:00").unwrap();
        assert!(noon.contains(12 * 60) && !noon.contains(13 * 60) && !noon.contains(0));
        assert_eq!(String::from(night), "22:00-06:30");
    }

    #[test]
    fn what_is_no_part_of_a_day_is_refused_with_an_example() {
        for text in ["", "22:00", "24:00-06:00", "9:00-10:00", "10:60-11:00", "10:00-10:00"] {
            assert!(hours(text).unwrap_err().contains("22:00-06:30"), "{text}");
        }
    }

    #[test]
    fn numbers_out_of_range_are_refused_by_their_field() {
        let parse = |text: &str| toml::from_str::<Config>(text).unwrap().check();
        assert!(parse("").is_ok());
        let error = parse("interval_s = 0").unwrap_err().to_string();
        assert!(error.contains("governor.interval_s is 0, expected 1 to 3600"), "{error}");
        let error = parse("[thresholds]\ntemperature_high_c = nan").unwrap_err().to_string();
        assert!(error.contains("governor.thresholds.temperature_high_c"), "{error}");
        assert!(toml::from_str::<Config>("[thresholds]\ntemperature = 5").is_err());
    }
}
