//! Regular expressions of JSON schemas (ECMA-262) in the compiler's syntax, and formats as regular
//! expressions.
//!
//! The two syntaxes differ in what a dot, `\s`, `\d` and a bracket inside brackets mean. What is
//! written here means to the compiler what it means to ECMA-262 readers; what has no equal is
//! refused.

use std::iter::Peekable;
use std::str::Chars;

use super::values;

const SPACES: &str =
    r"\t-\r \u{a0}\u{1680}\u{2000}-\u{200a}\u{2028}\u{2029}\u{202f}\u{205f}\u{3000}\u{feff}";
const DIGITS: &str = "0-9";
const WORD: &str = "0-9A-Z_a-z";
/// What a dot does not stand for.
const LINE_ENDS: &str = r"\n\r\u{2028}\u{2029}";

/// An ECMA-262 regular expression in the compiler's syntax.
pub(super) fn ecma(pattern: &str) -> Result<String, String> {
    let mut out = String::with_capacity(pattern.len());
    let mut rest = pattern.chars().peekable();
    while let Some(c) = rest.next() {
        match c {
            '\\' => escape(&mut rest, &mut out, false)?,
            '.' => out.push_str(&format!("[^{LINE_ENDS}]")),
            '[' => class(&mut rest, &mut out)?,
            '(' => {
                out.push('(');
                if rest.next_if_eq(&'?').is_some() {
                    group(&mut rest, &mut out)?;
                }
            }
            '{' if rest.peek() == Some(&',') => {
                return Err("a repetition needs its least number".to_owned());
            }
            c => out.push(c),
        }
    }
    Ok(out)
}

/// What stands behind `(?`.
fn group(rest: &mut Peekable<Chars<'_>>, out: &mut String) -> Result<(), String> {
    if rest.next_if_eq(&':').is_some() {
        out.push_str("?:");
        return Ok(());
    }
    let named = rest.next_if_eq(&'<').is_some() && !matches!(rest.peek(), Some('=' | '!'));
    if !named {
        return Err("looking ahead or behind, and flags, can't be followed".to_owned());
    }
    out.push_str("?:");
    rest.by_ref().take_while(|c| *c != '>').for_each(drop);
    Ok(())
}

/// What stands behind `[`.
fn class(rest: &mut Peekable<Chars<'_>>, out: &mut String) -> Result<(), String> {
    out.push('[');
    let negated = rest.next_if_eq(&'^').is_some();
    if rest.next_if_eq(&']').is_some() {
        // `[^]` is any character, `[]` none.
        out.truncate(out.len() - 1);
        out.push_str(if negated { r"[\s\S]" } else { r"[^\s\S]" });
        return Ok(());
    }
    if negated {
        out.push('^');
    }
    loop {
        match rest.next() {
            None => return Err("a bracket is not closed".to_owned()),
            Some(']') => break,
            Some('\\') => escape(rest, out, true)?,
            Some('-') if rest.peek() == Some(&'-') => {
                return Err("write a hyphen in brackets as \\-".to_owned());
            }
            Some(c @ ('[' | '&' | '~')) => out.extend(['\\', c]),
            Some(c) => out.push(c),
        }
    }
    out.push(']');
    Ok(())
}

/// What stands behind a backslash.
fn escape(rest: &mut Peekable<Chars<'_>>, out: &mut String, in_class: bool) -> Result<(), String> {
    let Some(c) = rest.next() else { return Err("ends in a backslash".to_owned()) };
    let mut set = |members: &str, negated: bool| match (in_class, negated) {
        (true, false) => out.push_str(members),
        (_, true) => out.push_str(&format!("[^{members}]")),
        (false, false) => out.push_str(&format!("[{members}]")),
    };
    match c {
        'd' | 'D' => set(DIGITS, c == 'D'),
        'w' | 'W' => set(WORD, c == 'W'),
        's' | 'S' => set(SPACES, c == 'S'),
        't' | 'n' | 'r' | 'f' => out.extend(['\\', c]),
        'v' => character(0xb, in_class, out)?,
        '0' if !rest.peek().is_some_and(char::is_ascii_digit) => character(0, in_class, out)?,
        'b' if in_class => character(8, in_class, out)?,
        'c' => match rest.next() {
            Some(letter) if letter.is_ascii_alphabetic() => {
                character(u32::from(letter) % 32, in_class, out)?;
            }
            _ => return Err(r"\c needs a letter".to_owned()),
        },
        'x' => character(hex(rest, 2)?, in_class, out)?,
        'u' => character(code_point(rest)?, in_class, out)?,
        'p' | 'P' => property(c, rest, out)?,
        c if c.is_ascii_alphanumeric() => {
            return Err(format!("\\{c} can't be followed"));
        }
        c => {
            if c.is_ascii() {
                out.push('\\');
            }
            out.push(c);
        }
    }
    Ok(())
}

/// `\p{…}`, which both syntaxes have; without braces they differ.
fn property(c: char, rest: &mut Peekable<Chars<'_>>, out: &mut String) -> Result<(), String> {
    if rest.next_if_eq(&'{').is_none() {
        return Err(format!("\\{c} needs a name in braces"));
    }
    let name: String = rest.by_ref().take_while(|c| *c != '}').collect();
    out.push_str(&format!("\\{c}{{{name}}}"));
    Ok(())
}

fn hex(rest: &mut Peekable<Chars<'_>>, digits: usize) -> Result<u32, String> {
    let text: String = rest.by_ref().take(digits).collect();
    let well_formed = text.len() == digits && text.bytes().all(|digit| digit.is_ascii_hexdigit());
    let code = u32::from_str_radix(&text, 16).ok().filter(|_| well_formed);
    code.ok_or_else(|| format!("an escape needs {digits} hexadecimal digits"))
}

/// Behind `\u`: four digits, two surrogates, or digits in braces.
fn code_point(rest: &mut Peekable<Chars<'_>>) -> Result<u32, String> {
    if rest.next_if_eq(&'{').is_some() {
        let digits: String = rest.by_ref().take_while(|c| *c != '}').collect();
        return u32::from_str_radix(&digits, 16).map_err(|_| "\\u{…} has no number".to_owned());
    }
    let first = hex(rest, 4)?;
    if !(0xd800..0xdc00).contains(&first) {
        return Ok(first);
    }
    let second = match (rest.next(), rest.next()) {
        (Some('\\'), Some('u')) => hex(rest, 4)?,
        _ => 0,
    };
    if !(0xdc00..0xe000).contains(&second) {
        return Err("a surrogate stands alone".to_owned());
    }
    Ok(0x1_0000 + ((first - 0xd800) << 10) + (second - 0xdc00))
}

/// A character by its number. In brackets there are others, which may be written.
fn character(code: u32, in_class: bool, out: &mut String) -> Result<(), String> {
    let c = char::from_u32(code).ok_or_else(|| format!("{code:x} is no character"))?;
    if let Some(reason) = values::unwritable_text(c.encode_utf8(&mut [0; 4])).filter(|_| !in_class)
    {
        return Err(reason.to_owned());
    }
    out.push_str(&format!("\\u{{{code:x}}}"));
    Ok(())
}

const DATE: &str = "(?:[1-9][0-9]{3}-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])\
    |(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)|02-(?:0[1-9]|1[0-9]|2[0-8]))\
    |(?:[1-9][0-9](?:0[48]|[2468][048]|[13579][26])|(?:[2468][048]|[13579][26])00)-02-29)";
const TIME: &str = "(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:\\.[0-9]{1,6})?\
    (?:Z|[+-](?:[01][0-9]|2[0-3]):[0-5][0-9])";
const HOST: &str = "(?:[a-zA-Z](?:[a-zA-Z0-9]{0,30}[a-zA-Z0-9])?\\.){0,3}[a-zA-Z]{2,10}";
const LOCAL: &str = "[a-zA-Z0-9_+-]{1,30}(?:\\.[a-zA-Z0-9_+-]{1,30})?";
/// A path's characters, and what may stand behind it.
const PATH: &str = "(?:[a-zA-Z0-9._~!$&'()*+,;=:@/-]|%[0-9A-F]{2})*";
const REST: &str = "(?:\\?(?:[a-zA-Z0-9._~!$&'()*+,;=:@/?-]|%[0-9A-F]{2})*)?\
    (?:#(?:[a-zA-Z0-9._~!$&'()*+,;=:@/?-]|%[0-9A-F]{2})*)?";
const POINTER: &str = "(?:/(?:[^~/]|~[01])*)*";

/// Formats that the compiler knows as validators do.
const NATIVE: [&str; 4] = ["duration", "ipv4", "ipv6", "uuid"];

/// How a string's format is followed.
pub(super) enum Format {
    /// The compiler knows it.
    Native,
    /// As this regular expression, in the compiler's syntax.
    Pattern(String),
}

/// A string's format. Those of which the compiler knows more than validators accept (29 February in
/// every year, leap seconds at any time, addresses without an end) are narrower here.
pub(super) fn format(name: &str) -> Option<Format> {
    if NATIVE.contains(&name) {
        return Some(Format::Native);
    }
    let pattern = match name {
        "date" => DATE.to_owned(),
        "time" => TIME.to_owned(),
        "date-time" => format!("{DATE}T{TIME}"),
        "email" | "idn-email" => format!("{LOCAL}@{HOST}"),
        "hostname" | "idn-hostname" => HOST.to_owned(),
        "uri" | "iri" | "uri-reference" | "iri-reference" => format!(
            "(?:https?|ftp|wss?|file)://{HOST}(?::[1-9][0-9]{{0,3}})?(?:/{PATH})?{REST}\
             |(?:mailto:{LOCAL}@{HOST})|urn:[a-z][a-z0-9]{{1,20}}:[a-zA-Z0-9:._-]{{1,60}}"
        ),
        "uri-template" => {
            "(?:[a-zA-Z0-9._~:/?=&-]|\\{[a-zA-Z_]{1,20}(?:,[a-zA-Z_]{1,20}){0,3}\\})*".to_owned()
        }
        "json-pointer" => POINTER.to_owned(),
        "relative-json-pointer" => format!("(?:0|[1-9][0-9]{{0,5}})(?:#|{POINTER})"),
        "byte" => BASE64.to_owned(),
        _ => return None,
    };
    Some(Format::Pattern(format!("^(?:{pattern})$")))
}

/// Base64 with padding.
pub(super) const BASE64: &str =
    "(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/][AQgw]==|[A-Za-z0-9+/]{2}[AEIMQUYcgkosw048]=)?";

/// Formats of numbers that schemas made from programs name: what they hold at least and at most.
pub(super) fn number_range(name: &str) -> Option<(f64, f64)> {
    Some(match name {
        "int8" => (-128.0, 127.0),
        "int16" => (-32_768.0, 32_767.0),
        "int32" => (-2_147_483_648.0, 2_147_483_647.0),
        "uint8" => (0.0, 255.0),
        "uint16" => (0.0, 65_535.0),
        "uint32" => (0.0, 4_294_967_295.0),
        // As many digits as are written at most.
        "int64" => (-1e15, 1e15),
        "uint64" | "uint" => (0.0, 1e15),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_syntaxes_read_differently_is_written_out() {
        let cases = [
            ("^a.b$", "^a[^\\n\\r\\u{2028}\\u{2029}]b$"),
            (r"\d+\D", "[0-9]+[^0-9]"),
            (r"[\w-]", "[0-9A-Z_a-z-]"),
            (r"[a&&[b]", r"[a\&\&\[b]"),
            (r"[^]", r"[\s\S]"),
            (r"\cJ\x41\u0042\ud83d\ude00\u{43}", r"\u{a}\u{41}\u{42}\u{1f600}\u{43}"),
            (r"[^\x00-\x1f]", r"[^\u{0}-\u{1f}]"),
            (r"\p{L}(?<name>x)(?:y)", r"\p{L}(?:x)(?:y)"),
            (r"\/\-\.", r"\/\-\."),
        ];
        for (pattern, expected) in cases {
            assert_eq!(ecma(pattern).as_deref(), Ok(expected), "{pattern}");
        }
    }

    #[test]
    fn what_has_no_equal_is_refused() {
        for pattern in [
            "(?=a)", "(?!a)", "(?<=a)", "(?<!a)", "(?i)a", r"\bword", r"(a)\1", r"\a", "[a", "a\\",
            r"\u12", r"\ud83d", "[+--]", r"\pL", "a{,3}",
        ] {
            assert!(ecma(pattern).is_err(), "{pattern}");
        }
    }
}
