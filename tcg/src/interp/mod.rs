//! The IR's executable specification.
//!
//! Problem: an optimiser and a code generator need something to be right against. Strategy: run a [`Block`] one
//! instruction at a time over plain bytes, in the most obvious way, with no state but an array of values.
//! A difference between this and generated code is a defect of the backend (or of a pass, if only the optimised
//! block differs); agreement moves the search to the front end.
//!
//! Invariants:
//! - [`Inst::Set`] writes the environment at once, so at a fault the environment holds *the sets so far*, which is
//!   what every other executor has to reconstruct.
//! - The program counter global is what leaving the block makes of it: the exit's address, or at a fault the address
//!   of the guest instruction ([`Inst::InsnStart`]); whatever the block set there is visible to helpers, to
//!   [`Inst::GotoIndirect`] and to [`Inst::Leave`] only.
//! - Nothing is allocated per instruction and nothing depends on the host: unspecified bits read as zero.
//!
//! One file per family: `int` (integers; the constant folder uses it, too), `mem` (guest memory), [`vec`]
//! (vectors).

pub mod int;
mod mem;
pub mod vec;

use crate::backend::GuestInfo;
use crate::guest::Exception;
use crate::ir::{Block, ExitId, GlobalDesc, GlobalId, HelperId, Inst, Ty, Value, VecLen, flags};

/// A value of any type: an integer is in word 0, packed flags are in word 0, a vector fills all four words
/// (little-endian).
pub type Word4 = [u64; 4];

/// What a block runs on.
pub trait Machine {
    /// The environment; globals are at their offsets, little-endian.
    fn env(&mut self) -> &mut [u8];
    /// Loads `buf.len()` bytes (1, 2, 4, 8, 16 or 32) from guest memory. `for_write`: write permission is required,
    /// too.
    fn load(&mut self, va: u64, buf: &mut [u8], mmu: u8, for_write: bool) -> Result<(), Exception>;
    /// Stores 1, 2, 4, 8, 16 or 32 bytes; nothing is written if any byte cannot be.
    fn store(&mut self, va: u64, bytes: &[u8], mmu: u8) -> Result<(), Exception>;
    /// Calls a helper, which may look at and change the environment. Arguments beyond its number are zero.
    fn call(&mut self, helper: HelperId, args: [u64; 5]) -> Result<u64, Exception>;
}

/// How a block ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum End {
    /// By an exit; the program counter global is the exit's address.
    Exit(ExitId),
    /// By [`Inst::GotoIndirect`], or an exit that is [`indirect`](crate::ir::Exit::indirect).
    Indirect,
    /// By [`Inst::Leave`] with this code.
    Leave(u32),
    /// An instruction faulted: globals are as of the last [`Inst::Set`] before it, and the program counter global is
    /// the guest instruction's address.
    Fault(Exception),
}

/// Reads a global from the environment, as [`Inst::Get`] does: narrower vectors and flags are zero-extended.
pub fn get_global(env: &[u8], g: &GlobalDesc) -> Word4 {
    let mut bytes = [0; 32];
    let (at, len) = (g.offset as usize, g.bytes as usize);
    bytes[..len].copy_from_slice(&env[at..at + len]);
    let v = words(bytes);
    match g.ty {
        Ty::Flags => [v[0] & flags::ALL as u64, 0, 0, 0],
        Ty::Int | Ty::Vec => v,
    }
}

/// Writes a global to the environment, as [`Inst::Set`] does: a vector's words beyond the global's size are dropped.
pub fn set_global(env: &mut [u8], g: &GlobalDesc, v: Word4) {
    let (at, len) = (g.offset as usize, g.bytes as usize);
    env[at..at + len].copy_from_slice(&bytes(v)[..len]);
}

/// The little-endian bytes of a value.
pub fn bytes(v: Word4) -> [u8; 32] {
    let mut out = [0; 32];
    for (chunk, word) in out.chunks_exact_mut(8).zip(v) {
        chunk.copy_from_slice(&word.to_le_bytes());
    }
    out
}

/// Inverse of [`bytes`].
pub fn words(bytes: [u8; 32]) -> Word4 {
    std::array::from_fn(|i| u64::from_le_bytes(std::array::from_fn(|j| bytes[8 * i + j])))
}

/// Runs a block.
///
/// # Panics
/// On a block that breaks the invariants of [`ir`](crate::ir) (see [`verify`](crate::ir::verify)).
pub fn run(block: &Block, guest: &GuestInfo, machine: &mut impl Machine) -> End {
    let mut run = Run { guest, machine, values: vec![[0; 4]; block.insts.len()], pc: None };
    for (i, inst) in block.insts.iter().enumerate() {
        match run.step(inst) {
            Ok(Step::Value(v)) => run.values[i] = v,
            Ok(Step::End(end)) => {
                let End::Exit(exit) = end else { return end };
                let exit = block.exits[exit.0 as usize];
                if exit.indirect {
                    return End::Indirect;
                }
                run.set_pc(exit.pc);
                return end;
            }
            Err(exception) => {
                if let Some(pc) = run.pc {
                    run.set_pc(pc);
                }
                return End::Fault(exception);
            }
        }
    }
    panic!("the block has no terminal")
}

/// What an instruction does beside its effects.
enum Step {
    /// Defines a value (zero for instructions that define none) and goes on.
    Value(Word4),
    /// Ends the block.
    End(End),
}

struct Run<'a, M> {
    guest: &'a GuestInfo,
    machine: &'a mut M,
    values: Vec<Word4>,
    /// Address of the current guest instruction.
    pc: Option<u64>,
}

impl<M: Machine> Run<'_, M> {
    fn int(&self, v: Value) -> u64 {
        self.values[v.index()][0]
    }

    fn flags(&self, v: Value) -> u32 {
        self.values[v.index()][0] as u32
    }

    fn vec(&self, v: Value) -> Word4 {
        self.values[v.index()]
    }

    fn desc(&self, g: GlobalId) -> &'static GlobalDesc {
        &self.guest.globals[g.0 as usize]
    }

    fn set_pc(&mut self, pc: u64) {
        let desc = self.desc(self.guest.pc);
        set_global(self.machine.env(), desc, [pc, 0, 0, 0]);
    }

    fn step(&mut self, inst: &Inst) -> Result<Step, Exception> {
        let none = [0; 4];
        let value = match *inst {
            Inst::Nop => none,
            Inst::InsnStart { pc } => {
                self.pc = Some(pc);
                none
            }
            Inst::Const(c) => scalar(c),
            Inst::VecZero => none,
            Inst::Get(g) => {
                let desc = self.desc(g);
                get_global(self.machine.env(), desc)
            }
            Inst::Set(g, v) => {
                let (desc, v) = (self.desc(g), self.vec(v));
                set_global(self.machine.env(), desc, v);
                none
            }
            Inst::ZeroUpper(set) => {
                for g in set.iter() {
                    let at = self.desc(g).offset as usize;
                    self.machine.env()[at + 16..at + 32].fill(0);
                }
                none
            }
            Inst::EnvLoad { width, offset } => {
                let (at, len) = (offset as usize, width.bytes() as usize);
                let mut b = [0; 8];
                b[..len].copy_from_slice(&self.machine.env()[at..at + len]);
                scalar(u64::from_le_bytes(b))
            }
            Inst::EnvStore { width, offset, v } => {
                let (at, len) = (offset as usize, width.bytes() as usize);
                let b = self.int(v).to_le_bytes();
                self.machine.env()[at..at + len].copy_from_slice(&b[..len]);
                none
            }
            Inst::Bin { op, w, a, b } => scalar(int::bin(op, w, self.int(a), self.int(b))),
            Inst::Un { op, w, a } => scalar(int::un(op, w, self.int(a))),
            Inst::Carry { sub, w, a, b, f } => {
                let carry = self.flags(f) & flags::C != 0;
                scalar(int::carry(sub, w, self.int(a), self.int(b), carry))
            }
            Inst::Lea { w, base, index, scale, disp } => {
                scalar(int::lea(w, self.int(base), self.int(index), scale, disp))
            }
            Inst::Extend { from, ext, a } => scalar(int::extend(from, ext, self.int(a))),
            Inst::Extract { a, pos, len } => scalar(int::extract(self.int(a), pos, len)),
            Inst::Insert { a, b, pos, len } => scalar(int::insert(self.int(a), self.int(b), pos, len)),
            Inst::ShiftPair { w, hi, lo, count } => {
                scalar(int::shift_pair(w, self.int(hi), self.int(lo), self.int(count)))
            }
            Inst::Flags { op, w, a, b, old } => {
                let old = old.map_or(0, |old| self.flags(old));
                scalar(flags::compute(op, w, self.int(a), self.int(b), old) as u64)
            }
            Inst::Pack(f) => scalar(self.flags(f) as u64),
            Inst::SetCond { cond, f } => scalar(flags::holds(cond, self.flags(f)) as u64),
            Inst::Select { w, cond, f, a, b } => {
                scalar(self.int(if flags::holds(cond, self.flags(f)) { a } else { b }) & w.mask())
            }
            Inst::Load { width, ext, addr, mem } => scalar(self.load(width, ext, addr, mem)?),
            Inst::Store { width, addr, v, mem } => {
                self.store(width, addr, v, mem)?;
                none
            }
            Inst::LoadVec { size, addr, mem } => self.load_vec(size, addr, mem)?,
            Inst::StoreVec { size, addr, v, mem } => {
                self.store_vec(size, addr, v, mem)?;
                none
            }
            Inst::LoadMasked { width, len, addr, mask, mem } => {
                self.load_masked(width, len, addr, mask, mem)?
            }
            Inst::StoreMasked { width, len, addr, v, mask, mem } => {
                self.store_masked(width, len, addr, v, mask, mem)?;
                none
            }
            Inst::AtomicRmw { op, width, addr, v, mem } => scalar(self.atomic_rmw(op, width, addr, v, mem)?),
            Inst::AtomicCas { width, addr, expect, new, mem } => {
                scalar(self.atomic_cas(width, addr, expect, new, mem)?)
            }
            Inst::Vec { op, len, a, b, imm } => {
                let (a, b) = (self.vec(a), self.vec(b));
                let r = self.with_fp_control(|control| vec::compute(op, len, a, b, imm, control));
                truncate(len, r)
            }
            Inst::Vec3 { op, len, a, b, c } => {
                let (a, b, c) = (self.vec(a), self.vec(b), self.vec(c));
                let r = self.with_fp_control(|control| vec::compute3(op, len, a, b, c, control));
                truncate(len, r)
            }
            Inst::VecIns { op, a, b, imm } => {
                let (a, b) = (self.vec(a), self.int(b));
                let r = self.with_fp_control(|control| vec::compute_ins(op, a, b, imm, control));
                truncate(VecLen::V128, r)
            }
            Inst::VecTest { op, len, a, b, imm } => {
                let (a, b) = (truncate(len, self.vec(a)), truncate(len, self.vec(b)));
                scalar(self.with_fp_control(|control| vec::compute_test(op, len, a, b, imm, control)))
            }
            Inst::VecFromInt { w, a } => scalar(self.int(a) & w.mask()),
            Inst::VecToInt { w, a } => scalar(self.vec(a)[0] & w.mask()),
            Inst::Call { helper, args } => {
                let args = std::array::from_fn(|n| args.get(n).map_or(0, |a| self.int(*a)));
                scalar(self.machine.call(helper, args)?)
            }
            Inst::ExitIf { cond, f, exit } => {
                if flags::holds(cond, self.flags(f)) {
                    return Ok(Step::End(End::Exit(exit)));
                }
                none
            }
            Inst::Goto(exit) => return Ok(Step::End(End::Exit(exit))),
            Inst::Branch { cond, f, taken, fall } => {
                let exit = if flags::holds(cond, self.flags(f)) { taken } else { fall };
                return Ok(Step::End(End::Exit(exit)));
            }
            Inst::GotoIndirect => return Ok(Step::End(End::Indirect)),
            Inst::Leave { code } => return Ok(Step::End(End::Leave(code))),
        };
        Ok(Step::Value(value))
    }

    /// Calls `f` on the guest's floating-point control and status word; on the power-up value if it has none.
    fn with_fp_control<R>(&mut self, f: impl FnOnce(&mut u32) -> R) -> R {
        let mut control = vec::DEFAULT_CONTROL;
        let Some(at) = self.guest.fp_control else { return f(&mut control) };
        let word = at as usize..at as usize + 4;
        let env = self.machine.env();
        control = u32::from_le_bytes(std::array::from_fn(|i| env[word.start + i]));
        let r = f(&mut control);
        env[word].copy_from_slice(&control.to_le_bytes());
        r
    }
}

/// Clears the high half of a 128-bit operation's result.
fn truncate(len: VecLen, mut v: Word4) -> Word4 {
    if len == VecLen::V128 {
        v[2..].fill(0);
    }
    v
}

fn scalar(v: u64) -> Word4 {
    [v, 0, 0, 0]
}

#[cfg(test)]
mod tests;
