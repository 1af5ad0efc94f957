//! Fixed code: entering and leaving generated code, and the way from it to Rust functions.
//!
//! The stack pointer is 16-byte aligned in generated code. The frame below the saved registers has words for the host's
//! and the guest's floating-point control, and for what access groups find there (`groups`).

use super::control::{emit_load_tlb, emit_lookup, emit_lookup_hit, emit_second_lookup};
use super::emitter::{ThunkAddrs, env_mem, runtime_disp, runtime_mem};
use super::encode::{Asm, Mem, r};
use super::vec::{VecMem, emit_vec_load, emit_vec_store};
use super::{ENV_BIAS, PIN_OFF, groups};
use crate::backend::{GuestInfo, Outcome, RuntimeFns, Thunks};
use crate::env::Runtime;
use crate::ir::{Cond, VecSize, Width};

/// Frame bytes; with six pushed registers and the return address this keeps the stack aligned.
const FRAME: i32 = 24 + 8 * groups::SLOTS as i32;
const _: () = assert!(FRAME % 16 == 8);
/// Host's MXCSR in the frame.
const HOST_FP: i32 = 0;
/// Scratch in the frame.
const SCRATCH: i32 = 8;
/// Words of access groups in the frame.
const GROUPS: i32 = 24;
/// All exceptions masked.
const FP_MASKED: i32 = 0x1f80;
/// Sticky exception flags.
const FP_STICKY: i32 = 0x3f;

const CALLEE_SAVED: [u8; 6] = [r::RBP, r::RBX, r::R12, r::R13, r::R14, r::R15];

/// A group's word in the stack frame, in generated code: the host address of its leader, or the addend if the group lasts.
pub fn group_word(slot: u8) -> Mem {
    Mem::Base(r::RSP, GROUPS + 8 * i32::from(slot))
}

pub(super) fn push(asm: &mut Asm, reg: u8) {
    if reg >= 8 {
        asm.buf.push(0x41);
    }
    asm.buf.push(0x50 | reg & 7);
}

pub(super) fn pop(asm: &mut Asm, reg: u8) {
    if reg >= 8 {
        asm.buf.push(0x41);
    }
    asm.buf.push(0x58 | reg & 7);
}

/// `ldmxcsr` (digit 2) or `stmxcsr` (digit 3) of `[rsp + disp]`.
fn mxcsr(asm: &mut Asm, digit: u8, disp: i32) {
    asm.buf.extend_from_slice(&[0x0f, 0xae]);
    asm.modrm_mem(digit, Mem::Base(r::RSP, disp));
}

pub(super) fn call(asm: &mut Asm, address: usize) {
    asm.mov_ri(r::RAX, address as u64);
    asm.buf.extend_from_slice(&[0xff, 0xd0]);
}

fn saved_int(reg: u8) -> Mem {
    runtime_mem(std::mem::offset_of!(Runtime, saved_int) + 8 * reg as usize)
}

fn saved_vec(reg: u8) -> VecMem {
    VecMem::base(r::RBP, runtime_disp(std::mem::offset_of!(Runtime, saved_vec) + 32 * reg as usize))
}

/// Saves (or restores) all allocatable registers in the runtime's save area.
fn save_area(asm: &mut Asm, restore: bool, vec: bool) {
    for reg in super::INT_ALLOC {
        if restore {
            asm.load(Width::W64, reg, saved_int(reg));
        } else {
            asm.store(Width::W64, saved_int(reg), reg);
        }
    }
    if vec {
        for reg in super::VEC_ALLOC {
            let m = saved_vec(reg);
            if restore {
                emit_vec_load(&mut asm.buf, VecSize::B32, reg, m);
            } else {
                emit_vec_store(&mut asm.buf, VecSize::B32, reg, m);
            }
        }
        if !restore {
            asm.vzeroupper();
        }
    }
}

/// Stores the pinned globals of some registers in the environment.
fn pinned_home(asm: &mut Asm, guest: &GuestInfo, pin_reg: &[u8; 64], which: impl Fn(u8) -> bool) {
    for (g, &reg) in pin_reg.iter().enumerate() {
        if reg != PIN_OFF && which(reg) {
            asm.store(Width::W64, env_mem(guest.globals[g].offset), reg);
        }
    }
}

/// Loads the pinned globals of some registers from the environment.
fn pinned_back(asm: &mut Asm, guest: &GuestInfo, pin_reg: &[u8; 64], which: impl Fn(u8) -> bool) {
    for (g, &reg) in pin_reg.iter().enumerate() {
        if reg != PIN_OFF && which(reg) {
            asm.load(Width::W64, reg, env_mem(guest.globals[g].offset));
        }
    }
}

/// Makes the thunks for address `base`.
pub fn make(guest: &GuestInfo, pin_reg: &[u8; 64], base: u64, fns: RuntimeFns) -> (Thunks, ThunkAddrs) {
    let mut asm = Asm::default();
    let mut addrs = ThunkAddrs::default();
    let at = |asm: &mut Asm| {
        asm.buf.resize(asm.len().next_multiple_of(16), 0xcc);
        base + asm.len() as u64
    };

    // enter(env: rdi, code: rsi) -> outcome
    let enter = (at(&mut asm) - base) as u32;
    for reg in CALLEE_SAVED {
        push(&mut asm, reg);
    }
    asm.lea(Width::W64, r::RSP, r::RSP, None, -FRAME);
    asm.lea(Width::W64, r::RBP, r::RDI, None, ENV_BIAS);
    asm.mov_rr(r::RCX, r::RSI);
    if let Some(offset) = guest.fp_control {
        mxcsr(&mut asm, 3, HOST_FP);
        asm.load(Width::W32, r::RAX, env_mem(offset));
        asm.alu_ri(super::encode::Alu::Or, Width::W32, r::RAX, FP_MASKED);
        asm.store(Width::W32, Mem::Base(r::RSP, SCRATCH), r::RAX);
        mxcsr(&mut asm, 2, SCRATCH);
    }
    pinned_back(&mut asm, guest, pin_reg, |_| true);
    emit_load_tlb(&mut asm);
    asm.buf.extend_from_slice(&[0xff, 0xe1]); // jmp rcx

    // exit: outcome in RAX, pinned globals in their registers
    addrs.exit = at(&mut asm);
    pinned_home(&mut asm, guest, pin_reg, |_| true);
    let restored = asm.len();
    if let Some(offset) = guest.fp_control {
        mxcsr(&mut asm, 3, SCRATCH);
        asm.load(Width::W32, r::RCX, Mem::Base(r::RSP, SCRATCH));
        asm.alu_ri(super::encode::Alu::And, Width::W32, r::RCX, FP_STICKY);
        asm.alu_rm(super::encode::Alu::Or, Width::W32, r::RCX, env_mem(offset));
        asm.store(Width::W32, env_mem(offset), r::RCX);
        mxcsr(&mut asm, 2, HOST_FP);
    }
    asm.vzeroupper();
    asm.lea(Width::W64, r::RSP, r::RSP, None, FRAME);
    for reg in CALLEE_SAVED.into_iter().rev() {
        pop(&mut asm, reg);
    }
    asm.buf.push(0xc3);

    // exit or poll: block in RAX, which is the low half of the outcome
    let mut leave = |outcome: Outcome| {
        let address = at(&mut asm);
        asm.mov_ri(r::RCX, outcome.encode());
        asm.alu_rr(super::encode::Alu::Or, Width::W64, r::RAX, r::RCX);
        let out = asm.jmp();
        asm.patch_rel32(out, (addrs.exit - base) as usize);
        address
    };
    addrs.exit_by = std::array::from_fn(|n| leave(Outcome::Exit { tb: 0, exit: n as u16 }));
    addrs.poll = leave(Outcome::Poll { tb: 0 });

    // slow access: point in RAX, block in RCX, called
    for vec in [false, true] {
        let address = at(&mut asm);
        if vec {
            addrs.slow_vec = address;
        } else {
            addrs.slow = address;
        }
        save_area(&mut asm, false, vec);
        asm.mov_rr(r::RDX, r::RAX);
        asm.mov_rr(r::RSI, r::RCX);
        asm.lea(Width::W64, r::RDI, r::RBP, None, -ENV_BIAS);
        // The call that came here pushed eight bytes.
        asm.lea(Width::W64, r::RSP, r::RSP, None, -8);
        call(&mut asm, fns.slow_access);
        asm.lea(Width::W64, r::RSP, r::RSP, None, 8);
        asm.test_rr(Width::W64, r::RAX, r::RAX);
        let fault = asm.jcc(Cond::NE);
        save_area(&mut asm, true, vec);
        emit_load_tlb(&mut asm);
        asm.buf.push(0xc3);
        let here = asm.len();
        asm.patch_rel32(fault, here);
        asm.lea(Width::W64, r::RSP, r::RSP, None, 8);
        asm.mov_ri(r::RAX, Outcome::Exception.encode());
        let out = asm.jmp();
        asm.patch_rel32(out, restored);
    }

    // call of a function of the environment, whose address is in RAX, that leaves all registers alone
    addrs.call_saved = at(&mut asm);
    save_area(&mut asm, false, true);
    asm.lea(Width::W64, r::RDI, r::RBP, None, -ENV_BIAS);
    // The call that came here pushed eight bytes.
    asm.lea(Width::W64, r::RSP, r::RSP, None, -8);
    asm.buf.extend_from_slice(&[0xff, 0xd0]); // call rax
    asm.lea(Width::W64, r::RSP, r::RSP, None, 8);
    save_area(&mut asm, true, true);
    emit_load_tlb(&mut asm);
    asm.buf.push(0xc3);

    // helper fault: point in RAX, block in RCX, jumped to
    addrs.helper_fault = at(&mut asm);
    save_area(&mut asm, false, false);
    asm.mov_rr(r::RDX, r::RAX);
    asm.mov_rr(r::RSI, r::RCX);
    asm.lea(Width::W64, r::RDI, r::RBP, None, -ENV_BIAS);
    call(&mut asm, fns.helper_fault);
    asm.mov_ri(r::RAX, Outcome::Exception.encode());
    let out = asm.jmp();
    asm.patch_rel32(out, restored);

    addrs.second_way = base + super::second_way::emit(&mut asm, fns.refill) as u64;

    // lookup: guest address in RCX, jumped to
    addrs.lookup = at(&mut asm);
    emit_lookup(&mut asm, None);
    let miss = asm.jcc(Cond::NE);
    emit_lookup_hit(&mut asm);
    // lookup miss: tag in RCX
    addrs.lookup_miss = at(&mut asm);
    let here = asm.len();
    asm.patch_rel32(miss, here);
    let requested = emit_second_lookup(&mut asm, env_mem(guest.globals[guest.pc.0 as usize].offset));
    let destroyed = |reg: u8| super::CALLER_SAVED.contains(&reg);
    pinned_home(&mut asm, guest, pin_reg, destroyed);
    asm.lea(Width::W64, r::RDI, r::RBP, None, -ENV_BIAS);
    call(&mut asm, fns.next_block);
    pinned_back(&mut asm, guest, pin_reg, destroyed);
    emit_load_tlb(&mut asm);
    asm.test_rr(Width::W64, r::RAX, r::RAX);
    let none = asm.jcc(Cond::E);
    asm.buf.extend_from_slice(&[0xff, 0xe0]); // jmp rax
    let here = asm.len();
    asm.patch_rel32(none, here);
    asm.patch_rel32(requested, here);
    asm.mov_ri(r::RAX, Outcome::Lookup.encode());
    let exit = (addrs.exit - base) as usize;
    let out = asm.jmp();
    asm.patch_rel32(out, exit);

    (Thunks { code: asm.buf, enter }, addrs)
}
