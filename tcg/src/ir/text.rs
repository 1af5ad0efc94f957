//! The IR's text form: for logs (`-d op,op_opt`), golden tests and failure reports.
//!
//! One instruction a line; exits, with their attributes, at the end:
//!
//! ```text
//! insn 0x401000
//! v1 = get rax
//! v2 = const 0x10
//! v3 = add.32 v1, v2
//! f4 = flags.add.32 v1, v2
//! set rax, v3
//! v6 = load.16.s64 [v3] mmu1
//! exitif.b f4 -> exit0
//! goto exit1
//! exit0: 0x401080 chain
//! exit1: 0x401000 poll chain dead{rax, flags}
//! ```
//!
//! Values are named by type (`v` integers, `f` flags, `x` vectors) and index. Globals and helpers have the names that the
//! guest gives them. Widths and lengths are in bits. [`parse`] reads what [`print()`] writes, and more: values may be
//! numbered in any way, blank lines and what follows `;` are skipped.

use std::fmt;

use super::{
    BinOp, Block, CallArgs, Cond, Exit, ExitId, Ext, FlagOp, GlobalId, GlobalSet, HelperId, Inst, MemFlags,
    RmwOp, Ty, UnOp, Value, Vec3Op, VecInsOp, VecLen, VecOp, VecSize, VecTestOp, Width,
};
use crate::backend::GuestInfo;

mod parse;

pub use parse::{ParseError, parse};

/// An operation set with names in the text form.
trait Named: Copy + PartialEq + 'static {
    /// Every member with its name.
    const NAMES: &'static [(Self, &'static str)];

    fn name(self) -> &'static str {
        Self::NAMES.iter().find(|(op, _)| *op == self).map_or("?", |(_, name)| name)
    }

    fn from_name(name: &str) -> Option<Self> {
        Self::NAMES.iter().find(|(_, n)| *n == name).map(|(op, _)| *op)
    }
}

impl Named for BinOp {
    const NAMES: &'static [(BinOp, &'static str)] = &[
        (BinOp::Add, "add"),
        (BinOp::Sub, "sub"),
        (BinOp::And, "and"),
        (BinOp::AndNot, "andnot"),
        (BinOp::Or, "or"),
        (BinOp::Xor, "xor"),
        (BinOp::Mul, "mul"),
        (BinOp::MulHiU, "mulhiu"),
        (BinOp::MulHiS, "mulhis"),
        (BinOp::Shl, "shl"),
        (BinOp::Shr, "shr"),
        (BinOp::Sar, "sar"),
        (BinOp::Rol, "rol"),
        (BinOp::Ror, "ror"),
    ];
}

impl Named for UnOp {
    const NAMES: &'static [(UnOp, &'static str)] = &[
        (UnOp::Neg, "neg"),
        (UnOp::Not, "not"),
        (UnOp::Bswap, "bswap"),
        (UnOp::Clz, "clz"),
        (UnOp::Ctz, "ctz"),
        (UnOp::Popcnt, "popcnt"),
    ];
}

impl Named for RmwOp {
    const NAMES: &'static [(RmwOp, &'static str)] = &[
        (RmwOp::Add, "add"),
        (RmwOp::Sub, "sub"),
        (RmwOp::And, "and"),
        (RmwOp::Or, "or"),
        (RmwOp::Xor, "xor"),
        (RmwOp::Xchg, "xchg"),
    ];
}

impl Named for FlagOp {
    const NAMES: &'static [(FlagOp, &'static str)] = &[
        (FlagOp::Add, "add"),
        (FlagOp::Sub, "sub"),
        (FlagOp::Adc, "adc"),
        (FlagOp::Sbb, "sbb"),
        (FlagOp::And, "and"),
        (FlagOp::Inc, "inc"),
        (FlagOp::Dec, "dec"),
        (FlagOp::Shl, "shl"),
        (FlagOp::Shr, "shr"),
        (FlagOp::Sar, "sar"),
        (FlagOp::Rol, "rol"),
        (FlagOp::Ror, "ror"),
        (FlagOp::UMul, "umul"),
        (FlagOp::SMul, "smul"),
        (FlagOp::Bit, "bit"),
        (FlagOp::Unpack, "unpack"),
    ];
}

impl Named for Cond {
    const NAMES: &'static [(Cond, &'static str)] = &[
        (Cond::O, "o"),
        (Cond::NO, "no"),
        (Cond::B, "b"),
        (Cond::AE, "ae"),
        (Cond::E, "e"),
        (Cond::NE, "ne"),
        (Cond::BE, "be"),
        (Cond::A, "a"),
        (Cond::S, "s"),
        (Cond::NS, "ns"),
        (Cond::P, "p"),
        (Cond::NP, "np"),
        (Cond::L, "l"),
        (Cond::GE, "ge"),
        (Cond::LE, "le"),
        (Cond::G, "g"),
    ];
}

impl Named for Width {
    const NAMES: &'static [(Width, &'static str)] =
        &[(Width::W8, "8"), (Width::W16, "16"), (Width::W32, "32"), (Width::W64, "64")];
}

impl Named for VecLen {
    const NAMES: &'static [(VecLen, &'static str)] = &[(VecLen::V128, "128"), (VecLen::V256, "256")];
}

impl Named for VecSize {
    const NAMES: &'static [(VecSize, &'static str)] =
        &[(VecSize::B4, "32"), (VecSize::B8, "64"), (VecSize::B16, "128"), (VecSize::B32, "256")];
}

impl Named for Ext {
    const NAMES: &'static [(Ext, &'static str)] =
        &[(Ext::Zero, ""), (Ext::Sign32, "s32"), (Ext::Sign64, "s64")];
}

/// The text of a block.
pub fn print<'a>(block: &'a Block, guest: &'a GuestInfo) -> impl fmt::Display + 'a {
    Printer { block, guest }
}

struct Printer<'a> {
    block: &'a Block,
    guest: &'a GuestInfo,
}

impl fmt::Display for Printer<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for i in 0..self.block.insts.len() {
            self.inst(f, Value(i as u32))?;
            writeln!(f)?;
        }
        for (i, exit) in self.block.exits.iter().enumerate() {
            write!(f, "exit{i}: {:#x}", exit.pc)?;
            if exit.indirect {
                write!(f, " indirect")?;
            }
            if exit.poll {
                write!(f, " poll")?;
            }
            if exit.chain {
                write!(f, " chain")?;
            }
            if exit.dead != GlobalSet::NONE {
                let names: Vec<_> = exit.dead.iter().map(|g| self.global(g)).collect();
                write!(f, " dead{{{}}}", names.join(", "))?;
            }
            writeln!(f)?;
        }
        Ok(())
    }
}

/// A name part that is left out with its dot when empty.
struct Suffix(Ext);

impl fmt::Display for Suffix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Ext::Zero => Ok(()),
            ext => write!(f, ".{}", ext.name()),
        }
    }
}

struct Mem(String, MemFlags);

impl fmt::Display for Mem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{}] mmu{}", self.0, self.1.mmu)?;
        f.write_str(if self.1.for_write { " for_write" } else { "" })?;
        f.write_str(if self.1.align { " align" } else { "" })
    }
}

impl Printer<'_> {
    /// A global's name; its number if there is no such global, so that a broken block prints, too.
    fn global(&self, g: GlobalId) -> String {
        match self.guest.globals.get(g.0 as usize) {
            Some(desc) => desc.name.into(),
            None => format!("global{}", g.0),
        }
    }

    fn helper(&self, h: HelperId) -> String {
        match self.guest.helpers.get(h.0 as usize) {
            Some(desc) => desc.name.into(),
            None => format!("helper{}", h.0),
        }
    }

    /// A value's name.
    fn v(&self, v: Value) -> String {
        let global_ty = |g: GlobalId| self.guest.globals.get(g.0 as usize).map_or(Ty::Int, |desc| desc.ty);
        let letter = match self.block.insts.get(v.index()).and_then(|inst| inst.ty(global_ty)) {
            Some(Ty::Flags) => 'f',
            Some(Ty::Vec) => 'x',
            Some(Ty::Int) | None => 'v',
        };
        format!("{letter}{}", v.0)
    }

    fn inst(&self, out: &mut fmt::Formatter<'_>, this: Value) -> fmt::Result {
        let inst = &self.block.insts[this.index()];
        if inst.ty(|_| Ty::Int).is_some() {
            write!(out, "{} = ", self.v(this))?;
        }
        let v = |v: Value| self.v(v);
        let mem = |addr: Value, mem: MemFlags| Mem(self.v(addr), mem);
        let vec_operands = |operands: u32, a: Value, b: Value| match operands {
            1 => v(a),
            _ => format!("{}, {}", v(a), v(b)),
        };
        let immediate = |has: bool, imm: u8| if has { format!(", {imm:#x}") } else { String::new() };
        match *inst {
            Inst::Nop => write!(out, "nop"),
            Inst::InsnStart { pc } => write!(out, "insn {pc:#x}"),
            Inst::Const(c) => write!(out, "const {c:#x}"),
            Inst::ZeroUpper(set) => {
                let names: Vec<_> = set.iter().map(|g| self.global(g)).collect();
                write!(out, "zeroupper {}", names.join(", "))
            }
            Inst::VecZero => write!(out, "vzero"),
            Inst::Get(g) => write!(out, "get {}", self.global(g)),
            Inst::Set(g, a) => write!(out, "set {}, {}", self.global(g), v(a)),
            Inst::EnvLoad { width, offset } => write!(out, "envload.{} {offset:#x}", width.name()),
            Inst::EnvStore { width, offset, v: a } => {
                write!(out, "envstore.{} {offset:#x}, {}", width.name(), v(a))
            }
            Inst::Bin { op, w, a, b } => write!(out, "{}.{} {}, {}", op.name(), w.name(), v(a), v(b)),
            Inst::Un { op, w, a } => write!(out, "{}.{} {}", op.name(), w.name(), v(a)),
            Inst::Carry { sub, w, a, b, f } => {
                let name = if sub { "subc" } else { "addc" };
                write!(out, "{name}.{} {}, {}, {}", w.name(), v(a), v(b), v(f))
            }
            Inst::Lea { w, base, index, scale, disp } => {
                write!(out, "lea.{} [{} + {}<<{scale} + {disp}]", w.name(), v(base), v(index))
            }
            Inst::Extend { from, ext, a } => write!(out, "extend.{}{} {}", from.name(), Suffix(ext), v(a)),
            Inst::Extract { a, pos, len } => write!(out, "extract {}, {pos}, {len}", v(a)),
            Inst::Insert { a, b, pos, len } => write!(out, "insert {}, {}, {pos}, {len}", v(a), v(b)),
            Inst::ShiftPair { w, hi, lo, count } => {
                write!(out, "shiftpair.{} {}, {}, {}", w.name(), v(hi), v(lo), v(count))
            }
            Inst::Flags { op, w, a, b, old } => {
                write!(out, "flags.{}.{} {}", op.name(), w.name(), v(a))?;
                if op.reads_b() {
                    write!(out, ", {}", v(b))?;
                }
                match old {
                    Some(old) => write!(out, ", {}", v(old)),
                    None => Ok(()),
                }
            }
            Inst::Pack(f) => write!(out, "pack {}", v(f)),
            Inst::SetCond { cond, f } => write!(out, "setcond.{} {}", cond.name(), v(f)),
            Inst::Select { w, cond, f, a, b } => {
                write!(out, "select.{}.{} {}, {}, {}", cond.name(), w.name(), v(f), v(a), v(b))
            }
            Inst::Load { width, ext, addr, mem: m } => {
                write!(out, "load.{}{} {}", width.name(), Suffix(ext), mem(addr, m))
            }
            Inst::Store { width, addr, v: a, mem: m } => {
                write!(out, "store.{} {}, {}", width.name(), mem(addr, m), v(a))
            }
            Inst::LoadVec { size, addr, mem: m } => write!(out, "loadv.{} {}", size.name(), mem(addr, m)),
            Inst::StoreVec { size, addr, v: a, mem: m } => {
                write!(out, "storev.{} {}, {}", size.name(), mem(addr, m), v(a))
            }
            Inst::LoadMasked { width, len, addr, mask, mem: m } => {
                write!(out, "loadm.{}.{} {}, {}", width.name(), len.name(), mem(addr, m), v(mask))
            }
            Inst::StoreMasked { width, len, addr, v: a, mask, mem: m } => {
                let (width, len) = (width.name(), len.name());
                write!(out, "storem.{width}.{len} {}, {}, {}", mem(addr, m), v(a), v(mask))
            }
            Inst::AtomicRmw { op, width, addr, v: a, mem: m } => {
                write!(out, "rmw.{}.{} {}, {}", op.name(), width.name(), mem(addr, m), v(a))
            }
            Inst::AtomicCas { width, addr, expect, new, mem: m } => {
                write!(out, "cas.{} {}, {}, {}", width.name(), mem(addr, m), v(expect), v(new))
            }
            Inst::Vec { op, len, a, b, imm } => {
                let operands = vec_operands(op.operands(), a, b);
                write!(out, "v.{}.{} {operands}{}", op.text(), len.name(), immediate(op.has_imm(), imm))
            }
            Inst::Vec3 { op, len, a, b, c } => {
                write!(out, "v3.{}.{} {}, {}, {}", op.text(), len.name(), v(a), v(b), v(c))
            }
            Inst::VecIns { op, a, b, imm } => {
                write!(out, "vins.{} {}, {}{}", op.text(), v(a), v(b), immediate(op.has_imm(), imm))
            }
            Inst::VecTest { op, len, a, b, imm } => {
                let operands = vec_operands(op.operands(), a, b);
                write!(out, "vtest.{}.{} {operands}{}", op.text(), len.name(), immediate(op.has_imm(), imm))
            }
            Inst::VecFromInt { w, a } => write!(out, "vfromint.{} {}", w.name(), v(a)),
            Inst::VecToInt { w, a } => write!(out, "vtoint.{} {}", w.name(), v(a)),
            Inst::Call { helper, args } => {
                let args: Vec<_> = args.iter().map(|a| v(*a)).collect();
                write!(out, "call {}({})", self.helper(helper), args.join(", "))
            }
            Inst::ExitIf { cond, f, exit } => {
                write!(out, "exitif.{} {} -> exit{}", cond.name(), v(f), exit.0)
            }
            Inst::Goto(exit) => write!(out, "goto exit{}", exit.0),
            Inst::Branch { cond, f, taken, fall } => {
                write!(out, "branch.{} {} -> exit{}, exit{}", cond.name(), v(f), taken.0, fall.0)
            }
            Inst::GotoIndirect => write!(out, "goto_indirect"),
            Inst::Leave { code } => write!(out, "leave {code}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{generate, guest};

    /// One of each instruction, and of each way to write its parts.
    const SAMPLE: &str = "\
insn 0x401000
v1 = get r3
f2 = get flags
x3 = get y1
v4 = const 0xffffffffffffffff
v5 = add.32 v1, v4
v6 = bswap.64 v5
v7 = subc.16 v1, v4, f2
v8 = addc.8 v7, v4, f2
v9 = lea.64 [v1 + v5<<3 + -16]
v10 = extend.8.s64 v9
v11 = extend.16 v9
v12 = extract v9, 8, 8
v13 = insert v9, v1, 0, 16
v14 = shiftpair.32 v1, v5, v4
f15 = flags.sub.64 v1, v4
f16 = flags.inc.32 v1, f2
f17 = flags.adc.8 v1, v5, f15
f18 = flags.unpack.64 v1
v19 = pack f18
v20 = setcond.be f15
v21 = select.l.64 f15, v1, v4
v22 = load.16.s64 [v4] mmu1
v23 = load.32 [v4] mmu0 for_write align
store.64 [v4] mmu0, v1
x25 = loadv.128 [v4] mmu2 align
storev.256 [v4] mmu0, x25
v27 = rmw.xchg.32 [v4] mmu0, v1
v28 = cas.64 [v4] mmu0, v1, v5
x29 = v.add.i32.256 x25, x3
x30 = v.shuffle.f32.128 x25, x3, 0x1b
x31 = v.sqrt.f64.128 x3
x32 = v3.select.i8.256 x25, x3, x31
x33 = vins.insert.i16 x25, v1, 0x3
v34 = vtest.mask.i8.256 x25
v35 = vtest.compare.f64.128 x25, x3
x36 = vzero
x37 = vfromint.32 v1
v38 = vtoint.64 x37
v39 = call may_fault(v1)
v40 = call swap()
set y1, x37
set flags, f15
v43 = envload.16 0x10
envstore.32 0x14, v43
storem.64.256 [v4] mmu0, x37, x36
zeroupper y1, y2
nop
exitif.ne f15 -> exit0
branch.s f2 -> exit1, exit0
exit0: 0x401010 chain
exit1: 0x401000 poll dead{r3, flags}
";

    /// The members of a set that is complete: [`Named`] names each, in order.
    fn complete<T: Named + fmt::Debug>(all: &[T], number: fn(T) -> usize) {
        let named: Vec<T> = T::NAMES.iter().map(|(op, _)| *op).collect();
        assert_eq!(all, named);
        assert!(all.iter().enumerate().all(|(n, op)| number(*op) == n), "{all:?}");
    }

    #[test]
    fn sets_of_operations_are_complete_and_in_order() {
        complete(&BinOp::ALL, |op| op as usize);
        complete(&UnOp::ALL, |op| op as usize);
        complete(&RmwOp::ALL, |op| op as usize);
        complete(&FlagOp::ALL, |op| op as usize);
        complete(&Cond::ALL, |op| op as usize);
        complete(&Width::ALL, |op| op as usize);
        complete(&VecSize::ALL, |op| op as usize);
        complete(&Ext::ALL, |op| op as usize);
    }

    #[test]
    fn every_instruction_prints_as_it_is_written() {
        let block = parse(SAMPLE, &guest()).unwrap();
        assert_eq!(print(&block, &guest()).to_string(), SAMPLE);
        for (terminal, inst) in [
            ("goto exit0\nexit0: 0x0\n", Inst::Goto(ExitId(0))),
            ("goto_indirect\n", Inst::GotoIndirect),
            ("leave 7\n", Inst::Leave { code: 7 }),
        ] {
            let block = parse(terminal, &guest()).unwrap();
            assert_eq!(block.insts, [inst]);
            assert_eq!(print(&block, &guest()).to_string(), terminal);
        }
    }

    #[test]
    fn generated_blocks_survive_the_round_trip() {
        for seed in 0..300 {
            let block = generate::block(&generate::words(seed, 50));
            let text = print(&block, &guest()).to_string();
            assert_eq!(parse(&text, &guest()).as_ref(), Ok(&block), "seed {seed}:\n{text}");
        }
    }

    #[test]
    fn numbering_and_layout_are_free() {
        let text = "; a comment\n  va = const 10 ; ten\n\nset r0, va\nleave 0\n";
        let block = parse(text, &guest()).unwrap();
        assert_eq!(block.insts, [Inst::Const(10), Inst::Set(GlobalId(0), Value(0)), Inst::Leave { code: 0 }]);
    }

    #[test]
    fn errors_name_the_line() {
        for (text, error) in [
            ("v0 = const 1\nv1 = ad.32 v0, v0\n", "line 2: `ad.32` is no instruction"),
            ("set r0, v9\n", "line 1: `v9` is not defined above"),
            ("set r99, v9\n", "line 1: `r99` is no global"),
            ("v0 = const 1 2\n", "line 1: `2` is too much"),
            ("goto exit0\n", "line 1: exit0 is not listed"),
            ("v0 = load.32 v1\n", "line 1: expected `[`, found `v1`"),
        ] {
            assert_eq!(parse(text, &guest()).unwrap_err().to_string(), error);
        }
    }
}
