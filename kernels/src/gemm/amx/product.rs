//! Rows times weights, as [`crate::gemm::product`] does it with vectors: `target[row][n] = bias[n] + sum over tap, k of
//! source[pixel(row, tap)][k] * weight[tap][k][n]`.
//!
//! A unit is a block of rows and some panels of columns. Part by part of the sum, its rows are gathered once and multiplied with each
//! panel; sums stay with the unit until they are rounded to the outputs.

use super::gather::{Gathered, Part, Source};
use super::tiles::{LANES, ROWS, Sum, Tiles};
use crate::gemm::map::Run;
use crate::gemm::pack::Packing;
use crate::gemm::product::{Cut, Product, take_turns};
use crate::gemm::tile::Target;
use crate::simd::{self, Kernel, Lane, Vector};
use engine::{DType, Device, Result, Tensor, bf16, parallel};
use std::ops::Range;

/// Columns of a panel of weights: two tiles.
const WIDTH: usize = 2 * LANES;
/// Most rows of a block, and most panels of a unit: what is gathered and the sums stay in the second-level cache.
const BLOCK_ROWS: usize = 192;
/// Panels whose weights for a part of the sum can stay in the first-level cache beside two tiles' rows. With more of them rows are
/// gathered for the whole block, so that each panel is read from the second level once.
const FEW_PANELS: usize = 3;
const UNIT_PANELS: usize = 12;

/// How a product is computed.
struct Plan<'a> {
    product: &'a Product<'a, bf16>,
    cut: Cut,
    parts: Vec<Part>,
    /// Where each part's weights begin in a panel's, in lanes of all columns, and where the last one's end.
    starts: Vec<usize>,
    taps: Vec<usize>,
    /// The bias, or zero, for each output.
    start: Vec<f32>,
}

/// What a thread reuses from unit to unit.
#[derive(Default)]
struct Scratch {
    runs: Vec<Run>,
    rows: Gathered,
    weights: Vec<f32>,
    wide: Vec<f32>,
    sums: Vec<f32>,
}

/// Writes the target pixels that the rows of all products name. Products take turns, block by block, as there.
pub fn run(products: &[Product<bf16>], target: &mut [bf16]) -> Result<()> {
    assert!(simd::has_tiles());
    let mut plans = Vec::new();
    for product in products {
        match product.few_rows() {
            Some(few) => few.run(target),
            None => plans.push(Plan::new(product)),
        }
    }
    let packed = plans.iter().map(Plan::pack).collect::<Result<Vec<_>>>()?;
    let packed = packed.iter().map(|p| p.as_ref().map(Tensor::as_slice).transpose()).collect::<Result<Vec<_>>>()?;
    let to = Target(target.as_mut_ptr());
    take_turns(
        &plans,
        |plan| plan.cut.units(),
        Scratch::default,
        |scratch, which, unit| {
            // SAFETY: tiles are here.
            unsafe { simd::dispatch_tiles(plans[which].unit(unit, packed[which], to, scratch)) }
        },
    );
    Ok(())
}

impl<'a> Plan<'a> {
    fn new(product: &'a Product<'a, bf16>) -> Plan<'a> {
        let (rows, panels) = (product.map.rows(), product.n.div_ceil(WIDTH));
        let cut = Cut::new(rows, rows.div_ceil(BLOCK_ROWS), 2 * ROWS, panels, UNIT_PANELS);
        let parts = Part::all(product.map, product.channels);
        let mut starts = vec![0];
        starts.extend(parts.iter().scan(0, |end, part| {
            *end += part.depth() * ROWS;
            Some(*end)
        }));
        let start = product.bias.map_or(vec![0.0; product.n], <[f32]>::to_vec);
        let taps = product.taps();
        Plan { product, cut, parts, starts, taps, start }
    }

    /// Lanes of a panel.
    fn lanes(&self) -> usize {
        self.starts[self.parts.len()]
    }

    /// For each panel, the lanes of its parts, where there are several blocks to use them: otherwise units pack their own.
    fn pack(&self) -> Result<Option<Tensor>> {
        if self.cut.blocks == 1 {
            return Ok(None);
        }
        let (parts, panels) = (self.parts.len(), self.product.n.div_ceil(WIDTH));
        let mut packed = Tensor::empty(&[panels * self.lanes() * WIDTH], DType::F32, Device::Cpu)?;
        let to = Target(packed.as_mut_slice::<f32>()?.as_mut_ptr());
        parallel::run_with(panels * parts, Vec::new, |wide, i| {
            // SAFETY: as in `run`.
            unsafe { simd::dispatch_tiles(PackPart { plan: self, panel: i / parts, part: i % parts, to, wide }) }
        });
        Ok(Some(packed))
    }

    /// One part's lanes of a panel, zero up to whole tiles.
    #[inline(always)]
    fn pack_part<V: Vector>(&self, panel: usize, part: usize, to: &mut [f32], wide: &mut Vec<f32>) {
        let part = &self.parts[part];
        let taps = &self.taps[part.taps.clone()];
        let (weight, channels) = (&self.product.weight, part.channels.clone());
        let packing = Packing { weight, n: self.product.n, width: WIDTH, taps, channels, joined: taps.len() };
        let (values, rest) = to.split_at_mut(part.values().div_ceil(2) * WIDTH);
        packing.panels::<V>(panel..panel + 1, values, wide);
        rest.fill(0.0);
    }

    fn unit<'b>(&'b self, i: usize, packed: Option<&'b [f32]>, to: Target<bf16>, scratch: &'b mut Scratch) -> Unit<'b> {
        let (rows, panels) = self.cut.unit(i);
        Unit { plan: self, packed, rows, panels, to, scratch }
    }
}

/// One part of one panel of the weights.
struct PackPart<'a> {
    plan: &'a Plan<'a>,
    panel: usize,
    part: usize,
    to: Target<f32>,
    wide: &'a mut Vec<f32>,
}

impl Kernel for PackPart<'_> {
    type Output = ();

    #[inline(always)]
    fn run<V: Vector>(self) {
        let plan = self.plan;
        let lanes = plan.starts[self.part]..plan.starts[self.part + 1];
        let first = self.panel * plan.lanes() + lanes.start;
        // SAFETY: each part of a panel has its own place.
        let to = unsafe { std::slice::from_raw_parts_mut(self.to.0.add(first * WIDTH), lanes.len() * WIDTH) };
        plan.pack_part::<V>(self.panel, self.part, to, self.wide);
    }
}

/// The target's rows of one block and columns of some panels.
struct Unit<'a> {
    plan: &'a Plan<'a>,
    packed: Option<&'a [f32]>,
    rows: Range<usize>,
    panels: Range<usize>,
    to: Target<bf16>,
    scratch: &'a mut Scratch,
}

impl Kernel for Unit<'_> {
    type Output = ();

    #[inline(always)]
    fn run<V: Vector>(mut self) {
        let s = &mut *self.scratch;
        let size = self.rows.len().next_multiple_of(ROWS) * self.panels.len() * WIDTH;
        s.sums.resize(s.sums.len().max(size), 0.0);
        if self.plan.parts.is_empty() {
            s.sums[..size].fill(0.0);
        }
        // SAFETY: this runs at a level with tiles only.
        let tiles = unsafe { Tiles::new() };
        let gathered = if self.panels.len() > FEW_PANELS { self.rows.len() } else { 2 * ROWS };
        for part in 0..self.plan.parts.len() {
            self.pack::<V>(part);
            for first in (0..self.rows.len()).step_by(gathered) {
                self.multiply::<V>(part, first..self.rows.len().min(first + gathered), &tiles);
            }
        }
        drop(tiles);
        self.write::<V>();
    }
}

impl Unit<'_> {
    /// Values between rows of the sums.
    #[inline(always)]
    fn columns(&self) -> usize {
        self.panels.len() * WIDTH
    }

    /// Packs a part of the unit's panels, unless they are packed already.
    #[inline(always)]
    fn pack<V: Vector>(&mut self, part: usize) {
        let (plan, s) = (self.plan, &mut *self.scratch);
        if self.packed.is_some() {
            return;
        }
        let size = (plan.starts[part + 1] - plan.starts[part]) * WIDTH;
        s.weights.resize(s.weights.len().max(size * self.panels.len()), 0.0);
        for (panel, to) in self.panels.clone().zip(s.weights.chunks_exact_mut(size)) {
            plan.pack_part::<V>(panel, part, to, &mut s.wide);
        }
    }

    /// A part of a panel's weights.
    #[inline(always)]
    fn weights(&self, part: usize, panel: usize) -> &[f32] {
        let (starts, panel_lanes) = (&self.plan.starts, self.plan.lanes());
        match self.packed {
            Some(packed) => &packed[(panel * panel_lanes + starts[part]) * WIDTH..],
            None => &self.scratch.weights[(panel - self.panels.start) * (starts[part + 1] - starts[part]) * WIDTH..],
        }
    }

    /// Gathers some rows of the block, and adds a part of the sum to all panels' columns of them.
    #[inline(always)]
    fn multiply<V: Vector>(&mut self, part: usize, rows: Range<usize>, tiles: &Tiles) {
        let (plan, product, columns) = (self.plan, self.plan.product, self.columns());
        let s = &mut *self.scratch;
        product.map.runs(self.rows.start + rows.start..self.rows.start + rows.end, &mut s.runs);
        let source = Source { map: product.map, values: product.source, channels: product.channels };
        s.rows.fill::<V>(&source, &s.runs, rows.len(), &plan.parts[part]);
        for panel in self.panels.clone() {
            let column = (panel - self.panels.start) * WIDTH;
            let sum = Sum {
                a: self.scratch.rows.as_ptr().cast(),
                a_step: 2 * self.scratch.rows.stride(),
                b: self.weights(part, panel).as_ptr(),
                b_step: 4 * WIDTH,
                c: self.scratch.sums[rows.start * columns + column..].as_mut_ptr(),
                c_step: 4 * columns,
                depth: plan.parts[part].depth(),
                add: part > 0,
            };
            let n = product.n - panel * WIDTH;
            // SAFETY: rows, weights and sums have whole tiles.
            unsafe { sum.run::<V>(tiles, rows.len().div_ceil(ROWS), n.div_ceil(LANES).min(2)) }
        }
    }

    /// Rounds the sums, with the bias, to the outputs.
    #[inline(always)]
    fn write<V: Vector>(&mut self) {
        let (product, width) = (self.plan.product, self.columns());
        let s = &mut *self.scratch;
        product.map.runs(self.rows.clone(), &mut s.runs);
        let columns = self.panels.start * WIDTH..product.n.min(self.panels.end * WIDTH);
        let start = &self.plan.start[columns.clone()];
        for run in &s.runs {
            let (first, stride) = product.map.target(run);
            for i in 0..run.len() {
                let sums = &s.sums[(run.row + i) * width..][..columns.len()];
                // SAFETY: the map names pixels of the target, and this unit alone writes these columns of them.
                unsafe {
                    let to = self.to.0.add((first + i * stride) * product.n + columns.start);
                    round::<V>(start, sums, to);
                }
            }
        }
    }
}

/// `to[j] = start[j] + sums[j]`.
///
/// # Safety
/// As for [`Vector`]; the slices must have one length, as must `to`.
#[inline(always)]
unsafe fn round<V: Vector>(start: &[f32], sums: &[f32], to: *mut bf16) {
    for j in (0..sums.len()).step_by(V::LANES) {
        // SAFETY: the caller's.
        unsafe {
            let (start, sums, n) = (start.as_ptr().add(j), sums.as_ptr().add(j), sums.len() - j);
            if n >= V::LANES {
                bf16::store(V::load(start).add(V::load(sums)), to.add(j));
            } else {
                bf16::store_first(V::load_first(start, n).add(V::load_first(sums, n)), to.add(j), n);
            }
        }
    }
}
