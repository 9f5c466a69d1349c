//! What `--device` says.

use crate::Result;
use engine::{Device, cuda};
use serde::Deserialize;
use std::fmt;
use std::str::FromStr;

/// Whether training has been seen to work on a GPU, not on an emulator alone. Until then `auto` leaves GPUs alone.
const GPUS_TRAIN: bool = false;

/// `auto`, or a device by its name: `cpu`, `cuda` (the first GPU), `cuda:1`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub enum DeviceChoice {
    /// The best device of this machine.
    #[default]
    Auto,
    Only(Device),
}

impl DeviceChoice {
    /// Errors when the device cannot be used on this machine.
    pub fn resolve(self) -> Result<Device> {
        match self {
            DeviceChoice::Auto if GPUS_TRAIN => Ok(first_gpu().unwrap_or_default()),
            DeviceChoice::Auto => Ok(Device::Cpu),
            DeviceChoice::Only(device) => Ok(device.ready()?),
        }
    }
}

fn first_gpu() -> Option<Device> {
    cuda::survey().devices.iter().find_map(|found| found.device.ready().ok())
}

impl FromStr for DeviceChoice {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        if name == "auto" {
            return Ok(DeviceChoice::Auto);
        }
        name.parse().map(DeviceChoice::Only).map_err(|_| "known are auto, cpu, cuda and cuda:N".into())
    }
}

impl TryFrom<String> for DeviceChoice {
    type Error = String;

    fn try_from(name: String) -> Result<Self, String> {
        name.parse().map_err(|known| format!("device {name:?}: {known}"))
    }
}

impl fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DeviceChoice::Auto => f.write_str("auto"),
            DeviceChoice::Only(device) => device.fmt(f),
        }
    }
}
