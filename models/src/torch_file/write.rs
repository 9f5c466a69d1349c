//! A checkpoint as `torch.save` writes it today: a zip archive of one pickle and one record per storage.

use super::Parsed;
use super::pickle::{STORAGE_TYPES, op};
use crate::error::Unwritten;
use crate::weights::{RawTensor, Weights};
use rawzip::extra_fields::ExtraFieldId;
use rawzip::{Header, ZipArchiveWriter};
use safetensors::Dtype;
use std::io::{Error as IoError, Write};

/// PyTorch's own folder name for a file it does not know the name of.
const ROOT: &str = "archive";
/// Storages start at multiples of this, so that they can be mapped into memory.
const ALIGNMENT: u64 = 64;
/// The bytes of a local header without the name, and of an extra field without its data.
const LOCAL_HEADER: u64 = 30;
const FIELD_HEADER: u64 = 4;
/// The extra field that PyTorch pads with.
const PADDING: ExtraFieldId = ExtraFieldId::new(u16::from_le_bytes(*b"FB"));

/// Writes the tensors as one `OrderedDict`, which carries the metadata in its `_metadata`, where it disturbs nobody.
pub fn write(weights: &Weights, out: impl Write) -> Result<(), Unwritten> {
    let mut archive = ZipArchiveWriter::new(out);
    record(&mut archive, "data.pkl", &pickle(weights).map_err(Unwritten::Unfit)?)?;
    record(&mut archive, "byteorder", b"little")?;
    for (key, tensor) in weights.tensors.values().enumerate() {
        record(&mut archive, &format!("data/{key}"), &tensor.data)?;
    }
    record(&mut archive, "version", b"3\n")?;
    Ok(archive.finish().map_err(IoError::other)?.flush()?)
}

fn record<W: Write>(archive: &mut ZipArchiveWriter<W>, name: &str, data: &[u8]) -> Result<(), IoError> {
    let path = format!("{ROOT}/{name}");
    let start = archive.stream_offset() + LOCAL_HEADER + path.len() as u64 + FIELD_HEADER;
    let padding = vec![b'Z'; (start.next_multiple_of(ALIGNMENT) - start) as usize];
    let mut stored = || -> Result<(), rawzip::Error> {
        let file = archive.new_file(path.as_str()).extra_field(PADDING, &padding, Header::LOCAL)?;
        let (mut entry, config) = file.start()?;
        let mut writer = config.wrap(&mut entry);
        writer.write_all(data)?;
        let (_, descriptor) = writer.finish()?;
        entry.finish(descriptor)?;
        Ok(())
    };
    stored().map_err(IoError::other)
}

fn pickle(weights: &Weights) -> Parsed<Vec<u8>> {
    let mut out = Pickler(vec![op::PROTO, 2]);
    out.ordered_dict();
    out.op(op::MARK);
    for (key, (name, tensor)) in weights.tensors.iter().enumerate() {
        out.text(name);
        out.tensor(key, tensor).map_err(|detail| format!("tensor {name:?}: {detail}"))?;
    }
    out.op(op::SETITEMS);
    out.metadata(weights);
    out.op(op::STOP);
    Ok(out.0)
}

/// No memo: what repeats is written again, which costs some bytes and saves a table.
struct Pickler(Vec<u8>);

impl Pickler {
    fn op(&mut self, op: u8) {
        self.0.push(op);
    }

    fn text(&mut self, text: &str) {
        self.op(op::BINUNICODE);
        self.0.extend_from_slice(&(text.len() as u32).to_le_bytes());
        self.0.extend_from_slice(text.as_bytes());
    }

    fn integer(&mut self, n: usize) {
        let bytes = (n as i64).to_le_bytes();
        match i32::try_from(n) {
            Ok(n) => self.0.extend([&[op::BININT][..], &n.to_le_bytes()].concat()),
            Err(_) => self.0.extend([&[op::LONG1, 8][..], &bytes].concat()),
        }
    }

    fn integers(&mut self, numbers: &[usize]) {
        self.op(op::MARK);
        numbers.iter().for_each(|&n| self.integer(n));
        self.op(op::TUPLE);
    }

    fn global(&mut self, module: &str, name: &str) {
        self.op(op::GLOBAL);
        self.0.extend_from_slice(format!("{module}\n{name}\n").as_bytes());
    }

    fn ordered_dict(&mut self) {
        self.global("collections", "OrderedDict");
        self.0.extend_from_slice(&[op::EMPTY_TUPLE, op::REDUCE]);
    }

    /// A call of `_rebuild_tensor_v2(storage, offset, size, stride, requires_grad, backward_hooks)`.
    fn tensor(&mut self, key: usize, tensor: &RawTensor) -> Parsed<()> {
        let numel = tensor.shape.iter().product();
        self.global("torch._utils", "_rebuild_tensor_v2");
        self.op(op::MARK);
        self.storage(key, tensor.dtype, numel)?;
        self.integer(0);
        self.integers(&tensor.shape);
        self.integers(&strides(&tensor.shape));
        self.op(op::NEWFALSE);
        self.ordered_dict();
        self.0.extend_from_slice(&[op::TUPLE, op::REDUCE]);
        Ok(())
    }

    fn storage(&mut self, key: usize, dtype: Dtype, numel: usize) -> Parsed<()> {
        let class = STORAGE_TYPES.iter().find(|(_, known)| *known == dtype);
        let (class, _) = class.ok_or_else(|| format!("{dtype:?} has no storage type in PyTorch's files"))?;
        self.op(op::MARK);
        self.text("storage");
        self.global("torch", class);
        self.text(&key.to_string());
        self.text("cpu");
        self.integer(numel);
        self.0.extend_from_slice(&[op::TUPLE, op::BINPERSID]);
        Ok(())
    }

    /// `{"_metadata": OrderedDict({"": {...}})}` as the state of the dict on the stack: PyTorch keeps versions of modules there,
    /// and "" is the outermost module.
    fn metadata(&mut self, weights: &Weights) {
        self.op(op::EMPTY_DICT);
        self.text("_metadata");
        self.ordered_dict();
        self.text("");
        self.op(op::EMPTY_DICT);
        self.op(op::MARK);
        for (key, value) in &weights.metadata {
            self.text(key);
            self.text(value);
        }
        self.0.extend_from_slice(&[op::SETITEMS, op::SETITEM, op::SETITEM, op::BUILD]);
    }
}

fn strides(shape: &[usize]) -> Vec<usize> {
    let mut strides = vec![1; shape.len()];
    for axis in (1..shape.len()).rev() {
        strides[axis - 1] = strides[axis] * shape[axis];
    }
    strides
}
