//! Time on a device's own clock.

use super::driver::gpu;
use crate::{Device, Result};
use cudarc::driver::{result, sys};

/// Runs `work`, which puts launches and copies into a CUDA device's stream, and waits for them. Returns the seconds between the
/// moments at which the device came to the first of them and was done with the last.
pub fn elapsed(device: Device, work: impl FnOnce() -> Result<()>) -> Result<f64> {
    let gpu = gpu(device)?;
    gpu.outside_capture("timing")?;
    let mark = || {
        gpu.call(format_args!("an event for timing"), || {
            let event = result::event::create(sys::CUevent_flags::CU_EVENT_DEFAULT)?;
            // SAFETY: the event was just created, and the stream is this device's.
            unsafe { result::event::record(event, gpu.stream()) }.map(|()| event)
        })
    };
    let start = mark()?;
    let worked = work();
    let end = mark()?;
    let waited = gpu.synchronize(format_args!("what is timed"));
    let milliseconds = gpu.call(format_args!("the time between two events"), || {
        // SAFETY: both events were recorded, and nothing uses them afterwards.
        unsafe {
            let milliseconds = result::event::elapsed(start, end);
            result::event::destroy(start)?;
            result::event::destroy(end)?;
            milliseconds
        }
    });
    worked.and(waited)?;
    Ok(f64::from(milliseconds?) / 1e3)
}
