//! Euclidean norm of all elements: `sqrt(Σ x²)`.
//!
//! Squares of f32 and bf16, on CUDA of f16, on the CPU of f64, are summed in f64, over chunks of a fixed size and in a fixed order,
//! so that the result depends neither on the number of threads nor on the width of vectors. For f32 nothing overflows. The norm of
//! an empty tensor is 0; a NaN anywhere gives NaN.

mod cpu;
mod cuda;

use engine::{DType, Device, Error, Result, Tensor, bf16};

const OP: &str = "l2_norm";

/// A scalar in f64, on x's device.
pub fn forward(x: &Tensor) -> Result<Tensor> {
    match (x.device(), x.dtype()) {
        (Device::Cpu, DType::F32) => Tensor::scalar(cpu::forward::<f32>(x)?),
        (Device::Cpu, DType::BF16) => Tensor::scalar(cpu::forward::<bf16>(x)?),
        (Device::Cpu, DType::F64) => Tensor::scalar(cpu::forward::<f64>(x)?),
        (Device::Cuda(_), _) => cuda::forward(x),
        (Device::Meta, _) => Tensor::empty(&[], DType::F64, Device::Meta),
        (device, dtype) => Err(Error::Unsupported { op: OP, dtype, device }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::{Level, testing::run_at};
    use engine::random;

    #[test]
    fn norm_is_exact_to_f64_and_the_same_everywhere() {
        engine::memory::check(true);
        for n in [0, 1, 7, 16, 1000, (1 << 15) - 1, 5 * (1 << 15) + 3] {
            let x: Vec<f32> = (0..n).map(|i| random::normal(5, i as u64) as f32 * 1e20).collect();
            let want = x.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>().sqrt();
            let t = Tensor::from_slice(&x, &[n]).expect("tensor");
            let norm = |t: &Tensor| forward(t).and_then(|norm| norm.item()).expect("norm");
            let got = norm(&t);
            assert!((got - want).abs() <= 1e-13 * want, "{n}: {got} {want}");
            for level in [Level::Portable, Level::Avx2, Level::Avx512] {
                assert_eq!(run_at(level, level as usize, || norm(&t)).to_bits(), got.to_bits());
            }
        }
    }

    #[test]
    fn bf16_is_summed_in_f64() {
        let x = crate::testing::random(1, &[40_009], DType::BF16);
        let norm = |t: &Tensor| forward(t).and_then(|norm| norm.item()).expect("norm");
        let want = norm(&x.to_dtype(DType::F64).expect("f64"));
        assert!((norm(&x) - want).abs() <= 1e-13 * want);
    }

    #[test]
    fn nan_shows_and_integers_are_refused() {
        let mut x = vec![1.0f64; 100];
        x[77] = f64::NAN;
        let norm = forward(&Tensor::from_slice(&x, &[100]).expect("tensor")).expect("norm");
        assert!(norm.item().expect("scalar").is_nan());
        assert!(forward(&Tensor::zeros(&[3], DType::I32, Device::Cpu).expect("tensor")).is_err());
    }
}
