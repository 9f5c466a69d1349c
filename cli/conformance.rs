//! `vocoe conformance`: whether a GPU does what the kernels are written against.

use crate::verbosity::{print, say};
use crate::{DeviceChoice, Error, Result};
use engine::Device;
use kernels::conformance::{self, Verdict};
use serde_json::json;

/// Try on a GPU every special instruction that kernels use, and compare with plain code.
///
/// One line per check. Exit 1 when one fails: then no kernel's result on this GPU can be relied on.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Which GPU: cuda or cuda:N
    #[arg(long, value_name = "D", default_value = "cuda")]
    device: DeviceChoice,
    /// Seed of the inputs
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// One JSON object per line instead of text
    #[arg(long)]
    json: bool,
}

const EXAMPLES: &str = "\
Examples:
  vocoe conformance
  vocoe conformance --device cuda:1 --seed 7";

pub fn command(args: &Args) -> Result<bool> {
    let device = args.device.resolve()?;
    if !matches!(device, Device::Cuda(_)) {
        return Err(Error::Message(format!("conformance is about GPUs, and {device} is none: give --device cuda:N")));
    }
    engine::memory::check(true); // what reads or writes past its arrays shows, to sanitizers too
    let mut right = true;
    for verdict in conformance::run(device, args.seed) {
        let verdict = verdict?;
        match () {
            () if args.json => print(object(&verdict))?,
            () if verdict.wrong > 0 => print(line(&verdict))?,
            () => say(line(&verdict))?,
        }
        right &= verdict.wrong == 0;
    }
    Ok(right)
}

fn object(Verdict { name, values, wrong, worst, first }: &Verdict) -> String {
    json!({ "check": name, "values": values, "wrong": wrong, "share_of_bound": worst, "first_wrong": first })
        .to_string()
}

fn line(Verdict { name, values, wrong, worst, first }: &Verdict) -> String {
    let verdict = if *wrong == 0 { "pass" } else { "FAIL" };
    let worst = worst.map_or("to the bit".into(), |worst| format!("at most {worst:.2} of the bound"));
    let first = first.as_ref().map_or(String::new(), |first| format!("; {wrong} wrong: {first}"));
    format!("{verdict}  {name:42} {values:7} values, {worst}{first}")
}
