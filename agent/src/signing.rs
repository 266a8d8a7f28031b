//! Publishers' signatures over imported models, held against what this device's owner trusts.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use fulmar_registry::Digest;
use fulmar_registry::import::model_signing::{self, BUNDLE_BYTES_MAX, TrustedSigners};
use fulmar_registry::import::sigstore::{Identity, Keyless, TrustedRoot};
use fulmar_registry::import::{FoundBundle, Imported};
use serde::Serialize;

use crate::config::{RegistryConfig, SigningIdentity, UnsignedImports};

/// What a bundle is held against.
#[derive(Debug)]
pub(crate) struct Rules {
    signers: TrustedSigners,
    unsigned: UnsignedImports,
    bundles: Bundles,
}

/// What becomes of a bundle.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Bundles {
    /// It verifies, or the import is refused.
    Verify,
    /// A person has said that it does not count.
    Ignore,
}

/// How a model stands with its publisher.
#[derive(Debug, Serialize)]
#[serde(tag = "signature", rename_all = "snake_case")]
pub(crate) enum Signing {
    /// A trusted signer has signed these weights.
    Verified {
        /// Who.
        signer: String,
        /// For people.
        words: String,
    },
    /// There is no signature.
    Absent {
        /// For people.
        words: String,
    },
    /// There is one, and a person has said that it does not count.
    Ignored {
        /// Where it lies.
        from: String,
        /// For people.
        words: String,
    },
}

impl Rules {
    /// As configured.
    ///
    /// # Errors
    /// When a file of keys, certificates or a trusted root cannot be used, or an identity.
    pub(crate) fn of(config: &RegistryConfig) -> anyhow::Result<Self> {
        let keyless = Keyless {
            roots: config
                .signing_trusted_roots
                .iter()
                .map(|path| TrustedRoot::read(path))
                .collect::<Result<_, _>>()?,
            identities: config
                .signing_identities
                .iter()
                .map(identity)
                .collect::<anyhow::Result<_>>()?,
        };
        let signers = TrustedSigners::read(&config.signing_keys, &config.signing_roots)?
            .with_keyless(keyless);
        Ok(Self { signers, unsigned: config.unsigned_imports, bundles: Bundles::Verify })
    }

    /// The same, for a person who wants a bundle not to count.
    ///
    /// # Errors
    /// When the owner refuses unsigned imports.
    pub(crate) fn ignoring(self) -> anyhow::Result<Self> {
        anyhow::ensure!(
            self.unsigned == UnsignedImports::Allowed,
            "ignore a signature: registry.unsigned_imports is \"refused\" on this device"
        );
        Ok(Self { bundles: Bundles::Ignore, ..self })
    }
}

fn identity(configured: &SigningIdentity) -> anyhow::Result<Identity> {
    let SigningIdentity { issuer, subject, subject_pattern } = configured;
    Ok(match (subject, subject_pattern) {
        (Some(subject), None) => Identity::exactly(issuer, subject)?,
        (None, Some(pattern)) => Identity::matching(issuer, pattern)?,
        _ => anyhow::bail!(
            "read registry.signing_identities: the identity of {issuer} has {}, expected either \
             subject or subject_pattern",
            if subject.is_some() { "both" } else { "neither" }
        ),
    })
}

/// Whom a person names for one import.
#[derive(Debug, clap::Args)]
pub(crate) struct Named {
    /// A Sigstore's trusted_root.json, for a keyless signature; beside those of
    /// registry.signing_trusted_roots.
    #[arg(long, value_name = "FILE")]
    trusted_root: Vec<PathBuf>,
    /// Who must have signed keyless: a mail address, or a workflow's address.
    #[arg(long, value_name = "SUBJECT", requires = "identity_provider")]
    identity: Option<String>,
    /// The issuer that vouches for --identity, as https://accounts.google.com.
    #[arg(long, value_name = "URL", requires = "identity")]
    identity_provider: Option<String>,
}

impl Named {
    /// The configuration with those who are named here.
    ///
    /// # Errors
    /// Where the owner refuses unsigned imports: who counts is theirs to say.
    pub(crate) fn added_to(&self, config: &RegistryConfig) -> anyhow::Result<RegistryConfig> {
        let mut config = config.clone();
        if self.trusted_root.is_empty() && self.identity.is_none() {
            return Ok(config);
        }
        anyhow::ensure!(
            config.unsigned_imports == UnsignedImports::Allowed,
            "name signers with --trusted-root or --identity: registry.unsigned_imports is \
             \"refused\" on this device, so they are named in registry.signing_trusted_roots and \
             registry.signing_identities alone"
        );
        config.signing_trusted_roots.extend(self.trusted_root.iter().cloned());
        if let (Some(subject), Some(issuer)) = (&self.identity, &self.identity_provider) {
            // Whoever is named for this import, and nobody else.
            config.signing_identities = vec![SigningIdentity {
                issuer: issuer.clone(),
                subject: Some(subject.clone()),
                subject_pattern: None,
            }];
        }
        Ok(config)
    }
}

/// Holds weights with that digest against the bundles that were found with them: one that verifies
/// is enough, whoever else has signed.
///
/// # Errors
/// When no bundle verifies, or there is none and unsigned imports are refused.
pub(crate) fn check(
    bundles: &[FoundBundle],
    weights: &Digest,
    rules: &Rules,
    now_s: i64,
) -> anyhow::Result<Signing> {
    let Some(first) = bundles.first() else {
        anyhow::ensure!(
            rules.unsigned == UnsignedImports::Allowed,
            "import: the publisher has not signed it (neither model.sig nor a .sig beside the \
             weights, nor a bundle that refers to them), and registry.unsigned_imports is \
             \"refused\" on this device"
        );
        return Ok(Signing::Absent { words: "none was found".to_owned() });
    };
    if rules.bundles == Bundles::Ignore {
        let from = first.from.clone();
        return Ok(Signing::Ignored { words: format!("{from} was ignored"), from });
    }
    let mut refused = None;
    for bundle in bundles {
        let verified = model_signing::verify(&bundle.bytes, &rules.signers, now_s);
        let verified = verified.and_then(|signed| {
            match &bundle.weights_path {
                Some(path) => signed.check(path, weights)?,
                None => signed.check_any(weights)?,
            }
            Ok(signed)
        });
        match verified {
            Ok(signed) => {
                let signer = signed.signer().to_owned();
                return Ok(Signing::Verified { words: format!("verified, by {signer}"), signer });
            }
            Err(error) => {
                let error =
                    anyhow::Error::from(error).context(format!("import with {}", bundle.from));
                refused = Some(match refused {
                    Some(before) => error.context(format!("{before:#}; and")),
                    None => error,
                });
            }
        }
    }
    Err(refused.context("import: no bundle was looked at")?)
}

/// [`check`] for a file with `FILE.sig` or `model.sig` beside it.
///
/// # Errors
/// As [`check`]; when the bundle cannot be read.
pub(crate) fn check_imported(
    file: &Path,
    imported: &Imported,
    rules: &Rules,
    now_s: i64,
) -> anyhow::Result<Signing> {
    if file.is_dir() {
        return check_folder(file, rules, now_s);
    }
    let weights = imported.signed.manifest().weights().context("find the weights")?;
    check(beside(file)?.as_slice(), &weights.digest, rules, now_s)
}

/// A folder that is converted on its way in: `model.sig` in it must name every file that lies
/// there, since each may end up in the model.
///
/// # Errors
/// As [`check`]; when the bundle or a file cannot be read.
pub(crate) fn check_folder(folder: &Path, rules: &Rules, now_s: i64) -> anyhow::Result<Signing> {
    let found = beside(&folder.join("model"))?;
    let Some(bundle) = found.filter(|_| rules.bundles == Bundles::Verify) else {
        // Nothing to verify, or told not to: the digest does not matter.
        let ignored = beside(&folder.join("model"))?;
        return check(ignored.as_slice(), &Digest::of(b""), rules, now_s);
    };
    let from = bundle.from.clone();
    let verified = || -> anyhow::Result<String> {
        let signed = model_signing::verify(&bundle.bytes, &rules.signers, now_s)?;
        for entry in std::fs::read_dir(folder)? {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if path.is_file() && name != "model.sig" && !name.starts_with('.') {
                signed.check(&name, &digest_of(&path)?)?;
            }
        }
        Ok(signed.signer().to_owned())
    };
    let signer = verified().with_context(|| format!("import with {from}"))?;
    Ok(Signing::Verified { words: format!("verified, by {signer}"), signer })
}

fn digest_of(path: &Path) -> anyhow::Result<Digest> {
    let mut hasher = ring::digest::Context::new(&ring::digest::SHA256);
    let mut file = std::fs::File::open(path).with_context(|| format!("open {}", path.display()))?;
    let mut buffer = vec![0; 256 << 10];
    loop {
        match std::io::Read::read(&mut file, &mut buffer)? {
            0 => break,
            read => hasher.update(&buffer[..read]),
        }
    }
    let mut bytes = [0; 32];
    bytes.copy_from_slice(hasher.finish().as_ref());
    Ok(Digest::from_bytes(bytes))
}

fn beside(file: &Path) -> anyhow::Result<Option<FoundBundle>> {
    let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let own = file.with_file_name(format!("{name}.sig"));
    let whole = file.with_file_name("model.sig");
    let Some(path) = [own, whole].into_iter().find(|path| path.is_file()) else {
        return Ok(None);
    };
    Ok(Some(FoundBundle { weights_path: Some(name), ..bundle_at(&path)? }))
}

/// A bundle in a file that a person has named; what it calls the weights is not known then.
///
/// # Errors
/// When it cannot be read, or is too long.
pub(crate) fn bundle_at(path: &Path) -> anyhow::Result<FoundBundle> {
    let size_bytes = path.metadata().with_context(|| format!("read {}", path.display()))?.len();
    anyhow::ensure!(
        size_bytes <= BUNDLE_BYTES_MAX,
        "read {}: it has {size_bytes} bytes, the limit is {BUNDLE_BYTES_MAX}",
        path.display()
    );
    let bytes = std::fs::read(path).with_context(|| format!("read {}", path.display()))?;
    Ok(FoundBundle { bytes, from: path.display().to_string(), weights_path: None })
}
