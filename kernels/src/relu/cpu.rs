//! One pass over memory.

use crate::elementwise::{map, zip};
use engine::{DType, Error, Result, Tensor, bf16};

pub fn forward(x: &Tensor) -> Result<Tensor> {
    // Written so that NaN, which is not below 0, passes through.
    match x.dtype() {
        DType::F32 => map::<f32>(x, |x| if x < 0.0 { 0.0 } else { x }),
        DType::BF16 => map::<bf16>(x, |x| if x < 0.0 { 0.0 } else { x }),
        DType::F64 => map::<f64>(x, |x| if x < 0.0 { 0.0 } else { x }),
        dtype => Err(Error::Unsupported { op: super::OP, dtype, device: x.device() }),
    }
}

pub fn backward(dy: &Tensor, y: &Tensor) -> Result<Tensor> {
    match y.dtype() {
        DType::F32 => zip::<f32>(dy, y, |dy, y| if y > 0.0 { dy } else { 0.0 }),
        DType::BF16 => zip::<bf16>(dy, y, |dy, y| if y > 0.0 { dy } else { 0.0 }),
        DType::F64 => zip::<f64>(dy, y, |dy, y| if y > 0.0 { dy } else { 0.0 }),
        dtype => Err(Error::Unsupported { op: super::OP, dtype, device: y.device() }),
    }
}

#[cfg(test)]
mod tests {
    use crate::relu::{backward, forward};
    use crate::testing::{assert_bf16, assert_close, numeric_gradient, random};
    use engine::{DType, Device, Tensor};

    #[test]
    fn matches_the_formula_and_its_gradient() {
        for dims in [vec![0], vec![], vec![3, 5], vec![40_009]] {
            let x = random(1, &dims, DType::F32);
            let want: Vec<f64> = x.to_f64_vec().expect("x").iter().map(|v| v.max(0.0)).collect();
            assert_close(&forward(&x).expect("forward"), &want, 0.0);
        }
        let (x, dy) = (random(1, &[3, 5], DType::F64), random(2, &[3, 5], DType::F64));
        let dx = backward(&dy, &forward(&x).expect("forward")).expect("backward");
        assert_close(&dx, &numeric_gradient(&x, &dy, |x| forward(x).expect("forward")), 1e-8);
    }

    #[test]
    fn zero_has_no_gradient_and_nan_stays() {
        let x = Tensor::from_slice(&[0f32, -1.0, f32::NAN], &[3]).expect("x");
        let y = forward(&x).expect("forward");
        assert!(y.to_f64_vec().expect("y")[2].is_nan());
        let dy = Tensor::full(&[3], 1.0, DType::F32, Device::Cpu).expect("dy");
        assert_eq!(backward(&dy, &y).expect("backward").to_f64_vec().expect("dx")[..2], [0.0, 0.0]);
    }

    #[test]
    fn bf16_is_f64_rounded() {
        let half = |seed, dims: &[usize]| (random(seed, dims, DType::F64), DType::BF16);
        for dims in [vec![0], vec![], vec![3, 5], vec![40_009]] {
            assert_bf16(&[half(1, &dims), half(2, &dims)], 1.0, |t| Ok(vec![forward(&t[0])?, backward(&t[1], &t[0])?]));
        }
    }

    #[test]
    fn unlike_and_integer_tensors_are_errors() {
        let x = random(1, &[4], DType::F32);
        assert!(backward(&x, &random(1, &[5], DType::F32)).is_err());
        assert!(backward(&x, &random(1, &[4], DType::F64)).is_err());
        assert!(forward(&Tensor::zeros(&[4], DType::U8, Device::Cpu).expect("u8")).is_err());
    }
}
