//! The factor on the loss of a network in fp16: gradients below 6e-8 would be zero there, and are multiplied out of the way.
//!
//! The rules and numbers are those of PyTorch's `GradScaler`: a step whose gradient is not finite is left out and halves the scale,
//! and after 2000 updates in a row it is doubled.

use serde::{Deserialize, Serialize};

const START: f64 = 65536.0;
const GROWTH: f64 = 2.0;
const BACKOFF: f64 = 0.5;
/// Updates in a row, all with one scale, after which it grows.
const INTERVAL: u64 = 2000;
/// The scale below which no overflow is the scale's doing: 65504, the largest number of fp16, over it is 10^9.
const LEAST: f64 = 1.0 / 16384.0;

/// The scale and its history; part of a checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct LossScale {
    /// What the loss of the next step is multiplied by.
    pub scale: f64,
    /// Updates since the scale changed.
    good: u64,
    /// Steps that were left out.
    pub skipped: u64,
}

impl Default for LossScale {
    fn default() -> Self {
        LossScale { scale: START, good: 0, skipped: 0 }
    }
}

impl LossScale {
    /// Whether a gradient that overflows now would do so without a scale too.
    pub(crate) fn is_exhausted(&self) -> bool {
        self.scale < LEAST
    }

    /// Takes note of a step, of whether its update was made.
    pub(crate) fn see(&mut self, updated: bool) {
        if !updated {
            (self.scale, self.good, self.skipped) = (self.scale * BACKOFF, 0, self.skipped + 1);
            return;
        }
        self.good += 1;
        if self.good == INTERVAL {
            // as far as f32 reaches, in which the loss's gradient starts
            (self.scale, self.good) = ((self.scale * GROWTH).min(2f64.powi(127)), 0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The scale after each run of steps with or without an update.
    fn scales(runs: &[(bool, u64)]) -> Vec<f64> {
        let mut scale = LossScale::default();
        let mut after = |&(updated, steps): &(bool, u64)| {
            (0..steps).for_each(|_| scale.see(updated));
            scale.scale
        };
        runs.iter().map(&mut after).collect()
    }

    #[test]
    fn it_halves_at_once_and_doubles_after_two_thousand_updates_in_a_row() {
        assert_eq!(
            scales(&[(true, 1999), (true, 1), (true, 1999), (true, 1)]),
            [65536.0, 131_072.0, 131_072.0, 262_144.0]
        );
        // a step that is left out starts the count anew
        let runs = [(true, 1999), (false, 1), (true, 1999), (true, 1), (false, 3)];
        assert_eq!(scales(&runs), [65536.0, 32768.0, 32768.0, 65536.0, 8192.0]);
        assert_eq!(scales(&[(true, 2000 * 200)]), [2f64.powi(127)]);
    }

    #[test]
    fn a_gradient_that_always_overflows_exhausts_it() {
        let mut scale = LossScale::default();
        (0..30).for_each(|_| scale.see(false));
        assert!(!scale.is_exhausted());
        scale.see(false);
        assert!(scale.is_exhausted());
    }

    #[test]
    fn it_comes_back_from_a_checkpoint() {
        let mut scale = LossScale::default();
        [true, false, true, true].into_iter().for_each(|updated| scale.see(updated));
        let text = serde_json::to_string(&scale).expect("JSON");
        assert_eq!(serde_json::from_str::<LossScale>(&text).expect("read"), scale);
        assert_eq!(scale, LossScale { scale: 32768.0, good: 2, skipped: 1 });
    }
}
