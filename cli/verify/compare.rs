//! Errors and bounds.
//!
//! The error of a tensor is ‖ours - reference‖ / ‖reference‖. The bound is 1e-5, or three times the error that PyTorch itself
//! makes in float32 (`attrs.torch_float32_error`) where that is more. A gradient that is zero in exact arithmetic is compared
//! with the case's largest one, and a sequence of losses (`float32.*` present) with PyTorch's own drift. Computed in float64,
//! everything else must come within 1e-6; in bf16 and f16, within twice the error of PyTorch's bf16 run and 1/256, or 2 % where
//! that run is not known. NaN passes nowhere.

use super::Computed;
use super::case::Case;
use crate::{Error, Result};
use engine::{DType, Tensor};
use serde::Deserialize;
use std::collections::BTreeMap;

/// What float32 rounding may cost an operation.
pub const BOUND: f64 = 1e-5;
/// What rounding may cost a computation in float64: the cases are stored in float32, and volumes are read into it.
const F64_BOUND: f64 = 1e-6;
/// What rounding to 16 bits may cost at the least: one unit in the last place of bf16's 8,
const BF16_BOUND: f64 = 1.0 / 256.0;
/// how much worse than PyTorch's bf16 run ours may be,
const OVER_PYTORCH_BF16: f64 = 2.0;
/// and what is allowed where that run is not known.
const BF16_UNKNOWN: f64 = 0.02;
/// How much worse than PyTorch's float32 a float32 engine may be.
const OVER_PYTORCH: f64 = 3.0;
/// A reference below this share of the largest gradient is zero in exact arithmetic,
const ZERO: f64 = 1e-9;
/// and ours must stay below this share of it.
const ZERO_BOUND: f64 = 1e-5;
/// Absolute error of a loss in a sequence, besides PyTorch's drift.
const LOSS_BOUND: f64 = 1e-4;
/// Elements to which a large tensor is thinned out where the case does not say.
const SAMPLES: usize = 4096;

#[derive(Clone, Debug, PartialEq)]
pub struct Comparison {
    pub tensor: String,
    pub error: f64,
    pub bound: f64,
}

impl Comparison {
    pub fn passed(&self) -> bool {
        self.error <= self.bound // false for NaN
    }

    /// Whether it is about a gradient: whole, its norm, or a sample of it.
    pub fn is_gradient(&self) -> bool {
        self.tensor.starts_with("grad")
    }

    /// How much of the bound is used; infinite for NaN.
    pub fn strain(&self) -> f64 {
        let strain = self.error / self.bound;
        if strain.is_nan() { f64::INFINITY } else { strain }
    }
}

#[derive(Deserialize)]
struct Attrs {
    #[serde(default)]
    torch_float32_error: BTreeMap<String, f64>,
    #[serde(default = "default_samples")]
    samples: usize,
}

fn default_samples() -> usize {
    SAMPLES
}

/// Compares all that the case expects. Errors when it expects nothing, or something that was not computed.
pub fn compare(case: &Case, computed: &Computed) -> Result<Vec<Comparison>> {
    let attrs: Attrs = case.attrs()?;
    let largest = largest_gradient(case)?;
    let mut all = Vec::new();
    for (name, want) in &case.tensors {
        let Some(expected) = Expected::parse(name) else { continue };
        let source = expected.source();
        let got =
            computed.get(&source).ok_or_else(|| Error::Message(format!("the case expects {name}: not computed")))?;
        let got = expected.part.of(got, attrs.samples)?;
        if got.dims() != want.dims() {
            let detail = format!("{name}: computed {:?} where the case has {:?}", got.dims(), want.dims());
            return Err(Error::Message(detail));
        }
        let (got, want) = (got.to_f64_vec()?, want.to_f64_vec()?);
        all.push(match case.tensors.get(&format!("float32.{}", expected.name)) {
            Some(float32) if case.dtype == DType::F32 => along_steps(name, &got, &want, float32)?,
            _ if expected.role == "grad" && norm(&want) < ZERO * largest => {
                let bound = if case.dtype.is_half() { BF16_BOUND } else { ZERO_BOUND };
                Comparison { tensor: name.clone(), error: norm(&got) / largest, bound }
            }
            _ => {
                let bound = match case.dtype {
                    DType::F64 => F64_BOUND,
                    DType::BF16 | DType::F16 => case
                        .bf16_errors
                        .get(name)
                        .map_or(BF16_UNKNOWN, |torch| BF16_BOUND.max(OVER_PYTORCH_BF16 * torch)),
                    _ => BOUND.max(OVER_PYTORCH * stated(&attrs.torch_float32_error, name, &source)),
                };
                Comparison { tensor: name.clone(), error: relative_error(&got, &want), bound }
            }
        });
    }
    if all.is_empty() {
        return Err(Error::Message("the case expects nothing: no tensor out.*, grad.* or after.*".into()));
    }
    Ok(all)
}

/// An expectation's name taken apart: `gradnorm.x` is the norm of the gradient of x.
struct Expected<'a> {
    role: &'static str,
    part: Part,
    name: &'a str,
}

#[derive(Clone, Copy)]
enum Part {
    Whole,
    Norm,
    Sample,
}

impl<'a> Expected<'a> {
    /// None for inputs and the like.
    fn parse(tensor: &'a str) -> Option<Self> {
        let (prefix, name) = tensor.split_once('.')?;
        let role = ["out", "grad", "after"].into_iter().find(|r| prefix.starts_with(r))?;
        let part = match &prefix[role.len()..] {
            "" => Part::Whole,
            "norm" => Part::Norm,
            "sample" => Part::Sample,
            _ => return None,
        };
        Some(Expected { role, part, name })
    }

    /// The name of the computed tensor that it is about.
    fn source(&self) -> String {
        format!("{}.{}", self.role, self.name)
    }
}

impl Part {
    fn of(self, t: &Tensor, samples: usize) -> Result<Tensor> {
        let values = || t.to_f64_vec();
        Ok(match self {
            Part::Whole => t.clone(),
            Part::Norm => Tensor::scalar(norm(&values()?))?,
            Part::Sample => {
                let every = t.numel().div_ceil(samples.max(1)).max(1);
                let thin: Vec<f64> = values()?.into_iter().step_by(every).collect();
                Tensor::from_slice(&thin, &[thin.len()])?
            }
        })
    }
}

/// The error that a case states for a tensor. That of a norm is at most the whole tensor's, which stands in for it.
fn stated(errors: &BTreeMap<String, f64>, name: &str, source: &str) -> f64 {
    let sample = source.replacen('.', "sample.", 1);
    [name, source, &sample].iter().find_map(|n| errors.get(*n)).copied().unwrap_or(0.0)
}

fn largest_gradient(case: &Case) -> Result<f64> {
    let mut largest: f64 = 0.0;
    for (name, t) in &case.tensors {
        if Expected::parse(name).is_some_and(|e| e.role == "grad") {
            largest = largest.max(norm(&t.to_f64_vec()?));
        }
    }
    Ok(largest)
}

/// The step of `[steps, terms]` that comes closest to its bound: the largest distance that PyTorch's float32 run has shown up
/// to that step, three times, and [`LOSS_BOUND`].
fn along_steps(name: &str, got: &[f64], want: &[f64], float32: &Tensor) -> Result<Comparison> {
    let ([steps, terms], true) = (float32.dims(), float32.numel() == want.len() && !want.is_empty()) else {
        return Err(Error::Message(format!("{name}: float32.* has another shape, {:?}", float32.dims())));
    };
    let float32 = float32.to_f64_vec()?;
    let mut drift: f64 = 0.0;
    let mut worst: Option<Comparison> = None;
    for step in 0..*steps {
        let at = step * terms..(step + 1) * terms;
        drift = drift.max(distance(&float32[at.clone()], &want[at.clone()]));
        let error = distance(&got[at.clone()], &want[at]);
        let here = Comparison { tensor: format!("{name}[{step}]"), error, bound: LOSS_BOUND + OVER_PYTORCH * drift };
        if worst.as_ref().is_none_or(|w| here.strain() > w.strain()) {
            worst = Some(here);
        }
    }
    worst.ok_or_else(|| Error::Message(format!("{name}: no step")))
}

/// The largest |a - b|; NaN when any is.
fn distance(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, |m, d| if d.is_nan() || d > m { d } else { m })
}

fn norm(v: &[f64]) -> f64 {
    v.iter().map(|x| x * x).sum::<f64>().sqrt()
}

/// ‖a - b‖ / ‖b‖; 0 when they are equal, so that b may be zero.
fn relative_error(a: &[f64], b: &[f64]) -> f64 {
    let difference: Vec<f64> = a.iter().zip(b).map(|(a, b)| a - b).collect();
    match norm(&difference) {
        0.0 => 0.0,
        d => d / norm(b),
    }
}
