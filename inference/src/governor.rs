//! The governor: from what the host says about battery, heat, pressure and the hour, how much of
//! the machine the engine may use.
//!
//! Pure: readings come in, a [`Narrowing`] comes out; who reads `/sys` is somebody else. A cause
//! that has set in ends only when its reading has left the threshold by a margin, so that the
//! engine doesn't flutter. What is narrowed never changes an answer's text, only its speed.

use serde::{Deserialize, Serialize};

/// What the host says now. `None`: not known, and then not a cause.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Readings {
    /// Charge in percent while running on battery; `None` on mains.
    pub battery_percent: Option<f32>,
    /// Hottest zone of the processor in degrees Celsius.
    pub temperature_c: Option<f32>,
    /// Share of time in which some task waited for the processor, in percent (PSI `cpu some
    /// avg10`), the engine's own threads left out where the caller can.
    pub cpu_pressure_percent: Option<f32>,
    /// Share of time in which some task waited for memory, in percent (PSI `memory some avg10`).
    pub memory_pressure_percent: Option<f32>,
    /// Whether the clock is inside the owner's quiet hours.
    pub quiet_hours: Option<bool>,
}

/// Thresholds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GovernorConfig {
    /// Below this charge: half the threads, no speculation.
    pub battery_low_percent: f32,
    /// Below this charge: one thread.
    pub battery_critical_percent: f32,
    /// From here: half the threads.
    pub temperature_high_c: f32,
    /// From here: one thread.
    pub temperature_critical_c: f32,
    /// From here: half the threads.
    pub cpu_pressure_high_percent: f32,
    /// From here: a quarter of the batch and of the sequences.
    pub memory_pressure_high_percent: f32,
    /// Threads in quiet hours, as a share of all.
    pub quiet_threads_share: f32,
}

impl Default for GovernorConfig {
    fn default() -> Self {
        Self {
            battery_low_percent: 30.0,
            battery_critical_percent: 15.0,
            temperature_high_c: 80.0,
            temperature_critical_c: 90.0,
            cpu_pressure_high_percent: 40.0,
            memory_pressure_high_percent: 20.0,
            quiet_threads_share: 0.25,
        }
    }
}

/// What the engine may use at full strength.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Strength {
    /// Threads that compute.
    pub threads: usize,
    /// Tokens in one step.
    pub batch_tokens: usize,
    /// Sequences running at once, per model.
    pub sequences: usize,
}

/// What the governor takes away, and why. The default takes nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Narrowing {
    /// Threads that compute at most.
    pub threads_max: Option<usize>,
    /// Tokens in one step at most.
    pub batch_tokens_max: Option<usize>,
    /// Sequences running at once at most, per model; those that run are not thrown out.
    pub sequences_max: Option<usize>,
    /// Whether tokens may be guessed ahead.
    pub speculation: SpeculationAllowed,
    /// Why; empty when nothing is taken away.
    pub reasons: Vec<Reason>,
}

/// Whether tokens may be guessed ahead.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SpeculationAllowed {
    /// As the engine's options say.
    #[default]
    Allowed,
    /// Not now.
    Off,
}

/// One reason to go slower.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reason {
    /// Which kind.
    pub cause: Cause,
    /// For people: reading, threshold, effect.
    pub text: String,
}

/// Kinds of reasons.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// Charge is low.
    Battery,
    /// The processor is hot.
    Temperature,
    /// Others wait for the processor.
    CpuPressure,
    /// Others wait for memory.
    MemoryPressure,
    /// The owner wants quiet.
    QuietHours,
    /// Somebody said so.
    Operator,
}

impl Cause {
    /// Every cause.
    pub const ALL: [Self; 6] = [
        Self::Battery,
        Self::Temperature,
        Self::CpuPressure,
        Self::MemoryPressure,
        Self::QuietHours,
        Self::Operator,
    ];

    /// Its name in JSON and metrics.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Battery => "battery",
            Self::Temperature => "temperature",
            Self::CpuPressure => "cpu_pressure",
            Self::MemoryPressure => "memory_pressure",
            Self::QuietHours => "quiet_hours",
            Self::Operator => "operator",
        }
    }
}

/// How far a cause has gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
enum Level {
    #[default]
    Calm,
    High,
    Critical,
}

/// Remembers which causes have set in.
#[derive(Debug, Clone)]
pub struct Governor {
    config: GovernorConfig,
    full: Strength,
    battery: Level,
    temperature: Level,
    cpu: Level,
    memory: Level,
}

/// How far a reading must come back before its cause ends.
const MARGIN: f32 = 5.0;

impl Governor {
    /// A governor of an engine with this full strength, with no cause set in.
    #[must_use]
    pub fn new(config: GovernorConfig, full: Strength) -> Self {
        Self {
            config,
            full,
            battery: Level::Calm,
            temperature: Level::Calm,
            cpu: Level::Calm,
            memory: Level::Calm,
        }
    }

    /// Takes new readings and says what follows.
    pub fn update(&mut self, readings: &Readings) -> Narrowing {
        let c = self.config;
        // Battery counts downwards: negated, all causes rise.
        self.battery = rise(
            self.battery,
            readings.battery_percent.map(|v| -v),
            -c.battery_low_percent,
            -c.battery_critical_percent,
        );
        self.temperature = rise(
            self.temperature,
            readings.temperature_c,
            c.temperature_high_c,
            c.temperature_critical_c,
        );
        self.cpu = rise(
            self.cpu,
            readings.cpu_pressure_percent,
            c.cpu_pressure_high_percent,
            f32::INFINITY,
        );
        self.memory = rise(
            self.memory,
            readings.memory_pressure_percent,
            c.memory_pressure_high_percent,
            f32::INFINITY,
        );
        self.narrowing(readings)
    }

    fn narrowing(&self, readings: &Readings) -> Narrowing {
        let mut out = Narrowing::default();
        let by_level = |level| match level {
            Level::Calm => self.full.threads,
            Level::High => self.full.threads.div_ceil(2),
            Level::Critical => 1,
        };
        if let (level @ (Level::High | Level::Critical), Some(v)) =
            (self.battery, readings.battery_percent)
        {
            out.limit_threads(by_level(level));
            out.speculation = SpeculationAllowed::Off;
            out.because(Cause::Battery, format!("on battery at {v:.0} %: {}", threads(&out)));
        }
        if let (level @ (Level::High | Level::Critical), Some(v)) =
            (self.temperature, readings.temperature_c)
        {
            out.limit_threads(by_level(level));
            out.because(Cause::Temperature, format!("processor at {v:.0} °C: {}", threads(&out)));
        }
        if let (Level::High | Level::Critical, Some(v)) = (self.cpu, readings.cpu_pressure_percent)
        {
            out.limit_threads(by_level(Level::High));
            let text =
                format!("others wait for the processor {v:.0} % of the time: {}", threads(&out));
            out.because(Cause::CpuPressure, text);
        }
        if let (Level::High | Level::Critical, Some(v)) =
            (self.memory, readings.memory_pressure_percent)
        {
            let (batch, sequences) =
                ((self.full.batch_tokens / 4).max(1), (self.full.sequences / 4).max(1));
            out.batch_tokens_max = Some(batch);
            out.sequences_max = Some(sequences);
            out.speculation = SpeculationAllowed::Off;
            let text = format!(
                "others wait for memory {v:.0} % of the time: {batch} tokens a step, \
                 {sequences} sequences"
            );
            out.because(Cause::MemoryPressure, text);
        }
        if readings.quiet_hours == Some(true) {
            let share = self.full.threads as f32 * self.config.quiet_threads_share.clamp(0.0, 1.0);
            out.limit_threads((share as usize).max(1));
            out.because(Cause::QuietHours, format!("quiet hours: {}", threads(&out)));
        }
        out
    }
}

fn threads(narrowing: &Narrowing) -> String {
    match narrowing.threads_max {
        Some(1) => "1 thread".to_owned(),
        Some(n) => format!("{n} threads"),
        None => "all threads".to_owned(),
    }
}

impl Narrowing {
    fn limit_threads(&mut self, threads: usize) {
        self.threads_max = Some(self.threads_max.map_or(threads, |n| n.min(threads)));
    }

    fn because(&mut self, cause: Cause, text: String) {
        self.reasons.push(Reason { cause, text });
    }

    /// What is left of full strength; at least one thread, one token, one sequence.
    #[must_use]
    pub fn apply(&self, full: Strength) -> Strength {
        let least = |full: usize, max: Option<usize>| max.map_or(full, |m| full.min(m)).max(1);
        Strength {
            threads: least(full.threads, self.threads_max),
            batch_tokens: least(full.batch_tokens, self.batch_tokens_max),
            sequences: least(full.sequences, self.sequences_max),
        }
    }
}

/// The next level of a cause that sets in at `high` and `critical` and leaves by a margin. A
/// reading that is gone ends its cause.
fn rise(before: Level, reading: Option<f32>, high: f32, critical: f32) -> Level {
    let Some(value) = reading.filter(|v| v.is_finite()) else { return Level::Calm };
    let at = |threshold: f32, level: Level| {
        value >= if before >= level { threshold - MARGIN } else { threshold }
    };
    if at(critical, Level::Critical) {
        Level::Critical
    } else if at(high, Level::High) {
        Level::High
    } else {
        Level::Calm
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FULL: Strength = Strength { threads: 8, batch_tokens: 512, sequences: 16 };

    fn governor() -> Governor {
        Governor::new(GovernorConfig::default(), FULL)
    }

    #[test]
    fn calm_readings_take_nothing_away() {
        let calm = Readings {
            battery_percent: Some(90.0),
            temperature_c: Some(50.0),
            cpu_pressure_percent: Some(1.0),
            memory_pressure_percent: Some(0.0),
            quiet_hours: Some(false),
        };
        assert_eq!(governor().update(&calm), Narrowing::default());
        assert_eq!(governor().update(&Readings::default()), Narrowing::default());
    }

    #[test]
    fn a_low_battery_halves_threads_and_a_critical_one_leaves_one() {
        let mut g = governor();
        let low = g.update(&Readings { battery_percent: Some(29.0), ..Readings::default() });
        assert_eq!(low.threads_max, Some(4));
        assert_eq!(low.speculation, SpeculationAllowed::Off);
        assert_eq!(low.reasons[0].cause, Cause::Battery);
        let critical = g.update(&Readings { battery_percent: Some(10.0), ..Readings::default() });
        assert_eq!(critical.threads_max, Some(1));
        assert!(critical.reasons[0].text.contains("10 %"), "{:?}", critical.reasons);
    }

    #[test]
    fn heat_ends_only_when_it_has_left_the_threshold_by_a_margin() {
        let mut g = governor();
        let at = |g: &mut Governor, t| {
            g.update(&Readings { temperature_c: Some(t), ..Readings::default() }).threads_max
        };
        assert_eq!(at(&mut g, 79.0), None);
        assert_eq!(at(&mut g, 80.0), Some(4));
        assert_eq!(at(&mut g, 76.0), Some(4), "still within the margin");
        assert_eq!(at(&mut g, 74.0), None);
        assert_eq!(at(&mut g, 76.0), None);
    }

    #[test]
    fn several_causes_take_the_least_and_all_are_named() {
        let n = governor().update(&Readings {
            temperature_c: Some(95.0),
            memory_pressure_percent: Some(50.0),
            quiet_hours: Some(true),
            ..Readings::default()
        });
        assert_eq!(n.apply(FULL), Strength { threads: 1, batch_tokens: 128, sequences: 4 });
        let causes: Vec<_> = n.reasons.iter().map(|r| r.cause).collect();
        assert_eq!(causes, [Cause::Temperature, Cause::MemoryPressure, Cause::QuietHours]);
    }

    #[test]
    fn nothing_narrows_below_one() {
        let n = Narrowing {
            threads_max: Some(0),
            batch_tokens_max: Some(0),
            sequences_max: Some(0),
            ..Narrowing::default()
        };
        assert_eq!(n.apply(FULL), Strength { threads: 1, batch_tokens: 1, sequences: 1 });
    }
}
