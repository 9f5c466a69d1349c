use crate::cuda::columns::{Columns, Plan};
use crate::cuda::suffix;
use bytemuck::{Pod, Zeroable};
use engine::cuda::{Image, launch};
use engine::{Result, Tensor};

static IMAGE: Image = Image::new("global_avg_pool", include_bytes!("../../images/global_avg_pool.fatbin.zst"));

/// `SumsArgs`, `MeanArgs` and `SpreadArgs` of global_avg_pool.cu, which are alike.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Args {
    from: u64,
    to: u64,
    matrix: Columns,
}

pub fn forward(x: &Tensor) -> Result<Tensor> {
    let (n, c, suffix) = (x.dims()[0], x.channels(), suffix(super::OP, x)?);
    let mut y = x.new_empty(&[n, c])?;
    if y.numel() == 0 {
        return Ok(y);
    }
    let plan = Plan::new(super::OP, x, &[], n)?;
    let mut partial = plan.partial(x, 1)?;
    let partial_ptr = partial.device_ptr_mut()?;
    let sums = Args { from: x.device_ptr()?, to: partial_ptr, matrix: plan.matrix };
    let mean = Args { from: partial_ptr, to: y.device_ptr_mut()?, matrix: plan.matrix };
    // SAFETY: x is the plan's matrix, partial has one value for each piece and channel, y one for each sample and channel.
    unsafe {
        launch(x.device(), &IMAGE, &format!("global_avg_pool_sums_{}", plan.version), plan.grid, &sums)?;
        launch(x.device(), &IMAGE, &format!("global_avg_pool_mean_{suffix}"), plan.totals(x)?, &mean)?;
    }
    Ok(y)
}

pub fn backward(dy: &Tensor, x_dims: &[usize]) -> Result<Tensor> {
    suffix(super::OP, dy)?;
    let mut dx = dy.new_empty(x_dims)?;
    if dx.numel() == 0 {
        return Ok(dx);
    }
    let plan = Plan::new(super::OP, &dx, &[dy], x_dims[0])?;
    let args = Args { from: dy.device_ptr()?, to: dx.device_ptr_mut()?, matrix: plan.matrix };
    // SAFETY: dx is the plan's matrix, dy has one value for each sample and channel.
    unsafe {
        launch(dy.device(), &IMAGE, &format!("global_avg_pool_spread_{}", plan.version), plan.grid, &args)?;
    }
    Ok(dx)
}
