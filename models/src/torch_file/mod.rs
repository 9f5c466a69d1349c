//! PyTorch's own checkpoint files, `.pt` and `.pth`: read without running anything in them, and written so that
//! `torch.load(weights_only=True)` takes them.
//!
//! A checkpoint is a pickle of nested dicts whose tensors refer to storages by key. What is read is one dict of tensors: the
//! outermost, or the first of the wrappers that training frameworks put around theirs.

mod container;
mod pickle;
mod write;

pub use write::write;

use crate::weights::{PATCH_MERGING, RawTensor, Weights};
use container::{Container, budget};
use pickle::{Heap, Tensor, Value};
use std::borrow::Cow;

/// A value, or what is wrong with the file.
pub(crate) type Parsed<T> = Result<T, String>;

/// Entries that hold the state dict where there are others beside it; the first that is there is taken.
pub const WRAPPERS: [&str; 4] = ["state_dict", "network_weights", "net", "student"];

/// Characters of a key that are shown.
const LABEL: usize = 60;

/// The tensors of a checkpoint in either format, under the names they have there.
pub fn read(bytes: &[u8]) -> Parsed<Weights<'_>> {
    let file = Container::open(bytes)?;
    let heap = &file.pickle.heap;
    let root = file.pickle.root;
    if heap.dict(root).is_none() {
        return Err("holds no dict of tensors; save model.state_dict()".into());
    }
    let wrapper = WRAPPERS.into_iter().find(|key| heap.get(root, key).is_some_and(|v| heap.dict(v).is_some()));
    let inner = wrapper.and_then(|key| heap.get(root, key)).unwrap_or(root);
    let mut weights = Weights { wrapper, ..Weights::default() };
    if let Some(wrapper) = wrapper {
        let others = entries(heap, root).filter(|(key, _)| *key != Value::Text(wrapper));
        weights.ignored.extend(others.map(|(key, _)| label(key)));
    }
    // Twice the file, for copies: tensors may share storages, but a small file must not take much memory.
    let mut left = budget(bytes).saturating_mul(2);
    for (key, value) in entries(heap, inner) {
        match (key, heap.tensor(value)) {
            (Value::Text(name), Some(tensor)) => {
                let raw = raw(&file, tensor, &mut left).map_err(|detail| format!("tensor {name:?}: {detail}"))?;
                weights.tensors.insert(name.to_string(), raw);
            }
            _ => drop(weights.ignored.insert(label(key))),
        }
    }
    for (key, value) in metadata(heap, root, inner) {
        left = left.checked_sub(value.len()).ok_or("its metadata are larger than the file")?;
        weights.metadata.insert(key.to_string(), value.to_string());
    }
    Ok(weights)
}

fn entries<'h, 'a>(heap: &'h Heap<'a>, dict: Value<'a>) -> impl Iterator<Item = (Value<'a>, Value<'a>)> + use<'h, 'a> {
    heap.dict(dict).unwrap_or_default().iter().copied()
}

/// A key as it can be shown: on one line, and not longer than one.
fn label(key: Value) -> String {
    match key {
        Value::Text(text) => text.escape_debug().take(LABEL).collect(),
        Value::Int(n) => n.to_string(),
        _ => "(a key that is no text)".into(),
    }
}

/// The texts that [`write()`] leaves in the state dict's `_metadata`, and a `patch_merging` beside the tensors.
fn metadata<'a>(heap: &Heap<'a>, root: Value<'a>, inner: Value<'a>) -> Vec<(&'a str, &'a str)> {
    let of_modules = heap.attribute(inner, "_metadata");
    let ours = of_modules.and_then(|modules| heap.get(modules, "")).and_then(|module| heap.dict(module));
    let texts = ours.unwrap_or_default().iter().filter_map(|&entry| match entry {
        (Value::Text(key), Value::Text(value)) => Some((key, value)),
        _ => None,
    });
    let beside = [root, inner].into_iter().filter_map(|dict| match heap.get(dict, PATCH_MERGING) {
        Some(Value::Text(value)) => Some((PATCH_MERGING, value)),
        _ => None,
    });
    beside.chain(texts).collect()
}

/// The elements of a tensor in row-major order: borrowed where they lie so, gathered by its strides where they do not.
fn raw<'a>(file: &Container<'a>, tensor: &Tensor, left: &mut usize) -> Parsed<RawTensor<'a>> {
    let size = tensor.storage.dtype.bitsize() / 8;
    let elements = Elements::of(tensor)?;
    let length = elements.count.checked_mul(size).ok_or_else(|| format!("{:?} is too large", tensor.shape))?;
    let storage = file.storage(tensor.storage.key)?;
    if elements.end > tensor.storage.numel || tensor.storage.numel > storage.len() / size {
        let (numel, held) = (tensor.storage.numel, storage.len() / size);
        return Err(format!("{} elements of a storage of {numel}, of which the file holds {held}", elements.end));
    }
    let data = if elements.contiguous {
        let start = if length == 0 { 0 } else { tensor.offset * size };
        Cow::Borrowed(&storage[start..start + length])
    } else {
        *left = left.checked_sub(length).ok_or(
            "views of shared storages that lie apart in them are copied, and all their copies would be far larger than the \
             file; save clones of its tensors: t.clone()",
        )?;
        Cow::Owned(gather(storage, tensor, size, length))
    };
    Ok(RawTensor { dtype: tensor.storage.dtype, shape: tensor.shape.clone(), data })
}

/// Where a tensor's elements lie in its storage.
struct Elements {
    count: usize,
    /// One past the last element that the tensor reaches.
    end: usize,
    contiguous: bool,
}

impl Elements {
    fn of(tensor: &Tensor) -> Parsed<Elements> {
        let (shape, strides) = (&tensor.shape, &tensor.strides);
        if shape.len() != strides.len() {
            return Err(format!("shape {shape:?} with strides {strides:?}"));
        }
        if shape.contains(&0) {
            return Ok(Elements { count: 0, end: 0, contiguous: true });
        }
        Self::counted(tensor).ok_or_else(|| format!("{shape:?} with strides {strides:?} is too large"))
    }

    fn counted(tensor: &Tensor) -> Option<Elements> {
        let (mut count, mut last, mut contiguous) = (1usize, tensor.offset, true);
        for (&n, &stride) in tensor.shape.iter().zip(&tensor.strides).rev() {
            contiguous &= n == 1 || stride == count;
            last = last.checked_add((n - 1).checked_mul(stride)?)?;
            count = count.checked_mul(n)?;
        }
        Some(Elements { count, end: last.checked_add(1)?, contiguous })
    }
}

/// Copies elements one by one, counting through the shape; every place was checked to lie in the storage.
fn gather(storage: &[u8], tensor: &Tensor, size: usize, length: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(length);
    let mut index = vec![0; tensor.shape.len()];
    let mut at = tensor.offset;
    while out.len() < length {
        out.extend_from_slice(&storage[at * size..][..size]);
        for axis in (0..index.len()).rev() {
            index[axis] += 1;
            at += tensor.strides[axis];
            if index[axis] < tensor.shape[axis] {
                break;
            }
            at -= tensor.strides[axis] * tensor.shape[axis];
            index[axis] = 0;
        }
    }
    out
}
