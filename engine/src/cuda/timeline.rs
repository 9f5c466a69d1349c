//! When a device does what: events around every kernel, fill and copy of a recording ([`crate::trace`]).

use super::driver::{Gpu, gpu};
use super::event::Event;
use super::launch::Grid;
use crate::trace::{self, Work};
use crate::{Device, Result};

/// What is timed, from an event on that the device came to when the recording began.
pub(crate) struct Timeline {
    gpu: &'static Gpu,
    begin: Event,
    timed: Vec<Timed>,
}

struct Timed {
    what: What,
    span: Option<usize>,
    begin: Event,
    end: Event,
}

/// Work as its caller describes it.
pub(super) struct What {
    pub name: String,
    pub bytes: usize,
    pub grid: Option<Grid>,
}

impl What {
    /// Work without a kernel.
    pub fn copy(name: &str, bytes: usize) -> What {
        What { name: name.into(), bytes, grid: None }
    }
}

impl Timeline {
    /// Waits for the device, so that its clock and the host's begin together.
    pub fn begin(device: Device) -> Result<Timeline> {
        let gpu = gpu(device)?;
        gpu.synchronize(format_args!("the beginning of a recording"))?;
        Ok(Timeline { gpu, begin: gpu.mark()?, timed: Vec::new() })
    }

    /// Waits for the device.
    pub fn finish(self) -> Result<Vec<Work>> {
        let Timeline { gpu, begin, timed } = self;
        gpu.synchronize(format_args!("the end of a recording"))?;
        let mut all = Vec::with_capacity(timed.len());
        for Timed { what: What { name, bytes, grid }, span, begin: from, end: to } in timed {
            let (from, to) = (gpu.between(&begin, &from)?, gpu.between(&begin, &to)?);
            all.push(Work { name, begin: from, end: to, span, bytes, grid });
        }
        Ok(all)
    }
}

impl Gpu {
    /// Does `work`, which puts something into the device's stream; where this thread records, between two events.
    pub fn timed(&'static self, what: impl FnOnce() -> What, work: impl FnOnce() -> Result<()>) -> Result<()> {
        if !trace::recording() || self.capture().is_some() {
            return work();
        }
        let begin = self.mark()?;
        work()?;
        let (end, what) = (self.mark()?, what());
        trace::timeline(|timeline, span| timeline.timed.push(Timed { what, span, begin, end }));
        Ok(())
    }
}
