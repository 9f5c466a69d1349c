use super::{DTYPES, assert_close, device, exact, random, unit};
use engine::{DType, Tensor};
use kernels::gelu;

/// The result is rounded once to the dtype. Before that, in f32: erfcf within 5 units of the last place of 2^-23, expf within
/// 2, and five roundings of 2^-24, of terms no larger than 1.5 times the result's norm.
fn bound(dtype: DType) -> f64 {
    unit(dtype) + 1.5 * 19.0 * unit(DType::F32)
}

#[test]
fn both_directions_agree_with_f64() {
    let device = device();
    for dtype in DTYPES {
        for dims in [&[3, 5, 7][..], &[1], &[4097], &[0, 3]] {
            let (x, dy) = (random(1, dims, dtype), random(2, dims, dtype));
            let [there, dy_there] = [&x, &dy].map(|t| t.to_device(device).expect("copy"));
            let y = gelu::forward(&there).expect("forward");
            assert_close(&y, &gelu::forward(&exact(&x)).expect("f64"), bound(dtype));
            let dx = gelu::backward(&dy_there, &there).expect("backward");
            assert_close(&dx, &gelu::backward(&exact(&dy), &exact(&x)).expect("f64"), bound(dtype));
        }
    }
}

#[test]
fn tails_keep_their_relative_accuracy() {
    let device = device();
    let x = Tensor::from_slice(&[-12.0f32, -8.0, -5.0, -3.0, -1e-30, 0.0, 1e-30, 5.0, 12.0], &[9]).expect("x");
    let y = gelu::forward(&x.to_device(device).expect("copy")).and_then(|y| y.to_f64_vec()).expect("forward");
    let want = gelu::forward(&exact(&x)).and_then(|y| y.to_f64_vec()).expect("f64");
    for (i, (y, want)) in y.iter().zip(&want).enumerate() {
        // -12 / √2 rounded to f32 is off by 2^-24 of itself, which erfc's slope there, 2 x², makes 144 times as much.
        assert!((y - want).abs() <= want.abs() * (144.0 + 19.0) * unit(DType::F32), "{i}: {y:e} {want:e}");
    }
}

#[test]
fn what_it_cannot_do_is_an_error() {
    let device = device();
    let there = |t: &Tensor| t.to_device(device).expect("copy");
    let x = random(1, &[4], DType::F32);
    assert!(gelu::backward(&x, &there(&x)).is_err_and(|e| e.to_string().contains("cpu")));
    let wide = gelu::forward(&there(&random(1, &[4], DType::F64)));
    assert!(wide.is_err_and(|e| e.to_string() == format!("gelu: not available for f64 on {device}")));
}
