//! Page-aligned anonymous mappings: the payload arena, the control words, the provided-buffer ring.

use crate::fault::Fault;
use crate::layout::PAGE_BYTES;

const HUGE_BYTES: usize = 2 << 20;

/// What backs a mapping.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backing {
    /// Reserved huge pages (vm.nr_hugepages).
    HugeTlb,
    /// Ordinary pages, merged into huge ones where the kernel does so.
    Ordinary,
}

/// Unmapped when dropped; whoever lets the kernel or JavaScript see the memory keeps the mapping alive with an `Arc`.
#[derive(Debug)]
pub struct Mapping {
    start: *mut u8,
    bytes: usize,
    mapped_bytes: usize,
    pub backing: Backing,
}

// SAFETY: the mapping is plain memory owned by this value; access to it goes through raw pointers whose users synchronise.
unsafe impl Send for Mapping {}
// SAFETY: as above; `&Mapping` gives out an address and a length only.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// `bytes` rounded up to whole pages, zeroed, left out of core dumps. `huge`: try reserved huge pages first.
    pub fn new(bytes: usize, huge: bool) -> Result<Self, Fault> {
        let bytes = bytes.next_multiple_of(PAGE_BYTES);
        if bytes == 0 {
            return Err(Fault::misuse("a mapping of 0 bytes"));
        }
        if huge && bytes >= HUGE_BYTES {
            let mapped_bytes = bytes.next_multiple_of(HUGE_BYTES);
            if let Ok(start) = map(mapped_bytes, libc::MAP_HUGETLB) {
                advise(start, mapped_bytes, libc::MADV_DONTDUMP);
                return Ok(Mapping { start, bytes, mapped_bytes, backing: Backing::HugeTlb });
            }
        }
        let start = map(bytes, libc::MAP_NORESERVE).map_err(|errno| Fault::os(errno, format!("cannot map {bytes} bytes of memory")))?;
        advise(start, bytes, libc::MADV_DONTDUMP);
        if huge && bytes >= HUGE_BYTES {
            advise(start, bytes, libc::MADV_HUGEPAGE);
        }
        Ok(Mapping { start, bytes, mapped_bytes: bytes, backing: Backing::Ordinary })
    }

    pub fn start(&self) -> *mut u8 {
        self.start
    }

    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Byte offset of page * 4096 + delta when `length` bytes from there are inside the mapping.
    #[inline]
    pub fn range(&self, page: i32, delta: i32, length: i32) -> Option<usize> {
        if page < 0 || delta < 0 || length < 0 {
            return None;
        }
        let start = page as usize * PAGE_BYTES + delta as usize;
        if start + length as usize <= self.bytes { Some(start) } else { None }
    }

    /// CRC-32C of a range that [`Mapping::range`] approved.
    pub fn crc32c(&self, start: usize, length: usize) -> u32 {
        assert!(start + length <= self.bytes);
        // SAFETY: the range is inside the mapping, which lives as long as `self`. The caller owns the range: no operation
        // that writes to it is in flight; if one were, the sum would be wrong, nothing worse.
        crc32c::crc32c(unsafe { std::slice::from_raw_parts(self.start.add(start), length) })
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping was made by `map` with this length and nobody else unmaps it.
        unsafe { libc::munmap(self.start.cast(), self.mapped_bytes) };
    }
}

fn map(bytes: usize, flags: i32) -> Result<*mut u8, i32> {
    // SAFETY: an anonymous private mapping at an address of the kernel's choice touches no existing memory.
    let start = unsafe {
        libc::mmap(std::ptr::null_mut(), bytes, libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | flags, -1, 0)
    };
    if start == libc::MAP_FAILED { Err(crate::fault::last_errno()) } else { Ok(start.cast()) }
}

/// Advice only: a kernel that does not know it changes nothing.
fn advise(start: *mut u8, bytes: usize, advice: i32) {
    // SAFETY: the range is a mapping just made by the caller.
    unsafe { libc::madvise(start.cast(), bytes, advice) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_outside_the_mapping_are_refused() {
        let m = Mapping::new(3 * PAGE_BYTES, false).unwrap();
        assert_eq!(m.range(0, 0, 3 * 4096), Some(0));
        assert_eq!(m.range(2, 4096, 0), Some(3 * 4096));
        assert_eq!(m.range(2, 1, 4096), None);
        assert_eq!(m.range(-1, 4096, 1), None);
        assert_eq!(m.range(0, -1, 1), None);
        assert_eq!(m.range(0, 0, -1), None);
        assert_eq!(m.range(i32::MAX, i32::MAX, i32::MAX), None);
    }

    #[test]
    fn crc32c_is_the_castagnoli_of_rfc_3720() {
        let m = Mapping::new(PAGE_BYTES, false).unwrap();
        assert_eq!(m.crc32c(0, 32), 0x8a91_36aa);
    }
}
