//! Number formats and the exchanges of a warp in plain code.

/// The multiple of a format's unit nearest to `value`: `digits` significant bits, the unit of exponent `least` below it.
fn rounded(value: f32, digits: i32, least: i32, ties_to_even: bool) -> f64 {
    let wide = f64::from(value);
    if wide == 0.0 || !wide.is_finite() {
        return wide;
    }
    // every f32 is a normal f64
    let exponent = ((wide.to_bits() >> 52 & 0x7ff) as i32 - 1023).max(least);
    let unit = 2f64.powi(exponent - digits + 1);
    let count = wide / unit;
    unit * if ties_to_even { count.round_ties_even() } else { count.round() }
}

/// 8 significant bits, f32's exponents.
pub fn bf16(value: f32) -> u32 {
    if value.is_nan() {
        return 0x7fff;
    }
    (rounded(value, 8, -126, true) as f32).to_bits() >> 16
}

/// 11 significant bits, exponents from -14 to 15.
pub fn f16(value: f32) -> u32 {
    if value.is_nan() {
        return 0x7fff;
    }
    let (sign, size) = (u32::from(value.is_sign_negative()) << 15, rounded(value, 11, -14, true).abs());
    let exponent = (size.to_bits() >> 52) as i32 - 1023;
    sign | match exponent {
        16.. => 0x7c00,
        -14.. => (exponent + 14) as u32 * 1024 + (size * 2f64.powi(10 - exponent)) as u32,
        _ => (size * 2f64.powi(24)) as u32,
    }
}

/// 11 significant bits, f32's exponents, ties away from zero.
pub fn tf32(value: f32) -> f32 {
    rounded(value, 11, -126, false) as f32
}

pub fn from_bf16(bits: u32) -> f32 {
    f32::from_bits(bits << 16)
}

pub fn from_f16(bits: u32) -> f32 {
    let (sign, exponent, mantissa) = (bits >> 15 & 1, (bits >> 10 & 31) as i32, f64::from(bits & 1023));
    let size = match exponent {
        31 if mantissa != 0.0 => f64::NAN,
        31 => f64::INFINITY,
        0 => mantissa * 2f64.powi(-24),
        _ => (1024.0 + mantissa) * 2f64.powi(exponent - 25),
    };
    (if sign == 1 { -size } else { size }) as f32
}

/// What every lane has after `combine` over groups of `width` lanes, halves of a group first.
pub fn butterfly(lanes: &[f32], width: usize, combine: fn(f32, f32) -> f32) -> Vec<f32> {
    let (mut lanes, mut step) = (lanes.to_vec(), width / 2);
    while step > 0 {
        lanes = (0..lanes.len()).map(|lane| combine(lanes[lane], lanes[lane ^ step])).collect();
        step /= 2;
    }
    lanes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_of_a_format_is_itself_and_ties_go_where_they_should() {
        for bits in 0..0x10000 {
            if !from_bf16(bits).is_nan() {
                assert_eq!(bf16(from_bf16(bits)), bits);
            }
            if !from_f16(bits).is_nan() {
                assert_eq!(f16(from_f16(bits)), bits);
            }
        }
        assert_eq!([bf16(1.0 + 2f32.powi(-8)), bf16(1.0 + 3.0 * 2f32.powi(-8))], [0x3f80, 0x3f82]);
        assert_eq!([f16(1.0 + 2f32.powi(-11)), f16(1.0 + 3.0 * 2f32.powi(-11))], [0x3c00, 0x3c02]);
        assert_eq!(
            [f16(65519.9), f16(65520.0), f16(2f32.powi(-25)), f16(-2f32.powi(-24))],
            [0x7bff, 0x7c00, 0, 0x8001]
        );
        assert_eq!(tf32(1.0 + 2f32.powi(-11)), 1.0 + 2f32.powi(-10));
        assert_eq!([tf32(f32::MAX), tf32(-0.0)].map(f32::to_bits), [f32::INFINITY.to_bits(), 0x8000_0000]);
        assert_eq!(bf16(f32::MAX), 0x7f80);
    }
}
