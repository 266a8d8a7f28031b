//! The end of a text: stop strings that may lie across tokens.
//!
//! Text that may still become a stop string is held back; what is given out is never taken back.

/// Looks for stop strings in a stream of text.
#[derive(Debug, Default)]
pub(crate) struct Stops {
    stops: Vec<String>,
    held: String,
}

/// What a piece of text led to.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Heard {
    /// This much is certain now (it may be empty).
    Goes(String),
    /// A stop string was found; this came before it.
    Stopped(String),
}

impl Stops {
    pub(crate) fn new(stops: Vec<String>) -> Self {
        Self { stops, held: String::new() }
    }

    /// Takes the next piece of text.
    pub(crate) fn hear(&mut self, piece: String) -> Heard {
        if self.stops.is_empty() {
            return Heard::Goes(piece);
        }
        self.held.push_str(&piece);
        let found = self.stops.iter().filter_map(|s| self.held.find(s.as_str())).min();
        if let Some(at) = found {
            self.held.truncate(at);
            return Heard::Stopped(std::mem::take(&mut self.held));
        }
        let keep = self.stops.iter().map(|s| overlap(&self.held, s)).max().unwrap_or(0);
        let rest = self.held.split_off(self.held.len() - keep);
        Heard::Goes(std::mem::replace(&mut self.held, rest))
    }

    /// The text ends: what was held back was no stop string.
    pub(crate) fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}

/// Bytes of the longest end of `text` that begins `stop`.
fn overlap(text: &str, stop: &str) -> usize {
    let longest = text.len().min(stop.len().saturating_sub(1));
    let (text, stop) = (text.as_bytes(), stop.as_bytes());
    // An end of `text` that equals a beginning of a string starts at a character's border.
    (1..=longest).rev().find(|&n| text[text.len() - n..] == stop[..n]).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn run(stops: &[&str], pieces: &[&str]) -> (Vec<String>, Option<String>) {
        let mut s = Stops::new(stops.iter().map(|s| (*s).to_owned()).collect());
        let mut out = Vec::new();
        for piece in pieces {
            match s.hear((*piece).to_owned()) {
                Heard::Goes(text) => out.push(text),
                Heard::Stopped(text) => return (out, Some(text)),
            }
        }
        out.push(s.finish());
        (out, None)
    }

    #[test]
    fn a_stop_string_across_pieces_is_found_and_not_given_out() {
        let (out, stopped) = run(&["###"], &["hello #", "#", "# more"]);
        assert_eq!(out, ["hello ", ""]);
        assert_eq!(stopped.as_deref(), Some(""));
    }

    #[test]
    fn what_only_looked_like_a_stop_string_is_given_out_later() {
        let (out, stopped) = run(&["END"], &["the E", "N", "T came"]);
        assert_eq!(out, ["the ", "", "ENT came", ""]);
        assert_eq!(stopped, None);
    }

    #[test]
    fn held_text_is_given_out_at_the_end() {
        assert_eq!(run(&["END"], &["abc EN"]).0, ["abc ", "EN"]);
    }

    #[test]
    fn the_earliest_stop_wins() {
        assert_eq!(run(&["c", "b"], &["abcd"]).1.as_deref(), Some("a"));
    }

    #[test]
    fn characters_of_several_bytes_are_not_cut() {
        assert_eq!(run(&["é!"], &["caf", "é", "s"]).0, ["caf", "", "és", ""]);
        assert_eq!(run(&["\u{e9}"], &["\u{e8}x"]).0, ["\u{e8}x", ""]);
    }

    proptest! {
        #[test]
        fn however_a_text_is_cut_the_result_is_the_same(
            text in "[ab#é]{0,30}",
            stop in "[ab#é]{1,4}",
            cuts in prop::collection::vec(1usize..5, 1..20),
        ) {
            let mut pieces = Vec::new();
            let mut rest: Vec<char> = text.chars().collect();
            for cut in cuts.iter().cycle() {
                if rest.is_empty() { break; }
                let tail = rest.split_off((*cut).min(rest.len()));
                pieces.push(rest.iter().collect::<String>());
                rest = tail;
            }
            let mut s = Stops::new(vec![stop.clone()]);
            let (mut got, mut stopped) = (String::new(), false);
            for piece in pieces {
                match s.hear(piece) {
                    Heard::Goes(t) => got.push_str(&t),
                    Heard::Stopped(t) => { got.push_str(&t); stopped = true; break; }
                }
            }
            if !stopped { got.push_str(&s.finish()); }
            let expected = text.find(&stop).map_or(text.as_str(), |at| &text[..at]);
            prop_assert_eq!(got, expected);
            prop_assert_eq!(stopped, text.contains(&stop));
        }
    }
}
