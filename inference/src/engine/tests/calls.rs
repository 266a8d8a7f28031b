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
    let options = EngineOptions {
        budget_bytes: 256 << 20,
        threads: 1,
        context_tokens_max: 2048,
        kv_tokens_max: 4096,
        ..EngineOptions::default()
    };
    let engine = Engine::start(options).expect("an engine");
    let sample = Sample { template: Some(template), context_tokens: 2048, ..Sample::of("llama") };
    engine.load("m", sample.gguf().expect("a sample")).await.expect("loads");
    engine
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

/// The calls and the content of an answer, and why it ended.
async fn ask(engine: &Engine, request: Request) -> (Vec<ToolCall>, String, FinishReason) {
    let mut generation = engine.generate(request).await.expect("accepted");
    let mut parser = generation.take_parser().expect("a conversation");
    let (mut deltas, mut ended) = (Vec::new(), None);
    while let Some(event) = generation.next().await {
        match event {
            Event::Token { text, .. } => deltas.extend(parser.push(&text)),
            Event::Done { reason, .. } => ended = Some(reason),
            Event::Failed { message } => panic!("{message}"),
            Event::Started { .. } => {}
        }
    }
    deltas.extend(parser.finish());
    let (mut calls, mut content) = (Vec::new(), String::new());
    for delta in deltas {
        match delta {
            Delta::ToolCall(call) => calls.push(call),
            Delta::Content(text) => content += &text,
            Delta::Reasoning(text) => panic!("no reasoning was possible: {text}"),
        }
    }
    (calls, content, ended.expect("an end"))
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
