//! Window attention without values: its arithmetic, and the memory of the f32 version on the CPU.

use super::cpu::bias_dims;
use super::grid::Grid;
use super::{Grads, Problem, sums};
use engine::{Result, Tensor, meta};

/// Two products: q kᵀ and p v.
pub(super) fn forward(problem: &Problem, grid: &Grid, qkv: &Tensor) -> Result<()> {
    meta::count(2 * products(problem, grid));
    bias(problem, grid, qkv).map(drop)
}

/// Five products: q kᵀ again, dy vᵀ, and those that give dq, dk and dv.
pub(super) fn backward(problem: &Problem, grid: &Grid, qkv: &Tensor, pad: &Tensor, table: &Tensor) -> Result<Grads> {
    meta::count(5 * products(problem, grid));
    let _bias = bias(problem, grid, qkv)?;
    let new = |t: &Tensor| t.new_empty(t.dims());
    Ok(Grads { dqkv: new(qkv)?, dpad: new(pad)?, dtable: new(table)? })
}

/// The expanded biases.
fn bias(problem: &Problem, grid: &Grid, qkv: &Tensor) -> Result<Tensor> {
    Tensor::empty(&bias_dims(grid, problem.heads), sums(qkv), qkv.device())
}

/// Floating-point operations of one product of all pairs of tokens of all windows, padded tokens among them.
fn products(problem: &Problem, grid: &Grid) -> usize {
    2 * problem.batch * grid.windows() * grid.tokens().pow(2) * problem.channels
}
