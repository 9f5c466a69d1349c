//! A pickle machine that builds values and calls nothing.
//!
//! It knows the opcodes that Python's protocol 2 writes, and the few globals that tensors need; any other is refused by name.
//! Containers live in arenas and values are handles into them, so that shared and cyclic ones cost nothing, and neither
//! reading nor dropping recurses, however deep a file nests.

use super::Parsed;
use safetensors::Dtype;
use std::collections::HashMap;

/// Bytes that one opcode makes the machine keep, at the most: a value and a new container, in vectors that may be half empty.
const BYTES_PER_STEP: usize = 128;

/// More axes than any weight has, though a tensor that nothing takes may have more than the engine's own: without a limit,
/// tensors that share one long shape would each keep a copy.
const MAX_RANK: usize = 32;

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Value<'a> {
    None,
    Bool(bool),
    Int(i64),
    Float(f64),
    Text(&'a str),
    /// An integer beyond 64 bits: two's complement, little end first.
    Long(&'a [u8]),
    Global(Global),
    List(usize),
    Tuple(usize),
    Dict(usize),
    Storage(usize),
    Tensor(usize),
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Global {
    OrderedDict,
    Size,
    RebuildTensor,
    RebuildParameter,
    StorageType(Dtype),
}

/// A run of elements that the container holds under `key`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Storage<'a> {
    pub key: &'a str,
    pub dtype: Dtype,
    pub numel: usize,
}

/// A view of a storage; offset and strides count elements.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor<'a> {
    pub storage: Storage<'a>,
    pub offset: usize,
    pub shape: Vec<usize>,
    pub strides: Vec<usize>,
}

type Entry<'a> = (Value<'a>, Value<'a>);

/// What the handles of [`Value`] point at.
#[derive(Default)]
pub struct Heap<'a> {
    sequences: Vec<Vec<Value<'a>>>,
    dicts: Vec<Vec<Entry<'a>>>,
    /// The state that BUILD gave to a dict.
    attributes: HashMap<usize, Value<'a>>,
    storages: Vec<Storage<'a>>,
    tensors: Vec<Tensor<'a>>,
}

/// The value of a pickle, and how many bytes it took.
pub struct Pickle<'a> {
    pub heap: Heap<'a>,
    pub root: Value<'a>,
    pub length: usize,
}

impl<'a> Pickle<'a> {
    /// Reads the pickle that `bytes` start with, in about `memory` bytes at most.
    pub fn read(bytes: &'a [u8], memory: usize) -> Parsed<Self> {
        let mut machine = Machine { bytes, ..Machine::default() };
        for _ in 0..memory / BYTES_PER_STEP {
            let op = machine.byte()?;
            if op == op::STOP {
                let root = machine.pop()?;
                return Ok(Pickle { heap: machine.heap, root, length: machine.at });
            }
            machine.step(op)?;
        }
        Err("its pickle holds more values than a file of this size should".into())
    }
}

impl<'a> Heap<'a> {
    pub fn sequence(&self, value: Value<'a>) -> Option<&[Value<'a>]> {
        match value {
            Value::List(i) | Value::Tuple(i) => self.sequences.get(i).map(Vec::as_slice),
            _ => None,
        }
    }

    pub fn dict(&self, value: Value<'a>) -> Option<&[Entry<'a>]> {
        match value {
            Value::Dict(i) => self.dicts.get(i).map(Vec::as_slice),
            _ => None,
        }
    }

    pub fn tensor(&self, value: Value<'a>) -> Option<&Tensor<'a>> {
        match value {
            Value::Tensor(i) => self.tensors.get(i),
            _ => None,
        }
    }

    pub fn storages(&self) -> &[Storage<'a>] {
        &self.storages
    }

    /// The entry of a dict; the last one where a key was set twice, as in Python.
    pub fn get(&self, dict: Value<'a>, key: &str) -> Option<Value<'a>> {
        self.dict(dict)?.iter().rev().find(|(k, _)| *k == Value::Text(key)).map(|(_, v)| *v)
    }

    /// The attribute that an OrderedDict carries beside its entries.
    pub fn attribute(&self, dict: Value<'a>, name: &str) -> Option<Value<'a>> {
        let Value::Dict(i) = dict else { return None };
        self.get(*self.attributes.get(&i)?, name)
    }
}

pub(super) mod op {
    pub const MARK: u8 = b'(';
    pub const STOP: u8 = b'.';
    pub const POP: u8 = b'0';
    pub const POP_MARK: u8 = b'1';
    pub const DUP: u8 = b'2';
    pub const BINFLOAT: u8 = b'G';
    pub const BININT: u8 = b'J';
    pub const BININT1: u8 = b'K';
    pub const BININT2: u8 = b'M';
    pub const NONE: u8 = b'N';
    pub const BINPERSID: u8 = b'Q';
    pub const REDUCE: u8 = b'R';
    pub const BINSTRING: u8 = b'T';
    pub const SHORT_BINSTRING: u8 = b'U';
    pub const BINUNICODE: u8 = b'X';
    pub const APPEND: u8 = b'a';
    pub const BUILD: u8 = b'b';
    pub const GLOBAL: u8 = b'c';
    pub const APPENDS: u8 = b'e';
    pub const BINGET: u8 = b'h';
    pub const LONG_BINGET: u8 = b'j';
    pub const BINPUT: u8 = b'q';
    pub const LONG_BINPUT: u8 = b'r';
    pub const SETITEM: u8 = b's';
    pub const TUPLE: u8 = b't';
    pub const SETITEMS: u8 = b'u';
    pub const EMPTY_TUPLE: u8 = b')';
    pub const EMPTY_LIST: u8 = b']';
    pub const EMPTY_DICT: u8 = b'}';
    pub const PROTO: u8 = 0x80;
    pub const TUPLE1: u8 = 0x85;
    pub const TUPLE2: u8 = 0x86;
    pub const TUPLE3: u8 = 0x87;
    pub const NEWTRUE: u8 = 0x88;
    pub const NEWFALSE: u8 = 0x89;
    pub const LONG1: u8 = 0x8a;
    pub const LONG4: u8 = 0x8b;
}

/// The storage classes of `torch`, and what safetensors calls their elements.
pub(super) const STORAGE_TYPES: [(&str, Dtype); 10] = [
    ("DoubleStorage", Dtype::F64),
    ("FloatStorage", Dtype::F32),
    ("HalfStorage", Dtype::F16),
    ("BFloat16Storage", Dtype::BF16),
    ("LongStorage", Dtype::I64),
    ("IntStorage", Dtype::I32),
    ("ShortStorage", Dtype::I16),
    ("CharStorage", Dtype::I8),
    ("ByteStorage", Dtype::U8),
    ("BoolStorage", Dtype::BOOL),
];

#[derive(Default)]
struct Machine<'a> {
    bytes: &'a [u8],
    at: usize,
    stack: Vec<Value<'a>>,
    /// Heights of the stack at which a MARK lies.
    marks: Vec<usize>,
    memo: HashMap<u32, Value<'a>>,
    heap: Heap<'a>,
}

impl<'a> Machine<'a> {
    fn step(&mut self, op: u8) -> Parsed<()> {
        match op {
            op::PROTO => return self.protocol(),
            op::MARK => self.marks.push(self.stack.len()),
            op::POP => drop(self.pop()?),
            op::POP_MARK => drop(self.pop_to_mark()?),
            op::DUP => self.stack.push(self.top()?),
            op::NONE => self.stack.push(Value::None),
            op::NEWTRUE => self.stack.push(Value::Bool(true)),
            op::NEWFALSE => self.stack.push(Value::Bool(false)),
            op::BININT | op::BININT1 | op::BININT2 | op::LONG1 | op::LONG4 => return self.integer(op),
            op::BINFLOAT => {
                let value = f64::from_be_bytes(self.array()?);
                self.stack.push(Value::Float(value));
            }
            op::BINUNICODE | op::BINSTRING | op::SHORT_BINSTRING => return self.text(op),
            op::EMPTY_TUPLE | op::TUPLE | op::TUPLE1 | op::TUPLE2 | op::TUPLE3 => return self.tuple(op),
            op::EMPTY_LIST => self.new_list(),
            op::APPEND | op::APPENDS => return self.append(op),
            op::EMPTY_DICT => self.new_dict(),
            op::SETITEM | op::SETITEMS => return self.set_items(op),
            op::BINPUT | op::LONG_BINPUT => return self.put(op),
            op::BINGET | op::LONG_BINGET => return self.get(op),
            op::GLOBAL => return self.global(),
            op::BINPERSID => return self.persistent(),
            op::REDUCE => return self.reduce(),
            op::BUILD => return self.build(),
            _ => return Err(format!("opcode 0x{op:02x} of its pickle is not one that torch.save writes")),
        }
        Ok(())
    }

    fn take(&mut self, n: usize) -> Parsed<&'a [u8]> {
        let bytes = self.bytes.get(self.at..).and_then(|rest| rest.get(..n));
        let bytes = bytes.ok_or("ends in the middle of its pickle; the file is cut off")?;
        self.at += n;
        Ok(bytes)
    }

    fn array<const N: usize>(&mut self) -> Parsed<[u8; N]> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(N)?);
        Ok(out)
    }

    fn byte(&mut self) -> Parsed<u8> {
        Ok(self.array::<1>()?[0])
    }

    fn length(&mut self) -> Parsed<usize> {
        Ok(u32::from_le_bytes(self.array()?) as usize)
    }

    /// Up to the next newline.
    fn line(&mut self) -> Parsed<&'a str> {
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        let end = rest.iter().position(|&b| b == b'\n').unwrap_or(rest.len());
        let line = self.take(end + 1)?;
        utf8(&line[..end])
    }

    fn top(&self) -> Parsed<Value<'a>> {
        let floor = self.marks.last().copied().unwrap_or(0);
        self.stack.get(floor..).and_then(<[_]>::last).copied().ok_or_else(|| malformed("an empty stack"))
    }

    fn pop(&mut self) -> Parsed<Value<'a>> {
        let value = self.top()?;
        self.stack.pop();
        Ok(value)
    }

    fn pop_to_mark(&mut self) -> Parsed<Vec<Value<'a>>> {
        let mark = self.marks.pop().ok_or_else(|| malformed("no mark"))?;
        Ok(self.stack.split_off(mark))
    }

    fn protocol(&mut self) -> Parsed<()> {
        match self.byte()? {
            0..=2 => Ok(()),
            n => Err(format!("pickle protocol {n}; save it with torch.save's own, 2")),
        }
    }

    fn integer(&mut self, op: u8) -> Parsed<()> {
        let value = match op {
            op::BININT => Value::Int(i32::from_le_bytes(self.array()?).into()),
            op::BININT1 => Value::Int(self.byte()?.into()),
            op::BININT2 => Value::Int(u16::from_le_bytes(self.array()?).into()),
            op::LONG1 => {
                let n = self.byte()?;
                long(self.take(n.into())?)
            }
            _ => {
                let n = self.length()?;
                long(self.take(n)?)
            }
        };
        self.stack.push(value);
        Ok(())
    }

    fn text(&mut self, op: u8) -> Parsed<()> {
        let n = if op == op::SHORT_BINSTRING { self.byte()?.into() } else { self.length()? };
        let text = utf8(self.take(n)?)?;
        self.stack.push(Value::Text(text));
        Ok(())
    }

    fn tuple(&mut self, op: u8) -> Parsed<()> {
        let items = match op {
            op::EMPTY_TUPLE => Vec::new(),
            op::TUPLE => self.pop_to_mark()?,
            _ => {
                let mut items = (op::TUPLE1..=op).map(|_| self.pop()).collect::<Parsed<Vec<_>>>()?;
                items.reverse();
                items
            }
        };
        self.stack.push(Value::Tuple(self.heap.sequences.len()));
        self.heap.sequences.push(items);
        Ok(())
    }

    fn new_list(&mut self) {
        self.stack.push(Value::List(self.heap.sequences.len()));
        self.heap.sequences.push(Vec::new());
    }

    fn new_dict(&mut self) {
        self.stack.push(Value::Dict(self.heap.dicts.len()));
        self.heap.dicts.push(Vec::new());
    }

    fn append(&mut self, op: u8) -> Parsed<()> {
        let items = if op == op::APPEND { vec![self.pop()?] } else { self.pop_to_mark()? };
        match self.top()? {
            Value::List(i) => self.heap.sequences[i].extend(items),
            _ => return Err(malformed("an append to what is no list")),
        }
        Ok(())
    }

    fn set_items(&mut self, op: u8) -> Parsed<()> {
        let items = if op == op::SETITEM {
            let value = self.pop()?;
            vec![self.pop()?, value]
        } else {
            self.pop_to_mark()?
        };
        let (pairs, []) = items.as_chunks::<2>() else { return Err(malformed("a key without a value")) };
        match self.top()? {
            Value::Dict(i) => self.heap.dicts[i].extend(pairs.iter().map(|&[key, value]| (key, value))),
            _ => return Err(malformed("an item set in what is no dict")),
        }
        Ok(())
    }

    fn put(&mut self, op: u8) -> Parsed<()> {
        let slot = self.slot(op == op::BINPUT)?;
        self.memo.insert(slot, self.top()?);
        Ok(())
    }

    fn get(&mut self, op: u8) -> Parsed<()> {
        let slot = self.slot(op == op::BINGET)?;
        let value = *self.memo.get(&slot).ok_or_else(|| malformed("an empty memo slot"))?;
        self.stack.push(value);
        Ok(())
    }

    fn slot(&mut self, short: bool) -> Parsed<u32> {
        Ok(if short { self.byte()?.into() } else { u32::from_le_bytes(self.array()?) })
    }

    fn global(&mut self) -> Parsed<()> {
        let (module, name) = (self.line()?, self.line()?);
        let storage = STORAGE_TYPES.iter().find(|(known, _)| module == "torch" && *known == name);
        let global = match (module, name) {
            ("collections", "OrderedDict") => Global::OrderedDict,
            ("torch", "Size") => Global::Size,
            ("torch._utils", "_rebuild_tensor_v2") => Global::RebuildTensor,
            ("torch._utils", "_rebuild_parameter") => Global::RebuildParameter,
            _ => match storage {
                Some((_, dtype)) => Global::StorageType(*dtype),
                None => return Err(refusal(module, name)),
            },
        };
        self.stack.push(Value::Global(global));
        Ok(())
    }

    /// `("storage", type, key, location, numel)`, and in old files a sixth that says whether it is a view of another.
    fn persistent(&mut self) -> Parsed<()> {
        let id = self.pop()?;
        let storage = match self.heap.sequence(id) {
            Some(
                &[
                    Value::Text("storage"),
                    Value::Global(Global::StorageType(dtype)),
                    Value::Text(key),
                    _,
                    numel,
                    ref rest @ ..,
                ],
            ) => match rest {
                [] | [Value::None] => Storage { key, dtype, numel: count(numel)? },
                _ => return Err("has storages that are views of others; save it again with a newer PyTorch".into()),
            },
            _ => return Err(malformed("a reference to what is no storage")),
        };
        self.stack.push(Value::Storage(self.heap.storages.len()));
        self.heap.storages.push(storage);
        Ok(())
    }

    fn reduce(&mut self) -> Parsed<()> {
        let (arguments, callee) = (self.pop()?, self.pop()?);
        let arguments = match arguments {
            Value::Tuple(_) => self.heap.sequence(arguments).unwrap_or_default(),
            _ => return Err(malformed("arguments that are no tuple")),
        };
        match (callee, arguments) {
            (Value::Global(Global::OrderedDict), []) => self.new_dict(),
            (Value::Global(Global::Size), &[sizes @ Value::Tuple(_)]) => self.stack.push(sizes),
            (Value::Global(Global::RebuildParameter), &[data @ Value::Tensor(_), ..]) => self.stack.push(data),
            (
                Value::Global(Global::RebuildTensor),
                &[Value::Storage(i), offset, shape, strides, _, _, ref flags @ ..],
            ) => {
                self.no_flags(flags)?;
                let storage = self.heap.storages[i];
                return self.new_tensor(storage, offset, shape, strides);
            }
            _ => return Err(malformed("a call with arguments that it does not take")),
        }
        Ok(())
    }

    /// A seventh argument holds the bits by which a tensor's values are not those of its storage, but negated or conjugated.
    fn no_flags(&self, flags: &[Value<'a>]) -> Parsed<()> {
        match *flags {
            [] | [Value::None] => Ok(()),
            [dict] if self.heap.dict(dict).is_some_and(<[_]>::is_empty) => Ok(()),
            _ => {
                Err("has a tensor that is negated or conjugated when it is read; save t.resolve_neg() in its place"
                    .into())
            }
        }
    }

    fn new_tensor(
        &mut self,
        storage: Storage<'a>,
        offset: Value<'a>,
        shape: Value<'a>,
        strides: Value<'a>,
    ) -> Parsed<()> {
        let counts = |of| match self.heap.sequence(of) {
            Some(items) if items.len() > MAX_RANK => Err(format!("has a tensor of rank {}", items.len())),
            Some(items) => items.iter().map(|&v| count(v)).collect::<Parsed<Vec<_>>>(),
            None => Err(malformed("a shape that is no tuple")),
        };
        let tensor = Tensor { storage, offset: count(offset)?, shape: counts(shape)?, strides: counts(strides)? };
        self.stack.push(Value::Tensor(self.heap.tensors.len()));
        self.heap.tensors.push(tensor);
        Ok(())
    }

    /// State for an object: only dicts take one, as `OrderedDict` does for `_metadata`.
    fn build(&mut self) -> Parsed<()> {
        match (self.pop()?, self.top()?) {
            (state @ Value::Dict(_), Value::Dict(i)) => drop(self.heap.attributes.insert(i, state)),
            _ => return Err(malformed("a state for what takes none")),
        }
        Ok(())
    }
}

fn long(bytes: &[u8]) -> Value<'_> {
    if bytes.len() > 8 {
        return Value::Long(bytes);
    }
    let negative = bytes.last().is_some_and(|b| b & 0x80 != 0);
    let mut word = [if negative { 0xff } else { 0 }; 8];
    word[..bytes.len()].copy_from_slice(bytes);
    Value::Int(i64::from_le_bytes(word))
}

fn count(value: Value) -> Parsed<usize> {
    match value {
        Value::Int(n) => usize::try_from(n).map_err(|_| malformed("a negative size")),
        _ => Err(malformed("a size that is no integer")),
    }
}

fn utf8(bytes: &[u8]) -> Parsed<&str> {
    std::str::from_utf8(bytes).map_err(|_| malformed("a text that is not UTF-8"))
}

fn malformed(what: &str) -> String {
    format!("its pickle is damaged: {what}")
}

fn refusal(module: &str, name: &str) -> String {
    let called = format!("{module}.{name}");
    format!("its pickle calls {called:?}, which is not run; save tensors alone: torch.save(model.state_dict(), ...)")
}
