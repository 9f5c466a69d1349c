//! Blocks of 48 rows of q against blocks of 48 rows of k. Unit rows are laid out once, padded with zeros, as rows and (k) as
//! transposed panels, so that every tile is a small matrix product without edges; the tile of similarities lives in the
//! second-level cache. Blocks go to threads: of q for the loss and dq, of k for dk. Each sums over the other side in order.
//! Backward, the tiles of some blocks of q are kept until dk has been given its part: 16 MB of them in f32 and 32 in f64, but at
//! least those of one block of q, with all blocks of k.

use super::tile::{BLOCK, STEP, Tile};
use super::{Output, Params};
use crate::simd::{self, Kernel, Vector};
use engine::{Element, Result, Tensor, parallel};

/// With rows of a multiple of so many values, 2 KiB in f32, the 48 rows of a column want the same few places of the first-level cache.
const WAYS: usize = 512;
/// Values of tiles that are kept for dk.
const KEPT: usize = 4 << 20;
/// The smallest norm that is divided by.
const EPS: f64 = 1e-12;

pub(super) fn forward<T: Tile>(q: &Tensor, k: &Tensor, targets: &Tensor, p: Params) -> Result<Output> {
    let sides = Sides::new::<T>(q, k, p.groups)?;
    let problem = Problem::<T>::new(&sides, targets, p)?;
    let blocks = problem.q.layout.blocks();
    let rows: Vec<(Vec<T>, f64)> = parallel::map(blocks.iter(), |&at| simd::dispatch(Loss(&problem, at)));
    let mut lse = Tensor::empty(&[q.dims()[0]], q.dtype(), q.device())?;
    let flat = rows.iter().flat_map(|(lse, _)| lse);
    lse.as_mut_slice::<T>()?.iter_mut().zip(flat).for_each(|(out, &v)| *out = v);
    let loss = rows.iter().map(|(_, loss)| loss).sum::<f64>() / q.dims()[0] as f64;
    Ok(Output { loss: Tensor::scalar(T::of(loss))?, lse })
}

pub(super) fn backward<T: Tile>(
    dloss: &Tensor,
    q: &Tensor,
    k: &Tensor,
    targets: &Tensor,
    lse: &Tensor,
    p: Params,
    keys: bool,
) -> Result<(Tensor, Option<Tensor>)> {
    let sides = Sides::new::<T>(q, k, p.groups)?;
    let problem = Problem::<T>::new(&sides, targets, p)?;
    // the derivative by the cosine: the temperature is in it
    let scale = dloss.item()? / (q.dims()[0] as f64 * p.temperature);
    let rows = problem.targets.chunks(problem.k.layout.len).zip(lse.as_slice::<T>()?);
    let slopes = Slopes {
        lse: lse.as_slice()?,
        gains: rows.map(|(t, &lse)| gain(t, lse, scale)).collect(),
        scale: T::of(scale),
    };
    let mut dq = Tensor::empty(q.dims(), q.dtype(), q.device())?;
    let dk_unit = keys.then(|| Tensor::zeros(sides.k.unit.dims(), k.dtype(), k.device()));
    let mut dk_unit = dk_unit.transpose()?;
    let row = problem.k.layout.per_group() * BLOCK * BLOCK;
    let kept = row * (KEPT / row).clamp(1, problem.q.layout.blocks().len());
    let mut tiles = Tensor::empty(&[kept], q.dtype(), q.device())?;
    let tiles = tiles.as_mut_slice::<T>()?;
    let mut q_blocks: Vec<_> = problem.q.layout.blocks_of(dq.as_mut_slice()?).collect();
    let (problem, slopes) = (&problem, &slopes);
    for some in q_blocks.chunks_mut(tiles.len() / row) {
        parallel::each(some.iter_mut().zip(tiles.chunks_mut(row)), |((at, dx), tiles)| {
            simd::dispatch(QueryGradient { problem, slopes, at: *at, tiles, dx });
        });
        let Some(dk_unit) = &mut dk_unit else { continue };
        let queries: Vec<_> = some.iter().map(|(at, _)| *at).zip(tiles.chunks(row)).collect();
        let sums = dk_unit.as_mut_slice::<T>()?.chunks_mut(BLOCK * problem.k.layout.width);
        parallel::each(problem.k.layout.blocks().into_iter().zip(sums), |(at, dunit)| {
            simd::dispatch(KeyGradient { problem, at, queries: &queries, dunit });
        });
    }
    let dk = dk_unit.map(|dk_unit| key_gradient(&problem.k, &dk_unit, k));
    Ok((dq, dk.transpose()?))
}

/// dk, given the gradient of its unit rows.
fn key_gradient<T: Tile>(side: &Side<T>, dk_unit: &Tensor, k: &Tensor) -> Result<Tensor> {
    let mut dk = Tensor::empty(k.dims(), k.dtype(), k.device())?;
    let sums = dk_unit.as_slice::<T>()?.chunks(BLOCK * side.layout.width);
    parallel::each(side.layout.blocks_of(dk.as_mut_slice()?).zip(sums), |((at, dx), dunit)| {
        side.through_norm(at, dunit, dx);
    });
    Ok(dk)
}

/// What the softmax is multiplied by: `scale Σ t`. `exp` saturates, so a NaN in the log-sum-exp is kept alive here.
fn gain<T: Tile>(targets: &[T], lse: T, scale: f64) -> T {
    let total: f64 = targets.iter().map(|&t| Element::to_f64(t)).sum();
    T::of(scale * total) + T::zero() * lse
}

/// Up to `BLOCK` rows of one group.
#[derive(Clone, Copy)]
struct Block {
    group: usize,
    /// The first row, counted within the group.
    start: usize,
    rows: usize,
    /// Which of all blocks this is, counted over the groups.
    index: usize,
}

/// How the rows of q or of k are laid out.
#[derive(Clone, Copy)]
struct Layout {
    groups: usize,
    /// Rows per group.
    len: usize,
    dim: usize,
    /// `dim` up to whole steps of the tile products, and one more where columns would lie in too few places of the first-level cache.
    width: usize,
}

/// The unit rows of q or of k, `[blocks, BLOCK, width]`, zeros where a block or a row is padded; and how long the rows were.
struct UnitRows {
    layout: Layout,
    unit: Tensor,
    norms: Vec<f64>,
}

/// What is laid out of both sides.
struct Sides {
    q: UnitRows,
    k: UnitRows,
    k_panels: Tensor,
}

/// The rows of one, to be read.
struct Side<'a, T> {
    layout: Layout,
    unit: &'a [T],
    norms: &'a [f64],
}

impl Sides {
    fn new<T: Tile>(q: &Tensor, k: &Tensor, groups: usize) -> Result<Self> {
        let (q, k) = (UnitRows::new::<T>(q, groups)?, UnitRows::new::<T>(k, groups)?);
        let k_panels = k.panels::<T>()?;
        Ok(Sides { q, k, k_panels })
    }
}

impl UnitRows {
    fn new<T: Tile>(t: &Tensor, groups: usize) -> Result<Self> {
        let (values, layout) = (t.as_slice::<T>()?, Layout::new(t, groups));
        let Layout { len, dim, width, .. } = layout;
        let norms = parallel::map(values.chunks(dim), norm);
        let blocks = layout.blocks();
        let mut unit = Tensor::empty(&[blocks.len(), BLOCK, width], t.dtype(), t.device())?;
        parallel::each(unit.as_mut_slice::<T>()?.chunks_mut(BLOCK * width).zip(&blocks), |(unit, at)| {
            let first = at.group * len + at.start;
            let (rows, padding) = unit.split_at_mut(at.rows * width);
            padding.fill(T::zero());
            for (r, row) in rows.chunks_mut(width).enumerate() {
                let n = norms[first + r];
                let scale = 1.0 / if n < EPS { EPS } else { n };
                let (row, padding) = row.split_at_mut(dim);
                padding.fill(T::zero());
                for (u, &x) in row.iter_mut().zip(&values[(first + r) * dim..]) {
                    *u = T::of(Element::to_f64(x) * scale);
                }
            }
        });
        Ok(UnitRows { layout, unit, norms })
    }

    fn read<T: Tile>(&self) -> Result<Side<'_, T>> {
        Ok(Side { layout: self.layout, unit: self.unit.as_slice()?, norms: &self.norms })
    }

    /// All blocks transposed, `[blocks, width, BLOCK]`.
    fn panels<T: Tile>(&self) -> Result<Tensor> {
        let width = self.layout.width;
        let mut panels = Tensor::empty(self.unit.dims(), self.unit.dtype(), self.unit.device())?;
        let (from, to) = (self.unit.as_slice::<T>()?, panels.as_mut_slice::<T>()?);
        parallel::each(to.chunks_mut(BLOCK * width).zip(from.chunks(BLOCK * width)), |(panel, rows)| {
            for (d, panel) in panel.chunks_mut(BLOCK).enumerate() {
                for (r, v) in panel.iter_mut().enumerate() {
                    *v = rows[r * width + d];
                }
            }
        });
        Ok(panels)
    }
}

impl Layout {
    fn new(t: &Tensor, groups: usize) -> Self {
        let (dim, len) = (t.channels(), t.dims()[0] / groups);
        let mut width = dim.next_multiple_of(STEP);
        if width.is_multiple_of(WAYS) {
            width += STEP;
        }
        Layout { groups, len, dim, width }
    }

    fn per_group(&self) -> usize {
        self.len.div_ceil(BLOCK)
    }

    fn block(&self, group: usize, b: usize) -> Block {
        let start = b * BLOCK;
        Block { group, start, rows: BLOCK.min(self.len - start), index: group * self.per_group() + b }
    }

    /// The blocks of one group, in order.
    fn of_group(&self, group: usize) -> impl Iterator<Item = Block> {
        (0..self.per_group()).map(move |b| self.block(group, b))
    }

    fn blocks(&self) -> Vec<Block> {
        (0..self.groups).flat_map(|g| self.of_group(g)).collect()
    }

    /// Every block and its rows of `out` `[G * len, dim]`.
    fn blocks_of<'o, T>(&self, out: &'o mut [T]) -> impl Iterator<Item = (Block, &'o mut [T])> {
        let (group, block) = (self.len * self.dim, BLOCK * self.dim);
        self.blocks().into_iter().zip(out.chunks_mut(group).flat_map(move |out| out.chunks_mut(block)))
    }
}

impl<T: Tile> Side<'_, T> {
    /// Rows `[BLOCK, width]` of a block.
    fn rows(&self, at: Block) -> &[T] {
        &self.unit[at.index * BLOCK * self.layout.width..][..BLOCK * self.layout.width]
    }

    /// The gradient of a block's rows, given that of its unit rows.
    fn through_norm(&self, at: Block, dunit: &[T], dx: &mut [T]) {
        let Layout { len, dim, width, .. } = self.layout;
        let rows = self.rows(at).chunks(width).zip(dunit.chunks(width)).zip(dx.chunks_mut(dim));
        for (r, ((unit, g), dx)) in rows.enumerate() {
            let n = self.norms[at.group * len + at.start + r];
            let along = if n < EPS { 0.0 } else { dot(unit, g) };
            let scale = 1.0 / if n < EPS { EPS } else { n };
            for ((dx, &u), &g) in dx.iter_mut().zip(unit).zip(g) {
                *dx = T::of((Element::to_f64(g) - along * Element::to_f64(u)) * scale);
            }
        }
    }
}

fn norm<T: Tile>(x: &[T]) -> f64 {
    dot(x, x).sqrt()
}

fn dot<T: Tile>(a: &[T], b: &[T]) -> f64 {
    a.iter().zip(b).map(|(&a, &b)| Element::to_f64(a) * Element::to_f64(b)).sum()
}

struct Problem<'a, T> {
    q: Side<'a, T>,
    k: Side<'a, T>,
    k_panels: &'a [T],
    targets: &'a [T],
    inverse_temperature: T,
}

impl<'a, T: Tile> Problem<'a, T> {
    fn new(sides: &'a Sides, targets: &'a Tensor, p: Params) -> Result<Self> {
        let (q, k, k_panels) = (sides.q.read()?, sides.k.read()?, sides.k_panels.as_slice()?);
        let inverse_temperature = T::of(1.0 / p.temperature);
        Ok(Problem { q, k, k_panels, targets: targets.as_slice()?, inverse_temperature })
    }

    /// The tile `[BLOCK, BLOCK]` of cosines between a block of q and one of k.
    #[inline(always)]
    fn cosines<V: Vector>(&self, q: Block, k: Block, tile: &mut [T]) {
        let size = BLOCK * self.k.layout.width;
        tile.fill(T::zero());
        T::add_product::<V>(self.q.rows(q), &self.k_panels[k.index * size..][..size], tile, self.k.layout.width, BLOCK);
    }

    /// The targets of row r of a block of q with a block of k.
    fn targets(&self, q: Block, r: usize, k: Block) -> &[T] {
        let row = q.group * self.q.layout.len + q.start + r;
        &self.targets[row * self.k.layout.len + k.start..][..k.rows]
    }

    /// The loss's derivatives by the cosines of a tile; zeros outside of the two blocks.
    #[inline(always)]
    fn slopes<V: Vector>(&self, slopes: &Slopes<T>, q: Block, k: Block, tile: &mut [T]) {
        self.cosines::<V>(q, k, tile);
        let first = q.group * self.q.layout.len + q.start;
        for (r, row) in tile.chunks_mut(BLOCK).enumerate() {
            let (inside, outside) = row.split_at_mut(if r < q.rows { k.rows } else { 0 });
            outside.fill(T::zero());
            if !inside.is_empty() {
                T::exp_all::<V>(inside, self.inverse_temperature, slopes.lse[first + r]);
                for (x, &t) in inside.iter_mut().zip(self.targets(q, r, k)) {
                    *x = *x * slopes.gains[first + r] - t * slopes.scale;
                }
            }
        }
    }
}

/// The loss of a block of q: the log-sum-exp of its rows, and their summed losses.
struct Loss<'a, T>(&'a Problem<'a, T>, Block);

impl<T: Tile> Kernel for Loss<'_, T> {
    type Output = (Vec<T>, f64);

    #[inline(always)]
    fn run<V: Vector>(self) -> Self::Output {
        let Loss(problem, q) = self;
        let scale = problem.inverse_temperature;
        let mut tile = vec![T::zero(); BLOCK * BLOCK];
        let mut rows = [Running { top: f64::NEG_INFINITY, sum: 0.0, wanted: 0.0, total: 0.0 }; BLOCK];
        for k in problem.k.layout.of_group(q.group) {
            problem.cosines::<V>(q, k, &mut tile);
            for (r, (row, cosines)) in rows.iter_mut().zip(tile.chunks_mut(BLOCK)).take(q.rows).enumerate() {
                let cosines = &mut cosines[..k.rows];
                let (wanted, total) = T::weigh::<V>(cosines, problem.targets(q, r, k));
                row.wanted += Element::to_f64(wanted);
                row.total += Element::to_f64(total);
                let top = T::largest::<V>(cosines);
                let sum = Element::to_f64(T::exp_all::<V>(cosines, scale, top));
                row.add(Element::to_f64(top), sum, Element::to_f64(scale));
            }
        }
        let scale = Element::to_f64(scale);
        let lse: Vec<T> = rows[..q.rows].iter().map(|r| T::of(r.lse(scale))).collect();
        (lse, rows[..q.rows].iter().map(|r| (r.total * r.lse(scale) - r.wanted) * scale).sum())
    }
}

/// One row's sums over the columns so far, in cosines c: `sum` of `exp((c - top) / τ)`, `wanted = Σ t c`, `total = Σ t`.
#[derive(Clone, Copy)]
struct Running {
    top: f64,
    sum: f64,
    wanted: f64,
    total: f64,
}

impl Running {
    /// Adds `sum`, which counts in units of `exp(top / τ)`. A NaN in `top` stays.
    #[inline(always)]
    fn add(&mut self, top: f64, sum: f64, scale: f64) {
        let higher = if self.top >= top || self.top.is_nan() { self.top } else { top };
        self.sum = self.sum * ((self.top - higher) * scale).exp() + sum * ((top - higher) * scale).exp();
        self.top = higher;
    }

    /// τ times the log-sum-exp: among cosines, so that a lone column gives exactly its own.
    fn lse(&self, scale: f64) -> f64 {
        self.top + self.sum.ln() / scale
    }
}

/// What turns cosines into the loss's derivatives: `gains[r] exp((c - lse[r]) / τ) - scale t`.
struct Slopes<'a, T> {
    lse: &'a [T],
    gains: Vec<T>,
    scale: T,
}

/// The gradient of a block of q, and the tiles of slopes with all blocks of k that it is made of.
struct QueryGradient<'a, T> {
    problem: &'a Problem<'a, T>,
    slopes: &'a Slopes<'a, T>,
    at: Block,
    tiles: &'a mut [T],
    dx: &'a mut [T],
}

impl<T: Tile> Kernel for QueryGradient<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<V: Vector>(self) {
        let (p, q) = (self.problem, self.at);
        let mut dunit = vec![T::zero(); BLOCK * p.q.layout.width];
        for (k, tile) in p.k.layout.of_group(q.group).zip(self.tiles.chunks_mut(BLOCK * BLOCK)) {
            p.slopes::<V>(self.slopes, q, k, tile);
            T::add_product::<V>(tile, p.k.rows(k), &mut dunit, BLOCK, p.q.layout.width);
        }
        p.q.through_norm(q, &dunit, self.dx);
    }
}

/// Adds what blocks of q, each with its tiles, give to the gradient of a block of k's unit rows.
struct KeyGradient<'a, T> {
    problem: &'a Problem<'a, T>,
    at: Block,
    queries: &'a [(Block, &'a [T])],
    dunit: &'a mut [T],
}

impl<T: Tile> Kernel for KeyGradient<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<V: Vector>(self) {
        let (p, k) = (self.problem, self.at);
        let mut turned = vec![T::zero(); BLOCK * BLOCK];
        for (q, tiles) in self.queries.iter().filter(|(q, _)| q.group == k.group) {
            let tile = &tiles[k.start * BLOCK..][..BLOCK * BLOCK];
            for (r, row) in tile.chunks(BLOCK).enumerate() {
                for (c, &v) in row.iter().enumerate() {
                    turned[c * BLOCK + r] = v;
                }
            }
            T::add_product::<V>(&turned, p.q.rows(*q), self.dunit, BLOCK, p.k.layout.width);
        }
    }
}
