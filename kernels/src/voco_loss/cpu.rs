//! Some hundred dot products in f64, straight from the projections: nothing larger than V S K similarities is kept. Volumes go
//! to threads in forward, rows of the gradient in backward; every sum runs in a fixed order.

use super::{Form, Output, Params};
use crate::cosine::cpu::{Pull, Row, Rows, gradient};
use crate::real::Real;
use engine::{Element, Result, Tensor, parallel};

const EPS: f64 = 1e-6;

pub(super) fn forward<T: Real>(student: &Tensor, teacher: &Tensor, labels: &Tensor, p: Params) -> Result<Output> {
    let (dtype, device) = (student.dtype(), student.device());
    let batch = Batch::<T>::new(student, teacher, labels, p)?;
    let volumes = parallel::map(0..p.volumes, |i| batch.volume(i));
    let mut logits = Tensor::empty(&[p.volumes, p.crops, p.bases], dtype, device)?;
    let flat = volumes.iter().flat_map(|v| &v.logits);
    for (out, &logit) in logits.as_mut_slice::<T>()?.iter_mut().zip(flat) {
        *out = T::of(logit);
    }
    let mut terms = Tensor::empty(&[3], dtype, device)?;
    let mean = |f: &dyn Fn(&Volume) -> f64| T::of(volumes.iter().map(f).sum::<f64>() / p.volumes as f64);
    terms.as_mut_slice::<T>()?.copy_from_slice(&[
        mean(&|v| v.intra.loss),
        mean(&|v| v.inter.as_ref().map_or(0.0, |term| term.loss)),
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
    let volumes = parallel::map(0..p.volumes, |i| batch.volume(i));
    let scale: Vec<f64> = dterms.to_f64_vec()?.iter().map(|d| d / p.volumes as f64).collect();
    let mut dx = Tensor::empty(student.dims(), student.dtype(), student.device())?;
    let width = student.channels();
    let (crops, bases) = dx.as_mut_slice::<T>()?.split_at_mut(p.volumes * p.crops * width);
    parallel::each(crops.chunks_mut(width).enumerate(), |(n, dx)| {
        let (i, s) = (n / p.crops, n % p.crops);
        batch.crop_gradient(&volumes[i], i, s, &scale, dx);
    });
    parallel::each(bases.chunks_mut(width).enumerate(), |(n, dx)| {
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

/// All but `reg` hold S K pairs (crop, base), `reg` the K K pairs (base, base) of which those with a < b count.
struct Volume {
    intra: Term,
    /// Where the prediction is symmetric, the other half of `intra`: the teacher's crops and the student's bases, no loss.
    mirror: Option<Term>,
    inter: Option<Term>,
    reg: Term,
    logits: Vec<f64>,
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
        let near = self.cosines(&self.student, &self.teacher, i, i);
        let mirrored = (self.p.form == Form::Cvpr3).then(|| self.cosines(&self.teacher, &self.student, i, i));
        let logits: Vec<f64> = match &mirrored {
            None => near.iter().copied().map(relu).collect(),
            Some(far) => near.iter().zip(far).map(|(&a, &b)| 0.5 * (relu(a) + relu(b))).collect(),
        };
        let share = if mirrored.is_some() { 0.5 } else { 1.0 };
        let (loss, slopes) = position_loss(self.p.form, &labels, &logits);
        Volume {
            intra: Term::new(loss, near, &slopes, share),
            mirror: mirrored.map(|cosines| Term::new(0.0, cosines, &slopes, share)),
            inter: (self.p.form == Form::Voco).then(|| self.across(i)),
            reg: self.regularise(i),
            logits,
        }
    }

    /// The teacher's similarities of volume i's crops with its partner's bases, predicted by the student's.
    fn across(&self, i: usize) -> Term {
        let j = self.partner(i);
        let similar = self.cosines(&self.teacher, &self.teacher, i, j).into_iter().map(relu).collect::<Vec<_>>();
        let cosines = self.cosines(&self.student, &self.student, i, j);
        let predicted = cosines.iter().copied().map(relu).collect::<Vec<_>>();
        let (loss, slopes) = position_loss(Form::Voco, &similar, &predicted);
        Term::new(loss, cosines, &slopes, 1.0)
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
        let inter = volume.inter.iter().flat_map(|term| {
            (0..self.p.bases).map(move |k| pull(term, at(k), scale[1], self.base(&self.student, j, k)))
        });
        gradient(self.crop(&self.student, i, s), intra.chain(inter), dx);
    }

    /// Student base k of volume i meets the teacher's crops of its volume, the student's of the `previous` one, and the later
    /// bases of its own.
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
        let at = move |s| s * bases + k;
        let mirror = volume.mirror.iter().flat_map(|term| {
            (0..self.p.crops).map(move |s| pull(term, at(s), scale[0], self.crop(&self.teacher, i, s)))
        });
        let inter = previous.inter.iter().flat_map(|term| {
            (0..self.p.crops).map(move |s| pull(term, at(s), scale[1], self.crop(&self.student, before, s)))
        });
        let reg = (k + 1..bases).map(|b| pull(&volume.reg, k * bases + b, scale[2], self.base(&self.student, i, b)));
        gradient(self.base(&self.student, i, k), mirror.chain(inter).chain(reg), dx);
    }
}

fn pull<'a, T>(term: &Term, pair: usize, scale: f64, other: Row<'a, T>) -> Pull<'a, T> {
    Pull { weight: scale * term.slopes[pair], cosine: term.cosines[pair], other }
}

impl Term {
    /// `by_logit` are the loss's derivatives by logits of which each cosine, where it is above 0, is this `share`.
    fn new(loss: f64, cosines: Vec<f64>, by_logit: &[f64], share: f64) -> Self {
        let slope = |(&cosine, &by_logit): (&f64, &f64)| if cosine <= 0.0 { 0.0 } else { share * by_logit };
        let slopes = cosines.iter().zip(by_logit).map(slope).collect();
        Term { loss, cosines, slopes }
    }
}

/// `ce` or `m` of one volume, and its derivative by each logit.
fn position_loss(form: Form, labels: &[f64], logits: &[f64]) -> (f64, Vec<f64>) {
    let weight_of = |y: f64| if form == Form::Cvpr1 && y != 0.0 { 1.0 } else { y };
    let weight = labels.iter().map(|&y| weight_of(y)).sum::<f64>() + EPS;
    let absent = labels.iter().filter(|&&y| y == 0.0).count() as f64 + EPS;
    let mut slopes = vec![0.0; logits.len()];
    let (mut positive, mut negative) = (0.0, 0.0);
    for ((&y, &l), slope) in labels.iter().zip(logits).zip(&mut slopes) {
        *slope = if y != 0.0 {
            let (w, left) = (weight_of(y), 1.0 - (y - l).abs() + EPS);
            positive -= w * left.ln();
            w * sign(l - y) / (left * weight)
        } else if form == Form::Voco {
            let left = 1.0 - l + EPS;
            negative -= left.ln();
            1.0 / (left * absent)
        } else {
            negative += l * l;
            2.0 * l / absent
        };
    }
    (positive / weight + negative / absent, slopes)
}

/// `max(v, 0)`, but NaN stays NaN.
fn relu(v: f64) -> f64 {
    if v <= 0.0 { 0.0 } else { v }
}

/// -1, 0 or 1; NaN stays NaN.
fn sign(v: f64) -> f64 {
    if v == 0.0 { 0.0 } else { v.signum() }
}
