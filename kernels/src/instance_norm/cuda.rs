//! Statistics and sums over pieces of the samples, then their totals, then a pass that writes.

use super::{Grads, MIN_INVERTIBLE_SLOPE, Output, Params};
use crate::cuda::columns::{Columns, Plan};
use bytemuck::{Pod, Zeroable};
use engine::cuda::{Image, launch};
use engine::{DType, Result, Tensor};

static IMAGE: Image = Image::new("instance_norm", include_bytes!("../../images/instance_norm.fatbin.zst"));

/// `MomentsArgs` of instance_norm.cu, and so on.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct MomentsArgs {
    x: u64,
    partial: u64,
    matrix: Columns,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct StatisticsArgs {
    partial: u64,
    mean: u64,
    rstd: u64,
    matrix: Columns,
    eps: f32,
    reserved: i32,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct ForwardArgs {
    x: u64,
    residual: u64,
    mean: u64,
    rstd: u64,
    y: u64,
    matrix: Columns,
    slope: f32,
    reserved: i32,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct SumsArgs {
    dy: u64,
    h: u64,
    shift: u64,
    y: u64,
    dz: u64,
    partial: u64,
    matrix: Columns,
    slope: f32,
    reserved: i32,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct RulesArgs {
    partial: u64,
    rstd: u64,
    gain: u64,
    offset: u64,
    factor: u64,
    matrix: Columns,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct BackwardArgs {
    g: u64,
    h: u64,
    shift: u64,
    rstd: u64,
    offset: u64,
    factor: u64,
    dx: u64,
    matrix: Columns,
    slope: f32,
    reserved: i32,
}

pub fn forward(x: &Tensor, residual: Option<&Tensor>, p: Params) -> Result<Output> {
    let dims = [x.dims()[0], x.channels()];
    let mut y = x.new_empty(x.dims())?;
    let [mut mean, mut rstd] = [per_channel(x, dims)?, per_channel(x, dims)?];
    let plan = Plan::new(super::OP, x, &[residual.unwrap_or(x), &y], dims[0])?;
    let matrix = plan.matrix;
    let mut partial = plan.partial(x, 2)?;
    let (partial_ptr, mean_ptr, rstd_ptr) = (partial.device_ptr_mut()?, mean.device_ptr_mut()?, rstd.device_ptr_mut()?);
    let moments = MomentsArgs { x: x.device_ptr()?, partial: partial_ptr, matrix };
    let eps = p.eps as f32;
    let statistics = StatisticsArgs { partial: partial_ptr, mean: mean_ptr, rstd: rstd_ptr, matrix, eps, reserved: 0 };
    let forward = ForwardArgs {
        x: x.device_ptr()?,
        residual: residual.map_or(Ok(0), Tensor::device_ptr)?,
        mean: mean_ptr,
        rstd: rstd_ptr,
        y: y.device_ptr_mut()?,
        matrix,
        slope: p.slope.unwrap_or(1.0) as f32,
        reserved: 0,
    };
    // SAFETY: x, residual and y are the plan's matrix in shape, partial has two values for each piece and channel, the others one
    // for each sample and channel.
    unsafe {
        run(x, "moments", &plan, &moments)?;
        launch(x.device(), &IMAGE, "instance_norm_statistics", plan.totals(x)?, &statistics)?;
        run(x, "forward", &plan, &forward)?;
    }
    Ok(Output { y, mean, rstd })
}

pub fn backward(
    dy: &Tensor,
    x: &Tensor,
    y: &Tensor,
    mean: &Tensor,
    rstd: &Tensor,
    has_residual: bool,
    p: Params,
) -> Result<Grads> {
    let slope = p.slope.unwrap_or(1.0);
    if !has_residual && slope >= MIN_INVERTIBLE_SLOPE {
        let view = View { h: y, moments: None, rstd, slope: slope as f32 };
        return Ok(Grads { dx: view.gradient(dy, None)?, dresidual: None });
    }
    let view = View { h: x, moments: Some((mean, rstd)), rstd, slope: slope as f32 };
    let mut dz = x.new_empty(x.dims())?;
    let dx = view.gradient(dy, Some((y, &mut dz)))?;
    Ok(Grads { dx, dresidual: has_residual.then_some(dz) })
}

/// dx of the norm alone, without an activation.
pub fn backward_of_norm(dy: &Tensor, x: &Tensor, mean: &Tensor, rstd: &Tensor) -> Result<Tensor> {
    View { h: x, moments: Some((mean, rstd)), rstd, slope: 1.0 }.gradient(dy, None)
}

/// Where x̂ comes from: h is y, or x with its moments.
struct View<'a> {
    h: &'a Tensor,
    moments: Option<(&'a Tensor, &'a Tensor)>,
    rstd: &'a Tensor,
    slope: f32,
}

impl View<'_> {
    /// dx. With `sides`, (y, dz), y gives the sides of the activation, and dz is written; else h does.
    fn gradient(&self, dy: &Tensor, mut sides: Option<(&Tensor, &mut Tensor)>) -> Result<Tensor> {
        let h = self.h;
        let dims = [h.dims()[0], h.channels()];
        let mut dx = h.new_empty(h.dims())?;
        let [mut offset, mut factor] = [per_channel(h, dims)?, per_channel(h, dims)?];
        let (y, dz) = match &mut sides {
            None => (None, None),
            Some((y, dz)) => (Some(*y), Some(dz.device_ptr_mut()?)),
        };
        let read = [dy, &dx].into_iter().chain(y).chain(sides.as_ref().map(|(_, dz)| &**dz));
        let plan = Plan::new(super::OP, h, &read.collect::<Vec<_>>(), dims[0])?;
        let matrix = plan.matrix;
        let mut partial = plan.partial(h, 2)?;
        let (shift, gain) = match self.moments {
            None => (0, 0),
            Some((mean, rstd)) => (mean.device_ptr()?, rstd.device_ptr()?),
        };
        let (partial_ptr, rstd, h_ptr) = (partial.device_ptr_mut()?, self.rstd.device_ptr()?, h.device_ptr()?);
        let (offset, factor) = (offset.device_ptr_mut()?, factor.device_ptr_mut()?);
        let sums = SumsArgs {
            dy: dy.device_ptr()?,
            h: h_ptr,
            shift,
            y: y.map_or(Ok(0), Tensor::device_ptr)?,
            dz: dz.unwrap_or(0),
            partial: partial_ptr,
            matrix,
            slope: self.slope,
            reserved: 0,
        };
        let rules = RulesArgs { partial: partial_ptr, rstd, gain, offset, factor, matrix };
        let backward = BackwardArgs {
            g: dz.unwrap_or(sums.dy),
            h: h_ptr,
            shift,
            rstd,
            offset,
            factor,
            dx: dx.device_ptr_mut()?,
            matrix,
            slope: if dz.is_some() { 1.0 } else { self.slope },
            reserved: 0,
        };
        // SAFETY: dy, h, y, dz and dx are the plan's matrix in shape, partial has two values for each piece and channel, the
        // others one for each sample and channel.
        unsafe {
            run(h, "sums", &plan, &sums)?;
            launch(h.device(), &IMAGE, "instance_norm_rules", plan.totals(h)?, &rules)?;
            run(h, "backward", &plan, &backward)?;
        }
        Ok(dx)
    }
}

fn per_channel(x: &Tensor, dims: [usize; 2]) -> Result<Tensor> {
    Tensor::empty(&dims, DType::F32, x.device())
}

/// Starts a kernel that works on pieces.
///
/// # Safety
/// As [`launch`].
unsafe fn run<A: Pod>(x: &Tensor, what: &str, plan: &Plan, args: &A) -> Result<()> {
    // SAFETY: the caller's.
    unsafe { launch(x.device(), &IMAGE, &format!("instance_norm_{what}_{}", plan.version), plan.grid, args) }
}
