//! A batch is one sample of an instance norm, whose voxels are the batch's rows.

use super::Output;
use crate::instance_norm::{Params, cuda as instance_norm};
use engine::{Result, Tensor};

pub fn forward(x: &Tensor, eps: f64) -> Result<Output> {
    let of_channels = |t: Tensor| t.reshape(&[x.channels()]);
    let out = instance_norm::forward(&sample(x)?, None, Params { eps, slope: None })?;
    Ok(Output { y: out.y.reshape(x.dims())?, mean: of_channels(out.mean)?, rstd: of_channels(out.rstd)? })
}

pub fn backward(dy: &Tensor, x: &Tensor, mean: &Tensor, rstd: &Tensor) -> Result<Tensor> {
    instance_norm::backward_of_norm(&sample(dy)?, &sample(x)?, mean, rstd)?.reshape(x.dims())
}

fn sample(x: &Tensor) -> Result<Tensor> {
    x.reshape(&[1, 1, 1, x.rows(), x.channels()])
}
