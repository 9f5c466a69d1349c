//! Sums of rows on the CPU, in chunks of rows that follow from the shape alone and are added in order.

use crate::check::sum_dtype;
use crate::real::{Real, Stored};
use crate::simd::{Kernel, Vector, dispatch};
use engine::{DType, Element, Error, Result, Tensor, bf16, parallel};

/// Elements that one task sums.
const CHUNK: usize = 64 * 1024;
/// Rows that are summed in the dtype of the arithmetic before they are added in f64.
const BLOCK: usize = 16;

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
    let chunks = x.as_slice::<S>()?.chunks(rows * channels);
    let parts = parallel::map(chunks, |rows| dispatch(SumChunk { rows, channels }));
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
        let c = self.channels;
        let (mut sum, mut part) = (vec![0.0; c], vec![S::Real::of(0.0); c]);
        for rows in self.rows.chunks(BLOCK * c) {
            part.fill(S::Real::of(0.0));
            let fours = rows.chunks_exact(4 * c);
            fours.remainder().chunks_exact(c).for_each(|row| add_row(&mut part, row));
            fours.for_each(|rows| add_four(&mut part, rows));
            add(&mut sum, part.iter().map(|&v| Element::to_f64(v)));
        }
        sum
    }
}

#[inline(always)]
fn add(sum: &mut [f64], row: impl Iterator<Item = f64>) {
    sum.iter_mut().zip(row).for_each(|(s, v)| *s += v);
}

#[inline(always)]
fn add_row<S: Stored>(part: &mut [S::Real], row: &[S]) {
    part.iter_mut().zip(row).for_each(|(s, v)| *s += v.widen());
}

/// Four rows at once, for a fourth of the stores.
#[inline(always)]
fn add_four<S: Stored>(part: &mut [S::Real], rows: &[S]) {
    let c = part.len();
    let (ab, cd) = rows.split_at(2 * c);
    let ((a, b), (c, d)) = (ab.split_at(c), cd.split_at(c));
    for ((s, (a, b)), (c, d)) in part.iter_mut().zip(a.iter().zip(b)).zip(c.iter().zip(d)) {
        *s += (a.widen() + b.widen()) + (c.widen() + d.widen());
    }
}
