//! What the tests of simple operations share: random tensors, the error measure, and central differences.

use crate::simd::{self, Level, testing::run_at};
use engine::{DType, Result, Tensor, random::normal};

/// Standard normal values. Turns on the check mode of the memory pool, so that outputs start as NaN and overruns show.
pub fn random(seed: u64, dims: &[usize], dtype: DType) -> Tensor {
    engine::memory::check(true);
    let n: usize = dims.iter().product();
    let values: Vec<f64> = (0..n).map(|i| normal(seed, i as u64)).collect();
    Tensor::from_slice(&values, dims).and_then(|t| t.to_dtype(dtype)).expect("random tensor")
}

/// Runs `f` on so many threads of its own.
pub fn run_on<R: Send>(threads: usize, f: impl FnOnce() -> R + Send) -> R {
    run_at(simd::level(), threads, f)
}

/// ‖ours − want‖ / ‖want‖; infinite when an element is NaN or the sizes differ.
pub fn error(ours: &Tensor, want: &[f64]) -> f64 {
    let ours = ours.to_f64_vec().expect("readable");
    let (mut off, mut norm) = (0.0, 0.0);
    for (a, b) in ours.iter().zip(want) {
        off += (a - b) * (a - b);
        norm += b * b;
    }
    match off {
        _ if ours.len() != want.len() || off.is_nan() => f64::INFINITY,
        0.0 => 0.0,
        _ => (off / norm).sqrt(),
    }
}

/// Fails unless the relative error is at most `bound`.
#[track_caller]
pub fn assert_close(ours: &Tensor, want: &[f64], bound: f64) {
    let e = error(ours, want);
    assert!(e <= bound, "{ours:?}: error {e:e}, at most {bound:e} allowed");
}

/// d(Σ cotangent · f(x)) / dx by central differences, in f64.
pub fn numeric_gradient(x: &Tensor, cotangent: &Tensor, f: impl Fn(&Tensor) -> Tensor) -> Vec<f64> {
    const STEP: f64 = 1e-5;
    let values = x.to_vec::<f64>().expect("f64 input");
    let weights = cotangent.to_vec::<f64>().expect("f64 cotangent");
    let loss = |i: usize, by: f64| -> f64 {
        let mut moved = values.clone();
        moved[i] += by;
        let y = f(&Tensor::from_slice(&moved, x.dims()).expect("moved")).to_f64_vec().expect("y");
        assert_eq!(y.len(), weights.len());
        y.iter().zip(&weights).map(|(y, w)| y * w).sum()
    };
    (0..values.len()).map(|i| (loss(i, STEP) - loss(i, -STEP)) / (2.0 * STEP)).collect()
}

/// Asserts that `f` in bf16 is, at every width of vectors and whatever the threads, `f` of the same values in f64: results in bf16
/// within `roundings` of 2^-8 each, results in f32, which are sums, within 5e-6. The inputs come with the dtype to store them in.
#[track_caller]
pub fn assert_bf16(inputs: &[(Tensor, DType)], roundings: f64, f: impl Fn(&[Tensor]) -> Result<Vec<Tensor>> + Sync) {
    let narrow: Vec<Tensor> = inputs.iter().map(|(t, dtype)| t.to_dtype(*dtype).expect("narrow")).collect();
    let wide: Vec<Tensor> = narrow.iter().map(|t| t.to_dtype(DType::F64).expect("wide")).collect();
    let want = f(&wide).expect("f64");
    let read = |all: &[Tensor]| all.iter().map(|t| t.to_f64_vec().expect("read")).collect::<Vec<_>>();
    for level in Level::ALL {
        let run = |threads| run_at(level, threads, || f(&narrow)).expect("bf16");
        let got = run(1);
        for (i, (got, want)) in got.iter().zip(read(&want)).enumerate() {
            let bound = if got.dtype() == DType::BF16 { roundings / 256.0 } else { 5e-6 };
            let e = error(got, &want);
            assert!(e <= bound, "{level:?}, result {i}, {got:?}: error {e:e}, at most {bound:e} allowed");
        }
        assert!(read(&got) == read(&run(3)), "{level:?}: threads change the result");
    }
}
