//! Checks of the IR's invariants, for debug builds and tests.
//!
//! A block that passes can be interpreted, optimised and compiled without any of these panicking. What the check finds
//! is always a defect of a front end or of a pass, never of the guest.

use super::{Block, ExitId, FlagOp, GlobalId, GlobalSet, Inst, MemFlags, Ty, UnOp, Value, VecLen, Width};
use crate::backend::GuestInfo;
use crate::softmmu::MMU_MODES;

/// What is wrong with a block.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("instruction {at}: {what}")]
pub struct VerifyError {
    /// Index of the instruction.
    pub at: usize,
    /// What is wrong with it.
    pub what: String,
}

/// Checks that
/// - operands are defined before their use and have the type that the instruction expects;
/// - there is one terminal, and it is last;
/// - exits, globals and helpers exist, and constants are in the ranges their fields document;
/// - within a guest instruction, what may fault precedes the first [`Inst::Set`] (of any global but the program counter,
///   which a fault sets itself).
pub fn verify(block: &Block, guest: &GuestInfo) -> Result<(), VerifyError> {
    let mut check = Check { block, guest, types: Vec::with_capacity(block.insts.len()), set: None };
    for (at, inst) in block.insts.iter().enumerate() {
        check.inst(at, inst).map_err(|what| VerifyError { at, what })?;
        let ty = inst.ty(|g| check.guest.globals[g.0 as usize].ty);
        check.types.push(ty);
    }
    match block.insts.last() {
        Some(last) if last.is_terminal() => Ok(()),
        _ => Err(VerifyError { at: block.insts.len(), what: "the block has no terminal".into() }),
    }
}

struct Check<'a> {
    block: &'a Block,
    guest: &'a GuestInfo,
    /// Types of the values so far.
    types: Vec<Option<Ty>>,
    /// The set in the current guest instruction after which nothing may fault.
    set: Option<usize>,
}

type Checked = Result<(), String>;

fn require(ok: bool, what: &str) -> Checked {
    if ok { Ok(()) } else { Err(what.into()) }
}

impl Check<'_> {
    fn operand(&self, v: Value, expect: Ty) -> Checked {
        match self.types.get(v.index()) {
            None => Err(format!("{v} is used before its definition")),
            Some(None) => Err(format!("{v} is no value")),
            Some(Some(ty)) if *ty != expect => Err(format!("{v} is of type {ty:?}, not {expect:?}")),
            Some(Some(_)) => Ok(()),
        }
    }

    fn ints(&self, operands: &[Value]) -> Checked {
        operands.iter().try_for_each(|v| self.operand(*v, Ty::Int))
    }

    fn vecs(&self, operands: &[Value]) -> Checked {
        operands.iter().try_for_each(|v| self.operand(*v, Ty::Vec))
    }

    fn flags(&self, v: Value) -> Checked {
        self.operand(v, Ty::Flags)
    }

    fn global(&self, g: GlobalId) -> Result<Ty, String> {
        match self.guest.globals.get(g.0 as usize) {
            Some(desc) => Ok(desc.ty),
            None => Err(format!("there is no global {}", g.0)),
        }
    }

    fn exit(&self, exit: ExitId) -> Checked {
        let exit = self.block.exits.get(exit.0 as usize).ok_or("there is no such exit")?;
        require(!(exit.indirect && exit.chain), "an indirect exit is chained")?;
        require(
            !(exit.indirect && exit.dead.contains(self.guest.pc)),
            "an indirect exit needs the program counter",
        )
    }

    /// What may fault comes before the first `Set` of a guest instruction.
    fn may_fault(&self) -> Checked {
        match self.set {
            None => Ok(()),
            Some(set) => {
                Err(format!("may fault after instruction {set} of the same guest instruction set a global"))
            }
        }
    }

    fn memory(&self, addr: Value, mem: MemFlags) -> Checked {
        self.may_fault()?;
        require((mem.mmu as usize) < MMU_MODES, "there is no such MMU mode")?;
        self.ints(&[addr])
    }

    /// A masked or an atomic access.
    fn unaligned_memory(&self, addr: Value, mem: MemFlags) -> Checked {
        require(!mem.align, "only whole loads and stores can ask for alignment")?;
        self.memory(addr, mem)
    }

    fn inst(&mut self, at: usize, inst: &Inst) -> Checked {
        if at + 1 < self.block.insts.len() {
            require(!inst.is_terminal(), "a terminal is not last")?;
        }
        match *inst {
            Inst::Nop | Inst::Const(_) | Inst::VecZero | Inst::GotoIndirect | Inst::Leave { .. } => Ok(()),
            Inst::InsnStart { .. } => {
                self.set = None;
                Ok(())
            }
            Inst::Get(g) => self.global(g).map(|_| ()),
            Inst::ZeroUpper(set) => {
                for g in set.iter() {
                    require(self.global(g)? == Ty::Vec, "only vector globals have upper halves")?;
                    require(self.guest.globals[g.0 as usize].bytes == 32, "the global has no upper half")?;
                }
                self.set.get_or_insert(at);
                Ok(())
            }
            Inst::Set(g, v) => {
                let ty = self.global(g)?;
                self.operand(v, ty)?;
                if g != self.guest.pc {
                    self.set.get_or_insert(at);
                }
                Ok(())
            }
            Inst::EnvLoad { width, offset } => self.env(width, offset),
            Inst::EnvStore { width, offset, v } => {
                self.env(width, offset)?;
                self.ints(&[v])
            }
            Inst::Bin { a, b, .. } => self.ints(&[a, b]),
            Inst::Un { op, w, a } => {
                let bytes = matches!(op, UnOp::Bswap | UnOp::Clz | UnOp::Ctz);
                require(!(bytes && w == Width::W8), "undefined in 8 bits")?;
                self.ints(&[a])
            }
            Inst::Carry { a, b, f, .. } => {
                self.flags(f)?;
                self.ints(&[a, b])
            }
            Inst::Lea { w, base, index, scale, .. } => {
                require(w >= Width::W32 && scale <= 3, "width or scale out of range")?;
                self.ints(&[base, index])
            }
            Inst::Extend { a, .. } => self.ints(&[a]),
            Inst::Extract { a, pos, len } => {
                field(pos, len)?;
                self.ints(&[a])
            }
            Inst::Insert { a, b, pos, len } => {
                field(pos, len)?;
                self.ints(&[a, b])
            }
            Inst::ShiftPair { w, hi, lo, count } => {
                require(w != Width::W8, "undefined in 8 bits")?;
                self.ints(&[hi, lo, count])
            }
            Inst::Flags { op, w, a, b, old } => {
                require(op != FlagOp::Bit || w > Width::W8, "width out of range")?;
                require(old.is_some() == op.reads_old(), "old flags are given exactly where they are read")?;
                require(
                    op.reads_b() || op == FlagOp::Unpack || a == b,
                    "an operand that is not read repeats the first",
                )?;
                if let Some(old) = old {
                    self.flags(old)?;
                }
                self.ints(&[a, b])
            }
            Inst::Pack(f) | Inst::SetCond { f, .. } => self.flags(f),
            Inst::Select { w, f, a, b, .. } => {
                require(w >= Width::W32, "width out of range")?;
                self.flags(f)?;
                self.ints(&[a, b])
            }
            Inst::Load { addr, mem, .. } | Inst::LoadVec { addr, mem, .. } => self.memory(addr, mem),
            Inst::LoadMasked { width, addr, mask, mem, .. } => {
                require(width >= Width::W32, "width out of range")?;
                self.unaligned_memory(addr, mem)?;
                self.vecs(&[mask])
            }
            Inst::StoreMasked { width, addr, v, mask, mem, .. } => {
                require(width >= Width::W32, "width out of range")?;
                self.unaligned_memory(addr, mem)?;
                self.vecs(&[v, mask])
            }
            Inst::Store { addr, v, mem, .. } => {
                self.memory(addr, mem)?;
                self.ints(&[v])
            }
            Inst::AtomicRmw { addr, v, mem, .. } => {
                self.unaligned_memory(addr, mem)?;
                self.ints(&[v])
            }
            Inst::StoreVec { addr, v, mem, .. } => {
                self.memory(addr, mem)?;
                self.vecs(&[v])
            }
            Inst::AtomicCas { addr, expect, new, mem, .. } => {
                self.unaligned_memory(addr, mem)?;
                self.ints(&[expect, new])
            }
            Inst::Vec { op, len, a, b, .. } => {
                require(op.lens().contains(&len), "the operation does not exist in this length")?;
                self.vecs(&[a, b])
            }
            Inst::Vec3 { op, len, a, b, c } => {
                self.vec_len(len, op.max_len())?;
                self.vecs(&[a, b, c])
            }
            Inst::VecIns { a, b, .. } => {
                self.ints(&[b])?;
                self.vecs(&[a])
            }
            Inst::VecTest { op, len, a, b, .. } => {
                self.vec_len(len, op.max_len())?;
                self.vecs(&[a, b])
            }
            Inst::VecFromInt { w, a } => {
                require(w >= Width::W32, "width out of range")?;
                self.ints(&[a])
            }
            Inst::VecToInt { w, a } => {
                require(w >= Width::W32, "width out of range")?;
                self.vecs(&[a])
            }
            Inst::Call { helper, args } => {
                let Some(desc) = self.guest.helpers.get(helper.0 as usize) else {
                    return Err(format!("there is no helper {}", helper.0));
                };
                if args.len() != desc.args as usize {
                    return Err(format!("{} takes {} arguments", desc.name, desc.args));
                }
                if desc.effects.faults {
                    self.may_fault()?;
                }
                let pure = desc.effects;
                require(
                    !pure.pure
                        || !pure.faults && pure.reads == GlobalSet::NONE && pure.writes == GlobalSet::NONE,
                    "a pure helper has effects",
                )?;
                args.iter().try_for_each(|v| self.operand(*v, Ty::Int))
            }
            Inst::ExitIf { f, exit, .. } => {
                self.exit(exit)?;
                self.flags(f)
            }
            Inst::Goto(exit) => self.exit(exit),
            Inst::Branch { f, taken, fall, .. } => {
                self.exit(taken)?;
                self.exit(fall)?;
                self.flags(f)
            }
        }
    }

    /// No global covers a piece of the environment that is accessed as such.
    fn env(&self, width: Width, offset: u32) -> Checked {
        let end = offset as u64 + width.bytes() as u64;
        for g in self.guest.globals {
            let (start, bytes) = (g.offset as u64, g.bytes as u64);
            if (offset as u64) < start + bytes && start < end {
                return Err(format!("offset {offset:#x} is part of {}", g.name));
            }
        }
        Ok(())
    }

    fn vec_len(&self, len: VecLen, max: VecLen) -> Checked {
        require(len == VecLen::V128 || max == VecLen::V256, "the operation exists in 128 bits only")
    }
}

fn field(pos: u8, len: u8) -> Checked {
    require(len >= 1 && pos as u32 + len as u32 <= 64, "the bit field is not within 64 bits")
}

#[cfg(test)]
mod tests {
    use super::super::{Builder, Cond, Exit, Ext};
    use super::*;
    use crate::testing::{generate, global, guest, helper};

    const MEM: MemFlags = MemFlags { mmu: 0, for_write: false, align: false };

    /// What verification says of a block that `build` makes.
    fn complaint(build: impl FnOnce(&mut Builder)) -> String {
        let mut ir = Builder::new(Block::default());
        build(&mut ir);
        ir.push(Inst::Leave { code: 0 });
        verify(&ir.finish(), &guest()).unwrap_err().to_string()
    }

    #[test]
    fn generated_blocks_pass() {
        for seed in 0..200 {
            let block = generate::block(&generate::words(seed, 40));
            assert_eq!(verify(&block, &guest()), Ok(()), "seed {seed}");
        }
    }

    #[test]
    fn operands_are_defined_and_of_the_right_type() {
        let early = complaint(|ir| ir.set(global::int(0), Value(5)));
        assert_eq!(early, "instruction 0: v5 is used before its definition");
        let vector = complaint(|ir| {
            let v = ir.push(Inst::VecZero);
            ir.set(global::int(0), v);
        });
        assert_eq!(vector, "instruction 1: v0 is of type Vec, not Int");
        let no_value = complaint(|ir| {
            let v = ir.push(Inst::Nop);
            ir.push(Inst::SetCond { cond: Cond::E, f: v });
        });
        assert_eq!(no_value, "instruction 1: v0 is no value");
    }

    #[test]
    fn nothing_faults_after_a_set_of_the_same_guest_instruction() {
        let access = |ir: &mut Builder, restart: bool, g| {
            let v = ir.iconst(8);
            ir.set(g, v);
            if restart {
                ir.push(Inst::InsnStart { pc: 4 });
            }
            ir.load(Width::W8, Ext::Zero, v, MEM);
        };
        let late = complaint(|ir| access(ir, false, global::int(1)));
        assert!(late.starts_with("instruction 2: may fault after instruction 1"), "{late}");
        for (restart, g) in [(true, global::int(1)), (false, global::PC)] {
            let mut ir = Builder::new(Block::default());
            access(&mut ir, restart, g);
            ir.push(Inst::Leave { code: 0 });
            assert_eq!(verify(&ir.finish(), &guest()), Ok(()));
        }
        let call = complaint(|ir| {
            let v = ir.iconst(8);
            ir.set(global::int(1), v);
            ir.call(helper::MAY_FAULT, &[v]);
        });
        assert!(call.starts_with("instruction 2: may fault"), "{call}");
    }

    #[test]
    fn terminals_exits_and_helpers() {
        let mut ir = Builder::new(Block::default());
        let exit = ir.exit(Exit { pc: 0, indirect: false, poll: false, chain: false, dead: GlobalSet::NONE });
        ir.push(Inst::Goto(exit));
        let mut block = ir.finish();
        block.insts.push(Inst::Nop);
        assert!(verify(&block, &guest()).unwrap_err().what.contains("not last"));
        block.insts = vec![Inst::Nop];
        assert!(verify(&block, &guest()).unwrap_err().what.contains("no terminal"));
        block.insts = vec![Inst::Goto(ExitId(1))];
        assert!(verify(&block, &guest()).unwrap_err().what.contains("no such exit"));
        let args = complaint(|ir| {
            ir.call(helper::MIX, &[]);
        });
        assert_eq!(args, "instruction 0: mix takes 2 arguments");
    }

    #[test]
    fn the_environment_is_not_accessed_where_globals_are() {
        let offset = crate::testing::GLOBALS[3].offset + 7;
        let overlap = complaint(|ir| {
            ir.push(Inst::EnvLoad { width: Width::W16, offset });
        });
        assert!(overlap.ends_with("is part of r3"), "{overlap}");
    }
}
