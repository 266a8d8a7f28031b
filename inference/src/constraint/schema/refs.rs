//! Where `$ref` leads: pointers, anchors and `$id`s within one document. Nothing is fetched.

use std::collections::{HashMap, HashSet};

use serde_json::{Map, Value};

use super::keywords::{Draft, schemas_in};

/// A schema's place in its document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::constraint) struct Place {
    /// JSON pointer from the document's root.
    pub(in crate::constraint) pointer: String,
    /// Pointer of the schema whose `$id` rules here.
    pub(super) resource: String,
}

/// What references may name.
#[derive(Debug, Default)]
pub(super) struct Resources {
    /// Pointers of schemas with an `$id` of their own, and of the root.
    roots: HashSet<String>,
    /// `$id`s, as they are written, to pointers.
    ids: HashMap<String, String>,
    /// (resource, anchor) to pointers.
    anchors: HashMap<(String, String), String>,
    /// Whether all relative `$id`s and references start from one folder, so that equal texts name
    /// equal things.
    one_folder: bool,
}

impl Resources {
    pub(super) fn of(root: &Value, draft: Option<Draft>) -> Self {
        let mut resources = Self { one_folder: true, ..Self::default() };
        resources.roots.insert(String::new());
        let mut open = vec![(Place { pointer: String::new(), resource: String::new() }, root)];
        while let Some((mut place, value)) = open.pop() {
            let Value::Object(fields) = value else { continue };
            resources.note(&mut place, fields, draft);
            open.extend(schemas_in(fields).into_iter().map(|(relative, value)| {
                let pointer = format!("{}{relative}", place.pointer);
                (Place { pointer, resource: place.resource.clone() }, value)
            }));
        }
        resources
    }

    /// Notes what names a schema has.
    fn note(&mut self, place: &mut Place, fields: &Map<String, Value>, draft: Option<Draft>) {
        let text = |name: &str| fields.get(name).and_then(Value::as_str);
        let old = draft.is_some_and(|draft| draft <= Draft::Seven);
        let id = if draft == Some(Draft::Four) { text("id") } else { text("$id") };
        // In old drafts, nothing beside a `$ref` counts.
        let id = id.filter(|_| !(old && fields.contains_key("$ref")));
        if let Some(id) = id {
            match id.split_once('#') {
                Some(("", anchor)) if !anchor.is_empty() => self.anchor(place, anchor),
                _ => self.resource(place, id.trim_end_matches('#')),
            }
        }
        for name in ["$anchor", "$dynamicAnchor"] {
            if let Some(anchor) = text(name) {
                self.anchor(place, anchor);
            }
        }
    }

    fn resource(&mut self, place: &mut Place, id: &str) {
        if place.pointer.is_empty() {
            if let Some((folder, file)) = id.rsplit_once('/').filter(|_| id.contains("://"))
                && !folder.ends_with('/')
            {
                self.ids.insert(file.to_owned(), String::new());
            }
        } else {
            self.one_folder &= !id.contains(['/', ':']);
            place.resource.clone_from(&place.pointer);
            self.roots.insert(place.pointer.clone());
        }
        self.ids.insert(id.to_owned(), place.pointer.clone());
    }

    fn anchor(&mut self, place: &Place, name: &str) {
        self.anchors.insert((place.resource.clone(), name.to_owned()), place.pointer.clone());
    }

    /// The place of the schema at a pointer from the root.
    pub(super) fn place(&self, pointer: String) -> Place {
        let mut resource = pointer.as_str();
        while !self.roots.contains(resource) {
            resource = resource.rfind('/').map_or("", |at| &resource[..at]);
        }
        Place { resource: resource.to_owned(), pointer }
    }

    /// What a reference in this resource leads to, or why it leads nowhere.
    pub(super) fn resolve(&self, reference: &str, resource: &str) -> Result<Place, String> {
        let (uri, fragment) = reference.split_once('#').unwrap_or((reference, ""));
        let root = if uri.is_empty() {
            resource
        } else {
            let known = self.ids.get(uri).filter(|_| uri.contains(':') || self.one_folder);
            known.ok_or_else(|| {
                format!("\"{uri}\" is not in this schema, and nothing is fetched from elsewhere")
            })?
        };
        let fragment =
            unescaped(fragment).ok_or_else(|| format!("\"{reference}\" is not well escaped"))?;
        if fragment.is_empty() || fragment.starts_with('/') {
            return Ok(self.place(format!("{root}{fragment}")));
        }
        let anchor = self.anchors.get(&(root.to_owned(), fragment.clone()));
        let anchor = anchor.ok_or_else(|| format!("no \"$anchor\" here is \"{fragment}\""))?;
        Ok(self.place(anchor.clone()))
    }
}

/// A fragment without its percent signs.
fn unescaped(fragment: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(fragment.len());
    let mut rest = fragment.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        if byte == b'%' {
            let digits = std::str::from_utf8(rest.get(..2)?).ok()?;
            if !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
                return None;
            }
            bytes.push(u8::from_str_radix(digits, 16).ok()?);
            rest = &rest[2..];
        } else {
            bytes.push(byte);
        }
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn pointers_anchors_and_ids_lead_to_places() {
        let root = json!({
            "$id": "http://example.com/tree.json",
            "$defs": {
                "a/b": { "$anchor": "here" },
                "node": { "$id": "node", "$defs": { "inner": {} }, "$ref": "#/$defs/inner" },
            },
        });
        let resources = Resources::of(&root, None);
        let to = |reference: &str, from: &str| {
            resources.resolve(reference, from).map(|place| (place.pointer, place.resource))
        };
        let at = |pointer: &str, resource: &str| Ok((pointer.to_owned(), resource.to_owned()));
        assert_eq!(to("#", ""), at("", ""));
        assert_eq!(to("#/$defs/a~1b", ""), at("/$defs/a~1b", ""));
        assert_eq!(to("#/%24defs/node", ""), at("/$defs/node", "/$defs/node"));
        assert_eq!(to("#here", ""), at("/$defs/a~1b", ""));
        assert_eq!(
            to("#/$defs/inner", "/$defs/node"),
            at("/$defs/node/$defs/inner", "/$defs/node")
        );
        assert_eq!(to("node", ""), at("/$defs/node", "/$defs/node"));
        assert_eq!(to("http://example.com/tree.json", "/$defs/node"), at("", ""));
        assert_eq!(to("tree.json#here", "/$defs/node"), at("/$defs/a~1b", ""));
        for nowhere in ["#here", "other.json", "http://example.com/else", "#%zz"] {
            assert!(to(nowhere, "/$defs/node").is_err(), "{nowhere}");
        }
    }
}
