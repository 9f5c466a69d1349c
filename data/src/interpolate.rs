//! Linear interpolation along one axis of `[x, y, z]` data: the step that both resampling and resizing repeat per axis.

use rayon::prelude::*;

/// Output = (1 − weight)·input\[low\] + weight·input\[high\].
#[derive(Debug, Clone, Copy)]
pub(crate) struct Tap {
    low: usize,
    high: usize,
    weight: f32,
}

impl Tap {
    /// The tap at a fractional input index, clamped into `[0, n−1]`.
    pub(crate) fn at(position: f64, n: usize) -> Tap {
        let position = position.clamp(0.0, (n - 1) as f64);
        let low = position as usize;
        Tap { low, high: (low + 1).min(n - 1), weight: (position - low as f64) as f32 }
    }

    /// The voxel at an input index as it is.
    pub(crate) fn only(index: usize) -> Tap {
        Tap { low: index, high: index, weight: 0.0 }
    }

    /// The tap at the same place of an axis of `n` voxels that runs backwards.
    pub(crate) fn flipped(self, n: usize) -> Tap {
        Tap { low: n - 1 - self.low, high: n - 1 - self.high, ..self }
    }

    /// First and last input index.
    pub(crate) fn ends(self) -> [usize; 2] {
        [self.low.min(self.high), self.low.max(self.high)]
    }

    pub(crate) fn uses(self, index: usize) -> bool {
        self.low == index || self.high == index
    }

    pub(crate) fn of(self, line: &[f32]) -> f32 {
        self.mix(line[self.low], line[self.high])
    }

    /// The same for every voxel of two lines.
    pub(crate) fn mix_lines<'a>(self, line: impl Fn(usize) -> &'a [f32], out: &mut [f32]) {
        let (low, high) = (line(self.low), line(self.high));
        out.iter_mut().zip(low.iter().zip(high)).for_each(|(v, (&l, &h))| *v = self.mix(l, h));
    }

    /// Exact where both are equal, so flat air stays at its value, and where a voxel is met: one that is infinite beside it adds
    /// nothing. Between voxels an infinite one counts alone.
    fn mix(self, low: f32, high: f32) -> f32 {
        if self.weight == 0.0 || low.is_infinite() { low } else { low + self.weight * (high - low) }
    }
}

/// Interpolates axis by axis, the axis that shrinks most first, so that later passes touch less data.
pub(crate) fn separable(data: &[f32], dims: [usize; 3], taps: [Vec<Tap>; 3]) -> Vec<f32> {
    let mut order = [0, 1, 2];
    let growth = |axis: usize| taps[axis].len() as f64 / dims[axis] as f64;
    order.sort_by(|&a, &b| growth(a).total_cmp(&growth(b)));
    let first = along(data, dims, order[0], &taps[order[0]]);
    let mut dims = dims;
    dims[order[0]] = taps[order[0]].len();
    order[1..].iter().fold(first, |data, &axis| {
        let out = along(&data, dims, axis, &taps[axis]);
        dims[axis] = taps[axis].len();
        out
    })
}

fn along(data: &[f32], dims: [usize; 3], axis: usize, taps: &[Tap]) -> Vec<f32> {
    let inner: usize = dims[axis + 1..].iter().product();
    let outer: usize = dims[..axis].iter().product();
    let mut out = vec![0.0; outer * taps.len() * inner];
    if inner == 1 {
        let lines = out.par_chunks_mut(taps.len()).zip(data.par_chunks(dims[axis])).with_min_len(256);
        lines.for_each(|(out, line)| {
            out.iter_mut().zip(taps).for_each(|(v, tap)| *v = tap.mix(line[tap.low], line[tap.high]));
        });
    } else {
        let rows = out.par_chunks_mut(inner).enumerate().with_min_len(8);
        rows.for_each(|(row, out)| {
            let (tap, block) = (taps[row % taps.len()], row / taps.len() * dims[axis]);
            let low = &data[(block + tap.low) * inner..][..inner];
            let high = &data[(block + tap.high) * inner..][..inner];
            out.iter_mut().zip(low.iter().zip(high)).for_each(|(v, (&l, &h))| *v = tap.mix(l, h));
        });
    }
    out
}
