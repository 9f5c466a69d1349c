//! What is known about each step, one JSON object a line.

use crate::{Error, Result};
use engine::Tensor;
use serde::Serialize;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
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
    file: BufWriter<File>,
}

impl MetricsFile {
    pub fn create(path: &Path) -> Result<Self> {
        let file = File::create(path).map_err(Error::io(path))?;
        Ok(MetricsFile { path: path.to_path_buf(), file: BufWriter::new(file) })
    }

    pub fn write(&mut self, metrics: &Metrics) -> Result<()> {
        let line = serde_json::to_string(metrics).map_err(std::io::Error::from).map_err(Error::io(&self.path))?;
        writeln!(self.file, "{line}").and_then(|()| self.file.flush()).map_err(Error::io(&self.path))
    }
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
