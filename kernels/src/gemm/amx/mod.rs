//! Products of bf16 on AMX, the unit of recent Xeons that multiplies tiles: an instruction adds the product of 16 rows of 32 values
//! and 32 rows of 16 values, sixteen times what a vector does in the same time. So it is memory that these products wait for, and
//! what there is to write is how rows come together in the first-level cache.
//!
//! Tiles are rows at equal distances, which gathered rows are not: [`Gathered`] copies them. Sums are f32, the same for any number of
//! threads. Numbers below the smallest normal one count as zero.

mod gather;
mod gradient;
mod product;
mod tiles;

pub use gradient::weight_gradient;
pub use product::run;

use crate::simd::{Level, level};

/// Whether this CPU has tiles, and the system lets them be used.
pub fn is_here() -> bool {
    level() >= Level::Amx
}
