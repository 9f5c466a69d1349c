//! Convolutions with 3 x 3 taps along H and W and stride 1 by Winograd's minimal filtering: F(2 x 2, 3 x 3) of A. Lavin and S. Gray,
//! "Fast Algorithms for Convolutional Neural Networks", 2015. Taps along D are summed as they are. bf16 is widened on the way to the
//! positions, and rounded once, on the way back.
//!
//! The target's planes are cut into tiles of 2 x 2, each of which meets 4 x 4 source pixels. Both, and the taps, are taken to 16
//! positions in which the sum over 9 taps is a product:
//!
//! `y = Aᵀ [ sum over d, k of (G w Gᵀ) * (Bᵀ x B) ] A`, and the gradient of w is `Gᵀ [ sum over tiles of (A dy Aᵀ) * (Bᵀ x B) ] G`
//!
//! with 16 multiplications for 36. The price is rounding: sums of 4 pixels and of 9 taps are rounded before they are multiplied, and what
//! the products leave is added and subtracted. With 48 channels the error is 3.3e-7 to 3.7e-7, where the sums as they are have 1.6e-7 to
//! 1.9e-7 and PyTorch's own in float32 1.6e-7 to 3.4e-7; with 192 it is 4.5e-7 for 2.2e-7. A pixel that is not
//! finite reaches all pixels of its tiles.

mod gradient;
mod product;
mod tiles;
mod transform;

pub use gradient::run as weight_gradient;
pub use product::run;

use super::map::Map;
use super::operand::Operand;
use tiles::Tiles;

/// Positions of a tile.
const POSITIONS: usize = 16;
/// Channels on either side from which the multiplications that are saved outweigh the way to the positions and back, and rounding: with
/// 12, products that run along W are as fast.
const FEWEST_CHANNELS: usize = 48;
/// Tiles from which it pays to take the weights to the positions, and gradients back.
const FEWEST_TILES: usize = 1024;
/// Tiles from which it pays to take weights there that have so many channels on either side. With fewer channels, networks that have no
/// more tiles are small ones, which show the rounding.
const FEWEST_TILES_OF_MANY: usize = 256;
/// Where the CPU multiplies pairs of bf16 there is little to save, 2.25 times fewer multiplications of half as many at a time: with so
/// many channels, pairs as they are stand nearer to the peak and are faster.
const MANY_CHANNELS: usize = 192;
/// Most values of the weights at all positions: a third-level cache holds so many, and there may be enough copies of a gradient to keep
/// many threads busy.
const MOST_WEIGHTS: usize = 2 << 20;
/// Tiles in a plane of a block: with 48 channels a product's weights, sources and sums take 0.9 MB, and a gradient's, of half the
/// positions, 0.7 MB.
const PRODUCT_BLOCK: usize = 8;
const GRADIENT_BLOCK: usize = 16;

/// The tiles of a product that is faster by them.
fn for_product<S: Operand>(map: &Map, channels: usize, n: usize) -> Option<Tiles> {
    let fewest = if channels.min(n) < MANY_CHANNELS { FEWEST_TILES } else { FEWEST_TILES_OF_MANY };
    Tiles::of(map, PRODUCT_BLOCK).filter(|tiles| tiles.count() >= fewest && saves::<S>(tiles, map, channels, n))
}

/// The tiles of a weight's gradient that is faster by them.
pub fn for_gradient<S: Operand>(map: &Map, m: usize, n: usize) -> Option<Tiles> {
    Tiles::of(map, GRADIENT_BLOCK).filter(|tiles| tiles.count() >= FEWEST_TILES && saves::<S>(tiles, map, m, n))
}

/// Whether there are enough channels, not too many weights, and few pixels of tiles outside.
fn saves<S: Operand>(tiles: &Tiles, map: &Map, channels: usize, n: usize) -> bool {
    let most_channels = if S::multiplies_pairs() { MANY_CHANNELS - 1 } else { usize::MAX };
    let channels_suit = (FEWEST_CHANNELS..=most_channels).contains(&channels.min(n));
    channels_suit && POSITIONS * tiles.depth * channels * n <= MOST_WEIGHTS && 3 * tiles.count() <= map.rows()
}

#[cfg(test)]
mod tests {
    use super::super::map::Geometry;
    use super::*;
    use crate::simd::{self, Level, testing::run_at};
    use engine::bf16;

    /// Whether a convolution with 3 x 3 taps along H and W, and its weight's gradient, are by tiles.
    fn by_tiles<S: Operand>(output: [usize; 3], depth: usize, stride: usize, [channels, n]: [usize; 2]) -> [bool; 2] {
        let kernel = [depth, 3, 3];
        let input = [0, 1, 2].map(|a| (output[a] - 1) * stride + kernel[a] - 2 * usize::from(a > 0));
        let (stride, padding) = ([1, stride, stride], [0, 1, 1]);
        let map = Map::convolution(&Geometry { batch: 1, input, output, kernel, stride, padding });
        [for_product::<S>(&map, channels, n).is_some(), for_gradient::<S>(&map, n, channels).is_some()]
    }

    #[test]
    fn what_is_by_tiles() {
        let (both, none) = ([true; 2], [false; 2]);
        assert_eq!(by_tiles::<f32>([16; 3], 3, 1, [48, 48]), both);
        assert_eq!(by_tiles::<f32>([17, 15, 19], 1, 1, [70, 50]), both, "odd");
        assert_eq!(by_tiles::<f32>([8; 3], 3, 1, [96, 96]), none, "small");
        assert_eq!(by_tiles::<f32>([16, 8, 8], 3, 1, [192, 192]), [true, false], "small, but of many channels");
        assert_eq!(by_tiles::<f32>([8; 3], 3, 1, [192, 192]), none, "smaller");
        assert_eq!(by_tiles::<f32>([16; 3], 3, 1, [384, 384]), none, "too many channels");
        assert_eq!(by_tiles::<f32>([64; 3], 3, 1, [24, 48]), none, "few channels");
        assert_eq!(by_tiles::<f32>([64, 1, 64], 3, 1, [48, 48]), none, "half of the tiles outside");
        assert_eq!(by_tiles::<f32>([16; 3], 1, 2, [48, 48]), none, "a stride");
        for (level, many) in [(Level::Avx512, both), (Level::Avx512Bf16, none)] {
            let many = if level <= simd::level() { many } else { both };
            assert_eq!(run_at(level, 1, || by_tiles::<bf16>([16; 3], 3, 1, [48, 48])), both, "{level:?}");
            assert_eq!(run_at(level, 1, || by_tiles::<bf16>([16; 3], 3, 1, [192, 192])), many, "{level:?}");
        }
    }
}
