//! How the rows of a map fall into tiles, and tiles into blocks.

use super::super::map::Map;
use std::ops::Range;

/// Pixels of a tile along H and W in the target, and in the source.
pub const SIDE: usize = 2;
pub const SOURCE_SIDE: usize = 4;

/// Planes of a block.
const BLOCK_PLANES: usize = 8;

/// The tiles of a map with 3 x 3 taps along H and W.
#[derive(Clone, Debug)]
pub struct Tiles {
    batch: usize,
    /// Pixels, `[D, H, W]`.
    target: [usize; 3],
    source: [usize; 3],
    /// Where row 0 meets the source under the first tap.
    offset: [isize; 3],
    /// Taps along D.
    pub depth: usize,
    /// Planes, and tiles along H and W: in all, and of a block.
    size: [usize; 3],
    block: [usize; 3],
}

/// Neighbouring tiles of some planes.
#[derive(Clone, Debug)]
pub struct Block {
    image: usize,
    planes: Range<usize>,
    along_h: Range<usize>,
    along_w: Range<usize>,
}

impl Block {
    /// In each plane.
    pub fn tiles(&self) -> usize {
        self.along_h.len() * self.along_w.len()
    }

    pub fn planes(&self) -> usize {
        self.planes.len()
    }
}

impl Tiles {
    /// In blocks of so many tiles in a plane. None where the map has other taps.
    pub fn of(map: &Map, block_tiles: usize) -> Option<Tiles> {
        let neighbours = map.neighbours()?;
        let [depth, 3, 3] = neighbours.taps else { return None };
        let [planes, h, w] = neighbours.target;
        let size = [planes, h.div_ceil(SIDE), w.div_ceil(SIDE)];
        let along_w = size[2].min(block_tiles);
        let block = [planes.min(BLOCK_PLANES), (block_tiles / along_w).min(size[1]), along_w];
        let (target, source) = (neighbours.target, neighbours.source);
        Some(Tiles { batch: neighbours.batch, target, source, offset: neighbours.offset, depth, size, block })
    }

    /// Tiles in all.
    pub fn count(&self) -> usize {
        self.batch * self.size.iter().product::<usize>()
    }

    pub fn blocks(&self) -> usize {
        self.batch * (0..3).map(|a| self.size[a].div_ceil(self.block[a])).product::<usize>()
    }

    pub fn block(&self, i: usize) -> Block {
        let [d, h, w] = [0, 1, 2].map(|a| self.size[a].div_ceil(self.block[a]));
        let part = |a: usize, i: usize| i * self.block[a]..self.size[a].min((i + 1) * self.block[a]);
        let (planes, along_h, along_w) = (part(0, i / w / h % d), part(1, i / w % h), part(2, i % w));
        Block { image: i / w / h / d, planes, along_h, along_w }
    }

    /// Tiles of a block in all planes that it writes, and that it reads.
    pub fn most_rows(&self) -> [usize; 2] {
        let tiles = self.block[1] * self.block[2];
        [self.block[0] * tiles, (self.block[0] + self.depth - 1) * tiles]
    }

    /// What a block's tiles read, plane by plane.
    #[inline(always)]
    pub fn sources(&self, block: &Block) -> impl Iterator<Item = Line<SOURCE_SIDE>> {
        self.lines(block, self.source, self.offset, block.planes.start..block.planes.end + self.depth - 1)
    }

    /// What they write, plane by plane.
    #[inline(always)]
    pub fn targets(&self, block: &Block) -> impl Iterator<Item = Line<SIDE>> {
        self.lines(block, self.target, [0; 3], block.planes.clone())
    }

    #[inline(always)]
    fn lines<const S: usize>(
        &self,
        block: &Block,
        [d, h, w]: [usize; 3],
        offset: [isize; 3],
        planes: Range<usize>,
    ) -> impl Iterator<Item = Line<S>> {
        let at = |i: usize, offset: isize, size: usize| i.checked_add_signed(offset).filter(|&at| at < size);
        let Block { image, along_h, along_w, .. } = block.clone();
        let tiles = along_w.len();
        let first = (SIDE * along_w.start) as isize + offset[2];
        planes.flat_map(move |plane| {
            let plane = at(plane, offset[0], d).map(|plane| image * d + plane);
            along_h.clone().map(move |i| {
                let line = |j: usize| Some((plane? * h + at(SIDE * i + j, offset[1], h)?) * w);
                Line { pixels: std::array::from_fn(line), wide: w, first, tiles }
            })
        })
    }
}

/// Neighbouring tiles along W, of S x S pixels.
#[derive(Clone, Copy, Debug)]
pub struct Line<const S: usize> {
    /// The first pixel of each line of pixels; none where that is padding.
    pub pixels: [Option<usize>; S],
    /// Pixels of a line.
    pub wide: usize,
    /// Where in the lines the first tile begins.
    first: isize,
    pub tiles: usize,
}

impl<const S: usize> Line<S> {
    /// Where in the lines tile `i` begins.
    #[inline(always)]
    pub fn column(&self, i: usize) -> isize {
        self.first + (SIDE * i) as isize
    }
}
