//! 4×4 affines: voxel index `[x, y, z]` to world millimetres (right, anterior, superior).
//!
//! Small linear algebra in f64, in the order NumPy does it, so that borderline roundings fall on the same side.

/// Row-major; the last row is `[0, 0, 0, 1]`.
pub type Affine = [[f64; 4]; 4];

pub const IDENTITY: Affine = [[1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0], [0.0, 0.0, 0.0, 1.0]];

/// Where an output axis comes from: the input axis, and whether it runs backwards.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Axis {
    pub from: usize,
    pub flip: bool,
}

/// World position of a (fractional) voxel index, in mm.
pub fn apply(a: &Affine, p: [f64; 3]) -> [f64; 3] {
    [0, 1, 2].map(|i| a[i][0] * p[0] + a[i][1] * p[1] + a[i][2] * p[2] + a[i][3])
}

/// The affine of an array whose voxel `[0, 0, 0]` is the voxel `start` of the array that `a` belongs to.
pub fn shifted(a: &Affine, start: [f64; 3]) -> Affine {
    let origin = apply(a, start);
    let mut out = *a;
    (0..3).for_each(|i| out[i][3] = origin[i]);
    out
}

/// The affine of an array of `dims` after its axes were put in the order, and run in the direction, of `axes`.
pub fn reoriented(a: &Affine, dims: [usize; 3], axes: [Axis; 3]) -> Affine {
    let mut corner = [0.0; 3];
    axes.iter().filter(|axis| axis.flip).for_each(|axis| corner[axis.from] = (dims[axis.from] - 1) as f64);
    let mut out = shifted(a, corner);
    for (i, row) in out.iter_mut().enumerate().take(3) {
        for (j, axis) in axes.iter().enumerate() {
            row[j] = if axis.flip { -a[i][axis.from] } else { a[i][axis.from] };
        }
    }
    out
}

/// Voxel sizes in mm: the lengths of the first three columns.
pub fn zooms(a: &Affine) -> [f64; 3] {
    [0, 1, 2].map(|j| (a[0][j] * a[0][j] + a[1][j] * a[1][j] + a[2][j] * a[2][j]).sqrt())
}

/// `a⁻¹·b` by elimination with partial pivoting; `None` when `a` is singular or not finite.
pub fn solve(a: &Affine, b: &Affine) -> Option<Affine> {
    let (mut a, mut b) = (*a, *b);
    for k in 0..4 {
        let pivot = (k..4).max_by(|&i, &j| a[i][k].abs().total_cmp(&a[j][k].abs()))?;
        if !a[pivot][k].is_finite() || a[pivot][k].abs() < 1e-12 {
            return None;
        }
        a.swap(k, pivot);
        b.swap(k, pivot);
        for i in (0..4).filter(|&i| i != k) {
            let f = a[i][k] / a[k][k];
            for j in 0..4 {
                a[i][j] -= f * a[k][j];
                b[i][j] -= f * b[k][j];
            }
        }
    }
    // times the reciprocal, as LAPACK does
    (0..4).for_each(|i| b[i].iter_mut().for_each(|v| *v *= 1.0 / a[i][i]));
    Some(b)
}

/// For each world axis (right, anterior, superior), the voxel axis that runs closest to it: nibabel's `io_orientation`.
///
/// The rotation part is the orthogonal polar factor of the zoom-normalised block; voxel axes choose in the order of their
/// strongest component, and a world axis is given away once. `None` when the affine is singular or not finite.
pub fn orientation(a: &Affine) -> Option<[Axis; 3]> {
    let mut r = rotation(a)?;
    let mut order = [0, 1, 2];
    let strength = |j: usize| (0..3).map(|i| r[i][j] * r[i][j]).fold(0.0, f64::max);
    let strengths = [0, 1, 2].map(strength);
    order.sort_by(|&p, &q| strengths[q].total_cmp(&strengths[p]));
    let mut axes = [Axis { from: 0, flip: false }; 3];
    for from in order {
        // the first of equals, as NumPy's argmax
        let world = (0..3).rev().max_by(|&i, &j| r[i][from].abs().total_cmp(&r[j][from].abs()))?;
        axes[world] = Axis { from, flip: r[world][from] < 0.0 };
        r[world] = [0.0; 4];
    }
    Some(axes)
}

/// The orthogonal polar factor of the 3×3 block with unit columns, by Newton's iteration R ← (R + R⁻ᵀ)/2.
fn rotation(a: &Affine) -> Option<Affine> {
    let zoom = zooms(a);
    let mut r = IDENTITY;
    (0..3).for_each(|i| (0..3).for_each(|j| r[i][j] = a[i][j] / zoom[j]));
    for _ in 0..60 {
        let inverse = solve(&r, &IDENTITY)?;
        let mut change = 0.0f64;
        for i in 0..3 {
            for j in 0..3 {
                let next = (r[i][j] + inverse[j][i]) / 2.0;
                change = change.max((next - r[i][j]).abs());
                r[i][j] = next;
            }
        }
        if change < 1e-15 {
            break;
        }
    }
    Some(r)
}

/// The same rotation with voxel sizes `zoom` (mm), shear dropped and no translation.
///
/// With the 3×3 block `A = R·U`, U upper triangular from the Cholesky factor of `AᵀA`, the result is `A·U⁻¹·diag(zoom)`.
/// `None` when the affine is singular.
pub fn rezoomed(a: &Affine, zoom: [f64; 3]) -> Option<Affine> {
    let dot = |p: usize, q: usize| a[0][p] * a[0][q] + a[1][p] * a[1][q] + a[2][p] * a[2][q];
    let mut u = IDENTITY;
    u[0][0] = dot(0, 0).sqrt();
    u[0][1] = dot(0, 1) / u[0][0];
    u[0][2] = dot(0, 2) / u[0][0];
    u[1][1] = (dot(1, 1) - u[0][1] * u[0][1]).sqrt();
    u[1][2] = (dot(1, 2) - u[0][1] * u[0][2]) / u[1][1];
    u[2][2] = (dot(2, 2) - u[0][2] * u[0][2] - u[1][2] * u[1][2]).sqrt();
    let inverse = solve(&u, &IDENTITY)?;
    let mut out = IDENTITY;
    for i in 0..3 {
        for j in 0..3 {
            out[i][j] = (a[i][0] * inverse[0][j] + a[i][1] * inverse[1][j] + a[i][2] * inverse[2][j]) * zoom[j];
        }
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(rows: [[f64; 3]; 3]) -> Affine {
        let mut a = IDENTITY;
        (0..3).for_each(|i| a[i][..3].copy_from_slice(&rows[i]));
        a
    }

    #[test]
    fn orientation_finds_permutations_and_flips() {
        let a = block([[0.0, 0.0, -2.0], [3.0, 0.0, 0.0], [0.0, -1.0, 0.0]]);
        let want = [Axis { from: 2, flip: true }, Axis { from: 0, flip: false }, Axis { from: 1, flip: true }];
        assert_eq!(orientation(&a), Some(want));
    }

    #[test]
    fn orientation_gives_every_world_axis_away_once() {
        // 45 degrees in the x-y plane: both voxel axes lean equally to both world axes
        let s = 0.5f64.sqrt();
        let axes = orientation(&block([[s, -s, 0.0], [s, s, 0.0], [0.0, 0.0, 1.0]])).unwrap();
        let mut from = axes.map(|a| a.from);
        from.sort();
        assert_eq!(from, [0, 1, 2]);
    }

    #[test]
    fn singular_affines_have_no_orientation() {
        assert_eq!(orientation(&block([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 0.0]])), None);
        assert_eq!(orientation(&block([[1.0, 2.0, 0.0], [1.0, 2.0, 0.0], [0.0, 0.0, 1.0]])), None);
        assert_eq!(orientation(&block([[f64::NAN, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])), None);
    }

    #[test]
    fn rezoomed_keeps_rotation_and_drops_shear() {
        let (s, c) = 0.3f64.sin_cos();
        let rotated = block([[2.0 * c, -3.0 * s, 0.0], [2.0 * s, 3.0 * c, 0.0], [0.0, 0.0, 5.0]]);
        let want = block([[1.5 * c, -1.5 * s, 0.0], [1.5 * s, 1.5 * c, 0.0], [0.0, 0.0, 1.5]]);
        let got = rezoomed(&rotated, [1.5; 3]).unwrap();
        let sheared = rezoomed(&block([[1.0, 0.4, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]), [1.5; 3]).unwrap();
        for i in 0..4 {
            for j in 0..4 {
                assert!((got[i][j] - want[i][j]).abs() < 1e-14);
                let diagonal = if i == j { [1.5, 1.5, 1.5, 1.0][i] } else { 0.0 };
                assert!((sheared[i][j] - diagonal).abs() < 1e-14);
            }
        }
    }
}
