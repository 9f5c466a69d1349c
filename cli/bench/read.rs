//! From file to processed volume, on one thread: what `benches/peers/monai_read.py` times in MONAI.

use super::median;
use crate::verbosity::{print, say};
use crate::{Error, Result, machine};
use data::{Region, preprocess};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use std::process::Command;
use std::time::Instant;

/// MONAI's side, run with `--peer`.
const PEER: &str = include_str!("../../benches/peers/monai_read.py");

/// Time the chain from file to processed volume, on one thread.
///
/// Prints the median of the runs of each volume, and the process's largest memory; with --peer also what MONAI takes.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Volumes, each followed by its region
    #[arg(long, num_args = 1.., required = true, value_name = "FILE=REGION", value_parser = volume)]
    volumes: Vec<(PathBuf, Region)>,
    /// Runs of each volume
    #[arg(long, value_name = "N", default_value_t = 5)]
    runs: usize,
    /// A Python with MONAI (1.3 needs NumPy 1), to time the same on the same machine
    #[arg(long, value_name = "PYTHON")]
    peer: Option<PathBuf>,
    /// One JSON object instead of text
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Measured {
    volumes: Vec<Volume>,
    /// Of the process, where the system tells.
    peak_bytes: Option<u64>,
    peer: Option<Peer>,
}

#[derive(Serialize, Deserialize)]
struct Volume {
    seconds: Vec<f64>,
    dims: [usize; 3],
}

#[derive(Serialize, Deserialize)]
struct Peer {
    torch: String,
    monai: String,
    volumes: Vec<Volume>,
    peak_bytes: u64,
}

impl Volume {
    fn median(&self) -> f64 {
        median(self.seconds.clone())
    }
}

pub fn command(args: &Args) -> Result<bool> {
    if args.runs == 0 {
        return Err(Error::Message("bench read: --runs must be at least 1".into()));
    }
    let volumes = args.volumes.iter().map(|volume| read(volume, args.runs)).collect::<Result<_>>()?;
    let peak_bytes = machine::resident_peak();
    let peer = args.peer.as_ref().map(|python| run_peer(python, args)).transpose()?;
    let measured = Measured { volumes, peak_bytes, peer };
    if args.json {
        print(serde_json::to_string(&measured).map_err(|e| Error::Message(e.to_string()))?)?;
    } else {
        table(args, &measured)?;
    }
    Ok(true)
}

fn volume(text: &str) -> Result<(PathBuf, Region), String> {
    let (path, region) = text.rsplit_once('=').ok_or("write FILE=REGION, such as scan.nii.gz=chest")?;
    Ok((path.into(), region.parse()?))
}

fn read((path, region): &(PathBuf, Region), runs: usize) -> Result<Volume> {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().map_err(|e| Error::Message(e.to_string()))?;
    let mut volume = Volume { seconds: Vec::new(), dims: [0; 3] };
    for _ in 0..runs {
        let started = Instant::now();
        volume.dims = pool.install(|| preprocess::run(path, None, &region.settings()))?.image.dims;
        volume.seconds.push(started.elapsed().as_secs_f64());
    }
    Ok(volume)
}

fn run_peer(python: &PathBuf, args: &Args) -> Result<Peer> {
    let volume = |(path, region): &(PathBuf, Region)| {
        let chain = region.settings();
        serde_json::json!({"path": path, "spacing": chain.spacing, "window": chain.window, "pad": chain.pad})
    };
    let volumes = serde_json::Value::from(args.volumes.iter().map(volume).collect::<Vec<_>>()).to_string();
    let one_thread = [("OMP_NUM_THREADS", "1"), ("MKL_NUM_THREADS", "1")];
    let run = Command::new(python).args(["-c", PEER, &volumes, &args.runs.to_string()]).envs(one_thread).output();
    let output = run.map_err(|e| Error::file(python, format!("{e}; name a Python with monai and torch")))?;
    let parsed = serde_json::from_slice(&output.stdout).ok().filter(|_| output.status.success());
    parsed.ok_or_else(|| {
        let stderr = String::from_utf8_lossy(&output.stderr);
        let last = stderr.lines().last().unwrap_or("it said nothing").to_string();
        Error::file(python, format!("MONAI's chain failed: {last}"))
    })
}

fn table(args: &Args, measured: &Measured) -> Result<()> {
    let peers = measured.peer.as_ref().map(|peer| &peer.volumes);
    for (i, (volume, (path, region))) in measured.volumes.iter().zip(&args.volumes).enumerate() {
        let (seconds, name) = (volume.median(), path.file_name().unwrap_or_default().to_string_lossy());
        let peer = peers.and_then(|volumes| volumes.get(i)).map_or(String::new(), |peer| {
            let same = if peer.dims == volume.dims { "" } else { ", of other dims" };
            format!("   MONAI {:.2} s: {:.1} x{same}", peer.median(), peer.median() / seconds)
        });
        say(format!("{name} {region:?} {:?}: {seconds:.3} s{peer}", volume.dims))?;
    }
    let peak = measured.peak_bytes.map_or("unknown".into(), |bytes| format!("{:.0} MB", bytes as f64 / 1e6));
    let peer =
        measured.peer.as_ref().map_or(String::new(), |p| format!("   MONAI {:.0} MB", p.peak_bytes as f64 / 1e6));
    say(format!("memory {peak}{peer}"))
}
