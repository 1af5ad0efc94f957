//! Delivery of exceptions and interrupts in every mode (SDM volume 3, chapter 6; volume 2, INT n).
//!
//! [`deliver`] takes one [`Event`] and either transfers control to its handler or returns the exception that this raised,
//! with the registers untouched. [`deliver_exception`] puts the rules for exceptions during exceptions on top of it:
//! second exceptions in series, double fault, shutdown.
//!
//! The pushed return address is the current instruction pointer: of the faulting instruction for faults, of the next one
//! for traps and software interrupts, whose front ends have set it.
//!
//! #DB carries the bits to be set in DR6 in [`Exception::address`]; a page fault, as everywhere, the faulting address.

use iced_x86::{
    CpuidFeature, Decoder, DecoderOptions, Instruction, InstructionInfoFactory, Mnemonic, OpKind, Register,
    UsedMemory,
};
use tessera_tcg::guest::{Exception, Next};
use tessera_tcg::softmmu;

use super::flags::virtual_image;
use super::segment::{
    self, Descriptor, check_ip, code_of, enter_code, fetch, is_null, mark_accessed, null_segment, null_stack,
    stack_segment, system_type,
};
use super::stack::Stack;
use super::{Result, data_mmu, long_mode, read, task, virtual_8086};
use crate::guest::X86;
use crate::mmu;
use crate::state::{Cr0, Cr4, Efer, RFlags, Segment, X86Env, mmu_mode, mode, reg, seg};

/// Vectors of exceptions (SDM volume 3, table 6-1).
pub mod vector {
    #![allow(missing_docs)]
    pub const DE: u16 = 0;
    pub const DB: u16 = 1;
    pub const NMI: u16 = 2;
    pub const BP: u16 = 3;
    pub const OF: u16 = 4;
    pub const BR: u16 = 5;
    pub const UD: u16 = 6;
    pub const NM: u16 = 7;
    pub const DF: u16 = 8;
    pub const TS: u16 = 10;
    pub const NP: u16 = 11;
    pub const SS: u16 = 12;
    pub const GP: u16 = 13;
    pub const PF: u16 = 14;
    pub const MF: u16 = 16;
    pub const AC: u16 = 17;
    pub const MC: u16 = 18;
    pub const XM: u16 = 19;
}

fn with_code(vector: u16, code: u32) -> Exception {
    Exception { vector, error: Some(code), address: 0 }
}

/// #GP with an error code.
pub fn gp(code: u32) -> Exception {
    with_code(vector::GP, code)
}

/// #SS with an error code.
pub fn ss(code: u32) -> Exception {
    with_code(vector::SS, code)
}

/// #NP with an error code.
pub fn np(code: u32) -> Exception {
    with_code(vector::NP, code)
}

/// #TS with an error code.
pub fn ts(code: u32) -> Exception {
    with_code(vector::TS, code)
}

/// #UD.
pub fn ud() -> Exception {
    Exception { vector: vector::UD, error: None, address: 0 }
}

/// #NM.
pub fn nm() -> Exception {
    Exception { vector: vector::NM, error: None, address: 0 }
}

/// #DB that sets these bits of DR6.
pub fn db(dr6: u64) -> Exception {
    Exception { vector: vector::DB, error: None, address: dr6 }
}

/// Where an event comes from: decides the privilege check, the EXT bit and RF.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Origin {
    /// An external interrupt or NMI.
    External,
    /// An exception.
    Exception,
    /// INT n, INT3, INTO: the gate's DPL is checked.
    Software,
    /// INT1: not checked.
    PrivilegedSoftware,
}

/// Something to be delivered through the IDT.
#[derive(Clone, Copy, Debug)]
pub struct Event {
    /// Vector.
    pub vector: u8,
    /// Error code to push, if any.
    pub error: Option<u32>,
    /// Where it comes from.
    pub origin: Origin,
}

impl Event {
    fn ext(&self) -> u32 {
        (self.origin != Origin::Software) as u32
    }

    /// Error code for a defect of the IDT entry.
    fn idt_code(&self) -> u32 {
        (self.vector as u32) << 3 | 2 | self.ext()
    }

    /// RFLAGS to push: RF is set for faults and between the iterations of a repeated instruction, so that the instruction's
    /// breakpoint does not hit again (SDM volume 3, section 17.3.1.1).
    fn flags_image(&self, env: &X86Env) -> u64 {
        let fault = self.origin == Origin::Exception
            && !matches!(self.vector as u16, vector::DB | vector::DF | vector::MC);
        let resume = fault || env.repeating && self.origin != Origin::Software;
        env.rflags() | if resume { RFlags::RF.bits() } else { 0 }
    }

    fn check_gate(&self, env: &X86Env, gate: Descriptor) -> Result<()> {
        if self.origin == Origin::Software && gate.dpl() < env.cpl {
            return Err(gp(self.idt_code()));
        }
        if !gate.present() {
            return Err(np(self.idt_code()));
        }
        Ok(())
    }
}

/// Transfers control to the handler of `event`, or returns what that raised.
pub fn deliver(env: &mut X86Env, event: Event) -> Result<()> {
    if tracing::enabled!(target: "int", tracing::Level::DEBUG) {
        log(env, &event);
    }
    let result = if !env.cr0.contains(Cr0::PE) {
        deliver_real(env, event.vector, &event)
    } else if long_mode(env) {
        deliver_long(env, &event)
    } else {
        deliver_protected(env, &event)
    };
    if result.is_ok() {
        env.halted = false;
        env.interrupt_shadow = false;
        env.debug_shadow = false;
        env.repeating = false;
        env.update_privilege();
    }
    result
}

#[cold]
fn log(env: &X86Env, event: &Event) {
    tracing::debug!(
        target: "int",
        "vector {:#04x} {:?} error {:x?} cpl {} at {:04x}:{:016x} linear {:016x} ss:sp {:04x}:{:016x} cr2 {:016x}",
        event.vector, event.origin, event.error, env.cpl, env.seg[seg::CS].selector, env.ip(), env.rip,
        env.seg[seg::SS].selector, env.gpr[reg::RSP], env.cr2,
    );
}

/// Real mode's delivery through the interrupt vector table, which is where IDTR points; also for INT n in virtual-8086
/// mode that goes to the program's own table.
fn deliver_real(env: &mut X86Env, vector: u8, event: &Event) -> Result<()> {
    let offset = vector as u64 * 4;
    if offset + 3 > env.idtr.limit as u64 {
        return Err(gp(event.idt_code()));
    }
    let entry = read(env, env.idtr.base.wrapping_add(offset), 4)?;
    let flags = event.flags_image(env);
    let cleared = RFlags::IF | RFlags::TF | RFlags::AC | RFlags::RF;
    enter_real(env, entry, flags, flags & !cleared.bits())
}

/// Pushes what an interrupt in real mode pushes: `image` for FLAGS, CS and IP.
fn push_real_frame(env: &mut X86Env, image: u64) -> Result<()> {
    let mut stack = Stack::current(env);
    stack.reserve(env, 2, 3)?;
    stack.push(env, 2, image)?;
    stack.push(env, 2, env.seg[seg::CS].selector as u64)?;
    stack.push(env, 2, env.ip())?;
    stack.commit(env);
    Ok(())
}

/// Pushes FLAGS, CS and IP and goes to a far pointer: real-mode delivery. `image` is pushed, `flags` is what RFLAGS becomes.
pub(super) fn enter_real(env: &mut X86Env, pointer: u64, image: u64, flags: u64) -> Result<()> {
    let (selector, ip) = ((pointer >> 16) as u16, pointer & 0xffff);
    if ip > env.seg[seg::CS].limit as u64 {
        return Err(gp(0));
    }
    push_real_frame(env, image)?;
    let cs = segment::real_segment(&env.seg[seg::CS], seg::CS, selector);
    env.set_segment(seg::CS, cs);
    env.set_ip(ip);
    env.set_rflags(flags);
    Ok(())
}

/// Stack pointer (and selector) of privilege level `dpl` in the TSS, outside of long mode (SDM volume 3, section 5.8.5).
pub(super) fn inner_stack(env: &mut X86Env, dpl: u8, ext: u32) -> Result<(u16, u64)> {
    let tr = env.seg[seg::TR];
    let wide = tr.access & 8 != 0;
    let (offset, size) = if wide { (4 + dpl as u64 * 8, 4) } else { (2 + dpl as u64 * 4, 2) };
    if offset + 2 * size - 1 > tr.limit as u64 {
        return Err(ts(code_of(tr.selector) | ext));
    }
    let sp = read(env, tr.base.wrapping_add(offset), size as u32)?;
    let ss = read(env, tr.base.wrapping_add(offset + size), 2)?;
    Ok((ss as u16, sp))
}

/// Stack pointer in the 64-bit TSS: of a privilege level (0 to 2) or of the interrupt stack table (1 to 7).
pub(super) fn inner_stack_long(env: &mut X86Env, dpl: u8, ist: u8, ext: u32) -> Result<u64> {
    let tr = env.seg[seg::TR];
    let offset = if ist != 0 { 28 + ist as u64 * 8 } else { 4 + dpl as u64 * 8 };
    if offset + 7 > tr.limit as u64 {
        return Err(ts(code_of(tr.selector) | ext));
    }
    let rsp = read(env, tr.base.wrapping_add(offset), 8)?;
    if mmu::canonical(env, rsp) { Ok(rsp) } else { Err(ss(ext)) }
}

/// The handler's code segment: checks common to all gates of protected and long mode.
fn handler_segment(env: &mut X86Env, selector: u16, ext: u32) -> Result<segment::Entry> {
    if is_null(selector) {
        return Err(gp(ext));
    }
    let code = code_of(selector) | ext;
    let entry = fetch(env, selector, gp(code))?;
    if !entry.desc.is_code() || entry.desc.dpl() > env.cpl {
        return Err(gp(code));
    }
    if !entry.desc.present() {
        return Err(np(code));
    }
    Ok(entry)
}

fn deliver_protected(env: &mut X86Env, event: &Event) -> Result<()> {
    let ext = event.ext();
    let offset = event.vector as u64 * 8;
    if offset + 7 > env.idtr.limit as u64 {
        return Err(gp(event.idt_code()));
    }
    let gate = Descriptor(read(env, env.idtr.base.wrapping_add(offset), 8)?);
    let kind = gate.kind();
    let interrupt = matches!(kind, system_type::INTERRUPT_GATE16 | system_type::INTERRUPT_GATE);
    let trap = matches!(kind, system_type::TRAP_GATE16 | system_type::TRAP_GATE);
    let task = kind == system_type::TASK_GATE;
    if gate.is_segment() || !(interrupt || trap || task) {
        return Err(gp(event.idt_code()));
    }
    event.check_gate(env, gate)?;
    let selector = (gate.0 >> 16) as u16;
    if task {
        let flags = event.flags_image(env);
        return task::switch_by_gate(env, selector, ext, event.error, flags);
    }

    let wide = kind & 8 != 0;
    let size = if wide { 4 } else { 2 };
    let ip = if wide { gate.0 & 0xffff | gate.0 >> 32 & 0xffff_0000 } else { gate.0 & 0xffff };
    let mut entry = handler_segment(env, selector, ext)?;
    let desc = entry.desc;
    let code = code_of(selector) | ext;
    let v86 = virtual_8086(env);
    let inner = !desc.is_conforming() && desc.dpl() < env.cpl;
    if v86 && !(inner && desc.dpl() == 0) {
        return Err(gp(code));
    }
    let cpl = if inner { desc.dpl() } else { env.cpl };
    check_ip(env, desc, ip, ext)?;

    let image = event.flags_image(env);
    let words = 3 + event.error.is_some() as u64;
    let new_ss;
    let mut stack;
    if inner {
        let (selector, sp) = inner_stack(env, cpl, ext)?;
        if is_null(selector) {
            return Err(ts(ext));
        }
        let ss = stack_segment(env, selector, cpl, vector::TS, ext)?;
        stack = Stack::new(ss, false, sp, data_mmu(env, cpl), code_of(selector) | ext);
        stack.reserve(env, size, words + if v86 { 6 } else { 2 })?;
        if v86 {
            for n in [seg::GS, seg::FS, seg::DS, seg::ES] {
                stack.push(env, size, env.seg[n].selector as u64)?;
            }
        }
        stack.push(env, size, env.seg[seg::SS].selector as u64)?;
        stack.push(env, size, env.gpr[reg::RSP])?;
        new_ss = Some(ss);
    } else {
        stack = Stack::current(env);
        stack.reserve(env, size, words)?;
        new_ss = None;
    }
    stack.push(env, size, image)?;
    stack.push(env, size, env.seg[seg::CS].selector as u64)?;
    stack.push(env, size, env.ip())?;
    if let Some(error) = event.error {
        stack.push(env, size, error as u64)?;
    }
    mark_accessed(env, &mut entry)?;

    if v86 {
        for n in [seg::ES, seg::DS, seg::FS, seg::GS] {
            env.set_segment(n, null_segment(0));
        }
    }
    if let Some(ss) = new_ss {
        env.set_segment(seg::SS, ss);
    }
    stack.commit(env);
    handler_flags(env, interrupt);
    enter_code(env, entry.desc, selector, cpl, ip);
    Ok(())
}

/// TF, NT, RF and VM are clear in a handler, IF behind an interrupt gate (SDM volume 3, section 6.12.1).
fn handler_flags(env: &mut X86Env, interrupt: bool) {
    let cleared = RFlags::TF | RFlags::NT | RFlags::RF | RFlags::VM;
    env.eflags &= !cleared.bits();
    if interrupt {
        env.eflags &= !RFlags::IF.bits();
    }
}

fn deliver_long(env: &mut X86Env, event: &Event) -> Result<()> {
    let ext = event.ext();
    let offset = event.vector as u64 * 16;
    if offset + 15 > env.idtr.limit as u64 {
        return Err(gp(event.idt_code()));
    }
    let va = env.idtr.base.wrapping_add(offset);
    let gate = Descriptor(read(env, va, 8)?);
    let upper = read(env, va.wrapping_add(8), 8)?;
    if gate.is_segment() || !matches!(gate.kind(), system_type::INTERRUPT_GATE | system_type::TRAP_GATE) {
        return Err(gp(event.idt_code()));
    }
    event.check_gate(env, gate)?;
    let selector = (gate.0 >> 16) as u16;
    let ip = gate.0 & 0xffff | gate.0 >> 32 & 0xffff_0000 | upper << 32;
    let ist = (gate.0 >> 32 & 7) as u8;
    let mut entry = handler_segment(env, selector, ext)?;
    let desc = entry.desc;
    if !desc.long() || desc.big() {
        return Err(gp(code_of(selector) | ext));
    }
    check_ip(env, desc, ip, ext)?;
    let inner = !desc.is_conforming() && desc.dpl() < env.cpl;
    let cpl = if inner { desc.dpl() } else { env.cpl };
    let old_sp = env.gpr[reg::RSP];
    let sp = if inner || ist != 0 { inner_stack_long(env, cpl, ist, ext)? } else { old_sp };
    let mut stack = Stack::new(Segment::default(), true, sp & !0xf, data_mmu(env, cpl), ext);
    let frame = [
        event.error.unwrap_or(0) as u64,
        env.ip(),
        env.seg[seg::CS].selector as u64,
        event.flags_image(env),
        old_sp,
        env.seg[seg::SS].selector as u64,
    ];
    stack.push_quads(env, &frame[event.error.is_none() as usize..])?;
    mark_accessed(env, &mut entry)?;

    if inner {
        env.set_segment(seg::SS, null_stack(cpl));
    }
    stack.commit(env);
    handler_flags(env, gate.kind() == system_type::INTERRUPT_GATE);
    enter_code(env, entry.desc, selector, cpl, ip);
    Ok(())
}

/// Classes of SDM volume 3, table 6-4.
fn contributory(v: u16) -> bool {
    matches!(v, vector::DE | vector::TS | vector::NP | vector::SS | vector::GP)
}

/// What becomes of a second exception during the delivery of a first (SDM volume 3, table 6-5).
fn second_exception(first: u16, second: Exception) -> Option<Exception> {
    let serious = contributory(second.vector) || second.vector == vector::PF;
    if first == vector::DF && serious {
        return None;
    }
    let double = contributory(first) && contributory(second.vector) || first == vector::PF && serious;
    Some(if double { with_code(vector::DF, 0) } else { second })
}

/// Side effects of an exception that come with its being raised, before its delivery.
fn record(env: &mut X86Env, exception: &Exception) {
    match exception.vector {
        vector::PF => page_fault(env, exception),
        vector::DB => super::debug::record(env, exception.address),
        _ => {}
    }
}

/// What a page fault does before its delivery. It ends the translations of its address: what the guest maps there afterwards,
/// nobody needs to be told (SDM volume 3, section 4.10.4.1).
fn page_fault(env: &mut X86Env, exception: &Exception) {
    env.cr2 = exception.address;
    // The code says that it was a fetch where that makes a difference to the guest, otherwise it may have been one.
    let told = env.efer.contains(Efer::NXE) || env.cr4.contains(Cr4::SMEP);
    let fetch = !told || exception.error.is_some_and(|code| code & PF_FETCH != 0);
    softmmu::drop_failed::<X86>(env, exception.address, fetch);
}

/// I/D in a page fault's error code.
const PF_FETCH: u32 = 1 << 4;
/// FSW.ES.
const X87_PENDING: u16 = 1 << 7;

/// A pending x87 exception comes before what a waiting instruction's memory operand raises, but not before what its fetch
/// does. The page walk raises #GP(0) for a non-canonical address, whatever the segment; if it was a stack access of the
/// current instruction, this is #SS(0).
fn refine(env: &mut X86Env, exception: Exception) -> Exception {
    // A fetch says so where it can fault on a page that data accesses can read.
    let fetch = exception.vector == vector::PF && exception.error.is_some_and(|e| e & PF_FETCH != 0);
    let memory = !fetch && matches!(exception.vector, vector::GP | vector::SS | vector::PF | vector::AC);
    if memory && env.fpu.status & X87_PENDING != 0 && env.cr0.contains(Cr0::NE) && waits_for_x87(env) {
        return Exception { vector: vector::MF, error: None, address: 0 };
    }
    let candidate = exception.vector == vector::GP && exception.address != 0 && env.code64();
    if candidate && accesses_stack_at(env, exception.address) { ss(0) } else { exception }
}

/// Whether the current instruction, of 64-bit code, has a stack operand that contains `va`.
#[cold]
fn accesses_stack_at(env: &mut X86Env, va: u64) -> bool {
    let Some(instruction) = current_instruction(env) else { return false };
    let mut factory = InstructionInfoFactory::new();
    // Segment prefixes other than FS and GS count for nothing: the base register decides.
    let stack = |m: &&UsedMemory| {
        !matches!(m.segment(), Register::FS | Register::GS)
            && matches!(m.base().full_register(), Register::RSP | Register::RBP)
    };
    factory.info(&instruction).used_memory().iter().filter(stack).any(|m| {
        let register = |r: Register, _, _| {
            let full = r.full_register();
            let n = (full as usize).wrapping_sub(Register::RAX as usize);
            match env.gpr.get(n) {
                Some(&v) if r.size() == 4 => Some(v & 0xffff_ffff),
                Some(&v) => Some(v),
                // Segment bases, which the stack segment does not have.
                None => Some(0),
            }
        };
        let size = m.memory_size().size().max(8) as u64;
        // A register with a bit offset leads anywhere, and so does a vector of indices.
        let bits =
            matches!(instruction.mnemonic(), Mnemonic::Bt | Mnemonic::Btc | Mnemonic::Btr | Mnemonic::Bts);
        bits || m.index().is_vector_register()
            || m.virtual_address(0, register).is_some_and(|start| va.wrapping_sub(start) < size)
    })
}

/// Whether the current instruction looks at pending x87 exceptions before anything else: x87 and MMX instructions but for
/// those whose names say that they do not wait.
#[cold]
fn waits_for_x87(env: &mut X86Env) -> bool {
    let Some(i) = current_instruction(env) else { return false };
    let mut features = i.cpuid_features().iter();
    let x87 = features.any(|f| matches!(f, CpuidFeature::FPU | CpuidFeature::FPU287 | CpuidFeature::FPU387));
    let mmx = (0..i.op_count()).any(|n| i.op_kind(n) == OpKind::Register && i.op_register(n).is_mm());
    use Mnemonic::*;
    x87 && !matches!(i.mnemonic(), Fnstcw | Fnstsw | Fnstenv | Fnsave) || mmx
}

/// The instruction that the program counter points to, if it can be read.
fn current_instruction(env: &mut X86Env) -> Option<Instruction> {
    let mmu = if env.cpl == 3 { mmu_mode::USER } else { mmu_mode::KERNEL };
    let mut bytes = [0u8; 15];
    let rest = 4096 - (env.rip as usize & 0xfff);
    let mut len = bytes.len();
    if softmmu::load_bytes::<X86>(env, env.rip, &mut bytes, mmu).is_err() {
        len = len.min(rest);
        if softmmu::load_bytes::<X86>(env, env.rip, &mut bytes[..len], mmu).is_err() {
            return None;
        }
    }
    let bits = match env.mode & (mode::CODE64 | mode::CODE32) {
        0 => 16,
        mode::CODE32 => 32,
        _ => 64,
    };
    Some(Decoder::with_ip(bits, &bytes[..len], env.rip, DecoderOptions::NONE).decode())
}

/// Delivers an exception that an instruction raised, with those that its delivery raises.
pub fn deliver_exception(env: &mut X86Env, exception: Exception) -> Next {
    let mut current = refine(env, exception);
    super::debug::discard(env);
    loop {
        if current.vector > 0xff {
            // The software MMU's private vectors: nothing the guest sees. The instruction runs again.
            return Next::Continue;
        }
        if current.vector == vector::MF && !env.cr0.contains(Cr0::NE) {
            return wait_for_ferr(env);
        }
        record(env, &current);
        let event = Event { vector: current.vector as u8, error: current.error, origin: Origin::Exception };
        let Err(second) = deliver(env, event) else { return after_delivery(env) };
        if second.vector == vector::PF {
            page_fault(env, &second);
        }
        let Some(next) = second_exception(current.vector, second) else { return shut_down(env) };
        current = next;
    }
}

/// An x87 error without CR0.NE: the CPU stands before the instruction, as if halted, until an interrupt comes, which is the
/// one that FERR# leads to if the system is set up for it.
#[cold]
fn wait_for_ferr(env: &mut X86Env) -> Next {
    env.platform.ferr(true);
    env.halted = true;
    super::interrupt::poll_events(env)
}

/// The shutdown state after a triple fault: a PC's board resets the machine.
#[cold]
fn shut_down(env: &mut X86Env) -> Next {
    env.shutdown = true;
    tracing::debug!(target: "int", "triple fault\n{}", super::dump(env));
    Next::Exit(super::exit::SHUTDOWN)
}

/// Delivery may itself have hit a data breakpoint, whose trap comes before the handler's first instruction.
fn after_delivery(env: &mut X86Env) -> Next {
    super::debug::deliver_pending(env).unwrap_or(Next::Continue)
}

/// Delivers an external interrupt or NMI.
pub fn deliver_interrupt(env: &mut X86Env, vector: u8) -> Next {
    match deliver(env, Event { vector, error: None, origin: Origin::External }) {
        Ok(()) => after_delivery(env),
        Err(e) => deliver_exception(env, e),
    }
}

/// INT3, INTO and, outside of virtual-8086 mode, INT n. The program counter is that of the next instruction.
pub fn software_interrupt(env: &mut X86Env, vector: u8, origin: Origin) -> Result<()> {
    deliver(env, Event { vector, error: None, origin })
}

/// INT n. In virtual-8086 mode it depends on IOPL, and with CR4.VME on the TSS's redirection map (SDM volume 3, section
/// 20.3.3).
pub fn int_n(env: &mut X86Env, vector: u8) -> Result<()> {
    if !virtual_8086(env) {
        return software_interrupt(env, vector, Origin::Software);
    }
    let vme = env.cr4.contains(Cr4::VME);
    if vme && !redirected(env, vector)? {
        // Methods 5 and 6: the program's own handler, with VIF instead of IF if IOPL is below 3.
        let pointer = read(env, vector as u64 * 4, 4)?;
        let flags = env.rflags();
        let iopl3 = super::iopl(env) == 3;
        let image = if iopl3 { flags } else { virtual_image(flags) };
        let interrupt = if iopl3 { RFlags::IF } else { RFlags::VIF };
        let cleared = RFlags::TF | RFlags::RF | interrupt;
        let (selector, ip) = ((pointer >> 16) as u16, pointer & 0xffff);
        push_real_frame(env, image)?;
        env.set_segment(seg::CS, segment::virtual_segment(selector));
        env.set_ip(ip);
        env.set_rflags(flags & !cleared.bits());
        env.update_mode();
        return Ok(());
    }
    if super::iopl(env) < 3 {
        return Err(gp(0));
    }
    software_interrupt(env, vector, Origin::Software)
}

/// Bit of the software interrupt redirection map: set means that the interrupt goes to protected mode.
fn redirected(env: &mut X86Env, vector: u8) -> Result<bool> {
    let tr = env.seg[seg::TR];
    if tr.limit < 0x67 {
        return Err(gp(0));
    }
    let io_map = read(env, tr.base.wrapping_add(0x66), 2)?;
    let at = io_map.wrapping_sub(32).wrapping_add(vector as u64 / 8);
    if at > tr.limit as u64 {
        return Err(gp(0));
    }
    let byte = read(env, tr.base.wrapping_add(at), 1)?;
    Ok(byte >> (vector & 7) & 1 != 0)
}

#[cfg(test)]
mod unit_tests {
    use super::*;

    #[test]
    fn second_exceptions_follow_the_table() {
        let after = |first, second| {
            let e = Exception { vector: second, error: Some(0), address: 0 };
            second_exception(first, e).map(|e| e.vector)
        };
        assert_eq!(after(vector::UD, vector::GP), Some(vector::GP), "benign first");
        assert_eq!(after(vector::GP, vector::NP), Some(vector::DF));
        assert_eq!(after(vector::GP, vector::PF), Some(vector::PF), "in series");
        assert_eq!(after(vector::PF, vector::PF), Some(vector::DF));
        assert_eq!(after(vector::PF, vector::GP), Some(vector::DF));
        assert_eq!(after(vector::DF, vector::PF), None, "shutdown");
        assert_eq!(after(vector::DF, vector::UD), Some(vector::UD));
    }

    #[test]
    fn only_int_instructions_are_not_external() {
        let code = |origin| Event { vector: 0x80, error: None, origin }.idt_code();
        assert_eq!(code(Origin::Software), 0x402);
        assert_eq!(code(Origin::External), 0x403);
        assert_eq!(code(Origin::PrivilegedSoftware), 0x403);
    }
}
