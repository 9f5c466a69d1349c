use super::*;
use engine::{Element, random};

const P: Params = Params { lr: 0.01, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.01, step: 1, scale: 1.0 };

struct Optimiser {
    param: Tensor,
    m: Tensor,
    v: Tensor,
    vmax: Tensor,
}

impl Optimiser {
    fn new<T: Element>(param: &[T]) -> Optimiser {
        engine::memory::check(true);
        let zeros = || Tensor::zeros(&[param.len()], T::DTYPE, Device::Cpu).expect("zeros");
        let param = Tensor::from_slice(param, &[param.len()]).expect("parameter");
        Optimiser { param, m: zeros(), v: zeros(), vmax: zeros() }
    }

    fn step<T: Element>(&mut self, grad: &[T], p: Params) -> Result<()> {
        let grad = Tensor::from_slice(grad, &[grad.len()]).expect("gradient");
        update(&mut self.param, None, &grad, State { m: &mut self.m, v: &mut self.v, vmax: &mut self.vmax }, p)
    }
}

/// The textbook form in f64: corrected moments, one element.
fn naive(x: f64, grads: &[f64], p: Params) -> f64 {
    let (mut x, mut m, mut v, mut top) = (x, 0.0, 0.0, 0.0f64);
    for (i, g) in grads.iter().enumerate() {
        let t = i as i32 + 1;
        x -= p.lr * p.weight_decay * x;
        m = p.beta1 * m + (1.0 - p.beta1) * g;
        v = p.beta2 * v + (1.0 - p.beta2) * g * g;
        top = top.max(v);
        let corrected = m / (1.0 - p.beta1.powi(t));
        x -= p.lr * corrected / ((top / (1.0 - p.beta2.powi(t))).sqrt() + p.eps);
    }
    x
}

#[test]
fn two_parameters_follow_the_golden_values() {
    let mut o = Optimiser::new(&[1.0f64, -2.0]);
    for t in 0..5 {
        let scale = if t == 0 { 10.0 } else { 1.0 };
        let grad = [0, 1].map(|i| scale * (2.0 * random::uniform(30 + t, i) - 1.0));
        o.step(&grad, Params { step: t + 1, ..P }).expect("step");
    }
    let got = o.param.to_vec::<f64>().expect("read");
    for (got, want) in got.iter().zip([0.9643294979832362, -2.0301252829555274]) {
        assert!((got - want).abs() < 1e-15, "{got} {want}");
    }
}

#[test]
fn every_width_and_thread_count_gives_the_same_bits_near_the_naive_update() {
    use crate::simd::{Level, testing::run_at};
    let n = 3 * (1 << 14) + 7; // several chunks and a ragged end
    let value = |seed, i: usize| random::normal(seed, i as u64) as f32;
    let start: Vec<f32> = (0..n).map(|i| value(1, i)).collect();
    let run = || {
        let mut o = Optimiser::new(&start);
        for step in 1..=12u64 {
            let grad: Vec<f32> = (0..n).map(|i| value(10 + step, i) * (13 - step) as f32).collect();
            o.step(&grad, Params { step, ..P }).expect("step");
        }
        o.param.to_vec::<f32>().expect("read")
    };
    let first = run();
    for level in [Level::Portable, Level::Avx2, Level::Avx512] {
        assert!(run_at(level, level as usize, run) == first);
    }
    let (mut off, mut all) = (0.0, 0.0);
    for i in (0..n).step_by(97) {
        let grads: Vec<f64> = (1..=12u64).map(|s| f64::from(value(10 + s, i) * (13 - s) as f32)).collect();
        let want = naive(f64::from(start[i]), &grads, P);
        off += (f64::from(first[i]) - want).powi(2);
        all += want * want;
    }
    // twelve steps round each parameter twice: 24 half units, far under the bound
    assert!((off / all).sqrt() < 5e-7, "{}", (off / all).sqrt());
}

#[test]
fn the_largest_second_moment_is_kept_uncorrected() {
    let mut o = Optimiser::new(&[0.5f64]);
    o.step(&[10.0], P).expect("first");
    o.step(&[0.0], Params { step: 2, ..P }).expect("second");
    assert!((o.vmax.item().expect("vmax") - 0.1).abs() < 1e-15);
    assert!((o.v.item().expect("v") - 0.0999).abs() < 1e-15);
}

#[test]
fn an_empty_parameter_is_left_alone_and_nan_shows() {
    Optimiser::new::<f32>(&[]).step::<f32>(&[], P).expect("empty");
    let mut o = Optimiser::new(&[1.0f32, 1.0]);
    o.step(&[f32::NAN, 1.0], P).expect("step");
    let got = o.param.to_vec::<f32>().expect("read");
    assert!(got[0].is_nan() && got[1].is_finite());
    let read = |t: &Tensor| t.to_vec::<f32>().expect("read");
    assert!(read(&o.vmax)[0].is_nan() && read(&o.vmax)[1].is_finite());
    o.step(&[1.0f32, 1.0], Params { step: 2, ..P }).expect("step");
    assert!(read(&o.vmax)[0].is_nan() && read(&o.vmax)[1].is_finite());
}

#[test]
fn a_copy_that_cannot_be_written_leaves_everything_as_it_was() {
    let refused = |o: &mut Optimiser, copy: &mut Tensor| {
        let before = [&o.param, &o.m, &o.v, &o.vmax].map(|t| t.to_f64_vec());
        let grad = Tensor::full(&[2], 0.5, o.param.dtype(), Device::Cpu).expect("gradient");
        let Optimiser { param, m, v, vmax } = &mut *o;
        let error = update(param, Some(copy), &grad, State { m, v, vmax }, P).expect_err("refused");
        assert_eq!([&o.param, &o.m, &o.v, &o.vmax].map(|t| t.to_f64_vec()), before);
        error
    };
    let copy = |dtype| Tensor::zeros(&[2], dtype, Device::Cpu).expect("copy");
    let mut shared = copy(DType::BF16);
    let view = shared.clone();
    assert_eq!(refused(&mut Optimiser::new(&[1.0f32, 2.0]), &mut shared), Error::Shared { op: "write" });
    drop(view);
    let unfit = |error| matches!(error, Error::Unsupported { op: "cast", .. });
    assert!(unfit(refused(&mut Optimiser::new(&[1.0f32, 2.0]), &mut copy(DType::I32))));
    assert!(unfit(refused(&mut Optimiser::new(&[1.0f64, 2.0]), &mut copy(DType::BF16))));
}

#[test]
fn wrong_input_is_an_error() {
    assert!(Optimiser::new(&[1.0f32]).step(&[1.0f32, 2.0], P).is_err());
    assert!(Optimiser::new(&[1.0f32]).step(&[1.0f64], P).is_err());
    assert!(Optimiser::new(&[1i32]).step(&[1i32], P).is_err());
    assert!(Optimiser::new(&[1.0f32]).step(&[1.0f32], Params { step: 0, ..P }).is_err());
    assert!(Optimiser::new(&[1.0f32]).step(&[1.0f32], Params { beta2: 1.0, ..P }).is_err());
    for scale in [0.0, -1.0, f64::INFINITY, f64::NAN] {
        assert!(Optimiser::new(&[1.0f32]).step(&[1.0f32], Params { scale, ..P }).is_err());
    }
    let mut o = Optimiser::new(&[1.0f32]);
    let view = o.param.clone();
    assert_eq!(o.step(&[1.0f32], P), Err(Error::Shared { op: "write" }));
    drop(view);
}

#[test]
fn a_scaled_gradient_gives_the_same_bits_and_the_copy_is_the_rounded_parameter() {
    let n = 1000;
    let start: Vec<f32> = (0..n).map(|i| random::normal(1, i) as f32).collect();
    let grad: Vec<f32> = (0..n).map(|i| random::normal(2, i) as f32).collect();
    let (mut plain, mut scaled) = (Optimiser::new(&start), Optimiser::new(&start));
    plain.step(&grad, P).expect("step");
    let grad: Vec<f32> = grad.iter().map(|g| g * 1024.0).collect();
    let grad = Tensor::from_slice(&grad, &[grad.len()]).expect("gradient");
    let mut copy = Tensor::zeros(grad.dims(), DType::BF16, Device::Cpu).expect("copy");
    let Optimiser { param, m, v, vmax } = &mut scaled;
    update(param, Some(&mut copy), &grad, State { m, v, vmax }, Params { scale: 1024.0, ..P }).expect("step");
    for (a, b) in [(&plain.param, &scaled.param), (&plain.m, &scaled.m), (&plain.vmax, &scaled.vmax)] {
        assert!(a.to_vec::<f32>().expect("plain") == b.to_vec::<f32>().expect("scaled"));
    }
    assert_eq!(copy.to_f64_vec(), scaled.param.to_dtype(DType::BF16).and_then(|t| t.to_f64_vec()));
    let Optimiser { param, m, v, vmax } = &mut scaled;
    let mut short = Tensor::zeros(&[1], DType::BF16, Device::Cpu).expect("copy");
    assert!(update(param, Some(&mut short), &grad, State { m, v, vmax }, P).is_err());
}
