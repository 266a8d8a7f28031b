//! Key files: making, reading, and where the passphrase comes from.

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use fulmar_registry::trust::{CommandKey, Ed25519Key, KeyError, KeyFile, PublicKey, SigningKey};

/// Where the passphrase of encrypted keys comes from: a file, the environment, or the terminal.
#[derive(Debug, clap::Args)]
pub(super) struct Passphrase {
    /// A file whose first line is the passphrase of encrypted keys. Else FULMAR_KEY_PASSPHRASE, or
    /// the terminal is asked.
    #[arg(long, value_name = "FILE")]
    passphrase_file: Option<PathBuf>,
}

#[derive(Debug, clap::Args)]
pub(super) struct NewKeyArgs {
    /// The key's file; its public half goes to FILE.pub.
    file: PathBuf,
    /// Write the key unencrypted, for machines that nobody attends.
    #[arg(long)]
    unencrypted: bool,
    /// Make no key: a program holds one already, in hardware perhaps. It reads what to sign on
    /// standard input and writes the signature, in hex, on standard output; no shell is involved. Its
    /// arguments follow, so this comes last.
    #[arg(long, value_name = "PROGRAM", num_args = 1.., allow_hyphen_values = true)]
    #[arg(requires = "public", conflicts_with = "unencrypted")]
    command: Vec<String>,
    /// The public key of the one that the program holds: JSON as in FILE.pub.
    #[arg(long, value_name = "FILE", requires = "command")]
    public: Option<PathBuf>,
    #[command(flatten)]
    passphrase: Passphrase,
}

impl Passphrase {
    fn given(&self) -> anyhow::Result<Option<String>> {
        if let Some(path) = &self.passphrase_file {
            let text = std::fs::read_to_string(path)
                .with_context(|| format!("read the passphrase in {}", path.display()))?;
            return Ok(Some(text.lines().next().unwrap_or_default().to_owned()));
        }
        Ok(std::env::var("FULMAR_KEY_PASSPHRASE").ok())
    }

    fn for_reading(&self, path: &Path) -> anyhow::Result<String> {
        if let Some(passphrase) = self.given()? {
            return Ok(passphrase);
        }
        dialoguer::Password::new()
            .with_prompt(format!("Passphrase of {}", path.display()))
            .interact()
            .with_context(|| {
                format!(
                    "ask for the passphrase of {}: without a terminal, give --passphrase-file or \
                     FULMAR_KEY_PASSPHRASE",
                    path.display()
                )
            })
    }

    fn for_writing(&self) -> anyhow::Result<String> {
        let passphrase = match self.given()? {
            Some(passphrase) => passphrase,
            None => dialoguer::Password::new()
                .with_prompt("Passphrase for the new key")
                .with_confirmation("Once more", "These differ.")
                .interact()
                .context(
                    "ask for a passphrase: without a terminal, give --passphrase-file, \
                     FULMAR_KEY_PASSPHRASE or --unencrypted",
                )?,
        };
        if passphrase.chars().count() < 8 {
            bail!("encrypt the key: the passphrase has fewer than 8 characters");
        }
        Ok(passphrase)
    }
}

pub(super) fn new_key(args: &NewKeyArgs) -> anyhow::Result<()> {
    if let Some(public) = &args.public {
        return command_key(&args.file, public, &args.command);
    }
    let key = Ed25519Key::generate()?;
    let text = match args.unencrypted {
        true => key.to_pem(),
        false => key.to_encrypted(&args.passphrase.for_writing()?)?.into(),
    };
    write_new(&args.file, text.as_bytes(), 0o600)?;
    println!("Made key {} in {}.", key.key_id(), args.file.display());
    write_public(&args.file, key.public())
}

/// Writes the file of a key that a program holds, once the program has shown that it does.
fn command_key(file: &Path, public: &Path, command: &[String]) -> anyhow::Result<()> {
    let public = read_public(&[public.to_owned()])?.remove(0);
    let words: Vec<String> = match command {
        [line] => line.split_whitespace().map(str::to_owned).collect(),
        words => words.to_vec(),
    };
    let [program, arguments @ ..] = words.as_slice() else {
        bail!("name the program that signs: --command is empty");
    };
    let key = CommandKey::new(public, program, arguments);
    key.sign(b"fulmar tries this key out; this text is no metadata\n")
        .context("try the program out")?;
    write_new(file, key.to_file_text()?.as_bytes(), 0o600)?;
    println!("Key {} signs by {program}, as {} says.", key.key_id(), file.display());
    write_public(file, key.public())
}

/// Writes a key's public half beside its file.
fn write_public(file: &Path, key: &PublicKey) -> anyhow::Result<()> {
    let mut public = file.to_owned().into_os_string();
    public.push(".pub");
    let half = serde_json::to_string_pretty(key)? + "\n";
    write_new(Path::new(&public), half.as_bytes(), 0o644)?;
    println!("Give {} to whoever names it in a registry.", Path::new(&public).display());
    Ok(())
}

/// Writes a file that must not be there yet.
fn write_new(path: &Path, bytes: &[u8], mode: u32) -> anyhow::Result<()> {
    use std::os::unix::fs::OpenOptionsExt;
    let mut options = std::fs::OpenOptions::new();
    let file = options.write(true).create_new(true).mode(mode).open(path);
    file.and_then(|mut file| file.write_all(bytes).and_then(|()| file.sync_all()))
        .with_context(|| format!("write {}", path.display()))
}

/// Reads a key file.
pub(super) fn read(path: &Path, passphrase: &Passphrase) -> anyhow::Result<KeyFile> {
    let text = std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
    let mut refused = None;
    let read = KeyFile::from_text(&text, || {
        passphrase.for_reading(path).map_err(|error| {
            refused = Some(error);
            KeyError::PassphraseNeeded
        })
    });
    match refused {
        Some(error) => Err(error),
        None => read.with_context(|| format!("read {}", path.display())),
    }
}

/// The public halves in key files of any kind that needs no passphrase.
pub(super) fn read_public(paths: &[PathBuf]) -> anyhow::Result<Vec<PublicKey>> {
    let mut keys = Vec::with_capacity(paths.len());
    for path in paths {
        let text =
            std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
        let file = KeyFile::from_text(&text, || Err(KeyError::PassphraseNeeded))
            .with_context(|| format!("read {}: give the .pub file", path.display()))?;
        keys.push(file.public().clone());
    }
    Ok(keys)
}
