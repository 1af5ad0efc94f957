//! The code around a sequence: loads the state of a [`Frame`], runs, saves the state.
//!
//! It lies at [`DONE`] in the child, its data a page behind it. Registers are saved by instructions that change none
//! (RIP-relative stores), so a sequence may end with any state, and faults come to the same end through the signal
//! handler's entry.

use std::mem::offset_of;

use iced_x86::BlockEncoderOptions;
use iced_x86::code_asm::*;

use crate::frame::Frame;
use crate::layout::{CS32, DONE};

/// The assembled code and where its entries are.
pub struct Thunk {
    /// Bytes at [`DONE`]; two pages.
    pub bytes: Vec<u8>,
    /// `extern "C" fn(*mut Frame)`: runs the sequence; the frame then holds what it left.
    pub enter: u64,
    /// The signal handler.
    pub signal: u64,
}

const PAGE: usize = 4096;
const GPR: i32 = offset_of!(Frame, gpr) as i32;

fn registers() -> [AsmRegister64; 16] {
    [rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15]
}

/// Assembles. `handler` is `extern "C" fn(signal, info, context, *mut Frame, fs, gs)`, called on the alternate stack with
/// the sequence's bases of FS and GS; afterwards the call of `enter` returns.
pub fn assemble(handler: u64) -> Result<Thunk, IcedError> {
    let mut a = CodeAssembler::new(64)?;
    let (mut host_rsp, mut frame, mut host_fs) = (a.create_label(), a.create_label(), a.create_label());
    let (mut out_rdi, mut target, mut control) = (a.create_label(), a.create_label(), a.create_label());
    let (mut clean, mut selector) = (a.create_label(), a.create_label());
    let field = |offset: usize| qword_ptr(rdi + offset as i32);
    let gpr = |n: usize| qword_ptr(rdi + GPR + 8 * n as i32);

    // At DONE: save. Nothing has been changed yet.
    a.mov(qword_ptr(out_rdi), rdi)?;
    a.mov(rdi, qword_ptr(frame))?;
    for (n, r) in registers().into_iter().enumerate() {
        if r != rdi {
            a.mov(gpr(n), r)?;
        }
    }
    a.mov(rsp, qword_ptr(host_rsp))?;
    a.pushfq()?;
    a.pop(field(offset_of!(Frame, flags)))?;
    a.mov(rax, qword_ptr(out_rdi))?;
    a.mov(gpr(7), rax)?;
    a.rdfsbase(rax)?;
    a.mov(field(offset_of!(Frame, fs)), rax)?;
    a.rdgsbase(rax)?;
    a.mov(field(offset_of!(Frame, gs)), rax)?;
    a.mov(eax, 7)?;
    a.xor(edx, edx)?;
    a.xsave64(ptr(rdi + offset_of!(Frame, xsave) as i32))?;
    a.set_label(&mut clean)?;
    // What Rust code expects.
    a.push(2)?;
    a.popfq()?;
    a.mov(rax, qword_ptr(host_fs))?;
    a.wrfsbase(rax)?;
    a.fninit()?;
    a.ldmxcsr(dword_ptr(control))?;
    a.vzeroupper()?;
    for r in [r15, r14, r13, r12, rbp, rbx] {
        a.pop(r)?;
    }
    a.ret()?;

    // The signal handler: the kernel has set up RDI, RSI, RDX. RFLAGS.AC may be set.
    let mut signal = a.create_label();
    a.set_label(&mut signal)?;
    a.push(2)?;
    a.popfq()?;
    a.rdfsbase(r8)?;
    a.rdgsbase(r9)?;
    a.mov(rax, qword_ptr(host_fs))?;
    a.wrfsbase(rax)?;
    a.mov(rcx, qword_ptr(frame))?;
    a.mov(rax, handler)?;
    a.call(rax)?;
    a.mov(rsp, qword_ptr(host_rsp))?;
    a.jmp(clean)?;

    // Entry.
    let mut enter = a.create_label();
    a.set_label(&mut enter)?;
    for r in [rbx, rbp, r12, r13, r14, r15] {
        a.push(r)?;
    }
    a.mov(qword_ptr(host_rsp), rsp)?;
    a.mov(qword_ptr(frame), rdi)?;
    a.rdfsbase(rax)?;
    a.mov(qword_ptr(host_fs), rax)?;
    a.mov(rax, field(offset_of!(Frame, rip)))?;
    a.mov(qword_ptr(target), rax)?;
    a.mov(rax, field(offset_of!(Frame, gs)))?;
    a.wrgsbase(rax)?;
    a.mov(rax, field(offset_of!(Frame, fs)))?;
    a.wrfsbase(rax)?;
    a.mov(eax, 7)?;
    a.xor(edx, edx)?;
    a.xrstor64(ptr(rdi + offset_of!(Frame, xsave) as i32))?;
    let mut compat = a.create_label();
    a.cmp(field(offset_of!(Frame, cs)), CS32 as i32)?;
    a.je(compat)?;
    let load = |a: &mut CodeAssembler| -> Result<(), IcedError> {
        a.push(field(offset_of!(Frame, flags)))?;
        a.popfq()?;
        for (n, r) in registers().into_iter().enumerate() {
            if r != rdi {
                a.mov(r, gpr(n))?;
            }
        }
        a.mov(rdi, gpr(7))
    };
    load(&mut a)?;
    a.jmp(qword_ptr(target))?;
    a.set_label(&mut compat)?;
    a.mov(dword_ptr(selector), CS32 as i32)?;
    load(&mut a)?;
    // jmp far m16:32
    a.jmp(fword_ptr(target))?;

    // Data, on the next page.
    let so_far = a.assemble(DONE)?.len();
    a.db(&vec![0xcc; PAGE - so_far])?;
    for label in [&mut host_rsp, &mut frame, &mut host_fs, &mut out_rdi, &mut control] {
        a.set_label(label)?;
        a.dq(&[0x1f80])?;
    }
    // A 64-bit address, or a far pointer m16:32.
    a.set_label(&mut target)?;
    a.dd(&[0])?;
    a.set_label(&mut selector)?;
    a.dd(&[0])?;
    let result = a.assemble_options(DONE, BlockEncoderOptions::RETURN_NEW_INSTRUCTION_OFFSETS)?;
    let (enter, signal) = (result.label_ip(&enter)?, result.label_ip(&signal)?);
    let mut bytes = result.inner.code_buffer;
    assert!(bytes.len() > PAGE && bytes.len() <= 2 * PAGE, "code and data lie on pages of their own");
    // What jumps there traps there.
    bytes.resize(2 * PAGE, 0xcc);
    Ok(Thunk { bytes, enter, signal })
}
