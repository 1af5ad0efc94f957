//! Blocks and how front ends build them.

use super::flags::FlagOp;
use super::inst::{BinOp, CallArgs, ExitId, Ext, HelperId, Inst, MemFlags, UnOp};
use super::types::{Cond, GlobalId, GlobalSet, Value, VecSize, Width};

/// A way out of a block, in the same block mode.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Exit {
    /// Guest program counter (linear address) of the successor.
    pub pc: u64,
    /// The successor is not `pc`, but where the guest's program counter global says. The block has set that for this exit
    /// alone: when it goes on behind the exit, the global is undefined. Such an exit is not chained.
    pub indirect: bool,
    /// Whether pending events are polled on the way: set on back edges, so that no cycle of chained blocks is
    /// without a poll.
    pub poll: bool,
    /// Whether the exit may be chained to the successor's code. Not for exits that leave the page, or after
    /// instructions that change how code is fetched.
    pub chain: bool,
    /// Globals that the successor overwrites before anything can observe them.
    pub dead: GlobalSet,
}

/// A translation block's IR.
#[derive(Clone, Default, PartialEq, Debug)]
pub struct Block {
    /// Instructions; the index is the value.
    pub insts: Vec<Inst>,
    /// Exits that instructions refer to.
    pub exits: Vec<Exit>,
    /// [`Guest::main_mmu`](crate::guest::Guest::main_mmu) of the block's mode.
    pub main_mmu: u8,
    /// Which guesses the block may make of where it finds its bytes, and which memos it may have, by their numbers, as a bit mask:
    /// see [`Guesses::unsteady`](crate::env::Guesses::unsteady). None, unless it is a trace.
    pub guesses: u32,
    /// Each memory access looks for its page by itself: the block is for where another one's look for several at once has
    /// failed. The backend may leave any other block at the start of a guest instruction that has had no effect yet, to go on
    /// in such a one.
    pub ungrouped: bool,
}

impl Block {
    /// Guest address of the first instruction, if the block says so.
    pub fn start(&self) -> Option<u64> {
        self.insts.iter().find_map(|inst| match inst {
            Inst::InsnStart { pc } => Some(*pc),
            _ => None,
        })
    }

    /// The constant that `v` is, if its definition is [`Inst::Const`]. Values that a backend numbers beyond the
    /// block's instructions are none.
    #[inline]
    pub fn constant(&self, v: Value) -> Option<u64> {
        match self.insts.get(v.index()) {
            Some(Inst::Const(c)) => Some(*c),
            _ => None,
        }
    }
}

/// Appends instructions to a block. The methods fold constants and forward globals where that costs nothing,
/// which keeps the block short from the start: each instruction more is work for all that follows.
pub struct Builder {
    block: Block,
    /// Globals whose values may be remembered.
    plain: GlobalSet,
    /// Globals whose values are in `values`.
    known: GlobalSet,
    values: [Value; 64],
}

impl Default for Builder {
    fn default() -> Builder {
        Builder::over(Block::default())
    }
}

impl Builder {
    /// An empty block; reuses the allocations of `old`.
    pub fn new(mut old: Block) -> Builder {
        old.insts.clear();
        old.exits.clear();
        old.main_mmu = 0;
        old.guesses = 0;
        old.ungrouped = false;
        Builder::over(old)
    }

    /// Appends to a block that has no end.
    pub fn over(block: Block) -> Builder {
        Builder { block, plain: GlobalSet::NONE, known: GlobalSet::NONE, values: [Value(0); 64] }
    }

    /// Reads these globals once: afterwards they are what they were read or set as, until a helper is called. Their storage is
    /// no other global's.
    pub fn remembering(self, plain: GlobalSet) -> Builder {
        Builder { plain, ..self }
    }

    /// The finished block.
    pub fn finish(self) -> Block {
        debug_assert!(self.block.insts.last().is_some_and(Inst::is_terminal));
        self.block
    }

    /// The block so far.
    pub fn block(&self) -> &Block {
        &self.block
    }

    /// Number of instructions so far.
    pub fn len(&self) -> usize {
        self.block.insts.len()
    }

    /// Whether nothing was appended yet.
    pub fn is_empty(&self) -> bool {
        self.block.insts.is_empty()
    }

    /// Drops all instructions and exits after the given lengths: for giving up on a guest instruction that
    /// turned out to lie on a page that cannot be fetched.
    pub fn truncate(&mut self, insts: usize, exits: usize) {
        self.block.insts.truncate(insts);
        self.block.exits.truncate(exits);
        self.known = GlobalSet::NONE;
    }

    /// Number of exits so far.
    pub fn exit_count(&self) -> usize {
        self.block.exits.len()
    }

    /// Appends any instruction.
    #[inline]
    pub fn push(&mut self, inst: Inst) -> Value {
        if matches!(inst, Inst::Set(..) | Inst::ZeroUpper(_) | Inst::Call { .. }) {
            self.known = GlobalSet::NONE;
        }
        self.append(inst)
    }

    #[inline]
    fn append(&mut self, inst: Inst) -> Value {
        let v = Value(self.block.insts.len() as u32);
        self.block.insts.push(inst);
        v
    }

    /// A constant.
    pub fn iconst(&mut self, c: u64) -> Value {
        self.push(Inst::Const(c))
    }

    /// The constant that `v` is, if it is one.
    pub fn constant(&self, v: Value) -> Option<u64> {
        self.block.constant(v)
    }

    /// Current value of a global.
    pub fn get(&mut self, g: GlobalId) -> Value {
        if self.known.contains(g) {
            return self.values[g.0 as usize];
        }
        let v = self.append(Inst::Get(g));
        self.remember(g, v);
        v
    }

    /// Sets a global.
    pub fn set(&mut self, g: GlobalId, v: Value) {
        self.append(Inst::Set(g, v));
        self.remember(g, v);
    }

    #[inline]
    fn remember(&mut self, g: GlobalId, v: Value) {
        self.values[g.0 as usize % 64] = v;
        self.known.0 |= GlobalSet::of(g).0 & self.plain.0;
    }

    /// `a op b`.
    pub fn bin(&mut self, op: BinOp, w: Width, a: Value, b: Value) -> Value {
        self.push(Inst::Bin { op, w, a, b })
    }

    /// `a op constant`.
    pub fn bin_imm(&mut self, op: BinOp, w: Width, a: Value, b: u64) -> Value {
        let b = self.iconst(b);
        self.bin(op, w, a, b)
    }

    /// `a + constant`; `a` itself for 0 in 64 bits.
    pub fn add_imm(&mut self, w: Width, a: Value, imm: i64) -> Value {
        if imm == 0 && w == Width::W64 { a } else { self.bin_imm(BinOp::Add, w, a, imm as u64) }
    }

    /// `op a`.
    pub fn un(&mut self, op: UnOp, w: Width, a: Value) -> Value {
        self.push(Inst::Un { op, w, a })
    }

    /// Extends the low bits.
    pub fn extend(&mut self, from: Width, ext: Ext, a: Value) -> Value {
        self.push(Inst::Extend { from, ext, a })
    }

    /// A flags value that does not read old flags.
    pub fn flags(&mut self, op: FlagOp, w: Width, a: Value, b: Value) -> Value {
        debug_assert!(!op.reads_old());
        self.push(Inst::Flags { op, w, a, b, old: None })
    }

    /// A flags value that reads old flags.
    pub fn flags_old(&mut self, op: FlagOp, w: Width, a: Value, b: Value, old: Value) -> Value {
        debug_assert!(op.reads_old());
        self.push(Inst::Flags { op, w, a, b, old: Some(old) })
    }

    /// 1 or 0.
    pub fn set_cond(&mut self, cond: Cond, f: Value) -> Value {
        self.push(Inst::SetCond { cond, f })
    }

    /// `a` if the condition holds, else `b`.
    pub fn select(&mut self, cond: Cond, f: Value, a: Value, b: Value) -> Value {
        self.push(Inst::Select { w: Width::W64, cond, f, a, b })
    }

    /// Loads an integer.
    pub fn load(&mut self, width: Width, ext: Ext, addr: Value, mem: MemFlags) -> Value {
        self.push(Inst::Load { width, ext, addr, mem })
    }

    /// Stores an integer.
    pub fn store(&mut self, width: Width, addr: Value, v: Value, mem: MemFlags) {
        self.push(Inst::Store { width, addr, v, mem });
    }

    /// Loads a vector.
    pub fn load_vec(&mut self, size: VecSize, addr: Value, mem: MemFlags) -> Value {
        self.push(Inst::LoadVec { size, addr, mem })
    }

    /// Stores a vector.
    pub fn store_vec(&mut self, size: VecSize, addr: Value, v: Value, mem: MemFlags) {
        self.push(Inst::StoreVec { size, addr, v, mem });
    }

    /// Calls a helper with up to five arguments.
    pub fn call(&mut self, helper: HelperId, args: &[Value]) -> Value {
        self.push(Inst::Call { helper, args: CallArgs::new(args) })
    }

    /// Declares an exit.
    pub fn exit(&mut self, exit: Exit) -> ExitId {
        self.block.exits.push(exit);
        ExitId((self.block.exits.len() - 1) as u16)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_remembered_is_read_once_until_something_may_have_changed_it() {
        let (a, b) = (GlobalId(1), GlobalId(2));
        let mut ir = Builder::default().remembering(GlobalSet::of(a));
        let first = ir.get(a);
        assert_eq!(ir.get(a), first);
        assert_ne!(ir.get(b), ir.get(b), "it is not to be remembered");
        let two = ir.iconst(2);
        ir.set(a, two);
        assert_eq!(ir.get(a), two);
        for change in [Inst::Set(a, first), Inst::ZeroUpper(GlobalSet::of(b))] {
            ir.push(change);
            let again = ir.get(a);
            assert_eq!((ir.len() - 1, ir.get(a)), (again.index(), again));
        }
        ir.call(HelperId(0), &[]);
        let after = ir.get(a);
        assert_eq!(after.index(), ir.len() - 1);
        ir.truncate(3, 0);
        assert_eq!(ir.get(a).index(), 3, "what it was is gone");
    }
}
