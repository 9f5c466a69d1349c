//! `vocoe plan`: what a run will take; and why one is not begun that will not fit.

use crate::verbosity::{print, say};
use crate::{Error, Result, machine, train};
use engine::{Device, cuda};
use serde::Serialize;
use std::path::PathBuf;
use training::Config;
use training::plan::{Flops, Memory, Parameters, Plan};

/// Say what a run with these settings takes: parameters, arithmetic, memory. Nothing is computed, and no data is read.
#[derive(clap::Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Settings file (TOML), as for train; flags override it
    #[arg(long, value_name = "F.toml")]
    config: Option<PathBuf>,
    /// One JSON object instead of text; memory in bytes
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    options: train::Options,
}

const EXAMPLES: &str = "\
Examples:
  vocoe plan --size L --recompute
  vocoe plan --config first.toml --volumes 1 --json";

#[derive(Serialize)]
struct Planned {
    #[serde(flatten)]
    plan: Plan,
    /// Bytes that this machine has for it now.
    available: Option<u64>,
}

pub fn command(args: Args) -> Result<bool> {
    let config = train::settings(args.config.as_deref(), args.options)?;
    config.check_recipe()?;
    let planned = Planned { plan: Plan::new(&config)?, available: machine::available() };
    if args.json {
        print(serde_json::to_string(&planned).map_err(|e| Error::Message(e.to_string()))?)?;
        return Ok(true);
    }
    say(table(&planned))?;
    if !config.recompute {
        let total = Plan::new(&Config { recompute: true, ..config })?.memory.total;
        say(format!("with --recompute: {}", gb(total)))?;
    }
    Ok(true)
}

fn table(planned: &Planned) -> String {
    let Plan { parameters: Parameters { backbone, student, teacher }, flops, memory } = planned.plan;
    let Flops { forward_per_crop, step } = flops;
    let Memory { parameters, gradients, optimizer, teacher: fixed, activations, idle, loader, program, total } = memory;
    let mut lines = vec![
        format!("parameters  backbone {backbone}, student {student}, teacher {teacher}"),
        format!(
            "arithmetic  {:.4} TFLOP a step; forward of a crop {:.1} GFLOP",
            tera(step),
            1e3 * tera(forward_per_crop)
        ),
        "memory".into(),
    ];
    for (name, bytes) in [
        ("parameters", parameters),
        ("gradients", gradients),
        ("optimiser (m, v, vmax)", optimizer),
        ("teacher", fixed),
        ("activations", activations),
        ("idle buffers", idle),
        ("batches made ahead", loader),
        ("program", program),
        ("in all", total),
    ] {
        lines.push(format!("  {name:24}{:>11}", gb(bytes)));
    }
    lines.extend(planned.available.map(|bytes| format!("  {:24}{:>11}", "available here", gb(bytes))));
    lines.push("  Volumes that the loader keeps come on top, as far as there is room.".into());
    lines.join("\n")
}

fn tera(flops: u128) -> f64 {
    flops as f64 / 1e12
}

fn gb(bytes: u64) -> String {
    format!("{:.2} GB", bytes as f64 / 1e9)
}

/// Bytes that this machine will have left beside the run. Errors when it does not fit, here or on its GPU, or when the device does
/// not compute in its precision; a run that is `resumed` cannot change its settings.
pub(crate) fn room(config: &Config, resumed: bool) -> Result<u64> {
    let Memory { parameters, optimizer, teacher, loader, program, total, .. } = Plan::new(config)?.memory;
    let refuse = |needed, available, place: &str, advice: Option<String>| {
        let advice = match advice {
            _ if resumed => "go on with it where there is more".into(),
            advice => advice.unwrap_or("use a machine with more".into()),
        };
        let (needed, available) = (gb(needed), gb(available));
        Error::Message(format!("this run needs {needed} of memory{place} and {available} are available; {advice}"))
    };
    let device = config.device()?;
    config.precision.check(device)?;
    if device == Device::Cpu {
        let Some(available) = machine::available() else { return Ok(u64::MAX) };
        let left = available.checked_sub(total);
        return left.ok_or_else(|| refuse(total, available, "", advice(config, available)));
    }
    let (tensors, there) = (total - loader - program, cuda::properties(device)?.memory as u64);
    if tensors > there {
        return Err(refuse(tensors, there, &format!(" on {device}"), advice(config, there + loader + program)));
    }
    // beside the batches, the host holds a copy of all that a checkpoint takes
    let copies = parameters + optimizer + teacher + loader + program;
    let Some(available) = machine::available() else { return Ok(u64::MAX) };
    available.checked_sub(copies).ok_or_else(|| refuse(copies, available, " on the host", None))
}

/// The first of ever stronger changes with which the run fits.
fn advice(config: &Config, available: u64) -> Option<String> {
    let mut config = config.clone();
    let mut flags = Vec::new();
    let mut try_with = |flag: &'static str, change: &dyn Fn(&mut Config)| {
        let mut changed = config.clone();
        change(&mut changed);
        if changed == config || changed.check_recipe().is_err() {
            return None;
        }
        config = changed;
        flags.retain(|earlier: &&str| earlier.split(' ').next() != flag.split(' ').next());
        flags.push(flag);
        let total = Plan::new(&config).ok()?.memory.total;
        (total <= available).then(|| format!("with {} it needs {}", flags.join(" "), gb(total)))
    };
    try_with("--recompute", &|c| c.recompute = true)
        .or_else(|| try_with("--volumes 1", &|c| c.volumes = 1))
        .or_else(|| try_with("--crops 1 --grid 2", &|c| (c.crops, c.grid) = (1, 2)))
        .or_else(|| try_with("--feature-size 48", &|c| c.feature_size = c.feature_size.min(48)))
        .or_else(|| try_with("--feature-size 12", &|c| c.feature_size = c.feature_size.min(12)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use data::geometry::Geometry;

    fn config(change: impl Fn(&mut Config)) -> Config {
        let mut config = train::settings(None, train::Options::default()).expect("defaults");
        change(&mut config);
        config
    }

    #[test]
    fn the_gentlest_change_that_helps_is_advised() {
        let whole = config(|_| {});
        let total = |change: &dyn Fn(&mut Config)| Plan::new(&config(change)).expect("plan").memory.total;
        let recomputed = total(&|c| c.recompute = true);
        let one = total(&|c| (c.recompute, c.volumes) = (true, 1));
        let says = |available| advice(&whole, available);
        assert_eq!(says(recomputed), Some(format!("with --recompute it needs {}", gb(recomputed))));
        assert_eq!(says(recomputed - 1), Some(format!("with --recompute --volumes 1 it needs {}", gb(one))));
        assert_eq!(says(1 << 20), None);
        let large = config(|c| c.feature_size = 96);
        let text = advice(&large, one).expect("B fits");
        assert!(
            text.starts_with("with --recompute --volumes 1 --crops 1 --grid 2 --feature-size 48 it needs"),
            "{text}"
        );
        let cvpr = config(|c| (c.geometry, c.grid, c.feature_size) = (Geometry::Cvpr, 4, 96));
        let text = advice(&cvpr, one).expect("12 fits");
        assert!(text.starts_with("with --recompute --volumes 1 --feature-size 12 it needs"), "{text}");
    }
}
