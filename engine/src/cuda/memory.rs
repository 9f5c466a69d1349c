//! Memory for the tensors of a device: places in an [`Arena`](crate::arena), as the host's, in a range of addresses that memory is
//! put behind as it is needed ([`Space`]). A place that is free is taken again by later work at once: all work of a device is done
//! in order.
//!
//! In check mode ([`crate::memory::check`]) each buffer is an allocation of the driver's, for tools that watch those, and has a
//! guard behind it. So is a buffer that one thread takes while another captures a graph.

use super::book::Book;
use super::driver::{Gpu, gpu};
use super::graph::relaxed;
use super::space::Space;
use super::timeline::What;
use crate::arena::Place;
use crate::memory::{GUARD, LINE, POISON, Usage, checking, lines};
use crate::{DType, Device, Error, Result, Shape};
use cudarc::driver::{DriverError, result, sys};
use sys::CUdeviceptr;

/// Lines that a place is a multiple of: 256 bytes, as the driver aligns.
const ALIGNMENT: usize = 256 / LINE;

/// Pairs of bytes in a line of which one byte may be needed before them.
const GUARDS: usize = LINE / 2 - 1;

/// Of a CUDA device's memory; opens it.
pub fn usage(device: Device) -> Result<Usage> {
    Ok(gpu(device)?.pool().usage())
}

/// All memory of a device.
pub(super) struct DevicePool {
    pub book: Book,
    space: Space,
    /// Bytes of the buffers that are allocations of their own.
    alone: usize,
    /// The most bytes that were live.
    peak: usize,
}

/// A piece of device memory that returns to its pool when dropped.
pub(crate) struct Buffer {
    gpu: &'static Gpu,
    pointer: CUdeviceptr,
    number: u64,
    /// The graph that it belongs to.
    home: Option<u64>,
    /// None for an allocation of its own.
    place: Option<Place>,
    bytes: usize,
    guarded: bool,
}

impl Buffer {
    /// Room for a tensor; its contents are arbitrary.
    pub(crate) fn take(device: Device, shape: Shape, dtype: DType) -> Result<Buffer> {
        let gpu = gpu(device)?;
        let (bytes, guarded) = (shape.numel() * dtype.size(), checking());
        let with_guard = taken(bytes, guarded);
        let mut pool = gpu.pool();
        let found = gpu.call(format_args!("taking memory"), || relaxed(|| pool.take(gpu, with_guard)))?;
        let Some((place, pointer)) = found else {
            let (live, largest) = (pool.usage().live, pool.book.largest());
            return Err(Error::OutOfDeviceMemory { device, bytes, live, largest });
        };
        let number = pool.book.enter(shape, dtype);
        drop(pool);
        let mut buffer = Buffer { gpu, pointer, number, home: gpu.capture(), place, bytes, guarded };
        if guarded {
            buffer.set(0, with_guard, POISON)?;
            buffer.set_guard()?;
        }
        Ok(buffer)
    }

    pub(crate) fn device(&self) -> Device {
        self.gpu.device()
    }

    /// For work that uses the buffer.
    pub(crate) fn pointer(&self) -> u64 {
        self.gpu.note_use(self.number, self.home);
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

    /// From the next multiple of two bytes on, as the driver sets pairs of them.
    fn set_guard(&mut self) -> Result<()> {
        let (to, stream) = (self.pointer() + self.bytes.next_multiple_of(2) as u64, self.gpu.stream());
        // SAFETY: with the byte before them the pairs lie in the line that was taken for the guard.
        let fill = || unsafe { sys::cuMemsetD16Async(to, u16::from_le_bytes(GUARD), GUARDS, stream) }.result();
        self.gpu.call(format_args!("filling memory"), fill)
    }

    /// Bytes that were taken for it.
    fn taken(&self) -> usize {
        taken(self.bytes, self.guarded)
    }

    fn overrun(&self) -> bool {
        let (mut guard, mut want) = ([0; LINE], [POISON; LINE]);
        want[self.bytes % 2..][..2 * GUARDS].copy_from_slice(&GUARD.repeat(GUARDS));
        // SAFETY: the guard lies inside the buffer's lines.
        let read = unsafe { self.gpu.staging().read(self.gpu, self.pointer + self.bytes as u64, &mut guard) };
        // What cannot be read was not found wrong: the next call that needs the device fails and says why.
        read.is_ok() && guard != want
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // What is only captured has not written anything yet.
        let overrun = self.guarded && self.gpu.capture().is_none() && self.overrun();
        let mut pool = self.gpu.pool();
        let owner = pool.book.strike(self.number);
        pool.give(self);
        drop(pool);
        if let Some((shape, dtype)) = owner.filter(|_| overrun && !std::thread::panicking()) {
            panic!("a kernel wrote past the end of {shape:?} {dtype}, {} bytes on {}", self.bytes, self.device());
        }
    }
}

/// Bytes to take for so many: never none, so that each buffer has an address of its own.
fn taken(bytes: usize, guarded: bool) -> usize {
    if guarded { bytes + LINE } else { bytes.max(1) }
}

impl DevicePool {
    /// In the current context, that of a device with so many bytes.
    pub fn open(ordinal: u8, memory: usize) -> Result<DevicePool, DriverError> {
        let (space, mut book) = (Space::reserve(ordinal, memory)?, Book::default());
        book.arena.grow(space.bytes() / LINE);
        Ok(DevicePool { book, space, alone: 0, peak: 0 })
    }

    /// A place with memory behind it, or an allocation. None when the device has no room.
    fn take(&mut self, gpu: &Gpu, bytes: usize) -> Result<Option<(Option<Place>, CUdeviceptr)>, DriverError> {
        let home = gpu.capture();
        let taken = if home.is_none() && (checking() || self.book.is_closed(home)) {
            self.allocate(gpu, bytes)?.map(|pointer| (None, pointer))
        } else {
            self.place(gpu, home, lines(bytes).next_multiple_of(ALIGNMENT))?.map(|(place, at)| (Some(place), at))
        };
        self.peak = self.peak.max(self.usage().live);
        Ok(taken)
    }

    fn place(
        &mut self,
        gpu: &Gpu,
        home: Option<u64>,
        lines: usize,
    ) -> Result<Option<(Place, CUdeviceptr)>, DriverError> {
        let backed = |pool: &mut DevicePool| {
            let Some(place) = pool.book.take(home, lines) else { return full() };
            let bytes = place.start * LINE..(place.start + lines) * LINE;
            let pointer = pool.space.at(bytes.start);
            pool.space.back(bytes).inspect_err(|_| pool.book.give(home, place))?;
            Ok((place, pointer))
        };
        retry(self, backed, |pool| pool.flush(gpu))
    }

    fn allocate(&mut self, gpu: &Gpu, bytes: usize) -> Result<Option<CUdeviceptr>, DriverError> {
        // SAFETY: the memory is written before it is read.
        let fresh = |_: &mut DevicePool| unsafe { result::malloc_async(gpu.main_stream, bytes) };
        let pointer = retry(self, fresh, |pool| pool.flush(gpu))?;
        self.alone += if pointer.is_some() { bytes } else { 0 };
        Ok(pointer)
    }

    /// Takes back what [`DevicePool::take`] gave for so many bytes.
    fn give(&mut self, buffer: &Buffer) {
        let Buffer { gpu, pointer, home, place, .. } = *buffer;
        if let Some(place) = place {
            return self.book.give(home, place);
        }
        self.alone -= buffer.taken();
        // SAFETY: nobody else has the memory, and it comes after its last use in the stream.
        let free = || unsafe { result::free_async(pointer, gpu.main_stream) };
        // What the driver does not take back stays until the process ends; its next call says what is wrong.
        gpu.call(format_args!("giving memory back"), || relaxed(free)).ok();
    }

    /// Gives the memory behind free places back to the driver, once the device has done with it.
    pub fn flush(&mut self, gpu: &Gpu) -> Result<(), DriverError> {
        // SAFETY: the stream is the device's.
        unsafe { result::stream::synchronize(gpu.main_stream)? };
        let free = self.book.flush();
        free.into_iter().try_for_each(|lines| self.space.release(lines.start * LINE..lines.end * LINE))
    }

    fn usage(&self) -> Usage {
        let live = self.book.arena.usage.live + self.alone;
        Usage { live, peak: self.peak, held: self.space.held() + self.alone }
    }
}

fn full<T>() -> Result<T, DriverError> {
    Err(DriverError(sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY))
}

/// Makes calls for which the driver takes memory of its own, which the pool may hold: again after a flush where there is none.
pub(super) fn with_room<T>(gpu: &Gpu, calls: impl Fn() -> Result<T, DriverError>) -> Result<T, DriverError> {
    let done = retry(&mut (), |()| calls(), |()| relaxed(|| gpu.pool().flush(gpu)))?;
    done.map_or_else(full, Ok)
}

/// What `fresh` gives of `from`, after a `flush` where it has no memory; None where that does not help.
fn retry<P, T>(
    from: &mut P,
    fresh: impl Fn(&mut P) -> Result<T, DriverError>,
    flush: impl FnOnce(&mut P) -> Result<(), DriverError>,
) -> Result<Option<T>, DriverError> {
    let full = |e: &DriverError| e.0 == sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY;
    let retried = match fresh(from) {
        Err(e) if full(&e) => flush(from).and_then(|()| fresh(from)),
        done => done,
    };
    match retried {
        Err(e) if full(&e) => Ok(None),
        done => done.map(Some),
    }
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
            let fresh = |_: &mut ()| answers[tried.replace(tried.get() + 1)];
            let flush = |_: &mut ()| {
                flushed.set(flushed.get() + 1);
                Ok(())
            };
            let taken = retry(&mut (), fresh, flush);
            (taken.map_err(|e| e.0), flushed.get(), tried.get())
        };
        assert_eq!(run([Ok(7), Ok(8)]), (Ok(Some(7)), 0, 1));
        assert_eq!(run([Err(FULL), Ok(8)]), (Ok(Some(8)), 1, 2));
        assert_eq!(run([Err(FULL), Err(FULL)]), (Ok(None), 1, 2));
        assert_eq!(run([Err(LOST), Ok(8)]), (Err(LOST.0), 0, 1));
    }
}
