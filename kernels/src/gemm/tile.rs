//! The two register tiles that do all the arithmetic: a sum over channels and a sum over rows.

use super::operand::Operand;
use crate::simd::{LINE, Lane, MAX_LANES, Vector, will_read, will_write};

/// Most rows of a [`Strip`] tile: lists of row pointers end in this many less one that do not count, for the last tile.
pub const MAX_ROWS: usize = 8;

/// A pointer that units on several threads write through, each its own rows and columns.
#[derive(Clone, Copy)]
pub struct Target<T>(pub *mut T);
// SAFETY: units write disjoint places.
unsafe impl<T> Send for Target<T> {}
unsafe impl<T> Sync for Target<T> {}

/// What tiles ask memory for while they sum, line by line, because they read and write rows too far apart for the CPU to foresee: with
/// each lane that a tile of M rows adds, M lanes from `read` values behind its first row on, and `written` values from `write` behind
/// its first output on. Where there is nothing to ask for, zeros: its own.
#[derive(Clone, Copy, Default)]
pub struct Ahead {
    pub read: usize,
    pub write: usize,
    pub written: usize,
}

/// Arguments of a sum over taps and channels:
/// `c[row][col + j] = start[j] + sum over tap t, channel k of a[t][row][k0 + k] * b[(t * channels + k) * width + j]`, j < n;
/// for S of several values to a lane, `b` has lanes of neighbouring channels in place of single ones.
#[derive(Clone, Copy)]
pub struct Strip<S> {
    /// Row pointers, tap by tap, `a_step` apart; or those of the first tap, where each row's next one is `apart` values further on.
    pub a: *const *const S,
    pub a_step: usize,
    pub apart: usize,
    pub taps: usize,
    pub k0: usize,
    pub channels: usize,
    pub b: *const f32,
    pub width: usize,
    pub c: *const *mut f32,
    /// What the sum is added to, the same for every row; then `c` is of S. Without it, what `c` holds.
    pub start: Option<*const f32>,
    pub col: usize,
    pub n: usize,
    pub ahead: Ahead,
}

impl<S: Operand> Strip<S> {
    /// All `rows` rows in tiles as tall as registers allow.
    ///
    /// # Safety
    /// The row lists must have `rows + MAX_ROWS - 1` valid entries, and `width` must be a multiple of
    /// the widest vector.
    #[inline(always)]
    pub unsafe fn run<V: Vector>(self, rows: usize) {
        let mut strip = self;
        while strip.n > 0 {
            let vectors = vectors::<V>(strip.n);
            let n = strip.n.min(vectors * V::LANES);
            let part = Strip { n, ..strip };
            // SAFETY: as for this function; the accumulators and operands fit 16 registers, or 32 with 16 lanes.
            unsafe {
                match (vectors, V::LANES) {
                    (1, _) => part.rows::<V, 8, 1>(rows),
                    (2, 16) => part.rows::<V, 8, 2>(rows),
                    (3, 16) => part.rows::<V, 8, 3>(rows),
                    (_, _) => part.rows::<V, 6, 2>(rows),
                }
                strip.b = strip.b.add(n);
                strip.start = strip.start.map(|start| start.add(n));
            }
            strip.col += n;
            strip.n -= n;
        }
    }

    #[inline(always)]
    unsafe fn rows<V: Vector, const M: usize, const NV: usize>(self, rows: usize) {
        let mut row = 0;
        // SAFETY: tiles start below `rows` and are at most MAX_ROWS tall.
        unsafe {
            while row < rows {
                if M > 4 && rows - row <= 4 {
                    self.tile::<V, 4, NV>(row);
                    row += 4;
                } else {
                    self.tile::<V, M, NV>(row);
                    row += M;
                }
            }
        }
    }

    #[inline(always)]
    unsafe fn tile<V: Vector, const M: usize, const NV: usize>(&self, row: usize) {
        // SAFETY: the caller vouches for the lists and the width of b; columns from `n` on are computed and dropped.
        unsafe {
            let mut sum = [[V::zero(); NV]; M];
            let mut b = self.b;
            let mut write = (*self.c.add(row)).cast::<S>().wrapping_add(self.ahead.write);
            for t in 0..self.taps {
                let list = self.a.add(t * self.a_step + row);
                let mut a = [std::ptr::null(); M];
                for (i, a) in a.iter_mut().enumerate() {
                    *a = (*list.add(i)).add(self.k0 + t * self.apart);
                }
                let mut read = a[0].wrapping_add(self.ahead.read);
                let whole = self.channels / S::PER_LANE * S::PER_LANE;
                for k in (0..whole).step_by(S::PER_LANE) {
                    will_read(read);
                    will_write(write);
                    read = read.wrapping_add(M * S::PER_LANE);
                    write = write.wrapping_add(self.ahead.written);
                    add_lane::<S, V, M, NV>(&mut sum, |i| S::lane(a[i].add(k)), b);
                    b = b.add(self.width);
                }
                if whole < self.channels {
                    add_lane::<S, V, M, NV>(&mut sum, |i| S::lone(a[i].add(whole)), b);
                    b = b.add(self.width);
                }
            }
            if S::PER_LANE == 1 {
                for (i, sum) in sum.iter().enumerate() {
                    self.write(row + i, sum);
                }
                return;
            }
            // Rounding takes so much code that the compiler does not unroll this loop: sums that it indexed would be kept in memory, and
            // stored by every step of the loops above.
            let mut done = [[[0.0; MAX_LANES]; NV]; M];
            for (done, sum) in done.iter_mut().zip(&sum) {
                for (done, sum) in done.iter_mut().zip(sum) {
                    sum.store(done.as_mut_ptr());
                }
            }
            for (i, done) in done.iter().enumerate() {
                let mut sum = [V::zero(); NV];
                for (sum, done) in sum.iter_mut().zip(done) {
                    *sum = V::load(done.as_ptr());
                }
                self.write(row + i, &sum);
            }
        }
    }

    /// Writes a row of a tile.
    #[inline(always)]
    unsafe fn write<V: Vector, const NV: usize>(&self, row: usize, sum: &[V; NV]) {
        // SAFETY: the caller's.
        unsafe {
            let c = *self.c.add(row);
            match self.start {
                Some(start) => self.put(start, sum, c.cast::<S>().add(self.col)),
                None => self.put(c.add(self.col), sum, c.add(self.col)),
            }
        }
    }
}

impl<S> Strip<S> {
    /// `to[j] = start[j] + sum[j]`, j < n.
    #[inline(always)]
    unsafe fn put<T: Lane, V: Vector, const NV: usize>(&self, start: *const f32, sum: &[V; NV], to: *mut T) {
        // SAFETY: the caller vouches for n values at both.
        unsafe {
            for (j, sum) in sum.iter().enumerate() {
                let (to, start) = (to.add(j * V::LANES), start.add(j * V::LANES));
                if self.n == NV * V::LANES {
                    T::store(V::load(start).add(*sum), to);
                } else {
                    let n = self.n - (j * V::LANES).min(self.n);
                    T::store_first(V::load_first(start, n).add(*sum), to, n);
                }
            }
        }
    }
}

/// Adds the products of one lane of each row, `left(row)`, and the lanes at `b`.
#[inline(always)]
unsafe fn add_lane<S: Operand, V: Vector, const M: usize, const NV: usize>(
    sum: &mut [[V; NV]; M],
    left: impl Fn(usize) -> f32,
    b: *const f32,
) {
    // SAFETY: the caller vouches for NV vectors at b.
    unsafe {
        let mut right = [V::zero(); NV];
        for (j, right) in right.iter_mut().enumerate() {
            *right = V::load(b.add(j * V::LANES));
        }
        for (i, sum) in sum.iter_mut().enumerate() {
            let left = V::splat(left(i));
            for (sum, right) in sum.iter_mut().zip(&right) {
                *sum = S::multiply_add(left, *right, *sum);
            }
        }
    }
}

/// Vectors of the widest tile for so many values that are left.
#[inline(always)]
fn vectors<V: Vector>(values: usize) -> usize {
    values.div_ceil(V::LANES).min(if V::LANES == 16 { 3 } else { 2 })
}

/// One side of a sum over rows.
#[derive(Clone, Copy)]
pub struct Factor {
    pub rows: *const *const f32,
    /// Of a row.
    pub values: usize,
    /// How far behind each row lies one that will be read soon.
    pub ahead: usize,
    /// Where a row is [`PIECE`] pieces of as many values: values from one piece to the next. Otherwise they lie side by side.
    pub apart: Option<usize>,
}

pub const PIECE: usize = 3;

/// Arguments of a sum over rows: `c[i * c_step + j] (+)= sum over r of y[r][i] * x[r][j]` for all values i of y and j of x. A row is
/// lanes: of a single value, or of as many as an [`Operand`] has in a lane.
#[derive(Clone, Copy)]
pub struct Outer {
    pub y: Factor,
    pub x: Factor,
    pub rows: usize,
    pub c: *mut f32,
    pub c_step: usize,
    /// Add to what `c` holds, or write it for the first time.
    pub add: bool,
    /// Which sum of those over the same rows of y this is: they take turns in what they ask memory for.
    pub turn: usize,
}

impl Outer {
    /// # Safety
    /// `y` and `x` must list `rows` rows of as many values as they say, and `c` must have all the places that are written.
    #[inline(always)]
    pub unsafe fn run<S: Operand, V: Vector>(self) {
        let mut j = 0;
        // SAFETY: the parts cover each of the places once; accumulators and operands fit the registers.
        unsafe {
            if let Some(apart) = self.y.apart {
                return self.pieces::<S, V>(apart);
            }
            while j < self.x.values {
                let vectors = vectors::<V>(self.x.values - j);
                let n = (self.x.values - j).min(vectors * V::LANES);
                match (vectors, V::LANES, n == vectors * V::LANES) {
                    (1, _, _) => self.columns::<S, V, 12, 1, false>(j, n),
                    (2, 16, true) => self.columns::<S, V, 8, 2, true>(j, n),
                    (2, 16, false) => self.columns::<S, V, 8, 2, false>(j, n),
                    (3, 16, true) => self.columns::<S, V, 8, 3, true>(j, n),
                    (3, 16, false) => self.columns::<S, V, 8, 3, false>(j, n),
                    (_, _, true) => self.columns::<S, V, 6, 2, true>(j, n),
                    (_, _, false) => self.columns::<S, V, 6, 2, false>(j, n),
                }
                j += n;
            }
        }
    }

    /// The line that tile `i` of a column of tiles asks for, row by row: how far behind the rows of which factor.
    #[inline(always)]
    fn ahead<const NV: usize>(&self, i: usize, j0: usize) -> (*const *const f32, usize) {
        let (x, y) = (&self.x, &self.y);
        let lines = NV + if j0 == 0 { y.values.div_ceil(LINE) } else { 0 };
        let line = (self.turn + i) % lines;
        match line {
            _ if line < NV => (x.rows, x.ahead.wrapping_add(j0 + line * LINE)),
            _ => (y.rows, y.ahead.wrapping_add((line - NV) * LINE)),
        }
    }

    #[inline(always)]
    unsafe fn columns<S: Operand, V: Vector, const M: usize, const NV: usize, const FULL: bool>(
        &self,
        j: usize,
        n: usize,
    ) {
        let mut i = 0;
        // SAFETY: each tile lies within y.
        unsafe {
            while i + M <= self.y.values {
                self.tile::<S, V, M, NV, FULL>(i, j, n);
                i += M;
            }
            if M > 8 && i + 8 <= self.y.values {
                self.tile::<S, V, 8, NV, FULL>(i, j, n);
                i += 8;
            }
            if i + 4 <= self.y.values {
                self.tile::<S, V, 4, NV, FULL>(i, j, n);
                i += 4;
            }
            match self.y.values - i {
                3 => self.tile::<S, V, 3, NV, FULL>(i, j, n),
                2 => self.tile::<S, V, 2, NV, FULL>(i, j, n),
                1 => self.tile::<S, V, 1, NV, FULL>(i, j, n),
                _ => {}
            }
        }
    }

    /// A row of y in pieces is all in one tile.
    #[inline(always)]
    unsafe fn pieces<S: Operand, V: Vector>(&self, apart: usize) {
        const M: usize = PIECE * PIECE;
        let mut j = 0;
        // SAFETY: as for `run`; with 16 lanes there are 32 registers, and 16 with fewer.
        unsafe {
            while j < self.x.values {
                let vectors = if V::LANES == 16 { vectors::<V>(self.x.values - j) } else { 1 };
                let n = (self.x.values - j).min(vectors * V::LANES);
                match (vectors, n == vectors * V::LANES) {
                    (1, true) => self.sums::<S, V, M, 1, true, true>(0, j, n, apart),
                    (1, false) => self.sums::<S, V, M, 1, false, true>(0, j, n, apart),
                    (2, true) => self.sums::<S, V, M, 2, true, true>(0, j, n, apart),
                    (2, false) => self.sums::<S, V, M, 2, false, true>(0, j, n, apart),
                    (_, true) => self.sums::<S, V, M, 3, true, true>(0, j, n, apart),
                    (_, false) => self.sums::<S, V, M, 3, false, true>(0, j, n, apart),
                }
                j += n;
            }
        }
    }

    #[inline(always)]
    unsafe fn tile<S: Operand, V: Vector, const M: usize, const NV: usize, const FULL: bool>(
        &self,
        i0: usize,
        j0: usize,
        n: usize,
    ) {
        // SAFETY: the caller's.
        unsafe { self.sums::<S, V, M, NV, FULL, false>(i0, j0, n, 0) }
    }

    #[inline(always)]
    unsafe fn sums<S: Operand, V: Vector, const M: usize, const NV: usize, const FULL: bool, const PIECES: bool>(
        &self,
        i0: usize,
        j0: usize,
        n: usize,
        apart: usize,
    ) {
        // SAFETY: the caller vouches for the lists and for c; `n` lanes are read and written when not FULL.
        unsafe {
            let mut sum = [[V::zero(); NV]; M];
            let (list, ahead) = self.ahead::<NV>(i0 / M, j0);
            for r in 0..self.rows {
                will_read((*list.add(r)).wrapping_add(ahead));
                let (x, y) = ((*self.x.rows.add(r)).add(j0), (*self.y.rows.add(r)).add(i0));
                let mut right = [V::zero(); NV];
                for (j, right) in right.iter_mut().enumerate() {
                    let x = x.add(j * V::LANES);
                    *right = if FULL { V::load(x) } else { V::load_first(x, n - j * V::LANES) };
                }
                for (i, sum) in sum.iter_mut().enumerate() {
                    let left = V::splat(*y.add(if PIECES { i / PIECE * apart + i % PIECE } else { i }));
                    for j in 0..NV {
                        sum[j] = S::multiply_add(left, right[j], sum[j]);
                    }
                }
            }
            for (i, sum) in sum.iter().enumerate() {
                for (j, sum) in sum.iter().enumerate() {
                    let c = self.c.add((i0 + i) * self.c_step + j0 + j * V::LANES);
                    let left = n - j * V::LANES;
                    match (FULL, self.add) {
                        (true, true) => V::load(c).add(*sum).store(c),
                        (true, false) => sum.store(c),
                        (false, true) => V::load_first(c, left).add(*sum).store_first(c, left),
                        (false, false) => sum.store_first(c, left),
                    }
                }
            }
        }
    }
}
