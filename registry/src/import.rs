//! Models from elsewhere: a GGUF file, a Hugging Face repository, an OCI artifact, an Ollama
//! store. What comes in is hashed, described by a manifest and signed by the local owner.
//!
//! This crate cannot read models; whoever imports says what a file is ([`ModelFacts`]).
//!
//! Invariant: an enrolled device refuses local imports ([`crate::Registry::check_local_import`]):
//! there, only what both repositories name may run.

use std::fs::File;
use std::io::{BufReader, Seek};
use std::path::{Path, PathBuf};

use crate::blobs::BlobError;
use crate::catalog::Filter;
use crate::gc::{self, Hold, LockError};
use crate::manifest::{
    Evaluation, FileRole, Health, Manifest, ManifestFile, SCHEMA_VERSION, SizeClass,
};
use crate::{CatalogError, Digest, ModelName, OwnerError, Registry, Signed, catalog};

pub mod again;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
pub mod hub_search;
pub mod hugging_face;
pub mod model_signing;
pub mod oci;
pub mod ollama;
mod remote;
pub mod sigstore;
mod tar;

pub use remote::{
    FoundBundle, Network, Packing, Remote, RemoteError, RemoteFile, Resolved, complete,
};
pub use tar::unpack;

/// Media type of a GGUF file.
pub const GGUF_MEDIA_TYPE: &str = "application/vnd.fulmar.gguf";

/// What a model file is, as its reader found it.
#[derive(Debug, Clone, Default)]
pub struct ModelFacts {
    /// As in GGUF's `general.architecture`.
    pub architecture: String,
    /// Number of parameters.
    pub parameters: u64,
    /// As `Q8_0`.
    pub quantization: String,
    /// The longest context it was trained for.
    pub context_tokens: u32,
    /// SPDX expression or the licence's name; may be empty.
    pub license: String,
    /// Where it came from; may be empty.
    pub source: String,
    /// The chat template's family; may be empty.
    pub template: String,
    /// Memory that it needs with its whole context, in bytes; 0 where not known.
    pub memory_bytes: u64,
    /// What was measured.
    pub evaluation: Vec<Evaluation>,
    /// What it must show before it is made active.
    pub health: Health,
    /// The small model that guesses ahead for it.
    pub draft: Option<ModelName>,
    /// Places in the file where tensors begin, in bytes; chunks end there.
    pub tensor_offsets: Vec<u64>,
}

/// Why an import failed.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// The file could not be read.
    #[error("{op} {path}: {source}")]
    File {
        /// What was tried.
        op: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file changed while it was imported.
    #[error("import {path}: the file changed while it was read; import it again")]
    Changed {
        /// The file.
        path: PathBuf,
    },
    /// An archive that holds no model, or cannot be read.
    #[error("unpack the tar layer {layer}: {reason}")]
    Packed {
        /// Its digest.
        layer: Digest,
        /// What was found.
        reason: String,
    },
    /// The blob store refused.
    #[error("import: {0}")]
    Blobs(#[from] BlobError),
    /// A collection is under way.
    #[error("import: {0}")]
    Lock(#[from] LockError),
    /// The catalog refused.
    #[error("import: {0}")]
    Catalog(#[from] CatalogError),
    /// The owner's key or the manifest.
    #[error("import: {0}")]
    Owner(#[from] OwnerError),
}

/// A model whose blobs are in the store and whose manifest is signed: to be installed with
/// [`catalog::install`] while this is held.
#[derive(Debug)]
pub struct Imported {
    /// The signed manifest.
    pub signed: Signed,
    /// Keeps garbage collections away.
    pub hold: Hold,
}

/// A manifest of the given files; its release follows the highest that this device had.
#[must_use]
pub fn manifest(
    name: &ModelName,
    release: u64,
    files: Vec<ManifestFile>,
    facts: &ModelFacts,
) -> Manifest {
    Manifest {
        schema: SCHEMA_VERSION,
        name: name.clone(),
        release,
        // Whole seconds: nobody needs more, and it reads better.
        created_at: jiff::Timestamp::from_second(jiff::Timestamp::now().as_second())
            .unwrap_or_default(),
        files,
        architecture: facts.architecture.clone(),
        parameters: facts.parameters,
        size_class: SizeClass::of(facts.parameters),
        quantization: facts.quantization.clone(),
        context_tokens: facts.context_tokens,
        license: facts.license.clone(),
        source: facts.source.clone(),
        template: facts.template.clone(),
        evaluation: facts.evaluation.clone(),
        memory_bytes: facts.memory_bytes,
        health: facts.health.clone(),
        draft: facts.draft.clone(),
    }
}

/// Describes a GGUF file for a manifest: reads all of it once. Blocks.
///
/// # Errors
/// [`ImportError::File`].
pub fn describe_gguf(path: &Path, facts: &ModelFacts) -> Result<ManifestFile, ImportError> {
    let failed = |op| move |source| ImportError::File { op, path: path.to_owned(), source };
    let file = File::open(path).map_err(failed("open"))?;
    let offsets = facts.tensor_offsets.clone();
    ManifestFile::describe(
        &mut BufReader::with_capacity(1 << 20, file),
        offsets,
        FileRole::Weights,
        &file_name(path),
        GGUF_MEDIA_TYPE,
    )
    .map_err(failed("read"))
}

/// Imports one GGUF file under `name`: describes it, copies it into the store, signs its manifest
/// with the local owner's key. Blocks.
///
/// # Errors
/// [`ImportError`].
pub fn gguf_file(
    registry: &Registry,
    path: &Path,
    name: &ModelName,
    facts: &ModelFacts,
) -> Result<Imported, ImportError> {
    let failed = |op| move |source| ImportError::File { op, path: path.to_owned(), source };
    let hold = gc::hold(registry.blobs())?;
    let described = describe_gguf(path, facts)?;
    if !registry.blobs().contains(&described.digest, described.size_bytes) {
        let mut file = File::open(path).map_err(failed("open"))?;
        file.rewind().map_err(failed("rewind"))?;
        registry.blobs().put_file(&described, &mut file).map_err(|error| match error {
            // The copy hashes differently than the first reading.
            BlobError::Chunk { .. }
            | BlobError::Mismatch { .. }
            | BlobError::TooLong { .. }
            | BlobError::TooShort { .. } => ImportError::Changed { path: path.to_owned() },
            other => other.into(),
        })?;
    }
    sign(registry, name, vec![described], facts, hold)
}

/// Removes what was fetched only to make a model of it. A blob of an installed model stays: whoever
/// chose what is fetched does not choose which blobs leave. Blocks.
///
/// # Errors
/// [`ImportError::Catalog`] and [`ImportError::Blobs`].
pub fn remove_unless_installed(registry: &Registry, digest: &Digest) -> Result<(), ImportError> {
    let installed = registry
        .store()
        .read_blocking(|connection| catalog::list(connection, &Filter::default()))?;
    let mut files = installed.iter().flat_map(|model| &model.manifest.files);
    if files.any(|file| file.digest == *digest) {
        return Ok(());
    }
    Ok(registry.blobs().remove(digest)?)
}

/// Signs a manifest over files that are in the store. The same files under the same name again
/// give the same manifest again, so that an import repeated changes nothing.
pub(crate) fn sign(
    registry: &Registry,
    name: &ModelName,
    files: Vec<ManifestFile>,
    facts: &ModelFacts,
    hold: Hold,
) -> Result<Imported, ImportError> {
    let manifest = registry.store().read_blocking(|connection| {
        let installed = catalog::list(connection, &Filter::default())?;
        let same = installed.into_iter().find(|m| m.name() == name && m.manifest.files == files);
        if let Some(same) = same {
            return Ok(same.manifest);
        }
        let release = catalog::release_floor(connection, name)? + 1;
        Ok::<_, CatalogError>(manifest(name, release, files, facts))
    })?;
    Ok(Imported { signed: registry.owner().sign(&manifest)?, hold })
}

/// A file's name as far as it fits a manifest's path.
fn file_name(path: &Path) -> String {
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned());
    name.filter(|name| !name.chars().any(|c| c.is_control() || c == '\\'))
        .unwrap_or_else(|| "model.gguf".to_owned())
}

#[cfg(test)]
mod tests;
