//! The fields that every way of generating text has: sampling, stops, constraints, streaming.

use std::collections::BTreeMap;

use fulmar_inference::engine::{Constraint, Sampling};
use serde::Deserialize;
use serde_json::{Map, Value};

use super::body;
use super::error::ApiError;

/// Fields of a request that say how text is generated.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Generation {
    stream: Option<bool>,
    stream_options: Option<StreamOptions>,
    temperature: Option<f32>,
    top_p: Option<f32>,
    top_k: Option<u32>,
    min_p: Option<f32>,
    repeat_penalty: Option<f32>,
    presence_penalty: Option<f32>,
    frequency_penalty: Option<f32>,
    logit_bias: Option<BTreeMap<String, f32>>,
    seed: Option<i64>,
    stop: Option<Stop>,
    n: Option<u32>,
    response_format: Option<ResponseFormat>,
    grammar: Option<String>,
    /// Changes nothing on a device.
    #[serde(rename = "user")]
    _user: Option<String>,
}

/// The names of [`Generation`]'s fields.
const FIELDS: [&str; 16] = [
    "stream",
    "stream_options",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "repeat_penalty",
    "presence_penalty",
    "frequency_penalty",
    "logit_bias",
    "seed",
    "stop",
    "n",
    "response_format",
    "grammar",
    "user",
];

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
#[serde(untagged, expecting = "expected a text or a list of texts")]
enum Stop {
    One(String),
    Many(Vec<String>),
}

#[derive(Debug, Clone, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
enum ResponseFormat {
    Text,
    JsonObject,
    JsonSchema {
        json_schema: JsonSchema,
    },
    /// In the words that OpenAI has for the grammars of custom tools.
    Grammar {
        syntax: Syntax,
        definition: String,
    },
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Syntax {
    Regex,
    Lark,
    Gbnf,
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

impl Generation {
    /// Takes these fields out of a request's object.
    ///
    /// # Errors
    /// 400, naming the field.
    pub(crate) fn take(object: &mut Map<String, Value>) -> Result<Self, ApiError> {
        let own = FIELDS.iter().filter_map(|field| object.remove_entry(*field)).collect();
        let fields: Self = body::fields(own)?;
        if let Some(n) = fields.n.filter(|n| *n != 1) {
            return Err(ApiError::invalid(Some("n"), format!("n is {n}; only 1 is served")));
        }
        Ok(fields)
    }

    /// Whether the answer is to come as a stream of events.
    pub(crate) fn is_stream(&self) -> bool {
        self.stream == Some(true)
    }

    /// Whether the last chunk of a stream carries the usage.
    pub(crate) fn stream_usage(&self) -> bool {
        self.stream_options.is_some_and(|options| options.include_usage == Some(true))
    }

    /// Texts that end the answer.
    pub(crate) fn stops(&self) -> Vec<String> {
        match &self.stop {
            None => Vec::new(),
            Some(Stop::One(text)) => vec![text.clone()],
            Some(Stop::Many(texts)) => texts.clone(),
        }
    }

    /// How tokens are chosen.
    ///
    /// # Errors
    /// 400, naming the field and its range.
    pub(crate) fn sampling(&self) -> Result<Sampling, ApiError> {
        let default = Sampling::default();
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
            repeat_penalty: range("repeat_penalty", self.repeat_penalty, 0.01, 10.0, 1.0)?,
            presence_penalty: range("presence_penalty", self.presence_penalty, -2.0, 2.0, 0.0)?,
            frequency_penalty: range("frequency_penalty", self.frequency_penalty, -2.0, 2.0, 0.0)?,
            logit_bias,
            // The bits count, not the sign: every seed gives its own text.
            seed: self.seed.map(i64::cast_unsigned),
            ..default
        })
    }

    /// What the answer must look like.
    ///
    /// # Errors
    /// 400, when two fields say it.
    pub(crate) fn constraint(&self) -> Result<Option<Constraint>, ApiError> {
        let format = match &self.response_format {
            None | Some(ResponseFormat::Text) => None,
            Some(ResponseFormat::JsonObject) => Some(Constraint::Json),
            Some(ResponseFormat::JsonSchema { json_schema }) => {
                Some(Constraint::JsonSchema(json_schema.schema.clone()))
            }
            Some(ResponseFormat::Grammar { syntax, definition }) => {
                let definition = definition.clone();
                Some(match syntax {
                    Syntax::Regex => Constraint::Regex(definition),
                    Syntax::Lark => Constraint::Lark(definition),
                    Syntax::Gbnf => Constraint::Gbnf(definition),
                })
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

    /// The field that the constraint stands in.
    pub(crate) fn constraint_field(&self) -> &'static str {
        if self.grammar.is_some() { "grammar" } else { "response_format" }
    }
}

fn range(
    field: &'static str,
    value: Option<f32>,
    low: f32,
    high: f32,
    default: f32,
) -> Result<f32, ApiError> {
    match value {
        None => Ok(default),
        Some(value) if (low..=high).contains(&value) => Ok(value),
        Some(value) => Err(ApiError::invalid(
            Some(field),
            format!("{field} is {value}; expected {low} to {high}"),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_field_is_listed_and_null_is_the_default() {
        let mut object: Map<String, Value> =
            FIELDS.iter().map(|field| ((*field).to_owned(), Value::Null)).collect();
        let fields = Generation::take(&mut object).unwrap();
        assert!(object.is_empty());
        assert_eq!(fields.sampling().unwrap(), Sampling::default());
        assert_eq!(fields.constraint().unwrap(), None);
    }

    #[test]
    fn each_form_of_a_constraint_is_understood() {
        let constraint = |field: &str, text: &str| {
            let value = serde_json::from_str(text).unwrap();
            let mut object = Map::from_iter([(field.to_owned(), value)]);
            Generation::take(&mut object).unwrap().constraint().unwrap().unwrap()
        };
        let grammar =
            |syntax| format!(r#"{{"type":"grammar","syntax":"{syntax}","definition":"a"}}"#);
        assert_eq!(constraint("response_format", r#"{"type":"json_object"}"#), Constraint::Json);
        assert_eq!(
            constraint(
                "response_format",
                r#"{"type":"json_schema","json_schema":{"name":"x","schema":true,"strict":true}}"#
            ),
            Constraint::JsonSchema(Value::Bool(true))
        );
        for (syntax, expected) in [
            ("regex", Constraint::Regex("a".into())),
            ("lark", Constraint::Lark("a".into())),
            ("gbnf", Constraint::Gbnf("a".into())),
        ] {
            assert_eq!(constraint("response_format", &grammar(syntax)), expected);
        }
        assert_eq!(constraint("grammar", r#""a""#), Constraint::Gbnf("a".into()));
    }
}
