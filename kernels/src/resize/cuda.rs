use crate::cuda::{chunked, narrow, strided, version};
use bytemuck::{Pod, Zeroable};
use engine::cuda::{Image, launch};
use engine::{Error, Result, Tensor};

static IMAGE: Image = Image::new("resize", include_bytes!("../../images/resize.fatbin.zst"));

/// `ResizeArgs` of resize.cu.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Args {
    from: u64,
    to: u64,
    n: i64,
    x: [i32; 3],
    y: [i32; 3],
    chunks: i32,
    align: i32,
}

pub fn forward(x: &Tensor, size: [usize; 3], align_corners: bool) -> Result<Tensor> {
    let [n, d, h, w, c] = x.ndhwc(super::OP)?;
    let mut y = x.new_empty(&[n, size[0], size[1], size[2], c])?;
    run("resize_forward", x, &mut y, ([d, h, w], size), align_corners)?;
    Ok(y)
}

/// `x_dims` has five axes.
pub fn backward(dy: &Tensor, x_dims: &[usize], align_corners: bool) -> Result<Tensor> {
    let [_, d, h, w, _] = dy.ndhwc(super::OP)?;
    let mut dx = dy.new_empty(x_dims)?;
    run("resize_backward", dy, &mut dx, ([x_dims[1], x_dims[2], x_dims[3]], [d, h, w]), align_corners)?;
    Ok(dx)
}

/// `sizes` are those of x and y.
fn run(
    kernel: &str,
    from: &Tensor,
    to: &mut Tensor,
    sizes: ([usize; 3], [usize; 3]),
    align_corners: bool,
) -> Result<()> {
    let axes = sizes.0.into_iter().zip(sizes.1);
    if let Some((x, y)) = axes.into_iter().find(|&(x, y)| !countable(x, y)) {
        return Err(Error::shape(super::OP, format!("{x} to {y} voxels is too much for the device's kernels")));
    }
    let (version, chunk) = version(super::OP, from, chunked(from.channels(), from, &[to])?)?;
    let n = to.numel() / chunk;
    let args = Args {
        from: from.device_ptr()?,
        to: to.device_ptr_mut()?,
        n: n as i64,
        x: sizes.0.map(|size| size as i32),
        y: sizes.1.map(|size| size as i32),
        chunks: narrow(super::OP, from.channels() / chunk)?,
        align: align_corners.into(),
    };
    // SAFETY: both have these shapes and the kernel's dtype, and their channels are whole chunks.
    unsafe { launch(from.device(), &IMAGE, &format!("{kernel}_{version}"), strided(from, n)?, &args) }
}

/// Whether the kernels' 32-bit positions along an axis suffice.
fn countable(x: usize, y: usize) -> bool {
    let fits =
        |a: usize, b: usize| a.checked_mul(2).and_then(|a| (a + 3).checked_mul(b + 1)).is_some_and(|v| v >> 31 == 0);
    fits(x, y) && fits(y, x)
}
