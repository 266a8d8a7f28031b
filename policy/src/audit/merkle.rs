//! The Merkle tree of RFC 9162, section 2.1: SHA-256, leaves prefixed by 0, nodes by 1.

use ring::digest::{Context, SHA256};
use serde::{Deserialize, Serialize};

/// A SHA-256 hash.
pub type Hash = [u8; 32];

pub(crate) fn leaf_hash(bytes: &[u8]) -> Hash {
    hash(&[&[0], bytes])
}

fn node_hash(left: &Hash, right: &Hash) -> Hash {
    hash(&[&[1], left, right])
}

fn hash(parts: &[&[u8]]) -> Hash {
    let mut context = Context::new(&SHA256);
    for part in parts {
        context.update(part);
    }
    let mut out = [0; 32];
    out.copy_from_slice(context.finish().as_ref());
    out
}

/// The roots of the perfect subtrees that make up a tree, largest first: all that appending needs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Peaks {
    leaves: u64,
    hashes: Vec<Hash>,
}

impl Peaks {
    pub(crate) fn len(&self) -> u64 {
        self.leaves
    }

    pub(crate) fn push(&mut self, leaf: Hash) {
        let mut top = leaf;
        // Each trailing one bit of the old count is a subtree of the same size as `top`.
        let mut merges = self.leaves.trailing_ones();
        while merges > 0
            && let Some(left) = self.hashes.pop()
        {
            top = node_hash(&left, &top);
            merges -= 1;
        }
        self.hashes.push(top);
        self.leaves += 1;
    }

    pub(crate) fn root(&self) -> Hash {
        let mut from_right = self.hashes.iter().rev();
        match from_right.next() {
            None => hash(&[]),
            Some(last) => from_right.fold(*last, |right, left| node_hash(left, &right)),
        }
    }

    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        self.hashes.concat()
    }

    pub(crate) fn from_bytes(leaves: u64, bytes: &[u8]) -> Option<Self> {
        let (hashes, rest) = bytes.as_chunks::<32>();
        let fits = rest.is_empty() && hashes.len() == leaves.count_ones() as usize;
        fits.then(|| Self { leaves, hashes: hashes.to_vec() })
    }
}

/// Shows that one entry is part of a log with a given root (RFC 9162, section 2.1.3).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proof {
    /// The entry's number, from 1.
    pub seq: u64,
    /// Entries in the log.
    pub entries: u64,
    /// The entry's leaf hash.
    pub leaf: Hash,
    /// Hashes from the leaf's sibling up to the root's child.
    pub path: Vec<Hash>,
}

impl Proof {
    /// Makes the proof for leaf `index` (from 0) of all `leaves`.
    pub(crate) fn make(leaves: &[Hash], index: usize) -> Option<Self> {
        let leaf = *leaves.get(index)?;
        let mut path = Vec::new();
        collect_path(leaves, index, &mut path);
        Some(Self { seq: index as u64 + 1, entries: leaves.len() as u64, leaf, path })
    }

    /// Whether it leads to `root`. Section 2.1.3.2 of the RFC.
    #[must_use]
    pub fn holds(&self, root: &Hash) -> bool {
        if self.seq == 0 || self.seq > self.entries {
            return false;
        }
        let (mut index, mut last) = (self.seq - 1, self.entries - 1);
        let mut hash = self.leaf;
        for sibling in &self.path {
            if last == 0 {
                return false;
            }
            if index & 1 == 1 || index == last {
                hash = node_hash(sibling, &hash);
                while index & 1 == 0 && index != 0 {
                    index >>= 1;
                    last >>= 1;
                }
            } else {
                hash = node_hash(&hash, sibling);
            }
            index >>= 1;
            last >>= 1;
        }
        last == 0 && hash == *root
    }
}

fn collect_path(leaves: &[Hash], index: usize, path: &mut Vec<Hash>) {
    if leaves.len() < 2 {
        return;
    }
    let (left, right) = leaves.split_at(split(leaves.len()));
    if index < left.len() {
        collect_path(left, index, path);
        path.push(root_of(right));
    } else {
        collect_path(right, index - left.len(), path);
        path.push(root_of(left));
    }
}

/// The largest power of two below `len`.
fn split(len: usize) -> usize {
    len.next_power_of_two() / 2
}

fn root_of(leaves: &[Hash]) -> Hash {
    let mut peaks = Peaks::default();
    for leaf in leaves {
        peaks.push(*leaf);
    }
    peaks.root()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The definition of RFC 9162, section 2.1.1, word by word.
    fn naive_root(leaves: &[Hash]) -> Hash {
        match leaves {
            [] => hash(&[]),
            [one] => *one,
            _ => {
                let (left, right) = leaves.split_at(split(leaves.len()));
                node_hash(&naive_root(left), &naive_root(right))
            }
        }
    }

    fn leaves(len: usize) -> Vec<Hash> {
        (0..len).map(|i| leaf_hash(&i.to_le_bytes())).collect()
    }

    #[test]
    fn the_empty_tree_and_known_vectors_have_the_roots_of_the_rfc() {
        // Vectors of the certificate-transparency reference implementation.
        let inputs: [&[u8]; 3] = [b"", &[0x00], &[0x10]];
        let roots = [
            "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
            "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
            "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
            "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
        ];
        let mut peaks = Peaks::default();
        assert_eq!(hex::encode(peaks.root()), roots[0]);
        for (input, root) in inputs.iter().zip(&roots[1..]) {
            peaks.push(leaf_hash(input));
            assert_eq!(hex::encode(peaks.root()), *root);
        }
    }

    proptest! {
        #[test]
        fn appending_gives_the_root_of_the_definition(len in 0usize..200) {
            prop_assert_eq!(root_of(&leaves(len)), naive_root(&leaves(len)));
        }

        #[test]
        fn every_proof_holds_and_no_changed_one(len in 1usize..70, pick in 0usize..70, bit in 0usize..256) {
            let all = leaves(len);
            let root = root_of(&all);
            let proof = Proof::make(&all, pick % len).unwrap();
            prop_assert!(proof.holds(&root));
            let mut other = proof.clone();
            other.leaf[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(!other.holds(&root));
            if len > 1 {
                let mut shorter = proof.clone();
                shorter.path.pop();
                prop_assert!(!shorter.holds(&root));
            }
            let mut longer = proof;
            longer.path.push(root);
            prop_assert!(!longer.holds(&root));
        }

        #[test]
        fn peaks_survive_storage(len in 0usize..300) {
            let mut peaks = Peaks::default();
            for leaf in leaves(len) { peaks.push(leaf); }
            prop_assert_eq!(Peaks::from_bytes(peaks.len(), &peaks.to_bytes()), Some(peaks));
        }
    }
}
