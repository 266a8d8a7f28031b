//! Bundles: what a device would fetch from its control plane, in one file that a person can carry.
//!
//! `fulmar-bundle 2\n`, the index's length (8 bytes, little-endian), the index as JSON, the
//! signature's length and the signature (JSON too) over the index's bytes by the director's key,
//! and the blobs one after another in the index's order. Nothing follows the last one.
//!
//! The signature finds a bundle out at once that somebody changed on its way: the index has the
//! digest and length of every blob. What it holds needs no trust beyond that: its metadata are the
//! files of both TUF repositories, signed by the owner and by the director for one device each, and
//! go through the same client as from the network.
//!
//! An older bundle never undoes a newer one: versions of metadata never go back, and neither does
//! the bundle's own serial number.
//!
//! Deliberately absent: compression (weights do not compress), and the device's private matters.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

use crate::Digest;
use crate::blobs::{Begin, BlobError, Blobs, Expected};
use crate::trust::{Fetched, KeyError, Repo, SigningKey, TrustError, Trusted, Want};

const MAGIC: &[u8] = b"fulmar-bundle 2\n";
/// Longest signature, in bytes.
const SIGNATURE_BYTES_MAX: u64 = 16 << 10;
/// Longest header, in bytes.
const HEADER_BYTES_MAX: u64 = 256 << 20;
/// Devices named in one refusal.
const DEVICES_SHOWN: usize = 20;
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
    #[error(
        "read the bundle {path}: it is for {found}; this device is {expected}: have the \
         control plane write one for it"
    )]
    OtherDevice {
        /// The file.
        path: PathBuf,
        /// This device.
        expected: String,
        /// Whom it is for.
        found: String,
    },
    /// It was changed on its way, or somebody else made it.
    #[error(
        "read the bundle {path}: its index is not signed by the director that this device trusts \
         (key {found}, expected one of {expected}): it was changed on its way, or comes from another \
         fleet; have the control plane write it again"
    )]
    Signature {
        /// The file.
        path: PathBuf,
        /// The key that it says signed it.
        found: String,
        /// The keys that may.
        expected: String,
    },
    /// A blob in it is not the one that its index names.
    #[error("read the bundle {path}: blob {digest} in it was changed on its way: copy it again")]
    Changed {
        /// The file.
        path: PathBuf,
        /// Which blob.
        digest: Digest,
    },
    /// An older one than this device has taken.
    #[error(
        "read the bundle {path}: its serial number is {found}, this device has taken {seen}: have \
         the control plane write a newer one"
    )]
    Older {
        /// The file.
        path: PathBuf,
        /// The newest taken.
        seen: u64,
        /// Its own.
        found: u64,
    },
    /// The index could not be signed.
    #[error("sign the bundle: {0}")]
    Sign(#[from] KeyError),
    /// The director's roots in it do not follow from the trusted one.
    #[error("read the bundle's director roots: {0}")]
    Trust(#[from] Box<TrustError>),
    /// A blob.
    #[error("carry a blob: {0}")]
    Blobs(#[from] BlobError),
}

/// What the control plane made durable of a device's reports, on its way back.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ack {
    /// All reports up to and with this number are durable.
    pub acked_through: u64,
    /// Entries of the device's audit log that the co-signature covers.
    #[serde(default)]
    pub audit_entries: u64,
    /// The control plane's co-signature of the log's head, hex; empty where there is none.
    #[serde(default)]
    pub audit_cosignature: String,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Signature {
    keyid: String,
    sig: String,
}

/// Metadata files by name, as base64.
type Files = BTreeMap<String, String>;

/// What a bundle holds.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Header {
    /// When it was made, seconds since 1970; for people.
    pub created_at_s: i64,
    /// Counts up with every bundle of a control plane.
    pub serial: u64,
    /// The groups of devices that it was made for, and who was in them then; for people.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    groups: BTreeMap<String, BTreeSet<String>>,
    /// The registry repository's files.
    registry: Files,
    /// The director repository's files for each device.
    director: BTreeMap<String, Files>,
    /// What became of the devices' reports.
    #[serde(default)]
    acks: BTreeMap<String, Ack>,
    /// The owner's policy, as base64.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    policy: Option<String>,
    /// Digests and lengths of the blobs, in the file's order.
    blobs: Vec<(Digest, u64)>,
}

impl Header {
    /// An empty bundle.
    #[must_use]
    pub fn new(created_at_s: i64, serial: u64) -> Self {
        Self { created_at_s, serial, ..Self::default() }
    }

    /// Adds a group that it was made for, with its members.
    pub fn add_group(&mut self, name: &str, devices: &[String]) {
        self.groups.insert(name.to_owned(), devices.iter().cloned().collect());
    }

    /// The groups that it was made for.
    pub fn groups(&self) -> impl Iterator<Item = &str> {
        self.groups.keys().map(String::as_str)
    }

    /// Whom it is for, in words: groups first, then the devices that are in none of them.
    #[must_use]
    pub fn addressees(&self) -> String {
        let listed = |devices: Vec<&str>| {
            let more = devices.len().saturating_sub(DEVICES_SHOWN);
            let shown = devices.into_iter().take(DEVICES_SHOWN).collect::<Vec<_>>().join(", ");
            if more > 0 { format!("{shown} and {more} more") } else { shown }
        };
        let mut parts: Vec<String> = self
            .groups
            .iter()
            .map(|(name, devices)| {
                format!("group {name} ({})", listed(devices.iter().map(String::as_str).collect()))
            })
            .collect();
        let grouped = |device: &str| self.groups.values().any(|devices| devices.contains(device));
        let alone: Vec<&str> = self.devices().filter(|device| !grouped(device)).collect();
        if !alone.is_empty() {
            parts.push(listed(alone));
        }
        let words = if parts.is_empty() { "nobody".to_owned() } else { parts.join(", ") };
        // Read before the signature is: no sequence of a terminal may come of it.
        words.replace(char::is_control, "?")
    }

    /// Adds what became of a device's reports.
    pub fn add_ack(&mut self, device_id: &str, ack: Ack) {
        self.acks.insert(device_id.to_owned(), ack);
    }

    /// What became of a device's reports.
    #[must_use]
    pub fn ack(&self, device_id: &str) -> Option<&Ack> {
        self.acks.get(device_id)
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

/// The words that are signed.
fn signed_words(index: &[u8]) -> Vec<u8> {
    [MAGIC, index].concat()
}

/// Writes a bundle, signed by the director's `key`: complete and synced under its name, or not at
/// all. Every blob is verified on the way out. Blocks.
///
/// # Errors
/// [`BundleError`].
pub fn write(
    path: &Path,
    header: &Header,
    blobs: &Blobs,
    key: &dyn SigningKey,
) -> Result<(), BundleError> {
    let draft = path.with_extension("unfinished");
    let failed = |op| {
        let path = path.to_owned();
        move |source| BundleError::File { op, path: path.clone(), source }
    };
    let mut file = File::create(&draft).map_err(failed("create"))?;
    let json = serde_json::to_vec(header)
        .map_err(|error| failed("write")(std::io::Error::other(error)))?;
    let sig = hex::encode(key.sign(&signed_words(&json))?);
    let signature = serde_json::to_vec(&Signature { keyid: key.key_id(), sig })
        .map_err(|error| failed("write")(std::io::Error::other(error)))?;
    let lengths = [json.len(), signature.len()].map(|length| (length as u64).to_le_bytes());
    for part in [MAGIC, &lengths[0], &json, &lengths[1], &signature] {
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
    index: Vec<u8>,
    signature: Signature,
    blobs: BufReader<File>,
    /// Where the first blob begins.
    blobs_at: u64,
}

impl Bundle {
    /// Opens a bundle and reads its header.
    ///
    /// # Errors
    /// [`BundleError`].
    pub fn open(path: &Path) -> Result<Self, BundleError> {
        let form = |reason: String| BundleError::Form { path: path.to_owned(), reason };
        let failed = |source: std::io::Error| match source.kind() {
            std::io::ErrorKind::UnexpectedEof => {
                form("it ends before its index: it is no bundle, or was cut off".to_owned())
            }
            _ => BundleError::File { op: "read", path: path.to_owned(), source },
        };
        let mut file = BufReader::with_capacity(1 << 20, File::open(path).map_err(failed)?);
        let mut magic = [0; MAGIC.len()];
        file.read_exact(&mut magic).map_err(failed)?;
        if magic != MAGIC {
            return Err(form("it does not begin as a bundle of this program's version".into()));
        }
        let index = part(&mut file, HEADER_BYTES_MAX).map_err(failed)?.map_err(form)?;
        let signature = part(&mut file, SIGNATURE_BYTES_MAX).map_err(failed)?.map_err(form)?;
        let blobs_at = (MAGIC.len() + 16 + index.len() + signature.len()) as u64;
        let header: Header =
            serde_json::from_slice(&index).map_err(|error| form(error.to_string()))?;
        let signature =
            serde_json::from_slice(&signature).map_err(|error| form(error.to_string()))?;
        if header.blobs.len() > BLOBS_MAX {
            return Err(form(format!("{} blobs, at most {BLOBS_MAX}", header.blobs.len())));
        }
        let sizes = header.blobs.iter().map(|(_, size)| *size);
        let expected = sizes.fold(blobs_at, u64::saturating_add);
        let found = file.get_ref().metadata().map_err(failed)?.len();
        if found != expected {
            return Err(form(format!("it has {found} bytes, expected {expected}: copy it again")));
        }
        Ok(Self { path: path.to_owned(), header, index, signature, blobs: file, blobs_at })
    }

    /// Refuses a bundle that the director did not sign. `director` is what this device trusts; newer
    /// roots in the bundle are followed, which changes nothing that is stored.
    ///
    /// # Errors
    /// [`BundleError::Signature`], [`BundleError::Trust`].
    pub fn check_signature(
        &self,
        director: Trusted,
        device_id: &str,
        now_s: i64,
    ) -> Result<(), BundleError> {
        debug_assert_eq!(director.repo(), Repo::Director, "the director signs bundles");
        let newest = director
            .follow_roots(now_s, |want| self.header.director_file(device_id, want))
            .map_err(Box::new)?;
        let signature = hex::decode(&self.signature.sig).unwrap_or_default();
        let words = signed_words(&self.index);
        if newest.timestamp_key_signed(&self.signature.keyid, &words, &signature) {
            return Ok(());
        }
        let short = |id: &str| id.chars().take(12).collect::<String>();
        let roles = &newest.root().roles;
        let ids = roles.get("timestamp").map(|rule| rule.keyids.clone()).unwrap_or_default();
        Err(BundleError::Signature {
            path: self.path.clone(),
            found: short(&self.signature.keyid),
            expected: ids.iter().map(|id| short(id)).collect::<Vec<_>>().join(", "),
        })
    }

    /// Refuses a bundle that is older than one that was taken; the same one may come again.
    ///
    /// # Errors
    /// [`BundleError::Older`].
    pub fn check_serial(&self, seen: u64) -> Result<(), BundleError> {
        let found = self.header.serial;
        if found >= seen {
            return Ok(());
        }
        Err(BundleError::Older { path: self.path.clone(), seen, found })
    }

    /// Reads every blob against its digest, before anything of the bundle is taken. Blocks.
    ///
    /// # Errors
    /// [`BundleError::Changed`].
    pub fn check_blobs(&mut self) -> Result<(), BundleError> {
        self.rewind()?;
        for (digest, size_bytes) in self.header.blobs.clone() {
            let mut context = ring::digest::Context::new(&ring::digest::SHA256);
            self.copy(size_bytes, |piece| {
                context.update(piece);
                Ok(())
            })?;
            if context.finish().as_ref() != digest.as_bytes() {
                return Err(BundleError::Changed { path: self.path.clone(), digest });
            }
        }
        Ok(())
    }

    fn rewind(&mut self) -> Result<(), BundleError> {
        let at = SeekFrom::Start(self.blobs_at);
        let failed = |source| BundleError::File { op: "read", path: self.path.clone(), source };
        self.blobs.seek(at).map(drop).map_err(failed)
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
        let found = self.header.addressees();
        let (path, expected) = (self.path.clone(), device_id.to_owned());
        Err(BundleError::OtherDevice { path, expected, found })
    }

    /// Copies the wanted blobs into a store; each is verified on the way in, the others are read
    /// over. Returns the bytes that came in. Blocks.
    ///
    /// # Errors
    /// [`BundleError`]; what came in whole stays.
    pub fn take_blobs(
        &mut self,
        into: &Blobs,
        wanted: &BTreeSet<Digest>,
    ) -> Result<u64, BundleError> {
        self.rewind()?;
        let mut came = 0;
        for (digest, size_bytes) in self.header.blobs.clone() {
            let expected = Expected { digest, size_bytes, chunks: Vec::new() };
            let begun = match wanted.contains(&digest) {
                true => into.begin(&expected)?,
                false => Begin::Present,
            };
            match begun {
                Begin::Present => self.skip(size_bytes)?,
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

    fn skip(&mut self, size_bytes: u64) -> Result<(), BundleError> {
        let on = i64::try_from(size_bytes).unwrap_or(i64::MAX);
        let failed = |source| BundleError::File { op: "read", path: self.path.clone(), source };
        self.blobs.seek_relative(on).map_err(failed)
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

/// One part with its length before it; inside, what is wrong with its form.
fn part(
    file: &mut BufReader<File>,
    length_max: u64,
) -> Result<Result<Vec<u8>, String>, std::io::Error> {
    let mut length = [0; 8];
    file.read_exact(&mut length)?;
    let length = u64::from_le_bytes(length);
    if length > length_max {
        return Ok(Err(format!("an index of {length} bytes, at most {length_max}")));
    }
    let mut bytes = Vec::new();
    file.by_ref().take(length).read_to_end(&mut bytes)?;
    Ok(match bytes.len() as u64 == length {
        true => Ok(bytes),
        false => Err("it is cut off in its index: copy it again".to_owned()),
    })
}

#[cfg(test)]
mod tests;
