//! Date-times of metadata: `YYYY-MM-DDTHH:MM:SSZ`, and nothing else.

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A date-time, in seconds since 1970 in UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Date(pub i64);

impl Date {
    /// Parses `YYYY-MM-DDTHH:MM:SSZ`; `None` for any other text.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let shape = b"dddd-dd-ddTdd:dd:ddZ";
        let fits = text.len() == shape.len()
            && text.bytes().zip(shape).all(|(byte, form)| match form {
                b'd' => byte.is_ascii_digit(),
                other => byte == *other,
            });
        if !fits {
            return None;
        }
        text.parse::<jiff::Timestamp>().ok().map(|at| Self(at.as_second()))
    }
}

impl std::fmt::Display for Date {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match jiff::Timestamp::from_second(self.0) {
            Ok(at) => write!(f, "{}", at.strftime("%Y-%m-%dT%H:%M:%SZ")),
            Err(_) => write!(f, "second {} since 1970", self.0),
        }
    }
}

impl Serialize for Date {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Date {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        Self::parse(&text).ok_or_else(|| {
            serde::de::Error::custom(format!(
                "{:?} is no date-time of the form 2031-12-31T23:59:59Z",
                text.chars().take(60).collect::<String>()
            ))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_one_form_is_a_date() {
        assert_eq!(Date::parse("1970-01-01T00:00:00Z"), Some(Date(0)));
        assert_eq!(
            Date::parse("1985-10-21T01:21:00Z").map(|d| d.to_string()).as_deref(),
            Some("1985-10-21T01:21:00Z")
        );
        assert!(Date::parse("9999-12-31T23:59:59Z").is_none_or(|d| d.0 > 0));
        for text in [
            "",
            "1985-10-21",
            "1985-10-21T01:21:00",
            "1985-10-21T01:21:00+00:00",
            "1985-10-21 01:21:00Z",
            "1985-10-21T01:21:00.5Z",
            "1985-13-21T01:21:00Z",
            "1985-02-30T01:21:00Z",
            "1985-10-21t01:21:00z",
            "１985-10-21T01:21:00Z",
        ] {
            assert_eq!(Date::parse(text), None, "{text}");
        }
    }
}
