//! One pool of recycled host buffers.
//!
//! Sizes are rounded up to one of eight steps per power of two, so that a buffer serves the next tensor of about its size and
//! the steady-state training step allocates nothing. Buffers are 64-byte aligned and always initialised.
//!
//! [`check`] mode is for tests: fresh buffers are filled with NaN bytes, so that a kernel that leaves an element unwritten
//! shows, and a guard behind each buffer is compared when it is freed, so that a write past the end shows.

use crate::{Error, Result};
use bytemuck::{Pod, Zeroable};
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{LazyLock, Mutex};

/// The unit of allocation: a cache line, which also gives the alignment.
#[repr(C, align(64))]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Line([u8; LINE]);

pub(crate) const LINE: usize = 64;
pub(crate) const POISON: u8 = 0xff; // as any float this is NaN
pub(crate) const GUARD: u8 = 0xa5;

static POOL: LazyLock<Mutex<Pool<Vec<Line>>>> = LazyLock::new(Default::default);
static CHECK: AtomicBool = AtomicBool::new(false);

/// Bytes of memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// What tensors hold now, and the most they have held since [`reset_peak`].
    pub live: usize,
    pub peak: usize,
    /// What was taken from the system and not given back: live, or waiting for the next tensor of its size.
    pub held: usize,
}

/// Of the host.
pub fn usage() -> Usage {
    lock().usage
}

/// Starts a new high-water mark from what is live now.
pub fn reset_peak() {
    let usage = &mut lock().usage;
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

/// Gives all recycled buffers of the host back to the operating system.
pub fn flush() {
    let recycled = lock().drain();
    drop(recycled);
}

fn lock() -> std::sync::MutexGuard<'static, Pool<Vec<Line>>> {
    // A panic while the lock is held leaves a valid pool behind, so poisoning carries no information.
    POOL.lock().unwrap_or_else(|e| e.into_inner())
}

/// Buffers that wait to be used again, by their lines, and the account of all buffers. `B` is the memory itself, or nothing
/// where only the account is wanted.
#[derive(Debug)]
pub(crate) struct Pool<B> {
    idle: HashMap<usize, Vec<B>>,
    pub usage: Usage,
}

impl<B> Default for Pool<B> {
    fn default() -> Self {
        Pool { idle: HashMap::new(), usage: Usage::default() }
    }
}

impl<B> Pool<B> {
    /// Enters a buffer as live. None when none waits: then a fresh one is due, and is entered as held.
    pub fn take(&mut self, lines: usize) -> Option<B> {
        let buffer = self.idle.get_mut(&lines).and_then(Vec::pop);
        let usage = &mut self.usage;
        usage.live += lines * LINE;
        usage.peak = usage.peak.max(usage.live);
        usage.held += if buffer.is_none() { lines * LINE } else { 0 };
        buffer
    }

    pub fn give(&mut self, lines: usize, buffer: B) {
        self.usage.live -= lines * LINE;
        self.idle.entry(lines).or_default().push(buffer);
    }

    /// Takes back the entry of a buffer that could not be had.
    pub fn cancel(&mut self, lines: usize) {
        self.usage.live -= lines * LINE;
        self.usage.held -= lines * LINE;
    }

    /// Takes all recycled buffers out, to be given back.
    pub fn drain(&mut self) -> impl Iterator<Item = B> + use<B> {
        self.usage.held = self.usage.live;
        std::mem::take(&mut self.idle).into_values().flatten()
    }
}

/// Lines in the bucket that serves `bytes`: the next multiple of an eighth of the power of two below.
pub(crate) fn bucket(bytes: usize) -> usize {
    let lines = bytes.div_ceil(LINE).max(1);
    let step = (lines.next_power_of_two() / 16).max(1);
    lines.next_multiple_of(step)
}

/// A buffer that returns to the pool when dropped.
pub(crate) struct Buffer {
    lines: Vec<Line>,
    bytes: usize,
    guarded: bool,
}

impl Buffer {
    /// Takes `bytes` bytes whose contents are arbitrary but initialised.
    pub(crate) fn take(op: &'static str, bytes: usize) -> Result<Buffer> {
        let guarded = checking();
        let lines = bucket(bytes + if guarded { LINE } else { 0 });
        let recycled = lock().take(lines);
        let data = match recycled {
            Some(data) => data,
            None => allocate(op, lines)?,
        };
        let mut buffer = Buffer { lines: data, bytes, guarded };
        if guarded {
            let raw: &mut [u8] = bytemuck::cast_slice_mut(&mut buffer.lines);
            raw[..bytes].fill(POISON);
            raw[bytes..].fill(GUARD);
        }
        Ok(buffer)
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &bytemuck::cast_slice(&self.lines)[..self.bytes]
    }

    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        &mut bytemuck::cast_slice_mut(&mut self.lines)[..self.bytes]
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let lines = std::mem::take(&mut self.lines);
        let overrun = self.guarded && bytemuck::cast_slice(&lines)[self.bytes..].iter().any(|&b: &u8| b != GUARD);
        lock().give(lines.len(), lines);
        if overrun && !std::thread::panicking() {
            panic!("a kernel wrote past the end of a buffer of {} bytes", self.bytes);
        }
    }
}

/// Fresh zeroed memory; when there is none, gives recycled buffers back and tries once more.
fn allocate(op: &'static str, lines: usize) -> Result<Vec<Line>> {
    let fresh = || {
        let mut v = Vec::new();
        v.try_reserve_exact(lines).ok()?;
        v.resize(lines, Line::zeroed());
        Some(v)
    };
    if let Some(v) = fresh() {
        return Ok(v);
    }
    flush();
    fresh().ok_or_else(|| {
        let mut pool = lock();
        pool.cancel(lines);
        Error::OutOfMemory { op, bytes: lines * LINE, live: pool.usage.live }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_waste_at_most_an_eighth() {
        for bytes in [1, 64, 65, 1000, 4097, 1 << 20, (1 << 20) + 1, 50_331_649] {
            let got = bucket(bytes) * LINE;
            assert!(got >= bytes && got <= bytes + bytes / 8 + LINE, "{bytes} -> {got}");
        }
    }

    #[test]
    fn checked_buffers_are_poisoned_and_overruns_are_caught() {
        check(true);
        let buffer = Buffer::take("test", 100).expect("100 bytes");
        let mut overrun = Buffer::take("test", 100).expect("100 bytes");
        check(false);
        assert!(buffer.bytes().iter().all(|&b| b == POISON));
        overrun.lines[1].0[40] = 0; // byte 104
        assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| drop(overrun))).is_err());
    }
}
