//! The tape: a list of nodes, walked once in reverse and consumed on the way, so that memory falls as gradients rise.

use crate::{Error, Gradients, ParamId, ParamStore, Result, Sides};
use engine::{Tensor, trace};
use kernels::add;
use std::cell::RefCell;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// A value that the tape may track. Cloning is cheap.
#[derive(Clone, Debug)]
pub struct Var {
    value: Tensor,
    tracked: Option<Tracked>, // None: a constant
}

/// By which node of which tape.
#[derive(Clone, Copy, Debug)]
struct Tracked {
    tape: u64,
    node: usize,
}

impl Var {
    fn node(&self) -> Option<usize> {
        self.tracked.map(|t| t.node)
    }

    pub fn value(&self) -> &Tensor {
        &self.value
    }

    pub fn dims(&self) -> &[usize] {
        self.value.dims()
    }

    pub fn into_value(self) -> Tensor {
        self.value
    }
}

/// The backward half of one operation. The implementing struct's fields are what forward saved, by name.
pub trait Rule {
    fn name(&self) -> &'static str;

    /// Gradients of the inputs, in order, from the gradient of the output. `needs[i]` says whether input `i` is tracked; where
    /// it is not, the answer is not used: it is None where it would cost much and networks have such inputs. Consumes what was saved.
    fn backward(self: Box<Self>, dy: Tensor, needs: &[bool], pass: &mut Pass) -> Result<Vec<Option<Tensor>>>;
}

/// A backward pass under way: what the recompute of a checkpoint needs.
pub struct Pass<'p> {
    store: &'p ParamStore,
    grads: &'p mut Gradients,
}

/// The scopes in which an operation was recorded, for a trace of its backward.
type Place = Option<Rc<str>>;

enum Node<'a> {
    Leaf,
    Param(ParamId),
    Op { rule: Box<dyn Rule + 'a>, inputs: Vec<Option<usize>>, place: Place },
}

/// Records operations on the parameters of one store, which it borrows, so that they cannot change under it.
pub struct Tape<'a> {
    /// Which no other tape of the process has.
    number: u64,
    store: &'a ParamStore,
    nodes: RefCell<Vec<Node<'a>>>,
    recording: bool,
    sides: Option<&'a RefCell<Sides>>,
}

impl<'a> Tape<'a> {
    pub fn new(store: &'a ParamStore) -> Self {
        static MADE: AtomicU64 = AtomicU64::new(0);
        let number = MADE.fetch_add(1, Relaxed);
        Tape { number, store, nodes: RefCell::default(), recording: true, sides: None }
    }

    /// Computes values only: nothing is saved.
    pub fn inference(store: &'a ParamStore) -> Self {
        Tape { recording: false, ..Tape::new(store) }
    }

    /// Records the sides of this forward's rectifiers, or follows recorded ones.
    pub fn with_sides(self, sides: &'a RefCell<Sides>) -> Self {
        Tape { sides: Some(sides), ..self }
    }

    pub fn store(&self) -> &'a ParamStore {
        self.store
    }

    /// A rectifier's output y, on the side that is to be followed; `z` computes its input, in y's order.
    pub(crate) fn settle(&self, y: Tensor, z: impl FnOnce(&Tensor) -> Result<Vec<f64>>) -> Result<Tensor> {
        match self.sides {
            Some(sides) => sides.borrow_mut().settle(&z(&y)?, y),
            None => Ok(y),
        }
    }

    /// An input without gradient.
    pub fn constant(&self, value: Tensor) -> Var {
        Var { value, tracked: None }
    }

    /// An input whose gradient is wanted; read it with [`Tape::backward`]'s [`Gradients::leaf`].
    pub fn leaf(&self, value: Tensor) -> Var {
        Var { value, tracked: self.push(Node::Leaf) }
    }

    /// A parameter, in the dtype of its role.
    pub fn param(&self, id: ParamId) -> Result<Var> {
        Ok(Var { value: self.store.operand(id)?, tracked: self.push(Node::Param(id)) })
    }

    /// Whether a rule for a result of these is kept, and so what it saves.
    pub fn keeps(&self, inputs: &[&Var]) -> bool {
        self.recording && inputs.iter().any(|v| v.tracked.is_some())
    }

    /// Adds an operation's result. `rule` is kept only when an input is tracked. Errors when another tape tracks one.
    pub fn record(&self, inputs: &[&Var], value: Tensor, rule: impl Rule + 'a) -> Result<Var> {
        inputs.iter().try_for_each(|input| self.expect_own(rule.name(), input))?;
        if !self.keeps(inputs) {
            return Ok(self.constant(value));
        }
        let inputs = inputs.iter().map(|v| v.node()).collect();
        Ok(Var { value, tracked: self.push(Node::Op { rule: Box::new(rule), inputs, place: trace::place() }) })
    }

    fn push(&self, node: Node<'a>) -> Option<Tracked> {
        if !self.recording {
            return None;
        }
        let mut nodes = self.nodes.borrow_mut();
        nodes.push(node);
        Some(Tracked { tape: self.number, node: nodes.len() - 1 })
    }

    /// Errors when another tape tracks the value: this one would take its node for one of its own.
    fn expect_own(&self, op: &'static str, value: &Var) -> Result<()> {
        expect_tape(op, self.number, value)
    }

    /// Runs `f` without saving anything inside it; backward runs it again. Trades one more forward of the block for the
    /// memory of its activations. `f` must give the same result both times, and take every tracked value that it uses as one of
    /// `inputs`. Where sides are recorded or followed, everything is
    /// saved: they are of one forward.
    pub fn checkpoint(&self, inputs: &[&Var], f: impl Fn(&Tape<'_>, &[Var]) -> Result<Var> + 'a) -> Result<Var> {
        inputs.iter().try_for_each(|input| self.expect_own("checkpoint", input))?;
        if self.sides.is_some() {
            return f(self, &inputs.iter().map(|&v| v.clone()).collect::<Vec<_>>());
        }
        let values: Vec<Tensor> = inputs.iter().map(|v| v.value.clone()).collect();
        let inner = Tape::inference(self.store);
        let constants: Vec<Var> = values.iter().map(|v| inner.constant(v.clone())).collect();
        let output = f(&inner, &constants)?;
        inner.expect_own("checkpoint", &output)?;
        let value = output.into_value();
        if !self.recording {
            return Ok(self.constant(value));
        }
        let rule = Box::new(Checkpoint { f, inputs: values });
        // Tracked even when no input is: the block's parameters are.
        let inputs = inputs.iter().map(|v| v.node()).collect();
        Ok(Var { value, tracked: self.push(Node::Op { rule, inputs, place: trace::place() }) })
    }

    /// Gradients of everything that `output` depends on, starting from `cotangent` = dL/d(output). Errors when another
    /// tape tracks the output, and when a parameter of the store was not reached.
    pub fn backward(self, output: &Var, cotangent: Tensor) -> Result<Gradients> {
        let store = self.store;
        let mut grads = Gradients::new(store, self.number)?;
        self.backward_into(output, cotangent, &mut grads)?;
        grads.require_all(store)?;
        Ok(grads)
    }

    fn backward_into(self, output: &Var, cotangent: Tensor, grads: &mut Gradients) -> Result<()> {
        self.expect_own("backward", output)?;
        let last = output.node().ok_or(Error::Untracked)?;
        if cotangent.dims() != output.dims() {
            return Err(Error::Cotangent { got: cotangent.dims().to_vec(), want: output.dims().to_vec() });
        }
        let mut nodes = self.nodes.into_inner();
        nodes.truncate(last + 1);
        let mut pending: Vec<Option<Tensor>> = vec![None; nodes.len()];
        pending[last] = Some(cotangent);
        while let Some(node) = nodes.pop() {
            let Some(dy) = pending.pop().flatten() else { continue };
            match node {
                Node::Leaf => drop(grads.leaves.insert(nodes.len(), dy)),
                Node::Param(id) => grads.accumulate(self.store, id, &dy)?,
                Node::Op { rule, inputs, place } => {
                    let _scope = trace::scope(rule.name()).backward_of(place);
                    let needs: Vec<bool> = inputs.iter().map(Option::is_some).collect();
                    let name = rule.name();
                    let mut pass = Pass { store: self.store, grads };
                    let dxs = rule.backward(dy, &needs, &mut pass).map_err(|e| named(name, e))?;
                    for (input, dx) in inputs.into_iter().zip(dxs) {
                        if let (Some(input), Some(dx)) = (input, dx) {
                            accumulate(&mut pending[input], dx)?;
                        }
                    }
                }
            }
        }
        Ok(())
    }
}

/// Says in which rule an engine's error arose.
fn named(rule: &'static str, error: Error) -> Error {
    match error {
        Error::Engine(source) => Error::Backward { rule, source },
        other => other,
    }
}

fn accumulate(slot: &mut Option<Tensor>, dx: Tensor) -> Result<()> {
    *slot = Some(match slot.take() {
        None => dx,
        Some(mut sum) if sum.is_unshared() => {
            add::accumulate(&mut sum, &dx)?;
            sum
        }
        Some(sum) => add::forward(&sum, &dx)?,
    });
    Ok(())
}

fn expect_tape(op: &'static str, tape: u64, value: &Var) -> Result<()> {
    match value.tracked {
        Some(tracked) if tracked.tape != tape => Err(Error::OtherTape { op }),
        _ => Ok(()),
    }
}

impl Gradients {
    /// The gradient of a leaf; None when the output does not depend on it. Errors when it is a leaf of another tape.
    pub fn leaf(&self, leaf: &Var) -> Result<Option<&Tensor>> {
        expect_tape("gradient of a leaf", self.tape, leaf)?;
        Ok(leaf.node().and_then(|n| self.leaves.get(&n)))
    }
}

struct Checkpoint<F> {
    f: F,
    inputs: Vec<Tensor>,
}

impl<F: Fn(&Tape<'_>, &[Var]) -> Result<Var>> Rule for Checkpoint<F> {
    fn name(&self) -> &'static str {
        "checkpoint"
    }

    fn backward(self: Box<Self>, dy: Tensor, needs: &[bool], pass: &mut Pass) -> Result<Vec<Option<Tensor>>> {
        let Checkpoint { f, inputs } = *self;
        let tape = Tape::new(pass.store);
        let replayed = inputs.into_iter().zip(needs);
        let inputs: Vec<Var> = replayed.map(|(v, &need)| if need { tape.leaf(v) } else { tape.constant(v) }).collect();
        let output = f(&tape, &inputs)?;
        if output.tracked.is_none() {
            return Ok(vec![None; inputs.len()]); // nothing in the block is, its parameters included
        }
        // The inner leaves are numbered on their own tape: keep the outer ones aside.
        let outer = std::mem::take(&mut pass.grads.leaves);
        tape.backward_into(&output, dy, pass.grads)?;
        let mut inner = std::mem::replace(&mut pass.grads.leaves, outer);
        Ok(inputs.iter().map(|v| v.node().and_then(|n| inner.remove(&n))).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Init, ParamStoreBuilder, Role, ops};
    use engine::{DType, Device};

    fn tensor(values: &[f64]) -> Tensor {
        Tensor::from_slice(values, &[values.len()]).expect("tensor")
    }

    fn store() -> (ParamStore, ParamId, ParamId) {
        let mut b = ParamStoreBuilder::default();
        let [a, w] = ["a", "w"].map(|name| b.add(name, &[3], Role::Term, Init::Ones));
        (b.build(DType::F64, Device::Cpu, 0).expect("store"), a, w)
    }

    #[test]
    fn a_parameter_that_backward_misses_is_named() {
        let (store, a, _) = store();
        let tape = Tape::new(&store);
        let y = ops::relu(&tape, &tape.param(a).expect("a")).expect("relu");
        let missed = tape.backward(&y, tensor(&[1.0; 3])).err();
        assert_eq!(missed, Some(Error::Unreached(vec!["w".into()])));
    }

    #[test]
    fn a_parameter_used_twice_gets_both_gradients() {
        let (store, a, w) = store();
        let tape = Tape::new(&store);
        let sum = ops::add(&tape, &tape.param(a).expect("a"), &tape.param(w).expect("w")).expect("add");
        let y = ops::add(&tape, &sum, &tape.param(a).expect("a")).expect("add");
        let grads = tape.backward(&y, tensor(&[1.0, 2.0, 3.0])).expect("backward");
        let grad = |id| grads.param(&store, id).and_then(|g| Ok(g.to_f64_vec()?)).expect("gradient");
        assert_eq!((grad(a), grad(w)), (vec![2.0, 4.0, 6.0], vec![1.0, 2.0, 3.0]));
    }

    #[test]
    fn an_operand_used_twice_gets_both_gradients_and_the_cotangent_is_kept() {
        let store = ParamStore::none(DType::F64, Device::Cpu).expect("store");
        let tape = Tape::new(&store);
        let x = tape.leaf(tensor(&[1.0, -2.0]));
        let y = ops::add(&tape, &x, &ops::relu(&tape, &x).expect("relu")).expect("add");
        let cotangent = tensor(&[1.0, 10.0]);
        let grads = tape.backward(&y, cotangent.clone()).expect("backward");
        assert_eq!(grads.leaf(&x).expect("leaf").expect("gradient").to_f64_vec().expect("read"), [2.0, 10.0]);
        assert_eq!(cotangent.to_f64_vec().expect("read"), [1.0, 10.0]);
    }

    #[test]
    fn constants_and_inference_record_nothing() {
        let (store, a, _) = store();
        let tape = Tape::new(&store);
        let x = tape.constant(tensor(&[1.0; 3]));
        let y = ops::relu(&tape, &x).expect("relu");
        assert!(tape.nodes.borrow().is_empty());
        assert_eq!(tape.backward(&y, tensor(&[1.0; 3])).err(), Some(Error::Untracked));
        let inference = Tape::inference(&store);
        ops::relu(&inference, &inference.param(a).expect("a")).expect("relu");
        assert!(inference.nodes.borrow().is_empty());
    }

    #[test]
    fn a_cotangent_of_another_shape_is_refused() {
        let (store, a, _) = store();
        let tape = Tape::new(&store);
        let y = tape.param(a).expect("a");
        assert!(matches!(tape.backward(&y, tensor(&[1.0])), Err(Error::Cotangent { .. })));
    }

    #[test]
    fn a_value_of_another_tape_is_refused() {
        let (store, a, _) = store();
        let (tape, other) = (Tape::new(&store), Tape::new(&store));
        let (own, foreign) = (tape.leaf(tensor(&[1.0; 3])), other.param(a).expect("a"));
        let refused = |op| Some(Error::OtherTape { op });
        assert_eq!(ops::add(&tape, &own, &foreign).err(), refused("add"));
        assert_eq!(ops::relu(&Tape::inference(&store), &foreign).err(), refused("relu"));
        assert_eq!(tape.checkpoint(&[&foreign], |t, v| ops::relu(t, &v[0])).err(), refused("checkpoint"));
        assert_eq!(tape.backward(&foreign, tensor(&[1.0; 3])).err(), refused("backward"));
        let none = ParamStore::none(DType::F64, Device::Cpu).expect("store");
        let tape = Tape::new(&none);
        let x = tape.leaf(tensor(&[1.0; 3]));
        let grads = tape.backward(&x, tensor(&[1.0; 3])).expect("backward");
        assert!(grads.leaf(&x).expect("leaf").is_some());
        assert_eq!(grads.leaf(&own).err(), refused("gradient of a leaf"));
    }

    #[test]
    fn a_checkpointed_block_may_not_capture_a_tracked_value() {
        let (store, a, _) = store();
        let tape = Tape::new(&store);
        let (x, outer) = (tape.constant(tensor(&[1.0; 3])), tape.param(a).expect("a"));
        let (used, given) = (outer.clone(), outer.clone());
        let within = tape.checkpoint(&[&x], move |t, v| ops::add(t, &v[0], &used));
        assert_eq!(within.err(), Some(Error::OtherTape { op: "add" }));
        let through = tape.checkpoint(&[&x], move |_, _| Ok(given.clone()));
        assert_eq!(through.err(), Some(Error::OtherTape { op: "checkpoint" }));
        assert!(tape.checkpoint(&[&x, &outer], |t, v| ops::add(t, &v[0], &v[1])).is_ok());
        let constant = x.clone();
        assert!(tape.checkpoint(&[&outer], move |t, v| ops::add(t, &v[0], &constant)).is_ok());
    }

    #[test]
    fn a_checkpointed_block_without_anything_tracked_gets_no_gradient() {
        let store = ParamStore::none(DType::F64, Device::Cpu).expect("store");
        let tape = Tape::new(&store);
        let (x, constant) = (tape.leaf(tensor(&[1.0, -2.0])), tape.constant(tensor(&[3.0, 4.0])));
        let inside = tape.checkpoint(&[&constant], |t, v| ops::relu(t, &v[0])).expect("checkpoint");
        let y = ops::add(&tape, &x, &inside).expect("add");
        let grads = tape.backward(&y, tensor(&[1.0, 10.0])).expect("backward");
        assert_eq!(grads.leaf(&x).expect("leaf").expect("gradient").to_f64_vec(), Ok(vec![1.0, 10.0]));
    }

    #[test]
    fn memory_falls_as_gradients_rise() {
        // A chain of n saved activations: backward must drop each one as it passes, so its peak stays near forward's.
        let store = ParamStore::none(DType::F64, Device::Cpu).expect("store");
        let tape = Tape::new(&store);
        let n = 50;
        let mut y = tape.leaf(Tensor::full(&[1 << 16], 0.5, DType::F64, Device::Cpu).expect("x"));
        for _ in 0..n {
            y = ops::gelu(&tape, &y).expect("gelu");
        }
        let one = (1 << 16) * 8;
        let cotangent = Tensor::full(&[1 << 16], 1.0, DType::F64, Device::Cpu).expect("dy");
        let before = engine::memory::usage().live;
        engine::memory::reset_peak();
        drop(tape.backward(&y, cotangent).expect("backward"));
        // Other tests run beside this one: leave them the room of ten tensors, far less than the fifty of the chain.
        assert!(engine::memory::usage().peak < before + 10 * one);
    }
}
