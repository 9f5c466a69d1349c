//! Times one training step of the encoder (forward, backward, AdamW-amsgrad) on random crops of 64³: the work that
//! `torch_step.py --volumes 1 --crops 0 --bases N` times in PyTorch, less its projector (0.01 % of the arithmetic).
//!
//!     cargo bench --bench step -- [--feature-size 48] [--crops 2] [--threads 2] [--steps 3] [--recompute]
//!
//! Prints one JSON line: seconds per step (median, fastest), crops per second, GFLOP/s, peak memory.

use autograd::{ParamStoreBuilder, Tape, ops};
use engine::{DType, Device, Tensor, memory, random};
use kernels::patch_merging::Order;
use models::{SwinUnetr, SwinUnetrConfig};
use std::time::Instant;
use training::optimizer::{AdamW, AdamWConfig};

type Failure = Box<dyn std::error::Error>;

fn main() -> Result<(), Failure> {
    let feature_size = option("--feature-size", 48)?;
    let (crops, threads, steps) = (option("--crops", 2)?, option("--threads", 2)?, option("--steps", 3)?);
    let recompute = std::env::args().any(|a| a == "--recompute");
    rayon::ThreadPoolBuilder::new().num_threads(threads).build_global()?;

    let mut builder = ParamStoreBuilder::default();
    let config = SwinUnetrConfig { in_channels: 1, feature_size, out_channels: None, patch_merging: Order::Monai13 };
    let network = SwinUnetr::new(&mut builder, "", config)?;
    let mut params = builder.build(DType::F32, Device::Cpu, 0)?;
    let mut optimizer = AdamW::new(&params, AdamWConfig::default())?;
    let voxels: Vec<f32> = (0..(crops as u64) << 18).map(|i| random::uniform(1, i) as f32).collect();
    let x = Tensor::from_slice(&voxels, &[crops, 64, 64, 64, 1])?;

    let mut step = || -> Result<f64, Failure> {
        let started = Instant::now();
        let tape = Tape::new(&params);
        let mut rows = Vec::new();
        if recompute {
            for i in 0..crops {
                let crop = tape.constant(x.rows_at(i, 1)?);
                rows.push(tape.checkpoint(&[&crop], |t, v| {
                    network.embed(t, &v[0]).map_err(|e| engine::Error::invalid("embed", e.to_string()).into())
                })?);
            }
        } else {
            rows.push(network.embed(&tape, &tape.constant(x.clone()))?);
        }
        let y = ops::concat(&tape, &rows.iter().collect::<Vec<_>>(), 0)?;
        drop(rows);
        let cotangent = Tensor::full(y.dims(), 1e-3, DType::F32, Device::Cpu)?;
        let grads = tape.backward(&y, cotangent)?;
        optimizer.step(&mut params, &grads, 1e-4)?;
        Ok(started.elapsed().as_secs_f64())
    };
    step()?;
    let mut times = (0..steps).map(|_| step()).collect::<Result<Vec<_>, _>>()?;
    times.sort_by(f64::total_cmp);
    let seconds = times[times.len() / 2];
    // Forward of B is 82.8 GFLOP a crop; convolutions and linears, nearly all of it, grow with the square of the width.
    let gflop = 3.0 * 82.8 * (feature_size as f64 / 48.0).powi(2) * crops as f64;
    println!(
        "{}",
        serde_json::json!({
            "feature_size": feature_size, "crops": crops, "threads": threads, "recompute": recompute,
            "seconds": seconds, "fastest": times[0], "crops_per_s": crops as f64 / seconds,
            "gflops": gflop / seconds,
            "peak_memory_gb": resident_peak_gb(), "peak_tensors_gb": memory::usage().peak as f64 / 1e9,
            "simd": format!("{:?}", kernels::simd::level()),
        })
    );
    Ok(())
}

/// The number after `name` on the command line.
fn option(name: &str, default: usize) -> Result<usize, Failure> {
    let mut args = std::env::args().skip_while(|a| a != name);
    match (args.next(), args.next()) {
        (Some(_), Some(value)) => Ok(value.parse()?),
        _ => Ok(default),
    }
}

/// The process's largest resident set, from the kernel's own count.
fn resident_peak_gb() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|l| l.starts_with("VmHWM:"))?;
    let kib: f64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kib * 1024.0 / 1e9)
}
