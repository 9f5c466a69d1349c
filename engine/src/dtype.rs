//! Element types, known at run time.

use half::{bf16, f16};
use std::fmt;

/// The type of a tensor's elements. `F64` exists for gradient checks, on the CPU only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DType {
    F32,
    BF16,
    F16,
    I32,
    U8,
    F64,
}

impl DType {
    /// Bytes of one element.
    pub fn size(self) -> usize {
        match self {
            DType::U8 => 1,
            DType::BF16 | DType::F16 => 2,
            DType::F32 | DType::I32 => 4,
            DType::F64 => 8,
        }
    }

    pub fn is_float(self) -> bool {
        matches!(self, DType::F32 | DType::BF16 | DType::F16 | DType::F64)
    }

    /// Whether it is one of the floats of 16 bits, beside which sums, statistics and masters are kept in f32.
    pub fn is_half(self) -> bool {
        matches!(self, DType::BF16 | DType::F16)
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            DType::F32 => "f32",
            DType::BF16 => "bf16",
            DType::F16 => "f16",
            DType::I32 => "i32",
            DType::U8 => "u8",
            DType::F64 => "f64",
        })
    }
}

/// A Rust type that a tensor can hold.
pub trait Element: bytemuck::Pod + Send + Sync + PartialEq + fmt::Debug {
    const DTYPE: DType;
    fn to_f64(self) -> f64;
    /// Rounds to the nearest value of this type, those of 16 bits through f32: a value that f32 rounds to the middle of two goes to
    /// the even one, whatever side it came from. Integers saturate and drop the fraction.
    fn from_f64(v: f64) -> Self;
}

macro_rules! element {
    ($($t:ty => $d:ident, $to:expr, $from:expr;)*) => {$(
        impl Element for $t {
            const DTYPE: DType = DType::$d;
            fn to_f64(self) -> f64 { $to(self) }
            fn from_f64(v: f64) -> Self { $from(v) }
        }
    )*};
}
element! {
    f32 => F32, f64::from, |v| v as f32;
    f64 => F64, |v| v, |v| v;
    bf16 => BF16, bf16::to_f64, |v: f64| bf16::from_f32(v as f32);
    // half's own from_f64 rounds once on some machines, and twice on others
    f16 => F16, f16::to_f64, |v: f64| f16::from_f32(v as f32);
    i32 => I32, f64::from, |v| v as i32;
    u8 => U8, f64::from, |v| v as u8;
}
