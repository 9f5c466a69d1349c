//! Shifted-window attention with relative position bias, from q, k and v (Swin Transformer; MONAI's `WindowAttention` with
//! its pad, roll, partition, mask and their inverses around it).
//!
//! The grid is padded at the end of each axis to whole windows with the vector `pad`, rolled by `-shift`, and cut into windows
//! of n tokens. In each window and head, for query i and key j:
//!
//! ```text
//! s_ij  = head_dim^-1/2 q_i . k_j + table[index(i, j), head] + m_ij
//! lse_i = ln sum_j exp s_ij      p_ij = exp(s_ij - lse_i)      y_i = sum_j p_ij v_j
//! ```
//!
//! then windows, roll and padding are undone. Padded tokens take part as keys and values.
//! - An axis no longer than `window` is one window of its own size, without shift.
//! - m_ij is -100 where the roll brought one of i and j round from the other end of an axis and left the other, else 0.
//! - `index` numbers the offsets between two tokens of the nominal window (a, b, c):
//!   `((di + a-1) (2b-1) + dj + b-1) (2c-1) + dk + c-1`. Token t of a smaller window takes the place of token t of the nominal
//!   one; that is MONAI's `index[:n, :n]`, and trained weights count on it.
//!
//! Backward, from dy, with D_i = dy_i . y_i and p recomputed from lse:
//!
//! ```text
//! ds_ij = p_ij (dy_i . v_j - D_i)
//! dq_i = head_dim^-1/2 sum_j ds_ij k_j    dk_j = head_dim^-1/2 sum_i ds_ij q_i    dv_j = sum_i p_ij dy_i
//! dtable[index(i, j), head] += ds_ij
//! ```
//!
//! A NaN or an infinity among the scores of a query makes its y and lse NaN. An empty batch or grid gives empty outputs and
//! zero gradients of `pad` and `table`.

mod cpu;
mod cpu_f64;
mod cuda;
mod grid;
mod meta;
#[cfg(test)]
mod tests;

use crate::check::{counted, product, sum_dtype};
use engine::{DType, Device, Error, Result, Tensor, bf16};
use grid::Grid;

const OP: &str = "window_attention";
/// Added to the scores between two regions of a window.
const MASKED: f32 = -100.0;

/// `window` is the nominal window, the one that the table was made for; `shift` is below it on every axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Params {
    pub heads: usize,
    pub window: [usize; 3],
    pub shift: [usize; 3],
}

impl Params {
    /// Rows of the table of biases: prod(2 window - 1).
    fn check(self) -> Result<usize> {
        let Params { heads, window, shift } = self;
        if heads == 0 || (0..3).any(|a| shift[a] >= window[a]) {
            let rule = "heads must be positive, and shift below window on every axis";
            return Err(Error::invalid(OP, format!("{rule}; got heads {heads}, window {window:?}, shift {shift:?}")));
        }
        let rows = window.iter().try_fold(1usize, |n, w| n.checked_mul(w.checked_mul(2)? - 1));
        rows.ok_or_else(|| Error::invalid(OP, format!("window {window:?} is too large")))
    }
}

/// y `[B, D, H, W, C]`; lse `[B, D, H, W, heads]`, in f32 where qkv is bf16 or f16.
pub struct Output {
    pub y: Tensor,
    pub lse: Tensor,
}

/// dqkv `[B, D, H, W, 3C]`; dpad `[3C]`, what reached padded keys and values (its q third is zero);
/// dtable `[prod(2 window - 1), heads]`.
pub struct Grads {
    pub dqkv: Tensor,
    pub dpad: Tensor,
    pub dtable: Tensor,
}

/// What both directions need to know about their inputs.
struct Problem {
    batch: usize,
    channels: usize,
    heads: usize,
    /// None when the batch or the grid is empty.
    grid: Option<Grid>,
}

/// qkv `[B, D, H, W, 3C]`, its last axis laid out (3, heads, head_dim), f32, f64 (on the CPU), bf16, or f16 on CUDA (these two with
/// pad and table, and their gradients, in f32); pad `[3C]` is what padded tokens hold (the bias of the
/// linear that made qkv); table `[prod(2 window - 1), heads]`.
pub fn forward(qkv: &Tensor, pad: &Tensor, table: &Tensor, p: Params) -> Result<Output> {
    let problem = Problem::new(qkv, pad, table, p)?;
    let [b, d, h, w, _] = qkv.ndhwc(OP)?;
    let mut y = Tensor::empty(&[b, d, h, w, problem.channels], qkv.dtype(), qkv.device())?;
    let mut lse = Tensor::empty(&[b, d, h, w, p.heads], sums(qkv), qkv.device())?;
    let Some(grid) = &problem.grid else { return Ok(Output { y, lse }) };
    // two products: q kᵀ and p v
    let _scope = counted("window_attention forward", qkv, 2 * problem.products(grid));
    match (qkv.device(), qkv.dtype()) {
        (Device::Cpu, DType::F32) => cpu::forward::<f32>(&problem, grid, qkv, pad, table, &mut y, &mut lse)?,
        (Device::Cpu, DType::BF16) => cpu::forward::<bf16>(&problem, grid, qkv, pad, table, &mut y, &mut lse)?,
        (Device::Cpu, DType::F64) => cpu_f64::forward(&problem, grid, qkv, pad, table, &mut y, &mut lse)?,
        (Device::Cuda(_), _) => cuda::forward(&problem, grid, qkv, pad, table, &mut y, &mut lse)?,
        (Device::Meta, _) => meta::forward(&problem, grid, qkv)?,
        (device, dtype) => return Err(Error::Unsupported { op: OP, dtype, device }),
    }
    Ok(Output { y, lse })
}

/// `y` and `lse` are what [`forward`] gave for the same qkv, pad, table and params; dy `[B, D, H, W, C]`.
pub fn backward(
    dy: &Tensor,
    y: &Tensor,
    lse: &Tensor,
    qkv: &Tensor,
    pad: &Tensor,
    table: &Tensor,
    p: Params,
) -> Result<Grads> {
    let problem = Problem::new(qkv, pad, table, p)?;
    let [b, d, h, w, _] = qkv.ndhwc(OP)?;
    expect("dy", dy, &[b, d, h, w, problem.channels], qkv.dtype(), qkv)?;
    expect("y", y, &[b, d, h, w, problem.channels], qkv.dtype(), qkv)?;
    expect("lse", lse, &[b, d, h, w, p.heads], sums(qkv), qkv)?;
    let zeros = |like: &Tensor| Tensor::zeros(like.dims(), like.dtype(), qkv.device());
    let Some(grid) = &problem.grid else {
        return Ok(Grads { dqkv: zeros(qkv)?, dpad: zeros(pad)?, dtable: zeros(table)? });
    };
    let saved = Saved { dy, y, lse };
    // five products: q kᵀ again, dy vᵀ, and those that give dq, dk and dv
    let _scope = counted("window_attention backward", qkv, 5 * problem.products(grid));
    match (qkv.device(), qkv.dtype()) {
        (Device::Cpu, DType::F32) => cpu::backward::<f32>(&problem, grid, saved, qkv, pad, table),
        (Device::Cpu, DType::BF16) => cpu::backward::<bf16>(&problem, grid, saved, qkv, pad, table),
        (Device::Cpu, DType::F64) => cpu_f64::backward(&problem, grid, saved, qkv, pad, table),
        (Device::Cuda(_), _) => cuda::backward(&problem, grid, saved, qkv, pad, table),
        (Device::Meta, _) => meta::backward(&problem, grid, qkv, pad, table),
        (device, dtype) => Err(Error::Unsupported { op: OP, dtype, device }),
    }
}

/// The gradient that backward starts from, and what forward gave.
#[derive(Clone, Copy)]
struct Saved<'a> {
    dy: &'a Tensor,
    y: &'a Tensor,
    lse: &'a Tensor,
}

impl Problem {
    fn new(qkv: &Tensor, pad: &Tensor, table: &Tensor, p: Params) -> Result<Problem> {
        let table_rows = p.check()?;
        let [batch, d, h, w, wide] = qkv.ndhwc(OP)?;
        if wide == 0 || wide % (3 * p.heads) != 0 {
            let detail = format!("the last axis of qkv {:?} must hold q, k and v of {} heads", qkv.dims(), p.heads);
            return Err(Error::shape(OP, detail));
        }
        expect("pad", pad, &[wide], sums(qkv), qkv)?;
        expect("table", table, &[table_rows, p.heads], sums(qkv), qkv)?;
        let grid = (batch * d * h * w > 0).then(|| Grid::new([d, h, w], p));
        Ok(Problem { batch, channels: wide / 3, heads: p.heads, grid })
    }

    /// Multiplications of one product of all pairs of tokens of all windows, padded tokens among them.
    fn products(&self, grid: &Grid) -> u128 {
        product([self.batch, grid.windows(), grid.tokens(), grid.tokens(), self.channels])
    }

    fn head_dim(&self) -> usize {
        self.channels / self.heads
    }
}

/// The dtype of what belongs to no single token, or decides about many: pad, table, lse, and the gradients of pad and table.
fn sums(qkv: &Tensor) -> DType {
    sum_dtype(qkv.dtype())
}

fn expect(name: &str, t: &Tensor, dims: &[usize], dtype: DType, qkv: &Tensor) -> Result<()> {
    if t.dims() != dims {
        let detail = format!("{name} is {:?}; with qkv {:?} it must be {dims:?}", t.dims(), qkv.dims());
        return Err(Error::shape(OP, detail));
    }
    if t.dtype() != dtype || t.device() != qkv.device() {
        let detail = format!("{name} is {t:?} and qkv is {qkv:?}; convert {name} to {dtype} on {}", qkv.device());
        return Err(Error::invalid(OP, detail));
    }
    Ok(())
}
