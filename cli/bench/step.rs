//! One training step of the encoder (forward, backward, AdamW-amsgrad) on random crops: with crops of 64³ the work that
//! `torch_step.py --volumes 1 --crops 0 --bases N` times in PyTorch, less its projector (0.01 % of the arithmetic).

use super::median;
use crate::train::{Precision, Size};
use crate::verbosity::{print, say};
use crate::{DeviceChoice, Error, Result, machine};
use autograd::{Gradients, ParamStore, ParamStoreBuilder, Tape, Var, ops};
use engine::{DType, Device, Tensor, cuda, memory, meta, random};
use kernels::patch_merging::Order;
use models::{SwinUnetr, SwinUnetrConfig};
use serde::Serialize;
use std::time::Instant;
use training::optimizer::{AdamW, AdamWConfig};
use training::plan::PROGRAM;

/// Time training steps of the encoder on random crops.
///
/// Prints the median and the fastest step, crops per second, GFLOP/s (of convolutions, linear layers and attention, as the kernels
/// count them) and the largest memory.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[arg(long, value_enum, default_value = "B")]
    size: Size,
    /// Any multiple of 12, in place of --size
    #[arg(long, value_name = "N")]
    feature_size: Option<usize>,
    /// Crops in a step
    #[arg(long, value_name = "N", default_value_t = 2)]
    crops: usize,
    /// Side of a crop in voxels, a multiple of 32 from 64 on
    #[arg(long, value_name = "N", default_value_t = 64)]
    roi: usize,
    /// Timed steps, after one that is not, on a GPU two
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
    /// On a GPU, launch every step kernel by kernel, in place of repeating one that was captured
    #[arg(long)]
    no_graph: bool,
    /// One JSON object instead of text
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Measured {
    feature_size: usize,
    crops: usize,
    roi: usize,
    threads: usize,
    recompute: bool,
    /// Whether the steps repeat a captured one.
    graph: bool,
    precision: String,
    /// Of a step: the median, and the fastest.
    seconds: f64,
    fastest: f64,
    crops_per_s: f64,
    gflops: f64,
    /// What was taken of a GPU's memory, or by the process, where the system tells; and by tensors alone.
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
    let taken = peak_memory_gb.map_or(String::new(), |gb| format!(", taken {gb:.2} GB"));
    say(format!("memory    tensors {peak_tensors_gb:.2} GB{taken}, planned {planned_memory_gb:.2} GB"))?;
    Ok(true)
}

fn measure(args: &Args) -> Result<Measured> {
    let device = args.device.resolve()?;
    let feature_size = args.feature_size.unwrap_or(args.size.feature_size());
    let precision = training::config::Precision::from(args.precision);
    precision.check(device)?;
    let dtype = precision.dtype();
    let planned = planned(feature_size, args, dtype)?;
    let mut bench = Bench::new(feature_size, args, dtype, device)?;
    bench.step()?;
    if let Device::Cuda(_) = device {
        bench.step()?; // the first was launched kernel by kernel; this one is captured, and the others repeat it
    }
    let times = (0..args.steps).map(|_| bench.step()).collect::<Result<Vec<_>>>()?;
    let fastest = times.iter().copied().fold(f64::INFINITY, f64::min);
    let seconds = median(times);
    let (usage, taken) = match device {
        Device::Cuda(_) => cuda::usage(device).map(|usage| (usage, Some(usage.held as u64)))?,
        _ => (memory::usage(), machine::resident_peak()),
    };
    Ok(Measured {
        feature_size,
        crops: args.crops,
        roi: args.roi,
        threads: rayon::current_num_threads(),
        recompute: args.recompute,
        graph: bench.repeats.is_captured(),
        precision: dtype.to_string(),
        seconds,
        fastest,
        crops_per_s: args.crops as f64 / seconds,
        gflops: planned.flops() as f64 / seconds / 1e9,
        peak_memory_gb: taken.map(|bytes| bytes as f64 / 1e9),
        peak_tensors_gb: usage.peak as f64 / 1e9,
        planned_memory_gb: (planned.usage().held as u64 + PROGRAM) as f64 / 1e9,
        simd: format!("{:?}", kernels::simd::level()),
    })
}

/// The same step on the meta device.
fn planned(feature_size: usize, args: &Args, dtype: DType) -> Result<meta::Account> {
    let account = meta::open();
    Bench::new(feature_size, args, dtype, Device::Meta)?.step()?;
    Ok(account)
}

struct Bench {
    work: Work,
    params: ParamStore,
    optimizer: AdamW,
    repeats: cuda::Repeats<(), Gradients>,
}

/// Forward and backward of the same crops.
struct Work {
    network: SwinUnetr,
    /// `[crops, roi, roi, roi, 1]`
    x: Tensor,
    /// dL/d(embeddings), `[crops, 24f]`
    cotangent: Tensor,
    recompute: bool,
}

impl Bench {
    fn new(feature_size: usize, args: &Args, dtype: DType, device: Device) -> Result<Bench> {
        let Args { crops, roi, recompute, no_graph, .. } = *args;
        let mut builder = ParamStoreBuilder::default();
        let config =
            SwinUnetrConfig { in_channels: 1, feature_size, out_channels: None, patch_merging: Order::Monai13 };
        let network = SwinUnetr::new(&mut builder, "", config)?;
        let params = builder.build(dtype, device, 0)?;
        let optimizer = AdamW::new(&params, AdamWConfig::default())?;
        let mut x = Tensor::empty(&[crops, roi, roi, roi, 1], DType::F32, device)?;
        x.fill_with(0..x.numel(), |i| random::uniform(1, i as u64))?;
        let cotangent = Tensor::full(&[crops, 24 * feature_size], 1e-3, DType::F32, device)?;
        let work = Work { network, x, cotangent, recompute };
        Ok(Bench { work, params, optimizer, repeats: cuda::Repeats::new(device, !no_graph) })
    }

    /// Seconds of one step.
    fn step(&mut self) -> Result<f64> {
        let started = Instant::now();
        let Bench { work, params, optimizer, repeats } = self;
        let grads = repeats.run(work.x.dims()[0], |_| Ok(()), |()| work.gradients(params))?;
        optimizer.step(params, &grads, 1e-4)?;
        self.params.slab().rows_at(0, 1)?.item()?; // waits for the device
        Ok(started.elapsed().as_secs_f64())
    }
}

impl Work {
    fn gradients(&self, params: &ParamStore) -> Result<Gradients> {
        let tape = Tape::new(params);
        let y = self.embed(&tape)?;
        Ok(tape.backward(&y, self.cotangent.clone())?)
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
