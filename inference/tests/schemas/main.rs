//! Every constrained answer that finishes is valid: random schemas and suites of them, a model with
//! random weights, temperature 1, both backends, and a validator that shares no code with the
//! constraint's compiler.
//!
//! The public suite is not part of this repository. With its folder in `FULMAR_SCHEMA_SUITE`, its
//! schemas of drafts 4 to 2020-12 are asked as well; `tests/run` fetches it and says where it is:
//!
//! ```sh
//! FULMAR_SCHEMA_SUITE=$PWD/tests/output/schema-suite \
//!     cargo test --profile ci -p fulmar-inference --test schemas -- --nocapture
//! ```

#![allow(clippy::unwrap_used)] // a failure here is a failed test

mod generator;
mod suite;

use fulmar_inference::backend::KvType;
use fulmar_inference::engine::{
    BackendChoice, Constraint, Engine, EngineOptions, Event, FinishReason, Prompt, Refused,
    Request, Sampling,
};
use fulmar_inference::model::sample::Sample;
use generator::{Dice, schema};
use jsonschema::Validator;
use serde_json::{Value, json};

/// Finished answers wanted of each backend.
const FINISHED: usize = 500;
/// Answers under way at once.
const AT_ONCE: usize = 16;

async fn engine(backend: BackendChoice) -> Engine {
    let sample = Sample {
        layers: 1,
        embedding_len: 32,
        heads: 2,
        kv_heads: 1,
        head_dims: 16,
        feed_forward_len: 32,
        context_tokens: 1024,
        ..Sample::of("qwen3")
    };
    let options = EngineOptions {
        backend,
        budget_bytes: 256 << 20,
        threads: 1,
        context_tokens_max: 1024,
        kv_tokens_max: 16 * 1024,
        kv_type: KvType::F32,
        sequences_max: AT_ONCE,
        queue_len_max: AT_ONCE,
        ..EngineOptions::default()
    };
    let engine = Engine::start(options).unwrap();
    engine.load("m", sample.gguf().unwrap()).await.unwrap();
    engine
}

/// What came of one question.
enum Outcome {
    Finished(String),
    /// It reached its limit of tokens, and says so.
    Cut,
    /// It can't go on, and says so.
    Failed(String),
    Refused(String),
}

async fn outcome(engine: &Engine, schema: &Value, seed: u64, max_tokens: u32) -> Outcome {
    let request = Request {
        model: "m".to_owned(),
        prompt: Prompt::Text("JSON: ".to_owned()),
        sampling: Sampling { temperature: 1.0, seed: Some(seed), ..Sampling::default() },
        max_tokens: Some(max_tokens),
        constraint: Some(Constraint::JsonSchema(schema.clone())),
        ..Request::default()
    };
    let mut generation = match engine.generate(request).await {
        Ok(generation) => generation,
        Err(Refused::Constraint(error)) => return Outcome::Refused(error.to_string()),
        Err(other) => panic!("{other}"),
    };
    let mut text = String::new();
    loop {
        match generation.next().await {
            Some(Event::Token { text: piece, .. }) => text.push_str(&piece),
            Some(Event::Done { reason: FinishReason::Stop, .. }) => return Outcome::Finished(text),
            Some(Event::Done { reason: FinishReason::Length, .. }) => return Outcome::Cut,
            Some(Event::Done { reason, .. }) => panic!("{schema}: {reason:?}"),
            Some(Event::Failed { message }) => return Outcome::Failed(message),
            None => panic!("{schema}: the answer has no end"),
            Some(Event::Started { .. }) => {}
        }
    }
}

/// What is wrong with a text under a schema, if anything.
fn fault(validator: &Validator, schema: &Value, text: &str) -> Option<String> {
    match serde_json::from_str::<Value>(text) {
        Ok(value) if validator.is_valid(&value) => None,
        Ok(_) => Some(format!("{text}\nis not valid under\n{schema}")),
        Err(error) => Some(format!("{text}\nis not JSON: {error}")),
    }
}

async fn random_schemas(backend: BackendChoice) {
    let engine = engine(backend).await;
    let mut dice = Dice(1);
    let mut schemas = Vec::new();
    let (mut valid, mut cut, mut asked, mut faults) = (0, 0, 0usize, Vec::new());
    while valid + faults.len() < FINISHED {
        schemas.extend((0..AT_ONCE).map(|_| schema(&mut dice, 3)));
        let wave = asked..schemas.len();
        let answers = wave.clone().map(|i| outcome(&engine, &schemas[i], i as u64, 400));
        for (i, outcome) in wave.clone().zip(futures_util::future::join_all(answers).await) {
            let schema = &schemas[i];
            match outcome {
                Outcome::Finished(text) => {
                    let validator = jsonschema::options().should_validate_formats(true);
                    let validator = validator.build(schema).unwrap();
                    match fault(&validator, schema, &text) {
                        None => valid += 1,
                        Some(fault) => faults.push(fault),
                    }
                }
                Outcome::Cut => cut += 1,
                Outcome::Failed(why) | Outcome::Refused(why) => {
                    faults.push(format!("{schema}: {why}"));
                }
            }
        }
        asked = wave.end;
        assert!(asked < 20_000, "too few answers finish: {valid} of {asked}");
    }
    println!("{backend:?}: {valid} valid, {} at fault, {cut} cut", faults.len());
    assert!(faults.is_empty(), "{}", faults.join("\n---\n"));
    assert!(cut * 3 < asked, "{cut} of {asked} answers did not finish");
}

#[tokio::test(flavor = "multi_thread")]
async fn of_five_hundred_finished_answers_of_native_kernels_none_is_invalid() {
    random_schemas(BackendChoice::Native).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_five_hundred_finished_answers_of_candle_tensors_none_is_invalid() {
    random_schemas(BackendChoice::Candle).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_is_cut_says_so_and_a_schema_without_a_value_is_refused() {
    let engine = engine(BackendChoice::Native).await;
    let long = json!({ "type": "string", "minLength": 100 });
    assert!(matches!(outcome(&engine, &long, 1, 5).await, Outcome::Cut));
    for empty in [
        json!(false),
        json!({ "type": "string", "minLength": 3, "maxLength": 2 }),
        json!({ "allOf": [{ "type": "string" }, { "type": "integer" }] }),
        json!({ "$ref": "#" }),
        json!({ "type": "array", "items": { "$ref": "#" }, "minItems": 1 }),
        json!({ "type": "integer", "minimum": 3, "maximum": 2 }),
        json!({ "type": "object", "required": ["a"], "properties": { "a": false } }),
        json!({ "type": "string", "pattern": "^a$", "minLength": 2 }),
    ] {
        assert!(matches!(outcome(&engine, &empty, 1, 50).await, Outcome::Refused(_)), "{empty}");
    }
}
