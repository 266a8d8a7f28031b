//! Filters, tests, functions and methods that a template may use: those of Jinja that minijinja
//! has, each with a rule that says what it pays for ([`super::meter`]).
//!
//! Deliberately absent: `chain` and `zip` (Jinja has none, and minijinja's nest by recursion),
//! `pprint` and `debug` (they print what Python's would not).

use minijinja::value::{Kwargs, Rest, ValueKind, ValueOrKwargs, from_args};
use minijinja::{Environment, Error, State, Value, filters, functions, tests};

use super::json;
use super::meter::{
    SLOT_BYTES, admit, make, print, room, room_left, text_len, text_of, walked, weigh,
};
use super::operators::{add, contained, pay_key};

type Made = Result<Value, Error>;

/// Functions by name, beside those that know the time or raise.
const FUNCTIONS: [&str; 5] = ["range", "dict", "namespace", "raise_exception", "strftime_now"];

/// Bytes that a list of pairs, or a list of lists, takes for each item.
const NESTED_BYTES: u64 = 3 * SLOT_BYTES;
/// About how often each key is compared when the keys of an object are sorted.
const SORTED_KEYS_ROUNDS: u64 = 8;
/// A text grows by no more than this when its letters change (or are escaped).
const TEXT_GROWS: u64 = 6;

/// Whether this is a function, and so neither a macro nor a loop.
pub(super) fn is_function(name: &str) -> bool {
    FUNCTIONS.contains(&name)
}

/// What a filter does with its first operand, and what it pays for.
#[derive(Clone, Copy)]
enum Rule {
    /// Counts it, or takes something out of it: nothing is made.
    Looks,
    /// Makes a list of what it holds, without looking into that.
    Lists,
    /// Makes a list of lists or pairs of what it holds.
    Nests,
    /// Walks all of it: compares, sorts.
    Walks,
    /// Makes another text of its text.
    Texts,
}

impl Rule {
    fn apply(self, state: &mut State<'_, '_>, native: &Value, mut operands: Vec<Value>) -> Made {
        for operand in operands.iter().skip(1) {
            pay_key(state, operand)?;
        }
        let first = operands.first().cloned().unwrap_or_default();
        let len = first.as_object().and_then(|_| first.len()).unwrap_or(0) as u64;
        match self {
            Self::Looks => return native.call(state, &operands),
            Self::Lists => room(state, SLOT_BYTES * len + text_len(&first))?,
            Self::Nests => make(state, NESTED_BYTES * len)?,
            Self::Walks => {
                // Each item is compared about log n times.
                let rounds = u64::from(u64::BITS - len.leading_zeros()) + 1;
                let bytes = weigh(state, &first, false)?.bytes;
                walked(state, bytes.saturating_mul(rounds))?;
                room(state, NESTED_BYTES * len)?;
            }
            Self::Texts => {
                if first.as_object().is_some() {
                    operands[0] = Value::from(text_of(state, &first)?);
                }
                room(state, TEXT_GROWS * text_len(&operands[0]))?;
            }
        }
        let made = native.call(state, &operands)?;
        admit(state, made)
    }
}

pub(super) fn register(environment: &mut Environment<'_>) {
    macro_rules! filters {
        ($($rule:ident: $($name:literal $native:path),+;)+) => {
            $($(filter(environment, $name, Rule::$rule, Value::from_function($native));)+)+
        };
    }
    filters! {
        Looks: "length" filters::length, "count" filters::length, "first" filters::first,
            "default" filters::default, "d" filters::default,
            "attr" filters::attr, "bool" filters::bool, "abs" filters::abs, "int" filters::int,
            "float" filters::float, "round" filters::round;
        Lists: "list" filters::list, "reverse" filters::reverse, "map" filters::map,
            "select" filters::select, "reject" filters::reject,
            "selectattr" filters::selectattr, "rejectattr" filters::rejectattr;
        Nests: "items" filters::items;
        Walks: "sort" filters::sort, "unique" filters::unique, "groupby" filters::groupby,
            "dictsort" filters::dictsort, "min" filters::min, "max" filters::max;
        Texts: "upper" filters::upper, "lower" filters::lower, "title" filters::title,
            "capitalize" filters::capitalize, "trim" filters::trim, "safe" filters::safe,
            "escape" filters::escape, "e" filters::escape;
    }
    own(environment, "string", |state, operands| {
        let text = text_of(state, operands.first().unwrap_or(&Value::UNDEFINED))?;
        admit(state, Value::from(text))
    });
    own(environment, "last", |state, operands| match operands.as_slice() {
        [list] if list.downcast_object_ref::<Vec<Value>>().is_some() => {
            list.get_item(&Value::from(-1))
        }
        _ => Value::from_function(filters::last).call(state, &operands),
    });
    own(environment, "tojson", tojson);
    own(environment, "join", join);
    own(environment, "replace", replace);
    own(environment, "indent", indent);
    own(environment, "format", format_text);
    own(environment, "sum", sum);
    own(environment, "split", |state, operands| split(state, &operands));
    own(environment, "lines", lines);
    own(environment, "batch", |state, mut operands| {
        // minijinja keeps room for a whole batch, even if nothing fills it.
        let len = operands.first().and_then(Value::len).unwrap_or(0).max(1);
        let unfilled = operands.get(2).is_none_or(Value::is_none);
        if let Some(count) = operands.get_mut(1).filter(|_| unfilled) {
            *count = count.as_usize().map_or_else(|| count.clone(), |count| count.min(len).into());
        }
        in_parts(state, &Value::from_function(filters::batch), &operands)
    });
    own(environment, "slice", |state, operands| {
        in_parts(state, &Value::from_function(filters::slice), &operands)
    });
    register_tests(environment);
    function(environment, "range", Value::from_function(functions::range));
    function(environment, "dict", Value::from_function(functions::dict));
    function(environment, "namespace", Value::from_function(functions::namespace));
    environment.set_unknown_method_callback(method);
    environment.set_formatter(|out, state, value| {
        if let Some(text) = value.as_str() {
            make(state, text.len() as u64)?;
            return Ok(out.write_str(text)?);
        }
        let written = print(state, value, out)?;
        make(state, written)
    });
}

fn register_tests(environment: &mut Environment<'_>) {
    macro_rules! tests {
        ($pays:expr, $($name:literal $native:path),+) => {
            $(test(environment, $name, $pays, Value::from_function($native));)+
        };
    }
    tests! { false,
        "undefined" tests::is_undefined, "defined" tests::is_defined, "none" tests::is_none,
        "safe" tests::is_safe, "escaped" tests::is_safe, "boolean" tests::is_boolean,
        "number" tests::is_number, "integer" tests::is_integer, "int" tests::is_integer,
        "float" tests::is_float, "string" tests::is_string, "sequence" tests::is_sequence,
        "iterable" tests::is_iterable, "mapping" tests::is_mapping, "true" tests::is_true,
        "false" tests::is_false, "odd" tests::is_odd, "even" tests::is_even,
        "divisibleby" tests::is_divisibleby, "filter" tests::is_filter, "test" tests::is_test,
        "sameas" tests::is_sameas
    }
    tests! { true,
        "lower" tests::is_lower, "upper" tests::is_upper, "startingwith" tests::is_startingwith,
        "endingwith" tests::is_endingwith,
        "eq" tests::is_eq, "equalto" tests::is_eq, "==" tests::is_eq, "ne" tests::is_ne,
        "!=" tests::is_ne, "lt" tests::is_lt, "lessthan" tests::is_lt, "<" tests::is_lt,
        "le" tests::is_le, "<=" tests::is_le, "gt" tests::is_gt, "greaterthan" tests::is_gt,
        ">" tests::is_gt, "ge" tests::is_ge, ">=" tests::is_ge
    }
    environment.add_test("in", |state: &mut State<'_, '_>, item: &Value, container: &Value| {
        // What cannot hold anything does not hold it, as minijinja's own test says.
        let holds = container.as_object().is_some() || container.as_str().is_some();
        Ok::<bool, Error>(holds && contained(state, item, container)?.is_true())
    });
}

fn filter(environment: &mut Environment<'_>, name: &'static str, rule: Rule, native: Value) {
    environment.add_filter(
        name,
        move |state: &mut State<'_, '_>, operands: Rest<ValueOrKwargs>| -> Made {
            rule.apply(state, &native, operands.into_values())
        },
    );
}

fn own(
    environment: &mut Environment<'_>,
    name: &'static str,
    filter: fn(&mut State<'_, '_>, Vec<Value>) -> Made,
) {
    environment.add_filter(
        name,
        move |state: &mut State<'_, '_>, operands: Rest<ValueOrKwargs>| -> Made {
            filter(state, operands.into_values())
        },
    );
}

fn test(environment: &mut Environment<'_>, name: &'static str, pays: bool, native: Value) {
    environment.add_test(
        name,
        move |state: &mut State<'_, '_>, operands: Rest<ValueOrKwargs>| -> Made {
            let operands = operands.into_values();
            for operand in operands.iter().filter(|_| pays) {
                let bytes = weigh(state, operand, false)?.bytes;
                walked(state, bytes)?;
            }
            native.call(state, &operands)
        },
    );
}

fn function(environment: &mut Environment<'_>, name: &'static str, native: Value) {
    environment.add_function(
        name,
        move |state: &mut State<'_, '_>, operands: Rest<ValueOrKwargs>| -> Made {
            let operands = operands.into_values();
            for operand in operands.iter().filter(|operand| operand.as_object().is_some()) {
                // What is given is copied into what is made, and must be data.
                weigh(state, operand, true)?;
                make(state, 2 * SLOT_BYTES * operand.len().unwrap_or(0) as u64)?;
            }
            let made = native.call(state, &operands)?;
            admit(state, made)
        },
    );
}

/// Methods of strings, lists and objects, as Python has them.
fn method(state: &mut State<'_, '_>, value: &Value, name: &str, operands: &[Value]) -> Made {
    for operand in operands {
        pay_key(state, operand)?;
    }
    let and_operands = || [std::slice::from_ref(value), operands].concat();
    match (value.kind(), name) {
        (ValueKind::String, "join") => {
            let (items,): (Value,) = from_args(operands)?;
            return join(state, vec![items, value.clone()]);
        }
        (ValueKind::String, "replace") => return replace(state, and_operands()),
        (ValueKind::String, "split") => return split(state, &and_operands()),
        (ValueKind::String, "splitlines") => pay_lines(state, value)?,
        (ValueKind::String, "format") => {
            let text = value.as_str().unwrap_or_default();
            pay_format(state, format_sizes(text, '{'), operands)?;
        }
        (ValueKind::String, _) => room(state, TEXT_GROWS * text_len(value))?,
        (ValueKind::Map, "get") => {
            return minijinja_contrib::pycompat::unknown_method_callback(
                state, value, name, operands,
            );
        }
        (ValueKind::Map, "items" | "keys" | "values") => {
            make(state, NESTED_BYTES * value.len().unwrap_or(0) as u64)?;
        }
        (ValueKind::Seq, "count") => {
            let bytes = weigh(state, value, false)?.bytes;
            walked(state, bytes)?;
        }
        _ => {}
    }
    let made = minijinja_contrib::pycompat::unknown_method_callback(state, value, name, operands)?;
    admit(state, made)
}

/// transformers' `tojson`: Python's `json.dumps(…, ensure_ascii=False)`.
fn tojson(state: &mut State<'_, '_>, operands: Vec<Value>) -> Made {
    let (value, indent, args): (Value, Option<usize>, Kwargs) = from_args(&operands)?;
    let indent = match indent {
        Some(indent) => Some(indent),
        None => args.get("indent")?,
    };
    let sort_keys: Option<bool> = args.get("sort_keys")?;
    let separators: Option<Vec<String>> = args.get("separators")?;
    let _: Option<bool> = args.get("ensure_ascii")?;
    args.assert_all_used()?;
    let style = json::Style { indent, sort_keys: sort_keys.unwrap_or(false), separators };
    if style.sort_keys {
        let bytes = weigh(state, &value, false)?.bytes;
        walked(state, bytes.saturating_mul(SORTED_KEYS_ROUNDS))?;
    }
    let room = room_left(state);
    let pay = |units: usize, made: usize| {
        room.holds(made as u64)?;
        state.consume_fuel(units as u64)
    };
    let text = json::dumps(&value, &style, &pay)?;
    admit(state, Value::from(text))
}

/// Texts of items, one behind the other.
fn join(state: &mut State<'_, '_>, operands: Vec<Value>) -> Made {
    type Operands = (Value, Option<Value>, Option<Value>, Kwargs);
    let (items, joiner, attribute, args): Operands = from_args(&operands)?;
    let joiner = joiner.or(args.get("d")?);
    let attribute = attribute.or(args.get("attribute")?);
    args.assert_all_used()?;
    let items = match attribute {
        Some(attribute) => attributes(state, items, attribute)?,
        None => items,
    };
    let joiner = match joiner {
        Some(joiner) if !joiner.is_none() => text_of(state, &joiner)?,
        _ => String::new(),
    };
    let mut text = String::new();
    for (at, item) in items.try_iter()?.checked().enumerate() {
        let item = item?;
        walked(state, SLOT_BYTES)?;
        let between = if at > 0 { joiner.as_str() } else { "" };
        // Paid here, so that the sum never runs ahead of what is paid.
        make(state, (between.len() as u64) + text_len(&item))?;
        text.push_str(between);
        match item.as_str() {
            Some(item) => text.push_str(item),
            None => {
                let written = print(state, &item, &mut text)?;
                make(state, written)?;
            }
        }
    }
    Ok(Value::from(text))
}

/// `map(attribute=…)`.
fn attributes(state: &mut State<'_, '_>, items: Value, attribute: Value) -> Made {
    let by = Kwargs::from_iter([("attribute", attribute)]);
    state.apply_filter("map", &[items, by.into()])
}

fn replace(state: &mut State<'_, '_>, operands: Vec<Value>) -> Made {
    type Operands = (Value, Value, Value, Option<i64>, Kwargs);
    let (value, old, new, count, args): Operands = from_args(&operands)?;
    let count = count.or(args.get("count")?);
    args.assert_all_used()?;
    let count = count.and_then(|count| usize::try_from(count).ok()).unwrap_or(usize::MAX);
    let (text, old, new) = (text_of(state, &value)?, text_of(state, &old)?, text_of(state, &new)?);
    walked(state, text.len() as u64)?;
    let found = text.matches(&old).take(count).count() as u64;
    let bytes = (text.len() as u64).saturating_add(found.saturating_mul(new.len() as u64));
    room(state, bytes)?;
    admit(state, Value::from(text.replacen(&old, &new, count)))
}

fn indent(state: &mut State<'_, '_>, mut operands: Vec<Value>) -> Made {
    if let Some(first) = operands.first_mut().filter(|first| first.as_object().is_some()) {
        *first = Value::from(text_of(state, first)?);
    }
    let text = operands.first().and_then(Value::as_str).unwrap_or_default();
    let lines = text.bytes().filter(|byte| *byte == b'\n').count() as u64 + 1;
    let (rest, args): (&[Value], Kwargs) = from_args(operands.get(1..).unwrap_or_default())?;
    let width = rest.first().cloned().or(args.get("width")?);
    let width = width.and_then(|width| width.as_usize()).unwrap_or(4) as u64;
    room(state, lines.saturating_add(1).saturating_mul(width).saturating_add(text.len() as u64))?;
    let made = Value::from_function(filters::indent).call(state, &operands)?;
    admit(state, made)
}

fn sum(state: &mut State<'_, '_>, operands: Vec<Value>) -> Made {
    type Operands = (Value, Option<Value>, Option<Value>, Kwargs);
    let (items, attribute, start, args): Operands = from_args(&operands)?;
    let attribute = attribute.or(args.get("attribute")?).filter(|by| !by.is_none());
    let start = start.or(args.get("start")?);
    args.assert_all_used()?;
    let items = match attribute {
        Some(attribute) => attributes(state, items, attribute)?,
        None => items,
    };
    let mut sum = start.unwrap_or(Value::from(0));
    for item in items.try_iter()?.checked() {
        let item = item?;
        walked(state, SLOT_BYTES)?;
        if !item.is_undefined() {
            sum = add(state, &sum, &item)?;
        }
    }
    Ok(sum)
}

/// The parts of a text; it pays for as many as there will be.
fn split(state: &mut State<'_, '_>, operands: &[Value]) -> Made {
    let text = operands.first().and_then(Value::as_str).unwrap_or_default();
    walked(state, text.len() as u64)?;
    let parts = match operands.get(1).and_then(Value::as_str) {
        Some(separator) => text.matches(separator).count(),
        None => text.split_whitespace().count(),
    };
    room(state, SLOT_BYTES.saturating_mul(parts as u64 + 1))?;
    // What lies in the parts is paid here, their slots with the list.
    make(state, text.len() as u64)?;
    let parts = Value::from_function(filters::split).call(state, operands)?;
    admit(state, parts)
}

fn lines(state: &mut State<'_, '_>, operands: Vec<Value>) -> Made {
    pay_lines(state, operands.first().unwrap_or(&Value::UNDEFINED))?;
    let lines = Value::from_function(filters::lines).call(state, &operands)?;
    admit(state, lines)
}

fn pay_lines(state: &mut State<'_, '_>, text: &Value) -> Result<(), Error> {
    let bytes = text.as_bytes().unwrap_or_default();
    let lines = bytes.iter().filter(|byte| **byte == b'\n').count() as u64 + 1;
    room(state, SLOT_BYTES * lines)?;
    make(state, bytes.len() as u64)
}

/// `batch` and `slice`: lists of a list's items.
fn in_parts(state: &mut State<'_, '_>, native: &Value, operands: &[Value]) -> Made {
    let len = operands.first().and_then(Value::len).unwrap_or(0);
    let count = operands.get(1).and_then(Value::as_usize).unwrap_or(0);
    make(state, NESTED_BYTES.saturating_mul((count as u64).saturating_add(len as u64)))?;
    let parts = native.call(state, operands)?;
    admit(state, parts)
}

/// `'%s' | format(…)`.
fn format_text(state: &mut State<'_, '_>, operands: Vec<Value>) -> Made {
    let text = operands.first().and_then(Value::as_str).unwrap_or_default();
    let given = operands.get(1..).unwrap_or_default();
    pay_format(state, format_sizes(text, '%'), given)?;
    let made = Value::from_function(filters::format).call(state, &operands)?;
    admit(state, made)
}

/// How many fields a format may have, and the sum of all numbers in it: none of its widths and
/// precisions is larger.
fn format_sizes(text: &str, open: char) -> (u64, u64) {
    let sizes = text.split(|c: char| !c.is_ascii_digit()).filter(|digits| !digits.is_empty());
    let sizes =
        sizes.fold(0_u64, |sum, digits| sum.saturating_add(digits.parse().unwrap_or(u64::MAX)));
    (text.matches(open).count() as u64, sizes)
}

fn pay_format(
    state: &mut State<'_, '_>,
    (fields, numbers): (u64, u64),
    operands: &[Value],
) -> Result<(), Error> {
    let mut longest = SLOT_BYTES;
    for operand in operands {
        longest = longest.max(weigh(state, operand, false)?.bytes);
    }
    state.consume_fuel(fields)?;
    room(state, TEXT_GROWS.saturating_mul(fields.saturating_mul(longest)).saturating_add(numbers))
}
