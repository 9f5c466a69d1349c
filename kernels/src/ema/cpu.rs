//! One pass in fixed chunks; memory sets the pace.

use crate::real::Real;
use crate::simd::{self, Kernel, Vector};
use engine::{Result, Tensor};
use rayon::prelude::*;

/// Elements per task.
const CHUNK: usize = 1 << 15;

pub(super) fn update<T: Real>(teacher: &mut Tensor, student: &Tensor, momentum: f64) -> Result<()> {
    let (keep, take) = (T::of(momentum), T::of(1.0 - momentum));
    let student = student.as_slice::<T>()?.par_chunks(CHUNK);
    let teacher = teacher.as_mut_slice::<T>()?.par_chunks_mut(CHUNK);
    teacher.zip(student).for_each(|(teacher, student)| simd::dispatch(Chunk { teacher, student, keep, take }));
    Ok(())
}

struct Chunk<'a, T> {
    teacher: &'a mut [T],
    student: &'a [T],
    keep: T,
    take: T,
}

impl<T: Real> Kernel for Chunk<'_, T> {
    type Output = ();

    /// Plain arithmetic, which the compiler turns into vectors of the caller's width.
    #[inline(always)]
    fn run<V: Vector>(self) {
        for (t, &s) in self.teacher.iter_mut().zip(self.student) {
            *t = self.keep * *t + self.take * s;
        }
    }
}
