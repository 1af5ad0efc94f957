//! Guest memory by host pointer.
//!
//! Guest RAM is shared with devices' threads and changes at any time, so there is never a reference to it: only raw
//! reads, writes and atomics. What a race makes of plain accesses is what it makes of the guest's own.

use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering};

use crate::ir::{RmwOp, Width};

/// Reads 1, 2, 4 or 8 bytes, zero-extended.
///
/// # Safety
/// The bytes are in one page of guest memory that is valid for reads.
#[inline]
pub(super) unsafe fn read(p: *const u8, size: u32) -> u64 {
    // SAFETY: by the caller's promise; alignment is not assumed.
    unsafe {
        match size {
            1 => u64::from(p.read_volatile()),
            2 => u64::from(u16::from_le(p.cast::<u16>().read_unaligned())),
            4 => u64::from(u32::from_le(p.cast::<u32>().read_unaligned())),
            _ => u64::from_le(p.cast::<u64>().read_unaligned()),
        }
    }
}

/// Writes the low 1, 2, 4 or 8 bytes.
///
/// # Safety
/// The bytes are in one page of guest memory that is valid for writes.
#[inline]
pub(super) unsafe fn write(p: *mut u8, size: u32, v: u64) {
    // SAFETY: by the caller's promise; alignment is not assumed.
    unsafe {
        match size {
            1 => p.write_volatile(v as u8),
            2 => p.cast::<u16>().write_unaligned((v as u16).to_le()),
            4 => p.cast::<u32>().write_unaligned((v as u32).to_le()),
            _ => p.cast::<u64>().write_unaligned(v.to_le()),
        }
    }
}

/// Atomic read-modify-write; the old value, zero-extended. An address that is not aligned to its width is updated without
/// atomicity: with one vCPU only devices could notice, and they do not take part in the guest's locks.
///
/// # Safety
/// The bytes are in one page of guest memory that is valid for writes.
pub(super) unsafe fn rmw(p: *mut u8, op: RmwOp, w: Width, v: u64) -> u64 {
    if !(p as usize).is_multiple_of(w.bytes() as usize) {
        // SAFETY: by the caller's promise.
        unsafe {
            let old = read(p, w.bytes());
            write(p, w.bytes(), op.apply(old, v));
            return old;
        }
    }
    macro_rules! op {
        ($atomic:ty, $int:ty) => {{
            // SAFETY: by the caller's promise, and alignment was just checked; the memory is only accessed by raw
            // reads and writes otherwise.
            let a = unsafe { <$atomic>::from_ptr(p.cast()) };
            let v = v as $int;
            let old = match op {
                RmwOp::Add => a.fetch_add(v, Ordering::SeqCst),
                RmwOp::Sub => a.fetch_sub(v, Ordering::SeqCst),
                RmwOp::And => a.fetch_and(v, Ordering::SeqCst),
                RmwOp::Or => a.fetch_or(v, Ordering::SeqCst),
                RmwOp::Xor => a.fetch_xor(v, Ordering::SeqCst),
                RmwOp::Xchg => a.swap(v, Ordering::SeqCst),
            };
            u64::from(old)
        }};
    }
    match w {
        Width::W8 => op!(AtomicU8, u8),
        Width::W16 => op!(AtomicU16, u16),
        Width::W32 => op!(AtomicU32, u32),
        Width::W64 => op!(AtomicU64, u64),
    }
}

/// Atomic compare-and-exchange of an aligned integer of 1, 2, 4, 8 or 16 bytes; the old value. `None` if the host cannot
/// do it atomically: the address is not aligned, or 16 bytes on some hosts.
///
/// # Safety
/// The bytes are in one page of guest memory that is valid for writes.
pub(super) unsafe fn compare_exchange(p: *mut u8, size: u32, expect: u128, new: u128) -> Option<u128> {
    if !(p as usize).is_multiple_of(size as usize) {
        return None;
    }
    macro_rules! op {
        ($atomic:ty, $int:ty) => {{
            // SAFETY: by the caller's promise, and alignment was just checked; the memory is only accessed by raw reads and writes otherwise.
            let a = unsafe { <$atomic>::from_ptr(p.cast()) };
            match a.compare_exchange(expect as $int, new as $int, Ordering::SeqCst, Ordering::SeqCst) {
                Ok(old) | Err(old) => Some(u128::from(old)),
            }
        }};
    }
    match size {
        1 => op!(AtomicU8, u8),
        2 => op!(AtomicU16, u16),
        4 => op!(AtomicU32, u32),
        8 => op!(AtomicU64, u64),
        // SAFETY: by the caller's promise, and alignment was just checked.
        _ => unsafe { compare_exchange_16(p, expect, new) },
    }
}

/// # Safety
/// `p` is aligned to 16, and the bytes are guest memory that is valid for writes.
#[cfg(target_arch = "x86_64")]
unsafe fn compare_exchange_16(p: *mut u8, expect: u128, new: u128) -> Option<u128> {
    if !std::arch::is_x86_feature_detected!("cmpxchg16b") {
        return None;
    }
    let (mut low, mut high) = (expect as u64, (expect >> 64) as u64);
    // The intrinsic is compiled to a library call that does not exist when it is not inlined.
    // SAFETY: the instruction exists, as was just checked, and `p` is aligned for it by the caller's promise. RBX, which
    // the compiler may not give away, is exchanged and restored.
    unsafe {
        std::arch::asm!(
            "xchg {new_low}, rbx",
            "lock cmpxchg16b xmmword ptr [{p}]",
            "mov rbx, {new_low}",
            p = in(reg) p,
            new_low = inout(reg) new as u64 => _,
            in("rcx") (new >> 64) as u64,
            inout("rax") low,
            inout("rdx") high,
            options(nostack),
        );
    }
    Some(u128::from(low) | u128::from(high) << 64)
}

/// # Safety
/// None is needed.
#[cfg(not(target_arch = "x86_64"))]
unsafe fn compare_exchange_16(_: *mut u8, _: u128, _: u128) -> Option<u128> {
    None
}
