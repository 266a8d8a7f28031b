//! A text depends on the request only.

use proptest::prelude::*;

use super::*;

/// The texts of these requests, all asked at once.
fn together(setup: Setup, requests: &[Wanted]) -> (Vec<Got>, Stage) {
    let mut stage = Stage::new(setup);
    let events: Vec<_> = requests.iter().map(|w| stage.ask(w)).collect();
    stage.run();
    (events.into_iter().map(read).collect(), stage)
}

fn requests(n: u32) -> Vec<Wanted> {
    (0..n).map(|i| wanted(&prompt(i + 1, 5 + 13 * i as usize))).collect()
}

#[test]
fn one_request_gives_the_greedy_text_however_its_prompt_is_cut() {
    let w = wanted(&prompt(3, 100));
    for batch_tokens in [1, 7, 32, 64, 1000] {
        let setup = Setup { batch_tokens, ..Setup::default() };
        let (got, _) = together(setup, std::slice::from_ref(&w));
        assert_eq!(got[0].ids, reference(&w, usize::MAX), "{batch_tokens} tokens a step");
    }
}

#[test]
fn sixteen_requests_together_give_each_the_text_it_gets_alone() {
    let requests = requests(16);
    let (got, stage) = together(Setup { blocks: 256, ..Setup::default() }, &requests);
    for (w, got) in requests.iter().zip(&got) {
        assert_eq!(got.ids, reference(w, usize::MAX));
    }
    assert_eq!(stage.loaded.totals().preemptions, 0);
}

#[test]
fn preempted_or_not_the_text_is_the_same() {
    let mut requests = requests(8);
    requests.iter_mut().for_each(|w| w.tokens_max = 130);
    let setup = Setup { blocks: 9, sequences: 8, ..Setup::default() };
    let (got, stage) = together(setup, &requests);
    for (w, got) in requests.iter().zip(&got) {
        assert_eq!(got.ids, reference(w, usize::MAX));
    }
    let totals = stage.loaded.totals();
    assert!(totals.preemptions > 0, "the test must preempt: {totals:?}");
    assert!(totals.recomputed_tokens > 0, "{totals:?}");
}

#[test]
fn with_or_without_the_prefix_cache_the_text_is_the_same() {
    let long = prompt(9, 150);
    let mut requests: Vec<Wanted> = Vec::new();
    for len in [150, 96, 64, 150, 97, 33] {
        requests.push(wanted(&long[..len]));
    }
    for prefix_cache in [PrefixCache::Shared, PrefixCache::Off] {
        let mut stage = Stage::new(Setup { prefix_cache, ..Setup::default() });
        let mut cached = Vec::new();
        for w in &requests {
            let events = stage.ask(w);
            stage.run();
            let got = read(events);
            assert_eq!(got.ids, reference(w, usize::MAX), "{prefix_cache:?}");
            cached.push(got.cached);
        }
        let expected = match prefix_cache {
            // Where all is known, the last token is computed again in a copy of its block.
            PrefixCache::Shared => [0, 95, 63, 128, 96, 32],
            PrefixCache::Off => [0; 6],
        };
        assert_eq!(cached, expected);
    }
}

#[test]
fn a_copied_block_leaves_the_shared_one_as_it_was() {
    let long = prompt(4, 64);
    let requests: Vec<Wanted> = (0..6).map(|_| wanted(&long)).collect();
    let mut stage = Stage::new(Setup::default());
    let first = stage.ask(&requests[0]);
    stage.run();
    let events: Vec<_> = requests[1..].iter().map(|w| stage.ask(w)).collect();
    stage.run();
    for got in std::iter::once(first).chain(events).map(read) {
        assert_eq!(got.ids, reference(&requests[0], usize::MAX));
    }
}

#[test]
fn the_same_seed_gives_the_same_text_whatever_else_is_in_the_batch() {
    let sampled = |seed| Wanted {
        sampling: Sampling { temperature: 0.8, top_p: 0.95, ..Sampling::default() },
        seed,
        ..wanted(&prompt(2, 40))
    };
    let (alone, _) = together(Setup::default(), &[sampled(11)]);
    let mut crowd = requests(6);
    crowd.push(sampled(11));
    crowd.push(sampled(12));
    let (crowded, _) = together(Setup { blocks: 16, ..Setup::default() }, &crowd);
    assert_eq!(crowded[6].ids, alone[0].ids);
    assert_ne!(crowded[7].ids, alone[0].ids);
}

#[test]
fn guessing_ahead_changes_steps_and_not_texts() {
    for temperature in [0.0, 0.3] {
        let mut request = wanted(&prompt(6, 50));
        request.tokens_max = 200;
        request.sampling = Sampling { temperature, ..Sampling::default() };
        let run = |guesses_max| {
            let setup = Setup { guesses_max, sees: 1, ..Setup::default() };
            let (got, stage) = together(setup, std::slice::from_ref(&request));
            (got[0].ids.clone(), stage.loaded.totals())
        };
        let ((plain, slow), (guessed, fast)) = (run(0), run(8));
        assert_eq!(plain, guessed, "at temperature {temperature}");
        assert_eq!(slow.drafted_tokens, 0);
        if temperature == 0.0 && plain.len() > 100 {
            assert!(fast.accepted_tokens > 50, "a text that repeats is guessed: {fast:?}");
            assert!(fast.steps < slow.steps / 2, "{} steps of {}", fast.steps, slow.steps);
        }
    }
}

#[test]
fn the_text_is_the_tokens_text_and_usage_counts_it() {
    let w = wanted(&prompt(1, 20));
    let (got, _) = together(Setup::default(), std::slice::from_ref(&w));
    let shown: Vec<u32> =
        got[0].ids.iter().copied().filter(|id| !tokenizer().is_control(*id)).collect();
    assert_eq!(got[0].text, tokenizer().decode(&shown));
    assert_eq!(got[0].usage.prompt_tokens, 20);
    assert_eq!(got[0].usage.completion_tokens as usize, got[0].ids.len());
    let ended = got[0].ids.last().is_some_and(|id| tokenizer().is_end(*id));
    let expected = if ended { FinishReason::Stop } else { FinishReason::Length };
    assert_eq!(got[0].reason, Some(expected));
}

#[test]
fn a_stop_string_ends_the_answer_before_itself() {
    let plain = wanted(&prompt(1, 20));
    let (got, _) = together(Setup::default(), std::slice::from_ref(&plain));
    let text = got[0].text.clone();
    let at = text.char_indices().nth(8).expect("a longer text").0;
    let stop: String = text[at..].chars().take(3).collect();
    let (stopped, _) = together(
        Setup::default(),
        &[Wanted { stops: vec!["never".to_owned(), stop.clone()], ..plain }],
    );
    assert_eq!(stopped[0].text, text[..text.find(&stop).expect("is there")]);
    assert_eq!(stopped[0].reason, Some(FinishReason::Stop));
}

#[test]
fn log_probabilities_come_with_every_token() {
    let mut stage = Stage::new(Setup::default());
    let mut events = stage.ask(&Wanted { logprobs: Some(3), ..wanted(&prompt(1, 9)) });
    stage.run();
    let mut seen = 0;
    while let Ok(event) = events.try_recv() {
        let Event::Token { id, logprob, .. } = event else { continue };
        let logprob = logprob.expect("asked for");
        assert_eq!(logprob.top.len(), 3);
        assert_eq!(logprob.top[0].id, id, "greedy takes the most likely");
        assert!((logprob.top[0].logprob - logprob.chosen).abs() < 1e-6 && logprob.chosen < 0.0);
        seen += 1;
    }
    assert!(seen > 1);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]
    #[test]
    fn whatever_comes_and_goes_every_text_is_its_own(
        blocks in 8usize..24,
        batch_tokens in 1usize..80,
        sequences in 1usize..6,
        shared in any::<bool>(),
        guesses_max in 0usize..5,
        arrivals in prop::collection::vec((1u32..4, 1usize..120, 1usize..60, 0usize..30, 0u8..3), 1..12),
    ) {
        let prefix_cache = if shared { PrefixCache::Shared } else { PrefixCache::Off };
        let mut stage = Stage::new(Setup {
            blocks, batch_tokens, sequences, prefix_cache, guesses_max, ..Setup::default()
        });
        let mut asked = Vec::new();
        for (seed, len, tokens_max, turns, priority) in arrivals {
            let w = Wanted {
                tokens_max,
                priority,
                principal: ["a", "b", "c"][seed as usize % 3],
                ..wanted(&prompt(seed, len))
            };
            let events = stage.ask(&w);
            // Every fourth one's caller goes away at once or later.
            asked.push((w, Some(events)));
            for _ in 0..turns { stage.turn(); }
            if asked.len() % 4 == 0 { asked[turns % 4].1 = None; }
        }
        stage.run();
        for (w, events) in asked {
            if let Some(events) = events {
                prop_assert_eq!(read(events).ids, reference(&w, usize::MAX));
            }
        }
    }
}
