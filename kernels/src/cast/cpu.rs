//! One pass in fixed chunks.

use crate::elementwise::CHUNK;
use engine::{DType, Element, Error, Result, Tensor, bf16, f16, parallel};

pub(super) fn into(x: &Tensor, y: &mut Tensor) -> Result<()> {
    match (x.dtype(), y.dtype()) {
        (DType::F32, DType::BF16) => convert(x, y, bf16::from_f32),
        (DType::BF16, DType::F32) => convert(x, y, bf16::to_f32),
        (DType::F32, DType::F16) => convert(x, y, f16::from_f32),
        (DType::F16, DType::F32) => convert(x, y, f16::to_f32),
        (dtype, _) => Err(Error::Unsupported { op: super::OP, dtype, device: x.device() }),
    }
}

fn convert<A: Element, B: Element>(x: &Tensor, y: &mut Tensor, f: impl Fn(A) -> B + Sync) -> Result<()> {
    let from = x.as_slice::<A>()?.chunks(CHUNK);
    parallel::each(y.as_mut_slice::<B>()?.chunks_mut(CHUNK).zip(from), |(y, x)| {
        for (y, &x) in y.iter_mut().zip(x) {
            *y = f(x);
        }
    });
    Ok(())
}
