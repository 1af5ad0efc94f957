//! What `monitor COMMAND` does in gdb.

use std::fmt::Write;

use gdbstub::target::ext::monitor_cmd::{ConsoleOutput, MonitorCmd};
use tessera_tcg::guest::{BlockKey, Guest};
use tessera_x86::cpu_state::CpuState;
use tessera_x86::guest::X86;
use tessera_x86::state::{Efer, Segment, mode, seg};

use super::Ask;
use super::target::GdbTarget;
use crate::accel::debug::Listing;

const HELP: &str = "\
registers              the processor's state, with what gdb does not know of segments
translate ADDRESS      the way of a linear address through the guest's page tables
tlb                    the translations of addresses that are cached
tb ADDRESS             what the code there becomes: guest code, IR, optimised IR, host code
stats                  what the engine did so far; under -d stats with what translated code executed
disassemble [ADDRESS [COUNT]]  instructions in the current mode, by linear address
reset                  the machine as after power-on; the guest stays stopped
quit                   ends the emulator
help                   this text
QEMU's names do, too: info registers, info tlb, gva2gpa, system_reset, q.
Addresses are hexadecimal with 0x, else decimal. `maintenance packet Qqemu.PhyMemMode:1` makes gdb's addresses
physical, and :0 linear again.
";

/// Longest instruction.
const MAX_INSTRUCTION: usize = 15;
/// Instructions that `disassemble` shows unless told, and at most.
const SHOWN: usize = 10;
const MOST_SHOWN: usize = 1000;
/// Bytes of text in a packet.
const PIECE: usize = 1024;

impl MonitorCmd for GdbTarget {
    fn handle_monitor_cmd(&mut self, command: &[u8], mut out: ConsoleOutput<'_>) -> Result<(), String> {
        let command = String::from_utf8_lossy(command);
        let words: Vec<&str> = command.split_whitespace().collect();
        let text = match self.monitor(&words) {
            Ok(text) => text,
            Err(why) => format!("{why}\n"),
        };
        for piece in text.as_bytes().chunks(PIECE) {
            out.write_raw(piece);
            out.flush();
        }
        Ok(())
    }
}

impl GdbTarget {
    fn monitor(&mut self, words: &[&str]) -> Result<String, String> {
        match words {
            [] | ["help"] => Ok(HELP.into()),
            ["registers"] | ["info", "registers"] => {
                self.vcpu.call(|engine| engine.dump()).ok_or("the vCPU has ended".into())
            }
            ["translate" | "gva2gpa", address] => {
                let va = number(address)?;
                let memory = self.memory.clone();
                let walk = memory.walk(self.state()?, va);
                let mut text = String::new();
                // Writing to strings cannot fail, here and below.
                for step in &walk.steps {
                    let at = step.at.map_or("(register)".into(), |at| format!("at {at:#x}"));
                    let _ =
                        writeln!(text, "{:<5} {at:<18} {:#018x} {}", step.name, step.entry, bits(step.entry));
                }
                match walk.result {
                    Ok((phys, size)) => {
                        let _ = writeln!(
                            text,
                            "{va:#x} is at physical {phys:#x}, in a page of {} KiB",
                            size >> 10
                        );
                    }
                    Err(why) => {
                        let _ = writeln!(text, "{va:#x} is not mapped: {why}");
                    }
                }
                Ok(text)
            }
            ["tlb"] | ["info", "tlb"] => {
                self.vcpu.call(|engine| engine.cached_translations()).ok_or("the vCPU has ended")?
            }
            ["stats"] => self.vcpu.call(|engine| engine.statistics()).ok_or("the vCPU has ended".into()),
            ["tb", address] => {
                let va = number(address)?;
                let listing = self.vcpu.call(move |engine| engine.list(va)).ok_or("the vCPU has ended")??;
                Ok(show(&listing))
            }
            ["disassemble", rest @ ..] if rest.len() <= 2 => {
                let state = self.state()?;
                let base = if is_64_bit(state) { 0 } else { state.segments[seg::CS].base };
                let here = base.wrapping_add(state.rip);
                let from = rest.first().map_or(Ok(here), |address| number(address))?;
                let count = rest.get(1).map_or(Ok(SHOWN as u64), |count| number(count))?;
                self.disassemble(from, count.min(MOST_SHOWN as u64) as usize)
            }
            ["reset"] | ["system_reset"] => {
                self.asks.push(Ask::Reset);
                Ok("the machine is reset; gdb sees it after `flushregs`\n".into())
            }
            ["quit" | "q"] => {
                self.asks.push(Ask::Kill);
                Ok(String::new())
            }
            [command, ..] => {
                Err(format!("{command}: no such command, or not with this; monitor help lists them"))
            }
        }
    }

    fn disassemble(&mut self, from: u64, count: usize) -> Result<String, String> {
        let memory = self.memory.clone();
        let state = self.state()?;
        let (mode, base) = if is_64_bit(state) {
            (mode::CODE64, 0)
        } else {
            let cs = state.segments[seg::CS];
            let wide = if cs.access & Segment::DB != 0 { mode::CODE32 } else { 0 };
            (wide | cs.base << mode::CODE_BASE_SHIFT, cs.base)
        };
        let mut text = String::new();
        let mut at = from;
        for _ in 0..count {
            let mut bytes = [0; MAX_INSTRUCTION];
            let len = memory.read(Some(state), at, &mut bytes);
            if len == 0 {
                let _ = writeln!(text, "{at:#018x}: not readable");
                break;
            }
            let mark = if at == base.wrapping_add(state.rip) { "=>" } else { "  " };
            let (line, used) = X86::disassemble(BlockKey::new(at, mode), at, &bytes[..len]);
            let used = used.clamp(1, len);
            let _ = writeln!(text, "{mark} {at:#018x}: {:<30} {line}", hex(&bytes[..used]));
            at = at.wrapping_add(used as u64);
        }
        Ok(text)
    }
}

fn is_64_bit(state: &CpuState) -> bool {
    state.efer & Efer::LMA.bits() != 0 && state.segments[seg::CS].access & Segment::LONG != 0
}

fn number(text: &str) -> Result<u64, String> {
    let parsed = match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16),
        None => text.parse(),
    };
    parsed.map_err(|_| format!("{text}: it is not a number; give one like 0x1000"))
}

/// The low bits of a paging entry by name.
fn bits(entry: u64) -> String {
    let names = [
        (0, "P"),
        (1, "W"),
        (2, "U"),
        (3, "PWT"),
        (4, "PCD"),
        (5, "A"),
        (6, "D"),
        (7, "PS"),
        (8, "G"),
        (63, "XD"),
    ];
    let set: Vec<&str> = names.iter().filter(|(n, _)| entry >> n & 1 != 0).map(|(_, name)| *name).collect();
    set.join(" ")
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(" ")
}

fn lines(text: &mut String, key: BlockKey, code: &[u8]) {
    let mut at = 0;
    while at < code.len() {
        let pc = key.pc.wrapping_add(at as u64);
        let (line, len) = X86::disassemble(key, pc, &code[at..]);
        let len = len.clamp(1, code.len() - at);
        let _ = writeln!(text, "{pc:#018x}: {:<30} {line}", hex(&code[at..at + len]));
        at += len;
    }
}

fn show(listing: &Listing) -> String {
    let mut text = format!("guest code, mode {:#x}:\n", listing.key.mode);
    lines(&mut text, listing.key, &listing.guest);
    let _ = write!(text, "IR:\n{}\noptimised IR:\n{}\n", listing.ir.trim_end(), listing.optimized.trim_end());
    for ((address, code), name) in listing.host.iter().zip(["host code", "out of line"]) {
        let _ = writeln!(text, "{name}, {} bytes:", code.len());
        lines(&mut text, BlockKey::new(*address, mode::CODE64), code);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_bits() {
        assert_eq!(number("0x10"), Ok(16));
        assert_eq!(number("10"), Ok(10));
        assert!(number("ten").unwrap_err().contains("ten"));
        assert_eq!(bits(0x8000_0000_0000_0063), "P W A D XD");
    }
}
