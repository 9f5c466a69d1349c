//! Sums of rows on the CPU, in chunks of rows that follow from the shape alone and are added in order.

use crate::check::sum_dtype;
use crate::real::{Real, Stored};
use crate::simd::{Kernel, Vector, dispatch};
use engine::{DType, Element, Error, Result, Tensor, bf16, parallel};

/// Elements that one task sums: enough that each of its places is read for long.
pub const CHUNK: usize = 128 * 1024;
/// Rows that are summed in the dtype of the arithmetic before they are added in f64.
const BLOCK: usize = 16;
/// Places that are read by turns, which is faster than one after the other where memory is waited for.
const STREAMS: usize = 4;

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
        let (quarters, rest) = self.rows.split_at(self.rows.len() / (STREAMS * c) * STREAMS * c);
        let quarter = quarters.len() / STREAMS;
        for start in (0..quarter).step_by(BLOCK / STREAMS * c) {
            part.fill(S::Real::of(0.0));
            for at in (start..quarter.min(start + BLOCK / STREAMS * c)).step_by(c) {
                add_four(&mut part, std::array::from_fn(|i| &quarters[i * quarter + at..][..c]));
            }
            add(&mut sum, part.iter().map(|&v| Element::to_f64(v)));
        }
        part.fill(S::Real::of(0.0));
        rest.chunks_exact(c).for_each(|row| add_row(&mut part, row));
        add(&mut sum, part.iter().map(|&v| Element::to_f64(v)));
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
fn add_four<S: Stored>(part: &mut [S::Real], [a, b, c, d]: [&[S]; STREAMS]) {
    for ((s, (a, b)), (c, d)) in part.iter_mut().zip(a.iter().zip(b)).zip(c.iter().zip(d)) {
        *s += (a.widen() + b.widen()) + (c.widen() + d.widen());
    }
}
