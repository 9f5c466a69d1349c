//! The same numbers in another dtype: `y[i] = x[i]`, rounded to nearest even where y is the narrower one.
//!
//! Between f32 and bf16 or f16, either way, on the CPU and on CUDA. Any shape; empty tensors give empty results. What lies beyond y's
//! largest number becomes infinite, NaN stays NaN. Moves 6 bytes an element.

mod cpu;
mod cuda;

use crate::check::{expect_device, expect_dims};
use engine::{DType, Device, Error, Result, Tensor};

const OP: &str = "cast";

/// x in `dtype`; a tensor of that dtype is its own result. Errors for other pairs of dtypes.
pub fn forward(x: &Tensor, dtype: DType) -> Result<Tensor> {
    if dtype == x.dtype() {
        return Ok(x.clone());
    }
    let mut y = Tensor::empty(x.dims(), dtype, x.device())?;
    into(x, &mut y)?;
    Ok(y)
}

/// Overwrites y with x. Errors when their shapes or devices differ, for other pairs of dtypes, and when y's storage is shared.
pub fn into(x: &Tensor, y: &mut Tensor) -> Result<()> {
    expect_dims(OP, ("y", y), x.dims(), "x")?;
    expect_device(OP, x, &[("y", y)])?;
    let low = low(x.dtype(), y.dtype(), x.device())?;
    match x.device() {
        Device::Cpu => cpu::into(x, y),
        Device::Cuda(_) => cuda::into(x, y, low),
        Device::Meta => Ok(()),
        device => Err(Error::Unsupported { op: OP, dtype: x.dtype(), device }),
    }
}

/// The one of the two dtypes that is not f32. Errors when there is none, or one that nothing is computed in.
pub(crate) fn low(from: DType, to: DType, device: Device) -> Result<DType> {
    match (from, to) {
        (DType::F32, low) | (low, DType::F32) if low.is_half() => Ok(low),
        (DType::F32, dtype) | (dtype, _) => Err(Error::Unsupported { op: OP, dtype, device }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::random;
    use engine::{bf16, f16};

    #[test]
    fn rounds_to_nearest_even_and_widens_without_loss() {
        for dtype in [DType::BF16, DType::F16] {
            for dims in [vec![], vec![0, 3], vec![7], vec![3, 23_001]] {
                let x = random(1, &dims, DType::F32);
                let low = forward(&x, dtype).expect("narrow");
                assert_eq!((low.dtype(), low.dims()), (dtype, x.dims()));
                assert_eq!(low.to_f64_vec(), x.to_dtype(dtype).and_then(|t| t.to_f64_vec()));
                let back = forward(&low, DType::F32).expect("widen");
                assert_eq!((back.dtype(), back.to_f64_vec()), (DType::F32, low.to_f64_vec()));
            }
        }
        // 8 bits of mantissa: halfway between 256 and 258, between 258 and 260, and past either
        let x = Tensor::from_slice(&[257.0f32, 259.0, 257.001, -259.001, 3.4e38], &[5]).expect("x");
        let y = forward(&x, DType::BF16).and_then(|t| t.to_vec::<bf16>()).expect("y");
        assert_eq!(y, [256.0, 260.0, 258.0, -260.0, f32::INFINITY].map(bf16::from_f32));
        // 11 bits, the largest number 65504, and below 2^-14 fewer bits: half of 2^-24 is a tie with 0
        let x = Tensor::from_slice(&[2049.0f32, 2051.0, 65519.0, 65520.0, 2f32.powi(-25), 1.5 * 2f32.powi(-24)], &[6]);
        let y = x.and_then(|x| forward(&x, DType::F16)?.to_vec::<f16>()).expect("y");
        assert_eq!(y, [2048.0, 2052.0, 65504.0, f32::INFINITY, 0.0, 2f32.powi(-23)].map(f16::from_f32));
        let nan = Tensor::from_slice(&[f32::NAN], &[1]).expect("x");
        assert!(forward(&nan, DType::BF16).and_then(|t| t.item()).expect("y").is_nan());
    }

    #[test]
    fn other_pairs_and_tensors_that_do_not_fit_are_errors() {
        let x = random(1, &[4], DType::F32);
        assert_eq!(forward(&x, DType::F32).and_then(|t| t.to_f64_vec()), x.to_f64_vec());
        for (from, to) in [(DType::F32, DType::F64), (DType::F64, DType::BF16), (DType::I32, DType::F32)] {
            let x = random(1, &[4], from);
            assert!(matches!(forward(&x, to), Err(Error::Unsupported { op: "cast", .. })), "{from} to {to}");
        }
        let mut y = Tensor::zeros(&[3], DType::BF16, Device::Cpu).expect("y");
        assert!(into(&x, &mut y).is_err());
        let mut y = Tensor::zeros(&[4], DType::BF16, Device::Cpu).expect("y");
        let view = y.clone();
        assert_eq!(into(&x, &mut y), Err(Error::Shared { op: "write" }));
        drop(view);
        into(&x, &mut y).expect("cast");
        assert_eq!(y.to_f64_vec(), forward(&x, DType::BF16).and_then(|t| t.to_f64_vec()));
    }
}
