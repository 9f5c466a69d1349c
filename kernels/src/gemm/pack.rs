//! Weights rearranged for the tiles: panels of [`width`] columns, each with its rows (tap by tap, channel by channel) in order.

use crate::simd::{self, Kernel, Level, MAX_LANES, Vector};
use rayon::prelude::*;
use std::ops::Range;

/// A weight as the right-hand matrices of a product, one for each tap: element (tap, k, n) is `data[tap * taps + k * ks + n * ns]`.
#[derive(Clone, Copy, Debug)]
pub struct Weight<'a, T> {
    pub data: &'a [T],
    pub tap: usize,
    pub k: usize,
    pub n: usize,
}

impl<T: Copy> Weight<'_, T> {
    pub fn at(&self, tap: usize, k: usize, n: usize) -> T {
        self.data[tap * self.tap + k * self.k + n * self.n]
    }
}

/// Columns of a panel: as many as the tiles of this CPU's vectors take at once.
pub fn width() -> usize {
    if simd::level() == Level::Avx512 { 3 * MAX_LANES } else { MAX_LANES }
}

/// Packs the given panels of `n` columns, taps and channels: `to[((p * taps + t) * channels + k) * width + j]`, zero behind
/// column `n`.
#[inline(always)]
pub fn panels(
    w: &Weight<f32>,
    n: usize,
    width: usize,
    panels: Range<usize>,
    taps: &[usize],
    ks: Range<usize>,
    to: &mut [f32],
) {
    let size = ks.len() * width;
    for (t, &tap) in taps.iter().enumerate() {
        let from = &w.data[tap * w.tap + ks.start * w.k..];
        let place = |panel: usize| ((panel - panels.start) * taps.len() + t) * size;
        if w.n == 1 {
            for panel in panels.clone() {
                let columns = panel * width..n.min((panel + 1) * width);
                let rows = to[place(panel)..][..size].chunks_exact_mut(width);
                rows.enumerate().for_each(|(k, to)| copy(&from[k * w.k..][columns.clone()], to));
            }
        } else {
            for panel in panels.clone() {
                let first = panel * width;
                let to = &mut to[place(panel)..][..size];
                transpose(&from[first * w.n..], w.k, w.n, width.min(n - first), width, to);
            }
        }
    }
}

/// Fills up with zeros.
#[inline(always)]
fn copy(from: &[f32], to: &mut [f32]) {
    let (blocks, rest) = from.as_chunks::<BLOCK>();
    let (to_blocks, _) = to.as_chunks_mut::<BLOCK>();
    to_blocks.iter_mut().zip(blocks).for_each(|(to, from)| *to = *from);
    if from.len() < to.len() {
        to[from.len() - rest.len()..from.len()].copy_from_slice(rest);
        to[from.len()..].fill(0.0);
    }
}

const BLOCK: usize = 8;

/// `to[k * width + j] = from[k * k_step + j * n_step]`, in blocks that stay in registers; zero from column `columns` on.
#[inline(always)]
fn transpose(from: &[f32], k_step: usize, n_step: usize, columns: usize, width: usize, to: &mut [f32]) {
    let rows = to.len() / width;
    let blocks = if k_step == 1 { rows / BLOCK * BLOCK } else { 0 };
    for j in (0..width).step_by(BLOCK) {
        let count = BLOCK.min(columns.saturating_sub(j));
        for k in (0..blocks).step_by(BLOCK) {
            let mut block = [[0.0; BLOCK]; BLOCK];
            for (i, row) in block.iter_mut().enumerate().take(count) {
                row.copy_from_slice(&from[(j + i) * n_step + k..][..BLOCK]);
            }
            for i in 0..BLOCK {
                to[(k + i) * width + j..][..BLOCK]
                    .copy_from_slice(&std::array::from_fn::<f32, BLOCK, _>(|c| block[c][i]));
            }
        }
        for k in blocks..rows {
            let row = &mut to[k * width + j..][..BLOCK];
            row.fill(0.0);
            for (i, v) in row.iter_mut().enumerate().take(count) {
                *v = from[k * k_step + (j + i) * n_step];
            }
        }
    }
}

/// Packs all panels of the given taps, on all threads: `[panels][taps][channels][width]`.
pub fn all(w: &Weight<f32>, n: usize, width: usize, taps: &[usize], channels: usize) -> Vec<f32> {
    let mut packed = vec![0.0; n.div_ceil(width) * taps.len() * channels * width];
    let tap = channels * width;
    packed.par_chunks_mut(tap).enumerate().for_each(|(i, to)| {
        let t = i % taps.len();
        simd::dispatch(Panel { w, n, panel: i / taps.len(), width, tap: taps[t], channels, to });
    });
    packed
}

/// One panel of one tap.
struct Panel<'a> {
    w: &'a Weight<'a, f32>,
    n: usize,
    panel: usize,
    width: usize,
    tap: usize,
    channels: usize,
    to: &'a mut [f32],
}

impl Kernel for Panel<'_> {
    type Output = ();
    #[inline(always)]
    fn run<V: Vector>(self) {
        let panel = self.panel..self.panel + 1;
        panels(self.w, self.n, self.width, panel, &[self.tap], 0..self.channels, self.to);
    }
}
