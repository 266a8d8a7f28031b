//! `/v1/embeddings`: texts to vectors, by the pooling that the model's file names.

use std::sync::Arc;

use axum::Json;
use axum::body::Bytes;
use axum::extract::State;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use fulmar_inference::engine::Prompt;
use serde::Deserialize;
use serde_json::{Value, json};

use super::auth::Caller;
use super::body;
use super::deadline::Deadline;
use super::error::{ApiError, FieldNames};
use super::prompts::Prompts;
use crate::app::App;
use crate::ask::{self, EmbedQuestion};

/// Inputs of one request at most: OpenAI's limit.
const INPUTS_MAX: usize = 2048;

/// A request to `/v1/embeddings`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct EmbeddingsRequest {
    model: String,
    input: Prompts,
    #[serde(default)]
    encoding_format: Option<Encoding>,
    #[serde(default)]
    dimensions: Option<u32>,
    #[serde(default)]
    #[expect(dead_code, reason = "changes nothing on a device")]
    user: Option<String>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Encoding {
    /// A list of numbers.
    #[default]
    Float,
    /// The numbers' bytes: f32, little-endian.
    Base64,
}

impl EmbeddingsRequest {
    pub(super) fn parse(body: &[u8]) -> Result<Self, ApiError> {
        let request: Self = body::fields(body::object(body)?)?;
        if let Some(dimensions) = request.dimensions {
            return Err(ApiError::invalid(
                Some("dimensions"),
                format!(
                    "dimensions is {dimensions}; vectors have the model's own width and are not \
                     shortened: leave the field out"
                ),
            ));
        }
        Ok(request)
    }

    /// One prompt per vector.
    pub(super) fn inputs(&self) -> Result<Vec<Prompt>, ApiError> {
        let inputs: Vec<Prompt> = self.input.each().into_iter().map(|(prompt, _)| prompt).collect();
        let empty = inputs.iter().position(|input| match input {
            Prompt::Text(text) => text.is_empty(),
            Prompt::Tokens(tokens) => tokens.is_empty(),
            Prompt::Chat { .. } => false,
        });
        let refused = |reason| Err(ApiError::invalid(Some("input"), reason));
        match (inputs.len(), empty) {
            (0, _) => refused("input is empty; expected one text or more".to_owned()),
            (1, Some(_)) => refused("input is empty; expected a text".to_owned()),
            (_, Some(at)) => refused(format!("input[{at}] is empty; expected a text")),
            (found, None) if found > INPUTS_MAX => {
                refused(format!("input has {found} entries; expected at most {INPUTS_MAX}"))
            }
            _ => Ok(inputs),
        }
    }
}

/// Turns texts into vectors.
pub(crate) async fn embed(
    State(app): State<Arc<App>>,
    Caller(principal): Caller,
    Deadline(deadline): Deadline,
    body: Bytes,
) -> Result<Json<Value>, ApiError> {
    let request = EmbeddingsRequest::parse(&body)?;
    let inputs = request.inputs()?;
    let permit = super::local::permit(&app, &principal, &request.model).await?;
    let prompt = json!({ "input": request.input });
    let question = EmbedQuestion { endpoint: "/v1/embeddings", inputs, prompt, deadline };
    // Embeddings have no constraint.
    let names = FieldNames { prompt: "input", constraint: "input" };
    let embedded =
        ask::embed(&app, &permit, question).await.map_err(|e| ApiError::of_ask(e, names))?;
    let encoding = request.encoding_format.unwrap_or_default();
    let data: Vec<Value> = embedded
        .embeddings
        .vectors
        .iter()
        .enumerate()
        .map(|(index, vector)| {
            let embedding = encoded(vector, encoding);
            json!({ "object": "embedding", "index": index, "embedding": embedding })
        })
        .collect();
    let tokens = embedded.embeddings.prompt_tokens;
    Ok(Json(json!({
        "object": "list",
        "data": data,
        "model": embedded.model.name,
        "usage": { "prompt_tokens": tokens, "total_tokens": tokens },
        "fulmar": { "audit_entry": embedded.entry },
    })))
}

fn encoded(vector: &[f32], encoding: Encoding) -> Value {
    match encoding {
        Encoding::Float => json!(vector),
        Encoding::Base64 => {
            let bytes: Vec<u8> = vector.iter().flat_map(|value| value.to_le_bytes()).collect();
            STANDARD.encode(bytes).into()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inputs(fields: &str) -> Result<Vec<Prompt>, ApiError> {
        EmbeddingsRequest::parse(format!(r#"{{"model":"m",{fields}}}"#).as_bytes())?.inputs()
    }

    #[test]
    fn every_shape_of_input_is_understood() {
        for (input, count) in
            [(r#""a text""#, 1), (r#"["a","b"]"#, 2), ("[1,2,3]", 1), ("[[1],[2,3]]", 2)]
        {
            assert_eq!(inputs(&format!(r#""input":{input}"#)).unwrap().len(), count, "{input}");
        }
    }

    #[test]
    fn what_is_not_served_is_refused_by_its_field() {
        for (fields, param, word) in [
            (r#""input":"a","dimensions":3"#, "dimensions", "3"),
            (r#""input":"""#, "input", "empty"),
            (r#""input":[]"#, "input", "empty"),
            (r#""input":["a",""]"#, "input", "input[1]"),
            (r#""input":[["a"]]"#, "input", "a list of"),
            (r#""input":{"text":"a"}"#, "input", "expected a text"),
            (r#""input":"a","encoding_format":"hex""#, "encoding_format", "hex"),
            (r#""input":"a","enc":"hex""#, "enc", "enc"),
            (r#""user":"a""#, "input", "input"),
        ] {
            let body = inputs(fields).unwrap_err().body();
            let message = body["error"]["message"].as_str().unwrap();
            assert_eq!(body["error"]["param"], param, "{message}");
            assert!(message.contains(word), "{message}");
        }
    }

    #[test]
    fn base64_holds_the_same_numbers() {
        assert_eq!(encoded(&[1.0, -2.0], Encoding::Base64), "AACAPwAAAMA=");
        assert_eq!(encoded(&[1.0, -2.0], Encoding::Float), json!([1.0, -2.0]));
    }

    proptest::proptest! {
        #[test]
        fn any_body_is_read_or_refused(body in crate::http::body::any::body()) {
            let body = crate::http::body::any::only(&body, &["input"]);
            if let Ok(request) = EmbeddingsRequest::parse(&body) {
                let _ = request.inputs();
            }
        }
    }
}
