//! A range of a device's addresses that memory is put behind piece by piece, so that buffers next to one another can join to one
//! even where they were taken hours apart.

use cudarc::driver::{DriverError, sys};
use std::mem::MaybeUninit;
use std::ops::Range;
use sys::CUdeviceptr;

/// Bytes of a piece, if the device allows: few enough that little is held in vain, and enough that a step of training is some
/// hundred pieces.
const PIECE: usize = 32 << 20;
/// Addresses for each byte of the device's memory, so that a place is found between the live ones while there is memory.
const ROOM: usize = 2;

pub(super) struct Space {
    base: CUdeviceptr,
    piece: usize,
    /// The memory behind each piece of the addresses.
    pieces: Vec<Option<sys::CUmemGenericAllocationHandle>>,
    property: sys::CUmemAllocationProp,
}

impl Space {
    /// Addresses for a device, the current context's, that has so many bytes; with nothing behind them.
    pub fn reserve(ordinal: u8, memory: usize) -> Result<Space, DriverError> {
        let property = property(ordinal);
        let granularity = sys::CUmemAllocationGranularity_flags::CU_MEM_ALLOC_GRANULARITY_RECOMMENDED;
        let (mut least, mut base) = (0, 0);
        // SAFETY: the driver reads the property and writes the number.
        unsafe { sys::cuMemGetAllocationGranularity(&mut least, &property, granularity) }.result()?;
        let piece = PIECE.next_multiple_of(least.max(1));
        let pieces = ROOM * memory.div_ceil(piece);
        // SAFETY: the driver writes the address.
        unsafe { sys::cuMemAddressReserve(&mut base, pieces * piece, 0, 0, 0) }.result()?;
        Ok(Space { base, piece, pieces: vec![None; pieces], property })
    }

    pub fn bytes(&self) -> usize {
        self.pieces.len() * self.piece
    }

    /// Bytes of memory behind the addresses.
    pub fn held(&self) -> usize {
        self.pieces.iter().flatten().count() * self.piece
    }

    /// The address of a byte.
    pub fn at(&self, byte: usize) -> CUdeviceptr {
        self.base + byte as u64
    }

    /// Puts memory behind these bytes where there is none. Whole pieces that were done before an error stay.
    pub fn back(&mut self, bytes: Range<usize>) -> Result<(), DriverError> {
        let touched = bytes.start / self.piece..bytes.end.div_ceil(self.piece);
        touched.into_iter().try_for_each(|i| if self.pieces[i].is_none() { self.fill(i) } else { Ok(()) })
    }

    /// Takes the memory away from the pieces that lie in these bytes as a whole. Nothing may use them any more.
    pub fn release(&mut self, bytes: Range<usize>) -> Result<(), DriverError> {
        for i in bytes.start.div_ceil(self.piece)..bytes.end / self.piece {
            let Some(handle) = self.pieces[i] else { continue };
            // SAFETY: the handle is mapped at this address as a whole, and nobody uses it.
            unsafe { sys::cuMemUnmap(self.at(i * self.piece), self.piece) }.result()?;
            self.pieces[i] = None;
            // SAFETY: nothing is mapped to the handle any more.
            unsafe { sys::cuMemRelease(handle) }.result()?;
        }
        Ok(())
    }

    /// Puts memory behind a piece that has none; after an error it has none still.
    fn fill(&mut self, i: usize) -> Result<(), DriverError> {
        let mut handle = 0;
        // SAFETY: the driver reads the property and writes the handle.
        unsafe { sys::cuMemCreate(&mut handle, self.piece, &self.property, 0) }.result()?;
        let mapped = self.map(self.at(i * self.piece), handle);
        if mapped.is_ok() {
            self.pieces[i] = Some(handle);
        } else {
            // SAFETY: nothing is mapped to the handle. The first error is the one to tell.
            unsafe { sys::cuMemRelease(handle) }.result().ok();
        }
        mapped
    }

    fn map(&self, address: CUdeviceptr, handle: sys::CUmemGenericAllocationHandle) -> Result<(), DriverError> {
        let flags = sys::CUmemAccess_flags::CU_MEM_ACCESS_FLAGS_PROT_READWRITE;
        let access = sys::CUmemAccessDesc { location: self.property.location, flags };
        // SAFETY: nothing is mapped at the address, which is reserved.
        unsafe { sys::cuMemMap(address, self.piece, 0, handle, 0) }.result()?;
        // SAFETY: the address was just mapped.
        let opened = unsafe { sys::cuMemSetAccess(address, self.piece, &access, 1) }.result();
        if opened.is_err() {
            // SAFETY: it is mapped as a whole, and nobody uses it. The first error is the one to tell.
            unsafe { sys::cuMemUnmap(address, self.piece) }.result().ok();
        }
        opened
    }
}

/// Memory of a device that stays where it is.
fn property(ordinal: u8) -> sys::CUmemAllocationProp {
    // SAFETY: zeros are a valid value of each of its fields: no handles to share, and no flags.
    let mut property: sys::CUmemAllocationProp = unsafe { MaybeUninit::zeroed().assume_init() };
    property.type_ = sys::CUmemAllocationType::CU_MEM_ALLOCATION_TYPE_PINNED;
    property.location =
        sys::CUmemLocation { type_: sys::CUmemLocationType::CU_MEM_LOCATION_TYPE_DEVICE, id: ordinal.into() };
    property
}
