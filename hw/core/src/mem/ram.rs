//! Guest RAM: one anonymous host mapping.
//!
//! The mapping is private, not reserved and populated by the host on first touch, so a guest costs what it
//! touched. It is advised to consist of huge pages, and aligned to them: first touches cost a 512th of the host's page
//! faults, and an access to a far address one miss of the host's TLB instead of two. Its base never moves, so
//! translated code may hold host pointers into it.
//!
//! The guest (several vCPU threads, and devices) reads and writes these bytes at any time, so no `&` or `&mut`
//! to them ever exists: accesses go through raw pointers, naturally aligned ones of 1, 2, 4 or 8 bytes as relaxed
//! atomics, everything else bytewise.

use std::ffi::c_void;
use std::io;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering};

use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};

/// Size and alignment of the host's huge pages; where they are larger, the advice below has no effect on smaller memory.
const HUGE_PAGE: usize = 2 << 20;

/// A block of guest memory (RAM or ROM contents) at a stable host address.
#[derive(Debug)]
pub struct GuestRam {
    base: NonNull<u8>,
    len: u64,
    /// The whole mapping, which is larger where `base` is aligned.
    mapping: (*mut c_void, usize),
}

// SAFETY: the mapping is owned by this value and lives until drop; `base` and `len` never change, and every
// access through `&self` is a raw or atomic access that may race only with other such accesses.
unsafe impl Send for GuestRam {}
// SAFETY: as for `Send`.
unsafe impl Sync for GuestRam {}

impl GuestRam {
    /// Maps `len` bytes of zeroed memory, rounded up to whole 4 KiB pages. Fails when the host cannot map that much.
    pub fn new(len: u64) -> io::Result<Self> {
        let len = len
            .max(1)
            .checked_next_multiple_of(4096)
            .ok_or_else(|| io::Error::from(io::ErrorKind::OutOfMemory))?;
        let size = usize::try_from(len).map_err(|_| io::Error::from(io::ErrorKind::OutOfMemory))?;
        let huge = size >= HUGE_PAGE;
        let mapped = size
            .checked_add(if huge { HUGE_PAGE } else { 0 })
            .ok_or_else(|| io::Error::from(io::ErrorKind::OutOfMemory))?;
        // SAFETY: a null hint without MAP_FIXED cannot replace an existing mapping.
        let mapping = unsafe {
            mmap_anonymous(
                std::ptr::null_mut(),
                mapped,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE | MapFlags::NORESERVE,
            )
        }?;
        let mut base = mapping.cast::<u8>();
        if huge {
            // The mapping has room for it.
            base = base.wrapping_add(base.align_offset(HUGE_PAGE));
            // SAFETY: the range is inside of the mapping just made, which nobody uses yet.
            let advised = unsafe { madvise(base.cast(), size, Advice::LinuxHugepage) };
            if let Err(error) = advised {
                tracing::debug!(target: "memory", "the host gives no huge pages: {error}");
            }
        }
        let base = NonNull::new(base).ok_or_else(|| io::Error::from(io::ErrorKind::OutOfMemory))?;
        let mapping = (mapping, mapped);
        Ok(Self { base, len, mapping })
    }

    /// Host address of byte 0. Valid for [`Self::len`] bytes as long as this value lives.
    pub fn host_base(&self) -> *mut u8 {
        self.base.as_ptr()
    }

    /// Size in bytes, a multiple of 4096.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Never true: a mapping has at least one page.
    pub fn is_empty(&self) -> bool {
        false
    }

    /// Whether `offset..offset + n` lies inside.
    fn holds(&self, offset: u64, n: u64) -> bool {
        offset.checked_add(n).is_some_and(|end| end <= self.len)
    }

    /// Reads `size` (1 to 8) bytes, little-endian. `None` when out of range.
    pub fn read(&self, offset: u64, size: u8) -> Option<u64> {
        if !self.holds(offset, size.into()) {
            return None;
        }
        // SAFETY: `holds` checked offset + size <= len, so the bytes are inside the mapping.
        Some(unsafe { load(self.base.as_ptr().add(offset as usize), size) })
    }

    /// Writes the low `size` (1 to 8) bytes of `value`, little-endian. False when out of range.
    pub fn write(&self, offset: u64, size: u8, value: u64) -> bool {
        if !self.holds(offset, size.into()) {
            return false;
        }
        // SAFETY: as in `read`: `holds` checked the range.
        unsafe { store(self.base.as_ptr().add(offset as usize), size, value) };
        true
    }

    /// Copies out. False (and `buf` untouched) when out of range.
    pub fn read_bytes(&self, offset: u64, buf: &mut [u8]) -> bool {
        let ok = self.holds(offset, buf.len() as u64);
        if ok {
            // SAFETY: `holds` checked the source range; `buf` is a Rust object, so it cannot overlap the mapping.
            unsafe {
                std::ptr::copy_nonoverlapping(
                    self.base.as_ptr().add(offset as usize),
                    buf.as_mut_ptr(),
                    buf.len(),
                );
            }
        }
        ok
    }

    /// Copies in. False (and nothing written) when out of range.
    pub fn write_bytes(&self, offset: u64, buf: &[u8]) -> bool {
        let ok = self.holds(offset, buf.len() as u64);
        if ok {
            // SAFETY: `holds` checked the destination range; `buf` cannot overlap the mapping.
            unsafe {
                std::ptr::copy_nonoverlapping(
                    buf.as_ptr(),
                    self.base.as_ptr().add(offset as usize),
                    buf.len(),
                );
            }
        }
        ok
    }
}

/// Loads `size` (1 to 8) little-endian bytes of guest memory.
///
/// # Safety
/// `p` must have `size` bytes of a live [`GuestRam`] behind it.
pub(super) unsafe fn load(p: *mut u8, size: u8) -> u64 {
    // SAFETY: the caller vouches for the bytes; an atomic is used only where `p` is aligned for it.
    unsafe {
        match (size, p.addr()) {
            (1, _) => AtomicU8::from_ptr(p).load(Ordering::Relaxed).into(),
            (2, a) if a & 1 == 0 => {
                u16::from_le(AtomicU16::from_ptr(p.cast()).load(Ordering::Relaxed)).into()
            }
            (4, a) if a & 3 == 0 => {
                u32::from_le(AtomicU32::from_ptr(p.cast()).load(Ordering::Relaxed)).into()
            }
            (8, a) if a & 7 == 0 => u64::from_le(AtomicU64::from_ptr(p.cast()).load(Ordering::Relaxed)),
            (n, _) => {
                (0..usize::from(n.min(8))).fold(0, |v, i| v | u64::from(p.add(i).read_volatile()) << (8 * i))
            }
        }
    }
}

/// Stores the low `size` (1 to 8) bytes of `value`, little-endian, to guest memory.
///
/// # Safety
/// As for [`load`].
pub(super) unsafe fn store(p: *mut u8, size: u8, value: u64) {
    // SAFETY: as in `load`.
    unsafe {
        match (size, p.addr()) {
            (1, _) => AtomicU8::from_ptr(p).store(value as u8, Ordering::Relaxed),
            (2, a) if a & 1 == 0 => {
                AtomicU16::from_ptr(p.cast()).store((value as u16).to_le(), Ordering::Relaxed)
            }
            (4, a) if a & 3 == 0 => {
                AtomicU32::from_ptr(p.cast()).store((value as u32).to_le(), Ordering::Relaxed)
            }
            (8, a) if a & 7 == 0 => AtomicU64::from_ptr(p.cast()).store(value.to_le(), Ordering::Relaxed),
            (n, _) => {
                (0..usize::from(n.min(8))).for_each(|i| p.add(i).write_volatile((value >> (8 * i)) as u8))
            }
        }
    }
}

impl Drop for GuestRam {
    fn drop(&mut self) {
        // SAFETY: this is the mapping made in `new`, and nobody holds `self` any more.
        let unmapped = unsafe { munmap(self.mapping.0, self.mapping.1) };
        debug_assert!(unmapped.is_ok());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_back_every_size_and_alignment() {
        let ram = GuestRam::new(8192).unwrap();
        let bytes: Vec<u8> = (0..32).map(|i| i * 7 + 1).collect();
        assert!(ram.write_bytes(4090, &bytes));
        for offset in 0..16u64 {
            for size in 1..=8u8 {
                let want = (0..usize::from(size))
                    .fold(0u64, |v, i| v | u64::from(bytes[offset as usize + i]) << (8 * i));
                assert_eq!(ram.read(4090 + offset, size), Some(want), "offset {offset} size {size}");
                assert!(ram.write(4090 + offset, size, want));
                let mut back = vec![0; 32];
                assert!(ram.read_bytes(4090, &mut back));
                assert_eq!(back, bytes);
            }
        }
    }

    #[test]
    fn refuses_what_is_outside() {
        let ram = GuestRam::new(4096).unwrap();
        assert_eq!(ram.read(4093, 4), None);
        assert_eq!(ram.read(u64::MAX, 8), None);
        assert!(!ram.write(4096, 1, 0));
        assert!(!ram.write_bytes(4090, &[0; 7]));
        assert!(GuestRam::new(u64::MAX).is_err());
    }
}
