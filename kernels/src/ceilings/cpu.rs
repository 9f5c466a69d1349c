use crate::elementwise::CHUNK;
use crate::simd::{Kernel, Vector, dispatch};
use engine::{Result, Tensor, parallel};
use std::hint::black_box;

/// Sums that do not wait for each other: two multiply-adds a cycle, each of which takes four or five.
const SUMS: usize = 12;

pub fn copy(x: &Tensor) -> Result<Tensor> {
    let mut y = x.new_empty(x.dims())?;
    let chunks = y.as_mut_slice::<f32>()?.chunks_mut(CHUNK).zip(x.as_slice::<f32>()?.chunks(CHUNK));
    parallel::each(chunks, |(y, x)| dispatch(Copy { x, y }));
    Ok(y)
}

/// Slices of one length.
struct Copy<'a> {
    x: &'a [f32],
    y: &'a mut [f32],
}

impl Kernel for Copy<'_> {
    type Output = ();
    /// In vectors: what the system's copy does instead depends on the machine.
    #[inline(always)]
    fn run<V: Vector>(self) {
        let (x, mut y) = (self.x.chunks_exact(V::LANES), self.y.chunks_exact_mut(V::LANES));
        y.by_ref().zip(x.clone()).for_each(|(y, x)| {
            // SAFETY: `dispatch` gave the instruction set; both have as many elements as a vector.
            unsafe { V::load(x.as_ptr()).store(y.as_mut_ptr()) };
        });
        y.into_remainder().copy_from_slice(x.remainder());
    }
}

/// `rounds` times 1000 on each thread of the pool.
pub fn multiply_add(rounds: usize) -> f64 {
    rayon::broadcast(|_| dispatch(MultiplyAdd { rounds: 1000 * rounds })).iter().sum()
}

/// As [`multiply_add`], for bf16 on tiles, which must be here.
#[cfg(target_arch = "x86_64")]
pub fn multiply_add_tiles(rounds: usize) -> f64 {
    assert!(crate::simd::has_tiles());
    // SAFETY: tiles are here.
    rayon::broadcast(|_| unsafe { crate::gemm::multiply_tiles(100 * rounds) }).iter().sum()
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
