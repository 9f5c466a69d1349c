//! Products of few outputs in f32, and the gradients of their weights: vectors run along W and fill their lanes, which outputs would
//! not.
//!
//! Work is cut into blocks of whole lines of rows ([`blocks`]). The source lines that a block meets are copied once, channel by channel
//! ([`lines`]). The steps of a product are those of other products, and so is the order of an output's sums; a gradient's sums have 16
//! lanes on every CPU: results depend neither on the width of vectors nor on threads.

mod blocks;
mod gradient;
mod lines;
mod product;

pub use gradient::{fits as fits_gradient, run as weight_gradient};
pub use product::run;
