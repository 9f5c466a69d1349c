//! One pass in fixed chunks; memory sets the pace.

use crate::real::{Real, Stored};
use crate::simd::{self, Kernel, Vector};
use engine::{Result, Tensor, parallel};

/// Elements per task.
const CHUNK: usize = 1 << 15;

pub(super) fn update<S: Stored>(teacher: &mut Tensor, student: &Tensor, momentum: f64) -> Result<()> {
    let (keep, take) = (S::Real::of(momentum), S::Real::of(1.0 - momentum));
    let chunks = teacher.as_mut_slice::<S>()?.chunks_mut(CHUNK).zip(student.as_slice::<S>()?.chunks(CHUNK));
    parallel::each(chunks, |(teacher, student)| simd::dispatch(Chunk { teacher, student, keep, take }));
    Ok(())
}

struct Chunk<'a, S: Stored> {
    teacher: &'a mut [S],
    student: &'a [S],
    keep: S::Real,
    take: S::Real,
}

impl<S: Stored> Kernel for Chunk<'_, S> {
    type Output = ();

    /// Plain arithmetic, which the compiler turns into vectors of the caller's width.
    #[inline(always)]
    fn run<V: Vector>(self) {
        for (t, s) in self.teacher.iter_mut().zip(self.student) {
            *t = S::narrow(self.keep * t.widen() + self.take * s.widen());
        }
    }
}
