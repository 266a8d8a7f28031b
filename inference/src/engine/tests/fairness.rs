//! Who goes first.

use super::*;

/// The steps at which each request ended.
fn ends(stage: &mut Stage, events: &mut [EventReceiver]) -> Vec<usize> {
    let mut ends = vec![0; events.len()];
    for turn in 1.. {
        if stage.loaded.is_idle() {
            return ends;
        }
        stage.turn();
        for (i, events) in events.iter_mut().enumerate() {
            while let Ok(event) = events.try_recv() {
                if matches!(event, Event::Done { .. } | Event::Failed { .. }) {
                    ends[i] = turn;
                }
            }
        }
    }
    ends
}

fn by(principal: &'static str, seed: u32) -> Wanted {
    // No end token within these texts, so that all are of one length.
    let long = |w: &Wanted| reference(w, usize::MAX).len() == 40;
    (0..)
        .map(|i| wanted(&prompt(seed + 50 * i, 10)))
        .find(long)
        .map(|w| Wanted { principal, ..w })
        .unwrap()
}

#[test]
fn who_asks_for_little_is_not_kept_waiting_by_who_asks_for_much() {
    let mut stage = Stage::new(Setup { sequences: 4, ..Setup::default() });
    let mut events: Vec<_> = (1..=12).map(|i| stage.ask(&by("greedy", i))).collect();
    for _ in 0..3 {
        stage.turn();
    }
    events.push(stage.ask(&by("modest", 20)));
    events.push(stage.ask(&by("modest", 21)));
    let ends = ends(&mut stage, &mut events);
    let modest = ends[12].max(ends[13]);
    let served_before = ends[..12].iter().filter(|end| **end < modest).count();
    assert!(served_before <= 4, "{ends:?}");
}

#[test]
fn a_higher_priority_takes_a_running_sequences_place() {
    let mut stage = Stage::new(Setup { sequences: 2, ..Setup::default() });
    let mut events: Vec<_> = (1..=4).map(|i| stage.ask(&by("a", i))).collect();
    for _ in 0..3 {
        stage.turn();
    }
    events.push(stage.ask(&Wanted { priority: PRIORITY_DEFAULT + 1, ..by("b", 9) }));
    let ends = ends(&mut stage, &mut events);
    assert!(ends[1..4].iter().all(|end| *end > ends[4]), "{ends:?}");
    assert_eq!(stage.loaded.totals().preemptions, 1);
}

#[test]
fn a_stream_of_high_priorities_delays_a_low_one_and_does_not_starve_it() {
    let high = |i| Wanted { priority: 255, tokens_max: 8, ..by("busy", i) };
    let mut stage = Stage::new(Setup { sequences: 1, ..Setup::default() });
    let mut stream: Vec<_> = (1..=2).map(|i| stage.ask(&high(i))).collect();
    let mut low = stage.ask(&Wanted { priority: 250, ..by("patient", 9) });
    let (mut turns, mut served) = (0, 0);
    let mut ended = false;
    while !ended {
        stage.turn();
        turns += 1;
        assert!(turns < 1000, "it starves: {served} of the higher ones were served");
        for events in &mut stream {
            while let Ok(event) = events.try_recv() {
                if matches!(event, Event::Done { .. }) {
                    served += 1;
                    *events = stage.ask(&high(served % 20 + 1));
                }
            }
        }
        while let Ok(event) = low.try_recv() {
            ended |= matches!(event, Event::Done { .. });
        }
    }
    // Five priorities below: twenty steps and the running ones' ends before it, 41 for itself.
    assert!(served >= 2, "the higher ones went first");
    assert!(turns <= 41 + 6 * 4 + 2 * 9, "{turns} steps");
    assert_eq!(stage.loaded.totals().preemptions, 0);
}

#[test]
fn five_principals_get_equal_shares_however_much_each_asks_for() {
    let names = ["a", "b", "c", "d", "e"];
    let mut stage = Stage::new(Setup { sequences: 2, blocks: 256, ..Setup::default() });
    let mut events = Vec::new();
    for (i, name) in names.into_iter().enumerate() {
        // The first asks for six answers, the last for thirty.
        for n in 0..6 * (i as u32 + 1) {
            events.push((i, stage.ask(&by(name, i as u32 * 40 + n))));
        }
    }
    let mut tokens = [0usize; 5];
    while tokens.iter().sum::<usize>() < 800 {
        stage.turn();
        for (i, events) in &mut events {
            while let Ok(event) = events.try_recv() {
                tokens[*i] += usize::from(matches!(event, Event::Token { .. }));
            }
        }
    }
    let (least, most) = (tokens.iter().min().unwrap(), tokens.iter().max().unwrap());
    assert!(most - least <= 100, "{tokens:?}: more than two answers and a half apart");
}

#[test]
fn within_a_principal_the_first_to_come_is_the_first_to_go() {
    let mut stage = Stage::new(Setup { sequences: 1, ..Setup::default() });
    let mut events: Vec<_> = (1..=4).map(|i| stage.ask(&by("a", i))).collect();
    let ends = ends(&mut stage, &mut events);
    assert!(ends.is_sorted(), "{ends:?}");
    assert_eq!(stage.loaded.totals().preemptions, 0);
}

#[test]
fn those_that_decode_are_not_held_up_by_a_long_prompt() {
    let mut stage = Stage::new(Setup { batch_tokens: 16, blocks: 128, ..Setup::default() });
    let mut chat = stage.ask(&by("a", 1));
    stage.turn();
    let _long = stage.ask(&Wanted { principal: "b", ..wanted(&prompt(5, 1500)) });
    for _ in 0..20 {
        stage.turn();
    }
    let mut tokens = 0;
    while let Ok(event) = chat.try_recv() {
        tokens += usize::from(matches!(event, Event::Token { .. }));
    }
    assert!(tokens >= 20, "{tokens} tokens in 21 steps");
}

#[test]
fn a_narrowed_step_still_serves_everybody() {
    let mut stage = Stage::new(Setup { batch_tokens: 1, sequences: 3, ..Setup::default() });
    let mut events: Vec<_> =
        [("a", 1), ("b", 2), ("c", 3)].map(|(p, i)| stage.ask(&by(p, i))).into();
    let ends = ends(&mut stage, &mut events);
    assert!(ends.iter().all(|end| *end > 0), "{ends:?}");
    assert_eq!(stage.log.spans.lock().unwrap().iter().map(|s| s.1).max(), Some(1));
}
