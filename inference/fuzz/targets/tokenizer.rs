//! A text in small vocabularies of both kinds: it comes back as it was, ids are in the vocabulary,
//! and plain or shielded text has no reserved token.
#![no_main]

use std::sync::LazyLock;

use fulmar_inference::gguf::Gguf;
use fulmar_inference::tokenizer::{SHIELD, Special, StreamDecoder, Tokenizer};
use libfuzzer_sys::fuzz_target;

/// The files of the `gguf` target's corpus that have a vocabulary.
static TOKENIZERS: LazyLock<Vec<Tokenizer>> = LazyLock::new(|| {
    [
        &include_bytes!("../corpus/gguf/vocabulary-gpt-2")[..],
        &include_bytes!("../corpus/gguf/vocabulary-gpt-4o")[..],
        &include_bytes!("../corpus/gguf/vocabulary-qwen2")[..],
        &include_bytes!("../corpus/gguf/vocabulary-llama")[..],
    ]
    .into_iter()
    .map(|bytes| {
        let gguf = Gguf::from_bytes(bytes.to_vec()).expect("the corpus is well-formed");
        Tokenizer::from_gguf(&gguf).expect("the corpus is well-formed")
    })
    .collect()
});

fuzz_target!(|data: &[u8]| {
    let Some((choice, bytes)) = data.split_first() else { return };
    let tokenizers = &*TOKENIZERS;
    let choice = usize::from(*choice) % tokenizers.len();
    let tokenizer = &tokenizers[choice];
    let mut stream = StreamDecoder::new();
    let mut streamed: String = bytes.chunks(3).map(|piece| stream.push(piece)).collect();
    streamed += &stream.finish();
    assert_eq!(streamed, String::from_utf8_lossy(bytes));

    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let plain = tokenizer.encode(text, Special::Plain);
    let parsed = tokenizer.encode(text, Special::Parse);
    let shielded = tokenizer.encode(&tokenizer.shield(text), Special::Parse);
    assert!(plain.iter().chain(&parsed).all(|id| (*id as usize) < tokenizer.vocab_len()));
    assert!(plain.iter().chain(&shielded).all(|id| !tokenizer.is_reserved(*id)));
    // Normalization (qwen2) and SentencePiece's spaces do not come back as they were.
    if choice < 2 {
        let text = text.replace(SHIELD, "");
        assert_eq!(tokenizer.decode(&plain), text);
        assert_eq!(tokenizer.decode(&shielded), text);
    }
});
