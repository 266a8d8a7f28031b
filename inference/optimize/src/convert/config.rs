//! `config.json`, field by field.

use std::path::Path;

use serde_json::Value;

use super::ConvertError;

const FILE: &str = "config.json";

/// A model's configuration. Models with a vision tower keep the text model's fields one level down.
pub(super) struct Config {
    root: Value,
    /// `text_config`, where there is one.
    nested: bool,
}

impl Config {
    pub(super) fn read(folder: &Path) -> Result<Self, ConvertError> {
        Ok(Self::new(read_json(folder, FILE)?.ok_or_else(|| ConvertError::MissingFile {
            wanted: FILE,
            folder: folder.to_owned(),
        })?))
    }

    pub(super) fn new(root: Value) -> Self {
        let nested = root.get("text_config").is_some_and(Value::is_object);
        Self { root, nested }
    }

    /// The field's value; null counts as absent.
    pub(super) fn get(&self, field: &str) -> Option<&Value> {
        let text = if self.nested { self.root.get("text_config") } else { None };
        text.and_then(|text| text.get(field))
            .or_else(|| self.root.get(field))
            .filter(|value| !value.is_null())
    }

    /// The first of `architectures`.
    pub(super) fn architecture(&self) -> Result<&str, ConvertError> {
        self.root
            .get("architectures")
            .and_then(|list| list.get(0))
            .and_then(Value::as_str)
            .ok_or_else(|| wrong("architectures", "expected a list with one name".into()))
    }

    /// A count above zero, if it is there.
    pub(super) fn count_if(&self, field: &str) -> Result<Option<u32>, ConvertError> {
        let Some(value) = self.get(field) else { return Ok(None) };
        match value.as_u64().and_then(|n| u32::try_from(n).ok()) {
            Some(n) if n > 0 => Ok(Some(n)),
            _ => Err(wrong(field, format!("found {value}, expected a whole number above 0"))),
        }
    }

    /// A count above zero.
    pub(super) fn count(&self, field: &str) -> Result<u32, ConvertError> {
        self.count_if(field)?.ok_or_else(|| wrong(field, "it is missing".into()))
    }

    /// A finite number, if it is there.
    pub(super) fn number_if(&self, field: &str) -> Result<Option<f32>, ConvertError> {
        let Some(value) = self.get(field) else { return Ok(None) };
        match value.as_f64() {
            Some(n) if n.is_finite() => Ok(Some(n as f32)),
            _ => Err(wrong(field, format!("found {value}, expected a number"))),
        }
    }

    /// Whether the head is the embedding.
    pub(super) fn tied(&self) -> bool {
        self.get("tie_word_embeddings").and_then(Value::as_bool).unwrap_or(false)
    }

    /// Dimensions of one head.
    pub(super) fn head_dims(&self) -> Result<u32, ConvertError> {
        if let Some(dims) = self.count_if("head_dim")? {
            return Ok(dims);
        }
        Ok(self.count("hidden_size")? / self.count("num_attention_heads")?)
    }

    /// Key and value heads.
    pub(super) fn kv_heads(&self) -> Result<u32, ConvertError> {
        match self.count_if("num_key_value_heads")? {
            Some(heads) => Ok(heads),
            None => self.count("num_attention_heads"),
        }
    }
}

/// An error about a field of `config.json`.
pub(super) fn wrong(field: &str, reason: String) -> ConvertError {
    ConvertError::Field { file: FILE, field: field.to_owned(), reason }
}

/// A JSON file of the folder, or nothing if it is not there.
pub(super) fn read_json(folder: &Path, name: &str) -> Result<Option<Value>, ConvertError> {
    let path = folder.join(name);
    let text = match std::fs::read(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(ConvertError::Read { path, source }),
    };
    serde_json::from_slice(&text)
        .map(Some)
        .map_err(|error| ConvertError::Malformed { path, reason: error.to_string() })
}
