//! From a name in a request to a model in the engine: found in the catalog, verified in this
//! process, loaded within the budget.

mod draft;

use std::collections::{BTreeSet, HashMap};
use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use fulmar_inference::chat::Family;
use fulmar_inference::engine::{Engine, LoadRefused, memory_need};
use fulmar_inference::gguf::{Gguf, GgufError, TensorInfo};
use fulmar_policy::RunningAnswers;
use fulmar_registry::catalog::{self, CatalogError, Filter, Slot};
use fulmar_registry::import::ModelFacts;
use fulmar_registry::{
    Authority, Barred, Digest, FileInParts, LoadError, ModelName, ModelRef, ReferenceError,
    Registry, Standing, VerifiedModel,
};
use fulmar_store::Store;
use serde::Serialize;
use tokio::sync::Mutex;

pub(crate) use draft::Drafts;

use crate::causes;
use crate::search::Facts;

/// Why a model does not answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ModelError {
    /// The name cannot be read.
    #[error("read the model's name {name:?}")]
    Name {
        /// The name asked for.
        name: String,
        /// What is wrong with it.
        source: ReferenceError,
    },
    /// Nothing of that name is active here.
    #[error("find model {name}: it is not active on this device; active are: {active}")]
    NotInstalled {
        /// The name asked for.
        name: String,
        /// What there is, for people.
        active: String,
    },
    /// The owner's policy does not let it run.
    #[error("run model {name}: {barred}")]
    Barred {
        /// The model.
        name: String,
        /// Why not.
        barred: Barred,
    },
    /// Its bytes are not what was signed.
    #[error("verify model {name}")]
    Verify {
        /// The model.
        name: String,
        /// What is wrong.
        source: Box<LoadError>,
    },
    /// The engine has no room for it now.
    #[error("load model {name}: {reason}")]
    NoRoom {
        /// The model.
        name: String,
        /// What was asked, what is free, what would have to go.
        reason: String,
    },
    /// The engine cannot run it.
    #[error("load model {name}: {reason}")]
    Load {
        /// The model.
        name: String,
        /// Why not.
        reason: String,
    },
    /// The catalog cannot be read.
    #[error(transparent)]
    Store(CatalogError),
}

/// How often a retired model is looked at, until its last answer has ended.
const RETIRED_LOOK: Duration = Duration::from_millis(200);

/// An installed model, as people and programs see it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Installed {
    /// `namespace/name:tag`.
    pub(crate) name: String,
    /// The part before the slash.
    pub(crate) namespace: String,
    /// The manifest's digest.
    pub(crate) digest: String,
    /// The weights' digest.
    pub(crate) weights_digest: String,
    /// `active`, `previous`, `candidate` or none.
    pub(crate) slot: Option<Slot>,
    /// Kept from garbage collection by a person.
    pub(crate) pinned: bool,
    /// Who says that it may run here.
    pub(crate) authority: Authority,
    /// The release counter.
    pub(crate) release: u64,
    /// What it is.
    #[serde(flatten)]
    pub(crate) facts: Facts,
    /// Seconds since 1970.
    pub(crate) installed_at_s: i64,
    /// Why it failed, if it did.
    pub(crate) failure: Option<String>,
}

impl From<catalog::Installed> for Installed {
    fn from(model: catalog::Installed) -> Self {
        let manifest = model.manifest;
        Self {
            name: manifest.name.to_string(),
            namespace: manifest.name.namespace().to_owned(),
            digest: model.digest.to_string(),
            weights_digest: manifest.weights().map(|f| f.digest.to_string()).unwrap_or_default(),
            slot: model.slot,
            pinned: model.pinned,
            authority: model.authority,
            release: manifest.release,
            // All that was measured; a target carries only so much of it.
            facts: Facts { evaluation: manifest.evaluation.clone(), ..Facts::of(&manifest) },
            installed_at_s: model.installed_at_s,
            failure: model.failure,
        }
    }
}

/// A model that the engine has, and who says that it may run.
#[derive(Debug)]
pub(crate) struct LoadedModel {
    /// `namespace/name:tag`.
    pub(crate) name: String,
    /// The name in the engine: with the digest, so that two releases are two models.
    pub(crate) engine_name: String,
    /// The manifest's digest.
    pub(crate) digest: Digest,
    /// The weights' digest.
    pub(crate) weights_digest: Digest,
    /// The manifest's digest and those of all its files: what a revocation may name.
    pub(crate) digests: Vec<Digest>,
    /// The files that the engine reads: its own, and its draft's.
    pub(crate) files: Vec<Digest>,
    /// Who says that it may run here.
    pub(crate) authority: Authority,
    /// Why no draft guesses ahead for it, where one was named.
    pub(crate) draft_refused: Option<String>,
    /// The draft that was named for it, where it was not here.
    pub(crate) draft_missing: Option<ModelName>,
}

/// The models of this device.
#[derive(Debug)]
pub(crate) struct Models {
    store: Store,
    registry: Registry,
    engine: Engine,
    drafts: Drafts,
    /// Loaded models by engine name.
    loaded: RwLock<HashMap<String, Arc<LoadedModel>>>,
    /// Names of models that left the engine because a file of theirs broke.
    damaged: std::sync::Mutex<BTreeSet<String>>,
    /// Held while one is loaded, so that two requests do not load it twice.
    loading: Mutex<()>,
}

impl Models {
    pub(crate) fn new(store: Store, registry: Registry, engine: Engine, drafts: Drafts) -> Self {
        Self {
            store,
            registry,
            engine,
            drafts,
            loaded: RwLock::default(),
            damaged: std::sync::Mutex::default(),
            loading: Mutex::default(),
        }
    }

    pub(crate) fn engine(&self) -> &Engine {
        &self.engine
    }

    pub(crate) fn registry(&self) -> &Registry {
        &self.registry
    }

    /// Everything installed.
    pub(crate) async fn installed(&self) -> Result<Vec<Installed>, ModelError> {
        let found: Result<_, CatalogError> =
            self.store.read(|connection| catalog::list(connection, &Filter::default())).await;
        Ok(found.map_err(ModelError::Store)?.into_iter().map(Installed::from).collect())
    }

    /// The full name of the active model that a request's name means ([`catalog::resolve`]). A digest
    /// after `@` stays.
    pub(crate) async fn resolve(&self, name: &str) -> Result<String, ModelError> {
        let text = name.to_owned();
        let read = move |connection: &rusqlite::Connection| {
            let found = catalog::resolve(connection, &text);
            Ok::<_, CatalogError>((found, catalog::active_names(connection)?))
        };
        let (found, active) = self.store.read(read).await.map_err(ModelError::Store)?;
        let meant = match found {
            Ok(reference) if active.contains(&reference.name.to_string()) => {
                return Ok(reference.to_string());
            }
            Ok(reference) => reference.name.to_string(),
            Err(CatalogError::Name(source)) => {
                return Err(ModelError::Name { name: name.to_owned(), source });
            }
            // Which ones, stands among the active ones.
            Err(CatalogError::Ambiguous { text, .. }) => text,
            Err(error) => return Err(ModelError::Store(error)),
        };
        self.check_revoked(&meant).await?;
        let active = if active.is_empty() { "none".to_owned() } else { active.join(", ") };
        Err(ModelError::NotInstalled { name: meant, active })
    }

    /// What is not active may have been revoked: whoever asks for it is told so.
    async fn check_revoked(&self, name: &str) -> Result<(), ModelError> {
        let wanted = name.to_owned();
        let barred: Result<Option<Barred>, CatalogError> = self
            .store
            .read(move |connection| {
                let Ok(standing) = Standing::load(connection) else { return Ok(None) };
                let models = catalog::list(connection, &Filter::default())?;
                let same = |model: &&catalog::Installed| model.name().to_string() == wanted;
                Ok(models.iter().filter(same).find_map(|model| {
                    let files = model.manifest.files.iter().map(|file| &file.digest);
                    standing.check_model(std::iter::once(&model.digest).chain(files)).err()
                }))
            })
            .await;
        match barred.map_err(ModelError::Store)? {
            Some(barred) => Err(ModelError::Barred { name: name.to_owned(), barred }),
            None => Ok(()),
        }
    }

    /// One installed model.
    pub(crate) async fn find(&self, name: &str) -> Result<Installed, ModelError> {
        Ok(self.entry(name).await?.into())
    }

    async fn entry(&self, name: &str) -> Result<catalog::Installed, ModelError> {
        let reference: ModelRef =
            name.parse().map_err(|source| ModelError::Name { name: name.to_owned(), source })?;
        let found: Result<_, CatalogError> =
            self.store.read(move |connection| catalog::find(connection, &reference)).await;
        found.map_err(|error| match error {
            CatalogError::NotInstalled { .. } | CatalogError::NotActive { .. } => {
                ModelError::NotInstalled {
                    name: name.to_owned(),
                    active: "none of this name".into(),
                }
            }
            error => ModelError::Store(error),
        })
    }

    /// The model in the engine, loaded now if it was not. `name` is a resolved one.
    ///
    /// Its bytes are verified in this process before the engine sees any of them, and the owner's
    /// policy is asked each time, whether it is loaded already or not.
    pub(crate) async fn loaded(
        &self,
        name: &str,
        standing: &Standing,
        now_s: i64,
    ) -> Result<Arc<LoadedModel>, ModelError> {
        let entry = self.entry(name).await?;
        standing
            .check(&entry.digest, &entry.manifest, now_s)
            .map_err(|barred| ModelError::Barred { name: entry.name().to_string(), barred })?;
        let reference = ModelRef { name: entry.name().clone(), digest: Some(entry.digest) };
        if let Some(model) = self.map().get(&reference.to_string()) {
            return Ok(Arc::clone(model));
        }
        let registry = self.registry.clone();
        let wanted = reference.clone();
        // Hashing gigabytes must not hold up the runtime's threads.
        let verified = tokio::task::spawn_blocking(move || registry.verified_model(&wanted)).await;
        let full_name = reference.name.to_string();
        let verified = match verified {
            Ok(verified) => verified.map_err(|source| match source {
                LoadError::Barred { barred, .. } => ModelError::Barred { name: full_name, barred },
                source => ModelError::Verify { name: full_name, source: Box::new(source) },
            })?,
            Err(_) => {
                let reason = "the verification was cut off".into();
                return Err(ModelError::Load { name: full_name, reason });
            }
        };
        self.load_verified(verified).await
    }

    /// The release that served before the active one of that name, by its digest; none where the
    /// name is pinned to a digest itself.
    pub(crate) async fn before(&self, name: &str) -> Option<String> {
        let ModelRef { name, digest: None } = name.parse().ok()? else { return None };
        let wanted = name.clone();
        let found = self.store.read(move |c| catalog::slot(c, &wanted, Slot::Previous)).await;
        let digest =
            found.inspect_err(|error| tracing::warn!(%error, "read the catalog")).ok()??;
        Some(ModelRef { name, digest: Some(digest) }.to_string())
    }

    /// Gives a verified model to the engine, unless the engine has it.
    pub(crate) async fn load_verified(
        &self,
        verified: VerifiedModel,
    ) -> Result<Arc<LoadedModel>, ModelError> {
        let name = verified.manifest.name.to_string();
        let engine_name = format!("{name}@{}", verified.digest);
        let _one_at_a_time = self.loading.lock().await;
        if let Some(model) = self.map().get(&engine_name) {
            return Ok(Arc::clone(model));
        }
        let gguf = match weights(&verified.weights, &name) {
            Ok(gguf) => gguf,
            Err(error) => return Err(self.unsound(&verified, &name, error.to_string()).await),
        };
        let loading = self.load_with_draft(&engine_name, &verified.manifest, gguf).await;
        if let Some(reason) = &loading.draft_refused {
            tracing::warn!(model = name, reason, "a model runs without its draft");
        }
        match loading.info {
            // Loaded behind our back is loaded.
            Ok(_) | Err(LoadRefused::AlreadyLoaded { .. }) => {}
            Err(error @ (LoadRefused::OverBudget { .. } | LoadRefused::Measured { .. })) => {
                return Err(ModelError::NoRoom { name, reason: error.to_string() });
            }
            Err(error) => {
                let reason = causes::line(&error);
                return Err(self.unsound(&verified, &name, reason).await);
            }
        }
        let files: Vec<Digest> = verified.manifest.files.iter().map(|file| file.digest).collect();
        let model = Arc::new(LoadedModel {
            name,
            digests: std::iter::once(verified.digest)
                .chain(files.iter().copied())
                .chain(loading.draft_digests)
                .collect(),
            files: files.into_iter().chain(loading.draft_weights).collect(),
            engine_name: engine_name.clone(),
            digest: verified.digest,
            weights_digest: verified.weights.digest(),
            authority: verified.authority,
            draft_refused: loading.draft_refused,
            draft_missing: loading.draft_missing,
        });
        self.map_mut().insert(engine_name, Arc::clone(&model));
        Ok(model)
    }

    /// Why a model was not loaded: for its bytes, where they are not what was signed.
    async fn unsound(&self, verified: &VerifiedModel, name: &str, reason: String) -> ModelError {
        let (blobs, digest) = (self.registry.blobs().clone(), verified.weights.digest());
        // A bad part may have gone to quarantine already, or be found now.
        let judged = tokio::task::spawn_blocking(move || blobs.open_verified(&digest)).await;
        let name = name.to_owned();
        match (judged, name.parse()) {
            (Ok(Err(source)), Ok(name_of)) => {
                let reference = ModelRef { name: name_of, digest: Some(verified.digest) };
                ModelError::Verify { name, source: Box::new(LoadError::Blob { reference, source }) }
            }
            _ => ModelError::Load { name, reason },
        }
    }

    /// Forgets that a model is loaded: the engine made room, or its keep-alive ended.
    pub(crate) fn forget(&self, model: &LoadedModel) {
        self.map_mut().remove(&model.engine_name);
    }

    /// Takes a model out of the engine.
    pub(crate) async fn unload(&self, model: &LoadedModel) {
        self.forget(model);
        // Not loaded any more is what is wanted.
        let _ = self.engine.unload(&model.engine_name).await;
    }

    /// Takes a model out of the engine whose files broke, answers under way included: nobody knows
    /// which of their words came of wrong bytes. It is to be loaded again when they are whole.
    pub(crate) async fn unload_damaged(&self, model: &LoadedModel) {
        self.damaged_now().insert(model.name.clone());
        self.unload(model).await;
    }

    /// Models that left the engine because a file of theirs broke, and are not back.
    pub(crate) fn damaged(&self) -> BTreeSet<String> {
        self.damaged_now().clone()
    }

    /// A model is back, or nobody waits for it any more.
    pub(crate) fn mended(&self, name: &str) {
        self.damaged_now().remove(name);
    }

    fn damaged_now(&self) -> std::sync::MutexGuard<'_, BTreeSet<String>> {
        self.damaged.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a model out of the engine that may not run any more. No new answer of it begins; those
    /// under way end at once, or by themselves.
    pub(crate) async fn retire(&self, model: &Arc<LoadedModel>, answers: RunningAnswers) {
        if answers == RunningAnswers::Stop {
            return self.unload(model).await;
        }
        self.forget(model);
        let (engine, model) = (self.engine.clone(), Arc::clone(model));
        tokio::spawn(async move {
            // Each answer under way holds its model; here and the caller's are the others.
            while Arc::strong_count(&model) > 1 {
                tokio::time::sleep(RETIRED_LOOK).await;
            }
            let _ = engine.unload(&model.engine_name).await;
        });
    }

    /// Models that the engine may hold.
    pub(crate) fn in_engine(&self) -> Vec<Arc<LoadedModel>> {
        self.map().values().cloned().collect()
    }

    /// Releases that the engine may hold, and their files.
    pub(crate) fn running(&self) -> BTreeSet<Digest> {
        self.map().values().flat_map(|model| model.digests.iter().copied()).collect()
    }

    /// Takes out of the engine what is no longer active.
    pub(crate) async fn unload_inactive(&self) -> Result<(), ModelError> {
        let active: Vec<String> = self
            .installed()
            .await?
            .into_iter()
            .filter(|model| model.slot == Some(Slot::Active))
            .map(|model| format!("{}@{}", model.name, model.digest))
            .collect();
        let gone: Vec<Arc<LoadedModel>> =
            self.map().values().filter(|m| !active.contains(&m.engine_name)).cloned().collect();
        for model in gone {
            self.unload(&model).await;
        }
        Ok(())
    }

    // Each change of the map is one operation: whole whatever panics.
    fn map(&self) -> std::sync::RwLockReadGuard<'_, HashMap<String, Arc<LoadedModel>>> {
        self.loaded.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn map_mut(&self) -> std::sync::RwLockWriteGuard<'_, HashMap<String, Arc<LoadedModel>>> {
        self.loaded.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A verified model's weights for the engine, verified part by part as it uses them.
pub(crate) fn weights(file: &FileInParts, name: &str) -> Result<Gguf, GgufError> {
    let open = file.file();
    let open = open.map_err(|source| GgufError::Open { name: name.to_owned(), source })?;
    let (sha256, parts) = (*file.digest().as_bytes(), file.clone());
    let verify = move |ranges: &[_]| parts.verify(ranges).map_err(|error| error.to_string());
    Gguf::in_parts(open, name, sha256, Box::new(verify))
}

/// What a GGUF file says about itself, and what the engine makes of it, for its manifest.
///
/// # Errors
/// What is wrong with the file.
pub(crate) fn facts(path: &Path) -> Result<ModelFacts, GgufError> {
    let gguf = Gguf::open(path)?;
    let text = |key: &str| -> Result<String, GgufError> {
        Ok(gguf.str(key)?.unwrap_or_default().to_owned())
    };
    let architecture = text("general.architecture")?;
    let parameters =
        gguf.tensors().iter().map(|tensor| tensor.shape.iter().product::<usize>() as u64).sum();
    let context_tokens = gguf.u32(&format!("{architecture}.context_length"))?.unwrap_or(0);
    Ok(ModelFacts {
        parameters,
        quantization: quantization(&gguf),
        context_tokens,
        license: text("general.license")?,
        template: gguf
            .str("tokenizer.chat_template")?
            .map_or_else(String::new, |template| Family::of_template(template).as_str().to_owned()),
        // A file of an architecture to come may be published all the same.
        memory_bytes: memory_need(&gguf).unwrap_or_else(|error| {
            tracing::warn!(path = %path.display(), %error, "what the model needs is not known");
            0
        }),
        architecture,
        tensor_offsets: gguf.tensors().iter().map(TensorInfo::file_offset).collect(),
        ..ModelFacts::default()
    })
}

/// The tensor type that holds most of the parameters.
fn quantization(gguf: &Gguf) -> String {
    let mut sizes: HashMap<&'static str, u64> = HashMap::new();
    for tensor in gguf.tensors() {
        *sizes.entry(tensor.ty.name()).or_default() +=
            tensor.shape.iter().product::<usize>() as u64;
    }
    let largest = sizes.into_iter().max_by_key(|(_, size)| *size);
    largest.map_or_else(String::new, |(name, _)| name.to_owned())
}
