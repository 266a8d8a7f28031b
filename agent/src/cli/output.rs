//! Tables, sizes and times for people.

use comfy_table::{Table, presets};

/// A table without frames, as other tools for models print theirs.
pub(crate) fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(header.iter().map(|text| text.to_uppercase()));
    table
}

/// Bytes in the largest unit that fits: `4.2 MB`, powers of 1000.
pub(crate) fn size(bytes: u64) -> String {
    let mut value = bytes as f64;
    for unit in ["B", "kB", "MB", "GB"] {
        if value < 1000.0 {
            return if unit == "B" { format!("{bytes} B") } else { format!("{value:.1} {unit}") };
        }
        value /= 1000.0;
    }
    format!("{value:.1} TB")
}

/// A count with its unit: `5.2M`.
pub(crate) fn count(number: u64) -> String {
    match number {
        0..1_000 => number.to_string(),
        1_000..1_000_000 => format!("{:.1}k", number as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1}M", number as f64 / 1e6),
        _ => format!("{:.1}B", number as f64 / 1e9),
    }
}

/// Seconds since 1970 as RFC 3339, in UTC.
pub(crate) fn time(at_s: i64) -> String {
    jiff::Timestamp::from_second(at_s)
        .map_or_else(|_| at_s.to_string(), |time| time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string())
}

/// The first digits of a digest, as many as people compare.
pub(crate) fn short_digest(digest: &str) -> String {
    digest.strip_prefix("sha256:").unwrap_or(digest).chars().take(12).collect()
}

/// Prints a value as indented JSON.
pub(crate) fn json(value: &impl serde::Serialize) -> anyhow::Result<()> {
    println!("{}", serde_json::to_string_pretty(value)?);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_counts_and_times_read_well() {
        assert_eq!(size(999), "999 B");
        assert_eq!(size(5_300_000), "5.3 MB");
        assert_eq!(count(5_243_136), "5.2M");
        assert_eq!(time(0), "1970-01-01T00:00:00Z");
        assert_eq!(time(i64::MAX), i64::MAX.to_string());
    }
}
