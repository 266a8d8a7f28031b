//! Bundles: what a device would fetch from its control plane, in one file that a person can carry.
//!
//! `fulmar-bundle 1\n`, the header's length (8 bytes, little-endian), the header as JSON, and the
//! blobs one after another in the header's order.
//!
//! A bundle needs no trust of its own. Its metadata are the files of both TUF repositories, signed
//! by the owner and by the director for one device each, and go through the same client as from
//! the network: an older bundle never undoes a newer one, because versions never go back. Its
//! blobs are known by their digests.
//!
//! Deliberately absent: compression (weights do not compress), and the device's private matters.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{BufReader, Read, Write};
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

use crate::Digest;
use crate::blobs::{Begin, BlobError, Blobs, Expected};
use crate::trust::{Fetched, Want};

const MAGIC: &[u8] = b"fulmar-bundle 1\n";
/// Longest header, in bytes.
const HEADER_BYTES_MAX: u64 = 256 << 20;
/// Most blobs in one bundle.
const BLOBS_MAX: usize = 100_000;

/// Why a bundle could not be written or read.
#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    /// The file.
    #[error("{op} the bundle {path}: {source}")]
    File {
        /// What was tried.
        op: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// It is something else.
    #[error("read the bundle {path}: {reason}")]
    Form {
        /// The file.
        path: PathBuf,
        /// What was found, what was expected.
        reason: String,
    },
    /// It is for others.
    #[error("read the bundle {path}: it is for {found}, this device is {expected}")]
    OtherDevice {
        /// The file.
        path: PathBuf,
        /// This device.
        expected: String,
        /// Whom it is for.
        found: String,
    },
    /// A blob.
    #[error("carry a blob: {0}")]
    Blobs(#[from] BlobError),
}

/// Metadata files by name, as base64.
type Files = BTreeMap<String, String>;

/// What a bundle holds.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Header {
    /// When it was made, seconds since 1970; for people.
    pub created_at_s: i64,
    /// The registry repository's files.
    registry: Files,
    /// The director repository's files for each device.
    director: BTreeMap<String, Files>,
    /// The owner's policy, as base64.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    policy: Option<String>,
    /// Digests and lengths of the blobs, in the file's order.
    blobs: Vec<(Digest, u64)>,
}

impl Header {
    /// An empty bundle.
    #[must_use]
    pub fn new(created_at_s: i64) -> Self {
        Self { created_at_s, ..Self::default() }
    }

    /// Adds a file of the registry repository.
    pub fn add_registry(&mut self, name: &str, bytes: &[u8]) {
        self.registry.insert(name.to_owned(), STANDARD.encode(bytes));
    }

    /// Adds a file of one device's director repository.
    pub fn add_director(&mut self, device_id: &str, name: &str, bytes: &[u8]) {
        let files = self.director.entry(device_id.to_owned()).or_default();
        files.insert(name.to_owned(), STANDARD.encode(bytes));
    }

    /// Sets the owner's policy: the bytes that the registry repository names.
    pub fn set_policy(&mut self, bytes: &[u8]) {
        self.policy = Some(STANDARD.encode(bytes));
    }

    /// The owner's policy, for the trust client to hold against what the registry names.
    #[must_use]
    pub fn policy(&self) -> Option<Vec<u8>> {
        STANDARD.decode(self.policy.as_ref()?).ok()
    }

    /// Adds a blob, once.
    pub fn add_blob(&mut self, digest: Digest, size_bytes: u64) {
        if !self.blobs.iter().any(|(known, _)| *known == digest) {
            self.blobs.push((digest, size_bytes));
        }
    }

    /// The devices that it is for.
    pub fn devices(&self) -> impl Iterator<Item = &str> {
        self.director.keys().map(String::as_str)
    }

    /// Digests and lengths of the blobs.
    #[must_use]
    pub fn blobs(&self) -> &[(Digest, u64)] {
        &self.blobs
    }

    /// What a refresh of the registry repository wants.
    #[must_use]
    pub fn registry_file(&self, want: &Want) -> Fetched {
        found(Some(&self.registry), want)
    }

    /// What a refresh of a device's director repository wants.
    #[must_use]
    pub fn director_file(&self, device_id: &str, want: &Want) -> Fetched {
        found(self.director.get(device_id), want)
    }
}

fn found(files: Option<&Files>, want: &Want) -> Fetched {
    let text = files.and_then(|files| files.get(&want.file_name));
    match text.and_then(|text| STANDARD.decode(text).ok()) {
        Some(bytes) => Fetched::Found(bytes),
        None => Fetched::NotFound,
    }
}

/// Writes a bundle: complete and synced under its name, or not at all. Every blob is verified on
/// the way out. Blocks.
///
/// # Errors
/// [`BundleError`].
pub fn write(path: &Path, header: &Header, blobs: &Blobs) -> Result<(), BundleError> {
    let draft = path.with_extension("unfinished");
    let failed = |op| {
        let path = path.to_owned();
        move |source| BundleError::File { op, path: path.clone(), source }
    };
    let mut file = File::create(&draft).map_err(failed("create"))?;
    let json = serde_json::to_vec(header)
        .map_err(|error| failed("write")(std::io::Error::other(error)))?;
    let length = (json.len() as u64).to_le_bytes();
    for part in [MAGIC, &length, &json] {
        file.write_all(part).map_err(failed("write"))?;
    }
    for (digest, size_bytes) in &header.blobs {
        let mut blob = blobs.open_verified(digest)?;
        let copied = std::io::copy(&mut blob.file, &mut file).map_err(failed("write"))?;
        if copied != *size_bytes {
            let reason = format!("blob {digest} has {copied} bytes, expected {size_bytes}");
            return Err(BundleError::Form { path: path.to_owned(), reason });
        }
    }
    file.sync_all().map_err(failed("sync"))?;
    std::fs::rename(&draft, path).map_err(failed("rename"))?;
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(failed("sync"))
}

/// A bundle whose header was read.
#[derive(Debug)]
pub struct Bundle {
    path: PathBuf,
    header: Header,
    blobs: BufReader<File>,
}

impl Bundle {
    /// Opens a bundle and reads its header.
    ///
    /// # Errors
    /// [`BundleError`].
    pub fn open(path: &Path) -> Result<Self, BundleError> {
        let failed = |source| BundleError::File { op: "read", path: path.to_owned(), source };
        let form = |reason: String| BundleError::Form { path: path.to_owned(), reason };
        let mut file = BufReader::with_capacity(1 << 20, File::open(path).map_err(failed)?);
        let mut start = [0; MAGIC.len() + 8];
        file.read_exact(&mut start).map_err(failed)?;
        let (magic, length) = start.split_at(MAGIC.len());
        if magic != MAGIC {
            return Err(form("it does not begin as a bundle of this program's version".into()));
        }
        let length = length.iter().rev().fold(0_u64, |sum, byte| (sum << 8) | u64::from(*byte));
        if length > HEADER_BYTES_MAX {
            return Err(form(format!("a header of {length} bytes, at most {HEADER_BYTES_MAX}")));
        }
        let mut json = Vec::new();
        file.by_ref().take(length).read_to_end(&mut json).map_err(failed)?;
        if json.len() as u64 != length {
            return Err(form("it is cut off in its header: copy it again".into()));
        }
        let header: Header =
            serde_json::from_slice(&json).map_err(|error| form(error.to_string()))?;
        if header.blobs.len() > BLOBS_MAX {
            return Err(form(format!("{} blobs, at most {BLOBS_MAX}", header.blobs.len())));
        }
        Ok(Self { path: path.to_owned(), header, blobs: file })
    }

    /// What it holds.
    #[must_use]
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// Refuses where it is for other devices only.
    ///
    /// # Errors
    /// [`BundleError::OtherDevice`].
    pub fn check_device(&self, device_id: &str) -> Result<(), BundleError> {
        if self.header.director.contains_key(device_id) {
            return Ok(());
        }
        let found: Vec<&str> = self.header.devices().take(20).collect();
        let found = if found.is_empty() { "nobody".to_owned() } else { found.join(", ") };
        let (path, expected) = (self.path.clone(), device_id.to_owned());
        Err(BundleError::OtherDevice { path, expected, found })
    }

    /// Copies the wanted blobs into a store; each is verified on the way in, the others are read
    /// over. Returns the bytes that came in. Blocks.
    ///
    /// # Errors
    /// [`BundleError`]; what came in whole stays.
    pub fn take_blobs(
        mut self,
        into: &Blobs,
        wanted: &BTreeSet<Digest>,
    ) -> Result<u64, BundleError> {
        let mut came = 0;
        for (digest, size_bytes) in self.header.blobs.clone() {
            let expected = Expected { digest, size_bytes, chunks: Vec::new() };
            let begun = match wanted.contains(&digest) {
                true => into.begin(&expected)?,
                false => Begin::Present,
            };
            match begun {
                Begin::Present => self.copy(size_bytes, |_| Ok(()))?,
                Begin::Incoming(mut incoming) => {
                    incoming.restart()?;
                    self.copy(size_bytes, |piece| incoming.write(piece))?;
                    incoming.commit()?;
                    came += size_bytes;
                }
            }
        }
        Ok(came)
    }

    /// Reads exactly that many bytes on.
    fn copy(
        &mut self,
        size_bytes: u64,
        mut to: impl FnMut(&[u8]) -> Result<(), BlobError>,
    ) -> Result<(), BundleError> {
        let mut left = size_bytes;
        let mut buffer = vec![0; 1 << 20];
        while left > 0 {
            let most = left.min(buffer.len() as u64) as usize;
            let failed = |source| BundleError::File { op: "read", path: self.path.clone(), source };
            let read = self.blobs.read(&mut buffer[..most]).map_err(failed)?;
            if read == 0 {
                let reason = format!("it is cut off, {left} bytes of a blob are missing");
                return Err(BundleError::Form { path: self.path.clone(), reason });
            }
            to(&buffer[..read])?;
            left -= read as u64;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blobs() -> (tempfile::TempDir, Blobs) {
        let dir = tempfile::tempdir().unwrap();
        let blobs = Blobs::open(dir.path(), 1 << 30).unwrap();
        (dir, blobs)
    }

    fn written(dir: &Path) -> (PathBuf, Digest, Digest) {
        let (_from_dir, from) = blobs();
        let (one, two) = (from.put(b"one blob").unwrap(), from.put(b"another").unwrap());
        let mut header = Header::new(5);
        header.add_registry("1.root.json", b"{}");
        header.add_director("d-1", "targets.json", b"[]");
        header.add_blob(one, 8);
        header.add_blob(one, 8);
        header.add_blob(two, 7);
        let path = dir.join("a.bundle");
        write(&path, &header, &from).unwrap();
        (path, one, two)
    }

    fn want(file_name: &str) -> Want {
        Want { file_name: file_name.to_owned(), length_max: 100 }
    }

    #[test]
    fn a_bundle_carries_metadata_and_the_wanted_blobs() {
        let (dir, into) = blobs();
        let (path, one, two) = written(dir.path());
        let bundle = Bundle::open(&path).unwrap();
        bundle.check_device("d-1").unwrap();
        assert!(matches!(bundle.check_device("d-2"), Err(BundleError::OtherDevice { .. })));
        let header = bundle.header().clone();
        assert_eq!(header.registry_file(&want("1.root.json")), Fetched::Found(b"{}".to_vec()));
        assert_eq!(header.director_file("d-1", &want("x.json")), Fetched::NotFound);
        assert_eq!(header.director_file("d-2", &want("targets.json")), Fetched::NotFound);
        assert_eq!(bundle.take_blobs(&into, &[two].into()).unwrap(), 7);
        into.open_verified(&two).unwrap();
        assert!(!into.contains(&one, 8));
    }

    #[test]
    fn a_cut_or_changed_bundle_brings_no_wrong_blob() {
        let (dir, into) = blobs();
        let (path, one, two) = written(dir.path());
        let whole = std::fs::read(&path).unwrap();
        let wanted = BTreeSet::from([one, two]);
        for len in 0..whole.len() {
            std::fs::write(&path, &whole[..len]).unwrap();
            let taken = Bundle::open(&path).and_then(|b| b.take_blobs(&into, &wanted));
            assert!(taken.is_err(), "cut to {len}");
        }
        for at in whole.len() - 15..whole.len() {
            into.remove(&one).unwrap();
            into.remove(&two).unwrap();
            let mut changed = whole.clone();
            changed[at] ^= 1;
            std::fs::write(&path, &changed).unwrap();
            let taken = Bundle::open(&path).and_then(|b| b.take_blobs(&into, &wanted));
            assert!(matches!(taken, Err(BundleError::Blobs(BlobError::Mismatch { .. }))));
        }
    }
}
