//! What the log says of a translation: `in_asm`, `op`, `op_opt` and `out_asm`.

use super::Options;
use super::code_fetch::FetchedPage;
use crate::backend::{Compiled, GuestInfo, Room};
use crate::guest::{BlockKey, Guest};
use crate::ir::{Block, text};

/// Logs of one translation. Off, it is a few loads.
pub(super) struct Log {
    pub wanted: bool,
    pc: u64,
}

impl Log {
    pub fn new(options: &Options, key: BlockKey) -> Log {
        let on = tracing::enabled!(target: "in_asm", tracing::Level::DEBUG)
            || tracing::enabled!(target: "op", tracing::Level::DEBUG)
            || tracing::enabled!(target: "op_opt", tracing::Level::DEBUG)
            || tracing::enabled!(target: "out_asm", tracing::Level::DEBUG);
        let wanted = on && logged(options, key.pc);
        Log { wanted, pc: key.pc }
    }

    pub fn guest_code(&self) -> bool {
        self.wanted && tracing::enabled!(target: "in_asm", tracing::Level::DEBUG)
    }

    pub fn print_guest_code<G: Guest>(&self, key: BlockKey, bytes: &[u8]) {
        let mut text = format!("block {:#x} mode {:#x}", key.pc, key.mode);
        let mut at = 0;
        while at < bytes.len() {
            let pc = key.pc.wrapping_add(at as u64);
            let (line, len) = G::disassemble(key, pc, &bytes[at..]);
            let len = len.clamp(1, bytes.len() - at);
            let raw = hex(&bytes[at..at + len]);
            text += &format!("\n{pc:#018x}: {raw:<24} {line}");
            at += len;
        }
        tracing::debug!(target: "in_asm", "{text}");
    }

    pub fn path<G: Guest>(&self, head: BlockKey, path: &[u64], pages: &[FetchedPage; 2]) {
        if !self.guest_code() {
            return;
        }
        let mut text = format!("trace {:#x} mode {:#x}", head.pc, head.mode);
        for &pc in path {
            let bytes = pages.iter().find(|page| page.covers(pc)).map_or(&[][..], |page| page.get(pc));
            let (line, len) = G::disassemble(head, pc, bytes);
            let raw = hex(&bytes[..len.min(bytes.len())]);
            text += &format!("\n{pc:#018x}: {raw:<24} {line}");
        }
        tracing::debug!(target: "in_asm", "{text}");
    }

    pub fn op(&self, block: &Block, guest: &GuestInfo) {
        if self.wanted && tracing::enabled!(target: "op", tracing::Level::DEBUG) {
            tracing::debug!(target: "op", "block {:#x}\n{}", self.pc, text::print(block, guest));
        }
    }

    pub fn op_opt(&self, block: &Block, guest: &GuestInfo) {
        if self.wanted && tracing::enabled!(target: "op_opt", tracing::Level::DEBUG) {
            tracing::debug!(target: "op_opt", "block {:#x}\n{}", self.pc, text::print(block, guest));
        }
    }

    pub fn host_code(&self, room: Room, compiled: &Compiled) {
        if !self.wanted || !tracing::enabled!(target: "out_asm", tracing::Level::DEBUG) {
            return;
        }
        let mut text =
            format!("block {:#x}: {} + {} bytes", self.pc, compiled.hot.len(), compiled.cold.len());
        for (at, part) in [(0, &compiled.hot), (u64::from(compiled.cold_at), &compiled.cold)] {
            for (i, line) in part.chunks(16).enumerate() {
                text += &format!("\n{:#018x}: {}", room.start + at + 16 * i as u64, hex(line));
            }
        }
        tracing::debug!(target: "out_asm", "{text}");
    }
}

/// Whether the log wants the block at `pc`.
pub(super) fn logged(options: &Options, pc: u64) -> bool {
    options.log_filter.is_empty() || options.log_filter.iter().any(|r| r.contains(&pc))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect::<Vec<_>>().join(" ")
}
