//! The file a program is: ELF with a PVH entry, loaded at 1 MiB, which copies itself into the first MiB and jumps there.
//!
//! A loader places nothing below 1 MiB, and 16-bit code must run there.

use iced_x86::IcedError;
use iced_x86::code_asm::*;

use crate::layout::{IMAGE, LOADED};

/// Offset of the program's bytes in the file; the copying code fits before it.
const HEADERS: usize = 0x100;
const STUB: usize = 0x40;
/// XEN_ELFNOTE_PHYS32_ENTRY (Xen, public/elfnote.h).
const NOTE_ENTRY: u32 = 18;

/// Makes the file of a linked image that begins at linear address `entry` in 32-bit protected mode, flat segments in CS, DS, ES
/// and SS, interrupts off.
pub fn file(image: &[u8], entry: u32) -> Result<Vec<u8>, IcedError> {
    let mut c = CodeAssembler::new(32)?;
    c.cli()?;
    c.cld()?;
    c.mov(esi, LOADED + STUB as u32)?;
    c.mov(edi, IMAGE)?;
    c.mov(ecx, image.len().div_ceil(4) as u32)?;
    c.rep().movsd()?;
    c.mov(eax, entry)?;
    c.jmp(eax)?;
    let mut code = c.assemble(LOADED.into())?;
    assert!(code.len() <= STUB, "the copying code has grown");
    code.resize(STUB, 0x90);
    code.extend(image);
    code.resize(code.len().next_multiple_of(4), 0);

    let mut out = Vec::new();
    let words = |out: &mut Vec<u8>, words: &[u32]| out.extend(words.iter().flat_map(|w| w.to_le_bytes()));
    out.extend(b"\x7fELF\x01\x01\x01\0\0\0\0\0\0\0\0\0");
    words(&mut out, &[3 << 16 | 2, 1, LOADED, 52, 0, 0]); // executable, 80386; entry, program headers at 52
    words(&mut out, &[32 << 16 | 52, 2, 0]); // two program headers of 32 bytes
    let length = code.len() as u32;
    words(&mut out, &[1, HEADERS as u32, LOADED, LOADED, length, length, 7, 0x10]);
    let note = out.len() as u32 + 32;
    words(&mut out, &[4, note, 0, 0, 20, 20, 4, 4]);
    words(&mut out, &[4, 4, NOTE_ENTRY, u32::from_le_bytes(*b"Xen\0"), LOADED]);
    out.resize(HEADERS, 0);
    out.extend(code);
    Ok(out)
}
