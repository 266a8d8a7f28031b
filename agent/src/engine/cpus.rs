//! A list of processors in the configuration: `0-3,6`.

use std::collections::BTreeSet;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Largest processor number that Linux's own sets hold.
const CPU_MAX: usize = 1023;

/// Processors by number, each once, in ascending order; may be empty.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Given", into = "String")]
pub(crate) struct Cpus(pub(super) Vec<usize>);

/// A list as it stands in the configuration: one processor may be written as a number.
#[derive(Deserialize)]
#[serde(untagged)]
enum Given {
    One(usize),
    List(String),
}

/// The list cannot be read.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("processors {found:?}: expected numbers and ranges from 0 to {CPU_MAX}, as 0-3,6")]
pub(crate) struct CpusError {
    found: String,
}

impl FromStr for Cpus {
    type Err = CpusError;

    fn from_str(text: &str) -> Result<Self, CpusError> {
        let failed = || CpusError { found: text.to_owned() };
        let number = |text: &str| text.trim().parse::<usize>().ok().filter(|n| *n <= CPU_MAX);
        let mut all = BTreeSet::new();
        for part in text.split(',').filter(|_| !text.trim().is_empty()) {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let (first, last) = number(first).zip(number(last)).ok_or_else(failed)?;
            if first > last {
                return Err(failed());
            }
            all.extend(first..=last);
        }
        Ok(Self(all.into_iter().collect()))
    }
}

impl TryFrom<Given> for Cpus {
    type Error = CpusError;

    fn try_from(given: Given) -> Result<Self, CpusError> {
        match given {
            Given::One(cpu) => cpu.to_string().parse(),
            Given::List(list) => list.parse(),
        }
    }
}

impl From<Cpus> for String {
    fn from(cpus: Cpus) -> Self {
        cpus.0.iter().map(usize::to_string).collect::<Vec<_>>().join(",")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_and_ranges_of_processors_are_read() {
        let read = |text: &str| text.parse::<Cpus>().map(|cpus| cpus.0);
        assert_eq!(read("0-3"), Ok(vec![0, 1, 2, 3]));
        assert_eq!(read("6, 0-1,1"), Ok(vec![0, 1, 6]));
        assert_eq!(read(" "), Ok(vec![]));
        for wrong in ["x", "3-1", "1,", "0-", "-1", "1024", "0-9999999999", "1.5"] {
            let refused = read(wrong).unwrap_err().to_string();
            assert!(refused.contains(wrong) && refused.contains("0-3,6"), "{refused}");
        }
    }
}
