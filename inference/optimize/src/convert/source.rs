//! The folder's weights: one safetensors file or several.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};

use fulmar_kernels::formats::TensorType;
use fulmar_kernels::mapped::MappedFile;
use safetensors::tensor::{Dtype, SafeTensors, TensorView};

use super::ConvertError;

/// Memory maps of all shards, and which holds which tensor.
pub(super) struct Shards {
    files: Vec<(PathBuf, MappedFile)>,
    places: BTreeMap<String, usize>,
}

impl Shards {
    /// Maps every `*.safetensors` of the folder and checks their headers.
    pub(super) fn open(folder: &Path) -> Result<Self, ConvertError> {
        let failed = |source| ConvertError::Read { path: folder.to_owned(), source };
        let mut paths = Vec::new();
        for entry in std::fs::read_dir(folder).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            if path.extension().is_some_and(|ext| ext == "safetensors") {
                paths.push(path);
            }
        }
        paths.sort();
        // Some publishers put a consolidated copy beside the shards.
        if paths.len() > 1 {
            paths.retain(|path| path.file_name().is_none_or(|n| n != "consolidated.safetensors"));
        }
        if paths.is_empty() {
            let folder = folder.to_owned();
            return Err(ConvertError::MissingFile { wanted: "*.safetensors", folder });
        }
        let mut shards = Self { files: Vec::new(), places: BTreeMap::new() };
        for path in paths {
            shards.add(path)?;
        }
        Ok(shards)
    }

    fn add(&mut self, path: PathBuf) -> Result<(), ConvertError> {
        let map = File::open(&path)
            .and_then(|file| MappedFile::open(&file))
            .map_err(|source| ConvertError::Read { path: path.clone(), source })?;
        for name in parse(&path, &map)?.names() {
            if self.places.insert(name.to_owned(), self.files.len()).is_some() {
                let reason = format!("it is in {} and in an earlier file", path.display());
                return Err(ConvertError::Tensor { name: name.to_owned(), reason });
            }
        }
        self.files.push((path, map));
        Ok(())
    }

    /// All tensors by name.
    pub(super) fn tensors(&self) -> Result<BTreeMap<String, TensorView<'_>>, ConvertError> {
        let mut all = BTreeMap::new();
        for (path, map) in &self.files {
            all.extend(parse(path, map)?.tensors());
        }
        Ok(all)
    }

    /// One tensor.
    pub(super) fn tensor(&self, name: &str) -> Result<TensorView<'_>, ConvertError> {
        let missing =
            || ConvertError::Tensor { name: name.to_owned(), reason: "it is missing".into() };
        let (path, map) = &self.files[*self.places.get(name).ok_or_else(missing)?];
        parse(path, map)?.tensor(name).map_err(|_| missing())
    }

    /// Rows of the token embedding, where there is one.
    pub(super) fn vocab_len(&self) -> Option<usize> {
        let name = self.places.keys().find(|name| name.ends_with("embed_tokens.weight"))?;
        self.tensor(name).ok()?.shape().first().copied()
    }
}

fn parse<'a>(path: &Path, map: &'a MappedFile) -> Result<SafeTensors<'a>, ConvertError> {
    SafeTensors::deserialize(map).map_err(|error| ConvertError::Malformed {
        path: path.to_owned(),
        reason: error.to_string(),
    })
}

/// The type of a tensor's elements.
pub(super) fn tensor_type(name: &str, dtype: Dtype) -> Result<TensorType, ConvertError> {
    match dtype {
        Dtype::F32 => Ok(TensorType::F32),
        Dtype::F16 => Ok(TensorType::F16),
        Dtype::BF16 => Ok(TensorType::Bf16),
        Dtype::F64 => Ok(TensorType::F64),
        other => Err(ConvertError::Tensor {
            name: name.to_owned(),
            reason: format!("its type is {other:?}, expected F32, F16, BF16 or F64"),
        }),
    }
}
