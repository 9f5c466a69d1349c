//! Learning rates.

use std::f64::consts::PI;

/// The share of the base learning rate at `step` (from 0): linear to 1 over `warmup` steps, then half a cosine down to 0 at
/// `total`. The first step is taken with rate 0, as in the published recipe.
pub fn warmup_cosine(step: u64, warmup: u64, total: u64) -> f64 {
    if step < warmup {
        return step as f64 / warmup as f64;
    }
    let progress = (step - warmup) as f64 / total.saturating_sub(warmup).max(1) as f64;
    (0.5 * (1.0 + (PI * progress).cos())).max(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rises_then_falls_to_zero() {
        assert_eq!(warmup_cosine(0, 5_000, 2_000_000), 0.0);
        assert_eq!(warmup_cosine(2_500, 5_000, 2_000_000), 0.5);
        assert_eq!(warmup_cosine(5_000, 5_000, 2_000_000), 1.0);
        assert!((warmup_cosine(1_002_500, 5_000, 2_000_000) - 0.5).abs() < 1e-12);
        assert!(warmup_cosine(2_000_000, 5_000, 2_000_000).abs() < 1e-12);
    }

    #[test]
    fn needs_no_warmup_and_survives_short_runs() {
        assert_eq!(warmup_cosine(0, 0, 10), 1.0);
        assert_eq!(warmup_cosine(3, 3, 3), 1.0);
        assert_eq!(warmup_cosine(4, 3, 3), 0.0);
    }
}
