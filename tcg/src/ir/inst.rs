//! The instructions of the IR.
//!
//! Each variant's documentation is its specification; [`interp`](crate::interp) is the executable one.
//! Behaviour is *defined* unless a line says *unspecified* (any result) or *undefined* (must not be made).
//!
//! To add an instruction: add the variant here, then follow the compiler's exhaustive matches (operands and
//! type below, text form, interpreter, register constraints and emission in each backend).

use std::ops::{Deref, DerefMut};

use super::flags::FlagOp;
use super::types::{Cond, GlobalId, GlobalSet, Ty, Value, VecLen, VecSize, Width};
use super::vec::{VecInsOp, VecOp, VecTestOp};
use super::vec3::Vec3Op;

/// Two-operand integer operations; see [`Inst::Bin`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum BinOp {
    /// `a + b`.
    Add,
    /// `a - b`.
    Sub,
    /// `a & b`.
    And,
    /// `a & !b`.
    AndNot,
    /// `a | b`.
    Or,
    /// `a ^ b`.
    Xor,
    /// Low half of `a * b`.
    Mul,
    /// High half of the unsigned product.
    MulHiU,
    /// High half of the signed product.
    MulHiS,
    /// `a << count`; the count is `b` mod 64 in 64 bits and mod 32 otherwise; counts of the width or more give 0.
    Shl,
    /// Logical `a >> count`, count as in `Shl`.
    Shr,
    /// Arithmetic `a >> count`, count as in `Shl`; counts of the width or more fill with the sign.
    Sar,
    /// Rotation left by `b` mod width.
    Rol,
    /// Rotation right by `b` mod width.
    Ror,
}

impl BinOp {
    /// All of them, in order.
    pub const ALL: [BinOp; 14] = [
        BinOp::Add,
        BinOp::Sub,
        BinOp::And,
        BinOp::AndNot,
        BinOp::Or,
        BinOp::Xor,
        BinOp::Mul,
        BinOp::MulHiU,
        BinOp::MulHiS,
        BinOp::Shl,
        BinOp::Shr,
        BinOp::Sar,
        BinOp::Rol,
        BinOp::Ror,
    ];
}

/// One-operand integer operations; see [`Inst::Un`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum UnOp {
    /// `-a`.
    Neg,
    /// `!a`.
    Not,
    /// Bytes reversed; width 8 is undefined.
    Bswap,
    /// Leading zeros; the width for 0. Width 8 is undefined.
    Clz,
    /// Trailing zeros; the width for 0. Width 8 is undefined.
    Ctz,
    /// Ones.
    Popcnt,
}

impl UnOp {
    /// All of them, in order.
    pub const ALL: [UnOp; 6] = [UnOp::Neg, UnOp::Not, UnOp::Bswap, UnOp::Clz, UnOp::Ctz, UnOp::Popcnt];
}

/// What happens to the bits above a loaded or extended integer.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Ext {
    /// Zero.
    Zero,
    /// Sign up to bit 31, zero above.
    Sign32,
    /// Sign up to bit 63.
    Sign64,
}

impl Ext {
    /// All of them, in order.
    pub const ALL: [Ext; 3] = [Ext::Zero, Ext::Sign32, Ext::Sign64];
}

/// Read-modify-write operations; see [`Inst::AtomicRmw`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum RmwOp {
    /// `memory + v`.
    Add,
    /// `memory - v`.
    Sub,
    /// `memory & v`.
    And,
    /// `memory | v`.
    Or,
    /// `memory ^ v`.
    Xor,
    /// `v`.
    Xchg,
}

impl RmwOp {
    /// All of them, in order.
    pub const ALL: [RmwOp; 6] = [RmwOp::Add, RmwOp::Sub, RmwOp::And, RmwOp::Or, RmwOp::Xor, RmwOp::Xchg];

    /// What is in memory afterwards, in its low bits.
    pub fn apply(self, old: u64, v: u64) -> u64 {
        match self {
            RmwOp::Add => old.wrapping_add(v),
            RmwOp::Sub => old.wrapping_sub(v),
            RmwOp::And => old & v,
            RmwOp::Or => old | v,
            RmwOp::Xor => old ^ v,
            RmwOp::Xchg => v,
        }
    }
}

/// How a guest memory access is translated.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct MemFlags {
    /// Which of the guest's translation regimes (for example user or supervisor): the index of a TLB, below
    /// [`MMU_MODES`](crate::softmmu::MMU_MODES).
    pub mmu: u8,
    /// On a load: a store to the same bytes follows, so write permission is required, too.
    pub for_write: bool,
    /// The address must be a multiple of the access's size; else the access raises the exception that
    /// [`Guest::misaligned`](crate::guest::Guest::misaligned) says, before any other. Not on masked and atomic accesses.
    pub align: bool,
}

/// Index of a helper in the guest's helper table.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct HelperId(pub u16);

/// Index of an exit in [`Block::exits`](super::Block::exits).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct ExitId(pub u16);

/// Arguments of a helper call: at most five. Read as a slice.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct CallArgs {
    /// Those from `len` on are zero.
    values: [Value; 5],
    len: u8,
}

impl CallArgs {
    /// These arguments.
    ///
    /// # Panics
    /// If there are more than five.
    pub fn new(args: &[Value]) -> CallArgs {
        assert!(args.len() <= 5, "helpers take at most five arguments");
        let mut values = [Value(0); 5];
        values[..args.len()].copy_from_slice(args);
        CallArgs { values, len: args.len() as u8 }
    }
}

impl Deref for CallArgs {
    type Target = [Value];

    fn deref(&self) -> &[Value] {
        &self.values[..self.len as usize]
    }
}

impl DerefMut for CallArgs {
    fn deref_mut(&mut self) -> &mut [Value] {
        &mut self.values[..self.len as usize]
    }
}

/// An IR instruction. Its index in the block is the [`Value`] it defines (if it defines one).
///
/// *Observers* are instructions at which the guest's state may be looked at from outside: all memory accesses,
/// calls of helpers that may fault or that read globals, and exits. At an observer, every global must be
/// recoverable as of the last [`Inst::Set`] before it. Hence the rule for front ends: within a guest instruction,
/// everything that can fault comes before the first `Set`.
#[allow(missing_docs)] // Each variant's text explains its fields.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Inst {
    /// Nothing; what optimisation leaves of a removed instruction.
    Nop,
    /// Start of the guest instruction at `pc`.
    InsnStart { pc: u64 },
    /// An integer constant.
    Const(u64),
    /// The zero vector.
    VecZero,
    /// Current value of a global, of the global's type; a vector global of 128 bits is zero-extended.
    Get(GlobalId),
    /// Makes `v` the value of a global. The types agree. Setting a global changes those it overlaps: storing to
    /// the low half keeps the high half.
    Set(GlobalId, Value),
    /// Clears the bits from 128 on of vector globals of 256 bits, all those in the set.
    ZeroUpper(GlobalSet),
    /// Reads `width` bits at a byte offset of the guest's environment, which no global covers, zero-extended.
    EnvLoad { width: Width, offset: u32 },
    /// Writes the low bits of `v` to the environment at an offset which no global covers.
    EnvStore { width: Width, offset: u32, v: Value },
    /// `a op b`, zero-extended from `w`.
    Bin { op: BinOp, w: Width, a: Value, b: Value },
    /// `op a`, zero-extended from `w`.
    Un { op: UnOp, w: Width, a: Value },
    /// `a + b + f.C` (or `a - b - f.C` if `sub`), zero-extended from `w`.
    Carry { sub: bool, w: Width, a: Value, b: Value, f: Value },
    /// `base + (index << scale) + disp`, zero-extended from `w` (32 or 64); `scale` 0 to 3.
    Lea { w: Width, base: Value, index: Value, scale: u8, disp: i32 },
    /// The low `from` bits of `a`, extended.
    Extend { from: Width, ext: Ext, a: Value },
    /// `len` bits of `a` from `pos`, zero-extended; `pos + len <= 64`, `len >= 1`.
    Extract { a: Value, pos: u8, len: u8 },
    /// `a` with the low `len` bits of `b` at `pos`; `pos + len <= 64`, `len >= 1`.
    Insert { a: Value, b: Value, pos: u8, len: u8 },
    /// Bits `count` to `count + w - 1` of the pair `hi:lo`, zero-extended; `w` 16, 32 or 64, `count` taken mod 32
    /// (64 for 64 bits), for 16 bits undefined above 16.
    ShiftPair { w: Width, hi: Value, lo: Value, count: Value },
    /// A flags value; see [`FlagOp`]. `old` is present exactly when `op.reads_old()`.
    Flags { op: FlagOp, w: Width, a: Value, b: Value, old: Option<Value> },
    /// The packed layout of a flags value as an integer (bit 9 unspecified, all other undefined bits zero).
    Pack(Value),
    /// 1 if the condition holds, else 0.
    SetCond { cond: Cond, f: Value },
    /// `a` if the condition holds, else `b`, zero-extended from `w` (32 or 64). Integers.
    Select { w: Width, cond: Cond, f: Value, a: Value, b: Value },
    /// Loads `width` bits from guest memory. May fault.
    Load { width: Width, ext: Ext, addr: Value, mem: MemFlags },
    /// Stores the low `width` bits of `v` to guest memory. May fault.
    Store { width: Width, addr: Value, v: Value, mem: MemFlags },
    /// Loads a vector, zero-extended. May fault.
    LoadVec { size: VecSize, addr: Value, mem: MemFlags },
    /// Stores the low bytes of a vector. May fault.
    StoreVec { size: VecSize, addr: Value, v: Value, mem: MemFlags },
    /// Loads those lanes of `width` (32 or 64) bits of a vector of `len` whose top bit in `mask` is set; the others are
    /// zero, and their memory is not touched. May fault.
    LoadMasked { width: Width, len: VecLen, addr: Value, mask: Value, mem: MemFlags },
    /// Stores those lanes of `width` (32 or 64) bits of a vector of `len` whose top bit in `mask` is set; the others'
    /// memory is not touched. May fault, and then has stored nothing.
    StoreMasked { width: Width, len: VecLen, addr: Value, v: Value, mask: Value, mem: MemFlags },
    /// Atomically replaces memory by `op`; the old value, zero-extended. May fault.
    AtomicRmw { op: RmwOp, width: Width, addr: Value, v: Value, mem: MemFlags },
    /// Atomically replaces memory by `new` if it equals the low bits of `expect`; the old value, zero-extended.
    /// Needs write permission also when it does not store. May fault.
    AtomicCas { width: Width, addr: Value, expect: Value, new: Value, mem: MemFlags },
    /// A vector operation of one host instruction's size; see [`VecOp`].
    Vec { op: VecOp, len: VecLen, a: Value, b: Value, imm: u8 },
    /// A vector operation on three vectors; see [`Vec3Op`].
    Vec3 { op: Vec3Op, len: VecLen, a: Value, b: Value, c: Value },
    /// A 128-bit operation of a vector `a` and an integer `b` with a vector result; see [`VecInsOp`].
    VecIns { op: VecInsOp, a: Value, b: Value, imm: u8 },
    /// A vector operation with an integer result; see [`VecTestOp`]. `b` is ignored (pass `a`) if the operation has one
    /// operand.
    VecTest { op: VecTestOp, len: VecLen, a: Value, b: Value, imm: u8 },
    /// A vector whose low `w` (32 or 64) bits are the integer's, zero above.
    VecFromInt { w: Width, a: Value },
    /// The low `w` (32 or 64) bits of a vector, zero-extended.
    VecToInt { w: Width, a: Value },
    /// Calls a helper; the result is its return value (an integer), or unspecified if it returns nothing.
    Call { helper: HelperId, args: CallArgs },
    /// Leaves the block by an exit if the condition holds.
    ExitIf { cond: Cond, f: Value, exit: ExitId },

    // Terminals: exactly one, last.
    /// Goes on at the exit's address.
    Goto(ExitId),
    /// Goes on at `taken` if the condition holds, else at `fall`.
    Branch { cond: Cond, f: Value, taken: ExitId, fall: ExitId },
    /// Goes on at the address in the guest's program counter global, which the block has set, in the same block
    /// mode. The target is looked up in generated code.
    GotoIndirect,
    /// Returns to the execution loop with a code for the guest. The program counter global has been set.
    Leave { code: u32 },
}

// Translation copies instructions all the time.
const _: () = assert!(size_of::<Inst>() <= 32);

impl Inst {
    /// The type of the value it defines, if any. `Get` needs the guest's table of globals.
    pub fn ty(&self, global_ty: impl Fn(GlobalId) -> Ty) -> Option<Ty> {
        use Inst::*;
        match *self {
            Const(_)
            | EnvLoad { .. }
            | Bin { .. }
            | Un { .. }
            | Carry { .. }
            | Lea { .. }
            | Extend { .. }
            | Extract { .. }
            | Insert { .. }
            | ShiftPair { .. }
            | Pack(_)
            | SetCond { .. }
            | Select { .. }
            | Load { .. }
            | AtomicRmw { .. }
            | AtomicCas { .. }
            | VecToInt { .. }
            | VecTest { .. }
            | Call { .. } => Some(Ty::Int),
            Flags { .. } => Some(Ty::Flags),
            VecZero
            | LoadVec { .. }
            | LoadMasked { .. }
            | Vec { .. }
            | Vec3 { .. }
            | VecIns { .. }
            | VecFromInt { .. } => Some(Ty::Vec),
            Get(g) => Some(global_ty(g)),
            Nop
            | InsnStart { .. }
            | Set(..)
            | ZeroUpper(_)
            | EnvStore { .. }
            | Store { .. }
            | StoreVec { .. }
            | StoreMasked { .. }
            | ExitIf { .. }
            | Goto(_)
            | Branch { .. }
            | GotoIndirect
            | Leave { .. } => None,
        }
    }

    /// Calls `f` for each operand, in order.
    pub fn for_each_use(&self, mut f: impl FnMut(Value)) {
        let mut copy = *self;
        copy.map_uses(|v| {
            f(v);
            v
        });
    }

    /// Replaces each operand by `f` of it.
    pub fn map_uses(&mut self, mut f: impl FnMut(Value) -> Value) {
        use Inst::*;
        let mut m = |v: &mut Value| *v = f(*v);
        match self {
            Nop
            | InsnStart { .. }
            | Const(_)
            | VecZero
            | Get(_)
            | ZeroUpper(_)
            | EnvLoad { .. }
            | Goto(_)
            | GotoIndirect
            | Leave { .. } => {}
            Set(_, v) | EnvStore { v, .. } | Pack(v) => m(v),
            Un { a, .. }
            | Extend { a, .. }
            | Extract { a, .. }
            | VecFromInt { a, .. }
            | VecToInt { a, .. } => m(a),
            Bin { a, b, .. } | Insert { a, b, .. } | VecIns { a, b, .. } => {
                m(a);
                m(b);
            }
            Vec { op, a, b, .. } => {
                m(a);
                if op.operands() > 1 {
                    m(b);
                } else {
                    *b = *a;
                }
            }
            VecTest { op, a, b, .. } => {
                m(a);
                if op.operands() > 1 {
                    m(b);
                } else {
                    *b = *a;
                }
            }
            Vec3 { a, b, c, .. } => {
                m(a);
                m(b);
                m(c);
            }
            Carry { a, b, f, .. } | Select { a, b, f, .. } => {
                m(a);
                m(b);
                m(f);
            }
            Lea { base, index, .. } => {
                m(base);
                m(index);
            }
            ShiftPair { hi, lo, count, .. } => {
                m(hi);
                m(lo);
                m(count);
            }
            Flags { op, a, b, old, .. } => {
                m(a);
                if op.reads_b() {
                    m(b);
                } else {
                    *b = *a;
                }
                if let Some(old) = old {
                    m(old);
                }
            }
            SetCond { f, .. } | ExitIf { f, .. } | Branch { f, .. } => m(f),
            Load { addr, .. } | LoadVec { addr, .. } => m(addr),
            LoadMasked { addr, mask, .. } => {
                m(addr);
                m(mask);
            }
            StoreMasked { addr, v, mask, .. } => {
                m(addr);
                m(v);
                m(mask);
            }
            Store { addr, v, .. } | StoreVec { addr, v, .. } | AtomicRmw { addr, v, .. } => {
                m(addr);
                m(v);
            }
            AtomicCas { addr, expect, new, .. } => {
                m(addr);
                m(expect);
                m(new);
            }
            Call { args, .. } => args.iter_mut().for_each(m),
        }
    }

    /// Whether it may access guest memory, and so fault.
    pub fn is_memory(&self) -> bool {
        use Inst::*;
        matches!(
            self,
            Load { .. }
                | Store { .. }
                | LoadVec { .. }
                | StoreVec { .. }
                | LoadMasked { .. }
                | StoreMasked { .. }
                | AtomicRmw { .. }
                | AtomicCas { .. }
        )
    }

    /// Whether it ends the block.
    pub fn is_terminal(&self) -> bool {
        matches!(self, Inst::Goto(_) | Inst::Branch { .. } | Inst::GotoIndirect | Inst::Leave { .. })
    }
}
