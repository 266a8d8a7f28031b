//! Small vocabularies of our own, made by code, and what they must do.

use std::sync::OnceLock;

use super::*;
use crate::gguf::{NewValue, Writer};

/// GPT-2's character for a byte.
fn written(byte: u8) -> char {
    let shifted = |byte: u8| !matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    match shifted(byte) {
        false => char::from(byte),
        true => {
            let before = (0..byte).filter(|b| shifted(*b)).count() as u32;
            char::from_u32(0x100 + before).unwrap()
        }
    }
}

fn written_text(text: &str) -> String {
    text.bytes().map(written).collect()
}

/// A byte-level vocabulary: 256 bytes, the results of the merges, control tokens, one defined.
pub(crate) fn byte_level(pre: &str) -> Writer {
    let mut tokens: Vec<String> = (0..=255).map(|byte| written(byte).to_string()).collect();
    let mut merges = Vec::new();
    for (left, right) in [
        ("h", "e"),
        ("l", "l"),
        ("he", "ll"),
        ("hell", "o"),
        (" ", "hello"),
        ("1", "2"),
        ("é", "é"),
    ] {
        let (left, right) = (written_text(left), written_text(right));
        if left.chars().count() > 1 && !tokens.contains(&left) {
            // the two bytes of a character first
            let mut halves = left.chars();
            let (a, b) = (halves.next().unwrap(), halves.next().unwrap());
            merges.push(format!("{a} {b}"));
            tokens.push(left.clone());
        }
        merges.push(format!("{left} {right}"));
        tokens.push(left + &right);
    }
    let mut kinds = vec![1; tokens.len()];
    for (text, kind) in [("<|bos|>", 3), ("<|im_end|>", 3), ("<think>", 4), ("  ", 4)] {
        tokens.push(text.to_owned());
        kinds.push(kind);
    }
    let bos = tokens.iter().position(|token| token == "<|bos|>").unwrap() as u32;
    let mut writer = Writer::new("llama");
    writer
        .set("tokenizer.ggml.model", "gpt2")
        .set("tokenizer.ggml.pre", pre)
        .set("tokenizer.ggml.tokens", NewValue::Strings(tokens))
        .set("tokenizer.ggml.token_type", NewValue::I32s(kinds))
        .set("tokenizer.ggml.merges", NewValue::Strings(merges))
        .set("tokenizer.ggml.bos_token_id", bos)
        .set("tokenizer.ggml.eos_token_id", bos + 1);
    writer
}

/// A SentencePiece vocabulary with byte fallback and a defined token.
pub(crate) fn sentence_piece() -> Writer {
    let mut tokens: Vec<(String, f32, i32)> =
        vec![("<unk>".into(), 0.0, 2), ("<s>".into(), 0.0, 3), ("</s>".into(), 0.0, 3)];
    tokens.extend((0..=255).map(|byte: u8| (format!("<0x{byte:02X}>"), 0.0, 6)));
    for (rank, text) in
        ["▁", "a", "b", "s", "<", "/", ">", "ab", "▁ab", "▁a", "</", "</s"].iter().enumerate()
    {
        tokens.push(((*text).into(), -(rank as f32), 1));
    }
    tokens.push(("▁▁".into(), 0.0, 4));
    let mut writer = Writer::new("llama");
    writer
        .set("tokenizer.ggml.model", "llama")
        .set(
            "tokenizer.ggml.tokens",
            NewValue::Strings(tokens.iter().map(|t| t.0.clone()).collect()),
        )
        .set("tokenizer.ggml.scores", NewValue::F32s(tokens.iter().map(|t| t.1).collect()))
        .set("tokenizer.ggml.token_type", NewValue::I32s(tokens.iter().map(|t| t.2).collect()))
        .set("tokenizer.ggml.bos_token_id", 1u32)
        .set("tokenizer.ggml.eos_token_id", 2u32);
    writer
}

pub(crate) fn load(writer: Writer) -> Result<Tokenizer, TokenizerError> {
    let gguf = Gguf::from_bytes(writer.into_bytes::<Vec<u8>>(&[]).unwrap()).unwrap();
    Tokenizer::from_gguf(&gguf)
}

/// The ids' texts, for reading.
fn texts(tokenizer: &Tokenizer, ids: &[u32]) -> Vec<String> {
    ids.iter().map(|id| String::from_utf8_lossy(tokenizer.token_bytes(*id)).into_owned()).collect()
}

fn cut(tokenizer: &Tokenizer, text: &str, special: Special) -> Vec<String> {
    texts(tokenizer, &tokenizer.encode(text, special))
}

#[test]
fn pairs_merge_by_rank_inside_pieces() {
    let tokenizer = load(byte_level("gpt-2")).unwrap();
    assert_eq!(cut(&tokenizer, "hello hello", Special::Plain), ["hello", " hello"]);
    assert_eq!(cut(&tokenizer, "help", Special::Plain), ["he", "l", "p"]);
    assert_eq!(cut(&tokenizer, "ééé", Special::Plain), ["éé", "é"]);
    assert!(tokenizer.encode("", Special::Parse).is_empty());
}

#[test]
fn long_pieces_merge_like_short_ones() {
    let tokenizer = load(byte_level("gpt-2")).unwrap();
    let text = "hellohelhlle".repeat(40);
    let mut short = Vec::new();
    let Model::Bpe(bpe) = &tokenizer.model else { panic!() };
    short.extend(text.bytes().map(|byte| bpe_byte(bpe, byte)));
    let mut long = Vec::new();
    bpe.merge_long(&short.clone(), &mut long);
    bpe.merge_short(&mut short);
    assert_eq!(short, long);
    assert_eq!(tokenizer.decode(&long), text);
}

fn bpe_byte(bpe: &Bpe, byte: u8) -> u32 {
    bpe.byte_ids[usize::from(byte)]
}

#[test]
fn reserved_tokens_come_only_out_of_text_that_is_parsed() {
    let tokenizer = load(byte_level("gpt-2")).unwrap();
    let text = "a<|im_end|><think>  b";
    let parsed = ["a", "<|im_end|>", "<think>", "  ", "b"];
    assert_eq!(cut(&tokenizer, text, Special::Parse), parsed);
    let ids = tokenizer.encode(text, Special::Plain);
    assert!(ids.iter().all(|id| !tokenizer.is_reserved(*id)), "{:?}", texts(&tokenizer, &ids));
    assert_eq!(tokenizer.decode(&ids), text);
}

#[test]
fn shielded_text_is_plain_in_text_that_is_parsed() {
    let tokenizer = load(byte_level("gpt-2")).unwrap();
    let user = "x<|im_end|><|im_end|>\u{10fffe}<|im_\u{10fffe}end|>y<|im_end|";
    let shielded = tokenizer.shield(user);
    let ids = tokenizer.encode(&format!("<|bos|>{shielded}<|im_end|>"), Special::Parse);
    assert_eq!(ids.iter().filter(|id| tokenizer.is_reserved(**id)).count(), 2);
    let text = user.replace(SHIELD, "");
    assert_eq!(tokenizer.decode(&ids), format!("<|bos|>{text}<|im_end|>"));
    assert!(matches!(tokenizer.shield("plain <text>"), Cow::Borrowed(_)));
}

#[test]
fn ends_and_flags_are_those_of_the_file() {
    let tokenizer = load(byte_level("llama-bpe")).unwrap();
    let end = tokenizer.special("<|im_end|>").unwrap();
    assert_eq!((tokenizer.eos(), tokenizer.eot()), (Some(end), Some(end)));
    assert!(tokenizer.is_end(end) && tokenizer.is_control(end) && tokenizer.add_bos());
    assert!(!tokenizer.is_end(0) && tokenizer.token_bytes(1 << 30).is_empty());
    let mut writer = byte_level("llama-bpe");
    writer.set("tokenizer.ggml.add_bos_token", false);
    assert!(!load(writer).unwrap().add_bos());
}

#[test]
fn sentence_piece_merges_by_score_and_falls_back_to_bytes() {
    let tokenizer = load(sentence_piece()).unwrap();
    assert_eq!(cut(&tokenizer, "ab a", Special::Plain), [" ab", " a"]);
    assert_eq!(tokenizer.encode("é", Special::Plain), [259, 3 + 0xc3, 3 + 0xa9]);
    assert_eq!(tokenizer.decode(&tokenizer.encode("ab é  b", Special::Plain)), "ab é  b");
    // a defined token is taken from any text, and a control token from none
    assert_eq!(cut(&tokenizer, "a  b</s>", Special::Plain), [" a", "  ", "b", "</s", ">"]);
    assert_eq!(cut(&tokenizer, "a</s>b", Special::Parse), [" a", "</s>", " ", "b"]);
    let mut writer = sentence_piece();
    writer.set("tokenizer.ggml.add_space_prefix", false);
    assert_eq!(cut(&load(writer).unwrap(), "ab", Special::Plain), ["ab"]);
}

#[test]
fn a_defined_token_that_ends_an_answer_is_text_where_it_is_shielded() {
    let mut writer = sentence_piece();
    let kinds = |end: i32| {
        let others = [1; 12].into_iter().chain([4]);
        [2, 3, end].into_iter().chain([6; 256]).chain(others).collect::<Vec<i32>>()
    };
    writer.set("tokenizer.ggml.token_type", NewValue::I32s(kinds(4)));
    let tokenizer = load(writer).unwrap();
    assert!(tokenizer.is_end(2) && !tokenizer.is_reserved(2));
    // As the vocabulary has it, and as the reference tokenizer does it.
    assert_eq!(cut(&tokenizer, "a</s>b", Special::Plain), [" a", "</s>", "b"]);
    assert_eq!(cut(&tokenizer, "a</s>b", Special::Parse), [" a", "</s>", "b"]);
    for shielded in [tokenizer.shield("a▁</s></s>  b"), tokenizer.shield_control("a▁</s></s>  b")]
    {
        let ids = tokenizer.encode(&format!("<s>{shielded}</s>"), Special::Parse);
        assert_eq!(ids.iter().filter(|id| tokenizer.is_end(**id)).count(), 1, "{ids:?}");
        assert_eq!(tokenizer.decode(&ids), "<s> a </s></s>  b</s>");
    }
    assert!(matches!(tokenizer.shield("</b>"), Cow::Borrowed(_)));
}

#[test]
fn what_is_unknown_or_broken_is_refused_in_words() {
    let set = |key: &str, value: NewValue| {
        let mut writer = byte_level("gpt-2");
        writer.set(key, value);
        writer
    };
    let merge =
        |merge: &str| set("tokenizer.ggml.merges", NewValue::Strings(vec![merge.to_owned()]));
    let mut without_merges = byte_level("gpt-2");
    without_merges.unset("tokenizer.ggml.merges");
    let cases = [
        (byte_level("albatross"), "\"albatross\" is not supported"),
        (byte_level("default"), "\"default\" is not supported"),
        (set("tokenizer.ggml.model", "bert".into()), "\"bert\" is not supported"),
        (without_merges, "read the vocabulary"),
        (set("tokenizer.ggml.eos_token_id", 9999u32.into()), "id 9999 is outside"),
        (set("tokenizer.ggml.token_type", NewValue::I32s(vec![1])), "found 1 elements"),
        (merge("h"), "two tokens with a space"),
        (merge("h zz"), "second half is not"),
        (merge("h h"), "merged token is not"),
    ];
    for (writer, expected) in cases {
        let found = load(writer).unwrap_err().to_string();
        assert!(found.contains(expected), "{expected}: {found}");
    }
    let mut writer = byte_level("gpt-2");
    let twice = vec!["a".to_owned(); 2];
    writer
        .set("tokenizer.ggml.tokens", NewValue::Strings(twice))
        .unset("tokenizer.ggml.token_type");
    assert!(matches!(load(writer), Err(TokenizerError::Duplicate { first: 0, second: 1, .. })));
}

proptest::proptest! {
    #[test]
    fn every_text_comes_back(text in r"(hello|<\|im_end\|>|<think>|  |é|\PC|\s){0,30}") {
        static LOADED: OnceLock<[Tokenizer; 2]> = OnceLock::new();
        let tokenizers =
            LOADED.get_or_init(|| ["gpt-2", "gpt-4o"].map(|pre| load(byte_level(pre)).unwrap()));
        for tokenizer in tokenizers {
            for special in [Special::Plain, Special::Parse] {
                let ids = tokenizer.encode(&text, special);
                proptest::prop_assert_eq!(&tokenizer.decode(&ids), &text.replace(SHIELD, ""));
            }
        }
    }
}

#[test]
fn microsofts_bitnet_files_without_a_pre_tokenizer_have_that_of_llama_3() {
    let mut writer = byte_level("llama-bpe");
    writer.unset("tokenizer.ggml.pre");
    assert!(load(writer.clone()).is_err());
    writer.set("general.architecture", "bitnet-b1.58");
    assert!(load(writer).is_ok());
}
