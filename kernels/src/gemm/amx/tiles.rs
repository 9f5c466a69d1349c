//! Sums of products of matrices in the tile registers.

#[cfg(test)]
pub use super::emulated::Tiles;
#[cfg(not(test))]
pub use super::registers::Tiles;
use crate::simd::Vector;

/// Rows of a tile.
pub const ROWS: usize = 16;
/// Lanes in a row of a tile: of f32, or of two bf16.
pub const LANES: usize = 16;
/// Values of bf16 in a row of a tile.
pub const VALUES: usize = 2 * LANES;

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
