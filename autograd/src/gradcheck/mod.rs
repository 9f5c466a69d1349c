//! Every backward rule against central differences in f64.
//!
//! With L = Σ cotangent · f(x), the numeric gradient of element i is (L(x + h e_i) - L(x - h e_i)) / 2h. For values near 1 and
//! h = 1e-5 its error is about h² (1e-10, the third derivative) plus 1e-16 / h (1e-11, rounding); [`BOUND`] leaves room for
//! the conditioning of normalisations.

mod cases;

pub use cases::{Case, cases};

use crate::{Gradients, ParamStore, Result, Tape, Var};
use engine::{DType, Device, Shape, Tensor, random};

/// Largest accepted ‖analytic - numeric‖ / ‖numeric‖ of any input.
pub const BOUND: f64 = 1e-6;

const STEP: f64 = 1e-5;

/// What is differentiated: any number of inputs, one output.
pub type Function<'a> = &'a dyn Fn(&Tape, &[Var]) -> Result<Var>;

/// The largest relative error over the gradients of `inputs` (f64 tensors) through `f`. NaN when any gradient is NaN.
pub fn check(inputs: &[Tensor], f: Function) -> Result<f64> {
    let store = ParamStore::none(DType::F64, Device::Cpu)?;
    let tape = Tape::new(&store);
    let leaves: Vec<Var> = inputs.iter().map(|t| tape.leaf(t.clone())).collect();
    let output = f(&tape, &leaves)?;
    let cotangent = normal(output.dims(), 99)?;
    let weights = cotangent.to_f64_vec()?;
    let grads = tape.backward(&output, cotangent)?;
    if infer(inputs, f)? != (output.value().shape(), shapes(&grads, &leaves)?) {
        return Err(engine::Error::invalid("gradcheck", "the meta device infers other shapes than are computed").into());
    }
    let loss = |inputs: &[Tensor]| -> Result<f64> {
        let tape = Tape::inference(&store);
        let vars: Vec<Var> = inputs.iter().map(|t| tape.constant(t.clone())).collect();
        let y = f(&tape, &vars)?.into_value().to_f64_vec()?;
        Ok(y.iter().zip(&weights).map(|(y, w)| y * w).sum())
    };
    let mut worst = 0.0;
    for (i, leaf) in leaves.iter().enumerate() {
        let numeric = numeric(inputs, i, &loss)?;
        let analytic = match grads.leaf(leaf)? {
            Some(g) => g.to_f64_vec()?,
            None => vec![0.0; numeric.len()],
        };
        let error = relative_error(&analytic, &numeric);
        if error.is_nan() || error > worst {
            worst = error;
        }
        if worst.is_nan() {
            break;
        }
    }
    Ok(worst)
}

/// The shapes of the output and of the inputs' gradients, as the meta device has them.
fn infer(inputs: &[Tensor], f: Function) -> Result<(Shape, Vec<Option<Shape>>)> {
    let store = ParamStore::none(DType::F64, Device::Meta)?;
    let tape = Tape::new(&store);
    let leaf = |t: &Tensor| Ok(tape.leaf(Tensor::empty(t.dims(), t.dtype(), Device::Meta)?));
    let leaves = inputs.iter().map(leaf).collect::<Result<Vec<_>>>()?;
    let output = f(&tape, &leaves)?;
    let shape = output.value().shape();
    let cotangent = output.value().new_empty(output.dims())?;
    let grads = tape.backward(&output, cotangent)?;
    Ok((shape, shapes(&grads, &leaves)?))
}

/// Of the leaves' gradients.
fn shapes(grads: &Gradients, leaves: &[Var]) -> Result<Vec<Option<Shape>>> {
    leaves.iter().map(|leaf| Ok(grads.leaf(leaf)?.map(Tensor::shape))).collect()
}

/// Central differences of `loss` in every element of input `i`.
fn numeric(inputs: &[Tensor], i: usize, loss: &dyn Fn(&[Tensor]) -> Result<f64>) -> Result<Vec<f64>> {
    let base = inputs[i].to_f64_vec()?;
    let mut moved = inputs.to_vec();
    let mut at = |e: usize, by: f64| {
        let mut values = base.clone();
        values[e] += by;
        moved[i] = Tensor::from_slice(&values, inputs[i].dims())?;
        loss(&moved)
    };
    (0..base.len()).map(|e| Ok((at(e, STEP)? - at(e, -STEP)?) / (2.0 * STEP))).collect()
}

/// ‖a - b‖ / ‖b‖; where b is (near) zero, ‖a‖ itself.
fn relative_error(a: &[f64], b: &[f64]) -> f64 {
    let norm = |v: &mut dyn Iterator<Item = f64>| v.map(|x| x * x).sum::<f64>().sqrt();
    let difference = norm(&mut a.iter().zip(b).map(|(a, b)| a - b));
    let size = norm(&mut b.iter().copied());
    if size > 1e-9 { difference / size } else { difference }
}

/// Standard normal f64 values, the same for the same seed.
pub fn normal(dims: &[usize], seed: u64) -> Result<Tensor> {
    let n: usize = dims.iter().product();
    let values: Vec<f64> = (0..n as u64).map(|i| random::normal(seed, i)).collect();
    Ok(Tensor::from_slice(&values, dims)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops;

    #[test]
    fn every_rule_agrees_with_central_differences() {
        for case in cases() {
            let error = (case.run)().unwrap_or_else(|e| panic!("{}: {e}", case.name));
            assert!(error <= BOUND, "{}: {error:e}", case.name);
        }
    }

    #[test]
    fn a_wrong_gradient_is_noticed() {
        // The value uses x twice, the tape sees one of them: the analytic gradient is half the true one.
        let x = normal(&[3, 4], 1).expect("x");
        let error = check(&[x], &|t, v| ops::add(t, &v[0], &t.constant(v[0].value().clone()))).expect("check");
        assert!(error > 0.4, "{error}");
    }
}
