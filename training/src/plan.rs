//! What a configuration takes, without running it: a step of the same code on the meta device.

use crate::optimizer::AdamW;
use crate::{Config, Result};
use autograd::{ParamStoreBuilder, Tape};
use data::LoaderConfig;
use engine::{DType, Device, Tensor, meta};
use models::{Batch, SwinUnetr, Voco};
use serde::Serialize;

/// Bytes of the program itself, and of what kernels set aside for a moment: packed weights, partial sums, threads.
pub const PROGRAM: u64 = 64 << 20;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Plan {
    pub parameters: Parameters,
    pub flops: Flops,
    pub memory: Memory,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Parameters {
    pub backbone: u64,
    pub student: u64,
    pub teacher: u64,
}

/// Floating-point operations of products (convolutions, linear layers, attention), two for a multiplication and its addition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Flops {
    /// Of the backbone, for one crop.
    pub forward_per_crop: u128,
    /// Forward, backward and what is recomputed.
    pub step: u128,
}

/// Bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Memory {
    /// Backbone and student, with the copies in lower precision.
    pub parameters: u64,
    pub gradients: u64,
    /// m, v and vmax.
    pub optimizer: u64,
    pub teacher: u64,
    /// All other tensors at the moment of a step that has most, the batch among them.
    pub activations: u64,
    /// Buffers that wait for the next tensor of their size.
    pub idle: u64,
    /// Batches made ahead, and the one that a step was given.
    pub loader: u64,
    pub program: u64,
    /// All of the above. Volumes that the loader keeps or works on come on top.
    pub total: u64,
}

impl Plan {
    /// Errors with settings that no model can be built of.
    pub fn new(config: &Config) -> Result<Plan> {
        let account = meta::open();
        let dtype = config.precision.dtype();
        let mut model = Voco::new(config.voco(), dtype, Device::Meta, config.seed)?;
        let mut optimizer = AdamW::new(&model.params, config.adamw())?;
        let batch = batch(config)?;
        let done = model.step(&batch, config.seed)?;
        optimizer.step(&mut model.params, &done.grads, config.lr)?;

        let (usage, size) = (account.usage(), |t: &Tensor| (t.numel() * t.dtype().size()) as u64);
        let [parameters, teacher] = [&model.params, &model.teacher_params].map(|params| params.bytes() as u64);
        let gradients = size(model.params.slab());
        let optimizer = 3 * gradients;
        let activations = usage.peak as u64 - parameters - gradients - optimizer - teacher;
        let idle = (usage.held - usage.peak) as u64;
        let loader = (LoaderConfig::default().prefetch as u64 + 1) * (size(&batch.crops) + size(&batch.bases));
        let total = usage.held as u64 + loader + PROGRAM;
        Ok(Plan {
            parameters: Parameters::of(&model),
            flops: Flops { forward_per_crop: forward(config)?, step: account.flops() },
            memory: Memory {
                parameters,
                gradients,
                optimizer,
                teacher,
                activations,
                idle,
                loader,
                program: PROGRAM,
                total,
            },
        })
    }
}

impl Parameters {
    fn of(model: &Voco) -> Parameters {
        let of = |part: &str| {
            let ids = model.params.ids().filter(|&id| model.params.name(id).starts_with(part));
            ids.map(|id| model.params.dims(id).iter().product::<usize>() as u64).sum()
        };
        let teacher = model.teacher_params.count() as u64;
        Parameters { backbone: of("backbone."), student: of("student."), teacher }
    }
}

/// A step's input.
fn batch(config: &Config) -> Result<Batch> {
    let (v, s, k, r) = (config.volumes, config.crops, config.grid * config.grid, config.roi);
    let empty = |dims: &[usize]| Tensor::empty(dims, DType::F32, Device::Meta);
    Ok(Batch { crops: empty(&[v * s, r, r, r, 1])?, bases: empty(&[v * k, r, r, r, 1])?, labels: empty(&[v, s, k])? })
}

/// Floating-point operations of the backbone's forward pass on one crop.
fn forward(config: &Config) -> Result<u128> {
    let account = meta::open();
    let mut builder = ParamStoreBuilder::default();
    let network = SwinUnetr::new(&mut builder, "", config.voco().network)?;
    let params = builder.build(DType::F32, Device::Meta, config.seed)?;
    let tape = Tape::inference(&params);
    let crop = Tensor::empty(&[1, config.roi, config.roi, config.roi, 1], DType::F32, Device::Meta)?;
    network.embed(&tape, &tape.constant(crop))?;
    Ok(account.flops())
}
