//! Copies between the host and a device, through two pieces of pinned memory: while the device copies one, the host fills or
//! empties the other.

use super::driver::Gpu;
use crate::Result;
use cudarc::driver::{DriverError, result, sys};

/// Bytes of a piece.
const PIECE: usize = 8 << 20;

/// One piece, and the event after which the device no longer needs it.
#[derive(Clone, Copy)]
struct Piece {
    data: *mut u8,
    free: sys::CUevent,
}

/// Both pieces, the one that is next first.
pub(super) struct Staging([Piece; 2]);

impl Staging {
    /// In the current context.
    pub fn new() -> Result<Staging, DriverError> {
        Ok(Staging([Piece::new()?, Piece::new()?]))
    }

    fn next(&mut self) -> Piece {
        self.0.swap(0, 1);
        self.0[1]
    }

    /// Copies to the device. Returns when `from` is no longer needed; the device may still be copying.
    ///
    /// # Safety
    /// `to` must have room for `from` on the device of `gpu`.
    pub unsafe fn write(&mut self, gpu: &Gpu, to: sys::CUdeviceptr, from: &[u8]) -> Result<()> {
        gpu.call(format_args!("copying to the device"), || {
            for (i, part) in from.chunks(PIECE).enumerate() {
                let piece = self.next();
                // SAFETY: a part fits into a piece, which the device has done with after its event; the caller has checked `to`.
                unsafe {
                    result::event::synchronize(piece.free)?;
                    std::ptr::copy_nonoverlapping(part.as_ptr(), piece.data, part.len());
                    let part = std::slice::from_raw_parts(piece.data, part.len());
                    result::memcpy_htod_async(to + (i * PIECE) as u64, part, gpu.main_stream)?;
                    result::event::record(piece.free, gpu.main_stream)?;
                }
            }
            Ok(())
        })
    }

    /// Copies to the host, after everything that was asked of the device before.
    ///
    /// # Safety
    /// `from` must have as many bytes as `to` on the device of `gpu`.
    pub unsafe fn read(&mut self, gpu: &Gpu, from: sys::CUdeviceptr, to: &mut [u8]) -> Result<()> {
        gpu.call(format_args!("copying from the device"), || {
            let mut before: Option<(Piece, &mut [u8])> = None;
            for (i, part) in to.chunks_mut(PIECE).enumerate() {
                let piece = self.next();
                // SAFETY: a part fits into a piece, which was emptied two rounds ago, and whatever the device still copies out of
                // it comes first in the stream; the caller has checked `from`.
                unsafe {
                    let copied = std::slice::from_raw_parts_mut(piece.data, part.len());
                    result::memcpy_dtoh_async(copied, from + (i * PIECE) as u64, gpu.main_stream)?;
                    result::event::record(piece.free, gpu.main_stream)?;
                }
                if let Some((piece, part)) = before.replace((piece, part)) {
                    piece.empty(part)?;
                }
            }
            before.map_or(Ok(()), |(piece, part)| piece.empty(part))
        })
    }
}

impl Piece {
    fn new() -> Result<Piece, DriverError> {
        // SAFETY: the memory is written before it is read, and never freed.
        let data = unsafe { result::malloc_host(PIECE, 0)? };
        Ok(Piece { data: data.cast(), free: result::event::create(sys::CUevent_flags::CU_EVENT_DISABLE_TIMING)? })
    }

    /// Waits for the device's copy into the piece and takes it out.
    fn empty(self, to: &mut [u8]) -> Result<(), DriverError> {
        // SAFETY: `to` is no longer than the piece, and after the event the device is done with it.
        unsafe {
            result::event::synchronize(self.free)?;
            std::ptr::copy_nonoverlapping(self.data, to.as_mut_ptr(), to.len());
        }
        Ok(())
    }
}
