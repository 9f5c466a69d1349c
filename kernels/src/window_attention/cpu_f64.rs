//! The f64 version, for gradient checks: the formulas as they stand, one query at a time.

use super::grid::{Grid, PADDING, Window};
use super::{Grads, MASKED, Problem, Saved};
use engine::{DType, Device, Result, Tensor, parallel};

/// Windows worked on between two serial passes that put their results together.
const GROUP: usize = 64;

/// One window with q, k and v of one head, and the way into the table.
struct Heads<'a> {
    problem: &'a Problem,
    grid: &'a Grid,
    window: Window,
    codes: Vec<usize>,
    qkv: &'a [f64],
    pad: &'a [f64],
    table: &'a [f64],
}

impl<'a> Heads<'a> {
    fn new(problem: &'a Problem, grid: &'a Grid, inputs: [&'a [f64]; 3], unit: usize) -> Self {
        let mut window = Window::default();
        window.fill(grid, unit / grid.windows(), unit % grid.windows());
        let codes = (0..grid.tokens()).map(|t| grid.code(t)).collect();
        Heads { problem, grid, window, codes, qkv: inputs[0], pad: inputs[1], table: inputs[2] }
    }

    /// q (part 0), k (1) or v (2) of a token.
    fn part(&self, part: usize, t: usize, head: usize) -> &[f64] {
        let width = 3 * self.problem.channels;
        let at = part * self.problem.channels + head * self.problem.head_dim();
        let row = match self.window.rows[t] {
            PADDING => self.pad,
            row => &self.qkv[row * width..][..width],
        };
        &row[at..][..self.problem.head_dim()]
    }

    fn table_at(&self, i: usize, j: usize, head: usize) -> usize {
        (self.codes[i] + (self.grid.offsets() - 1) / 2 - self.codes[j]) * self.problem.heads + head
    }

    fn scale(&self) -> f64 {
        (self.problem.head_dim() as f64).powf(-0.5)
    }

    /// Scores of query token `i` against all keys.
    fn scores(&self, i: usize, head: usize) -> Vec<f64> {
        let q = self.part(0, i, head);
        let score = |j: usize| {
            let masked = if self.window.regions[i] == self.window.regions[j] { 0.0 } else { f64::from(MASKED) };
            self.scale() * dot(q, self.part(1, j, head)) + self.table[self.table_at(i, j, head)] + masked
        };
        (0..self.codes.len()).map(score).collect()
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// `to += by * from`.
fn add_scaled(to: &mut [f64], by: f64, from: &[f64]) {
    for (to, from) in to.iter_mut().zip(from) {
        *to += by * from;
    }
}

/// Runs `work` on every (batch element, window), and `put` on the results in order.
fn in_groups<R: Send>(units: usize, work: impl Fn(usize) -> R + Sync, mut put: impl FnMut(R)) {
    for start in (0..units).step_by(GROUP) {
        let results: Vec<R> = parallel::map(start..units.min(start + GROUP), &work);
        results.into_iter().for_each(&mut put);
    }
}

pub(super) fn forward(
    problem: &Problem,
    grid: &Grid,
    qkv: &Tensor,
    pad: &Tensor,
    table: &Tensor,
    y: &mut Tensor,
    lse: &mut Tensor,
) -> Result<()> {
    let inputs = [qkv.as_slice()?, pad.as_slice()?, table.as_slice()?];
    let (y, lse) = (y.as_mut_slice::<f64>()?, lse.as_mut_slice::<f64>()?);
    let (heads, head_dim) = (problem.heads, problem.head_dim());
    let work = |unit| attend(&Heads::new(problem, grid, inputs, unit));
    in_groups(problem.batch * grid.windows(), work, |results| {
        for (row, head, value, row_lse) in results {
            y[row * problem.channels + head * head_dim..][..head_dim].copy_from_slice(&value);
            lse[row * heads + head] = row_lse;
        }
    });
    Ok(())
}

/// (row, head, y, lse) of every query of a window.
fn attend(w: &Heads<'_>) -> Vec<(usize, usize, Vec<f64>, f64)> {
    let mut results = Vec::new();
    for head in 0..w.problem.heads {
        for &i in &w.window.queries {
            let scores = w.scores(i, head);
            let top = scores.iter().fold(f64::NEG_INFINITY, |a, &b| a.max(b));
            let lse = top + scores.iter().map(|s| (s - top).exp()).sum::<f64>().ln();
            let mut y = vec![0.0; w.problem.head_dim()];
            for (j, s) in scores.iter().enumerate() {
                add_scaled(&mut y, (s - lse).exp(), w.part(2, j, head));
            }
            results.push((w.window.rows[i], head, y, lse));
        }
    }
    results
}

/// Gradients of one window: of q, k and v per token, `[n, 3C]`, and of the table.
struct WindowGrads {
    rows: Vec<usize>,
    dqkv: Vec<f64>,
    dtable: Vec<f64>,
}

pub(super) fn backward(
    problem: &Problem,
    grid: &Grid,
    saved: Saved<'_>,
    qkv: &Tensor,
    pad: &Tensor,
    table: &Tensor,
) -> Result<Grads> {
    let inputs = [qkv.as_slice()?, pad.as_slice()?, table.as_slice()?];
    let saved = [saved.dy.as_slice()?, saved.y.as_slice()?, saved.lse.as_slice()?];
    let mut dqkv = Tensor::empty(qkv.dims(), DType::F64, Device::Cpu)?;
    let mut dpad = Tensor::zeros(pad.dims(), DType::F64, Device::Cpu)?;
    let mut dtable = Tensor::zeros(table.dims(), DType::F64, Device::Cpu)?;
    let (to_qkv, to_pad) = (dqkv.as_mut_slice::<f64>()?, dpad.as_mut_slice::<f64>()?);
    let to_table = dtable.as_mut_slice::<f64>()?;
    let width = 3 * problem.channels;
    let work = |unit| gradients(&Heads::new(problem, grid, inputs, unit), saved);
    in_groups(problem.batch * grid.windows(), work, |g| {
        for (&row, token) in g.rows.iter().zip(g.dqkv.chunks_exact(width)) {
            match row {
                PADDING => add_scaled(to_pad, 1.0, token),
                row => to_qkv[row * width..][..width].copy_from_slice(token),
            }
        }
        add_scaled(to_table, 1.0, &g.dtable);
    });
    Ok(Grads { dqkv, dpad, dtable })
}

fn gradients(w: &Heads<'_>, [dy, y, lse]: [&[f64]; 3]) -> WindowGrads {
    let (channels, heads, head_dim) = (w.problem.channels, w.problem.heads, w.problem.head_dim());
    let n = w.codes.len();
    let mut g = WindowGrads {
        rows: w.window.rows.clone(),
        dqkv: vec![0.0; n * 3 * channels],
        dtable: vec![0.0; w.table.len()],
    };
    for head in 0..heads {
        for &i in &w.window.queries {
            let row = w.window.rows[i];
            let at = |part: usize, t: usize| (t * 3 + part) * channels + head * head_dim;
            let dy = &dy[row * channels + head * head_dim..][..head_dim];
            let y = &y[row * channels + head * head_dim..][..head_dim];
            let row_dot = dot(dy, y);
            for (j, s) in w.scores(i, head).into_iter().enumerate() {
                let p = (s - lse[row * heads + head]).exp();
                let ds = p * (dot(dy, w.part(2, j, head)) - row_dot);
                add_scaled(&mut g.dqkv[at(0, i)..][..head_dim], w.scale() * ds, w.part(1, j, head));
                add_scaled(&mut g.dqkv[at(1, j)..][..head_dim], w.scale() * ds, w.part(0, i, head));
                add_scaled(&mut g.dqkv[at(2, j)..][..head_dim], p, dy);
                g.dtable[w.table_at(i, j, head)] += ds;
            }
        }
    }
    g
}
