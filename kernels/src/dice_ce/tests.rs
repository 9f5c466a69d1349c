use super::*;
use crate::testing::run_on;
use engine::random;

fn tensor(values: &[f64], dims: &[usize], dtype: DType) -> Tensor {
    engine::memory::check(true);
    Tensor::from_slice(values, dims).and_then(|t| t.to_dtype(dtype)).expect("tensor")
}

fn labels(values: &[i32], dims: &[usize]) -> Tensor {
    Tensor::from_slice(values, dims).expect("labels")
}

fn read(t: &Tensor) -> Vec<f64> {
    t.to_f64_vec().expect("read")
}

fn distance(got: &[f64], want: &[f64]) -> f64 {
    assert_eq!(got.len(), want.len());
    let off: f64 = got.iter().zip(want).map(|(g, w)| (g - w).powi(2)).sum();
    (off / want.iter().map(|w| w * w).sum::<f64>()).sqrt()
}

/// Logits, labels and shape `[N, voxels, C]`.
fn case(samples: usize, voxels: usize, classes: usize, scale: f64) -> (Vec<f64>, Vec<i32>, [usize; 3]) {
    let n = samples * voxels;
    let logits = (0..n * classes).map(|i| scale * random::normal(1, i as u64) as f32 as f64).collect();
    let labels = (0..n).map(|i| (random::uniform(2, i as u64) * classes as f64) as i32).collect();
    (logits, labels, [samples, voxels, classes])
}

fn naive(logits: &[f64], labels: &[i32], [samples, voxels, classes]: [usize; 3]) -> f64 {
    let (mut dice, mut entropy) = (0.0, 0.0);
    for n in 0..samples {
        let mut sums = vec![[0.0; 3]; classes];
        for v in n * voxels..(n + 1) * voxels {
            let z = &logits[v * classes..][..classes];
            let total: f64 = z.iter().map(|z| z.exp()).sum();
            entropy -= (z[labels[v] as usize].exp() / total).ln();
            for c in 0..classes {
                let truth = f64::from(u8::from(labels[v] as usize == c));
                let p = z[c].exp() / total;
                for (s, add) in sums[c].iter_mut().zip([p * truth, truth, p]) {
                    *s += add;
                }
            }
        }
        for [i, g, p] in &sums[1..] {
            dice += 1.0 - (2.0 * i + 1e-5) / (g + p + 1e-5);
        }
    }
    dice / (samples * (classes - 1)) as f64 + entropy / (samples * voxels) as f64
}

/// From channel-first order to ours.
fn channels_last(x: &[f64], classes: usize) -> Vec<f64> {
    let voxels = x.len() / classes;
    (0..x.len()).map(|i| x[i % classes * voxels + i / classes]).collect()
}

#[test]
fn the_golden_case_is_met() {
    let logits: Vec<f64> = (0..3 * 64).map(|i| 4.0 * random::uniform(21, i) - 2.0).collect();
    let label: Vec<i32> = (0..64).map(|i| (3.0 * random::uniform(22, i)) as i32).collect();
    let (x, y) = (tensor(&channels_last(&logits, 3), &[1, 4, 4, 4, 3], DType::F64), labels(&label, &[1, 4, 4, 4]));
    let out = forward(&x, &y).expect("forward");
    assert!((out.loss.item().expect("loss") - 2.1407238460322944).abs() < 1e-14);
    let dx = read(&backward(&tensor(&[1.0], &[], DType::F64), &x, &y, &out.sums).expect("backward"));
    // the first three logits in channel-first order: channel 0 of the first three voxels
    let want = [0.003782213920320623, 0.014747545650296876, -0.010515265901827204];
    for (v, want) in want.iter().enumerate() {
        assert!((dx[3 * v] - want).abs() < 1e-15);
    }
    assert!((dx.iter().map(|d| d.abs()).sum::<f64>() - 1.6550705747360333).abs() < 1e-13);
}

#[test]
fn losses_match_the_naive_formula() {
    for (samples, voxels, classes) in [(1, 1, 2), (2, 63, 3), (1, 65, 21), (3, 4096 + 17, 5), (1, 70, 105)] {
        let (x, y, dims) = case(samples, voxels, classes, 2.0);
        let want = naive(&x, &y, dims);
        for (dtype, bound) in [(DType::F64, 1e-13), (DType::F32, 5e-7)] {
            let out = forward(&tensor(&x, &dims, dtype), &labels(&y, &dims[..2])).expect("forward");
            assert!((out.loss.item().expect("loss") - want).abs() <= bound * want, "{dims:?} {dtype}");
        }
    }
}

#[test]
fn gradients_match_central_differences() {
    for (samples, voxels, classes) in [(1, 1, 2), (2, 5, 3), (1, 67, 4)] {
        let (x, y, dims) = case(samples, voxels, classes, 1.5);
        let y_t = labels(&y, &dims[..2]);
        let at = |i: usize, h: f64| {
            let mut x = x.clone();
            x[i] += h;
            naive(&x, &y, dims)
        };
        let numeric: Vec<f64> = (0..x.len()).map(|i| 0.7 * (at(i, 1e-5) - at(i, -1e-5)) / 2e-5).collect();
        for (dtype, bound) in [(DType::F64, 1e-8), (DType::F32, 2e-6)] {
            let x = tensor(&x, &dims, dtype);
            let sums = forward(&x, &y_t).expect("forward").sums;
            let dx = backward(&tensor(&[0.7], &[], dtype), &x, &y_t, &sums).expect("backward");
            assert!(distance(&read(&dx), &numeric) < bound, "{dims:?} {dtype}");
        }
    }
}

#[test]
fn large_logits_and_absent_classes_stay_finite() {
    // every voxel sure of the background, class 1 absent: its Dice part is near 1 only through p
    let x: Vec<f64> = (0..40).map(|i| if i % 2 == 0 { 500.0 } else { -500.0 }).collect();
    let y = labels(&[0; 20], &[1, 20]);
    for dtype in [DType::F64, DType::F32] {
        let x = tensor(&x, &[1, 20, 2], dtype);
        let out = forward(&x, &y).expect("forward");
        assert!(out.loss.item().expect("loss").abs() < 1e-6, "an absent class that nobody predicts is a perfect match");
        let dx = backward(&tensor(&[1.0], &[], dtype), &x, &y, &out.sums).expect("backward");
        assert!(read(&dx).iter().all(|d| d.abs() < 1e-6));
    }
}

fn run(x: &Tensor, y: &Tensor) -> [Vec<f64>; 3] {
    let out = forward(x, y).expect("forward");
    let dx = backward(&tensor(&[1.0], &[], x.dtype()), x, y, &out.sums).expect("backward");
    [read(&out.loss), read(&out.sums), read(&dx)]
}

#[test]
fn every_width_gives_the_same_but_for_rounding() {
    use crate::simd::{Level, testing::run_at};
    let (x, y, dims) = case(2, 2 * 4096 + 3, 7, 2.0);
    let (x, y) = (tensor(&x, &dims, DType::F64), labels(&y, &dims[..2]));
    let want = run(&x, &y);
    let x = x.to_dtype(DType::F32).expect("f32");
    for level in [Level::Portable, Level::Avx2, Level::Avx512] {
        for (got, want) in run_at(level, 2, || run(&x, &y)).iter().zip(&want) {
            assert!(distance(got, want) < 1e-6, "{level:?} {}", distance(got, want));
        }
    }
}

#[test]
fn threads_do_not_change_bits() {
    let (x, y, dims) = case(2, 2 * 4096 + 3, 3, 2.0);
    for dtype in [DType::F32, DType::F64] {
        let (x, y) = (tensor(&x, &dims, dtype), labels(&y, &dims[..2]));
        assert!(run_on(1, || run(&x, &y)) == run_on(3, || run(&x, &y)), "{dtype}");
    }
}

#[test]
fn nan_shows() {
    for bad in [f64::NAN, f64::INFINITY] {
        for at in 0..3 {
            let mut x = vec![0.5; 9];
            x[3 + at] = bad;
            let (x, y) = (tensor(&x, &[1, 3, 3], DType::F32), labels(&[0, 1, 2], &[1, 3]));
            let out = forward(&x, &y).expect("forward");
            let dx = backward(&tensor(&[1.0], &[], DType::F32), &x, &y, &out.sums).expect("backward");
            assert!(out.loss.item().expect("loss").is_nan() && read(&dx)[3..6].iter().all(|d| d.is_nan()));
        }
    }
}

#[test]
fn wrong_input_is_an_error() {
    let zeros = |dims: &[usize]| Tensor::zeros(dims, DType::F32, Device::Cpu).expect("zeros");
    let error =
        |x: &[usize], y: &[i32], dims: &[usize]| forward(&zeros(x), &labels(y, dims)).err().expect("error").to_string();
    assert!(error(&[1, 4, 3], &[0, 2, 3, 0], &[1, 4]).contains("label 3 at voxel 2 of sample 0"));
    assert!(error(&[2, 2, 3], &[0, 2, 0, -1], &[2, 2]).contains("label -1 at voxel 1 of sample 1"));
    assert!(error(&[1, 4, 1], &[0; 4], &[1, 4]).contains("1 classes"));
    assert!(error(&[1, 0, 3], &[], &[1, 0]).contains("no voxels"));
    assert!(error(&[0, 2, 3], &[], &[0, 2]).contains("no voxels"));
    assert!(error(&[1, 4, 3], &[0; 4], &[4]).contains("[1, 4, 3]"));
    assert!(error(&[4, 3], &[0; 4], &[4]).contains("spatial"));
    assert!(forward(&zeros(&[1, 4, 3]), &zeros(&[1, 4])).is_err());
    let (x, y) = (zeros(&[1, 4, 3]), labels(&[0; 4], &[1, 4]));
    assert!(backward(&zeros(&[]), &x, &y, &zeros(&[1, 3, 2])).is_err());
    assert!(backward(&zeros(&[2]), &x, &y, &zeros(&[1, 3, 3])).is_err());
}
