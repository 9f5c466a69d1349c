//! Reverse-mode differentiation: a tape of rules, parameters, and the check of every rule against central differences.
//!
//! [`Tensor`](engine::Tensor) and [`Var`] are different types: kernels take tensors, so a tracked value cannot pass through
//! something that has no backward rule, and gradients cannot stop silently.

pub mod error;
pub mod gradcheck;
pub mod ops;
pub mod params;
pub mod precision;
pub mod sides;
pub mod tape;

pub use error::{Error, Result};
pub use params::{Gradients, Init, ParamId, ParamStore, ParamStoreBuilder};
pub use precision::Role;
pub use sides::{Moved, Sides};
pub use tape::{Rule, Tape, Var};
