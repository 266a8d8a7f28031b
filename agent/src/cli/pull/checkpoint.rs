//! A checkpoint from a hub: fetched, converted, quantised, and read in as one GGUF file.

use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use fulmar_optimize::quantize::{Mix, QuantizeOptions, quantize};
use fulmar_registry::fetch::Pace;
use fulmar_registry::import::hugging_face::Checkpoint;
use fulmar_registry::import::{self, FoundBundle, Imported, Remote};
use fulmar_registry::{ModelName, Registry};

use super::super::quantize::Bar;
use super::with_bar;
use crate::folder::ModelFile;
use crate::models;
use crate::signing::{self, Rules, Signing};

/// Where checkpoints are put together, within the state directory.
const FOLDER: &str = "converting";

/// What is done with a checkpoint.
pub(super) struct Conversion<'a> {
    pub(super) registry: &'a Registry,
    pub(super) checkpoint: Checkpoint,
    pub(super) mix: Mix,
    pub(super) name: ModelName,
    /// The publisher's signature: the one that was given, else the one that was found.
    pub(super) bundle: Option<FoundBundle>,
    pub(super) rules: &'a Rules,
    pub(super) now_s: i64,
    /// The state directory.
    pub(super) dir: &'a Path,
}

/// The mix of types that a checkpoint's reference asks for.
///
/// # Errors
/// With the names there are.
pub(super) fn mix(checkpoint: &Checkpoint) -> anyhow::Result<Mix> {
    Mix::from_name(&checkpoint.quantization).with_context(|| {
        let names: Vec<&str> = Mix::ALL.iter().map(|mix| mix.name()).collect();
        format!(
            "convert {}: it has safetensors alone, which cannot be made {:?}; expected one of {} \
             after the colon",
            checkpoint.large.source,
            checkpoint.quantization,
            names.join(", ")
        )
    })
}

impl Conversion<'_> {
    /// Fetches the large files and makes the model of them. What was fetched goes when the model is in
    /// the store, and stays for the next try where it does not get there.
    pub(super) async fn run(
        self,
        remote: &Remote,
        pace: &Pace,
    ) -> anyhow::Result<(Imported, Signing)> {
        let large = &self.checkpoint.large;
        let fetched = remote.fetch_all(self.registry, large, pace);
        let hold = with_bar(self.registry, large, fetched).await?;
        let done = tokio::task::block_in_place(|| {
            let done = self.convert()?;
            for file in &large.files {
                import::remove_unless_installed(self.registry, &file.digest)?;
            }
            Ok::<_, anyhow::Error>(done)
        })?;
        drop(hold);
        Ok(done)
    }

    fn convert(&self) -> anyhow::Result<(Imported, Signing)> {
        let workshop = Workshop::open(self.dir)?;
        let checkpoint = &self.checkpoint;
        // The folder's name becomes the model's name in the file: the same on every device.
        let folder = workshop.dir.join(self.name.name());
        fs::create_dir(&folder).with_context(|| format!("make {}", folder.display()))?;
        for file in &checkpoint.large.files {
            let blob = self.registry.blobs().open_verified(&file.digest)?;
            let link = folder.join(&file.path);
            std::os::unix::fs::symlink(&blob.path, &link)
                .with_context(|| format!("link {}", link.display()))?;
        }
        for (name, bytes) in &checkpoint.small {
            let path = folder.join(name);
            fs::write(&path, bytes).with_context(|| format!("write {}", path.display()))?;
        }
        if let Some(bundle) = &self.bundle {
            let path = folder.join("model.sig");
            fs::write(&path, &bundle.bytes).with_context(|| format!("write {}", path.display()))?;
        }
        let signing = signing::check_folder(&folder, self.rules, self.now_s)?;
        let converted = ModelFile::of(&folder, &workshop.dir)?;
        let file = workshop.dir.join(format!("{}.gguf", self.name.name()));
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let mut bar = Bar::new();
        let options = QuantizeOptions { mix: self.mix, threads };
        quantize(converted.path(), &file, &options, &mut |progress| bar.show(progress))
            .with_context(|| format!("convert {}", checkpoint.large.source))?;
        bar.clear();
        let mut facts = models::facts(&file).context("read the converted model")?;
        facts.source = format!("converted from {}", checkpoint.large.source);
        if facts.license.is_empty() {
            facts.license.clone_from(&checkpoint.large.license);
        }
        Ok((import::gguf_file(self.registry, &file, &self.name, &facts)?, signing))
    }
}

/// A folder that one conversion at a time has for itself; what a killed one left is cleared away.
struct Workshop {
    dir: PathBuf,
    _lock: File,
}

impl Workshop {
    fn open(state_dir: &Path) -> anyhow::Result<Self> {
        let lock_path = state_dir.join(format!("{FOLDER}.lock"));
        let lock =
            File::create(&lock_path).with_context(|| format!("make {}", lock_path.display()))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                anyhow::bail!("convert: another pull is converting on this device; wait for it")
            }
            Err(TryLockError::Error(error)) => {
                return Err(error).with_context(|| format!("lock {}", lock_path.display()));
            }
        }
        let dir = state_dir.join(FOLDER);
        if dir.exists() {
            fs::remove_dir_all(&dir).with_context(|| format!("clear {}", dir.display()))?;
        }
        fs::create_dir(&dir).with_context(|| format!("make {}", dir.display()))?;
        Ok(Self { dir, _lock: lock })
    }
}

impl Drop for Workshop {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.dir) {
            tracing::warn!(dir = %self.dir.display(), %error, "a conversion's folder stays");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_conversion_at_a_time_begins_with_an_empty_folder() {
        let state = tempfile::tempdir().unwrap();
        fs::create_dir(state.path().join(FOLDER)).unwrap();
        fs::write(state.path().join(FOLDER).join("left"), "by a killed one").unwrap();
        let first = Workshop::open(state.path()).unwrap();
        assert_eq!(fs::read_dir(&first.dir).unwrap().count(), 0);
        let refused = Workshop::open(state.path()).err().unwrap().to_string();
        assert!(refused.contains("another pull"), "{refused}");
        let dir = first.dir.clone();
        drop(first);
        assert!(!dir.exists() && Workshop::open(state.path()).is_ok());
    }
}
