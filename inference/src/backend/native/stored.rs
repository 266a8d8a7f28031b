//! A copy of the regrouped weights on disk, made once and mapped from then on.
//!
//! The file's first page says what it is a copy of: the layouts' version, the instruction set, and
//! a fingerprint of the model (size, every tensor's name, type and shape, and the edges of its
//! data). A sum over the rest is checked at every start, so a file that was cut short or damaged,
//! like one of another version, is made again. The folder must be the program's own: the sum guards
//! against accidents, not against somebody who may write there.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use fulmar_kernels::LAYOUT_VERSION;
use fulmar_kernels::cpu::Isa;
use fulmar_kernels::mapped::MappedFile;
use fulmar_kernels::sum::Sum;
use fulmar_kernels::team::Team;

use crate::gguf::Gguf;

/// Bytes in front of the weights: one page.
pub(super) const HEAD_BYTES: usize = 4096;
const MAGIC: &[u8; 8] = b"fulmarw1";
/// Bytes at both ends of a tensor that go into the fingerprint.
const EDGE_BYTES: usize = 4096;

/// What a stored copy has to be a copy of.
pub(super) struct Stored {
    path: PathBuf,
    /// The head, without the sum at its end.
    head: Vec<u8>,
    bytes: usize,
}

impl Stored {
    /// The copy of a model's `bytes` of regrouped weights in `folder`.
    pub(super) fn new(folder: &Path, gguf: &Gguf, isa: Isa, bytes: usize) -> Self {
        let fingerprint = fingerprint(gguf);
        let name = format!("{fingerprint:016x}-{}.weights", isa.name());
        let mut head = MAGIC.to_vec();
        head.extend(LAYOUT_VERSION.to_le_bytes());
        head.extend(fingerprint.to_le_bytes());
        head.extend((bytes as u64).to_le_bytes());
        head.extend(isa.name().as_bytes());
        Self { path: folder.join(name), head, bytes }
    }

    /// Maps the copy, if it is there and whole. `runs` are the lengths of its matrices.
    pub(super) fn open(&self, team: &Team, runs: &[usize]) -> Option<MappedFile> {
        let map = MappedFile::open(&File::open(&self.path).ok()?).ok()?;
        if map.len() != HEAD_BYTES + self.bytes || !map.starts_with(&self.head) {
            return None;
        }
        map.advise_huge_pages();
        map.prefetch();
        let at = HEAD_BYTES - 8;
        let found = u64::from_le_bytes(*map[at..].first_chunk()?);
        let (mut all, mut rest) = (Sum::default(), &map[HEAD_BYTES..]);
        for run in runs {
            let (bytes, after) = rest.split_at_checked(*run)?;
            all.add(team, bytes);
            rest = after;
        }
        (all.value() == found).then_some(map)
    }

    /// Starts a new copy, to be filled from the first matrix on.
    pub(super) fn create(&self) -> io::Result<NewCopy<'_>> {
        if let Some(folder) = self.path.parent() {
            fs::create_dir_all(folder)?;
        }
        let part = self.path.with_extension(format!("{}.part", std::process::id()));
        let mut options = File::options();
        options.read(true).write(true).create(true).truncate(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        let mut file = options.open(&part)?;
        file.write_all(&vec![0; HEAD_BYTES])?;
        Ok(NewCopy { stored: self, part, file, sum: Sum::default() })
    }
}

/// A copy that is being written. Dropped without [`NewCopy::finish`], it is removed.
pub(super) struct NewCopy<'a> {
    stored: &'a Stored,
    part: PathBuf,
    file: File,
    sum: Sum,
}

impl NewCopy<'_> {
    /// Appends a matrix.
    pub(super) fn write(&mut self, team: &Team, bytes: &[u8]) -> io::Result<()> {
        self.sum.add(team, bytes);
        self.file.write_all(bytes)
    }

    /// Writes the head and gives the file its name.
    pub(super) fn finish(mut self) -> io::Result<MappedFile> {
        let mut head = self.stored.head.clone();
        head.resize(HEAD_BYTES - 8, 0);
        head.extend(self.sum.value().to_le_bytes());
        io::Seek::seek(&mut self.file, io::SeekFrom::Start(0))?;
        self.file.write_all(&head)?;
        fs::rename(&self.part, &self.stored.path)?;
        let map = MappedFile::open(&self.file)?;
        if map.len() != HEAD_BYTES + self.stored.bytes {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        map.advise_huge_pages();
        Ok(map)
    }
}

impl Drop for NewCopy<'_> {
    fn drop(&mut self) {
        // Gone already where it was finished.
        let _ = fs::remove_file(&self.part);
    }
}

fn fingerprint(gguf: &Gguf) -> u64 {
    let alone = Team::new(1, fulmar_kernels::team::Pinning::None);
    let mut all = Sum::default();
    all.add(&alone, &gguf.size_bytes().to_le_bytes());
    for info in gguf.tensors() {
        all.add(&alone, format!("{} {} {:?}\n", info.name, info.ty, info.shape).as_bytes());
        if let Some(tensor) = gguf.tensor(&info.name) {
            let data = tensor.data;
            all.add(&alone, &data[..data.len().min(EDGE_BYTES)]);
            all.add(&alone, &data[data.len().saturating_sub(EDGE_BYTES)..]);
        }
    }
    all.value()
}
