//! The source of the embedded ROM: a self-test of the machine that runs when no guest is named.
//!
//! The problem: a person wants to see in one look that an installation works, and whoever builds a CPU wants to know what
//! exactly does not. The strategy: walk from reset through real, protected and long mode; in each mode run checks that
//! compare what the machine did with what the manuals prescribe (Intel SDM volumes 1–3), and print one line for
//! each. A check that finds a difference says which comparison failed first, with both values; an exception nobody
//! expected ends the run with its vector, error code and address.
//!
//! Layout: the image is [`layout::ROM_SIZE`] bytes and is seen at the end of the first MiB and at the end of 4 GiB. All code runs
//! from the lower copy (linear address = ROM offset + 0xF0000), in real mode with CS = 0xF000. RAM below 0x80000 is the
//! workspace; `layout.rs` says what lies where.
//!
//! Conventions: in every mode DS, ES and SS are flat (real mode: 0) between checks, the direction flag is clear, interrupts
//! are off. Each checking function emits code that falls through to the next; a symbol starting with `16.`, `32.` or `64.`
//! is a routine for that mode. Expectations clobber no register but R11 in 64-bit code.
//!
//! To add a check: write a function with `begin`, expectations and `end` beside its like, and call it from the `emit` of that
//! file. What is right is what the manuals say; a check that an emulator fails stays. Bochs 2.7 passes all of them,
//! QEMU's translator all but those that the test in `src/bios/tests.rs` lists.

mod devices;
mod fpu;
mod integer;
mod layout;
mod long;
mod long_paging;
mod modes;
mod paging32;
mod protected;
mod real;
mod report;
mod speed;
#[path = "../src/bios/speed_model.rs"]
mod speed_model;
mod tables;
mod user;

use tessera_asm::{Builder, Error, SymbolList};

/// What the build hands to the crate.
pub struct Image {
    /// The ROM.
    pub rom: Vec<u8>,
    /// The machine code of the speed loop alone.
    pub speed_loop: Vec<u8>,
    /// For whoever debugs the ROM.
    pub symbols: SymbolList,
}

/// Assembles everything.
pub fn assemble() -> Result<Image, Error> {
    let mut builder = Builder::new(layout::ROM_BASE, layout::ROM_SIZE);
    builder.section(16, real::emit);
    builder.section(32, protected::emit);
    builder.section(64, long::emit);
    builder.section(16, user::emit16);
    builder.section(32, user::emit32);
    builder.section(64, speed::emit_loop);
    builder.section(64, tables::emit);
    builder.reset_vector(real::emit_reset);
    let linked = builder.finish()?;
    let (rom, symbols) = (linked.bytes, linked.symbols);
    let address = |wanted: &str| symbols.iter().find(|(_, name)| name == wanted).map(|(addr, _)| *addr);
    let offset = |name| address(name).map(|addr| (addr - layout::ROM_BASE) as usize);
    let range = offset("speed_loop").zip(offset("speed_loop.end")).ok_or("the speed loop has no symbols")?;
    let speed_loop = rom[range.0..range.1].to_vec();
    Ok(Image { rom, speed_loop, symbols })
}
