//! JSON as Python's `json.dumps` writes it.

use std::fmt::Write;

use minijinja::value::ValueKind;
use minijinja::{Error, ErrorKind, Value};
use serde_json::Value as Json;

use super::meter::DEPTH_MAX;

/// Bytes that cost as much as one element.
const BYTES_PER_UNIT: usize = 64;

/// The arguments of `json.dumps`.
#[derive(Debug, Default)]
pub(super) struct Style {
    pub(super) indent: Option<usize>,
    pub(super) sort_keys: bool,
    /// Between elements and behind keys.
    pub(super) separators: Option<Vec<String>>,
}

/// Writes a value.
///
/// `pay` is called with the amount of work, and with how long the text is to become, before either
/// is done: a template can build lists that are far longer than the memory they take.
pub(super) fn dumps(
    value: &Value,
    style: &Style,
    pay: &dyn Fn(usize, usize) -> Result<(), Error>,
) -> Result<String, Error> {
    let (element, key) = match style.separators.as_deref() {
        Some([element, key]) => (element.as_str(), key.as_str()),
        Some(_) => return Err(refuse("separators must be two strings")),
        None if style.indent.is_some() => (",", ": "),
        None => (", ", ": "),
    };
    let mut writer = Writer { out: String::new(), style, element, key, pay };
    writer.value(value, 0)?;
    Ok(writer.out)
}

fn refuse(reason: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::new(ErrorKind::BadSerialization, reason)
}

struct Writer<'a> {
    out: String,
    style: &'a Style,
    element: &'a str,
    key: &'a str,
    pay: &'a dyn Fn(usize, usize) -> Result<(), Error>,
}

impl Writer<'_> {
    fn value(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        if depth > DEPTH_MAX {
            return Err(refuse(format!("the value is nested deeper than {DEPTH_MAX}")));
        }
        match value.kind() {
            ValueKind::None => self.out.push_str("null"),
            ValueKind::Bool => self.out.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => self.number(value),
            ValueKind::String => self.text(value.as_str().unwrap_or_default())?,
            ValueKind::Seq | ValueKind::Iterable => {
                let items = value.try_iter()?;
                self.items("[", "]", items, depth, |writer, item| writer.value(&item, depth + 1))?;
            }
            ValueKind::Map => {
                let mut keys: Vec<Value> = value.try_iter()?.collect();
                if self.style.sort_keys {
                    keys.sort();
                }
                self.items("{", "}", keys.into_iter(), depth, |writer, key| {
                    writer.text(&key_text(&key)?)?;
                    let separator = writer.key;
                    writer.out.push_str(separator);
                    writer.value(&value.get_item(&key)?, depth + 1)
                })?;
            }
            kind => return Err(refuse(format!("a value of type {kind} has no JSON"))),
        }
        Ok(())
    }

    fn items(
        &mut self,
        open: &str,
        close: &str,
        items: impl Iterator<Item = Value>,
        depth: usize,
        mut item: impl FnMut(&mut Self, Value) -> Result<(), Error>,
    ) -> Result<(), Error> {
        self.out.push_str(open);
        let mut is_empty = true;
        for value in items {
            if !is_empty {
                let separator = self.element;
                self.out.push_str(separator);
            }
            is_empty = false;
            self.new_line(depth + 1)?;
            item(self, value)?;
        }
        if !is_empty {
            self.new_line(depth)?;
        }
        self.out.push_str(close);
        Ok(())
    }

    fn text(&mut self, text: &str) -> Result<(), Error> {
        (self.pay)(text.len() / BYTES_PER_UNIT, self.out.len() + text.len())?;
        string(text, &mut self.out);
        Ok(())
    }

    /// Before each element: its work is paid here.
    fn new_line(&mut self, depth: usize) -> Result<(), Error> {
        let blanks = self.style.indent.map(|indent| indent.min(64) * depth);
        let around = blanks.unwrap_or(0) + self.element.len() + self.key.len();
        (self.pay)(1 + around / BYTES_PER_UNIT, self.out.len() + around)?;
        if let Some(blanks) = blanks {
            self.out.push('\n');
            self.out.extend(std::iter::repeat_n(' ', blanks));
        }
        Ok(())
    }

    fn number(&mut self, value: &Value) {
        match f64::try_from(value.clone()) {
            Ok(number) if !value.is_integer() => self.out.push_str(&float(number)),
            _ => self.out.push_str(&value.to_string()),
        }
    }
}

/// A key as Python turns it into a string.
fn key_text(key: &Value) -> Result<String, Error> {
    match key.kind() {
        ValueKind::String | ValueKind::Number => Ok(key.to_string()),
        ValueKind::Bool => Ok(key.is_true().to_string()),
        ValueKind::None => Ok("null".to_owned()),
        kind => Err(refuse(format!("a key of type {kind} has no JSON"))),
    }
}

/// A quoted string; only what JSON demands is escaped.
fn string(text: &str, out: &mut String) {
    out.push('"');
    for character in text.chars() {
        match character {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            control if control < ' ' => {
                let _ = write!(out, "\\u{:04x}", u32::from(control));
            }
            other => out.push(other),
        }
    }
    out.push('"');
}

/// A float as Python's `repr` writes it: the shortest digits that read back, with an exponent
/// below 1e-4 and from 1e16 on.
fn float(number: f64) -> String {
    if number.is_nan() {
        return "NaN".to_owned();
    }
    if number.is_infinite() {
        return if number > 0.0 { "Infinity".to_owned() } else { "-Infinity".to_owned() };
    }
    let size = number.abs();
    if size != 0.0 && !(1e-4..1e16).contains(&size) {
        let text = format!("{number:e}");
        let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
        let exponent: i32 = exponent.parse().unwrap_or(0);
        let sign = if exponent < 0 { '-' } else { '+' };
        return format!("{digits}e{sign}{:02}", exponent.abs());
    }
    let text = number.to_string();
    if text.contains('.') { text } else { text + ".0" }
}

/// About how many bytes a value has as JSON; without recursion deeper than the value's own, which
/// the JSON parser has bounded.
pub(super) fn size_bytes(value: &Json) -> usize {
    match value {
        Json::Null | Json::Bool(_) | Json::Number(_) => 8,
        Json::String(text) => text.len() + 2,
        Json::Array(items) => items.iter().map(|item| size_bytes(item) + 2).sum::<usize>() + 2,
        Json::Object(entries) => {
            entries.iter().map(|(key, value)| key.len() + size_bytes(value) + 6).sum::<usize>() + 2
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floats_are_written_as_python_does() {
        for (number, expected) in [
            (0.0, "0.0"),
            (-0.0, "-0.0"),
            (1.0, "1.0"),
            (0.1, "0.1"),
            (1e-4, "0.0001"),
            (1.5e-5, "1.5e-05"),
            (1e16, "1e+16"),
            (123_456_789_012_345.6, "123456789012345.6"),
            (1e100, "1e+100"),
        ] {
            assert_eq!(float(number), expected);
        }
    }

    #[test]
    fn values_are_written_as_python_does() {
        let value = Value::from(minijinja::value::Serde(serde_json::json!(
            {"b": [1, 2.0, null, true, "é<'\"\n\u{1}"], "a": {}}
        )));
        let plain = dumps(&value, &Style::default(), &|_, _| Ok(())).unwrap();
        assert_eq!(plain, r#"{"b": [1, 2.0, null, true, "é<'\"\n\u0001"], "a": {}}"#);
        let style = Style { indent: Some(2), sort_keys: true, separators: None };
        assert_eq!(
            dumps(&value, &style, &|_, _| Ok(())).unwrap(),
            "{\n  \"a\": {},\n  \"b\": [\n    1,\n    2.0,\n    null,\n    true,\n    \
             \"é<'\\\"\\n\\u0001\"\n  ]\n}"
        );
    }

    #[test]
    fn a_value_that_is_nested_too_deep_is_refused() {
        let mut value = Value::from(1);
        for _ in 0..DEPTH_MAX + 1 {
            value = Value::from(vec![value]);
        }
        assert!(dumps(&value, &Style::default(), &|_, _| Ok(())).is_err());
    }
}
