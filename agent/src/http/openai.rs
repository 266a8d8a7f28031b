//! OpenAI's chat completions, as far as they are served: the request's fields, checked.
//!
//! A field that would change the answer and is not served is refused by its name; the fields that
//! change nothing here (`user`, `metadata`, `store`, `service_tier`) are accepted and unused.

use std::collections::BTreeMap;

use fulmar_inference::engine::{Constraint, Prompt, Request, Sampling};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::error::ApiError;

/// A request to `/v1/chat/completions`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ChatRequest {
    pub(crate) model: String,
    messages: Vec<Value>,
    #[serde(default)]
    pub(crate) stream: Option<bool>,
    #[serde(default)]
    stream_options: Option<StreamOptions>,
    #[serde(default)]
    max_tokens: Option<u32>,
    #[serde(default)]
    max_completion_tokens: Option<u32>,
    #[serde(default)]
    temperature: Option<f32>,
    #[serde(default)]
    top_p: Option<f32>,
    #[serde(default)]
    top_k: Option<u32>,
    #[serde(default)]
    min_p: Option<f32>,
    #[serde(default)]
    repeat_penalty: Option<f32>,
    #[serde(default)]
    presence_penalty: Option<f32>,
    #[serde(default)]
    frequency_penalty: Option<f32>,
    #[serde(default)]
    logit_bias: Option<BTreeMap<String, f32>>,
    #[serde(default)]
    seed: Option<i64>,
    #[serde(default)]
    stop: Option<Stop>,
    #[serde(default)]
    n: Option<u32>,
    #[serde(default)]
    logprobs: Option<bool>,
    #[serde(default)]
    top_logprobs: Option<u8>,
    #[serde(default)]
    response_format: Option<ResponseFormat>,
    #[serde(default)]
    grammar: Option<String>,
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
    user: Option<String>,
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

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
struct StreamOptions {
    #[serde(default)]
    include_usage: Option<bool>,
    #[serde(default)]
    #[expect(dead_code, reason = "no padding is added on a local socket")]
    include_obfuscation: Option<bool>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
enum Stop {
    One(String),
    Many(Vec<String>),
}

#[derive(Debug, Clone, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
enum ResponseFormat {
    Text,
    JsonObject,
    JsonSchema { json_schema: JsonSchema },
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct JsonSchema {
    #[expect(dead_code, reason = "the schema alone decides")]
    name: String,
    #[serde(default)]
    #[expect(dead_code, reason = "the schema alone decides")]
    description: Option<String>,
    schema: Value,
    #[serde(default)]
    #[expect(dead_code, reason = "the answer always follows the schema, strict or not")]
    strict: Option<bool>,
}

impl ChatRequest {
    /// Reads a body.
    ///
    /// # Errors
    /// 400, naming the field or the place in the text.
    pub(crate) fn parse(body: &[u8]) -> Result<Self, ApiError> {
        let request: Self = serde_json::from_slice(body)
            .map_err(|error| ApiError::invalid(None, format!("read the request: {error}")))?;
        if request.messages.is_empty() {
            return Err(ApiError::invalid(
                Some("messages"),
                "messages is empty; expected one or more",
            ));
        }
        if let Some(n) = request.n.filter(|n| *n != 1) {
            return Err(ApiError::invalid(Some("n"), format!("n is {n}; only 1 is served")));
        }
        Ok(request)
    }

    /// Whether the last chunk of a stream carries the usage.
    pub(crate) fn stream_usage(&self) -> bool {
        self.stream_options.is_some_and(|options| options.include_usage == Some(true))
    }

    /// Whether the client wants log-probabilities.
    pub(crate) fn wants_logprobs(&self) -> bool {
        self.logprobs == Some(true)
    }

    /// What the audit log's digest of the prompt covers.
    pub(crate) fn prompt(&self) -> Value {
        json!({ "messages": self.messages, "tools": self.tools })
    }

    /// What the engine is asked.
    ///
    /// # Errors
    /// 400, naming the field.
    pub(crate) fn to_engine(&self) -> Result<Request, ApiError> {
        Ok(Request {
            prompt: Prompt::Chat {
                messages: self.messages.clone(),
                tools: self.tools()?,
                template_kwargs: match &self.chat_template_kwargs {
                    Some(kwargs) => Value::Object(kwargs.clone()),
                    None => Value::Null,
                },
            },
            sampling: self.sampling()?,
            max_tokens: self.answer_tokens_max()?,
            stop: match &self.stop {
                None => Vec::new(),
                Some(Stop::One(text)) => vec![text.clone()],
                Some(Stop::Many(texts)) => texts.clone(),
            },
            constraint: self.constraint()?,
            logprobs: self.logprobs_wanted()?,
            ..Request::default()
        })
    }

    fn answer_tokens_max(&self) -> Result<Option<u32>, ApiError> {
        match (self.max_completion_tokens, self.max_tokens) {
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

    fn sampling(&self) -> Result<Sampling, ApiError> {
        let default = Sampling::default();
        let range = |field: &'static str, value: Option<f32>, low: f32, high: f32, default: f32| {
            match value {
                None => Ok(default),
                Some(value) if (low..=high).contains(&value) => Ok(value),
                Some(value) => Err(ApiError::invalid(
                    Some(field),
                    format!("{field} is {value}; expected {low} to {high}"),
                )),
            }
        };
        let mut logit_bias = Vec::new();
        for (token, bias) in self.logit_bias.iter().flatten() {
            let id = token.parse().map_err(|_| {
                ApiError::invalid(
                    Some("logit_bias"),
                    format!("logit_bias has the key {token:?}; expected token ids"),
                )
            })?;
            logit_bias.push((id, range("logit_bias", Some(*bias), -100.0, 100.0, 0.0)?));
        }
        Ok(Sampling {
            temperature: range("temperature", self.temperature, 0.0, 2.0, default.temperature)?,
            top_p: range("top_p", self.top_p, 0.0, 1.0, default.top_p)?,
            top_k: self.top_k.unwrap_or(default.top_k),
            min_p: range("min_p", self.min_p, 0.0, 1.0, default.min_p)?,
            repeat_penalty: range(
                "repeat_penalty",
                self.repeat_penalty,
                0.01,
                10.0,
                default.repeat_penalty,
            )?,
            presence_penalty: range("presence_penalty", self.presence_penalty, -2.0, 2.0, 0.0)?,
            frequency_penalty: range("frequency_penalty", self.frequency_penalty, -2.0, 2.0, 0.0)?,
            logit_bias,
            // The bits count, not the sign: every seed gives its own text.
            seed: self.seed.map(i64::cast_unsigned),
            ..default
        })
    }

    fn logprobs_wanted(&self) -> Result<Option<u8>, ApiError> {
        match (self.logprobs, self.top_logprobs) {
            (Some(true), top) => Ok(Some(top.unwrap_or(0))),
            (_, None) => Ok(None),
            (_, Some(_)) => Err(ApiError::invalid(
                Some("top_logprobs"),
                "top_logprobs is set and logprobs is not; set logprobs to true",
            )),
        }
    }

    fn constraint(&self) -> Result<Option<Constraint>, ApiError> {
        let format = match &self.response_format {
            None | Some(ResponseFormat::Text) => None,
            Some(ResponseFormat::JsonObject) => Some(Constraint::Json),
            Some(ResponseFormat::JsonSchema { json_schema }) => {
                Some(Constraint::JsonSchema(json_schema.schema.clone()))
            }
        };
        match (format, &self.grammar) {
            (Some(_), Some(_)) => Err(ApiError::invalid(
                Some("grammar"),
                "grammar and response_format are both set; send one of them",
            )),
            (None, Some(grammar)) => Ok(Some(Constraint::Gbnf(grammar.clone()))),
            (format, None) => Ok(format),
        }
    }

    fn tools(&self) -> Result<Option<Value>, ApiError> {
        let choice = self.tool_choice.as_ref();
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
        Ok(self.tools.clone().filter(|tools| !tools.is_empty()).map(Value::Array))
    }
}

#[cfg(test)]
mod tests {
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
