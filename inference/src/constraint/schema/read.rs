//! One schema's keywords, each in turn.

use serde_json::{Map, Value, json};

use super::keywords::{Draft, misplaced};
use super::refs::Place;
use super::{Definitions, Document, names, pattern, pointer, refusal, values};
use crate::constraint::ConstraintError;

const TYPES: [&str; 7] = ["null", "boolean", "integer", "number", "string", "array", "object"];
/// Keywords that apply schemas to the same value: what they look at, `unevaluated…` does not.
const IN_PLACE: [&str; 12] = [
    "$ref",
    "$dynamicRef",
    "$recursiveRef",
    "allOf",
    "anyOf",
    "oneOf",
    "not",
    "if",
    "then",
    "else",
    "dependentSchemas",
    "contains",
];
/// `dependent…` of one schema at most: each doubles the alternatives.
const DEPENDENCIES_MAX: usize = 5;

pub(super) struct Reader<'d, 's> {
    pub(super) document: &'d Document<'s>,
    pub(super) definitions: &'d mut Definitions,
}

/// A schema on its way to the compiler.
struct Draught<'v> {
    fields: &'v Map<String, Value>,
    place: &'v Place,
    out: Map<String, Value>,
    /// Schemas that hold as well.
    also: Vec<Value>,
}

impl Draught<'_> {
    fn refuse(&self, keyword: &str, reason: &str) -> ConstraintError {
        refusal(&self.place.pointer, keyword, reason)
    }

    fn put(&mut self, keyword: &str, value: Value) {
        self.out.insert(keyword.to_owned(), value);
    }

    /// A schema that holds as well, for values of this schema's type.
    fn also(&mut self, mut schema: Value) {
        if let (Some(named), Value::Object(fields)) = (self.fields.get("type"), &mut schema) {
            fields.insert("type".to_owned(), named.clone());
        }
        self.also.push(schema);
    }
}

type Read<T = ()> = Result<T, ConstraintError>;

impl Reader<'_, '_> {
    /// The schema as the compiler takes it.
    pub(super) fn schema(&mut self, value: &Value, place: &Place) -> Read<Value> {
        let fields = match value {
            Value::Object(fields) => fields,
            Value::Bool(_) => return Ok(value.clone()),
            _ => {
                return Err(ConstraintError::Grammar(format!(
                    "schema at {:?} is neither an object nor true or false",
                    place.pointer
                )));
            }
        };
        let mut draught = Draught { fields, place, out: Map::new(), also: Vec::new() };
        for (name, value) in fields {
            if let Some(reason) = misplaced(name, self.document.draft) {
                return Err(draught.refuse(name, &reason));
            }
            self.keyword(name, value, &mut draught)?;
        }
        values::bounds(&mut draught.out);
        self.format(&mut draught)?;
        countable(&draught)?;
        let Draught { mut out, also, .. } = draught;
        if !also.is_empty() {
            match out.get_mut("allOf") {
                Some(Value::Array(all)) => all.extend(also),
                _ => drop(out.insert("allOf".to_owned(), Value::Array(also))),
            }
        }
        Ok(Value::Object(out))
    }

    fn keyword(&mut self, name: &str, value: &Value, draught: &mut Draught<'_>) -> Read {
        match name {
            "type" => types(value, draught),
            "const" | "enum" => listed(name, value, draught),
            "$ref" => self.reference(value, draught),
            "allOf" | "anyOf" | "oneOf" | "prefixItems" => self.list(name, name, value, draught),
            "properties" | "patternProperties" => self.map(name, value, draught),
            "additionalProperties" => self.one(name, name, value, draught),
            "propertyNames" => self.names(value, draught),
            "required" => required(value, draught),
            "dependencies" | "dependentRequired" | "dependentSchemas" => {
                self.dependencies(name, value, draught)
            }
            "unevaluatedProperties" | "unevaluatedItems" => self.unevaluated(name, value, draught),
            "items" => self.items(value, draught),
            "minItems" | "maxItems" | "minLength" | "maxLength" | "minProperties"
            | "maxProperties" => count(name, value, draught),
            "minimum" | "maximum" | "exclusiveMinimum" | "exclusiveMaximum" | "multipleOf" => {
                number(name, value, draught)
            }
            "pattern" => expression(name, value, draught),
            "contentEncoding" | "contentMediaType" => content(name, value, draught),
            "not" | "uniqueItems" | "contains" | "if" | "$dynamicRef" | "$recursiveRef" => {
                unsupported(name, value, draught)
            }
            "$schema" if !draught.place.pointer.is_empty() => {
                let same = value.as_str().and_then(Draft::named) == self.document.draft;
                same.then_some(())
                    .ok_or_else(|| draught.refuse(name, "one schema can't be in two drafts"))
            }
            // `format` comes last; the rest says nothing, or is said by another keyword.
            _ => Ok(()),
        }
    }

    fn child(&self, draught: &Draught<'_>, segments: &[&str]) -> Place {
        self.document.resources.place(format!("{}{}", draught.place.pointer, pointer(segments)))
    }

    fn reference(&mut self, value: &Value, draught: &mut Draught<'_>) -> Read {
        let Some(reference) = value.as_str() else {
            return Err(draught.refuse("$ref", "expected a text"));
        };
        let resources = &self.document.resources;
        let place = resources
            .resolve(reference, &draught.place.resource)
            .map_err(|reason| draught.refuse("$ref", &reason))?;
        if self.document.root.pointer(&place.pointer).is_none() {
            let reason = format!("\"{reference}\" names nothing in this schema");
            return Err(draught.refuse("$ref", &reason));
        }
        let reference = self.definitions.to(place, &draught.place.pointer);
        draught.put("$ref", Value::String(reference));
        Ok(())
    }

    fn one(&mut self, name: &str, as_name: &str, value: &Value, draught: &mut Draught<'_>) -> Read {
        let place = self.child(draught, &[name]);
        let schema = self.schema(value, &place)?;
        draught.put(as_name, schema);
        Ok(())
    }

    fn list(
        &mut self,
        name: &str,
        as_name: &str,
        value: &Value,
        draught: &mut Draught<'_>,
    ) -> Read {
        let Some(items) = value.as_array() else {
            return Err(draught.refuse(name, "expected a list of schemas"));
        };
        let mut schemas = Vec::with_capacity(items.len());
        for (at, item) in items.iter().enumerate() {
            schemas.push(self.schema(item, &self.child(draught, &[name, &at.to_string()]))?);
        }
        draught.put(as_name, Value::Array(schemas));
        Ok(())
    }

    fn map(&mut self, name: &str, value: &Value, draught: &mut Draught<'_>) -> Read {
        let Some(inner) = value.as_object() else {
            return Err(draught.refuse(name, "expected an object of schemas"));
        };
        let mut schemas = Map::new();
        for (key, value) in inner {
            let schema = self.schema(value, &self.child(draught, &[name, key]))?;
            let key = if name == "patternProperties" {
                pattern::ecma(key).map_err(|reason| draught.refuse(name, &reason))?
            } else {
                writable(name, key, draught)?;
                key.clone()
            };
            schemas.insert(key, schema);
        }
        draught.put(name, Value::Object(schemas));
        Ok(())
    }

    /// `items` as the last draft has it; before, a list of them was what `prefixItems` is now.
    fn items(&mut self, value: &Value, draught: &mut Draught<'_>) -> Read {
        if !value.is_array() {
            return self.one("items", "items", value, draught);
        }
        if self.document.draft == Some(Draft::Of2020) || draught.fields.contains_key("prefixItems")
        {
            return Err(draught.refuse("items", "write a list of schemas as \"prefixItems\""));
        }
        self.list("items", "prefixItems", value, draught)?;
        match draught.fields.get("additionalItems") {
            Some(other) => self.one("additionalItems", "items", other, draught),
            None => Ok(()),
        }
    }

    /// What nothing else in the schema looked at: where nothing but properties and items did, that
    /// is what is additional.
    fn unevaluated(&mut self, name: &str, value: &Value, draught: &mut Draught<'_>) -> Read {
        if value == &Value::Bool(true) {
            return Ok(());
        }
        if IN_PLACE.iter().any(|keyword| draught.fields.contains_key(*keyword)) {
            return Err(draught.refuse(name, "it stands beside schemas for the same value"));
        }
        let other = if name == "unevaluatedItems" { "items" } else { "additionalProperties" };
        match draught.fields.get(other) {
            None => self.one(name, other, value, draught),
            Some(Value::Array(_)) if !draught.fields.contains_key("additionalItems") => {
                self.one(name, other, value, draught)
            }
            Some(_) => Ok(()),
        }
    }

    /// Names by a list or a pattern are properties by a list or a pattern.
    fn names(&mut self, value: &Value, draught: &mut Draught<'_>) -> Read {
        let place = self.child(draught, &["propertyNames"]);
        self.schema(value, &place)?;
        let mut named = value;
        if let Some(reference) = value.get("$ref").and_then(Value::as_str)
            && value.as_object().is_some_and(|fields| fields.len() == 1)
        {
            let target = self.document.resources.resolve(reference, &place.resource).ok();
            named = target.and_then(|t| self.document.root.pointer(&t.pointer)).unwrap_or(value);
        }
        match names::as_properties(named) {
            Ok(Some(properties)) => draught.also(properties),
            Ok(None) => {}
            Err(reason) => return Err(draught.refuse("propertyNames", &reason)),
        }
        Ok(())
    }

    /// Either the property is not there, or what depends on it holds.
    fn dependencies(&mut self, name: &str, value: &Value, draught: &mut Draught<'_>) -> Read {
        let Some(inner) = value.as_object() else {
            return Err(draught.refuse(name, "expected an object"));
        };
        if inner.len() > DEPENDENCIES_MAX {
            let reason = format!("{} dependencies, at most {DEPENDENCIES_MAX}", inner.len());
            return Err(draught.refuse(name, &reason));
        }
        for (key, value) in inner {
            writable(name, key, draught)?;
            let then = match value {
                Value::Array(names) => {
                    let mut required = vec![json!(key)];
                    required.extend(names.iter().cloned());
                    if !required.iter().all(Value::is_string) {
                        return Err(draught.refuse(name, "expected a list of names"));
                    }
                    json!({ "required": required })
                }
                _ if name != "dependentRequired" => {
                    let schema = self.schema(value, &self.child(draught, &[name, key]))?;
                    json!({ "required": [key], "allOf": [schema] })
                }
                _ => return Err(draught.refuse(name, "expected a list of names")),
            };
            draught.also(json!({ "anyOf": [{ "properties": { key: false } }, then] }));
        }
        Ok(())
    }

    fn format(&self, draught: &mut Draught<'_>) -> Read {
        let Some(value) = draught.fields.get("format") else { return Ok(()) };
        let known = value.as_str().and_then(|name| values::format(name, &mut draught.out));
        match known {
            Some(None) => Ok(()),
            Some(Some(Value::Object(more))) if !draught.out.contains_key("pattern") => {
                draught.out.extend(more);
                Ok(())
            }
            Some(Some(more)) => {
                draught.also(more);
                Ok(())
            }
            None => Err(draught.refuse("format", &format!("{value} is not a format it knows"))),
        }
    }
}

fn types(value: &Value, draught: &mut Draught<'_>) -> Read {
    let known = |value: &Value| value.as_str().is_some_and(|name| TYPES.contains(&name));
    let sound = match value {
        Value::Array(types) => !types.is_empty() && types.iter().all(known),
        one => known(one),
    };
    if !sound {
        let reason = format!("found {value}, expected some of {}", TYPES.join(", "));
        return Err(draught.refuse("type", &reason));
    }
    draught.put("type", value.clone());
    Ok(())
}

fn listed(name: &str, value: &Value, draught: &mut Draught<'_>) -> Read {
    if name == "enum" && value.as_array().is_none_or(Vec::is_empty) {
        return Err(draught.refuse(name, "expected a list of at least one value"));
    }
    if let Some(reason) = values::unwritable(value) {
        return Err(draught.refuse(name, reason));
    }
    draught.put(name, value.clone());
    Ok(())
}

fn writable(keyword: &str, name: &str, draught: &Draught<'_>) -> Read {
    match values::unwritable_text(name) {
        Some(reason) => Err(draught.refuse(keyword, reason)),
        None => Ok(()),
    }
}

fn required(value: &Value, draught: &mut Draught<'_>) -> Read {
    let names = value.as_array().filter(|names| names.iter().all(Value::is_string));
    let Some(names) = names else {
        return Err(draught.refuse("required", "expected a list of names"));
    };
    for name in names {
        writable("required", name.as_str().unwrap_or(""), draught)?;
    }
    draught.put("required", value.clone());
    Ok(())
}

fn count(name: &str, value: &Value, draught: &mut Draught<'_>) -> Read {
    let whole = value.as_f64().filter(|n| n.fract() == 0.0 && *n >= 0.0 && *n <= 1e9);
    let Some(whole) = value.as_u64().or(whole.map(|n| n as u64)).filter(|n| *n <= 1_000_000_000)
    else {
        let reason = format!("found {value}, expected a whole number from 0 to 1000000000");
        return Err(draught.refuse(name, &reason));
    };
    draught.put(name, json!(whole));
    Ok(())
}

fn number(name: &str, value: &Value, draught: &mut Draught<'_>) -> Read {
    let old = value.is_boolean() && name.starts_with("exclusive");
    let sound = match value.as_f64() {
        Some(n) => n.is_finite() && (name != "multipleOf" || n > 0.0),
        None => old,
    };
    if !sound {
        let what = if name == "multipleOf" { "a number above 0" } else { "a number" };
        return Err(draught.refuse(name, &format!("found {value}, expected {what}")));
    }
    draught.put(name, value.clone());
    Ok(())
}

fn expression(name: &str, value: &Value, draught: &mut Draught<'_>) -> Read {
    let text = value.as_str().ok_or_else(|| draught.refuse(name, "expected a text"))?;
    let pattern = pattern::ecma(text).map_err(|reason| draught.refuse(name, &reason))?;
    draught.put(name, Value::String(pattern));
    Ok(())
}

/// Base64 is followed; another encoding is refused, as is a type where a draft may demand it.
fn content(name: &str, value: &Value, draught: &mut Draught<'_>) -> Read {
    match (name, value.as_str()) {
        ("contentEncoding", Some("base64")) => {
            draught.also.push(json!({ "pattern": format!("^(?:{})$", pattern::BASE64) }));
            Ok(())
        }
        ("contentMediaType", Some(kind)) if !kind.contains("json") => Ok(()),
        _ => Err(draught.refuse(name, "it can't be followed within a text")),
    }
}

/// Keywords that can't be followed, but for values that demand nothing.
fn unsupported(name: &str, value: &Value, draught: &mut Draught<'_>) -> Read {
    let has = |keyword: &str| draught.fields.contains_key(keyword);
    let at_most_one =
        draught.fields.get("maxItems").and_then(Value::as_f64).is_some_and(|n| n < 2.0);
    let (idle, reason) = match name {
        "not" => (value == &Value::Bool(false), "what a value is not can't be followed"),
        "uniqueItems" => (
            value == &Value::Bool(false) || at_most_one,
            "items can't be compared with each other while they are written",
        ),
        "if" => (!has("then") && !has("else"), "write the cases as \"anyOf\""),
        "contains" => (false, "items can't be counted while they are written; use \"items\""),
        _ => (false, "only \"$ref\" can be followed"),
    };
    if idle { Ok(()) } else { Err(draught.refuse(name, reason)) }
}

/// Names that no keyword lists may come twice, so a least number of them can't be kept.
fn countable(draught: &Draught<'_>) -> Read {
    let least = draught.out.get("minProperties").and_then(Value::as_u64).unwrap_or(0) as usize;
    let list = |name: &str| draught.out.get(name).and_then(Value::as_array).map_or(0, Vec::len);
    let closed = draught.out.get("additionalProperties") == Some(&Value::Bool(false))
        && !draught.out.contains_key("patternProperties");
    if least > list("required") + 1 && !closed && values::allows(&draught.out, "object") {
        let reason = "more than one name beyond \"required\" can't be counted on";
        return Err(draught.refuse("minProperties", reason));
    }
    Ok(())
}
