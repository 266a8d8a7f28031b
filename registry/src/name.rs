//! Names of models as people know them: `namespace/name:tag`.
//!
//! Invariants: every part is 1 to 64 characters out of `a-z 0-9 . _ -`, begins with a letter or a
//! digit, and holds no `..`; so a name is safe as a path, a URL segment and a TUF target path, and
//! two names never differ by case alone. A tag may have capital letters (quantisations are written
//! `Q4_K_M`), yet two tags that differ by case alone are different names.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Longest part of a name, in bytes.
pub const PART_LEN_MAX: usize = 64;

const DEFAULT_NAMESPACE: &str = "library";
const DEFAULT_TAG: &str = "latest";

/// A model's full name.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ModelName {
    namespace: String,
    name: String,
    tag: String,
}

/// A text that is no model name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// One part breaks the rules for parts.
    #[error(
        "the {part} {found:?} of model name {whole:?} must be 1 to {PART_LEN_MAX} characters out \
         of a-z 0-9 . _ - (a tag also A-Z), begin with a letter or digit and not hold '..'"
    )]
    Part {
        /// `namespace`, `name` or `tag`.
        part: &'static str,
        /// The part as found.
        found: String,
        /// The whole text, cut after 200 characters.
        whole: String,
    },
    /// Too many slashes, or a slash in the tag.
    #[error("model name {whole:?} is not of the form [namespace/]name[:tag]")]
    Form {
        /// The whole text, cut after 200 characters.
        whole: String,
    },
    /// A target path of the registry that no model name leads to.
    #[error("target path {path:?} is not of the form namespace/name/tag.json")]
    TargetPath {
        /// The path, cut after 200 characters.
        path: String,
    },
}

impl ModelName {
    /// A name out of its three parts.
    ///
    /// # Errors
    /// [`NameError::Part`] for the first part that breaks the rules.
    pub fn new(namespace: &str, name: &str, tag: &str) -> Result<Self, NameError> {
        let whole = || cut(&format!("{namespace}/{name}:{tag}"));
        for (part, found) in [("namespace", namespace), ("name", name), ("tag", tag)] {
            if !part_is_valid(found, part == "tag") {
                return Err(NameError::Part { part, found: cut(found), whole: whole() });
            }
        }
        Ok(Self { namespace: namespace.to_owned(), name: name.to_owned(), tag: tag.to_owned() })
    }

    /// The publisher's part.
    #[must_use]
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// The model's part, without namespace and tag.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The variant's part.
    #[must_use]
    pub fn tag(&self) -> &str {
        &self.tag
    }

    /// The TUF target path of this model's manifest: `namespace/name/tag.json`.
    #[must_use]
    pub fn target_path(&self) -> String {
        format!("{}/{}/{}.json", self.namespace, self.name, self.tag)
    }

    /// The name whose [`ModelName::target_path`] is `path`.
    ///
    /// # Errors
    /// [`NameError`] when there is none.
    pub fn from_target_path(path: &str) -> Result<Self, NameError> {
        let refuse = || NameError::TargetPath { path: cut(path) };
        let stem = path.strip_suffix(".json").ok_or_else(refuse)?;
        let mut parts = stem.split('/');
        let (Some(namespace), Some(name), Some(tag), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(refuse());
        };
        Self::new(namespace, name, tag)
    }

    /// As short as it can be said: without the default namespace and the default tag.
    #[must_use]
    pub fn short(&self) -> String {
        let mut text = String::new();
        if self.namespace != DEFAULT_NAMESPACE {
            text.push_str(&self.namespace);
            text.push('/');
        }
        text.push_str(&self.name);
        if self.tag != DEFAULT_TAG {
            text.push(':');
            text.push_str(&self.tag);
        }
        text
    }
}

fn cut(text: &str) -> String {
    text.chars().take(200).collect()
}

fn part_is_valid(part: &str, capitals: bool) -> bool {
    let bytes = part.as_bytes();
    let allowed = |b: &u8| match b {
        b'a'..=b'z' | b'0'..=b'9' | b'.' | b'_' | b'-' => true,
        b'A'..=b'Z' => capitals,
        _ => false,
    };
    (1..=PART_LEN_MAX).contains(&bytes.len())
        && bytes.first().is_some_and(u8::is_ascii_alphanumeric)
        && bytes.iter().all(allowed)
        && !part.contains("..")
}

impl FromStr for ModelName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let (path, tag) = text.split_once(':').unwrap_or((text, DEFAULT_TAG));
        let (namespace, name) = path.split_once('/').unwrap_or((DEFAULT_NAMESPACE, path));
        if name.contains('/') || tag.contains('/') || tag.contains(':') {
            return Err(NameError::Form { whole: cut(text) });
        }
        Self::new(namespace, name, tag)
    }
}

impl fmt::Display for ModelName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}:{}", self.namespace, self.name, self.tag)
    }
}

impl fmt::Debug for ModelName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for ModelName {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ModelName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn defaults_fill_what_is_left_out() {
        let name: ModelName = "demo".parse().unwrap();
        assert_eq!(name.to_string(), "library/demo:latest");
        assert_eq!(name.short(), "demo");
        let name: ModelName = "fulmar/demo:Q8_0".parse().unwrap();
        assert_eq!(name.target_path(), "fulmar/demo/Q8_0.json");
        assert_eq!(name.short(), "fulmar/demo:Q8_0");
    }

    #[test]
    fn what_could_climb_out_of_a_folder_is_no_name() {
        for text in [
            "", "/", "a/", "/a", "a:", ":a", "..", "../a", "a/..", "a/b/c", "a:b:c", "a:b/c", ".a",
            "-a", "a/.b", "a..b", "A", "a/B", "a b", "a\0", "a%2f", "ä", "a\\b", "a/b:..",
        ] {
            assert!(text.parse::<ModelName>().is_err(), "{text:?}");
        }
        assert!("a".repeat(64).parse::<ModelName>().is_ok());
        assert!("a".repeat(65).parse::<ModelName>().is_err());
    }

    proptest! {
        #[test]
        fn every_name_goes_round_through_text_and_target_path(
            namespace in "[a-z0-9][a-z0-9_-]{0,8}",
            name in "[a-z0-9][a-z0-9._-]{0,8}",
            tag in "[A-Za-z0-9][A-Za-z0-9._-]{0,8}",
        ) {
            prop_assume!(!name.contains("..") && !tag.contains(".."));
            let whole = ModelName::new(&namespace, &name, &tag).unwrap();
            prop_assert_eq!(&whole.to_string().parse::<ModelName>().unwrap(), &whole);
            prop_assert_eq!(&whole.short().parse::<ModelName>().unwrap(), &whole);
            prop_assert_eq!(&ModelName::from_target_path(&whole.target_path()).unwrap(), &whole);
        }

        #[test]
        fn no_text_panics(text in ".{0,40}") {
            let _ = text.parse::<ModelName>();
            let _ = ModelName::from_target_path(&text);
        }
    }
}
