//! Five upsampling blocks and the segmentation head.

use super::Features;
use crate::layers::{Conv3d, ConvTranspose3d, ResidualBlock, Scope};
use autograd::{Result, Tape, Var, ops};
use engine::trace;

pub struct Decoder {
    /// decoder5 (coarsest) to decoder1.
    up: Vec<UpBlock>,
    out: Conv3d,
}

impl Decoder {
    pub fn new(root: &mut Scope, f: usize, classes: usize) -> Self {
        let channels = [16 * f, 8 * f, 4 * f, 2 * f, f, f];
        let up = (0..5)
            .map(|i| UpBlock::new(root.child(&format!("decoder{}", 5 - i)), channels[i], channels[i + 1]))
            .collect();
        Decoder { up, out: Conv3d::pointwise(root.child("out.conv.conv"), f, classes) }
    }

    /// Logits at full resolution.
    pub fn forward(&self, tape: &Tape, f: &Features) -> Result<Var> {
        let skips = [&f.hidden[3], &f.e4, &f.e3, &f.e2, &f.e1];
        let mut x = f.e10.clone();
        for (block, skip) in self.up.iter().zip(skips) {
            x = block.forward(tape, &x, skip)?;
        }
        self.out.forward(tape, &x)
    }
}

/// Doubles the grid, puts the skip behind it and mixes the two.
struct UpBlock {
    transpose: ConvTranspose3d,
    block: ResidualBlock,
}

impl UpBlock {
    fn new(mut scope: Scope, inputs: usize, outputs: usize) -> Self {
        let transpose = ConvTranspose3d::doubling(scope.child("transp_conv.conv"), inputs, outputs);
        let block = ResidualBlock::new(scope.child("conv_block"), 2 * outputs, outputs);
        UpBlock { transpose, block }
    }

    fn forward(&self, tape: &Tape, x: &Var, skip: &Var) -> Result<Var> {
        let _scope = trace::scope("up");
        let up = self.transpose.forward(tape, x)?;
        self.block.forward(tape, &ops::concat(tape, &[&up, skip], 4)?)
    }
}
