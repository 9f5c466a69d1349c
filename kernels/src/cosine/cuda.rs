use crate::cuda::{THREADS, blocks, warps};
use bytemuck::{Pod, Zeroable};
use engine::cuda::{Image, launch};
use engine::{Result, Tensor};

static IMAGE: Image = Image::new("cosine", include_bytes!("../../images/cosine.fatbin.zst"));
/// Columns of a gradient that one block computes.
const SLAB: usize = 8 * THREADS as usize;

/// `CosineArgs` of cosine.cu.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Args {
    x: u64,
    others: u64,
    dy: u64,
    out: u64,
    rows: i64,
    count: i64,
    dim: i64,
    row_step: i64,
    other_step: i64,
}

impl Args {
    fn new(x: &Tensor, others: &Tensor, out: &mut Tensor) -> Result<Args> {
        let (rows, count, dim) = (x.rows() as i64, others.rows() as i64, x.channels() as i64);
        let (x, others, out) = (x.device_ptr()?, others.device_ptr()?, out.device_ptr_mut()?);
        Ok(Args { x, others, dy: 0, out, rows, count, dim, row_step: 0, other_step: 0 })
    }
}

pub fn forward(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    let mut y = a.new_empty(&[a.rows(), b.rows()])?;
    let args = Args::new(a, b, &mut y)?;
    let grid = warps(y.numel());
    // SAFETY: x is [rows, dim], others [count, dim], out [rows, count], all f32.
    unsafe { launch(a.device(), &IMAGE, "cosine_forward_f32", grid, &args)? };
    Ok(y)
}

pub fn backward(dy: &Tensor, a: &Tensor, b: &Tensor) -> Result<(Tensor, Tensor)> {
    let across = b.rows() as i64;
    Ok((one_side(dy, a, b, (across, 1))?, one_side(dy, b, a, (1, across))?))
}

/// The gradient of x; dy's steps from one row to the next, and from one of the others to the next.
fn one_side(dy: &Tensor, x: &Tensor, others: &Tensor, (row_step, other_step): (i64, i64)) -> Result<Tensor> {
    let mut dx = x.new_empty(x.dims())?;
    let args = Args { dy: dy.device_ptr()?, row_step, other_step, ..Args::new(x, others, &mut dx)? };
    let grid = blocks(x.rows() * x.channels().div_ceil(SLAB));
    // SAFETY: x and dx are [rows, dim], others [count, dim], dy has an element for every pair, all f32.
    unsafe { launch(x.device(), &IMAGE, "cosine_backward_f32", grid, &args)? };
    Ok(dx)
}
