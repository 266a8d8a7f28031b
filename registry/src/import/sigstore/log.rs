//! Rekor, the log of signatures: that an entry is in it, and when it came, as far as the log's key
//! says so.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;

use super::SigstoreError;
use super::bundle::{LogEntry, Proof, Version};
use super::der::Hash;
use super::error::bundle;
use super::key::Key;
use super::root::{Log, TrustedRoot};

/// Longest way through a tree of 2^64 entries.
const HASHES_MAX: usize = 64;

/// Verifies that a trusted log has the entry; says when it came where the log has signed that.
pub(super) fn verify<'a>(
    entry: &LogEntry,
    version: Version,
    root: &'a TrustedRoot,
) -> Result<(&'a Log, Option<Timestamp>), SigstoreError> {
    let id = &entry.log_id.key_id.0;
    let log = root.logs.iter().find(|log| &log.id == id).ok_or_else(|| {
        let trusted: Vec<String> = root.logs.iter().map(Log::to_string).collect();
        SigstoreError::UnknownLog { found: STANDARD.encode(id), trusted: trusted.join(", ") }
    })?;
    let key = log.key.as_ref().map_err(|reason| SigstoreError::Checkpoint {
        log: log.to_string(),
        reason: format!("its key in the trusted root is {reason}"),
    })?;
    match (&entry.inclusion_proof, version) {
        (Some(proof), _) => included(entry, proof, log, key)?,
        (None, Version::V01) if entry.inclusion_promise.is_some() => {}
        (None, _) => {
            let expected = "there (with signed entry timestamps alone only in version 0.1)";
            return Err(bundle("inclusionProof", "missing", expected));
        }
    }
    Ok((log, promised(entry, log, key)?))
}

/// A log vouches for nothing outside the time in which it was trusted.
pub(super) fn check_period(log: &Log, time: Timestamp) -> Result<(), SigstoreError> {
    if log.period.contains(time) {
        return Ok(());
    }
    let (period, time) = (log.period.to_string(), time.to_string());
    Err(SigstoreError::LogPeriod { log: log.to_string(), period, time })
}

/// The time of the entry, where the log has signed it: a time without that signature says nothing.
fn promised(entry: &LogEntry, log: &Log, key: &Key) -> Result<Option<Timestamp>, SigstoreError> {
    let Some(promise) = &entry.inclusion_promise else { return Ok(None) };
    let (index, time_s) = (entry.log_index.0, entry.integrated_time.0);
    // Canonical JSON: keys in order, no spaces; nothing in the values needs escaping.
    let signed = format!(
        r#"{{"body":"{}","integratedTime":{time_s},"logID":"{}","logIndex":{index}}}"#,
        STANDARD.encode(&entry.canonicalized_body.0),
        hex::encode(&log.id),
    );
    let refuse = || SigstoreError::Promise { log: log.to_string(), index };
    if !key.made(signed.as_bytes(), &promise.signed_entry_timestamp.0) {
        return Err(refuse());
    }
    let time = i64::try_from(time_s).ok().and_then(|s| Timestamp::from_second(s).ok());
    let time = time.filter(|time| time.as_second() > 0).ok_or_else(refuse)?;
    Ok(Some(time))
}

/// Verifies the log's signature over the tree, and the entry's place in it.
fn included(entry: &LogEntry, proof: &Proof, log: &Log, key: &Key) -> Result<(), SigstoreError> {
    let refuse = |reason: String| SigstoreError::Inclusion { log: log.to_string(), reason };
    let checkpoint = proof.checkpoint.as_ref().map_or("", |checkpoint| &checkpoint.envelope);
    let (size, root) = checkpoint_of(checkpoint, log, key)
        .map_err(|reason| SigstoreError::Checkpoint { log: log.to_string(), reason })?;
    if (size, &root) != (proof.tree_size.0, &proof.root_hash.0) {
        return Err(refuse(format!(
            "it is of a tree of {} entries with root {}, the checkpoint of one of {size} with {}",
            proof.tree_size.0,
            STANDARD.encode(&proof.root_hash.0),
            STANDARD.encode(root),
        )));
    }
    let index = proof.log_index.0;
    let found = root_of(&entry.canonicalized_body.0, index, size, proof).map_err(refuse)?;
    if found != root {
        return Err(refuse(format!(
            "entry {index} of {size} leads to root {}, expected {}",
            STANDARD.encode(found),
            STANDARD.encode(root)
        )));
    }
    Ok(())
}

/// Size and root hash out of a checkpoint (a signed note) that the log's key has signed. Other
/// signatures under it are of witnesses and do not count.
fn checkpoint_of(note: &str, log: &Log, key: &Key) -> Result<(u64, Vec<u8>), String> {
    let (text, signatures) = note.rsplit_once("\n\n").ok_or("missing, or not signed")?;
    let signed = format!("{text}\n");
    let hint = log.checkpoint_id.get(..4).ok_or("the log's key id is too short")?;
    let made = |line: &str| {
        let line = line.strip_prefix("\u{2014} ")?;
        let signature = STANDARD.decode(line.rsplit_once(' ')?.1).ok()?;
        let (found, signature) = signature.split_at_checked(4)?;
        Some(found == hint && key.made(signed.as_bytes(), signature))
    };
    if !signatures.lines().any(|line| made(line) == Some(true)) {
        return Err(format!(
            "none of its {} signatures is of key {}",
            signatures.lines().count(),
            hex::encode(hint)
        ));
    }
    let mut lines = text.lines();
    let origin = lines.next().unwrap_or_default();
    let size = lines.next().unwrap_or_default();
    let root = lines.next().unwrap_or_default();
    let bad = |what: &str, found: &str| format!("its {what} is {found:?}");
    if origin.is_empty() {
        return Err(bad("origin", origin));
    }
    let digits = !size.is_empty() && size.bytes().all(|byte| byte.is_ascii_digit());
    let size_read = size.parse().ok().filter(|_| digits).ok_or_else(|| bad("size", size))?;
    let hash = STANDARD.decode(root).ok().filter(|hash| hash.len() == 32);
    Ok((size_read, hash.ok_or_else(|| bad("root hash", root))?))
}

/// The root that an entry leads to (RFC 9162, 2.1.3.2).
fn root_of(body: &[u8], index: u64, size: u64, proof: &Proof) -> Result<Vec<u8>, String> {
    if index >= size {
        return Err(format!("entry {index} of {size}, expected one within the tree"));
    }
    let count = proof.hashes.len();
    if count > HASHES_MAX {
        return Err(format!("{count} hashes, the limit is {HASHES_MAX}"));
    }
    let node = |left: &[u8], right: &[u8]| Hash::Sha256.of(&[&[1][..], left, right].concat());
    let mut hash = Hash::Sha256.of(&[&[0][..], body].concat());
    let (mut node_index, mut last) = (index, size - 1);
    for sibling in &proof.hashes {
        if last == 0 {
            return Err(format!("{count} hashes are too many for entry {index} of {size}"));
        }
        let sibling = sibling.0.as_slice();
        if sibling.len() != 32 {
            return Err(format!("a hash of {} bytes, expected 32", sibling.len()));
        }
        if node_index & 1 == 1 || node_index == last {
            hash = node(sibling, &hash);
            // Where the tree is not full to the right, its levels without a sibling are left out.
            while node_index & 1 == 0 && node_index != 0 {
                node_index >>= 1;
                last >>= 1;
            }
        } else {
            hash = node(&hash, sibling);
        }
        node_index >>= 1;
        last >>= 1;
    }
    if last != 0 {
        return Err(format!("{count} hashes are too few for entry {index} of {size}"));
    }
    Ok(hash)
}

#[cfg(test)]
mod tests {
    use super::super::bundle::{Base64, Number};
    use super::*;

    fn hash(bytes: &[u8]) -> Vec<u8> {
        Hash::Sha256.of(bytes)
    }

    /// RFC 6962's definition of the root, as it stands there.
    fn tree(leaves: &[Vec<u8>]) -> Vec<u8> {
        match leaves {
            [leaf] => hash(&[&[0][..], leaf].concat()),
            _ => {
                let (left, right) = leaves.split_at(leaves.len().next_power_of_two() / 2);
                hash(&[&[1][..], &tree(left), &tree(right)].concat())
            }
        }
    }

    /// And of the way from a leaf to it.
    fn way(index: usize, leaves: &[Vec<u8>]) -> Vec<Base64> {
        if leaves.len() == 1 {
            return Vec::new();
        }
        let half = leaves.len().next_power_of_two() / 2;
        let (left, right) = leaves.split_at(half);
        let (mut way, other) = match index < half {
            true => (way(index, left), tree(right)),
            false => (way(index - half, right), tree(left)),
        };
        way.push(Base64(other));
        way
    }

    #[test]
    fn every_entry_of_every_small_tree_leads_to_its_root_and_no_other_does() {
        for size in 1..=33_usize {
            let leaves: Vec<Vec<u8>> = (0..size).map(|leaf| vec![leaf as u8]).collect();
            for index in 0..size {
                let mut proof = Proof {
                    log_index: Number(index as u64),
                    root_hash: Base64(Vec::new()),
                    tree_size: Number(size as u64),
                    hashes: way(index, &leaves),
                    checkpoint: None,
                };
                let (at, of) = (index as u64, size as u64);
                let root = tree(&leaves);
                assert_eq!(root_of(&leaves[index], at, of, &proof).unwrap(), root);
                assert_ne!(root_of(b"other", at, of, &proof).unwrap(), root);
                assert!(root_of(&leaves[index], of, of, &proof).is_err());
                proof.hashes.push(Base64(vec![0; 32]));
                assert!(root_of(&leaves[index], at, of, &proof).is_err(), "too many");
                proof.hashes.pop();
                if proof.hashes.pop().is_some() {
                    assert!(root_of(&leaves[index], at, of, &proof).is_err(), "too few");
                }
            }
        }
    }
}
