//! Models that guess ahead for others: by the configuration, else by the manifest.
//!
//! A draft changes how fast a model answers and not what: where it is missing, does not verify or
//! does not fit, the model runs without it, and `fulmar ps` says why.

use std::collections::BTreeMap;
use std::sync::Arc;

use fulmar_inference::engine::{DraftModel, LoadOptions, LoadRefused, ModelInfo, Speculation};
use fulmar_inference::gguf::Gguf;
use fulmar_registry::{Digest, Manifest, ModelName, ModelRef, Registry, catalog};

use super::Models;
use crate::causes;

/// Which model guesses ahead for which.
#[derive(Debug, Clone, Default)]
pub(crate) struct Drafts {
    /// What the configuration says: it goes before the manifests.
    by_name: BTreeMap<String, ModelName>,
    speculation: Speculation,
}

/// A model's way into the engine.
pub(super) struct Loading {
    pub(super) info: Result<ModelInfo, LoadRefused>,
    /// Why no draft guesses ahead, where one was named.
    pub(super) draft_refused: Option<String>,
    /// The draft that was named, where it was not here.
    pub(super) draft_missing: Option<ModelName>,
    /// What of the draft the engine holds.
    pub(super) draft_digests: Vec<Digest>,
    /// The draft's file, where the engine holds one.
    pub(super) draft_weights: Option<Digest>,
}

impl Loading {
    fn plain(info: Result<ModelInfo, LoadRefused>, draft_refused: Option<String>) -> Self {
        Self {
            info,
            draft_refused,
            draft_missing: None,
            draft_digests: Vec::new(),
            draft_weights: None,
        }
    }
}

impl Drafts {
    pub(crate) fn new(by_name: BTreeMap<String, ModelName>, speculation: Speculation) -> Self {
        Self { by_name, speculation }
    }

    /// The model that guesses ahead for this one.
    fn of(&self, manifest: &Manifest) -> Option<ModelName> {
        let configured = self.by_name.get(&manifest.name.to_string());
        configured.or(manifest.draft.as_ref()).cloned()
    }

    /// Whether the configuration has this model guess for another.
    pub(crate) fn is_draft(&self, name: &str) -> bool {
        self.by_name.values().any(|draft| draft.to_string() == name)
    }
}

impl Models {
    /// Loads a model, with its draft where it has one that can be used.
    pub(super) async fn load_with_draft(
        &self,
        engine_name: &str,
        manifest: &Manifest,
        gguf: Gguf,
    ) -> Loading {
        let plain = || self.engine.load(engine_name, gguf.clone());
        let Some(name) = self.drafts.of(manifest) else {
            return Loading::plain(plain().await, None);
        };
        let refused = |reason: String| Some(format!("{name}: {reason}"));
        if self.drafts.speculation != Speculation::Auto {
            let reason = refused("engine.speculation is not auto".into());
            return Loading::plain(plain().await, reason);
        }
        let (draft, draft_digests) = match self.verified_draft(&name).await {
            Ok((gguf, digests)) => (DraftModel { name: name.to_string(), gguf }, digests),
            Err(reason) => {
                let draft_missing = (!self.is_active(&name).await).then(|| name.clone());
                let loading = Loading::plain(plain().await, refused(reason));
                return Loading { draft_missing, ..loading };
            }
        };
        let options = LoadOptions { draft: Some(draft), ..LoadOptions::default() };
        match self.engine.load_with(engine_name, gguf.clone(), options).await {
            Err(error @ LoadRefused::AlreadyLoaded { .. }) => Loading::plain(Err(error), None),
            Err(error) => {
                let reason = causes::line(&error);
                Loading::plain(plain().await, refused(reason))
            }
            info => Loading {
                draft_weights: draft_digests.last().copied(),
                draft_digests,
                ..Loading::plain(info, None)
            },
        }
    }

    /// The draft's file, verified in this process as any other model's.
    async fn verified_draft(&self, name: &ModelName) -> Result<(Gguf, Vec<Digest>), String> {
        let registry: Registry = self.registry.clone();
        let reference = ModelRef { name: name.clone(), digest: None };
        let verified = tokio::task::spawn_blocking(move || registry.verified_model(&reference));
        let verified = verified.await.map_err(|_| "the verification was cut off".to_owned())?;
        let verified = verified.map_err(|error| error.to_string())?;
        let digests = vec![verified.digest, verified.weights.digest()];
        let gguf = super::weights(&verified.weights, &name.to_string());
        gguf.map(|gguf| (gguf, digests)).map_err(|error| error.to_string())
    }

    async fn is_active(&self, name: &ModelName) -> bool {
        let reference = ModelRef { name: name.clone(), digest: None };
        self.store.read(move |connection| catalog::find(connection, &reference)).await.is_ok()
    }

    /// Lets go of the models whose draft was not here when they were loaded, and is here now, unless
    /// they answer somebody. Returns their names: loaded again, they have their drafts.
    pub(crate) async fn release_for_drafts(&self) -> Vec<String> {
        let waiting: Vec<(String, ModelName)> = self
            .map()
            .iter()
            .filter_map(|(name, model)| Some((name.clone(), model.draft_missing.clone()?)))
            .collect();
        let mut released = Vec::new();
        for (name, draft) in waiting {
            if !self.is_active(&draft).await {
                continue;
            }
            let _one_at_a_time = self.loading.lock().await;
            // Each answer under way holds its model.
            let idle = self.map().get(&name).is_some_and(|model| Arc::strong_count(model) == 1);
            if idle && self.map_mut().remove(&name).is_some() {
                let _ = self.engine.unload(&name).await;
                released.push(name);
            }
        }
        released
    }

    /// Why models run without the drafts that were named for them, by name in the engine.
    pub(crate) fn drafts_refused(&self) -> BTreeMap<String, String> {
        let refused = |model: &Arc<super::LoadedModel>| {
            Some((model.engine_name.clone(), model.draft_refused.clone()?))
        };
        self.map().values().filter_map(refused).collect()
    }

    /// Which model guesses ahead for which.
    pub(crate) fn drafts(&self) -> &Drafts {
        &self.drafts
    }
}
