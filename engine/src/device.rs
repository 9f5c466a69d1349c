//! Where a tensor lives.

use crate::{Result, cuda};
use std::fmt;
use std::str::FromStr;

/// A place that holds tensors and runs kernels. Only `kernels/` matches on it; everything above passes it along.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum Device {
    #[default]
    Cpu,
    /// An NVIDIA GPU, by the driver's number.
    Cuda(u8),
    /// Shapes without values: what a computation would take is counted in [`crate::meta`], and nothing is computed.
    Meta,
}

impl Device {
    /// The device itself, opened where that takes anything. Errors when it cannot be used on this machine.
    pub fn ready(self) -> Result<Device> {
        match self {
            Device::Cpu | Device::Meta => Ok(self),
            Device::Cuda(_) => cuda::properties(self).map(|_| self),
        }
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Device::Cpu => f.write_str("cpu"),
            Device::Cuda(ordinal) => write!(f, "cuda:{ordinal}"),
            Device::Meta => f.write_str("meta"),
        }
    }
}

/// A device that computes, as a user names it: `cpu`, `cuda` (the first) or `cuda:1`.
impl FromStr for Device {
    type Err = String;

    fn from_str(name: &str) -> Result<Device, String> {
        let ordinal = match name {
            "cpu" => return Ok(Device::Cpu),
            "cuda" => Some("0"),
            _ => name.strip_prefix("cuda:").filter(|digits| !digits.starts_with('+')),
        };
        let ordinal = ordinal.and_then(|digits| digits.parse().ok());
        ordinal.map(Device::Cuda).ok_or_else(|| format!("device {name:?}: known are cpu, cuda and cuda:N"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_have_names() {
        for (name, device) in [("cpu", Device::Cpu), ("cuda:0", Device::Cuda(0)), ("cuda:12", Device::Cuda(12))] {
            assert_eq!((device.to_string().as_str(), name.parse()), (name, Ok(device)));
        }
        assert_eq!("cuda".parse(), Ok(Device::Cuda(0)));
        for name in ["", "meta", "cuda:", "cuda:256", "cuda:-1", "cuda:+1", "cuda1", "CPU"] {
            assert!(name.parse::<Device>().is_err(), "{name}");
        }
    }
}
