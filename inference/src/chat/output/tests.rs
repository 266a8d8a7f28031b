//! Answers of every family, whole and in pieces.

use serde_json::json;

use super::*;
use crate::chat::calls::Calls;

fn parse(family: Family, text: &str) -> Output {
    let whole = parse_output(family, Tools::Offered, Start::Content, text);
    // Cut anywhere, the answer is the same.
    for size in [1, 2, 3, 7] {
        let mut parser = OutputParser::new(family, Tools::Offered, Start::Content);
        let characters: Vec<char> = text.chars().collect();
        let mut deltas = Vec::new();
        for piece in characters.chunks(size) {
            deltas.extend(parser.push(&piece.iter().collect::<String>()));
        }
        deltas.extend(parser.finish());
        let output: Output = deltas.into_iter().collect();
        assert_eq!(output, whole, "in pieces of {size}: {text:?}");
    }
    whole
}

fn weather(city: &str) -> ToolCall {
    ToolCall { name: "get_weather".into(), arguments: json!({"city": city}) }
}

#[test]
fn reasoning_is_kept_apart() {
    let output = parse(Family::Hermes, "<think>\nhm, 1 < 2\n</think>\n\nYes.\n");
    assert_eq!(output.reasoning.as_deref(), Some("hm, 1 < 2"));
    assert_eq!(output.content, "Yes.\n");
    let output = parse(Family::Hermes, "<think>\n\n</think>\n\nYes");
    assert_eq!((output.reasoning, output.content.as_str()), (None, "Yes"));
    let output = parse(Family::Plain, "<think>never ends ");
    assert_eq!(output.reasoning.as_deref(), Some("never ends"));
    let output = parse(Family::Plain, "I <think> not</think>");
    assert_eq!(output.content, "I <think> not</think>");
    let started = parse_output(Family::Hermes, Tools::None, Start::Reasoning, "a\n</think>\n\nb");
    assert_eq!((started.reasoning.as_deref(), started.content.as_str()), (Some("a"), "b"));
}

#[test]
fn each_familys_calls_are_found() {
    let call = r#"{"name": "get_weather", "arguments": {"city": "Paris"}}"#;
    let parameters = r#"{"name": "get_weather", "parameters": {"city": "Paris"}}"#;
    let two = vec![weather("Paris"), weather("Paris")];
    let cases = [
        (
            Family::Hermes,
            format!("<tool_call>\n{call}\n</tool_call>\n<tool_call>{call}</tool_call>"),
        ),
        (Family::Llama3, format!("<|python_tag|>{parameters}; {parameters}")),
        (Family::Llama3, format!("{parameters};{parameters}")),
        (Family::Llama3, "<function=get_weather>{\"city\": \"Paris\"}</function>".repeat(2)),
        (Family::Phi4, format!("<|tool_call|>[{call}, {call}]<|/tool_call|>")),
        (Family::Phi4, format!("functools[{call}, {call}]")),
        (Family::Phi4, format!("[{call}, {call}]")),
        (Family::Gemma, format!("```json\n[{parameters}, {parameters}]\n```")),
        (Family::Gemma, format!("\n[{call}, {{\"type\":\"function\",\"function\":{call}}}]")),
    ];
    for (family, text) in cases {
        let output = parse(family, &text);
        assert_eq!(output.tool_calls, two, "{family:?} {text}");
        assert_eq!(output.content, "", "{family:?} {text}");
    }
}

#[test]
fn text_and_reasoning_may_stand_before_a_call() {
    let text = "<think>\nlook\n</think>\n\nLet me see.\n<tool_call>\n{\"name\": \"get_weather\", \
                \"arguments\": \"{\\\"city\\\": \\\"Rome\\\"}\"}\n</tool_call>";
    let output = parse(Family::Hermes, text);
    assert_eq!(output.reasoning.as_deref(), Some("look"));
    assert_eq!(output.content, "Let me see.");
    assert_eq!(output.tool_calls, [weather("Rome")]);
}

#[test]
fn what_is_no_call_stays_content() {
    for (family, text) in [
        (Family::Hermes, "<tool_call>{\"name\": 1}</tool_call> x"),
        (Family::Hermes, "a <tool_call>{\"name\""),
        (Family::Hermes, "a < b <tool"),
        (Family::Llama3, "{\"answer\": 42}"),
        (Family::Llama3, "{not json"),
        (Family::Phi4, "functools[1]"),
        (Family::Phi4, "[{\"a\": 1}]"),
        (Family::Gemma, "```json\n{\"a\": 1}\n```\nand more"),
        (Family::Plain, "{\"name\": \"x\", \"arguments\": {}}"),
        (Family::Gemma, "  spaces "),
    ] {
        let output = parse(family, text);
        assert_eq!(output.content, text, "{family:?}");
        assert!(output.tool_calls.is_empty());
    }
    let json = "{\"name\": \"x\", \"parameters\": {}}";
    let output = parse_output(Family::Llama3, Tools::None, Start::Content, json);
    assert_eq!((output.content.as_str(), output.tool_calls.len()), (json, 0));
}

#[test]
fn behind_the_last_call_that_it_may_hold_the_answer_is_over() {
    let call = r#"{"name": "get_weather", "arguments": {"city": "Rome"}}"#;
    for (family, text) in [
        (Family::Hermes, format!("<tool_call>{call}</tool_call>\n<tool_call>{call}</tool_call>")),
        (Family::Phi4, format!("functools[{call}, {call}] and more")),
        (Family::Llama3, format!("{call}; {call}")),
    ] {
        let mut parser =
            OutputParser::new(family, Tools::Offered, Start::Content).with_calls(Calls::One);
        let mut deltas = parser.push(&text);
        assert_eq!(parser.is_over(), family == Family::Hermes);
        deltas.extend(parser.finish());
        let expected: &[Delta] = match family {
            // What is no call as a whole is content.
            Family::Phi4 => &[Delta::Content(text)],
            _ => &[Delta::ToolCall(weather("Rome"))],
        };
        assert_eq!(deltas, expected, "{family:?}");
    }
}

/// A piece of an answer: text, or a control token.
type Piece<'a> = Result<&'a str, &'a str>;

fn parse_pieces(family: Family, tools: Tools, pieces: &[Piece<'_>]) -> Output {
    let mut parser = OutputParser::new(family, tools, Start::Content);
    let mut deltas = Vec::new();
    for piece in pieces {
        match piece {
            Ok(text) => text.chars().for_each(|c| deltas.extend(parser.push(&c.to_string()))),
            Err(mark) => deltas.extend(parser.push_mark(mark)),
        }
    }
    deltas.extend(parser.finish());
    deltas.into_iter().collect()
}

#[test]
fn marks_that_are_control_tokens_part_an_answer_as_marks_in_its_text_do() {
    let call = r#"{"name": "get_weather", "arguments": {"city": "Rome"}}"#;
    let list = format!("[{call}]");
    let pieces: [(Family, Vec<Piece<'_>>); 4] = [
        (Family::Phi4, vec![Ok("Yes. \n"), Err("<|tool_call|>"), Ok(&list), Err("<|/tool_call|>")]),
        (Family::Phi4, vec![Ok("Yes. "), Err("<|tool_call|>"), Ok(&list)]),
        (Family::Llama3, vec![Ok("Yes."), Err("<|python_tag|>"), Ok(call)]),
        (
            Family::Hermes,
            vec![
                Ok("\n"),
                Err("<think>"),
                Ok("\nhm\n"),
                Err("</think>"),
                Ok("\n\nYes.\n"),
                Err("<tool_call>"),
                Ok(call),
                Err("</tool_call>"),
            ],
        ),
    ];
    for (family, pieces) in pieces {
        let output = parse_pieces(family, Tools::Offered, &pieces);
        assert_eq!(output.tool_calls, [weather("Rome")], "{family:?}");
        assert_eq!(output.content, "Yes.", "{family:?}");
        let thought = (family == Family::Hermes).then_some("hm");
        assert_eq!(output.reasoning.as_deref(), thought);
    }
}

#[test]
fn a_control_token_is_never_content() {
    let none = |family, tools, pieces: &[Piece<'_>], content: &str| {
        let output = parse_pieces(family, tools, pieces);
        assert_eq!(output.content, content, "{family:?} {pieces:?}");
        assert!(output.tool_calls.is_empty() && output.reasoning.is_none());
    };
    let (open, close) = (Err("<|tool_call|>"), Err("<|/tool_call|>"));
    none(
        Family::Phi4,
        Tools::Offered,
        &[Ok("a "), open, Ok("[1] b"), close, Ok(" c")],
        "a [1] b c",
    );
    none(Family::Phi4, Tools::Offered, &[Ok("a "), open, Ok("b")], "a b");
    none(Family::Phi4, Tools::None, &[Ok("a"), open, Ok("b"), close], "ab");
    none(Family::Hermes, Tools::Offered, &[Ok("a"), Err("<think>"), Ok("b")], "ab");
    none(Family::Plain, Tools::Offered, &[Err("</think>"), open, Ok("b")], "b");
}

#[test]
fn content_streams_as_it_comes() {
    let mut parser = OutputParser::new(Family::Hermes, Tools::Offered, Start::Content);
    assert_eq!(parser.push("Hello"), [Delta::Content("Hello".into())]);
    assert_eq!(parser.push(" <"), []);
    assert_eq!(parser.push("b>"), [Delta::Content(" <b>".into())]);
    assert_eq!(parser.finish(), []);
}

proptest::proptest! {
    #[test]
    fn no_answer_panics_and_plain_text_is_kept(text in r"(<think>|</think>|<tool_call>|\{|\PC| ){0,20}") {
        for family in [Family::Plain, Family::Hermes, Family::Llama3, Family::Phi4, Family::Gemma] {
            parse(family, &text);
        }
        if !text.contains("<think>") {
            let output = parse_output(Family::Plain, Tools::None, Start::Content, &text);
            proptest::prop_assert_eq!(output.content, text);
        }
    }
}
