//! Norms and the mean over space.

use super::{DTYPES, assert_close, device, exact, random, twice, unit};
use engine::{DType, Device, Tensor};
use kernels::instance_norm::Params;
use kernels::{batch_norm, global_avg_pool, instance_norm, layer_norm};

const EPS: f64 = 1e-5;

fn there(t: &Tensor, device: Device) -> Tensor {
    t.to_device(device).expect("copy")
}

fn values(t: &Tensor) -> Vec<f64> {
    t.to_f64_vec().expect("values")
}

fn norm(values: impl Iterator<Item = f64>) -> f64 {
    values.map(|v| v * v).sum::<f64>().sqrt()
}

/// The most that a mean lies from zero, in standard deviations: as often is its rounding multiplied in what is normalised.
fn distance(mean: &Tensor, rstd: &Tensor) -> f64 {
    values(mean).iter().zip(values(rstd)).map(|(m, r)| (m * r).abs()).fold(0.0, f64::max)
}

/// Roundings of a mean, in units of a standard deviation of about 1: what is summed lies at most 4 from its shift; at each of the
/// steps of a sum three roundings, which as noise are averaged like the values. Of rstd, likewise, half of the variance's share.
const STATISTICS: f64 = 12.0;

/// Fails unless each statistic is off by no more than that; the mean also by its own rounding.
#[track_caller]
fn assert_statistics(mean: (&Tensor, &Tensor), rstd: (&Tensor, &Tensor)) {
    for (ours, want) in values(mean.0).iter().zip(values(mean.1)) {
        assert!((ours - want).abs() <= unit(DType::F32) * (STATISTICS + want.abs()), "mean {ours}, not {want}");
    }
    assert_close(rstd.0, rstd.1, STATISTICS * unit(DType::F32));
}

/// Of y: both statistics, the mean's rounding, the subtraction, two products and the sum; then y is rounded.
fn forward_bound(dtype: DType, distance: f64) -> f64 {
    unit(dtype) + unit(DType::F32) * (2.0 * STATISTICS + 4.0 + 2.0 * distance)
}

/// Fails unless dx is rounded once and else off by what remains of terms as large as rstd · dy, each of which is rounded some ten
/// times, its sums' noise included. dx itself may be far smaller than its terms. `stored` is the share of dy that was rounded to
/// the dtype before.
#[track_caller]
fn assert_gradient(ours: &Tensor, want: &Tensor, dy: &Tensor, rstd: impl Fn(usize) -> f64, stored: f64) {
    assert!(ours.device_ptr().is_ok() && ours.dims() == want.dims(), "{ours:?} for {want:?}");
    let terms = norm(values(dy).iter().enumerate().map(|(i, dy)| dy * rstd(i)));
    let off = norm(values(ours).iter().zip(values(want)).map(|(a, b)| a - b));
    let rounding = unit(ours.dtype()) * (norm(values(want).into_iter()) + stored * terms);
    let bound = rounding + 12.0 * unit(DType::F32) * terms;
    assert!(off <= bound, "dx is off by {off:e}, and {bound:e} is allowed");
}

/// Of a sum over rows whose terms are as often negative as not: each addition rounds what is there by then.
fn sum_bound(rows: usize) -> f64 {
    unit(DType::F32) * (4.0 + (rows as f64).sqrt())
}

#[test]
fn layer_norm_agrees_with_f64() {
    let device = device();
    for dtype in DTYPES {
        for dims in [
            &[5][..],
            &[3, 1],
            &[131, 3],
            &[2, 3, 17],
            &[1, 768],
            &[67, 48],
            &[1031, 24],
            &[5, 3072],
            &[3, 1021],
            &[0, 8],
        ] {
            let (rows, c) = (dims.iter().product::<usize>() / dims[dims.len() - 1], dims[dims.len() - 1]);
            let (x, dy) = (random(1, dims, dtype), random(2, dims, dtype));
            let (w, b) = (random(3, &[c], DType::F32), random(4, &[c], DType::F32));
            let [x64, dy64, w64, b64] = [&x, &dy, &w, &b].map(exact);
            let [x, dy, w, b] = [x, dy, w, b].map(|t| there(&t, device));
            for affine in [false, true] {
                let want = layer_norm::forward(&x64, affine.then_some((&w64, &b64)), EPS).expect("f64");
                let run = || layer_norm::forward(&x, affine.then_some((&w, &b)), EPS);
                let got = run().expect("forward");
                let far = distance(&want.mean, &want.rstd);
                assert_close(&twice(|| run().map(|o| o.y)), &want.y, forward_bound(dtype, far));
                assert_statistics((&got.mean, &want.mean), (&got.rstd, &want.rstd));

                let (weight, weight64) = (affine.then_some(&w), affine.then_some(&w64));
                let [mean64, rstd64] = [&got.mean, &got.rstd].map(exact);
                let want = layer_norm::backward(&dy64, &x64, weight64, &mean64, &rstd64).expect("f64");
                let run = || layer_norm::backward(&dy, &x, weight, &got.mean, &got.rstd);
                let rstds = values(&rstd64);
                let of = |i: usize| rstds[i / c];
                assert_gradient(&twice(|| run().map(|g| g.dx)), &want.dx, &dy64, of, 0.0);
                let grads = run().expect("backward");
                for (got, want) in [(grads.dweight, want.dweight), (grads.dbias, want.dbias)] {
                    assert_eq!((got.is_some(), want.is_some()), (affine, affine));
                    if let (Some(got), Some(want)) = (got, want) {
                        assert_eq!(got.dtype(), DType::F32);
                        assert_close(&got, &want, sum_bound(rows));
                    }
                }
            }
        }
    }
}

const SHAPES: [[usize; 5]; 7] = [
    [1, 3, 1, 1, 1],
    [2, 3, 5, 7, 11],
    [3, 2, 2, 2, 768],
    [1, 20, 20, 21, 48],
    [2, 9, 11, 13, 8],
    [2, 4, 3, 5, 1021],
    [1, 17, 19, 23, 3],
];

#[test]
fn instance_norm_agrees_with_f64() {
    let device = device();
    for dtype in DTYPES {
        for dims in SHAPES {
            let [x, residual, dy] = [1, 2, 3].map(|seed| random(seed, &dims, dtype));
            let [x64, residual64, dy64] = [&x, &residual, &dy].map(exact);
            let [x, residual, dy] = [x, residual, dy].map(|t| there(&t, device));
            for (has_residual, slope) in
                [(false, None), (false, Some(0.01)), (true, Some(0.01)), (true, None), (false, Some(0.0))]
            {
                let p = Params { eps: EPS, slope };
                let want = instance_norm::forward(&x64, has_residual.then_some(&residual64), p).expect("f64");
                let run = || instance_norm::forward(&x, has_residual.then_some(&residual), p);
                let got = run().expect("forward");
                let far = distance(&want.mean, &want.rstd);
                // beside the activation and the sum with the residual, which may leave as little as half
                assert_close(&twice(|| run().map(|o| o.y)), &want.y, 2.0 * forward_bound(dtype, far));
                assert_statistics((&got.mean, &want.mean), (&got.rstd, &want.rstd));

                let [y64, mean64, rstd64] = [&got.y, &got.mean, &got.rstd].map(exact);
                let want = instance_norm::backward(&dy64, &x64, &y64, &mean64, &rstd64, has_residual, p).expect("f64");
                let run = || instance_norm::backward(&dy, &x, &got.y, &got.mean, &got.rstd, has_residual, p);
                let (rstds, sample, c) = (values(&rstd64), dims[1] * dims[2] * dims[3] * dims[4], dims[4]);
                let of = |i: usize| rstds[i / sample * c + i % c];
                // dz, which is written before dx is computed from it, is rounded too
                let stored = slope.unwrap_or(0.0);
                assert_gradient(&twice(|| run().map(|g| g.dx)), &want.dx, &dy64, of, stored);
                let dresidual = run().expect("backward").dresidual;
                assert_eq!(dresidual.is_some(), has_residual);
                if let (Some(got), Some(want)) = (dresidual, want.dresidual) {
                    assert_close(&got, &want, unit(dtype) + 2.0 * unit(DType::F32));
                }
            }
        }
    }
}

#[test]
fn a_mean_far_from_zero_costs_only_its_own_rounding() {
    let device = device();
    // The first value of each channel lies as far off on the other side, so that it is a bad shift.
    let shifted = |dims: &[usize], channels: usize| {
        let x: Vec<f32> = values(&random(1, dims, DType::F64))
            .iter()
            .enumerate()
            .map(|(i, v)| (v + if i < channels { 900.0 } else { 1000.0 }) as f32)
            .collect();
        Tensor::from_slice(&x, dims).expect("x")
    };
    // Half a unit in the last place of 1000 is 3e-5, in units of the standard deviation.
    let x = shifted(&[40, 96], 0);
    let got = layer_norm::forward(&there(&x, device), None, EPS).expect("forward");
    let want = layer_norm::forward(&exact(&x), None, EPS).expect("f64");
    assert_close(&got.y, &want.y, 4e-5);
    assert_close(&got.rstd, &want.rstd, STATISTICS * unit(DType::F32));
    let x = shifted(&[1, 20, 20, 21, 48], 48);
    let p = Params { eps: EPS, slope: None };
    let got = instance_norm::forward(&there(&x, device), None, p).expect("forward");
    let want = instance_norm::forward(&exact(&x), None, p).expect("f64");
    assert_close(&got.y, &want.y, 4e-5);
    assert_close(&got.mean, &want.mean, unit(DType::F32));
    assert_close(&got.rstd, &want.rstd, STATISTICS * unit(DType::F32));
}

#[test]
fn squares_beyond_f32_give_no_wrong_numbers() {
    let device = device();
    for channels in [3, 48, 300] {
        let x: Vec<f32> = (0..channels).map(|i| 1e27 * (0.9 + 0.01 * (i % 7) as f32)).collect();
        let x = Tensor::from_slice(&x, &[1, channels]).expect("x");
        let y = layer_norm::forward(&there(&x, device), None, EPS).expect("forward").y.to_vec::<f32>().expect("y");
        // the variance is infinite, or unknown
        assert!(y.iter().all(|&v| v == 0.0 || v.is_nan()), "{channels}: {y:?}");
    }
}

#[test]
fn batch_norm_agrees_with_f64() {
    let device = device();
    for dtype in DTYPES {
        for dims in [[3, 1], [22, 768], [7, 13], [1031, 5], [4, 2048]] {
            let (x, dy) = (random(1, &dims, dtype), random(2, &dims, dtype));
            let [x64, dy64] = [&x, &dy].map(exact);
            let [x, dy] = [x, dy].map(|t| there(&t, device));
            let want = batch_norm::forward(&x64, EPS).expect("f64");
            let got = batch_norm::forward(&x, EPS).expect("forward");
            let far = distance(&want.mean, &want.rstd);
            assert_close(&twice(|| batch_norm::forward(&x, EPS).map(|o| o.y)), &want.y, forward_bound(dtype, far));
            assert_eq!((got.mean.dims(), got.rstd.dims()), (&dims[1..], &dims[1..]));
            assert_close(&got.rstd, &want.rstd, STATISTICS * unit(DType::F32));
            let [mean64, rstd64] = [&got.mean, &got.rstd].map(exact);
            let want = batch_norm::backward(&dy64, &x64, &mean64, &rstd64).expect("f64");
            let rstds = values(&rstd64);
            let of = |i: usize| rstds[i % dims[1]];
            let dx = twice(|| batch_norm::backward(&dy, &x, &got.mean, &got.rstd));
            assert_gradient(&dx, &want, &dy64, of, 0.0);
        }
    }
}

#[test]
fn the_mean_over_space_agrees_with_f64() {
    let device = device();
    for dtype in DTYPES {
        for dims in SHAPES.into_iter().chain([[1, 1, 1, 1, 1], [0, 2, 2, 2, 8], [2, 1, 2, 3, 0]]) {
            let x = random(1, &dims, dtype);
            let dy = random(2, &[dims[0], dims[4]], dtype);
            let want = global_avg_pool::forward(&exact(&x)).expect("f64");
            let voxels = dims[1] * dims[2] * dims[3];
            let there_x = there(&x, device);
            let y = twice(|| global_avg_pool::forward(&there_x));
            assert_close(&y, &want, unit(dtype) + sum_bound(voxels));
            let want = global_avg_pool::backward(&exact(&dy), &dims).expect("f64");
            let there_dy = there(&dy, device);
            let dx = twice(|| global_avg_pool::backward(&there_dy, &dims));
            assert_close(&dx, &want, unit(dtype) + 2.0 * unit(DType::F32));
        }
    }
}

#[test]
fn parameters_and_statistics_must_be_f32_beside_bf16() {
    let device = device();
    let x = there(&random(1, &[4, 8], DType::BF16), device);
    let w = there(&random(2, &[8], DType::BF16), device);
    let error = layer_norm::forward(&x, Some((&w, &w)), EPS).err().expect("bf16 weight").to_string();
    assert_eq!(error, "layer_norm: weight is bf16, but with bf16 inputs it must be f32");
    let here = random(2, &[8], DType::F32);
    let error = layer_norm::forward(&x, Some((&here, &here)), EPS).err().expect("weight on the host").to_string();
    assert!(error.contains("cpu"), "{error}");
    let wide = there(&random(1, &[4, 8], DType::F64), device);
    assert!(layer_norm::forward(&wide, None, EPS).is_err() && batch_norm::forward(&wide, EPS).is_err());
}
