//! Whole networks in float32, whose gradients hang on the sides of rectifiers.
//!
//! A LeakyReLU input next to zero may fall on either side of it under rounding, in PyTorch as here, and one such input changes
//! a gradient by more than all other rounding together. Which ones do is luck, so a bound taken from one run of PyTorch's says
//! nothing about another's. A network that keeps its bounds as computed passes. One that does not is computed again with
//! every rectifier input on the side where float64 has it, as long as it lies within [`NEAR`] of zero, and its gradients must
//! then keep the same bounds. Outputs are judged as computed in either case.

use super::case::Case;
use super::compare::{self, BOUND, Comparison};
use super::{Computed, Context};
use crate::Result;
use autograd::{Moved, Sides};
use engine::{DType, Device};
use std::cell::RefCell;

/// How far from zero rounding can have carried an input, in units of its tensor's root mean square: the bound of an output.
const NEAR: f64 = BOUND;

/// A network's computation, with rectifier inputs where they fall or on given sides; and what records them.
pub struct Network {
    pub compute: fn(&Case, &Context, Option<&RefCell<Sides>>) -> Result<Computed>,
    pub sides: fn(&Case, &Context) -> Result<Sides>,
}

/// What was found before rectifier inputs were moved, and which were.
#[derive(Debug)]
pub struct AsComputed {
    pub compared: Vec<Comparison>,
    pub moved: Moved,
}

impl Network {
    /// The comparisons that count, and those of the first computation where they are others.
    pub fn judge(&self, case: &Case, context: &Context) -> Result<(Vec<Comparison>, Option<AsComputed>)> {
        let compared = compare::compare(case, &(self.compute)(case, context, None)?)?;
        if case.dtype != DType::F32 || compared.iter().all(Comparison::passed) {
            return Ok((compared, None));
        }
        let exact = case.computed_in(DType::F64);
        let host = Context { device: Device::Cpu, ..context.clone() }; // no other computes in f64
        let sides = RefCell::new((self.sides)(&exact, &host)?.follow(NEAR));
        let mut judged = compare::compare(case, &(self.compute)(case, context, Some(&sides))?)?;
        for (judged, compared) in judged.iter_mut().zip(&compared).filter(|(c, _)| !c.is_gradient()) {
            judged.clone_from(compared);
        }
        Ok((judged, Some(AsComputed { compared, moved: sides.into_inner().moved() })))
    }
}
