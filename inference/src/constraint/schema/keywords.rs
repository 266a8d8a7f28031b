//! Which keywords there are, in which drafts, and where schemas lie in them.

use serde_json::{Map, Value};

use super::pointer;

/// A dialect that `$schema` may name. A schema that names none may use every draft's keywords.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Draft {
    Four,
    Six,
    Seven,
    Of2019,
    Of2020,
}

impl Draft {
    pub(super) fn named(uri: &str) -> Option<Self> {
        let path = uri.strip_prefix("https://").or_else(|| uri.strip_prefix("http://"))?;
        Some(match path.trim_end_matches('#') {
            "json-schema.org/draft-04/schema" => Self::Four,
            "json-schema.org/draft-06/schema" => Self::Six,
            "json-schema.org/draft-07/schema" => Self::Seven,
            "json-schema.org/draft/2019-09/schema" => Self::Of2019,
            "json-schema.org/draft/2020-12/schema" => Self::Of2020,
            _ => return None,
        })
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Four => "draft 4",
            Self::Six => "draft 6",
            Self::Seven => "draft 7",
            Self::Of2019 => "draft 2019-09",
            Self::Of2020 => "draft 2020-12",
        }
    }
}

/// What schemas a keyword's value holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Holds {
    /// None: the value is data.
    Data,
    /// The value is one.
    One,
    /// One, or a list of them.
    OneOrList,
    /// A list.
    List,
    /// One behind each name; what is no schema there (`dependencies`) is data.
    Map,
}

/// A keyword with the first and the last draft that have it.
type Keyword = (&'static str, Draft, Draft, Holds);

const KEYWORDS: [Keyword; 58] = {
    use Draft::{Four, Of2019, Of2020, Seven, Six};
    use Holds::{Data, List, Map, One, OneOrList};
    [
        ("$ref", Four, Of2020, Data),
        ("type", Four, Of2020, Data),
        ("enum", Four, Of2020, Data),
        ("const", Six, Of2020, Data),
        ("allOf", Four, Of2020, List),
        ("anyOf", Four, Of2020, List),
        ("oneOf", Four, Of2020, List),
        ("not", Four, Of2020, One),
        ("if", Seven, Of2020, One),
        ("then", Seven, Of2020, One),
        ("else", Seven, Of2020, One),
        ("properties", Four, Of2020, Map),
        ("patternProperties", Four, Of2020, Map),
        ("additionalProperties", Four, Of2020, One),
        ("propertyNames", Six, Of2020, One),
        ("required", Four, Of2020, Data),
        ("minProperties", Four, Of2020, Data),
        ("maxProperties", Four, Of2020, Data),
        ("dependencies", Four, Seven, Map),
        ("dependentRequired", Of2019, Of2020, Data),
        ("dependentSchemas", Of2019, Of2020, Map),
        ("unevaluatedProperties", Of2019, Of2020, One),
        ("items", Four, Of2020, OneOrList),
        ("prefixItems", Of2020, Of2020, List),
        ("additionalItems", Four, Of2019, One),
        ("unevaluatedItems", Of2019, Of2020, One),
        ("contains", Six, Of2020, One),
        ("minContains", Of2019, Of2020, Data),
        ("maxContains", Of2019, Of2020, Data),
        ("minItems", Four, Of2020, Data),
        ("maxItems", Four, Of2020, Data),
        ("uniqueItems", Four, Of2020, Data),
        ("minLength", Four, Of2020, Data),
        ("maxLength", Four, Of2020, Data),
        ("pattern", Four, Of2020, Data),
        ("format", Four, Of2020, Data),
        ("contentEncoding", Four, Of2020, Data),
        ("contentMediaType", Four, Of2020, Data),
        ("contentSchema", Four, Of2020, Data),
        ("minimum", Four, Of2020, Data),
        ("maximum", Four, Of2020, Data),
        ("exclusiveMinimum", Four, Of2020, Data),
        ("exclusiveMaximum", Four, Of2020, Data),
        ("multipleOf", Four, Of2020, Data),
        ("$defs", Four, Of2020, Map),
        ("definitions", Four, Of2020, Map),
        ("$schema", Four, Of2020, Data),
        ("$id", Four, Of2020, Data),
        ("id", Four, Of2020, Data),
        ("$anchor", Of2019, Of2020, Data),
        ("$dynamicAnchor", Of2020, Of2020, Data),
        ("$recursiveAnchor", Of2019, Of2019, Data),
        ("$dynamicRef", Of2020, Of2020, Data),
        ("$recursiveRef", Of2019, Of2019, Data),
        // Of draft 3. Here so that they are refused: nothing follows them.
        ("extends", Of2020, Four, Data),
        ("disallow", Of2020, Four, Data),
        ("divisibleBy", Of2020, Four, Data),
        ("x-guidance", Of2020, Four, Data),
    ]
};

/// What is wrong with this keyword's name under this draft, if anything.
pub(super) fn misplaced(name: &str, draft: Option<Draft>) -> Option<String> {
    let Some((_, since, until, _)) = KEYWORDS.iter().find(|(known, ..)| *known == name) else {
        let letters = |text: &str| text.replace(['_', '-'], "").to_ascii_lowercase();
        let meant = |known: &&Keyword| letters(known.0) == letters(name);
        return KEYWORDS
            .iter()
            .find(meant)
            .map(|(known, ..)| format!("no draft has it; write \"{known}\", if that is meant"));
    };
    if since > until {
        return Some("no draft from 4 on has it".to_owned());
    }
    let draft = draft.filter(|draft| draft < since || draft > until)?;
    Some(format!("{}, which $schema names, does not have it", draft.name()))
}

/// The schemas in a schema's keywords: their pointers from there, and they.
pub(super) fn schemas_in(fields: &Map<String, Value>) -> Vec<(String, &Value)> {
    let mut found = Vec::new();
    let is_schema = |value: &Value| value.is_object() || value.is_boolean();
    for (name, value) in fields {
        let Some((.., holds)) = KEYWORDS.iter().find(|(known, ..)| known == name) else { continue };
        match (holds, value) {
            (Holds::One | Holds::OneOrList, value) if is_schema(value) => {
                found.push((pointer(&[name]), value));
            }
            (Holds::List | Holds::OneOrList, Value::Array(items)) => {
                for (at, item) in items.iter().enumerate() {
                    found.push((pointer(&[name, &at.to_string()]), item));
                }
            }
            (Holds::Map, Value::Object(inner)) => {
                for (key, value) in inner.iter().filter(|(_, value)| is_schema(value)) {
                    found.push((pointer(&[name, key]), value));
                }
            }
            _ => {}
        }
    }
    found
}
