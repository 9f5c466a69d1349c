//! Weights rearranged for the tiles: panels of [`width`] columns, each with its rows (tap by tap, channel by channel) in order.

use super::operand::Operand;
use crate::simd::{self, Kernel, Level, MAX_LANES, SIDE, Vector};
use engine::{DType, Device, Result, Tensor, parallel};
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
    if simd::level() >= Level::Avx512 { 3 * MAX_LANES } else { MAX_LANES }
}

/// How a weight is packed.
pub struct Packing<'a, S> {
    pub weight: &'a Weight<'a, S>,
    /// Columns in all, and of a panel.
    pub n: usize,
    pub width: usize,
    /// Positions of the taps in the weight.
    pub taps: &'a [usize],
    pub channels: Range<usize>,
    /// How many taps in a row have their channels side by side, as if they were one tap's: a lane may hold values of two of them.
    pub joined: usize,
}

impl<S: Operand> Packing<'_, S> {
    /// For [`Kernel`]s. Packs panels of lanes: `to[((p * taps + t) * lanes + k) * width + j]`, zero behind column `n`. `wide` is scratch.
    #[inline(always)]
    pub fn panels<V: Vector>(&self, panels: Range<usize>, to: &mut [f32], wide: &mut Vec<f32>) {
        let size = self.group_size();
        let groups = self.taps.len() / self.joined;
        for group in 0..groups {
            for panel in panels.clone() {
                let place = ((panel - panels.start) * groups + group) * size;
                self.panel::<V>(panel, group, &mut to[place..][..size], wide);
            }
        }
    }

    /// Packs all panels, on all threads.
    pub fn all(&self) -> Result<Tensor> {
        let groups = self.taps.len() / self.joined;
        let size = self.n.div_ceil(self.width) * groups * self.group_size();
        let mut packed = Tensor::empty(&[size], DType::F32, Device::Cpu)?;
        parallel::each(packed.as_mut_slice()?.chunks_mut(self.group_size()).enumerate(), |(i, to)| {
            simd::dispatch(Panel { packing: self, panel: i / groups, group: i % groups, to, wide: &mut Vec::new() });
        });
        Ok(packed)
    }

    /// Elements of a panel of one group.
    fn group_size(&self) -> usize {
        S::lanes(self.joined * self.channels.len()) * self.width
    }

    /// One panel of one group of taps.
    #[inline(always)]
    fn panel<V: Vector>(&self, panel: usize, group: usize, to: &mut [f32], wide: &mut Vec<f32>) {
        let taps = &self.taps[group * self.joined..][..self.joined];
        let size = self.channels.len() * self.width;
        // Loops rather than closures, in which what needs the instruction set would not be inlined.
        if S::PER_LANE == 1 {
            for (&tap, to) in taps.iter().zip(to.chunks_exact_mut(size)) {
                self.values::<V>(panel, tap, to);
            }
            return;
        }
        wide.resize(taps.len() * size, 0.0);
        for (&tap, to) in taps.iter().zip(wide.chunks_exact_mut(size)) {
            self.values::<V>(panel, tap, to);
        }
        join_rows(wide, self.width, to);
    }

    /// The values of one panel of one tap, one to a lane: `to[k * width + j]`.
    #[inline(always)]
    fn values<V: Vector>(&self, panel: usize, tap: usize, to: &mut [f32]) {
        let (w, width) = (self.weight, self.width);
        let from = &w.data[tap * w.tap + self.channels.start * w.k..];
        let columns = panel * width..self.n.min((panel + 1) * width);
        if w.n == 1 {
            let rows = to.chunks_exact_mut(width).enumerate();
            rows.for_each(|(k, to)| copy(&from[k * w.k..][columns.clone()], to));
        } else {
            transpose::<S, V>(&from[columns.start * w.n..], w.k, w.n, columns.len(), width, to);
        }
    }
}

/// Lanes of the upper halves of two rows of `width` values each; of the last row alone when it has no other.
#[inline(always)]
fn join_rows(rows: &[f32], width: usize, to: &mut [f32]) {
    for (rows, to) in rows.chunks(2 * width).zip(to.chunks_exact_mut(width)) {
        let (low, high) = rows.split_at(width);
        for (to, low) in to.iter_mut().zip(low) {
            *to = f32::from_bits(low.to_bits() >> 16);
        }
        for (to, high) in to.iter_mut().zip(high) {
            *to = f32::from_bits(to.to_bits() | high.to_bits() & 0xffff_0000);
        }
    }
}

/// Fills up with zeros.
#[inline(always)]
fn copy<S: Operand>(from: &[S], to: &mut [f32]) {
    let (blocks, rest) = from.as_chunks::<SIDE>();
    let (to_blocks, _) = to.as_chunks_mut::<SIDE>();
    to_blocks.iter_mut().zip(blocks).for_each(|(to, from)| *to = from.map(S::widen));
    if from.len() < to.len() {
        simd::widen(rest, &mut to[from.len() - rest.len()..from.len()]);
        to[from.len()..].fill(0.0);
    }
}

/// `to[k * width + j] = from[k * k_step + j * n_step]`, in blocks that stay in registers; zero from column `columns` on.
#[inline(always)]
fn transpose<S: Operand, V: Vector>(
    from: &[S],
    k_step: usize,
    n_step: usize,
    columns: usize,
    width: usize,
    to: &mut [f32],
) {
    let rows = to.len() / width;
    let blocks = if k_step == 1 { rows / SIDE * SIDE } else { 0 };
    for j in (0..width).step_by(SIDE) {
        let count = SIDE.min(columns.saturating_sub(j));
        for k in (0..blocks).step_by(SIDE) {
            let from = &from[(j * n_step + k).min(from.len())..]; // behind the last column there is nothing
            // SAFETY: the caller's instruction set.
            unsafe { simd::transpose::<S, V>(from, n_step, count, &mut to[k * width + j..], width) }
        }
        for k in blocks..rows {
            let row = &mut to[k * width + j..][..SIDE];
            row.fill(0.0);
            for (i, v) in row.iter_mut().enumerate().take(count) {
                *v = from[k * k_step + (j + i) * n_step].widen();
            }
        }
    }
}

/// One panel of one group of taps.
struct Panel<'a, S> {
    packing: &'a Packing<'a, S>,
    panel: usize,
    group: usize,
    to: &'a mut [f32],
    wide: &'a mut Vec<f32>,
}

impl<S: Operand> Kernel for Panel<'_, S> {
    type Output = ();
    #[inline(always)]
    fn run<V: Vector>(self) {
        self.packing.panel::<V>(self.panel, self.group, self.to, self.wide);
    }
}
