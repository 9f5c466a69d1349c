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

/// What multiply-adds are given, and where the sums go.
pub struct Operands {
    a: Tensor,
    out: Tensor,
    blocks: u32,
}

impl Operands {
    pub fn new(device: Device) -> Result<Operands> {
        let blocks = properties(device)?.multiprocessors * (2048 / THREADS);
        // a factor and a summand of f32; the halves of the first are numbers near one in bf16 and in f16
        let a = Tensor::from_slice(&[f32::from_bits(0x3f80_3f80), 1.0], &[2])?.to_device(device)?;
        Ok(Operands { a, out: Tensor::empty(&[(blocks * THREADS) as usize], DType::F32, device)?, blocks })
    }

    /// `rounds` in each of the 2048 threads that a multiprocessor holds.
    pub fn multiply_add(&mut self, unit: Unit, rounds: usize) -> Result<f64> {
        let (threads, n) = (self.out.numel(), rounds as i64);
        let (name, flops) = match unit {
            Unit::F32 => ("f32", 2 * ACCUMULATORS * threads),
            Unit::Tf32 => ("tf32", 2 * 16 * 8 * 8 * TILES * threads / 32),
            Unit::Bf16 => ("bf16", 2 * 16 * 8 * 16 * TILES * threads / 32),
            Unit::F16 => ("f16", 2 * 16 * 8 * 16 * TILES * threads / 32),
        };
        let grid = Grid { grid: [self.blocks, 1, 1], block: [THREADS, 1, 1], shared: 0 };
        let args = Args { a: self.a.device_ptr()?, out: self.out.device_ptr_mut()?, n };
        // SAFETY: a has two values, and out one for each thread.
        unsafe { launch(self.a.device(), &IMAGE, &format!("ceilings_multiply_add_{name}"), grid, &args)? };
        Ok(flops as f64 * rounds as f64)
    }
}
