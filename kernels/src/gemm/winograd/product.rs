//! Rows times weights: a unit is a block of tiles, and all outputs.

use super::super::operand::Operand;
use super::super::pack::{self, Packing, Weight};
use super::super::product::Product;
use super::super::tile::{Ahead, MAX_ROWS, Strip, Target};
use super::tiles::{Block, SOURCE_SIDE, Tiles};
use super::transform::{Positions, TAPS, from_source, tap_factor, to_target};
use super::{POSITIONS, for_product};
use crate::simd::{Kernel, MAX_LANES, Vector, dispatch};
use engine::{DType, Device, Result, Tensor, parallel};

/// Most lanes of a step, see [`super::super::product`].
const STEP_LANES: usize = 192;

/// Writes the target pixels that the rows of all products name: by tiles those that suit, and by `rest` the others.
pub fn run<S: Operand>(
    products: &[Product<S>],
    target: &mut [S],
    rest: impl FnOnce(&[Product<S>], &mut [S]) -> Result<()>,
) -> Result<()> {
    let mut others = Vec::new();
    for product in products {
        match for_product::<S>(product.map, product.channels, product.n) {
            Some(tiles) => Plan::new(product, tiles)?.run(target)?,
            None => others.push(*product),
        }
    }
    rest(&others, target)
}

struct Plan<'a, S> {
    product: &'a Product<'a, S>,
    tiles: Tiles,
    /// Columns of a panel.
    width: usize,
    /// `[panels, POSITIONS, depth, channels, width]`.
    weights: Tensor,
    zeros: Vec<f32>,
    bias: Vec<f32>,
}

impl<'a, S: Operand> Plan<'a, S> {
    fn new(product: &'a Product<'a, S>, tiles: Tiles) -> Result<Self> {
        let width = pack::width();
        let packed = pack_wide(product, width)?;
        let weights = transform(&packed, tiles.depth, product.channels * width)?;
        let mut bias = product.bias.map_or(vec![], <[f32]>::to_vec);
        bias.resize(product.n + MAX_LANES, 0.0);
        Ok(Plan { product, tiles, width, weights, zeros: vec![0.0; width], bias })
    }

    fn run(&self, target: &mut [S]) -> Result<()> {
        let (to, weights) = (Target(target.as_mut_ptr()), self.weights.as_slice()?);
        parallel::run_with(self.tiles.blocks(), Scratch::default, |scratch, i| {
            S::dispatch(Unit { plan: self, block: self.tiles.block(i), weights, to, scratch });
        });
        Ok(())
    }
}

/// The weights in f32, packed: `[panels, depth, TAPS, TAPS, channels, width]`.
fn pack_wide<S: Operand>(product: &Product<S>, width: usize) -> Result<Tensor> {
    let Product { channels, weight, n, .. } = *product;
    let mut scratch = vec![0.0; if S::PER_LANE > 1 { weight.data.len() } else { 0 }];
    let wide = Weight { data: S::wide(weight.data, &mut scratch), tap: weight.tap, k: weight.k, n: weight.n };
    Packing { weight: &wide, n, width, taps: &product.taps(), channels: 0..channels, joined: 1 }.all()
}

/// `G w Gᵀ` of packed weights: `[panels, depth, TAPS, TAPS, size]` to `[panels, POSITIONS, depth, size]`.
fn transform(packed: &Tensor, depth: usize, size: usize) -> Result<Tensor> {
    let packed = packed.as_slice::<f32>()?;
    let panels = packed.len() / (depth * TAPS * TAPS * size);
    let mut weights = Tensor::empty(&[panels * POSITIONS * depth * size], DType::F32, Device::Cpu)?;
    parallel::each(weights.as_mut_slice()?.chunks_mut(size).enumerate(), |(i, to)| {
        let (d, position, panel) = (i % depth, i / depth % POSITIONS, i / depth / POSITIONS);
        let from = &packed[(panel * depth + d) * TAPS * TAPS * size..][..TAPS * TAPS * size];
        dispatch(Taps { from, position, to });
    });
    Ok(weights)
}

/// One position of the weights of one tap along D: `[TAPS, TAPS, size]` to `[size]`.
struct Taps<'a> {
    from: &'a [f32],
    position: usize,
    to: &'a mut [f32],
}

impl Kernel for Taps<'_> {
    type Output = ();

    #[inline(always)]
    fn run<V: Vector>(self) {
        self.to.fill(0.0);
        for (tap, from) in self.from.chunks_exact(self.to.len()).enumerate() {
            let factor = tap_factor(self.position, tap);
            if factor != 0.0 {
                for (to, from) in self.to.iter_mut().zip(from) {
                    *to += factor * from;
                }
            }
        }
    }
}

/// What a thread reuses from unit to unit.
#[derive(Default)]
struct Scratch {
    source: Positions,
    sums: Positions,
    a: Vec<*const f32>,
    c: Vec<*mut f32>,
}

struct Unit<'a, S> {
    plan: &'a Plan<'a, S>,
    block: Block,
    weights: &'a [f32],
    to: Target<S>,
    scratch: &'a mut Scratch,
}

impl<S: Operand> Kernel for Unit<'_, S> {
    type Output = ();

    #[inline(always)]
    fn run<V: Vector>(mut self) {
        let Plan { product: p, tiles, .. } = self.plan;
        self.list();
        from_source::<S, V>(tiles, &self.block, 0..SOURCE_SIDE, p.source, &mut self.scratch.source);
        let rows = self.block.planes() * self.block.tiles();
        for position in 0..POSITIONS {
            for panel in 0..p.n.div_ceil(self.plan.width) {
                for step in self.steps() {
                    let strip = self.strip(position, panel, step);
                    // SAFETY: `list` made both lists MAX_ROWS - 1 longer than the rows, and panels are `width` wide.
                    unsafe { strip.run::<V>(rows) }
                }
            }
        }
        to_target::<S, V>(tiles, &self.block, &self.scratch.sums, &self.plan.bias, self.to);
    }
}

/// Part of the sum: taps along D, and channels of each.
#[derive(Clone, Copy)]
struct Step {
    tap: usize,
    taps: usize,
    channel: usize,
    channels: usize,
}

impl<S: Operand> Unit<'_, S> {
    /// Makes room, and lists the rows of the first position: those of the source in all planes, and those of the sums. Lists end in
    /// rows that do not count.
    fn list(&mut self) {
        let Plan { product: p, tiles, .. } = self.plan;
        let [most, most_sources] = tiles.most_rows();
        let s = &mut *self.scratch;
        s.source.resize(POSITIONS, most_sources, p.channels);
        s.sums.resize(POSITIONS, most + 1, p.n);
        let (planes, tiles_in_plane) = (self.block.planes(), self.block.tiles());
        let (rows, sources) = (planes * tiles_in_plane, (planes + tiles.depth - 1) * tiles_in_plane);
        s.a.clear();
        s.a.extend((0..sources).map(|row| s.source.row(0, row)));
        s.a.resize(sources + MAX_ROWS - 1, s.source.row(0, 0));
        s.c.clear();
        for row in 0..rows {
            s.c.push(s.sums.row_mut(0, row));
        }
        s.c.resize(rows + MAX_ROWS - 1, s.sums.row_mut(0, most));
    }

    /// All taps at once where they have few channels, otherwise one by one, in parts of their channels.
    fn steps(&self) -> impl Iterator<Item = Step> + use<S> {
        let (depth, channels) = (self.plan.tiles.depth, self.plan.product.channels);
        let taps = (STEP_LANES / channels).clamp(1, depth);
        let part = channels.div_ceil(channels.div_ceil(STEP_LANES));
        (0..depth).step_by(taps).flat_map(move |tap| {
            (0..channels).step_by(part).map(move |channel| Step {
                tap,
                taps: taps.min(depth - tap),
                channel,
                channels: part.min(channels - channel),
            })
        })
    }

    #[inline(always)]
    fn strip(&self, position: usize, panel: usize, step: Step) -> Strip<f32> {
        let (plan, s) = (self.plan, &*self.scratch);
        let (p, depth, width) = (plan.product, plan.tiles.depth, plan.width);
        let tap = (panel * POSITIONS + position) * depth + step.tap;
        let b = &self.weights[(tap * p.channels + step.channel) * width..];
        let tiles = self.block.tiles();
        Strip {
            a: s.a[step.tap * tiles..].as_ptr(),
            a_step: tiles,
            apart: 0,
            taps: step.taps,
            k0: position * s.source.step() + step.channel,
            channels: step.channels,
            b: b.as_ptr(),
            width,
            c: s.c.as_ptr(),
            start: (step.tap == 0 && step.channel == 0).then_some(plan.zeros.as_ptr()),
            col: position * s.sums.step() + panel * width,
            n: width.min(p.n - panel * width),
            ahead: Ahead::default(),
        }
    }
}
