//! The x86-64 host.
//!
//! Problem: turn IR into good host code in about a microsecond for each guest instruction. Strategy: one analysis pass
//! backward ([`liveness`]), then one pass forward that allocates registers and emits at once ([`emitter`],
//! [`registers`] and the files of the instruction families). Slow paths go to another, *cold* buffer, which is placed apart; side exits
//! to a third, which follows the main one.
//!
//! Register conventions:
//! - RBP: environment plus [`ENV_BIAS`]; RSP: host stack; R11: the TLB that most accesses look into ([`TLB`]). RAX, RCX, XMM14,
//!   XMM15: scratch within one instruction.
//! - [`PIN_ORDER`]: home of the most wanted globals at block boundaries, callee-saved first, so that helper calls
//!   save little. Within a block every register but the fixed ones is allocated freely.
//!
//! Requirements: AVX2, BMI2, LZCNT (x86-64-v3); checked when the backend is made.

mod chases;
mod control;
mod count;
mod divide;
mod emitter;
mod encode;
mod flags;
#[cfg(test)]
mod flags_tests;
mod forwarding;
mod groups;
mod homes;
mod int;
mod liveness;
mod loops;
mod mem;
mod members;
mod memos;
mod movable;
mod places;
mod registers;
mod rounds;
mod second_way;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
mod thunks;
pub mod vec;
mod vector;

use emitter::{Buffers, Emitter, Kinds, Part, Target, ThunkAddrs};
use encode::r;

use crate::backend::{
    Compiled, Destination, GuestInfo, HostBackend, MovableField, Relative, Room, RuntimeFns, Spot, Thunks,
};
use crate::ir::{Block, GlobalId, GlobalSet, Inst, Ty};
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
    kinds: Kinds,
    pinned: Vec<(GlobalId, u8)>,
    thunks: ThunkAddrs,
    opt: OptFlags,
    buffers: Buffers,
}

impl HostBackend for X86_64 {
    const MOVABLE: &'static [MovableField] = &movable::FIELDS;

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
        let set = |wanted: &dyn Fn(usize) -> bool| {
            let mut set = GlobalSet::NONE;
            (0..guest.globals.len()).filter(|&g| wanted(g)).for_each(|g| set.insert(GlobalId(g as u8)));
            set
        };
        let kinds = Kinds {
            pinned: set(&|g| pin_reg[g] != PIN_OFF),
            flags: set(&|g| guest.globals[g].ty == Ty::Flags),
        };
        let (thunks, buffers) = (ThunkAddrs::default(), Buffers::default());
        Ok(X86_64 { guest, pin_reg, kinds, pinned, thunks, opt: OptFlags::all(), buffers })
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

    fn compile(&mut self, block: &Block, room: Room, tb: u32, out: &mut Compiled) {
        out.clear();
        let globals = (&*self.pin_reg, self.kinds);
        let mut e = Emitter::new(self.guest, globals, self.thunks, block, tb, out, &mut self.buffers);
        e.opt = self.opt;
        e.analyse();
        emit_block(&mut e);
        e.finish_counts();
        join(&mut self.buffers, out);
        out.place::<X86_64>(room);
    }

    fn name_of(&self, address: u64) -> Option<String> {
        self.thunks.name_of(address)
    }

    fn link_field(field: u64, target: u64) -> u32 {
        target.wrapping_sub(field + 4) as u32
    }
}

fn emit_block(e: &mut Emitter) {
    e.poll_entry();
    e.out.body = e.asm().len() as u32;
    e.loop_head();
    for (i, inst) in e.block.insts.iter().enumerate() {
        e.at = i;
        e.locked = 0;
        e.vec_locked = 0;
        emit(e, inst);
    }
}

/// Whether a value that has no effect beside itself is wanted by nobody.
fn unused(e: &Emitter) -> bool {
    e.b.live.values[e.at].last_use <= e.at as u32
}

fn emit(e: &mut Emitter, inst: &Inst) {
    match *inst {
        Inst::Nop | Inst::Const(_) | Inst::VecZero | Inst::Flags { .. } => {}
        Inst::InsnStart { pc } => {
            e.pc = pc;
            e.count_insn();
        }
        Inst::Get(g) => {
            if e.b.live.values[e.at].alias == e.at as u32 && !unused(e) {
                e.get(g);
            }
        }
        Inst::Set(g, v) => e.set(g, v),
        Inst::ZeroUpper(set) => e.zero_upper(set),
        Inst::Load { width, ext, addr, mem } => {
            e.keep_flags();
            e.load(width, ext, addr, mem);
        }
        Inst::Store { width, addr, v, mem } => {
            e.keep_flags();
            e.store(width, addr, v, mem);
        }
        Inst::LoadVec { size, addr, mem } => {
            e.keep_flags();
            e.load_vec(size, addr, mem);
        }
        Inst::StoreVec { size, addr, v, mem } => {
            e.keep_flags();
            e.store_vec(size, addr, v, mem);
        }
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
                e.keep_flags();
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
        Inst::Select { w, cond, f, a, b } => e.select(w, cond, f, a, b),
        Inst::Vec { op, len, a, b, imm } => e.vec(op, len, a, b, imm),
        Inst::Vec3 { op, len, a, b, c } => e.vec3(op, len, a, b, c),
        Inst::VecIns { op, a, b, imm } => e.vec_ins(op, a, b, imm),
        Inst::VecTest { op, len, a, b, imm } => e.vec_test(op, len, a, b, imm),
        Inst::VecFromInt { w, a } => e.vec_from_int(w, a),
        Inst::VecToInt { w, a } => e.vec_to_int(w, a),
    }
}

/// Makes two parts of the three, and says what is to be filled once they have their places.
fn join(b: &mut Buffers, out: &mut Compiled) {
    // Fields of linkable jumps are aligned in their part.
    b.main.align4(0);
    let side_at = b.main.len();
    std::mem::swap(&mut out.hot, &mut b.main.buf);
    out.hot.extend_from_slice(&b.side.buf);
    std::mem::swap(&mut out.cold, &mut b.cold.buf);
    let spot = |part, at: usize| match part {
        Part::Main => Spot::Hot(at as u32),
        Part::Side => Spot::Hot((side_at + at) as u32),
        Part::Cold => Spot::Cold(at as u32),
    };
    out.relatives.extend(b.fixups.iter().map(|fix| Relative {
        at: spot(fix.part, fix.at),
        to: match fix.to {
            Target::In(part, at) => Destination::Spot(spot(part, at)),
            Target::Abs(address) => Destination::Address(address),
        },
    }));
    out.linkable.extend(b.jumps.iter().map(|j| {
        debug_assert_eq!(j.at % 4, 0);
        (spot(j.part, j.at), j.exit)
    }));
}
