//! Quantisation of intensities in `[0, 1]`: q = round(v·m), back v = q/m, with m = 65535 or 255.

use serde::{Deserialize, Serialize};
use std::str::FromStr;

/// Bits of a voxel: how finely a volume is stored. An intensity comes back within 1/(2·65535), or 1/(2·255), of the window's width, and float32's
/// own rounding.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "u8", try_from = "u8")]
pub enum Bits {
    #[default]
    Eight,
    Sixteen,
}

impl From<Bits> for u8 {
    fn from(bits: Bits) -> u8 {
        match bits {
            Bits::Eight => 8,
            Bits::Sixteen => 16,
        }
    }
}

impl TryFrom<u8> for Bits {
    type Error = &'static str;

    fn try_from(bits: u8) -> Result<Bits, &'static str> {
        match bits {
            8 => Ok(Bits::Eight),
            16 => Ok(Bits::Sixteen),
            _ => Err("use 8 or 16"),
        }
    }
}

impl Bits {
    /// The level that stands for 1.
    pub fn most(self) -> f64 {
        match self {
            Bits::Eight => 255.0,
            Bits::Sixteen => 65535.0,
        }
    }

    /// The level of an intensity in `[0, 1]`.
    pub(super) fn level(self, v: f32) -> u16 {
        (f64::from(v) * self.most()).round() as u16
    }

    /// The intensity of a level.
    pub(super) fn intensity(self, level: u16) -> f32 {
        f32::from(level) / self.most() as f32
    }

    /// Bytes of a level in an entry.
    pub(super) fn bytes(self) -> usize {
        match self {
            Bits::Eight => 1,
            Bits::Sixteen => 2,
        }
    }

    /// What `v` becomes on its way through a cache.
    pub fn round_trip(self, v: f32) -> f32 {
        self.intensity(self.level(v))
    }
}

impl FromStr for Bits {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Ok(text.parse().unwrap_or(0).try_into()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_moves_by_more_than_half_a_level() {
        for bits in [Bits::Eight, Bits::Sixteen] {
            let bound = 0.5 / bits.most() + f64::from(f32::EPSILON) / 4.0; // float32 rounds the quotient by 2⁻²⁵ below 1
            let values = (0..200_000).map(|i| i as f32 / 199_999.0);
            let worst = values.map(|v| (f64::from(bits.round_trip(v)) - f64::from(v)).abs()).fold(0.0, f64::max);
            assert!(worst <= bound && worst > 0.9 * bound, "{bits:?}: {worst} of {bound}");
        }
    }

    #[test]
    fn a_second_trip_changes_nothing() {
        for bits in [Bits::Eight, Bits::Sixteen] {
            for level in 0..=bits.most() as u16 {
                assert_eq!(bits.level(bits.intensity(level)), level);
            }
            assert_eq!([0.0, 1.0].map(|v| bits.round_trip(v)), [0.0, 1.0]);
        }
    }
}
