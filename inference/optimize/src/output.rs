//! An output file that appears complete or not at all.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

const BUFFER_BYTES: usize = 1 << 20;

/// Why the output could not be written.
#[derive(Debug, thiserror::Error)]
pub enum OutputError {
    /// The path does not name a file.
    #[error("write {}: the path names no file", .path.display())]
    Name {
        /// The path given.
        path: PathBuf,
    },
    /// The temporary file beside the output could not be made.
    #[error("create {}", .path.display())]
    Create {
        /// The temporary file.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// The data could not be made durable under its name.
    #[error("commit {}", .path.display())]
    Commit {
        /// The output.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
}

/// A file under a temporary name beside its place. Dropped uncommitted, it is removed.
#[derive(Debug)]
pub(crate) struct OutputFile {
    writer: Option<BufWriter<File>>,
    partial: PathBuf,
    place: PathBuf,
}

impl OutputFile {
    pub(crate) fn create(place: &Path) -> Result<Self, OutputError> {
        let Some(name) = place.file_name() else {
            return Err(OutputError::Name { path: place.to_owned() });
        };
        let mut hidden = std::ffi::OsString::from(".");
        hidden.push(name);
        hidden.push(format!(".{}.partial", std::process::id()));
        let partial = place.with_file_name(hidden);
        let file = File::create(&partial)
            .map_err(|source| OutputError::Create { path: partial.clone(), source })?;
        let writer = Some(BufWriter::with_capacity(BUFFER_BYTES, file));
        Ok(Self { writer, partial, place: place.to_owned() })
    }

    /// Flushes, syncs, renames into place, syncs the folder.
    pub(crate) fn commit(mut self) -> Result<(), OutputError> {
        self.settle().map_err(|source| OutputError::Commit { path: self.place.clone(), source })
    }

    fn settle(&mut self) -> io::Result<()> {
        if let Some(writer) = self.writer.take() {
            writer.into_inner().map_err(|error| error.into_error())?.sync_all()?;
        }
        fs::rename(&self.partial, &self.place)?;
        let folder = match self.place.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder,
            _ => Path::new("."),
        };
        File::open(folder)?.sync_all()
    }
}

impl Write for OutputFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &mut self.writer {
            Some(writer) => writer.write(bytes),
            None => Err(io::Error::other("the output is already committed")),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.writer.as_mut().map_or(Ok(()), Write::flush)
    }
}

impl Drop for OutputFile {
    fn drop(&mut self) {
        // After a commit the name is gone and this fails, which is as wanted.
        let _ = fs::remove_file(&self.partial);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_uncommitted_output_leaves_the_old_file_and_no_litter() {
        let folder = tempfile::tempdir().unwrap();
        let place = folder.path().join("model.gguf");
        fs::write(&place, b"old").unwrap();
        let mut output = OutputFile::create(&place).unwrap();
        output.write_all(b"half").unwrap();
        drop(output);
        assert_eq!(fs::read(&place).unwrap(), b"old");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_committed_output_replaces_the_old_file() {
        let folder = tempfile::tempdir().unwrap();
        let place = folder.path().join("model.gguf");
        fs::write(&place, b"old").unwrap();
        let mut output = OutputFile::create(&place).unwrap();
        output.write_all(b"new").unwrap();
        output.commit().unwrap();
        assert_eq!(fs::read(&place).unwrap(), b"new");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_path_without_a_name_or_folder_is_refused() {
        assert!(matches!(OutputFile::create(Path::new("..")), Err(OutputError::Name { .. })));
        let nowhere = Path::new("/nonexistent-folder/x.gguf");
        assert!(matches!(OutputFile::create(nowhere), Err(OutputError::Create { .. })));
    }
}
