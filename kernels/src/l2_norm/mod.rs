//! Euclidean norm of all elements: `sqrt(Σ x²)`.
//!
//! Squares of f32 and f64, on CUDA of f32, bf16 and f16, are summed in f64, over chunks of a fixed size and in a fixed order, so
//! that the result depends neither on the number of threads nor on the width of vectors. For f32 nothing overflows. The norm of
//! an empty tensor is 0; a NaN anywhere gives NaN.

mod cpu;
mod cuda;

use engine::{DType, Device, Error, Result, Tensor};

const OP: &str = "l2_norm";

pub fn forward(x: &Tensor) -> Result<f64> {
    match (x.device(), x.dtype()) {
        (Device::Cpu, DType::F32) => cpu::forward::<f32>(x),
        (Device::Cpu, DType::F64) => cpu::forward::<f64>(x),
        (Device::Cuda(_), _) => cuda::forward(x),
        (Device::Meta, _) => Ok(f64::NAN),
        (device, dtype) => Err(Error::Unsupported { op: OP, dtype, device }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::{Level, limit};
    use engine::random;

    #[test]
    fn norm_is_exact_to_f64_and_the_same_everywhere() {
        engine::memory::check(true);
        for n in [0, 1, 7, 16, 1000, (1 << 15) - 1, 5 * (1 << 15) + 3] {
            let x: Vec<f32> = (0..n).map(|i| random::normal(5, i as u64) as f32 * 1e20).collect();
            let want = x.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>().sqrt();
            let t = Tensor::from_slice(&x, &[n]).expect("tensor");
            let got = forward(&t).expect("norm");
            assert!((got - want).abs() <= 1e-13 * want, "{n}: {got} {want}");
            for level in [Level::Portable, Level::Avx2, Level::Avx512] {
                limit(level);
                let pool = rayon::ThreadPoolBuilder::new().num_threads(level as usize).build().expect("pool");
                assert_eq!(pool.install(|| forward(&t)).expect("norm").to_bits(), got.to_bits());
            }
        }
    }

    #[test]
    fn nan_shows_and_integers_are_refused() {
        let mut x = vec![1.0f64; 100];
        x[77] = f64::NAN;
        assert!(forward(&Tensor::from_slice(&x, &[100]).expect("tensor")).expect("norm").is_nan());
        assert!(forward(&Tensor::zeros(&[3], DType::I32, Device::Cpu).expect("tensor")).is_err());
    }
}
