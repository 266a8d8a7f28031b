//! OpenAI's chat completions, as far as they are served: the request's fields, checked.
//!
//! A field that would change the answer and is not served is refused by its name; the fields that
//! change nothing here (`user`, `metadata`, `store`, `service_tier`) are accepted and unused.

use fulmar_inference::engine::{Prompt, Request};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::body;
use super::error::{ApiError, FieldNames};
use super::generation::Generation;

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
    tool_choice: Option<Value>,
    #[serde(default)]
    #[expect(dead_code, reason = "tool calls are parsed from the text, however many there are")]
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

    fn tools(&self) -> Result<Option<Value>, ApiError> {
        let choice = self.chat.tool_choice.as_ref();
        match choice.map(|choice| choice.as_str().ok_or(choice)) {
            Some(Ok("none")) => return Ok(None),
            None | Some(Ok("auto")) => {}
            Some(Ok(other)) => {
                return Err(ApiError::invalid(
                    Some("tool_choice"),
                    format!("tool_choice is {other:?}; auto and none are served"),
                ));
            }
            Some(Err(_)) => {
                return Err(ApiError::invalid(
                    Some("tool_choice"),
                    "tool_choice names a function; auto and none are served",
                ));
            }
        }
        Ok(self.chat.tools.clone().filter(|tools| !tools.is_empty()).map(Value::Array))
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
            (r#","tool_choice":"required""#, "tool_choice"),
            (r#","grammar":"root ::= 1","response_format":{"type":"json_object"}"#, "grammar"),
        ] {
            let (message, param) = refused(extra);
            assert_eq!(param.as_deref(), Some(field), "{message}");
            assert!(message.contains(field), "{message}");
        }
    }

    #[test]
    fn tools_are_left_out_when_none_may_be_called() {
        let with = |choice: &str| {
            let extra = format!(r#","tools":[{{"type":"function"}}],"tool_choice":"{choice}""#);
            match parse(&extra).unwrap().prompt {
                Prompt::Chat { tools, .. } => tools.is_some(),
                _ => unreachable!(),
            }
        };
        assert!(with("auto"));
        assert!(!with("none"));
    }
}
