//! Work that is written down once and done again and again: a CUDA graph.
//!
//! While a thread captures, what it asks of the device goes into a stream of its own that only records. Other threads go on as
//! before, and one captures at a time. A graph repeats addresses, so nobody else may be given the memory behind them: what the
//! work takes belongs to the graph, which gives it back when it is dropped ([`super::book`]). What exists before, and is used, must
//! still exist at every launch; that is checked.
//!
//! Work that a graph cannot repeat is refused with an error, even where it would swallow that itself: copies from or to the host,
//! waiting for the device, loading kernels. So the same work must have run once before as it is.

use super::driver::{Gpu, gpu};
use super::launch::SYNCHRONOUS;
use super::memory::with_room;
use crate::{Device, Error, Result};
use cudarc::driver::{DriverError, result, sys};
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::sync::MutexGuard;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// What was captured. Launching it again repeats it on whatever its tensors hold by then.
pub struct Graph {
    executable: sys::CUgraphExec,
    /// The numbers of buffers that it uses and that are not its own.
    used: BTreeSet<u64>,
    reserve: Reserve,
}

/// The memory of one graph.
struct Reserve {
    gpu: &'static Gpu,
    id: u64,
}

/// What one thread captures.
struct Capture {
    device: Device,
    id: u64,
    stream: sys::CUstream,
    used: BTreeSet<u64>,
    /// The first thing that was refused.
    refused: Option<Error>,
}

thread_local! {
    static CURRENT: RefCell<Option<Capture>> = const { RefCell::new(None) };
}

/// Whether [`capture`] works: not where every kernel is waited for (VOCOE_SYNC=1).
pub fn captures() -> bool {
    !*SYNCHRONOUS
}

/// Records what `work` asks of a CUDA device, in place of doing it. What it returns keeps its place in the graph's memory: each
/// launch overwrites it. Errors as `work` does, and when it did what a graph cannot repeat. `work` must keep to this thread.
pub fn capture<T, E: From<Error>>(device: Device, work: impl FnOnce() -> Result<T, E>) -> Result<(Graph, T), E> {
    let recording = Recording::begin(gpu(device)?)?;
    let made = work()?;
    Ok((recording.finish()?, made))
}

impl Graph {
    /// Puts the work into the device's stream, after everything that was put there before. Errors when a tensor that the work
    /// used, and did not make, is gone.
    pub fn launch(&self) -> Result<()> {
        let gpu = self.reserve.gpu;
        gpu.outside_capture("starting a captured step")?;
        if !gpu.pool().book.holds(&self.used) {
            return Err(Error::invalid("graph", "a tensor that the captured work uses is gone; capture it again"));
        }
        // SAFETY: the graph is whole, and all memory that it uses is its own or was just found in the pool.
        let launch = || unsafe { result::graph::launch(self.executable, gpu.stream()) };
        gpu.call(format_args!("starting a captured step"), || with_room(gpu, launch))
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        let destroy = || {
            // SAFETY: nobody else has the graph; one that still runs is freed by the driver when it is done.
            unsafe { result::graph::exec_destroy(self.executable) }
        };
        // What cannot be destroyed stays until the process ends; the driver's next call says what is wrong.
        drop(self.reserve.gpu.call(format_args!("dropping a captured step"), destroy));
    }
}

impl Drop for Reserve {
    fn drop(&mut self) {
        self.gpu.pool().book.dissolve(self.id);
    }
}

/// The time between the beginning and the end of a capture. Dropped before, nothing comes of it.
struct Recording {
    stream: sys::CUstream,
    reserve: Option<Reserve>,
    _turn: MutexGuard<'static, ()>,
}

impl Recording {
    fn begin(gpu: &'static Gpu) -> Result<Recording> {
        static CAPTURES: AtomicU64 = AtomicU64::new(1);
        gpu.outside_capture("capturing a step")?;
        if !captures() {
            return Err(Error::invalid("graph", "VOCOE_SYNC=1 waits for every kernel, which a capture cannot"));
        }
        let turn = gpu.capture_turn();
        let begin = || {
            let stream = result::stream::create(result::stream::StreamKind::NonBlocking)?;
            // SAFETY: the stream was just created.
            unsafe {
                result::stream::begin_capture(stream, sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL)
            }?;
            Ok(stream)
        };
        let stream = gpu.call(format_args!("beginning a capture"), begin)?;
        let id = CAPTURES.fetch_add(1, Relaxed);
        gpu.pool().book.begin(id);
        let capture = Capture { device: gpu.device(), id, stream, used: BTreeSet::new(), refused: None };
        CURRENT.set(Some(capture));
        Ok(Recording { stream, reserve: Some(Reserve { gpu, id }), _turn: turn })
    }

    fn finish(mut self) -> Result<Graph> {
        let Some((reserve, capture)) = self.reserve.take().zip(CURRENT.take()) else {
            return Err(Error::invalid("graph", "the capture has ended already"));
        };
        let recorded = self.end(reserve.gpu);
        if let Some(refused) = capture.refused {
            if let Ok(graph) = recorded {
                discard(reserve.gpu, graph);
            }
            return Err(refused);
        }
        let graph = recorded?;
        let instantiate = || {
            // SAFETY: the graph was just recorded.
            unsafe { result::graph::instantiate(graph, sys::CUgraphInstantiate_flags(0)) }
        };
        let executable =
            reserve.gpu.call(format_args!("making a captured step ready"), || with_room(reserve.gpu, instantiate));
        discard(reserve.gpu, graph);
        Ok(Graph { executable: executable?, used: capture.used, reserve })
    }

    /// What was recorded.
    fn end(&self, gpu: &Gpu) -> Result<sys::CUgraph> {
        gpu.pool().book.end();
        gpu.call(format_args!("ending a capture"), || {
            // SAFETY: the stream is this capture's, and is not used afterwards.
            unsafe {
                let graph = result::stream::end_capture(self.stream);
                result::stream::destroy(self.stream)?;
                graph
            }
        })
    }
}

impl Drop for Recording {
    fn drop(&mut self) {
        let Some(reserve) = &self.reserve else { return };
        CURRENT.set(None);
        if let Ok(graph) = self.end(reserve.gpu) {
            discard(reserve.gpu, graph);
        }
    }
}

/// Makes calls that take or free memory at once: in a capture too, which they do not become a part of.
pub(super) fn relaxed<T>(calls: impl FnOnce() -> Result<T, DriverError>) -> Result<T, DriverError> {
    let mut mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED;
    // SAFETY: the driver exchanges this thread's mode with the one given.
    unsafe { sys::cuThreadExchangeStreamCaptureMode(&mut mode) }.result()?;
    let done = calls();
    // SAFETY: as above.
    unsafe { sys::cuThreadExchangeStreamCaptureMode(&mut mode) }.result()?;
    done
}

/// Frees a graph that was recorded; the executable form is independent of it.
fn discard(gpu: &Gpu, graph: sys::CUgraph) {
    // SAFETY: nobody uses the graph any more.
    let freed = gpu.call(format_args!("dropping a graph"), || unsafe { result::graph::destroy(graph) });
    drop(freed); // as in the drop of a Graph
}

impl Gpu {
    /// The stream that this thread's work goes into: the device's, or that of a capture.
    pub fn stream(&self) -> sys::CUstream {
        self.current(|capture| capture.stream).unwrap_or(self.main_stream)
    }

    /// The number of this thread's capture on this device, if it captures.
    pub fn capture(&self) -> Option<u64> {
        self.current(|capture| capture.id)
    }

    /// Errors when this thread captures, and then so does the capture: `what` cannot be repeated by a graph.
    pub fn outside_capture(&self, what: &str) -> Result<()> {
        let refused = self.current(|capture| {
            let detail = format!("{what} is not possible while a step is captured; --no-graph does without");
            let error = Error::Driver { device: self.device(), call: "capture".into(), detail };
            capture.refused.get_or_insert(error).clone()
        });
        refused.map_or(Ok(()), Err)
    }

    /// Notes that a capture uses a buffer that it did not make.
    pub fn note_use(&self, number: u64, home: Option<u64>) {
        self.current(|capture| {
            if home != Some(capture.id) {
                capture.used.insert(number);
            }
        });
    }

    fn current<T>(&self, f: impl FnOnce(&mut Capture) -> T) -> Option<T> {
        CURRENT.with_borrow_mut(|current| current.as_mut().filter(|capture| capture.device == self.device()).map(f))
    }
}
