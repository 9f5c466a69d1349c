//! `vocoe devices`: what a run could compute on.

use crate::verbosity::{print, say};
use crate::{Error, Result};
use engine::cuda::{self, Driver, Properties};
use serde::Serialize;

/// Say what the CPU's kernels use here, and list the GPUs of this machine and whether this program can use them.
///
/// Exit 0 with none: then everything runs on the CPU.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// One JSON object instead of text; memory in bytes
    #[arg(long)]
    json: bool,
}

const EXAMPLES: &str = "\
Examples:
  vocoe devices
  vocoe devices --json";

#[derive(Serialize)]
struct Listed {
    /// The instructions that the CPU's kernels use.
    simd: String,
    threads: usize,
    /// The CUDA version that the driver supports.
    driver: Option<String>,
    /// Why there is no GPU.
    problem: Option<String>,
    devices: Vec<Gpu>,
}

#[derive(Serialize)]
struct Gpu {
    device: String,
    name: String,
    memory: usize,
    compute_capability: String,
    multiprocessors: u32,
    /// Why it cannot be used, where it cannot.
    problem: Option<String>,
}

pub fn command(args: &Args) -> Result<bool> {
    let Driver { version, devices, problem } = cuda::survey();
    let driver = version.map(|(major, minor)| format!("{major}.{minor}"));
    let simd = format!("{:?}", kernels::simd::level());
    let listed = Listed {
        simd,
        threads: rayon::current_num_threads(),
        driver,
        problem,
        devices: devices.iter().map(gpu).collect(),
    };
    if args.json {
        print(serde_json::to_string(&listed).map_err(|e| Error::Message(e.to_string()))?)?;
        return Ok(true);
    }
    say(format!("cpu       {}, {} threads", listed.simd, listed.threads))?;
    say(listed.driver.map_or("driver    none".into(), |version| format!("driver    CUDA {version}")))?;
    for gpu in listed.devices {
        let Gpu { device, name, memory, compute_capability, multiprocessors, problem } = gpu;
        let memory = memory as f64 / 1e9;
        let verdict = problem.unwrap_or("ready".into());
        say(format!(
            "{device:9} {name}, {memory:.1} GB, compute capability {compute_capability}, {multiprocessors} SMs: {verdict}"
        ))?;
    }
    listed.problem.map_or(Ok(()), |problem| say(format!("no GPU    {problem}")))?;
    Ok(true)
}

fn gpu(properties: &Properties) -> Gpu {
    let (major, minor) = properties.compute;
    Gpu {
        device: properties.device.to_string(),
        name: properties.name.clone(),
        memory: properties.memory,
        compute_capability: format!("{major}.{minor}"),
        multiprocessors: properties.multiprocessors,
        problem: properties.problem(),
    }
}
