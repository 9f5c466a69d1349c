//! What the launches of all operations share.

pub(crate) mod columns;

use engine::cuda::{Grid, properties};
use engine::{DType, Error, Result, Tensor};

/// Bytes that a thread moves at once, where lengths and addresses are multiples of them.
pub(crate) const CHUNK: usize = 16;

/// Threads of a block of kernels that have no reason for another number.
pub(crate) const THREADS: u32 = 256;
/// Blocks that keep a multiprocessor busy under such kernels: 2048 threads, all that it holds.
const BLOCKS: u32 = 2048 / THREADS;

/// The ending of the names of kernels for x's dtype. Errors for other dtypes than f32, bf16 and f16.
pub(crate) fn suffix(op: &'static str, x: &Tensor) -> Result<&'static str> {
    match x.dtype() {
        DType::F32 => Ok("f32"),
        DType::BF16 => Ok("bf16"),
        DType::F16 => Ok("f16"),
        dtype => Err(Error::Unsupported { op, dtype, device: x.device() }),
    }
}

/// Whether a kernel may move whole chunks: rows of `channels` elements of x's dtype are made of them, and so are the tensors.
pub(crate) fn chunked(channels: usize, x: &Tensor, others: &[&Tensor]) -> Result<bool> {
    let mut whole = (channels * x.dtype().size()).is_multiple_of(CHUNK);
    for t in others.iter().chain([&x]) {
        whole &= t.device_ptr()?.is_multiple_of(CHUNK as u64);
    }
    Ok(whole)
}

/// The ending of kernels that come in two versions, with and without chunks, and the elements that either moves at once.
pub(crate) fn version(op: &'static str, x: &Tensor, chunked: bool) -> Result<(String, usize)> {
    let suffix = suffix(op, x)?;
    Ok(if chunked { (suffix.to_string(), CHUNK / x.dtype().size()) } else { (format!("any_{suffix}"), 1) })
}

/// The ending of kernels that copy units of so many bytes.
pub(crate) fn copying(unit: usize) -> &'static str {
    match unit {
        CHUNK => "b128",
        4 => "b32",
        _ => "b16",
    }
}

/// A size for a kernel's 32-bit argument.
pub(crate) fn narrow(op: &'static str, size: usize) -> Result<i32> {
    i32::try_from(size).map_err(|_| Error::shape(op, format!("an axis of {size} is too long for the device's kernels")))
}

/// As [`strided`], for kernels that move chunks wherever they can.
pub(crate) fn by_chunks(x: &Tensor) -> Result<Grid> {
    strided(x, x.numel().div_ceil(CHUNK / x.dtype().size()))
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
