//! Sums of rows on a CUDA device: blocks of rows whose number follows from the shape alone, then the sum of their sums.

use crate::cuda::{THREADS, suffix};
use bytemuck::{Pod, Zeroable};
use engine::cuda::{Grid, Image, launch};
use engine::{DType, Result, Tensor};

static IMAGE: Image = Image::new("sum_rows", include_bytes!("../../images/sum_rows.fatbin.zst"));

/// The most blocks of rows.
const BLOCKS: usize = 512;
/// Rows that a thread adds before another block is worth it.
const THREAD_ROWS: usize = 16;

/// `SumRowsArgs` of sum_rows.cu.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Args {
    x: u64,
    y: u64,
    rows: i64,
    block_rows: i64,
    channels: i32,
    reserved: i32,
}

pub fn forward(op: &'static str, x: &Tensor) -> Result<Tensor> {
    let channels = x.channels();
    if x.numel() == 0 {
        suffix(op, x)?;
        return Tensor::zeros(&[channels], DType::F32, x.device());
    }
    let mut sums = x.reshape(&[x.numel() / channels, channels])?;
    loop {
        sums = sum_blocks(op, &sums)?;
        if sums.dims()[0] == 1 {
            return sums.reshape(&[channels]);
        }
    }
}

/// `[rows, channels]` -> `[blocks, channels]`, with fewer blocks than rows unless there is but one.
fn sum_blocks(op: &'static str, x: &Tensor) -> Result<Tensor> {
    let [rows, channels] = [x.dims()[0], x.dims()[1]];
    let chunk = 16 / x.dtype().size();
    let whole = channels.is_multiple_of(chunk) && x.device_ptr()?.is_multiple_of(16);
    let chunks = if whole { channels / chunk } else { channels };
    let lines = (THREADS as usize / chunks).max(1);
    let block_rows = rows.div_ceil(BLOCKS).max(THREAD_ROWS * lines);
    let blocks = rows.div_ceil(block_rows);
    let mut y = Tensor::empty(&[blocks, channels], DType::F32, x.device())?;
    let args = Args {
        x: x.device_ptr()?,
        y: y.device_ptr_mut()?,
        rows: rows as i64,
        block_rows: block_rows as i64,
        channels: channels as i32,
        reserved: 0,
    };
    let kernel = format!("sum_rows{}_{}", if whole { "" } else { "_any" }, suffix(op, x)?);
    let grid =
        Grid { grid: [blocks as u32, chunks.div_ceil(THREADS as usize) as u32, 1], block: [THREADS, 1, 1], shared: 0 };
    // SAFETY: x has the rows and channels that are given, y a row for each block.
    unsafe { launch(x.device(), &IMAGE, &kernel, grid, &args)? };
    Ok(y)
}
