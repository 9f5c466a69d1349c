//! Whole networks: SwinUNETR forward and backward, one VoCo step, and a few steps of training.

use super::case::Case;
use super::ops::{Layout, losses};
use super::{Computed, Context, Network as Judged, made};
use crate::{Error, Result};
use autograd::{Gradients, ParamStore, ParamStoreBuilder, Sides, Tape, Var};
use engine::Tensor;
use kernels::adamw::{self, Params, State};
use models::state_dict::{self, LoadReport, StateDict};
use models::swin_unetr::merging_order;
use models::voco::Values;
use models::weights::Format;
use models::{Batch, Loss, SwinUnetr, SwinUnetrConfig, Teacher, Voco, VocoConfig};
use serde::Deserialize;
use std::cell::RefCell;
use std::path::{Path, PathBuf};

/// The value of `attrs.weights` that gives every parameter the hash of its name.
const HASH_FILL: &str = "hash-fill";

#[derive(Deserialize)]
struct Network {
    feature_size: usize,
    #[serde(default = "one")]
    in_channels: usize,
    out_channels: Option<usize>,
    patch_merging: String,
    weights: String,
}

fn one() -> usize {
    1
}

impl Network {
    fn config(&self) -> Result<SwinUnetrConfig> {
        let patch_merging = merging_order(&self.patch_merging)?;
        let Network { feature_size, in_channels, out_channels, .. } = *self;
        Ok(SwinUnetrConfig { in_channels, feature_size, out_channels, patch_merging })
    }

    /// Fills `store` by name: from `param.*`, and from what `attrs.weights` says. Errors when a parameter stays without.
    fn load(&self, case: &Case, context: &Context, store: &mut ParamStore) -> Result<()> {
        let mut given = StateDict::new();
        if self.weights == HASH_FILL {
            made::fill(store)?;
            made::round(store)?;
        } else {
            given = state_dict::load(&context.weights(&self.weights)?)?;
        }
        given.extend(case.under("param.").map(|(name, t)| (name.to_string(), t.clone())));
        let LoadReport { mismatched, missing, .. } = state_dict::import(store, &given)?;
        if let Some((name, ours, theirs)) = mismatched.first() {
            return Err(Error::Message(format!("{name}: {theirs:?} in {}, {ours:?} here", self.weights)));
        }
        match missing.first() {
            Some(name) if self.weights != HASH_FILL => {
                Err(Error::Message(format!("{} has no parameter {name} ({} missing)", self.weights, missing.len())))
            }
            _ => Ok(()),
        }
    }
}

impl Context {
    /// The weight file of this name beside the cases, or in the folder above; without an ending it is a `.safetensors`.
    fn weights(&self, name: &str) -> Result<PathBuf> {
        let whole = Format::of(Path::new(name)).is_ok();
        let file = if whole { name.to_string() } else { format!("{name}.safetensors") };
        let places = [self.folder.join(&file), self.folder.join("..").join(&file)];
        let found = places.into_iter().find(|p| p.is_file());
        found.ok_or_else(|| Error::Message(format!("no weights {file} in {} or above", self.folder.display())))
    }
}

/// Every gradient of `store`'s parameters, in PyTorch's layout.
fn gradients(store: &ParamStore, grads: &Gradients, computed: &mut Computed) -> Result<()> {
    for id in store.ids() {
        let grad = state_dict::to_pytorch(&grads.param(store, id)?)?;
        computed.insert(format!("grad.{}", store.name(id)), grad);
    }
    Ok(())
}

/// A network of its own, with the parameters of a case.
fn network(case: &Case, context: &Context) -> Result<(SwinUnetr, ParamStore)> {
    let network: Network = case.attrs()?;
    let mut builder = ParamStoreBuilder::default();
    let model = SwinUnetr::new(&mut builder, "", network.config()?)?;
    let mut store = builder.build(case.dtype, context.device, 0)?;
    network.load(case, context, &mut store)?;
    Ok((model, store))
}

/// Logits, or without classes, and so without a decoder, the embedding.
fn answer(model: &SwinUnetr, tape: &Tape, x: &Var) -> Result<Var> {
    Ok(match model.config().out_channels {
        Some(_) => model.forward(tape, x)?,
        None => model.embed(tape, x)?,
    })
}

pub const SWIN_UNETR: Judged = Judged { compute: swin_unetr, sides: swin_unetr_sides };

fn swin_unetr(case: &Case, context: &Context, sides: Option<&RefCell<Sides>>) -> Result<Computed> {
    let (model, store) = network(case, context)?;
    let layout = Layout::ChannelsFirst;
    let tape = match sides {
        Some(sides) => Tape::new(&store).with_sides(sides),
        None => Tape::new(&store),
    };
    let x = tape.leaf(layout.inward(&case.float("in.x")?)?.to_device(context.device)?);
    let y = answer(&model, &tape, &x)?;
    let mut computed = Computed::from([("out.y".into(), layout.outward(y.value())?)]);
    let grads = tape.backward(&y, layout.inward(&case.float("cot.y")?)?.to_device(context.device)?)?;
    if let Some(dx) = grads.leaf(&x)? {
        computed.insert("grad.x".into(), layout.outward(dx)?);
    }
    gradients(&store, &grads, &mut computed)?;
    Ok(computed)
}

fn swin_unetr_sides(case: &Case, context: &Context) -> Result<Sides> {
    let (model, store) = network(case, context)?;
    let sides = RefCell::new(Sides::record());
    let tape = Tape::inference(&store).with_sides(&sides);
    let x = Layout::ChannelsFirst.inward(&case.float("in.x")?)?.to_device(context.device)?;
    answer(&model, &tape, &tape.constant(x))?;
    drop(tape);
    Ok(sides.into_inner())
}

#[derive(Deserialize)]
struct Pretraining {
    hidden: usize,
    out: usize,
    momentum: f64,
    feature_dropout: f64,
}

/// The pre-training model and the batch of a case.
fn voco(case: &Case, context: &Context, recompute: bool) -> Result<(Voco, Batch)> {
    let network: Network = case.attrs()?;
    let Pretraining { hidden, out, momentum, feature_dropout } = case.attrs()?;
    let config = VocoConfig {
        network: SwinUnetrConfig { out_channels: None, ..network.config()? },
        hidden,
        out,
        teacher: Teacher::Projector,
        momentum,
        row_dropout: feature_dropout,
        element_dropout: 0.0,
        weights: [1.0; 3],
        loss: Loss::Voco,
        recompute,
    };
    let mut voco = Voco::new(config, case.dtype, context.device, 0)?;
    network.load(case, context, &mut voco.params)?;
    network.load(case, context, &mut voco.teacher_params)?;
    let batch = Batch {
        crops: intensities(case, "in.images")?.to_device(context.device)?,
        bases: intensities(case, "in.bases")?.to_device(context.device)?,
        labels: case.float("in.labels")?.to_device(context.device)?,
    };
    Ok((voco, batch))
}

/// `[N, C, D, H, W]` bytes as `[N, D, H, W, C]` in [0, 1].
fn intensities(case: &Case, name: &str) -> Result<Tensor> {
    let bytes = case.tensor(name)?;
    let values: Vec<f64> = bytes.as_slice::<u8>()?.iter().map(|&v| f64::from(v) / 255.0).collect();
    Layout::ChannelsFirst.inward(&Tensor::from_slice(&values, bytes.dims())?.to_dtype(case.dtype)?)
}

pub const VOCO_HEAD: Judged = Judged { compute: voco_head, sides: voco_head_sides };

/// One step up to the gradients, all crops in one batch.
fn voco_head(case: &Case, context: &Context, sides: Option<&RefCell<Sides>>) -> Result<Computed> {
    let (mut voco, batch) = voco(case, context, false)?;
    let step = match sides {
        Some(sides) => voco.step_on_sides(&batch, 0, sides)?,
        None => voco.step(&batch, 0)?,
    };
    let values = step.values()?;
    let mut computed = losses(&[values.intra, values.inter, values.reg])?;
    gradients(&voco.params, &step.grads, &mut computed)?;
    for (name, t) in state_dict::export(&voco.teacher_params)? {
        computed.insert(format!("after.{name}"), t);
    }
    Ok(computed)
}

fn voco_head_sides(case: &Case, context: &Context) -> Result<Sides> {
    let (voco, batch) = voco(case, context, false)?;
    Ok(voco.sides(&batch)?)
}

#[derive(Deserialize)]
struct Training {
    steps: u64,
    lr: f64,
    weight_decay: f64,
    amsgrad: bool,
}

/// Several steps of AdamW on one batch, crop by crop with recompute.
pub fn voco_trajectory(case: &Case, context: &Context) -> Result<Computed> {
    let Training { steps, lr, weight_decay, amsgrad } = case.attrs()?;
    if !amsgrad {
        return Err(Error::Message("AdamW without amsgrad: only with".into()));
    }
    let (mut voco, batch) = voco(case, context, true)?;
    let (mut m, mut v, mut vmax) = (voco.params.zeros_like()?, voco.params.zeros_like()?, voco.params.zeros_like()?);
    let mut curve = Vec::new();
    for step in 1..=steps {
        let done = voco.step(&batch, 0)?;
        let Values { intra, inter, reg, .. } = done.values()?;
        curve.extend([intra, inter, reg, intra + inter + reg]);
        let state = State { m: &mut m, v: &mut v, vmax: &mut vmax };
        let p = Params { lr, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay, step, scale: 1.0 };
        let (values, rounded) = voco.params.slabs_mut();
        adamw::update(values, rounded, done.grads.slab(), state, p)?;
    }
    Ok(Computed::from([("out.losses".into(), Tensor::from_slice(&curve, &[curve.len() / 4, 4])?)]))
}
