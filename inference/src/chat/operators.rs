//! The operators that stand in for instructions of minijinja ([`super::rewrite`]): they pay
//! ([`super::meter`]), do what the instruction does, and pay for what came of it.

use std::collections::BTreeMap;

use indexmap::IndexMap;
use minijinja::machinery::{Instruction, Instructions, eval, make_string_output};
use minijinja::value::{Kwargs, ObjectRepr, Rest, Tuple, ValueOrKwargs};
use minijinja::{AutoEscape, Environment, Error, ErrorKind, State, Value};

use super::meter::{SLOT_BYTES, admit, make, room, text_len, text_of, walked, weigh};

pub(super) const ADD: &str = "\0+";
pub(super) const MULTIPLY: &str = "\0*";
pub(super) const JOIN_TEXTS: &str = "\0~";
pub(super) const EQUAL: &str = "\0==";
pub(super) const NOT_EQUAL: &str = "\0!=";
pub(super) const LESS: &str = "\0<";
pub(super) const LESS_OR_EQUAL: &str = "\0<=";
pub(super) const GREATER: &str = "\0>";
pub(super) const GREATER_OR_EQUAL: &str = "\0>=";
pub(super) const IN: &str = "\0in";
pub(super) const ITEM: &str = "\0[]";
pub(super) const SLICE: &str = "\0[:]";
pub(super) const LIST: &str = "\0list";
pub(super) const TUPLE: &str = "\0tuple";
pub(super) const OBJECT: &str = "\0object";
pub(super) const KEYWORDS: &str = "\0keywords";
pub(super) const UNPACKED: &str = "\0unpacked";
pub(super) const STORED: &str = "\0stored";
pub(super) const COMPARED: &str = "\0compared";
pub(super) const KEPT: &str = "\0kept";
pub(super) const ITERATED: &str = "\0iterated";
pub(super) const MACRO: &str = "\0macro";

/// All of them, those first that templates use most.
pub(super) const OPERATORS: [&str; 22] = [
    ADD,
    JOIN_TEXTS,
    IN,
    ITERATED,
    EQUAL,
    ITEM,
    SLICE,
    STORED,
    LIST,
    NOT_EQUAL,
    OBJECT,
    MULTIPLY,
    LESS,
    LESS_OR_EQUAL,
    GREATER,
    GREATER_OR_EQUAL,
    TUPLE,
    MACRO,
    COMPARED,
    KEYWORDS,
    UNPACKED,
    KEPT,
];

/// What a macro and the names that it encloses take while a rendering lasts.
const MACRO_BYTES: u64 = 1024;

type Made = Result<Value, Error>;

pub(super) fn register(environment: &mut Environment<'_>) {
    environment.add_filter(ADD, add);
    environment.add_filter(MULTIPLY, multiply);
    environment.add_filter(JOIN_TEXTS, join_texts);
    compare(environment, EQUAL, |a, b| a == b);
    compare(environment, NOT_EQUAL, |a, b| a != b);
    compare(environment, LESS, |a, b| a < b);
    compare(environment, LESS_OR_EQUAL, |a, b| a <= b);
    compare(environment, GREATER, |a, b| a > b);
    compare(environment, GREATER_OR_EQUAL, |a, b| a >= b);
    environment.add_filter(IN, contained);
    environment.add_filter(ITEM, item);
    environment.add_filter(SLICE, slice);
    many(environment, LIST, |state, items| admit(state, Value::from(items)));
    many(environment, TUPLE, |state, items| admit(state, Tuple::new(items).into()));
    many(environment, OBJECT, object);
    many(environment, KEYWORDS, keywords);
    many(environment, UNPACKED, unpacked);
    many(environment, COMPARED, compared);
    many(environment, KEPT, kept);
    many(environment, STORED, |state, values| one(values, |value| weigh(state, value, true)));
    many(environment, ITERATED, |state, values| {
        one(values, |value| walked(state, text_len(value)))
    });
    many(environment, MACRO, |state, values| one(values, |_| make(state, MACRO_BYTES)));
}

fn compare(
    environment: &mut Environment<'_>,
    name: &'static str,
    holds: fn(&Value, &Value) -> bool,
) {
    environment.add_filter(name, move |state: &mut State<'_, '_>, a: &Value, b: &Value| -> Made {
        pay_comparison(state, a, b)?;
        Ok(Value::from(holds(a, b)))
    });
}

fn many(
    environment: &mut Environment<'_>,
    name: &'static str,
    operator: fn(&mut State<'_, '_>, Vec<Value>) -> Made,
) {
    environment.add_filter(
        name,
        move |state: &mut State<'_, '_>, operands: Rest<ValueOrKwargs>| -> Made {
            operator(state, operands.into_values())
        },
    );
}

/// The only operand, after it was checked.
fn one<T>(mut values: Vec<Value>, check: impl FnOnce(&Value) -> Result<T, Error>) -> Made {
    let value = values.pop().unwrap_or_default();
    check(&value)?;
    Ok(value)
}

/// What the instruction itself makes of operands that were weighed.
fn native(state: &State<'_, '_>, instruction: Instruction<'static>, operands: &[&Value]) -> Made {
    let mut instructions = Instructions::new("", "");
    for operand in operands {
        instructions.add(Instruction::LoadConst((*operand).clone()));
    }
    instructions.add(instruction);
    let (blocks, mut text) = (BTreeMap::new(), String::new());
    let out = &mut make_string_output(&mut text);
    let root = Value::UNDEFINED;
    let (made, _) = eval(state.env(), &instructions, root, &blocks, out, AutoEscape::None)?;
    Ok(made.unwrap_or_default())
}

fn integers(a: &Value, b: &Value) -> Option<(i64, i64)> {
    if !a.is_integer() || !b.is_integer() {
        return None;
    }
    a.as_i64().zip(b.as_i64())
}

pub(super) fn add(state: &mut State<'_, '_>, a: &Value, b: &Value) -> Made {
    if a.as_str().is_some() && b.as_str().is_some() {
        return join_texts(state, a, b);
    }
    if let Some(sum) = integers(a, b).and_then(|(a, b)| a.checked_add(b)) {
        return Ok(Value::from(sum));
    }
    let lists = a.downcast_object_ref::<Vec<Value>>().zip(b.downcast_object_ref::<Vec<Value>>());
    if let Some((a, b)) = lists {
        room(state, SLOT_BYTES * (a.len() + b.len()) as u64)?;
        return admit(state, Value::from([a.as_slice(), b.as_slice()].concat()));
    }
    let sum = native(state, Instruction::Add, &[a, b])?;
    admit(state, sum)
}

fn multiply(state: &mut State<'_, '_>, a: &Value, b: &Value) -> Made {
    if let Some(product) = integers(a, b).and_then(|(a, b)| a.checked_mul(b)) {
        return Ok(Value::from(product));
    }
    let (repeated, count) = if b.is_number() { (a, b) } else { (b, a) };
    let count = count.as_usize().unwrap_or(0) as u64;
    let len = repeated.as_object().and_then(|_| repeated.len()).unwrap_or(0) as u64;
    let bytes = len.saturating_mul(SLOT_BYTES) + text_len(repeated);
    room(state, bytes.saturating_mul(count))?;
    let product = native(state, Instruction::Mul, &[a, b])?;
    admit(state, product)
}

fn join_texts(state: &mut State<'_, '_>, a: &Value, b: &Value) -> Made {
    let mut texts = [String::new(), String::new()];
    for (text, value) in texts.iter_mut().zip([a, b]) {
        if value.as_str().is_none() {
            *text = text_of(state, value)?;
        }
    }
    let (a, b) = (a.as_str().unwrap_or(&texts[0]), b.as_str().unwrap_or(&texts[1]));
    make(state, (a.len() + b.len()) as u64)?;
    Ok(Value::from([a, b].concat()))
}

/// A comparison ends with the shorter operand at the latest.
fn pay_comparison(state: &mut State<'_, '_>, a: &Value, b: &Value) -> Result<(), Error> {
    if a.as_object().is_some() && b.as_object().is_some() {
        let bytes = weigh(state, a, false)?.bytes.min(weigh(state, b, false)?.bytes);
        return walked(state, bytes);
    }
    walked(state, text_len(a).min(text_len(b)))
}

fn compared(state: &mut State<'_, '_>, mut operands: Vec<Value>) -> Made {
    for operand in &operands {
        let bytes = weigh(state, operand, false)?.bytes;
        walked(state, bytes)?;
    }
    operands.reverse();
    Ok(Value::from(operands))
}

/// Operands that something keeps; the first one is what keeps them.
fn kept(state: &mut State<'_, '_>, mut operands: Vec<Value>) -> Made {
    for operand in operands.iter().skip(1) {
        let bytes = weigh(state, operand, true)?.bytes;
        walked(state, bytes)?;
    }
    operands.reverse();
    Ok(Value::from(operands))
}

pub(super) fn contained(state: &mut State<'_, '_>, item: &Value, container: &Value) -> Made {
    if let Some(text) = container.as_str() {
        walked(state, text.len() as u64)?;
        let found = match item.as_str() {
            Some(item) => text.contains(item),
            None => text.contains(&text_of(state, item)?),
        };
        return Ok(Value::from(found));
    }
    if container.as_object().is_some_and(|object| object.repr() == ObjectRepr::Map) {
        pay_key(state, item)?;
        return native(state, Instruction::In, &[item, container]);
    }
    let bytes = if item.as_object().is_some() {
        weigh(state, item, false)?.bytes + weigh(state, container, false)?.bytes
    } else {
        // Once for each item that it is compared with.
        (SLOT_BYTES + text_len(item)).saturating_mul(container.len().unwrap_or(0) as u64)
    };
    walked(state, bytes)?;
    match container.downcast_object_ref::<Vec<Value>>() {
        Some(items) => Ok(Value::from(items.contains(item))),
        None => native(state, Instruction::In, &[item, container]),
    }
}

fn item(state: &mut State<'_, '_>, container: &Value, key: &Value) -> Made {
    pay_key(state, key)?;
    walked(state, text_len(container))?;
    if container.is_undefined() {
        return native(state, Instruction::GetItem, &[container, key]);
    }
    container.get_item(key)
}

/// A key is hashed, with all that it holds.
pub(super) fn pay_key(state: &mut State<'_, '_>, key: &Value) -> Result<(), Error> {
    if key.as_object().is_none() {
        return Ok(());
    }
    let bytes = weigh(state, key, false)?.bytes;
    walked(state, bytes)
}

fn slice(
    state: &mut State<'_, '_>,
    value: &Value,
    start: &Value,
    stop: &Value,
    step: &Value,
) -> Made {
    walked(state, text_len(value))?;
    room(state, text_len(value))?;
    let part = native(state, Instruction::Slice, &[value, start, stop, step])?;
    admit(state, part)
}

fn object(state: &mut State<'_, '_>, operands: Vec<Value>) -> Made {
    let mut map = IndexMap::with_capacity(operands.len() / 2);
    let mut operands = operands.into_iter();
    while let (Some(key), Some(value)) = (operands.next(), operands.next()) {
        pay_key(state, &key)?;
        map.insert(key, value);
    }
    admit(state, Value::from_object(map))
}

/// Keyword arguments of several objects, the last one rules.
fn keywords(state: &mut State<'_, '_>, operands: Vec<Value>) -> Made {
    let mut all = Vec::new();
    for operand in &operands {
        let pairs = operand
            .as_object()
            .filter(|object| object.repr() == ObjectRepr::Map)
            .and_then(|object| object.try_iter_pairs());
        let Some(pairs) = pairs else {
            let what = format!("`**` needs an object, not {}", operand.kind());
            return Err(Error::new(ErrorKind::InvalidOperation, what));
        };
        for (key, value) in pairs {
            make(state, 2 * SLOT_BYTES + text_len(&key))?;
            let Some(key) = key.as_str() else {
                let what = format!("a name of an argument is a string, not {}", key.kind());
                return Err(Error::new(ErrorKind::InvalidOperation, what));
            };
            all.push((key.to_owned(), value));
        }
    }
    Ok(Value::from(Kwargs::from_iter(all)))
}

/// The operands of a call whose lists are unpacked.
fn unpacked(state: &mut State<'_, '_>, lists: Vec<Value>) -> Made {
    let mut all = Vec::new();
    for list in lists {
        for item in list.try_iter()?.checked() {
            let item = item?;
            make(state, SLOT_BYTES)?;
            walked(state, SLOT_BYTES + text_len(&item))?;
            all.push(item);
        }
    }
    Ok(Value::from(all))
}
