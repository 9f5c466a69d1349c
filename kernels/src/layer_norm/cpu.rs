//! Rows are independent, so each is read from memory once and stays in the first-level cache while it is reduced and written.
//! Rows of bf16 are widened into a scratch row for that. A reduction runs in [`LANES`] partial sums, which the compiler turns into vectors of any width with the same result.

use super::{Grads, Output};
use crate::check::sum_dtype;
use crate::real::{Real, Stored};
use crate::simd::{Kernel, Vector, dispatch};
use engine::{DType, Element, Error, Result, Tensor, bf16};
use rayon::prelude::*;

/// Partial sums of one reduction.
const LANES: usize = 16;
/// Elements per task of the forward pass, about.
const TASK: usize = 1 << 15;
/// Rows whose share of dweight and dbias is summed in the dtype of the arithmetic before the blocks are added up in f64.
const BLOCK: usize = 64;

pub fn forward(x: &Tensor, affine: Option<(&Tensor, &Tensor)>, eps: f64) -> Result<Output> {
    match x.dtype() {
        DType::F32 => forward_typed::<f32>(x, affine, eps),
        DType::BF16 => forward_typed::<bf16>(x, affine, eps),
        DType::F64 => forward_typed::<f64>(x, affine, eps),
        dtype => Err(Error::Unsupported { op: super::OP, dtype, device: x.device() }),
    }
}

pub fn backward(dy: &Tensor, x: &Tensor, weight: Option<&Tensor>, mean: &Tensor, rstd: &Tensor) -> Result<Grads> {
    match x.dtype() {
        DType::F32 => backward_typed::<f32>(dy, x, weight, mean, rstd),
        DType::BF16 => backward_typed::<bf16>(dy, x, weight, mean, rstd),
        DType::F64 => backward_typed::<f64>(dy, x, weight, mean, rstd),
        dtype => Err(Error::Unsupported { op: super::OP, dtype, device: x.device() }),
    }
}

fn forward_typed<S: Stored>(x: &Tensor, affine: Option<(&Tensor, &Tensor)>, eps: f64) -> Result<Output> {
    let (c, rows) = (x.channels(), x.rows());
    let mut y = Tensor::empty(x.dims(), x.dtype(), x.device())?;
    let mut mean = Tensor::empty(&[rows], sum_dtype(x.dtype()), x.device())?;
    let mut rstd = Tensor::empty(&[rows], sum_dtype(x.dtype()), x.device())?;
    let affine = match affine {
        Some((weight, bias)) => Some([weight.as_slice::<S::Real>()?, bias.as_slice::<S::Real>()?]),
        None => None,
    };
    let block = (TASK / c).max(1);
    let input = x.as_slice::<S>()?.par_chunks(block * c);
    let stats = mean
        .as_mut_slice::<S::Real>()?
        .par_chunks_mut(block)
        .zip(rstd.as_mut_slice::<S::Real>()?.par_chunks_mut(block));
    let tasks = y.as_mut_slice::<S>()?.par_chunks_mut(block * c).zip(input).zip(stats);
    tasks.for_each(|((y, x), (mean, rstd))| dispatch(Forward { x, y, mean, rstd, affine, eps: S::Real::of(eps), c }));
    Ok(Output { y, mean, rstd })
}

fn backward_typed<S: Stored>(
    dy: &Tensor,
    x: &Tensor,
    weight: Option<&Tensor>,
    mean: &Tensor,
    rstd: &Tensor,
) -> Result<Grads> {
    let c = x.channels();
    let weight = weight.map(Tensor::as_slice::<S::Real>).transpose()?;
    let mut dx = Tensor::empty(x.dims(), x.dtype(), x.device())?;
    // Per block of rows: dweight, then dbias.
    let share = if weight.is_some() { 2 * c } else { 0 };
    let mut shares = vec![S::Real::of(0.0); x.rows().div_ceil(BLOCK) * share];
    let inputs = dy.as_slice::<S>()?.par_chunks(BLOCK * c).zip(x.as_slice::<S>()?.par_chunks(BLOCK * c));
    let stats = mean.as_slice::<S::Real>()?.par_chunks(BLOCK).zip(rstd.as_slice::<S::Real>()?.par_chunks(BLOCK));
    let tasks = dx.as_mut_slice::<S>()?.par_chunks_mut(BLOCK * c).zip(inputs).zip(stats);
    let run = |((dx, (dy, x)), (mean, rstd)), affine| dispatch(Backward { dy, x, mean, rstd, dx, affine, c });
    let Some(weight) = weight else {
        tasks.for_each(|task| run(task, None));
        return Ok(Grads { dx, dweight: None, dbias: None });
    };
    tasks.zip(shares.par_chunks_mut(share)).for_each(|(task, share)| {
        let (dweight, dbias) = share.split_at_mut(c);
        run(task, Some(Affine { weight, dweight, dbias }));
    });
    let total = add_up(&shares, share);
    let tensor = |part: &[f64]| {
        Tensor::from_slice(&part.iter().map(|&v| S::Real::of(v)).collect::<Vec<S::Real>>(), &[c]).map(Some)
    };
    Ok(Grads { dx, dweight: tensor(&total[..c])?, dbias: tensor(&total[c..])? })
}

/// The blocks' shares, `len` values each, added in order.
fn add_up<T: Real>(shares: &[T], len: usize) -> Vec<f64> {
    let mut total = vec![0.0; len];
    for share in shares.chunks_exact(len) {
        for (total, &v) in total.iter_mut().zip(share) {
            *total += Element::to_f64(v);
        }
    }
    total
}

/// Whole rows of `c` values, with their statistics.
struct Forward<'a, S: Stored> {
    x: &'a [S],
    y: &'a mut [S],
    mean: &'a mut [S::Real],
    rstd: &'a mut [S::Real],
    /// Weight and bias.
    affine: Option<[&'a [S::Real]; 2]>,
    eps: S::Real,
    c: usize,
}

impl<S: Stored> Kernel for Forward<'_, S> {
    type Output = ();
    #[inline(always)]
    fn run<V: Vector>(self) {
        let mut wide = vec![self.eps; self.c];
        let rows = self.x.chunks_exact(self.c).zip(self.y.chunks_exact_mut(self.c));
        for ((x, y), (mean, rstd)) in rows.zip(self.mean.iter_mut().zip(self.rstd)) {
            let x = S::wide(x, &mut wide);
            (*mean, *rstd) = moments(x, self.eps);
            match self.affine {
                None => normalise(x, *mean, *rstd, y),
                Some([weight, bias]) => normalise_affine(x, *mean, *rstd, weight, bias, y),
            }
        }
    }
}

// The loops below are functions because arguments are known not to overlap, and fields of a struct are not.

#[inline(always)]
fn normalise<S: Stored>(x: &[S::Real], mean: S::Real, rstd: S::Real, y: &mut [S]) {
    for (y, &x) in y.iter_mut().zip(x) {
        *y = S::narrow((x - mean) * rstd);
    }
}

#[inline(always)]
fn normalise_affine<S: Stored>(
    x: &[S::Real],
    mean: S::Real,
    rstd: S::Real,
    weight: &[S::Real],
    bias: &[S::Real],
    y: &mut [S],
) {
    for (((y, &x), &w), &b) in y.iter_mut().zip(x).zip(weight).zip(bias) {
        *y = S::narrow((x - mean) * rstd * w + b);
    }
}

/// Mean and 1 / √(variance + eps) of a row. The sums of the second pass repair the rounding of the first pass's mean.
#[inline(always)]
fn moments<T: Real>(x: &[T], eps: T) -> (T, T) {
    let n = T::of(x.len() as f64);
    let near = sum(x) / n;
    let (off, squares) = sums(x, x, |v, _| (v - near, (v - near) * (v - near)));
    let variance = (squares - off * off / n) / n;
    (near + off / n, T::one() / (variance.max(T::zero()) + eps).sqrt())
}

/// The weight, and one block's share of its gradient and the bias', which start at zero.
struct Affine<'a, T> {
    weight: &'a [T],
    dweight: &'a mut [T],
    dbias: &'a mut [T],
}

/// Whole rows of `c` values with their statistics.
struct Backward<'a, S: Stored> {
    dy: &'a [S],
    x: &'a [S],
    mean: &'a [S::Real],
    rstd: &'a [S::Real],
    dx: &'a mut [S],
    affine: Option<Affine<'a, S::Real>>,
    c: usize,
}

impl<S: Stored> Kernel for Backward<'_, S> {
    type Output = ();
    #[inline(always)]
    fn run<V: Vector>(mut self) {
        let n = S::Real::of(self.c as f64);
        let [mut wide_dy, mut wide_x, mut g] = [(); 3].map(|()| vec![n; self.c]);
        let rows = self.dy.chunks_exact(self.c).zip(self.x.chunks_exact(self.c)).zip(self.dx.chunks_exact_mut(self.c));
        for (((dy, x), dx), (&mean, &rstd)) in rows.zip(self.mean.iter().zip(self.rstd)) {
            let (dy, x) = (S::wide(dy, &mut wide_dy), S::wide(x, &mut wide_x));
            match &mut self.affine {
                None => g.copy_from_slice(dy),
                Some(Affine { weight, dweight, dbias }) => {
                    scale(dy, weight, &mut g);
                    add_share(dy, x, mean, rstd, dweight, dbias);
                }
            }
            let (sum, sum_x) = sums(&g, x, |g, x| (g, g * ((x - mean) * rstd)));
            finish(&g, x, (mean, rstd), (sum / n, sum_x / n), dx);
        }
    }
}

#[inline(always)]
fn scale<T: Real>(dy: &[T], weight: &[T], g: &mut [T]) {
    for ((g, &dy), &w) in g.iter_mut().zip(dy).zip(weight) {
        *g = dy * w;
    }
}

#[inline(always)]
fn add_share<T: Real>(dy: &[T], x: &[T], mean: T, rstd: T, dweight: &mut [T], dbias: &mut [T]) {
    for (((dw, db), &dy), &x) in dweight.iter_mut().zip(dbias).zip(dy).zip(x) {
        *dw += dy * ((x - mean) * rstd);
        *db += dy;
    }
}

/// The statistics of x, and the means of g and g · x̂.
#[inline(always)]
fn finish<S: Stored>(
    g: &[S::Real],
    x: &[S::Real],
    (mean, rstd): (S::Real, S::Real),
    (mean_g, mean_gx): (S::Real, S::Real),
    dx: &mut [S],
) {
    for ((dx, &g), &x) in dx.iter_mut().zip(g).zip(x) {
        *dx = S::narrow(rstd * (g - mean_g - (x - mean) * rstd * mean_gx));
    }
}

/// The sum of a row.
#[inline(always)]
fn sum<T: Real>(x: &[T]) -> T {
    let mut s = [T::zero(); LANES];
    let x = x.chunks_exact(LANES);
    let rest = x.remainder();
    s[..rest.len()].copy_from_slice(rest);
    for x in x {
        for i in 0..LANES {
            s[i] += x[i];
        }
    }
    halve(s)
}

/// Both of f's values summed over the pairs of a and b, which have one length.
#[inline(always)]
fn sums<T: Real>(a: &[T], b: &[T], f: impl Fn(T, T) -> (T, T)) -> (T, T) {
    let (mut s, mut t) = ([T::zero(); LANES], [T::zero(); LANES]);
    let (a, b) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    for (i, (&a, &b)) in a.remainder().iter().zip(b.remainder()).enumerate() {
        (s[i], t[i]) = f(a, b);
    }
    for (a, b) in a.zip(b) {
        for i in 0..LANES {
            let (u, v) = f(a[i], b[i]);
            s[i] += u;
            t[i] += v;
        }
    }
    (halve(s), halve(t))
}

/// The lanes added by halves: lane i and lane i + 8, then i + 4, and so on.
#[inline(always)]
fn halve<T: Real>(mut lanes: [T; LANES]) -> T {
    let mut n = LANES / 2;
    while n > 0 {
        for i in 0..n {
            let other = lanes[i + n];
            lanes[i] += other;
        }
        n /= 2;
    }
    lanes[0]
}

#[cfg(test)]
mod tests {
    use crate::layer_norm::{backward, forward};
    use crate::testing::{assert_bf16, assert_close, numeric_gradient, random};
    use engine::{DType, Device, Tensor};

    const EPS: f64 = 1e-5;

    /// (y, mean, rstd) row by row from the definition.
    fn naive(x: &Tensor, affine: Option<(&Tensor, &Tensor)>) -> [Vec<f64>; 3] {
        let c = x.channels();
        let affine = affine.map(|(w, b)| (w.to_f64_vec().expect("w"), b.to_f64_vec().expect("b")));
        let (mut y, mut mean, mut rstd) = (vec![], vec![], vec![]);
        for row in x.to_f64_vec().expect("x").chunks(c) {
            let m = row.iter().sum::<f64>() / c as f64;
            let r = (row.iter().map(|v| (v - m).powi(2)).sum::<f64>() / c as f64 + EPS).sqrt().recip();
            y.extend(row.iter().enumerate().map(|(i, v)| match &affine {
                Some((w, b)) => (v - m) * r * w[i] + b[i],
                None => (v - m) * r,
            }));
            mean.push(m);
            rstd.push(r);
        }
        [y, mean, rstd]
    }

    /// (dx, dweight, dbias) from the definition.
    fn naive_backward(dy: &Tensor, x: &Tensor, weight: &Tensor) -> [Vec<f64>; 3] {
        let (c, w) = (x.channels(), weight.to_f64_vec().expect("w"));
        let [xhat, _, rstd] = naive(x, None);
        let dy = dy.to_f64_vec().expect("dy");
        let (mut dx, mut dw, mut db) = (vec![], vec![0.0; c], vec![0.0; c]);
        for ((dy, xhat), r) in dy.chunks(c).zip(xhat.chunks(c)).zip(&rstd) {
            let g: Vec<f64> = dy.iter().zip(&w).map(|(d, w)| d * w).collect();
            let a = g.iter().sum::<f64>() / c as f64;
            let b = g.iter().zip(xhat).map(|(g, x)| g * x).sum::<f64>() / c as f64;
            for i in 0..c {
                dx.push(r * (g[i] - a - xhat[i] * b));
                dw[i] += dy[i] * xhat[i];
                db[i] += dy[i];
            }
        }
        [dx, dw, db]
    }

    #[test]
    fn matches_the_formula_on_awkward_shapes() {
        for (seed, dims) in
            [vec![5], vec![3, 1], vec![131, 2], vec![2, 3, 17], vec![1, 768], vec![67, 48], vec![5, 3072]]
                .into_iter()
                .enumerate()
        {
            let (c, seed) = (dims[dims.len() - 1], seed as u64);
            let (x, dy) = (random(seed, &dims, DType::F32), random(seed + 10, &dims, DType::F32));
            let (w, b) = (random(seed + 20, &[c], DType::F32), random(seed + 30, &[c], DType::F32));
            for affine in [None, Some((&w, &b))] {
                let got = forward(&x, affine, EPS).expect("forward");
                let [y, mean, rstd] = naive(&x, affine);
                assert_close(&got.y, &y, 1e-6);
                assert_close(&got.mean, &mean, 1e-6);
                assert_close(&got.rstd, &rstd, 1e-6);
                let ones = Tensor::full(&[c], 1.0, DType::F32, Device::Cpu).expect("ones");
                let weight = affine.map(|a| a.0);
                let [dx, dw, db] = naive_backward(&dy, &x, weight.unwrap_or(&ones));
                let grads = backward(&dy, &x, weight, &got.mean, &got.rstd).expect("backward");
                // For C = 1 dx is zero in exact arithmetic, and for C = 2 it is what is left of a cancellation.
                let cancels = if c == 2 { 1e-3 } else { 1e-6 };
                if c == 1 {
                    assert!(grads.dx.to_f64_vec().expect("dx").iter().all(|v| v.abs() < 1e-3));
                } else {
                    assert_close(&grads.dx, &dx, cancels);
                }
                assert_eq!(grads.dweight.is_some(), affine.is_some());
                if let (Some(dweight), Some(dbias)) = (&grads.dweight, &grads.dbias) {
                    if c > 1 {
                        assert_close(dweight, &dw, 1e-6);
                    }
                    assert_close(dbias, &db, 1e-6);
                }
            }
        }
    }

    #[test]
    fn a_mean_far_from_zero_costs_only_its_own_rounding() {
        let x = random(1, &[40, 96], DType::F64).to_f64_vec().expect("x");
        let shifted: Vec<f32> = x.iter().map(|v| (v + 1000.0) as f32).collect();
        let x = Tensor::from_slice(&shifted, &[40, 96]).expect("x");
        let got = forward(&x, None, EPS).expect("forward");
        let [y, mean, rstd] = naive(&x, None);
        // Half a unit in the last place of 1000 is 3e-5, in units of the standard deviation.
        assert_close(&got.y, &y, 4e-5);
        assert_close(&got.mean, &mean, 1e-7);
        assert_close(&got.rstd, &rstd, 1e-6);
    }

    #[test]
    fn gradients_match_central_differences() {
        let (x, dy) = (random(1, &[3, 7], DType::F64), random(2, &[3, 7], DType::F64));
        let (w, b) = (random(3, &[7], DType::F64), random(4, &[7], DType::F64));
        let plain = |x: &Tensor| forward(x, None, EPS).expect("forward");
        let saved = plain(&x);
        let grads = backward(&dy, &x, None, &saved.mean, &saved.rstd).expect("backward");
        assert_close(&grads.dx, &numeric_gradient(&x, &dy, |x| plain(x).y), 1e-8);
        let full = |x: &Tensor, w: &Tensor, b: &Tensor| forward(x, Some((w, b)), EPS).expect("forward").y;
        let grads = backward(&dy, &x, Some(&w), &saved.mean, &saved.rstd).expect("backward");
        assert_close(&grads.dx, &numeric_gradient(&x, &dy, |x| full(x, &w, &b)), 1e-8);
        assert_close(&grads.dweight.expect("dw"), &numeric_gradient(&w, &dy, |w| full(&x, w, &b)), 1e-8);
        assert_close(&grads.dbias.expect("db"), &numeric_gradient(&b, &dy, |b| full(&x, &w, b)), 1e-8);
    }

    #[test]
    fn threads_do_not_change_a_bit() {
        let (x, dy) = (random(1, &[1031, 24], DType::F32), random(2, &[1031, 24], DType::F32));
        let w = random(3, &[24], DType::F32);
        let run = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("pool");
            pool.install(|| {
                let out = forward(&x, Some((&w, &w)), EPS).expect("forward");
                let g = backward(&dy, &x, Some(&w), &out.mean, &out.rstd).expect("backward");
                [out.y, g.dx, g.dweight.expect("dw"), g.dbias.expect("db")].map(|t| t.to_vec::<f32>().expect("read"))
            })
        };
        assert_eq!(run(1), run(3));
    }

    #[test]
    fn bf16_is_f64_rounded() {
        let half = |seed, dims: &[usize]| (random(seed, dims, DType::F64), DType::BF16);
        for dims in [vec![5], vec![3, 1], vec![131, 2], vec![2, 3, 17], vec![1, 768], vec![67, 48], vec![5, 3072]] {
            let c = dims[dims.len() - 1];
            let rows = dims.iter().product::<usize>() / c;
            let sums = |seed, n: usize| (random(seed, &[n], DType::F64), DType::F32);
            let inputs = [half(1, &dims), half(2, &dims), sums(3, c), sums(4, c), sums(5, rows), sums(6, rows)];
            assert_bf16(&inputs, 1.0, |t| {
                let out = forward(&t[0], Some((&t[2], &t[3])), EPS)?;
                let g = backward(&t[1], &t[0], Some(&t[2]), &t[4], &t[5])?;
                Ok([Some(out.y), Some(g.dx), g.dweight, g.dbias].into_iter().flatten().collect())
            });
            assert_bf16(&inputs, 1.0, |t| {
                let plain = forward(&t[0], None, EPS)?;
                Ok(vec![plain.y, plain.rstd, backward(&t[1], &t[0], None, &t[4], &t[5])?.dx])
            });
        }
    }

    #[test]
    fn no_rows_are_empty_and_misfits_are_errors() {
        let x = random(1, &[0, 4], DType::F32);
        let w = random(2, &[4], DType::F32);
        let out = forward(&x, Some((&w, &w)), EPS).expect("empty");
        let grads = backward(&x, &x, Some(&w), &out.mean, &out.rstd).expect("empty");
        assert_eq!((out.y.dims(), out.mean.dims(), grads.dx.dims()), (&[0, 4][..], &[0][..], &[0, 4][..]));
        assert_eq!(grads.dbias.expect("db").to_f64_vec(), Ok(vec![0.0; 4]));
        let x = random(1, &[2, 4], DType::F32);
        assert!(forward(&random(1, &[2, 0], DType::F32), None, EPS).is_err());
        assert!(forward(&random(1, &[], DType::F32), None, EPS).is_err());
        assert!(forward(&x, None, f64::NAN).is_err());
        let message = forward(&x, Some((&w, &random(2, &[3], DType::F32))), EPS).err().expect("bias").to_string();
        assert!(message.contains("bias is [3]") && message.contains("[2, 4]"), "{message}");
        assert!(forward(&x.to_dtype(DType::F64).expect("f64"), Some((&w, &w)), EPS).is_err());
        assert!(backward(&x, &x, None, &w, &w).is_err());
        assert!(forward(&Tensor::zeros(&[2, 4], DType::I32, Device::Cpu).expect("i32"), None, EPS).is_err());
    }
}
