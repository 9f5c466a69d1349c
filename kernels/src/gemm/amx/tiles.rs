//! The tile registers. What one function puts there the next one finds: no code that a compiler makes for CPUs of this project's levels
//! touches them, and instructions of `asm!` keep their order.

use crate::simd::Vector;
use std::arch::asm;
use std::marker::PhantomData;

/// Rows of a tile.
pub const ROWS: usize = 16;
/// Lanes in a row of a tile: of f32, or of two bf16.
pub const LANES: usize = 16;
/// Values of bf16 in a row of a tile.
pub const VALUES: usize = 2 * LANES;

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

/// Products of tiles without memory, four in a round; returns how many floating-point operations they were.
///
/// # Safety
/// As for [`Tiles::new`].
pub unsafe fn multiply_tiles(rounds: usize) -> f64 {
    // SAFETY: the caller's.
    unsafe {
        let tiles = Tiles::new();
        for _ in 0..rounds {
            tiles.dot::<0, 4, 6>();
            tiles.dot::<1, 4, 7>();
            tiles.dot::<2, 5, 6>();
            tiles.dot::<3, 5, 7>();
        }
    }
    (4 * 2 * ROWS * LANES * VALUES * rounds) as f64
}

/// A sum of products of two matrices, of which one is rows and the other pairs of rows: `c[i][j] += sum over k of a[i][k] * b[k][j]`.
#[derive(Clone, Copy)]
pub struct Sum {
    /// Rows of `depth` tiles; bytes between them.
    pub a: *const f32,
    pub a_step: usize,
    /// Pairs of rows, so many tiles of them.
    pub b: *const f32,
    pub b_step: usize,
    /// Rows of f32.
    pub c: *mut f32,
    pub c_step: usize,
    pub depth: usize,
    /// Add to what `c` holds, or write it for the first time.
    pub add: bool,
}

impl Sum {
    /// `rows` and `columns` are counted in tiles. Each block is summed on its own and then added, so that the rounding error of a long
    /// sum stays near that of its last additions.
    ///
    /// # Safety
    /// As for [`Vector`]. `a` must have `rows` tiles of rows, each `depth` tiles long; `b` as many pairs of rows as `depth` tiles have,
    /// each `columns` tiles long; and `c`, which this thread alone writes, `rows` by `columns` tiles.
    #[inline(always)]
    pub unsafe fn run<V: Vector>(self, tiles: &Tiles, rows: usize, columns: usize) {
        for i in (0..rows).step_by(2) {
            for j in (0..columns).step_by(2) {
                // SAFETY: the caller's.
                unsafe {
                    let part = Sum {
                        a: self.a.byte_add(i * ROWS * self.a_step),
                        b: self.b.add(j * LANES),
                        c: self.c.byte_add(i * ROWS * self.c_step).add(j * LANES),
                        ..self
                    };
                    match (rows - i, columns - j) {
                        (1, 1) => part.block::<V, 1, 1>(tiles),
                        (1, _) => part.block::<V, 1, 2>(tiles),
                        (_, 1) => part.block::<V, 2, 1>(tiles),
                        (_, _) => part.block::<V, 2, 2>(tiles),
                    }
                }
            }
        }
    }

    /// M by N tiles of sums in registers 0 to 3.
    #[inline(always)]
    unsafe fn block<V: Vector, const M: usize, const N: usize>(self, tiles: &Tiles) {
        // SAFETY: the caller's.
        unsafe {
            tiles.zero::<0>();
            tiles.zero::<1>();
            tiles.zero::<2>();
            tiles.zero::<3>();
            for k in 0..self.depth {
                let a = self.a.add(k * LANES);
                let b = self.b.byte_add(k * ROWS * self.b_step);
                tiles.load::<4>(a, self.a_step);
                tiles.load::<6>(b, self.b_step);
                tiles.dot::<0, 4, 6>();
                if N > 1 {
                    tiles.load::<7>(b.add(LANES), self.b_step);
                    tiles.dot::<1, 4, 7>();
                }
                if M > 1 {
                    tiles.load::<5>(a.byte_add(ROWS * self.a_step), self.a_step);
                    tiles.dot::<2, 5, 6>();
                    if N > 1 {
                        tiles.dot::<3, 5, 7>();
                    }
                }
            }
            let below = self.c.wrapping_byte_add(ROWS * self.c_step);
            self.put::<V, 0>(tiles, self.c);
            if N > 1 {
                self.put::<V, 1>(tiles, self.c.add(LANES));
            }
            if M > 1 {
                self.put::<V, 2>(tiles, below);
            }
            if M > 1 && N > 1 {
                self.put::<V, 3>(tiles, below.add(LANES));
            }
        }
    }

    /// A tile of sums to its place in c.
    #[inline(always)]
    unsafe fn put<V: Vector, const T: u8>(&self, tiles: &Tiles, c: *mut f32) {
        // SAFETY: the caller's.
        unsafe {
            if !self.add {
                return tiles.store::<T>(c, self.c_step);
            }
            let mut sums = Aligned([[0.0f32; LANES]; ROWS]);
            tiles.store::<T>(sums.0.as_mut_ptr().cast(), size_of::<[f32; LANES]>());
            for (i, sums) in sums.0.iter().enumerate() {
                for j in (0..LANES).step_by(V::LANES) {
                    let c = c.byte_add(i * self.c_step).add(j);
                    V::load(c).add(V::load(sums.as_ptr().add(j))).store(c);
                }
            }
        }
    }
}

/// Rows that are lines of the caches.
#[repr(align(64))]
struct Aligned([[f32; LANES]; ROWS]);
