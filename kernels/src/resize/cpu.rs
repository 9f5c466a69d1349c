//! Both directions are the same gather with different tables: every target row `[W, C]` is a weighted sum of whole source rows
//! (the D and H axes), from which its voxels are then weighted sums (the W axis). The forward table has two taps per target; the
//! transposed one has, for each input, the outputs that sampled it. A target row is written by one task, its taps in order.

use crate::real::{Real, Stored};
use crate::simd::{Kernel, Vector, dispatch, narrow};
use engine::{DType, Error, Result, Tensor, bf16, parallel};

pub fn forward(x: &Tensor, size: [usize; 3], align_corners: bool) -> Result<Tensor> {
    let [n, d, h, w, c] = x.ndhwc(super::OP)?;
    let tables = [(d, size[0]), (h, size[1]), (w, size[2])].map(|(from, to)| taps(from, to, align_corners));
    let dims = [n, size[0], size[1], size[2], c];
    gather(x, dims, tables)
}

/// `x_dims` has five axes.
pub fn backward(dy: &Tensor, x_dims: &[usize], align_corners: bool) -> Result<Tensor> {
    let dims: [usize; 5] = std::array::from_fn(|i| x_dims[i]);
    let tables = [1, 2, 3].map(|axis| transpose(&taps(dims[axis], dy.dims()[axis], align_corners), dims[axis]));
    gather(dy, dims, tables)
}

/// For each target index, (source index, weight).
type Taps = Vec<Vec<(usize, f64)>>;

fn taps(from: usize, to: usize, align_corners: bool) -> Taps {
    let source = |o: usize| match (align_corners, to) {
        (true, 1) => 0.0,
        (true, _) => (o * (from - 1)) as f64 / (to - 1) as f64,
        (false, _) => ((o as f64 + 0.5) * from as f64 / to as f64 - 0.5).max(0.0),
    };
    let taps = |o| {
        let s = source(o);
        let i = (s as usize).min(from - 1);
        let part = s - i as f64;
        vec![(i, 1.0 - part), ((i + 1).min(from - 1), part)]
    };
    (0..to).map(taps).collect()
}

/// For each of the `from` sources, the targets that it reaches.
fn transpose(taps: &Taps, from: usize) -> Taps {
    let mut out = vec![Vec::new(); from];
    for (target, taps) in taps.iter().enumerate() {
        for &(source, weight) in taps {
            out[source].push((target, weight));
        }
    }
    out
}

fn gather(from: &Tensor, dims: [usize; 5], tables: [Taps; 3]) -> Result<Tensor> {
    match from.dtype() {
        DType::F32 => gather_typed::<f32>(from, dims, tables),
        DType::BF16 => gather_typed::<bf16>(from, dims, tables),
        DType::F64 => gather_typed::<f64>(from, dims, tables),
        dtype => Err(Error::Unsupported { op: super::OP, dtype, device: from.device() }),
    }
}

/// The target of shape `dims`, whose D, H and W axes have a table each.
fn gather_typed<S: Stored>(from: &Tensor, dims: [usize; 5], [along_d, along_h, along_w]: [Taps; 3]) -> Result<Tensor> {
    let mut out = Tensor::empty(&dims, from.dtype(), from.device())?;
    if out.numel() == 0 {
        return Ok(out);
    }
    let [_, d, h, w, c] = dims;
    let (src_d, src_h, src_row) = (from.dims()[1], from.dims()[2], from.dims()[3] * c);
    let source = from.as_slice::<S>()?;
    let row_at = |n: usize, d: usize, h: usize| &source[((n * src_d + d) * src_h + h) * src_row..][..src_row];
    parallel::each(out.as_mut_slice::<S>()?.chunks_exact_mut(h * w * c).enumerate(), |(plane, out)| {
        let (n, d) = (plane / d, plane % d);
        let (mut blend, mut voxel) = (vec![S::Real::of(0.0); src_row], vec![S::Real::of(0.0); c]);
        let mut rows = Vec::new();
        for (out, along_h) in out.chunks_exact_mut(w * c).zip(&along_h) {
            rows.clear();
            for &(d, weight_d) in &along_d[d] {
                rows.extend(along_h.iter().map(|&(h, weight_h)| (row_at(n, d, h), weight_d * weight_h)));
            }
            dispatch(Row { rows: &rows, along_w: &along_w, blend: &mut blend, voxel: &mut voxel, out });
        }
    });
    Ok(out)
}

/// A row of the target from weighted rows of the source, blended to one; `blend` and `voxel` are scratch.
struct Row<'a, S: Stored> {
    rows: &'a [(&'a [S], f64)],
    along_w: &'a Taps,
    blend: &'a mut [S::Real],
    voxel: &'a mut [S::Real],
    out: &'a mut [S],
}

impl<S: Stored> Kernel for Row<'_, S> {
    type Output = ();
    #[inline(always)]
    fn run<V: Vector>(self) {
        let c = self.voxel.len();
        self.blend.fill(S::Real::of(0.0));
        for &(row, weight) in self.rows {
            add_scaled(self.blend, row, S::Real::of(weight));
        }
        for (out, taps) in self.out.chunks_exact_mut(c).zip(self.along_w) {
            self.voxel.fill(S::Real::of(0.0));
            for &(w, weight) in taps {
                add_scaled(self.voxel, &self.blend[w * c..][..c], S::Real::of(weight));
            }
            narrow(self.voxel, out);
        }
    }
}

#[inline(always)]
fn add_scaled<S: Stored>(to: &mut [S::Real], from: &[S], weight: S::Real) {
    if weight == S::Real::of(0.0) {
        return; // exact samples and borders leave half of the taps without weight
    }
    for (to, from) in to.iter_mut().zip(from) {
        *to += from.widen() * weight;
    }
}

#[cfg(test)]
mod tests {
    use crate::resize::{backward, forward};
    use crate::testing::{assert_bf16, assert_close, numeric_gradient, random, run_on};
    use engine::{DType, Device, Tensor};

    /// One voxel at a time, from the definition: sampled input positions and their eight neighbours.
    fn naive(x: &Tensor, size: [usize; 3], align: bool) -> Vec<f64> {
        let &[n, d, h, w, c] = x.dims() else { panic!("five axes") };
        let (from, values) = ([d, h, w], x.to_f64_vec().expect("x"));
        let mut out = vec![];
        for i in 0..n * size[0] * size[1] * size[2] * c {
            let (n, o) = (i / (size[0] * size[1] * size[2] * c), i / c);
            let o = [o / (size[1] * size[2]) % size[0], o / size[2] % size[1], o % size[2]];
            let s: Vec<f64> = (0..3)
                .map(|a| match (align, size[a]) {
                    (true, 1) => 0.0,
                    (true, _) => o[a] as f64 * ((from[a] - 1) as f64 / (size[a] - 1) as f64),
                    (false, _) => f64::max(from[a] as f64 / size[a] as f64 * (o[a] as f64 + 0.5) - 0.5, 0.0),
                })
                .collect();
            let mut sum = 0.0;
            for corner in 0..8usize {
                let (mut at, mut weight) = (n, 1.0);
                for a in 0..3 {
                    let (low, up) = (s[a].floor(), (corner >> a) & 1);
                    weight *= if up == 1 { s[a] - low } else { 1.0 - (s[a] - low) };
                    at = at * from[a] + (low as usize + up).min(from[a] - 1);
                }
                sum += weight * values[at * c + i % c];
            }
            out.push(sum);
        }
        out
    }

    #[test]
    fn golden_values_with_aligned_corners() {
        let x: Vec<f32> = (0..60).map(|v| v as f32).collect();
        let x = Tensor::from_slice(&x, &[1, 5, 4, 3, 1]).expect("x");
        let want = [
            0.0, 2.0, 4.5, 6.5, 9.0, 11.0, 16.0, 18.0, 20.5, 22.5, 25.0, 27.0, 32.0, 34.0, 36.5, 38.5, 41.0, 43.0,
            48.0, 50.0, 52.5, 54.5, 57.0, 59.0,
        ];
        assert_close(&forward(&x, [4, 3, 2], true).expect("forward"), &want, 1e-7);
    }

    #[test]
    fn matches_the_formula_up_down_and_to_one() {
        for (dims, size) in [
            ([1, 5, 4, 3, 1], [4, 3, 2]),
            ([2, 3, 5, 2, 3], [7, 11, 1]),
            ([1, 1, 7, 6, 17], [3, 7, 12]),
            ([1, 2, 2, 2, 48], [4, 4, 4]),
            ([1, 9, 1, 10, 2], [1, 5, 5]),
        ] {
            for align in [false, true] {
                let x = random(1, &dims, DType::F32);
                assert_close(&forward(&x, size, align).expect("forward"), &naive(&x, size, align), 3e-7);
                // The transpose: <dy, forward(x)> = <backward(dy), x>.
                let dy = random(2, &[dims[0], size[0], size[1], size[2], dims[4]], DType::F64);
                let wide = x.to_dtype(DType::F64).expect("f64");
                let dx = backward(&dy, &dims, align).expect("backward");
                let dot = |a: &Tensor, b: &Tensor| -> f64 {
                    let (a, b) = (a.to_f64_vec().expect("a"), b.to_f64_vec().expect("b"));
                    assert_eq!(a.len(), b.len());
                    a.iter().zip(&b).map(|(a, b)| a * b).sum()
                };
                let (left, right) = (dot(&dy, &forward(&wide, size, align).expect("forward")), dot(&dx, &wide));
                assert!((left - right).abs() < 1e-10 * (1.0 + left.abs()), "{dims:?} {size:?} {align}: {left} {right}");
            }
        }
    }

    #[test]
    fn gradient_matches_central_differences() {
        for (align, size) in [(true, [4, 2, 1]), (false, [4, 2, 1]), (false, [1, 3, 5])] {
            let x = random(1, &[2, 2, 3, 3, 2], DType::F64);
            let dy = random(2, &[2, size[0], size[1], size[2], 2], DType::F64);
            let dx = backward(&dy, x.dims(), align).expect("backward");
            assert_close(&dx, &numeric_gradient(&x, &dy, |x| forward(x, size, align).expect("forward")), 1e-8);
        }
    }

    #[test]
    fn threads_do_not_change_a_bit() {
        let dy = random(1, &[2, 11, 12, 13, 3], DType::F32);
        let run = || backward(&dy, &[2, 5, 17, 6, 3], false).and_then(|t| t.to_vec::<f32>()).expect("dx");
        assert_eq!(run_on(1, run), run_on(3, run));
    }

    #[test]
    fn bf16_is_f64_rounded() {
        let half = |seed, dims: &[usize]| (random(seed, dims, DType::F64), DType::BF16);
        for (dims, size) in [([1, 5, 4, 3, 1], [4, 3, 2]), ([2, 3, 5, 2, 3], [7, 11, 1]), ([1, 2, 2, 2, 48], [4, 4, 4])]
        {
            let dy = half(2, &[dims[0], size[0], size[1], size[2], dims[4]]);
            for align in [false, true] {
                assert_bf16(&[half(1, &dims), dy.clone()], 1.0, |t| {
                    Ok(vec![forward(&t[0], size, align)?, backward(&t[1], &dims, align)?])
                });
            }
        }
    }

    #[test]
    fn empty_is_empty_and_misfits_are_errors() {
        let x = random(1, &[1, 2, 2, 2, 3], DType::F32);
        assert_eq!(
            forward(&random(1, &[0, 2, 2, 2, 3], DType::F32), [1, 1, 1], true).expect("empty").dims(),
            [0, 1, 1, 1, 3]
        );
        assert!(forward(&x, [1, 0, 1], true).is_err());
        assert!(forward(&random(1, &[1, 2, 0, 2, 3], DType::F32), [1, 1, 1], false).is_err());
        assert!(forward(&random(1, &[2, 2, 2], DType::F32), [1, 1, 1], false).is_err());
        assert!(backward(&x, &[1, 4, 4, 4, 2], true).is_err());
        assert!(backward(&x, &[4, 4, 4], true).is_err());
        assert!(
            forward(&Tensor::zeros(&[1, 2, 2, 2, 3], DType::U8, Device::Cpu).expect("u8"), [1, 1, 1], true).is_err()
        );
    }
}
