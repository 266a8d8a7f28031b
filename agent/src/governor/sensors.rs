//! What the host says about itself, read from `/sys` and `/proc` under a root.
//!
//! Each reader is a function of the root alone. What is not there is [`Sensor::Absent`], what can't
//! be read or makes no sense is [`Sensor::Failed`] with the reason; neither is ever fatal, and
//! neither narrows anything.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use fulmar_inference::governor::Readings;
use serde::Serialize;

/// What one sensor says.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub(crate) enum Sensor {
    /// A reading, in the unit of its name.
    Reads { value: f32 },
    /// It is there and has nothing to say: a battery that is not being used up.
    Calm,
    /// This host has none.
    Absent,
    /// It is there and can't be used.
    Failed { reason: String },
}

impl Sensor {
    fn value(&self) -> Option<f32> {
        match self {
            Self::Reads { value } => Some(*value),
            Self::Calm | Self::Absent | Self::Failed { .. } => None,
        }
    }

    fn of(read: Result<Option<Self>, Failure>) -> Self {
        match read {
            Ok(Some(sensor)) => sensor,
            Ok(None) => Self::Absent,
            Err(Failure(reason)) => Self::Failed { reason },
        }
    }
}

/// All sensors at one moment.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Sensors {
    /// Charge in percent, while it is being used up.
    pub(crate) battery_percent: Sensor,
    /// The processor's hottest zone in degrees Celsius.
    pub(crate) temperature_c: Sensor,
    /// PSI `some avg10` of the processor, in percent.
    pub(crate) cpu_pressure_percent: Sensor,
    /// PSI `some avg10` of memory, in percent.
    pub(crate) memory_pressure_percent: Sensor,
}

impl Sensors {
    /// Reads every sensor below `root` (`/` on a device).
    pub(crate) fn read(root: &Path) -> Self {
        Self {
            battery_percent: Sensor::of(battery(&root.join("sys/class/power_supply"))),
            temperature_c: temperature(root),
            cpu_pressure_percent: Sensor::of(pressure(&root.join("proc/pressure/cpu"))),
            memory_pressure_percent: Sensor::of(pressure(&root.join("proc/pressure/memory"))),
        }
    }

    /// With their names.
    pub(crate) fn each(&self) -> [(&'static str, &Sensor); 4] {
        [
            ("battery_percent", &self.battery_percent),
            ("temperature_c", &self.temperature_c),
            ("cpu_pressure_percent", &self.cpu_pressure_percent),
            ("memory_pressure_percent", &self.memory_pressure_percent),
        ]
    }

    /// For the governor.
    pub(crate) fn readings(&self, quiet_hours: Option<bool>) -> Readings {
        Readings {
            battery_percent: self.battery_percent.value(),
            temperature_c: self.temperature_c.value(),
            cpu_pressure_percent: self.cpu_pressure_percent.value(),
            memory_pressure_percent: self.memory_pressure_percent.value(),
            quiet_hours,
        }
    }
}

/// Why a sensor can't be used.
#[derive(Debug)]
struct Failure(String);

/// A short file's text; `None` where there is no such file.
fn text(path: &Path) -> Result<Option<String>, Failure> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text.trim().to_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Failure(format!("read {}: {error}", path.display()))),
    }
}

fn number(path: &Path) -> Result<Option<f32>, Failure> {
    let Some(text) = text(path)? else { return Ok(None) };
    match text.parse::<f32>() {
        Ok(number) if number.is_finite() => Ok(Some(number)),
        _ => Err(Failure(format!("read {}: {text:?} is no number", path.display()))),
    }
}

/// The entries of a folder in order; none where there is no folder.
fn entries(folder: &Path, prefix: &str) -> Result<Vec<PathBuf>, Failure> {
    let listed = match fs::read_dir(folder) {
        Ok(listed) => listed,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(Failure(format!("list {}: {error}", folder.display()))),
    };
    let mut found: Vec<PathBuf> = listed
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .filter(|path| {
            path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(prefix))
        })
        .collect();
    found.sort();
    Ok(found)
}

/// The mean charge of the batteries that power the host, while one of them is being used up.
fn battery(folder: &Path) -> Result<Option<Sensor>, Failure> {
    let mut charges = Vec::new();
    let mut discharging = 0;
    for supply in entries(folder, "")? {
        let is_battery = text(&supply.join("type"))?.as_deref() == Some("Battery");
        // A mouse's or a headset's battery says nothing about the host.
        let of_a_device = text(&supply.join("scope"))?.as_deref() == Some("Device");
        if !is_battery || of_a_device {
            continue;
        }
        let Some(charge) = number(&supply.join("capacity"))? else { continue };
        if !(0.0..=100.0).contains(&charge) {
            let path = supply.join("capacity");
            return Err(Failure(format!("read {}: {charge} is no percentage", path.display())));
        }
        charges.push(charge);
        let status = text(&supply.join("status"))?;
        discharging += usize::from(status.as_deref() == Some("Discharging"));
    }
    if charges.is_empty() {
        return Ok(None);
    }
    if discharging == 0 {
        return Ok(Some(Sensor::Calm));
    }
    Ok(Some(Sensor::Reads { value: charges.iter().sum::<f32>() / charges.len() as f32 }))
}

/// Parts of the names that zones and chips of a processor have.
const PROCESSOR: [&str; 8] = ["cpu", "soc", "pkg", "core", "k10temp", "zenpower", "x86", "package"];
/// Temperatures outside are a sensor's way to say that it has none.
const PLAUSIBLE_C: std::ops::RangeInclusive<f32> = -40.0..=150.0;

/// The hottest of the processor's zones; of all zones where none is known as the processor's.
/// One zone that can't be read (many are asleep) doesn't hide the others.
fn temperature(root: &Path) -> Sensor {
    let zones = match zones(root) {
        Ok(zones) => zones,
        Err(Failure(reason)) => return Sensor::Failed { reason },
    };
    let (mut processor, mut any) = (None::<f32>, None::<f32>);
    let mut failure = None;
    for (name, path) in zones {
        match number(&path) {
            Ok(Some(milli)) if PLAUSIBLE_C.contains(&(milli / 1000.0)) => {
                let degrees = milli / 1000.0;
                let hotter = |max: Option<f32>| Some(max.map_or(degrees, |m| m.max(degrees)));
                any = hotter(any);
                if PROCESSOR.iter().any(|part| name.contains(part)) {
                    processor = hotter(processor);
                }
            }
            Ok(Some(milli)) => {
                failure = Some(format!("read {}: {milli} is out of range", path.display()));
            }
            Ok(None) => {}
            Err(Failure(reason)) => failure = Some(reason),
        }
    }
    match (processor.or(any), failure) {
        (Some(value), _) => Sensor::Reads { value },
        (None, Some(reason)) => Sensor::Failed { reason },
        (None, None) => Sensor::Absent,
    }
}

/// Names and temperature files of all thermal zones and hardware monitors.
fn zones(root: &Path) -> Result<Vec<(String, PathBuf)>, Failure> {
    let name = |path: &Path| text(path).ok().flatten().unwrap_or_default().to_lowercase();
    let mut zones = Vec::new();
    for zone in entries(&root.join("sys/class/thermal"), "thermal_zone")? {
        zones.push((name(&zone.join("type")), zone.join("temp")));
    }
    for chip in entries(&root.join("sys/class/hwmon"), "hwmon")? {
        let chip_name = name(&chip.join("name"));
        for file in entries(&chip, "temp")? {
            if file.to_string_lossy().ends_with("_input") {
                zones.push((chip_name.clone(), file));
            }
        }
    }
    Ok(zones)
}

/// `some avg10` of a pressure stall file: <https://docs.kernel.org/accounting/psi.html>.
fn pressure(path: &Path) -> Result<Option<Sensor>, Failure> {
    let Some(text) = text(path)? else { return Ok(None) };
    let some = text.lines().find_map(|line| line.strip_prefix("some "));
    let average = some
        .and_then(|line| line.split(' ').find_map(|field| field.strip_prefix("avg10=")))
        .and_then(|number| number.parse::<f32>().ok());
    match average.filter(|percent| (0.0..=100.0).contains(percent)) {
        Some(value) => Ok(Some(Sensor::Reads { value })),
        None => Err(Failure(format!("read {}: no \"some avg10=\" percentage", path.display()))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (path, content) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
        root
    }

    const BATTERY: &str = "sys/class/power_supply/BAT0";

    fn battery_host(status: &str, capacity: &str) -> tempfile::TempDir {
        let path = |field: &str| format!("{BATTERY}/{field}");
        host(&[
            (&path("type"), "Battery\n"),
            (&path("status"), status),
            (&path("capacity"), capacity),
            ("sys/class/power_supply/mouse/type", "Battery\n"),
            ("sys/class/power_supply/mouse/scope", "Device\n"),
            ("sys/class/power_supply/mouse/status", "Discharging\n"),
            ("sys/class/power_supply/mouse/capacity", "3\n"),
            ("sys/class/power_supply/AC/type", "Mains\n"),
        ])
    }

    #[test]
    fn a_host_without_sensors_says_so_of_each() {
        let root = host(&[]);
        let sensors = Sensors::read(root.path());
        assert!(sensors.each().iter().all(|(_, sensor)| **sensor == Sensor::Absent), "{sensors:?}");
        assert_eq!(sensors.readings(None), Readings::default());
    }

    #[test]
    fn a_battery_counts_while_it_is_used_up_and_a_mouse_never_does() {
        let read = |host: &tempfile::TempDir| Sensors::read(host.path()).battery_percent;
        assert_eq!(read(&battery_host("Discharging\n", "42\n")), Sensor::Reads { value: 42.0 });
        assert_eq!(read(&battery_host("Charging\n", "42\n")), Sensor::Calm);
        let broken = read(&battery_host("Discharging\n", "many\n"));
        assert!(matches!(&broken, Sensor::Failed { reason } if reason.contains("capacity")));
        assert!(matches!(read(&battery_host("Discharging\n", "250\n")), Sensor::Failed { .. }));
    }

    #[test]
    fn the_hottest_zone_of_the_processor_counts_and_one_asleep_hides_no_other() {
        let root = host(&[
            ("sys/class/thermal/thermal_zone0/type", "iwlwifi_1\n"),
            ("sys/class/thermal/thermal_zone0/temp", "99000\n"),
            ("sys/class/thermal/thermal_zone1/type", "x86_pkg_temp\n"),
            ("sys/class/thermal/thermal_zone1/temp", "61500\n"),
            ("sys/class/thermal/thermal_zone2/type", "cpu-thermal\n"),
            ("sys/class/thermal/thermal_zone2/temp", "-274000\n"),
            ("sys/class/hwmon/hwmon0/name", "coretemp\n"),
            ("sys/class/hwmon/hwmon0/temp1_input", "64000\n"),
            ("sys/class/hwmon/hwmon0/temp1_max", "100000\n"),
        ]);
        assert_eq!(Sensors::read(root.path()).temperature_c, Sensor::Reads { value: 64.0 });
        let asleep = host(&[
            ("sys/class/thermal/thermal_zone0/type", "cpu\n"),
            ("sys/class/thermal/thermal_zone0/temp", "-274000\n"),
        ]);
        let sensor = Sensors::read(asleep.path()).temperature_c;
        assert!(matches!(&sensor, Sensor::Failed { reason } if reason.contains("temp")));
    }

    #[test]
    fn pressure_is_the_share_of_the_last_ten_seconds() {
        let text = "some avg10=12.34 avg60=1.00 avg300=0.10 total=99\n\
                    full avg10=77.00 avg60=0.00 avg300=0.00 total=0\n";
        let root = host(&[("proc/pressure/cpu", text), ("proc/pressure/memory", "nonsense")]);
        let sensors = Sensors::read(root.path());
        assert_eq!(sensors.cpu_pressure_percent, Sensor::Reads { value: 12.34 });
        assert!(matches!(sensors.memory_pressure_percent, Sensor::Failed { .. }));
    }
}
