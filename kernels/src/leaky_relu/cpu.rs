//! One pass over memory.

use crate::elementwise::{map, zip};
use engine::{DType, Error, Result, Tensor, bf16};

pub fn forward(x: &Tensor, slope: f64) -> Result<Tensor> {
    let narrow = slope as f32;
    match x.dtype() {
        DType::F32 => map::<f32>(x, |x| if x > 0.0 { x } else { x * narrow }),
        DType::BF16 => map::<bf16>(x, |x| if x > 0.0 { x } else { x * narrow }),
        DType::F64 => map::<f64>(x, |x| if x > 0.0 { x } else { x * slope }),
        dtype => Err(Error::Unsupported { op: super::OP, dtype, device: x.device() }),
    }
}

pub fn backward(dy: &Tensor, x: &Tensor, slope: f64) -> Result<Tensor> {
    let narrow = slope as f32;
    match x.dtype() {
        DType::F32 => zip::<f32>(dy, x, |dy, x| if x > 0.0 { dy } else { dy * narrow }),
        DType::BF16 => zip::<bf16>(dy, x, |dy, x| if x > 0.0 { dy } else { dy * narrow }),
        DType::F64 => zip::<f64>(dy, x, |dy, x| if x > 0.0 { dy } else { dy * slope }),
        dtype => Err(Error::Unsupported { op: super::OP, dtype, device: x.device() }),
    }
}

#[cfg(test)]
mod tests {
    use crate::leaky_relu::{backward, forward};
    use crate::testing::{assert_bf16, assert_close, numeric_gradient, random};
    use engine::{DType, Device, Tensor};

    #[test]
    fn matches_the_formula_and_its_gradient() {
        for dims in [vec![0], vec![], vec![3, 5], vec![40_009]] {
            let x = random(1, &dims, DType::F32);
            let want: Vec<f64> = x.to_f64_vec().expect("x").iter().map(|v| v.max(0.0) + 0.01 * v.min(0.0)).collect();
            assert_close(&forward(&x, 0.01).expect("forward"), &want, 1e-7);
        }
        let (x, dy) = (random(1, &[3, 5], DType::F64), random(2, &[3, 5], DType::F64));
        let dx = backward(&dy, &x, 0.2).expect("backward");
        assert_close(&dx, &numeric_gradient(&x, &dy, |x| forward(x, 0.2).expect("forward")), 1e-8);
    }

    #[test]
    fn zero_takes_the_slope() {
        let x = Tensor::from_slice(&[0f64], &[1]).expect("x");
        let dy = Tensor::from_slice(&[2f64], &[1]).expect("dy");
        assert_eq!(backward(&dy, &x, 0.25).and_then(|t| t.item()), Ok(0.5));
    }

    #[test]
    fn bf16_is_f64_rounded() {
        let half = |seed, dims: &[usize]| (random(seed, dims, DType::F64), DType::BF16);
        for dims in [vec![0], vec![], vec![3, 5], vec![40_009]] {
            let both = |t: &[Tensor]| Ok(vec![forward(&t[0], 0.01)?, backward(&t[1], &t[0], 0.01)?]);
            assert_bf16(&[half(1, &dims), half(2, &dims)], 1.0, both);
        }
    }

    #[test]
    fn unlike_and_integer_tensors_are_errors() {
        let x = random(1, &[4], DType::F32);
        assert!(backward(&x, &random(1, &[5], DType::F32), 0.1).is_err());
        assert!(backward(&x, &random(1, &[4], DType::F64), 0.1).is_err());
        assert!(forward(&Tensor::zeros(&[4], DType::U8, Device::Cpu).expect("u8"), 0.1).is_err());
    }
}
