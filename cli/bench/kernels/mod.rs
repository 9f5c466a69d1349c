//! Every operation alone, at the shapes that it has in the networks, beside what the device can do at most.

mod cases;
mod peer;
mod time;

use crate::train::Size;
use crate::verbosity::{print, say};
use crate::{DeviceChoice, Error, Result};
use ::kernels::ceilings::{self, Arithmetic, Unit};
use cases::{Case, Work};
use clap::ValueEnum;
use engine::{DType, Device, Tensor, cuda};
use serde::Serialize;
use time::{Timing, measure};

/// Rounds of multiply-adds to begin with, and how many seconds a call should take at least.
const ROUNDS: usize = 200;
const LONG_ENOUGH: f64 = 2e-3;

/// Time every operation, forward and each gradient, at the shapes of the networks.
///
/// Prints the median time of a call, GFLOP/s, GB/s (each input and output counted once), and the share of the device's best: the
/// longer of the times that its fastest multiply-adds and its fastest copy, measured first, would take. Repeated calls find in
/// the caches what fits there.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Networks whose shapes are taken
    #[arg(long, value_enum, value_delimiter = ',', default_value = "tiny,B,L")]
    size: Vec<Size>,
    /// Crops of 64³ in a call
    #[arg(long, value_name = "N", default_value_t = 2)]
    crops: usize,
    /// Only calls whose names contain this text, as in "conv3d wgrad"
    #[arg(long, value_name = "TEXT", default_value = "")]
    filter: String,
    /// Where to compute: auto, cpu, cuda or cuda:N
    #[arg(long, value_name = "D", default_value_t)]
    device: DeviceChoice,
    /// What values are stored in; operations that lack it say so
    #[arg(long, value_enum, default_value_t)]
    dtype: Stored,
    /// A Python with PyTorch, to time the same there
    #[arg(long, value_name = "PYTHON")]
    peer: Option<String>,
    /// How often a call and the peer's are timed by turns; the medians count
    #[arg(long, value_name = "N", default_value_t = 3)]
    peer_rounds: usize,
    /// One JSON object instead of text; its lines are written as they are known, one for each call
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum Stored {
    #[default]
    F32,
    Bf16,
    F16,
}

impl From<Stored> for DType {
    fn from(stored: Stored) -> DType {
        match stored {
            Stored::F32 => DType::F32,
            Stored::Bf16 => DType::BF16,
            Stored::F16 => DType::F16,
        }
    }
}

/// What is known before the first call.
#[derive(Serialize)]
struct Head {
    device: String,
    /// The GPU's name, or the CPU's vectors.
    hardware: String,
    /// Of the CPU.
    threads: usize,
    dtype: String,
    crops: usize,
    ceilings: Ceilings,
    /// PyTorch's version.
    peer: Option<String>,
}

/// The device's best.
#[derive(Clone, Copy, Serialize)]
struct Ceilings {
    gflops: f64,
    gb_per_s: f64,
}

#[derive(Serialize)]
struct Row {
    size: String,
    op: &'static str,
    direction: &'static str,
    shape: String,
    #[serde(flatten)]
    figures: Option<Figures>,
    /// Why there are none.
    problem: Option<String>,
}

#[derive(Serialize)]
struct Figures {
    seconds: f64,
    /// Between the quartiles, as a share of the median.
    spread: f64,
    batches: usize,
    /// None where a call only moves values.
    gflops: Option<f64>,
    gb_per_s: f64,
    /// Of the device's best.
    share: f64,
    peer_seconds: Option<f64>,
    /// How many times as fast as the peer, which was measured by turns.
    ratio: Option<f64>,
}

pub fn command(args: &Args) -> Result<bool> {
    if args.crops == 0 || args.peer_rounds == 0 {
        return Err(Error::Message("bench kernels: --crops and --peer-rounds must be at least 1".into()));
    }
    let calls = calls(args);
    if calls.is_empty() {
        return Err(Error::Message(format!("bench kernels: no call has {:?} in its name", args.filter)));
    }
    let device = args.device.resolve()?;
    let dtype = args.dtype.into();
    if (device, dtype) == (Device::Cpu, DType::F16) {
        return Err(Error::Message("bench kernels: the CPU knows f32 and bf16; choose another --dtype".into()));
    }
    let mut peer = args.peer.as_ref().map(|python| peer::Process::start(python, device, dtype)).transpose()?;
    let head = Head {
        device: device.to_string(),
        hardware: hardware(device)?,
        threads: rayon::current_num_threads(),
        dtype: dtype.to_string(),
        crops: args.crops,
        ceilings: find_ceilings(device, dtype)?,
        peer: peer.as_ref().map(|peer| peer.version.clone()),
    };
    if args.json {
        print(opened(&object(&head)?))?
    } else {
        say(first_line(&head))?
    }
    let number = if peer.is_some() { args.peer_rounds } else { 1 };
    for (i, (size, case)) in calls.iter().enumerate() {
        let row = row(case, *size, dtype, head.ceilings, rounds(case, device, dtype, number, peer.as_mut()))?;
        let comma = if i > 0 { "," } else { "" };
        if args.json { print(format!("{comma}{}", object(&row)?))? } else { say(line(&row))? }
    }
    if args.json { print("]}") } else { Ok(()) }.map(|()| true)
}

/// All calls that were asked for, with the networks that they belong to.
fn calls(args: &Args) -> Vec<(Size, Case)> {
    let all = args.size.iter().flat_map(|&size| {
        let cases = cases::cases(size.feature_size(), args.crops);
        cases.into_iter().map(move |case| (size, case))
    });
    all.filter(|(_, case)| case.name().contains(&args.filter)).collect()
}

fn object(of: &impl Serialize) -> Result<String> {
    serde_json::to_string(of).map_err(|e| Error::Message(e.to_string()))
}

/// An object as far as the start of its last member, the calls: a run that is stopped leaves what it has measured.
fn opened(object: &str) -> String {
    format!("{},\"calls\":[", object.strip_suffix('}').unwrap_or(object))
}

fn hardware(device: Device) -> Result<String> {
    match device {
        Device::Cuda(_) => Ok(cuda::properties(device)?.name.clone()),
        _ => Ok(format!("{:?}", ::kernels::simd::level())),
    }
}

/// The arithmetic unit is the fastest that works with the stored values.
fn find_ceilings(device: Device, dtype: DType) -> Result<Ceilings> {
    let unit = match (device, dtype) {
        (_, DType::BF16) => Unit::Bf16,
        (Device::Cuda(_), DType::F16) => Unit::F16,
        _ => Unit::F32,
    };
    let gflops = 1e-9 * flops_per_second(device, Arithmetic::new(device, unit)?)?;
    // far larger than any cache
    let mut x = Tensor::empty(&[1 << 26], DType::F32, device)?;
    x.fill_with(0..x.numel(), |i| (i % 4099) as f64)?;
    let copy = fastest(device, || ceilings::copy(&x).map(drop))?;
    let bytes = (2 * 4 * x.numel()) as f64;
    Ok(Ceilings { gflops, gb_per_s: bytes / copy / 1e9 })
}

/// Of calls that are long enough for starting a kernel not to count.
fn flops_per_second(device: Device, mut arithmetic: Arithmetic) -> Result<f64> {
    let once = measure(device, || arithmetic.run(ROUNDS).map(drop))?.fastest;
    let rounds = ROUNDS * (LONG_ENOUGH / once).ceil() as usize;
    let mut flops = 0.0;
    let seconds = fastest(device, || {
        flops = arithmetic.run(rounds)?;
        Ok(())
    })?;
    Ok(flops / seconds)
}

/// Seconds of the fastest batch of several measurements: a busy machine is not its ceiling.
fn fastest(device: Device, mut call: impl FnMut() -> engine::Result<()>) -> Result<f64> {
    let mut least = f64::INFINITY;
    for _ in 0..5 {
        least = least.min(measure(device, &mut call)?.fastest);
    }
    Ok(least)
}

fn row(case: &Case, size: Size, dtype: DType, ceilings: Ceilings, rounds: Result<Vec<Round>>) -> Result<Row> {
    let (figures, problem) = match rounds {
        Ok(rounds) => (Some(Figures::new(rounds, case.work(dtype)?, ceilings)), None),
        Err(Error::Engine(problem @ (engine::Error::Unsupported { .. } | engine::Error::DType { .. }))) => {
            (None, Some(problem.to_string()))
        }
        Err(error) => return Err(error),
    };
    let size = size.to_possible_value().map_or(String::new(), |v| v.get_name().to_string());
    Ok(Row { size, op: case.op, direction: case.direction, shape: case.shape.clone(), figures, problem })
}

/// One measurement of a call, and of the same one at the peer right after it.
struct Round {
    timing: Timing,
    peer_seconds: Option<f64>,
}

/// Several with a peer: what disturbs a shared machine for a while then falls on both.
fn rounds(
    case: &Case,
    device: Device,
    dtype: DType,
    number: usize,
    mut peer: Option<&mut peer::Process>,
) -> Result<Vec<Round>> {
    let mut tensors = case.prepare(dtype, device)?;
    let round = |_| {
        let timing = measure(device, || case.run(&mut tensors))?;
        let peer_seconds = match (&mut peer, &case.peer) {
            (Some(process), Some(same)) => process.time(same)?,
            _ => None,
        };
        Ok(Round { timing, peer_seconds })
    };
    (0..number).map(round).collect()
}

impl Figures {
    /// Of the round that is the median, and the median ratio.
    fn new(mut rounds: Vec<Round>, work: Work, ceilings: Ceilings) -> Figures {
        let ratio = |round: &Round| round.peer_seconds.map(|peer| peer / round.timing.seconds);
        let mut ratios: Vec<f64> = rounds.iter().filter_map(ratio).collect();
        ratios.sort_by(f64::total_cmp);
        rounds.sort_by(|a, b| a.timing.seconds.total_cmp(&b.timing.seconds));
        let Round { timing, peer_seconds } = rounds.swap_remove(rounds.len() / 2);
        let Timing { seconds, spread, batches, .. } = timing;
        let floor = (work.flops / ceilings.gflops).max(work.bytes / ceilings.gb_per_s) / 1e9;
        Figures {
            seconds,
            spread,
            batches,
            gflops: (work.flops > 0.0).then_some(work.flops / seconds / 1e9),
            gb_per_s: work.bytes / seconds / 1e9,
            share: floor / seconds,
            peer_seconds,
            ratio: ratios.get(ratios.len() / 2).copied(),
        }
    }
}

fn first_line(m: &Head) -> String {
    let Ceilings { gflops, gb_per_s } = m.ceilings;
    let peer = m.peer.as_ref().map_or(String::new(), |version| format!("; × as fast as PyTorch {version}"));
    let (device, hardware, dtype) = (&m.device, &m.hardware, &m.dtype);
    format!("{device} ({hardware}), {dtype}: at most {gflops:.0} GFLOP/s, copies {gb_per_s:.1} GB/s{peer}")
}

fn line(row: &Row) -> String {
    let Row { size, op, direction, shape, figures, problem } = row;
    let name = format!("{size:4} {op} {direction} {shape}");
    let Some(f) = figures else { return format!("{name:70} {}", problem.as_deref().unwrap_or_default()) };
    let rate = f.gflops.map_or(String::new(), |gflops| format!("{gflops:.0} GFLOP/s"));
    let ratio = f.ratio.map_or(String::new(), |ratio| format!("  {ratio:.2} ×"));
    let (time, spread, share) = (1e6 * f.seconds, 100.0 * f.spread, 100.0 * f.share);
    format!("{name:70} {time:11.1} µs ±{spread:2.0} %  {rate:>13}  {:7.1} GB/s  {share:3.0} %{ratio}", f.gb_per_s)
}

#[cfg(test)]
mod tests {
    use super::opened;
    use serde_json::{Value, json};

    #[test]
    fn an_object_that_is_written_line_by_line_is_one() {
        let head = json!({ "ceilings": { "gflops": 1 }, "peer": null }).to_string();
        let whole: Value = serde_json::from_str(&format!("{}\n{{}}\n,{{}}\n]}}", opened(&head))).expect("an object");
        assert_eq!(whole, json!({ "ceilings": { "gflops": 1 }, "peer": null, "calls": [{}, {}] }));
    }
}
