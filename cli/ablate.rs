//! `vocoe ablate`: one recipe with parts of it changed, run by run, and a table of what came of each.

use crate::verbosity::{note, print, say, tell};
use crate::{Error, Result};
use crate::{config, plan, train};
use serde::{Deserialize, Serialize};
use std::fmt::{Display, Formatter};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use toml::{Table, Value};
use training::Config;
use training::metrics::{Metrics, crops_per_s, ends};

/// Train every run of a matrix on the same samples in the same order, and compare.
///
/// MATRIX.toml has a table [base] with settings of `train`, and a [[run]] for each run, with its `name` and what differs. A run
/// that is complete already is not repeated, and one that fails keeps no other from being run.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    #[arg(value_name = "MATRIX.toml")]
    matrix: PathBuf,
    /// Folder for the runs, each under its name
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// One JSON object per run instead of the table
    #[arg(long)]
    json: bool,
}

const EXAMPLES: &str = "\
Examples:
  vocoe ablate matrix.toml --out runs/ablation
  vocoe ablate matrix.toml --out runs/ablation --json";

/// Settings that decide which samples come in which order, and so are the base's alone.
const SHARED: [&str; 8] = ["seed", "data", "sources", "exclude", "region", "volumes", "same_region", "demo"];

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Matrix {
    #[serde(default)]
    base: Table,
    run: Vec<Table>,
}

#[derive(Debug, Serialize)]
struct Row {
    name: String,
    #[serde(flatten)]
    end: End,
}

#[derive(Debug, Serialize)]
#[serde(untagged)]
enum End {
    Trained(Means),
    Failed { error: String },
}

/// Of a run's last sixth.
#[derive(Debug, Serialize)]
struct Means {
    loss: f64,
    intra: f64,
    inter: f64,
    reg: f64,
    position_top1: f64,
    /// None of these two where the run was made by a version that did not write it.
    position_correlation: Option<f64>,
    base_cosine: Option<f64>,
    crops_per_s: f64,
}

pub fn command(args: &Args) -> Result<bool> {
    let missing = "`vocoe help ablate` says what is in such a file";
    let text =
        std::fs::read_to_string(&args.matrix).map_err(|e| Error::file(&args.matrix, format!("{e}; {missing}")))?;
    let matrix: Matrix =
        toml::from_str(&text).map_err(|e| Error::file(&args.matrix, config::one_line(&e.to_string())))?;
    let mut configs = Vec::new();
    for run in &matrix.run {
        configs.push(config(&matrix.base, run, &args.out).map_err(|e| Error::file(&args.matrix, e))?);
    }
    let names = configs.iter().map(|(name, _)| name);
    if let Some(twice) = names.clone().find(|&name| names.clone().filter(|&other| other == name).count() > 1) {
        return Err(Error::file(&args.matrix, format!("two runs are called {twice}; give each a name of its own")));
    }
    if configs.is_empty() {
        return Err(Error::file(
            &args.matrix,
            "no [[run]] in it; give each run a [[run]] with its name and what differs",
        ));
    }
    let Some(rows) = rows(configs)? else {
        note("stopped; the same command goes on from here");
        return Ok(false);
    };
    table(&rows, args.json)?;
    Ok(rows.iter().all(|row| matches!(row.end, End::Trained(_))))
}

/// What came of each run; an error is one run's alone. None when an interrupt ended it.
fn rows(configs: Vec<(String, Config)>) -> Result<Option<Vec<Row>>> {
    let stop = train::stop_on_signals()?;
    let mut rows = Vec::new();
    for (name, config) in configs {
        let end = match metrics(&name, &config, &stop) {
            Ok(Some(metrics)) => End::Trained(Means::of(&metrics)),
            Ok(None) => return Ok(None),
            Err(error) if stop.load(Ordering::Relaxed) => return Err(error),
            Err(error) => End::failed(&name, &error),
        };
        rows.push(Row { name, end });
    }
    Ok(Some(rows))
}

/// The name and the settings of one run.
fn config(base: &Table, run: &Table, out: &Path) -> Result<(String, Config)> {
    let mut all = base.clone();
    let mut run = run.clone();
    let Some(Value::String(name)) = run.remove("name") else {
        return Err(Error::Message("a [[run]] has no `name`".into()));
    };
    if all.contains_key("out") || run.contains_key("out") {
        return Err(Error::Message("`out` is not for the matrix; give --out".into()));
    }
    if let Some(key) = run.keys().find(|k| SHARED.contains(&k.as_str())) {
        return Err(Error::Message(format!("run {name}: `{key}` must be the same for all; set it under [base]")));
    }
    if name.is_empty() || name.contains(['/', '\\', '.']) {
        return Err(Error::Message(format!("run {name:?}: a name becomes a folder; use letters, digits, - and _")));
    }
    if run.contains_key("size") {
        all.remove("feature_size"); // as --size replaces a file's
    }
    all.extend(run);
    all.insert("out".into(), Value::String(out.join(&name).to_string_lossy().into_owned()));
    let options = config::check(&all).and_then(|()| train::parse(all));
    let of_run = |problem: Error| Error::Message(format!("run {name}: {problem}"));
    let config = options.map_err(|problem| of_run(Error::Message(problem)))?.resolve().map_err(of_run)?;
    config.check().map_err(|e| of_run(e.into()))?;
    Ok((name, config))
}

/// What the run wrote, after running it where that is not done yet. None when it was interrupted, which may
/// have been at the end of the run before.
fn metrics(name: &str, config: &Config, stop: &AtomicBool) -> Result<Option<Vec<Metrics>>> {
    if stop.load(Ordering::Relaxed) {
        return Ok(None);
    }
    let file = config.out.join("config.toml");
    if let Ok(stored) = std::fs::read_to_string(&file)
        && let Some(setting) = changed(&stored, config).map_err(|e| Error::file(&file, e))?
    {
        return Err(Error::file(
            &file,
            format!("a run with another {setting}; remove its folder, or choose another --out"),
        ));
    }
    if config.out.join("model.safetensors").exists() {
        note(format!("run {name}: complete already"));
        return read(&config.out.join("metrics.jsonl")).map(Some);
    }
    note(format!("run {name}"));
    let saved = train::saved(&config.out)?;
    let sources = training::source::find(config, &mut note)?;
    let room = plan::room(config, saved.is_some())?;
    let outcome = train::go(config, saved, sources, room, None, stop)?;
    Ok(outcome.model.is_some().then_some(outcome.metrics))
}

/// The first setting that decides a run's numbers and is another one in the settings that were stored.
fn changed(stored: &str, config: &Config) -> Result<Option<String>> {
    let mut table: Table =
        stored.parse().map_err(|e: toml::de::Error| Error::Message(config::one_line(&e.to_string())))?;
    table.remove("device"); // where it computed need not be there any more, and does not matter
    train::changed(&train::parse(table).map_err(Error::Message)?.resolve()?, config)
}

fn read(path: &Path) -> Result<Vec<Metrics>> {
    let text = std::fs::read_to_string(path).map_err(|e| Error::file(path, e))?;
    text.lines().map(|l| serde_json::from_str(l).map_err(|e| Error::file(path, e))).collect()
}

impl End {
    /// Says so at once, as the table may be days away.
    fn failed(name: &str, error: &Error) -> End {
        tell(format!("error: run {name}: {error}"));
        End::Failed { error: error.to_string() }
    }
}

impl Means {
    fn of(metrics: &[Metrics]) -> Means {
        let (_, last) = ends(metrics);
        let mean = |f: fn(&Metrics) -> f64| last.iter().map(f).sum::<f64>() / last.len() as f64;
        Means {
            loss: mean(|m| m.loss),
            intra: mean(|m| m.intra),
            inter: mean(|m| m.inter),
            reg: mean(|m| m.reg),
            position_top1: mean(|m| m.position_top1),
            position_correlation: mean_of(last, |m| m.position_correlation),
            base_cosine: mean_of(last, |m| m.base_cosine),
            crops_per_s: crops_per_s(last),
        }
    }
}

/// None where a step lacks it.
fn mean_of(steps: &[Metrics], f: fn(&Metrics) -> Option<f64>) -> Option<f64> {
    steps.iter().map(f).sum::<Option<f64>>().map(|sum| sum / steps.len() as f64)
}

fn table(rows: &[Row], json: bool) -> Result<()> {
    let width = rows.iter().map(|r| r.name.len()).max().unwrap_or(0).max(3);
    if !json {
        say(format!("{:width$}    loss   intra   inter     reg   top-1    corr  bases  crops/s", "run"))?;
    }
    for row in rows {
        if json {
            print(serde_json::to_string(row).map_err(|e| Error::Message(e.to_string()))?)?;
        } else {
            say(format!("{:width$}  {}", row.name, row.end))?;
        }
    }
    Ok(())
}

impl Display for End {
    fn fmt(&self, f: &mut Formatter) -> std::fmt::Result {
        let means = match self {
            End::Trained(means) => means,
            End::Failed { error } => return write!(f, "failed: {error}"),
        };
        let Means { loss, intra, inter, reg, position_top1, position_correlation, base_cosine, crops_per_s } = means;
        let [corr, bases] = [position_correlation, base_cosine].map(|v| v.map_or("-".into(), |v| format!("{v:.3}")));
        write!(
            f,
            "{loss:.4}  {intra:.4}  {inter:.4}  {reg:.4}  {position_top1:6.3}  {corr:>6}  {bases:>5}  {crops_per_s:7.2}"
        )
    }
}
