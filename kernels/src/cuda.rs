//! What the launches of all operations share.

use engine::cuda::{Grid, properties};
use engine::{DType, Error, Result, Tensor};

/// Threads of a block of kernels that have no reason for another number.
pub(crate) const THREADS: u32 = 256;
/// Blocks that keep a multiprocessor busy under such kernels: 2048 threads, all that it holds.
const BLOCKS: u32 = 2048 / THREADS;

/// The ending of the names of kernels for x's dtype. Errors for other dtypes than f32 and bf16.
pub(crate) fn suffix(op: &'static str, x: &Tensor) -> Result<&'static str> {
    match x.dtype() {
        DType::F32 => Ok("f32"),
        DType::BF16 => Ok("bf16"),
        dtype => Err(Error::Unsupported { op, dtype, device: x.device() }),
    }
}

/// For kernels whose threads walk over `n` elements in strides of the whole grid, which no result depends on.
pub(crate) fn strided(x: &Tensor, n: usize) -> Result<Grid> {
    let most = properties(x.device())?.multiprocessors * BLOCKS;
    let wanted = n.div_ceil(THREADS as usize);
    let blocks = u32::try_from(wanted).map_or(most, |blocks| blocks.min(most));
    Ok(Grid { grid: [blocks, 1, 1], block: [THREADS, 1, 1], shared: 0 })
}

/// `n` blocks; fewer where a grid cannot have as many, for kernels whose blocks walk in strides of the grid.
pub(crate) fn blocks(n: usize) -> Grid {
    let most = i32::MAX.unsigned_abs();
    Grid { grid: [u32::try_from(n).map_or(most, |n| n.min(most)), 1, 1], block: [THREADS, 1, 1], shared: 0 }
}

/// As [`blocks`], with a warp for each of `n` rows.
pub(crate) fn warps(n: usize) -> Grid {
    blocks(n.div_ceil(THREADS as usize / 32))
}
