//! Operations, through the tape: forward on tracked inputs `in.*`, backward from the cotangent `cot.y`.

use super::case::Case;
use super::{Computed, Context};
use crate::{Error, Result};
use autograd::{ParamStore, Tape, Var, ops};
use engine::{DType, Device, Tensor};
use kernels::{conv_transpose3d as transposed, conv3d as conv, info_nce as nce, instance_norm as instance};
use kernels::{voco_loss as voco, window_attention as attention};
use models::state_dict;
use serde::Deserialize;

/// Where a case's tensors have their channels.
#[derive(Clone, Copy, PartialEq)]
pub enum Layout {
    /// As ours: last, or there are none.
    Same,
    /// Rank 5 is `[N, C, D, H, W]`, or a convolution's weight `[A, B, K, K, K]`.
    ChannelsFirst,
}

impl Layout {
    pub fn inward(self, t: &Tensor) -> Result<Tensor> {
        Ok(if self == Layout::ChannelsFirst { state_dict::from_pytorch(t)? } else { t.clone() })
    }

    pub fn outward(self, t: &Tensor) -> Result<Tensor> {
        Ok(if self == Layout::ChannelsFirst { state_dict::to_pytorch(t)? } else { t.clone() })
    }
}

/// The case's float inputs as leaves, in our layout.
struct Inputs<'c>(Vec<(&'c str, Var)>);

impl<'c> Inputs<'c> {
    fn new(case: &'c Case, layout: Layout, tape: &Tape) -> Result<Self> {
        let floats = case.under("in.").filter(|(_, t)| t.dtype().is_float());
        let device = tape.store().device();
        let leaf = |(name, t): (&'c str, &Tensor)| {
            Ok((name, tape.leaf(layout.inward(&t.to_dtype(dtype(case, name))?)?.to_device(device)?)))
        };
        Ok(Inputs(floats.map(leaf).collect::<Result<_>>()?))
    }

    fn optional(&self, name: &str) -> Option<&Var> {
        self.0.iter().find(|(n, _)| *n == name).map(|(_, v)| v)
    }

    fn get(&self, name: &str) -> Result<&Var> {
        self.optional(name).ok_or_else(|| Error::Message(format!("the case has no tensor in.{name}")))
    }
}

/// What an input is computed in. In 16 bits only products take weights in them: biases, tables and the weights of norms stay
/// float32.
fn dtype(case: &Case, name: &str) -> DType {
    let product = name.ends_with("weight") && case.kind != "layer_norm";
    if case.dtype.is_half() && name != "x" && !product { DType::F32 } else { case.dtype }
}

/// y = f(inputs) and the gradient of every input.
fn differentiate(
    case: &Case,
    device: Device,
    layout: Layout,
    f: impl FnOnce(&Tape, &Inputs) -> Result<Var>,
) -> Result<Computed> {
    let store = ParamStore::none(case.dtype, device)?;
    let tape = Tape::new(&store);
    let inputs = Inputs::new(case, layout, &tape)?;
    let y = f(&tape, &inputs)?;
    let mut computed = Computed::from([("out.y".into(), layout.outward(y.value())?)]);
    let grads = tape.backward(&y, layout.inward(&case.float("cot.y")?)?.to_device(device)?)?;
    for (name, leaf) in &inputs.0 {
        if let Some(grad) = grads.leaf(leaf)? {
            computed.insert(format!("grad.{name}"), layout.outward(grad)?);
        }
    }
    Ok(computed)
}

#[derive(Deserialize)]
struct Strided {
    stride: [usize; 3],
    #[serde(default)]
    padding: [usize; 3],
}

pub fn conv3d(case: &Case, context: &Context) -> Result<Computed> {
    let Strided { stride, padding } = case.attrs()?;
    differentiate(case, context.device, Layout::ChannelsFirst, |t, i| {
        let p = conv::Params { stride, padding };
        Ok(ops::conv3d(t, i.get("x")?, i.get("weight")?, i.optional("bias"), p)?)
    })
}

pub fn conv_transpose3d(case: &Case, context: &Context) -> Result<Computed> {
    let Strided { stride, padding } = case.attrs()?;
    if padding != [0; 3] {
        return Err(Error::Message(format!("conv_transpose3d with padding {padding:?}: only without")));
    }
    differentiate(case, context.device, Layout::ChannelsFirst, |t, i| {
        let p = transposed::Params { stride };
        Ok(ops::conv_transpose3d(t, i.get("x")?, i.get("weight")?, i.optional("bias"), p)?)
    })
}

pub fn linear(case: &Case, context: &Context) -> Result<Computed> {
    differentiate(case, context.device, Layout::Same, |t, i| {
        Ok(ops::linear(t, i.get("x")?, i.get("weight")?, i.optional("bias"))?)
    })
}

#[derive(Deserialize)]
struct Normalised {
    eps: f64,
}

pub fn layer_norm(case: &Case, context: &Context) -> Result<Computed> {
    let Normalised { eps } = case.attrs()?;
    differentiate(case, context.device, Layout::Same, |t, i| {
        let affine = i.optional("weight").zip(i.optional("bias"));
        Ok(ops::layer_norm(t, i.get("x")?, affine, eps)?)
    })
}

pub fn instance_norm(case: &Case, context: &Context) -> Result<Computed> {
    let Normalised { eps } = case.attrs()?;
    differentiate(case, context.device, Layout::ChannelsFirst, |t, i| {
        Ok(ops::instance_norm(t, i.get("x")?, None, instance::Params { eps, slope: None })?)
    })
}

pub fn batch_norm(case: &Case, context: &Context) -> Result<Computed> {
    let Normalised { eps } = case.attrs()?;
    differentiate(case, context.device, Layout::Same, |t, i| Ok(ops::batch_norm(t, i.get("x")?, eps)?))
}

pub fn gelu(case: &Case, context: &Context) -> Result<Computed> {
    differentiate(case, context.device, Layout::Same, |t, i| Ok(ops::gelu(t, i.get("x")?)?))
}

pub fn relu(case: &Case, context: &Context) -> Result<Computed> {
    differentiate(case, context.device, Layout::Same, |t, i| Ok(ops::relu(t, i.get("x")?)?))
}

#[derive(Deserialize)]
struct Leaky {
    slope: f64,
}

pub fn leaky_relu(case: &Case, context: &Context) -> Result<Computed> {
    let Leaky { slope } = case.attrs()?;
    differentiate(case, context.device, Layout::Same, |t, i| Ok(ops::leaky_relu(t, i.get("x")?, slope)?))
}

pub fn global_avg_pool(case: &Case, context: &Context) -> Result<Computed> {
    differentiate(case, context.device, Layout::ChannelsFirst, |t, i| Ok(ops::global_avg_pool(t, i.get("x")?)?))
}

#[derive(Deserialize)]
struct Resized {
    size: [usize; 3],
    align_corners: bool,
}

pub fn resize(case: &Case, context: &Context) -> Result<Computed> {
    let Resized { size, align_corners } = case.attrs()?;
    differentiate(case, context.device, Layout::ChannelsFirst, |t, i| {
        Ok(ops::resize(t, i.get("x")?, size, align_corners)?)
    })
}

#[derive(Deserialize)]
struct Contrast {
    temperature: f64,
}

/// Row i of q matches row i of k: the targets are the identity.
pub fn info_nce(case: &Case, context: &Context) -> Result<Computed> {
    let Contrast { temperature } = case.attrs()?;
    differentiate(case, context.device, Layout::Same, |t, i| {
        let (q, k) = (i.get("q")?, i.get("k")?);
        let rows = q.dims().first().copied().unwrap_or(0);
        let identity: Vec<f64> = (0..rows * rows).map(|e| if e / rows == e % rows { 1.0 } else { 0.0 }).collect();
        let targets = Tensor::from_slice(&identity, &[rows, rows])?.to_dtype(case.dtype)?.to_device(context.device)?;
        Ok(ops::info_nce(t, q, k, &targets, nce::Params { temperature, groups: 1 })?)
    })
}

/// Labels are `[N, 1, D, H, W]`.
pub fn dice_ce(case: &Case, context: &Context) -> Result<Computed> {
    let label = case.tensor("in.label")?;
    let [n, 1, d, h, w] = *label.dims() else {
        return Err(Error::Message(format!("in.label: expected [N, 1, D, H, W], got {:?}", label.dims())));
    };
    let label = label.to_dtype(DType::I32)?.reshape(&[n, d, h, w])?.to_device(context.device)?;
    differentiate(case, context.device, Layout::ChannelsFirst, |t, i| Ok(ops::dice_ce(t, i.get("logits")?, &label)?))
}

#[derive(Deserialize)]
struct Attention {
    heads: usize,
    window: [usize; 3],
    shift: [usize; 3],
}

/// x is `[B, D, H, W, C]`: q, k, v, attention in windows, projection.
pub fn window_attention(case: &Case, context: &Context) -> Result<Computed> {
    let Attention { heads, window, shift } = case.attrs()?;
    differentiate(case, context.device, Layout::Same, |t, i| {
        let bias = i.get("qkv.bias")?;
        let qkv = ops::linear(t, i.get("x")?, i.get("qkv.weight")?, Some(bias))?;
        let p = attention::Params { heads, window, shift };
        let y = ops::window_attention(t, &qkv, bias, i.get("relative_position_bias_table")?, p)?;
        Ok(ops::linear(t, &y, i.get("proj.weight")?, Some(i.get("proj.bias")?))?)
    })
}

#[derive(Deserialize)]
struct Volumes {
    volumes: usize,
    crops: usize,
    bases: usize,
    #[serde(default)]
    form: Form,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "lowercase")]
enum Form {
    #[default]
    Voco,
    Cvpr1,
    Cvpr3,
}

impl From<Form> for voco::Form {
    fn from(form: Form) -> Self {
        match form {
            Form::Voco => voco::Form::Voco,
            Form::Cvpr1 => voco::Form::Cvpr1,
            Form::Cvpr3 => voco::Form::Cvpr3,
        }
    }
}

/// The three terms, and the gradient of their sum.
pub fn voco_loss(case: &Case, context: &Context) -> Result<Computed> {
    let Volumes { volumes, crops, bases, form } = case.attrs()?;
    let p = voco::Params { volumes, crops, bases, form: form.into() };
    let store = ParamStore::none(case.dtype, context.device)?;
    let tape = Tape::new(&store);
    let input = |name| Ok::<_, Error>(case.float(name)?.to_device(context.device)?);
    let student = tape.leaf(input("in.student")?);
    let (teacher, labels) = (input("in.teacher")?, input("in.labels")?);
    let (terms, _) = ops::voco_loss(&tape, &student, &teacher, &labels, p)?;
    let values = terms.value().to_f64_vec()?;
    let ones = Tensor::full(terms.dims(), 1.0, case.dtype, context.device)?;
    let grads = tape.backward(&terms, ones)?;
    let mut computed = losses(&values)?;
    if let Some(grad) = grads.leaf(&student)? {
        computed.insert("grad.student".into(), grad.clone());
    }
    Ok(computed)
}

/// `out.intra`, `out.inter`, `out.reg` and their sum `out.loss`.
pub fn losses(terms: &[f64]) -> Result<Computed> {
    let names = ["intra", "inter", "reg", "loss"];
    let values = terms.iter().copied().chain([terms.iter().sum()]);
    names.iter().zip(values).map(|(name, v)| Ok((format!("out.{name}"), Tensor::scalar(v)?))).collect()
}
