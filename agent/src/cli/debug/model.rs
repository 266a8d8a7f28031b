//! A model loaded straight onto a backend, with one sequence in it.

use std::path::Path;

use anyhow::Context;
use fulmar_inference::backend::{
    self, BLOCK_TOKENS, Backend, BackendOptions, Batch, KvType, MemoryUse, Rows, Span, StepOutput,
};
use fulmar_inference::engine::BackendChoice;
use fulmar_inference::gguf::Gguf;
use fulmar_inference::model::Architecture;

use crate::folder::ModelFile;

/// Which backend computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum BackendName {
    /// This project's CPU kernels.
    Native,
    /// Candle tensors: the reference, and GPUs where built in.
    Candle,
}

/// Precision of the key-value cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Kv {
    /// 32-bit floats.
    F32,
    /// 16-bit floats.
    F16,
    /// 8-bit integers.
    Q8,
}

/// How to compute; shared by the commands that do.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct Compute {
    /// The backend.
    #[arg(long, value_enum, default_value = "candle")]
    pub(super) backend: BackendName,
    /// Precision of the key-value cache; by default f32 on candle and f16 on native.
    #[arg(long, value_enum)]
    pub(super) kv: Option<Kv>,
    /// Threads that compute.
    #[arg(long, default_value_t = 2)]
    pub(super) threads: usize,
}

impl Compute {
    /// The same as an engine's option.
    pub(super) fn choice(&self) -> BackendChoice {
        match self.backend {
            BackendName::Native => BackendChoice::Native,
            BackendName::Candle => BackendChoice::Candle,
        }
    }

    pub(super) fn kv_type(&self) -> KvType {
        match (self.kv, self.backend) {
            (Some(Kv::F32), _) | (None, BackendName::Candle) => KvType::F32,
            (Some(Kv::F16), _) | (None, BackendName::Native) => KvType::F16,
            (Some(Kv::Q8), _) => KvType::Q8,
        }
    }
}

/// Opens a model: a GGUF file, or a Hugging Face folder, which is converted on the way into a file
/// that is gone when the program ends.
pub(super) fn open(path: &Path) -> anyhow::Result<Gguf> {
    let file = ModelFile::of(path, &std::env::temp_dir())?;
    // The map keeps the file's content when its name goes.
    Gguf::open(file.path()).with_context(|| format!("open model {}", path.display()))
}

/// One sequence on one backend.
pub(super) struct Sequence {
    backend: Box<dyn Backend>,
    blocks: Vec<u32>,
    position: usize,
    output: StepOutput,
}

impl Sequence {
    /// Loads the model with room for `tokens_max` tokens, of which at most `step_tokens_max` go in
    /// at once.
    pub(super) fn load(
        gguf: &Gguf,
        compute: &Compute,
        context_tokens: usize,
        tokens_max: usize,
        step_tokens_max: usize,
    ) -> anyhow::Result<Self> {
        let architecture = Architecture::from_gguf(gguf).context("understand the model")?;
        let blocks = tokens_max.div_ceil(BLOCK_TOKENS).max(1);
        let options = BackendOptions {
            threads: compute.threads,
            context_tokens_max: context_tokens,
            kv_blocks: blocks,
            kv_type: compute.kv_type(),
            batch_tokens_max: step_tokens_max,
            cpus: Vec::new(),
            weight_copies: None,
        };
        let backend = match compute.backend {
            BackendName::Native => backend::native::load(gguf, &architecture, &options),
            BackendName::Candle => backend::candle::load(gguf, &architecture, &options),
        };
        Ok(Self {
            backend: backend.context("load the model")?,
            blocks: (0..blocks as u32).collect(),
            position: 0,
            output: StepOutput::default(),
        })
    }

    /// What the backend holds now.
    pub(super) fn memory(&self) -> MemoryUse {
        self.backend.memory()
    }

    /// Appends tokens and gives the logits of the rows asked for, with their width.
    pub(super) fn step(&mut self, tokens: &[u32], rows: Rows) -> anyhow::Result<(&[f32], usize)> {
        let span = Span {
            start: 0,
            len: tokens.len(),
            position: self.position,
            blocks: &self.blocks,
            rows,
        };
        let batch = Batch { tokens, spans: &[span], hidden: false };
        self.backend
            .step(&batch, &mut self.output)
            .with_context(|| format!("compute position {}", self.position))?;
        self.position += tokens.len();
        Ok((&self.output.values, self.output.width))
    }
}
