//! Which backend runs a model, and what it will hold there.

use super::load::LoadRefused;
use super::options::BackendChoice;
use crate::backend::{Backend, BackendOptions, MemoryUse, candle, native};
use crate::gguf::Gguf;
use crate::model::Architecture;

/// A backend, chosen before anything is loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Native,
    Candle,
}

/// The backend for one model.
#[derive(Debug)]
pub(super) struct Chosen {
    kind: Kind,
    /// Why this one.
    pub(super) reason: String,
}

impl Chosen {
    /// Chooses. `options` need not have their final number of cache blocks.
    pub(super) fn new(
        choice: BackendChoice,
        gguf: &Gguf,
        architecture: &Architecture,
        options: &BackendOptions,
    ) -> Result<Self, LoadRefused> {
        let asked = |kind| Ok(Self { kind, reason: "asked for".to_owned() });
        let native = native::plan(gguf, architecture, options);
        match (choice, native) {
            (BackendChoice::Candle, _) => asked(Kind::Candle),
            (BackendChoice::Native, Ok(_)) => asked(Kind::Native),
            (BackendChoice::Native, Err(error)) => {
                Err(LoadRefused::NoBackend { backend: "native", reason: error.to_string() })
            }
            (BackendChoice::Auto, _) if candle::has_gpu() => {
                Ok(Self { kind: Kind::Candle, reason: "a GPU is there".to_owned() })
            }
            (BackendChoice::Auto, Ok(_)) => {
                let reason = "the native kernels run this model on this processor".to_owned();
                Ok(Self { kind: Kind::Native, reason })
            }
            (BackendChoice::Auto, Err(error)) => {
                Ok(Self { kind: Kind::Candle, reason: format!("not native: {error}") })
            }
        }
    }

    /// Bytes that the backend will hold.
    pub(super) fn plan(
        &self,
        gguf: &Gguf,
        architecture: &Architecture,
        options: &BackendOptions,
    ) -> Result<MemoryUse, LoadRefused> {
        Ok(match self.kind {
            Kind::Native => native::plan(gguf, architecture, options)?,
            Kind::Candle => candle::plan(gguf, architecture, options),
        })
    }

    /// Loads the model.
    pub(super) fn load(
        &self,
        gguf: &Gguf,
        architecture: &Architecture,
        options: &BackendOptions,
    ) -> Result<Box<dyn Backend>, LoadRefused> {
        Ok(match self.kind {
            Kind::Native => native::load(gguf, architecture, options)?,
            Kind::Candle => candle::load(gguf, architecture, options)?,
        })
    }
}
