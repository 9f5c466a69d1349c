//! A 3D array with its place in the world. Every change of shape moves the affine with it.

use crate::affine::{self, Affine, Axis};
use rayon::prelude::*;

/// Voxels `[x, y, z]` with z contiguous, and the affine from voxel index to world mm.
#[derive(Debug, Clone, PartialEq)]
pub struct Volume<T = f32> {
    pub data: Vec<T>,
    pub dims: [usize; 3],
    pub affine: Affine,
}

impl<T: Copy + Default + Send + Sync> Volume<T> {
    /// The box of `size` voxels that begins at `start`; voxels outside the volume are zero. Crops, pads, or both.
    pub fn extract(&self, start: [isize; 3], size: [usize; 3]) -> Volume<T> {
        let mut data = Vec::with_capacity(size.iter().product());
        self.append(start, size, &mut data);
        Volume { data, dims: size, affine: affine::shifted(&self.affine, start.map(|s| s as f64)) }
    }

    /// The box of `size` voxels, all of them inside, that begins at `first`; moved together where they are.
    pub(crate) fn cropped(mut self, first: [usize; 3], size: [usize; 3]) -> Volume<T> {
        let lines = (0..size[0]).flat_map(|x| (0..size[1]).map(move |y| [x, y]));
        for (i, [x, y]) in lines.enumerate() {
            let from = ((first[0] + x) * self.dims[1] + first[1] + y) * self.dims[2] + first[2];
            self.data.copy_within(from..from + size[2], i * size[2]);
        }
        self.data.truncate(size.iter().product());
        self.data.shrink_to_fit();
        Volume { dims: size, affine: affine::shifted(&self.affine, first.map(|f| f as f64)), ..self }
    }

    /// Appends the voxels of [`Volume::extract`] to `out`.
    pub fn append(&self, start: [isize; 3], size: [usize; 3], out: &mut Vec<T>) {
        let (inside, first) = overlap(start[2], size[2], self.dims[2]);
        for row in 0..size[0] * size[1] {
            let x = start[0] + (row / size[1]) as isize;
            let y = start[1] + (row % size[1]) as isize;
            let end = out.len() + size[2];
            if in_range(x, self.dims[0]) && in_range(y, self.dims[1]) && !inside.is_empty() {
                let line = (x as usize * self.dims[1] + y as usize) * self.dims[2] + first;
                out.resize(out.len() + inside.start, T::default());
                out.extend_from_slice(&self.data[line..line + inside.len()]);
            }
            out.resize(end, T::default());
        }
    }

    /// Permutes and flips, so that output axis `i` is input axis `axes[i].from`.
    pub fn reoriented(self, axes: [Axis; 3]) -> Volume<T> {
        if axes.iter().enumerate().all(|(i, a)| a.from == i && !a.flip) {
            return self;
        }
        let dims = axes.map(|a| self.dims[a.from]);
        let stride = [self.dims[1] * self.dims[2], self.dims[2], 1];
        let step = axes.map(|a| if a.flip { -(stride[a.from] as isize) } else { stride[a.from] as isize });
        let corner = [0, 1, 2].map(|axis| {
            let flipped = axes.iter().any(|a| a.from == axis && a.flip);
            if flipped { self.dims[axis] - 1 } else { 0 }
        });
        let origin = (0..3).map(|i| corner[i] * stride[i]).sum::<usize>() as isize;
        let mut data = vec![T::default(); self.data.len()];
        data.par_chunks_mut(dims[2]).enumerate().with_min_len(256).for_each(|(row, out)| {
            let start = origin + (row / dims[1]) as isize * step[0] + (row % dims[1]) as isize * step[1];
            match step[2] {
                1 => out.copy_from_slice(&self.data[start as usize..start as usize + dims[2]]),
                step => (0..).zip(out).for_each(|(z, v)| *v = self.data[(start + z * step) as usize]),
            }
        });
        Volume { data, dims, affine: affine::reoriented(&self.affine, self.dims, axes) }
    }
}

/// The part of an output line of `size` voxels that lies inside `n` input voxels, and the input voxel it begins with.
fn overlap(start: isize, size: usize, n: usize) -> (std::ops::Range<usize>, usize) {
    let from = (-start).clamp(0, size as isize);
    let to = (n as isize - start).clamp(from, size as isize);
    (from as usize..to as usize, (start + from) as usize)
}

fn in_range(i: isize, n: usize) -> bool {
    i >= 0 && (i as usize) < n
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::affine::IDENTITY;

    fn numbered(dims: [usize; 3], affine: Affine) -> Volume<i32> {
        Volume { data: (0..dims.iter().product::<usize>() as i32).collect(), dims, affine }
    }

    #[test]
    fn reorientation_matches_monai() {
        let mut a = IDENTITY;
        (a[0][0], a[1][1], a[2][2]) = (-1.0, -2.0, 3.0);
        let v = numbered([2, 3, 4], a);
        let axes = affine::orientation(&v.affine).unwrap();
        let out = v.reoriented(axes);
        assert_eq!(out.data[..12], [20, 21, 22, 23, 16, 17, 18, 19, 12, 13, 14, 15]);
        let mut want = IDENTITY;
        (want[0][0], want[1][1], want[2][2]) = (1.0, 2.0, 3.0);
        (want[0][3], want[1][3]) = (-1.0, -4.0);
        assert_eq!(out.affine, want);
    }

    #[test]
    fn every_reorientation_keeps_each_voxel_at_its_place() {
        let orders = [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]];
        for (order, flips) in orders.iter().flat_map(|o| (0..8).map(move |f| (o, f))) {
            let v = numbered([2, 3, 5], IDENTITY);
            let axes = [0, 1, 2].map(|i| Axis { from: order[i], flip: flips >> i & 1 == 1 });
            let out = v.clone().reoriented(axes);
            for (i, value) in out.data.iter().enumerate() {
                let [_, y, z] = out.dims;
                let world = affine::apply(&out.affine, [(i / (y * z)) as f64, (i / z % y) as f64, (i % z) as f64]);
                assert_eq!(*value as f64, world[0] * 15.0 + world[1] * 5.0 + world[2]);
            }
        }
    }

    #[test]
    fn extract_crops_and_pads() {
        let v = numbered([2, 2, 3], IDENTITY);
        let out = v.extract([1, -1, 1], [2, 3, 4]);
        assert_eq!(out.data[..12], [0, 0, 0, 0, 7, 8, 0, 0, 10, 11, 0, 0]);
        assert!(out.data[12..].iter().all(|&x| x == 0));
        assert_eq!(affine::apply(&out.affine, [0.0; 3]), [1.0, -1.0, 1.0]);
        assert!(v.extract([5, 5, -9], [2, 2, 2]).data.iter().all(|&x| x == 0));
    }
}
