//! The same sums by their definitions, for gradient checks in f64.

use super::map::{Map, Run};
use super::pack::Weight;
use crate::real::Real;
use engine::parallel;

/// Rows that one task works on.
const BLOCK_ROWS: usize = 64;

/// See [`super::multiply`]; `target` is `[pixels, n]`.
pub fn product<T: Real>(
    map: &Map,
    source: &[T],
    k: usize,
    weight: Weight<T>,
    bias: Option<&[T]>,
    target: &mut [T],
    n: usize,
) {
    let starts = (0..map.rows()).step_by(BLOCK_ROWS);
    let blocks: Vec<Vec<T>> = parallel::map(starts, |start| block(map, start, source, k, weight, bias, n));
    let mut runs: Vec<Run> = Vec::new();
    map.runs(0..map.rows(), &mut runs);
    let pixels = runs.iter().flat_map(|run| {
        let (first, stride) = map.target(run);
        (0..run.len()).map(move |i| first + i * stride)
    });
    for (pixel, row) in pixels.zip(blocks.iter().flat_map(|block| block.chunks_exact(n))) {
        target[pixel * n..][..n].copy_from_slice(row);
    }
}

fn block<T: Real>(
    map: &Map,
    start: usize,
    source: &[T],
    k: usize,
    weight: Weight<T>,
    bias: Option<&[T]>,
    n: usize,
) -> Vec<T> {
    let rows = start..map.rows().min(start + BLOCK_ROWS);
    let mut sums: Vec<T> = match bias {
        Some(bias) => bias.repeat(rows.len()),
        None => vec![T::zero(); rows.len() * n],
    };
    for_each_meeting(map, rows, |row, tap, pixel| {
        let from = &source[pixel * k..][..k];
        for (j, sum) in sums[row * n..][..n].iter_mut().enumerate() {
            *sum += from.iter().enumerate().map(|(i, &v)| v * weight.at(tap, i, j)).sum();
        }
    });
    sums
}

/// See [`super::weight_gradient`].
pub fn weight_gradient<T: Real>(map: &Map, y: &[T], m: usize, x: &[T], n: usize, to: &mut [T]) {
    let row = map.taps() * n;
    parallel::each(to.chunks_mut(row).enumerate(), |(i, to)| {
        to.fill(T::zero());
        for_each_meeting(map, 0..map.rows(), |row, tap, pixel| {
            let left = y[row * m + i];
            for (to, &right) in to[tap * n..][..n].iter_mut().zip(&x[pixel * n..][..n]) {
                *to += left * right;
            }
        });
    });
}

/// Calls `f(row of the block, position of the tap in the weight, source pixel)`.
fn for_each_meeting(map: &Map, rows: std::ops::Range<usize>, mut f: impl FnMut(usize, usize, usize)) {
    let mut runs = Vec::new();
    map.runs(rows, &mut runs);
    for run in &runs {
        for tap in 0..map.taps() {
            if let Some(met) = map.met(run, tap) {
                (0..met.len).for_each(|i| f(met.first + i, map.kernel_tap(tap), met.source + i * met.step));
            }
        }
    }
}
