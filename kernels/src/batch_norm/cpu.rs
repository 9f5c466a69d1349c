//! Batches are small (tens of rows), so columns are reduced on one thread, row by row, in f64.

use super::Output;
use crate::real::{Real, Stored};
use engine::{DType, Element, Error, Result, Tensor, bf16};

pub fn forward(x: &Tensor, eps: f64) -> Result<Output> {
    match x.dtype() {
        DType::F32 => forward_typed::<f32>(x, eps),
        DType::BF16 => forward_typed::<bf16>(x, eps),
        DType::F64 => forward_typed::<f64>(x, eps),
        dtype => Err(Error::Unsupported { op: super::OP, dtype, device: x.device() }),
    }
}

pub fn backward(dy: &Tensor, x: &Tensor, mean: &Tensor, rstd: &Tensor) -> Result<Tensor> {
    match x.dtype() {
        DType::F32 => backward_typed::<f32>(dy, x, mean, rstd),
        DType::BF16 => backward_typed::<bf16>(dy, x, mean, rstd),
        DType::F64 => backward_typed::<f64>(dy, x, mean, rstd),
        dtype => Err(Error::Unsupported { op: super::OP, dtype, device: x.device() }),
    }
}

fn forward_typed<S: Stored>(x: &Tensor, eps: f64) -> Result<Output> {
    let c = x.channels();
    let from = x.as_slice::<S>()?;
    let mean = column_means(from.len(), c, |i, _| Element::to_f64(from[i]));
    let variance = column_means(from.len(), c, |i, c| (Element::to_f64(from[i]) - mean[c]).powi(2));
    let rstd: Vec<f64> = variance.iter().map(|v| (v + eps).sqrt().recip()).collect();
    let mut y = Tensor::empty(x.dims(), x.dtype(), x.device())?;
    for (y, x) in y.as_mut_slice::<S>()?.chunks_exact_mut(c).zip(from.chunks_exact(c)) {
        for (((y, &x), mean), rstd) in y.iter_mut().zip(x).zip(&mean).zip(&rstd) {
            *y = S::narrow(S::Real::of((Element::to_f64(x) - mean) * rstd));
        }
    }
    let narrow = |v: &[f64]| Tensor::from_slice(&v.iter().map(|&v| S::Real::of(v)).collect::<Vec<S::Real>>(), &[c]);
    Ok(Output { y, mean: narrow(&mean)?, rstd: narrow(&rstd)? })
}

fn backward_typed<S: Stored>(dy: &Tensor, x: &Tensor, mean: &Tensor, rstd: &Tensor) -> Result<Tensor> {
    let c = x.channels();
    let (dy, from) = (dy.as_slice::<S>()?, x.as_slice::<S>()?);
    let (mean, rstd) = (mean.to_f64_vec()?, rstd.to_f64_vec()?);
    let g = |i: usize| Element::to_f64(dy[i]);
    let xhat = |i: usize, c: usize| (Element::to_f64(from[i]) - mean[c]) * rstd[c];
    let a = column_means(dy.len(), c, |i, _| g(i));
    let b = column_means(dy.len(), c, |i, c| g(i) * xhat(i, c));
    let mut dx = Tensor::empty(x.dims(), x.dtype(), x.device())?;
    for (i, dx) in dx.as_mut_slice::<S>()?.iter_mut().enumerate() {
        let c = i % c;
        *dx = S::narrow(S::Real::of(rstd[c] * (g(i) - a[c] - xhat(i, c) * b[c])));
    }
    Ok(dx)
}

/// Per column, the mean of f(element, column) over the rows of a matrix of `len` elements and `c` columns.
fn column_means(len: usize, c: usize, f: impl Fn(usize, usize) -> f64) -> Vec<f64> {
    let mut sums = vec![0.0; c];
    for row in (0..len).step_by(c) {
        for (column, sum) in sums.iter_mut().enumerate() {
            *sum += f(row + column, column);
        }
    }
    let rows = (len / c) as f64;
    sums.iter().map(|s| s / rows).collect()
}

#[cfg(test)]
mod tests {
    use crate::batch_norm::{backward, forward};
    use crate::testing::{assert_bf16, assert_close, numeric_gradient, random};
    use engine::{DType, Device, Tensor};

    const EPS: f64 = 1e-5;

    /// From the definition, column by column: y, mean, rstd and dx.
    fn naive(x: &Tensor, dy: &Tensor) -> [Vec<f64>; 4] {
        let (rows, c) = (x.rows(), x.channels());
        let (x, dy) = (x.to_f64_vec().expect("x"), dy.to_f64_vec().expect("dy"));
        let (mut y, mut dx, mut means, mut rstds) = (vec![0.0; x.len()], vec![0.0; x.len()], vec![], vec![]);
        for column in 0..c {
            let own: Vec<usize> = (0..rows).map(|r| r * c + column).collect();
            let n = rows as f64;
            let mean = own.iter().map(|&i| x[i]).sum::<f64>() / n;
            let rstd = (own.iter().map(|&i| (x[i] - mean).powi(2)).sum::<f64>() / n + EPS).sqrt().recip();
            own.iter().for_each(|&i| y[i] = (x[i] - mean) * rstd);
            let a = own.iter().map(|&i| dy[i]).sum::<f64>() / n;
            let b = own.iter().map(|&i| dy[i] * y[i]).sum::<f64>() / n;
            own.iter().for_each(|&i| dx[i] = rstd * (dy[i] - a - y[i] * b));
            means.push(mean);
            rstds.push(rstd);
        }
        [y, means, rstds, dx]
    }

    #[test]
    fn matches_the_formula_on_awkward_shapes() {
        for dims in [[3, 1], [22, 768], [7, 13], [131, 5]] {
            let (x, dy) = (random(1, &dims, DType::F32), random(2, &dims, DType::F32));
            let [y, mean, rstd, dx] = naive(&x, &dy);
            let out = forward(&x, EPS).expect("forward");
            assert_close(&out.y, &y, 1e-6);
            assert_close(&out.mean, &mean, 1e-6);
            assert_close(&out.rstd, &rstd, 1e-6);
            assert_close(&backward(&dy, &x, &out.mean, &out.rstd).expect("backward"), &dx, 1e-6);
        }
    }

    #[test]
    fn gradient_matches_central_differences() {
        let (x, dy) = (random(1, &[5, 3], DType::F64), random(2, &[5, 3], DType::F64));
        let out = forward(&x, EPS).expect("forward");
        let dx = backward(&dy, &x, &out.mean, &out.rstd).expect("backward");
        assert_close(&dx, &numeric_gradient(&x, &dy, |x| forward(x, EPS).expect("forward").y), 1e-7);
    }

    #[test]
    fn bf16_is_f64_rounded() {
        let half = |seed, dims: &[usize]| (random(seed, dims, DType::F64), DType::BF16);
        for dims in [[2, 1], [7, 5], [22, 1024]] {
            let stats = |seed| (random(seed, &dims[1..], DType::F64), DType::F32);
            assert_bf16(&[half(1, &dims), half(2, &dims), stats(3), stats(4)], 1.0, |t| {
                let out = forward(&t[0], EPS)?;
                Ok(vec![out.y, out.mean, out.rstd, backward(&t[1], &t[0], &t[2], &t[3])?])
            });
        }
    }

    #[test]
    fn misfits_are_errors() {
        let message = forward(&random(1, &[1, 4], DType::F32), EPS).err().expect("one row").to_string();
        assert!(message.contains("more than one value"), "{message}");
        for dims in [vec![0, 4], vec![4, 0], vec![4], vec![2, 3, 4]] {
            assert!(forward(&random(1, &dims, DType::F32), EPS).is_err());
        }
        let (x, s) = (random(1, &[3, 4], DType::F32), random(1, &[4], DType::F32));
        assert!(forward(&x, -1.0).is_err());
        assert!(backward(&x, &x, &s, &random(1, &[3], DType::F32)).is_err());
        let wide = s.to_dtype(DType::F64).expect("f64");
        assert!(backward(&x, &x, &wide, &wide).is_err());
        assert!(backward(&random(1, &[4, 3], DType::F32), &x, &s, &s).is_err());
        assert!(forward(&Tensor::zeros(&[3, 4], DType::I32, Device::Cpu).expect("i32"), EPS).is_err());
    }
}
