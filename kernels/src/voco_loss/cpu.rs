//! Some hundred dot products in f64, straight from the projections: nothing larger than V S K similarities is kept. Volumes go
//! to threads in forward, rows of the gradient in backward; every sum runs in a fixed order.

use super::{Output, Params};
use crate::cosine::cpu::{Pull, Row, Rows, gradient};
use crate::real::Real;
use engine::{Element, Result, Tensor};
use rayon::prelude::*;

const EPS: f64 = 1e-6;

pub(super) fn forward<T: Real>(student: &Tensor, teacher: &Tensor, labels: &Tensor, p: Params) -> Result<Output> {
    let (dtype, device) = (student.dtype(), student.device());
    let batch = Batch::<T>::new(student, teacher, labels, p)?;
    let volumes: Vec<Volume> = (0..p.volumes).into_par_iter().map(|i| batch.volume(i)).collect();
    let mut logits = Tensor::empty(&[p.volumes, p.crops, p.bases], dtype, device)?;
    let flat = volumes.iter().flat_map(|v| &v.intra.cosines);
    for (out, &cosine) in logits.as_mut_slice::<T>()?.iter_mut().zip(flat) {
        *out = T::of(relu(cosine));
    }
    let mut terms = Tensor::empty(&[3], dtype, device)?;
    let mean = |f: &dyn Fn(&Volume) -> f64| T::of(volumes.iter().map(f).sum::<f64>() / p.volumes as f64);
    terms.as_mut_slice::<T>()?.copy_from_slice(&[
        mean(&|v| v.intra.loss),
        mean(&|v| v.inter.loss),
        mean(&|v| v.reg.loss),
    ]);
    Ok(Output { terms, logits })
}

pub(super) fn backward<T: Real>(
    dterms: &Tensor,
    student: &Tensor,
    teacher: &Tensor,
    labels: &Tensor,
    p: Params,
) -> Result<Tensor> {
    let batch = Batch::<T>::new(student, teacher, labels, p)?;
    let volumes: Vec<Volume> = (0..p.volumes).into_par_iter().map(|i| batch.volume(i)).collect();
    let scale: Vec<f64> = dterms.to_f64_vec()?.iter().map(|d| d / p.volumes as f64).collect();
    let mut dx = Tensor::empty(student.dims(), student.dtype(), student.device())?;
    let width = student.channels();
    let (crops, bases) = dx.as_mut_slice::<T>()?.split_at_mut(p.volumes * p.crops * width);
    crops.par_chunks_mut(width).enumerate().for_each(|(n, dx)| {
        let (i, s) = (n / p.crops, n % p.crops);
        batch.crop_gradient(&volumes[i], i, s, &scale, dx);
    });
    bases.par_chunks_mut(width).enumerate().for_each(|(n, dx)| {
        let (i, k) = (n / p.bases, n % p.bases);
        let previous = (i + p.volumes - 1) % p.volumes; // the volume whose partner is i
        batch.base_gradient(&volumes[i], &volumes[previous], (i, previous), k, &scale, dx);
    });
    Ok(dx)
}

/// One term of one volume: its loss, and per pair the cosine and the loss's derivative by it.
struct Term {
    loss: f64,
    cosines: Vec<f64>,
    slopes: Vec<f64>,
}

/// `intra` and `inter` hold S K pairs (crop, base), `reg` the K K pairs (base, base) of which those with a < b count.
struct Volume {
    intra: Term,
    inter: Term,
    reg: Term,
}

struct Batch<'a, T> {
    student: Rows<'a, T>,
    teacher: Rows<'a, T>,
    labels: &'a [T],
    p: Params,
}

impl<'a, T: Real> Batch<'a, T> {
    fn new(student: &'a Tensor, teacher: &'a Tensor, labels: &'a Tensor, p: Params) -> Result<Self> {
        Ok(Batch { student: Rows::new(student)?, teacher: Rows::new(teacher)?, labels: labels.as_slice()?, p })
    }

    fn crop<'r>(&self, rows: &'r Rows<'_, T>, i: usize, s: usize) -> Row<'r, T> {
        rows.row(i * self.p.crops + s)
    }

    fn base<'r>(&self, rows: &'r Rows<'_, T>, i: usize, k: usize) -> Row<'r, T> {
        rows.row(self.p.volumes * self.p.crops + i * self.p.bases + k)
    }

    fn partner(&self, i: usize) -> usize {
        (i + 1) % self.p.volumes
    }

    fn volume(&self, i: usize) -> Volume {
        let pairs = self.p.crops * self.p.bases;
        let labels: Vec<f64> = self.labels[i * pairs..][..pairs].iter().map(|&y| Element::to_f64(y)).collect();
        let j = self.partner(i);
        let similar = self.cosines(&self.teacher, &self.teacher, i, j).into_iter().map(relu).collect::<Vec<_>>();
        Volume {
            intra: cross_entropy(&labels, self.cosines(&self.student, &self.teacher, i, i)),
            inter: cross_entropy(&similar, self.cosines(&self.student, &self.student, i, j)),
            reg: self.regularise(i),
        }
    }

    /// Crops of volume i against bases of volume j, `[S, K]`.
    fn cosines(&self, crops: &Rows<'_, T>, bases: &Rows<'_, T>, i: usize, j: usize) -> Vec<f64> {
        let row = |s| (0..self.p.bases).map(move |k| self.crop(crops, i, s).cosine(self.base(bases, j, k)));
        (0..self.p.crops).flat_map(row).collect()
    }

    /// The mean over pairs a < b of relu(cos)².
    fn regularise(&self, i: usize) -> Term {
        let k = self.p.bases;
        let pairs = (k * (k - 1) / 2) as f64;
        let mut term = Term { loss: 0.0, cosines: vec![0.0; k * k], slopes: vec![0.0; k * k] };
        for a in 0..k {
            for b in a + 1..k {
                let cosine = self.base(&self.student, i, a).cosine(self.base(&self.student, i, b));
                term.cosines[a * k + b] = cosine;
                term.slopes[a * k + b] = 2.0 * relu(cosine) / pairs;
                term.loss += relu(cosine).powi(2) / pairs;
            }
        }
        term
    }

    /// Student crop s of volume i meets the teacher's bases of its volume and the student's of the partner.
    fn crop_gradient(&self, volume: &Volume, i: usize, s: usize, scale: &[f64], dx: &mut [T]) {
        let j = self.partner(i);
        let at = |k| s * self.p.bases + k;
        let intra = (0..self.p.bases).map(|k| pull(&volume.intra, at(k), scale[0], self.base(&self.teacher, i, k)));
        let inter = (0..self.p.bases).map(|k| pull(&volume.inter, at(k), scale[1], self.base(&self.student, j, k)));
        gradient(self.crop(&self.student, i, s), intra.chain(inter), dx);
    }

    /// Student base k of volume i meets the student's crops of the `previous` volume and the later bases of its own.
    fn base_gradient(
        &self,
        volume: &Volume,
        previous: &Volume,
        (i, before): (usize, usize),
        k: usize,
        scale: &[f64],
        dx: &mut [T],
    ) {
        let bases = self.p.bases;
        let inter = (0..self.p.crops)
            .map(|s| pull(&previous.inter, s * bases + k, scale[1], self.crop(&self.student, before, s)));
        let reg = (k + 1..bases).map(|b| pull(&volume.reg, k * bases + b, scale[2], self.base(&self.student, i, b)));
        gradient(self.base(&self.student, i, k), inter.chain(reg), dx);
    }
}

fn pull<'a, T>(term: &Term, pair: usize, scale: f64, other: Row<'a, T>) -> Pull<'a, T> {
    Pull { weight: scale * term.slopes[pair], cosine: term.cosines[pair], other }
}

/// The loss `ce(labels, relu(cosines))` of one volume.
fn cross_entropy(labels: &[f64], cosines: Vec<f64>) -> Term {
    let weight = labels.iter().sum::<f64>() + EPS;
    let absent = labels.iter().filter(|&&y| y == 0.0).count() as f64 + EPS;
    let mut slopes = vec![0.0; cosines.len()];
    let (mut positive, mut negative) = (0.0, 0.0);
    for ((&y, &cosine), slope) in labels.iter().zip(&cosines).zip(&mut slopes) {
        let l = relu(cosine);
        let by_logit = if y == 0.0 {
            let left = 1.0 - l + EPS;
            negative -= left.ln();
            1.0 / (left * absent)
        } else {
            let left = 1.0 - (y - l).abs() + EPS;
            positive -= y * left.ln();
            y * sign(l - y) / (left * weight)
        };
        *slope = if cosine <= 0.0 { 0.0 } else { by_logit };
    }
    Term { loss: positive / weight + negative / absent, cosines, slopes }
}

/// `max(v, 0)`, but NaN stays NaN.
fn relu(v: f64) -> f64 {
    if v <= 0.0 { 0.0 } else { v }
}

/// -1, 0 or 1; NaN stays NaN.
fn sign(v: f64) -> f64 {
    if v == 0.0 { 0.0 } else { v.signum() }
}
