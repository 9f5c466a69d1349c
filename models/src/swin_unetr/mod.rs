//! SwinUNETR, version 2 (a residual convolution block before each Swin stage), as MONAI builds it.
//!
//! Input `[N, D, H, W, in_channels]`, each side divisible by 32 and at least 64 in all (the coarsest map needs more than one
//! voxel for its instance norm). With feature size f the encoder's maps are e1 f at full resolution, e2 f at a half, e3 2f at
//! a quarter, e4 4f at an eighth, h3 8f at a sixteenth (the raw skip of decoder5) and e10 16f at a thirty-second.

mod decoder;
mod stage;

use crate::layers::{Conv3d, ResidualBlock, Scope, plain_layer_norm};
use crate::{Error, Result};
use autograd::{ParamStoreBuilder, Tape, Var, ops, precision};
use decoder::Decoder;
use kernels::patch_merging::Order;
use stage::Stage;

/// Attention heads of the four stages, the same for every feature size.
const HEADS: [usize; 4] = [3, 6, 12, 24];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SwinUnetrConfig {
    /// The weights of a network for another number fit but for `swinViT.patch_embed.proj.weight`, `encoder1.layer.conv1` and
    /// `encoder1.layer.conv3`, which an import reports as mismatched and leaves as they were drawn.
    pub in_channels: usize,
    /// A multiple of 12: 48 is B, 96 L, 192 H.
    pub feature_size: usize,
    /// Classes of the segmentation head; None leaves the decoder out (self-supervised pre-training).
    pub out_channels: Option<usize>,
    pub patch_merging: Order,
}

/// The names under which files record the order of patch merging: the same weights mean another function under another.
const MERGING_NAMES: [(&str, Order); 3] =
    [("monai-1.3", Order::Monai13), ("monai-1.5", Order::Monai15), ("standard", Order::Standard)];

pub fn merging_name(order: Order) -> &'static str {
    match order {
        Order::Monai13 => MERGING_NAMES[0].0,
        Order::Monai15 => MERGING_NAMES[1].0,
        Order::Standard => MERGING_NAMES[2].0,
    }
}

/// The order of this name. Errors with the names that there are.
pub fn merging_order(name: &str) -> Result<Order> {
    let found = MERGING_NAMES.iter().find(|(known, _)| *known == name);
    found.map(|(_, order)| *order).ok_or_else(|| {
        let known = MERGING_NAMES.map(|(known, _)| known).join(", ");
        Error::Config(format!("patch_merging {name:?}: use one of {known}"))
    })
}

pub struct SwinUnetr {
    config: SwinUnetrConfig,
    patch_embed: Conv3d,
    stages: Vec<Stage>,
    encoder1: ResidualBlock,
    encoder2: ResidualBlock,
    encoder3: ResidualBlock,
    encoder4: ResidualBlock,
    encoder10: ResidualBlock,
    decoder: Option<Decoder>,
}

/// The encoder's maps.
pub struct Features {
    pub e1: Var,
    pub e2: Var,
    pub e3: Var,
    pub e4: Var,
    pub e10: Var,
    /// Normalised outputs of patch embedding and of the four stages.
    pub hidden: [Var; 5],
}

impl SwinUnetr {
    /// Adds the network's parameters to `builder`, their names after `prefix`. Errors when the feature size is not a positive
    /// multiple of 12.
    pub fn new(builder: &mut ParamStoreBuilder, prefix: &str, config: SwinUnetrConfig) -> Result<Self> {
        let f = config.feature_size;
        if f == 0 || !f.is_multiple_of(12) {
            return Err(Error::Config(format!("feature size {f}: use a multiple of 12 (48 is B, 96 L, 192 H)")));
        }
        if config.in_channels == 0 || config.out_channels == Some(0) {
            return Err(Error::Config("a network needs at least one input and one output channel".into()));
        }
        let mut root = Scope::new(builder, prefix);
        let patch_embed = Conv3d::patches(root.child("swinViT.patch_embed.proj"), config.in_channels, f, 2);
        let stages =
            (0..4).map(|i| Stage::new(root.child("swinViT"), i, f << i, HEADS[i], config.patch_merging)).collect();
        let mut encoder = |name: &str, i, o| ResidualBlock::new(root.child(name).child("layer"), i, o);
        let encoder1 = encoder("encoder1", config.in_channels, f);
        let encoder2 = encoder("encoder2", f, f);
        let encoder3 = encoder("encoder3", 2 * f, 2 * f);
        let encoder4 = encoder("encoder4", 4 * f, 4 * f);
        let encoder10 = encoder("encoder10", 16 * f, 16 * f);
        let decoder = config.out_channels.map(|classes| Decoder::new(&mut root, f, classes));
        Ok(SwinUnetr { config, patch_embed, stages, encoder1, encoder2, encoder3, encoder4, encoder10, decoder })
    }

    pub fn config(&self) -> SwinUnetrConfig {
        self.config
    }

    pub fn encode(&self, tape: &Tape, x: &Var) -> Result<Features> {
        self.check_input(x.dims())?;
        let x = precision::enter(tape, x)?;
        let e1 = self.encoder1.forward(tape, &x)?;
        let mut h = self.patch_embed.forward(tape, &x)?;
        let h0 = plain_layer_norm(tape, &h)?;
        let e2 = self.encoder2.forward(tape, &h0)?;
        h = self.stages[0].forward(tape, &h)?;
        let h1 = plain_layer_norm(tape, &h)?;
        let e3 = self.encoder3.forward(tape, &h1)?;
        h = self.stages[1].forward(tape, &h)?;
        let h2 = plain_layer_norm(tape, &h)?;
        let e4 = self.encoder4.forward(tape, &h2)?;
        h = self.stages[2].forward(tape, &h)?;
        let h3 = plain_layer_norm(tape, &h)?;
        h = self.stages[3].forward(tape, &h)?;
        let h4 = plain_layer_norm(tape, &h)?;
        let e10 = self.encoder10.forward(tape, &h4)?;
        Ok(Features { e1, e2, e3, e4, e10, hidden: [h0, h1, h2, h3, h4] })
    }

    /// Global averages of the five encoder maps, side by side: `[N, 24 · feature size]`.
    pub fn embed(&self, tape: &Tape, x: &Var) -> Result<Var> {
        let f = self.encode(tape, x)?;
        let maps = [f.e1, f.e2, f.e3, f.e4, f.e10];
        let pooled = maps.iter().map(|m| ops::global_avg_pool(tape, m)).collect::<autograd::Result<Vec<_>>>()?;
        Ok(precision::leave(tape, &ops::concat(tape, &pooled.iter().collect::<Vec<_>>(), 1)?)?)
    }

    /// Logits `[N, D, H, W, classes]`. Errors when the network was built without a decoder.
    pub fn forward(&self, tape: &Tape, x: &Var) -> Result<Var> {
        let decoder = self.decoder.as_ref();
        let decoder = decoder.ok_or_else(|| Error::Config("this network was built without a decoder".into()))?;
        Ok(precision::leave(tape, &decoder.forward(tape, &self.encode(tape, x)?)?)?)
    }

    fn check_input(&self, dims: &[usize]) -> Result<()> {
        let sides = match dims {
            [_, d, h, w, c] if *c == self.config.in_channels => [*d, *h, *w],
            _ => {
                let c = self.config.in_channels;
                return Err(Error::Config(format!("SwinUNETR takes [N, D, H, W, {c}], got {dims:?}")));
            }
        };
        if sides.iter().any(|s| *s == 0 || !s.is_multiple_of(32)) || sides == [32; 3] {
            return Err(Error::Config(format!(
                "SwinUNETR needs sides divisible by 32, and more than 32x32x32 voxels, got {sides:?}: pad or crop the input"
            )));
        }
        Ok(())
    }
}
