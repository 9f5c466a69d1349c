//! The products on a CUDA device: arguments, tiles and splits for the kernels of `gemm.cu`.

use super::Geometry;
use crate::check::{expect_device, sum_dtype};
use crate::cuda::{strided, suffix};
use bytemuck::{Pod, Zeroable};
use engine::cuda::{Grid, Image, launch};
use engine::{DType, Error, Result, Tensor};

static IMAGE: Image = Image::new("gemm", include_bytes!("../../images/gemm.fatbin.zst"));

/// Blocks that a product is split for when it has fewer tiles: a few for each multiprocessor of any GPU. The same on all of them,
/// so that results are.
const BLOCKS: usize = 512;
/// Steps along k below which a split is not worth its partial sums.
const SPLIT_STEPS: usize = 8;
/// Positions along D, H and W, and channels, that a block with a brick of the source takes at once.
const BRICK: [usize; 3] = [4, 8, 8];
const SLAB: usize = 48;
/// Blocks from which on bricks are better than splits.
const BRICK_BLOCKS: usize = 128;
/// Taps along D, H and W together for which the kernels that copy 16 bytes at a time have a bit.
const TAP_BITS: usize = 31;

/// As [`crate::conv3d::fprop`].
pub fn fprop(op: &'static str, x: &Tensor, w: &Tensor, bias: Option<&Tensor>, g: &Geometry) -> Result<Tensor> {
    let mut y = fprop_target(x, w, g)?;
    let epilogue = Epilogue { bias: address(bias)?, c: y.device_ptr_mut()?, ..Epilogue::default() };
    Product::new(op, Phase::Fprop, x, w, g)?.run(&[("bias", bias)], epilogue)?;
    Ok(y)
}

/// The same, plus `residual`, which is like y.
pub fn fprop_add(
    op: &'static str,
    x: &Tensor,
    w: &Tensor,
    bias: Option<&Tensor>,
    residual: &Tensor,
    g: &Geometry,
) -> Result<Tensor> {
    let mut y = fprop_target(x, w, g)?;
    let (bias_at, residual_at, c) = (address(bias)?, residual.device_ptr()?, y.device_ptr_mut()?);
    let epilogue = Epilogue { bias: bias_at, residual: residual_at, c, ..Epilogue::default() };
    Product::new(op, Phase::Fprop, x, w, g)?.run(&[("bias", bias), ("residual", Some(residual))], epilogue)?;
    Ok(y)
}

/// As [`fprop`], if that is to be kept, and GELU of it.
pub fn fprop_gelu(
    op: &'static str,
    x: &Tensor,
    w: &Tensor,
    bias: Option<&Tensor>,
    keep: bool,
    g: &Geometry,
) -> Result<(Option<Tensor>, Tensor)> {
    let mut before = if keep { Some(fprop_target(x, w, g)?) } else { None };
    let mut after = fprop_target(x, w, g)?;
    let c = before.as_mut().map_or(Ok(0), Tensor::device_ptr_mut)?;
    let epilogue = Epilogue { bias: address(bias)?, after: after.device_ptr_mut()?, c, ..Epilogue::default() };
    Product::new(op, Phase::Fprop, x, w, g)?.run(&[("bias", bias)], epilogue)?;
    Ok((before, after))
}

/// As [`crate::conv3d::dgrad`]. With a bias, `[Ci]`, this is a transposed convolution.
pub fn dgrad(op: &'static str, dy: &Tensor, w: &Tensor, bias: Option<&Tensor>, g: &Geometry) -> Result<Tensor> {
    let mut dx = dgrad_target(dy, w, g)?;
    let epilogue = Epilogue { bias: address(bias)?, c: dx.device_ptr_mut()?, ..Epilogue::default() };
    Product::new(op, Phase::Dgrad, dy, w, g)?.run(&[("bias", bias)], epilogue)?;
    Ok(dx)
}

/// The gradient of what was `before` GELU, by [`dgrad`] that of what came after it, and what came after it.
pub fn dgrad_gelu(
    op: &'static str,
    dy: &Tensor,
    w: &Tensor,
    before: &Tensor,
    g: &Geometry,
) -> Result<(Tensor, Tensor)> {
    let (mut dx, mut after) = (dgrad_target(dy, w, g)?, dgrad_target(dy, w, g)?);
    let (before_at, after_at, c) = (before.device_ptr()?, after.device_ptr_mut()?, dx.device_ptr_mut()?);
    let epilogue = Epilogue { before: before_at, after: after_at, c, ..Epilogue::default() };
    Product::new(op, Phase::Dgrad, dy, w, g)?.run(&[("what was before GELU", Some(before))], epilogue)?;
    Ok((dx, after))
}

/// As [`crate::conv3d::wgrad`].
pub fn wgrad(op: &'static str, x: &Tensor, dy: &Tensor, w_dims: &[usize], g: &Geometry) -> Result<Tensor> {
    let mut dw = Tensor::empty(w_dims, sum_dtype(x.dtype()), x.device())?;
    let epilogue = Epilogue { c: dw.device_ptr_mut()?, ..Epilogue::default() };
    Product::new(op, Phase::Wgrad, x, dy, g)?.run(&[], epilogue)?;
    Ok(dw)
}

fn fprop_target(x: &Tensor, w: &Tensor, g: &Geometry) -> Result<Tensor> {
    let [d, h, wide] = g.output;
    x.new_empty(&[g.batch, d, h, wide, w.dims()[0]])
}

fn dgrad_target(dy: &Tensor, w: &Tensor, g: &Geometry) -> Result<Tensor> {
    let [d, h, wide] = g.input;
    dy.new_empty(&[g.batch, d, h, wide, w.channels()])
}

/// Of a tensor on the device; 0 for none.
fn address(t: Option<&Tensor>) -> Result<u64> {
    t.map_or(Ok(0), Tensor::device_ptr)
}

/// What a product computes; the header of `gemm.cu` says how.
#[derive(Clone, Copy, PartialEq)]
enum Phase {
    Fprop,
    Dgrad,
    Wgrad,
}

/// What a kernel computes at once.
#[derive(Clone, Copy)]
struct Tile {
    suffix: &'static str,
    m: usize,
    n: usize,
    threads: u32,
    /// Bytes of shared memory.
    shared: usize,
    /// Whether the rows are bricks of positions, in place of positions that follow each other.
    bricks: bool,
}

impl Tile {
    /// A ring of so many steps, 64 bytes for each row and column, in which later the finished tile lies in f32, with rows 8 longer.
    fn new(suffix: &'static str, m: usize, n: usize, threads: u32, stages: usize) -> Tile {
        Tile { suffix, m, n, threads, shared: (stages * 64 * (m + n)).max(4 * m * (n + 8)), bricks: false }
    }

    /// A brick with what the taps of a 3³ kernel meet, and three steps of the weight.
    fn brick() -> Tile {
        let m = BRICK.iter().product();
        let (brick, weight) = (BRICK.iter().map(|b| b + 2).product::<usize>(), 48);
        Tile { suffix: "_brick", m, n: 48, threads: 128, shared: 2 * SLAB * (brick + 3 * weight), bricks: true }
    }

    /// Elements that tiles cover, which is more than m x n when they hang over.
    fn covered(&self, m: usize, n: usize) -> usize {
        m.next_multiple_of(self.m) * n.next_multiple_of(self.n)
    }
}

/// C[m, n] = sum over k of A(m, k) B(n, k), for each class of positions.
struct Product<'a> {
    op: &'static str,
    phase: Phase,
    image: &'a Tensor,
    other: &'a Tensor,
    axes: [Sizes; 3],
    classes: usize,
    batch: usize,
    /// Of one class.
    positions: usize,
    outputs: usize,
    m: usize,
    n: usize,
    k: usize,
}

/// One axis of the convolution, seen from the positions.
#[derive(Clone, Copy)]
struct Sizes {
    source: usize,
    target: usize,
    taps: usize,
    stride: usize,
    padding: usize,
    /// Of one class.
    positions: usize,
    /// The most that a class has.
    class_taps: usize,
}

impl Sizes {
    fn new(phase: Phase, g: &Geometry, a: usize) -> Sizes {
        let (input, output, taps, padding) = (g.input[a], g.output[a], g.kernel[a], g.padding[a]);
        // Where nothing follows the first output, any stride says the same; the smallest has the fewest classes.
        let stride = if output == 1 { 1 } else { g.stride[a] };
        let (source, target) = if phase == Phase::Dgrad { (output, input) } else { (input, output) };
        let classes = if phase == Phase::Dgrad { stride } else { 1 };
        let (positions, class_taps) = (target.div_ceil(classes), taps.div_ceil(classes));
        Sizes { source, target, taps, stride, padding, positions, class_taps }
    }
}

impl<'a> Product<'a> {
    fn new(op: &'static str, phase: Phase, image: &'a Tensor, other: &'a Tensor, g: &Geometry) -> Result<Product<'a>> {
        let axes = [0, 1, 2].map(|a| Sizes::new(phase, g, a));
        let per_axis = |f: fn(&Sizes) -> usize| axes.iter().map(f).product::<usize>();
        let classes = if phase == Phase::Dgrad { per_axis(|a| a.stride) } else { 1 };
        let (positions, taps) = (g.batch * per_axis(|a| a.positions), per_axis(|a| a.class_taps));
        let channels = image.channels();
        let outputs = if phase == Phase::Fprop { other.dims()[0] } else { other.channels() };
        let (m, n, k) = match phase {
            Phase::Wgrad => (outputs, taps * channels, positions),
            Phase::Fprop | Phase::Dgrad => (positions, outputs, taps * channels),
        };
        let product = Product { op, phase, image, other, axes, classes, batch: g.batch, positions, outputs, m, n, k };
        product.check()?;
        Ok(product)
    }

    /// Errors where the kernels' 32-bit indices end.
    fn check(&self) -> Result<()> {
        const MOST: usize = i32::MAX as usize;
        let reaches = |a: &Sizes| a.source.max(a.target).saturating_add(2 * a.padding) <= MOST && a.stride <= MOST;
        let sources = self.batch.saturating_mul(self.axes.iter().map(|a| a.source).product());
        // The last tile of rows, and the last step, reach over the end.
        let most = [self.m, self.n, self.k, sources].into_iter().max().unwrap_or(0).saturating_add(1024);
        if most <= MOST && self.axes.iter().all(reaches) {
            return Ok(());
        }
        let (m, n, k) = (self.m, self.n, self.k);
        Err(Error::invalid(
            self.op,
            format!(
                "a product of {m} x {n} x {k} with {sources} positions does not fit the GPU kernels' 31-bit indices; take fewer samples or smaller volumes"
            ),
        ))
    }

    /// Finishes all of c as `epilogue` says, which must point to as much as there is of c, and of `named`.
    fn run(&self, named: &[(&str, Option<&Tensor>)], epilogue: Epilogue) -> Result<()> {
        let others: Vec<_> = named.iter().filter_map(|&(name, t)| Some((name, t?))).collect();
        expect_device(self.op, self.image, &[&[("weight or gradient", self.other)], &others[..]].concat())?;
        let (tile, device) = (self.tile()?, self.image.device());
        let tiles = self.tiles(&tile);
        let (splits, steps) = if tile.bricks { (1, 0) } else { self.splits(tiles) };
        let size = self.c_rows() * self.n;
        let partial = if splits > 1 { Some(Tensor::empty(&[splits, size], DType::F32, device)?) } else { None };
        let args = Args {
            image: self.image.device_ptr()?,
            other: self.other.device_ptr()?,
            epilogue,
            partial: address(partial.as_ref())?,
            c_rows: self.c_rows() as i64,
            positions: self.positions as i32,
            channels: self.image.channels() as i32,
            outputs: self.outputs as i32,
            m_tiles: self.m.div_ceil(tile.m) as i32,
            n_tiles: self.n.div_ceil(tile.n) as i32,
            steps: steps as i32,
            sizes: self.axes.map(|a| Divider::new(a.positions as u32)),
            axes: self.axes.map(Axis::from),
        };
        let blocks = u32::try_from(tiles).ok().filter(|&blocks| blocks <= i32::MAX as u32).ok_or_else(|| {
            Error::invalid(self.op, format!("{tiles} tiles are more blocks than a GPU takes; use fewer samples"))
        })?;
        let grid = Grid { grid: [blocks, splits as u32, 1], block: [tile.threads, 1, 1], shared: tile.shared as u32 };
        // SAFETY: the operands' shapes were checked against the geometry, the epilogue's tensors are as large as c, and partial is
        // `splits` of c.
        unsafe { launch(device, &IMAGE, &self.kernel(&tile)?, grid, &args)? };
        partial.map_or(Ok(()), |partial| self.sum_splits(&partial, epilogue))
    }

    /// Rows of all of c.
    fn c_rows(&self) -> usize {
        let targets = || self.batch * self.axes.iter().map(|a| a.target).product::<usize>();
        if self.phase == Phase::Wgrad { self.m } else { targets() }
    }

    /// c from the sum of `partial` `[splits, size of c]` along its first axis.
    fn sum_splits(&self, partial: &Tensor, epilogue: Epilogue) -> Result<()> {
        let [splits, size] = [0, 1].map(|axis| partial.dims()[axis]);
        let args = SumArgs {
            partial: partial.device_ptr()?,
            epilogue,
            size: size as i64,
            splits: splits as i32,
            columns: self.n as i32,
        };
        let like_c = if self.phase == Phase::Wgrad { partial } else { self.image };
        let kernel = format!("gemm_sum_{}", suffix(self.op, like_c)?);
        // SAFETY: as for the product.
        unsafe { launch(partial.device(), &IMAGE, &kernel, strided(partial, size.div_ceil(4))?, &args) }
    }

    fn kernel(&self, tile: &Tile) -> Result<String> {
        let phase = match self.phase {
            Phase::Fprop => "fprop",
            Phase::Dgrad => "dgrad",
            Phase::Wgrad => "wgrad",
        };
        Ok(format!("gemm_{phase}{}_{}", tile.suffix, suffix(self.op, self.image)?))
    }

    /// The tile that covers c with the least beside it, of two the one that reads less: the last.
    fn tile(&self) -> Result<Tile> {
        let gradient = self.phase == Phase::Wgrad;
        let whole_chunks = self.whole_chunks()?;
        let any = if whole_chunks { "" } else { "_any" };
        Ok(match (self.image.dtype(), gradient) {
            (DType::F32, false) => Tile::new(any, 256, 48, 256, 3),
            (DType::F32, true) => Tile::new(any, 48, 192, 256, 3),
            (_, true) if !whole_chunks => Tile::new(any, 48, 192, 128, 3),
            (_, false) if !whole_chunks => Tile::new(any, 128, 48, 128, 4),
            (_, false) if self.takes_bricks(&Tile::brick()) => Tile::brick(),
            (_, true) => self.smaller(Tile::new("", 48, 192, 128, 3), Tile::new("_square", 96, 96, 128, 4)),
            (_, false) => self.smaller(Tile::new("", 256, 48, 128, 3), Tile::new("_square", 128, 96, 128, 4)),
        })
    }

    /// Blocks for one split.
    fn tiles(&self, tile: &Tile) -> usize {
        let rows = if tile.bricks { self.bricks() } else { self.m.div_ceil(tile.m) * self.classes };
        rows * self.n.div_ceil(tile.n)
    }

    fn bricks(&self) -> usize {
        self.batch * self.axes.iter().zip(BRICK).map(|(a, b)| a.positions.div_ceil(b)).product::<usize>()
    }

    /// Whether the kernels with bricks can, and bricks hang over by no more than a quarter and are many.
    fn takes_bricks(&self, brick: &Tile) -> bool {
        let cubic = self.axes.iter().all(|a| a.taps == 3 && a.stride == 1);
        let near = self.bricks() * brick.m * 4 <= self.positions * 5;
        cubic && self.image.channels().is_multiple_of(SLAB) && near && self.tiles(brick) >= BRICK_BLOCKS
    }

    fn smaller(&self, a: Tile, b: Tile) -> Tile {
        if a.covered(self.m, self.n) < b.covered(self.m, self.n) { a } else { b }
    }

    /// Whether chunks of 16 bytes lie within one tap and are aligned, and taps have a bit each.
    fn whole_chunks(&self) -> Result<bool> {
        let chunk = 16 / self.image.dtype().size();
        let contiguous = if self.phase == Phase::Fprop { 0 } else { self.outputs };
        let aligned = self.image.device_ptr()?.is_multiple_of(16) && self.other.device_ptr()?.is_multiple_of(16);
        let taps: usize = self.axes.iter().map(|a| a.class_taps).sum();
        let whole = |channels: usize| channels.is_multiple_of(chunk);
        Ok(whole(self.image.channels()) && whole(contiguous) && aligned && taps <= TAP_BITS)
    }

    /// How many splits of k, and steps in each: a function of the shapes alone.
    fn splits(&self, tiles: usize) -> (usize, usize) {
        let steps = self.k.div_ceil(64 / self.image.dtype().size()).max(1);
        let splits = (BLOCKS / tiles).clamp(1, (steps / SPLIT_STEPS).max(1));
        let each = steps.div_ceil(splits);
        (steps.div_ceil(each), each)
    }
}

/// `Epilogue` of gemm.cu: device addresses, or 0.
#[repr(C)]
#[derive(Clone, Copy, Default, Pod, Zeroable)]
struct Epilogue {
    bias: u64,
    residual: u64,
    before: u64,
    after: u64,
    c: u64,
}

/// `GemmArgs` of gemm.cu.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Args {
    image: u64,
    other: u64,
    epilogue: Epilogue,
    partial: u64,
    c_rows: i64,
    positions: i32,
    channels: i32,
    outputs: i32,
    m_tiles: i32,
    n_tiles: i32,
    steps: i32,
    sizes: [Divider; 3],
    axes: [Axis; 3],
}

/// `GemmSumArgs` of gemm.cu.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct SumArgs {
    partial: u64,
    epilogue: Epilogue,
    size: i64,
    splits: i32,
    columns: i32,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Axis {
    source: i32,
    target: i32,
    taps: i32,
    stride: i32,
    padding: i32,
}

impl From<Sizes> for Axis {
    /// Of sizes that [`Product::check`] let pass.
    fn from(a: Sizes) -> Axis {
        Axis {
            source: a.source as i32,
            target: a.target as i32,
            taps: a.taps as i32,
            stride: a.stride as i32,
            padding: a.padding as i32,
        }
    }
}

/// n / divisor = n · multiplier >> shift for 0 <= n < 2^31.
///
/// With l = ⌈log2 divisor⌉, shift = 31 + l and multiplier = ⌈2^shift / divisor⌉, multiplier · divisor exceeds 2^shift by less than
/// divisor <= 2^l, so that n · multiplier / 2^shift exceeds n / divisor by less than n / (2^31 · divisor) < 1 / divisor, which is
/// not enough to reach the next whole number.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Divider {
    divisor: u32,
    multiplier: u32,
    shift: u32,
}

impl Divider {
    /// For 0 < divisor < 2^31.
    fn new(divisor: u32) -> Divider {
        let shift = 31 + divisor.next_power_of_two().ilog2();
        Divider { divisor, multiplier: (1u64 << shift).div_ceil(divisor.into()) as u32, shift }
    }
}

#[cfg(test)]
mod tests {
    use super::Divider;

    #[test]
    fn dividers_divide() {
        let most = i32::MAX as u32;
        for divisor in [1, 2, 3, 5, 7, 12, 48, 64, 641, 1 << 20, (1 << 20) + 1, 1_234_567_891, most - 1, most] {
            let Divider { multiplier, shift, .. } = Divider::new(divisor);
            let near = |n: u32| (n.saturating_sub(2)..=n.saturating_add(2)).filter(|&n| n <= most);
            let multiples = (0..1000u32).flat_map(|i| near((most / divisor).wrapping_sub(i).wrapping_mul(divisor)));
            for n in multiples.chain(near(0)).chain(near(divisor)).chain(near(most)).chain(near(most / 2)) {
                let quotient = (u64::from(n) * u64::from(multiplier)) >> shift;
                assert_eq!(quotient, u64::from(n / divisor), "{n} / {divisor}");
            }
        }
    }
}
