//! Models as people have them: a GGUF file, or a Hugging Face folder, which is converted on the way.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use fulmar_optimize::TensorType;
use fulmar_optimize::convert::{ConvertOptions, convert};
use tempfile::TempDir;

/// A GGUF file; a converted one is gone when this is dropped.
#[derive(Debug)]
pub(crate) struct ModelFile {
    path: PathBuf,
    _scratch: Option<TempDir>,
}

impl ModelFile {
    /// The model at `path`. A folder is converted, in the type its weights have, into a file within
    /// `scratch`: the same folder gives the same bytes.
    ///
    /// # Errors
    /// What is wrong with the folder.
    pub(crate) fn of(path: &Path, scratch: &Path) -> anyhow::Result<Self> {
        if !path.is_dir() {
            return Ok(Self { path: path.to_owned(), _scratch: None });
        }
        let scratch = tempfile::tempdir_in(scratch)
            .with_context(|| format!("make a temporary folder in {}", scratch.display()))?;
        let file = scratch.path().join("model.gguf");
        let options =
            ConvertOptions { ty: own_type(path)?, name: Some(stem(path)?), license: None };
        convert(path, &file, &options, &mut |_| ())
            .with_context(|| format!("convert folder {}", path.display()))?;
        Ok(Self { path: file, _scratch: Some(scratch) })
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

/// The name that a file or folder suggests for its model.
///
/// # Errors
/// When the path has no name and cannot be followed to one.
pub(crate) fn stem(path: &Path) -> anyhow::Result<String> {
    if !path.is_dir() {
        return Ok(path.file_stem().unwrap_or_default().to_string_lossy().into_owned());
    }
    // A folder's name has no ending, and may be written as `.`.
    let full = path.canonicalize().with_context(|| format!("find {}", path.display()))?;
    Ok(full.file_name().unwrap_or_default().to_string_lossy().into_owned())
}

/// The type a folder's weights have, by its `config.json`.
fn own_type(folder: &Path) -> anyhow::Result<TensorType> {
    let path = folder.join("config.json");
    let bytes = std::fs::read(&path).with_context(|| format!("read {}", path.display()))?;
    let config: serde_json::Value =
        serde_json::from_slice(&bytes).with_context(|| format!("read {}", path.display()))?;
    let named = config.get("dtype").or_else(|| config.get("torch_dtype"));
    Ok(match named.and_then(|name| name.as_str()) {
        Some("bfloat16") => TensorType::Bf16,
        Some("float16") => TensorType::F16,
        _ => TensorType::F32,
    })
}
