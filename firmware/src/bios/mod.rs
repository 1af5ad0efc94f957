//! The embedded ROM, which runs when no guest is named: a self-test of the machine (source: `rom/` of this crate,
//! assembled by the build script).
//!
//! It prints on COM1 one line for each check, `[ ok ] name` or `[FAIL] name: what is 0x…, expected 0x…`, then a speed
//! figure, then `all N checks passed` or `M of N checks FAILED`, and powers the machine off by PM1a control (port 0x604).
//! Needs 1 MiB + 64 KiB of RAM, one processor, and the devices of a PC.

pub mod speed_model;

/// Guest-physical address at which the emulator leaves the native speed of [`speed_loop`] before it starts the ROM:
/// instructions a second, 64-bit little endian, 0 if unknown. The ROM then prints the ratio.
pub const NATIVE_SPEED_ADDR: u64 = 0x500;

static ROM: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/rom.bin"));
static SPEED_LOOP: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/speed_loop.bin"));

/// The image: 64 KiB, to be seen so that its last byte is at 0xFFFFFFFF (the processor starts at 0xFFFFFFF0) and, again, at
/// 0xF0000–0xFFFFF.
#[must_use]
pub fn rom() -> &'static [u8] {
    ROM
}

/// The machine code of the loop whose speed the ROM prints, and the instructions it executes in an iteration.
///
/// The code is x86-64, position independent and follows the System V calling convention as
/// `extern "C" fn(iterations: u64) -> u64`; it touches nothing but 264 bytes of stack. Its result is
/// [`speed_model::result`]. So an x86-64 host can run it natively for comparison.
#[must_use]
pub fn speed_loop() -> (&'static [u8], u64) {
    (SPEED_LOOP, speed_model::INSNS_PER_ITERATION)
}

#[cfg(test)]
mod tests;
