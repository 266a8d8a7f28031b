//! Guessing ahead: tokens that are likely to come, checked all in one step.
//!
//! The text stays what it would be without guessing, not only its distribution: the target draws
//! every token itself, with the random numbers that belong to the token's position (see
//! [`crate::sampler`]), and a guess is accepted when it is the token drawn. For a guess from a
//! lookup this is exactly rejection sampling; for a draft model that draws with the same numbers
//! it is a coupling that accepts nearly as often, and keeps "same seed, same text" true however
//! much speculation there is.

/// Longest run of last tokens that is looked up.
const NGRAM_MAX: usize = 4;
/// Shortest.
const NGRAM_MIN: usize = 2;
/// How far back is looked, in tokens: bounds the time of a lookup.
const WINDOW_TOKENS: usize = 16 * 1024;

/// Appends to `guess` up to `max` tokens that followed the last tokens of `tokens` when they
/// occurred before: the longest run first, the latest occurrence first.
pub(crate) fn prompt_lookup(tokens: &[u32], max: usize, guess: &mut Vec<u32>) {
    let tokens = &tokens[tokens.len().saturating_sub(WINDOW_TOKENS)..];
    if max == 0 {
        return;
    }
    for n in (NGRAM_MIN..=NGRAM_MAX).rev() {
        if tokens.len() <= n {
            continue;
        }
        let last = &tokens[tokens.len() - n..];
        let earlier = &tokens[..tokens.len() - 1];
        if let Some(at) = earlier.windows(n).rposition(|w| w == last) {
            let follow = &tokens[at + n..];
            guess.extend_from_slice(&follow[..follow.len().min(max)]);
            return;
        }
    }
}

/// How well a sequence's guesses do, and so how many are made.
#[derive(Debug, Clone)]
pub(crate) struct Pace {
    /// Smoothed share of accepted guesses.
    accepted: f32,
    /// Steps to sit out.
    rest: u32,
}

/// Steps without a guess after guesses failed.
const REST_STEPS: u32 = 16;
/// Below this share of accepted guesses a sequence rests.
const ACCEPTED_MIN: f32 = 0.2;

impl Default for Pace {
    fn default() -> Self {
        Self { accepted: 0.6, rest: 0 }
    }
}

impl Pace {
    /// How many tokens to guess now, at most `max`.
    pub(crate) fn wanted(&mut self, max: usize) -> usize {
        if self.rest > 0 {
            self.rest -= 1;
            return 0;
        }
        // The expected run of accepted guesses, and one more.
        let run = self.accepted / (1.0 - self.accepted).max(0.05);
        (run.ceil() as usize + 1).min(max)
    }

    /// Learns from one step.
    pub(crate) fn learn(&mut self, guessed: usize, accepted: usize) {
        if guessed == 0 {
            return;
        }
        let share = accepted as f32 / guessed as f32;
        self.accepted = self.accepted * 0.7 + share * 0.3;
        if self.accepted < ACCEPTED_MIN {
            self.rest = REST_STEPS;
            self.accepted = ACCEPTED_MIN;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guess(tokens: &[u32], max: usize) -> Vec<u32> {
        let mut out = Vec::new();
        prompt_lookup(tokens, max, &mut out);
        out
    }

    #[test]
    fn what_followed_before_is_guessed_again() {
        assert_eq!(guess(&[1, 2, 3, 4, 9, 2, 3], 2), [4, 9]);
        assert_eq!(guess(&[1, 2, 3, 4, 9, 2, 3], 8), [4, 9, 2, 3]);
    }

    #[test]
    fn the_longest_run_wins_over_a_later_shorter_one() {
        assert_eq!(guess(&[5, 6, 7, 8, 1, 6, 7, 2, 5, 6, 7], 1), [8]);
    }

    #[test]
    fn a_repeating_text_is_guessed_to_repeat() {
        assert_eq!(guess(&[1, 1, 1, 1], 3), [1]);
        assert_eq!(guess(&[1, 2, 1, 2, 1, 2], 2), [1, 2]);
    }

    #[test]
    fn a_text_without_repetition_gives_no_guess() {
        assert!(guess(&[1, 2, 3, 4, 5], 4).is_empty());
        assert!(guess(&[1], 4).is_empty());
        assert!(guess(&[], 4).is_empty());
    }

    #[test]
    fn failing_guesses_rest_and_good_ones_grow() {
        let mut pace = Pace::default();
        for _ in 0..10 {
            pace.learn(4, 0);
        }
        assert_eq!(pace.wanted(8), 0);
        let mut pace = Pace::default();
        for _ in 0..20 {
            pace.learn(4, 4);
        }
        assert_eq!(pace.wanted(8), 8);
    }
}
