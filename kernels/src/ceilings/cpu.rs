use crate::elementwise::CHUNK;
use crate::simd::{Kernel, Vector, dispatch};
use engine::{Result, Tensor};
use rayon::prelude::*;
use std::hint::black_box;

/// Sums that do not wait for each other: two multiply-adds a cycle, each of which takes four or five.
const SUMS: usize = 12;

pub fn copy(x: &Tensor) -> Result<Tensor> {
    let mut y = x.new_empty(x.dims())?;
    let from = x.as_slice::<f32>()?.par_chunks(CHUNK);
    y.as_mut_slice::<f32>()?.par_chunks_mut(CHUNK).zip(from).for_each(|(y, x)| y.copy_from_slice(x));
    Ok(y)
}

/// `rounds` times 1000 on each thread of the pool.
pub fn multiply_add(rounds: usize) -> f64 {
    rayon::broadcast(|_| dispatch(MultiplyAdd { rounds: 1000 * rounds })).iter().sum()
}

struct MultiplyAdd {
    rounds: usize,
}

impl Kernel for MultiplyAdd {
    type Output = f64;
    #[inline(always)]
    fn run<V: Vector>(self) -> f64 {
        // SAFETY: `dispatch` gave the instruction set.
        unsafe {
            let (factor, summand) = (V::splat(black_box(0.5)), V::splat(black_box(1.0)));
            let mut sums = [V::splat(black_box(1.0)); SUMS];
            for _ in 0..self.rounds {
                for sum in &mut sums {
                    *sum = sum.fma(factor, summand);
                }
            }
            let total = sums.into_iter().fold(V::zero(), |total, sum| total.add(sum));
            black_box(total.sum());
        }
        (2 * SUMS * V::LANES * self.rounds) as f64
    }
}
