//! Measures what the tokenizer and the grammar tables of a vocabulary take: the engine's plan has
//! constants for both.
//!
//! ```text
//! vocabulary MODEL.gguf
//! ```

use std::path::Path;

use fulmar_inference::constraint::Vocabulary;
use fulmar_inference::engine::Constraint;
use fulmar_inference::gguf::Gguf;
use fulmar_inference::tokenizer::Tokenizer;

/// A field of `/proc/self/status`, in bytes.
fn status(field: &str) -> Result<u64, Box<dyn std::error::Error>> {
    let text = std::fs::read_to_string("/proc/self/status")?;
    let line = text.lines().find_map(|line| line.strip_prefix(field)).ok_or("no such field")?;
    Ok(line.trim_start_matches(':').trim().trim_end_matches(" kB").parse::<u64>()? * 1024)
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let path = std::env::args().nth(1).ok_or("usage: vocabulary MODEL.gguf")?;
    let before = status("VmRSS")?;
    let gguf = Gguf::open(Path::new(&path))?;
    let tokenizer = Tokenizer::from_gguf(&gguf)?;
    let between = status("VmRSS")?;
    let count = tokenizer.vocab_len() as u32;
    let words = (0..count).map(|id| tokenizer.token_bytes(id).to_vec()).collect();
    let vocabulary = Vocabulary::new(words, tokenizer.ends())?;
    let guide = vocabulary.compile(&Constraint::Json)?;
    let after = status("VmRSS")?;
    println!(
        "{count} tokens: tokenizer {} bytes a token, grammar tables {}, together at the peak {}",
        between.saturating_sub(before) / u64::from(count),
        after.saturating_sub(between) / u64::from(count),
        status("VmHWM")?.saturating_sub(before) / u64::from(count),
    );
    drop((guide, tokenizer));
    Ok(())
}
