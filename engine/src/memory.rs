//! The host's memory for tensors: buffers in an [`Arena`], so that the steady-state training step takes nothing from the system.
//!
//! Segments are anonymous mappings, in large pages where the system has them: only what was touched takes room, all of it is
//! initialised, and [`flush`] gives back what is free. Buffers are 64-byte aligned.
//!
//! [`check`] mode is for tests: buffers are filled with NaN bytes, so that a kernel that leaves an element unwritten shows, and
//! each has a guard of other NaN behind it, which is compared when it is freed: reads and writes past the end show too.

pub use crate::arena::Usage;

use crate::arena::{Arena, Place};
use crate::{Error, Result};
use memmap2::{Advice, MmapMut, MmapRaw, UncheckedAdvice};
use std::ops::Range;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{LazyLock, Mutex, MutexGuard};

pub(crate) use crate::arena::LINE;
pub(crate) const POISON: u8 = 0xff; // as any float this is NaN
/// Behind a buffer, again and again: as f32, bf16 and f16 NaN too, so that reading it shows. As f32 and bf16 it is one that
/// arithmetic makes another of (a signalling one), so that writing there what was computed from another guard shows as well.
pub(crate) const GUARD: [u8; 2] = [0x8f, 0xff];
/// Bytes that are a whole number of pages on every system.
const PAGES: usize = 64 << 10;

static HOST: LazyLock<Mutex<Host>> = LazyLock::new(Default::default);
static CHECK: AtomicBool = AtomicBool::new(false);

#[derive(Default)]
struct Host {
    arena: Arena,
    segments: Vec<MmapRaw>,
}

/// Of the host.
pub fn usage() -> Usage {
    lock().arena.usage
}

/// Starts a new high-water mark from what is live now.
pub fn reset_peak() {
    let usage = &mut lock().arena.usage;
    usage.peak = usage.live;
}

/// Turns poisoning and guards on or off for buffers taken from now on. For tests and `vocoe verify`.
pub fn check(on: bool) {
    CHECK.store(on, Relaxed);
}

/// Whether [`check`] is on.
pub(crate) fn checking() -> bool {
    CHECK.load(Relaxed)
}

/// Gives all free memory of the host's arena back to the operating system.
pub fn flush() {
    lock().flush();
}

fn lock() -> MutexGuard<'static, Host> {
    // A panic while the lock is held leaves a valid arena behind, so poisoning carries no information.
    HOST.lock().unwrap_or_else(|e| e.into_inner())
}

impl Host {
    fn take(&mut self, op: &'static str, lines: usize) -> Result<(Place, NonNull<u8>)> {
        let place = self.arena.take(lines).or_else(|| {
            self.grow(self.arena.growth(lines)).or_else(|| self.grow(lines))?;
            self.arena.take(lines)
        });
        let found = place.and_then(|place| {
            let base = NonNull::new(self.segments.get(place.segment)?.as_mut_ptr())?;
            // SAFETY: the place lies inside its segment.
            Some((place, unsafe { base.add(place.start * LINE) }))
        });
        found.ok_or(Error::OutOfMemory { op, bytes: lines * LINE, live: self.arena.usage.live })
    }

    /// A segment of so many lines; None when the system has no room for it.
    fn grow(&mut self, lines: usize) -> Option<()> {
        let map = MmapRaw::from(MmapMut::map_anon(lines.checked_mul(LINE)?).ok()?);
        // Without large pages everything works as well, if a little slower.
        map.advise(Advice::HugePage).ok();
        self.segments.push(map);
        self.arena.grow(lines);
        Some(())
    }

    fn flush(&mut self) {
        for (segment, lines) in self.arena.flush() {
            let pages = whole_pages(lines);
            // SAFETY: nobody holds these lines, and whoever takes them next finds zeros. Where the system refuses, they stay.
            unsafe {
                let advice = UncheckedAdvice::DontNeed;
                self.segments[segment].unchecked_advise_range(advice, pages.start, pages.len()).ok();
            }
        }
    }
}

/// The bytes of the pages that lie in these lines as a whole.
fn whole_pages(lines: Range<usize>) -> Range<usize> {
    let start = (lines.start * LINE).next_multiple_of(PAGES);
    start..(lines.end * LINE / PAGES * PAGES).max(start)
}

/// A piece of the host's memory, returned when dropped.
pub(crate) struct Buffer {
    place: Place,
    start: NonNull<u8>,
    bytes: usize,
    guarded: bool,
}

// SAFETY: the buffer is the only one to hold its memory, as a Vec is.
unsafe impl Send for Buffer {}
// SAFETY: as above.
unsafe impl Sync for Buffer {}

impl Buffer {
    /// Takes `bytes` bytes whose contents are arbitrary but initialised.
    pub(crate) fn take(op: &'static str, bytes: usize) -> Result<Buffer> {
        let guarded = checking();
        let lines = lines(bytes + if guarded { LINE } else { 0 });
        let (place, start) = lock().take(op, lines)?;
        let mut buffer = Buffer { place, start, bytes, guarded };
        if guarded {
            let raw = buffer.all_mut();
            raw[..bytes].fill(POISON);
            (bytes..).zip(&mut raw[bytes..]).for_each(|(at, byte)| *byte = GUARD[at % 2]);
        }
        Ok(buffer)
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.all()[..self.bytes]
    }

    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        let bytes = self.bytes;
        &mut self.all_mut()[..bytes]
    }

    fn all(&self) -> &[u8] {
        // SAFETY: the place's lines are mapped and initialised, segments stay mapped for good, and only this buffer holds them.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.place.lines * LINE) }
    }

    fn all_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.place.lines * LINE) }
    }
}

/// Lines for a buffer: at least one, so that each has an address of its own.
pub(crate) fn lines(bytes: usize) -> usize {
    bytes.div_ceil(LINE).max(1)
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let overrun = self.guarded && (self.bytes..).zip(&self.all()[self.bytes..]).any(|(at, &b)| b != GUARD[at % 2]);
        lock().arena.give(self.place);
        if overrun && !std::thread::panicking() {
            panic!("a kernel wrote past the end of a buffer of {} bytes", self.bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checked_buffers_are_poisoned_and_overruns_are_caught() {
        check(true);
        let buffer = Buffer::take("test", 100).expect("100 bytes");
        let mut overrun = Buffer::take("test", 100).expect("100 bytes");
        check(false);
        assert!(buffer.bytes().iter().all(|&b| b == POISON));
        overrun.all_mut()[104] = 0;
        assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| drop(overrun))).is_err());
    }
}
