//! The same work again and again on new inputs: as it comes, then from a graph.
//!
//! The first time the work runs as it is, and so the pool has what it takes, and the kernels are loaded; the second time it is
//! captured, and from then on the graph is launched. Inputs of another size give the graph's memory back, run as they are, and
//! the game begins anew.

use super::graph::{Graph, capture, captures};
use crate::{Device, Error, Result, trace};
use std::ops::Deref;

/// Work that gives `O` for inputs `I`.
pub struct Repeats<I, O> {
    device: Device,
    graphs: bool,
    /// Size of the last inputs, if the work ran as it is.
    last: Option<usize>,
    captured: Option<Captured<I, O>>,
}

/// A graph, and the tensors that it reads and writes.
struct Captured<I, O> {
    graph: Graph,
    size: usize,
    inputs: I,
    output: O,
}

/// What the work gave: of its own, or until the graph's next launch.
pub enum Output<'a, O> {
    Once(Box<O>),
    Repeated(&'a O),
}

impl<O> Deref for Output<'_, O> {
    type Target = O;

    fn deref(&self) -> &O {
        match self {
            Output::Once(output) => output,
            Output::Repeated(output) => output,
        }
    }
}

impl<I, O> Repeats<I, O> {
    /// On a device; without `graphs`, on the CPU, and with VOCOE_SYNC=1 the work always runs as it is.
    pub fn new(device: Device, graphs: bool) -> Self {
        let graphs = graphs && matches!(device, Device::Cuda(_)) && captures();
        Repeats { device, graphs, last: None, captured: None }
    }

    /// Whether the work is repeated from a graph by now.
    pub fn is_captured(&self) -> bool {
        self.captured.is_some()
    }

    /// Does the work. `inputs` makes what it is done on, or is given what was made before, to be overwritten. `size` tells inputs
    /// of different shapes apart; what else the work depends on must stay as it is.
    pub fn run<E: From<Error>>(
        &mut self,
        size: usize,
        inputs: impl FnOnce(Option<I>) -> Result<I, E>,
        work: impl FnOnce(&I) -> Result<O, E>,
    ) -> Result<Output<'_, O>, E> {
        let captured = match self.captured.take().filter(|captured| captured.size == size) {
            Some(Captured { inputs: before, graph, output, .. }) => {
                Captured { inputs: inputs(Some(before))?, graph, size, output }
            }
            None if self.graphs && !trace::recording() && self.last == Some(size) => {
                let inputs = inputs(None)?;
                let (graph, output) = capture(self.device, || work(&inputs))?;
                Captured { graph, size, inputs, output }
            }
            None => {
                self.last = Some(size);
                return Ok(Output::Once(Box::new(work(&inputs(None)?)?)));
            }
        };
        self.last = None;
        captured.graph.launch()?;
        Ok(Output::Repeated(&self.captured.insert(captured).output))
    }
}
