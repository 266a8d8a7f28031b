//! Canonical JSON (the OLPC dialect): the one byte string that a signature is over.
//!
//! Keys are sorted by code point, no white space, only `"` and `\` are escaped, numbers are
//! integers. Two equal values have equal bytes, and the bytes parse to the value again as long as
//! no string holds a control character.
//!
//! Deliberately absent: floating point. A number with a fraction is refused, as the dialect asks.

use serde_json::Value;

/// A value that has no canonical form.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "write canonical JSON: {number} is no integer of 64 bits, and the dialect has no fractions"
)]
pub struct NotCanonical {
    /// The number as found.
    pub number: String,
}

/// The canonical bytes of `value`.
///
/// # Errors
/// [`NotCanonical`] for a number that is no 64-bit integer.
pub fn to_vec(value: &Value) -> Result<Vec<u8>, NotCanonical> {
    let mut out = Vec::with_capacity(1024);
    write(value, &mut out)?;
    Ok(out)
}

fn write(value: &Value, out: &mut Vec<u8>) -> Result<(), NotCanonical> {
    match value {
        Value::Null => out.extend_from_slice(b"null"),
        Value::Bool(true) => out.extend_from_slice(b"true"),
        Value::Bool(false) => out.extend_from_slice(b"false"),
        Value::Number(number) => match (number.as_i64(), number.as_u64()) {
            (Some(integer), _) => out.extend_from_slice(integer.to_string().as_bytes()),
            (None, Some(integer)) => out.extend_from_slice(integer.to_string().as_bytes()),
            (None, None) => return Err(NotCanonical { number: number.to_string() }),
        },
        Value::String(text) => write_string(text, out),
        Value::Array(items) => {
            out.push(b'[');
            for (index, item) in items.iter().enumerate() {
                if index > 0 {
                    out.push(b',');
                }
                write(item, out)?;
            }
            out.push(b']');
        }
        Value::Object(map) => {
            // Sorted here: the map keeps insertion order when a build turns that feature on.
            // UTF-8 sorts bytewise as code points sort.
            let mut entries: Vec<_> = map.iter().collect();
            entries.sort_unstable_by_key(|(key, _)| *key);
            out.push(b'{');
            for (index, (key, item)) in entries.into_iter().enumerate() {
                if index > 0 {
                    out.push(b',');
                }
                write_string(key, out);
                out.push(b':');
                write(item, out)?;
            }
            out.push(b'}');
        }
    }
    Ok(())
}

fn write_string(text: &str, out: &mut Vec<u8>) {
    out.push(b'"');
    for byte in text.bytes() {
        if byte == b'"' || byte == b'\\' {
            out.push(b'\\');
        }
        out.push(byte);
    }
    out.push(b'"');
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn text(value: &Value) -> String {
        String::from_utf8(to_vec(value).unwrap()).unwrap()
    }

    #[test]
    fn the_examples_of_the_dialect_hold() {
        assert_eq!(text(&json!([])), "[]");
        assert_eq!(text(&json!({"y": 2, "x": 3})), r#"{"x":3,"y":2}"#);
        assert_eq!(text(&json!("a\"b\\c\nd")), "\"a\\\"b\\\\c\nd\"");
        assert_eq!(
            text(&json!({"é": null, "z": true, "a": [-1, false]})),
            r#"{"a":[-1,false],"z":true,"é":null}"#
        );
        assert_eq!(text(&json!(u64::MAX)), "18446744073709551615");
    }

    #[test]
    fn fractions_are_refused() {
        for source in ["1.5", "1e3", "-0", "[18446744073709551616]", r#"{"a":0.0}"#] {
            let value: Value = serde_json::from_str(source).unwrap();
            assert!(to_vec(&value).is_err(), "{source}");
        }
    }

    fn values() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<u64>().prop_map(Value::from),
            // No control characters: the dialect writes them raw, which JSON cannot read back.
            "[^\\p{Cc}]{0,12}".prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 32, 6, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
                prop::collection::btree_map("[^\\p{Cc}]{0,8}", inner, 0..6)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn canonical_bytes_parse_to_the_same_value_and_are_a_fixed_point(value in values()) {
            let bytes = to_vec(&value).unwrap();
            let again: Value = serde_json::from_slice(&bytes).unwrap();
            prop_assert_eq!(&again, &value);
            prop_assert_eq!(to_vec(&again).unwrap(), bytes);
        }

        #[test]
        fn white_space_and_key_order_do_not_matter(value in values()) {
            let pretty = serde_json::to_vec_pretty(&value).unwrap();
            let again: Value = serde_json::from_slice(&pretty).unwrap();
            prop_assert_eq!(to_vec(&again).unwrap(), to_vec(&value).unwrap());
        }
    }
}
