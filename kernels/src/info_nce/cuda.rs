use super::{Output, Params};
use crate::cuda::{blocks, warps};
use bytemuck::{Pod, Zeroable};
use engine::cuda::{Image, launch};
use engine::{DType, Result, Tensor};

static IMAGE: Image = Image::new("info_nce", include_bytes!("../../images/info_nce.fatbin.zst"));
/// Rows of a tile, as in info_nce.cu.
const TILE: usize = 64;

/// `NormsArgs` of info_nce.cu.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct NormsArgs {
    x: u64,
    norms: u64,
    rows: i64,
    dim: i64,
}

/// `InfoNceArgs` of info_nce.cu.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Args {
    q: u64,
    k: u64,
    targets: u64,
    q_norms: u64,
    k_norms: u64,
    dloss: u64,
    lse: u64,
    losses: u64,
    loss: u64,
    gains: u64,
    sums: u64,
    dx: u64,
    groups: i64,
    q_rows: i64,
    k_rows: i64,
    dim: i64,
    temperature: f64,
}

/// q, k and their norms, f64 `[rows]`.
struct Problem<'a> {
    q: &'a Tensor,
    k: &'a Tensor,
    targets: &'a Tensor,
    q_norms: Tensor,
    k_norms: Tensor,
    p: Params,
}

pub fn forward(q: &Tensor, k: &Tensor, targets: &Tensor, p: Params) -> Result<Output> {
    let problem = Problem::new(q, k, targets, p)?;
    let tiles = problem.tiles(q);
    let (mut loss, mut lse) = (q.new_empty(&[])?, q.new_empty(&[q.rows()])?);
    let mut losses = Tensor::empty(&[tiles], DType::F64, q.device())?;
    let outputs = (lse.device_ptr_mut()?, losses.device_ptr_mut()?, loss.device_ptr_mut()?);
    let args = Args { lse: outputs.0, losses: outputs.1, loss: outputs.2, ..problem.args()? };
    // SAFETY: the inputs have the shapes that check() asked for, lse has an element for every row of q, losses for every tile.
    unsafe {
        launch(q.device(), &IMAGE, "info_nce_forward_f32", blocks(tiles), &args)?;
        launch(q.device(), &IMAGE, "info_nce_loss_f32", blocks(1), &args)?;
    }
    Ok(Output { loss, lse })
}

pub fn backward(
    dloss: &Tensor,
    q: &Tensor,
    k: &Tensor,
    targets: &Tensor,
    lse: &Tensor,
    p: Params,
    keys: bool,
) -> Result<(Tensor, Option<Tensor>)> {
    let problem = Problem::new(q, k, targets, p)?;
    let mut gains = q.new_empty(&[q.rows()])?;
    let (dloss, lse, gains) = (dloss.device_ptr()?, lse.device_ptr()?, gains.device_ptr_mut()?);
    let args = Args { dloss, lse, gains, ..problem.args()? };
    // SAFETY: gains has an element for every row of q.
    unsafe { launch(q.device(), &IMAGE, "info_nce_gains_f32", warps(q.rows()), &args)? };
    let dq = problem.gradient("info_nce_backward_q_f32", q, &args)?;
    let dk = if keys { Some(problem.gradient("info_nce_backward_k_f32", k, &args)?) } else { None };
    Ok((dq, dk))
}

impl<'a> Problem<'a> {
    fn new(q: &'a Tensor, k: &'a Tensor, targets: &'a Tensor, p: Params) -> Result<Self> {
        Ok(Problem { q, k, targets, q_norms: norms(q)?, k_norms: norms(k)?, p })
    }

    fn args(&self) -> Result<Args> {
        Ok(Args {
            q: self.q.device_ptr()?,
            k: self.k.device_ptr()?,
            targets: self.targets.device_ptr()?,
            q_norms: self.q_norms.device_ptr()?,
            k_norms: self.k_norms.device_ptr()?,
            groups: self.p.groups as i64,
            q_rows: (self.q.rows() / self.p.groups) as i64,
            k_rows: (self.k.rows() / self.p.groups) as i64,
            dim: self.q.channels() as i64,
            temperature: self.p.temperature,
            ..Args::zeroed()
        })
    }

    /// Tiles of the rows of q or of k: none reaches over two groups.
    fn tiles(&self, x: &Tensor) -> usize {
        self.p.groups * (x.rows() / self.p.groups).div_ceil(TILE)
    }

    /// Of x, which is q or k as the kernel says.
    fn gradient(&self, kernel: &str, x: &Tensor, args: &Args) -> Result<Tensor> {
        let (mut dx, mut sums) = (x.new_empty(x.dims())?, x.new_empty(x.dims())?);
        let args = Args { dx: dx.device_ptr_mut()?, sums: sums.device_ptr_mut()?, ..*args };
        // SAFETY: dx and sums have the shape of x; lse and gains have an element for every row of q, dloss has one.
        unsafe { launch(x.device(), &IMAGE, kernel, blocks(self.tiles(x)), &args)? };
        Ok(dx)
    }
}

fn norms(x: &Tensor) -> Result<Tensor> {
    let mut norms = Tensor::empty(&[x.rows()], DType::F64, x.device())?;
    let args = NormsArgs {
        x: x.device_ptr()?,
        norms: norms.device_ptr_mut()?,
        rows: x.rows() as i64,
        dim: x.channels() as i64,
    };
    // SAFETY: x is [rows, dim] f32, norms [rows] f64.
    unsafe { launch(x.device(), &IMAGE, "info_nce_norms_f32", warps(x.rows()), &args)? };
    Ok(norms)
}
