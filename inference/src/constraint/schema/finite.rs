//! References that lead back to themselves without an end: no value is long enough for them.
//!
//! The compiler would follow them for as long as an answer may be. Here they become `false`, which
//! it knows to be impossible: an optional property is then left out, an alternative not taken.

use serde_json::{Map, Value};

use super::definition;

/// Writes `false` for references that no finite value satisfies, in `schemas`: the root, then the
/// definitions. Which of them only references keep from having a value comes back.
pub(super) fn prune(schemas: &mut [Value]) -> Vec<usize> {
    let mut finite = vec![false; schemas.len()];
    // Each round in turn from the front and from the back: chains of references run either way.
    let mut backwards = false;
    loop {
        let mut changed = false;
        let mut look = |at: usize| {
            if !finite[at] && can_end(&schemas[at], &finite) {
                finite[at] = true;
                changed = true;
            }
        };
        if backwards {
            (0..schemas.len()).rev().for_each(&mut look);
        } else {
            (0..schemas.len()).for_each(&mut look);
        }
        if !changed {
            break;
        }
        backwards = !backwards;
    }
    let leads_on = vec![true; schemas.len()];
    let endless = |at: &usize| !finite[*at] && can_end(&schemas[*at], &leads_on);
    let endless = (0..schemas.len()).filter(endless).collect();
    for schema in schemas {
        cut(schema, &finite);
    }
    endless
}

fn is_endless(fields: &Map<String, Value>, finite: &[bool]) -> bool {
    definition(fields).is_some_and(|at| !finite.get(at).copied().unwrap_or(true))
}

fn cut(schema: &mut Value, finite: &[bool]) {
    match schema {
        Value::Object(fields) if is_endless(fields, finite) => *schema = Value::Bool(false),
        Value::Object(fields) => {
            let inner =
                fields.iter_mut().filter(|(name, _)| !matches!(name.as_str(), "const" | "enum"));
            inner.for_each(|(_, value)| cut(value, finite));
        }
        Value::Array(items) => items.iter_mut().for_each(|item| cut(item, finite)),
        _ => {}
    }
}

/// Whether a value that satisfies this may come to an end, as far as references are known to.
fn can_end(schema: &Value, finite: &[bool]) -> bool {
    let Value::Object(fields) = schema else { return schema != &Value::Bool(false) };
    let ends = |schema: &Value| can_end(schema, finite);
    let list = |name: &str| fields.get(name).and_then(Value::as_array);
    if is_endless(fields, finite)
        || !list("allOf").is_none_or(|all| all.iter().all(ends))
        || !list("anyOf").is_none_or(|any| any.iter().any(ends))
        || !list("oneOf").is_none_or(|any| any.iter().any(ends))
    {
        return false;
    }
    if fields.contains_key("const") || fields.contains_key("enum") {
        return true;
    }
    let allows = |name: &str| match fields.get("type") {
        Some(Value::String(only)) => only == name,
        Some(Value::Array(types)) => types.iter().any(|t| t == name),
        _ => true,
    };
    ["null", "boolean", "number", "integer", "string"].into_iter().any(allows)
        || (allows("object") && object_ends(fields, &ends))
        || (allows("array") && array_ends(fields, &ends))
}

fn object_ends(fields: &Map<String, Value>, ends: &impl Fn(&Value) -> bool) -> bool {
    let required = fields.get("required").and_then(Value::as_array);
    required.into_iter().flatten().filter_map(Value::as_str).all(|name| {
        let named = fields.get("properties").and_then(|properties| properties.get(name));
        // A pattern may be what rules here.
        let other = fields.get("additionalProperties");
        let other = other.filter(|_| !fields.contains_key("patternProperties"));
        named.or(other).is_none_or(ends)
    })
}

fn array_ends(fields: &Map<String, Value>, ends: &impl Fn(&Value) -> bool) -> bool {
    let least = fields.get("minItems").and_then(Value::as_u64).unwrap_or(0) as usize;
    let first = fields.get("prefixItems").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    let needed = &first[..least.min(first.len())];
    needed.iter().all(ends) && (least <= first.len() || fields.get("items").is_none_or(ends))
}
