//! How long a call takes.

use crate::bench::quantile;
use engine::{Device, Result, cuda};
use std::time::Instant;

/// Calls are timed in batches of this many seconds at least, so that starting the clock does not count.
const BATCH: f64 = 1e-3;
/// A case is timed for this long, in at least `LEAST` batches; a slow one in at least `FEWEST` within `LONG`.
const ENOUGH: f64 = 0.2;
const LONG: f64 = 2.0;
const LEAST: usize = 5;
const FEWEST: usize = 3;
const MOST: usize = 50;

/// Of one call.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Timing {
    /// The median of the batches.
    pub seconds: f64,
    /// The fastest of them.
    pub fastest: f64,
    /// The distance between their quartiles, as a share of the median.
    pub spread: f64,
    pub batches: usize,
}

/// Times `call`, after one that is not timed. On a GPU by its own clock, which counts what it waits for the launches between.
pub fn measure(device: Device, mut call: impl FnMut() -> Result<()>) -> Result<Timing> {
    call()?;
    let once = batch(device, 1, &mut call)?;
    let calls = (BATCH / once).ceil().clamp(1.0, 1000.0) as usize;
    let (mut times, started) = (Vec::new(), Instant::now());
    while wants_more(times.len(), started.elapsed().as_secs_f64()) {
        times.push(batch(device, calls, &mut call)? / calls as f64);
    }
    Ok(summary(times))
}

fn wants_more(batches: usize, elapsed: f64) -> bool {
    batches < FEWEST || batches < LEAST && elapsed < LONG || batches < MOST && elapsed < ENOUGH
}

fn batch(device: Device, calls: usize, call: &mut impl FnMut() -> Result<()>) -> Result<f64> {
    let mut all = || (0..calls).try_for_each(|_| call());
    if let Device::Cuda(_) = device {
        return cuda::elapsed(device, all);
    }
    let started = Instant::now();
    all()?;
    Ok(started.elapsed().as_secs_f64())
}

fn summary(mut times: Vec<f64>) -> Timing {
    times.sort_by(f64::total_cmp);
    let at = |share| quantile(&times, share);
    let seconds = at(0.5);
    Timing { seconds, fastest: at(0.0), spread: (at(0.75) - at(0.25)) / seconds, batches: times.len() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_and_the_quartiles_are_taken() {
        let timing = summary(vec![5.0, 1.0, 2.0, 4.0, 100.0]);
        assert_eq!(timing, Timing { seconds: 4.0, fastest: 1.0, spread: 0.75, batches: 5 });
        assert_eq!(summary(vec![2.0, 1.0, 3.0]).spread, 0.5);
    }

    #[test]
    fn short_calls_are_repeated_and_errors_end_it() {
        let mut calls = 0;
        let count = || {
            calls += 1;
            Ok(())
        };
        let timing = measure(Device::Cpu, count).expect("timing");
        assert!(timing.seconds < 1e-4 && timing.batches >= LEAST && calls > timing.batches, "{timing:?} {calls}");
        assert!(measure(Device::Cpu, || Err(engine::Error::invalid("op", "no"))).is_err());
    }
}
