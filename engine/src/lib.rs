//! Tensors, dtypes, shapes, errors, devices, memory and random numbers. Knows no operation.
//!
//! Everything above works on [`Tensor`]: contiguous, row-major storage (activations are `[N, D, H, W, C]`) with a runtime
//! [`DType`]. Memory comes from one arena in [`memory`], which recycles it and keeps a high-water mark; that of a GPU from a pool
//! in [`cuda`].

mod arena;
pub mod cuda;
pub mod device;
pub mod dtype;
pub mod error;
pub mod memory;
pub mod meta;
pub(crate) mod nvtx;
pub mod parallel;
pub mod random;
pub mod shape;
pub mod tensor;
pub mod trace;

pub use device::Device;
pub use dtype::{DType, Element};
pub use error::{Error, Result};
pub use half::{bf16, f16};
pub use shape::Shape;
pub use tensor::Tensor;
