//! Exponential moving average: `teacher <- momentum · teacher + (1 - momentum) · student`, in place, element by element.
//!
//! Both tensors have as many elements and the same dtype, f32 or bf16, on CUDA also f16, on the CPU f64; `1 - momentum` is rounded
//! once, from f64. Empty tensors are left as they are. Every vector width and thread count gives the same bits.

mod cpu;
mod cuda;

use crate::check::expect_device;
use engine::{DType, Device, Error, Result, Tensor, bf16};

const OP: &str = "ema";

/// Moves `teacher` towards `student`. Errors when their sizes or dtypes differ, when `momentum` is outside [0, 1], and when
/// another tensor shares the teacher's storage.
pub fn update(teacher: &mut Tensor, student: &Tensor, momentum: f64) -> Result<()> {
    if teacher.numel() != student.numel() {
        let detail = format!("teacher {:?} and student {:?} differ in size", teacher.shape(), student.shape());
        return Err(Error::shape(OP, detail));
    }
    if teacher.dtype() != student.dtype() {
        return Err(Error::DType { op: OP, got: student.dtype(), want: "the teacher's dtype for the student" });
    }
    if !(0.0..=1.0).contains(&momentum) {
        return Err(Error::invalid(OP, format!("momentum {momentum} must lie in [0, 1]")));
    }
    expect_device(OP, teacher, &[("student", student)])?;
    match (teacher.device(), teacher.dtype()) {
        (Device::Cpu, DType::F32) => cpu::update::<f32>(teacher, student, momentum),
        (Device::Cpu, DType::BF16) => cpu::update::<bf16>(teacher, student, momentum),
        (Device::Cpu, DType::F64) => cpu::update::<f64>(teacher, student, momentum),
        (Device::Cuda(_), _) => cuda::update(teacher, student, momentum),
        (Device::Meta, _) => Ok(()),
        (device, dtype) => Err(Error::Unsupported { op: OP, dtype, device }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::run_on;
    use engine::random;

    #[test]
    fn the_teacher_moves_by_the_formula() {
        engine::memory::check(true);
        let n = 2 * (1 << 15) + 13;
        let value = |seed, i: usize| random::normal(seed, i as u64) as f32;
        let [t, s] = [1, 2].map(|seed| (0..n).map(|i| value(seed, i)).collect::<Vec<_>>());
        let student = Tensor::from_slice(&s, &[n]).expect("student");
        let mut teacher = Tensor::from_slice(&t, &[n, 1]).expect("teacher");
        run_on(3, || update(&mut teacher, &student, 0.9)).expect("update");
        for ((got, t), s) in teacher.as_slice::<f32>().expect("read").iter().zip(&t).zip(&s) {
            let want = 0.9 * f64::from(*t) + 0.1 * f64::from(*s);
            // two products and a sum, each rounded by half a unit of a value no larger than the two together
            let scale = f64::from(t.abs() + s.abs());
            assert!((f64::from(*got) - want).abs() <= 2.0 * f64::from(f32::EPSILON) * scale);
        }
    }

    #[test]
    fn bf16_is_f64_rounded() {
        let half = |seed| (crate::testing::random(seed, &[40_009], DType::F64), DType::BF16);
        crate::testing::assert_bf16(&[half(1), half(2)], 1.0, |t| {
            let mut teacher = t[0].new_empty(t[0].dims())?;
            teacher.fill_with(0..teacher.numel(), |i| (i % 3) as f64)?;
            update(&mut teacher, &t[1], 0.9)?;
            Ok(vec![teacher])
        });
    }

    #[test]
    fn the_ends_of_the_range_keep_or_copy() {
        let student = Tensor::from_slice(&[3.0f64, -4.0], &[2]).expect("student");
        let mut teacher = Tensor::from_slice(&[1.0f64, 2.0], &[2]).expect("teacher");
        update(&mut teacher, &student, 1.0).expect("keep");
        assert_eq!(teacher.to_vec::<f64>().expect("read"), [1.0, 2.0]);
        update(&mut teacher, &student, 0.0).expect("copy");
        assert_eq!(teacher.to_vec::<f64>().expect("read"), [3.0, -4.0]);
        let [mut none, nothing] = [0, 0].map(|n| Tensor::zeros(&[n], DType::F64, Device::Cpu).expect("empty"));
        update(&mut none, &nothing, 0.5).expect("nothing to do");
        assert!(update(&mut none, &student, 0.5).is_err());
        assert!(update(&mut teacher, &Tensor::zeros(&[2], DType::F32, Device::Cpu).expect("f32"), 0.5).is_err());
        assert!(update(&mut teacher, &student, 1.5).is_err());
        assert!(update(&mut teacher, &student, f64::NAN).is_err());
    }
}
