//! One stage of the Swin transformer: residual convolutions, two blocks (the second one shifted), patch merging.

use crate::layers::{LayerNorm, Linear, Mlp, ResidualBlock, Scope};
use autograd::{ParamId, Result, Tape, Var, ops};
use engine::trace;
use kernels::patch_merging::Order;
use kernels::window_attention;

const WINDOW: [usize; 3] = [7; 3];
const SHIFT: [usize; 3] = [3; 3];

pub struct Stage {
    convolutions: ResidualBlock,
    blocks: [Block; 2],
    merging: PatchMerging,
}

impl Stage {
    /// Stage `index` (from 0) works on `channels` and hands on twice as many at half the resolution.
    pub fn new(mut swin: Scope, index: usize, channels: usize, heads: usize, order: Order) -> Self {
        let name = format!("layers{}", index + 1);
        let mut layers = swin.child(&name);
        let mut layer = layers.child("0");
        let blocks = [[0; 3], SHIFT].map(|shift| {
            let block = if shift == SHIFT { "blocks.1" } else { "blocks.0" };
            Block::new(layer.child(block), channels, heads, shift)
        });
        let merging = PatchMerging::new(layer.child("downsample"), channels, order);
        let convolutions = ResidualBlock::new(swin.child(&format!("{name}c.0.layer")), channels, channels);
        Stage { convolutions, blocks, merging }
    }

    pub fn forward(&self, tape: &Tape, x: &Var) -> Result<Var> {
        let mut x = self.convolutions.forward(tape, x)?;
        for block in &self.blocks {
            x = block.forward(tape, &x)?;
        }
        self.merging.forward(tape, &x)
    }
}

/// x + attention(norm1(x)), then x + mlp(norm2(x)).
struct Block {
    name: String,
    norm1: LayerNorm,
    qkv: Linear,
    table: ParamId,
    proj: Linear,
    norm2: LayerNorm,
    mlp: Mlp,
    attention: window_attention::Params,
}

impl Block {
    fn new(mut scope: Scope, channels: usize, heads: usize, shift: [usize; 3]) -> Self {
        let offsets = WINDOW.iter().map(|w| 2 * w - 1).product();
        let norm1 = LayerNorm::new(scope.child("norm1"), channels);
        let mut attn = scope.child("attn");
        let table = attn.bias_table("relative_position_bias_table", &[offsets, heads]);
        let qkv = Linear::new(attn.child("qkv"), channels, 3 * channels, true);
        let proj = Linear::new(attn.child("proj"), channels, channels, true);
        let norm2 = LayerNorm::new(scope.child("norm2"), channels);
        let mlp = Mlp::new(scope.child("mlp"), channels, 4 * channels);
        let attention = window_attention::Params { heads, window: WINDOW, shift };
        Block { name: scope.name(), norm1, qkv, table, proj, norm2, mlp, attention }
    }

    fn forward(&self, tape: &Tape, x: &Var) -> Result<Var> {
        let _scope = trace::scope(&self.name);
        let x = self.attend(tape, &self.norm1.forward(tape, x)?, x)?;
        self.mlp.forward(tape, &self.norm2.forward(tape, &x)?, &x)
    }

    /// residual + attention(x). Padding comes after the norm, so padded tokens are zero vectors and their q, k, v are the bias alone.
    fn attend(&self, tape: &Tape, x: &Var, residual: &Var) -> Result<Var> {
        let qkv = self.qkv.forward(tape, x)?;
        let Some(pad) = self.qkv.bias(tape)? else { return Err(autograd::Error::NoSuchParameter("qkv.bias".into())) };
        let y = ops::window_attention(tape, &qkv, &pad, &tape.param(self.table)?, self.attention)?;
        self.proj.forward_add(tape, &y, residual)
    }
}

/// Eight neighbours side by side, normalised and reduced from 8C to 2C channels.
struct PatchMerging {
    name: String,
    norm: LayerNorm,
    reduction: Linear,
    order: Order,
}

impl PatchMerging {
    fn new(mut scope: Scope, channels: usize, order: Order) -> Self {
        let reduction = Linear::new(scope.child("reduction"), 8 * channels, 2 * channels, false);
        let norm = LayerNorm::new(scope.child("norm"), 8 * channels);
        PatchMerging { name: scope.name(), norm, reduction, order }
    }

    fn forward(&self, tape: &Tape, x: &Var) -> Result<Var> {
        let _scope = trace::scope(&self.name);
        let gathered = ops::patch_merging(tape, x, self.order)?;
        self.reduction.forward(tape, &self.norm.forward(tape, &gathered)?)
    }
}
