use crate::{Error, Result};
use clap::ValueEnum;
use engine::Device;
use serde::Deserialize;

/// What `--device` says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DeviceChoice {
    /// The best device of this machine
    #[default]
    Auto,
    Cpu,
    #[value(hide = true)]
    Cuda,
}

impl DeviceChoice {
    pub fn resolve(self) -> Result<Device> {
        match self {
            DeviceChoice::Auto | DeviceChoice::Cpu => Ok(Device::Cpu),
            DeviceChoice::Cuda => {
                Err(Error::Message("--device cuda: this version runs on the CPU only; use --device cpu".into()))
            }
        }
    }
}
