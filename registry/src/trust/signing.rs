//! Keys that sign metadata: a PKCS#8 file, an encrypted file, or a command that signs (a token, a
//! hardware module, somebody's own ceremony).
//!
//! Invariants: a secret is never written in the clear by this module except on request
//! ([`Ed25519Key::to_pem`]), never logged, and wiped from memory when the key is dropped.

use std::io::Write;
use std::num::NonZeroU32;
use std::process::{Command, Stdio};

use ring::aead;
use ring::pbkdf2;
use ring::rand::{SecureRandom, SystemRandom};
use ring::signature::{Ed25519KeyPair, KeyPair};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::key::PublicKey;

/// PBKDF2 rounds of newly written files (OWASP's figure for HMAC-SHA-256).
const ROUNDS: u32 = 600_000;
/// Most rounds accepted from a file: some seconds of work.
const ROUNDS_MAX: u32 = 20_000_000;

/// Something that signs.
pub trait SigningKey: Send + Sync {
    /// Its public half, as metadata carries it.
    fn public(&self) -> &PublicKey;

    /// Signs `message`.
    ///
    /// # Errors
    /// [`KeyError`], when the key cannot be reached.
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, KeyError>;

    /// Its id in metadata.
    fn key_id(&self) -> String {
        self.public().key_id()
    }
}

/// Why a key could not be made, read, written or used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KeyError {
    /// The system's random numbers failed.
    #[error("draw random numbers")]
    Random,
    /// The file is no key of a known form.
    #[error("read the signing key: {reason}")]
    Form {
        /// What was expected and found.
        reason: String,
    },
    /// The file is encrypted and no passphrase was given.
    #[error("open the signing key: it is encrypted; give its passphrase")]
    PassphraseNeeded,
    /// Wrong passphrase, or a damaged file.
    #[error("open the signing key: the passphrase is wrong, or the file is damaged")]
    Passphrase,
    /// The signing command could not be run.
    #[error("run the signing command {program:?}")]
    CommandRun {
        /// The program.
        program: String,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// The signing command failed, or signed something else.
    #[error("sign with the command {program:?}: {reason}")]
    CommandSign {
        /// The program.
        program: String,
        /// How.
        reason: String,
    },
}

/// An Ed25519 key held in memory.
pub struct Ed25519Key {
    pair: Ed25519KeyPair,
    pkcs8: Zeroizing<Vec<u8>>,
    public: PublicKey,
}

impl std::fmt::Debug for Ed25519Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ed25519Key").field("key_id", &self.key_id()).finish_non_exhaustive()
    }
}

/// The encrypted file's form.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct EncryptedFile {
    fulmar_encrypted_key: u32,
    kdf: String,
    rounds: u32,
    salt: String,
    cipher: String,
    nonce: String,
    ciphertext: String,
    public: PublicKey,
}

const KDF: &str = "pbkdf2-hmac-sha256";
const CIPHER: &str = "aes-256-gcm";
const PEM_BEGIN: &str = "-----BEGIN PRIVATE KEY-----";
const PEM_END: &str = "-----END PRIVATE KEY-----";

impl Ed25519Key {
    /// A new key.
    ///
    /// # Errors
    /// [`KeyError::Random`].
    pub fn generate() -> Result<Self, KeyError> {
        let document =
            Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).map_err(|_| KeyError::Random)?;
        Self::from_pkcs8(document.as_ref())
    }

    /// A key out of its PKCS#8 document.
    ///
    /// # Errors
    /// [`KeyError::Form`].
    pub fn from_pkcs8(der: &[u8]) -> Result<Self, KeyError> {
        // OpenSSL writes version 1, which lacks the public key; ring writes version 2.
        let pair = Ed25519KeyPair::from_pkcs8_maybe_unchecked(der).map_err(|e| KeyError::Form {
            reason: format!("expected an Ed25519 key in PKCS#8, found something else ({e})"),
        })?;
        let public = PublicKey::ed25519(pair.public_key().as_ref());
        Ok(Self { pair, pkcs8: Zeroizing::new(der.to_vec()), public })
    }

    /// The PKCS#8 document.
    #[must_use]
    pub fn to_pkcs8(&self) -> &[u8] {
        &self.pkcs8
    }

    /// A key out of a file's text: PEM, or encrypted as [`Ed25519Key::to_encrypted`] writes it.
    ///
    /// # Errors
    /// [`KeyError`]; [`KeyError::PassphraseNeeded`] for an encrypted file without a passphrase.
    pub fn from_file_text(text: &str, passphrase: Option<&str>) -> Result<Self, KeyError> {
        if text.trim_start().starts_with('{') {
            return Self::decrypt(text, passphrase.ok_or(KeyError::PassphraseNeeded)?);
        }
        let refuse = || KeyError::Form {
            reason: format!("expected a file that begins with {PEM_BEGIN:?}, or an encrypted key"),
        };
        let body = text.trim().strip_prefix(PEM_BEGIN).and_then(|t| t.strip_suffix(PEM_END));
        let body: String = body.ok_or_else(refuse)?.split_whitespace().collect();
        use base64::Engine;
        let der = base64::engine::general_purpose::STANDARD.decode(body).map_err(|_| refuse())?;
        Self::from_pkcs8(&Zeroizing::new(der))
    }

    /// The key in the clear, as PEM.
    #[must_use]
    pub fn to_pem(&self) -> Zeroizing<String> {
        use base64::Engine;
        let body = base64::engine::general_purpose::STANDARD.encode(&*self.pkcs8);
        let mut text = format!("{PEM_BEGIN}\n");
        for line in body.as_bytes().chunks(64) {
            text.push_str(&String::from_utf8_lossy(line));
            text.push('\n');
        }
        text.push_str(PEM_END);
        text.push('\n');
        Zeroizing::new(text)
    }

    /// The key under a passphrase: AES-256-GCM with a key drawn by PBKDF2.
    ///
    /// # Errors
    /// [`KeyError::Random`].
    pub fn to_encrypted(&self, passphrase: &str) -> Result<String, KeyError> {
        self.encrypt_with(passphrase, ROUNDS)
    }

    fn encrypt_with(&self, passphrase: &str, rounds: u32) -> Result<String, KeyError> {
        let random = SystemRandom::new();
        let (mut salt, mut nonce) = ([0; 16], [0; 12]);
        random.fill(&mut salt).map_err(|_| KeyError::Random)?;
        random.fill(&mut nonce).map_err(|_| KeyError::Random)?;
        let key = derive(passphrase, &salt, rounds)?;
        let mut ciphertext = self.pkcs8.to_vec();
        key.seal_in_place_append_tag(
            aead::Nonce::assume_unique_for_key(nonce),
            aead::Aad::from(self.public.key_id().as_bytes()),
            &mut ciphertext,
        )
        .map_err(|_| KeyError::Random)?;
        let file = EncryptedFile {
            fulmar_encrypted_key: 1,
            kdf: KDF.to_owned(),
            rounds,
            salt: hex::encode(salt),
            cipher: CIPHER.to_owned(),
            nonce: hex::encode(nonce),
            ciphertext: hex::encode(&ciphertext),
            public: self.public.clone(),
        };
        let text = serde_json::to_string_pretty(&file)
            .map_err(|e| KeyError::Form { reason: e.to_string() })?;
        Ok(text + "\n")
    }

    fn decrypt(text: &str, passphrase: &str) -> Result<Self, KeyError> {
        let form = |reason: String| KeyError::Form { reason };
        let file: EncryptedFile =
            serde_json::from_str(text).map_err(|e| form(format!("encrypted key: {e}")))?;
        if (file.fulmar_encrypted_key, file.kdf.as_str(), file.cipher.as_str()) != (1, KDF, CIPHER)
        {
            return Err(form(format!("encrypted key: expected version 1 with {KDF} and {CIPHER}")));
        }
        let bytes = |name: &str, hex: &str| {
            hex::decode(hex).map_err(|_| form(format!("encrypted key: field {name} is no hex")))
        };
        let salt = bytes("salt", &file.salt)?;
        let nonce = aead::Nonce::try_assume_unique_for_key(&bytes("nonce", &file.nonce)?)
            .map_err(|_| form("encrypted key: field nonce is not 12 bytes".to_owned()))?;
        let mut plain = Zeroizing::new(bytes("ciphertext", &file.ciphertext)?);
        let key = derive(passphrase, &salt, file.rounds)?;
        let aad = file.public.key_id();
        let plain = key
            .open_in_place(nonce, aead::Aad::from(aad.as_bytes()), &mut plain)
            .map_err(|_| KeyError::Passphrase)?;
        Self::from_pkcs8(plain)
    }
}

fn derive(passphrase: &str, salt: &[u8], rounds: u32) -> Result<aead::LessSafeKey, KeyError> {
    let count = NonZeroU32::new(rounds).filter(|r| r.get() <= ROUNDS_MAX);
    let count = count.ok_or_else(|| KeyError::Form {
        reason: format!("encrypted key: field rounds is {rounds}, allowed are 1 to {ROUNDS_MAX}"),
    })?;
    let mut key = Zeroizing::new([0; 32]);
    let algorithm = pbkdf2::PBKDF2_HMAC_SHA256;
    pbkdf2::derive(algorithm, count, salt, passphrase.as_bytes(), &mut *key);
    let key = aead::UnboundKey::new(&aead::AES_256_GCM, &*key).map_err(|_| KeyError::Random)?;
    Ok(aead::LessSafeKey::new(key))
}

impl SigningKey for Ed25519Key {
    fn public(&self) -> &PublicKey {
        &self.public
    }

    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, KeyError> {
        Ok(self.pair.sign(message).as_ref().to_vec())
    }
}

/// A key that a command holds. The command reads the message on standard input and writes the
/// signature in hex on standard output.
#[derive(Debug, Clone)]
pub struct CommandKey {
    public: PublicKey,
    program: String,
    arguments: Vec<String>,
}

impl CommandKey {
    /// A key whose public half is `public`, held by `program`. No shell is involved.
    #[must_use]
    pub fn new(public: PublicKey, program: &str, arguments: &[String]) -> Self {
        Self { public, program: program.to_owned(), arguments: arguments.to_vec() }
    }

    /// The program and its arguments.
    pub(crate) fn command(&self) -> impl Iterator<Item = &str> {
        std::iter::once(&self.program).chain(&self.arguments).map(String::as_str)
    }

    fn run(&self, message: &[u8]) -> std::io::Result<std::process::Output> {
        let mut child = Command::new(&self.program)
            .args(&self.arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        if let Some(mut input) = child.stdin.take() {
            // A command that reads nothing is told apart by its signature.
            let _ = input.write_all(message);
        }
        child.wait_with_output()
    }
}

impl SigningKey for CommandKey {
    fn public(&self) -> &PublicKey {
        &self.public
    }

    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, KeyError> {
        let program = self.program.clone();
        let output = self
            .run(message)
            .map_err(|source| KeyError::CommandRun { program: program.clone(), source })?;
        let refuse = |reason: String| KeyError::CommandSign { program: program.clone(), reason };
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            let said: String = said.trim().chars().take(500).collect();
            return Err(refuse(format!("it ended with {}: {said}", output.status)));
        }
        let signature = std::str::from_utf8(&output.stdout)
            .ok()
            .and_then(|text| hex::decode(text.trim()).ok())
            .ok_or_else(|| refuse("expected a signature in hex on its standard output".into()))?;
        let valid = self.public.verifier().is_some_and(|v| v.verify(message, &signature));
        if !valid {
            return Err(refuse(format!(
                "its signature is not one of key {} over this message",
                self.public.key_id()
            )));
        }
        Ok(signature)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_goes_round_through_pem() {
        let key = Ed25519Key::generate().unwrap();
        let again = Ed25519Key::from_file_text(&key.to_pem(), None).unwrap();
        assert_eq!(key.key_id(), again.key_id());
        let signature = again.sign(b"m").unwrap();
        assert!(key.public().verifier().unwrap().verify(b"m", &signature));
        assert!(!key.public().verifier().unwrap().verify(b"n", &signature));
    }

    #[test]
    fn an_encrypted_key_opens_with_its_passphrase_only() {
        let key = Ed25519Key::generate().unwrap();
        let text = key.encrypt_with("correct horse", 1_000).unwrap();
        assert!(!text.contains(&hex::encode(key.to_pkcs8())));
        let open = |text: &str, pass| Ed25519Key::from_file_text(text, pass);
        assert_eq!(open(&text, Some("correct horse")).unwrap().key_id(), key.key_id());
        assert!(matches!(open(&text, Some("battery")), Err(KeyError::Passphrase)));
        assert!(matches!(open(&text, None), Err(KeyError::PassphraseNeeded)));
        // The public half beside it is authenticated too.
        let other = Ed25519Key::generate().unwrap();
        let swapped = text.replace(&key.public.keyval.public, &other.public.keyval.public);
        assert!(matches!(open(&swapped, Some("correct horse")), Err(KeyError::Passphrase)));
        let endless = text.replace("\"rounds\": 1000", "\"rounds\": 4000000000");
        assert!(matches!(open(&endless, Some("x")), Err(KeyError::Form { .. })));
    }

    #[test]
    fn a_command_that_signs_something_else_is_refused() {
        let key = Ed25519Key::generate().unwrap();
        let signature = hex::encode(key.sign(b"m").unwrap());
        let command = CommandKey::new(key.public().clone(), "echo", &[signature]);
        assert_eq!(command.sign(b"m").unwrap(), key.sign(b"m").unwrap());
        assert!(matches!(command.sign(b"n"), Err(KeyError::CommandSign { .. })));
        let missing = CommandKey::new(key.public().clone(), "/nonexistent/signer", &[]);
        assert!(matches!(missing.sign(b"m"), Err(KeyError::CommandRun { .. })));
    }
}
