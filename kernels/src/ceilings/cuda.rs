use super::Unit;
use crate::cuda::{THREADS, strided};
use bytemuck::{Pod, Zeroable};
use engine::cuda::{Grid, Image, launch, properties};
use engine::{DType, Device, Result, Tensor};

static IMAGE: Image = Image::new("ceilings", include_bytes!("../../images/ceilings.fatbin.zst"));

/// `ACCUMULATORS` and `TILES` of ceilings.cu.
const ACCUMULATORS: usize = 16;
const TILES: usize = 8;

/// `CeilingsArgs` of ceilings.cu.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Args {
    a: u64,
    out: u64,
    n: i64,
}

pub fn copy(x: &Tensor) -> Result<Tensor> {
    let mut y = x.new_empty(x.dims())?;
    let n = x.numel() / 4;
    let args = Args { a: x.device_ptr()?, out: y.device_ptr_mut()?, n: n as i64 };
    // SAFETY: x and y have n words of 16 bytes.
    unsafe { launch(x.device(), &IMAGE, "ceilings_copy", strided(x, n)?, &args)? };
    Ok(y)
}

/// `rounds` in each of the 2048 threads that a multiprocessor holds.
pub fn multiply_add(device: Device, unit: Unit, rounds: usize) -> Result<f64> {
    let blocks = properties(device)?.multiprocessors * (2048 / THREADS);
    let threads = (blocks * THREADS) as usize;
    // a factor and a summand of f32; the halves of the first are numbers near one in bf16 and in f16
    let a = Tensor::from_slice(&[f32::from_bits(0x3f80_3f80), 1.0], &[2])?.to_device(device)?;
    let mut out = Tensor::empty(&[threads], DType::F32, device)?;
    let args = Args { a: a.device_ptr()?, out: out.device_ptr_mut()?, n: rounds as i64 };
    let (name, flops) = match unit {
        Unit::F32 => ("f32", 2 * ACCUMULATORS * threads),
        Unit::Tf32 => ("tf32", 2 * 16 * 8 * 8 * TILES * threads / 32),
        Unit::Bf16 => ("bf16", 2 * 16 * 8 * 16 * TILES * threads / 32),
        Unit::F16 => ("f16", 2 * 16 * 8 * 16 * TILES * threads / 32),
    };
    let grid = Grid { grid: [blocks, 1, 1], block: [THREADS, 1, 1], shared: 0 };
    // SAFETY: a has two values, and out one for each thread.
    unsafe { launch(device, &IMAGE, &format!("ceilings_multiply_add_{name}"), grid, &args)? };
    Ok(flops as f64 * rounds as f64)
}
