//! The registers as gdb sees them.
//!
//! Problem: the processor changes between 16, 32 and 64 bits under the debugger's eyes, and gdb takes the size of the
//! register file from the first description it reads. Strategy: one description that never changes, that of a 64-bit
//! processor with everything it has; in narrower modes the upper halves are zero. One table makes both the description
//! and the transfer format, so they cannot differ.
//!
//! What gdb knows by name has gdb's feature names (GDB manual, "i386 Features"); the rest is a feature of ours.

use std::fmt::Write;
use std::num::NonZeroUsize;
use std::sync::LazyLock;

use gdbstub::arch::{Arch, RegId, Registers};
use tessera_x86::cpu_state::{AVX, CpuState, XsaveImage};
use tessera_x86::state::{Cr0, Efer, RFlags, reg, seg};
use tessera_x86::system::debug;

/// Offsets in the XSAVE image.
const MXCSR: usize = 24;
const ST: usize = 32;
const XMM: usize = 160;

/// What a register is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum What {
    Gpr(usize),
    Rip,
    Flags,
    Selector(usize),
    St(usize),
    /// Control registers of the x87 unit, as gdb numbers them.
    X87(usize),
    Xmm(usize),
    Mxcsr,
    Base(usize),
    KernelGsBase,
    YmmHigh(usize),
    Cr(usize),
    Efer,
    Xcr0,
    Dr(usize),
    TableBase(usize),
    TableLimit(usize),
}

/// A row of the description.
struct Row {
    name: String,
    bits: usize,
    kind: &'static str,
    group: &'static str,
    what: What,
    /// Offset in the register file.
    at: usize,
}

/// The types of a feature, and how many rows it has.
struct Feature {
    name: &'static str,
    types: &'static str,
    rows: std::ops::Range<usize>,
}

struct Description {
    rows: Vec<Row>,
    features: Vec<Feature>,
    size: usize,
}

const FLAGS: &str = r#"<flags id="i386_eflags" size="4">
<field name="" start="22" end="31"/><field name="ID" start="21" end="21"/><field name="VIP" start="20" end="20"/>
<field name="VIF" start="19" end="19"/><field name="AC" start="18" end="18"/><field name="VM" start="17" end="17"/>
<field name="RF" start="16" end="16"/><field name="NT" start="14" end="14"/><field name="OF" start="11" end="11"/>
<field name="DF" start="10" end="10"/><field name="IF" start="9" end="9"/><field name="TF" start="8" end="8"/>
<field name="SF" start="7" end="7"/><field name="ZF" start="6" end="6"/><field name="AF" start="4" end="4"/>
<field name="PF" start="2" end="2"/><field name="" start="1" end="1"/><field name="CF" start="0" end="0"/></flags>"#;

const SSE: &str = r#"<vector id="v8bf16" type="bfloat16" count="8"/><vector id="v4f" type="ieee_single" count="4"/>
<vector id="v2d" type="ieee_double" count="2"/><vector id="v16i8" type="int8" count="16"/>
<vector id="v8i16" type="int16" count="8"/><vector id="v4i32" type="int32" count="4"/>
<vector id="v2i64" type="int64" count="2"/>
<union id="vec128"><field name="v8_bfloat16" type="v8bf16"/><field name="v4_float" type="v4f"/>
<field name="v2_double" type="v2d"/><field name="v16_int8" type="v16i8"/><field name="v8_int16" type="v8i16"/>
<field name="v4_int32" type="v4i32"/><field name="v2_int64" type="v2i64"/><field name="uint128" type="uint128"/></union>
<flags id="i386_mxcsr" size="4"><field name="IE" start="0" end="0"/><field name="DE" start="1" end="1"/>
<field name="ZE" start="2" end="2"/><field name="OE" start="3" end="3"/><field name="UE" start="4" end="4"/>
<field name="PE" start="5" end="5"/><field name="DAZ" start="6" end="6"/><field name="IM" start="7" end="7"/>
<field name="DM" start="8" end="8"/><field name="ZM" start="9" end="9"/><field name="OM" start="10" end="10"/>
<field name="UM" start="11" end="11"/><field name="PM" start="12" end="12"/><field name="FZ" start="15" end="15"/></flags>"#;

static DESCRIPTION: LazyLock<Description> = LazyLock::new(Description::make);

impl Description {
    fn make() -> Description {
        let mut d = Description { rows: Vec::new(), features: Vec::new(), size: 0 };
        let gprs = ["rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "rsp"];
        let order = [reg::RAX, reg::RBX, reg::RCX, reg::RDX, reg::RSI, reg::RDI, reg::RBP, reg::RSP];
        for (name, n) in gprs.into_iter().zip(order) {
            let kind = if matches!(n, reg::RBP | reg::RSP) { "data_ptr" } else { "int64" };
            d.add(name, 64, kind, "general", What::Gpr(n));
        }
        for n in 8..16 {
            d.add(&format!("r{n}"), 64, "int64", "general", What::Gpr(n));
        }
        d.add("rip", 64, "code_ptr", "general", What::Rip);
        d.add("eflags", 32, "i386_eflags", "general", What::Flags);
        let segments = [
            ("cs", seg::CS),
            ("ss", seg::SS),
            ("ds", seg::DS),
            ("es", seg::ES),
            ("fs", seg::FS),
            ("gs", seg::GS),
        ];
        for (name, n) in segments {
            d.add(name, 32, "int32", "general", What::Selector(n));
        }
        for n in 0..8 {
            d.add(&format!("st{n}"), 80, "i387_ext", "float", What::St(n));
        }
        let x87 = ["fctrl", "fstat", "ftag", "fiseg", "fioff", "foseg", "fooff", "fop"];
        for (n, name) in x87.into_iter().enumerate() {
            d.add(name, 32, "int", "float", What::X87(n));
        }
        d.close("org.gnu.gdb.i386.core", FLAGS);
        for n in 0..16 {
            d.add(&format!("xmm{n}"), 128, "vec128", "vector", What::Xmm(n));
        }
        d.add("mxcsr", 32, "i386_mxcsr", "vector", What::Mxcsr);
        d.close("org.gnu.gdb.i386.sse", SSE);
        d.add("fs_base", 64, "int", "system", What::Base(seg::FS));
        d.add("gs_base", 64, "int", "system", What::Base(seg::GS));
        d.close("org.gnu.gdb.i386.segments", "");
        for n in 0..16 {
            d.add(&format!("ymm{n}h"), 128, "uint128", "vector", What::YmmHigh(n));
        }
        d.close("org.gnu.gdb.i386.avx", "");
        for (name, n) in
            [("cs_base", seg::CS), ("ss_base", seg::SS), ("ds_base", seg::DS), ("es_base", seg::ES)]
        {
            d.add(name, 64, "int64", "system", What::Base(n));
        }
        d.add("k_gs_base", 64, "int64", "system", What::KernelGsBase);
        for n in [0, 2, 3, 4, 8] {
            d.add(&format!("cr{n}"), 64, "int64", "system", What::Cr(n));
        }
        d.add("efer", 64, "int64", "system", What::Efer);
        d.add("xcr0", 64, "int64", "system", What::Xcr0);
        for n in [0, 1, 2, 3, 6, 7] {
            d.add(&format!("dr{n}"), 64, "int64", "system", What::Dr(n));
        }
        for (n, name) in ["gdt", "idt"].into_iter().enumerate() {
            d.add(&format!("{name}_base"), 64, "int64", "system", What::TableBase(n));
            d.add(&format!("{name}_limit"), 32, "int32", "system", What::TableLimit(n));
        }
        d.close("org.tessera.x86.system", "");
        d
    }

    fn add(&mut self, name: &str, bits: usize, kind: &'static str, group: &'static str, what: What) {
        self.rows.push(Row { name: name.into(), bits, kind, group, what, at: self.size });
        self.size += bits / 8;
    }

    /// Ends a feature.
    fn close(&mut self, name: &'static str, types: &'static str) {
        let start = self.features.last().map_or(0, |feature| feature.rows.end);
        self.features.push(Feature { name, types, rows: start..self.rows.len() });
    }

    fn xml(&self) -> String {
        let mut text = String::from(
            "<?xml version=\"1.0\"?><!DOCTYPE target SYSTEM \"gdb-target.dtd\">\n<target version=\"1.0\">\
             <architecture>i386:x86-64</architecture>\n",
        );
        // Writing to a string cannot fail.
        for feature in &self.features {
            let _ = writeln!(text, "<feature name=\"{}\">{}", feature.name, feature.types);
            for row in &self.rows[feature.rows.clone()] {
                let _ = writeln!(
                    text,
                    "<reg name=\"{}\" bitsize=\"{}\" type=\"{}\" group=\"{}\"/>",
                    row.name, row.bits, row.kind, row.group
                );
            }
            text.push_str("</feature>\n");
        }
        text.push_str("</target>\n");
        text
    }
}

/// The value of a register.
fn read(state: &CpuState, what: What) -> u128 {
    let image = &state.xsave;
    let value = match what {
        What::Gpr(n) => state.gpr[n],
        What::Rip => state.rip,
        What::Flags => state.rflags,
        What::Selector(n) => state.segments[n].selector.into(),
        What::St(n) => return bytes(image, ST + 16 * n, 10),
        What::X87(n) => x87(image, n).into(),
        What::Xmm(n) => return bytes(image, XMM + 16 * n, 16),
        What::Mxcsr => image.mxcsr().into(),
        What::Base(n) => state.segments[n].base,
        What::KernelGsBase => state.msrs.kernel_gs_base,
        What::YmmHigh(n) => return bytes(image, AVX + 16 * n, 16),
        What::Cr(0) => state.cr0,
        What::Cr(2) => state.cr2,
        What::Cr(3) => state.cr3,
        What::Cr(4) => state.cr4,
        What::Cr(_) => state.cr8.into(),
        What::Efer => state.efer,
        What::Xcr0 => state.xcr0,
        What::Dr(6) => state.dr6,
        What::Dr(7) => state.dr7,
        What::Dr(n) => state.dr[n & 3],
        What::TableBase(n) => [state.gdtr, state.idtr][n & 1].base,
        What::TableLimit(n) => [state.gdtr, state.idtr][n & 1].limit.into(),
    };
    value.into()
}

/// Replaces the value of a register, and what in the processor always goes with it.
fn write(state: &mut CpuState, what: What, value: u128) {
    let low = value as u64;
    match what {
        What::Gpr(n) => state.gpr[n] = low,
        What::Rip => state.rip = low,
        What::Flags => state.rflags = low & RFlags::all().bits() | RFlags::ONE.bits(),
        What::Selector(n) => {
            state.segments[n].selector = low as u16;
            if state.cr0 & Cr0::PE.bits() == 0 || state.rflags & RFlags::VM.bits() != 0 {
                state.segments[n].base = u64::from(low as u16) << 4;
            }
        }
        What::St(n) => put(&mut state.xsave, ST + 16 * n, 10, value),
        What::X87(n) => set_x87(&mut state.xsave, n, low as u32),
        What::Xmm(n) => put(&mut state.xsave, XMM + 16 * n, 16, value),
        What::Mxcsr => put(&mut state.xsave, MXCSR, 4, value & 0xffff),
        What::Base(n) => state.segments[n].base = low,
        What::KernelGsBase => state.msrs.kernel_gs_base = low,
        What::YmmHigh(n) => put(&mut state.xsave, AVX + 16 * n, 16, value),
        What::Cr(0) => {
            // Paging needs protection.
            let needed = if low & Cr0::PG.bits() != 0 { Cr0::PE } else { Cr0::empty() };
            state.cr0 = low & 0xffff_ffff | (needed | Cr0::ET).bits();
        }
        What::Cr(2) => state.cr2 = low,
        What::Cr(3) => state.cr3 = low,
        What::Cr(4) => state.cr4 = low,
        What::Cr(_) => state.cr8 = (low & 15) as u8,
        What::Efer => state.efer = low,
        What::Xcr0 => state.xcr0 = low | 1,
        What::Dr(6) => state.dr6 = low & 0xe00f | debug::DR6_ONES,
        What::Dr(7) => state.dr7 = low & 0xffff_23ff | debug::DR7_RESET,
        What::Dr(n) => state.dr[n & 3] = low,
        What::TableBase(0) => state.gdtr.base = low,
        What::TableBase(_) => state.idtr.base = low,
        What::TableLimit(0) => state.gdtr.limit = low as u16,
        What::TableLimit(_) => state.idtr.limit = low as u16,
    }
    if matches!(what, What::Cr(0) | What::Efer) {
        let long = state.efer & Efer::LME.bits() != 0 && state.cr0 & Cr0::PG.bits() != 0;
        state.efer = state.efer & !Efer::LMA.bits() | if long { Efer::LMA.bits() } else { 0 };
    }
}

fn bytes(image: &XsaveImage, at: usize, len: usize) -> u128 {
    image.0[at..at + len].iter().rev().fold(0, |value, byte| value << 8 | u128::from(*byte))
}

fn put(image: &mut XsaveImage, at: usize, len: usize, value: u128) {
    image.0[at..at + len].copy_from_slice(&value.to_le_bytes()[..len]);
}

/// Control, status, full tags, instruction segment and offset, operand segment and offset, opcode.
fn x87(image: &XsaveImage, n: usize) -> u32 {
    let word = |at| bytes(image, at, 2) as u32;
    match n {
        0 => word(0),
        1 => word(2),
        2 => full_tags(image),
        3 => bytes(image, 12, 2) as u32,
        4 => bytes(image, 8, 4) as u32,
        5 => bytes(image, 20, 2) as u32,
        6 => bytes(image, 16, 4) as u32,
        _ => word(6) & 0x7ff,
    }
}

fn set_x87(image: &mut XsaveImage, n: usize, value: u32) {
    let value = u128::from(value);
    match n {
        0 => put(image, 0, 2, value),
        1 => put(image, 2, 2, value),
        2 => {
            let used = (0..8).filter(|n| value >> (2 * n) & 3 != 3).fold(0, |mask, n| mask | 1 << n);
            put(image, 4, 1, used);
        }
        3 => put(image, 12, 2, value),
        4 => put(image, 8, 4, value),
        5 => put(image, 20, 2, value),
        6 => put(image, 16, 4, value),
        _ => put(image, 6, 2, value & 0x7ff),
    }
}

/// The tag word, of which the image keeps only what is empty (SDM volume 1, section 8.1.7 and table 10-1).
fn full_tags(image: &XsaveImage) -> u32 {
    let top = image.0[3] >> 3 & 7;
    (0..8u8).fold(0, |tags, physical| {
        let st = usize::from(physical.wrapping_sub(top) & 7);
        let mantissa = bytes(image, ST + 16 * st, 8) as u64;
        let exponent = bytes(image, ST + 16 * st + 8, 2) as u16 & 0x7fff;
        let tag = if image.0[4] >> physical & 1 == 0 {
            3
        } else if exponent == 0 && mantissa == 0 {
            1
        } else if exponent == 0 || exponent == 0x7fff || mantissa >> 63 == 0 {
            2
        } else {
            0
        };
        tags | tag << (2 * physical)
    })
}

/// The register file in gdb's order.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct RegisterFile(Vec<u8>);

impl RegisterFile {
    /// The registers of a state.
    pub fn of(state: &CpuState) -> RegisterFile {
        let mut file = Vec::with_capacity(DESCRIPTION.size);
        for row in &DESCRIPTION.rows {
            file.extend_from_slice(&read(state, row.what).to_le_bytes()[..row.bits / 8]);
        }
        RegisterFile(file)
    }

    /// Changes those registers of `state` that are different here.
    pub fn apply(&self, state: &mut CpuState) {
        let old = RegisterFile::of(state);
        for row in &DESCRIPTION.rows {
            let range = row.at..row.at + row.bits / 8;
            let new = self.0.get(range.clone());
            if let Some(new) = new.filter(|new| **new != old.0[range]) {
                write(state, row.what, value_of(new));
            }
        }
    }
}

fn value_of(bytes: &[u8]) -> u128 {
    bytes.iter().take(16).rev().fold(0, |value, byte| value << 8 | u128::from(*byte))
}

impl Registers for RegisterFile {
    type ProgramCounter = u64;

    fn pc(&self) -> u64 {
        let row = DESCRIPTION.rows.iter().find(|row| row.what == What::Rip);
        row.and_then(|row| self.0.get(row.at..row.at + 8)).map_or(0, |bytes| value_of(bytes) as u64)
    }

    fn gdb_serialize(&self, mut write_byte: impl FnMut(Option<u8>)) {
        self.0.iter().for_each(|byte| write_byte(Some(*byte)));
    }

    fn gdb_deserialize(&mut self, bytes: &[u8]) -> Result<(), ()> {
        if bytes.len() != DESCRIPTION.size {
            return Err(());
        }
        self.0 = bytes.to_vec();
        Ok(())
    }
}

/// A register by its number in the description.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RegisterNumber(usize);

impl RegisterNumber {
    /// Copies its value to the start of `out`; the number of bytes.
    pub fn read(self, state: &CpuState, out: &mut [u8]) -> usize {
        let row = &DESCRIPTION.rows[self.0];
        let len = (row.bits / 8).min(out.len());
        out[..len].copy_from_slice(&read(state, row.what).to_le_bytes()[..len]);
        len
    }

    /// Replaces its value.
    pub fn write(self, state: &mut CpuState, value: &[u8]) {
        write(state, DESCRIPTION.rows[self.0].what, value_of(value));
    }
}

impl RegId for RegisterNumber {
    fn from_raw_id(id: usize) -> Option<(Self, Option<NonZeroUsize>)> {
        let row = DESCRIPTION.rows.get(id)?;
        Some((RegisterNumber(id), NonZeroUsize::new(row.bits / 8)))
    }

    fn to_raw_id(&self) -> Option<usize> {
        Some(self.0)
    }
}

/// The processor for gdb.
#[derive(Debug)]
pub enum X86Processor {}

impl Arch for X86Processor {
    type Usize = u64;
    type Registers = RegisterFile;
    type BreakpointKind = usize;
    type RegId = RegisterNumber;

    fn target_description_xml() -> Option<&'static str> {
        static XML: LazyLock<String> = LazyLock::new(|| DESCRIPTION.xml());
        Some(&XML)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn number(name: &str) -> RegisterNumber {
        RegisterNumber(DESCRIPTION.rows.iter().position(|row| row.name == name).unwrap())
    }

    #[test]
    fn every_register_can_be_written_and_read_back() {
        let mut state = super::super::tests::state();
        state.cr0 |= Cr0::PE.bits();
        for (n, row) in DESCRIPTION.rows.iter().enumerate() {
            let mut state = state.clone();
            let before = RegisterFile::of(&state);
            let number = RegisterNumber(n);
            // Bits that every register has and none fixes, but for those in the list.
            let old = read(&state, row.what);
            let new = match row.name.as_str() {
                "cr0" => old ^ 1 << 3,
                "efer" => old ^ 1,
                "xcr0" => 7,
                "eflags" => old ^ 1,
                "ftag" => 0xfffc,
                "mxcsr" => 0x1fa0,
                _ => old ^ 5,
            };
            number.write(&mut state, &new.to_le_bytes()[..row.bits / 8]);
            let after = RegisterFile::of(&state);
            let mut out = [0; 16];
            let len = number.read(&state, &mut out);
            assert_eq!(len * 8, row.bits, "{}", row.name);
            if row.name == "ftag" {
                // The tag depends on what is in the register, which is zero.
                assert_eq!(value_of(&out[..len]), 0xfffd);
            } else {
                assert_eq!(value_of(&out[..len]), new, "{}", row.name);
            }
            // Nothing else has changed that has bytes of its own.
            let range = row.at..row.at + len;
            for (at, (a, b)) in before.0.iter().zip(&after.0).enumerate() {
                assert!(a == b || range.contains(&at), "{} changed byte {at}", row.name);
            }
            // By way of the whole file, too.
            let mut again = super::super::tests::state();
            again.cr0 |= Cr0::PE.bits();
            let mut file = RegisterFile::default();
            file.gdb_deserialize(&after.0).unwrap();
            file.apply(&mut again);
            assert_eq!(again, state, "{}", row.name);
        }
    }

    #[test]
    fn the_description_lists_what_is_transferred() {
        let xml = X86Processor::target_description_xml().unwrap();
        assert_eq!(xml.matches("<reg ").count(), DESCRIPTION.rows.len());
        let mut state = super::super::tests::state();
        let size = RegisterFile::of(&state).0.len();
        state.efer = Efer::LMA.bits();
        assert_eq!(RegisterFile::of(&state).0.len(), size);
        assert_eq!(RegisterFile::of(&state).pc(), state.rip);
        assert!(RegisterFile::default().gdb_deserialize(&vec![0; size - 1]).is_err());
        assert!(RegisterNumber::from_raw_id(DESCRIPTION.rows.len()).is_none());
    }

    #[test]
    fn long_mode_follows_paging() {
        let mut state = super::super::tests::state();
        number("efer").write(&mut state, &0x100u64.to_le_bytes());
        assert_eq!(state.efer, 0x100);
        number("cr0").write(&mut state, &(Cr0::PG.bits()).to_le_bytes());
        assert_eq!((state.efer, state.cr0 & 1), (0x500, 1));
        number("cr0").write(&mut state, &0u64.to_le_bytes());
        assert_eq!(state.efer, 0x100);
        number("ds").write(&mut state, &0x1234u32.to_le_bytes());
        assert_eq!(state.segments[seg::DS].base, 0x12340, "in real mode");
    }
}
