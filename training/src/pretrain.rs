//! Self-supervised pre-training: batches in, weights and metrics out.

use crate::metrics::{Metrics, MetricsFile, position_top1};
use crate::optimizer::{AdamW, AdamWConfig};
use crate::schedule::warmup_cosine;
use crate::{Config, Error, Result, checkpoint};
use engine::{Tensor, random};
use kernels::l2_norm;
use models::{Batch, Voco};
use std::path::PathBuf;
use std::time::Instant;

/// Where a run left its results.
#[derive(Debug)]
pub struct Outcome {
    pub model: PathBuf,
    pub metrics: Vec<Metrics>,
}

/// Trains for `config.steps` steps on `batches`, telling `observe` about each, and `notice` what the initial weights gave.
/// Writes `config.toml`, `metrics.jsonl`, `checkpoints/` and `model.safetensors` under `config.out`. Errors when the batches run
/// out or the loss stops being a number.
pub fn run(
    config: &Config,
    batches: &mut dyn Iterator<Item = data::Result<data::Batch>>,
    notice: &mut dyn FnMut(String),
    observe: &mut dyn FnMut(&Metrics),
) -> Result<Outcome> {
    let mut trainer = Trainer::new(config, notice)?;
    let checkpoints = config.out.join("checkpoints");
    std::fs::create_dir_all(&checkpoints).map_err(Error::io(&checkpoints))?;
    write_config(config)?;
    let mut file = MetricsFile::create(&config.out.join("metrics.jsonl"))?;
    let mut metrics = Vec::new();
    for step in 1..=config.steps {
        let done = trainer.step(step, batches)?;
        file.write(&done)?;
        observe(&done);
        metrics.push(done);
        if config.checkpoint_every > 0 && step.is_multiple_of(config.checkpoint_every) || step == config.steps {
            checkpoint::save(&checkpoints.join(format!("step-{step:07}.safetensors")), &trainer.model, step)?;
        }
    }
    let model = config.out.join("model.safetensors");
    checkpoint::save(&model, &trainer.model, config.steps)?;
    Ok(Outcome { model, metrics })
}

fn write_config(config: &Config) -> Result<()> {
    let path = config.out.join("config.toml");
    let text = toml::to_string(config).map_err(|e| Error::Config(format!("{}: {e}", path.display())))?;
    std::fs::write(&path, text).map_err(Error::io(&path))
}

struct Trainer<'c> {
    config: &'c Config,
    model: Voco,
    optimizer: AdamW,
}

impl<'c> Trainer<'c> {
    fn new(config: &'c Config, notice: &mut dyn FnMut(String)) -> Result<Self> {
        let mut model = Voco::new(config.voco(), engine::DType::F32, config.device()?, config.seed)?;
        if let Some(path) = &config.weights {
            let report = checkpoint::load_backbone(path, &mut model)?;
            notice(format!("{}: {report}", path.display()));
        }
        let settings = AdamWConfig { weight_decay: config.weight_decay, ..AdamWConfig::default() };
        let optimizer = AdamW::new(&model.params, settings)?;
        Ok(Trainer { config, model, optimizer })
    }

    fn step(&mut self, step: u64, batches: &mut dyn Iterator<Item = data::Result<data::Batch>>) -> Result<Metrics> {
        let started = Instant::now();
        let batch = batches.next().ok_or_else(|| Error::Config("the loader has no more batches".into()))??;
        let waited = started.elapsed();
        let batch = tensors(&batch, self.config)?;
        let done = self.model.step(&batch, random::derive(self.config.seed, &[step]))?;
        let loss = done.intra + done.inter + done.reg;
        if !loss.is_finite() {
            return Err(Error::Diverged { step, loss });
        }
        let lr = self.config.lr * warmup_cosine(step - 1, self.config.warmup, self.config.steps);
        self.optimizer.step(&mut self.model.params, &done.grads, lr)?;
        let seconds = started.elapsed().as_secs_f64();
        let crops = batch.crops.dims()[0] + batch.bases.dims()[0];
        Ok(Metrics {
            step,
            loss,
            intra: done.intra,
            inter: done.inter,
            reg: done.reg,
            lr,
            grad_norm: l2_norm::forward(done.grads.slab())?,
            crops_per_s: crops as f64 / seconds,
            data_wait: waited.as_secs_f64() / seconds,
            position_top1: position_top1(&done.logits, &batch.labels)?,
        })
    }
}

/// The loader's host arrays as tensors `[.., roi, roi, roi, 1]`. The last batch of an epoch may hold fewer volumes.
fn tensors(batch: &data::Batch, config: &Config) -> Result<Batch> {
    let (v, s, k, r) = (batch.volumes, config.crops, config.grid * config.grid, config.roi);
    Ok(Batch {
        crops: Tensor::from_slice(&batch.crops, &[v * s, r, r, r, 1])?,
        bases: Tensor::from_slice(&batch.bases, &[v * k, r, r, r, 1])?,
        labels: Tensor::from_slice(&batch.labels, &[v, s, k])?,
    })
}
