//! Windows: parts of pages with code that generated code may store to without a look at where the code is.
//!
//! Problem: a program that keeps data beside its code (a compiler at run time with its counters and inline caches, a kernel
//! with its jump labels) stores there again and again. No page with code has a write tag in the first way, and the way by the
//! second, with the bit map of its lines, is some thirty instructions. Strategy: for each MMU mode, one range of lines
//! without code, the last that a slow path has seen. The routine that is called when the first way misses
//! (`second_way` in the x86-64 backend) tests an address against it in four instructions.
//!
//! Invariants:
//! - A window lies in one page that may be written directly in the current address space and in its mode, and no block was made
//!   from any of its lines. So it is closed by whatever may end one of these: a new block in its page, the flush of any
//!   translation, a switch of spaces. (`flush` here, `protect` in `exec::translate`.)
//! - A block that goes closes nothing: its lines are outside of all windows.

use super::MMU_MODES;

/// Sizes of accesses and of groups of accesses that generated code tests for at once: 1, 2, 4, … 256 bytes.
pub const ACCESS_SIZES: usize = 9;
/// log2 of the bytes of a line.
const LINE_BITS: u32 = 6;

/// A window of one MMU mode, as generated code reads it. Zeroes are a closed one.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Window {
    /// Guest-virtual address of its first byte.
    pub start: u64,
    /// Host address minus guest-virtual address of its page (wrapping).
    pub addend: u64,
    /// For each size of an access, how many of them there are in the window: one begins at `start`, one a byte later, and so on.
    pub room: [u64; ACCESS_SIZES],
}

impl Window {
    const CLOSED: Window = Window { start: 0, addend: 0, room: [0; ACCESS_SIZES] };
}

/// The windows of a vCPU.
#[repr(C)]
#[derive(Debug)]
pub struct Windows {
    /// By MMU mode.
    pub modes: [Window; MMU_MODES],
    /// Guest-physical addresses of their pages.
    pages: [u64; MMU_MODES],
    /// Whether any may be open.
    open: bool,
}

impl Windows {
    /// Closes all windows.
    #[inline]
    pub fn close(&mut self) {
        if self.open {
            self.modes.fill(Window::CLOSED);
            self.open = false;
        }
    }

    /// Closes the windows in a page, given by its guest-physical address.
    #[inline]
    pub fn close_page(&mut self, phys_page: u64) {
        if self.open {
            for (window, page) in self.modes.iter_mut().zip(self.pages) {
                if page == phys_page {
                    *window = Window::CLOSED;
                }
            }
        }
    }

    /// Opens the widest window around an address: its page, which is `phys_page`, may be written directly, and has code in the
    /// lines whose bits are set. Leaves all as it is if the address itself is in such a line.
    pub fn open(&mut self, mmu: u8, va: u64, phys_page: u64, addend: u64, lines: u64) {
        let line = (va >> LINE_BITS) as u32 % u64::BITS;
        if lines >> line & 1 != 0 {
            return;
        }
        let below = lines & ((1 << line) - 1);
        let first = u64::BITS - below.leading_zeros();
        let end = line + (lines >> line).trailing_zeros().min(u64::BITS - line);
        let bytes = u64::from(end - first) << LINE_BITS;
        let page = va & !((1 << (LINE_BITS + u64::BITS.trailing_zeros())) - 1);
        let mmu = mmu as usize % MMU_MODES;
        self.pages[mmu] = phys_page;
        self.modes[mmu] = Window {
            start: page | u64::from(first) << LINE_BITS,
            addend,
            room: std::array::from_fn(|size| (bytes + 1).saturating_sub(1 << size)),
        };
        self.open = true;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Start and bytes of the window around an address in a page with code.
    fn around(va: u64, lines: u64) -> (u64, u64) {
        let mut windows = Windows { modes: [Window::CLOSED; MMU_MODES], pages: [0; MMU_MODES], open: false };
        windows.open(1, va, 0x9000, 7, lines);
        let Window { start, room, .. } = windows.modes[1];
        for (size, room) in room.into_iter().enumerate() {
            // The last access of this size ends with the window.
            assert!(room == 0 || room - 1 + (1 << size) == room_bytes(&windows), "{room}");
        }
        let bytes = room_bytes(&windows);
        windows.close_page(0x8000);
        assert_eq!(room_bytes(&windows), bytes);
        windows.close_page(0x9000);
        assert_eq!(windows.modes[1].room, [0; ACCESS_SIZES]);
        (start, bytes)
    }

    fn room_bytes(windows: &Windows) -> u64 {
        windows.modes[1].room[0]
    }

    #[test]
    fn a_window_ends_where_code_begins() {
        assert_eq!(around(0x5123, 1 << 3 | 1 << 9), (0x5100, 5 * 64));
        assert_eq!(around(0x5123, 1 << 9), (0x5000, 9 * 64));
        assert_eq!(around(0x5fff, 1 << 62), (0x5fc0, 64));
        assert_eq!(around(0x5fff, 1), (0x5040, 63 * 64));
        assert_eq!(around(0x5000, 1 << 63), (0x5000, 63 * 64));
        assert_eq!(around(0x5000, 0), (0x5000, 4096));
        assert_eq!(around(0x5000, u64::MAX).1, 0);
        assert_eq!(around(0x5fff, 1 << 63).1, 0);
    }
}
