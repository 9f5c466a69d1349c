//! Moments of a device's stream, and the time between them on its own clock.

use super::driver::{Gpu, gpu};
use crate::{Device, Result};
use cudarc::driver::{result, sys};

/// A moment that the device comes to.
pub(super) struct Event {
    gpu: &'static Gpu,
    event: sys::CUevent,
}

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: nobody else has the event; one that the device has not come to yet is freed later.
        let destroy = || unsafe { result::event::destroy(self.event) };
        // What cannot be destroyed stays until the process ends; the driver's next call says what is wrong.
        drop(self.gpu.call(format_args!("dropping an event"), destroy));
    }
}

impl Gpu {
    /// The moment when everything is done that was put into this thread's stream before.
    pub fn mark(&'static self) -> Result<Event> {
        self.call(format_args!("an event for timing"), || {
            let event = result::event::create(sys::CUevent_flags::CU_EVENT_DEFAULT)?;
            let event = Event { gpu: self, event };
            // SAFETY: the event was just created, and the stream is this device's.
            unsafe { result::event::record(event.event, self.stream()) }.map(|()| event)
        })
    }

    /// Seconds between two moments that the device has come to.
    pub fn between(&self, from: &Event, to: &Event) -> Result<f64> {
        // SAFETY: both events were recorded.
        let elapsed = || unsafe { result::event::elapsed(from.event, to.event) };
        Ok(f64::from(self.call(format_args!("the time between two events"), elapsed)?) / 1e3)
    }
}

/// Runs `work`, which puts launches and copies into a CUDA device's stream, and waits for them. Returns the seconds between the
/// moments at which the device came to the first of them and was done with the last.
pub fn elapsed(device: Device, work: impl FnOnce() -> Result<()>) -> Result<f64> {
    let gpu = gpu(device)?;
    gpu.outside_capture("timing")?;
    let start = gpu.mark()?;
    let worked = work();
    let end = gpu.mark()?;
    let waited = gpu.synchronize(format_args!("what is timed"));
    let seconds = gpu.between(&start, &end);
    worked.and(waited)?;
    seconds
}
