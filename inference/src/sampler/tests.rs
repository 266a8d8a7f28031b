use super::*;

fn sampler(sampling: Sampling) -> Sampler {
    Sampler::new(sampling, 7, 1 << 20).expect("in range")
}

fn choose(s: &Sampler, row: &[f32], text: &[u32]) -> u32 {
    s.choose(&mut row.to_vec(), text, None, &mut Scratch::default()).expect("a token")
}

/// How often each token is drawn at `n` positions.
fn counts(s: &Sampler, row: &[f32], n: usize) -> Vec<usize> {
    let mut counts = vec![0; row.len()];
    let mut scratch = Scratch::default();
    let text = vec![0u32; n];
    for at in 0..n {
        let id = s.choose(&mut row.to_vec(), &text[..at], None, &mut scratch).expect("a token");
        counts[id as usize] += 1;
    }
    counts
}

#[test]
fn temperature_zero_takes_the_most_likely_and_ties_go_to_the_lower_id() {
    let s = sampler(Sampling::greedy());
    assert_eq!(choose(&s, &[0.0, 3.0, 1.0, 3.0], &[]), 1);
    let mut long = vec![-1.0f32; 5000];
    long[4321] = 2.0;
    long[4999] = 2.0;
    assert_eq!(choose(&s, &long, &[]), 4321);
}

#[test]
fn draws_follow_the_distribution() {
    let logits: Vec<f32> = [0.5f32, 0.25, 0.15, 0.08, 0.02].iter().map(|p| p.ln() + 3.0).collect();
    let n = 20_000;
    let counts = counts(&sampler(Sampling::default()), &logits, n);
    let chi2: f64 = [0.5, 0.25, 0.15, 0.08, 0.02]
        .iter()
        .zip(&counts)
        .map(|(p, &c)| (c as f64 - p * n as f64).powi(2) / (p * n as f64))
        .sum();
    assert!(chi2 < 18.5, "chi² {chi2} of 4 degrees of freedom, {counts:?}"); // p = 0.001
}

#[test]
fn a_higher_temperature_flattens() {
    let row = [2.0f32, 0.0];
    let share = |t| {
        let s = sampler(Sampling { temperature: t, ..Sampling::default() });
        counts(&s, &row, 8000)[0] as f64 / 8000.0
    };
    let expected = |t: f64| 1.0 / (1.0 + (-2.0 / t).exp());
    for t in [0.5f32, 1.0, 3.0] {
        assert!((share(t) - expected(f64::from(t))).abs() < 0.02, "temperature {t}");
    }
}

#[test]
fn top_k_top_p_and_min_p_leave_the_unlikely_out() {
    let probabilities = [0.4f32, 0.3, 0.2, 0.06, 0.04];
    let row: Vec<f32> = probabilities.iter().map(|p| p.ln()).collect();
    let left = |sampling| {
        let c = counts(&sampler(sampling), &row, 4000);
        c.iter().map(|&n| usize::from(n > 0)).collect::<Vec<_>>()
    };
    assert_eq!(left(Sampling { top_k: 2, ..Sampling::default() }), [1, 1, 0, 0, 0]);
    assert_eq!(left(Sampling { top_p: 0.65, ..Sampling::default() }), [1, 1, 0, 0, 0]);
    assert_eq!(left(Sampling { top_p: 0.71, ..Sampling::default() }), [1, 1, 1, 0, 0]);
    assert_eq!(left(Sampling { top_p: 0.0, ..Sampling::default() }), [1, 0, 0, 0, 0]);
    assert_eq!(left(Sampling { min_p: 0.4, ..Sampling::default() }), [1, 1, 1, 0, 0]);
    assert_eq!(left(Sampling::default()), [1, 1, 1, 1, 1]);
}

#[test]
fn top_k_over_a_big_vocabulary_is_the_sorted_head() {
    let row: Vec<f32> = (0..50_000u64).map(|i| (race::mix(i) % 1000) as f32 / 10.0).collect();
    let s = sampler(Sampling { top_k: 40, temperature: 50.0, ..Sampling::default() });
    let mut candidates = Vec::new();
    let best = row.iter().copied().fold(f32::MIN, f32::max);
    s.collect(&row, best, &mut candidates);
    let mut all: Vec<f32> = row.clone();
    all.sort_by(|a, b| b.total_cmp(a));
    let mut kept: Vec<f32> = candidates.iter().map(|c| c.value).collect();
    kept.sort_by(|a, b| b.total_cmp(a));
    assert_eq!(kept, all[..40]);
}

#[test]
fn the_same_seed_draws_the_same_and_another_does_not() {
    let row: Vec<f32> = (0..1000).map(|i| (i % 7) as f32).collect();
    let draw = |seed| {
        let s = Sampler::new(Sampling::default(), seed, 1000).expect("in range");
        (0..20).map(|n| choose(&s, &row, &vec![0; n])).collect::<Vec<_>>()
    };
    assert_eq!(draw(1), draw(1));
    assert_ne!(draw(1), draw(2));
}

#[test]
fn a_mask_is_never_left_even_where_it_is_shorter_than_the_row() {
    let row = vec![1.0f32; 100];
    let mut mask = vec![0u32; 2];
    mask[1] = 0b100; // token 34 only
    for sampling in [Sampling::greedy(), Sampling::default()] {
        let s = sampler(sampling);
        for n in 0..50 {
            let text = vec![0; n];
            let id =
                s.choose(&mut row.clone(), &text, Some(&mask), &mut Scratch::default()).unwrap();
            assert_eq!(id, 34);
        }
    }
    let none = sampler(Sampling::default()).choose(
        &mut row.clone(),
        &[],
        Some(&[0; 4]),
        &mut Scratch::default(),
    );
    assert_eq!(none, Err(ChooseError::NothingAllowed));
}

#[test]
fn a_row_that_is_not_a_number_is_refused() {
    for poison in [f32::NAN, f32::INFINITY] {
        for at in [0, 17, 2999] {
            let mut row = vec![0.5f32; 3000];
            row[at] = poison;
            let got =
                sampler(Sampling::greedy()).choose(&mut row, &[], None, &mut Scratch::default());
            assert_eq!(got, Err(ChooseError::NotFinite { id: at }));
        }
    }
}

#[test]
fn penalties_push_repeated_tokens_down() {
    let row = [2.0f32, 1.9, -0.5];
    let repeat = sampler(Sampling { repeat_penalty: 1.5, ..Sampling::greedy() });
    assert_eq!(choose(&repeat, &row, &[0]), 1);
    assert_eq!(choose(&repeat, &row, &[0, 1]), 0);
    let mut window = Sampling { repeat_penalty: 1.5, ..Sampling::greedy() };
    window.repeat_last_n = 1;
    assert_eq!(choose(&sampler(window), &row, &[0, 2]), 0, "0 has left the window");
    let mut presence = sampler(Sampling { presence_penalty: 0.2, ..Sampling::greedy() });
    assert_eq!(choose(&presence, &row, &[0]), 0, "the prompt is not punished");
    presence.note(0);
    assert_eq!(choose(&presence, &row, &[0]), 1);
    let mut frequency = sampler(Sampling { frequency_penalty: 0.06, ..Sampling::greedy() });
    frequency.note(0);
    assert_eq!(choose(&frequency, &row, &[0]), 0);
    frequency.note(0);
    assert_eq!(choose(&frequency, &row, &[0]), 1);
}

#[test]
fn a_bias_raises_and_bans() {
    let row = [1.0f32, 0.0, 0.5];
    let raise = sampler(Sampling { logit_bias: vec![(1, 5.0)], ..Sampling::greedy() });
    assert_eq!(choose(&raise, &row, &[]), 1);
    let ban = sampler(Sampling { logit_bias: vec![(0, -100.0)], ..Sampling::greedy() });
    assert_eq!(choose(&ban, &row, &[]), 2);
}

#[test]
fn values_out_of_range_are_refused_by_name() {
    let bad = [
        ("temperature", Sampling { temperature: -1.0, ..Sampling::default() }),
        ("temperature", Sampling { temperature: f32::NAN, ..Sampling::default() }),
        ("top_p", Sampling { top_p: 1.5, ..Sampling::default() }),
        ("repeat_penalty", Sampling { repeat_penalty: 0.0, ..Sampling::default() }),
        ("logit_bias", Sampling { logit_bias: vec![(100, 1.0)], ..Sampling::default() }),
        ("logit_bias", Sampling { logit_bias: vec![(1, f32::NAN)], ..Sampling::default() }),
    ];
    for (field, sampling) in bad {
        assert_eq!(Sampler::new(sampling, 0, 100).map(|_| ()).unwrap_err().field, field);
    }
}

#[test]
fn log_probabilities_are_of_the_untouched_distribution() {
    let row = [1.0f32, 3.0, 2.0, -1.0];
    let mut scratch = Scratch::default();
    let report = Report::new(&row, 2, &mut scratch);
    let total: f32 = (0..4).map(|id| report.of(id).exp()).sum();
    assert!((total - 1.0).abs() < 1e-5);
    let top: Vec<u32> = report.top().iter().map(|t| t.0).collect();
    assert_eq!(top, [1, 2]);
    assert!((report.top()[0].1 - report.of(1)).abs() < 1e-6);
}

#[test]
fn top_p_over_a_big_vocabulary_is_the_sorted_heads_mass() {
    let row: Vec<f32> = (0..50_000u64).map(|i| (race::mix(i) % 5000) as f32 / 500.0).collect();
    for (top_p, temperature) in [(0.3, 1.0), (0.9, 1.0), (0.5, 0.2), (0.999, 2.0)] {
        let s = sampler(Sampling { top_p, temperature, ..Sampling::default() });
        let best = row.iter().copied().fold(f32::MIN, f32::max);
        let mut kept = Vec::new();
        s.collect(&row, best, &mut kept);
        let mut all = kept.clone();
        s.weigh(best, &mut kept);
        all.iter_mut().for_each(|c| c.value = ((c.value - best) * (1.0 / temperature)).exp());
        all.sort_by(better);
        let total: f64 = all.iter().map(|c| f64::from(c.value)).sum();
        let mut mass = 0.0;
        let reached = |c: &Candidate| {
            mass += f64::from(c.value);
            mass >= total * f64::from(top_p)
        };
        let expected = all.iter().position(reached).expect("reached") + 1;
        let ids = |c: &[Candidate]| c.iter().map(|c| c.id).collect::<Vec<_>>();
        assert_eq!(ids(&kept), ids(&all[..expected]), "top_p {top_p}");
    }
}
