//! Operations that treat every element by itself, or every row, and the norm of all elements.

use super::{DTYPES, assert_close, device, exact, random, twice, unit};
use engine::{DType, Device, Tensor};
use kernels::{add, ema, l2_norm, leaky_relu, linear, relu, row_dropout};

/// Nothing, one, less than 16 bytes, a prime, and more than the threads of a grid with 16 bytes each.
const SIZES: [usize; 5] = [0, 1, 3, 4099, 70_001];

/// A rounded factor, a product and a sum, or two factors, before the result is rounded.
fn bound(dtype: DType) -> f64 {
    unit(dtype) + 3.0 * unit(DType::F32)
}

/// Normal values on the host, and the same on the device: once at an address that is a multiple of 16 bytes, once one element
/// past it.
fn placed(seed: u64, n: usize, dtype: DType, device: Device) -> (Tensor, [Tensor; 2]) {
    let padded = random(seed, &[n + 1], dtype);
    let here = padded.rows_at(1, n).expect("view");
    let shifted = padded.to_device(device).and_then(|t| t.rows_at(1, n)).expect("copy");
    (here.clone(), [here.to_device(device).expect("copy"), shifted])
}

#[test]
fn activations_agree_with_f64() {
    let device = device();
    for dtype in DTYPES {
        for n in SIZES {
            let ((x, xs), (dy, dys)) = (placed(1, n, dtype, device), placed(2, n, dtype, device));
            let (x64, dy64) = (exact(&x), exact(&dy));
            for (x, dy) in xs.iter().zip(&dys) {
                let run = || relu::forward(x);
                assert_close(&twice(run), &relu::forward(&x64).expect("f64"), 0.0);
                let run = || relu::backward(dy, x);
                assert_close(&twice(run), &relu::backward(&dy64, &x64).expect("f64"), 0.0);
                let run = || leaky_relu::forward(x, 0.01);
                assert_close(&twice(run), &leaky_relu::forward(&x64, 0.01).expect("f64"), bound(dtype));
                let run = || leaky_relu::backward(dy, x, 0.01);
                assert_close(&twice(run), &leaky_relu::backward(&dy64, &x64, 0.01).expect("f64"), bound(dtype));
            }
        }
    }
}

#[test]
fn zero_takes_the_lower_side_and_nan_stays() {
    let device = device();
    let x = Tensor::from_slice(&[0.0f32, -0.0, f32::NAN], &[3]).and_then(|t| t.to_device(device)).expect("x");
    let dy = Tensor::full(&[3], 2.0, DType::F32, device).expect("dy");
    let read = |t: engine::Result<Tensor>| t.and_then(|t| t.to_vec::<f32>()).expect("values");
    assert!(read(relu::forward(&x))[2].is_nan() && read(leaky_relu::forward(&x, 0.5))[2].is_nan());
    assert_eq!(read(relu::backward(&dy, &x)), [0.0; 3]);
    assert_eq!(read(leaky_relu::backward(&dy, &x, 0.5)), [1.0; 3]);
}

#[test]
fn sums_and_scaled_copies_agree_with_f64() {
    let device = device();
    for dtype in DTYPES {
        for n in SIZES {
            let ((a, there), (b, others)) = (placed(1, n, dtype, device), placed(2, n, dtype, device));
            let want = add::forward(&exact(&a), &exact(&b)).expect("f64");
            // all aligned, all shifted, and one of them
            for (a, b) in there.iter().zip(&others).chain([(&there[0], &others[1])]) {
                assert_close(&twice(|| add::forward(a, b)), &want, bound(dtype));
            }
            for x in &there {
                let scaled = add::scale(&exact(&a), -0.3).expect("f64");
                assert_close(&twice(|| add::scale(x, -0.3)), &scaled, bound(dtype));
            }
        }
    }
}

#[test]
fn what_f16_cannot_hold_is_infinite_and_the_norm_shows_it() {
    let device = device();
    for (dtype, finite) in [(DType::F16, false), (DType::BF16, true), (DType::F32, true)] {
        let x = Tensor::full(&[131, 8], 60_000.0, dtype, device).expect("large");
        let (sum, product) = (add::forward(&x, &x), linear::fprop(&x, &x, None));
        for t in [sum.expect("sum"), product.expect("product")] {
            assert!(t.to_f64_vec().expect("values").iter().all(|v| v.is_finite() == finite && !v.is_nan()), "{dtype}");
            assert_eq!(l2_norm::forward(&t).and_then(|norm| norm.item()).expect("norm").is_finite(), finite);
        }
    }
}

#[test]
fn a_part_is_added_to_and_the_rest_stays() {
    let device = device();
    for dtype in DTYPES {
        for start in [0, 5, 8] {
            let (a, b) = (random(1, &[1001], dtype), random(2, &[900], dtype));
            let mut sum = exact(&a);
            add::accumulate_at(&mut sum, start, &exact(&b)).expect("f64");
            let mut there = a.to_device(device).expect("copy");
            add::accumulate_at(&mut there, start, &b.to_device(device).expect("copy")).expect("sum");
            assert_close(&there, &sum, bound(dtype));
            let (after, before) = (there.to_f64_vec().expect("a"), a.to_f64_vec().expect("a"));
            assert_eq!((&after[..start], &after[start + 900..]), (&before[..start], &before[start + 900..]));
            assert!(add::accumulate_at(&mut there, start, &b).is_err_and(|e| e.to_string().contains("cpu")));
        }
    }
}

#[test]
fn the_teacher_moves_by_the_formula() {
    let device = device();
    for dtype in DTYPES {
        for n in SIZES {
            let (teacher, student) = (random(1, &[n], dtype), random(2, &[n], dtype));
            let mut want = exact(&teacher);
            ema::update(&mut want, &exact(&student), 0.9).expect("f64");
            let mut there = teacher.to_device(device).expect("copy");
            ema::update(&mut there, &student.to_device(device).expect("copy"), 0.9).expect("update");
            assert_close(&there, &want, bound(dtype));
            assert!(ema::update(&mut there, &student, 0.9).is_err_and(|e| e.to_string().contains("cpu")));
        }
    }
}

#[test]
fn the_same_rows_are_dropped_as_on_the_host() {
    let device = device();
    for dtype in DTYPES {
        for dims in [&[0, 3][..], &[1, 1], &[211, 7], &[5, 40, 3], &[64, 768]] {
            for p in [0.0, 0.3, 0.999] {
                let x = random(1, dims, dtype);
                let there = x.to_device(device).expect("copy");
                let seed = |device| row_dropout::seed(0xfedc_ba98_8765_4321, device).expect("seed");
                let want = row_dropout::forward(&exact(&x), p, &seed(Device::Cpu)).expect("f64");
                let y = twice(|| row_dropout::forward(&there, p, &seed(device)));
                assert_close(&y, &want, bound(dtype));
                let zeros = |t: &Tensor| t.to_f64_vec().expect("y").iter().map(|&v| v == 0.0).collect::<Vec<_>>();
                assert_eq!(zeros(&y), zeros(&want));
            }
        }
    }
}

fn norm(x: &Tensor) -> engine::Result<f64> {
    l2_norm::forward(x)?.item()
}

#[test]
fn the_norm_is_summed_in_f64() {
    let device = device();
    for dtype in DTYPES {
        // one piece, pieces of which the last is short, and as many elements as many pieces have
        for n in [0, 1, 7, 4096, 4097, 100_003] {
            let (x, there) = placed(5, n, dtype, device);
            let want = norm(&exact(&x)).expect("f64");
            for x in &there {
                let got = norm(x).expect("norm");
                // n / 2 roundings of f64 at the very most
                assert!((got - want).abs() <= (n as f64 / 2.0 + 2.0) * f64::EPSILON * want, "{n}: {got} {want}");
                assert_eq!(got.to_bits(), norm(x).expect("again").to_bits());
            }
        }
    }
    let large = Tensor::full(&[1000], 1e30, DType::F32, device).expect("large");
    assert!(norm(&large).is_ok_and(|norm| norm.is_finite()));
    let nan = Tensor::full(&[3], f64::NAN, DType::F32, device).expect("nan");
    assert!(norm(&nan).is_ok_and(f64::is_nan));
    assert!(norm(&Tensor::zeros(&[3], DType::F64, device).expect("f64")).is_err());
}
