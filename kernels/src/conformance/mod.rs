//! Whether a GPU does what the wrappers of `kernels/cuda/device.cuh` are taken to do: each is fed random inputs, and what comes out
//! is compared with plain code on the host, which is the emulator's meaning of the same wrapper.
//!
//! Moves, conversions, votes and IEEE arithmetic must be right to the bit; NaN may be any NaN. What hardware may round otherwise
//! has a bound: `ex2` and the library's functions the units in the last place that CUDA states, `mma` one lost unit of a 24-bit
//! sum for each term, whose order and alignment are the tensor core's own.

mod checks;
mod cuda;
mod host;

use engine::{Device, Result};

/// What came of one check.
#[derive(Clone, Debug, PartialEq)]
pub struct Verdict {
    pub name: &'static str,
    /// What was compared, and how much of it was wrong.
    pub values: usize,
    pub wrong: usize,
    /// The largest share of its bound that a value used, of those that have one; NaN counts as infinity.
    pub worst: Option<f64>,
    /// The first wrong value: where, what, and what it should be.
    pub first: Option<String>,
}

/// What an output word must be.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Want {
    /// These bits.
    Bits(u32),
    /// This f32 to the bit, or any NaN for NaN.
    Value(f32),
    /// An f32 at most so far from a value.
    Near(f64, f64),
    /// NaN or an infinity.
    NotFinite,
}

/// All checks on a CUDA device, in order, each when it is asked for. An error is of a kernel that cannot be launched or fails.
pub fn run(device: Device, seed: u64) -> impl Iterator<Item = Result<Verdict>> {
    checks::ALL.iter().map(move |(name, check)| check(device, seed).map(|pairs| judge(name, &pairs)))
}

/// Pairs of what came out and what should have.
fn judge(name: &'static str, pairs: &[(u32, Want)]) -> Verdict {
    let mut verdict = Verdict { name, values: pairs.len(), wrong: 0, worst: None, first: None };
    for (i, &(word, want)) in pairs.iter().enumerate() {
        let (got, right) = (f32::from_bits(word), share(word, want));
        if matches!(want, Want::Near(..)) {
            verdict.worst = Some(verdict.worst.unwrap_or(0.0).max(right));
        }
        if right > 1.0 {
            verdict.wrong += 1;
            verdict.first.get_or_insert_with(|| format!("value {i} is {word:#010x} ({got:e}), expected {want:x?}"));
        }
    }
    verdict
}

/// How much of its bound the word uses: over 1 is wrong.
fn share(word: u32, want: Want) -> f64 {
    let got = f32::from_bits(word);
    let exact = |right: bool| if right { 0.0 } else { f64::INFINITY };
    match want {
        Want::Bits(bits) => exact(word == bits),
        Want::Value(value) => exact(word == value.to_bits() || got.is_nan() && value.is_nan()),
        Want::Near(value, _) if f64::from(got) == value => 0.0,
        Want::Near(value, within) => {
            let share = (f64::from(got) - value).abs() / within;
            if share.is_nan() { f64::INFINITY } else { share }
        }
        Want::NotFinite => exact(!got.is_finite()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrong_words_are_counted_and_the_first_is_shown() {
        let (one, nan) = (1.0f32.to_bits(), f32::NAN.to_bits());
        let right = [
            (7, Want::Bits(7)),
            (nan | 5, Want::Value(f32::NAN)),
            (one, Want::Near(1.1, 0.2)),
            (f32::INFINITY.to_bits(), Want::Near(f64::INFINITY, 0.0)),
            (nan, Want::NotFinite),
            (f32::NEG_INFINITY.to_bits(), Want::NotFinite),
        ];
        let verdict = judge("right", &right);
        assert_eq!((verdict.values, verdict.wrong, verdict.first), (6, 0, None));
        assert!((verdict.worst.expect("a bound") - 0.5).abs() < 1e-12);
        let wrong = [
            (one, Want::Near(1.3, 0.2)),
            (nan, Want::Near(1.0, 0.2)),
            ((-0.0f32).to_bits(), Want::Value(0.0)),
            (one, Want::Value(f32::NAN)),
            (6, Want::Bits(7)),
            (one, Want::NotFinite),
        ];
        let verdict = judge("wrong", &wrong);
        assert_eq!((verdict.wrong, verdict.worst), (6, Some(f64::INFINITY)));
        assert!(verdict.first.is_some_and(|first| first.starts_with("value 0 is 0x3f800000 (1e0), expected Near")));
    }
}
