//! Sums of rows on the CPU, in chunks of rows that follow from the shape alone and are added in order.

use crate::real::Real;
use engine::{DType, Element, Error, Result, Tensor};
use rayon::prelude::*;

/// Elements that one task sums.
const CHUNK: usize = 64 * 1024;

pub fn forward(op: &'static str, x: &Tensor) -> Result<Tensor> {
    match x.dtype() {
        DType::F32 => sum::<f32>(x),
        DType::F64 => sum::<f64>(x),
        dtype => Err(Error::Unsupported { op, dtype, device: x.device() }),
    }
}

fn sum<T: Real>(x: &Tensor) -> Result<Tensor> {
    let channels = x.channels();
    let mut y = Tensor::empty(&[channels], x.dtype(), x.device())?;
    if channels == 0 {
        return Ok(y);
    }
    let rows = (CHUNK / channels).max(1);
    let parts: Vec<Vec<f64>> = x.as_slice::<T>()?.par_chunks(rows * channels).map(|c| sum_chunk(c, channels)).collect();
    let mut total = vec![0.0; channels];
    parts.iter().for_each(|part| add(&mut total, part.iter().copied()));
    for (y, total) in y.as_mut_slice::<T>()?.iter_mut().zip(total) {
        *y = T::of(total);
    }
    Ok(y)
}

fn sum_chunk<T: Real>(chunk: &[T], channels: usize) -> Vec<f64> {
    let mut sum = vec![0.0; channels];
    chunk.chunks_exact(channels).for_each(|row| add(&mut sum, row.iter().map(|&v| Element::to_f64(v))));
    sum
}

fn add(sum: &mut [f64], row: impl Iterator<Item = f64>) {
    sum.iter_mut().zip(row).for_each(|(s, v)| *s += v);
}
