//! Times, sizes and numbers as people read them.

use serde_json::Value;

/// `2026-01-31 12:00:05`, UTC.
pub(crate) fn time(at_s: i64) -> String {
    match jiff::Timestamp::from_second(at_s) {
        Ok(at) => at.strftime("%Y-%m-%d %H:%M:%S").to_string(),
        Err(_) => format!("{at_s} s"),
    }
}

/// How long ago, coarse, so that it does not change with every look.
pub(crate) fn ago(at_s: i64, now_s: i64) -> String {
    let passed_s = now_s.saturating_sub(at_s);
    match passed_s {
        ..0 => "in the future".to_owned(),
        0..10 => "just now".to_owned(),
        10..60 => "less than a minute ago".to_owned(),
        60..3_600 => format!("{} min ago", passed_s / 60),
        3_600..172_800 => format!("{} h ago", passed_s / 3_600),
        _ => format!("{} days ago", passed_s / 86_400),
    }
}

/// `5.4 MB`: decimal, as disks and downloads are told.
pub(crate) fn bytes(count: u64) -> String {
    scaled(count as f64, &["B", "kB", "MB", "GB", "TB", "PB"])
}

/// `5.0 M`.
pub(crate) fn count(count: u64) -> String {
    scaled(count as f64, &["", "K", "M", "B", "T"])
}

fn scaled(mut value: f64, units: &[&str]) -> String {
    let mut unit = 0;
    while value >= 999.5 && unit + 1 < units.len() {
        value /= 1_000.0;
        unit += 1;
    }
    let text =
        if unit > 0 && value < 99.95 { format!("{value:.1}") } else { format!("{value:.0}") };
    format!("{text} {}", units[unit]).trim_end().to_owned()
}

/// The first signs of a digest.
pub(crate) fn short(digest: &str) -> String {
    let hex = digest.strip_prefix("sha256:").unwrap_or(digest);
    hex.chars().take(12).collect()
}

/// Longest text that [`words`] gives, in characters.
const WORDS_LEN_MAX: usize = 240;

/// A JSON object as `name value, name value`; digests cut short, nothing for what is empty.
pub(crate) fn words(value: &Value) -> String {
    let text = match value {
        Value::Object(fields) => {
            let field = |(name, value): (&String, &Value)| {
                let text = words(value);
                (!text.is_empty()).then(|| format!("{} {text}", name.replace('_', " ")))
            };
            // By name: a map's own order depends on how the JSON library was built.
            let mut fields: Vec<_> = fields.iter().collect();
            fields.sort_by_key(|(name, _)| *name);
            fields.into_iter().filter_map(field).collect::<Vec<_>>().join(", ")
        }
        Value::Array(items) => items.iter().map(words).collect::<Vec<_>>().join(" "),
        Value::String(text) => plain(text),
        Value::Null => String::new(),
        other => other.to_string(),
    };
    let mut cut: String = text.chars().take(WORDS_LEN_MAX).collect();
    if cut.len() < text.len() {
        cut.push('…');
    }
    cut
}

/// A text with digests cut short.
pub(crate) fn plain(text: &str) -> String {
    let hex = text.strip_prefix("sha256:").unwrap_or(text);
    let is_digest = hex.len() >= 40 && hex.bytes().all(|b| b.is_ascii_hexdigit());
    if is_digest { format!("{}…", short(hex)) } else { text.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_told_with_three_signs_or_less() {
        for (value, text) in [
            (0, "0 B"),
            (999, "999 B"),
            (1_000, "1.0 kB"),
            (5_432_100, "5.4 MB"),
            (999_999, "1.0 MB"),
            (123_456_789, "123 MB"),
            (u64::MAX, "18447 PB"),
        ] {
            assert_eq!(bytes(value), text);
        }
        assert_eq!(count(5_012_345), "5.0 M");
    }

    #[test]
    fn details_are_words_with_short_digests() {
        let detail = serde_json::json!({
            "tokens": 3, "prompt_sha256": "ab".repeat(32), "list": ["a", "b"], "none": null,
            "inner": { "x": true },
        });
        assert_eq!(words(&detail), "inner x true, list a b, prompt sha256 abababababab…, tokens 3");
        assert_eq!(words(&serde_json::json!({})), "");
        assert_eq!(words(&"é".repeat(1_000).into()).chars().count(), WORDS_LEN_MAX + 1);
    }

    #[test]
    fn times_are_told_coarsely() {
        for (passed, text) in [
            (-5, "in the future"),
            (3, "just now"),
            (59, "less than a minute ago"),
            (60, "1 min ago"),
            (7_300, "2 h ago"),
            (864_000, "10 days ago"),
        ] {
            assert_eq!(ago(1_000_000, 1_000_000 + passed), text);
        }
        assert_eq!(time(0), "1970-01-01 00:00:00");
        assert_eq!(time(i64::MAX), format!("{} s", i64::MAX));
    }
}
