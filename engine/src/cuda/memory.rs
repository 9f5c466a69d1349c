//! Recycled device buffers, in the same sizes and with the same account as the host's ([`crate::memory`]), and the same check
//! mode.

use super::driver::{Gpu, gpu};
use crate::memory::{GUARD, LINE, POISON, Pool, Usage, bucket, checking};
use crate::{DType, Device, Error, Result, Shape};
use cudarc::driver::{DriverError, result, sys};
use std::collections::{BTreeMap, HashMap};

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
    pool: Pool<sys::CUdeviceptr>,
    live: HashMap<sys::CUdeviceptr, (Shape, DType)>,
}

/// A piece of device memory that returns to its pool when dropped.
pub(crate) struct Buffer {
    gpu: &'static Gpu,
    pointer: sys::CUdeviceptr,
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
        let mut pool = gpu.pool();
        let pointer = match pool.pool.take(lines) {
            Some(pointer) => pointer,
            None => pool.allocate(gpu, lines)?,
        };
        pool.live.insert(pointer, (shape, dtype));
        drop(pool);
        let mut buffer = Buffer { gpu, pointer, lines, bytes, guarded };
        if guarded {
            buffer.fill(POISON)?;
            buffer.set(bytes, buffer.watched(), GUARD)?;
        }
        Ok(buffer)
    }

    pub(crate) fn device(&self) -> Device {
        self.gpu.device()
    }

    pub(crate) fn pointer(&self) -> u64 {
        self.pointer
    }

    /// Sets every byte.
    pub(crate) fn fill(&mut self, value: u8) -> Result<()> {
        self.set(0, self.bytes, value)
    }

    /// Overwrites the bytes from `offset` on; they must lie inside.
    pub(crate) fn write(&mut self, offset: usize, from: &[u8]) -> Result<()> {
        assert!(offset + from.len() <= self.bytes, "a write outside the buffer");
        // SAFETY: the range lies inside the buffer, which nobody else holds.
        unsafe { self.gpu.staging().write(self.gpu, self.pointer + offset as u64, from) }
    }

    /// Copies the bytes from `offset` on, once all work on them is done; they must lie inside.
    pub(crate) fn read(&self, offset: usize, to: &mut [u8]) -> Result<()> {
        assert!(offset + to.len() <= self.bytes, "a read outside the buffer");
        // SAFETY: the range lies inside the buffer.
        unsafe { self.gpu.staging().read(self.gpu, self.pointer + offset as u64, to) }
    }

    fn set(&mut self, offset: usize, bytes: usize, value: u8) -> Result<()> {
        let (to, stream) = (self.pointer + offset as u64, self.gpu.stream);
        if bytes == 0 {
            return Ok(());
        }
        // SAFETY: the callers' ranges lie inside the buffer's lines.
        self.gpu.call(format_args!("filling memory"), || unsafe { result::memset_d8_async(to, value, bytes, stream) })
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
        let overrun = self.guarded && self.overrun();
        let mut pool = self.gpu.pool();
        let owner = pool.live.remove(&self.pointer);
        pool.pool.give(self.lines, self.pointer);
        drop(pool);
        if overrun && !std::thread::panicking() {
            panic!("a kernel wrote past the end of {owner:?}, {} bytes on {}", self.bytes, self.device());
        }
    }
}

impl DevicePool {
    /// Fresh memory; when there is none, gives recycled buffers back and tries once more.
    fn allocate(&mut self, gpu: &Gpu, lines: usize) -> Result<sys::CUdeviceptr> {
        // SAFETY: the memory is written before it is read.
        let fresh = || unsafe { result::malloc_async(gpu.stream, lines * LINE) };
        let taken = gpu.call(format_args!("taking memory"), || retry(fresh, || self.flush(gpu)));
        let pointer = taken.and_then(|pointer| pointer.ok_or_else(|| self.out_of_memory(gpu, lines * LINE)));
        pointer.inspect_err(|_| self.pool.cancel(lines))
    }

    /// Gives recycled buffers back to the driver, and waits until it has them.
    fn flush(&mut self, gpu: &Gpu) -> Result<(), DriverError> {
        for pointer in self.pool.drain() {
            // SAFETY: recycled buffers have no other owner, and come after their last use in the stream.
            unsafe { result::free_async(pointer, gpu.stream)? };
        }
        // SAFETY: the stream is the device's.
        unsafe { result::stream::synchronize(gpu.stream) }
    }

    fn out_of_memory(&self, gpu: &Gpu, bytes: usize) -> Error {
        let largest = largest(self.live.values().copied());
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
    fn the_largest_tensors_come_first_with_their_like() {
        let of = |dims: &[usize]| (Shape::new(dims).expect("shape"), DType::F32);
        let text = largest([of(&[3, 10]), of(&[100]), of(&[3, 10]), of(&[1]), of(&[3, 10]), of(&[3, 10])].into_iter());
        assert_eq!(text, "4 x [3, 10] f32 (480 bytes), 1 x [100] f32 (400 bytes), 1 x [1] f32 (4 bytes)");
    }
}
