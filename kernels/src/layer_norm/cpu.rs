//! Rows are independent: each is read from memory once and stays in the first-level cache while it is reduced and written. Sums run in
//! two vectors, whose lanes are added at the end.

use super::{Grads, Output};
use crate::check::sum_dtype;
use crate::real::{Real, Stored};
use crate::simd::{Kernel, Lane, MAX_LANES, Vector, dispatch};
use engine::{DType, Element, Error, Result, Tensor, bf16, parallel};
use std::ops::Range;

/// Elements per task of the forward pass, about.
const TASK: usize = 1 << 15;
/// Rows whose share of dweight and dbias is summed in the dtype of the arithmetic before the blocks are added up in f64.
const BLOCK: usize = 64;

pub fn forward(x: &Tensor, affine: Option<(&Tensor, &Tensor)>, eps: f64) -> Result<Output> {
    match x.dtype() {
        DType::F32 => forward_typed::<f32>(x, affine, eps, |rows| f32::dispatch(rows)),
        DType::BF16 => forward_typed::<bf16>(x, affine, eps, |rows| bf16::dispatch(rows)),
        DType::F64 => forward_typed::<f64>(x, affine, eps, |rows| dispatch(rows)),
        dtype => Err(Error::Unsupported { op: super::OP, dtype, device: x.device() }),
    }
}

pub fn backward(dy: &Tensor, x: &Tensor, weight: Option<&Tensor>, mean: &Tensor, rstd: &Tensor) -> Result<Grads> {
    let inputs = [dy, x, mean, rstd];
    match x.dtype() {
        DType::F32 => backward_typed::<f32>(inputs, weight, |rows| f32::dispatch(rows)),
        DType::BF16 => backward_typed::<bf16>(inputs, weight, |rows| bf16::dispatch(rows)),
        DType::F64 => backward_typed::<f64>(inputs, weight, |rows| dispatch(rows)),
        dtype => Err(Error::Unsupported { op: super::OP, dtype, device: x.device() }),
    }
}

fn forward_typed<S: Stored>(
    x: &Tensor,
    affine: Option<(&Tensor, &Tensor)>,
    eps: f64,
    run: impl Fn(Forward<S>) + Sync,
) -> Result<Output> {
    let (c, rows) = (x.channels(), x.rows());
    let mut y = Tensor::empty(x.dims(), x.dtype(), x.device())?;
    let mut mean = Tensor::empty(&[rows], sum_dtype(x.dtype()), x.device())?;
    let mut rstd = Tensor::empty(&[rows], sum_dtype(x.dtype()), x.device())?;
    let affine = match affine {
        Some((weight, bias)) => Some([weight.as_slice::<S::Real>()?, bias.as_slice::<S::Real>()?]),
        None => None,
    };
    let block = (TASK / c).max(1);
    let values = y.as_mut_slice::<S>()?.chunks_mut(block * c).zip(x.as_slice::<S>()?.chunks(block * c));
    let mean_of = mean.as_mut_slice::<S::Real>()?.chunks_mut(block);
    let stats = mean_of.zip(rstd.as_mut_slice::<S::Real>()?.chunks_mut(block));
    parallel::each(values.zip(stats), |((y, x), (mean, rstd))| {
        run(Forward { x, y, mean, rstd, affine, eps: S::Real::of(eps), c })
    });
    Ok(Output { y, mean, rstd })
}

fn backward_typed<S: Stored>(
    [dy, x, mean, rstd]: [&Tensor; 4],
    weight: Option<&Tensor>,
    run: impl Fn(Backward<S>) + Sync,
) -> Result<Grads> {
    let c = x.channels();
    let weight = weight.map(Tensor::as_slice::<S::Real>).transpose()?;
    let mut dx = Tensor::empty(x.dims(), x.dtype(), x.device())?;
    // Per block of rows: dweight, then dbias.
    let share = if weight.is_some() { 2 * c } else { 0 };
    let mut shares = vec![S::Real::of(0.0); x.rows().div_ceil(BLOCK) * share];
    let inputs = dy.as_slice::<S>()?.chunks(BLOCK * c).zip(x.as_slice::<S>()?.chunks(BLOCK * c));
    let stats = mean.as_slice::<S::Real>()?.chunks(BLOCK).zip(rstd.as_slice::<S::Real>()?.chunks(BLOCK));
    let tasks = dx.as_mut_slice::<S>()?.chunks_mut(BLOCK * c).zip(inputs).zip(stats);
    let task = |((dx, (dy, x)), (mean, rstd)), affine| run(Backward { dy, x, mean, rstd, dx, affine, c });
    let Some(weight) = weight else {
        parallel::each(tasks, |rows| task(rows, None));
        return Ok(Grads { dx, dweight: None, dbias: None });
    };
    parallel::each(tasks.zip(shares.chunks_mut(share)), |(rows, share)| {
        let (dweight, dbias) = share.split_at_mut(c);
        task(rows, Some(Affine { weight, dweight, dbias }));
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

// Loops over `vectors` rather than closures, in which what needs the instruction set is not inlined.

impl<S: Lane> Kernel for Forward<'_, S> {
    type Output = ();
    #[inline(always)]
    fn run<V: Vector>(self) {
        let rows = self.x.chunks_exact(self.c).zip(self.y.chunks_exact_mut(self.c));
        for ((x, y), (mean, rstd)) in rows.zip(self.mean.iter_mut().zip(self.rstd)) {
            // SAFETY: `dispatch` gave the instruction set; x, y, weight and bias have c elements.
            unsafe {
                (*mean, *rstd) = moments::<S, V>(x, self.eps);
                let row = Normalized { x, affine: self.affine, mean: V::splat(*mean), rstd: V::splat(*rstd) };
                let whole = self.c / V::LANES * V::LANES;
                for i in (0..whole).step_by(V::LANES) {
                    store(row.at(i, V::LANES), y, i, V::LANES);
                }
                for (i, n) in vectors::<V>(whole..self.c) {
                    store(row.at(i, n), y, i, n);
                }
            }
        }
    }
}

/// What a row of y is made of.
struct Normalized<'a, S, V> {
    x: &'a [S],
    affine: Option<[&'a [f32]; 2]>,
    mean: V,
    rstd: V,
}

impl<S: Lane, V: Vector> Normalized<'_, S, V> {
    /// # Safety
    /// As for [`load`].
    #[inline(always)]
    unsafe fn at(&self, i: usize, n: usize) -> V {
        unsafe {
            let xhat = load::<S, V>(self.x, i, n).sub(self.mean).mul(self.rstd);
            match self.affine {
                None => xhat,
                Some([weight, bias]) => xhat.fma(load::<f32, V>(weight, i, n), load::<f32, V>(bias, i, n)),
            }
        }
    }
}

/// Mean and 1 / √(variance + eps) of a row. The sums of the second pass repair the rounding of the first pass's mean.
///
/// # Safety
/// As for [`Vector`].
#[inline(always)]
unsafe fn moments<S: Lane, V: Vector>(x: &[S], eps: f32) -> (f32, f32) {
    unsafe {
        let (count, pairs) = (x.len() as f32, whole_pairs::<V>(x.len()));
        let mut sum = [V::zero(); 2];
        for i in (0..pairs).step_by(2 * V::LANES) {
            sum[0] = sum[0].add(load(x, i, V::LANES));
            sum[1] = sum[1].add(load(x, i + V::LANES, V::LANES));
        }
        for (i, n) in vectors::<V>(pairs..x.len()) {
            sum[0] = sum[0].add(load(x, i, n));
        }
        let sum = sum[0].add(sum[1]).sum();

        let near = V::splat(sum / count);
        let (mut even, mut odd) = (Deviations::zero(), Deviations::zero());
        for i in (0..pairs).step_by(2 * V::LANES) {
            even.add(load::<S, V>(x, i, V::LANES).sub(near));
            odd.add(load::<S, V>(x, i + V::LANES, V::LANES).sub(near));
        }
        for (i, n) in vectors::<V>(pairs..x.len()) {
            even.add(first(load::<S, V>(x, i, n).sub(near), n));
        }
        let (off, squares) = (even.sum.add(odd.sum).sum(), even.squares.add(odd.squares).sum());
        let variance = (squares - off * off / count) / count;
        let variance = if variance < 0.0 { 0.0 } else { variance }; // `max` would hide a NaN
        (sum / count + off / count, 1.0 / (variance + eps).sqrt())
    }
}

/// Sums of deviations and of their squares.
struct Deviations<V> {
    sum: V,
    squares: V,
}

impl<V: Vector> Deviations<V> {
    #[inline(always)]
    unsafe fn zero() -> Self {
        unsafe { Deviations { sum: V::zero(), squares: V::zero() } }
    }

    #[inline(always)]
    unsafe fn add(&mut self, d: V) {
        unsafe { (self.sum, self.squares) = (self.sum.add(d), self.squares.add(d.mul(d))) }
    }
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

impl<S: Lane> Kernel for Backward<'_, S> {
    type Output = ();
    #[inline(always)]
    fn run<V: Vector>(mut self) {
        let count = self.c as f32;
        let rows = self.dy.chunks_exact(self.c).zip(self.x.chunks_exact(self.c)).zip(self.dx.chunks_exact_mut(self.c));
        for (((dy, x), dx), (&mean, &rstd)) in rows.zip(self.mean.iter().zip(self.rstd)) {
            // SAFETY: `dispatch` gave the instruction set; all slices have c elements.
            unsafe {
                if let Some(affine) = &mut self.affine {
                    affine.add::<S, V>(dy, x, mean, rstd);
                }
                let weight = self.affine.as_ref().map(|affine| affine.weight);
                let row = Row { dy, x, weight, mean: V::splat(mean), rstd: V::splat(rstd) };
                let (sum_g, sum_gx) = row.sums();
                let (mean_g, mean_gx) = (V::splat(sum_g / count), V::splat(sum_gx / count));
                for (i, n) in vectors::<V>(0..self.c) {
                    let (g, xhat) = row.at(i, n);
                    store(g.sub(mean_g).sub(xhat.mul(mean_gx)).mul(row.rstd), dx, i, n);
                }
            }
        }
    }
}

/// What the gradient of a row of x is made of.
struct Row<'a, S, V> {
    dy: &'a [S],
    x: &'a [S],
    weight: Option<&'a [f32]>,
    mean: V,
    rstd: V,
}

impl<S: Lane, V: Vector> Row<'_, S, V> {
    /// The gradient of the normalized values, zero behind the last of `n`, and these values.
    ///
    /// # Safety
    /// As for [`load`].
    #[inline(always)]
    unsafe fn at(&self, i: usize, n: usize) -> (V, V) {
        unsafe {
            let mut g = load::<S, V>(self.dy, i, n);
            if let Some(weight) = self.weight {
                g = g.mul(load::<f32, V>(weight, i, n));
            }
            (g, load::<S, V>(self.x, i, n).sub(self.mean).mul(self.rstd))
        }
    }

    /// The sums of the former, and of its products with the latter.
    ///
    /// # Safety
    /// As for [`Vector`].
    #[inline(always)]
    unsafe fn sums(&self) -> (f32, f32) {
        unsafe {
            let (mut sums, mut products) = ([V::zero(); 2], [V::zero(); 2]);
            let pairs = whole_pairs::<V>(self.x.len());
            for i in (0..pairs).step_by(2 * V::LANES) {
                let ((g, xhat), (next_g, next_xhat)) = (self.at(i, V::LANES), self.at(i + V::LANES, V::LANES));
                sums = [sums[0].add(g), sums[1].add(next_g)];
                products = [products[0].add(g.mul(xhat)), products[1].add(next_g.mul(next_xhat))];
            }
            for (i, n) in vectors::<V>(pairs..self.x.len()) {
                let (g, xhat) = self.at(i, n);
                (sums[0], products[0]) = (sums[0].add(g), products[0].add(g.mul(xhat)));
            }
            (sums[0].add(sums[1]).sum(), products[0].add(products[1]).sum())
        }
    }
}

impl Affine<'_, f32> {
    /// A row's part of both gradients.
    ///
    /// # Safety
    /// As for [`Vector`].
    #[inline(always)]
    unsafe fn add<S: Lane, V: Vector>(&mut self, dy: &[S], x: &[S], mean: f32, rstd: f32) {
        unsafe {
            let (mean, rstd) = (V::splat(mean), V::splat(rstd));
            for (i, n) in vectors::<V>(0..dy.len()) {
                let dy = load::<S, V>(dy, i, n);
                let xhat = load::<S, V>(x, i, n).sub(mean).mul(rstd);
                store(dy.fma(xhat, load::<f32, V>(self.dweight, i, n)), self.dweight, i, n);
                store(dy.add(load::<f32, V>(self.dbias, i, n)), self.dbias, i, n);
            }
        }
    }
}

/// The start and the length of every vector of some values of a row; only the last can be shorter than V.
#[inline(always)]
fn vectors<V: Vector>(values: Range<usize>) -> impl Iterator<Item = (usize, usize)> {
    values.clone().step_by(V::LANES).map(move |i| (i, (values.end - i).min(V::LANES)))
}

/// Of `c` values, those that fill whole pairs of vectors, in which sums run.
#[inline(always)]
fn whole_pairs<V: Vector>(c: usize) -> usize {
    c / (2 * V::LANES) * 2 * V::LANES
}

/// `n` values of `row` from `i` on, the other lanes zero.
///
/// # Safety
/// As for [`Vector`], and `row` must reach as far.
#[inline(always)]
unsafe fn load<S: Lane, V: Vector>(row: &[S], i: usize, n: usize) -> V {
    debug_assert!(i + n <= row.len());
    unsafe {
        let from = row.as_ptr().add(i);
        if n == V::LANES { S::load(from) } else { S::load_first(from, n) }
    }
}

/// The first `n` lanes of `v` to `row` from `i` on.
///
/// # Safety
/// As for [`load`].
#[inline(always)]
unsafe fn store<S: Lane, V: Vector>(v: V, row: &mut [S], i: usize, n: usize) {
    debug_assert!(i + n <= row.len());
    unsafe {
        let to = row.as_mut_ptr().add(i);
        if n == V::LANES { S::store(v, to) } else { S::store_first(v, to, n) }
    }
}

/// The first `n` lanes of `v`, the others zero.
///
/// # Safety
/// As for [`Vector`].
#[inline(always)]
unsafe fn first<V: Vector>(v: V, n: usize) -> V {
    unsafe { if n == V::LANES { v } else { v.mul(V::load_first([1.0; MAX_LANES].as_ptr(), n)) } }
}

// In f64, for gradient checks, by the formulas.

impl Kernel for Forward<'_, f64> {
    type Output = ();
    fn run<V: Vector>(self) {
        let count = self.c as f64;
        let rows = self.x.chunks_exact(self.c).zip(self.y.chunks_exact_mut(self.c));
        for ((x, y), (mean, rstd)) in rows.zip(self.mean.iter_mut().zip(self.rstd)) {
            *mean = x.iter().sum::<f64>() / count;
            let variance = x.iter().map(|v| (v - *mean).powi(2)).sum::<f64>() / count;
            *rstd = (variance + self.eps).sqrt().recip();
            for (i, (y, x)) in y.iter_mut().zip(x).enumerate() {
                let xhat = (x - *mean) * *rstd;
                *y = self.affine.map_or(xhat, |[weight, bias]| xhat * weight[i] + bias[i]);
            }
        }
    }
}

impl Kernel for Backward<'_, f64> {
    type Output = ();
    fn run<V: Vector>(mut self) {
        let count = self.c as f64;
        let rows = self.dy.chunks_exact(self.c).zip(self.x.chunks_exact(self.c)).zip(self.dx.chunks_exact_mut(self.c));
        for (((dy, x), dx), (&mean, &rstd)) in rows.zip(self.mean.iter().zip(self.rstd)) {
            let xhat: Vec<f64> = x.iter().map(|v| (v - mean) * rstd).collect();
            let mut g = dy.to_vec();
            if let Some(Affine { weight, dweight, dbias }) = &mut self.affine {
                for (i, &dy) in dy.iter().enumerate() {
                    g[i] *= weight[i];
                    dweight[i] += dy * xhat[i];
                    dbias[i] += dy;
                }
            }
            let mean_g = g.iter().sum::<f64>() / count;
            let mean_gx = g.iter().zip(&xhat).map(|(g, x)| g * x).sum::<f64>() / count;
            for ((dx, g), x) in dx.iter_mut().zip(g).zip(xhat) {
                *dx = rstd * (g - mean_g - x * mean_gx);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::layer_norm::{backward, forward};
    use crate::testing::{assert_bf16, assert_close, numeric_gradient, random, run_on};
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
    fn squares_beyond_f32_give_no_wrong_numbers() {
        for channels in [3, 48, 300] {
            let x: Vec<f32> = (0..channels).map(|i| 1e27 * (0.9 + 0.01 * (i % 7) as f32)).collect();
            let x = Tensor::from_slice(&x, &[1, channels]).expect("x");
            let y = forward(&x, None, 1e-5).expect("y").y.to_vec::<f32>().expect("values");
            // the variance is infinite, or unknown
            assert!(y.iter().all(|&v| v == 0.0 || v.is_nan()), "{channels}: {y:?}");
        }
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
        let run = || {
            let out = forward(&x, Some((&w, &w)), EPS).expect("forward");
            let g = backward(&dy, &x, Some(&w), &out.mean, &out.rstd).expect("backward");
            [out.y, g.dx, g.dweight.expect("dw"), g.dbias.expect("db")].map(|t| t.to_vec::<f32>().expect("read"))
        };
        assert!(run_on(1, run) == run_on(3, run));
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
