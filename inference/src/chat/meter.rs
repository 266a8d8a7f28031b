//! What a rendering may make, and how deep: the part of a template's price that minijinja's fuel
//! leaves out.
//!
//! Fuel pays for each instruction and for each byte and slot that is made. A value that holds
//! another one twice is small, though, and what is made *of* it (a comparison, a text, its drop) is
//! not. So every list, tuple and object of a rendering is weighed when it is made:
//!
//! - it is nested at most [`DEPTH_MAX`] deep, so that whatever walks it by recursion ends;
//! - it unfolds to at most as many bytes as the rendering may make ([`allowance`]), and what walks
//!   it pays fuel for the unfolded bytes, however little memory it takes;
//! - it holds data only: no namespace, loop, macro or function, so that none can hold itself.
//!
//! And all text and all values together pay for their bytes before they exist. What is dropped is
//! not paid back: the sum bounds the memory at every moment.
//!
//! A container's weight is remembered under its address, with a weak reference beside it: as long
//! as that is held, the address is not given to another one.

use std::any::Any;
use std::borrow::Borrow;
use std::collections::HashMap;
use std::fmt::{self, Write};
use std::sync::{Arc, Weak};

use indexmap::IndexMap;
use minijinja::value::{DynObject, ObjectRepr, Tuple, Value};
use minijinja::{Error, ErrorKind, State};

use super::{FUEL, FUEL_PER_BYTE};

/// Deepest nesting of a value: that of the JSON that clients send.
pub(super) const DEPTH_MAX: usize = 128;
/// Bytes of text and values that a rendering may make.
pub(super) const MADE_BYTES_MAX: u64 = 64 << 20;
/// More of them for each byte of the conversation.
pub(super) const MADE_BYTES_PER_BYTE: u64 = 64;
/// What a value counts for beside its text: a slot of 24 bytes in a list that grows by doubling,
/// or half an entry of an object.
pub(super) const SLOT_BYTES: u64 = 64;
/// What remembering a container's weight takes.
const KNOWN_BYTES: u64 = 128;
/// Bytes walked for a unit of fuel, as minijinja counts them.
const BYTES_PER_FUEL: u64 = 64;
/// How much more work it is to print a byte of a list or an object than to copy one; minijinja's
/// own factor.
const PRINTED: u64 = 16;
/// Values visited for a unit of fuel while weighing.
const VISITS_PER_FUEL: u64 = 16;
/// A container that takes fewer visits is weighed again instead of remembered.
const KNOWN_VISITS_MIN: u64 = 8;

/// What minijinja calls an object.
type Map = IndexMap<Value, Value>;

/// A limit of a rendering that was reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Exceeded {
    /// More text and values than the allowance, in bytes.
    #[error("it makes more than {0} bytes of text and values")]
    Made(u64),
    /// Nested deeper than [`DEPTH_MAX`].
    #[error("it nests values deeper than {DEPTH_MAX}")]
    Depth,
    /// A namespace, loop, macro or function where only data may be.
    #[error("only data can be put into a list, an object or a namespace")]
    NotData,
}

impl From<Exceeded> for Error {
    fn from(limit: Exceeded) -> Self {
        Self::new(ErrorKind::InvalidOperation, limit.to_string()).with_source(limit)
    }
}

/// Bytes that a rendering with so much fuel may make: [`MADE_BYTES_MAX`], and
/// [`MADE_BYTES_PER_BYTE`] more for each byte of the conversation that the fuel was given for.
pub(super) fn allowance(fuel: u64) -> u64 {
    MADE_BYTES_MAX + fuel.saturating_sub(FUEL) / FUEL_PER_BYTE * MADE_BYTES_PER_BYTE
}

/// How large a value is when everything that it holds is written out.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Weight {
    pub(super) depth: usize,
    pub(super) bytes: u64,
}

/// The account of one rendering.
pub(super) struct Meter {
    made: u64,
    made_max: u64,
    known: HashMap<usize, Known, ahash::RandomState>,
}

struct Known {
    weight: Weight,
    /// Keeps the address from being used again.
    _address: Weak<dyn Any + Send + Sync>,
}

impl Meter {
    pub(super) fn new(made_max: u64) -> Self {
        Self { made: 0, made_max, known: HashMap::default() }
    }

    fn of<'s>(state: &'s mut State<'_, '_>) -> &'s mut Self {
        let (used, left) = state.fuel_levels().unwrap_or((0, 0));
        state.get_or_insert_extension_with(|| Self::new(allowance(used + left)))
    }

    fn left(&self) -> u64 {
        self.made_max - self.made
    }

    fn make(&mut self, bytes: u64) -> Result<(), Exceeded> {
        if bytes > self.left() {
            self.made = self.made_max;
            return Err(Exceeded::Made(self.made_max));
        }
        self.made += bytes;
        Ok(())
    }

    /// Weighs a value; with `data_only`, what is no data is refused wherever it lies.
    pub(super) fn weigh(&mut self, value: &Value, data_only: bool) -> Result<Weight, Exceeded> {
        let mut walk = Walk { meter: self, visited: 0, data_only };
        walk.value(value, DEPTH_MAX)
    }
}

/// One walk over a value.
struct Walk<'a> {
    meter: &'a mut Meter,
    visited: u64,
    data_only: bool,
}

impl Walk<'_> {
    fn value(&mut self, value: &Value, deeper: usize) -> Result<Weight, Exceeded> {
        self.visited += 1;
        let Some(object) = value.as_object() else {
            return Ok(Weight { depth: 0, bytes: SLOT_BYTES + text_len(value) });
        };
        if let Some(list) = object.downcast_ref::<Vec<Value>>() {
            self.known(object, list, deeper, |walk, deeper| walk.all(list.iter(), deeper))
        } else if let Some(tuple) = object.downcast_ref::<Tuple>() {
            self.known(object, tuple, deeper, |walk, deeper| walk.all(tuple.iter(), deeper))
        } else if let Some(map) = object.downcast_ref::<Map>() {
            self.known(object, map, deeper, |walk, deeper| {
                walk.all(map.iter().flat_map(|(key, value)| [key, value]), deeper)
            })
        } else {
            self.other(object, deeper)
        }
    }

    /// A container whose weight may be known already.
    fn known<T: Send + Sync + 'static>(
        &mut self,
        object: &DynObject,
        content: &T,
        deeper: usize,
        walk: impl FnOnce(&mut Self, usize) -> Result<Weight, Exceeded>,
    ) -> Result<Weight, Exceeded> {
        let address = std::ptr::from_ref(content) as usize;
        if let Some(known) = self.meter.known.get(&address) {
            return if known.weight.depth > deeper {
                Err(Exceeded::Depth)
            } else {
                Ok(known.weight)
            };
        }
        let before = self.visited;
        let weight = walk(self, deeper)?;
        if self.visited - before >= KNOWN_VISITS_MIN
            && let Some(content) = object.downcast::<T>()
        {
            self.meter.make(KNOWN_BYTES)?;
            let address_held: Weak<dyn Any + Send + Sync> = Arc::downgrade(&content) as _;
            self.meter.known.insert(address, Known { weight, _address: address_held });
        }
        Ok(weight)
    }

    /// What is never remembered: keyword arguments and the groups of `groupby`, which are data;
    /// namespaces, loops and macros.
    fn other(&mut self, object: &DynObject, deeper: usize) -> Result<Weight, Exceeded> {
        let is_data = match object.repr() {
            ObjectRepr::Seq | ObjectRepr::Iterable => true,
            _ => Value::from_dyn_object(object.clone()).is_kwargs(),
        };
        if self.data_only && !is_data {
            return Err(Exceeded::NotData);
        }
        let Some(pairs) = object.try_iter_pairs() else {
            return Ok(Weight { depth: 0, bytes: SLOT_BYTES });
        };
        self.all(pairs.flat_map(|(key, value)| [key, value]), deeper)
    }

    fn all<V: Borrow<Value>>(
        &mut self,
        values: impl Iterator<Item = V>,
        deeper: usize,
    ) -> Result<Weight, Exceeded> {
        let deeper = deeper.checked_sub(1).ok_or(Exceeded::Depth)?;
        let mut sum = Weight { depth: 1, bytes: SLOT_BYTES };
        for value in values {
            let weight = self.value(value.borrow(), deeper)?;
            sum.depth = sum.depth.max(weight.depth + 1);
            sum.bytes = sum.bytes.saturating_add(weight.bytes);
            if sum.bytes > self.meter.made_max {
                return Err(Exceeded::Made(self.meter.made_max));
            }
        }
        Ok(sum)
    }
}

/// Bytes of a string (or of bytes); 0 for everything else.
pub(super) fn text_len(value: &Value) -> u64 {
    value.as_bytes().map_or(0, <[u8]>::len) as u64
}

/// Pays for bytes that will be made now.
pub(super) fn make(state: &mut State<'_, '_>, bytes: u64) -> Result<(), Error> {
    Ok(Meter::of(state).make(bytes)?)
}

/// How many bytes can still be paid for.
#[derive(Clone, Copy)]
pub(super) struct Room {
    left: u64,
    made_max: u64,
}

impl Room {
    /// Refuses more bytes than there is room for.
    pub(super) fn holds(self, bytes: u64) -> Result<(), Error> {
        if bytes > self.left {
            return Err(Exceeded::Made(self.made_max).into());
        }
        Ok(())
    }
}

pub(super) fn room_left(state: &mut State<'_, '_>) -> Room {
    let meter = Meter::of(state);
    Room { left: meter.left(), made_max: meter.made_max }
}

/// Refuses if so many bytes could not be paid for; asked before a value is made whose exact size
/// is paid afterwards.
pub(super) fn room(state: &mut State<'_, '_>, bytes: u64) -> Result<(), Error> {
    room_left(state).holds(bytes)
}

/// Pays fuel for a walk over so many unfolded bytes.
pub(super) fn walked(state: &State<'_, '_>, bytes: u64) -> Result<(), Error> {
    state.consume_fuel(bytes / BYTES_PER_FUEL)
}

/// What a value weighs; weighing pays fuel, too.
pub(super) fn weigh(
    state: &mut State<'_, '_>,
    value: &Value,
    data_only: bool,
) -> Result<Weight, Error> {
    if value.as_object().is_none() {
        return Ok(Weight { depth: 0, bytes: SLOT_BYTES + text_len(value) });
    }
    let mut walk = Walk { meter: Meter::of(state), visited: 0, data_only };
    let weight = walk.value(value, DEPTH_MAX);
    let visited = walk.visited;
    state.consume_fuel(visited / VISITS_PER_FUEL)?;
    Ok(weight?)
}

/// Takes a value that was just made into the rendering: what is lazy is made whole, its bytes are
/// paid, and it must be data of bounded depth, or no container at all.
pub(super) fn admit(state: &mut State<'_, '_>, value: Value) -> Result<Value, Error> {
    let Some(object) = value.as_object() else {
        make(state, text_len(&value))?;
        return Ok(value);
    };
    let slots = if let Some(list) = object.downcast_ref::<Vec<Value>>() {
        list.len() as u64
    } else if let Some(tuple) = object.downcast_ref::<Tuple>() {
        tuple.len() as u64
    } else if let Some(map) = object.downcast_ref::<Map>() {
        2 * map.len() as u64
    } else if matches!(object.repr(), ObjectRepr::Seq | ObjectRepr::Iterable) {
        let value = collect(state, &value)?;
        weigh(state, &value, true)?;
        return Ok(value);
    } else {
        return Ok(value);
    };
    make(state, SLOT_BYTES * (1 + slots))?;
    weigh(state, &value, true)?;
    Ok(value)
}

/// The items of anything that can be iterated, paid one by one.
fn collect(state: &mut State<'_, '_>, value: &Value) -> Result<Value, Error> {
    let mut items = Vec::new();
    for item in value.try_iter()?.checked() {
        make(state, SLOT_BYTES)?;
        items.push(item?);
    }
    Ok(Value::from(items))
}

/// A value as it is printed, as long as there is room for it.
pub(super) fn text_of(state: &mut State<'_, '_>, value: &Value) -> Result<String, Error> {
    let mut text = String::new();
    print(state, value, &mut text)?;
    Ok(text)
}

/// Prints a value, as long as there is room; returns how many bytes that took. Only the work is
/// paid: the bytes are the caller's to pay.
pub(super) fn print(
    state: &mut State<'_, '_>,
    value: &Value,
    out: &mut dyn Write,
) -> Result<u64, Error> {
    let room = room_left(state);
    let mut printer = Printer { out, left: room.left };
    match write!(printer, "{value}") {
        Ok(()) => {
            let written = room.left - printer.left;
            if value.as_object().is_some() {
                walked(state, written.saturating_mul(PRINTED))?;
            }
            Ok(written)
        }
        Err(fmt::Error) => Err(Exceeded::Made(room.made_max).into()),
    }
}

/// Text that ends where the room does.
struct Printer<'a> {
    out: &'a mut dyn Write,
    left: u64,
}

impl Write for Printer<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.left = self.left.checked_sub(text.len() as u64).ok_or(fmt::Error)?;
        self.out.write_str(text)
    }
}
