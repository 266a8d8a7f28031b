use super::*;

fn compiled(schema: &Value) -> Result<Value, ConstraintError> {
    let document = Document::open(schema)?;
    document.compiled(&document.start())
}

fn refused(schema: &Value) -> (String, String) {
    match compiled(schema) {
        Err(ConstraintError::Keyword { keyword, pointer, .. }) => (keyword, pointer),
        other => panic!("{schema}: {other:?}"),
    }
}

#[test]
fn what_cannot_be_followed_is_refused_with_its_place() {
    let cases = [
        (
            "/properties/tags/uniqueItems",
            json!({ "properties": { "tags": { "uniqueItems": true } } }),
        ),
        ("/items/not", json!({ "items": { "not": {} } })),
        (
            "/$defs/a~1b/if",
            json!({ "$ref": "#/$defs/a~1b", "$defs": { "a/b": { "if": {}, "then": {} } } }),
        ),
        ("/anyOf/1/contains", json!({ "anyOf": [{}, { "contains": {} }] })),
        ("/type", json!({ "type": "any" })),
        ("/required", json!({ "required": true })),
        ("/$schema", json!({ "$schema": "http://json-schema.org/draft-03/schema#" })),
        ("/minlength", json!({ "minlength": 3 })),
        ("/divisibleBy", json!({ "divisibleBy": 3 })),
        ("/const", json!({ "$schema": "http://json-schema.org/draft-04/schema#", "const": 3 })),
        ("/$ref", json!({ "$ref": "http://example.com/schema" })),
        ("/$ref", json!({ "$ref": "#/definitions/nothing" })),
        ("/unevaluatedProperties", json!({ "allOf": [{}], "unevaluatedProperties": false })),
        ("/const", json!({ "const": "\u{0}" })),
        ("/minProperties", json!({ "minProperties": 2 })),
        ("/format", json!({ "type": "string", "format": "unknown" })),
    ];
    for (pointer, schema) in cases {
        let (keyword, found) = refused(&schema);
        assert_eq!(found, pointer, "{schema}");
        assert!(pointer.ends_with(&keyword), "{schema}: {keyword}");
    }
}

#[test]
fn a_reference_without_an_end_is_refused_and_one_that_may_be_left_out_is_left_out() {
    let list = json!({
        "type": "object", "required": ["next"], "properties": { "next": { "$ref": "#" } },
    });
    assert_eq!(refused(&list), ("$ref".to_owned(), "/properties/next/$ref".to_owned()));
    assert_eq!(refused(&json!({ "$ref": "#" })).0, "$ref");
    let optional = json!({ "type": "object", "properties": { "next": { "$ref": "#/$defs/loop" } },
        "$defs": { "loop": { "allOf": [{ "$ref": "#/$defs/loop" }] } } });
    assert_eq!(compiled(&optional).unwrap()["properties"]["next"], json!(false));
    let tree = json!({ "type": "object", "properties": { "next": { "$ref": "#" } } });
    assert_eq!(compiled(&tree).unwrap()["properties"]["next"], json!({ "$ref": "#/$defs/r0" }));
}

#[test]
fn one_of_alternatives_that_share_nothing_is_any_of_them() {
    let union = json!({
        "oneOf": [{ "$ref": "#/$defs/cat" }, { "$ref": "#/$defs/dog" }, { "type": "null" }],
        "$defs": {
            "cat": { "type": "object", "required": ["kind"],
                "properties": { "kind": { "const": "cat" }, "friend": { "$ref": "#" } } },
            "dog": { "type": "object", "required": ["kind"],
                "properties": { "kind": { "enum": ["dog", "hound"] } } },
        },
    });
    let got = compiled(&union).unwrap();
    assert!(got.get("anyOf").is_some() && got.get("oneOf").is_none(), "{got}");
    for shared in [
        json!({ "oneOf": [{ "type": "integer" }, { "type": "number" }] }),
        json!({ "oneOf": [{ "const": 1 }, { "const": 1.0 }] }),
        json!({ "oneOf": [{ "type": "object", "properties": { "a": { "const": 1 } } },
            { "type": "object", "properties": { "a": { "const": 2 } } }] }),
        json!({ "oneOf": [{ "maximum": 5 }, { "minimum": 7 }] }),
    ] {
        assert!(compiled(&shared).unwrap().get("oneOf").is_some(), "{shared}");
    }
}

#[test]
fn old_forms_are_written_as_new_ones() {
    let draft4 = json!({
        "$schema": "http://json-schema.org/draft-04/schema#",
        "items": [{ "minimum": 0, "exclusiveMinimum": true }],
        "additionalItems": { "$ref": "#/definitions/x" },
        "definitions": { "x": { "type": "null" } },
    });
    let got = compiled(&draft4).unwrap();
    assert!(got["prefixItems"][0]["minimum"].as_f64().unwrap() > 0.0);
    assert_eq!(got["items"], json!({ "$ref": "#/$defs/r0" }));
    assert_eq!(got["$defs"]["r0"], json!({ "type": "null" }));
}

#[test]
fn properties_may_be_named_like_keywords() {
    let schema = json!({ "properties": {
        "multipleOf": { "type": "number", "exclusiveMinimum": 5 },
        "const": { "enum": [1] }, "$ref": { "type": "string" }, "not": {},
    } });
    let got = compiled(&schema).unwrap();
    assert_eq!(got["properties"].as_object().unwrap().len(), 4);
    assert!(got["properties"]["multipleOf"]["minimum"].as_f64().unwrap() > 5.0);
}

#[test]
fn names_and_dependencies_become_properties() {
    let got = compiled(&json!({ "type": "object", "propertyNames": { "enum": ["a"] } })).unwrap();
    let names =
        json!({ "properties": { "a": true }, "additionalProperties": false, "type": "object" });
    assert_eq!(got["allOf"], json!([names]));
    let got = compiled(&json!({ "dependentRequired": { "a": ["b"] } })).unwrap();
    let either = json!({ "anyOf": [{ "properties": { "a": false } }, { "required": ["a", "b"] }] });
    assert_eq!(got["allOf"], json!([either]));
}
