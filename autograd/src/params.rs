//! Trainable parameters in one slab, and their gradients in another of the same layout.
//!
//! One slab makes update, norm and averaging linear passes. Each parameter starts on a 64-byte line; the gaps hold zeros and
//! stay zero, because their gradients are zero. For networks in a lower precision a second slab of the same layout holds the
//! values rounded ([`crate::precision`]); whatever changes the first changes the second.

use crate::precision::{Role, master};
use crate::{Error, Result};
use engine::{DType, Device, Tensor, random};
use kernels::{add, cast};
use std::collections::HashMap;
use std::ops::Range;

/// Elements to which every parameter's start is aligned: 64 bytes of f32.
const ALIGN: usize = 16;

/// A parameter's place in its store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ParamId(usize);

/// How a parameter starts. Draws depend on the seed and the parameter's name alone.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Init {
    Zeros,
    Ones,
    /// Uniform in [-bound, bound).
    Uniform(f64),
    /// Normal with this standard deviation, cut at ±2 (absolute, as PyTorch's default `trunc_normal_`).
    TruncatedNormal(f64),
}

#[derive(Clone, Debug)]
struct Entry {
    name: String,
    dims: Vec<usize>,
    start: usize,
    role: Role,
    init: Init,
}

impl Entry {
    fn range(&self) -> Range<usize> {
        self.start..self.start + self.dims.iter().product::<usize>()
    }
}

/// Collects parameters while a model is built.
#[derive(Default)]
pub struct ParamStoreBuilder {
    entries: Vec<Entry>,
    end: usize,
}

impl ParamStoreBuilder {
    pub fn add(&mut self, name: impl Into<String>, dims: &[usize], role: Role, init: Init) -> ParamId {
        let entry = Entry { name: name.into(), dims: dims.to_vec(), start: self.end, role, init };
        self.end = entry.range().end.next_multiple_of(ALIGN);
        self.entries.push(entry);
        ParamId(self.entries.len() - 1)
    }

    /// Allocates the slabs for networks that are computed in `dtype`, and draws the initial values. Errors when two parameters
    /// share a name.
    pub fn build(self, dtype: DType, device: Device, seed: u64) -> Result<ParamStore> {
        let mut by_name = HashMap::new();
        for (i, e) in self.entries.iter().enumerate() {
            if by_name.insert(e.name.clone(), ParamId(i)).is_some() {
                return Err(Error::DuplicateParameter(e.name.clone()));
            }
        }
        let values = Tensor::zeros(&[self.end], master(dtype), device)?;
        let lower = values.dtype() != dtype;
        let rounded = if lower { Some(Tensor::empty(&[self.end], dtype, device)?) } else { None };
        let mut store = ParamStore { entries: self.entries, by_name, dtype, values, rounded };
        for id in store.ids() {
            store.draw(id, seed)?;
        }
        store.round()?;
        Ok(store)
    }
}

/// Named parameters whose values share one slab `[numel]`.
pub struct ParamStore {
    entries: Vec<Entry>,
    by_name: HashMap<String, ParamId>,
    /// Of the networks' computation.
    dtype: DType,
    /// The masters.
    values: Tensor,
    /// The same in `dtype`, where the masters are in another.
    rounded: Option<Tensor>,
}

impl ParamStore {
    /// No parameters: for computations on leaves alone.
    pub fn none(dtype: DType, device: Device) -> Result<ParamStore> {
        ParamStoreBuilder::default().build(dtype, device, 0)
    }

    pub fn ids(&self) -> impl Iterator<Item = ParamId> + use<> {
        (0..self.entries.len()).map(ParamId)
    }

    pub fn name(&self, id: ParamId) -> &str {
        &self.entries[id.0].name
    }

    pub fn dims(&self, id: ParamId) -> &[usize] {
        &self.entries[id.0].dims
    }

    pub fn find(&self, name: &str) -> Result<ParamId> {
        self.by_name.get(name).copied().ok_or_else(|| Error::NoSuchParameter(name.into()))
    }

    /// What networks of these parameters are computed in.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    pub fn device(&self) -> Device {
        self.values.device()
    }

    /// Parameters in all, without the gaps between them.
    pub fn count(&self) -> usize {
        self.entries.iter().map(|e| e.range().len()).sum()
    }

    /// Bytes of all slabs.
    pub fn bytes(&self) -> usize {
        [Some(&self.values), self.rounded.as_ref()].into_iter().flatten().map(|t| t.numel() * t.dtype().size()).sum()
    }

    /// A view of the parameter's value.
    pub fn value(&self, id: ParamId) -> Result<Tensor> {
        view(&self.values, &self.entries[id.0])
    }

    /// A view of the parameter as operations are given it: in the dtype of its role.
    pub fn operand(&self, id: ParamId) -> Result<Tensor> {
        let entry = &self.entries[id.0];
        match &self.rounded {
            Some(rounded) if entry.role.dtype(self.dtype) == self.dtype => view(rounded, entry),
            _ => view(&self.values, entry),
        }
    }

    /// Overwrites a parameter with `value(i)`, i counted row-major. Errors while a view is alive.
    pub fn fill(&mut self, id: ParamId, value: impl Fn(usize) -> f64) -> Result<()> {
        let range = self.entries[id.0].range();
        for slab in [Some(&mut self.values), self.rounded.as_mut()].into_iter().flatten() {
            slab.fill_with(range.clone(), &value)?;
        }
        Ok(())
    }

    /// Overwrites a parameter. Errors when the count differs, or while a view is alive.
    pub fn set(&mut self, id: ParamId, values: &[f64]) -> Result<()> {
        let entry = &self.entries[id.0];
        if values.len() != entry.range().len() {
            let detail = format!("{} values for {} of shape {:?}", values.len(), entry.name, entry.dims);
            return Err(engine::Error::shape("set parameter", detail).into());
        }
        self.fill(id, |i| values[i])
    }

    /// The slab of values, gaps included.
    pub fn slab(&self) -> &Tensor {
        &self.values
    }

    /// Changes the slab of values; the rounded ones follow.
    pub fn update(&mut self, change: impl FnOnce(&mut Tensor) -> engine::Result<()>) -> Result<()> {
        change(&mut self.values)?;
        self.round()
    }

    /// The slab of values, and of the rounded ones where there are such, for an update that writes both.
    pub fn slabs_mut(&mut self) -> (&mut Tensor, Option<&mut Tensor>) {
        (&mut self.values, self.rounded.as_mut())
    }

    fn round(&mut self) -> Result<()> {
        match &mut self.rounded {
            Some(rounded) => Ok(cast::into(&self.values, rounded)?),
            None => Ok(()),
        }
    }

    /// A view of the slab over all parameters whose names start with `prefix`; they must lie next to each other.
    pub fn section(&self, prefix: &str) -> Result<Tensor> {
        let inside: Vec<usize> =
            (0..self.entries.len()).filter(|&i| self.entries[i].name.starts_with(prefix)).collect();
        let (Some(&first), Some(&last)) = (inside.first(), inside.last()) else {
            return Err(Error::NoSuchParameter(format!("{prefix}*")));
        };
        if last - first + 1 != inside.len() {
            return Err(engine::Error::invalid("section", format!("{prefix}* are not next to each other")).into());
        }
        let start = self.entries[first].start;
        let end = self.entries[last].range().end.next_multiple_of(ALIGN);
        Ok(self.values.rows_at(start, end - start)?)
    }

    /// A zeroed slab of the same layout, for gradients or optimiser state.
    pub fn zeros_like(&self) -> Result<Tensor> {
        Ok(Tensor::zeros(self.values.dims(), self.values.dtype(), self.values.device())?)
    }

    /// Overwrites a parameter's value, and not what is rounded of it, with its initial value.
    fn draw(&mut self, id: ParamId, seed: u64) -> Result<()> {
        let entry = &self.entries[id.0];
        let seed = random::derive(seed, &entry.name.bytes().map(u64::from).collect::<Vec<_>>());
        let value = |i: usize| match entry.init {
            Init::Zeros => 0.0,
            Init::Ones => 1.0,
            Init::Uniform(bound) => bound * (2.0 * random::uniform(seed, i as u64) - 1.0),
            Init::TruncatedNormal(sd) => (sd * random::normal(seed, i as u64)).clamp(-2.0, 2.0),
        };
        Ok(self.values.fill_with(entry.range(), value)?)
    }
}

fn view(slab: &Tensor, entry: &Entry) -> Result<Tensor> {
    Ok(slab.rows_at(entry.start, entry.range().len())?.reshape(&entry.dims)?)
}

/// Gradients of a store's parameters, in a slab of the same layout, and of the tape's leaves.
pub struct Gradients {
    slab: Tensor,
    reached: Vec<bool>,
    /// Whose leaves they are.
    pub(crate) tape: u64,
    pub(crate) leaves: HashMap<usize, Tensor>,
}

impl Gradients {
    pub(crate) fn new(store: &ParamStore, tape: u64) -> Result<Gradients> {
        let reached = vec![false; store.entries.len()];
        Ok(Gradients { slab: store.zeros_like()?, reached, tape, leaves: HashMap::new() })
    }

    pub fn slab(&self) -> &Tensor {
        &self.slab
    }

    /// A view of one parameter's gradient.
    pub fn param(&self, store: &ParamStore, id: ParamId) -> Result<Tensor> {
        view(&self.slab, &store.entries[id.0])
    }

    pub(crate) fn accumulate(&mut self, store: &ParamStore, id: ParamId, grad: &Tensor) -> Result<()> {
        let entry = &store.entries[id.0];
        if grad.dims() != entry.dims {
            return Err(Error::Cotangent { got: grad.dims().to_vec(), want: entry.dims.clone() });
        }
        self.reached[id.0] = true;
        Ok(add::accumulate_at(&mut self.slab, entry.start, grad)?)
    }

    pub(crate) fn require_all(&self, store: &ParamStore) -> Result<()> {
        let missing: Vec<String> =
            self.reached.iter().zip(&store.entries).filter(|(r, _)| !**r).map(|(_, e)| e.name.clone()).collect();
        if missing.is_empty() { Ok(()) } else { Err(Error::Unreached(missing)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_lie_in_one_slab_by_name() {
        let mut b = ParamStoreBuilder::default();
        let a = b.add("a", &[3], Role::Term, Init::Ones);
        let w = b.add("s.w", &[2, 5], Role::Operand, Init::Uniform(0.5));
        b.add("s.b", &[17], Role::Term, Init::Zeros);
        let mut store = b.build(DType::F32, Device::Cpu, 1).expect("store");
        assert_eq!((store.count(), store.slab().numel()), (30, 64));
        assert_eq!(store.section("s.").expect("section").numel(), 48);
        assert!(store.value(w).and_then(|t| Ok(t.to_f64_vec()?)).expect("w").iter().all(|v| v.abs() <= 0.5));
        store.set(a, &[1.0, 2.0, 3.0]).expect("set");
        assert_eq!(store.value(a).and_then(|t| Ok(t.to_vec::<f32>()?)).expect("a"), [1.0, 2.0, 3.0]);
        assert!(store.set(a, &[1.0]).is_err());
        assert!(store.section("t.").is_err() && store.find("s.c").is_err());
    }

    #[test]
    fn names_must_differ() {
        let mut b = ParamStoreBuilder::default();
        b.add("a", &[1], Role::Term, Init::Ones);
        b.add("a", &[1], Role::Term, Init::Ones);
        assert_eq!(b.build(DType::F32, Device::Cpu, 0).err(), Some(Error::DuplicateParameter("a".into())));
    }
    #[test]
    fn in_a_lower_precision_operands_are_the_rounded_values_whatever_changed_them() {
        let mut b = ParamStoreBuilder::default();
        let weight = b.add("weight", &[5, 7], Role::Operand, Init::Uniform(1.0));
        let bias = b.add("bias", &[5], Role::Term, Init::Uniform(1.0));
        let mut store = b.build(DType::BF16, Device::Cpu, 1).expect("store");
        assert_eq!((store.dtype(), store.bytes()), (DType::BF16, 64 * (4 + 2)));
        let agree = |store: &ParamStore| {
            let read =
                |t: Result<Tensor>| (t.as_ref().expect("view").dtype(), t.expect("view").to_f64_vec().expect("values"));
            let (master, rounded) = (store.value(weight), read(store.operand(weight)));
            assert_eq!(rounded, read(Ok(master.and_then(|t| Ok(t.to_dtype(DType::BF16)?)).expect("rounded"))));
            assert_eq!(read(store.operand(bias)), read(store.value(bias)));
            rounded.1
        };
        let drawn = agree(&store);
        store.set(weight, &[1.0 + 2f64.powi(-10); 35]).expect("set");
        assert_eq!(agree(&store), [1.0; 35]);
        let double = |t: &mut Tensor| t.as_mut_slice::<f32>().map(|values| values.iter_mut().for_each(|v| *v *= 2.0));
        store.update(double).expect("update");
        assert_eq!(agree(&store), [2.0; 35]);
        assert_ne!(drawn, [1.0; 35]);
    }
}
