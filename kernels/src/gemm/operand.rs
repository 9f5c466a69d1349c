//! What products multiply: f32, or bf16 in pairs. Packed factors are lanes of 32 bits, each of one f32 or of two bf16 that the sum
//! takes one after the other, and the tiles work on lanes.

use crate::simd::{self, Lane, Level, Vector};
use engine::bf16;

/// # Safety
/// Methods on vectors as for [`Vector`]; the pointers must be valid for the values that are read, at any alignment.
#[allow(clippy::missing_safety_doc)] // stated once, above, for all methods
pub trait Operand: Lane {
    /// Values in a lane.
    const PER_LANE: usize;

    /// Whether an instruction of this CPU multiplies all values of its lanes: then twice as many of bf16 as of f32.
    fn multiplies_pairs() -> bool;

    /// Lanes for a sum over so many values; what the last one lacks is zero.
    fn lanes(values: usize) -> usize {
        values.div_ceil(Self::PER_LANE)
    }

    /// Lanes from PER_LANE rows, which take turns in each lane.
    fn join(rows: [&[Self]; 2], lanes: &mut [f32]);

    /// The values at `p`, a lane of them.
    unsafe fn lane(p: *const Self) -> f32;
    /// A lane that has the value at `p` alone.
    unsafe fn lone(p: *const Self) -> f32;
    /// `sum + a · b`, over all values of a lane.
    unsafe fn multiply_add<V: Vector>(a: V, b: V, sum: V) -> V;
}

impl Operand for f32 {
    const PER_LANE: usize = 1;

    fn multiplies_pairs() -> bool {
        false
    }

    #[inline(always)]
    fn join([row, _]: [&[f32]; 2], lanes: &mut [f32]) {
        lanes.copy_from_slice(row);
    }
    #[inline(always)]
    unsafe fn lane(p: *const f32) -> f32 {
        unsafe { p.read_unaligned() }
    }
    #[inline(always)]
    unsafe fn lone(p: *const f32) -> f32 {
        unsafe { p.read_unaligned() }
    }
    #[inline(always)]
    unsafe fn multiply_add<V: Vector>(a: V, b: V, sum: V) -> V {
        unsafe { a.fma(b, sum) }
    }
}

impl Operand for bf16 {
    const PER_LANE: usize = 2;

    fn multiplies_pairs() -> bool {
        simd::level() >= Level::Avx512Bf16
    }

    #[inline(always)]
    fn join([low, high]: [&[bf16]; 2], lanes: &mut [f32]) {
        for ((lane, low), high) in lanes.iter_mut().zip(low).zip(high) {
            *lane = f32::from_bits(u32::from(low.to_bits()) | u32::from(high.to_bits()) << 16);
        }
    }
    #[inline(always)]
    unsafe fn lane(p: *const bf16) -> f32 {
        unsafe { p.cast::<f32>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn lone(p: *const bf16) -> f32 {
        f32::from_bits(u32::from(unsafe { p.read_unaligned() }.to_bits()))
    }
    #[inline(always)]
    unsafe fn multiply_add<V: Vector>(a: V, b: V, sum: V) -> V {
        unsafe { a.dot(b, sum) }
    }
}
