//! One training step of the encoder (forward, backward, AdamW-amsgrad) on random crops of 64³: the work that
//! `torch_step.py --volumes 1 --crops 0 --bases N` times in PyTorch, less its projector (0.01 % of the arithmetic).

use crate::train::{Precision, Size};
use crate::verbosity::{print, say};
use crate::{DeviceChoice, Error, Result, machine};
use autograd::{ParamStore, ParamStoreBuilder, Tape, Var, ops};
use engine::{DType, Device, Tensor, cuda, memory, meta, random};
use kernels::patch_merging::Order;
use models::{SwinUnetr, SwinUnetrConfig};
use serde::Serialize;
use std::time::Instant;
use training::optimizer::{AdamW, AdamWConfig};
use training::plan::PROGRAM;

/// Time training steps of the encoder on random crops.
///
/// Prints the median and the fastest step, crops per second, GFLOP/s (of the convolutions and linear layers) and the largest
/// memory.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[arg(long, value_enum, default_value = "B")]
    size: Size,
    /// Any multiple of 12, in place of --size
    #[arg(long, value_name = "N")]
    feature_size: Option<usize>,
    /// Crops of 64³ in a step
    #[arg(long, value_name = "N", default_value_t = 2)]
    crops: usize,
    /// Timed steps, after one that is not
    #[arg(long, value_name = "N", default_value_t = 5)]
    steps: usize,
    /// Where to compute: auto, cpu, cuda or cuda:N
    #[arg(long, value_name = "D", default_value_t)]
    device: DeviceChoice,
    /// What products are computed in
    #[arg(long, default_value = "f32")]
    precision: Precision,
    /// Recompute activations in backward, crop by crop
    #[arg(long)]
    recompute: bool,
    /// One JSON object instead of text
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Measured {
    feature_size: usize,
    crops: usize,
    threads: usize,
    recompute: bool,
    precision: String,
    /// Of a step: the median, and the fastest.
    seconds: f64,
    fastest: f64,
    crops_per_s: f64,
    gflops: f64,
    /// Of the process, where the system tells; and of tensors alone.
    peak_memory_gb: Option<f64>,
    peak_tensors_gb: f64,
    /// What the process should take by the account of the meta device, as `vocoe plan` reckons.
    planned_memory_gb: f64,
    simd: String,
}

pub fn command(args: &Args) -> Result<bool> {
    if args.crops == 0 || args.steps == 0 {
        return Err(Error::Message("bench step: --crops and --steps must be at least 1".into()));
    }
    let measured = measure(args)?;
    if args.json {
        print(serde_json::to_string(&measured).map_err(|e| Error::Message(e.to_string()))?)?;
        return Ok(true);
    }
    let Measured { seconds, fastest, crops_per_s, gflops, peak_memory_gb, peak_tensors_gb, planned_memory_gb, .. } =
        measured;
    say(format!("step      {seconds:.3} s (median of {}, fastest {fastest:.3})", args.steps))?;
    let Measured { threads, simd, .. } = &measured;
    say(format!("rate      {crops_per_s:.3} crops/s, {gflops:.0} GFLOP/s on {threads} threads, {simd}"))?;
    let process = peak_memory_gb.map_or(String::new(), |gb| format!(", process {gb:.2} GB"));
    say(format!("memory    tensors {peak_tensors_gb:.2} GB{process}, planned {planned_memory_gb:.2} GB"))?;
    Ok(true)
}

fn measure(args: &Args) -> Result<Measured> {
    let device = args.device.resolve()?;
    let feature_size = args.feature_size.unwrap_or(args.size.feature_size());
    let precision = training::config::Precision::from(args.precision);
    precision.check(device)?;
    let dtype = precision.dtype();
    let mut bench = Bench::new(feature_size, args, dtype, device)?;
    bench.step()?;
    let mut times = (0..args.steps).map(|_| bench.step()).collect::<Result<Vec<_>>>()?;
    times.sort_by(f64::total_cmp);
    let seconds = times[times.len() / 2];
    let usage = if device == Device::Cpu { memory::usage() } else { cuda::usage(device)? };
    // Forward of B is 82.8 GFLOP a crop; convolutions and linears, nearly all of it, grow with the square of the width.
    let gflop = 3.0 * 82.8 * (feature_size as f64 / 48.0).powi(2) * args.crops as f64;
    Ok(Measured {
        feature_size,
        crops: args.crops,
        threads: rayon::current_num_threads(),
        recompute: args.recompute,
        precision: dtype.to_string(),
        seconds,
        fastest: times[0],
        crops_per_s: args.crops as f64 / seconds,
        gflops: gflop / seconds,
        peak_memory_gb: machine::resident_peak().map(|bytes| bytes as f64 / 1e9),
        peak_tensors_gb: usage.peak as f64 / 1e9,
        planned_memory_gb: planned(feature_size, args, dtype)? as f64 / 1e9,
        simd: format!("{:?}", kernels::simd::level()),
    })
}

/// Bytes of the same step's buffers on the meta device, and of the program.
fn planned(feature_size: usize, args: &Args, dtype: DType) -> Result<u64> {
    let account = meta::open();
    Bench::new(feature_size, args, dtype, Device::Meta)?.step()?;
    Ok(account.usage().held as u64 + PROGRAM)
}

struct Bench {
    network: SwinUnetr,
    params: ParamStore,
    optimizer: AdamW,
    /// `[crops, 64, 64, 64, 1]`
    x: Tensor,
    recompute: bool,
}

impl Bench {
    fn new(feature_size: usize, args: &Args, dtype: DType, device: Device) -> Result<Bench> {
        let mut builder = ParamStoreBuilder::default();
        let config =
            SwinUnetrConfig { in_channels: 1, feature_size, out_channels: None, patch_merging: Order::Monai13 };
        let network = SwinUnetr::new(&mut builder, "", config)?;
        let params = builder.build(dtype, device, 0)?;
        let optimizer = AdamW::new(&params, AdamWConfig::default())?;
        let mut x = Tensor::empty(&[args.crops, 64, 64, 64, 1], DType::F32, device)?;
        x.fill_with(0..x.numel(), |i| random::uniform(1, i as u64))?;
        Ok(Bench { network, params, optimizer, x, recompute: args.recompute })
    }

    /// Seconds of one step.
    fn step(&mut self) -> Result<f64> {
        let started = Instant::now();
        let tape = Tape::new(&self.params);
        let y = self.embed(&tape)?;
        let cotangent = Tensor::full(y.dims(), 1e-3, DType::F32, self.params.device())?;
        let grads = tape.backward(&y, cotangent)?;
        self.optimizer.step(&mut self.params, &grads, 1e-4)?;
        self.params.slab().rows_at(0, 1)?.item()?; // waits for the device
        Ok(started.elapsed().as_secs_f64())
    }

    /// The embeddings of all crops, `[crops, 24f]`.
    fn embed<'a>(&'a self, tape: &Tape<'a>) -> Result<Var> {
        if !self.recompute {
            return Ok(self.network.embed(tape, &tape.constant(self.x.clone()))?);
        }
        let mut rows = Vec::new();
        for i in 0..self.x.dims()[0] {
            let crop = tape.constant(self.x.rows_at(i, 1)?);
            rows.push(tape.checkpoint(&[&crop], |t, v| {
                self.network.embed(t, &v[0]).map_err(|e| engine::Error::invalid("embed", e.to_string()).into())
            })?);
        }
        Ok(ops::concat(tape, &rows.iter().collect::<Vec<_>>(), 0)?)
    }
}
