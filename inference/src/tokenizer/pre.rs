//! Pre-tokenizers: how a text is cut before BPE merges inside the pieces.
//!
//! Each entry of [`TABLE`] has the names that GGUF files use (`tokenizer.ggml.pre`, given out by
//! llama.cpp's converter) and the pattern of the model's own `tokenizer.json`. The patterns end in
//! `\s+(?!\S)|\s+`: a run of blanks leaves its last one to the word that follows. The regex
//! engine here has no look-ahead, so the patterns end in `\s+` and [`Compiled::split`] gives the
//! last blank back.

use std::sync::OnceLock;

use icu_normalizer::ComposingNormalizerBorrowed;
use regex_automata::meta::Regex;

/// One way of cutting text.
#[derive(Debug)]
pub(super) struct PreTokenizer {
    names: &'static [&'static str],
    /// Digits are cut off one by one before anything else.
    digits_first: bool,
    pattern: &'static str,
    /// The pattern has `\s*[\r\n]+` before `\s+`: blanks that end in a line break stay whole.
    keeps_line_breaks: bool,
    /// Text is brought into normalization form C first.
    nfc: bool,
    /// A piece that is a token is taken whole.
    pub(super) whole_words: bool,
    /// Texts begin with the first token unless the file says otherwise.
    pub(super) add_bos: bool,
}

const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+";
const LLAMA3: &str = concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|",
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+"
);
const QWEN2: &str = concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|",
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+"
);
const QWEN35: &str = concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}|",
    r" ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+"
);
const O200K: &str = concat!(
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+",
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?|",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*",
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?|",
    r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+"
);
const TEKKEN: &str = concat!(
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|",
    r"\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+"
);

const BASE: PreTokenizer = PreTokenizer {
    names: &[],
    digits_first: false,
    pattern: GPT2,
    keeps_line_breaks: false,
    nfc: false,
    whole_words: false,
    add_bos: false,
};

const TABLE: &[PreTokenizer] = &[
    PreTokenizer { names: &["gpt-2", "phi-2", "exaone4", "trillion", "granite-docling"], ..BASE },
    PreTokenizer {
        names: &["smollm", "starcoder", "refact", "command-r", "codeshell", "exaone"],
        digits_first: true,
        ..BASE
    },
    PreTokenizer {
        names: &["llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "lfm2"],
        pattern: LLAMA3,
        keeps_line_breaks: true,
        whole_words: true,
        add_bos: true,
        ..BASE
    },
    PreTokenizer {
        names: &["dbrx", "smaug-bpe"],
        pattern: LLAMA3,
        keeps_line_breaks: true,
        ..BASE
    },
    PreTokenizer {
        names: &["qwen2", "deepseek-r1-qwen", "megrez"],
        pattern: QWEN2,
        keeps_line_breaks: true,
        nfc: true,
        ..BASE
    },
    PreTokenizer { names: &["stablelm2"], pattern: QWEN2, keeps_line_breaks: true, ..BASE },
    PreTokenizer {
        names: &["qwen35"],
        pattern: QWEN35,
        keeps_line_breaks: true,
        nfc: true,
        ..BASE
    },
    PreTokenizer { names: &["gpt-4o", "llama4"], pattern: O200K, keeps_line_breaks: true, ..BASE },
    PreTokenizer {
        names: &["tekken"],
        pattern: TEKKEN,
        keeps_line_breaks: true,
        whole_words: true,
        add_bos: true,
        ..BASE
    },
];

/// The pre-tokenizer of this name.
pub(super) fn find(name: &str) -> Option<&'static PreTokenizer> {
    TABLE.iter().find(|entry| entry.names.contains(&name))
}

/// A pre-tokenizer that is ready; the pattern is compiled when the first text comes.
#[derive(Debug)]
pub(super) struct Compiled {
    entry: &'static PreTokenizer,
    regex: OnceLock<Option<Regex>>,
}

impl PreTokenizer {
    pub(super) fn compile(&'static self) -> Compiled {
        Compiled { entry: self, regex: OnceLock::new() }
    }
}

impl Compiled {
    /// Gives the pieces of a text in order; together they are the (normalized) text.
    pub(super) fn split(&self, text: &str, piece: &mut impl FnMut(&str)) {
        let normalized;
        let text = if self.entry.nfc && !text.is_ascii() {
            normalized = ComposingNormalizerBorrowed::new_nfc().normalize(text);
            &*normalized
        } else {
            text
        };
        if !self.entry.digits_first {
            return self.split_pattern(text, piece);
        }
        let mut rest = text;
        while let Some((at, digit)) = rest.char_indices().find(|(_, c)| c.is_numeric()) {
            let (before, from) = rest.split_at(at);
            let (digit, after) = from.split_at(digit.len_utf8());
            self.split_pattern(before, piece);
            piece(digit);
            rest = after;
        }
        self.split_pattern(rest, piece);
    }

    fn split_pattern(&self, text: &str, piece: &mut impl FnMut(&str)) {
        // The patterns are constants; a test compiles each of them.
        let regex = self.regex.get_or_init(|| Regex::new(self.entry.pattern).ok());
        let Some(regex) = regex else { return piece(text) };
        let mut from = 0;
        while from < text.len() {
            let input = regex_automata::Input::new(text).range(from..);
            let Some(found) = regex.find(input) else { break };
            if found.start() > from {
                piece(&text[from..found.start()]);
            }
            let end = found.start() + self.kept(&text[found.range()], found.end() == text.len());
            piece(&text[found.start()..end]);
            from = end;
        }
        if from < text.len() {
            piece(&text[from..]);
        }
    }

    /// How many bytes of a match stay in the piece: all, or all but the last blank of a run.
    fn kept(&self, found: &str, at_end: bool) -> usize {
        let Some((last, blank)) = found.char_indices().next_back() else { return found.len() };
        let whole = at_end
            || last == 0
            || !blank.is_whitespace()
            || (self.entry.keeps_line_breaks && matches!(blank, '\r' | '\n'))
            || !found.chars().all(char::is_whitespace);
        if whole { found.len() } else { last }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pieces(name: &str, text: &str) -> Vec<String> {
        let mut pieces = Vec::new();
        find(name).unwrap().compile().split(text, &mut |piece| pieces.push(piece.to_owned()));
        pieces
    }

    #[test]
    fn every_pattern_compiles_and_no_name_is_there_twice() {
        let mut names: Vec<&str> = Vec::new();
        for entry in TABLE {
            assert!(Regex::new(entry.pattern).is_ok(), "{:?}", entry.names);
            names.extend(entry.names);
        }
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), count);
        assert!(find("default").is_none() && find("GPT-2").is_none());
    }

    #[test]
    fn a_run_of_blanks_leaves_the_last_one_to_the_word() {
        assert_eq!(pieces("gpt-2", "a   b"), ["a", "  ", " b"]);
        assert_eq!(pieces("gpt-2", "a\n\nb  "), ["a", "\n", "\n", "b", "  "]);
        assert_eq!(pieces("qwen2", "a \n\n  b"), ["a", " \n\n", " ", " b"]);
        assert_eq!(pieces("qwen2", "a\u{3000}\u{3000}1"), ["a", "\u{3000}", "\u{3000}", "1"]);
    }

    #[test]
    fn families_differ_in_digits_case_and_marks() {
        assert_eq!(pieces("llama-bpe", "x12345"), ["x", "123", "45"]);
        assert_eq!(pieces("qwen2", "x123"), ["x", "1", "2", "3"]);
        assert_eq!(pieces("smollm", "in 42 x"), ["in", " ", "4", "2", " x"]);
        assert_eq!(pieces("gpt-4o", "fooBar's"), ["foo", "Bar's"]);
        assert_eq!(pieces("llama-bpe", "It'S"), ["It", "'S"]);
        assert_eq!(pieces("gpt-2", "It'S"), ["It", "'", "S"]);
        assert_eq!(pieces("gpt-4o", "हिन्दी"), ["हिन्दी"]);
        assert_eq!(pieces("qwen2", "e\u{301}"), ["é"]);
    }

    proptest::proptest! {
        #[test]
        fn the_pieces_together_are_the_text(text in r"[\s\PC]{0,40}") {
            static COMPILED: OnceLock<Vec<Compiled>> = OnceLock::new();
            for pre in COMPILED.get_or_init(|| TABLE.iter().map(PreTokenizer::compile).collect()) {
                let mut pieces = String::new();
                pre.split(&text, &mut |piece| pieces += piece);
                proptest::prop_assert!(pre.entry.nfc || pieces == text);
            }
        }
    }
}
