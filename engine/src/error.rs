//! The engine's errors: they name the operation, what it got, and what to do.

use crate::{DType, Device};
use thiserror::Error;

pub type Result<T, E = Error> = std::result::Result<T, E>;

#[derive(Debug, Error, Clone, PartialEq)]
pub enum Error {
    /// Shapes that do not fit together, or a parameter that the shape forbids.
    #[error("{op}: {detail}")]
    Shape { op: &'static str, detail: String },
    #[error("{op}: got {got}, needs {want}")]
    DType { op: &'static str, got: DType, want: &'static str },
    #[error("{op}: not available for {dtype} on {device}")]
    Unsupported { op: &'static str, dtype: DType, device: Device },
    /// Writing to storage that somebody else still reads, for example a tape that was not consumed.
    #[error("{op}: the tensor's storage is shared; drop the other views (or the tape) before writing to it")]
    Shared { op: &'static str },
    #[error("{op}: a tensor on the meta device has a shape and no values")]
    NoValues { op: &'static str },
    /// Reading or writing, on the host, values that are on another device.
    #[error("{op}: the tensor is on {device}, and is needed on {want}; copy it with to_device")]
    Elsewhere { op: &'static str, device: Device, want: &'static str },
    /// A device that cannot be used on this machine.
    #[error("{device}: {detail}; or use --device cpu")]
    NoDevice { device: Device, detail: String },
    /// A device's driver refused, or reported what went wrong before.
    #[error("{device}: {call}: {detail}")]
    Driver { device: Device, call: String, detail: String },
    #[error("{op}: {detail}")]
    Invalid { op: &'static str, detail: String },
    #[error(
        "out of memory: {op} needs {bytes} bytes more; {live} are live. Use fewer crops, a smaller size, or recompute"
    )]
    OutOfMemory { op: &'static str, bytes: usize, live: usize },
    #[error(
        "out of memory on {device}: {bytes} bytes more are needed; {live} are live, most of them in {largest}. Use fewer crops, a \
         smaller size, or recompute"
    )]
    OutOfDeviceMemory { device: Device, bytes: usize, live: usize, largest: String },
}

impl Error {
    pub fn shape(op: &'static str, detail: impl Into<String>) -> Self {
        Error::Shape { op, detail: detail.into() }
    }

    pub fn invalid(op: &'static str, detail: impl Into<String>) -> Self {
        Error::Invalid { op, detail: detail.into() }
    }
}
