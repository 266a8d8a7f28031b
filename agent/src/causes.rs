//! An error and its causes, in one line.

use std::error::Error;

/// The error, then what caused it, parted by colons. Many errors quote their cause in their own
/// words: what the line ends with already is not said again.
pub(crate) fn line(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let words = error.to_string();
        if !text.ends_with(&words) {
            text += ": ";
            text += &words;
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use anyhow::Context as _;

    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("read a model reference: {0}")]
    struct Quoting(#[from] std::num::ParseIntError);

    #[test]
    fn a_cause_that_the_error_quotes_is_said_once() {
        let parse = || "x".parse::<u8>().map_err(Quoting);
        assert_eq!(
            line(&parse().unwrap_err()),
            "read a model reference: invalid digit found in string"
        );
        let error = parse().context("find the model").unwrap_err();
        assert_eq!(
            line(error.as_ref()),
            "find the model: read a model reference: invalid digit found in string"
        );
    }

    #[test]
    fn a_cause_that_is_not_quoted_is_added() {
        let error = anyhow::anyhow!("no such file").context("open x.gguf").context("run it");
        assert_eq!(line(error.as_ref()), "run it: open x.gguf: no such file");
    }
}
