//! Which keyword of a schema a refusal of the compiler's is about.

use std::collections::HashSet;

use llguidance::api::TopLevelGrammar;
use serde_json::Value;

use super::schema::{Document, Place};
use super::{ConstraintError, Vocabulary, first_lines};
use crate::engine::Constraint;

/// Parts of a schema that are compiled alone to find the one to blame, at most.
const PARTS_MAX: usize = 256;
/// Bytes of such parts at most: an error may cost about as much as a sound schema.
const PARTS_BYTES_MAX: usize = 64 * 1024;
/// Keywords that may be to blame where a message names none, the likeliest first.
const LIKELIEST: [&str; 27] = [
    "oneOf",
    "allOf",
    "$ref",
    "anyOf",
    "patternProperties",
    "pattern",
    "minItems",
    "maxItems",
    "minProperties",
    "maxProperties",
    "minLength",
    "maxLength",
    "multipleOf",
    "exclusiveMinimum",
    "exclusiveMaximum",
    "minimum",
    "maximum",
    "const",
    "enum",
    "required",
    "format",
    "properties",
    "additionalProperties",
    "prefixItems",
    "additionalItems",
    "items",
    "type",
];

impl Vocabulary {
    /// The compiler's refusal of a constraint, with the keyword that it is about where it is a
    /// schema.
    pub(super) fn blame(&self, constraint: Option<&Constraint>, reason: String) -> ConstraintError {
        let Some(Constraint::JsonSchema(schema)) = constraint else {
            return ConstraintError::Grammar(first_lines(&reason));
        };
        match Document::open(schema) {
            Ok(document) => self.blame_part(&document, reason),
            Err(error) => error,
        }
    }

    /// Goes down to the smallest part that is refused for the same kind of reason.
    fn blame_part(&self, document: &Document<'_>, mut reason: String) -> ConstraintError {
        let mut place = document.start();
        let mut seen = HashSet::from([place.pointer.clone()]);
        let mut bytes_left = PARTS_BYTES_MAX;
        'down: loop {
            for part in document.parts(&place) {
                let is_new = seen.len() < PARTS_MAX && seen.insert(part.pointer.clone());
                // Where a part is `false`, the keyword around it is to blame.
                if !is_new || document.keywords(&part).is_empty() {
                    continue;
                }
                if let Some(why) = self.refused(document, &part, &mut bytes_left)
                    && is_empty(&why) == is_empty(&reason)
                {
                    (place, reason) = (part, why);
                    continue 'down;
                }
            }
            break;
        }
        let keywords = document.keywords(&place);
        let pointer = |keyword: &str| format!("{}/{keyword}", place.pointer);
        let reason = match reason.contains("oneOf constraints are not supported") {
            true => ONE_OF.to_owned(),
            false => first_lines(&reason),
        };
        match named(&keywords, &reason) {
            Some(keyword) => {
                let pointer = pointer(keyword);
                ConstraintError::Keyword { keyword: keyword.to_owned(), pointer, reason }
            }
            None => ConstraintError::Grammar(format!("schema at {:?}: {reason}", place.pointer)),
        }
    }

    /// Why the part by itself is refused, if it is.
    fn refused(
        &self,
        document: &Document<'_>,
        part: &Place,
        bytes_left: &mut usize,
    ) -> Option<String> {
        let schema = document.compiled(part).ok()?;
        *bytes_left = bytes_left.checked_sub(schema.to_string().len())?;
        if schema == Value::Bool(false) {
            return Some(EMPTY.to_owned());
        }
        self.build(TopLevelGrammar::from_json_schema(schema), None).err()
    }
}

/// What to do about `oneOf`: the compiler's own advice is not for people who ask over HTTP.
const ONE_OF: &str = "values may satisfy several alternatives of oneOf: tell them apart by their \
    types or by the value of a required property, or write anyOf";

/// How the compiler's messages about schemas without any value begin.
const EMPTY: &str = "Unsatisfiable schema";

fn is_empty(message: &str) -> bool {
    message.contains(EMPTY)
}

/// The keyword of this schema that the message names, or that is the likeliest.
fn named<'k>(keywords: &[&'k str], message: &str) -> Option<&'k str> {
    let words = || message.split(|c: char| !c.is_alphanumeric() && c != '$');
    let spoken = LIKELIEST.iter().filter(|k| words().any(|word| word == **k));
    let regex = message.to_lowercase().contains("regex").then_some(&"pattern");
    let mut likely = spoken.chain(regex).chain(&LIKELIEST);
    likely.find_map(|likely| keywords.iter().find(|k| *k == likely)).copied()
}
