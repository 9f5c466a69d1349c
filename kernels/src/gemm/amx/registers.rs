//! The tile registers. What one function puts there the next one finds: no code that a compiler makes for CPUs of this project's levels
//! touches them, and instructions of `asm!` keep their order.

use std::arch::asm;
use std::marker::PhantomData;

/// This thread's tile registers, eight of 16 rows of 64 bytes, while it lives.
pub struct Tiles(PhantomData<*const ()>);

/// What LDTILECFG reads: palette 1, and for each tile its bytes to a row and its rows.
#[repr(C, align(64))]
struct Shapes {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

static SHAPES: Shapes = Shapes {
    palette: 1,
    start_row: 0,
    reserved: [0; 14],
    row_bytes: [64, 64, 64, 64, 64, 64, 64, 64, 0, 0, 0, 0, 0, 0, 0, 0],
    rows: [16, 16, 16, 16, 16, 16, 16, 16, 0, 0, 0, 0, 0, 0, 0, 0],
};

impl Tiles {
    /// # Safety
    /// The CPU must have AMX and the system must have permitted it: [`crate::simd::has_tiles`]. One at a time on a thread.
    #[inline(always)]
    pub unsafe fn new() -> Tiles {
        // SAFETY: the caller's.
        unsafe { asm!("ldtilecfg [{}]", in(reg) &raw const SHAPES, options(nostack, preserves_flags)) }
        Tiles(PhantomData)
    }

    /// # Safety
    /// T must be below 8, as must all numbers of tiles below.
    #[inline(always)]
    pub unsafe fn zero<const T: u8>(&self) {
        // SAFETY: the caller's.
        unsafe { asm!("tilezero tmm{t}", t = const T, options(nostack, preserves_flags)) }
    }

    /// # Safety
    /// There must be 16 rows of 64 bytes at `from`, `step` bytes apart.
    #[inline(always)]
    pub unsafe fn load<const T: u8>(&self, from: *const f32, step: usize) {
        // SAFETY: the caller's.
        unsafe {
            asm!("tileloadd tmm{t}, [{from} + {step}]", t = const T, from = in(reg) from, step = in(reg) step,
                options(nostack, preserves_flags, readonly))
        }
    }

    /// # Safety
    /// There must be room for 16 rows of 64 bytes at `to`, `step` bytes apart.
    #[inline(always)]
    pub unsafe fn store<const T: u8>(&self, to: *mut f32, step: usize) {
        // SAFETY: the caller's.
        unsafe {
            asm!("tilestored [{to} + {step}], tmm{t}", t = const T, to = in(reg) to, step = in(reg) step,
                options(nostack, preserves_flags))
        }
    }

    /// Tile C (f32, `[i][j]`) += A (bf16, `[i][k]`) · B (pairs of bf16: lane `[k / 2][j]` holds values k and k + 1 of column j).
    ///
    /// # Safety
    /// As for [`Tiles::zero`].
    #[inline(always)]
    pub unsafe fn dot<const C: u8, const A: u8, const B: u8>(&self) {
        // SAFETY: the caller's.
        unsafe {
            asm!("tdpbf16ps tmm{c}, tmm{a}, tmm{b}", c = const C, a = const A, b = const B,
                options(nostack, preserves_flags))
        }
    }
}

impl Drop for Tiles {
    #[inline(always)]
    fn drop(&mut self) {
        // SAFETY: `new` was called, so the instruction is there.
        unsafe { asm!("tilerelease", options(nostack, preserves_flags)) }
    }
}
