//! A template and a conversation, with a zero byte between them; and the same bytes as a model's
//! answer.
#![no_main]

use fulmar_inference::chat::{
    ChatTemplate, Family, OutputParser, RenderInput, Start, Tools, parse_output,
};
use libfuzzer_sys::fuzz_target;
use serde_json::{Value, json};

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let (source, conversation) = text.split_once('\0').unwrap_or((text, ""));
    let messages = serde_json::from_str(conversation)
        .unwrap_or_else(|_| json!([{"role": "user", "content": "Hello"}]));
    let messages = messages.as_array().cloned().unwrap_or_default();
    if let Ok(template) = ChatTemplate::from_source(source, "<s>", "</s>") {
        let tools = json!([{"type": "function", "function": {"name": "get_weather"}}]);
        let kwargs = Value::Null;
        let input = RenderInput {
            messages: &messages,
            tools: Some(&tools),
            kwargs: &kwargs,
            add_generation_prompt: true,
            now_s: 0,
        };
        let _ = template.render(&input);
    }
    for family in [Family::Plain, Family::Hermes, Family::Llama3, Family::Phi4, Family::Gemma] {
        let whole = parse_output(family, Tools::Offered, Start::Content, text);
        let mut parser = OutputParser::new(family, Tools::Offered, Start::Content);
        let mut deltas = Vec::new();
        let mut piece = [0; 4];
        for character in text.chars() {
            deltas.extend(parser.push(character.encode_utf8(&mut piece)));
        }
        deltas.extend(parser.finish());
        let calls =
            deltas.iter().filter(|d| matches!(d, fulmar_inference::chat::Delta::ToolCall(_)));
        assert_eq!(calls.count(), whole.tool_calls.len());
    }
});
