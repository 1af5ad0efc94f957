//! The address space in which sequences run, the same natively and in the guest.
//!
//! Everything that a sequence can reach by accident lies at the same addresses with the same contents and permissions on
//! both sides, so that a wild pointer finds the same thing:
//!
//! | address | what |
//! |---|---|
//! | [`CODE`] | sequences, one behind the other; user, read and execute |
//! | [`WINDOW`] | six pages: missing, writable, writable, read-only, writable, missing |
//! | [`DONE`] | where a sequence goes when it is complete; natively the code that saves the state, in the guest UD2 |
//!
//! Nothing else is there on either side, but natively for what the child needs itself, at most some MiB from [`DONE`]. Code and window are below 4 GiB, for 32-bit sequences.

/// Start of the code area.
pub const CODE: u64 = 0x1000_0000;
/// Size of the code area.
pub const CODE_BYTES: usize = 4 << 20;
/// Where a 64-bit sequence jumps to when it is complete.
pub const FINISH64: u64 = CODE;
/// Where a 32-bit sequence jumps to when it is complete.
pub const FINISH32: u64 = CODE + 0x20;
/// Where the first sequence starts.
pub const FIRST: usize = 0x40;

/// Start of the data window: a page that is missing.
pub const WINDOW: u64 = 0x2000_0000;
/// Pages of the window, the missing ones included.
pub const WINDOW_PAGES: u64 = 6;
/// Bytes in a page.
pub const PAGE: usize = 4096;

/// A page of the window.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PageKind {
    /// Not there.
    Missing,
    /// May be read and written.
    Writable,
    /// May be read.
    ReadOnly,
}

/// The pages of the window.
pub const PAGES: [PageKind; WINDOW_PAGES as usize] = {
    use PageKind::*;
    [Missing, Writable, Writable, ReadOnly, Writable, Missing]
};

/// Pages that exist, in order; memory images hold these.
pub const PRESENT: usize = 4;
/// Bytes of a memory image.
pub const IMAGE: usize = PRESENT * PAGE;
/// Address of the first byte of a memory image.
pub const IMAGE_AT: u64 = WINDOW + PAGE as u64;
/// The read-only page in a memory image.
pub const READ_ONLY: std::ops::Range<usize> = 2 * PAGE..3 * PAGE;

/// Where complete sequences end up.
pub const DONE: u64 = 0x6000_0000_0000;

/// Selector of 32-bit user code, as Linux has it.
pub const CS32: u16 = 0x23;
/// Selector of 64-bit user code, as Linux has it.
pub const CS64: u16 = 0x33;
/// Selector of user data, as Linux has it.
pub const DATA_SELECTOR: u16 = 0x2b;

/// The bytes at the start of the code area: the ways to [`DONE`], which change no register.
pub fn finish_code() -> [u8; FIRST] {
    let mut code = [0xcc; FIRST];
    let mut absolute = |at: usize| {
        // jmp [rip + 2]; the address, aligned in case that alignment checks are on
        code[at..at + 6].copy_from_slice(&[0xff, 0x25, 2, 0, 0, 0]);
        code[at + 8..at + 16].copy_from_slice(&DONE.to_le_bytes());
    };
    absolute(0);
    absolute(0x30);
    // jmp far CS64:CODE + 30h
    code[0x20] = 0xea;
    code[0x21..0x25].copy_from_slice(&(CODE as u32 + 0x30).to_le_bytes());
    code[0x25..0x27].copy_from_slice(&CS64.to_le_bytes());
    code
}
