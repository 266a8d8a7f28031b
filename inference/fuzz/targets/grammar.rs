//! A constraint (the first byte says which kind) and a walk through it: whatever a mask allows can
//! be taken.
#![no_main]

use std::sync::LazyLock;

use fulmar_inference::constraint::Vocabulary;
use fulmar_inference::engine::Constraint;
use libfuzzer_sys::fuzz_target;

/// One token per byte, and an end token.
static VOCABULARY: LazyLock<Vocabulary> = LazyLock::new(|| {
    let mut words: Vec<Vec<u8>> = (0..=255).map(|byte| vec![byte]).collect();
    words.push(Vec::new());
    // A panic inside the compiler is caught and refused there; only one that gets out counts.
    drop(std::panic::take_hook());
    Vocabulary::new(words, &[256]).expect("a vocabulary")
});

fuzz_target!(|data: &[u8]| {
    let Some((kind, data)) = data.split_first() else { return };
    let Ok(text) = std::str::from_utf8(data) else { return };
    let constraint = match kind % 4 {
        0 => match serde_json::from_str(text) {
            Ok(schema) => Constraint::JsonSchema(schema),
            Err(_) => return,
        },
        1 => Constraint::Regex(text.to_owned()),
        2 => Constraint::Lark(text.to_owned()),
        _ => Constraint::Gbnf(text.to_owned()),
    };
    let Ok(mut guide) = VOCABULARY.compile(&constraint) else { return };
    for step in 0..32usize {
        let Ok(mask) = guide.mask() else { return };
        let allowed: Vec<u32> =
            (0..257).filter(|id| mask[*id as usize / 32] >> (id % 32) & 1 == 1).collect();
        if allowed.is_empty() {
            return;
        }
        let choice = usize::from(data.get(step).copied().unwrap_or(0)) % allowed.len();
        if guide.take(allowed[choice]).is_err() {
            return;
        }
    }
});
