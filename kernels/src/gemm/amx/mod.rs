//! Products of bf16 on AMX, the unit of recent Xeons that multiplies tiles: an instruction adds the product of 16 rows of 32 values
//! and 32 rows of 16 values, sixteen times what a vector does in the same time. So it is memory that these products wait for, and
//! what there is to write is how rows come together in the first-level cache.
//!
//! Tiles are rows at equal distances, which gathered rows are not: [`Gathered`] copies them. Sums are f32, the same for any number of
//! threads. Numbers below the smallest normal one count as zero.

#[cfg(test)]
mod emulated;
mod gather;
mod gradient;
mod product;
mod registers;
mod tiles;

pub use gradient::weight_gradient;
pub use product::run;
pub use tiles::multiply_tiles;

use super::map::Map;
use crate::simd::uses_tiles;

/// Whether this CPU has tiles that the system lets us use, and products with these maps fill them: what is too short for one takes
/// longer to gather than to multiply.
pub fn suits(maps: &[Map], channels: usize) -> bool {
    uses_tiles() && maps.iter().any(|map| map.taps() * channels >= tiles::VALUES)
}

/// The same for the gradient, which is a sum over rows.
pub fn suits_gradient(map: &Map, channels: usize) -> bool {
    map.rows() > tiles::VALUES && suits(std::slice::from_ref(map), channels)
}
