//! Both directions rest on the normal tail τ(a) = 1 − Φ(a) for a = |x|, which keeps its relative accuracy where Φ does not:
//! Φ(x) is τ(a) left of zero and 1 − τ(a) right of it, so y = max(x, 0) − a · τ(a).
//!
//! In f32, which bf16 is computed in too, τ(a) = exp(−a²/2) · N(a) / D(a): Mills' ratio as one of polynomials of degree 4 and 5, fitted
//! here for the smallest relative error over a in [0, 13.2], which is 5e-9. All their coefficients are of one sign, so nothing cancels.
//! In f64, erf comes from its power series and, further out, its continued fraction.

use crate::elementwise::{CHUNK, map, zip};
use crate::simd::{Kernel, Lane, Vector};
use engine::{DType, Error, Result, Tensor, bf16, parallel};

pub fn forward(x: &Tensor) -> Result<Tensor> {
    match x.dtype() {
        DType::F32 => forward_lanes::<f32>(x),
        DType::BF16 => forward_lanes::<bf16>(x),
        DType::F64 => map::<f64>(x, |x| x * phi(x)),
        dtype => Err(Error::Unsupported { op: super::OP, dtype, device: x.device() }),
    }
}

pub fn backward(dy: &Tensor, x: &Tensor) -> Result<Tensor> {
    match x.dtype() {
        DType::F32 => backward_lanes::<f32>(dy, x),
        DType::BF16 => backward_lanes::<bf16>(dy, x),
        DType::F64 => {
            zip::<f64>(dy, x, |dy, x| dy * (phi(x) + x * (-x * x / 2.0).exp() / std::f64::consts::TAU.sqrt()))
        }
        dtype => Err(Error::Unsupported { op: super::OP, dtype, device: x.device() }),
    }
}

/// Makes dy, the gradient of y, that of x, and returns y: the two share most of their arithmetic. Both must be alike.
pub fn through(dy: &mut Tensor, x: &Tensor) -> Result<Tensor> {
    match x.dtype() {
        DType::F32 => through_lanes::<f32>(dy, x),
        DType::BF16 => through_lanes::<bf16>(dy, x),
        _ => {
            *dy = backward(dy, x)?;
            forward(x)
        }
    }
}

fn forward_lanes<S: Lane>(x: &Tensor) -> Result<Tensor> {
    let mut out = Tensor::empty(x.dims(), x.dtype(), x.device())?;
    let from = x.as_slice::<S>()?;
    let tasks = out.as_mut_slice::<S>()?.chunks_mut(CHUNK).zip(from.chunks(CHUNK));
    parallel::each(tasks, |(y, x)| S::dispatch(Forward { x, y }));
    Ok(out)
}

fn backward_lanes<S: Lane>(dy: &Tensor, x: &Tensor) -> Result<Tensor> {
    let mut out = Tensor::empty(x.dims(), x.dtype(), x.device())?;
    let inputs = dy.as_slice::<S>()?.chunks(CHUNK).zip(x.as_slice::<S>()?.chunks(CHUNK));
    let tasks = out.as_mut_slice::<S>()?.chunks_mut(CHUNK).zip(inputs);
    parallel::each(tasks, |(dx, (dy, x))| S::dispatch(Backward { dy, x, dx }));
    Ok(out)
}

fn through_lanes<S: Lane>(dy: &mut Tensor, x: &Tensor) -> Result<Tensor> {
    let mut out = Tensor::empty(x.dims(), x.dtype(), x.device())?;
    let outputs = dy.as_mut_slice::<S>()?.chunks_mut(CHUNK).zip(out.as_mut_slice::<S>()?.chunks_mut(CHUNK));
    let tasks = outputs.zip(x.as_slice::<S>()?.chunks(CHUNK));
    parallel::each(tasks, |((dy, y), x)| S::dispatch(Through { x, dy, y }));
    Ok(out)
}

/// Slices of one length.
struct Forward<'a, S> {
    x: &'a [S],
    y: &'a mut [S],
}

impl<S: Lane> Kernel for Forward<'_, S> {
    type Output = ();
    #[inline(always)]
    fn run<V: Vector>(self) {
        for (x, y) in self.x.chunks(V::LANES).zip(self.y.chunks_mut(V::LANES)) {
            // SAFETY: `dispatch` gave the instruction set; x and y have x.len() elements, and a full chunk fills a vector.
            unsafe {
                if x.len() == V::LANES {
                    S::store(gelu(S::load::<V>(x.as_ptr())), y.as_mut_ptr());
                } else {
                    S::store_first(gelu(S::load_first::<V>(x.as_ptr(), x.len())), y.as_mut_ptr(), x.len());
                }
            }
        }
    }
}

/// Slices of one length.
struct Backward<'a, S> {
    dy: &'a [S],
    x: &'a [S],
    dx: &'a mut [S],
}

impl<S: Lane> Kernel for Backward<'_, S> {
    type Output = ();
    #[inline(always)]
    fn run<V: Vector>(self) {
        let inputs = self.dy.chunks(V::LANES).zip(self.x.chunks(V::LANES));
        for ((dy, x), dx) in inputs.zip(self.dx.chunks_mut(V::LANES)) {
            // SAFETY: as in the forward direction, with all three of x.len() elements.
            unsafe {
                if x.len() == V::LANES {
                    S::store(slope(S::load::<V>(x.as_ptr())).mul(S::load(dy.as_ptr())), dx.as_mut_ptr());
                } else {
                    let n = x.len();
                    let dy = S::load_first::<V>(dy.as_ptr(), n);
                    S::store_first(slope(S::load_first::<V>(x.as_ptr(), n)).mul(dy), dx.as_mut_ptr(), n);
                }
            }
        }
    }
}

/// Slices of one length.
struct Through<'a, S> {
    x: &'a [S],
    dy: &'a mut [S],
    y: &'a mut [S],
}

impl<S: Lane> Kernel for Through<'_, S> {
    type Output = ();
    #[inline(always)]
    fn run<V: Vector>(self) {
        let outputs = self.dy.chunks_mut(V::LANES).zip(self.y.chunks_mut(V::LANES));
        for (x, (dy, y)) in self.x.chunks(V::LANES).zip(outputs) {
            // SAFETY: as in the forward direction, with all three of x.len() elements.
            unsafe {
                if x.len() == V::LANES {
                    let (value, slope) = gelu_and_slope(S::load::<V>(x.as_ptr()));
                    S::store(slope.mul(S::load(dy.as_ptr())), dy.as_mut_ptr());
                    S::store(value, y.as_mut_ptr());
                } else {
                    let n = x.len();
                    let (value, slope) = gelu_and_slope(S::load_first::<V>(x.as_ptr(), n));
                    S::store_first(slope.mul(S::load_first::<V>(dy.as_ptr(), n)), dy.as_mut_ptr(), n);
                    S::store_first(value, y.as_mut_ptr(), n);
                }
            }
        }
    }
}

/// exp(−a²/2) is still a normal number here, and τ(a) vanishes beside any y: a = |x| need not be larger. As the first operand of
/// min, it lets NaN in the second one stay NaN.
const FAR: f32 = 13.2;

/// |x|, at most [`FAR`].
///
/// # Safety
/// As for [`Vector`].
#[inline(always)]
unsafe fn magnitude<V: Vector>(x: V) -> V {
    unsafe { V::splat(FAR).min(x.max(V::zero().sub(x))) }
}

/// exp(−a²/2) and −τ(a) for a in [0, FAR].
///
/// # Safety
/// As for [`Vector`].
#[inline(always)]
unsafe fn tail<V: Vector>(a: V) -> (V, V) {
    unsafe {
        let bell = V::exp2_inside(a, a.mul(V::splat(-std::f32::consts::LOG2_E / 2.0)));
        let minus_n = polynomial(a, [-4.011_657e-3, -3.992_628_7e-2, -1.811_343e-1, -4.354_522e-1, -0.5]);
        let d = polynomial(a, [1.005_558_8e-2, 1.000_878_3e-1, 4.639_252e-1, 1.193_765_7, 1.668_789_3, 1.0]);
        (bell, bell.mul(minus_n.div(d)))
    }
}

/// Its coefficients from the highest power down.
///
/// # Safety
/// As for [`Vector`].
#[inline(always)]
unsafe fn polynomial<V: Vector, const N: usize>(a: V, coefficients: [f32; N]) -> V {
    unsafe {
        let mut p = V::splat(coefficients[0]);
        for c in &coefficients[1..] {
            p = p.fma(a, V::splat(*c));
        }
        p
    }
}

/// x · Φ(x), and 0 for −∞.
///
/// # Safety
/// As for [`Vector`].
#[inline(always)]
unsafe fn gelu<V: Vector>(x: V) -> V {
    unsafe {
        let a = magnitude(x);
        let (_, minus_tail) = tail(a);
        value(x, a, minus_tail)
    }
}

/// Φ(x) + x · φ(x).
///
/// # Safety
/// As for [`Vector`].
#[inline(always)]
unsafe fn slope<V: Vector>(x: V) -> V {
    unsafe { gelu_and_slope(x).1 }
}

/// Both of the above.
///
/// # Safety
/// As for [`Vector`].
#[inline(always)]
unsafe fn gelu_and_slope<V: Vector>(x: V) -> (V, V) {
    unsafe {
        let a = magnitude(x);
        let (bell, minus_tail) = tail(a);
        // −1 or 1, and in between only for |x| < 1e-38, where τ = 1/2 makes the sum below right for any sign.
        let sign = x.mul(V::splat(1e38)).min(V::splat(1.0)).max(V::splat(-1.0));
        let phi = sign.fma(minus_tail, sign.fma(V::splat(0.5), V::splat(0.5)));
        let density = bell.mul(V::splat(0.398_942_3));
        (value(x, a, minus_tail), sign.mul(a).fma(density, phi))
    }
}

/// y of x, its [`magnitude`] a, and −τ(a).
///
/// # Safety
/// As for [`Vector`].
#[inline(always)]
unsafe fn value<V: Vector>(x: V, a: V, minus_tail: V) -> V {
    unsafe { a.fma(minus_tail, x.max(V::zero())) }
}

/// Φ(x) in f64.
fn phi(x: f64) -> f64 {
    let tail = half_erfc(x.abs() / std::f64::consts::SQRT_2);
    if x < 0.0 { tail } else { 1.0 - tail }
}

/// erfc(z) / 2 for z >= 0. Near zero from the all-positive series erf(z) = 2/√π exp(−z²) Σ 2ⁿ z²ⁿ⁺¹ / (2n+1)!!
/// (Abramowitz and Stegun 7.1.6), further out from the continued fraction √π exp(z²) erfc(z) = 1/(z + ½/(z + 1/(z + ³⁄₂/(z + …
/// (7.1.14), taken from its 60th level up.
fn half_erfc(z: f64) -> f64 {
    const SQRT_PI: f64 = 1.772_453_850_905_516;
    let bell = (-z * z).exp() / SQRT_PI;
    if z < 2.5 {
        let (mut term, mut sum, mut n) = (z, z, 1.0);
        while term > 1e-17 * sum {
            term *= 2.0 * z * z / (2.0 * n + 1.0);
            sum += term;
            n += 1.0;
        }
        0.5 - bell * sum
    } else {
        let fraction = (1..=60).rev().fold(z, |below, k| z + 0.5 * f64::from(k) / below);
        0.5 * bell / fraction
    }
}

#[cfg(test)]
mod tests {
    use super::phi;
    use crate::gelu::{backward, forward};
    use crate::simd::{Level, testing::run_at};
    use crate::testing::{assert_bf16, assert_close, error, numeric_gradient, random};
    use engine::{DType, Device, Tensor};

    /// The normal density integrated from 0 to x by Simpson's rule.
    fn integrated_phi(x: f64) -> f64 {
        let density = |t: f64| (-t * t / 2.0).exp() / std::f64::consts::TAU.sqrt();
        let (n, h) = (2000, x / 2000.0);
        let inner: f64 = (1..n).map(|i| density(f64::from(i) * h) * if i % 2 == 1 { 4.0 } else { 2.0 }).sum();
        0.5 + (density(0.0) + inner + density(x)) * h / 3.0
    }

    #[test]
    fn phi_is_the_integral_of_the_density() {
        for i in -80..=80 {
            let x = 0.1 * f64::from(i);
            assert!((phi(x) - integrated_phi(x)).abs() < 2e-13, "{x}: {} {}", phi(x), integrated_phi(x));
        }
        // Mills' ratio bounds the far tail: φ(a) (1/a − 1/a³) < τ(a) < φ(a) / a.
        for a in [4.0f64, 10.0, 30.0] {
            let density = (-a * a / 2.0).exp() / std::f64::consts::TAU.sqrt();
            assert!(phi(-a) < density / a && phi(-a) > density * (1.0 / a - a.powi(-3)), "{a}");
        }
    }

    #[test]
    fn f32_is_as_exact_as_f32_can_be_at_every_width() {
        engine::memory::check(true);
        let x: Vec<f32> = (0..100_003).map(|i| -10.0 + 20.0 * i as f32 / 100_002.0).collect();
        let x = Tensor::from_slice(&x, &[100_003]).expect("x");
        let wide = x.to_dtype(DType::F64).expect("f64");
        let ones = Tensor::full(&[100_003], 1.0, DType::F64, Device::Cpu).expect("ones");
        let y = forward(&wide).and_then(|t| t.to_f64_vec()).expect("y");
        let dx = backward(&ones, &wide).and_then(|t| t.to_f64_vec()).expect("dx");
        for at_most in [Level::Portable, Level::Avx2, Level::Avx512] {
            let got = run_at(at_most, 2, || forward(&x)).expect("forward");
            assert!(error(&got, &y) < 1e-7, "{at_most:?}");
            let worst = |t: &Tensor, w: &[f64]| {
                t.to_f64_vec()
                    .expect("t")
                    .iter()
                    .zip(w)
                    .map(|(a, b)| (a - b).abs() / b.abs().max(1.0))
                    .fold(0.0, f64::max)
            };
            assert!(worst(&got, &y) < 1.5e-7, "{at_most:?}: {}", worst(&got, &y));
            let dy = ones.to_dtype(DType::F32).expect("f32");
            let got = run_at(at_most, 2, || backward(&dy, &x)).expect("backward");
            assert!(error(&got, &dx) < 2e-7 && worst(&got, &dx) < 3e-7, "{at_most:?}: {}", worst(&got, &dx));
        }
    }

    #[test]
    fn far_values_and_nan_are_what_the_formula_says() {
        let x = [1e30f32, -1e30, 0.0, 1e-40, -20.0, f32::INFINITY, f32::NAN, f32::MAX, f32::MIN];
        let x = Tensor::from_slice(&x, &[9]).expect("x");
        let one = Tensor::full(&[9], 1.0, DType::F32, Device::Cpu).expect("dy");
        let y = forward(&x).and_then(|t| t.to_vec::<f32>()).expect("y");
        let dx = backward(&one, &x).and_then(|t| t.to_vec::<f32>()).expect("dx");
        assert_eq!(y[0], 1e30);
        assert!(y[1].abs() < 1e-30 && y[2] == 0.0 && y[3].abs() < 1e-39 && y[4].abs() < 1e-30);
        assert_eq!((y[5], dx[5]), (f32::INFINITY, 1.0));
        assert!(y[6].is_nan() && dx[6].is_nan());
        assert!(y[7] == f32::MAX && y[8].abs() < 1e-30);
        assert_eq!([dx[0], dx[2], dx[3], dx[7]], [1.0, 0.5, 0.5, 1.0]);
        assert!(dx[1].abs() < 1e-30 && dx[4].abs() < 1e-30 && dx[8].abs() < 1e-30);
    }

    #[test]
    fn gradient_matches_central_differences() {
        let x = random(1, &[37], DType::F64);
        let (x, dy) = (crate::add::scale(&x, 3.0).expect("x"), random(2, &[37], DType::F64));
        let dx = backward(&dy, &x).expect("backward");
        assert_close(&dx, &numeric_gradient(&x, &dy, |x| forward(x).expect("forward")), 1e-8);
    }

    #[test]
    fn bf16_is_f64_rounded() {
        for n in [0, 1, 7, 16, 37, 40_009] {
            let half = |seed| (random(seed, &[n], DType::F64), DType::BF16);
            assert_bf16(&[half(1), half(2)], 1.0, |t| Ok(vec![forward(&t[0])?, backward(&t[1], &t[0])?]));
        }
    }

    #[test]
    fn empty_is_empty_and_unlike_tensors_are_errors() {
        let x = random(1, &[0, 4], DType::F32);
        assert_eq!(forward(&x).expect("empty").dims(), [0, 4]);
        assert!(backward(&x, &random(1, &[4], DType::F32)).is_err());
        assert!(backward(&x, &random(1, &[0, 4], DType::F64)).is_err());
        assert!(forward(&Tensor::zeros(&[4], DType::I32, Device::Cpu).expect("i32")).is_err());
    }
}
