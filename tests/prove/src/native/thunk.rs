//! The code around sequences: all that the native child runs.
//!
//! It works off commands: for each sequence it loads the state of a [`Frame`], runs, and saves the state. Registers are saved by
//! instructions that change none (RIP-relative stores), so a sequence may end with any state, and faults come to the same end
//! through the signal handler's entry, which stores what the kernel saved and does not return to it.
//!
//! Invariants: nothing but system calls is used, for no library is mapped any more; no register survives a sequence, so what
//! has to is in the data page.

use std::mem::{offset_of, size_of};

use iced_x86::BlockEncoderOptions;
use iced_x86::code_asm::*;

use super::{Exchange, Room};
use crate::frame::{Frame, NONE, XSAVE_BYTES};
use crate::layout::{CODE, CODE_BYTES, CS32, DONE, IMAGE, IMAGE_AT, PAGE, PRESENT, READ_ONLY, WINDOW};

/// The assembled code and where its entries are.
pub struct Thunk {
    /// Bytes at [`Thunk::AT`]; [`Thunk::BYTES`] of them.
    pub bytes: Vec<u8>,
    /// Where the child goes when all is mapped: unmaps everything else and works off commands. Does not return.
    pub enter: u64,
    /// The signal handler.
    pub signal: u64,
}

impl Thunk {
    /// Where it lies: the code at [`DONE`], its data a page before.
    pub const AT: u64 = DONE - PAGE as u64;
    /// A page of data and one of code.
    pub const BYTES: usize = 2 * PAGE;
}

/// Exit status after a sequence that has jumped into the code around it.
const JUMPED_IN: i32 = 104;
/// Exit status if not everything could be unmapped.
const NOT_ALONE: i32 = 105;
/// One behind the last address that a process may map, as Linux has it with four levels of page tables.
const END_OF_ADDRESSES: u64 = 0x7fff_ffff_f000;
/// Vector of page faults.
const PAGE_FAULT: i32 = 14;
const GPR: i32 = offset_of!(Frame, gpr) as i32;
/// Standard flags: all clear, the direction and alignment checks included.
const NO_FLAGS: i32 = 2;

/// Where the kernel's `ucontext` registers go: RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8 to R15.
const GREGS: [i32; 16] = [
    libc::REG_RAX,
    libc::REG_RCX,
    libc::REG_RDX,
    libc::REG_RBX,
    libc::REG_RSP,
    libc::REG_RBP,
    libc::REG_RSI,
    libc::REG_RDI,
    libc::REG_R8,
    libc::REG_R9,
    libc::REG_R10,
    libc::REG_R11,
    libc::REG_R12,
    libc::REG_R13,
    libc::REG_R14,
    libc::REG_R15,
];

fn registers() -> [AsmRegister64; 16] {
    [rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15]
}

/// Field of the exchange, whose address is in RBX.
fn exchange(offset: usize) -> AsmMemoryOperand {
    ptr(rbx + offset as i32)
}

/// Field of the frame, whose address is in RDI.
fn field(offset: usize) -> AsmMemoryOperand {
    ptr(rdi + offset as i32)
}

fn gpr(n: usize) -> AsmMemoryOperand {
    ptr(rdi + GPR + 8 * n as i32)
}

/// System call with RDI, RSI and RDX set.
fn system_call(a: &mut CodeAssembler, number: i64) -> Result<(), IcedError> {
    a.mov(eax, number as i32)?;
    a.syscall()
}

fn exit(a: &mut CodeAssembler, status: i32) -> Result<(), IcedError> {
    a.mov(edi, status)?;
    system_call(a, libc::SYS_exit_group)
}

/// Copies all pages of an image but the read-only one from RSI to RDI.
fn copy_writable(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.mov(ecx, READ_ONLY.start as i32)?;
    a.rep().movsb()?;
    a.add(rsi, READ_ONLY.len() as i32)?;
    a.add(rdi, READ_ONLY.len() as i32)?;
    a.mov(ecx, (IMAGE - READ_ONLY.end) as i32)?;
    a.rep().movsb()
}

/// Unmaps what is not part of the layout; if that fails, to `failed`.
fn unmap_the_rest(a: &mut CodeAssembler, failed: CodeLabel) -> Result<(), IcedError> {
    let kept = [
        (CODE, CODE + CODE_BYTES as u64),
        (IMAGE_AT, IMAGE_AT + (PRESENT * PAGE) as u64),
        (Thunk::AT, Room::END),
    ];
    const { assert!(CODE < WINDOW && WINDOW < Thunk::AT) };
    let mut from = 0;
    for (start, end) in kept.into_iter().chain([(END_OF_ADDRESSES, END_OF_ADDRESSES)]) {
        a.mov(rdi, from)?;
        a.mov(rsi, start - from)?;
        system_call(a, libc::SYS_munmap)?;
        a.test(rax, rax)?;
        a.jne(failed)?;
        from = end;
    }
    Ok(())
}

/// A byte of the stack is read from a command pipe or written to an answer pipe; if that fails, to `failed`.
fn pass_byte(a: &mut CodeAssembler, call: i64, fd: i32, failed: CodeLabel) -> Result<(), IcedError> {
    a.mov(edi, fd)?;
    a.lea(rsi, ptr(rsp - 8))?;
    a.mov(edx, 1)?;
    system_call(a, call)?;
    a.cmp(rax, 1)?;
    a.jne(failed)
}

/// Assembles code that reads commands from one descriptor and answers to another: a byte once it is ready, and one for each
/// command.
pub fn assemble(commands: i32, answers: i32) -> Result<Thunk, IcedError> {
    let mut a = CodeAssembler::new(64)?;
    let (mut frame, mut number, mut out_rdi) = (a.create_label(), a.create_label(), a.create_label());
    let (mut target, mut selector) = (a.create_label(), a.create_label());
    let (mut resume, mut each, mut end) = (a.create_label(), a.create_label(), a.create_label());
    let (mut answer, mut compat, mut not_alone) = (a.create_label(), a.create_label(), a.create_label());

    // Data, aligned, for sequences may end with alignment checks on.
    for label in [&mut frame, &mut number, &mut out_rdi] {
        a.set_label(label)?;
        a.dq(&[0])?;
    }
    // A 64-bit address, or a far pointer m16:32.
    a.set_label(&mut target)?;
    a.dd(&[0])?;
    a.set_label(&mut selector)?;
    a.dd(&[0])?;
    a.db(&[0xcc; PAGE - 4 * 8])?;

    // At DONE: save. Nothing has been changed yet.
    a.mov(qword_ptr(out_rdi), rdi)?;
    a.mov(rdi, qword_ptr(frame))?;
    for (n, r) in registers().into_iter().enumerate() {
        if r != rdi {
            a.mov(gpr(n), r)?;
        }
    }
    a.mov(rsp, Room::STACK_END)?;
    a.pushfq()?;
    a.pop(qword_ptr(field(offset_of!(Frame, flags))))?;
    a.mov(rax, qword_ptr(out_rdi))?;
    a.mov(gpr(7), rax)?;
    a.rdfsbase(rax)?;
    a.mov(field(offset_of!(Frame, fs)), rax)?;
    a.rdgsbase(rax)?;
    a.mov(field(offset_of!(Frame, gs)), rax)?;
    a.mov(eax, 7)?;
    a.xor(edx, edx)?;
    a.xsave64(field(offset_of!(Frame, xsave)))?;

    // Store the window and go on with the next sequence.
    a.set_label(&mut resume)?;
    a.mov(rsp, Room::STACK_END)?;
    a.push(NO_FLAGS)?;
    a.popfq()?;
    a.mov(rbx, Room::EXCHANGE)?;
    a.mov(eax, dword_ptr(number))?;
    a.imul_3(rdi, rax, IMAGE as i32)?;
    a.lea(rdi, ptr(rdi + rbx + offset_of!(Exchange, images) as i32))?;
    a.mov(rsi, IMAGE_AT)?;
    copy_writable(&mut a)?;
    a.inc(dword_ptr(number))?;
    a.jmp(each)?;

    // The signal handler: the kernel has set up RDX.
    let mut signal = a.create_label();
    let (mut outside, mut with_address) = (a.create_label(), a.create_label());
    let of_context = |n: i32| {
        let registers = offset_of!(libc::ucontext_t, uc_mcontext) + offset_of!(libc::mcontext_t, gregs);
        ptr(rdx + registers as i32 + 8 * n)
    };
    a.set_label(&mut signal)?;
    a.push(NO_FLAGS)?;
    a.popfq()?;
    a.mov(rdi, qword_ptr(frame))?;
    a.mov(rax, of_context(libc::REG_RIP))?;
    a.mov(field(offset_of!(Frame, rip)), rax)?;
    a.mov(rcx, Thunk::AT)?;
    a.sub(rax, rcx)?;
    a.cmp(rax, Thunk::BYTES as i32)?;
    a.jae(outside)?;
    exit(&mut a, JUMPED_IN)?;
    a.set_label(&mut outside)?;
    for (n, from) in GREGS.into_iter().enumerate() {
        a.mov(rax, of_context(from))?;
        a.mov(gpr(n), rax)?;
    }
    a.mov(rax, of_context(libc::REG_EFL))?;
    a.mov(field(offset_of!(Frame, flags)), rax)?;
    a.movzx(eax, word_ptr(of_context(libc::REG_CSGSFS)))?;
    a.mov(field(offset_of!(Frame, cs)), rax)?;
    a.rdfsbase(rax)?;
    a.mov(field(offset_of!(Frame, fs)), rax)?;
    a.rdgsbase(rax)?;
    a.mov(field(offset_of!(Frame, gs)), rax)?;
    a.mov(rax, of_context(libc::REG_ERR))?;
    a.mov(field(offset_of!(Frame, error)), rax)?;
    a.mov(rcx, of_context(libc::REG_CR2))?;
    a.mov(rax, of_context(libc::REG_TRAPNO))?;
    a.mov(field(offset_of!(Frame, vector)), rax)?;
    a.cmp(rax, PAGE_FAULT)?;
    a.je(with_address)?;
    a.xor(ecx, ecx)?;
    a.set_label(&mut with_address)?;
    a.mov(field(offset_of!(Frame, address)), rcx)?;
    // An XSAVE area of standard format, but for the part that is software's.
    let saved = offset_of!(libc::ucontext_t, uc_mcontext) + offset_of!(libc::mcontext_t, fpregs);
    a.mov(rsi, qword_ptr(rdx + saved as i32))?;
    a.add(rdi, offset_of!(Frame, xsave) as i32)?;
    let (legacy, header) = (416, 512);
    a.mov(ecx, legacy)?;
    a.rep().movsb()?;
    a.add(rsi, header - legacy)?;
    a.add(rdi, header - legacy)?;
    a.mov(ecx, XSAVE_BYTES as i32 - header)?;
    a.rep().movsb()?;
    a.jmp(resume)?;

    // Entry.
    let mut enter = a.create_label();
    a.set_label(&mut enter)?;
    a.mov(rsp, Room::STACK_END)?;
    unmap_the_rest(&mut a, not_alone)?;
    a.set_label(&mut answer)?;
    pass_byte(&mut a, libc::SYS_write, answers, end)?;
    pass_byte(&mut a, libc::SYS_read, commands, end)?;
    a.mov(rbx, Room::EXCHANGE)?;
    a.lea(rsi, exchange(offset_of!(Exchange, template) + READ_ONLY.start))?;
    a.mov(rdi, Room::ALIAS + READ_ONLY.start as u64)?;
    a.mov(ecx, READ_ONLY.len() as i32)?;
    a.rep().movsb()?;
    a.mov(eax, exchange(offset_of!(Exchange, first)))?;
    a.mov(dword_ptr(number), eax)?;

    a.set_label(&mut each)?;
    a.mov(eax, dword_ptr(number))?;
    a.cmp(eax, exchange(offset_of!(Exchange, count)))?;
    a.jae(answer)?;
    a.mov(exchange(offset_of!(Exchange, progress)), eax)?;
    a.imul_3(rax, rax, size_of::<Frame>() as i32)?;
    a.lea(rax, ptr(rax + rbx + offset_of!(Exchange, frames) as i32))?;
    a.mov(qword_ptr(frame), rax)?;
    a.lea(rsi, exchange(offset_of!(Exchange, template)))?;
    a.mov(rdi, IMAGE_AT)?;
    copy_writable(&mut a)?;
    a.mov(rdi, qword_ptr(frame))?;
    a.mov(rax, NONE)?;
    a.mov(field(offset_of!(Frame, vector)), rax)?;
    a.mov(rax, field(offset_of!(Frame, rip)))?;
    a.mov(qword_ptr(target), rax)?;
    a.mov(rax, field(offset_of!(Frame, gs)))?;
    a.wrgsbase(rax)?;
    a.mov(rax, field(offset_of!(Frame, fs)))?;
    a.wrfsbase(rax)?;
    a.mov(eax, 7)?;
    a.xor(edx, edx)?;
    a.xrstor64(field(offset_of!(Frame, xsave)))?;
    a.cmp(qword_ptr(field(offset_of!(Frame, cs))), CS32 as i32)?;
    a.je(compat)?;
    let load = |a: &mut CodeAssembler| -> Result<(), IcedError> {
        a.push(qword_ptr(field(offset_of!(Frame, flags))))?;
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

    // The pipes are closed: the parent is gone.
    a.set_label(&mut end)?;
    exit(&mut a, 0)?;
    a.set_label(&mut not_alone)?;
    exit(&mut a, NOT_ALONE)?;

    let result = a.assemble_options(Thunk::AT, BlockEncoderOptions::RETURN_NEW_INSTRUCTION_OFFSETS)?;
    let (enter, signal) = (result.label_ip(&enter)?, result.label_ip(&signal)?);
    let mut bytes = result.inner.code_buffer;
    assert!(bytes.len() > PAGE && bytes.len() <= Thunk::BYTES, "the code fits into its page");
    // What jumps there traps there.
    bytes.resize(Thunk::BYTES, 0xcc);
    Ok(Thunk { bytes, enter, signal })
}
