//! The rules of a [`Batch`], checked once for every backend, so that none has to trust its caller.

use super::{BLOCK_TOKENS, BackendOptions, Batch, Rows, StepError};

/// Refuses a batch that breaks a rule of [`Batch`] or [`super::Span`] or exceeds what the backend
/// prepared for.
///
/// # Errors
/// [`StepError::Batch`] naming the rule.
pub fn check_batch(
    batch: &Batch<'_>,
    vocab_len: usize,
    options: &BackendOptions,
) -> Result<(), StepError> {
    let refuse = |reason: String| Err(StepError::Batch(reason));
    if batch.tokens.is_empty() || batch.tokens.len() > options.batch_tokens_max {
        let (len, max) = (batch.tokens.len(), options.batch_tokens_max);
        return refuse(format!("{len} tokens, expected 1 to batch_tokens_max {max}"));
    }
    if let Some(token) = batch.tokens.iter().find(|token| **token as usize >= vocab_len) {
        return refuse(format!("token {token}, expected below the vocabulary's {vocab_len}"));
    }
    let mut next = 0_usize;
    for (index, span) in batch.spans.iter().enumerate() {
        if span.start != next || span.len == 0 {
            let (start, len) = (span.start, span.len);
            return refuse(format!(
                "span {index} has {len} tokens from {start}, expected from {next}"
            ));
        }
        next = match span.start.checked_add(span.len) {
            Some(end) if end <= batch.tokens.len() => end,
            _ => return refuse(format!("span {index} ends behind the last token")),
        };
        let end = span.position.checked_add(span.len);
        let Some(end) = end.filter(|end| *end <= options.context_tokens_max) else {
            let max = options.context_tokens_max;
            return refuse(format!("span {index} ends behind context_tokens_max {max}"));
        };
        if span.blocks.len() < end.div_ceil(BLOCK_TOKENS) {
            let len = span.blocks.len();
            return refuse(format!("span {index} has {len} blocks for {end} positions"));
        }
        if let Some(block) = span.blocks.iter().find(|b| **b as usize >= options.kv_blocks) {
            let max = options.kv_blocks;
            return refuse(format!(
                "block {block} of span {index}, expected below kv_blocks {max}"
            ));
        }
    }
    if next != batch.tokens.len() {
        return refuse(format!("{} tokens, of which spans cover {next}", batch.tokens.len()));
    }
    Ok(())
}

/// Refuses pairs of blocks that do not exist.
///
/// # Errors
/// [`StepError::Batch`].
pub fn check_blocks(pairs: &[(u32, u32)], options: &BackendOptions) -> Result<(), StepError> {
    let max = options.kv_blocks;
    match pairs.iter().find(|(from, to)| *from as usize >= max || *to as usize >= max) {
        None => Ok(()),
        Some((from, to)) => Err(StepError::Batch(format!(
            "copy of block {from} to {to}, expected both below kv_blocks {max}"
        ))),
    }
}

/// Indices into [`Batch::tokens`] of the rows that a step returns, in order.
pub fn output_rows(batch: &Batch<'_>) -> Vec<u32> {
    let mut rows = Vec::new();
    for span in batch.spans {
        let end = span.start + span.len;
        let first = match span.rows {
            Rows::None => end,
            Rows::Last => end - 1,
            Rows::All => span.start,
        };
        rows.extend((first..end).map(|row| row as u32));
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::super::{KvType, Span};
    use super::*;

    fn options() -> BackendOptions {
        BackendOptions {
            threads: 1,
            context_tokens_max: 64,
            kv_blocks: 3,
            kv_type: KvType::F32,
            batch_tokens_max: 4,
            cpus: Vec::new(),
            weight_copies: None,
        }
    }

    fn span<'a>(start: usize, len: usize, position: usize, blocks: &'a [u32]) -> Span<'a> {
        Span { start, len, position, blocks, rows: Rows::Last }
    }

    fn refusal(tokens: &[u32], spans: &[Span<'_>]) -> String {
        let batch = Batch { tokens, spans, hidden: false };
        match check_batch(&batch, 10, &options()) {
            Ok(()) => "accepted".to_owned(),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn a_batch_within_the_rules_is_accepted() {
        let spans = [span(0, 1, 31, &[2]), span(1, 3, 30, &[0, 1])];
        assert_eq!(refusal(&[1, 2, 3, 9], &spans), "accepted");
    }

    #[test]
    fn every_broken_rule_is_named() {
        let all = [span(0, 1, 0, &[0])];
        assert!(refusal(&[], &[]).contains("0 tokens"));
        assert!(refusal(&[1; 5], &[]).contains("batch_tokens_max 4"));
        assert!(refusal(&[10], &all).contains("token 10"));
        assert!(refusal(&[1, 2], &all).contains("spans cover 1"));
        assert!(refusal(&[1], &[span(1, 1, 0, &[0])]).contains("expected from 0"));
        assert!(refusal(&[1], &[span(0, 0, 0, &[0])]).contains("0 tokens from 0"));
        assert!(refusal(&[1], &[span(0, 2, 0, &[0])]).contains("behind the last token"));
        assert!(refusal(&[1], &[span(0, 1, 64, &[0, 1, 2])]).contains("context_tokens_max 64"));
        assert!(refusal(&[1], &[span(0, 1, usize::MAX, &[0])]).contains("context_tokens_max"));
        assert!(refusal(&[1], &[span(0, 1, 32, &[0])]).contains("1 blocks for 33"));
        assert!(refusal(&[1], &[span(0, 1, 0, &[3])]).contains("block 3"));
        assert!(check_blocks(&[(0, 2), (1, 3)], &options()).is_err());
    }
}
