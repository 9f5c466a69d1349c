//! Recipes: what is trained, in which order, and what is written down about it.

pub mod checkpoint;
pub mod config;
pub mod diagnosis;
pub mod ending;
pub mod error;
pub mod events;
pub mod file;
pub mod loss_scale;
pub mod metrics;
pub mod optimizer;
pub mod plan;
pub mod pretrain;
pub mod profile;
pub mod recent;
pub mod report;
pub mod schedule;
pub mod source;
pub mod steps;

pub use config::Config;
pub use error::{Error, Result};
pub use loss_scale::LossScale;
