//! The system's allocator, with large pages for large pieces: the volumes of a file would otherwise cost a page fault every 4 KiB,
//! nearly half of the time that reading takes. Tensors are not concerned: they have their arena. The binary uses it; what links
//! the library chooses its own.

use std::alloc::{GlobalAlloc, Layout, System};

pub struct LargePages;

/// Bytes from which glibc maps a piece on its own and unmaps it when it is freed ([`keep_freed_memory`]).
const LARGE: usize = 32 << 20;
/// Bytes of a large page.
#[cfg(target_os = "linux")]
const PAGE: usize = 2 << 20;

// SAFETY: everything is left to the system's allocator; advice changes no contents.
unsafe impl GlobalAlloc for LargePages {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as for this function.
        advised(unsafe { System.alloc(layout) }, layout.size())
    }
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as for this function.
        advised(unsafe { System.alloc_zeroed(layout) }, layout.size())
    }
    unsafe fn realloc(&self, p: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: as for this function.
        advised(unsafe { System.realloc(p, layout, size) }, size)
    }
    unsafe fn dealloc(&self, p: *mut u8, layout: Layout) {
        // SAFETY: as for this function.
        unsafe { System.dealloc(p, layout) }
    }
}

/// glibc gives large pieces of memory back to the system as they are freed, and a loader that asks for the 20 MB of a sample again and
/// again then spends half of its time on page faults.
#[cfg(target_env = "gnu")]
pub fn keep_freed_memory() {
    // SAFETY: two settings of the allocator, made before there is a second thread.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, LARGE as libc::c_int);
        libc::mallopt(libc::M_TRIM_THRESHOLD, 4 * LARGE as libc::c_int);
    }
}

#[cfg(not(target_env = "gnu"))]
pub fn keep_freed_memory() {}

/// Asks for large pages where `size` bytes at `p` have room for them. Without them everything works as well, if more slowly.
#[cfg(target_os = "linux")]
fn advised(p: *mut u8, size: usize) -> *mut u8 {
    let start = (p as usize).next_multiple_of(PAGE);
    let end = (p as usize + size) / PAGE * PAGE;
    if size >= LARGE && !p.is_null() {
        // SAFETY: whole pages of the piece, and what they hold stays.
        unsafe { libc::madvise(start as *mut libc::c_void, end - start, libc::MADV_HUGEPAGE) };
    }
    p
}

#[cfg(not(target_os = "linux"))]
fn advised(p: *mut u8, _size: usize) -> *mut u8 {
    p
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_pieces_begin_as_zeros_and_keep_their_values_as_they_grow() {
        let mut piece = vec![0u64; LARGE / 8];
        assert!(piece.iter().all(|&v| v == 0));
        piece.iter_mut().zip(0..).for_each(|(v, i)| *v = i);
        piece.extend(LARGE as u64 / 8..LARGE as u64 / 4);
        assert!(piece.iter().zip(0..).all(|(&v, i)| v == i));
    }
}
