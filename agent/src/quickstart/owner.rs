//! The owner's part: a key, a registry repository, the embedded model signed into it.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use fulmar_registry::facts::model_custom;
use fulmar_registry::import::{self, ModelFacts};
use fulmar_registry::trust::repository::{Plan, Repository};
use fulmar_registry::trust::{Ed25519Key, SigningKey};
use fulmar_registry::{Digest, Manifest, ModelName};

use crate::models;

/// The default model, as it was trained and quantised in `packaging/demo-model`.
const MODEL: &[u8] = include_bytes!("../../../packaging/demo-model/fulmar-demo.gguf");
/// Its name.
const NAME: (&str, &str, &str) = ("fulmar", "demo", "1.0");

/// What the owner signed, ready to be handed to a control plane.
#[derive(Debug)]
pub(crate) struct Release {
    /// `fulmar/demo:1.0`.
    pub(crate) name: ModelName,
    /// The manifest's digest: the model's.
    pub(crate) digest: Digest,
    /// The manifest's bytes.
    pub(crate) manifest: Vec<u8>,
    /// The model's file.
    pub(crate) weights: PathBuf,
    /// Its digest.
    pub(crate) weights_digest: Digest,
    /// The repository's metadata, by file name.
    pub(crate) metadata: Vec<(String, Vec<u8>)>,
}

/// The owner's directory.
#[derive(Debug)]
pub(crate) struct Owner {
    dir: PathBuf,
    key: Ed25519Key,
    repository: Repository,
}

impl Owner {
    /// Opens the owner's directory; makes key and repository at first.
    ///
    /// # Errors
    /// Names what could not be made or read.
    pub(crate) fn open(dir: &Path, now_s: i64) -> anyhow::Result<Self> {
        std::fs::create_dir_all(dir).with_context(|| format!("make {}", dir.display()))?;
        let path = dir.join("registry.key");
        let key = if path.exists() {
            let text = std::fs::read_to_string(&path)
                .with_context(|| format!("read {}", path.display()))?;
            Ed25519Key::from_file_text(&text, None)
                .with_context(|| format!("read {}", path.display()))?
        } else {
            let key = Ed25519Key::generate()?;
            crate::state::write_secret(&path, key.to_pem().as_bytes())?;
            key
        };
        let folder = dir.join("registry");
        let repository = match Repository::open(&folder) {
            Ok(repository) => repository,
            Err(_) => {
                Repository::init(&folder, &Plan::with_keys(&[key.public().clone()], 1), now_s)?
            }
        };
        // Also finishes what an earlier run had staged and not signed.
        repository.sign(&[&key], now_s)?;
        Ok(Self { dir: dir.to_owned(), key, repository })
    }

    /// The first root, which devices and control plane are given out of band.
    ///
    /// # Errors
    /// When it cannot be read.
    pub(crate) fn root(&self) -> anyhow::Result<Vec<u8>> {
        Ok(self.repository.first_root()?)
    }

    /// Signs the embedded model as release 1, unless that was done before.
    ///
    /// # Errors
    /// Names the step that failed.
    pub(crate) fn publish(&self, now_s: i64) -> anyhow::Result<Release> {
        let name = ModelName::new(NAME.0, NAME.1, NAME.2)?;
        let weights = self.dir.join("fulmar-demo.gguf");
        if std::fs::read(&weights).ok().as_deref() != Some(MODEL) {
            std::fs::write(&weights, MODEL)
                .with_context(|| format!("write {}", weights.display()))?;
        }
        let facts = ModelFacts {
            source: "packaging/demo-model, embedded in the fulmar binary".into(),
            ..models::facts(&weights)?
        };
        let file = import::describe_gguf(&weights, &facts)?;
        let manifest = self.manifest(&name, file, &facts, now_s)?;
        let bytes = manifest.to_bytes()?;
        let weights_digest =
            manifest.weights().map(|file| file.digest).context("describe the model")?;
        Ok(Release {
            digest: Digest::of(&bytes),
            name,
            manifest: bytes,
            weights,
            weights_digest,
            metadata: self.repository.metadata_files(now_s)?,
        })
    }

    /// The manifest that is signed already, if it is of the same file; else a new release of it,
    /// signed now.
    fn manifest(
        &self,
        name: &ModelName,
        file: fulmar_registry::ManifestFile,
        facts: &ModelFacts,
        now_s: i64,
    ) -> anyhow::Result<Manifest> {
        let path = name.target_path();
        let trusted = self.repository.trusted(now_s)?;
        let mut release = 1;
        if trusted.target(&path).is_some() {
            let signed = Manifest::parse(&self.repository.read_target(&trusted, &path)?)?;
            if signed.files == [file.clone()] {
                return Ok(signed);
            }
            release = signed.release + 1;
        }
        let manifest = import::manifest(name, release, vec![file], facts);
        let custom = model_custom(&manifest);
        self.repository.publish_target(&path, &manifest.to_bytes()?, Some(custom), None, now_s)?;
        self.repository.sign(&[&self.key], now_s)?;
        Ok(manifest)
    }
}
