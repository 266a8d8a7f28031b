//! What people and planners ask of a model: taken from its manifest, and carried in the signed
//! target that names the manifest (`custom.fulmar.facts`), so that a device knows what its registry
//! offers without fetching a manifest.
//!
//! Facts choose nothing and admit nothing: what is installed is decided by digests, and shown by
//! the manifest itself.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::Manifest;
use crate::manifest::{Evaluation, SizeClass};

/// Evaluations that a target carries at most.
const EVALUATIONS_MAX: usize = 16;

/// What a model is. Texts are empty and numbers 0 where the manifest does not say.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Facts {
    /// As in GGUF's `general.architecture`.
    pub architecture: String,
    /// Number of parameters.
    pub parameters: u64,
    /// By number of parameters.
    pub size_class: SizeClass,
    /// As `Q8_0`, `Q4_K_M`.
    pub quantization: String,
    /// The longest context, in tokens.
    pub context_tokens: u32,
    /// SPDX expression or the licence's name.
    #[serde(default)]
    pub license: String,
    /// Where it came from.
    #[serde(default)]
    pub source: String,
    /// The chat template's family.
    #[serde(default)]
    pub template: String,
    /// Bytes of memory with its whole context; 0 where not known.
    #[serde(default)]
    pub memory_bytes: u64,
    /// All its files, in bytes.
    #[serde(default)]
    pub size_bytes: u64,
    /// What was measured.
    #[serde(default, with = "evaluations")]
    pub evaluation: Vec<Evaluation>,
}

impl Facts {
    /// What a manifest says.
    #[must_use]
    pub fn of(manifest: &Manifest) -> Self {
        Self {
            architecture: manifest.architecture.clone(),
            parameters: manifest.parameters,
            size_class: manifest.size_class,
            quantization: manifest.quantization.clone(),
            context_tokens: manifest.context_tokens,
            license: manifest.license.clone(),
            source: manifest.source.clone(),
            template: manifest.template.clone(),
            memory_bytes: manifest.memory_bytes,
            size_bytes: manifest.size_bytes(),
            evaluation: manifest.evaluation.iter().take(EVALUATIONS_MAX).cloned().collect(),
        }
    }

    /// What a signed target's `custom` says; `None` where it says nothing, or in a way that this
    /// program does not know.
    #[must_use]
    pub fn of_custom(custom: Option<&Value>) -> Option<Self> {
        let facts = custom?.get("fulmar")?.get("facts")?;
        serde_json::from_value(facts.clone()).ok()
    }
}

/// The `custom` of the target that names a model's manifest.
#[must_use]
pub fn model_custom(manifest: &Manifest) -> Value {
    let facts = serde_json::to_value(Facts::of(manifest)).unwrap_or_default();
    serde_json::json!({
        "fulmar": { "kind": "model", "release": manifest.release, "facts": facts },
    })
}

/// Canonical JSON has no fractions, so a signed target carries measured values as text.
mod evaluations {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    use crate::manifest::Evaluation;

    #[derive(Serialize, Deserialize)]
    struct Written {
        task: String,
        metric: String,
        value: String,
        #[serde(default)]
        cases: u64,
    }

    pub(super) fn serialize<S: Serializer>(
        evaluation: &[Evaluation],
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        let written = evaluation.iter().map(|e| Written {
            task: e.task.clone(),
            metric: e.metric.clone(),
            value: e.value.to_string(),
            cases: e.cases,
        });
        written.collect::<Vec<_>>().serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Vec<Evaluation>, D::Error> {
        let written = Vec::<Written>::deserialize(deserializer)?;
        let read = written.into_iter().map(|w| {
            let value = w.value.parse().map_err(serde::de::Error::custom)?;
            Ok(Evaluation { task: w.task, metric: w.metric, value, cases: w.cases })
        });
        read.collect()
    }
}
