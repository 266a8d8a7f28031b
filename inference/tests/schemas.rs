//! Every constrained answer that finishes is valid: random schemas, a model with random weights,
//! temperature 1, and a validator that shares no code with the constraint's compiler.
//!
//! `FULMAR_SCHEMA_SUITE` may name a folder of the JSON-Schema-Test-Suite (its `tests/draft7`, say);
//! its schemas are then used too.

#![allow(clippy::unwrap_used)] // a failure here is a failed test

use std::collections::BTreeMap;

use fulmar_inference::backend::KvType;
use fulmar_inference::engine::{
    Constraint, Engine, EngineOptions, Event, FinishReason, Prompt, Refused, Request, Sampling,
};
use fulmar_inference::model::sample::Sample;
use serde_json::{Map, Value, json};

/// Finished answers wanted.
const FINISHED: usize = 500;
/// Answers under way at once.
const AT_ONCE: usize = 16;

/// A small generator of numbers, the same on every machine.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 33) as usize) % sides
    }

    fn chance(&mut self, of: usize) -> bool {
        self.roll(of) == 0
    }
}

fn schema(dice: &mut Dice, depth: usize) -> Value {
    let kinds = if depth == 0 { 8 } else { 12 };
    match dice.roll(kinds) {
        0 => json!({ "type": "null" }),
        1 => json!({ "type": "boolean" }),
        2 => integer(dice),
        3 => number(dice),
        4 | 5 => string(dice),
        6 => json!({ "enum": [1, "two", null, [3], { "four": 5.5 }, "é\n\""] }),
        7 => json!({ "const": { "a": [true, -0.5], "b": "c\\d" } }),
        8 => array(dice, depth),
        9 | 10 => object(dice, depth),
        _ => json!({ "anyOf": [schema(dice, depth - 1), schema(dice, depth - 1)] }),
    }
}

fn integer(dice: &mut Dice) -> Value {
    let low = dice.roll(200) as i64 - 100;
    match dice.roll(5) {
        0 => json!({ "type": "integer" }),
        1 => json!({ "type": "integer", "minimum": low, "maximum": low + dice.roll(5000) as i64 }),
        2 => json!({ "type": "integer", "exclusiveMinimum": low }),
        3 => json!({
            "type": "integer", "minimum": 0, "maximum": 1_000_000, "multipleOf": 1 + dice.roll(7),
        }),
        _ => json!({ "type": ["integer", "null"], "maximum": low }),
    }
}

fn number(dice: &mut Dice) -> Value {
    let low = dice.roll(2000) as f64 / 16.0 - 60.0;
    match dice.roll(3) {
        0 => json!({ "type": "number" }),
        1 => json!({ "type": "number", "minimum": low, "maximum": low + 7.25 }),
        _ => json!({ "type": "number", "exclusiveMinimum": low, "exclusiveMaximum": low + 0.5 }),
    }
}

fn string(dice: &mut Dice) -> Value {
    let least = dice.roll(4);
    match dice.roll(6) {
        0 => json!({ "type": "string", "minLength": least, "maxLength": least + dice.roll(9) }),
        1 => json!({ "type": "string", "pattern": "^[A-Z]{2}-[0-9]{3,5}$" }),
        2 => json!({ "type": "string", "pattern": "a.b" , "maxLength": 8 }),
        3 => {
            let formats = ["date", "time", "date-time", "uuid", "ipv4", "ipv6", "email"];
            json!({ "type": "string", "format": formats[dice.roll(7)] })
        }
        4 => json!({ "type": "string", "enum": ["", "x", "\u{1F600}", "tab\t"] }),
        _ => json!({ "type": "string", "maxLength": 3 }),
    }
}

fn array(dice: &mut Dice, depth: usize) -> Value {
    let least = dice.roll(3);
    let mut array = json!({
        "type": "array",
        "items": schema(dice, depth - 1),
        "minItems": least,
        "maxItems": least + 1 + dice.roll(2),
    });
    if dice.chance(3) {
        array["prefixItems"] = json!([schema(dice, depth - 1)]);
    }
    array
}

fn object(dice: &mut Dice, depth: usize) -> Value {
    let mut properties = Map::new();
    let mut required = Vec::new();
    for name in ["id", "name with space", "é", "tags"].iter().take(1 + dice.roll(4)) {
        properties.insert((*name).to_owned(), schema(dice, depth - 1));
        if !dice.chance(3) {
            required.push(*name);
        }
    }
    let mut object = json!({ "type": "object", "properties": properties, "required": required });
    match dice.roll(3) {
        0 => object["additionalProperties"] = json!(false),
        1 => {
            object["additionalProperties"] =
                json!({ "type": "integer", "minimum": 0, "maximum": 9 });
            // Counted only where nothing may be missing.
            if object["required"].as_array().map(Vec::len) == Some(properties_len(&object)) {
                object["maxProperties"] = json!(properties_len(&object) + 1);
            }
        }
        _ => {
            object["patternProperties"] = json!({ "^x-[a-z]{1,3}$": { "type": "boolean" } });
            object["additionalProperties"] = json!(false);
        }
    }
    object
}

fn properties_len(object: &Value) -> usize {
    object["properties"].as_object().map_or(0, Map::len)
}

/// Schemas of the public suite, where it is there.
fn suite() -> Vec<Value> {
    let Some(folder) = std::env::var_os("FULMAR_SCHEMA_SUITE") else { return Vec::new() };
    let mut paths: Vec<_> =
        std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    let files = paths.iter().filter(|p| p.extension().is_some_and(|e| e == "json"));
    files
        .flat_map(|path| {
            let groups: Vec<Value> = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
            groups.into_iter().map(|group| group["schema"].clone())
        })
        .collect()
}

async fn engine() -> Engine {
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

/// What came of one schema.
enum Outcome {
    Valid,
    Invalid(String),
    Unfinished,
    Refused(String),
}

async fn outcome(engine: &Engine, schema: &Value, seed: u64) -> Outcome {
    let request = Request {
        model: "m".to_owned(),
        prompt: Prompt::Text("JSON: ".to_owned()),
        sampling: Sampling { temperature: 1.0, seed: Some(seed), ..Sampling::default() },
        max_tokens: Some(400),
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
            Some(Event::Done { reason: FinishReason::Stop, .. }) => break,
            Some(Event::Done { .. } | Event::Failed { .. }) | None => return Outcome::Unfinished,
            Some(Event::Started { .. }) => {}
        }
    }
    let validator = match jsonschema::options().should_validate_formats(true).build(schema) {
        Ok(validator) => validator,
        Err(error) => return Outcome::Refused(format!("the validator: {error}")),
    };
    match serde_json::from_str::<Value>(&text) {
        Ok(value) if validator.is_valid(&value) => Outcome::Valid,
        Ok(_) => Outcome::Invalid(format!("{text}\nis not valid under\n{schema}")),
        Err(error) => Outcome::Invalid(format!("{text}\nis not JSON: {error}")),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_five_hundred_finished_answers_under_random_schemas_none_is_invalid() {
    let engine = engine().await;
    let mut dice = Dice(1);
    let mut schemas = suite();
    let from_suite = schemas.len();
    let (mut valid, mut invalid, mut unfinished, mut asked) = (0, Vec::new(), 0, 0usize);
    let mut refused: BTreeMap<String, usize> = BTreeMap::new();
    while valid + invalid.len() < FINISHED || asked < from_suite {
        while schemas.len() < asked + AT_ONCE {
            schemas.push(schema(&mut dice, 3));
        }
        let wave = asked..asked + AT_ONCE;
        let answers = wave.clone().map(|i| outcome(&engine, &schemas[i], i as u64));
        for outcome in futures_util::future::join_all(answers).await {
            match outcome {
                Outcome::Valid => valid += 1,
                Outcome::Invalid(text) => invalid.push(text),
                Outcome::Unfinished => unfinished += 1,
                Outcome::Refused(reason) => *refused.entry(reason).or_default() += 1,
            }
        }
        asked = wave.end;
        assert!(asked < 20_000, "too few answers finish: {valid} of {asked}");
    }
    println!(
        "{valid} valid, {} invalid, {unfinished} unfinished, refused: {refused:#?}",
        invalid.len()
    );
    assert!(invalid.is_empty(), "{}", invalid.join("\n---\n"));
    assert!(unfinished * 3 < asked, "{unfinished} of {asked} answers did not finish");
    assert!(from_suite > 0 || refused.is_empty(), "{refused:#?}");
}
