//! The scalar types of CPU kernels: what they compute in, f32, and f64 for gradient checks; and what tensors store.

use crate::simd;
use engine::{Element, bf16};

/// f32 or f64.
pub trait Real:
    Stored<Real = Self> + num_traits::Float + num_traits::FloatConst + std::iter::Sum + std::ops::AddAssign
{
    fn of(v: f64) -> Self {
        <Self as Element>::from_f64(v)
    }
}

impl Real for f32 {}
impl Real for f64 {}

/// f32, f64, or bf16, which is computed with in f32 and rounded once, where it is stored.
pub trait Stored: Element {
    type Real: Real;
    fn widen(self) -> Self::Real;
    /// To the nearest value, ties to even; NaN stays NaN.
    fn narrow(v: Self::Real) -> Self;
    /// All of `row` to compute with: itself where that is possible, else widened into `scratch`, which is as long.
    fn wide<'a>(row: &'a [Self], scratch: &'a mut [Self::Real]) -> &'a [Self::Real];
}

impl Stored for f32 {
    type Real = f32;
    #[inline(always)]
    fn widen(self) -> f32 {
        self
    }
    #[inline(always)]
    fn narrow(v: f32) -> f32 {
        v
    }
    #[inline(always)]
    fn wide<'a>(row: &'a [f32], _: &'a mut [f32]) -> &'a [f32] {
        row
    }
}

impl Stored for f64 {
    type Real = f64;
    #[inline(always)]
    fn widen(self) -> f64 {
        self
    }
    #[inline(always)]
    fn narrow(v: f64) -> f64 {
        v
    }
    #[inline(always)]
    fn wide<'a>(row: &'a [f64], _: &'a mut [f64]) -> &'a [f64] {
        row
    }
}

impl Stored for bf16 {
    type Real = f32;
    #[inline(always)]
    fn widen(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }
    /// Without branches, so that loops become vectors.
    #[inline(always)]
    fn narrow(v: f32) -> bf16 {
        let bits = v.to_bits();
        let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1));
        let quiet = bits | 0x40_0000;
        bf16::from_bits(((if v.is_nan() { quiet } else { rounded }) >> 16) as u16)
    }
    #[inline(always)]
    fn wide<'a>(row: &'a [bf16], scratch: &'a mut [f32]) -> &'a [f32] {
        simd::widen(row, scratch);
        scratch
    }
}
