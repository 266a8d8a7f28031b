//! What a model release is: a JSON manifest that names its files by digest and says what people
//! and planners need to know of it.
//!
//! The manifest's bytes are kept exactly as they were signed; its digest is "the model's digest".
//! Weights are blobs that the manifest names, cut into chunks so that a download is checked on
//! its way and a repair fetches only what is broken.
//!
//! Deliberately absent: anything that a device decides for itself (slots, pins, priorities).

use serde::{Deserialize, Serialize};

use crate::{Digest, ModelName};

mod chunks;

pub use chunks::{CHUNK_BYTES_MAX, CHUNK_BYTES_MIN, Chunk, ChunkHasher};

/// The manifest format this program reads and writes.
pub const SCHEMA_VERSION: u32 = 1;
/// Largest manifest accepted, in bytes.
pub const MANIFEST_BYTES_MAX: u64 = 8 << 20;
/// Most files in one model.
pub const FILES_MAX: usize = 64;
/// Most chunks in one file.
pub const CHUNKS_MAX: usize = 65_536;
/// Longest text field, in bytes.
pub const TEXT_BYTES_MAX: usize = 4_096;
/// Most golden prompts in a health contract.
pub const HEALTH_PROMPTS_MAX: usize = 64;
/// Most results of evaluations.
pub const EVALUATIONS_MAX: usize = 64;

/// Why a manifest was refused.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// Longer than [`MANIFEST_BYTES_MAX`].
    #[error("read a manifest of {found} bytes: at most {MANIFEST_BYTES_MAX} are accepted")]
    TooLong {
        /// Its length in bytes.
        found: u64,
    },
    /// Not the JSON of a manifest.
    #[error("parse the manifest: {0}")]
    Parse(#[from] serde_json::Error),
    /// Made by a newer program.
    #[error(
        "read a manifest of schema {found}: this program knows schema {SCHEMA_VERSION}, \
             update fulmar on this device"
    )]
    Schema {
        /// The schema found.
        found: u32,
    },
    /// A field holds what it must not.
    #[error("accept the manifest's field {field}: found {found}, expected {expected}")]
    Field {
        /// The field's path, as `files[0].path`.
        field: String,
        /// What was found.
        found: String,
        /// What is accepted.
        expected: String,
    },
}

fn field(field: impl Into<String>, found: impl ToString, expected: &str) -> ManifestError {
    ManifestError::Field {
        field: field.into(),
        found: found.to_string(),
        expected: expected.to_owned(),
    }
}

/// What a file is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FileRole {
    /// The model itself.
    Weights,
    /// A vision or audio projector beside the weights.
    Projector,
    /// A low-rank adapter.
    Adapter,
    /// A vocabulary that is not inside the weights.
    Tokenizer,
    /// A chat template that replaces the weights' own.
    Template,
    /// Licence text.
    License,
    /// Anything else: kept and verified, not read by the engine.
    Other,
}

/// One file of a model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ManifestFile {
    /// What it is for.
    pub role: FileRole,
    /// A relative path for exports: `/`-separated, no `..`.
    pub path: String,
    /// As `application/vnd.fulmar.gguf`.
    pub media_type: String,
    /// Length in bytes.
    pub size_bytes: u64,
    /// SHA-256 of all of it.
    pub digest: Digest,
    /// Length of every chunk but the last where `chunk_sizes` is empty; else the longest allowed.
    pub chunk_bytes: u64,
    /// Lengths of the chunks in bytes, where they are cut at tensor borders.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub chunk_sizes: Vec<u64>,
    /// SHA-256 of each chunk, as hex.
    #[serde(with = "chunks::bare_hex")]
    pub chunks: Vec<Digest>,
}

/// Size classes, by number of parameters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SizeClass {
    /// Below 100 million.
    Nano,
    /// 100 million to below 1.5 billion.
    Micro,
    /// 1.5 to below 14 billion.
    Small,
    /// 14 to 30 billion.
    Medium,
    /// More than that.
    Large,
}

impl SizeClass {
    /// The class of a model with that many parameters.
    #[must_use]
    pub fn of(parameters: u64) -> Self {
        match parameters {
            0..100_000_000 => Self::Nano,
            100_000_000..1_500_000_000 => Self::Micro,
            1_500_000_000..14_000_000_000 => Self::Small,
            14_000_000_000..=30_000_000_000 => Self::Medium,
            _ => Self::Large,
        }
    }

    /// As in the manifest.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Nano => "nano",
            Self::Micro => "micro",
            Self::Small => "small",
            Self::Medium => "medium",
            Self::Large => "large",
        }
    }
}

impl std::str::FromStr for SizeClass {
    type Err = ManifestError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "nano" => Ok(Self::Nano),
            "micro" => Ok(Self::Micro),
            "small" => Ok(Self::Small),
            "medium" => Ok(Self::Medium),
            "large" => Ok(Self::Large),
            _ => Err(field("size_class", text, "nano, micro, small, medium or large")),
        }
    }
}

/// One result of an evaluation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Evaluation {
    /// The task, as `held-out commands`.
    pub task: String,
    /// The measure, as `exact_match`.
    pub metric: String,
    /// Its value.
    pub value: f64,
    /// How many cases it rests on.
    #[serde(default)]
    pub cases: u64,
}

impl Evaluation {
    fn check(&self, index: usize) -> Result<(), ManifestError> {
        let at = |name: &str| format!("evaluation[{index}].{name}");
        check_text(&at("task"), &self.task)?;
        check_text(&at("metric"), &self.metric)?;
        match self.value.is_finite() {
            true => Ok(()),
            false => Err(field(at("value"), self.value, "a finite number")),
        }
    }
}

/// `TASK:METRIC=VALUE`, or `TASK:METRIC=VALUE:CASES`.
impl std::fmt::Display for Evaluation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}={}", self.task, self.metric, self.value)?;
        match self.cases {
            0 => Ok(()),
            cases => write!(f, ":{cases}"),
        }
    }
}

impl std::str::FromStr for Evaluation {
    type Err = ManifestError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let refused = || field("evaluation", text, "TASK:METRIC=VALUE or TASK:METRIC=VALUE:CASES");
        let (named, measured) = text.rsplit_once('=').ok_or_else(refused)?;
        let (task, metric) = named.split_once(':').ok_or_else(refused)?;
        if task.is_empty() || metric.is_empty() {
            return Err(refused());
        }
        let (value, cases) = measured.split_once(':').unwrap_or((measured, "0"));
        let evaluation = Self {
            task: task.to_owned(),
            metric: metric.to_owned(),
            value: value.parse().map_err(|_| refused())?,
            cases: cases.parse().map_err(|_| refused())?,
        };
        evaluation.check(0)?;
        Ok(evaluation)
    }
}

/// A prompt with the text that a healthy model gives.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GoldenPrompt {
    /// The user's message.
    pub prompt: String,
    /// The answer at temperature 0.
    pub expected: String,
}

/// What a model must show on the device before it is made active.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Health {
    /// Prompts with known answers.
    #[serde(default)]
    pub prompts: Vec<GoldenPrompt>,
    /// Decoding speed below which the model is refused; 0 means any.
    #[serde(default)]
    pub tokens_per_second_min: f64,
}

/// A model release.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// [`SCHEMA_VERSION`].
    pub schema: u32,
    /// The model's name; equals the TUF target's path.
    pub name: ModelName,
    /// Counts up with every release of this name; a device never goes back.
    pub release: u64,
    /// When it was made.
    pub created_at: jiff::Timestamp,
    /// Its files; exactly one has [`FileRole::Weights`].
    pub files: Vec<ManifestFile>,
    /// As in GGUF's `general.architecture`: `qwen3`, `llama`, …
    pub architecture: String,
    /// Number of parameters.
    pub parameters: u64,
    /// By number of parameters.
    pub size_class: SizeClass,
    /// As `Q8_0`, `Q4_K_M`.
    pub quantization: String,
    /// The longest context it was trained for.
    pub context_tokens: u32,
    /// SPDX expression or the licence's name.
    #[serde(default)]
    pub license: String,
    /// Where it came from: a URL with its revision, or a sentence.
    #[serde(default)]
    pub source: String,
    /// The chat template's family or digest, for people; the template itself is in the weights.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub template: String,
    /// What was measured.
    #[serde(default)]
    pub evaluation: Vec<Evaluation>,
    /// Memory that the model needs with its whole context, in bytes; 0 where not known.
    /// What the engine plans for it alone on a processor: weights, one cache, buffers.
    #[serde(default)]
    pub memory_bytes: u64,
    /// What it must show before it is made active.
    #[serde(default)]
    pub health: Health,
    /// The name of a small model of the same vocabulary that guesses ahead for this one, where it
    /// is on the device too; it changes the speed and not the answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub draft: Option<ModelName>,
}

impl Manifest {
    /// Reads and checks a manifest.
    ///
    /// # Errors
    /// [`ManifestError`], naming the field.
    pub fn parse(bytes: &[u8]) -> Result<Self, ManifestError> {
        let found = bytes.len() as u64;
        if found > MANIFEST_BYTES_MAX {
            return Err(ManifestError::TooLong { found });
        }
        // The schema is read alone first, so that a newer manifest is told as such and not as an
        // unknown field.
        #[derive(Deserialize)]
        struct Versioned {
            schema: u32,
        }
        let Versioned { schema } = serde_json::from_slice(bytes)?;
        if schema != SCHEMA_VERSION {
            return Err(ManifestError::Schema { found: schema });
        }
        let manifest: Self = serde_json::from_slice(bytes)?;
        manifest.check()?;
        Ok(manifest)
    }

    /// The bytes to sign and publish.
    ///
    /// # Errors
    /// [`ManifestError`] where the manifest would be refused by [`Manifest::parse`].
    pub fn to_bytes(&self) -> Result<Vec<u8>, ManifestError> {
        self.check()?;
        let mut bytes = serde_json::to_vec_pretty(self)?;
        bytes.push(b'\n');
        let found = bytes.len() as u64;
        if found > MANIFEST_BYTES_MAX {
            return Err(ManifestError::TooLong { found });
        }
        Ok(bytes)
    }

    /// The file that the engine reads.
    #[must_use]
    pub fn weights(&self) -> Option<&ManifestFile> {
        self.files.iter().find(|file| file.role == FileRole::Weights)
    }

    /// Length of all files together, in bytes.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        self.files.iter().fold(0, |sum, file| sum.saturating_add(file.size_bytes))
    }

    fn check(&self) -> Result<(), ManifestError> {
        if self.schema != SCHEMA_VERSION {
            return Err(ManifestError::Schema { found: self.schema });
        }
        // SQLite's integers are signed.
        if self.release == 0 || self.release > i64::MAX as u64 {
            return Err(field("release", self.release, "1 to 2^63-1"));
        }
        if self.parameters > i64::MAX as u64 {
            return Err(field("parameters", self.parameters, "at most 2^63-1"));
        }
        if self.files.len() > FILES_MAX {
            return Err(field("files", self.files.len(), "at most 64 files"));
        }
        let weights = self.files.iter().filter(|f| f.role == FileRole::Weights).count();
        if weights != 1 {
            return Err(field("files", weights, "exactly one file with the role weights"));
        }
        for (index, file) in self.files.iter().enumerate() {
            file.check(index)?;
        }
        if self.size_bytes() > i64::MAX as u64 {
            return Err(field("files", self.size_bytes(), "at most 2^63-1 bytes in all"));
        }
        for (name, text) in [
            ("architecture", &self.architecture),
            ("quantization", &self.quantization),
            ("license", &self.license),
            ("source", &self.source),
            ("template", &self.template),
        ] {
            check_text(name, text)?;
        }
        if self.evaluation.len() > EVALUATIONS_MAX {
            return Err(field("evaluation", self.evaluation.len(), "at most 64 results"));
        }
        for (index, evaluation) in self.evaluation.iter().enumerate() {
            evaluation.check(index)?;
        }
        if self.health.prompts.len() > HEALTH_PROMPTS_MAX {
            return Err(field(
                "health.prompts",
                self.health.prompts.len(),
                "at most 64 golden prompts",
            ));
        }
        let speed = self.health.tokens_per_second_min;
        if !speed.is_finite() || speed < 0.0 {
            return Err(field("health.tokens_per_second_min", speed, "a number from 0"));
        }
        Ok(())
    }
}

fn check_text(name: &str, text: &str) -> Result<(), ManifestError> {
    if text.len() > TEXT_BYTES_MAX {
        return Err(field(name, format!("{} bytes", text.len()), "at most 4096 bytes"));
    }
    if text.chars().any(char::is_control) {
        return Err(field(name, text.escape_debug(), "text without control characters"));
    }
    Ok(())
}

impl ManifestFile {
    /// The chunks with their places in the file.
    #[must_use]
    pub fn chunk_list(&self) -> Vec<Chunk> {
        let mut offset = 0;
        let mut list = Vec::with_capacity(self.chunks.len());
        for (index, digest) in self.chunks.iter().enumerate() {
            let rest = self.size_bytes.saturating_sub(offset);
            let size_bytes =
                self.chunk_sizes.get(index).copied().unwrap_or(self.chunk_bytes).min(rest);
            list.push(Chunk { offset, size_bytes, digest: *digest });
            offset += size_bytes;
        }
        list
    }

    fn check(&self, index: usize) -> Result<(), ManifestError> {
        let at = |name: &str| format!("files[{index}].{name}");
        let parts_ok = self
            .path
            .split('/')
            .all(|part| !part.is_empty() && part != "." && part != ".." && !part.contains('\\'));
        if !parts_ok || self.path.len() > 255 || self.path.chars().any(char::is_control) {
            let found = self.path.escape_debug().to_string();
            return Err(field(at("path"), found, "a relative path without . and .."));
        }
        check_text(&at("media_type"), &self.media_type)?;
        if self.size_bytes == 0 {
            return Err(field(at("size_bytes"), 0, "at least 1"));
        }
        if self.chunks.is_empty() || self.chunks.len() > CHUNKS_MAX {
            return Err(field(at("chunks"), self.chunks.len(), "1 to 65536 chunks"));
        }
        if self.chunk_bytes == 0 || self.chunk_bytes > CHUNK_BYTES_MAX {
            return Err(field(at("chunk_bytes"), self.chunk_bytes, "1 to 67108864"));
        }
        if self.chunk_sizes.is_empty() {
            let expected = self.size_bytes.div_ceil(self.chunk_bytes);
            if self.chunks.len() as u64 != expected {
                let expected = format!("{expected} chunks of {} bytes", self.chunk_bytes);
                return Err(field(at("chunks"), self.chunks.len(), &expected));
            }
            return Ok(());
        }
        if self.chunk_sizes.len() != self.chunks.len() {
            let expected = format!("one for each of {} chunks", self.chunks.len());
            return Err(field(at("chunk_sizes"), self.chunk_sizes.len(), &expected));
        }
        if let Some(bad) = self.chunk_sizes.iter().find(|s| **s == 0 || **s > self.chunk_bytes) {
            return Err(field(at("chunk_sizes"), bad, "1 to chunk_bytes each"));
        }
        let sum: u64 = self.chunk_sizes.iter().sum();
        if sum != self.size_bytes {
            return Err(field(at("chunk_sizes"), sum, "sizes that sum up to size_bytes"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
