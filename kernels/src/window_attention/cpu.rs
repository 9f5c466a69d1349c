//! The f32 version, and that of bf16, which is widened where it is gathered and rounded where it is written. A work item is one head
//! of one window: k and v are gathered into panels that stay in the cache, and every product is a loop over register tiles of R rows
//! by up to two vectors.
//!
//! The biases are expanded once per call to `[heads, n, stride]`, so that a row of scores starts from a row of biases.

#![allow(clippy::needless_range_loop)] // a register tile is indexed by row and column, beside pointers

use super::grid::{Grid, PADDING, REGIONS, Window};
use super::{Grads, MASKED, Problem, Saved};
use crate::simd::{self, Kernel, Lane, MAX_LANES, Vector};
use engine::{DType, Device, Result, Tensor, parallel};
use std::cell::RefCell;

/// Most rows of a register tile: with 16 lanes there are 32 registers, with 8 there may be 16, enough for half as many.
const MAX_ROWS: usize = 12;
/// Query rows between two updates of dk and dv.
const BLOCK: usize = 2 * MAX_ROWS;
/// Rows of scores are padded to this many keys: a panel of two vectors of any width.
const PANEL: usize = 2 * MAX_LANES;
/// The bias of keys that pad a row of scores; finite, so that it is not taken for a broken score.
const NEVER: f32 = -1e30;
/// Weights below about this become zero: far under rounding, and masked keys then make no denormal numbers.
const FLUSH: f32 = 1e-30;
/// Of this the exponential is below FLUSH, and still in its range.
const LEAST: f32 = -87.0;
/// Tokens further on whose values memory is asked for: they lie too far apart for the CPU to foresee.
const AHEAD: usize = 16;
/// Keys whose ds are added to the sums of pairs at once: no more than lie on a line of a usual window, so that one query's sums do
/// not wait for one another.
const FEW: usize = 8;
/// Windows are dealt to this many groups in backward, each with its own sums for the table.
const GROUPS: usize = 64;

/// What all work items read.
struct Inputs<'a, S> {
    grid: &'a Grid,
    heads: usize,
    head_dim: usize,
    channels: usize,
    scale: f32,
    /// Tokens of a window, and the step between rows of scores.
    tokens: usize,
    stride: usize,
    /// Where the sums of pairs for a line's offset from the first lie.
    lines: Vec<usize>,
    qkv: &'a [S],
    pad: &'a [f32],
    bias: &'a [f32],
}

impl<'a, S: Lane> Inputs<'a, S> {
    fn new(problem: &Problem, grid: &'a Grid, qkv: &'a Tensor, pad: &'a Tensor, bias: &'a Tensor) -> Result<Self> {
        Ok(Inputs {
            grid,
            heads: problem.heads,
            head_dim: problem.head_dim(),
            channels: problem.channels,
            scale: (problem.head_dim() as f64).powf(-0.5) as f32,
            tokens: grid.tokens(),
            stride: grid.tokens().next_multiple_of(PANEL),
            lines: (0..grid.tokens().div_ceil(grid.nominal[2])).map(|l| pair_place(grid, grid.line_code(l))).collect(),
            qkv: qkv.as_slice()?,
            pad: pad.as_slice()?,
            bias: bias.as_slice()?,
        })
    }

    /// One head of q (part 0), k (1) or v (2) of a token in `row`, each value times `by`.
    #[inline(always)]
    fn put_part<V: Vector>(&self, part: usize, row: usize, head: usize, by: f32, to: &mut [f32]) {
        let width = 3 * self.channels;
        let at = part * self.channels + head * self.head_dim;
        match row {
            PADDING => scale_into::<f32, V>(to, &self.pad[at..][..self.head_dim], by),
            row => scale_into::<S, V>(to, &self.qkv[row * width + at..][..self.head_dim], by),
        }
    }

    #[inline(always)]
    fn will_read(&self, part: usize, row: usize, head: usize) {
        if row != PADDING {
            simd::will_read(&raw const self.qkv[(row * 3 + part) * self.channels + head * self.head_dim]);
        }
    }

    fn bias_row(&self, head: usize, token: usize) -> *const f32 {
        self.bias[(head * self.tokens + token) * self.stride..][..self.stride].as_ptr()
    }
}

/// `[heads, n, stride]`, the stride being n filled up to whole panels.
pub(super) fn bias_dims(grid: &Grid, heads: usize) -> [usize; 3] {
    [heads, grid.tokens(), grid.tokens().next_multiple_of(PANEL)]
}

/// The biases of every pair of tokens, of [`bias_dims`].
fn expand_bias(grid: &Grid, heads: usize, table: &Tensor) -> Result<Tensor> {
    let [_, n, stride] = bias_dims(grid, heads);
    let codes: Vec<_> = (0..n).map(|t| grid.code(t)).collect();
    let centre = (grid.offsets() - 1) / 2;
    let table = table.as_slice::<f32>()?;
    let mut bias = Tensor::empty(&bias_dims(grid, heads), DType::F32, Device::Cpu)?;
    parallel::each(bias.as_mut_slice::<f32>()?.chunks_exact_mut(stride).enumerate(), |(row, out)| {
        let (head, i) = (row / n, row % n);
        for (out, code) in out.iter_mut().zip(&codes) {
            *out = table[(codes[i] + centre - code) * heads + head];
        }
        out[n..].fill(NEVER);
    });
    Ok(bias)
}

/// An output that work items write into, each its own elements.
#[derive(Clone, Copy)]
struct Shared<T>(*mut T);
// SAFETY: every (batch element, window, head) writes the elements of its own tokens and head, and those are no other's.
unsafe impl<T> Send for Shared<T> {}
// SAFETY: as above.
unsafe impl<T> Sync for Shared<T> {}

impl<T> Shared<T> {
    /// # Safety
    /// `at` lies in the output.
    unsafe fn at(&self, at: usize) -> *mut T {
        unsafe { self.0.add(at) }
    }
}

thread_local! {
    static SCRATCH: RefCell<(Window, Vec<f32>)> = RefCell::default();
}

/// Calls `work` with this thread's window and scratch, `len` elements whose contents are left over from earlier calls.
fn with_scratch<R>(len: usize, work: impl FnOnce(&mut Window, &mut [f32]) -> R) -> R {
    SCRATCH.with_borrow_mut(|(window, scratch)| {
        if scratch.len() < len + simd::LINE {
            scratch.resize(len + simd::LINE, 0.0);
        }
        let skip = simd::values_to_line(scratch.as_ptr());
        work(window, &mut scratch[skip..][..len])
    })
}

/// Cuts `len` elements off the front of `scratch`, in whole cache lines.
fn take<'a>(scratch: &mut &'a mut [f32], len: usize) -> &'a mut [f32] {
    let (taken, rest) = std::mem::take(scratch).split_at_mut(line(len));
    *scratch = rest;
    &mut taken[..len]
}

fn line(len: usize) -> usize {
    len.next_multiple_of(MAX_LANES)
}

pub(super) fn forward<S: Lane>(
    problem: &Problem,
    grid: &Grid,
    qkv: &Tensor,
    pad: &Tensor,
    table: &Tensor,
    y: &mut Tensor,
    lse: &mut Tensor,
) -> Result<()> {
    let bias = expand_bias(grid, problem.heads, table)?;
    let inputs = &Inputs::<S>::new(problem, grid, qkv, pad, &bias)?;
    let y = Shared(y.as_mut_slice::<S>()?.as_mut_ptr());
    let lse = Shared(lse.as_mut_slice::<f32>()?.as_mut_ptr());
    let units = problem.batch * grid.windows() * problem.heads;
    parallel::run(units, &|unit| {
        let (window_index, head) = (unit / problem.heads, unit % problem.heads);
        with_scratch(Forward::<S>::scratch(inputs), |window, scratch| {
            window.fill(grid, window_index / grid.windows(), window_index % grid.windows());
            S::dispatch(Forward { inputs, window, head, y, lse, scratch });
        });
    });
    Ok(())
}

struct Forward<'a, S> {
    inputs: &'a Inputs<'a, S>,
    window: &'a Window,
    head: usize,
    y: Shared<S>,
    lse: Shared<f32>,
    scratch: &'a mut [f32],
}

impl<S> Forward<'_, S> {
    fn scratch(x: &Inputs<'_, S>) -> usize {
        let keys = line(x.stride * x.head_dim) + line(x.tokens * x.head_dim.next_multiple_of(MAX_LANES));
        keys + line(REGIONS * x.stride) + line(MAX_ROWS * x.head_dim) + line(MAX_ROWS * x.stride)
    }
}

impl<S: Lane> Kernel for Forward<'_, S> {
    type Output = ();

    #[inline(always)]
    fn run<V: Vector>(self) {
        if V::LANES == 16 { self.tiles::<V, MAX_ROWS>() } else { self.tiles::<V, { MAX_ROWS / 2 }>() }
    }
}

impl<S: Lane> Forward<'_, S> {
    #[inline(always)]
    fn tiles<V: Vector, const R: usize>(self) {
        let Forward { inputs: x, window, head, y, lse, mut scratch } = self;
        let dim = x.head_dim.next_multiple_of(V::LANES);
        let k = take(&mut scratch, x.stride * x.head_dim);
        let v = take(&mut scratch, x.tokens * dim);
        let masks = take(&mut scratch, REGIONS * x.stride);
        let q = take(&mut scratch, R * x.head_dim);
        let scores = take(&mut scratch, R * x.stride);
        gather_rows::<S, V>(x, 1, window, head, dim, v); // k for now
        to_panels(v, dim, x.head_dim, 2 * V::LANES, k);
        gather_rows::<S, V>(x, 2, window, head, dim, v);
        fill_masks(window, x.stride, masks);
        for (i, queries) in window.queries.chunks(R).enumerate() {
            for &t in window.queries.iter().skip((i + 1) * R).take(R) {
                x.will_read(0, window.rows[t], head);
            }
            for (q, &t) in q.chunks_exact_mut(x.head_dim).zip(queries) {
                x.put_part::<V>(0, window.rows[t], head, x.scale, q);
            }
            let start = Start::<R>::new(x, window, head, masks, queries);
            // SAFETY: `dispatch` gave the instruction set; the slices above are as long as the tiles assume; the rows of y and
            // lse are this work item's.
            unsafe {
                let rows = Left { at: q.as_ptr(), row: x.head_dim, step: 1 };
                let top = score_rows::<V, R>(&start, rows, k, x.head_dim, scores);
                let mut inverse = [0.0; R];
                let mut to = [y.0; R];
                for (r, &t) in queries.iter().enumerate() {
                    let row = window.rows[t];
                    let sum = exp_row::<V>(&mut scores[r * x.stride..][..x.stride], top[r]);
                    inverse[r] = 1.0 / sum;
                    to[r] = y.at(row * x.channels + head * x.head_dim);
                    lse.at(row * x.heads + head).write(top[r] + sum.ln());
                }
                let weights = Left { at: scores.as_ptr(), row: x.stride, step: 1 };
                let values = Right { at: v.as_ptr(), step: dim, depth: x.tokens };
                put_product::<S, V, R>(weights, values, &to[..queries.len()], &inverse, x.head_dim);
            }
        }
    }
}

/// Rows `[n, dim]` with vectors along the tokens: `[stride / width, head_dim, width]`, zero after the last token.
fn to_panels(rows: &[f32], dim: usize, head_dim: usize, width: usize, panels: &mut [f32]) {
    let panels = panels.chunks_exact_mut(head_dim * width);
    let groups = rows.chunks(dim * width).chain(std::iter::repeat(&[][..]));
    for (panel, rows) in panels.zip(groups) {
        if rows.len() < dim * width {
            panel.fill(0.0);
        }
        for (j, row) in rows.chunks_exact(dim).enumerate() {
            for (column, v) in panel.chunks_exact_mut(width).zip(row) {
                column[j] = *v;
            }
        }
    }
}

/// k or v of all tokens, `[n, dim]`, zero after head_dim.
#[inline(always)]
fn gather_rows<S: Lane, V: Vector>(
    x: &Inputs<'_, S>,
    part: usize,
    window: &Window,
    head: usize,
    dim: usize,
    out: &mut [f32],
) {
    for (i, (out, &row)) in out.chunks_exact_mut(dim).zip(&window.rows).enumerate() {
        if let Some(&row) = window.rows.get(i + AHEAD) {
            x.will_read(part, row, head);
        }
        x.put_part::<V>(part, row, head, 1.0, &mut out[..x.head_dim]);
        out[x.head_dim..].fill(0.0);
    }
}

/// What to add to a row of scores, for queries of each region: `[REGIONS, stride]`. Nothing to do in an undivided window.
fn fill_masks(window: &Window, stride: usize, masks: &mut [f32]) {
    if window.divided {
        for (region, mask) in masks.chunks_exact_mut(stride).enumerate() {
            mask.fill(0.0);
            for (mask, &of) in mask.iter_mut().zip(&window.regions) {
                *mask = if usize::from(of) == region { 0.0 } else { MASKED };
            }
        }
    }
}

/// The slices have one length.
#[inline(always)]
fn scale_into<S: Lane, V: Vector>(to: &mut [f32], from: &[S], by: f32) {
    for (to, from) in to.chunks_mut(V::LANES).zip(from.chunks(V::LANES)) {
        // SAFETY: the caller's instruction set; both chunks have `from.len()` elements.
        unsafe {
            if from.len() == V::LANES {
                S::load::<V>(from.as_ptr()).mul(V::splat(by)).store(to.as_mut_ptr());
            } else {
                let n = from.len();
                S::load_first::<V>(from.as_ptr(), n).mul(V::splat(by)).store_first(to.as_mut_ptr(), n);
            }
        }
    }
}

/// `sum of a[i] b[i]`; the slices have one length.
#[inline(always)]
fn dot<S: Lane, V: Vector>(a: &[S], b: &[S]) -> f32 {
    // SAFETY: the caller's instruction set; both chunks have `a.len()` elements.
    unsafe {
        let mut sum = V::zero();
        for (a, b) in a.chunks(V::LANES).zip(b.chunks(V::LANES)) {
            sum = S::load_first::<V>(a.as_ptr(), a.len()).fma(S::load_first(b.as_ptr(), b.len()), sum);
        }
        sum.sum()
    }
}

/// What a tile of scores starts from: rows of biases and, in a divided window, of masks.
struct Start<const R: usize> {
    bias: [*const f32; R],
    mask: Option<[*const f32; R]>,
}

impl<const R: usize> Start<R> {
    /// For up to R queries; missing ones repeat the first.
    fn new<S: Lane>(x: &Inputs<'_, S>, window: &Window, head: usize, masks: &[f32], queries: &[usize]) -> Self {
        let token = |r: usize| queries[if r < queries.len() { r } else { 0 }];
        let mask_row = |t: usize| masks[usize::from(window.regions[t]) * x.stride..][..x.stride].as_ptr();
        Start {
            bias: std::array::from_fn(|r| x.bias_row(head, token(r))),
            mask: window.divided.then(|| std::array::from_fn(|r| mask_row(token(r)))),
        }
    }

    #[inline(always)]
    unsafe fn load<V: Vector>(&self, at: usize) -> [[V; 2]; R] {
        unsafe {
            let mut acc = [[V::zero(); 2]; R];
            for r in 0..R {
                for c in 0..2 {
                    acc[r][c] = V::load(self.bias[r].add(at + c * V::LANES));
                }
            }
            if let Some(mask) = &self.mask {
                for r in 0..R {
                    for c in 0..2 {
                        acc[r][c] = acc[r][c].add(V::load(mask[r].add(at + c * V::LANES)));
                    }
                }
            }
            acc
        }
    }
}

/// The left factor of a product: row r at depth k is `at[r * row + k * step]`.
#[derive(Clone, Copy)]
struct Left {
    at: *const f32,
    row: usize,
    step: usize,
}

/// The right factor: `depth` rows, `step` apart.
#[derive(Clone, Copy)]
struct Right {
    at: *const f32,
    step: usize,
    depth: usize,
}

impl Right {
    /// Panel `index` of [`to_panels`].
    #[inline(always)]
    unsafe fn panel<V: Vector>(panels: &[f32], index: usize, head_dim: usize) -> Right {
        let width = 2 * V::LANES;
        Right { at: unsafe { panels.as_ptr().add(index * head_dim * width) }, step: width, depth: head_dim }
    }
}

/// `acc + left right`, for R rows of `left` and C vectors of `right`.
#[inline(always)]
unsafe fn tile<V: Vector, const R: usize, const C: usize>(
    mut acc: [[V; C]; R],
    left: Left,
    right: Right,
) -> [[V; C]; R] {
    unsafe {
        for k in 0..right.depth {
            let mut columns = [V::zero(); C];
            for c in 0..C {
                columns[c] = V::load(right.at.add(k * right.step + c * V::LANES));
            }
            for r in 0..R {
                let scalar = V::splat(*left.at.add(r * left.row + k * left.step));
                for c in 0..C {
                    acc[r][c] = scalar.fma(columns[c], acc[r][c]);
                }
            }
        }
        acc
    }
}

/// Scores of R queries against all keys, and the largest of each row.
#[inline(always)]
unsafe fn score_rows<V: Vector, const R: usize>(
    start: &Start<R>,
    q: Left,
    k: &[f32],
    head_dim: usize,
    scores: &mut [f32],
) -> [f32; R] {
    unsafe {
        let stride = scores.len() / R;
        let mut top = [V::splat(f32::NEG_INFINITY); R];
        for panel in 0..stride / (2 * V::LANES) {
            let at = panel * 2 * V::LANES;
            let acc = tile(start.load::<V>(at), q, Right::panel::<V>(k, panel, head_dim));
            for r in 0..R {
                for c in 0..2 {
                    acc[r][c].store(scores.as_mut_ptr().add(r * stride + at + c * V::LANES));
                    top[r] = top[r].max(acc[r][c]);
                }
            }
        }
        let mut largest = [0.0; R];
        for r in 0..R {
            largest[r] = top[r].largest();
        }
        largest
    }
}

/// e to the power of x, and zero where that is nearly nothing; x is above 0 by no more than rounding.
#[inline(always)]
unsafe fn weight<V: Vector>(x: V) -> V {
    unsafe { x.max(V::splat(LEAST)).exp_inside().sub(V::splat(FLUSH)).max(V::zero()) }
}

/// Turns scores into weights, relative to the largest score, and returns their sum: NaN when a score is not finite.
#[inline(always)]
unsafe fn exp_row<V: Vector>(row: &mut [f32], top: f32) -> f32 {
    unsafe {
        let (top, zero) = (V::splat(top), V::zero());
        let (mut sum, mut finite) = (zero, zero);
        for at in (0..row.len()).step_by(V::LANES) {
            let score = V::load(row.as_ptr().add(at));
            let e = weight(score.sub(top));
            e.store(row.as_mut_ptr().add(at));
            sum = sum.add(e);
            finite = score.fma(zero, finite); // `exp` and `max` do not hand on a NaN
        }
        sum.add(finite).sum()
    }
}

/// Writes `left right`, row r times `scale[r]`, to row r of `to`; `dim` columns, which `right` has padded to whole vectors.
#[inline(always)]
unsafe fn put_product<S: Lane, V: Vector, const R: usize>(
    left: Left,
    right: Right,
    to: &[*mut S],
    scale: &[f32; R],
    dim: usize,
) {
    unsafe {
        let mut at = 0;
        while at + V::LANES < dim {
            put_columns::<S, V, R, 2>(left, right, to, scale, at, dim - at);
            at += 2 * V::LANES;
        }
        if at < dim {
            put_columns::<S, V, R, 1>(left, right, to, scale, at, dim - at);
        }
    }
}

/// C vectors of columns of [`put_product`], from column `from`; `room` columns are left in `to`.
#[inline(always)]
unsafe fn put_columns<S: Lane, V: Vector, const R: usize, const C: usize>(
    left: Left,
    right: Right,
    to: &[*mut S],
    scale: &[f32; R],
    from: usize,
    room: usize,
) {
    unsafe {
        let acc = tile([[V::zero(); C]; R], left, Right { at: right.at.add(from), ..right });
        for r in 0..R {
            for c in 0..C {
                if r < to.len() {
                    let out = acc[r][c].mul(V::splat(scale[r]));
                    let to = to[r].add(from + c * V::LANES);
                    match room - c * V::LANES {
                        few if few < V::LANES => S::store_first(out, to, few),
                        _ => S::store(out, to),
                    }
                }
            }
        }
    }
}

pub(super) fn backward<S: Lane>(
    problem: &Problem,
    grid: &Grid,
    saved: Saved<'_>,
    qkv: &Tensor,
    pad: &Tensor,
    table: &Tensor,
) -> Result<Grads> {
    let bias = expand_bias(grid, problem.heads, table)?;
    let inputs = &Inputs::<S>::new(problem, grid, qkv, pad, &bias)?;
    let (saved, lse) = ([saved.dy.as_slice::<S>()?, saved.y.as_slice()?], saved.lse.as_slice()?);
    let mut dqkv = qkv.new_empty(qkv.dims())?;
    let to = Shared(dqkv.as_mut_slice::<S>()?.as_mut_ptr());
    let units = problem.batch * grid.windows();
    let groups = units.min(GROUPS);
    // The groups, and with them the order of every sum, follow from the shape alone.
    let sums: Vec<Sums> = parallel::map(0..groups * problem.heads, |item| {
        let (group, head) = (item / problem.heads, item % problem.heads);
        group_gradients(inputs, saved, lse, head, group * units / groups..(group + 1) * units / groups, to)
    });
    let dpad = add_pads(problem, &sums)?;
    let dtable = add_tables(grid, problem.heads, &sums)?;
    Ok(Grads { dqkv, dpad, dtable })
}

/// What one head of a group of windows adds to gradients that all windows share.
struct Sums {
    /// By offset.
    table: Vec<f64>,
    /// k and v, `[2, head_dim]`.
    pad: Vec<f64>,
}

/// Gradients of one head of some windows (`units`: batch element and window); dqkv goes to `to`.
fn group_gradients<S: Lane>(
    inputs: &Inputs<'_, S>,
    [dy, y]: [&[S]; 2],
    lse: &[f32],
    head: usize,
    units: std::ops::Range<usize>,
    to: Shared<S>,
) -> Sums {
    let grid = inputs.grid;
    let mut sums = Sums { table: vec![0.0; grid.offsets()], pad: vec![0.0; 2 * inputs.head_dim] };
    let mut pairs = vec![0.0; pair_place(grid, grid.line_offsets())];
    for unit in units {
        pairs.fill(0.0);
        with_scratch(Backward::<S>::scratch(inputs), |window, scratch| {
            window.fill(grid, unit / grid.windows(), unit % grid.windows());
            let pad = &mut sums.pad;
            S::dispatch(Backward { inputs, window, head, dy, y, lse, dqkv: to, pairs: &mut pairs, pad, scratch });
        });
        add_pairs(grid, &pairs, &mut sums.table);
    }
    sums
}

/// From the sums for one query's place on its line to the next.
fn pair_step(grid: &Grid) -> usize {
    grid.nominal[2].next_multiple_of(FEW)
}

/// Where the sums for a line offset begin.
fn pair_place(grid: &Grid, line_offset: usize) -> usize {
    line_offset * grid.nominal[2] * pair_step(grid)
}

/// Adds what the pairs of each offset have to its row of the table.
fn add_pairs(grid: &Grid, pairs: &[f32], table: &mut [f64]) {
    let w = grid.nominal[2];
    for (row, pairs) in pairs.chunks_exact(pair_step(grid)).enumerate() {
        let first = row / w * (2 * w - 1) + row % w;
        for (sum, v) in table[first..first + w].iter_mut().rev().zip(pairs) {
            *sum += f64::from(*v);
        }
    }
}

fn add_pads(problem: &Problem, sums: &[Sums]) -> Result<Tensor> {
    let mut dpad = vec![0.0; 3 * problem.channels];
    let head_dim = problem.head_dim();
    for (item, sums) in sums.iter().enumerate() {
        for (part, sums) in sums.pad.chunks_exact(head_dim).enumerate() {
            let at = (part + 1) * problem.channels + item % problem.heads * head_dim;
            for (to, v) in dpad[at..].iter_mut().zip(sums) {
                *to += v;
            }
        }
    }
    Tensor::from_slice(&narrow(&dpad), &[3 * problem.channels])
}

fn add_tables(grid: &Grid, heads: usize, sums: &[Sums]) -> Result<Tensor> {
    let mut dtable = vec![0.0; grid.offsets() * heads];
    for (item, sums) in sums.iter().enumerate() {
        for (row, v) in dtable.chunks_exact_mut(heads).zip(&sums.table) {
            row[item % heads] += v;
        }
    }
    Tensor::from_slice(&narrow(&dtable), &[grid.offsets(), heads])
}

fn narrow(values: &[f64]) -> Vec<f32> {
    values.iter().map(|&v| v as f32).collect()
}

struct Backward<'a, S> {
    inputs: &'a Inputs<'a, S>,
    window: &'a Window,
    head: usize,
    dy: &'a [S],
    y: &'a [S],
    lse: &'a [f32],
    dqkv: Shared<S>,
    /// Sums of ds over the pairs of a query and a key that share the offset of their lines along W, and their places on these:
    /// `[line_offsets, W, pair_step]`, of which the first W of each row count.
    pairs: &'a mut [f32],
    pad: &'a mut [f64],
    scratch: &'a mut [f32],
}

impl<S> Backward<'_, S> {
    fn scratch(x: &Inputs<'_, S>) -> usize {
        let dim = x.head_dim.next_multiple_of(MAX_LANES);
        let keys = 2 * line(x.stride * x.head_dim) + line(x.tokens * dim);
        let sums = 2 * x.tokens.next_multiple_of(MAX_ROWS) * dim;
        let queries = 2 * BLOCK * dim;
        keys + sums + queries + line(REGIONS * x.stride) + 2 * line(BLOCK * x.stride + PANEL)
    }
}

/// Panels of k and v and rows of k, which the queries of a window share, and the sums over its queries.
struct Keys<'a> {
    k: &'a mut [f32],
    v: &'a mut [f32],
    k_rows: &'a mut [f32],
    masks: &'a mut [f32],
    dk: &'a mut [f32],
    dv: &'a mut [f32],
}

/// A block of queries: q (scaled) and dy, `[BLOCK, dim]`; p and ds, `[BLOCK, stride]` and a panel that tiles of keys read past
/// the end; per row D and lse.
struct Queries<'a> {
    q: &'a mut [f32],
    dy: &'a mut [f32],
    p: &'a mut [f32],
    ds: &'a mut [f32],
    dots: [f32; BLOCK],
    lse: [f32; BLOCK],
}

impl<S: Lane> Kernel for Backward<'_, S> {
    type Output = ();

    #[inline(always)]
    fn run<V: Vector>(self) {
        if V::LANES == 16 { self.tiles::<V, MAX_ROWS>() } else { self.tiles::<V, { MAX_ROWS / 2 }>() }
    }
}

impl<S: Lane> Backward<'_, S> {
    #[inline(always)]
    fn tiles<V: Vector, const R: usize>(mut self) {
        let (x, window, head) = (self.inputs, self.window, self.head);
        let dim = x.head_dim.next_multiple_of(V::LANES);
        let mut scratch = std::mem::take(&mut self.scratch);
        let key_rows = x.tokens.next_multiple_of(R);
        let keys = &mut Keys {
            k: take(&mut scratch, x.stride * x.head_dim),
            v: take(&mut scratch, x.stride * x.head_dim),
            k_rows: take(&mut scratch, x.tokens * dim),
            masks: take(&mut scratch, REGIONS * x.stride),
            dk: take(&mut scratch, key_rows * dim),
            dv: take(&mut scratch, key_rows * dim),
        };
        let block = &mut Queries {
            q: take(&mut scratch, BLOCK * dim),
            dy: take(&mut scratch, BLOCK * dim),
            p: take(&mut scratch, BLOCK * x.stride + PANEL),
            ds: take(&mut scratch, BLOCK * x.stride + PANEL),
            dots: [0.0; BLOCK],
            lse: [0.0; BLOCK],
        };
        gather_rows::<S, V>(x, 2, window, head, dim, keys.k_rows); // v for now
        to_panels(keys.k_rows, dim, x.head_dim, 2 * V::LANES, keys.v);
        gather_rows::<S, V>(x, 1, window, head, dim, keys.k_rows);
        to_panels(keys.k_rows, dim, x.head_dim, 2 * V::LANES, keys.k);
        fill_masks(window, x.stride, keys.masks);
        keys.dk.fill(0.0);
        keys.dv.fill(0.0);
        for (i, queries) in window.queries.chunks(BLOCK).enumerate() {
            for &t in window.queries.iter().skip((i + 1) * BLOCK).take(BLOCK) {
                self.will_read(t);
            }
            self.gather_queries::<V>(queries, dim, block);
            // SAFETY: `dispatch` gave the instruction set; the slices above are as long as the tiles assume; the rows of dqkv
            // are this work item's.
            unsafe {
                for (part, queries) in queries.chunks(R).enumerate() {
                    self.query_rows::<V, R>(queries, part * R, dim, keys, block);
                }
                let weights = Left { at: block.p.as_ptr(), row: 1, step: x.stride };
                let rows = Right { at: block.dy.as_ptr(), step: dim, depth: queries.len() };
                add_product::<V, R>(weights, rows, keys.dv, dim);
                let weights = Left { at: block.ds.as_ptr(), row: 1, step: x.stride };
                let rows = Right { at: block.q.as_ptr(), step: dim, depth: queries.len() };
                add_product::<V, R>(weights, rows, keys.dk, dim);
                for (r, &t) in queries.iter().enumerate() {
                    self.add_to_pairs(t, block.ds[r * x.stride..].as_ptr());
                }
            }
        }
        self.put_keys(dim, keys);
    }

    #[inline(always)]
    fn will_read(&self, query: usize) {
        let (x, row) = (self.inputs, self.window.rows[query]);
        x.will_read(0, row, self.head);
        for values in [self.dy, self.y] {
            simd::will_read(&raw const values[row * x.channels + self.head * x.head_dim]);
        }
    }

    /// Rows that no query fills keep what an earlier one left; they are computed with and never read.
    #[inline(always)]
    fn gather_queries<V: Vector>(&self, queries: &[usize], dim: usize, block: &mut Queries<'_>) {
        let x = self.inputs;
        for (r, &t) in queries.iter().enumerate() {
            let row = self.window.rows[t];
            let at = row * x.channels + self.head * x.head_dim;
            let (dy, y) = (&self.dy[at..][..x.head_dim], &self.y[at..][..x.head_dim]);
            let (q_to, dy_to) = (&mut block.q[r * dim..][..dim], &mut block.dy[r * dim..][..dim]);
            x.put_part::<V>(0, row, self.head, x.scale, &mut q_to[..x.head_dim]);
            simd::widen(dy, &mut dy_to[..x.head_dim]);
            q_to[x.head_dim..].fill(0.0);
            dy_to[x.head_dim..].fill(0.0);
            block.dots[r] = dot::<S, V>(dy, y);
            block.lse[r] = self.lse[row * x.heads + self.head];
        }
    }

    /// p, ds and dq of up to R queries, from row `first` of the block.
    #[inline(always)]
    unsafe fn query_rows<V: Vector, const R: usize>(
        &self,
        queries: &[usize],
        first: usize,
        dim: usize,
        keys: &Keys<'_>,
        block: &mut Queries<'_>,
    ) {
        let x = self.inputs;
        let start = Start::<R>::new(x, self.window, self.head, keys.masks, queries);
        unsafe {
            let q = Left { at: block.q.as_ptr().add(first * dim), row: dim, step: 1 };
            let dy = Left { at: block.dy.as_ptr().add(first * dim), row: dim, step: 1 };
            let (p, ds) = (block.p.as_mut_ptr().add(first * x.stride), block.ds.as_mut_ptr().add(first * x.stride));
            for panel in 0..x.stride / (2 * V::LANES) {
                let at = panel * 2 * V::LANES;
                let scores = tile(start.load::<V>(at), q, Right::panel::<V>(keys.k, panel, x.head_dim));
                for r in 0..R {
                    let lse = V::splat(block.lse[first + r]);
                    let nothing = lse.mul(V::zero()); // NaN where lse is, which `weight` would not hand on
                    for c in 0..2 {
                        weight(scores[r][c].sub(lse)).add(nothing).store(p.add(r * x.stride + at + c * V::LANES));
                    }
                }
                let dp = tile([[V::zero(); 2]; R], dy, Right::panel::<V>(keys.v, panel, x.head_dim));
                for r in 0..R {
                    let dot = V::splat(block.dots[first + r]);
                    for c in 0..2 {
                        let to = r * x.stride + at + c * V::LANES;
                        V::load(p.add(to)).mul(dp[r][c].sub(dot)).store(ds.add(to));
                    }
                }
            }
            let mut to = [self.dqkv.0; R];
            for (to, &t) in to.iter_mut().zip(queries) {
                *to = self.dqkv.at(self.window.rows[t] * 3 * x.channels + self.head * x.head_dim);
            }
            let weights = Left { at: ds, row: x.stride, step: 1 };
            let rows = Right { at: keys.k_rows.as_ptr(), step: dim, depth: x.tokens };
            put_product::<S, V, R>(weights, rows, &to[..queries.len()], &[x.scale; R], x.head_dim);
        }
    }

    /// Adds a row of ds to the sums of pairs. What lies behind the keys of a line is added where nothing counts.
    ///
    /// # Safety
    /// There must be FEW values behind the row.
    #[inline(always)]
    unsafe fn add_to_pairs(&mut self, query: usize, ds: *const f32) {
        let x = self.inputs;
        let w = x.grid.nominal[2];
        let from = x.lines[query / w] + pair_place(x.grid, x.grid.line_offsets() / 2) + query % w * pair_step(x.grid);
        let whole = x.tokens / w;
        for part in (0..w).step_by(FEW) {
            for (i, line) in x.lines[..whole].iter().enumerate() {
                // SAFETY: the offset of two lines has its sums, FEW of them or more from each part on; the part begins at a key.
                unsafe {
                    let to = self.pairs.as_mut_ptr().add(from - line + part).cast::<[f32; FEW]>();
                    let (mut sums, ds) = (*to, *ds.add(i * w + part).cast::<[f32; FEW]>());
                    for (sum, ds) in sums.iter_mut().zip(ds) {
                        *sum += ds;
                    }
                    *to = sums;
                }
            }
        }
        for key in whole * w..x.tokens {
            // SAFETY: a key of the row.
            self.pairs[from - x.lines[whole] + key % w] += unsafe { *ds.add(key) };
        }
    }

    /// Writes dk and dv of tokens in the grid, and adds those of padding to `pad`.
    #[inline(always)]
    fn put_keys(&mut self, dim: usize, keys: &Keys<'_>) {
        let x = self.inputs;
        for (part, sums) in [&*keys.dk, &*keys.dv].into_iter().enumerate() {
            for (sum, &row) in sums.chunks_exact(dim).zip(&self.window.rows) {
                if row == PADDING {
                    for (to, v) in self.pad[part * x.head_dim..].iter_mut().zip(&sum[..x.head_dim]) {
                        *to += f64::from(*v);
                    }
                } else {
                    let at = (row * 3 + part + 1) * x.channels + self.head * x.head_dim;
                    // SAFETY: the elements are in dqkv and belong to this work item.
                    let to = unsafe { std::slice::from_raw_parts_mut(self.dqkv.at(at), x.head_dim) };
                    simd::narrow(&sum[..x.head_dim], to);
                }
            }
        }
    }
}

/// `to += left right` for all rows of `to`, `[rows, dim]`, a whole number of tiles and vectors.
#[inline(always)]
unsafe fn add_product<V: Vector, const R: usize>(left: Left, right: Right, to: &mut [f32], dim: usize) {
    unsafe {
        for row in (0..to.len() / dim).step_by(R) {
            let left = Left { at: left.at.add(row * left.row), ..left };
            let to = to.as_mut_ptr().add(row * dim);
            let mut at = 0;
            while at + V::LANES < dim {
                add_columns::<V, R, 2>(left, right, to, dim, at);
                at += 2 * V::LANES;
            }
            if at < dim {
                add_columns::<V, R, 1>(left, right, to, dim, at);
            }
        }
    }
}

/// C vectors of columns of R rows of [`add_product`], from column `from`.
#[inline(always)]
unsafe fn add_columns<V: Vector, const R: usize, const C: usize>(
    left: Left,
    right: Right,
    to: *mut f32,
    dim: usize,
    from: usize,
) {
    unsafe {
        let to = to.add(from);
        let mut acc = [[V::zero(); C]; R];
        for r in 0..R {
            for c in 0..C {
                acc[r][c] = V::load(to.add(r * dim + c * V::LANES));
            }
        }
        let acc = tile(acc, left, Right { at: right.at.add(from), ..right });
        for r in 0..R {
            for c in 0..C {
                acc[r][c].store(to.add(r * dim + c * V::LANES));
            }
        }
    }
}
