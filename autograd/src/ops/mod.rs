//! One file per operation: what backward saves, and the rule. Forward is the kernel's.

pub mod add;
pub mod batch_norm;
pub mod cast;
pub mod concat;
pub mod conv3d;
pub mod conv_transpose3d;
pub mod cosine;
pub mod dice_ce;
pub mod gelu;
pub mod global_avg_pool;
pub mod info_nce;
pub mod instance_norm;
pub mod layer_norm;
pub mod leaky_relu;
pub mod linear;
pub mod mlp;
pub mod patch_merging;
pub mod relu;
pub mod reshape;
pub mod resize;
pub mod row_dropout;
pub mod voco_loss;
pub mod window_attention;

pub use add::add;
pub use batch_norm::batch_norm;
pub use cast::cast;
pub use concat::concat;
pub use conv_transpose3d::conv_transpose3d;
pub use conv3d::conv3d;
pub use cosine::cosine;
pub use dice_ce::dice_ce;
pub use gelu::gelu;
pub use global_avg_pool::global_avg_pool;
pub use info_nce::info_nce;
pub use instance_norm::instance_norm;
pub use layer_norm::layer_norm;
pub use leaky_relu::leaky_relu;
pub use linear::{linear, linear_add};
pub use mlp::mlp;
pub use patch_merging::patch_merging;
pub use relu::relu;
pub use reshape::{reshape, rows_at};
pub use resize::resize;
pub use row_dropout::row_dropout;
pub use voco_loss::voco_loss;
pub use window_attention::window_attention;

use crate::Result;
use engine::Tensor;

/// `f()` when the gradient is needed.
fn when(need: bool, f: impl FnOnce() -> engine::Result<Tensor>) -> Result<Option<Tensor>> {
    Ok(if need { Some(f()?) } else { None })
}
