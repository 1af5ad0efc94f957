//! The x86-64 host.
//!
//! Problem: turn IR into good host code in about a microsecond for each guest instruction. Strategy: one analysis pass
//! backward ([`liveness`]), then one pass forward that allocates registers and emits at once ([`emitter`] and
//! the files of the instruction families). Slow paths and side exits go to a second, *cold* buffer that is appended.
//!
//! Register conventions:
//! - RBP: environment plus [`ENV_BIAS`]; RSP: host stack; R11: the TLB that most accesses look into ([`TLB`]). RAX, RCX, XMM14,
//!   XMM15: scratch within one instruction.
//! - [`PIN_ORDER`]: home of the most wanted globals at block boundaries, callee-saved first, so that helper calls
//!   save little. Within a block every register but the fixed ones is allocated freely.
//!
//! Requirements: AVX2, BMI2, LZCNT (x86-64-v3); checked when the backend is made.

mod control;
mod count;
mod emitter;
mod encode;
mod flags;
mod groups;
mod int;
mod liveness;
mod mem;
mod second_way;
#[cfg(test)]
mod tests;
mod thunks;
pub mod vec;
mod vector;

use emitter::{Buffers, Emitter, Target, ThunkAddrs};
use encode::r;

use crate::backend::{Compiled, GuestInfo, HostBackend, JumpSite, RuntimeFns, Thunks};
use crate::ir::{Block, GlobalId, Inst};
use crate::opt::OptFlags;

/// The environment register, RBP, points this far into the environment, so that a signed byte reaches its first 256 bytes.
pub const ENV_BIAS: i32 = 128;

/// Registers that globals can be pinned to, best first.
const PIN_ORDER: [u8; 8] = [r::RBX, r::R12, r::R13, r::R14, r::R15, r::RSI, r::RDI, r::R8];

/// Allocatable integer registers in order of preference: those that are nobody's home first.
const INT_ALLOC: [u8; 11] =
    [r::R9, r::R10, r::RDX, r::R8, r::RDI, r::RSI, r::R15, r::R14, r::R13, r::R12, r::RBX];

/// Holds [`Header::tlb_main`](crate::env::Header::tlb_main) while generated code runs.
const TLB: u8 = r::R11;

/// Allocatable vector registers.
const VEC_ALLOC: std::ops::Range<u8> = 0..14;

/// Allocatable integer registers that a call destroys (System V ABI); it destroys [`TLB`], too.
const CALLER_SAVED: [u8; 6] = [r::RDX, r::RSI, r::RDI, r::R8, r::R9, r::R10];

/// Integer arguments of a call (System V ABI).
const ABI_ARGS: [u8; 6] = [r::RDI, r::RSI, r::RDX, r::RCX, r::R8, r::R9];

/// In a table by global: not pinned.
const PIN_OFF: u8 = 255;

/// The x86-64 backend.
pub struct X86_64 {
    guest: GuestInfo,
    pin_reg: Box<[u8; 64]>,
    pinned: Vec<(GlobalId, u8)>,
    thunks: ThunkAddrs,
    opt: OptFlags,
    buffers: Buffers,
}

impl HostBackend for X86_64 {
    fn new(guest: GuestInfo) -> Result<X86_64, String> {
        for (name, present) in [
            ("AVX2", std::arch::is_x86_feature_detected!("avx2")),
            ("BMI2", std::arch::is_x86_feature_detected!("bmi2")),
            ("LZCNT", std::arch::is_x86_feature_detected!("lzcnt")),
            ("POPCNT", std::arch::is_x86_feature_detected!("popcnt")),
        ] {
            if !present {
                return Err(format!(
                    "the translator needs an x86-64-v3 host processor, but this one lacks {name}"
                ));
            }
        }
        let mut wanted: Vec<_> =
            guest.globals.iter().enumerate().filter_map(|(g, d)| d.pin.map(|p| (p, g))).collect();
        wanted.sort();
        let mut pin_reg = Box::new([PIN_OFF; 64]);
        let mut pinned = Vec::new();
        for (&reg, (_, g)) in PIN_ORDER.iter().zip(wanted) {
            pin_reg[g] = reg;
            pinned.push((GlobalId(g as u8), reg));
        }
        let (thunks, buffers) = (ThunkAddrs::default(), Buffers::default());
        Ok(X86_64 { guest, pin_reg, pinned, thunks, opt: OptFlags::all(), buffers })
    }

    fn tune(&mut self, opt: OptFlags, count: bool) {
        self.opt = opt;
        self.buffers.count.on = count;
    }

    fn thunks(&mut self, base: u64, fns: RuntimeFns) -> Thunks {
        let (thunks, addrs) = thunks::make(&self.guest, &self.pin_reg, base, fns);
        self.thunks = addrs;
        thunks
    }

    fn pinned(&self) -> &[(GlobalId, u8)] {
        &self.pinned
    }

    fn compile(&mut self, block: &Block, base: u64, tb: u32, out: &mut Compiled) {
        out.code.clear();
        out.jumps.clear();
        out.points.clear();
        out.moved.clear();
        out.recipes.clear();
        let mut e = Emitter::new(self.guest, &self.pin_reg, self.thunks, block, tb, out, &mut self.buffers);
        e.opt = self.opt;
        if self.opt.contains(OptFlags::GROUPS) {
            e.group_accesses();
        }
        emit_block(&mut e);
        e.finish_counts();
        place(&mut self.buffers, base, out);
    }

    fn name_of(&self, address: u64) -> Option<String> {
        self.thunks.name_of(address)
    }

    fn link_field(field: u64, target: u64) -> u32 {
        target.wrapping_sub(field + 4) as u32
    }
}

fn emit_block(e: &mut Emitter) {
    let pc = e.block.insts.iter().find_map(|i| match i {
        Inst::InsnStart { pc } => Some(*pc),
        _ => None,
    });
    e.pc = pc.unwrap_or(0);
    e.poll_entry(e.pc);
    e.out.body = e.asm().len() as u32;
    for i in 0..e.block.insts.len() {
        e.at = i;
        e.locked = 0;
        e.vec_locked = 0;
        e.free_dead();
        emit(e, e.block.insts[i]);
    }
}

/// Whether a value that has no effect beside itself is wanted by nobody.
fn unused(e: &Emitter) -> bool {
    e.b.live.last_use[e.at] <= e.at as u32
}

fn emit(e: &mut Emitter, inst: Inst) {
    match inst {
        Inst::Nop | Inst::Const(_) | Inst::VecZero | Inst::Flags { .. } => {}
        Inst::InsnStart { pc } => {
            e.pc = pc;
            e.count_insn();
        }
        Inst::Get(g) => {
            if e.b.live.alias[e.at] == liveness::NO_VALUE {
                e.get(g);
            }
        }
        Inst::Set(g, v) => e.set(g, v),
        Inst::ZeroUpper(set) => e.zero_upper(set),
        Inst::Load { width, ext, addr, mem } => e.load(width, ext, addr, mem),
        Inst::Store { width, addr, v, mem } => e.store(width, addr, v, mem),
        Inst::LoadVec { size, addr, mem } => e.load_vec(size, addr, mem),
        Inst::StoreVec { size, addr, v, mem } => e.store_vec(size, addr, v, mem),
        Inst::LoadMasked { width, len, addr, mask, mem } => e.load_masked(width, len, addr, mask, mem),
        Inst::StoreMasked { width, len, addr, v, mask, mem } => {
            e.store_masked(width, len, addr, v, mask, mem)
        }
        Inst::AtomicRmw { op, width, addr, v, mem } => e.atomic_rmw(op, width, addr, v, mem),
        Inst::AtomicCas { width, addr, expect, new, mem } => e.atomic_cas(width, addr, expect, new, mem),
        Inst::EnvStore { width, offset, v } => e.env_store(width, offset, v),
        Inst::Call { helper, args } => {
            let pure = e.guest.helpers[helper.0 as usize].effects.pure;
            if !(pure && unused(e)) {
                e.call(helper, args);
            }
        }
        Inst::ExitIf { cond, f, exit } => e.exit_if(cond, f, exit),
        Inst::Goto(exit) => e.goto(exit),
        Inst::Branch { cond, f, taken, fall } => e.branch(cond, f, taken, fall),
        Inst::GotoIndirect => e.goto_indirect(),
        Inst::Leave { code } => e.leave_block(code),
        // Vector floating point is not pure: it leaves sticky flags behind.
        _ if unused(e) && (inst.is_pure() || matches!(inst, Inst::EnvLoad { .. })) => {}
        Inst::EnvLoad { width, offset } => e.env_load(width, offset),
        Inst::Bin { op, w, a, b } => e.bin(op, w, a, b),
        Inst::Un { op, w, a } => e.un(op, w, a),
        Inst::Carry { sub, w, a, b, f } => e.carry(sub, w, a, b, f),
        Inst::Lea { w, base, index, scale, disp } => e.lea(w, base, index, scale, disp),
        Inst::Extend { from, ext, a } => e.extend(from, ext, a),
        Inst::Extract { a, pos, len } => e.extract(a, pos, len),
        Inst::Insert { a, b, pos, len } => e.insert(a, b, pos, len),
        Inst::ShiftPair { w, hi, lo, count } => e.shift_pair(w, hi, lo, count),
        Inst::Pack(f) => e.pack(f),
        Inst::SetCond { cond, f } => e.set_cond(cond, f),
        Inst::Select { cond, f, a, b } => e.select(cond, f, a, b),
        Inst::Vec { op, len, a, b, imm } => e.vec(op, len, a, b, imm),
        Inst::Vec3 { op, len, a, b, c } => e.vec3(op, len, a, b, c),
        Inst::VecIns { op, a, b, imm } => e.vec_ins(op, a, b, imm),
        Inst::VecTest { op, len, a, b, imm } => e.vec_test(op, len, a, b, imm),
        Inst::VecFromInt { w, a } => e.vec_from_int(w, a),
        Inst::VecToInt { w, a } => e.vec_to_int(w, a),
    }
}

/// Joins the parts and fills the relative fields for address `base`.
fn place(b: &mut Buffers, base: u64, out: &mut Compiled) {
    let cold = b.asm.len().next_multiple_of(16);
    out.cold = cold as u32;
    out.code.extend_from_slice(&b.asm.buf);
    out.code.resize(cold, 0xcc);
    out.code.extend_from_slice(&b.cold.buf);
    for fix in &b.fixups {
        let at = if fix.in_cold { cold + fix.at } else { fix.at };
        let target = match fix.to {
            Target::Main(t) => base + t as u64,
            Target::Cold(t) => base + (cold + t) as u64,
            Target::Abs(t) => t,
        };
        let rel = target.wrapping_sub(base + at as u64 + 4) as u32;
        out.code[at..at + 4].copy_from_slice(&rel.to_le_bytes());
    }
    for j in &b.jumps {
        let at = if j.in_cold { cold + j.at } else { j.at };
        debug_assert_eq!(at % 4, 0);
        out.jumps.push(JumpSite { field: at as u32, unlinked: (cold + j.unlinked) as u32, exit: j.exit });
    }
}
