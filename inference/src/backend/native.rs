//! The backend over this project's own CPU kernels: the fast path on devices.
//!
//! Weights are regrouped for the processor when the model is loaded; all buffers of a step are
//! allocated then, too. Quantised weights are multiplied with activations rounded to 8 bits per 32
//! values, float weights in 32-bit floats.
//!
//! With a folder for it, the regrouped weights of a verified model are stored once and mapped from
//! then on.
//!
//! Invariant: a token's result depends on its sequence alone, bit by bit, not on what else is in
//! the batch, nor on how its prompt was cut into batches, nor on the number of threads.
//!
//! Deliberately absent: devices other than the CPU.

mod step;
mod stored;
#[cfg(test)]
mod tests;
mod weights;

use fulmar_kernels::cache::{Cache, CacheShape, Precision};
use fulmar_kernels::cpu::Isa;
use fulmar_kernels::team::{Pinning, Team};

use self::step::Scratch;
use self::weights::{Source, Weights};
use super::{
    Backend, BackendOptions, Batch, KvType, LoadError, MemoryUse, StepError, StepOutput,
    check_batch, check_blocks,
};
use crate::gguf::Gguf;
use crate::model::Architecture;

/// The backend's name in messages.
const NAME: &str = "native";

/// Loads a model for the processor's best instruction set, or the one that `FULMAR_CPU` names.
///
/// # Errors
/// [`LoadError`] when the options ask for nothing or too much, a tensor has no kernels, or the
/// system has too little memory.
pub fn load(
    gguf: &Gguf,
    architecture: &Architecture,
    options: &BackendOptions,
) -> Result<Box<dyn Backend>, LoadError> {
    let isa = Isa::detect().map_err(|error| refused(&error))?;
    Ok(Box::new(Native::load(gguf, architecture, options, isa)?))
}

/// Bytes that [`load`] will hold, without loading.
///
/// # Errors
/// [`LoadError`] when a tensor has no kernels.
pub fn plan(
    gguf: &Gguf,
    architecture: &Architecture,
    options: &BackendOptions,
) -> Result<MemoryUse, LoadError> {
    let isa = Isa::detect().map_err(|error| refused(&error))?;
    Ok(MemoryUse {
        weights_bytes: Source::new(gguf, architecture, isa)?.held_bytes_max() as u64,
        kv_bytes: cache_shape(architecture, options).bytes() as u64,
        scratch_bytes: step::scratch_bytes(architecture, options),
    })
}

fn refused(error: &dyn std::fmt::Display) -> LoadError {
    LoadError::Backend { backend: NAME, reason: error.to_string() }
}

fn cache_shape(a: &Architecture, options: &BackendOptions) -> CacheShape {
    CacheShape {
        precision: match options.kv_type {
            KvType::F32 => Precision::F32,
            KvType::F16 => Precision::F16,
            KvType::Q8 => Precision::Q8,
        },
        layers: a.layers.len(),
        blocks: options.kv_blocks,
        kv_heads: a.kv_heads,
        dims: a.head_dims,
    }
}

struct Native {
    isa: Isa,
    architecture: Architecture,
    options: BackendOptions,
    weights: Weights,
    cache: Cache,
    scratch: Scratch,
    team: Team,
}

impl Native {
    fn load(
        gguf: &Gguf,
        architecture: &Architecture,
        options: &BackendOptions,
        isa: Isa,
    ) -> Result<Self, LoadError> {
        options.check()?;
        let pinning = match options.cpus.as_slice() {
            [] => Pinning::None,
            cpus => Pinning::Cpus(cpus.into()),
        };
        let team = Team::new(options.threads, pinning);
        let weights =
            Source::new(gguf, architecture, isa)?.load(&team, options.weight_copies.as_ref())?;
        Ok(Self {
            isa,
            weights,
            cache: Cache::new(cache_shape(architecture, options)).map_err(|e| refused(&e))?,
            scratch: Scratch::new(architecture, options, isa).map_err(|e| refused(&e))?,
            architecture: architecture.clone(),
            options: options.clone(),
            team,
        })
    }
}

impl Backend for Native {
    fn name(&self) -> &'static str {
        NAME
    }

    fn step(&mut self, batch: &Batch<'_>, output: &mut StepOutput) -> Result<(), StepError> {
        check_batch(batch, self.architecture.vocab_len, &self.options)?;
        self.team.pin_owner();
        self.run(batch, output)
    }

    fn copy_blocks(&mut self, pairs: &[(u32, u32)]) -> Result<(), StepError> {
        check_blocks(pairs, &self.options)?;
        for (from, to) in pairs {
            self.cache.copy_block(*from, *to);
        }
        Ok(())
    }

    fn memory(&self) -> MemoryUse {
        MemoryUse {
            weights_bytes: self.weights.held_bytes as u64,
            kv_bytes: self.cache.bytes() as u64,
            scratch_bytes: self.scratch.held_bytes() as u64,
        }
    }

    fn set_threads(&mut self, threads: usize) {
        self.team.resize(threads.max(1));
    }
}
