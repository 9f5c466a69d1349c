//! On which side of zero the inputs of a network's rectifiers lie: taken from one forward, and imposed on another.
//!
//! The derivative of ReLU and LeakyReLU jumps at zero. A rounding error of 1e-7 that carries one input across changes the
//! gradient of a whole network a thousand times more than its output, so two float32 runs that are both right differ, and both
//! differ from float64. On the sides of a float64 run a float32 gradient is as well-conditioned as the output, and what
//! difference is left belongs to the computation. For checks; training lets every input lie where it falls.

use crate::{Error, Result};
use engine::Tensor;

/// Passed along a forward by [`Tape::with_sides`](crate::Tape::with_sides); rectifiers are counted in the order in which they run.
/// Those inside [`Tape::checkpoint`](crate::Tape::checkpoint) are among them: the block then runs once, and keeps everything.
#[derive(Debug)]
pub enum Sides {
    /// z > 0 for every element of every rectifier so far, z its input.
    Record(Vec<Vec<bool>>),
    /// What another forward recorded, and what it took to follow it.
    Follow { recorded: std::vec::IntoIter<Vec<bool>>, near: f64, moved: Moved },
}

/// Inputs that lay on the other side of zero in the forward that followed.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Moved {
    /// Rectifier inputs in all.
    pub inputs: usize,
    /// Those put on the recorded side.
    pub moved: usize,
    /// The largest |z| among them, in units of the root mean square of their tensor.
    pub furthest: f64,
    /// Those too far from zero for rounding to explain, and left where they were.
    pub left: usize,
}

impl Sides {
    pub fn record() -> Self {
        Sides::Record(Vec::new())
    }

    /// To impose what was recorded on the same network's next forward. An input further than `near` times its tensor's root mean
    /// square from zero stays where it is, so that no wrong value passes for a rounded one.
    pub fn follow(self, near: f64) -> Self {
        match self {
            Sides::Record(recorded) => Sides::Follow { recorded: recorded.into_iter(), near, moved: Moved::default() },
            following => following,
        }
    }

    pub fn moved(&self) -> Moved {
        match self {
            Sides::Record(_) => Moved::default(),
            Sides::Follow { moved, .. } => *moved,
        }
    }

    /// Sees a rectifier's input z and its output y, which has z's sign where it is not 0; gives y, moved where it must be. A moved
    /// element of y becomes the smallest number of its side, so that backward, which reads the side from y, takes it there.
    pub(crate) fn settle(&mut self, z: &[f64], y: Tensor) -> Result<Tensor> {
        match self {
            Sides::Record(recorded) => {
                recorded.push(z.iter().map(|&z| z > 0.0).collect());
                Ok(y)
            }
            Sides::Follow { recorded, near, moved } => {
                let Some(sides) = recorded.next().filter(|sides| sides.len() == z.len()) else {
                    let detail = format!("a rectifier over {} elements, not the one that was recorded", z.len());
                    return Err(Error::Engine(engine::Error::invalid("sides", detail)));
                };
                follow(z, y, &sides, *near, moved)
            }
        }
    }
}

fn follow(z: &[f64], y: Tensor, sides: &[bool], near: f64, moved: &mut Moved) -> Result<Tensor> {
    let rms = (z.iter().map(|z| z * z).sum::<f64>() / z.len().max(1) as f64).sqrt();
    moved.inputs += z.len();
    let mut values = y.to_f64_vec()?;
    let across = z.iter().zip(sides).enumerate().filter(|(_, (z, side))| (**z > 0.0) != **side);
    for (i, (z, &side)) in across {
        let distance = if *z == 0.0 { 0.0 } else { z.abs() / rms };
        // a NaN is near nothing, and stays
        if distance <= near {
            moved.moved += 1;
            moved.furthest = moved.furthest.max(distance);
            values[i] = f64::from(f32::MIN_POSITIVE) * if side { 1.0 } else { -1.0 };
        } else {
            moved.left += 1;
        }
    }
    Ok(Tensor::from_slice(&values, y.dims())?.to_dtype(y.dtype())?.to_device(y.device())?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ParamStore, Tape, Var, ops};
    use engine::{DType, Device};
    use kernels::instance_norm::Params;
    use std::cell::RefCell;

    /// Gradients of relu(x) on the sides of relu(`exact`), and what was moved.
    fn relu_on_sides(exact: &[f64], x: &[f32]) -> (Vec<f64>, Moved) {
        on_sides(exact, x, ops::relu)
    }

    fn on_sides(exact: &[f64], x: &[f32], f: impl Fn(&Tape, &Var) -> Result<Var>) -> (Vec<f64>, Moved) {
        let store = ParamStore::none(DType::F32, Device::Cpu).expect("store");
        let recorded = RefCell::new(Sides::record());
        let tape = Tape::inference(&store).with_sides(&recorded);
        f(&tape, &tape.constant(Tensor::from_slice(exact, &[exact.len()]).expect("x"))).expect("recorded");
        drop(tape);
        let sides = RefCell::new(recorded.into_inner().follow(1e-5));
        let tape = Tape::new(&store).with_sides(&sides);
        let leaf = tape.leaf(Tensor::from_slice(x, &[x.len()]).expect("x"));
        let y = f(&tape, &leaf).expect("followed");
        let ones = Tensor::full(&[x.len()], 1.0, DType::F32, Device::Cpu).expect("dy");
        let grads = tape.backward(&y, ones).expect("backward");
        let grad = grads.leaf(&leaf).expect("leaf").expect("gradient").to_f64_vec().expect("values");
        (grad, sides.into_inner().moved())
    }

    #[test]
    fn inputs_next_to_zero_follow_and_others_stay() {
        // the root mean square is about 1: the last two are too far from zero for rounding
        let (grad, moved) =
            relu_on_sides(&[1e-9, -1e-9, 0.0, 2.0, 1e-3, -1e-3], &[-1e-7, 1e-7, 1e-8, 2.0, -1e-3, 1e-3]);
        assert_eq!(grad, [1.0, 0.0, 0.0, 1.0, 0.0, 1.0]);
        assert_eq!((moved.inputs, moved.moved, moved.left), (6, 3, 2));
        assert!((moved.furthest - 1e-7 / (4.0f64 / 6.0).sqrt()).abs() < 1e-9, "{moved:?}");
    }

    #[test]
    fn a_leaky_relu_takes_the_sides_whatever_its_slope() {
        for slope in [0.25, 0.0, -0.25] {
            let leaky = |t: &Tape, x: &Var| ops::leaky_relu(t, x, slope);
            let (grad, moved) = on_sides(&[1e-9, -1e-9, 2.0, -2.0], &[-1e-7, 1e-7, 2.0, -2.0], leaky);
            assert_eq!((grad, moved.moved), (vec![1.0, slope, 1.0, slope], 2));
        }
    }

    #[test]
    fn rectifiers_of_a_checkpointed_block_are_counted() {
        let block = |t: &Tape, x: &Var| t.checkpoint(&[x], |t, v| ops::relu(t, &v[0]));
        let (grad, moved) = on_sides(&[1e-9, -1e-9, 2.0], &[-1e-7, 1e-7, 2.0], block);
        assert_eq!((grad, moved.inputs, moved.moved), (vec![1.0, 0.0, 1.0], 3, 2));
    }

    #[test]
    fn the_same_forward_moves_nothing() {
        let (grad, moved) = relu_on_sides(&[0.5, -0.25, 0.0], &[0.5, -0.25, 0.0]);
        assert_eq!(grad, [1.0, 0.0, 0.0]);
        assert_eq!(moved, Moved { inputs: 3, ..Moved::default() });
    }

    #[test]
    fn another_network_is_refused() {
        let store = ParamStore::none(DType::F32, Device::Cpu).expect("store");
        let sides = RefCell::new(Sides::Record(vec![vec![true; 2]]).follow(1e-5));
        let tape = Tape::new(&store).with_sides(&sides);
        let x = tape.leaf(Tensor::from_slice(&[1.0f32; 3], &[3]).expect("x"));
        assert!(ops::relu(&tape, &x).is_err());
    }

    #[test]
    fn an_instance_norm_takes_the_sides_of_its_leaky_relu() {
        // 8 voxels, 1 channel: normalised, the second is a hair above zero in float64 and below in float32
        let store = ParamStore::none(DType::F32, Device::Cpu).expect("store");
        let near = |z: f64| [1.0, z, -1.0, 2.0, -2.0, 1.0, -1.0, -z];
        let p = Params { eps: 1e-5, slope: Some(0.01) };
        let run = |tape: Tape, values: &[f64]| {
            let x =
                tape.leaf(Tensor::from_slice(values, &[1, 2, 2, 2, 1]).expect("x").to_dtype(DType::F32).expect("x"));
            ops::instance_norm(&tape, &x, None, p).expect("norm").value().to_f64_vec().expect("values")
        };
        let recorded = RefCell::new(Sides::record());
        run(Tape::new(&store).with_sides(&recorded), &near(1e-7));
        let sides = RefCell::new(recorded.into_inner().follow(1e-5));
        let y = run(Tape::new(&store).with_sides(&sides), &near(-1e-7));
        assert!(y[1] > 0.0 && y[7] < 0.0 && y[1].abs() < 1e-30, "{y:?}");
        assert_eq!(sides.into_inner().moved().moved, 2);
    }
}
