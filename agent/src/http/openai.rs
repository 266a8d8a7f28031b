//! OpenAI's chat completions, as far as they are served: the request's fields, checked.
//!
//! A field that would change the answer and is not served is refused by its name; the fields that
//! change nothing here (`user`, `metadata`, `store`, `service_tier`) are accepted and unused.

use fulmar_inference::chat::{Calls, ToolChoice, ToolOffer};
use fulmar_inference::engine::{Prompt, Request};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::body;
use super::error::{ApiError, FieldNames};
use super::generation::Generation;
use super::messages;

/// A request to `/v1/chat/completions`.
#[derive(Debug, Clone)]
pub(crate) struct ChatRequest {
    /// How text is generated.
    pub(crate) generation: Generation,
    chat: Chat,
}

/// The fields that only chat has.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Chat {
    model: String,
    messages: Vec<Value>,
    #[serde(default)]
    max_tokens: Option<u32>,
    #[serde(default)]
    max_completion_tokens: Option<u32>,
    #[serde(default)]
    logprobs: Option<bool>,
    #[serde(default)]
    top_logprobs: Option<u8>,
    #[serde(default)]
    tools: Option<Vec<Value>>,
    #[serde(default)]
    tool_choice: Option<Choice>,
    #[serde(default)]
    parallel_tool_calls: Option<bool>,
    #[serde(default)]
    chat_template_kwargs: Option<Map<String, Value>>,
    #[serde(default)]
    #[expect(dead_code, reason = "changes nothing on a device")]
    metadata: Option<Value>,
    #[serde(default)]
    #[expect(dead_code, reason = "changes nothing on a device")]
    store: Option<bool>,
    #[serde(default)]
    #[expect(dead_code, reason = "changes nothing on a device")]
    service_tier: Option<String>,
}

/// Which tool is to be called.
#[derive(Debug, Clone, Deserialize)]
#[serde(
    untagged,
    expecting = "expected \"none\", \"auto\", \"required\" or \
                 {\"type\": \"function\", \"function\": {\"name\": …}}"
)]
enum Choice {
    Word(Word),
    Named(Named),
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Word {
    None,
    Auto,
    Required,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
enum Named {
    Function { function: FunctionName },
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct FunctionName {
    name: String,
}

impl ChatRequest {
    /// Reads a body.
    ///
    /// # Errors
    /// 400, naming the field or the place in the text.
    pub(crate) fn parse(body: &[u8]) -> Result<Self, ApiError> {
        let mut object = body::object(body)?;
        let generation = Generation::take(&mut object)?;
        let chat: Chat = body::fields(object)?;
        if chat.messages.is_empty() {
            return Err(ApiError::invalid(
                Some("messages"),
                "messages is empty; expected one or more",
            ));
        }
        messages::check(&chat.messages)?;
        Ok(Self { generation, chat })
    }

    /// The model asked.
    pub(crate) fn model(&self) -> &str {
        &self.chat.model
    }

    /// Where the request holds what the engine may refuse.
    pub(crate) fn field_names(&self) -> FieldNames {
        FieldNames { prompt: "messages", constraint: self.generation.constraint_field() }
    }

    /// Whether the client wants log-probabilities.
    pub(crate) fn wants_logprobs(&self) -> bool {
        self.chat.logprobs == Some(true)
    }

    /// What the audit log's digest of the prompt covers.
    pub(crate) fn prompt(&self) -> Value {
        json!({ "messages": self.chat.messages, "tools": self.chat.tools })
    }

    /// What the engine is asked.
    ///
    /// # Errors
    /// 400, naming the field.
    pub(crate) fn to_engine(&self) -> Result<Request, ApiError> {
        Ok(Request {
            prompt: Prompt::Chat {
                messages: self.chat.messages.clone(),
                tools: self.tools()?,
                template_kwargs: match &self.chat.chat_template_kwargs {
                    Some(kwargs) => Value::Object(kwargs.clone()),
                    None => Value::Null,
                },
            },
            sampling: self.generation.sampling()?,
            max_tokens: self.answer_tokens_max()?,
            stop: self.generation.stops(),
            constraint: self.generation.constraint()?,
            logprobs: self.logprobs_wanted()?,
            ..Request::default()
        })
    }

    fn answer_tokens_max(&self) -> Result<Option<u32>, ApiError> {
        match (self.chat.max_completion_tokens, self.chat.max_tokens) {
            (Some(a), Some(b)) if a != b => Err(ApiError::invalid(
                Some("max_tokens"),
                format!("max_tokens is {b} and max_completion_tokens is {a}; send one of them"),
            )),
            (Some(0), _) | (_, Some(0)) => {
                Err(ApiError::invalid(Some("max_tokens"), "max_tokens is 0; expected 1 or more"))
            }
            (a, b) => Ok(a.or(b)),
        }
    }

    fn logprobs_wanted(&self) -> Result<Option<u8>, ApiError> {
        match (self.chat.logprobs, self.chat.top_logprobs) {
            (Some(true), top) => Ok(Some(top.unwrap_or(0))),
            (_, None) => Ok(None),
            (_, Some(_)) => Err(ApiError::invalid(
                Some("top_logprobs"),
                "top_logprobs is set and logprobs is not; set logprobs to true",
            )),
        }
    }

    /// The tools on offer; none where none may be called.
    fn tools(&self) -> Result<Option<ToolOffer>, ApiError> {
        let tools = self.chat.tools.clone().filter(|tools| !tools.is_empty());
        let choice = match self.chat.tool_choice.clone() {
            None => ToolChoice::Auto,
            Some(Choice::Word(Word::None)) => return Ok(None),
            Some(Choice::Word(Word::Auto)) => ToolChoice::Auto,
            Some(Choice::Word(Word::Required)) => ToolChoice::Required,
            Some(Choice::Named(Named::Function { function })) => {
                ToolChoice::Function(function.name)
            }
        };
        let calls = match self.chat.parallel_tool_calls {
            Some(false) => Calls::One,
            None | Some(true) => Calls::Many,
        };
        match (tools, choice) {
            (None, ToolChoice::Auto) => Ok(None),
            (None, _) => Err(ApiError::invalid(
                Some("tool_choice"),
                "tool_choice asks for a call, and there are no tools",
            )),
            (Some(tools), choice) => {
                // A function that is named is called once.
                let calls = match choice {
                    ToolChoice::Function(_) => Calls::One,
                    ToolChoice::Auto | ToolChoice::Required => calls,
                };
                Ok(Some(ToolOffer { tools: Value::Array(tools), choice, calls }))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use fulmar_inference::engine::Constraint;

    use super::*;

    fn parse(extra: &str) -> Result<Request, ApiError> {
        let text =
            format!(r#"{{"model":"m","messages":[{{"role":"user","content":"hi"}}]{extra}}}"#);
        ChatRequest::parse(text.as_bytes())?.to_engine()
    }

    fn refused(extra: &str) -> (String, Option<String>) {
        let body = parse(extra).unwrap_err().body();
        let error = &body["error"];
        (error["message"].as_str().unwrap().to_owned(), error["param"].as_str().map(str::to_owned))
    }

    #[test]
    fn what_the_openai_package_sends_is_understood() {
        let request = parse(
            r#","temperature":0.2,"top_p":0.9,"max_tokens":7,"stop":"\n","seed":-1,"user":"u",
            "logit_bias":{"5":-100},"logprobs":true,"top_logprobs":2,"n":1,"stream":true,
            "stream_options":{"include_usage":true},"response_format":{"type":"json_object"},
            "tools":[{"type":"function"}],"tool_choice":"auto","parallel_tool_calls":true"#,
        )
        .unwrap();
        assert_eq!(request.max_tokens, Some(7));
        assert_eq!(request.sampling.seed, Some(u64::MAX));
        assert_eq!(request.sampling.logit_bias, [(5, -100.0)]);
        assert_eq!(request.logprobs, Some(2));
        assert_eq!(request.constraint, Some(Constraint::Json));
        assert_eq!(request.stop, ["\n"]);
    }

    #[test]
    fn an_unknown_field_is_refused_by_its_name() {
        let (message, _) = refused(r#","tempretaure":0.2"#);
        assert!(message.contains("tempretaure"), "{message}");
        let (message, _) = refused(r#","response_format":{"type":"xml"}"#);
        assert!(message.contains("xml"), "{message}");
    }

    #[test]
    fn a_value_out_of_range_is_refused_with_its_range() {
        for (extra, field) in [
            (r#","temperature":3"#, "temperature"),
            (r#","top_p":-0.1"#, "top_p"),
            (r#","max_tokens":0"#, "max_tokens"),
            (r#","max_tokens":1,"max_completion_tokens":2"#, "max_tokens"),
            (r#","n":2"#, "n"),
            (r#","logit_bias":{"x":1}"#, "logit_bias"),
            (r#","top_logprobs":2"#, "top_logprobs"),
            (r#","grammar":"root ::= 1","response_format":{"type":"json_object"}"#, "grammar"),
        ] {
            let (message, param) = refused(extra);
            assert_eq!(param.as_deref(), Some(field), "{message}");
            assert!(message.contains(field), "{message}");
        }
    }

    #[test]
    fn the_choice_of_a_tool_is_understood_in_all_its_forms() {
        let offer = |fields: &str| {
            let extra = format!(r#","tools":[{{"type":"function"}}]{fields}"#);
            match parse(&extra).unwrap().prompt {
                Prompt::Chat { tools, .. } => tools.map(|offer| (offer.choice, offer.calls)),
                _ => unreachable!(),
            }
        };
        let (auto, many) = (ToolChoice::Auto, Calls::Many);
        assert_eq!(offer(r#","tool_choice":"none""#), None);
        assert_eq!(offer(""), Some((auto.clone(), many)));
        assert_eq!(
            offer(r#","tool_choice":"auto","parallel_tool_calls":true"#),
            Some((auto, many))
        );
        assert_eq!(
            offer(r#","tool_choice":"required","parallel_tool_calls":false"#),
            Some((ToolChoice::Required, Calls::One))
        );
        assert_eq!(
            offer(r#","tool_choice":{"type":"function","function":{"name":"f"}}"#),
            Some((ToolChoice::Function("f".into()), Calls::One))
        );
        for extra in [
            r#","tool_choice":"required""#,
            r#","tool_choice":"any""#,
            r#","tool_choice":{"type":"allowed_tools"}"#,
        ] {
            assert_eq!(refused(extra).1.as_deref(), Some("tool_choice"), "{extra}");
        }
    }

    proptest::proptest! {
        #[test]
        fn any_body_is_read_or_refused(body in crate::http::body::any::body()) {
            let body = crate::http::body::any::only(&body, &["messages"]);
            if let Ok(request) = ChatRequest::parse(&body) {
                let _ = (request.to_engine(), request.prompt(), request.wants_logprobs());
            }
        }
    }
}
