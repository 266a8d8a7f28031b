use std::path::Path;

use super::*;

fn test(prompt: u32, generated: u32, depth: u32, sequences: u32) -> Test {
    Test { prompt_tokens: prompt, generated_tokens: generated, depth_tokens: depth, sequences }
}

async fn run(tests: Vec<Test>) -> Result<Report, BenchError> {
    let model =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../packaging/demo-model/fulmar-demo.gguf");
    let options = BenchOptions {
        tests,
        repetitions: 2,
        threads: 1,
        backend: BackendChoice::Auto,
        kv_type: KvType::F16,
        batch_tokens_max: 64,
    };
    bench(Gguf::open(&model).unwrap(), &options, &mut |_| ()).await
}

#[test]
fn names_are_those_of_llama_bench() {
    let cases = [
        (test(512, 0, 0, 1), "pp512"),
        (test(0, 128, 0, 1), "tg128"),
        (test(512, 128, 0, 1), "pp512+tg128"),
        (test(512, 0, 4096, 1), "pp512 @ d4096"),
        (test(0, 16, 64, 4), "tg16 @ d64 x4"),
    ];
    for (test, name) in cases {
        assert_eq!(test.name(), name);
    }
}

#[tokio::test]
async fn every_kind_of_test_is_measured_and_tabled() {
    let tests = vec![
        test(40, 0, 0, 1),
        test(0, 6, 0, 1),
        test(20, 4, 0, 1),
        test(8, 0, 64, 1),
        test(0, 4, 32, 3),
    ];
    let report = run(tests).await.unwrap();
    assert_eq!(report.results.len(), 5);
    for result in &report.results {
        assert!(result.tokens_per_s > 0.0, "{}", result.name);
        assert_eq!(result.runs.len(), 2);
    }
    let table = report.markdown();
    assert!(table.contains("| qwen3 4.7M Q8_0 |"), "{table}");
    assert!(table.contains("| tg4 @ d32 x3 |"), "{table}");
}

#[test]
fn tokens_that_were_seen_late_do_not_make_a_run_faster() {
    let now = Instant::now();
    // All seen at once, after the engine had worked a second on them.
    let seen = Times { first: now, last: now, decode: Duration::from_secs(1), computed: 1 };
    let measured = rate(&test(0, 16, 0, 1), now, &[seen]);
    assert!((measured - 16.0).abs() < 1e-9, "{measured}");
}

#[tokio::test]
async fn a_test_that_does_not_fit_is_refused_with_the_numbers() {
    let refused = run(vec![test(2000, 0, 0, 1)]).await.unwrap_err().to_string();
    assert_eq!(refused, "run test pp2000: it needs 2002 tokens of context, the model has 1024");
    let refused = run(vec![test(0, 0, 0, 1)]).await.unwrap_err().to_string();
    assert_eq!(refused, "use generated_tokens = 0: expected 1 to 1048576");
    assert!(run(vec![test(1, 0, 0, 0)]).await.is_err());
}

#[test]
fn mean_and_deviation_are_those_of_a_sample() {
    let measured = summarise(test(1, 0, 0, 1), vec![2.0, 4.0, 6.0]);
    assert_eq!((measured.tokens_per_s, measured.tokens_per_s_sd), (4.0, 2.0));
    assert_eq!(summarise(test(1, 0, 0, 1), vec![5.0]).tokens_per_s_sd, 0.0);
}
