//! Sums of rows on the CPU, in chunks of rows that follow from the shape alone and are added in order.

use crate::check::sum_dtype;
use crate::real::{Real, Stored};
use crate::simd::{Kernel, Vector, dispatch};
use engine::{DType, Element, Error, Result, Tensor, bf16};
use rayon::prelude::*;

/// Elements that one task sums.
const CHUNK: usize = 64 * 1024;

pub fn forward(op: &'static str, x: &Tensor) -> Result<Tensor> {
    match x.dtype() {
        DType::F32 => sum::<f32>(x),
        DType::BF16 => sum::<bf16>(x),
        DType::F64 => sum::<f64>(x),
        dtype => Err(Error::Unsupported { op, dtype, device: x.device() }),
    }
}

fn sum<S: Stored>(x: &Tensor) -> Result<Tensor> {
    let channels = x.channels();
    let mut y = Tensor::empty(&[channels], sum_dtype(x.dtype()), x.device())?;
    if channels == 0 {
        return Ok(y);
    }
    let rows = (CHUNK / channels).max(1);
    let chunks = x.as_slice::<S>()?.par_chunks(rows * channels);
    let parts: Vec<Vec<f64>> = chunks.map(|rows| dispatch(SumChunk { rows, channels })).collect();
    let mut total = vec![0.0; channels];
    parts.iter().for_each(|part| add(&mut total, part.iter().copied()));
    for (y, total) in y.as_mut_slice::<S::Real>()?.iter_mut().zip(total) {
        *y = S::Real::of(total);
    }
    Ok(y)
}

/// Whole rows, to the sum of each channel.
pub struct SumChunk<'a, S> {
    pub rows: &'a [S],
    pub channels: usize,
}

impl<S: Stored> Kernel for SumChunk<'_, S> {
    type Output = Vec<f64>;
    #[inline(always)]
    fn run<V: Vector>(self) -> Vec<f64> {
        let mut sum = vec![0.0; self.channels];
        let rows = self.rows.chunks_exact(self.channels);
        rows.for_each(|row| add(&mut sum, row.iter().map(|v| Element::to_f64(v.widen()))));
        sum
    }
}

#[inline(always)]
fn add(sum: &mut [f64], row: impl Iterator<Item = f64>) {
    sum.iter_mut().zip(row).for_each(|(s, v)| *s += v);
}
