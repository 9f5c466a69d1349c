//! One launch for each piece, which are rows of the joined tensor's rows.

use super::piece_dims;
use crate::cuda::{CHUNK, copying, strided, suffix};
use bytemuck::{Pod, Zeroable};
use engine::cuda::{Image, launch};
use engine::{Result, Tensor};

static IMAGE: Image = Image::new("concat", include_bytes!("../../images/concat.fatbin.zst"));

/// `ConcatArgs` of concat.cu.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Args {
    from: u64,
    to: u64,
    rows: i64,
    length: i64,
    from_stride: i64,
    to_stride: i64,
}

/// Runs of `length` bytes, `stride` bytes apart.
#[derive(Clone, Copy)]
struct Runs {
    pointer: u64,
    stride: usize,
}

/// `xs` is not empty, and `dims` is the shape of the result.
pub fn forward(xs: &[&Tensor], axis: usize, dims: &[usize]) -> Result<Tensor> {
    let mut y = xs[0].new_empty(dims)?;
    let (joined, width) = (y.device_ptr_mut()?, bytes(&y, axis));
    let mut start = 0;
    for x in xs {
        let length = bytes(x, axis);
        let to = Runs { pointer: joined + start as u64, stride: width };
        copy(x, axis, Runs { pointer: x.device_ptr()?, stride: length }, to, length)?;
        start += length;
    }
    Ok(y)
}

pub fn split(dy: &Tensor, axis: usize, sizes: &[usize]) -> Result<Vec<Tensor>> {
    let (joined, width) = (dy.device_ptr()?, bytes(dy, axis));
    let mut start = 0;
    let mut pieces = Vec::with_capacity(sizes.len());
    for &size in sizes {
        let mut piece = dy.new_empty(&piece_dims(dy, axis, size))?;
        let length = bytes(&piece, axis);
        let from = Runs { pointer: joined + start as u64, stride: width };
        copy(dy, axis, from, Runs { pointer: piece.device_ptr_mut()?, stride: length }, length)?;
        start += length;
        pieces.push(piece);
    }
    Ok(pieces)
}

/// Bytes of a row: all axes from the joined one on.
fn bytes(x: &Tensor, axis: usize) -> usize {
    x.dims()[axis..].iter().product::<usize>() * x.dtype().size()
}

/// Copies `length` bytes of each row; `like` has the dtype, the device and, before the axis, the shape of both sides.
fn copy(like: &Tensor, axis: usize, from: Runs, to: Runs, length: usize) -> Result<()> {
    suffix(super::OP, like)?;
    let rows: usize = like.dims()[..axis].iter().product();
    let whole = [from.stride, to.stride, length].iter().all(|bytes| bytes.is_multiple_of(CHUNK))
        && [from.pointer, to.pointer].iter().all(|pointer| pointer.is_multiple_of(CHUNK as u64));
    let unit = if whole { CHUNK } else { like.dtype().size() };
    let units = |bytes: usize| (bytes / unit) as i64;
    let args = Args {
        from: from.pointer,
        to: to.pointer,
        rows: rows as i64,
        length: units(length),
        from_stride: units(from.stride),
        to_stride: units(to.stride),
    };
    let kernel = format!("concat_copy_{}", copying(unit));
    // SAFETY: both sides have rows of at least `length` bytes, which are whole units.
    unsafe { launch(like.device(), &IMAGE, &kernel, strided(like, rows * length / unit)?, &args) }
}
