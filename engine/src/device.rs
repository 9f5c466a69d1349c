//! Where a tensor lives.

use std::fmt;

/// A place that holds tensors and runs kernels. Only `kernels/` matches on it; everything above passes it along.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum Device {
    #[default]
    Cpu,
    /// Shapes without values: what a computation would take is counted in [`crate::meta`], and nothing is computed.
    Meta,
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Device::Cpu => f.write_str("cpu"),
            Device::Meta => f.write_str("meta"),
        }
    }
}
