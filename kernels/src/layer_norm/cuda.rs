use super::{Grads, Output};
use crate::cuda::columns::{Columns, Plan};
use crate::cuda::{chunked, narrow, strided, version};
use bytemuck::{Pod, Zeroable};
use engine::cuda::{Image, launch};
use engine::{DType, Result, Tensor};

static IMAGE: Image = Image::new("layer_norm", include_bytes!("../../images/layer_norm.fatbin.zst"));

/// Chunks of a row that one lane should have.
const LANE_CHUNKS: usize = 2;

/// `ForwardArgs` of layer_norm.cu, and so on.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct ForwardArgs {
    x: u64,
    weight: u64,
    bias: u64,
    y: u64,
    mean: u64,
    rstd: u64,
    rows: i64,
    channels: i32,
    lanes: i32,
    eps: f32,
    reserved: i32,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct BackwardArgs {
    dy: u64,
    x: u64,
    weight: u64,
    mean: u64,
    rstd: u64,
    dx: u64,
    rows: i64,
    channels: i32,
    lanes: i32,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct SharesArgs {
    dy: u64,
    x: u64,
    mean: u64,
    rstd: u64,
    partial: u64,
    matrix: Columns,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct TotalArgs {
    partial: u64,
    dweight: u64,
    dbias: u64,
    matrix: Columns,
}

pub fn forward(x: &Tensor, affine: Option<(&Tensor, &Tensor)>, eps: f64) -> Result<Output> {
    let (rows, channels) = (x.rows(), x.channels());
    let mut y = x.new_empty(x.dims())?;
    let [mut mean, mut rstd] = [of_f32(x, rows)?, of_f32(x, rows)?];
    let (version, chunk) = version(super::OP, x, chunked(channels, x, &[&y])?)?;
    let lanes = lanes(channels / chunk);
    let args = ForwardArgs {
        x: x.device_ptr()?,
        weight: affine.map_or(Ok(0), |(weight, _)| weight.device_ptr())?,
        bias: affine.map_or(Ok(0), |(_, bias)| bias.device_ptr())?,
        y: y.device_ptr_mut()?,
        mean: mean.device_ptr_mut()?,
        rstd: rstd.device_ptr_mut()?,
        rows: rows as i64,
        channels: narrow(super::OP, channels)?,
        lanes: lanes as i32,
        eps: eps as f32,
        reserved: 0,
    };
    // SAFETY: x and y have these rows and channels in the kernel's dtype; mean and rstd a value for each row, weight and bias one
    // for each channel.
    unsafe {
        launch(x.device(), &IMAGE, &format!("layer_norm_forward_{version}"), strided(x, rows * lanes)?, &args)?;
    }
    Ok(Output { y, mean, rstd })
}

pub fn backward(dy: &Tensor, x: &Tensor, weight: Option<&Tensor>, mean: &Tensor, rstd: &Tensor) -> Result<Grads> {
    let (rows, channels) = (x.rows(), x.channels());
    let mut dx = x.new_empty(x.dims())?;
    let (version, chunk) = version(super::OP, x, chunked(channels, x, &[dy, &dx])?)?;
    let lanes = lanes(channels / chunk);
    let args = BackwardArgs {
        dy: dy.device_ptr()?,
        x: x.device_ptr()?,
        weight: weight.map_or(Ok(0), Tensor::device_ptr)?,
        mean: mean.device_ptr()?,
        rstd: rstd.device_ptr()?,
        dx: dx.device_ptr_mut()?,
        rows: rows as i64,
        channels: narrow(super::OP, channels)?,
        lanes: lanes as i32,
    };
    // SAFETY: as in the forward pass.
    unsafe {
        launch(x.device(), &IMAGE, &format!("layer_norm_backward_{version}"), strided(x, rows * lanes)?, &args)?;
    }
    let [dweight, dbias] = match weight {
        Some(_) => shares(dy, x, mean, rstd)?.map(Some),
        None => [None, None],
    };
    Ok(Grads { dx, dweight, dbias })
}

/// dweight and dbias.
fn shares(dy: &Tensor, x: &Tensor, mean: &Tensor, rstd: &Tensor) -> Result<[Tensor; 2]> {
    let [mut dweight, mut dbias] = [of_f32(x, x.channels())?, of_f32(x, x.channels())?];
    let plan = Plan::new(super::OP, x, &[dy], 1)?;
    let mut partial = plan.partial(x, 2)?;
    let (partial_ptr, matrix) = (partial.device_ptr_mut()?, plan.matrix);
    let shares = SharesArgs {
        dy: dy.device_ptr()?,
        x: x.device_ptr()?,
        mean: mean.device_ptr()?,
        rstd: rstd.device_ptr()?,
        partial: partial_ptr,
        matrix,
    };
    let total =
        TotalArgs { partial: partial_ptr, dweight: dweight.device_ptr_mut()?, dbias: dbias.device_ptr_mut()?, matrix };
    // SAFETY: x and dy are the plan's matrix, partial has two values for each piece and channel, dweight and dbias one for each
    // channel, mean and rstd one for each row.
    unsafe {
        launch(x.device(), &IMAGE, &format!("layer_norm_shares_{}", plan.version), plan.grid, &shares)?;
        launch(x.device(), &IMAGE, "layer_norm_total", plan.totals(x)?, &total)?;
    }
    Ok([dweight, dbias])
}

fn of_f32(x: &Tensor, len: usize) -> Result<Tensor> {
    Tensor::empty(&[len], DType::F32, x.device())
}

/// Lanes that share a row of so many chunks: a power of two up to a warp.
fn lanes(chunks: usize) -> usize {
    chunks.div_ceil(LANE_CHUNKS).next_power_of_two().min(32)
}
