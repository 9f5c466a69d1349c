//! How the lines of a map's rows are cut into blocks: some lines of some planes, which meet many of the same source lines.

use super::super::map::{Map, Run};

/// Most planes, and lines of each, of a block.
const MOST: [usize; 2] = [16, 8];
/// Values that all lines of a block may take: a second-level cache holds 640 KiB.
const SIZE: usize = 160 << 10;

pub struct Blocks<'a> {
    map: &'a Map,
    /// Planes, and lines of each: in all, and of a block.
    all: [usize; 2],
    block: [usize; 2],
}

impl<'a> Blocks<'a> {
    /// At least `fewest` blocks, where there are as many lines, for lines of `source` values that are met, and of `target` values that
    /// meet them.
    pub fn new(map: &'a Map, [source, target]: [usize; 2], fewest: usize) -> Self {
        let all = map.planes();
        let mut blocks = Blocks { map, all, block: [MOST[0].min(all[0]), MOST[1].min(all[1])] };
        let size = |block: [usize; 2]| map.lines_met(block) * source + block[0] * block[1] * target;
        while blocks.block != [1, 1] && (size(blocks.block) > SIZE || blocks.count() < fewest) {
            let longer = usize::from(blocks.block[1] > blocks.block[0]);
            blocks.block[longer] = blocks.block[longer].div_ceil(2);
        }
        blocks
    }

    pub fn count(&self) -> usize {
        (0..2).map(|a| self.all[a].div_ceil(self.block[a])).product()
    }

    /// The lines of block `i`.
    pub fn runs(&self, i: usize, runs: &mut Vec<Run>) {
        let across = self.all[1].div_ceil(self.block[1]);
        let part = |a: usize, i: usize| i * self.block[a]..self.all[a].min((i + 1) * self.block[a]);
        self.map.lines([part(0, i / across), part(1, i % across)], runs);
    }
}
