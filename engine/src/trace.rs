//! What happens when: named scopes of a thread, and the work that it puts into a device's stream.
//!
//! A thread that [`record`]s lists its scopes, and has the device note when it comes to each kernel and when it is done. A tool
//! that listens to NVTX ranges, where one is attached to the process, hears of all scopes ([`crate::nvtx`]). Elsewhere a scope
//! costs a look at two flags.

use crate::cuda::{Grid, Timeline};
use crate::{Device, Result, nvtx};
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::time::Instant;

/// A recording. Times are in seconds since it began.
#[derive(Debug, Default)]
pub struct Trace {
    /// In the order in which they were opened.
    pub spans: Vec<Span>,
    /// Of the device, in order.
    pub work: Vec<Work>,
}

/// The time of a scope, on the host.
#[derive(Debug)]
pub struct Span {
    pub name: String,
    pub begin: f64,
    pub end: f64,
    /// The span around it.
    pub parent: Option<usize>,
    /// Floating-point operations, where they are counted.
    pub flops: usize,
    /// For the backward of an operation: the scopes in which its forward was.
    pub forward: Option<Rc<str>>,
}

/// The time of a kernel, a fill or a copy, on the device.
#[derive(Debug)]
pub struct Work {
    pub name: String,
    pub begin: f64,
    pub end: f64,
    /// The innermost span in which it was asked for.
    pub span: Option<usize>,
    /// Bytes of the tensors that it was given, each once.
    pub bytes: usize,
    /// Of a kernel.
    pub grid: Option<Grid>,
}

/// A named part of what its thread does; ends when it is dropped.
#[must_use]
pub struct Scope {
    span: Option<usize>,
    pushed: bool,
}

thread_local! {
    static RECORDING: Cell<bool> = const { Cell::new(false) };
    static RECORDER: RefCell<Option<Recorder>> = const { RefCell::new(None) };
}

struct Recorder {
    begun: Instant,
    spans: Vec<Span>,
    open: Vec<usize>,
    /// Sizes of the tensors whose addresses were asked for.
    tensors: HashMap<u64, usize>,
    timeline: Option<Timeline>,
}

/// Opens a scope.
pub fn scope(name: &str) -> Scope {
    let pushed = nvtx::push(name);
    let span = recorder(|recorder| {
        let begin = recorder.begun.elapsed().as_secs_f64();
        let parent = recorder.open.last().copied();
        recorder.spans.push(Span { name: name.into(), begin, end: begin, parent, flops: 0, forward: None });
        recorder.open.push(recorder.spans.len() - 1);
        recorder.spans.len() - 1
    });
    Scope { span, pushed }
}

impl Scope {
    /// With so many floating-point operations.
    pub fn counting(self, flops: usize) -> Scope {
        self.note(|span| span.flops = flops)
    }

    /// As the backward of what was done in these scopes.
    pub fn backward_of(self, forward: Option<Rc<str>>) -> Scope {
        self.note(|span| span.forward = forward)
    }

    fn note(self, f: impl FnOnce(&mut Span)) -> Scope {
        if let Some(span) = self.span {
            recorder(|recorder| f(&mut recorder.spans[span]));
        }
        self
    }
}

impl Drop for Scope {
    fn drop(&mut self) {
        if self.pushed {
            nvtx::pop();
        }
        if let Some(span) = self.span {
            recorder(|recorder| {
                recorder.spans[span].end = recorder.begun.elapsed().as_secs_f64();
                recorder.open.pop();
            });
        }
    }
}

/// The names of this thread's open scopes; None where nothing records.
pub fn place() -> Option<Rc<str>> {
    recorder(|recorder| {
        let names: Vec<&str> = recorder.open.iter().map(|&span| recorder.spans[span].name.as_str()).collect();
        names.join(" > ").into()
    })
}

/// Whether this thread records.
pub fn recording() -> bool {
    RECORDING.get()
}

/// Does `work` on this thread and records it, and what of it `device` does, if that is a GPU. Work is recorded as it comes:
/// nothing is captured meanwhile.
pub fn record<T, E: From<crate::Error>>(device: Device, work: impl FnOnce() -> Result<T, E>) -> Result<(Trace, T), E> {
    let timeline = match device {
        Device::Cuda(_) => Some(Timeline::begin(device)?),
        Device::Cpu | Device::Meta => None,
    };
    let begun = Instant::now();
    let recorder = Recorder { begun, spans: Vec::new(), open: Vec::new(), tensors: HashMap::new(), timeline };
    RECORDER.set(Some(recorder));
    RECORDING.set(true);
    let done = work();
    RECORDING.set(false);
    let recorder = RECORDER.take();
    let done = done?;
    let Some(Recorder { spans, timeline, .. }) = recorder else { return Ok((Trace::default(), done)) };
    let work = timeline.map_or(Ok(Vec::new()), Timeline::finish)?;
    Ok((Trace { spans, work }, done))
}

/// Notes a tensor's address, which will be among a kernel's arguments, and its size in bytes.
pub(crate) fn note_tensor(pointer: u64, bytes: usize) {
    recorder(|recorder| recorder.tensors.insert(pointer, bytes));
}

/// Bytes of the tensors whose addresses are among a kernel's arguments.
pub(crate) fn bytes_of(arguments: &[u8]) -> usize {
    let words = arguments.chunks_exact(8).filter_map(|word| word.try_into().ok().map(u64::from_ne_bytes));
    let mut seen: Vec<u64> = words.collect();
    seen.sort_unstable();
    seen.dedup();
    recorder(|recorder| seen.iter().filter_map(|word| recorder.tensors.get(word)).sum()).unwrap_or(0)
}

/// The timeline of this thread's recording, and the innermost open span.
pub(crate) fn timeline<T>(f: impl FnOnce(&mut Timeline, Option<usize>) -> T) -> Option<T> {
    recorder(|recorder| {
        let span = recorder.open.last().copied();
        recorder.timeline.as_mut().map(|timeline| f(timeline, span))
    })
    .flatten()
}

fn recorder<T>(f: impl FnOnce(&mut Recorder) -> T) -> Option<T> {
    if !RECORDING.get() {
        return None;
    }
    RECORDER.with_borrow_mut(|recorder| recorder.as_mut().map(f))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scopes_are_nested_and_nothing_is_kept_elsewhere() {
        drop(scope("before"));
        assert_eq!(place(), None);
        let (trace, place) = record(Device::Cpu, || {
            let _outer = scope("outer");
            drop(scope("first").counting(7));
            let _second = scope("second").backward_of(Some("there".into()));
            Ok::<_, crate::Error>(place())
        })
        .expect("recording");
        assert_eq!(place.as_deref(), Some("outer > second"));
        let spans: Vec<_> = trace.spans.iter().map(|s| (s.name.as_str(), s.parent, s.flops)).collect();
        assert_eq!(spans, [("outer", None, 0), ("first", Some(0), 7), ("second", Some(0), 0)]);
        assert_eq!(trace.spans[2].forward.as_deref(), Some("there"));
        assert!(trace.spans.iter().all(|s| 0.0 <= s.begin && s.begin <= s.end && s.end <= trace.spans[0].end));
        assert!(trace.work.is_empty() && !recording());
    }

    #[test]
    fn an_error_ends_the_recording() {
        let failed = record(Device::Cpu, || Err::<(), _>(crate::Error::invalid("op", "no")));
        assert!(failed.is_err() && !recording() && super::place().is_none());
    }

    #[test]
    fn arguments_are_known_by_their_addresses() {
        let work = || {
            note_tensor(0x1000, 64);
            note_tensor(0x2000, 32);
            let arguments: [u64; 5] = [0x2000, 7, 0x1000, 0x2000, 0x3000];
            Ok::<_, crate::Error>(bytes_of(bytemuck::cast_slice(&arguments)))
        };
        assert_eq!(record(Device::Cpu, work).expect("recording").1, 96);
    }
}
