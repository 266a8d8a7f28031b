//! A read-only memory map of a whole file.
//!
//! Invariant: the bytes are only read. Deliberately absent: writable maps, parts of files.

use std::fs::File;
use std::io;
use std::ops::Deref;

/// A file's bytes, mapped read-only.
///
/// The map keeps the file's content alive even when its name is removed. Model files are
/// content-addressed and never rewritten in place; a file that somebody else truncates while it
/// is mapped makes reads of the missing pages fail with `SIGBUS`, as for every memory map.
#[derive(Debug)]
pub struct MappedFile {
    map: memmap2::Mmap,
}

impl MappedFile {
    /// Maps the whole file.
    ///
    /// # Errors
    /// What the operating system says, and `InvalidInput` for a file that is not a regular one.
    pub fn open(file: &File) -> io::Result<Self> {
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
        }
        // SAFETY: the map is private and read-only, and this type hands out only `&[u8]`. The one
        // way to break it is another process that changes the file in place while it is mapped:
        // blobs are written under another name, made durable and renamed, never rewritten.
        let map = unsafe { memmap2::Mmap::map(file)? };
        Ok(Self { map })
    }

    /// Tells the kernel that the bytes will soon be read in order, so that it reads ahead.
    /// A refusal changes nothing but speed and is ignored.
    pub fn prefetch(&self) {
        #[cfg(unix)]
        let _ = self.map.advise(memmap2::Advice::WillNeed);
    }

    /// Gives the pages back that were read so far. They come back from the file when read again.
    pub fn release(&self) {
        // SAFETY: the map is a read-only one of a file, whose dropped pages hold nothing but the
        // file's bytes.
        #[cfg(unix)]
        let _ = unsafe { self.map.unchecked_advise(memmap2::UncheckedAdvice::DontNeed) };
    }
}

impl Deref for MappedFile {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.map
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn a_mapped_file_reads_as_its_bytes() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"0123456789").unwrap();
        let map = MappedFile::open(&file).unwrap();
        map.prefetch();
        assert_eq!(&map[..], b"0123456789");
    }

    #[test]
    fn an_empty_file_is_an_empty_slice_and_a_folder_is_refused() {
        let map = MappedFile::open(&tempfile::tempfile().unwrap()).unwrap();
        assert!(map.is_empty());
        let folder = tempfile::tempdir().unwrap();
        let refused = MappedFile::open(&File::open(folder.path()).unwrap()).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::InvalidInput);
    }
}
