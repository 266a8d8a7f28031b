//! JSON lines: one object per line in, one per line out, in order.

use std::io::{BufRead, Write};

use anyhow::{Context, ensure};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Longest line, in bytes: a conversation with its documents, not a file system.
const LINE_BYTES_MAX: usize = 64 << 20;

/// Answers each line of standard input on standard output.
pub(super) fn answer<In: DeserializeOwned, Out: Serialize>(
    answer: impl FnMut(In) -> anyhow::Result<Out>,
) -> anyhow::Result<()> {
    let (input, output) = (std::io::stdin().lock(), std::io::stdout().lock());
    answer_between(input, output, answer)
}

/// Reads all lines of standard input.
pub(super) fn read<In: DeserializeOwned>() -> anyhow::Result<Vec<In>> {
    let mut all = Vec::new();
    let sink = std::io::sink();
    answer_between(std::io::stdin().lock(), sink, |given: In| {
        all.push(given);
        Ok(())
    })?;
    Ok(all)
}

/// Writes a line to standard output for each answer.
pub(super) fn write<Out: Serialize>(answers: &[Out]) -> anyhow::Result<()> {
    let mut output = std::io::stdout().lock();
    for answer in answers {
        serde_json::to_writer(&mut output, answer).context("write standard output")?;
        writeln!(output).context("write standard output")?;
    }
    output.flush().context("write standard output")
}

fn answer_between<In: DeserializeOwned, Out: Serialize>(
    mut input: impl BufRead,
    mut output: impl Write,
    mut answer: impl FnMut(In) -> anyhow::Result<Out>,
) -> anyhow::Result<()> {
    let mut line = Vec::new();
    for number in 1.. {
        line.clear();
        let limit = LINE_BYTES_MAX as u64 + 1;
        let read = std::io::Read::take(&mut input, limit).read_until(b'\n', &mut line);
        if read.context("read standard input")? == 0 {
            break;
        }
        ensure!(
            line.len() <= LINE_BYTES_MAX,
            "read line {number}: longer than {LINE_BYTES_MAX} bytes"
        );
        if line.trim_ascii().is_empty() {
            continue;
        }
        let given = serde_json::from_slice(&line).with_context(|| format!("read line {number}"))?;
        let answered = answer(given).with_context(|| format!("answer line {number}"))?;
        serde_json::to_writer(&mut output, &answered).context("write standard output")?;
        writeln!(output).context("write standard output")?;
    }
    output.flush().context("write standard output")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn doubled(input: &str) -> (anyhow::Result<()>, String) {
        let mut output = Vec::new();
        let outcome = answer_between(input.as_bytes(), &mut output, |n: u32| Ok(n * 2));
        (outcome, String::from_utf8(output).expect("JSON"))
    }

    #[test]
    fn every_line_is_answered_in_order_and_empty_ones_are_skipped() {
        let (outcome, output) = doubled("1\n\n  \n20");
        outcome.expect("numbers");
        assert_eq!(output, "2\n40\n");
    }

    #[test]
    fn a_line_that_is_no_json_ends_it_with_its_number() {
        let (outcome, output) = doubled("1\nx\n3\n");
        assert!(outcome.expect_err("no JSON").to_string().contains("line 2"));
        assert_eq!(output, "2\n");
    }
}
