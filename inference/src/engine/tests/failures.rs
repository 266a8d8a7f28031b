//! What goes wrong ends alone.

use super::*;

/// A prompt with a token that no generated text of the test has before it fails.
const POISON: u32 = 255;

fn poisoned() -> Wanted {
    let mut w = wanted(&prompt(8, 20));
    w.prompt[10] = POISON;
    w
}

fn healthy() -> Vec<Wanted> {
    let ok =
        |w: &Wanted| !w.prompt.contains(&POISON) && !reference(w, usize::MAX).contains(&POISON);
    (1..40).map(|i| wanted(&prompt(i, 15))).filter(ok).take(5).collect()
}

fn crowd_with(faults: Faults, bad: &Wanted) -> (Vec<Got>, Got, Stage) {
    let mut stage = Stage::new(Setup { faults, ..Setup::default() });
    let healthy = healthy();
    assert_eq!(healthy.len(), 5);
    let mut events: Vec<_> = healthy[..3].iter().map(|w| stage.ask(w)).collect();
    let bad = stage.ask(bad);
    events.extend(healthy[3..].iter().map(|w| stage.ask(w)));
    stage.run();
    for (w, got) in healthy.iter().zip(events).map(|(w, e)| (w, read(e))) {
        assert_eq!(got.ids, reference(w, usize::MAX));
        assert_eq!(got.failed, None);
    }
    (Vec::new(), read(bad), stage)
}

#[test]
fn a_sequence_that_the_backend_fails_on_ends_alone() {
    let (_, bad, stage) =
        crowd_with(Faults { fails: Some(POISON), ..Faults::default() }, &poisoned());
    assert!(bad.failed.is_some_and(|m| m.contains("fail")));
    assert_eq!(stage.loaded.totals().failed, 1);
}

#[test]
fn a_sequence_that_the_backend_panics_on_ends_alone() {
    let (_, bad, _) = crowd_with(Faults { panics: Some(POISON), ..Faults::default() }, &poisoned());
    assert!(bad.failed.is_some_and(|m| m.contains("panicked")));
}

#[test]
fn a_sequence_whose_logits_are_not_numbers_ends_alone() {
    let mut w = wanted(&prompt(8, 20));
    w.prompt[19] = POISON;
    let (_, bad, _) = crowd_with(Faults { not_a_number: Some(POISON), ..Faults::default() }, &w);
    assert!(bad.failed.is_some_and(|m| m.contains("not a number")));
}

#[test]
fn a_caller_that_goes_frees_everything_at_the_next_step() {
    let mut stage = Stage::new(Setup::default());
    let events = stage.ask(&Wanted { tokens_max: 1000, ..wanted(&prompt(1, 100)) });
    let waiting = stage.ask(&wanted(&prompt(2, 10)));
    for _ in 0..5 {
        stage.turn();
    }
    assert!(stage.loaded.kv().used > 0);
    drop((events, waiting));
    stage.turn();
    assert!(stage.loaded.is_idle());
    assert_eq!(stage.loaded.kv().used, 0);
    assert_eq!(stage.queue.status().len, 0);
    assert_eq!(stage.loaded.totals().cancelled, 2);
}

#[test]
fn a_deadline_ends_an_answer_that_runs_and_one_that_waits() {
    let mut stage = Stage::new(Setup { sequences: 1, ..Setup::default() });
    let late = Some(Duration::from_secs(3));
    let running = stage.ask(&Wanted { tokens_max: 1000, deadline: late, ..wanted(&prompt(1, 10)) });
    let waiting = stage.ask(&Wanted { deadline: late, ..wanted(&prompt(2, 10)) });
    for _ in 0..4 {
        stage.turn();
    }
    stage.now += Duration::from_secs(3);
    stage.turn();
    assert!(stage.loaded.is_idle());
    let (running, waiting) = (read(running), read(waiting));
    assert_eq!(running.reason, Some(FinishReason::Deadline));
    assert!(!running.ids.is_empty());
    assert_eq!(waiting.reason, Some(FinishReason::Deadline));
    assert_eq!(stage.loaded.totals().deadline, 2);
}

#[test]
fn a_place_in_the_queue_is_given_back_when_the_request_starts() {
    let mut stage = Stage::new(Setup { sequences: 1, ..Setup::default() });
    let _a = stage.ask(&wanted(&prompt(1, 10)));
    let _b = stage.ask(&wanted(&prompt(2, 10)));
    assert_eq!(stage.queue.status().len, 2);
    stage.turn();
    assert_eq!(stage.queue.status().len, 1);
}
