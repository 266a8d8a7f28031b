//! The fields of Ollama's requests, checked.
//!
//! A field that would change the answer and is not served is refused by its name; options that only
//! say how to compute (`num_thread`, `num_gpu`, …) are accepted and unused.

use fulmar_inference::chat::ToolOffer;
use std::time::Duration;

use fulmar_inference::engine::{Constraint, KeepAlive, Prompt, Request, Sampling};
use serde::Deserialize;
use serde_json::{Value, json};

use super::super::body;
use super::super::error::ApiError;
use super::super::messages;

/// Ollama's sampling where a request says nothing.
const DEFAULT: Sampling = Sampling {
    temperature: 0.8,
    top_k: 40,
    top_p: 0.9,
    min_p: 0.0,
    repeat_penalty: 1.1,
    repeat_last_n: 64,
    presence_penalty: 0.0,
    frequency_penalty: 0.0,
    logit_bias: Vec::new(),
    seed: None,
};

fn refused(field: &str, reason: impl Into<String>) -> ApiError {
    ApiError::invalid(Some(field), reason)
}

/// The `options` of a request.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Options {
    temperature: Option<f32>,
    top_k: Option<u32>,
    top_p: Option<f32>,
    min_p: Option<f32>,
    repeat_penalty: Option<f32>,
    repeat_last_n: Option<i64>,
    presence_penalty: Option<f32>,
    frequency_penalty: Option<f32>,
    seed: Option<i64>,
    stop: Option<Vec<String>>,
    num_predict: Option<i64>,
    num_ctx: Option<usize>,
    mirostat: Option<f32>,
    tfs_z: Option<f32>,
    typical_p: Option<f32>,
    // The context is never shifted, so nothing of it has to be kept.
    num_keep: Option<Value>,
    num_thread: Option<Value>,
    num_batch: Option<Value>,
    num_gpu: Option<Value>,
    main_gpu: Option<Value>,
    use_mmap: Option<Value>,
    use_mlock: Option<Value>,
    low_vram: Option<Value>,
    numa: Option<Value>,
}

impl Options {
    fn apply(&self, request: &mut Request, context_tokens_max: usize) -> Result<(), ApiError> {
        let range = |field: &str, value: Option<f32>, low: f32, high: f32, default: f32| {
            let value = value.unwrap_or(default);
            let reason = || format!("options.{field} is {value}; expected {low} to {high}");
            let fits = (low..=high).contains(&value);
            fits.then_some(value).ok_or_else(|| refused(&format!("options.{field}"), reason()))
        };
        if let Some(found) = self.num_ctx.filter(|n| *n > context_tokens_max) {
            return Err(refused(
                "options.num_ctx",
                format!(
                    "options.num_ctx is {found}; this device's engine.context_tokens_max is \
                     {context_tokens_max}"
                ),
            ));
        }
        request.sampling = Sampling {
            temperature: range("temperature", self.temperature, 0.0, 5.0, DEFAULT.temperature)?,
            top_k: self.top_k.unwrap_or(DEFAULT.top_k),
            top_p: range("top_p", self.top_p, 0.0, 1.0, DEFAULT.top_p)?,
            min_p: range("min_p", self.min_p, 0.0, 1.0, 0.0)?,
            repeat_penalty: range("repeat_penalty", self.repeat_penalty, 0.01, 10.0, 1.1)?,
            repeat_last_n: self.repeat_last_n(context_tokens_max)?,
            presence_penalty: range("presence_penalty", self.presence_penalty, -2.0, 2.0, 0.0)?,
            frequency_penalty: range("frequency_penalty", self.frequency_penalty, -2.0, 2.0, 0.0)?,
            seed: self.seed.map(i64::cast_unsigned),
            ..DEFAULT
        };
        for (field, value, off) in [
            ("mirostat", self.mirostat, 0.0),
            ("tfs_z", self.tfs_z, 1.0),
            ("typical_p", self.typical_p, 1.0),
        ] {
            if let Some(value) = value.filter(|value| *value != off) {
                let reason = format!("options.{field} is {value}; only {off}, off, is served");
                return Err(refused(&format!("options.{field}"), reason));
            }
        }
        request.stop = self.stop.clone().unwrap_or_default();
        request.max_tokens = match self.num_predict {
            // Until the model ends, or the context is full.
            None | Some(-1 | -2) => None,
            Some(n) => Some(u32::try_from(n).ok().filter(|n| *n > 0).ok_or_else(|| {
                let reason = format!("options.num_predict is {n}; expected 1 or more, or -1");
                refused("options.num_predict", reason)
            })?),
        };
        Ok(())
    }

    /// Over how many tokens repetition counts: -1 is the whole context.
    fn repeat_last_n(&self, context_tokens_max: usize) -> Result<u32, ApiError> {
        let found = match self.repeat_last_n {
            None => return Ok(DEFAULT.repeat_last_n),
            Some(-1) => return Ok(u32::try_from(context_tokens_max).unwrap_or(u32::MAX)),
            Some(found) => found,
        };
        u32::try_from(found).map_err(|_| {
            let reason = format!("options.repeat_last_n is {found}; expected 0 or more, or -1");
            refused("options.repeat_last_n", reason)
        })
    }
}

/// What chat and generate share.
#[derive(Debug, Clone)]
struct Shared {
    logprobs: Option<u8>,
    stream: Option<bool>,
    format: Option<Value>,
    options: Option<Options>,
    think: Option<Value>,
    keep_alive: Option<KeepAlive>,
}

impl Shared {
    fn check(&self) -> Result<(), ApiError> {
        if self.think.as_ref().is_some_and(|think| !think.is_boolean()) {
            return Err(refused("think", "think is no boolean; levels are not served"));
        }
        Ok(())
    }

    fn constraint(&self) -> Option<Constraint> {
        match &self.format {
            None | Some(Value::Null) => None,
            Some(Value::String(word)) if word.is_empty() => None,
            Some(Value::String(word)) if word == "json" => Some(Constraint::Json),
            Some(schema) => Some(Constraint::JsonSchema(schema.clone())),
        }
    }

    fn template_kwargs(&self) -> Value {
        self.think.as_ref().map_or(Value::Null, |think| json!({ "enable_thinking": think }))
    }

    fn request(&self, prompt: Prompt, context_tokens_max: usize) -> Result<Request, ApiError> {
        let (constraint, logprobs) = (self.constraint(), self.logprobs);
        let mut request = Request { prompt, constraint, logprobs, ..Request::default() };
        let options = self.options.clone().unwrap_or_default();
        options.apply(&mut request, context_tokens_max)?;
        Ok(request)
    }
}

/// A request to `/api/chat`.
#[derive(Debug, Clone)]
pub(in crate::http) struct ChatRequest {
    shared: Shared,
    own: Chat,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Chat {
    model: String,
    #[serde(default)]
    messages: Vec<Value>,
    #[serde(default)]
    tools: Vec<Value>,
}

/// `keep_alive`: seconds as a number or a duration such as `"1h30m"`; below zero: until its room is
/// wanted.
fn until(given: &Value) -> Result<KeepAlive, ApiError> {
    let wrong = || {
        let expected = "expected seconds, or a duration such as \"5m\"";
        refused("keep_alive", format!("keep_alive is {given}; {expected}"))
    };
    let seconds = match given {
        Value::Number(seconds) => seconds.as_f64().ok_or_else(wrong)?,
        Value::String(text) if text == "0" => 0.0,
        Value::String(text) => {
            text.parse::<jiff::SignedDuration>().map_err(|_| wrong())?.as_secs_f64()
        }
        _ => return Err(wrong()),
    };
    if seconds < 0.0 {
        return Ok(KeepAlive::Idle);
    }
    Duration::try_from_secs_f64(seconds).map(KeepAlive::For).map_err(|_| wrong())
}

/// Takes the fields that chat and generate share out of a request's object.
fn shared(object: &mut serde_json::Map<String, Value>) -> Result<Shared, ApiError> {
    #[derive(Deserialize)]
    #[serde(default, deny_unknown_fields)]
    #[derive(Default)]
    struct Fields {
        stream: Option<bool>,
        format: Option<Value>,
        options: Option<Options>,
        think: Option<Value>,
        keep_alive: Option<Value>,
        logprobs: Option<bool>,
        top_logprobs: Option<u8>,
    }
    let names = ["stream", "format", "options", "think", "keep_alive", "logprobs", "top_logprobs"];
    let fields: Fields =
        body::fields(names.iter().filter_map(|name| object.remove_entry(*name)).collect())?;
    let Fields { stream, format, options, think, keep_alive, logprobs, top_logprobs } = fields;
    let logprobs = (logprobs == Some(true)).then(|| top_logprobs.unwrap_or(0));
    let keep_alive = keep_alive.as_ref().map(until).transpose()?;
    let shared = Shared { logprobs, stream, format, options, think, keep_alive };
    shared.check()?;
    Ok(shared)
}

impl ChatRequest {
    pub(in crate::http) fn parse(bytes: &[u8]) -> Result<Self, ApiError> {
        let mut object = body::object(bytes)?;
        let shared = shared(&mut object)?;
        let own: Chat = body::fields(object)?;
        let has_images =
            |message: &Value| message["images"].as_array().is_some_and(|i| !i.is_empty());
        if own.messages.iter().any(has_images) {
            return Err(refused("messages", "a message has images; models here read text"));
        }
        messages::check(&own.messages)?;
        Ok(Self { shared, own })
    }

    pub(in crate::http) fn model(&self) -> &str {
        &self.own.model
    }

    /// Without messages, the model is loaded and nothing is asked.
    pub(in crate::http) fn is_load(&self) -> bool {
        self.own.messages.is_empty()
    }

    pub(in crate::http) fn is_stream(&self) -> bool {
        self.shared.stream != Some(false)
    }

    pub(in crate::http) fn keep_alive(&self) -> Option<KeepAlive> {
        self.shared.keep_alive
    }

    pub(in crate::http) fn prompt(&self) -> Value {
        json!({ "messages": self.own.messages, "tools": self.own.tools })
    }

    pub(in crate::http) fn to_engine(
        &self,
        context_tokens_max: usize,
    ) -> Result<Request, ApiError> {
        let tools = self.own.tools.clone();
        let prompt = Prompt::Chat {
            messages: self.own.messages.clone(),
            tools: (!tools.is_empty()).then(|| ToolOffer::auto(Value::Array(tools))),
            template_kwargs: self.shared.template_kwargs(),
        };
        self.shared.request(prompt, context_tokens_max)
    }
}

/// A request to `/api/generate`.
#[derive(Debug, Clone)]
pub(in crate::http) struct GenerateRequest {
    shared: Shared,
    own: Generate,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Generate {
    model: String,
    #[serde(default)]
    prompt: String,
    #[serde(default)]
    system: String,
    #[serde(default)]
    raw: bool,
    #[serde(default)]
    suffix: String,
    #[serde(default)]
    template: String,
    #[serde(default)]
    context: Option<Value>,
    #[serde(default)]
    images: Option<Vec<Value>>,
}

impl GenerateRequest {
    pub(in crate::http) fn parse(bytes: &[u8]) -> Result<Self, ApiError> {
        let mut object = body::object(bytes)?;
        let shared = shared(&mut object)?;
        let own: Generate = body::fields(object)?;
        let unserved = [
            ("suffix", !own.suffix.is_empty(), "text is only added at the end"),
            ("template", !own.template.is_empty(), "the model's own template is used"),
            ("context", own.context.is_some(), "send the conversation to /api/chat"),
            ("images", own.images.is_some_and(|i| !i.is_empty()), "models here read text"),
        ];
        if let Some((field, _, why)) = unserved.iter().find(|(_, is_set, _)| *is_set) {
            return Err(refused(field, format!("{field} is set; {why}")));
        }
        let own = Generate { images: None, ..own };
        Ok(Self { shared, own })
    }

    pub(in crate::http) fn model(&self) -> &str {
        &self.own.model
    }

    /// Without a prompt, the model is loaded and nothing is asked.
    pub(in crate::http) fn is_load(&self) -> bool {
        self.own.prompt.is_empty()
    }

    pub(in crate::http) fn is_stream(&self) -> bool {
        self.shared.stream != Some(false)
    }

    pub(in crate::http) fn keep_alive(&self) -> Option<KeepAlive> {
        self.shared.keep_alive
    }

    pub(in crate::http) fn prompt(&self) -> Value {
        json!({ "system": self.own.system, "prompt": self.own.prompt })
    }

    pub(in crate::http) fn to_engine(
        &self,
        context_tokens_max: usize,
    ) -> Result<Request, ApiError> {
        let prompt = if self.own.raw {
            Prompt::Text(self.own.prompt.clone())
        } else {
            let mut messages = Vec::new();
            if !self.own.system.is_empty() {
                messages.push(json!({ "role": "system", "content": self.own.system }));
            }
            messages.push(json!({ "role": "user", "content": self.own.prompt }));
            let template_kwargs = self.shared.template_kwargs();
            Prompt::Chat { messages, tools: None, template_kwargs }
        };
        self.shared.request(prompt, context_tokens_max)
    }
}

/// A request to `/api/embed`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::http) struct EmbedRequest {
    model: String,
    input: Input,
    // Ollama's clients send true by habit. A text that is too long is refused all the same, with its
    // tokens and the limit.
    #[serde(default, rename = "truncate")]
    _truncate: Option<bool>,
    #[serde(default)]
    dimensions: Option<u32>,
    #[serde(default)]
    keep_alive: Option<Value>,
    #[serde(default, rename = "options")]
    _options: Option<Options>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(untagged, expecting = "expected a text or a list of texts")]
enum Input {
    One(String),
    Many(Vec<String>),
}

impl EmbedRequest {
    pub(in crate::http) fn parse(bytes: &[u8]) -> Result<Self, ApiError> {
        let request: Self = body::fields(body::object(bytes)?)?;
        if let Some(found) = request.dimensions {
            let why = "vectors have the model's own width and are not shortened";
            return Err(refused("dimensions", format!("dimensions is {found}; {why}")));
        }
        Ok(request)
    }

    pub(in crate::http) fn model(&self) -> &str {
        &self.model
    }

    pub(in crate::http) fn keep_alive(&self) -> Result<Option<KeepAlive>, ApiError> {
        self.keep_alive.as_ref().map(until).transpose()
    }

    /// The prompts, and what the audit log's digest covers.
    pub(in crate::http) fn inputs(&self) -> Result<(Vec<Prompt>, Value), ApiError> {
        let texts = match &self.input {
            Input::One(text) => std::slice::from_ref(text),
            Input::Many(texts) => texts.as_slice(),
        };
        if texts.is_empty() || texts.iter().any(String::is_empty) {
            return Err(refused("input", "input is empty or has an empty text"));
        }
        let prompts = texts.iter().map(|text| Prompt::Text(text.clone())).collect();
        Ok((prompts, json!({ "input": texts })))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::body::any;

    proptest::proptest! {
        #[test]
        fn any_body_is_read_or_refused(body in any::body()) {
            if let Ok(request) = ChatRequest::parse(&any::only(&body, &["messages"])) {
                let _ = (request.to_engine(4096), request.prompt(), request.keep_alive());
            }
            if let Ok(request) = GenerateRequest::parse(&any::only(&body, &["prompt"])) {
                let _ = (request.to_engine(4096), request.prompt(), request.keep_alive());
            }
            if let Ok(request) = EmbedRequest::parse(&any::only(&body, &["input"])) {
                let _ = (request.inputs(), request.keep_alive());
            }
        }
    }
}
