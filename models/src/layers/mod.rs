//! Layers: parameters with PyTorch's names and initial values, and a forward pass on the tape.

mod conv;
mod linear;
mod mlp;
mod norm;
mod residual_block;
mod scope;

pub use conv::{Conv3d, ConvTranspose3d};
pub use linear::Linear;
pub use mlp::Mlp;
pub use norm::{LayerNorm, NORM_EPS, plain_layer_norm};
pub use residual_block::ResidualBlock;
pub use scope::Scope;
