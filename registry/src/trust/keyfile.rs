//! Files that hold a key: one that signs (PEM, encrypted, or a command to run), or a public half to
//! be named.

use serde::{Deserialize, Serialize};

use super::key::PublicKey;
use super::signing::{CommandKey, Ed25519Key, KeyError, SigningKey};

/// What a key file holds.
#[derive(Debug)]
pub enum KeyFile {
    /// A key that signs by itself.
    Ed25519(Ed25519Key),
    /// A command that signs.
    Command(CommandKey),
    /// A public half.
    Public(PublicKey),
}

/// A command that signs, as a file.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct CommandFile {
    fulmar_command_key: u32,
    /// The program and its arguments; no shell is involved.
    command: Vec<String>,
    public: PublicKey,
}

impl CommandKey {
    /// The key as a file's text, which [`KeyFile::from_text`] reads again.
    ///
    /// # Errors
    /// [`KeyError::Form`].
    pub fn to_file_text(&self) -> Result<String, KeyError> {
        let file = CommandFile {
            fulmar_command_key: 1,
            command: self.command().map(str::to_owned).collect(),
            public: self.public().clone(),
        };
        let text = serde_json::to_string_pretty(&file);
        Ok(text.map_err(|e| KeyError::Form { reason: e.to_string() })? + "\n")
    }
}

impl KeyFile {
    /// Reads a key file's text. `passphrase` is asked for one only when the file is encrypted.
    ///
    /// # Errors
    /// [`KeyError::Form`] naming what was expected, or what `passphrase` and the decryption say.
    pub fn from_text(
        text: &str,
        passphrase: impl FnOnce() -> Result<String, KeyError>,
    ) -> Result<Self, KeyError> {
        let form = |reason: String| KeyError::Form { reason };
        if !text.trim_start().starts_with('{') {
            return Ed25519Key::from_file_text(text, None).map(Self::Ed25519);
        }
        let value: serde_json::Value =
            serde_json::from_str(text).map_err(|e| form(format!("expected JSON: {e}")))?;
        if value.get("fulmar_encrypted_key").is_some() {
            let passphrase = zeroize::Zeroizing::new(passphrase()?);
            return Ed25519Key::from_file_text(text, Some(&passphrase)).map(Self::Ed25519);
        }
        if value.get("fulmar_command_key").is_some() {
            let file: CommandFile = serde_json::from_value(value)
                .map_err(|e| form(format!("expected a command that signs: {e}")))?;
            let [program, arguments @ ..] = file.command.as_slice() else {
                return Err(form("field command is empty".to_owned()));
            };
            return Ok(Self::Command(CommandKey::new(file.public, program, arguments)));
        }
        let public: PublicKey = serde_json::from_value(value).map_err(|e| {
            form(format!(
                "expected a key that signs, or a public key with keytype, scheme and keyval: {e}"
            ))
        })?;
        if !public.is_known() {
            return Err(form(format!(
                "clients cannot check keys of type {:?} with scheme {:?} and this value",
                public.keytype, public.scheme
            )));
        }
        Ok(Self::Public(public))
    }

    /// The public half.
    #[must_use]
    pub fn public(&self) -> &PublicKey {
        match self {
            Self::Ed25519(key) => key.public(),
            Self::Command(key) => key.public(),
            Self::Public(key) => key,
        }
    }

    /// The key, where it signs.
    #[must_use]
    pub fn signing(&self) -> Option<&dyn SigningKey> {
        match self {
            Self::Ed25519(key) => Some(key),
            Self::Command(key) => Some(key),
            Self::Public(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<KeyFile, KeyError> {
        KeyFile::from_text(text, || Err(KeyError::PassphraseNeeded))
    }

    #[test]
    fn each_form_is_told_by_its_content() {
        let key = Ed25519Key::generate().unwrap();
        let public = serde_json::to_string(key.public()).unwrap();
        let command = format!(r#"{{"fulmar_command_key":1,"command":["true"],"public":{public}}}"#);
        let none = format!(r#"{{"fulmar_command_key":1,"command":[],"public":{public}}}"#);
        assert!(read(&key.to_pem()).unwrap().signing().is_some());
        assert!(read(&command).unwrap().signing().is_some());
        assert!(read(&public).unwrap().signing().is_none());
        assert_eq!(read(&public).unwrap().public(), key.public());
        for wrong in ["", "{", "{}", &none, &public.replace("ed25519", "md5")] {
            assert!(matches!(read(wrong), Err(KeyError::Form { .. })), "{wrong}");
        }
        let arguments = ["-s".to_owned(), "two words".to_owned()];
        let written = CommandKey::new(key.public().clone(), "signer", &arguments);
        let text = written.to_file_text().unwrap();
        let KeyFile::Command(again) = read(&text).unwrap() else { panic!("{text}") };
        assert!(again.command().eq(["signer", "-s", "two words"]));
    }
}
