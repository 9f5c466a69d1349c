//! `report.html`: a run on one page, with everything in the file, so that it can be mailed and opened anywhere.

mod chart;

use crate::diagnosis::{Diagnosis, Plan};
use crate::metrics::Metrics;
use crate::{Error, Result, ending, file};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use chart::{Chart, Point, running_mean, short};
use std::path::{Path, PathBuf};

/// The browser enforces what the first line of this file promises.
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:";

/// What a run's folder tells.
struct Run {
    name: String,
    metrics: Vec<Metrics>,
    /// Lines of `metrics.jsonl` that say nothing, such as one cut short by a crash.
    skipped: usize,
    config: toml::Table,
    plan: Plan,
    /// The error that ended it.
    ended_by: Option<String>,
    /// Name and content of each picture.
    pictures: Vec<(String, Vec<u8>)>,
}

/// Writes `report.html` about the run in `folder`; its path. `ended_by` is the error that ended the run, in
/// place of the one that the folder tells, which may be none as the disk was full.
pub fn write(folder: &Path, ended_by: Option<&str>) -> Result<PathBuf> {
    let run = Run::read(folder)?;
    let page = run.page(ended_by.or(run.ended_by.as_deref()));
    let path = folder.join("report.html");
    let failed = |e| Error::Config(format!("{e}; the folder must allow writing, and have room"));
    file::replace(&path, page).map_err(failed)?;
    Ok(path)
}

impl Run {
    fn read(folder: &Path) -> Result<Run> {
        let file = folder.join("metrics.jsonl");
        let bytes = std::fs::read(&file).map_err(|e| {
            Error::Config(format!("{}: {e}; give the folder of a run, the --out of `vocoe train`", file.display()))
        })?;
        let (metrics, skipped) = lines(&String::from_utf8_lossy(&bytes));
        let config = config(&folder.join("config.toml"))?;
        let plan = config.clone().try_into().unwrap_or_default();
        let name = folder.canonicalize().unwrap_or_else(|_| folder.into());
        let name = name.file_name().map_or_else(|| "run".into(), |n| n.to_string_lossy().into_owned());
        let (ended_by, pictures) = (ending::read(folder)?, pictures(&folder.join("pictures"))?);
        Ok(Run { name, metrics, skipped, config, plan, ended_by, pictures })
    }

    fn page(&self, ended_by: Option<&str>) -> String {
        let (name, style, script) = (escape(&self.name), include_str!("page.css"), include_str!("hover.js"));
        let (tiles, notes, charts) = (self.tiles(), self.notes(ended_by), self.charts());
        let (pictures, settings) = (self.pictures(), self.settings());
        let (steps, window) = (self.plan.steps, self.window());
        format!(
            "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
             <meta http-equiv=\"Content-Security-Policy\" content=\"{POLICY}\">\n\
             <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
             <meta name=\"color-scheme\" content=\"light dark\">\n<title>{name} · vocoe</title>\n\
             <style>\n{style}</style>\n</head>\n<body>\n<main>\n\
             <header><h1>{name}</h1><p>VoCo pre-training, {done} of {steps} steps</p></header>\n\
             {tiles}{notes}<section><h2>Curves</h2>\n\
             <p class=\"hint\">Thin: single steps. Thick: mean of the newest {window} steps. \
             Single steps far outside the rest are cut off at the edge.</p>\n\
             <div class=\"charts\">\n{charts}</div></section>\n{pictures}{settings}</main>\n\
             <script>\n{script}</script>\n</body>\n</html>\n",
            done = self.metrics.last().map_or(0, |m| m.step),
        )
    }

    /// Steps of the running mean: long enough to be calm, short enough to show a turn.
    fn window(&self) -> usize {
        (self.metrics.len() / 15).clamp(5, 1000)
    }

    /// Where the run stands, by the running means.
    fn tiles(&self) -> String {
        let tile = |label: &str, name: &str, show: fn(f64) -> String| {
            let newest = running_mean(&self.points(name), self.window()).last().map_or("–".into(), |v| show(*v));
            format!("<div class=\"tile\"><span>{label}</span><strong>{newest}</strong></div>")
        };
        let percent = |v: f64| format!("{:.1} %", 100.0 * v);
        let tiles = [
            tile("Loss", "loss", short),
            tile("Position top-1", "position_top1", percent),
            tile("Crops per second", "crops_per_s", short),
            tile("Time waiting for data", "data_wait", percent),
        ];
        format!("<div class=\"tiles\">{}</div>\n", tiles.concat())
    }

    fn notes(&self, ended_by: Option<&str>) -> String {
        let mut notes = Diagnosis::of(self.plan, &self.metrics);
        notes.extend(ended_by.map(|error| format!("The run ended with an error: {error}")));
        if self.metrics.is_empty() {
            notes.push("No step is on record yet.".into());
        }
        if self.skipped > 0 {
            notes.push(format!("Unreadable lines of metrics.jsonl, left out: {}.", self.skipped));
        }
        if notes.is_empty() {
            return "<section class=\"notes calm\"><p>Nothing in these numbers looks wrong.</p></section>\n".into();
        }
        let items: String = notes.iter().map(|line| format!("<li>{}</li>", escape(line))).collect();
        format!("<section class=\"notes\"><h2>Worth a look</h2><ul>{items}</ul></section>\n")
    }

    fn charts(&self) -> String {
        let charts = [
            ("loss", "Loss"),
            ("intra", "Intra: position within a volume"),
            ("inter", "Inter: agreement across volumes"),
            ("reg", "Reg: bases kept apart"),
            ("position_top1", "Position top-1"),
            ("base_cosine", "Mean cosine between bases"),
            ("position_correlation", "Correlation of predicted with true overlap"),
            ("lr", "Learning rate"),
            ("grad_norm", "Gradient norm"),
            ("crops_per_s", "Throughput, crops per second"),
            ("data_wait", "Share of time waiting for data"),
        ];
        let draw = |(name, title)| {
            let level = (name == "position_top1").then(|| (self.plan.chance(), "always the most frequent base"));
            // A schedule has no noise; a mean would only lag behind it.
            let window = if name == "lr" { 1 } else { self.window() };
            Chart { title, level, window }.draw(&self.points(name))
        };
        charts.into_iter().map(draw).collect()
    }

    /// The steps that have a scalar of this name.
    fn points(&self, name: &str) -> Vec<Point> {
        let point = |m: &Metrics| {
            let value = m.get(name).filter(|v| v.is_finite())?;
            Some(Point { step: m.step as f64, value, weight: m.weight(name) })
        };
        self.metrics.iter().filter_map(point).collect()
    }

    fn pictures(&self) -> String {
        if self.pictures.is_empty() {
            return String::new();
        }
        let figure = |(name, png): &(String, Vec<u8>)| {
            let (name, data) = (escape(name), BASE64_STANDARD.encode(png));
            format!(
                "<figure><img alt=\"{name}\" src=\"data:image/png;base64,{data}\"><figcaption>{name}</figcaption></figure>\n"
            )
        };
        let figures: String = self.pictures.iter().map(figure).collect();
        format!("<section><h2>Pictures</h2><div class=\"pictures\">\n{figures}</div></section>\n")
    }

    fn settings(&self) -> String {
        let row = |(key, value): (&String, &toml::Value)| {
            format!("<div><dt>{}</dt><dd>{}</dd></div>", escape(key), escape(&value.to_string()))
        };
        let rows: String = self.config.iter().map(row).collect();
        let rows = if rows.is_empty() { "<p class=\"hint\">No config.toml.</p>".into() } else { rows };
        format!("<section><h2>Settings</h2><dl>{rows}</dl></section>\n")
    }
}

/// The readable lines, and the number of others.
fn lines(text: &str) -> (Vec<Metrics>, usize) {
    let all = text.lines().filter(|l| !l.trim().is_empty());
    let metrics: Vec<Metrics> = all.clone().filter_map(|l| serde_json::from_str(l).ok()).collect();
    let skipped = all.count() - metrics.len();
    (metrics, skipped)
}

/// Empty where there is no file.
fn config(path: &Path) -> Result<toml::Table> {
    if !path.exists() {
        return Ok(toml::Table::new());
    }
    let text = std::fs::read_to_string(path).map_err(Error::io(path))?;
    text.parse().map_err(|e: toml::de::Error| Error::Config(format!("{}: {}", path.display(), e.message())))
}

/// The PNG files of a folder by name; none where there is no folder.
fn pictures(folder: &Path) -> Result<Vec<(String, Vec<u8>)>> {
    if !folder.is_dir() {
        return Ok(Vec::new());
    }
    let entries = std::fs::read_dir(folder).and_then(Iterator::collect::<std::io::Result<Vec<_>>>);
    let mut paths: Vec<PathBuf> = entries.map_err(Error::io(folder))?.iter().map(std::fs::DirEntry::path).collect();
    paths.retain(|p| p.extension().is_some_and(|e| e == "png"));
    paths.sort();
    let read = |path: PathBuf| {
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        Ok((name, std::fs::read(&path).map_err(Error::io(&path))?))
    };
    paths.into_iter().map(read).collect()
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests;
