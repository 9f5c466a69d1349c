//! The same values in another dtype; dy goes back into x's.

use crate::tape::Pass;
use crate::{Result, Rule, Tape, Var};
use engine::{DType, Tensor};
use kernels::cast;

/// A value that has this dtype already is its own result.
pub fn cast(tape: &Tape, x: &Var, dtype: DType) -> Result<Var> {
    if x.value().dtype() == dtype {
        return Ok(x.clone());
    }
    let y = cast::forward(x.value(), dtype)?;
    tape.record(&[x], y, Cast { dtype: x.value().dtype() })
}

struct Cast {
    dtype: DType,
}

impl Rule for Cast {
    fn name(&self) -> &'static str {
        "cast"
    }

    fn backward(self: Box<Self>, dy: Tensor, _: &[bool], _: &mut Pass) -> Result<Vec<Option<Tensor>>> {
        Ok(vec![Some(cast::forward(&dy, self.dtype)?)])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ParamStore;
    use engine::Device;

    #[test]
    fn the_gradient_comes_back_in_the_dtype_of_the_input() {
        let store = ParamStore::none(DType::F32, Device::Cpu).expect("store");
        // neither 1 + 2^-10 nor 3 + 2^-10 is a bf16
        let values = |v: [f32; 2]| Tensor::from_slice(&v, &[2]).expect("tensor");
        let tape = Tape::new(&store);
        let x = tape.leaf(values([1.0 + 2f32.powi(-10), -2.0]));
        let y = cast(&tape, &x, DType::BF16).expect("narrow");
        assert_eq!(y.value().to_f64_vec().expect("y"), [1.0, -2.0]);
        let z = cast(&tape, &y, DType::F32).expect("widen");
        let same = cast(&tape, &z, DType::F32).expect("nothing to do");
        let grads = tape.backward(&same, values([3.0 + 2f32.powi(-10), 0.5])).expect("backward");
        let dx = grads.leaf(&x).expect("leaf").expect("gradient");
        assert_eq!((dx.dtype(), dx.to_f64_vec().expect("dx")), (DType::F32, vec![3.0, 0.5]));
    }
}
