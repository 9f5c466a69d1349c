//! Networks, heads and losses, built from the differentiable operations; weights in and out under PyTorch's names.
//!
//! Nothing here looks at a dtype or a device: a model is the same code in f32, and in f64 for gradient checks.

pub mod error;
pub mod layers;
pub mod sliding_window;
pub mod state_dict;
pub mod torch_file;
pub mod weights;

pub mod swin_unetr;
pub mod voco;

pub use error::{Error, Result};
pub use swin_unetr::{SwinUnetr, SwinUnetrConfig};
pub use voco::{Batch, Loss, Teacher, Voco, VocoConfig};
