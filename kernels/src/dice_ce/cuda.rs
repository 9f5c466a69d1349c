use super::{Output, no_class};
use crate::cuda::THREADS;
use bytemuck::{Pod, Zeroable};
use engine::cuda::{Grid, Image, launch};
use engine::{DType, Result, Tensor};

static IMAGE: Image = Image::new("dice_ce", include_bytes!("../../images/dice_ce.fatbin.zst"));
/// Probabilities that a block holds in shared memory.
const TILE: usize = 8192;
/// Blocks that share a sample at most.
const PARTS: usize = 512;

/// `DiceCeArgs` of dice_ce.cu.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Args {
    logits: u64,
    labels: u64,
    dloss: u64,
    sums: u64,
    loss: u64,
    dlogits: u64,
    partials: u64,
    entropies: u64,
    bad_labels: u64,
    bad: u64,
    samples: i64,
    voxels: i64,
    parts: i64,
    classes: i32,
    tile: i32,
}

/// How a problem is cut up.
struct Cut {
    samples: usize,
    voxels: usize,
    classes: usize,
    /// Blocks for each sample.
    parts: usize,
    /// Voxels that a block holds at a time.
    tile: usize,
}

impl Cut {
    fn new(logits: &Tensor) -> Cut {
        let (samples, classes) = (logits.dims()[0], logits.channels());
        let voxels = logits.rows() / samples;
        let tile = (TILE / (classes | 1)).clamp(1, THREADS as usize);
        Cut { samples, voxels, classes, parts: voxels.div_ceil(tile).min(PARTS), tile }
    }

    fn args(&self, logits: &Tensor, labels: &Tensor) -> Result<Args> {
        Ok(Args {
            logits: logits.device_ptr()?,
            labels: labels.device_ptr()?,
            samples: self.samples as i64,
            voxels: self.voxels as i64,
            parts: self.parts as i64,
            classes: self.classes as i32,
            tile: self.tile as i32,
            ..Args::zeroed()
        })
    }

    /// For `slabs` of classes; each block holds a tile's probabilities, and for each class `extra` bytes.
    fn grid(&self, slabs: usize, extra: usize) -> Grid {
        let shared = self.tile * (self.classes | 1) * size_of::<f32>() + self.classes * extra;
        let grid = [self.parts as u32, slabs as u32, self.samples as u32];
        Grid { grid, block: [THREADS, 1, 1], shared: shared as u32 }
    }
}

/// Waits for the device: a label that is no class is an error.
pub fn forward(logits: &Tensor, labels: &Tensor) -> Result<Output> {
    let cut = Cut::new(logits);
    let scratch = |dims: &[usize]| Tensor::empty(dims, DType::F64, logits.device());
    let mut partials = scratch(&[cut.samples, cut.parts, cut.classes, 3])?;
    let (mut entropies, mut bad_labels) = (scratch(&[cut.samples, cut.parts])?, scratch(&[cut.samples, cut.parts])?);
    let (mut loss, mut bad) = (logits.new_empty(&[])?, scratch(&[])?);
    let mut sums = logits.new_empty(&[cut.samples, cut.classes, 3])?;
    let args = Args {
        sums: sums.device_ptr_mut()?,
        loss: loss.device_ptr_mut()?,
        partials: partials.device_ptr_mut()?,
        entropies: entropies.device_ptr_mut()?,
        bad_labels: bad_labels.device_ptr_mut()?,
        bad: bad.device_ptr_mut()?,
        ..cut.args(logits, labels)?
    };
    let slabs = cut.classes.div_ceil(THREADS as usize);
    let one = Grid { grid: [1, 1, 1], block: [THREADS, 1, 1], shared: 0 };
    // SAFETY: logits are [samples, voxels, classes], labels i32 [samples, voxels]; the rest was made for `cut`.
    unsafe {
        launch(logits.device(), &IMAGE, "dice_ce_sums_f32", cut.grid(slabs, 0), &args)?;
        launch(logits.device(), &IMAGE, "dice_ce_loss_f32", one, &args)?;
    }
    match bad.item()? {
        at if at.is_finite() => {
            let at = at as usize;
            let label = labels.reshape(&[labels.numel()])?.rows_at(at, 1)?.item()?;
            Err(no_class(label as i32, (at / cut.voxels, at % cut.voxels), cut.classes))
        }
        _ => Ok(Output { loss, sums }),
    }
}

pub fn backward(dloss: &Tensor, logits: &Tensor, labels: &Tensor, sums: &Tensor) -> Result<Tensor> {
    let cut = Cut::new(logits);
    let mut dlogits = logits.new_empty(logits.dims())?;
    let args = Args {
        dloss: dloss.device_ptr()?,
        sums: sums.device_ptr()?,
        dlogits: dlogits.device_ptr_mut()?,
        ..cut.args(logits, labels)?
    };
    let grid = cut.grid(1, 2 * size_of::<f32>());
    // SAFETY: as in forward; sums are [samples, classes, 3], dloss has one element, dlogits the shape of logits.
    unsafe { launch(logits.device(), &IMAGE, "dice_ce_backward_f32", grid, &args)? };
    Ok(dlogits)
}
