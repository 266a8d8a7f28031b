//! A JSON schema, read: each keyword is followed, refused with its place, or says nothing about
//! values.
//!
//! What comes out is written in the few keywords that the compiler follows exactly, whatever draft
//! the schema was in: references lead to definitions at the root, old forms are written as new ones,
//! bounds and formats are those that every validator agrees on. Nothing that narrows the values is
//! left out; some things are narrower than asked.

mod disjoint;
mod finite;
mod keywords;
mod names;
mod pattern;
mod read;
mod refs;
mod values;

use std::collections::HashMap;

use serde_json::{Map, Value, json};

use super::ConstraintError;
use keywords::Draft;
use read::Reader;
pub(super) use refs::Place;
use refs::Resources;

/// References to different schemas at most.
const DEFINITIONS_MAX: usize = 2000;
/// Where the definitions lie in what comes out.
const DEFINITION: &str = "#/$defs/r";

/// A schema, with an index of what its references may name.
pub(super) struct Document<'s> {
    root: &'s Value,
    draft: Option<Draft>,
    resources: Resources,
}

impl<'s> Document<'s> {
    /// Reads where the schema's parts lie. Its nesting is bounded already.
    ///
    /// # Errors
    /// [`ConstraintError::Keyword`] for a `$schema` that is not known.
    pub(super) fn open(root: &'s Value) -> Result<Self, ConstraintError> {
        let draft = match root.get("$schema") {
            None => None,
            Some(named) => {
                Some(named.as_str().and_then(Draft::named).ok_or_else(|| {
                    refusal("", "$schema", &format!(
                        "found {named}, expected one of json-schema.org's drafts 4, 6, 7, 2019-09 or 2020-12"
                    ))
                })?)
            }
        };
        Ok(Self { root, draft, resources: Resources::of(root, draft) })
    }

    /// The place of the whole.
    pub(super) fn start(&self) -> Place {
        self.resources.place(String::new())
    }

    /// The schema at a place as the compiler takes it.
    ///
    /// # Errors
    /// [`ConstraintError::Keyword`] for what can't be followed,
    /// [`ConstraintError::TooBig`] for too many references.
    pub(super) fn compiled(&self, start: &Place) -> Result<Value, ConstraintError> {
        let mut definitions = Definitions::default();
        let mut schemas = vec![self.schema(start, &mut definitions)?];
        while let Some(place) = definitions.places.get(schemas.len() - 1).cloned() {
            if schemas.len() > DEFINITIONS_MAX {
                let found = definitions.places.len();
                let what = "references to different schemas";
                return Err(ConstraintError::TooBig { what, found, max: DEFINITIONS_MAX });
            }
            schemas.push(self.schema(&place, &mut definitions)?);
        }
        // Definitions are counted from 0; the root stands before them here.
        let endless = finite::prune(&mut schemas);
        if endless.contains(&0) {
            let first = endless.iter().find(|at| **at > 0).map_or(0, |at| at - 1);
            let at = definitions.asked_at.get(first).map_or("", String::as_str);
            let reason = "it leads back to itself without an end, so no value is valid";
            return Err(refusal(at, "$ref", reason));
        }
        disjoint::settle(&mut schemas);
        Ok(assemble(schemas))
    }

    /// The schemas that the one at this place is made of, where it is sound.
    pub(super) fn parts(&self, place: &Place) -> Vec<Place> {
        let Some(fields) = self.root.pointer(&place.pointer).and_then(Value::as_object) else {
            return Vec::new();
        };
        let mut parts: Vec<Place> = keywords::schemas_in(fields)
            .into_iter()
            .filter(|(relative, _)| {
                !["/$defs/", "/definitions/"].iter().any(|start| relative.starts_with(start))
            })
            .map(|(relative, _)| self.resources.place(format!("{}{relative}", place.pointer)))
            .collect();
        let reference = fields.get("$ref").and_then(Value::as_str);
        parts.extend(reference.and_then(|r| self.resources.resolve(r, &place.resource).ok()));
        parts
    }

    /// The keywords of the schema at this place.
    pub(super) fn keywords(&self, place: &Place) -> Vec<&'s str> {
        let fields = self.root.pointer(&place.pointer).and_then(Value::as_object);
        fields.into_iter().flat_map(Map::keys).map(String::as_str).collect()
    }

    fn schema(&self, at: &Place, definitions: &mut Definitions) -> Result<Value, ConstraintError> {
        let Some(value) = self.root.pointer(&at.pointer) else {
            return Err(refusal(&at.pointer, "$ref", "nothing is there"));
        };
        Reader { document: self, definitions }.schema(value, at)
    }
}

/// Schemas that are referred to, in the order in which they were first.
#[derive(Default)]
struct Definitions {
    places: Vec<Place>,
    /// The schema that referred to it first.
    asked_at: Vec<String>,
    numbers: HashMap<String, usize>,
}

impl Definitions {
    /// The reference to the schema at a place.
    fn to(&mut self, place: Place, from: &str) -> String {
        let next = self.places.len();
        let number = *self.numbers.entry(place.pointer.clone()).or_insert(next);
        if number == next {
            self.places.push(place);
            self.asked_at.push(from.to_owned());
        }
        format!("{DEFINITION}{number}")
    }
}

/// Where among root and definitions the schema lies that these fields refer to.
fn definition(fields: &Map<String, Value>) -> Option<usize> {
    let reference = fields.get("$ref")?.as_str()?;
    reference.strip_prefix(DEFINITION)?.parse::<usize>().ok().map(|number| number + 1)
}

/// Root and definitions as one schema, with options for the compiler: white space is fixed, so that
/// a model can't spend its answer on it; each character has one spelling, so that a name can't be
/// taken twice.
fn assemble(schemas: Vec<Value>) -> Value {
    let mut schemas = schemas.into_iter();
    let mut root = match schemas.next() {
        Some(Value::Object(fields)) => fields,
        Some(Value::Bool(false)) => return Value::Bool(false),
        _ => Map::new(),
    };
    let definitions: Map<String, Value> =
        schemas.enumerate().map(|(number, schema)| (format!("r{number}"), schema)).collect();
    if !definitions.is_empty() {
        root.insert("$defs".to_owned(), Value::Object(definitions));
    }
    let options = json!({ "whitespace_flexible": false, "json_allowed_escapes": "nrbtf\\\"" });
    root.insert("x-guidance".to_owned(), options);
    Value::Object(root)
}

/// The refusal of a keyword of the schema at `pointer`.
fn refusal(pointer: &str, keyword: &str, reason: &str) -> ConstraintError {
    ConstraintError::Keyword {
        keyword: keyword.to_owned(),
        pointer: format!("{pointer}{}", self::pointer(&[keyword])),
        reason: reason.to_owned(),
    }
}

/// A JSON pointer of these segments.
fn pointer(segments: &[&str]) -> String {
    segments.iter().map(|s| format!("/{}", s.replace('~', "~0").replace('/', "~1"))).collect()
}

#[cfg(test)]
mod tests;
