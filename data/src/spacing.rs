//! Resampling to a voxel size in mm, as MONAI's `Spacing` (1.3.0): border clamped, first voxel centres aligned.
//!
//! The output keeps the input's rotation and drops its shear. Output index o samples input index `A_in⁻¹·A_out·o`; where that
//! matrix is diagonal (every unsheared scan) the image is interpolated axis by axis, otherwise voxel by voxel.

use crate::affine::{self, Affine, Axis};
use crate::error::Result;
use crate::interpolate::Tap;
use crate::slices::{self, Slices};
use crate::volume::Volume;
use rayon::prelude::*;

/// MONAI's AFFINE_TOL: affines that differ by less are the same.
const TOLERANCE: f64 = 1e-3;
/// Off-diagonal drift across the volume, in voxels, below which the axes are treated one by one.
const ALIGNED: f64 = 1e-6;

/// Largest grid: a wrong voxel size in a header must not ask for more memory than any scan needs (8 GiB as f32).
pub(crate) const MAX_VOXELS: f64 = (1u64 << 31) as f64;
/// Most voxels that one may become: ten along each axis, where no scan has voxels ten times as long as a recipe's all around.
const MAX_GROWTH: f64 = 1000.0;

/// Where a resampled grid lies and where its voxels come from.
pub(crate) struct Grid {
    pub(crate) dims: [usize; 3],
    affine: Affine,
    /// Output voxel index to input voxel index.
    map: Affine,
    unchanged: bool,
}

/// The grid of `spacing` mm over a volume of `dims`; `None` when the affine is singular or a size is absurd.
pub(crate) fn grid(dims: [usize; 3], input: &Affine, spacing: [f64; 3]) -> Option<Grid> {
    let zooms = affine::zooms(input);
    let wanted = [0, 1, 2].map(|i| if (zooms[i] - spacing[i]).abs() <= TOLERANCE { zooms[i] } else { spacing[i] });
    let mut output = affine::rezoomed(input, wanted)?;
    let (size, origin) = extent(dims, input, &output)?;
    (0..3).for_each(|i| output[i][3] = origin[i]);
    let map = affine::solve(input, &output)?;
    let unchanged = size == dims && (close(input, &output) || close(&map, &affine::IDENTITY));
    Some(Grid { dims: size, affine: output, map, unchanged })
}

/// Voxel counts that cover the input's box, and the world position of the first voxel.
fn extent(dims: [usize; 3], input: &Affine, output: &Affine) -> Option<([usize; 3], [f64; 3])> {
    let to_output = affine::solve(output, input)?;
    let corner = |c: usize| [0, 1, 2].map(|i| if c >> (2 - i) & 1 == 1 { dims[i] as f64 - 1.0 } else { 0.0 });
    let corners: Vec<[f64; 3]> = (0..8).map(|c| affine::apply(&to_output, corner(c))).collect();
    let low = [0, 1, 2].map(|i| corners.iter().map(|c| c[i]).fold(f64::INFINITY, f64::min));
    let high = [0, 1, 2].map(|i| corners.iter().map(|c| c[i]).fold(f64::NEG_INFINITY, f64::max));
    let size = [0, 1, 2].map(|i| (high[i] - low[i] + 1.0).round_ties_even());
    let most = MAX_VOXELS.min(MAX_GROWTH * dims.iter().map(|&n| n as f64).product::<f64>());
    let sensible = size.iter().all(|&n| n >= 1.0) && size.iter().product::<f64>() <= most;
    if !sensible {
        return None;
    }
    let lowest = (0..8).find(|&c| (0..3).all(|i| corners[c][i] - low[i] <= 1e-8));
    let origin = lowest.map_or_else(|| centred(dims, input, size, output), |c| affine::apply(input, corner(c)));
    Some((size.map(|n| n as usize), origin))
}

/// Sheared boxes have no lowest corner: MONAI then puts index n/2 of both grids at the same place.
fn centred(dims: [usize; 3], input: &Affine, size: [f64; 3], output: &Affine) -> [f64; 3] {
    let middle = affine::apply(input, dims.map(|n| n as f64 / 2.0));
    let offset = affine::apply(output, size.map(|n| n / 2.0));
    [0, 1, 2].map(|i| middle[i] - offset[i])
}

fn close(a: &Affine, b: &Affine) -> bool {
    // NumPy's allclose: an absolute tolerance plus 1e-5 of b
    (0..4).all(|i| (0..4).all(|j| (a[i][j] - b[i][j]).abs() <= TOLERANCE + 1e-5 * b[i][j].abs()))
}

/// Linear interpolation on `grid`, which lies over the axes `axes` of `slices`: f64 positions, f32 values. Without one, all voxels.
pub(crate) fn linear(slices: &mut dyn Slices, axes: [Axis; 3], grid: Option<&Grid>) -> Result<Volume> {
    let Some(grid) = grid.filter(|grid| !grid.unchanged) else { return slices::whole(slices, axes) };
    let data = if grid.is_aligned() {
        let taps = [0, 1, 2].map(|i| grid.taps(i, slices.dims()[axes[i].from]));
        slices::collect(slices, axes, taps)?
    } else {
        let volume = slices::whole(slices, axes)?;
        grid.gather(|at| trilinear(&volume, at))
    };
    Ok(Volume { data, dims: grid.dims, affine: grid.affine })
}

/// Nearest neighbour, half-way positions to the even index.
pub(crate) fn nearest(volume: Volume<i32>, grid: &Grid) -> Volume<i32> {
    if grid.unchanged {
        return volume;
    }
    let dims = volume.dims;
    let index = |position: f64, axis: usize| position.clamp(0.0, (dims[axis] - 1) as f64).round_ties_even() as usize;
    let value = |[x, y, z]: [usize; 3]| volume.data[(x * dims[1] + y) * dims[2] + z];
    let data = match grid.is_aligned() {
        true => {
            let lines = [0, 1, 2].map(|axis| grid.positions(axis, dims[axis]));
            let index = [0, 1, 2].map(|axis| lines[axis].iter().map(|&p| index(p, axis)).collect::<Vec<_>>());
            grid.fill(|[x, y, z]| value([index[0][x], index[1][y], index[2][z]]))
        }
        false => grid.gather(|at| value([0, 1, 2].map(|axis| index(at[axis], axis)))),
    };
    Volume { data, dims: grid.dims, affine: grid.affine }
}

impl Grid {
    fn is_aligned(&self) -> bool {
        let drift = |i: usize, j: usize| self.map[i][j].abs() * (self.dims[j] - 1) as f64;
        (0..3).all(|i| (0..3).all(|j| i == j || drift(i, j) < ALIGNED))
    }

    /// Input positions of the output voxels along one axis of `n` input voxels, for aligned grids.
    ///
    /// In exact arithmetic this is `o·map + shift`. Labels half-way between two voxels are decided by the last bit, though, so
    /// it goes the way PyTorch goes: through coordinates in [−1, 1], in the same order of operations.
    fn positions(&self, axis: usize, n: usize) -> Vec<f64> {
        let steps = self.dims[axis];
        let (n, m) = (n as f64, steps as f64);
        let (into, back) = (2.0 / n, 1.0 / (2.0 / m));
        let slope = into * self.map[axis][axis];
        let shift = slope * (-(1.0 / m - 1.0) * back) + (into * self.map[axis][3] + (1.0 / n - 1.0));
        let position = |unit: f64| ((unit * (slope * back) + shift + 1.0) * n - 1.0) / 2.0;
        (0..steps).map(|o| position(symmetric_step(o, steps) * (m - 1.0) / m)).collect()
    }

    fn taps(&self, axis: usize, n: usize) -> Vec<Tap> {
        self.positions(axis, n).into_iter().map(|p| Tap::at(p, n)).collect()
    }

    /// `value` of the input position of every output voxel.
    fn gather<T: Copy + Default + Send>(&self, value: impl Fn([f64; 3]) -> T + Sync) -> Vec<T> {
        self.fill(|at| value(affine::apply(&self.map, at.map(|o| o as f64))))
    }

    /// `value` of every output index.
    fn fill<T: Copy + Default + Send>(&self, value: impl Fn([usize; 3]) -> T + Sync) -> Vec<T> {
        let mut out = vec![T::default(); self.dims.iter().product()];
        out.par_chunks_mut(self.dims[2]).enumerate().with_min_len(64).for_each(|(row, line)| {
            let (x, y) = (row / self.dims[1], row % self.dims[1]);
            (0..).zip(line).for_each(|(z, v)| *v = value([x, y, z]));
        });
        out
    }
}

/// Step `o` of `steps` from −1 to 1, counted from the nearer end and fused, as PyTorch's linspace; 0 for a single step.
fn symmetric_step(o: usize, steps: usize) -> f64 {
    let step = 2.0 / (steps as f64 - 1.0);
    match o {
        _ if steps == 1 => 0.0,
        o if o < steps / 2 => step.mul_add(o as f64, -1.0),
        o => (-step).mul_add((steps - 1 - o) as f64, 1.0),
    }
}

fn trilinear(volume: &Volume, at: [f64; 3]) -> f32 {
    let dims = volume.dims;
    let at = [0, 1, 2].map(|i| at[i].clamp(0.0, (dims[i] - 1) as f64));
    let low = at.map(|p| p as usize);
    let high = [0, 1, 2].map(|i| (low[i] + 1).min(dims[i] - 1));
    let w = [0, 1, 2].map(|i| at[i] - low[i] as f64);
    // as a tap mixes: an infinite voxel beside one that is met adds nothing, and no sum is NaN
    let mix = |a: f64, b: f64, w: f64| if w == 0.0 || a.is_infinite() { a } else { a + w * (b - a) };
    let line = |x: usize, y: usize| {
        let row = (x * dims[1] + y) * dims[2];
        mix(volume.data[row + low[2]] as f64, volume.data[row + high[2]] as f64, w[2])
    };
    let plane = |x: usize| mix(line(x, low[1]), line(x, high[1]), w[1]);
    mix(plane(low[0]), plane(high[0]), w[0]) as f32
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::affine::IDENTITY;
    use crate::slices::Planes;

    fn line<T>(data: Vec<T>, step: f64) -> Volume<T> {
        let mut affine = IDENTITY;
        affine[2][2] = step;
        Volume { dims: [1, 1, data.len()], data, affine }
    }

    fn resampled(volume: &Volume, grid: &Grid) -> Volume {
        let axes = [0, 1, 2].map(|from| Axis { from, flip: false });
        linear(&mut Planes::of(volume), axes, Some(grid)).unwrap()
    }

    #[test]
    fn sizes_match_monai() {
        let cases = [
            (512, 0.78125, 1.5, 267),
            (100, 5.0, 1.5, 331),
            (512, 0.7, 1.25, 287),
            (37, 2.5, 5.0, 19),
            (2, 1.0, 3.0, 1),
        ];
        for (n, old, new, want) in cases {
            let mut affine = IDENTITY;
            affine[0][0] = old;
            assert_eq!(grid([n, 1, 1], &affine, [new, 1.0, 1.0]).unwrap().dims, [want, 1, 1]);
        }
    }

    #[test]
    fn values_match_monai() {
        let squares: Vec<i32> = (0..8).map(|i| i * i).collect();
        let image = line(squares.iter().map(|&v| v as f32).collect(), 1.0);
        let coarse = grid(image.dims, &image.affine, [1.0, 1.0, 1.5]).unwrap();
        assert_eq!(resampled(&image, &coarse).data, [0.0, 2.5, 9.0, 20.5, 36.0, 49.0]);
        let label = line(squares, 1.0);
        let fine = grid(label.dims, &label.affine, [1.0, 1.0, 0.7]).unwrap();
        assert_eq!(nearest(label, &fine).data, [0, 1, 1, 4, 9, 16, 16, 25, 36, 36, 49]);
    }

    #[test]
    fn spacing_within_the_tolerance_changes_nothing() {
        let image = line((0..9).map(|v| v as f32).collect(), 1.0009);
        let same = grid(image.dims, &image.affine, [1.0; 3]).unwrap();
        assert_eq!(resampled(&image, &same), image);
    }

    #[test]
    fn aligned_and_general_interpolation_agree() {
        let (s, c) = 0.2f64.sin_cos();
        let mut affine = IDENTITY;
        (affine[0][0], affine[0][1], affine[1][0], affine[1][1], affine[2][2]) =
            (1.7 * c, -0.8 * s, 1.7 * s, 0.8 * c, 2.3);
        let dims = [7, 11, 5];
        let data: Vec<f32> = (0..385).map(|i| engine::random::uniform(1, i) as f32).collect();
        let volume = Volume { data, dims, affine };
        let grid = grid(dims, &affine, [1.1; 3]).unwrap();
        assert!(grid.is_aligned());
        let general = grid.gather(|at| trilinear(&volume, at));
        let fast = resampled(&volume, &grid).data;
        assert!(fast.iter().zip(&general).all(|(a, b)| (a - b).abs() < 1e-6));
    }

    #[test]
    fn an_infinite_voxel_of_a_sheared_volume_spoils_none_that_is_met() {
        let at = |p: [f64; 3]| {
            let mut data = vec![1.0; 27];
            data[13] = f32::INFINITY; // in the middle
            trilinear(&Volume { data, dims: [3; 3], affine: IDENTITY }, p)
        };
        for met in [[1.0, 1.0, 0.0], [1.0, 0.0, 1.0], [0.0, 1.0, 1.0], [0.0; 3]] {
            assert_eq!(at(met), 1.0, "{met:?}");
        }
        for between in [[1.0; 3], [1.0, 1.0, 0.5], [1.0, 1.5, 1.0], [0.5, 0.5, 0.5]] {
            assert_eq!(at(between), f32::INFINITY, "{between:?}");
        }
    }

    #[test]
    fn an_absurd_voxel_size_has_no_grid() {
        let mut affine = IDENTITY;
        (affine[0][0], affine[1][1]) = (1e6, 1e6);
        assert!(grid([64; 3], &affine, [1.5; 3]).is_none());
        assert!(grid([64; 3], &IDENTITY, [1e-7; 3]).is_none());
        // below the largest grid, but far more than so small a volume has to say
        assert!(grid([4; 3], &affine, [1e4; 3]).is_none());
        assert!(grid([4; 3], &IDENTITY, [0.1; 3]).is_some());
    }

    #[test]
    fn a_singular_affine_has_no_grid() {
        let mut affine = IDENTITY;
        affine[1][1] = 0.0;
        assert!(grid([4, 4, 4], &affine, [1.0; 3]).is_none());
    }
}
