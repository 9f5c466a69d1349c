use crate::cuda::{THREADS, suffix};
use bytemuck::{Pod, Zeroable};
use engine::cuda::{Grid, Image, launch};
use engine::{DType, Result, Tensor};

static IMAGE: Image = Image::new("l2_norm", include_bytes!("../../images/l2_norm.fatbin.zst"));

/// The most partial sums; a constant, so that results are the same on all cards.
const PIECES: usize = 1024;
/// Elements that are worth a block of their own.
const LEAST: usize = 16 * THREADS as usize;

/// `SquaresArgs` of l2_norm.cu.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct SquaresArgs {
    x: u64,
    partial: u64,
    n: i64,
    piece: i64,
}

/// `TotalArgs` of l2_norm.cu.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct TotalArgs {
    partial: u64,
    norm: u64,
    pieces: i64,
}

pub(super) fn forward(x: &Tensor) -> Result<f64> {
    let piece = x.numel().div_ceil(PIECES).next_multiple_of(LEAST);
    let pieces = x.numel().div_ceil(piece.max(1));
    let mut partial = Tensor::empty(&[pieces], DType::F64, x.device())?;
    let mut norm = Tensor::empty(&[1], DType::F64, x.device())?;
    let kernel = format!("l2_norm_squares_{}", suffix(super::OP, x)?);
    let grid = |blocks| Grid { grid: [blocks, 1, 1], block: [THREADS, 1, 1], shared: 0 };
    let partial_ptr = partial.device_ptr_mut()?;
    let squares = SquaresArgs { x: x.device_ptr()?, partial: partial_ptr, n: x.numel() as i64, piece: piece as i64 };
    let total = TotalArgs { partial: partial_ptr, norm: norm.device_ptr_mut()?, pieces: pieces as i64 };
    // SAFETY: x has n elements of the kernel's dtype, partial one for each block of the first kernel, norm one.
    unsafe {
        launch(x.device(), &IMAGE, &kernel, grid(pieces as u32), &squares)?;
        launch(x.device(), &IMAGE, "l2_norm_total", grid(1), &total)?;
    }
    norm.item()
}
