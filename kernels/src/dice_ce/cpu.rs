//! Chunks of voxels go to threads; within one, blocks small enough for the first-level cache are turned into probabilities and
//! used at once. The exponentials run over the whole block, whatever the number of classes.

use super::{Output, no_class};
use crate::real::Real;
use crate::simd::{self, Kernel, Vector};
use engine::{Element, Result, Tensor, parallel};

/// Voxels per partial sum.
const CHUNK: usize = 4096;
/// Voxels whose probabilities are held at a time.
const BLOCK: usize = 64;
/// Added to Dice's numerator and denominator.
const SMOOTH: f64 = 1e-5;

pub(super) fn forward<T: Exp>(logits: &Tensor, labels: &Tensor) -> Result<Output> {
    let problem = Problem::<T>::new(logits, labels)?;
    let (samples, classes) = (logits.dims()[0], problem.classes);
    let mut sums = Tensor::empty(&[samples, classes, 3], logits.dtype(), logits.device())?;
    let (mut dice, mut entropy) = (0.0, 0.0);
    for (n, sums) in sums.as_mut_slice::<T>()?.chunks_mut(classes * 3).enumerate() {
        let total = problem.sample(n);
        entropy += total.entropy;
        for (c, (out, s)) in sums.chunks_mut(3).zip(&total.classes).enumerate() {
            out.copy_from_slice(&s.map(T::of));
            if c > 0 {
                dice += 1.0 - overlap(*s);
            }
        }
    }
    let loss = dice / (samples * (classes - 1)) as f64 + entropy / problem.labels.len() as f64;
    Ok(Output { loss: Tensor::scalar(T::of(loss))?, sums })
}

pub(super) fn backward<T: Exp>(dloss: &Tensor, logits: &Tensor, labels: &Tensor, sums: &Tensor) -> Result<Tensor> {
    let problem = Problem::<T>::new(logits, labels)?;
    let (classes, voxels) = (problem.classes, problem.voxels);
    let dloss = dloss.item()?;
    let per_class = dloss / (logits.dims()[0] * (classes - 1)) as f64;
    let slopes: Vec<Slope<T>> = sums
        .to_f64_vec()?
        .chunks(3)
        .enumerate()
        .map(|(i, s)| Slope::new([s[0], s[1], s[2]], if i % classes == 0 { 0.0 } else { per_class }))
        .collect();
    let entropy = T::of(dloss / problem.labels.len() as f64);
    let mut dx = Tensor::empty(logits.dims(), logits.dtype(), logits.device())?;
    parallel::each(dx.as_mut_slice::<T>()?.chunks_mut(voxels * classes).enumerate(), |(n, dx)| {
        let slopes = &slopes[n * classes..][..classes];
        parallel::each(dx.chunks_mut(CHUNK * classes).enumerate(), |(i, dx)| {
            let (logits, labels) = problem.chunk(n, i);
            simd::dispatch(Gradient { logits, labels, slopes, entropy, dx });
        });
    });
    Ok(dx)
}

/// `(2 I + s) / (G + P + s)` of one sample and class.
fn overlap([intersection, truth, predicted]: [f64; 3]) -> f64 {
    (2.0 * intersection + SMOOTH) / (truth + predicted + SMOOTH)
}

/// The loss's derivative by the probability of one class: `every` for each voxel, less `own` where the class is the label.
#[derive(Clone, Copy)]
struct Slope<T> {
    every: T,
    own: T,
}

impl<T: Real> Slope<T> {
    fn new(sums: [f64; 3], weight: f64) -> Self {
        let scale = weight / (sums[1] + sums[2] + SMOOTH);
        Slope { every: T::of(scale * overlap(sums)), own: T::of(2.0 * scale) }
    }
}

struct Problem<'a, T> {
    logits: &'a [T],
    labels: &'a [i32],
    classes: usize,
    /// Per sample.
    voxels: usize,
}

impl<'a, T: Exp> Problem<'a, T> {
    fn new(logits: &'a Tensor, labels: &'a Tensor) -> Result<Self> {
        let (classes, voxels) = (logits.channels(), labels.numel() / labels.dims()[0]);
        let labels = labels.as_slice::<i32>()?;
        if let Some(at) = labels.iter().position(|&y| usize::try_from(y).map_or(true, |y| y >= classes)) {
            return Err(no_class(labels[at], (at / voxels, at % voxels), classes));
        }
        Ok(Problem { logits: logits.as_slice()?, labels, classes, voxels })
    }

    /// Logits and labels of chunk i of sample n.
    fn chunk(&self, n: usize, i: usize) -> (&'a [T], &'a [i32]) {
        let (start, end) = (n * self.voxels + i * CHUNK, n * self.voxels + ((i + 1) * CHUNK).min(self.voxels));
        (&self.logits[start * self.classes..end * self.classes], &self.labels[start..end])
    }

    /// The sums of one sample: of its chunks, in their order.
    fn sample(&self, n: usize) -> Sums {
        let chunks = parallel::map(0..self.voxels.div_ceil(CHUNK), |i| {
            let (logits, labels) = self.chunk(n, i);
            simd::dispatch(Partial { logits, labels, classes: self.classes })
        });
        let mut total = Sums::zero(self.classes);
        for part in chunks {
            total.entropy += part.entropy;
            for (t, p) in total.classes.iter_mut().flatten().zip(part.classes.iter().flatten()) {
                *t += p;
            }
        }
        total
    }
}

/// Summed cross-entropy, and per class intersection, truth and prediction.
struct Sums {
    entropy: f64,
    classes: Vec<[f64; 3]>,
}

impl Sums {
    fn zero(classes: usize) -> Self {
        Sums { entropy: 0.0, classes: vec![[0.0; 3]; classes] }
    }
}

struct Partial<'a, T> {
    logits: &'a [T],
    labels: &'a [i32],
    classes: usize,
}

impl<T: Exp> Kernel for Partial<'_, T> {
    type Output = Sums;

    #[inline(always)]
    fn run<V: Vector>(self) -> Sums {
        let c = self.classes;
        let mut sums = Sums::zero(c);
        let mut predicted = vec![0.0; c];
        let mut scratch = vec![T::zero(); BLOCK * c];
        for (logits, labels) in self.logits.chunks(BLOCK * c).zip(self.labels.chunks(BLOCK)) {
            let p = &mut scratch[..logits.len()];
            let lse = softmax::<T, V>(logits, c, p);
            for (v, (p, &label)) in p.chunks(c).zip(labels).enumerate() {
                let label = label as usize; // in 0..C: checked
                sums.entropy += lse[v] - Element::to_f64(logits[v * c + label]);
                sums.classes[label][0] += Element::to_f64(p[label]);
                sums.classes[label][1] += 1.0;
                for (s, &p) in predicted.iter_mut().zip(p) {
                    *s += Element::to_f64(p);
                }
            }
        }
        for (s, p) in sums.classes.iter_mut().zip(predicted) {
            s[2] = p;
        }
        sums
    }
}

struct Gradient<'a, T> {
    logits: &'a [T],
    labels: &'a [i32],
    slopes: &'a [Slope<T>],
    entropy: T,
    dx: &'a mut [T],
}

impl<T: Exp> Kernel for Gradient<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<V: Vector>(self) {
        let c = self.slopes.len();
        let blocks = self.logits.chunks(BLOCK * c).zip(self.labels.chunks(BLOCK)).zip(self.dx.chunks_mut(BLOCK * c));
        for ((logits, labels), dx) in blocks {
            softmax::<T, V>(logits, c, dx);
            for (p, &label) in dx.chunks_mut(c).zip(labels) {
                let label = label as usize; // in 0..C: checked
                let own = p[label] * self.slopes[label].own;
                let mean = p.iter().zip(self.slopes).fold(-own, |sum, (&p, s)| sum + p * s.every);
                for (p, s) in p.iter_mut().zip(self.slopes) {
                    *p = *p * (s.every - mean + self.entropy);
                }
                p[label] = p[label] - own - self.entropy;
            }
        }
    }
}

/// Probabilities of a block of voxels into `p`; returns each voxel's log-sum-exp.
#[inline(always)]
fn softmax<T: Exp, V: Vector>(logits: &[T], classes: usize, p: &mut [T]) -> [f64; BLOCK] {
    let mut lse = [0.0; BLOCK];
    let mut tops = [T::zero(); BLOCK];
    for ((top, x), p) in tops.iter_mut().zip(logits.chunks(classes)).zip(p.chunks_mut(classes)) {
        *top = largest(x);
        for (p, &x) in p.iter_mut().zip(x) {
            *p = x - *top;
        }
    }
    T::exp_all::<V>(p);
    for ((lse, &top), p) in lse.iter_mut().zip(&tops).zip(p.chunks_mut(classes)) {
        let sum = p.iter().fold(T::zero(), |sum, &p| sum + p);
        *lse = Element::to_f64(top) + Element::to_f64(sum).ln();
        // `exp` saturates, so a NaN or an infinite logit would vanish there: `0 top` brings it back as NaN.
        let scale = (T::one() + T::zero() * top) / sum;
        for p in p {
            *p = *p * scale;
        }
    }
    lse
}

/// The largest value, or NaN where there is one.
#[inline(always)]
fn largest<T: Real>(x: &[T]) -> T {
    x.iter().fold(T::neg_infinity(), |top, &v| if top >= v || top.is_nan() { top } else { v })
}

/// Scalars whose exponential runs over a slice at once.
pub(super) trait Exp: Real {
    /// Must be called inside [`simd::dispatch`], with its `V`.
    fn exp_all<V: Vector>(x: &mut [Self]);
}

impl Exp for f32 {
    #[inline(always)]
    fn exp_all<V: Vector>(x: &mut [f32]) {
        for x in x.chunks_mut(V::LANES) {
            // SAFETY: `dispatch` gave the instruction set, and only the `len` elements of the chunk are touched.
            unsafe { V::load_first(x.as_ptr(), x.len()).exp().store_first(x.as_mut_ptr(), x.len()) }
        }
    }
}

impl Exp for f64 {
    #[inline(always)]
    fn exp_all<V: Vector>(x: &mut [f64]) {
        for x in x {
            *x = x.exp();
        }
    }
}
