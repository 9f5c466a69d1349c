//! For tests: the tile registers in memory where the CPU has none, so that what gathers, multiplies and stores tiles is tested on
//! every machine that has the vectors for it.

use super::registers;
use super::tiles::{LANES, ROWS};
use crate::simd::may_use_amx;
use std::cell::RefCell;
use std::sync::OnceLock;

/// Rows of lanes as they lie in memory.
type Tile = [[u32; LANES]; ROWS];

thread_local! {
    static TILES: RefCell<[Tile; 8]> = const { RefCell::new([[[0; LANES]; ROWS]; 8]) };
}

/// The CPU's, where it has them.
pub struct Tiles(Option<registers::Tiles>);

/// The contracts are those of [`registers::Tiles`].
#[allow(clippy::missing_safety_doc)] // stated there, for each
impl Tiles {
    pub unsafe fn new() -> Tiles {
        static HAS: OnceLock<bool> = OnceLock::new();
        // SAFETY: the CPU has been asked.
        Tiles(HAS.get_or_init(may_use_amx).then(|| unsafe { registers::Tiles::new() }))
    }

    pub unsafe fn zero<const T: u8>(&self) {
        match &self.0 {
            // SAFETY: the caller's, here and below.
            Some(tiles) => unsafe { tiles.zero::<T>() },
            None => TILES.with_borrow_mut(|tiles| tiles[usize::from(T)] = Default::default()),
        }
    }

    pub unsafe fn load<const T: u8>(&self, from: *const f32, step: usize) {
        match &self.0 {
            Some(tiles) => unsafe { tiles.load::<T>(from, step) },
            None => TILES.with_borrow_mut(|tiles| {
                for (i, row) in tiles[usize::from(T)].iter_mut().enumerate() {
                    *row = unsafe { from.byte_add(i * step).cast::<[u32; LANES]>().read_unaligned() };
                }
            }),
        }
    }

    pub unsafe fn store<const T: u8>(&self, to: *mut f32, step: usize) {
        match &self.0 {
            Some(tiles) => unsafe { tiles.store::<T>(to, step) },
            None => TILES.with_borrow(|tiles| {
                for (i, row) in tiles[usize::from(T)].iter().enumerate() {
                    unsafe { to.byte_add(i * step).cast::<[u32; LANES]>().write_unaligned(*row) };
                }
            }),
        }
    }

    pub unsafe fn dot<const C: u8, const A: u8, const B: u8>(&self) {
        match &self.0 {
            Some(tiles) => unsafe { tiles.dot::<C, A, B>() },
            None => TILES.with_borrow_mut(|tiles| {
                let (a, b) = (tiles[usize::from(A)], tiles[usize::from(B)]);
                add_products(&mut tiles[usize::from(C)], &a, &b);
            }),
        }
    }
}

/// As TDPBF16PS: a lane's lower half is the first of its two values.
fn add_products(c: &mut Tile, a: &Tile, b: &Tile) {
    let halves = |lane: u32| [f32::from_bits(lane << 16), f32::from_bits(lane & 0xffff_0000)];
    for (sums, a) in c.iter_mut().zip(a) {
        for (a, b) in a.iter().zip(b) {
            for (sum, b) in sums.iter_mut().zip(b) {
                let ([a0, a1], [b0, b1]) = (halves(*a), halves(*b));
                *sum = (f32::from_bits(*sum) + a0 * b0 + a1 * b1).to_bits();
            }
        }
    }
}
