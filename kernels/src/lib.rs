//! One folder per operation: what it computes, its shapes, and its version for each device.

pub mod adamw;
pub mod add;
pub mod batch_norm;
pub mod cast;
pub mod ceilings;
mod check;
pub mod concat;
pub mod conformance;
pub mod conv3d;
pub mod conv_transpose3d;
pub mod cosine;
mod cuda;
pub mod dice_ce;
mod elementwise;
pub mod ema;
pub mod gelu;
pub(crate) mod gemm;
pub mod global_avg_pool;
pub mod info_nce;
pub mod instance_norm;
pub mod l2_norm;
pub mod layer_norm;
pub mod leaky_relu;
pub mod linear;
pub mod patch_merging;
pub mod real;
pub mod relu;
pub mod resize;
pub mod row_dropout;
pub mod simd;
pub mod sum_rows;
#[cfg(test)]
mod testing;
pub mod voco_loss;
pub mod window_attention;

pub use check::sum_dtype;
