//! Loops over fixed chunks.

use crate::elementwise::{CHUNK, map, zip};
use crate::real::Stored;
use crate::simd::{Kernel, Vector, dispatch};
use engine::{DType, Error, Result, Tensor, bf16, parallel};

pub(super) fn forward(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    match a.dtype() {
        DType::F32 => zip::<f32>(a, b, |a, b| a + b),
        DType::BF16 => zip::<bf16>(a, b, |a, b| a + b),
        DType::F64 => zip::<f64>(a, b, |a, b| a + b),
        dtype => Err(Error::Unsupported { op: super::OP, dtype, device: a.device() }),
    }
}

pub(super) fn accumulate(a: &mut Tensor, start: usize, b: &Tensor) -> Result<()> {
    match a.dtype() {
        DType::F32 => add_into::<f32>(a, start, b),
        DType::BF16 => add_into::<bf16>(a, start, b),
        DType::F64 => add_into::<f64>(a, start, b),
        dtype => Err(Error::Unsupported { op: super::OP, dtype, device: a.device() }),
    }
}

pub(super) fn scale(x: &Tensor, factor: f64) -> Result<Tensor> {
    match x.dtype() {
        DType::F32 => map::<f32>(x, |v| v * factor as f32),
        DType::BF16 => map::<bf16>(x, |v| v * factor as f32),
        DType::F64 => map::<f64>(x, |v| v * factor),
        dtype => Err(Error::Unsupported { op: "scale", dtype, device: x.device() }),
    }
}

fn add_into<S: Stored>(a: &mut Tensor, start: usize, b: &Tensor) -> Result<()> {
    let from = b.as_slice::<S>()?;
    let to = &mut a.as_mut_slice::<S>()?[start..][..from.len()];
    parallel::each(to.chunks_mut(CHUNK).zip(from.chunks(CHUNK)), |(a, b)| dispatch(AddInto { a, b }));
    Ok(())
}

/// Slices of one length.
struct AddInto<'a, S> {
    a: &'a mut [S],
    b: &'a [S],
}

impl<S: Stored> Kernel for AddInto<'_, S> {
    type Output = ();
    #[inline(always)]
    fn run<V: Vector>(self) {
        for (a, b) in self.a.iter_mut().zip(self.b) {
            *a = S::narrow(a.widen() + b.widen());
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::add::{accumulate, accumulate_at, forward, scale};
    use crate::testing::{assert_bf16, assert_close, random};
    use engine::{DType, Device, Error, Tensor};

    #[test]
    fn sums_match_the_formula_on_awkward_sizes() {
        for dims in [vec![], vec![0, 3], vec![1], vec![7], vec![3, 10_949], vec![2, 3, 5, 7, 11]] {
            for dtype in [DType::F32, DType::F64] {
                let (mut a, b) = (random(1, &dims, dtype), random(2, &dims, dtype));
                let (av, bv) = (a.to_f64_vec().expect("a"), b.to_f64_vec().expect("b"));
                let sum: Vec<f64> = av.iter().zip(&bv).map(|(a, b)| a + b).collect();
                let scaled: Vec<f64> = av.iter().map(|a| a * -0.3).collect();
                assert_close(&forward(&a, &b).expect("forward"), &sum, 1e-7);
                assert_close(&scale(&a, -0.3).expect("scale"), &scaled, 2e-7);
                accumulate(&mut a, &b).expect("accumulate");
                assert_close(&a, &sum, 1e-7);
            }
        }
    }

    #[test]
    fn a_part_is_added_to_and_the_rest_stays() {
        let (mut a, b) = (random(1, &[9], DType::F64), random(2, &[2, 2], DType::F64));
        let (mut want, part) = (a.to_f64_vec().expect("a"), b.to_f64_vec().expect("b"));
        want[3..7].iter_mut().zip(part).for_each(|(a, b)| *a += b);
        accumulate_at(&mut a, 3, &b).expect("accumulate");
        assert_eq!(a.to_f64_vec().expect("read"), want);
    }

    #[test]
    fn bf16_is_f64_rounded() {
        let half = |seed, dims: &[usize]| (random(seed, dims, DType::F64), DType::BF16);
        for dims in [vec![], vec![0, 3], vec![1], vec![7], vec![3, 10_949]] {
            assert_bf16(&[half(1, &dims), half(2, &dims)], 1.0, |t| {
                let mut sum = t[0].new_empty(t[0].dims())?;
                sum.fill_with(0..sum.numel(), |_| 1.0)?;
                accumulate(&mut sum, &t[1])?;
                Ok(vec![forward(&t[0], &t[1])?, scale(&t[0], -0.3)?, sum])
            });
        }
    }

    #[test]
    fn unlike_shared_and_integer_tensors_are_errors() {
        let (mut a, b) = (random(1, &[2, 3], DType::F32), random(2, &[3, 2], DType::F32));
        let message = forward(&a, &b).expect_err("shapes").to_string();
        assert!(message.contains("[3, 2]") && message.contains("[2, 3]"), "{message}");
        assert!(forward(&a, &random(2, &[2, 3], DType::F64)).is_err());
        let view = a.clone();
        assert_eq!(accumulate(&mut a, &view), Err(Error::Shared { op: "write" }));
        drop(view);
        assert!(accumulate_at(&mut a, 3, &random(3, &[3], DType::F32)).is_ok());
        assert!(accumulate_at(&mut a, 4, &random(3, &[3], DType::F32)).is_err());
        assert!(accumulate_at(&mut a, usize::MAX, &random(3, &[3], DType::F32)).is_err());
        assert!(accumulate_at(&mut a, 0, &random(3, &[3], DType::F64)).is_err());
        let i = Tensor::zeros(&[2], DType::I32, Device::Cpu).expect("i32");
        assert!(matches!(forward(&i, &i), Err(Error::Unsupported { op: "add", .. })));
        assert!(matches!(scale(&i, 2.0), Err(Error::Unsupported { op: "scale", .. })));
    }
}
