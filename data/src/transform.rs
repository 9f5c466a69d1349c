//! Changes of shape and grey value that sampling needs: resize, flips, quarter turns, shift.

use crate::interpolate::{Tap, separable};
use crate::volume::Volume;

/// Trilinear resize with corner voxels kept in place: output o samples input o·(N_in−1)/(N_out−1), 0 when N_out = 1.
/// No smoothing before. Both volumes have at least one voxel per axis.
pub fn resize(volume: &Volume, dims: [usize; 3]) -> Volume {
    if volume.dims == dims {
        return volume.clone();
    }
    let scale = [0, 1, 2].map(|i| match dims[i] {
        1 => 0.0,
        n => (volume.dims[i] - 1) as f64 / (n - 1) as f64,
    });
    let taps = [0, 1, 2].map(|i| (0..dims[i]).map(|o| Tap::at(o as f64 * scale[i], volume.dims[i])).collect());
    let mut affine = volume.affine;
    affine.iter_mut().take(3).for_each(|row| (0..3).for_each(|j| row[j] *= scale[j]));
    Volume { data: separable(&volume.data, volume.dims, taps), dims, affine }
}

/// First and one-past-last voxel of a crop of `size` around `centre`: MONAI's SpatialCrop.
pub fn crop_range(centre: usize, size: usize) -> std::ops::Range<usize> {
    let start = centre.saturating_sub(size / 2);
    start..start + size
}

/// Reverses a cube of side `n` along x (0), y (1) or z (2), in place.
pub fn flip(cube: &mut [f32], n: usize, axis: usize) {
    let inner = n.pow(2 - axis as u32);
    for block in cube.chunks_mut(n * inner) {
        if inner == 1 {
            block.reverse(); // in vectors, which single swaps are not
            continue;
        }
        let (low, high) = block.split_at_mut(n / 2 * inner);
        let from_the_end = high.rchunks_mut(inner);
        low.chunks_mut(inner).zip(from_the_end).for_each(|(a, b)| a.swap_with_slice(b));
    }
}

/// Turns a cube of side `n` by `turns`·90° in the x–y plane; one turn is out\[i, j\] = in\[j, n−1−i\].
pub fn rot90(cube: &mut [f32], n: usize, turns: usize) {
    for _ in 0..turns % 4 {
        transpose_xy(cube, n);
        flip(cube, n, 0);
    }
}

fn transpose_xy(cube: &mut [f32], n: usize) {
    for x in 0..n {
        for y in 0..x {
            let (low, high) = cube.split_at_mut((x * n + y) * n);
            low[(y * n + x) * n..][..n].swap_with_slice(&mut high[..n]);
        }
    }
}

/// Adds one value to every voxel, without clipping.
pub fn shift(cube: &mut [f32], by: f32) {
    cube.iter_mut().for_each(|v| *v += by);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::affine::{IDENTITY, apply};

    fn numbered(dims: [usize; 3]) -> Volume {
        Volume { data: (0..dims.iter().product::<usize>()).map(|i| i as f32).collect(), dims, affine: IDENTITY }
    }

    #[test]
    fn resize_matches_monai() {
        let want = [
            0.0, 2.0, 4.5, 6.5, 9.0, 11.0, 16.0, 18.0, 20.5, 22.5, 25.0, 27.0, 32.0, 34.0, 36.5, 38.5, 41.0, 43.0,
            48.0, 50.0, 52.5, 54.5, 57.0, 59.0,
        ];
        let got = resize(&numbered([5, 4, 3]), [4, 3, 2]);
        assert!(got.data.iter().zip(want).all(|(a, b): (&f32, f32)| (a - b).abs() < 1e-5));
        assert_eq!(apply(&got.affine, [3.0, 2.0, 1.0]), [4.0, 3.0, 2.0]);
    }

    #[test]
    fn resize_takes_single_voxels_and_primes() {
        assert_eq!(resize(&numbered([1, 1, 3]), [2, 1, 1]).data, [0.0, 0.0]);
        assert_eq!(resize(&numbered([1, 1, 1]), [7, 5, 3]).data, [0.0; 105]);
        assert_eq!(resize(&numbered([13, 1, 1]), [5, 1, 1]).data, [0.0, 3.0, 6.0, 9.0, 12.0]);
    }

    #[test]
    fn crop_ranges_match_monai() {
        let got = [(96, 64), (33, 64), (159, 64), (5, 5)].map(|(centre, size)| crop_range(centre, size));
        assert_eq!(got, [64..128, 1..65, 127..191, 3..8]);
        assert_eq!(crop_range(1, 64), 0..64);
    }

    #[test]
    fn flips_reverse_one_axis() {
        for (axis, n) in [(0, 3), (1, 3), (2, 3), (0, 4), (1, 4), (2, 4)] {
            let before = numbered([n; 3]).data;
            let mut after = before.clone();
            flip(&mut after, n, axis);
            for (i, v) in after.iter().enumerate() {
                let mut at = [i / (n * n), i / n % n, i % n];
                at[axis] = n - 1 - at[axis];
                assert_eq!(*v, before[(at[0] * n + at[1]) * n + at[2]]);
            }
        }
    }

    #[test]
    fn quarter_turns_match_numpy() {
        // [[0, 1], [2, 3]] in x-y becomes [[1, 3], [0, 2]]; both z slices alike
        let mut cube = [0.0, 0.0, 1.0, 1.0, 2.0, 2.0, 3.0, 3.0];
        rot90(&mut cube, 2, 1);
        assert_eq!(cube, [1.0, 1.0, 3.0, 3.0, 0.0, 0.0, 2.0, 2.0]);
        rot90(&mut cube, 2, 3);
        assert_eq!(cube, [0.0, 0.0, 1.0, 1.0, 2.0, 2.0, 3.0, 3.0]);
    }
}
