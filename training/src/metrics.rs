//! What is known about each step, one JSON object a line.

use crate::{Error, Result};
use engine::Tensor;
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::{ErrorKind, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Metrics {
    /// From 1.
    pub step: u64,
    pub loss: f64,
    pub intra: f64,
    pub inter: f64,
    pub reg: f64,
    /// The rate this step's update was made with.
    pub lr: f64,
    /// Infinite, which JSON writes as null, where a scaled gradient overflowed and the update was left out.
    #[serde(deserialize_with = "null_is_infinite")]
    pub grad_norm: f64,
    /// What the loss was multiplied by; absent where it is not scaled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loss_scale: Option<f64>,
    pub crops_per_s: f64,
    /// Share of the step's time spent waiting for the loader.
    pub data_wait: f64,
    /// Share of random crops whose largest predicted overlap is with the base of largest true overlap.
    pub position_top1: f64,
    /// Mean cosine between the bases of a volume, as [`models::voco::Step::base_cosine`]; absent from files of older versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base_cosine: Option<f64>,
    /// Correlation of predicted with true overlaps, as [`position_correlation`]; absent from files of older versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub position_correlation: Option<f64>,
}

/// Stands in for a rate of 0, which only a file made by hand can hold.
const SLOWEST: f64 = 1e-9;

fn null_is_infinite<'de, D: serde::Deserializer<'de>>(number: D) -> Result<f64, D::Error> {
    Ok(Option::deserialize(number)?.unwrap_or(f64::INFINITY))
}

impl Metrics {
    /// Everything but the step, under the names it has in `metrics.jsonl`.
    pub fn scalars(&self) -> impl Iterator<Item = (&'static str, f64)> {
        [
            ("loss", Some(self.loss)),
            ("intra", Some(self.intra)),
            ("inter", Some(self.inter)),
            ("reg", Some(self.reg)),
            ("lr", Some(self.lr)),
            ("grad_norm", Some(self.grad_norm)),
            ("loss_scale", self.loss_scale),
            ("crops_per_s", Some(self.crops_per_s)),
            ("data_wait", Some(self.data_wait)),
            ("position_top1", Some(self.position_top1)),
            ("base_cosine", self.base_cosine),
            ("position_correlation", self.position_correlation),
        ]
        .into_iter()
        .filter_map(|(name, value)| Some((name, value?)))
    }

    /// How much the step counts in a mean of the scalar `name`. One of rates, or of shares of time, goes by the time that the steps
    /// took: a loader that stalls does so in few of them. The time is that of a crop, as nearly all steps have as many crops.
    pub fn weight(&self, name: &str) -> f64 {
        match name {
            "crops_per_s" | "data_wait" => 1.0 / self.crops_per_s.max(SLOWEST),
            _ => 1.0,
        }
    }

    /// One of [`Metrics::scalars`].
    pub fn get(&self, name: &str) -> Option<f64> {
        self.scalars().find(|(n, _)| *n == name).map(|(_, value)| value)
    }
}

/// `metrics.jsonl`, flushed line by line so that a run can be watched.
pub struct MetricsFile {
    path: PathBuf,
    file: File,
    /// Lines that the disk had no room for so far.
    unwritten: String,
}

impl MetricsFile {
    /// Opens the file of a run that goes on after `steps` steps, and reads what it says of them. Lines of later steps, and a
    /// last line that was cut short, are removed: these steps will be made again.
    pub fn open(path: &Path, steps: u64) -> Result<(Self, Vec<Metrics>)> {
        let text = if steps == 0 { String::new() } else { std::fs::read_to_string(path).map_err(Error::io(path))? };
        let kept: Vec<Metrics> = text
            .lines()
            .map_while(|l| serde_json::from_str(l).ok())
            .take_while(|m: &Metrics| m.step <= steps)
            .collect();
        if kept.len() as u64 != steps {
            let detail = format!(
                "{}: {} of {steps} steps are readable; put the whole file back, or start a new run",
                path.display(),
                kept.len()
            );
            return Err(Error::Config(detail));
        }
        let mut metrics =
            MetricsFile { path: path.to_path_buf(), file: replace(path, &kept)?, unwritten: String::new() };
        metrics.sync()?;
        Ok((metrics, kept))
    }

    /// Appends a line, which stays in memory when the disk has no room for it.
    pub fn write(&mut self, metrics: &Metrics) -> Result<()> {
        self.unwritten += &(line(metrics).map_err(Error::io(&self.path))? + "\n");
        match self.flush() {
            Err(Error::Io { source, .. })
                if matches!(source.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded) =>
            {
                Ok(())
            }
            other => other,
        }
    }

    /// Writes the lines that are in memory still. On an error none of them is in the file.
    pub fn flush(&mut self) -> Result<()> {
        let file = &mut self.file;
        let start = file.stream_position().map_err(Error::io(&self.path))?;
        if let Err(error) = file.write_all(self.unwritten.as_bytes()) {
            file.set_len(start).and_then(|()| file.seek(SeekFrom::Start(start))).map_err(Error::io(&self.path))?;
            return Err(Error::io(&self.path)(error));
        }
        self.unwritten.clear();
        Ok(())
    }

    /// Returns when the lines are on the disk.
    pub fn sync(&mut self) -> Result<()> {
        self.file.sync_all().map_err(Error::io(&self.path))
    }
}

fn line(metrics: &Metrics) -> std::io::Result<String> {
    Ok(serde_json::to_string(metrics)?)
}

/// The first and the last sixth of a run's steps: at least one step each, where there is one.
pub fn ends(metrics: &[Metrics]) -> (&[Metrics], &[Metrics]) {
    let sixth = (metrics.len() / 6).max(1).min(metrics.len());
    (&metrics[..sixth], &metrics[metrics.len() - sixth..])
}

/// Crops per second over all of these steps.
pub fn crops_per_s(metrics: &[Metrics]) -> f64 {
    metrics.len() as f64 / metrics.iter().map(|m| m.weight("crops_per_s")).sum::<f64>()
}

/// A file with these lines in place of what was there, open for more.
fn replace(path: &Path, lines: &[Metrics]) -> Result<File> {
    let partial = path.with_extension("partial");
    let write = || {
        let mut file = File::create(&partial)?;
        for metrics in lines {
            writeln!(file, "{}", line(metrics)?)?;
        }
        std::fs::rename(&partial, path)?;
        Ok(file)
    };
    write().map_err(Error::io(path))
}

/// Share of rows of `logits` `[V, S, K]` whose first largest entry is at the place of the first largest entry of `labels`.
pub fn position_top1(logits: &Tensor, labels: &Tensor) -> Result<f64> {
    let bases = logits.channels();
    let (logits, labels) = (logits.to_f64_vec()?, labels.to_f64_vec()?);
    let rows = logits.chunks(bases).zip(labels.chunks(bases));
    let hits = rows.clone().filter(|(l, y)| first_largest(l) == first_largest(y)).count();
    Ok(hits as f64 / rows.len().max(1) as f64)
}

/// Pearson's correlation of all `logits` with all `labels` `[V, S, K]`; 0 where one of them is constant.
pub fn position_correlation(logits: &Tensor, labels: &Tensor) -> Result<f64> {
    let centred = |t: &Tensor| -> Result<Vec<f64>> {
        let values = t.to_f64_vec()?;
        let mean = values.iter().sum::<f64>() / values.len() as f64;
        Ok(values.iter().map(|v| v - mean).collect())
    };
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let (l, y) = (centred(logits)?, centred(labels)?);
    let scale = (dot(&l, &l) * dot(&y, &y)).sqrt();
    Ok(if scale == 0.0 { 0.0 } else { dot(&l, &y) / scale })
}

fn first_largest(values: &[f64]) -> usize {
    let mut best = 0;
    for (i, v) in values.iter().enumerate() {
        if *v > values[best] {
            best = i;
        }
    }
    best
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A step of a healthy run whose loss is `loss`.
    pub(crate) fn metrics(step: u64, loss: f64) -> Metrics {
        Metrics {
            step,
            loss,
            intra: 0.8 * loss,
            inter: 0.1 * loss,
            reg: 0.1 * loss,
            lr: 1e-4,
            grad_norm: 2.0,
            loss_scale: Some(65536.0),
            crops_per_s: 11.0,
            data_wait: 0.25,
            position_top1: 0.5,
            base_cosine: Some(0.125),
            position_correlation: Some(0.25),
        }
    }

    #[test]
    fn scalars_are_the_fields_of_a_line() {
        let metrics = metrics(3, 1.5);
        let mut want = serde_json::Map::from_iter([("step".to_string(), 3.into())]);
        want.extend(metrics.scalars().map(|(name, value)| (name.to_string(), value.into())));
        assert_eq!(serde_json::to_value(metrics).expect("JSON"), serde_json::Value::Object(want));
    }

    /// The 22 crops of a step in a second, but of every fifth in a hundred, 99 of which are spent waiting.
    pub(crate) fn stalling() -> Vec<Metrics> {
        let stalls = |step: u64| step.is_multiple_of(5);
        let rates = |step| if stalls(step) { (0.22, 0.99) } else { (22.0, 0.0) };
        (1..=75)
            .map(|step| {
                let (crops_per_s, data_wait) = rates(step);
                Metrics { crops_per_s, data_wait, ..metrics(step, 1.0) }
            })
            .collect()
    }

    #[test]
    fn crops_per_second_are_all_crops_over_all_seconds() {
        assert!((crops_per_s(&stalling()) - 5.0 * 22.0 / 104.0).abs() < 1e-12);
        assert!(crops_per_s(&[Metrics { crops_per_s: 0.0, ..metrics(1, 1.0) }]) < 1e-6);
    }

    #[test]
    fn a_step_that_was_left_out_is_read() {
        let skipped = Metrics { grad_norm: f64::INFINITY, ..metrics(3, 1.5) };
        assert_eq!(serde_json::from_str::<Metrics>(&line(&skipped).expect("line")).expect("read"), skipped);
    }

    #[test]
    fn lines_without_base_cosine_are_read() {
        let old = Metrics { base_cosine: None, ..metrics(3, 1.5) };
        let line = line(&old).expect("line");
        assert!(!line.contains("base_cosine"));
        assert_eq!(serde_json::from_str::<Metrics>(&line).expect("read"), old);
    }

    #[test]
    fn correlation_is_pearsons() {
        let correlation = |l: &[f32], y: &[f32]| {
            let [l, y] = [l, y].map(|v| Tensor::from_slice(v, &[1, 1, 4]).expect("tensor"));
            position_correlation(&l, &y).expect("correlation")
        };
        let y = [0.0, 0.25, 0.25, 0.5];
        assert!((correlation(&[0.5, 0.75, 0.75, 1.0], &y) - 1.0).abs() < 1e-12);
        assert!((correlation(&[1.0, 0.5, 0.5, 0.0], &y) + 1.0).abs() < 1e-12);
        // centred: -2, 1, 0, 1 and -2, 0, 0, 2, in eighths
        assert!((correlation(&[0.0, 0.375, 0.25, 0.375], &y) - 6.0 / 48f64.sqrt()).abs() < 1e-12);
        assert_eq!(correlation(&[0.3; 4], &y), 0.0);
    }

    #[test]
    fn top1_counts_rows_whose_maxima_coincide() {
        let logits = Tensor::from_slice(&[0.1f32, 0.9, 0.0, 0.4, 0.3, 0.2], &[1, 2, 3]).expect("logits");
        let labels = Tensor::from_slice(&[0.0f32, 0.5, 0.5, 0.1, 0.2, 0.7], &[1, 2, 3]).expect("labels");
        assert_eq!(position_top1(&logits, &labels).expect("top1"), 0.5);
    }
}
