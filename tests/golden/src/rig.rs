//! Translates a snippet as the emulator does.

use std::sync::Arc;

use iced_x86::code_asm::CodeAssembler;
use tessera_tcg::backend::x86_64::X86_64;
use tessera_tcg::exec::{Listing, Options, Vcpu};
use tessera_x86::cpuid;
use tessera_x86::guest::X86;
use tessera_x86::state::{Cr0, Cr4, Efer, Segment, X86Env, seg};
use tessera_x86::testing::{NoPlatform, Ram};

use crate::snippet::{Mode, Snippet};

/// Guest address of a snippet's first byte.
pub const CODE: u64 = 0x8000;
/// Guest memory.
const RAM: usize = 1 << 20;
/// The page tables: a table of each level.
const PML4: u64 = 0x1000;
const PDPT: u64 = 0x2000;
const PD: u64 = 0x3000;
/// Present, writable, user, accessed, dirty.
const TABLE: u64 = 0x67;
/// A page of 2 MiB.
const LARGE: u64 = 0x80;
/// x87 with all exceptions masked, as FNINIT leaves it.
const X87_CONTROL: u16 = 0x37f;

/// A translated snippet.
pub struct Translated {
    /// Its blocks, in the order of guest addresses.
    pub blocks: Vec<Listing>,
    /// The vCPU that made them.
    pub vcpu: Vcpu<X86, X86_64>,
}

/// The processor in a mode.
fn env(mode: Mode) -> Box<X86Env> {
    let cpu = cpuid::parse("max").expect("`max` is a model");
    let mut env = X86Env::new(Box::new(NoPlatform::default()), cpu);
    let kernel = matches!(mode, Mode::Kernel64 | Mode::Real);
    let level = if kernel { 0 } else { 3 };
    let data = Segment { base: 0, limit: u32::MAX, access: 0xc093 | level << 5, selector: 0x10 | level };
    let code = 0x9b
        | level << 5
        | match mode.bits() {
            64 => 0xa000,
            32 => 0xc000,
            _ => 0,
        };
    env.cr0 = Cr0::MP | Cr0::NE | Cr0::ET;
    if mode == Mode::Real {
        for n in [seg::ES, seg::CS, seg::SS, seg::DS, seg::FS, seg::GS] {
            env.seg[n] = Segment { base: 0, limit: 0xffff, access: 0x93, selector: 0 };
        }
    } else {
        env.cr0 |= Cr0::PE | Cr0::PG | Cr0::WP;
        env.efer = Efer::SCE | Efer::LME | Efer::LMA | Efer::NXE;
        for n in [seg::ES, seg::SS, seg::DS, seg::FS, seg::GS] {
            env.seg[n] = data;
        }
        env.seg[seg::CS] = Segment { access: code, selector: 8 | level, ..data };
    }
    if mode == Mode::Segmented32 {
        env.seg[seg::DS] = Segment { base: 0x1000, limit: 0xffff, access: 0x40f3, ..data };
        env.seg_base[seg::DS] = 0x1000;
    }
    env.cr4 = Cr4::PAE | Cr4::PGE | Cr4::OSFXSR | Cr4::OSXMMEXCPT | Cr4::OSXSAVE | Cr4::FSGSBASE;
    env.cr3 = PML4;
    env.xcr0 = env.cpuid.xcr0_mask() & 7;
    env.cpl = level as u8;
    env.set_rflags(0x202);
    env.fpu.control = X87_CONTROL;
    env.rip = CODE;
    env.update_mode();
    env
}

/// Translates a snippet: block after block, until its last instruction.
///
/// # Panics
/// If it cannot be assembled or fetched: it is not a snippet then.
pub fn translate(snippet: &Snippet) -> Translated {
    let mut assembler = CodeAssembler::new(snippet.mode.bits()).expect("16, 32 or 64");
    if let Err(error) = (snippet.emit)(&mut assembler) {
        panic!("{}: {error}", snippet.name);
    }
    let insns = assembler.instructions().iter().filter(|insn| !insn.is_invalid()).count();
    let code = match assembler.assemble(CODE) {
        Ok(code) => code,
        Err(error) => panic!("{}: {error}", snippet.name),
    };
    let memory = Ram::new(RAM);
    for (table, entry) in [(PML4, PDPT | TABLE), (PDPT, PD | TABLE), (PD, TABLE | LARGE)] {
        memory.write(table, &entry.to_le_bytes());
    }
    memory.write(CODE, &code);
    let options = Options { cache_mib: 8, max_insns: insns as u32, ..Options::default() };
    let vcpu = Vcpu::<X86, X86_64>::new(env(snippet.mode), Arc::new(memory), options);
    let mut vcpu = vcpu.expect("a vCPU");
    vcpu.state_changed();
    let mut blocks = Vec::new();
    let mut at = 0;
    while at < code.len() {
        let mut block = match vcpu.list(CODE + at as u64) {
            Ok(block) => block,
            Err(exception) => panic!("{}: fetching raises {exception:?}", snippet.name),
        };
        // What lies behind the snippet is none of it.
        block.guest.truncate(code.len() - at);
        at += block.guest.len().max(1);
        blocks.push(block);
    }
    Translated { blocks, vcpu }
}
