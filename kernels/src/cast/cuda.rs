use crate::cuda::strided;
use bytemuck::{Pod, Zeroable};
use engine::cuda::{Image, launch};
use engine::{DType, Result, Tensor};

static IMAGE: Image = Image::new("cast", include_bytes!("../../images/cast.fatbin.zst"));

/// Elements that a thread moves at once, where it can: 16 bytes of the narrower array.
const WIDE: usize = 8;

/// `CastArgs` of cast.cu.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Args {
    x: u64,
    y: u64,
    n: i64,
}

/// One of x and y is f32, the other `low`.
pub(super) fn into(x: &Tensor, y: &mut Tensor, low: DType) -> Result<()> {
    let args = Args { x: x.device_ptr()?, y: y.device_ptr_mut()?, n: x.numel() as i64 };
    let direction = if x.dtype() == low { "widen" } else { "narrow" };
    let grid = strided(x, x.numel().div_ceil(WIDE))?;
    // SAFETY: x and y have n elements, the kernel's dtype on one side and f32 on the other.
    unsafe { launch(x.device(), &IMAGE, &format!("cast_{direction}_{low}"), grid, &args) }
}
