//! Why metadata was not trusted.

use super::date::Date;
use crate::Digest;

/// Why metadata was refused, or the state of trust could not be read. Nothing unverified was kept.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TrustError {
    /// The file is no metadata of this role.
    #[error("read {role} metadata: {reason}")]
    Parse {
        /// The role.
        role: String,
        /// What is wrong, and where.
        reason: String,
    },
    /// Too few valid signatures.
    #[error(
        "verify the signatures of {role} metadata version {version}: {found} of the {needed} needed \
         are valid, out of the keys [{keys}] that {by} names{}",
        unknown_keys(.unusable)
    )]
    Signatures {
        /// The role that was signed.
        role: String,
        /// Its version.
        version: u64,
        /// The role that names the keys.
        by: String,
        /// Valid signatures by distinct keys.
        found: usize,
        /// The threshold.
        needed: u64,
        /// The ids of the keys that may sign, shortened.
        keys: String,
        /// The ids of keys that may sign and that this program cannot check, shortened.
        unusable: String,
    },
    /// A root that is not exactly the next one.
    #[error("follow the chain of root versions: expected version {expected}, found {found}")]
    RootVersion {
        /// The version after the trusted one.
        expected: u64,
        /// The version in the file.
        found: u64,
    },
    /// Another root than the pinned one.
    #[error(
        "trust a root of the {repo} repository: the join token (or the owner's own root) names root \
         version {version} with {expected}, found {found}; whoever serves this root is not the \
         owner's control plane, or the token is of another fleet"
    )]
    Pinned {
        /// The repository.
        repo: &'static str,
        /// The pinned version.
        version: u64,
        /// The pinned digest.
        expected: Digest,
        /// What was found.
        found: String,
    },
    /// A version went back.
    #[error(
        "accept {role} version {found}: version {trusted} is already trusted (a rollback attack, or \
         a repository restored from an old backup)"
    )]
    Rollback {
        /// The role or metadata file.
        role: String,
        /// The version trusted so far.
        trusted: u64,
        /// The version found.
        found: u64,
    },
    /// A role that the trusted snapshot lists is gone from the new one.
    #[error("accept snapshot version {version}: it no longer lists {file}")]
    Removed {
        /// The new snapshot's version.
        version: u64,
        /// The missing entry.
        file: String,
    },
    /// Another version than the listing role says.
    #[error("accept {role} metadata: {by} lists version {expected}, found version {found}")]
    Version {
        /// The role.
        role: String,
        /// The role that lists it.
        by: &'static str,
        /// The version listed.
        expected: u64,
        /// The version in the file.
        found: u64,
    },
    /// Other bytes than the listing role says.
    #[error("accept {what}: its signed {kind} is {expected}, found {found}")]
    Content {
        /// The file or target.
        what: String,
        /// `length`, `sha256` or `sha512`.
        kind: &'static str,
        /// As signed.
        expected: String,
        /// As found.
        found: String,
    },
    /// Only hash algorithms that this program does not know.
    #[error(
        "verify {what}: it is named with the hashes [{found}] only, and sha256 or sha512 is needed"
    )]
    HashUnknown {
        /// The file or target.
        what: String,
        /// The algorithms found.
        found: String,
    },
    /// The metadata's time is over.
    #[error(
        "use {role} metadata version {version}: it expired at {expired_at} and the time is {now} (a \
         freeze attack, a repository that was not renewed, or a wrong clock)"
    )]
    Expired {
        /// The role.
        role: String,
        /// Its version.
        version: u64,
        /// When it ended.
        expired_at: Date,
        /// The time it was held against.
        now: Date,
    },
    /// A signed time that the owner's metadata does not bear out.
    #[error(
        "believe the {repo} repository, whose timestamp version {version} says that it was signed \
         at {signed_at}: the owner's {role} metadata ends at {ends_at}, and nobody's time goes \
         beyond the owner's word; the clock of {} is ahead, or the owner has to renew the registry",
        ahead(.repo)
    )]
    TimeAhead {
        /// The repository.
        repo: &'static str,
        /// The timestamp's version.
        version: u64,
        /// When it says that it was signed.
        signed_at: Date,
        /// The role of the owner's registry that ends first.
        role: String,
        /// When that role ends.
        ends_at: Date,
    },
    /// More bytes than allowed.
    #[error("download {file}: it is longer than the limit of {length_max} bytes")]
    TooLong {
        /// The file.
        file: String,
        /// The limit in bytes.
        length_max: u64,
    },
    /// A file that has to be there is not.
    #[error("download {file}: the repository does not have it")]
    Missing {
        /// The file.
        file: String,
    },
    /// A delegated role that the snapshot does not list.
    #[error(
        "look into the delegated role {role}: {parent} delegates to it, but the snapshot does not list it"
    )]
    NotInSnapshot {
        /// The role.
        role: String,
        /// The delegating role.
        parent: String,
    },
    /// Too many roots in one refresh.
    #[error("follow the chain of root versions: more than {max} new ones; refresh again to go on")]
    TooManyRoots {
        /// The limit.
        max: usize,
    },
    /// The search met too many roles.
    #[error("search the delegations for {path}: more than {max} roles")]
    TooManyRoles {
        /// The target path searched for.
        path: String,
        /// The limit.
        max: usize,
    },
    /// A file was handed in that nobody asked for.
    #[error("take in a metadata file: the refresh is over")]
    NotWanted,
    /// The refresh was closed before it was through.
    #[error("finish the refresh: {file} is still wanted")]
    Unfinished {
        /// The next file.
        file: String,
    },
    /// The top-level metadata does not fit together yet.
    #[error(
        "use the {repo} repository's metadata: {role} is missing or not the one that is listed; refresh first"
    )]
    Incomplete {
        /// The repository.
        repo: &'static str,
        /// The role.
        role: &'static str,
    },
    /// A trusted root is there already.
    #[error(
        "set the trusted root of the {repo} repository: version {trusted} of another root is trusted \
         already; it is only replaced by the chain of its successors, or after it was forgotten"
    )]
    AlreadyTrusted {
        /// The repository.
        repo: &'static str,
        /// The trusted root's version.
        trusted: u64,
    },
    /// Stored state would be replaced by an older one.
    #[error(
        "store the {repo} repository's metadata: a newer state ({role} version {stored}, here {found}) was stored meanwhile"
    )]
    Older {
        /// The repository.
        repo: &'static str,
        /// The role that is older.
        role: String,
        /// The version stored.
        stored: u64,
        /// The version to be stored.
        found: u64,
    },
    /// The stored state does not verify any more: damaged or tampered with.
    #[error(
        "read the trusted {role} metadata of the {repo} repository from the state database: let the \
         device sync, or import a bundle: that follows the roots anew; or enrol it again"
    )]
    Damaged {
        /// The repository.
        repo: &'static str,
        /// The role.
        role: String,
        /// What does not hold.
        #[source]
        source: Box<TrustError>,
    },
    /// The stored policy is not the one that was taken.
    #[error(
        "read the owner's policy from the state database: {reason}; let the device sync, or import a \
         bundle: that brings it again"
    )]
    PolicyDamaged {
        /// What does not hold.
        reason: String,
    },
    /// The database refused.
    #[error("read or write the state of trust")]
    Database(#[from] rusqlite::Error),
    /// The store refused.
    #[error("read or write the state of trust")]
    Store(#[from] fulmar_store::StoreError),
}

/// Whose clock a repository's times come from.
pub(super) fn ahead(repo: &str) -> &'static str {
    match repo {
        "director" => "the control plane",
        _ => "whoever signs the registry",
    }
}

fn unknown_keys(unusable: &str) -> String {
    if unusable.is_empty() {
        String::new()
    } else {
        format!("; of those, [{unusable}] are of a kind that this program does not know")
    }
}
