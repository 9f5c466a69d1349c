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

    /// Puts memory behind these bytes where there is none. What an error leaves behind them stays.
    pub fn back(&mut self, bytes: Range<usize>) -> Result<(), DriverError> {
        let touched = bytes.start / self.piece..bytes.end.div_ceil(self.piece);
        touched.into_iter().try_for_each(|i| if self.pieces[i].is_none() { self.fill(i) } else { Ok(()) })
    }

    /// Takes the memory away from the pieces that lie in these bytes as a whole. Nothing may use them any more.
    pub fn release(&mut self, bytes: Range<usize>) -> Result<(), DriverError> {
        for i in bytes.start.div_ceil(self.piece)..bytes.end / self.piece {
            let Some(handle) = self.pieces[i].take() else { continue };
            // SAFETY: the handle is mapped at this address as a whole, and nobody uses it.
            unsafe {
                sys::cuMemUnmap(self.at(i * self.piece), self.piece).result()?;
                sys::cuMemRelease(handle).result()?;
            }
        }
        Ok(())
    }

    fn fill(&mut self, i: usize) -> Result<(), DriverError> {
        let (address, mut handle) = (self.at(i * self.piece), 0);
        let flags = sys::CUmemAccess_flags::CU_MEM_ACCESS_FLAGS_PROT_READWRITE;
        let access = sys::CUmemAccessDesc { location: self.property.location, flags };
        // SAFETY: the driver reads the property and writes the handle.
        unsafe { sys::cuMemCreate(&mut handle, self.piece, &self.property, 0) }.result()?;
        // SAFETY: nothing is mapped at the address, which is reserved.
        let mapped = unsafe { sys::cuMemMap(address, self.piece, 0, handle, 0) }.result();
        // SAFETY: the address was just mapped.
        let ready = mapped.and_then(|()| unsafe { sys::cuMemSetAccess(address, self.piece, &access, 1) }.result());
        self.pieces[i] = Some(handle);
        ready
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
