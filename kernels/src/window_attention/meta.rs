//! Window attention without values: the memory of the f32 version on the CPU.

use super::cpu::bias_dims;
use super::grid::Grid;
use super::{Grads, Problem, sums};
use engine::{Result, Tensor};

pub(super) fn forward(problem: &Problem, grid: &Grid, qkv: &Tensor) -> Result<()> {
    bias(problem, grid, qkv).map(drop)
}

pub(super) fn backward(problem: &Problem, grid: &Grid, qkv: &Tensor, pad: &Tensor, table: &Tensor) -> Result<Grads> {
    let _bias = bias(problem, grid, qkv)?;
    let new = |t: &Tensor| t.new_empty(t.dims());
    Ok(Grads { dqkv: new(qkv)?, dpad: new(pad)?, dtable: new(table)? })
}

/// The expanded biases.
fn bias(problem: &Problem, grid: &Grid, qkv: &Tensor) -> Result<Tensor> {
    Tensor::empty(&bias_dims(grid, problem.heads), sums(qkv), qkv.device())
}
