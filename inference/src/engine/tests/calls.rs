//! Answers that must hold calls hold them, whatever the model would rather say.

use serde_json::{Value, json};

use super::*;
use crate::chat::{Calls, Delta, ToolCall, ToolChoice, ToolOffer};

/// Templates in the manner of each family that has a syntax of calls.
fn templates() -> [(&'static str, String); 5] {
    let turns = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n\
                 {% endfor %}<|im_start|>assistant\n";
    let with =
        |marks: &str| format!("{{% if tools %}}{{# {marks} #}}{{{{ tools }}}}{{% endif %}}{turns}");
    [
        ("hermes", with("<tool_call>")),
        ("llama3", with("<|python_tag|>")),
        ("phi4", with("<|tool_call|>")),
        ("gemma", with("<start_of_turn>")),
        ("plain", turns.to_owned()),
    ]
}

fn tools() -> Value {
    json!([
        { "type": "function", "function": { "name": "switch", "parameters": {
            "type": "object",
            "properties": {
                "place": { "enum": ["hall", "roof"] },
                "level": { "type": "integer", "minimum": 0, "maximum": 9 },
            },
            "required": ["place", "level"],
            "additionalProperties": false,
        } } },
        { "type": "function", "function": { "name": "status" } },
    ])
}

async fn engine(template: String) -> Engine {
    engine_with(template, Vec::new()).await
}

async fn engine_with(template: String, specials: Vec<(String, i32)>) -> Engine {
    let options = EngineOptions {
        budget_bytes: 256 << 20,
        threads: 1,
        context_tokens_max: 2048,
        kv_tokens_max: 4096,
        ..EngineOptions::default()
    };
    let engine = Engine::start(options).expect("an engine");
    let llama = Sample::of("llama");
    let sample = Sample { template: Some(template), specials, context_tokens: 2048, ..llama };
    engine.load("m", sample.gguf().expect("a sample")).await.expect("loads");
    engine
}

/// Tokens of the kinds that files have: 3 control, 4 defined by the author.
fn specials(kind: i32) -> Vec<(String, i32)> {
    crate::chat::MARKS.iter().map(|mark| ((*mark).to_owned(), kind)).collect()
}

/// These tokens wherever they may come.
fn rather(engine: &Engine, marks: &[&str]) -> Vec<(u32, f32)> {
    let tokenizer = engine.tokenizer("m").expect("a tokenizer");
    marks.iter().map(|mark| (tokenizer.special(mark).expect("a token"), 100.0)).collect()
}

fn request(choice: ToolChoice, calls: Calls, seed: u64) -> Request {
    Request {
        model: "m".to_owned(),
        prompt: Prompt::Chat {
            messages: vec![json!({ "role": "user", "content": "light" })],
            tools: Some(ToolOffer { tools: tools(), choice, calls }),
            template_kwargs: Value::Null,
        },
        sampling: Sampling { seed: Some(seed), ..Sampling::default() },
        max_tokens: Some(300),
        ..Request::default()
    }
}

/// An answer, taken apart, with its tokens and why it ended.
#[derive(Debug)]
struct Answered {
    calls: Vec<ToolCall>,
    content: String,
    reasoning: String,
    ids: Vec<u32>,
    ended: FinishReason,
}

async fn answered(engine: &Engine, request: Request) -> Answered {
    let mut generation = engine.generate(request).await.expect("accepted");
    let mut parser = generation.take_parser().expect("a conversation");
    let (mut deltas, mut ids, mut ended) = (Vec::new(), Vec::new(), None);
    while let Some(event) = generation.next().await {
        match event {
            Event::Token { text, id, mark, .. } => {
                ids.push(id);
                deltas.extend(parser.push(&text));
                deltas.extend(mark.into_iter().flat_map(|mark| parser.push_mark(mark)));
            }
            Event::Done { reason, .. } => ended = Some(reason),
            Event::Failed { message } => panic!("{message}"),
            Event::Started { .. } => {}
        }
    }
    deltas.extend(parser.finish());
    let (mut calls, mut content, mut reasoning) = (Vec::new(), String::new(), String::new());
    for delta in deltas {
        match delta {
            Delta::ToolCall(call) => calls.push(call),
            Delta::Content(text) => content += &text,
            Delta::Reasoning(text) => reasoning += &text,
        }
    }
    Answered { calls, content, reasoning, ids, ended: ended.expect("an end") }
}

/// The calls and the content of an answer without reasoning, and why it ended.
async fn ask(engine: &Engine, request: Request) -> (Vec<ToolCall>, String, FinishReason) {
    let got = answered(engine, request).await;
    assert_eq!(got.reasoning, "", "no reasoning was possible");
    (got.calls, got.content, got.ended)
}

fn is_valid(call: &ToolCall) -> bool {
    let arguments = &call.arguments;
    match call.name.as_str() {
        "switch" => {
            arguments.as_object().is_some_and(|fields| fields.len() == 2)
                && ["hall", "roof"].contains(&arguments["place"].as_str().unwrap_or_default())
                && arguments["level"].as_u64().is_some_and(|level| level < 10)
        }
        "status" => *arguments == json!({}),
        _ => false,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn required_calls_come_in_every_familys_syntax_and_are_valid() {
    let mut names = std::collections::BTreeSet::new();
    for (family, template) in templates() {
        let engine = engine(template).await;
        for seed in 0..8 {
            let (calls, content, ended) =
                ask(&engine, request(ToolChoice::Required, Calls::One, seed)).await;
            assert_eq!(ended, FinishReason::Stop, "{family}");
            assert_eq!((calls.len(), content.as_str()), (1, ""), "{family}");
            assert!(is_valid(&calls[0]), "{family}: {calls:?}");
            names.insert(calls[0].name.clone());
            let (many, content, ended) =
                ask(&engine, request(ToolChoice::Required, Calls::Many, seed)).await;
            if ended == FinishReason::Stop {
                assert!(!many.is_empty() && many.iter().all(is_valid), "{family}: {many:?}");
                assert_eq!(content, "", "{family}");
            }
            let named = ToolChoice::Function("switch".to_owned());
            let (calls, ..) = ask(&engine, request(named, Calls::One, seed)).await;
            assert!(calls.len() == 1 && calls[0].name == "switch", "{family}: {calls:?}");
        }
    }
    assert_eq!(names.len(), 2, "either tool is called: {names:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tool_whose_schema_cannot_be_kept_is_refused_by_its_name_and_keyword() {
    let [(_, template), ..] = templates();
    let engine = engine(template).await;
    let mut bad = request(ToolChoice::Required, Calls::One, 1);
    if let Prompt::Chat { tools: Some(offer), .. } = &mut bad.prompt {
        offer.tools[0]["function"]["parameters"]["properties"]["place"] =
            json!({ "type": "array", "uniqueItems": true });
    }
    match engine.generate(bad).await.map(|_| ()) {
        Err(Refused::Invalid { field: "tools", reason }) => {
            assert!(reason.contains("switch") && reason.contains("uniqueItems"), "{reason}");
        }
        other => panic!("{other:?}"),
    }
    let missing = ToolChoice::Function("other".to_owned());
    let refused = engine.generate(request(missing, Calls::One, 1)).await.map(|_| ());
    assert!(matches!(refused, Err(Refused::Invalid { field: "tool_choice", .. })), "{refused:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn where_the_template_opens_reasoning_a_constraint_waits_for_its_end() {
    let template = "{% for m in messages %}{{ m.content }}\n{% endfor %}<think>\n";
    let engine = engine(template.to_owned()).await;
    let mut asked = request(ToolChoice::Auto, Calls::Many, 1);
    asked.constraint = Some(Constraint::Json);
    asked.max_tokens = Some(60);
    let Prompt::Chat { tools, .. } = &mut asked.prompt else { unreachable!("it is one") };
    *tools = None;
    let mut generation = engine.generate(asked).await.expect("accepted");
    let mut parser = generation.take_parser().expect("a conversation");
    let mut deltas = Vec::new();
    while let Some(event) = generation.next().await {
        match event {
            Event::Token { text, .. } => deltas.extend(parser.push(&text)),
            // A model of random weights never closes its reasoning: all of the answer is that.
            Event::Done { reason, .. } => assert_eq!(reason, FinishReason::Length),
            Event::Failed { message } => panic!("{message}"),
            Event::Started { .. } => {}
        }
    }
    assert!(!deltas.is_empty());
    assert!(deltas.iter().all(|delta| matches!(delta, Delta::Reasoning(_))), "{deltas:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_constrained_answer_closes_its_reasoning_by_the_vocabularys_own_token() {
    let template = "{% for m in messages %}{{ m.content }}\n{% endfor %}<think>\n";
    for kind in [3, 4] {
        let engine = engine_with(template.to_owned(), specials(kind)).await;
        let mut asked = request(ToolChoice::Auto, Calls::Many, 1);
        asked.constraint = Some(Constraint::JsonSchema(json!({
            "type": "object",
            "properties": { "a": { "type": "string", "maxLength": 8 } },
            "required": ["a"],
            "additionalProperties": false,
        })));
        let Prompt::Chat { tools, .. } = &mut asked.prompt else { unreachable!("it is one") };
        *tools = None;
        // Where they could, all marks would come: within the reasoning, and within the JSON.
        asked.sampling.logit_bias = rather(&engine, &crate::chat::MARKS);
        let got = answered(&engine, asked).await;
        let close = rather(&engine, &["</think>"])[0].0;
        assert_eq!(got.ids.iter().filter(|id| **id == close).count(), 1, "kind {kind}: {got:?}");
        let json: Value = serde_json::from_str(&got.content).expect("JSON");
        assert!(json["a"].is_string(), "kind {kind}: {got:?}");
        let tokenizer = engine.tokenizer("m").expect("a tokenizer");
        let specials = got.ids.iter().filter(|id| tokenizer.is_reserved(**id)).count();
        assert!(specials <= 2, "the mark and the end: {got:?}");
        assert_eq!((got.ended, got.calls.len()), (FinishReason::Stop, 0));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn required_calls_stand_between_the_vocabularys_own_tokens() {
    for (family, template) in templates() {
        let marks: &[&str] = match family {
            "hermes" => &["<tool_call>", "</tool_call>"],
            "phi4" => &["<|tool_call|>", "<|/tool_call|>"],
            "llama3" => &["<|python_tag|>"],
            _ => &[],
        };
        for kind in [3, 4] {
            let engine = engine_with(template.clone(), specials(kind)).await;
            let mut asked = request(ToolChoice::Required, Calls::One, 3);
            asked.sampling.logit_bias = rather(&engine, &crate::chat::MARKS);
            let got = answered(&engine, asked).await;
            assert_eq!(got.ended, FinishReason::Stop, "{family}, kind {kind}");
            assert!(got.calls.len() == 1 && is_valid(&got.calls[0]), "{family}, {kind}: {got:?}");
            assert_eq!(got.content, "", "{family}, kind {kind}");
            let tokenizer = engine.tokenizer("m").expect("a tokenizer");
            let is_mark = |id: &u32| tokenizer.is_reserved(*id) && !tokenizer.is_end(*id);
            let found: Vec<u32> = got.ids.iter().copied().filter(is_mark).collect();
            let expected = rather(&engine, marks).into_iter().map(|(id, _)| id);
            assert_eq!(found, expected.collect::<Vec<_>>(), "{family}, kind {kind}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn control_tokens_that_are_no_marks_of_the_answer_are_not_shown() {
    let [_, _, (_, phi4), ..] = templates();
    let engine = engine_with(phi4, specials(3)).await;
    let mut asked = request(ToolChoice::Auto, Calls::Many, 1);
    asked.max_tokens = Some(12);
    // Nothing else comes: an opening without a call.
    asked.sampling.logit_bias = rather(&engine, &["<|tool_call|>"]);
    let got = answered(&engine, asked.clone()).await;
    assert_eq!((got.content.as_str(), got.calls.len(), got.ids.len()), ("", 0, 12), "{got:?}");
    let Prompt::Chat { tools, .. } = &mut asked.prompt else { unreachable!("it is one") };
    *tools = None;
    let got = answered(&engine, asked).await;
    assert_eq!((got.content.as_str(), got.calls.len(), got.ids.len()), ("", 0, 12), "{got:?}");
}
