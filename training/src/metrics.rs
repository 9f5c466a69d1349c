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
    pub grad_norm: f64,
    pub crops_per_s: f64,
    /// Share of the step's time spent waiting for the loader.
    pub data_wait: f64,
    /// Share of random crops whose largest predicted overlap is with the base of largest true overlap.
    pub position_top1: f64,
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
            let detail =
                format!("{}: {} of {steps} steps are readable; it will have a gap", path.display(), kept.len());
            return Err(Error::Config(detail));
        }
        let mut metrics =
            MetricsFile { path: path.to_path_buf(), file: replace(path, &kept)?, unwritten: String::new() };
        metrics.sync()?;
        Ok((metrics, kept))
    }

    /// Appends a line, which stays in memory when the disk has no room for it; whether it was written.
    pub fn write(&mut self, metrics: &Metrics) -> Result<bool> {
        self.unwritten += &(line(metrics).map_err(Error::io(&self.path))? + "\n");
        let start = self.file.stream_position().map_err(Error::io(&self.path))?;
        match self.file.write_all(self.unwritten.as_bytes()) {
            Ok(()) => self.unwritten.clear(),
            Err(e) if e.kind() == ErrorKind::StorageFull => {
                self.file
                    .set_len(start)
                    .and_then(|()| self.file.seek(SeekFrom::Start(start)))
                    .map_err(Error::io(&self.path))?;
            }
            Err(e) => return Err(Error::io(&self.path)(e)),
        }
        Ok(self.unwritten.is_empty())
    }

    /// Returns when the lines are on the disk.
    pub fn sync(&mut self) -> Result<()> {
        self.file.sync_all().map_err(Error::io(&self.path))
    }
}

fn line(metrics: &Metrics) -> std::io::Result<String> {
    Ok(serde_json::to_string(metrics)?)
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
mod tests {
    use super::*;

    #[test]
    fn top1_counts_rows_whose_maxima_coincide() {
        let logits = Tensor::from_slice(&[0.1f32, 0.9, 0.0, 0.4, 0.3, 0.2], &[1, 2, 3]).expect("logits");
        let labels = Tensor::from_slice(&[0.0f32, 0.5, 0.5, 0.1, 0.2, 0.7], &[1, 2, 3]).expect("labels");
        assert_eq!(position_top1(&logits, &labels).expect("top1"), 0.5);
    }
}
