//! Counter-based random numbers: the value depends on (seed, index) alone, so any thread may draw any of them.

/// Uniform in [0, 1) with 53 bits: a splitmix64 hash of the counter `index`, offset by `seed`.
pub fn uniform(seed: u64, index: u64) -> f64 {
    (bits(seed, index) >> 11) as f64 / (1u64 << 53) as f64
}

/// 64 uniform bits for (seed, index): the splitmix64 finaliser.
pub fn bits(seed: u64, index: u64) -> u64 {
    let mut z = index.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15).wrapping_add(seed);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// A seed for a sub-stream: folds each word of `path` into `seed`, so (seed, epoch, index) and (seed, index, epoch) differ.
pub fn derive(seed: u64, path: &[u64]) -> u64 {
    path.iter().fold(bits(seed, path.len() as u64), |s, &word| bits(s, word))
}

/// Standard normal for (seed, index), by Box-Muller from two uniforms.
pub fn normal(seed: u64, index: u64) -> f64 {
    let u = 1.0 - uniform(seed, 2 * index); // in (0, 1]
    let v = uniform(seed, 2 * index + 1);
    (-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * v).cos()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uniform_matches_its_golden_values() {
        let want = [0.3898297483912715, 0.01678829452815611, 0.9007606806068834];
        let got = [0, 1, 2].map(|i| uniform(7, i));
        assert_eq!(got, want);
    }

    #[test]
    fn streams_differ_by_order_and_length() {
        let all = [derive(1, &[2, 3]), derive(1, &[3, 2]), derive(1, &[2]), derive(1, &[2, 3, 0]), derive(2, &[2, 3])];
        for (i, a) in all.iter().enumerate() {
            assert!(all[..i].iter().all(|b| a != b));
        }
    }

    #[test]
    fn normal_has_zero_mean_and_unit_variance() {
        let n = 100_000;
        let (mut s, mut q) = (0.0, 0.0);
        for i in 0..n {
            let v = normal(3, i);
            s += v;
            q += v * v;
        }
        let (mean, var) = (s / n as f64, q / n as f64);
        // four standard errors of the mean (1/sqrt n) and of the variance (sqrt(2/n))
        assert!(mean.abs() < 4.0 / (n as f64).sqrt() && (var - 1.0).abs() < 4.0 * (2.0 / n as f64).sqrt());
    }
}
