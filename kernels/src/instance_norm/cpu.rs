//! Bound by memory: forward reads x twice and writes y once; backward reads y and dy twice and writes dx once (with a residual,
//! reads x, y and dy, writes dz, reads dz and x, and writes dx).
//!
//! A sample is cut into chunks of rows, by its shape alone. Every chunk is reduced by itself, and the chunks' results are combined
//! in order in f64. So that loops are long and free of tails for any number of channels, several rows are handled as one line of
//! `period` elements; a line's element i belongs to channel i mod C.

use super::{Grads, MIN_INVERTIBLE_SLOPE, Output, Params};
use crate::real::{Real, Stored};
use crate::simd::{Kernel, Vector, dispatch};
use engine::{DType, Element, Error, Result, Tensor, bf16, parallel};

/// Elements of a chunk, about: it stays in the second-level cache, and there are enough of them for many threads.
const CHUNK: usize = 1 << 15;

pub fn forward(x: &Tensor, residual: Option<&Tensor>, p: Params) -> Result<Output> {
    match x.dtype() {
        DType::F32 => forward_typed::<f32>(x, residual, p),
        DType::BF16 => forward_typed::<bf16>(x, residual, p),
        DType::F64 => forward_typed::<f64>(x, residual, p),
        dtype => Err(Error::Unsupported { op: super::OP, dtype, device: x.device() }),
    }
}

pub fn backward(
    dy: &Tensor,
    x: &Tensor,
    y: &Tensor,
    mean: &Tensor,
    rstd: &Tensor,
    has_residual: bool,
    p: Params,
) -> Result<Grads> {
    match x.dtype() {
        DType::F32 => backward_typed::<f32>(dy, x, y, mean, rstd, has_residual, p),
        DType::BF16 => backward_typed::<bf16>(dy, x, y, mean, rstd, has_residual, p),
        DType::F64 => backward_typed::<f64>(dy, x, y, mean, rstd, has_residual, p),
        dtype => Err(Error::Unsupported { op: super::OP, dtype, device: x.device() }),
    }
}

/// How the samples are cut up. All sizes are in elements.
#[derive(Clone, Copy)]
struct Plan {
    channels: usize,
    sample: usize,
    period: usize,
    chunk: usize,
}

impl Plan {
    /// Samples of `[D, H, W, C]`, none of them empty.
    fn new(x: &Tensor) -> Plan {
        let channels = x.channels();
        let sample = x.numel() / x.dims()[0];
        // Enough rows for a line of 512 elements that is a multiple of 32, the vectors of one unrolled loop.
        let step = 32 >> channels.trailing_zeros().min(5);
        let fold = if channels >= 256 { 1 } else { 512usize.div_ceil(channels).next_multiple_of(step) };
        let period = channels * fold;
        Plan { channels, sample, period, chunk: 4 * period * (CHUNK / (4 * period)).max(1) }
    }

    /// Chunks of one sample.
    fn chunks(&self) -> usize {
        self.sample.div_ceil(self.chunk)
    }

    /// Chunks of all the samples.
    fn count<T>(&self, all: &[T]) -> usize {
        all.len() / self.sample * self.chunks()
    }

    /// The part of a tensor's elements that chunk `i` covers, counted through all samples.
    fn at<'a, T>(&self, all: &'a [T], i: usize) -> &'a [T] {
        let (sample, chunk) = (i / self.chunks(), i % self.chunks());
        let sample = &all[sample * self.sample..][..self.sample];
        &sample[chunk * self.chunk..self.sample.min((chunk + 1) * self.chunk)]
    }

    /// The chunks to write, with their numbers.
    fn split<'a, T: Element>(&self, all: &'a mut [T]) -> impl ExactSizeIterator<Item = (usize, &'a mut [T])> {
        let chunks: Vec<_> = all.chunks_mut(self.sample).flat_map(|sample| sample.chunks_mut(self.chunk)).collect();
        chunks.into_iter().enumerate()
    }

    /// For every sample, a line's worth of the channels' values.
    fn lines<T: Copy>(&self, values: &[T]) -> Vec<T> {
        values.chunks(self.channels).flat_map(|v| v.repeat(self.period / self.channels)).collect()
    }

    /// The line of the sample that chunk `i` is of.
    fn line<'a, T>(&self, lines: &'a [T], i: usize) -> &'a [T] {
        &lines[i / self.chunks() * self.period..][..self.period]
    }
}

fn forward_typed<S: Stored>(x: &Tensor, residual: Option<&Tensor>, p: Params) -> Result<Output> {
    let plan = Plan::new(x);
    let dims = [x.dims()[0], plan.channels];
    let from = x.as_slice::<S>()?;
    let residual = residual.map(Tensor::as_slice::<S>).transpose()?;
    let mut y = Tensor::empty(x.dims(), x.dtype(), x.device())?;
    let (mean, rstd) = statistics(from, plan, p.eps);
    let (mean_line, rstd_line) = (plan.lines(&mean), plan.lines(&rstd));
    let slope = S::Real::of(p.slope.unwrap_or(1.0));
    parallel::each(plan.split(y.as_mut_slice::<S>()?), |(i, y)| {
        dispatch(Normalise {
            x: plan.at(from, i),
            residual: residual.map(|r| plan.at(r, i)),
            mean: plan.line(&mean_line, i),
            rstd: plan.line(&rstd_line, i),
            slope,
            y,
        });
    });
    Ok(Output { y, mean: Tensor::from_slice(&mean, &dims)?, rstd: Tensor::from_slice(&rstd, &dims)? })
}

/// Mean and 1 / √(variance + eps), `[N, C]` each.
fn statistics<S: Stored>(x: &[S], plan: Plan, eps: f64) -> (Vec<S::Real>, Vec<S::Real>) {
    let chunk = |i| dispatch(ChunkMoments { x: plan.at(x, i), channels: plan.channels, period: plan.period });
    let parts: Vec<Vec<Moments>> = parallel::map(0..plan.count(x), chunk);
    let channel = |parts: &[Vec<Moments>], c: usize| {
        let all = match parts {
            [one] => one[c],
            parts => combine(parts.iter().map(|part| part[c])),
        };
        (S::Real::of(all.mean), S::Real::of((all.squares / all.count + eps).sqrt().recip()))
    };
    parts.chunks(plan.chunks()).flat_map(|parts| (0..plan.channels).map(move |c| channel(parts, c))).unzip()
}

fn backward_typed<S: Stored>(
    dy: &Tensor,
    x: &Tensor,
    y: &Tensor,
    mean: &Tensor,
    rstd: &Tensor,
    has_residual: bool,
    p: Params,
) -> Result<Grads> {
    let (dy, x, y) = (dy.as_slice::<S>()?, (x, x.as_slice::<S>()?), y.as_slice::<S>()?);
    let (mean, rstd) = (mean.as_slice::<S::Real>()?, rstd.as_slice::<S::Real>()?);
    let plan = Plan::new(x.0);
    let slope = S::Real::of(p.slope.unwrap_or(1.0));
    if !has_residual && slope >= S::Real::of(MIN_INVERTIBLE_SLOPE) {
        let [zeros, ones] = [0.0, 1.0].map(|v| vec![S::Real::of(v); rstd.len()]);
        let view = View { plan, h: y, shift: plan.lines(&zeros), slope };
        let parts = parallel::map(0..plan.count(dy), |i| view.sums(dy, i));
        let dx = view.gradient(dy, &view.rules(&parts, &ones, rstd), x.0)?;
        return Ok(Grads { dx, dresidual: None });
    }
    let view = View { plan, h: x.1, shift: plan.lines(mean), slope: S::Real::of(1.0) };
    let mut dz = Tensor::empty(x.0.dims(), x.0.dtype(), x.0.device())?;
    let activation = |(i, dz): (usize, &mut [S])| {
        dispatch(Activation { dy: plan.at(dy, i), y: plan.at(y, i), slope, dz: &mut *dz });
        view.sums_of_chunk(dz, i)
    };
    let parts = parallel::map(plan.split(dz.as_mut_slice::<S>()?), activation);
    let dx = view.gradient(dz.as_slice::<S>()?, &view.rules(&parts, rstd, rstd), x.0)?;
    Ok(Grads { dx, dresidual: has_residual.then_some(dz) })
}

/// Where x̂ and the side of the activation come from. With u = h − shift, u's sign is the side, and u, or u / slope on the
/// negative side, is x̂ up to a factor per channel. Either h is y, shift 0 and the factor 1; or h is x, shift the mean, the factor
/// rstd, and the slope 1 because the activation is done with.
struct View<'a, S: Stored> {
    plan: Plan,
    h: &'a [S],
    /// Lines, as from [`Plan::lines`].
    shift: Vec<S::Real>,
    slope: S::Real,
}

/// Per line: dx = scale · dz − offset − factor · (x̂ up to its factor).
struct Rules<T> {
    scale: Vec<T>,
    offset: Vec<T>,
    factor: Vec<T>,
}

impl<S: Stored> View<'_, S> {
    fn sums(&self, g: &[S], i: usize) -> Vec<[f64; 2]> {
        self.sums_of_chunk(self.plan.at(g, i), i)
    }

    fn sums_of_chunk(&self, g: &[S], i: usize) -> Vec<[f64; 2]> {
        dispatch(ChunkSums {
            g,
            h: self.plan.at(self.h, i),
            shift: self.plan.line(&self.shift, i),
            slope: self.slope,
            channels: self.plan.channels,
        })
    }

    /// `parts` are the chunks' sums, gain the factor that makes x̂, `[N, C]` like rstd.
    fn rules(&self, parts: &[Vec<[f64; 2]>], gain: &[S::Real], rstd: &[S::Real]) -> Rules<S::Real> {
        let plan = self.plan;
        let voxels = (plan.sample / plan.channels) as f64;
        let (mut offset, mut factor) = (Vec::with_capacity(rstd.len()), Vec::with_capacity(rstd.len()));
        for (at, (&gain, &rstd)) in gain.iter().zip(rstd).enumerate() {
            let (n, c) = (at / plan.channels, at % plan.channels);
            let own = &parts[n * plan.chunks()..][..plan.chunks()];
            let [g, gh] = own.iter().fold([0.0; 2], |sum, part| [sum[0] + part[c][0], sum[1] + part[c][1]]);
            let (gain, rstd) = (Element::to_f64(gain), Element::to_f64(rstd));
            offset.push(S::Real::of(rstd * g / voxels));
            factor.push(S::Real::of(rstd * gain * gain * gh / voxels));
        }
        Rules { scale: plan.lines(rstd), offset: plan.lines(&offset), factor: plan.lines(&factor) }
    }

    fn gradient(&self, g: &[S], rules: &Rules<S::Real>, like: &Tensor) -> Result<Tensor> {
        let plan = self.plan;
        let mut dx = Tensor::empty(like.dims(), like.dtype(), like.device())?;
        parallel::each(plan.split(dx.as_mut_slice::<S>()?), |(i, dx)| {
            dispatch(Gradient {
                g: plan.at(g, i),
                h: plan.at(self.h, i),
                shift: plan.line(&self.shift, i),
                scale: plan.line(&rules.scale, i),
                offset: plan.line(&rules.offset, i),
                factor: plan.line(&rules.factor, i),
                slope: self.slope,
                dx,
            });
        });
        Ok(dx)
    }
}

/// What is known of some values: how many, their mean, and Σ (value − mean)².
#[derive(Clone, Copy)]
struct Moments {
    count: f64,
    mean: f64,
    squares: f64,
}

/// The moments of all the parts' values together; those of no values are never asked for.
fn combine(parts: impl Iterator<Item = Moments> + Clone) -> Moments {
    let count: f64 = parts.clone().map(|p| p.count).sum();
    let mean = parts.clone().map(|p| p.count * p.mean).sum::<f64>() / count;
    let squares = parts.map(|p| p.squares + p.count * (p.mean - mean).powi(2)).sum();
    Moments { count, mean, squares }
}

/// Whole rows, to one [`Moments`] per channel.
struct ChunkMoments<'a, S> {
    x: &'a [S],
    channels: usize,
    period: usize,
}

impl<S: Stored> Kernel for ChunkMoments<'_, S> {
    type Output = Vec<Moments>;
    /// Sums of d and d² with d = x − shift, for each element of a line. The shift is the mean of a sixteenth of the lines, which
    /// are among the values themselves: hence (mean − shift)² <= 16 variance, and subtracting it costs no more than 17 roundings.
    #[inline(always)]
    fn run<V: Vector>(self) -> Vec<Moments> {
        let p = self.period;
        let lines = self.x.len() / p;
        let shift = first_lines(self.x, p, lines.div_ceil(16).max(1));
        let (mut sum, mut squares) = (vec![0.0; p], vec![0.0; p]);
        let quads = self.x.chunks_exact(4 * p);
        let rest = quads.remainder();
        for quad in quads {
            let [a, b, c, d] = quarters(quad, p);
            let (sum, squares, shift) = (&mut sum[..p], &mut squares[..p], &shift[..p]);
            for i in 0..p {
                let [a, b, c, d] = [a, b, c, d].map(|line| line[i].widen() - shift[i]);
                sum[i] += Element::to_f64((a + b) + (c + d));
                squares[i] += Element::to_f64((a * a + b * b) + (c * c + d * d));
            }
        }
        for line in rest.chunks(p) {
            for (((v, &k), sum), squares) in line.iter().zip(&shift).zip(&mut sum).zip(&mut squares) {
                let d = Element::to_f64(v.widen() - k);
                *sum += d;
                *squares += d * d;
            }
        }
        let extra = self.x.len() % p;
        let slot = |i: usize| {
            let count = lines as f64 + if i < extra { 1.0 } else { 0.0 };
            let off = sum[i] / count;
            let squares = squares[i] - off * sum[i];
            // `max` would hide a NaN
            let squares = if squares < 0.0 { 0.0 } else { squares };
            Moments { count, mean: Element::to_f64(shift[i]) + off, squares }
        };
        let slots: Vec<Moments> = (0..p.min(self.x.len())).map(slot).collect();
        if p == self.channels {
            return slots;
        }
        (0..self.channels).map(|c| combine(slots.iter().skip(c).step_by(self.channels).copied())).collect()
    }
}

/// The mean of the first `count` lines; a last line may be shorter, and what it lacks is zero.
#[inline(always)]
fn first_lines<S: Stored>(x: &[S], period: usize, count: usize) -> Vec<S::Real> {
    let mut mean = vec![S::Real::of(0.0); period];
    for line in x.chunks(period).take(count) {
        for (mean, v) in mean.iter_mut().zip(line) {
            *mean += v.widen();
        }
    }
    let share = S::Real::of(1.0 / count as f64);
    for mean in &mut mean {
        *mean = *mean * share;
    }
    mean
}

/// Four lines of `period` elements.
#[inline(always)]
fn quarters<T>(quad: &[T], period: usize) -> [&[T]; 4] {
    let (a, rest) = quad.split_at(period);
    let (b, rest) = rest.split_at(period);
    let (c, rest) = rest.split_at(period);
    [a, b, c, &rest[..period]]
}

/// dz, from slices of one length.
struct Activation<'a, S: Stored> {
    dy: &'a [S],
    y: &'a [S],
    slope: S::Real,
    dz: &'a mut [S],
}

impl<S: Stored> Kernel for Activation<'_, S> {
    type Output = ();
    #[inline(always)]
    fn run<V: Vector>(self) {
        for ((dz, dy), y) in self.dz.iter_mut().zip(self.dy).zip(self.y) {
            let dy = dy.widen();
            *dz = S::narrow(if y.widen() > S::Real::of(0.0) { dy } else { dy * self.slope });
        }
    }
}

/// Whole rows; mean and rstd are lines.
struct Normalise<'a, S: Stored> {
    x: &'a [S],
    residual: Option<&'a [S]>,
    mean: &'a [S::Real],
    rstd: &'a [S::Real],
    slope: S::Real,
    y: &'a mut [S],
}

impl<S: Stored> Kernel for Normalise<'_, S> {
    type Output = ();
    #[inline(always)]
    fn run<V: Vector>(self) {
        let p = self.mean.len();
        let act = |z: S::Real| S::narrow(if z > S::Real::of(0.0) { z } else { z * self.slope });
        let lines = self.x.chunks(p).zip(self.y.chunks_mut(p));
        let Some(residual) = self.residual else {
            for (x, y) in lines {
                for (((y, x), &mean), &rstd) in y.iter_mut().zip(x).zip(self.mean).zip(self.rstd) {
                    *y = act((x.widen() - mean) * rstd);
                }
            }
            return;
        };
        for ((x, y), residual) in lines.zip(residual.chunks(p)) {
            for ((((y, x), r), &mean), &rstd) in y.iter_mut().zip(x).zip(residual).zip(self.mean).zip(self.rstd) {
                *y = act((x.widen() - mean) * rstd + r.widen());
            }
        }
    }
}

/// Whole rows, to Σ dz and Σ dz · x̂ (up to its factor) per channel; shift is a line. The latter is Σ g · u on either side:
/// dz = slope · g and x̂ = u / slope on the negative one.
struct ChunkSums<'a, S: Stored> {
    g: &'a [S],
    h: &'a [S],
    shift: &'a [S::Real],
    slope: S::Real,
    channels: usize,
}

impl<S: Stored> Kernel for ChunkSums<'_, S> {
    type Output = Vec<[f64; 2]>;
    #[inline(always)]
    fn run<V: Vector>(self) -> Vec<[f64; 2]> {
        let p = self.shift.len();
        let both = |g: S, h: S, shift: S::Real| {
            let (g, u) = (g.widen(), h.widen() - shift);
            (if u > S::Real::of(0.0) { g } else { g * self.slope }, g * u)
        };
        let (mut dz, mut dzx) = (vec![0.0; p], vec![0.0; p]);
        let (g, h) = (self.g.chunks_exact(4 * p), self.h.chunks_exact(4 * p));
        let rest = g.remainder().chunks(p).zip(h.remainder().chunks(p));
        for (g, h) in g.zip(h) {
            let (g, h) = (quarters(g, p), quarters(h, p));
            let (dz, dzx, shift) = (&mut dz[..p], &mut dzx[..p], &self.shift[..p]);
            for i in 0..p {
                let (a, a2) = both(g[0][i], h[0][i], shift[i]);
                let (b, b2) = both(g[1][i], h[1][i], shift[i]);
                let (c, c2) = both(g[2][i], h[2][i], shift[i]);
                let (d, d2) = both(g[3][i], h[3][i], shift[i]);
                dz[i] += Element::to_f64((a + b) + (c + d));
                dzx[i] += Element::to_f64((a2 + b2) + (c2 + d2));
            }
        }
        for (g, h) in rest {
            for ((((&g, &h), &shift), dz), dzx) in g.iter().zip(h).zip(self.shift).zip(&mut dz).zip(&mut dzx) {
                let (a, a2) = both(g, h, shift);
                *dz += Element::to_f64(a);
                *dzx += Element::to_f64(a2);
            }
        }
        let mut total = vec![[0.0; 2]; self.channels];
        for (dz, dzx) in dz.chunks(self.channels).zip(dzx.chunks(self.channels)) {
            for ((total, dz), dzx) in total.iter_mut().zip(dz).zip(dzx) {
                *total = [total[0] + dz, total[1] + dzx];
            }
        }
        total
    }
}

/// Whole rows; shift, scale, offset and factor are lines.
struct Gradient<'a, S: Stored> {
    g: &'a [S],
    h: &'a [S],
    shift: &'a [S::Real],
    scale: &'a [S::Real],
    offset: &'a [S::Real],
    factor: &'a [S::Real],
    slope: S::Real,
    dx: &'a mut [S],
}

impl<S: Stored> Kernel for Gradient<'_, S> {
    type Output = ();
    #[inline(always)]
    fn run<V: Vector>(self) {
        let p = self.shift.len();
        let inverse = S::Real::of(1.0) / self.slope;
        for ((g, h), dx) in self.g.chunks(p).zip(self.h.chunks(p)).zip(self.dx.chunks_mut(p)) {
            let lines = self.shift.iter().zip(self.scale).zip(self.offset).zip(self.factor);
            for (((dx, g), h), (((&shift, &scale), &offset), &factor)) in dx.iter_mut().zip(g).zip(h).zip(lines) {
                let (g, u) = (g.widen(), h.widen() - shift);
                let (dz, x) = if u > S::Real::of(0.0) { (g, u) } else { (g * self.slope, u * inverse) };
                *dx = S::narrow(scale * dz - offset - factor * x);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::instance_norm::{Params, backward, forward};
    use crate::simd::{Level, testing::run_at};
    use crate::testing::{assert_bf16, assert_close, numeric_gradient, random, run_on};
    use engine::{DType, Device, Tensor};

    const EPS: f64 = 1e-5;

    fn params(slope: Option<f64>) -> Params {
        Params { eps: EPS, slope }
    }

    /// From the definition, in f64: y, mean, rstd, dx and dresidual.
    fn naive(x: &Tensor, residual: Option<&Tensor>, dy: &Tensor, slope: f64) -> [Vec<f64>; 5] {
        let (n, c) = (x.dims()[0], x.channels());
        let voxels = x.numel() / n / c;
        let read = |t: &Tensor| t.to_f64_vec().expect("read");
        let (x, r, dy) = (read(x), residual.map(read), read(dy));
        let (mut y, mut dx, mut dz) = (vec![0.0; x.len()], vec![0.0; x.len()], vec![0.0; x.len()]);
        let (mut means, mut rstds) = (vec![], vec![]);
        for (n, c0) in (0..n).flat_map(|n| (0..c).map(move |c0| (n, c0))) {
            let own = || (0..voxels).map(|v| (n * voxels + v) * c + c0);
            let average = |f: &dyn Fn(usize) -> f64| own().map(f).sum::<f64>() / voxels as f64;
            let mean = average(&|i| x[i]);
            let rstd = (average(&|i| (x[i] - mean).powi(2)) + EPS).sqrt().recip();
            let xhat = |i: usize| (x[i] - mean) * rstd;
            for i in own() {
                let z = xhat(i) + r.as_ref().map_or(0.0, |r| r[i]);
                (y[i], dz[i]) = if z > 0.0 { (z, dy[i]) } else { (z * slope, dy[i] * slope) };
            }
            let (a, b) = (average(&|i| dz[i]), average(&|i| dz[i] * xhat(i)));
            for i in own() {
                dx[i] = rstd * (dz[i] - a - xhat(i) * b);
            }
            means.push(mean);
            rstds.push(rstd);
        }
        [y, means, rstds, dx, dz]
    }

    fn check_against_naive(dims: &[usize], slope: Option<f64>, with_residual: bool) {
        let (x, r, dy) = (random(1, dims, DType::F32), random(2, dims, DType::F32), random(3, dims, DType::F32));
        let residual = with_residual.then_some(&r);
        let [y, mean, rstd, dx, dz] = naive(&x, residual, &dy, slope.unwrap_or(1.0));
        let out = forward(&x, residual, params(slope)).expect("forward");
        assert_close(&out.y, &y, 5e-7);
        assert_close(&out.mean, &mean, 1e-6);
        assert_close(&out.rstd, &rstd, 1e-6);
        let grads = backward(&dy, &x, &out.y, &out.mean, &out.rstd, with_residual, params(slope)).expect("backward");
        assert_close(&grads.dx, &dx, 2e-6);
        assert_eq!(grads.dresidual.is_some(), with_residual);
        if let Some(dresidual) = grads.dresidual {
            assert_close(&dresidual, &dz, 1e-7);
        }
    }

    #[test]
    fn matches_the_formula_on_awkward_shapes() {
        for dims in [
            [1, 1, 3, 1, 1],
            [2, 5, 3, 7, 1],
            [3, 3, 5, 7, 5],
            [2, 9, 11, 13, 12],
            [1, 2, 2, 2, 768],
            [2, 3, 1, 2, 300],
        ] {
            for slope in [None, Some(0.01), Some(0.0)] {
                check_against_naive(&dims, slope, false);
                check_against_naive(&dims, slope, true);
            }
        }
        // Several chunks, the last one with a rest of every kind.
        check_against_naive(&[2, 17, 19, 23, 13], Some(0.01), false);
        check_against_naive(&[1, 13, 17, 29, 48], Some(0.01), true);
    }

    #[test]
    fn a_mean_far_from_zero_costs_only_its_own_rounding() {
        let dims = [1, 8, 16, 16, 24];
        let x = random(1, &dims, DType::F64).to_f64_vec().expect("x");
        let x: Vec<f32> = x.iter().map(|v| (v + 1000.0) as f32).collect();
        let x = Tensor::from_slice(&x, &dims).expect("x");
        let [y, mean, rstd, ..] = naive(&x, None, &x, 1.0);
        let out = forward(&x, None, params(None)).expect("forward");
        // Half a unit in the last place of 1000 is 3e-5, in units of the standard deviation.
        assert_close(&out.y, &y, 4e-5);
        assert_close(&out.mean, &mean, 1e-7);
        assert_close(&out.rstd, &rstd, 1e-6);
    }

    #[test]
    fn a_step_after_constant_rows_keeps_the_variance() {
        // The shift comes from the first rows, the worst case for it: they are constant and far from the others.
        let dims = [1, 4096, 1, 1, 2];
        let noise = random(1, &dims, DType::F64).to_f64_vec().expect("x");
        let x: Vec<f32> = (0..8192).map(|i| if i < 512 { 0.0 } else { (100.0 + noise[i]) as f32 }).collect();
        let x = Tensor::from_slice(&x, &dims).expect("x");
        let [_, mean, rstd, ..] = naive(&x, None, &x, 1.0);
        let out = forward(&x, None, params(None)).expect("forward");
        assert_close(&out.mean, &mean, 1e-6);
        assert_close(&out.rstd, &rstd, 1e-6);
    }

    #[test]
    fn a_constant_channel_is_zero_and_nan_spreads_in_its_channel_only() {
        let dims = [1, 2, 3, 5, 2];
        let mut values = vec![0.1f32; 60];
        let out = forward(&Tensor::from_slice(&values, &dims).expect("x"), None, params(None)).expect("forward");
        assert!(out.y.to_f64_vec().expect("y").iter().all(|v| v.abs() < 1e-4));
        values[7] = f32::NAN;
        let out = forward(&Tensor::from_slice(&values, &dims).expect("x"), None, params(Some(0.01))).expect("forward");
        let y = out.y.to_f64_vec().expect("y");
        assert!(y.iter().enumerate().all(|(i, v)| v.is_nan() == (i % 2 == 1)));
    }

    #[test]
    fn gradients_match_central_differences() {
        let dims = [2, 2, 1, 3, 3];
        let (x, r, dy) = (random(1, &dims, DType::F64), random(2, &dims, DType::F64), random(3, &dims, DType::F64));
        for slope in [None, Some(0.1), Some(0.0)] {
            for residual in [None, Some(&r)] {
                let run = |x: &Tensor, r: Option<&Tensor>| forward(x, r, params(slope)).expect("forward");
                let out = run(&x, residual);
                let grads = backward(&dy, &x, &out.y, &out.mean, &out.rstd, residual.is_some(), params(slope));
                let grads = grads.expect("backward");
                assert_close(&grads.dx, &numeric_gradient(&x, &dy, |x| run(x, residual).y), 1e-7);
                if let Some(dresidual) = grads.dresidual {
                    assert_close(&dresidual, &numeric_gradient(&r, &dy, |r| run(&x, Some(r)).y), 1e-7);
                }
            }
        }
    }

    #[test]
    fn neither_threads_nor_vector_width_change_a_bit() {
        let dims = [2, 16, 16, 17, 12];
        let (x, r, dy) = (random(1, &dims, DType::F32), random(2, &dims, DType::F32), random(3, &dims, DType::F32));
        let run = || {
            let out = forward(&x, Some(&r), params(Some(0.01))).expect("forward");
            let g = backward(&dy, &x, &out.y, &out.mean, &out.rstd, true, params(Some(0.01))).expect("backward");
            [out.y, out.mean, out.rstd, g.dx, g.dresidual.expect("dz")].map(|t| t.to_vec::<f32>().expect("read"))
        };
        let want = run();
        for threads in [1, 3] {
            assert_eq!(run_on(threads, run), want);
        }
        for at_most in [Level::Portable, Level::Avx2, Level::Avx512] {
            assert_eq!(run_at(at_most, 3, run), want, "{at_most:?}");
        }
    }

    /// Where x̂ does not come from y, dz is rounded before dx is made of it: two roundings, and a third where they cancel.
    #[test]
    fn bf16_is_f64_rounded() {
        let half = |seed, dims: &[usize]| (random(seed, dims, DType::F64), DType::BF16);
        for dims in [[1, 1, 3, 1, 1], [2, 5, 3, 7, 1], [3, 3, 5, 7, 5], [1, 2, 2, 2, 768], [1, 13, 17, 29, 48]] {
            let stats = |seed| (random(seed, &[dims[0], dims[4]], DType::F64), DType::F32);
            for slope in [None, Some(0.01), Some(0.0)] {
                let inputs = [half(1, &dims), half(2, &dims), half(3, &dims), half(4, &dims), stats(5), stats(6)];
                for with_residual in [false, true] {
                    let roundings = if with_residual || slope == Some(0.0) { 3.0 } else { 1.0 };
                    assert_bf16(&inputs, roundings, |t| {
                        let out = forward(&t[0], with_residual.then_some(&t[1]), params(slope))?;
                        let g = backward(&t[2], &t[0], &t[3], &t[4], &t[5], with_residual, params(slope))?;
                        let all = [Some(out.y), Some(out.mean), Some(out.rstd), Some(g.dx), g.dresidual];
                        Ok(all.into_iter().flatten().collect())
                    });
                }
            }
        }
    }

    #[test]
    fn misfits_are_errors() {
        let x = random(1, &[2, 2, 2, 2, 3], DType::F32);
        let one = random(1, &[2, 1, 1, 1, 3], DType::F32);
        let message = forward(&one, None, params(None)).err().expect("one voxel").to_string();
        assert!(message.contains("more than one value"), "{message}");
        for dims in [[0, 2, 2, 2, 3], [2, 0, 2, 2, 3], [2, 2, 2, 2, 0]] {
            assert!(forward(&random(1, &dims, DType::F32), None, params(None)).is_err());
        }
        assert!(forward(&random(1, &[8, 3], DType::F32), None, params(None)).is_err());
        assert!(forward(&x, Some(&one), params(None)).is_err());
        assert!(forward(&x, Some(&x.to_dtype(DType::F64).expect("f64")), params(None)).is_err());
        assert!(forward(&x, None, params(Some(-0.1))).is_err());
        assert!(forward(&x, None, Params { eps: f64::NAN, slope: None }).is_err());
        let stats = random(1, &[2, 3], DType::F32);
        let wide = stats.to_dtype(DType::F64).expect("f64");
        assert!(backward(&x, &x, &x, &stats, &stats, false, params(None)).is_ok());
        assert!(backward(&x, &x, &x, &wide, &wide, false, params(None)).is_err());
        assert!(backward(&x, &x, &x, &stats, &random(1, &[2, 2], DType::F32), false, params(None)).is_err());
        assert!(backward(&one, &x, &x, &stats, &stats, false, params(None)).is_err());
        let integers = Tensor::zeros(&[1, 2, 2, 2, 3], DType::I32, Device::Cpu).expect("i32");
        assert!(forward(&integers, None, params(None)).is_err());
    }
}
