//! One sum per chunk, sixteen running sums within it.

use crate::real::Stored;
use crate::simd::{self, Kernel, Vector};
use engine::{Element, Result, Tensor, parallel};

/// Elements per partial sum.
const CHUNK: usize = 1 << 15;
const LANES: usize = 16;

pub(super) fn forward<T: Stored>(x: &Tensor) -> Result<f64> {
    let partials = parallel::map(x.as_slice::<T>()?.chunks(CHUNK), |chunk| simd::dispatch(SumOfSquares(chunk)));
    Ok(partials.iter().sum::<f64>().sqrt())
}

struct SumOfSquares<'a, T>(&'a [T]);

impl<T: Stored> Kernel for SumOfSquares<'_, T> {
    type Output = f64;

    /// Plain arithmetic, which the compiler turns into vectors of the caller's width; the number of running sums does not
    /// depend on it.
    #[inline(always)]
    fn run<V: Vector>(self) -> f64 {
        let mut sums = [0.0; LANES];
        let (whole, rest) = self.0.as_chunks::<LANES>();
        for block in whole {
            add_squares(&mut sums, block);
        }
        add_squares(&mut sums, rest);
        sums.iter().sum()
    }
}

#[inline(always)]
fn add_squares<T: Stored>(sums: &mut [f64; LANES], block: &[T]) {
    for (s, x) in sums.iter_mut().zip(block) {
        let x = Element::to_f64(x.widen());
        *s += x * x;
    }
}
