//! Products of few outputs in f32: vectors run along W and fill their lanes, which outputs would not.
//!
//! A unit is a block of whole lines of rows. The source lines that it meets are copied to [`Lines`], channel by channel. A tile is
//! OUTPUTS outputs of some vectors of rows; the steps are those of other products, and so is the order of an output's sums: results
//! depend neither on the width of vectors nor on threads.

mod lines;
mod product;

pub use product::run;
