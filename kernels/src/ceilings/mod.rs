//! What a device can do at most, for benches to compare with: moving memory, and multiply-adds without memory.

mod cpu;
mod cuda;

use engine::{DType, Device, Error, Result, Tensor};

const OP: &str = "ceilings";

/// What multiplies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// The CPU's vectors, or a GPU's CUDA cores.
    F32,
    /// Tensor cores, which only GPUs have: mma.sync, which from Hopper on is not their fastest instruction.
    Tf32,
    /// Tensor cores too; a CPU's tiles, or where it has none its vectors of f32.
    Bf16,
    F16,
}

/// A new tensor with x's f32 values. Errors when x is not f32, or its size no multiple of 4.
pub fn copy(x: &Tensor) -> Result<Tensor> {
    if x.dtype() != DType::F32 || !x.numel().is_multiple_of(4) {
        return Err(Error::shape(OP, format!("{:?} is not f32 in fours", x.dims())));
    }
    match x.device() {
        Device::Cpu => cpu::copy(x),
        Device::Cuda(_) => cuda::copy(x),
        device => Err(Error::Unsupported { op: OP, dtype: x.dtype(), device }),
    }
}

/// Multiply-adds of one unit, with what they need at hand.
pub struct Arithmetic {
    unit: Unit,
    operands: Option<cuda::Operands>,
}

impl Arithmetic {
    /// Errors when the device has no such unit.
    pub fn new(device: Device, unit: Unit) -> Result<Arithmetic> {
        match (device, unit) {
            (Device::Cpu, Unit::F32 | Unit::Bf16) => Ok(Arithmetic { unit, operands: None }),
            (Device::Cuda(_), _) => Ok(Arithmetic { unit, operands: Some(cuda::Operands::new(device)?) }),
            _ => Err(Error::Unsupported { op: OP, dtype: DType::F32, device }),
        }
    }

    /// Keeps every core of the device busy for `rounds` rounds, and returns how many floating-point operations that were, a
    /// multiplication and the addition that follows being two.
    pub fn run(&mut self, rounds: usize) -> Result<f64> {
        match (&mut self.operands, self.unit) {
            (Some(operands), unit) => operands.multiply_add(unit, rounds),
            #[cfg(target_arch = "x86_64")]
            (None, Unit::Bf16) if crate::simd::uses_tiles() => Ok(cpu::multiply_add_tiles(rounds)),
            (None, _) => Ok(cpu::multiply_add(rounds)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::random;

    #[test]
    fn copies_are_equal_and_operations_are_counted() {
        let x = random(1, &[3, 300_004], DType::F32);
        assert_eq!(copy(&x).and_then(|y| y.to_vec::<f32>()), x.to_vec::<f32>());
        assert!(copy(&random(1, &[3], DType::F32)).is_err() && copy(&random(1, &[4], DType::F64)).is_err());
        for unit in [Unit::F32, Unit::Bf16] {
            let mut arithmetic = Arithmetic::new(Device::Cpu, unit).expect("unit");
            let mut count = |rounds| arithmetic.run(rounds).expect("operations");
            assert_eq!(count(30), 3.0 * count(10), "{unit:?}");
        }
        assert!(Arithmetic::new(Device::Cpu, Unit::F16).is_err());
    }
}
