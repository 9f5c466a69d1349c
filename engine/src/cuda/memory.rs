//! Recycled device buffers, in the same sizes and with the same account as the host's ([`crate::memory`]), and the same check
//! mode.

use super::driver::{Gpu, gpu};
use super::timeline::What;
use crate::memory::{GUARD, LINE, POISON, Pool, Usage, bucket, checking};
use crate::{DType, Device, Error, Result, Shape};
use cudarc::driver::{DriverError, result, sys};
use std::collections::{BTreeMap, HashMap};
use sys::CUdeviceptr;

/// Bytes behind a checked buffer that are compared when it is freed.
const WATCHED: usize = 4096;
/// Tensors that an error lists.
const LISTED: usize = 5;

/// Of a CUDA device's pool; opens it.
pub fn usage(device: Device) -> Result<Usage> {
    Ok(gpu(device)?.pool().pool.usage)
}

/// Buffers that wait, and what the live ones were taken for.
#[derive(Default)]
pub(super) struct DevicePool {
    pool: Pool<CUdeviceptr>,
    live: HashMap<CUdeviceptr, Live>,
    /// Of the graphs, by their numbers: buffers that wait, by their lines, for a graph's own work alone. To the pool they are live.
    reserves: HashMap<u64, HashMap<usize, Vec<CUdeviceptr>>>,
    taken: u64,
}

#[derive(Clone, Copy)]
struct Live {
    shape: Shape,
    dtype: DType,
    /// Differs from that of every buffer before, so that one that is taken again is known for another.
    number: u64,
}

/// A piece of device memory that returns to its pool when dropped.
pub(crate) struct Buffer {
    gpu: &'static Gpu,
    pointer: CUdeviceptr,
    number: u64,
    /// The graph that it belongs to.
    home: Option<u64>,
    lines: usize,
    bytes: usize,
    guarded: bool,
}

impl Buffer {
    /// Room for a tensor; its contents are arbitrary.
    pub(crate) fn take(device: Device, shape: Shape, dtype: DType) -> Result<Buffer> {
        let gpu = gpu(device)?;
        let (bytes, guarded) = (shape.numel() * dtype.size(), checking());
        let lines = bucket(bytes + if guarded { LINE } else { 0 });
        let home = gpu.capture();
        let mut pool = gpu.pool();
        let pointer = match pool.take(home, lines) {
            Some(pointer) => pointer,
            None => pool.allocate(gpu, lines)?,
        };
        let number = pool.enter(pointer, shape, dtype);
        drop(pool);
        let mut buffer = Buffer { gpu, pointer, number, home, lines, bytes, guarded };
        if guarded {
            buffer.fill(POISON)?;
            buffer.set(bytes, buffer.watched(), GUARD)?;
        }
        Ok(buffer)
    }

    pub(crate) fn device(&self) -> Device {
        self.gpu.device()
    }

    /// For work that uses the buffer.
    pub(crate) fn pointer(&self) -> u64 {
        self.gpu.note_use(self.pointer, self.number, self.home);
        self.pointer
    }

    /// Sets every byte.
    pub(crate) fn fill(&mut self, value: u8) -> Result<()> {
        self.set(0, self.bytes, value)
    }

    /// Overwrites the bytes from `offset` on; they must lie inside.
    pub(crate) fn write(&mut self, offset: usize, from: &[u8]) -> Result<()> {
        assert!(offset + from.len() <= self.bytes, "a write outside the buffer");
        self.gpu.outside_capture("copying to the device")?;
        self.gpu.timed(
            || What::copy("copy to the device", from.len()),
            || {
                // SAFETY: the range lies inside the buffer, which nobody else holds.
                unsafe { self.gpu.staging().write(self.gpu, self.pointer + offset as u64, from) }
            },
        )
    }

    /// Copies the bytes from `offset` on, once all work on them is done; they must lie inside.
    pub(crate) fn read(&self, offset: usize, to: &mut [u8]) -> Result<()> {
        assert!(offset + to.len() <= self.bytes, "a read outside the buffer");
        self.gpu.outside_capture("copying from the device")?;
        let bytes = to.len();
        self.gpu.timed(
            || What::copy("copy from the device", bytes),
            || {
                // SAFETY: the range lies inside the buffer.
                unsafe { self.gpu.staging().read(self.gpu, self.pointer + offset as u64, to) }
            },
        )
    }

    fn set(&mut self, offset: usize, bytes: usize, value: u8) -> Result<()> {
        let (to, stream) = (self.pointer() + offset as u64, self.gpu.stream());
        if bytes == 0 {
            return Ok(());
        }
        // SAFETY: the callers' ranges lie inside the buffer's lines.
        let fill = || unsafe { result::memset_d8_async(to, value, bytes, stream) };
        self.gpu.timed(|| What::copy("fill", bytes), || self.gpu.call(format_args!("filling memory"), fill))
    }

    /// Bytes of the guard behind the tensor's.
    fn watched(&self) -> usize {
        WATCHED.min(self.lines * LINE - self.bytes)
    }

    fn overrun(&self) -> bool {
        let mut guard = [GUARD; WATCHED];
        let guard = &mut guard[..self.watched()];
        // SAFETY: the guard lies inside the buffer's lines.
        let read = unsafe { self.gpu.staging().read(self.gpu, self.pointer + self.bytes as u64, guard) };
        // What cannot be read was not found wrong: the next call that needs the device fails and says why.
        read.is_ok() && guard.iter().any(|&b| b != GUARD)
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // What is only captured has not written anything yet.
        let overrun = self.guarded && self.gpu.capture().is_none() && self.overrun();
        let owner = self.gpu.pool().give(self.home, self.lines, self.pointer);
        if let Some(Live { shape, dtype, .. }) = owner.filter(|_| overrun && !std::thread::panicking()) {
            panic!("a kernel wrote past the end of {shape:?} {dtype}, {} bytes on {}", self.bytes, self.device());
        }
    }
}

impl DevicePool {
    /// A buffer that waits; while a graph is captured, one that waits for it before others, and then it is the graph's. None when
    /// none waits: then a fresh one is due, and is entered as held.
    fn take(&mut self, home: Option<u64>, lines: usize) -> Option<CUdeviceptr> {
        let own = home.and_then(|id| self.reserves.get_mut(&id)?.get_mut(&lines)?.pop());
        own.or_else(|| self.pool.take(lines))
    }

    /// Enters what a buffer is taken for. Returns its number.
    fn enter(&mut self, pointer: CUdeviceptr, shape: Shape, dtype: DType) -> u64 {
        self.taken += 1;
        self.live.insert(pointer, Live { shape, dtype, number: self.taken });
        self.taken
    }

    /// Takes a buffer back, for its graph where that is still there. Returns what it was taken for.
    fn give(&mut self, home: Option<u64>, lines: usize, pointer: CUdeviceptr) -> Option<Live> {
        match home.and_then(|id| self.reserves.get_mut(&id)) {
            Some(reserve) => reserve.entry(lines).or_default().push(pointer),
            None => self.pool.give(lines, pointer),
        }
        self.live.remove(&pointer)
    }

    /// Begins to keep buffers for a graph.
    pub fn reserve(&mut self, id: u64) {
        self.reserves.insert(id, HashMap::new());
    }

    /// Hands a graph's buffers to everybody; those that are live will follow.
    pub fn dissolve(&mut self, id: u64) {
        for (lines, buffers) in self.reserves.remove(&id).into_iter().flatten() {
            buffers.into_iter().for_each(|pointer| self.pool.give(lines, pointer));
        }
    }

    /// Whether these buffers, given with their numbers, are all live.
    pub fn holds(&self, buffers: &BTreeMap<CUdeviceptr, u64>) -> bool {
        buffers.iter().all(|(pointer, number)| self.live.get(pointer).is_some_and(|live| live.number == *number))
    }

    /// Fresh memory; when there is none, gives recycled buffers back and tries once more.
    fn allocate(&mut self, gpu: &Gpu, lines: usize) -> Result<CUdeviceptr> {
        // SAFETY: the memory is written before it is read.
        let fresh = || unsafe { result::malloc_async(gpu.stream(), lines * LINE) };
        let refused = gpu.outside_capture(&format!("taking {} bytes from the driver", lines * LINE));
        refused.inspect_err(|_| self.pool.cancel(lines))?;
        let taken = gpu.call(format_args!("taking memory"), || retry(fresh, || self.flush(gpu)));
        let pointer = taken.and_then(|pointer| pointer.ok_or_else(|| self.out_of_memory(gpu, lines * LINE)));
        pointer.inspect_err(|_| self.pool.cancel(lines))
    }

    /// Gives recycled buffers back to the driver, and waits until it has them.
    fn flush(&mut self, gpu: &Gpu) -> Result<(), DriverError> {
        for pointer in self.pool.drain() {
            // SAFETY: recycled buffers have no other owner, and come after their last use in the stream.
            unsafe { result::free_async(pointer, gpu.stream())? };
        }
        // SAFETY: the stream is the device's.
        unsafe { result::stream::synchronize(gpu.stream()) }
    }

    fn out_of_memory(&self, gpu: &Gpu, bytes: usize) -> Error {
        let mut largest = largest(self.live.values().map(|live| (live.shape, live.dtype)));
        let kept = self.reserves.values().flatten().map(|(lines, buffers)| lines * LINE * buffers.len()).sum::<usize>();
        if kept > 0 {
            largest += &format!(", and captured steps ({kept} bytes)");
        }
        Error::OutOfDeviceMemory { device: gpu.device(), bytes, live: self.pool.usage.live, largest }
    }
}

/// What `fresh` gives, after a `flush` where it has no memory; None where that does not help.
fn retry<T>(
    fresh: impl Fn() -> Result<T, DriverError>,
    flush: impl FnOnce() -> Result<(), DriverError>,
) -> Result<Option<T>, DriverError> {
    let full = |e: &DriverError| e.0 == sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY;
    let retried = match fresh() {
        Err(e) if full(&e) => flush().and_then(|()| fresh()),
        done => done,
    };
    match retried {
        Err(e) if full(&e) => Ok(None),
        done => done.map(Some),
    }
}

/// The tensors that take the most together with their like, for a reader.
fn largest(live: impl Iterator<Item = (Shape, DType)>) -> String {
    let mut alike: BTreeMap<String, (usize, usize)> = BTreeMap::new();
    for (shape, dtype) in live {
        let (count, bytes) = alike.entry(format!("{shape:?} {dtype}")).or_default();
        (*count, *bytes) = (*count + 1, *bytes + shape.numel() * dtype.size());
    }
    let mut alike: Vec<_> = alike.into_iter().collect();
    alike.sort_by_key(|(_, (_, bytes))| std::cmp::Reverse(*bytes));
    let line = |(what, (count, bytes)): &(String, (usize, usize))| format!("{count} x {what} ({bytes} bytes)");
    alike.iter().take(LISTED).map(line).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    #[test]
    fn recycled_memory_is_given_back_before_there_is_none() {
        const FULL: DriverError = DriverError(sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY);
        const LOST: DriverError = DriverError(sys::CUresult::CUDA_ERROR_LAUNCH_FAILED);
        let (flushed, tried) = (Cell::new(0), Cell::new(0));
        let run = |answers: [Result<u64, DriverError>; 2]| {
            flushed.set(0);
            tried.set(0);
            let fresh = || answers[tried.replace(tried.get() + 1)];
            let flush = || {
                flushed.set(flushed.get() + 1);
                Ok(())
            };
            let taken = retry(fresh, flush);
            (taken.map_err(|e| e.0), flushed.get(), tried.get())
        };
        assert_eq!(run([Ok(7), Ok(8)]), (Ok(Some(7)), 0, 1));
        assert_eq!(run([Err(FULL), Ok(8)]), (Ok(Some(8)), 1, 2));
        assert_eq!(run([Err(FULL), Err(FULL)]), (Ok(None), 1, 2));
        assert_eq!(run([Err(LOST), Ok(8)]), (Err(LOST.0), 0, 1));
    }

    #[test]
    fn a_graphs_buffers_are_nobody_elses_until_it_is_dropped() {
        const GRAPH: Option<u64> = Some(7);
        let mut pool = DevicePool::default();
        let enter = |pool: &mut DevicePool, pointer| pool.enter(pointer, Shape::new(&[16]).expect("shape"), DType::F32);
        let first: Vec<u64> = [100, 200].map(|pointer| enter(&mut pool, pointer)).to_vec();
        assert_eq!((pool.take(None, 1), pool.take(None, 1)), (None, None));
        pool.give(None, 1, 100);
        pool.give(None, 1, 200);

        pool.reserve(7);
        assert_eq!(pool.take(GRAPH, 1), Some(200));
        let number = enter(&mut pool, 200);
        pool.give(GRAPH, 1, 200);
        // it waits for the graph, which comes to it first
        assert_eq!((pool.take(None, 1), pool.take(None, 1)), (Some(100), None));
        assert_eq!(pool.take(GRAPH, 1), Some(200));
        let again = enter(&mut pool, 200);
        assert!(first[1] < number && number < again);
        assert!(pool.holds(&BTreeMap::from([(200, again)])) && !pool.holds(&BTreeMap::from([(200, number)])));
        assert_eq!(pool.pool.usage.live, 3 * LINE);

        pool.give(GRAPH, 1, 200);
        assert_eq!((pool.pool.usage.live, pool.take(None, 1)), (3 * LINE, None));
        pool.dissolve(7);
        assert_eq!((pool.pool.usage.live, pool.take(None, 1)), (3 * LINE, Some(200)));
        // one that is live when its graph goes follows when it is given back
        pool.give(GRAPH, 1, 200);
        assert_eq!(pool.take(None, 1), Some(200));
    }

    #[test]
    fn the_largest_tensors_come_first_with_their_like() {
        let of = |dims: &[usize]| (Shape::new(dims).expect("shape"), DType::F32);
        let text = largest([of(&[3, 10]), of(&[100]), of(&[3, 10]), of(&[1]), of(&[3, 10]), of(&[3, 10])].into_iter());
        assert_eq!(text, "4 x [3, 10] f32 (480 bytes), 1 x [100] f32 (400 bytes), 1 x [1] f32 (4 bytes)");
    }
}
