//! Layers that are tar archives (`application/vnd.cncf.model.weight.v1.tar`): which files are in one,
//! and the one of weights as a blob of its own.
//!
//! Read are POSIX ustar archives with pax headers, and GNU's long names. Of an entry's path nothing
//! but the file's name is used, and nothing is written but a blob under its digest: no path in an
//! archive leads anywhere. What an archive names is never longer than the archive.
//!
//! Deliberately absent: compression, sparse files, links, and writing archives.

use std::io::{Read, Seek, SeekFrom};

use super::remote::{Packing, RemoteFile, Resolved};
use super::{ImportError, file_name, remove_unless_installed};
use crate::Registry;
use crate::manifest::ManifestFile;

/// Bytes of a header, and what lengths are padded to.
const BLOCK: u64 = 512;
/// Entries of one archive at most.
const ENTRIES_MAX: usize = 1024;
/// Longest extended header and longest name, in bytes.
const HEADER_BYTES_MAX: u64 = 64 << 10;

/// A file in an archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    /// As the archive says it.
    pub(super) path: String,
    /// Where its bytes begin in the archive.
    pub(super) offset: u64,
    /// How many they are.
    pub(super) size_bytes: u64,
}

impl Entry {
    fn is_gguf(&self) -> bool {
        self.path.to_lowercase().ends_with(".gguf")
    }
}

/// Why an archive cannot be read.
#[derive(Debug, thiserror::Error)]
pub(super) enum TarError {
    /// The system.
    #[error("{0}")]
    Io(#[from] std::io::Error),
    /// No header, or a damaged one.
    #[error("at byte {offset}: {reason}")]
    Header {
        /// Where.
        offset: u64,
        /// What is wrong.
        reason: &'static str,
    },
    /// Too long to be looked through.
    #[error("it has more than {ENTRIES_MAX} entries")]
    TooMany,
}

/// The regular files of an archive, in order.
pub(super) fn files(archive: &mut (impl Read + Seek)) -> Result<Vec<Entry>, TarError> {
    let len = archive.seek(SeekFrom::End(0))?;
    let (mut found, mut at) = (Vec::new(), 0);
    // What extended headers say of the entry that follows them.
    let (mut path, mut size): (Option<String>, Option<u64>) = (None, None);
    for _ in 0..ENTRIES_MAX {
        if at == len {
            return Ok(found);
        }
        let wrong = |reason| TarError::Header { offset: at, reason };
        let Some(header) = header(archive, at, len)? else { return Ok(found) };
        let data = at + BLOCK;
        let extends = matches!(header.kind, b'x' | b'g' | b'L' | b'K');
        let size_bytes = if extends { header.size } else { size.take().unwrap_or(header.size) };
        if size_bytes > len - data {
            return Err(wrong("the entry is longer than the archive"));
        }
        match header.kind {
            b'x' | b'L' => {
                if size_bytes > HEADER_BYTES_MAX {
                    return Err(wrong("an extended header is longer than 64 KiB"));
                }
                archive.seek(SeekFrom::Start(data))?;
                let mut bytes = Vec::new();
                archive.by_ref().take(size_bytes).read_to_end(&mut bytes)?;
                if header.kind == b'L' {
                    path = Some(text(&bytes));
                } else {
                    let said = pax(&bytes).ok_or_else(|| wrong("a pax header cannot be read"))?;
                    path = said.0.or(path);
                    size = said.1.or(size);
                }
            }
            b'0' | b'7' | 0 => {
                let path = path.take().unwrap_or(header.path);
                found.push(Entry { path, offset: data, size_bytes });
            }
            // Folders, links, devices; headers that say nothing of paths.
            b'g' | b'K' => {}
            _ => path = None,
        }
        // The last entry need not be padded.
        at = (data + size_bytes.next_multiple_of(BLOCK)).min(len);
    }
    Err(TarError::TooMany)
}

struct Header {
    path: String,
    size: u64,
    kind: u8,
}

/// The header at a place; nothing where the archive ends.
fn header(archive: &mut (impl Read + Seek), at: u64, len: u64) -> Result<Option<Header>, TarError> {
    let wrong = |reason| TarError::Header { offset: at, reason };
    if len - at < BLOCK {
        return Err(wrong("it ends in a header"));
    }
    let mut block = [0_u8; BLOCK as usize];
    archive.seek(SeekFrom::Start(at))?;
    archive.read_exact(&mut block)?;
    if block.iter().all(|byte| *byte == 0) {
        return Ok(None);
    }
    // The sum of all bytes, with the sum's own field as blanks.
    let sum: u64 = block[..148].iter().chain(&block[156..]).map(|b| u64::from(*b)).sum();
    if number(&block[148..156]) != Some(sum + 8 * 32) {
        return Err(wrong("no tar header"));
    }
    let size = number(&block[124..136]).ok_or_else(|| wrong("the size is no number"))?;
    let (name, prefix) = (text(&block[..100]), text(&block[345..500]));
    // GNU's older format has other things where ustar has the path's beginning.
    let is_ustar = block[257..263] == *b"ustar\0";
    let path = if is_ustar && !prefix.is_empty() { format!("{prefix}/{name}") } else { name };
    Ok(Some(Header { path, size, kind: block[156] }))
}

/// Octal digits, or GNU's big-endian bytes behind a byte of 0x80.
fn number(field: &[u8]) -> Option<u64> {
    if let Some((0x80, bytes)) = field.split_first() {
        let fits = bytes.len() < 8 || bytes[..bytes.len() - 8].iter().all(|byte| *byte == 0);
        let low = &bytes[bytes.len().saturating_sub(8)..];
        return fits.then(|| low.iter().fold(0, |sum, byte| (sum << 8) | u64::from(*byte)));
    }
    let text = std::str::from_utf8(field).ok()?.trim_matches(['\0', ' ']);
    let digits = text.bytes().all(|byte| (b'0'..=b'7').contains(&byte));
    if text.is_empty() { Some(0) } else { digits.then(|| u64::from_str_radix(text, 8).ok())? }
}

/// Up to the first NUL.
fn text(field: &[u8]) -> String {
    let end = field.iter().position(|byte| *byte == 0).unwrap_or(field.len());
    String::from_utf8_lossy(&field[..end]).into_owned()
}

/// `LENGTH KEY=VALUE\n`, again and again: the path and the size, where they are said.
fn pax(mut bytes: &[u8]) -> Option<(Option<String>, Option<u64>)> {
    let mut said = (None, None);
    while !bytes.is_empty() {
        let blank = bytes.iter().take(8).position(|byte| *byte == b' ')?;
        let len: usize = std::str::from_utf8(&bytes[..blank]).ok()?.parse().ok()?;
        let record = bytes.get(blank + 1..len)?.strip_suffix(b"\n")?;
        let equals = record.iter().position(|byte| *byte == b'=')?;
        let (key, value) = (&record[..equals], text(&record[equals + 1..]));
        match key {
            b"path" => said.0 = Some(value),
            b"size" => said.1 = Some(value.parse().ok()?),
            // A sparse file's bytes are not those in the archive.
            _ if key.starts_with(b"GNU.sparse") => return None,
            _ => {}
        }
        bytes = &bytes[len..];
    }
    Some(said)
}

/// The weights of a model whose layer is an archive, as a blob of their own: exactly one GGUF file
/// may be in it; other files are passed over. The archive has been verified as a blob, and leaves.
/// A model that is packed in nothing comes back as it is. Blocks.
///
/// # Errors
/// [`ImportError::Packed`] with what is in the archive; [`ImportError::Blobs`].
pub fn unpack(registry: &Registry, mut resolved: Resolved) -> Result<Resolved, ImportError> {
    for at in 0..resolved.files.len() {
        if resolved.files[at].packing == Packing::Tar {
            let (path, file) = unpack_one(registry, &resolved.files[at])?;
            let layer = std::mem::replace(&mut resolved.files[at], file).digest;
            resolved.bundles.iter_mut().for_each(|b| b.weights_path = Some(path.clone()));
            remove_unless_installed(registry, &layer)?;
        }
    }
    Ok(resolved)
}

/// The path in the archive, and the file.
fn unpack_one(
    registry: &Registry,
    layer: &RemoteFile,
) -> Result<(String, RemoteFile), ImportError> {
    let packed = |reason: String| ImportError::Packed { layer: layer.digest, reason };
    let mut archive = registry.blobs().open_verified(&layer.digest)?.file;
    let entries = files(&mut archive).map_err(|error| packed(error.to_string()))?;
    let gguf: Vec<&Entry> = entries.iter().filter(|entry| entry.is_gguf()).collect();
    let [entry] = gguf[..] else {
        let names: Vec<&str> = entries.iter().take(16).map(|e| e.path.as_str()).collect();
        let count = gguf.len();
        return Err(packed(format!("{count} GGUF files are in it, expected one; {names:?}")));
    };
    let (path, kind) = (file_name(entry.path.as_ref()), layer.media_type.as_str());
    let failed = |source| packed(format!("read {:?}: {source}", entry.path));
    archive.seek(SeekFrom::Start(entry.offset)).map_err(failed)?;
    let mut bytes = archive.by_ref().take(entry.size_bytes);
    let described =
        ManifestFile::describe(&mut bytes, Vec::new(), layer.role, &path, kind).map_err(failed)?;
    archive.seek(SeekFrom::Start(entry.offset)).map_err(failed)?;
    registry.blobs().put_file(&described, &mut archive.take(entry.size_bytes))?;
    let (digest, size_bytes) = (described.digest, described.size_bytes);
    let file = RemoteFile { path, digest, size_bytes, packing: Packing::Bare, ..layer.clone() };
    Ok((entry.path.clone(), file))
}

/// Whether GGUF weights may be in an archive of that name: it is called after the one file in it, or
/// after a folder.
pub(super) fn may_hold_gguf(title: Option<&str>) -> bool {
    let name = title.and_then(|title| title.rsplit('/').next()).unwrap_or("").to_lowercase();
    !name.contains('.') || name.ends_with(".gguf") || name.ends_with(".tar")
}

#[cfg(test)]
mod tests;
