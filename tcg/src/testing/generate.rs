//! Random valid blocks over the test guest.
//!
//! Each word of the input seeds a generator of its own that appends one instruction (with the constants and flags it
//! needs), whose operands are picked among all values so far, recent ones first. The last instruction is a terminal
//! seeded by the number of words. Blocks obey every rule that [`verify`](crate::ir::verify) checks, and contain nothing
//! whose result the IR leaves unspecified, except dead globals at exits (which
//! [`observe`](super::TestMachine::observe) masks).

use std::mem::offset_of;

use super::{GLOBALS, HELPERS, SplitMix, TestEnv, TestMemory, global, helper};
use crate::backend::HostVec;
use crate::ir::{
    BinOp, Block, Builder, Cond, Exit, ExitId, Ext, FlagOp, GlobalId, GlobalSet, Inst, MemFlags, RmwOp, Ty,
    UnOp, Value, Vec3Op, VecInsOp, VecLen, VecOp, VecSize, VecTestOp, Width, flags,
};
use crate::memory::PAGE_SIZE;

/// Address of the first guest instruction; others follow 4 bytes apart.
pub const PC: u64 = 0x10_0000;

/// A block with an instruction or a few for each word.
pub fn block(words: &[u64]) -> Block {
    let mut g = Generator {
        rng: SplitMix::new(0),
        ir: Builder::new(Block::default()),
        ints: Vec::new(),
        flags: Vec::new(),
        vecs: Vec::new(),
        pc: PC,
        sets: false,
    };
    g.ir.push(Inst::InsnStart { pc: PC });
    for &word in words {
        g.rng = SplitMix::new(word);
        g.instruction();
    }
    g.rng = SplitMix::new(words.iter().fold(words.len() as u64, |h, w| SplitMix::new(h ^ w).word()));
    g.terminal();
    g.ir.finish()
}

/// As [`block`], but at its end it counts [`TestEnv::rounds`](super::TestEnv::rounds) down, and goes to its start until that
/// is zero; then to the exit behind that one. The first is `ExitId(block.exits.len() - 2)`.
pub fn looping(words: &[u64]) -> Block {
    let mut block = block(words);
    block.insts.pop();
    let back = ExitId(block.exits.len() as u16);
    let out = ExitId(back.0 + 1);
    block.exits.push(Exit { pc: PC, indirect: false, poll: true, chain: true, dead: GlobalSet::NONE });
    block.exits.push(Exit {
        pc: PC + 0x900,
        indirect: false,
        poll: false,
        chain: true,
        dead: GlobalSet::NONE,
    });
    let mut ir = Builder::over(block);
    ir.push(Inst::InsnStart { pc: PC + 0x8f0 });
    let offset = offset_of!(TestEnv, rounds) as u32;
    let rounds = ir.push(Inst::EnvLoad { width: Width::W64, offset });
    let one = ir.iconst(1);
    let less = ir.push(Inst::Bin { op: BinOp::Sub, w: Width::W64, a: rounds, b: one });
    ir.push(Inst::EnvStore { width: Width::W64, offset, v: less });
    let f = ir.push(Inst::Flags { op: FlagOp::Sub, w: Width::W64, a: rounds, b: one, old: None });
    ir.push(if words.len().is_multiple_of(2) {
        Inst::Branch { cond: Cond::NE, f, taken: back, fall: out }
    } else {
        Inst::Branch { cond: Cond::E, f, taken: out, fall: back }
    });
    ir.finish()
}

/// `n` words from a seed, for callers that want a block from one number.
pub fn words(seed: u64, n: usize) -> Vec<u64> {
    let mut rng = SplitMix::new(seed);
    (0..n).map(|_| rng.word()).collect()
}

struct Generator {
    rng: SplitMix,
    ir: Builder,
    ints: Vec<Value>,
    flags: Vec<Value>,
    vecs: Vec<Value>,
    /// Address of the current guest instruction.
    pc: u64,
    /// Whether the current guest instruction has set a global.
    sets: bool,
}

impl Generator {
    fn push(&mut self, inst: Inst) -> Value {
        let v = self.ir.push(inst);
        match inst.ty(|g| GLOBALS[g.0 as usize].ty) {
            Some(Ty::Int) => self.ints.push(v),
            Some(Ty::Flags) => self.flags.push(v),
            Some(Ty::Vec) => self.vecs.push(v),
            None => {}
        }
        v
    }

    /// One of the values, more often a recent one.
    fn recent(rng: &mut SplitMix, values: &[Value]) -> Value {
        let window = if rng.one_in(3) { values.len() } else { values.len().min(4) };
        values[values.len() - 1 - rng.below(window)]
    }

    fn width(&mut self) -> Width {
        self.rng.pick(&Width::ALL)
    }

    fn vec_len(&mut self) -> VecLen {
        self.rng.pick(&[VecLen::V128, VecLen::V256])
    }

    fn wide_width(&mut self) -> Width {
        self.rng.pick(&[Width::W32, Width::W64])
    }

    fn len(&mut self, max: VecLen) -> VecLen {
        self.rng.pick(&[VecLen::V128, max])
    }

    /// A vector operation whose result is specified to the last bit; plain integer ones more often.
    fn vec_op(&mut self) -> VecOp {
        const PLAIN: [VecOp; 5] = [VecOp::And, VecOp::Or, VecOp::Xor, VecOp::AddI32, VecOp::SubI8];
        if self.rng.one_in(2) {
            return self.rng.pick(&PLAIN);
        }
        match self.rng.pick(VecOp::ALL) {
            VecOp::RcpF32 | VecOp::RcpScalarF32 | VecOp::RsqrtF32 | VecOp::RsqrtScalarF32 => VecOp::AddF32,
            // Which of several NaNs wins depends on the order in which a host sums.
            VecOp::DotF32 | VecOp::DotF64 => VecOp::MulF32,
            op => op,
        }
    }

    fn cond(&mut self) -> Cond {
        self.rng.pick(&Cond::ALL)
    }

    fn int(&mut self) -> Value {
        match self.rng.below(8) {
            0 => {
                let c = self.rng.int();
                self.push(Inst::Const(c))
            }
            1 => {
                let g = global::int(self.rng.below(16) as u8);
                self.push(Inst::Get(g))
            }
            _ if self.ints.is_empty() => self.push(Inst::Get(global::int(0))),
            _ => Self::recent(&mut self.rng, &self.ints),
        }
    }

    fn flag(&mut self) -> Value {
        match self.rng.below(6) {
            0 => self.push(Inst::Get(global::FLAGS)),
            1 => self.new_flags(),
            _ if self.flags.is_empty() => self.push(Inst::Get(global::FLAGS)),
            _ => Self::recent(&mut self.rng, &self.flags),
        }
    }

    fn vec(&mut self) -> Value {
        let n = self.rng.below(8) as u8;
        match self.rng.below(8) {
            0 => self.push(Inst::VecZero),
            1 => self.push(Inst::Get(global::x(n))),
            2 => self.push(Inst::Get(global::y(n))),
            _ if self.vecs.is_empty() => self.push(Inst::Get(global::y(n))),
            _ => Self::recent(&mut self.rng, &self.vecs),
        }
    }

    fn new_flags(&mut self) -> Value {
        let op = self.rng.pick(&FlagOp::ALL);
        let w = if op == FlagOp::Bit { self.wide_width() } else { self.width() };
        let a = self.int();
        let b = match op {
            // Constant counts, and repeated operands as in `test a, a`, are what front ends make.
            FlagOp::Shl | FlagOp::Shr | FlagOp::Sar | FlagOp::Rol | FlagOp::Ror | FlagOp::Bit
                if self.rng.one_in(2) =>
            {
                let c = self.rng.below(40) as u64;
                self.push(Inst::Const(c))
            }
            _ if !op.reads_b() || self.rng.one_in(4) => a,
            _ => self.int(),
        };
        let old = op.reads_old().then(|| match self.flags.last() {
            Some(f) => *f,
            None => self.push(Inst::Get(global::FLAGS)),
        });
        self.push(Inst::Flags { op, w, a, b, old })
    }

    fn mem(&mut self) -> MemFlags {
        MemFlags { mmu: self.rng.one_in(4) as u8, for_write: false, align: false }
    }

    /// An address that is mostly valid, and often the same as another or across a page boundary.
    fn addr(&mut self) -> Value {
        if self.rng.one_in(20) {
            return self.int();
        }
        let page = TestMemory::BASE + PAGE_SIZE * self.rng.below(TestMemory::PAGES as usize) as u64;
        match self.rng.below(6) {
            0 => {
                let near_end = page + PAGE_SIZE - 1 - self.rng.below(40) as u64;
                self.push(Inst::Const(near_end))
            }
            1..3 => {
                let c = page + 8 * self.rng.below(8) as u64;
                self.push(Inst::Const(c))
            }
            _ => {
                let x = self.int();
                let mask = self.rng.pick(&[0x18, 0x3f, 0xff8, 0xfff]);
                let mask = self.push(Inst::Const(mask));
                let index = self.push(Inst::Bin { op: BinOp::And, w: Width::W64, a: x, b: mask });
                let base = self.push(Inst::Const(page));
                let (scale, disp) = (self.rng.below(2) as u8, self.rng.below(32) as i32 - 4);
                self.push(Inst::Lea { w: Width::W64, base, index, scale, disp })
            }
        }
    }

    fn start(&mut self) {
        self.pc += 4;
        self.sets = false;
        self.push(Inst::InsnStart { pc: self.pc });
    }

    /// To be called before anything that can fault: that must precede the first `Set` of its guest instruction.
    fn before_fault(&mut self) {
        if self.sets {
            self.start();
        }
    }

    fn exit(&mut self) -> ExitId {
        let dead = match self.rng.below(3) {
            0 => GlobalSet(self.rng.word() & self.rng.word() & ((1 << GLOBALS.len()) - 1)),
            1 => GlobalSet::of(global::FLAGS),
            _ => GlobalSet::NONE,
        };
        let pc = self.rng.word() & 0x7fff_ffff_ffff;
        let (poll, chain) = (self.rng.one_in(3), !self.rng.one_in(3));
        let indirect = !chain && self.rng.one_in(2);
        let dead = if indirect { GlobalSet::NONE } else { dead };
        if indirect {
            self.set_pc();
            self.sets = true;
        }
        self.ir.exit(Exit { pc, indirect, poll, chain, dead })
    }

    fn instruction(&mut self) {
        match self.rng.below(100) {
            0..6 => self.start(),
            6..8 => {
                self.push(Inst::Nop);
            }
            8..24 => self.set(),
            24..27 => self.env_access(),
            27..58 => self.arithmetic(),
            58..64 => {
                self.flags_user();
            }
            64..68 => self.operation_with_flags(),
            68..84 => self.memory(),
            84..92 => self.vector(),
            92..97 => self.call(),
            _ => {
                let (cond, f, exit) = (self.cond(), self.flag(), self.exit());
                self.push(Inst::ExitIf { cond, f, exit });
                if self.ir.block().exits[exit.0 as usize].indirect {
                    self.set_pc();
                }
            }
        }
    }

    fn set(&mut self) {
        let n = self.rng.below(16) as u8;
        let (g, v) = match self.rng.below(8) {
            0..4 => (global::int(n), self.int()),
            4..6 => (global::FLAGS, self.flag()),
            6 => (global::x(n & 7), self.vec()),
            _ => (global::y(n & 7), self.vec()),
        };
        self.push(Inst::Set(g, v));
        self.sets = true;
        if self.rng.one_in(12) {
            let mut wide = || GlobalSet::of(global::y(self.rng.below(8) as u8));
            let set = wide().or(wide());
            self.push(Inst::ZeroUpper(set));
        }
    }

    /// An operation on a global and its flags, as front ends make them: where the host's flags can serve.
    fn operation_with_flags(&mut self) {
        let (w, g) = (self.width(), global::int(self.rng.below(16) as u8));
        let (a, old) = (self.push(Inst::Get(g)), self.push(Inst::Get(global::FLAGS)));
        let kind = self.rng.below(12);
        let b = match kind {
            0..6 => {
                let c = if kind == 5 { u64::MAX } else { 1 };
                self.push(Inst::Const(c))
            }
            6 | 7 => {
                let c = 1 + self.rng.below(w.bits() as usize - 1) as u64;
                self.push(Inst::Const(c))
            }
            _ => self.int(),
        };
        let (op, fop) = match kind {
            0 | 1 => (BinOp::Add, FlagOp::Inc),
            2..5 => (BinOp::Sub, FlagOp::Dec),
            5 => (BinOp::Add, FlagOp::Dec),
            6..9 => self.rng.pick(&[
                (BinOp::Shl, FlagOp::Shl),
                (BinOp::Shr, FlagOp::Shr),
                (BinOp::Sar, FlagOp::Sar),
                (BinOp::Rol, FlagOp::Rol),
            ]),
            9 => (BinOp::Sub, FlagOp::Sub),
            10 => (BinOp::Add, FlagOp::Add),
            _ => {
                let sub = self.rng.one_in(2);
                let v = self.push(Inst::Carry { sub, w, a, b, f: old });
                let op = if sub { FlagOp::Sbb } else { FlagOp::Adc };
                let f = self.push(Inst::Flags { op, w, a, b, old: Some(old) });
                return self.set_with_flags(g, w, (a, v), f);
            }
        };
        let v = self.push(Inst::Bin { op, w, a, b });
        let old = fop.reads_old().then_some(old);
        let b = if fop.reads_b() { b } else { a };
        let f = self.push(Inst::Flags { op: fop, w, a, b, old });
        self.set_with_flags(g, w, (a, v), f);
    }

    /// Sets the low bits of a global from `was` to `v`, and the flags.
    fn set_with_flags(&mut self, g: GlobalId, w: Width, (was, v): (Value, Value), f: Value) {
        let v = match w {
            Width::W8 | Width::W16 => self.push(Inst::Insert { a: was, b: v, pos: 0, len: w.bits() as u8 }),
            _ => v,
        };
        self.push(Inst::Set(g, v));
        self.push(Inst::Set(global::FLAGS, f));
        self.sets = true;
        if self.rng.one_in(2) {
            self.start();
        }
        if self.rng.one_in(3) {
            let (cond, exit) = (self.cond(), self.exit());
            self.push(Inst::ExitIf { cond, f, exit });
            if self.ir.block().exits[exit.0 as usize].indirect {
                self.set_pc();
            }
        }
    }

    fn env_access(&mut self) {
        let (width, word) = (self.width(), self.rng.below(8) as u32);
        let offset = offset_of!(TestEnv, scratch) as u32 + 8 * word;
        if self.rng.one_in(2) {
            self.push(Inst::EnvLoad { width, offset });
        } else {
            let v = self.int();
            self.push(Inst::EnvStore { width, offset, v });
        }
    }

    fn arithmetic(&mut self) {
        let inst = match self.rng.below(16) {
            0..7 => {
                let (op, w, a) = (self.rng.pick(&BinOp::ALL), self.width(), self.int());
                let b = match self.rng.below(4) {
                    0 => a,
                    1 => {
                        let c = self.rng.int();
                        self.push(Inst::Const(c))
                    }
                    _ => self.int(),
                };
                Inst::Bin { op, w, a, b }
            }
            7 => {
                let op = self.rng.pick(&UnOp::ALL);
                let w = match op {
                    UnOp::Bswap | UnOp::Clz | UnOp::Ctz => {
                        self.rng.pick(&[Width::W16, Width::W32, Width::W64])
                    }
                    _ => self.width(),
                };
                Inst::Un { op, w, a: self.int() }
            }
            8 => {
                let (sub, w) = (self.rng.one_in(2), self.width());
                Inst::Carry { sub, w, a: self.int(), b: self.int(), f: self.flag() }
            }
            9 => {
                let (w, base, index) = (self.wide_width(), self.int(), self.int());
                let (scale, disp) = (self.rng.below(4) as u8, self.rng.int() as i32);
                Inst::Lea { w, base, index, scale, disp }
            }
            10 | 11 => Inst::Extend { from: self.width(), ext: self.rng.pick(&Ext::ALL), a: self.int() },
            12 => {
                let (pos, len) = self.field();
                Inst::Extract { a: self.int(), pos, len }
            }
            13 | 14 => {
                let (pos, len) = self.field();
                Inst::Insert { a: self.int(), b: self.int(), pos, len }
            }
            _ => {
                let w = self.rng.pick(&[Width::W16, Width::W32, Width::W64]);
                let (hi, lo, mut count) = (self.int(), self.int(), self.int());
                if w == Width::W16 {
                    let b = self.push(Inst::Const(15));
                    count = self.push(Inst::Bin { op: BinOp::And, w: Width::W8, a: count, b });
                }
                Inst::ShiftPair { w, hi, lo, count }
            }
        };
        self.push(inst);
    }

    /// Position and length of a bit field; often that of a narrow register.
    fn field(&mut self) -> (u8, u8) {
        if self.rng.one_in(2) {
            return self.rng.pick(&[(0, 8), (8, 8), (0, 16), (0, 32)]);
        }
        let pos = self.rng.below(64);
        (pos as u8, 1 + self.rng.below(64 - pos) as u8)
    }

    fn flags_user(&mut self) -> Value {
        match self.rng.below(4) {
            0 => self.new_flags(),
            1 => {
                let (cond, f) = (self.cond(), self.flag());
                self.push(Inst::SetCond { cond, f })
            }
            2 => {
                let (w, cond, f) = (self.wide_width(), self.cond(), self.flag());
                let inst = Inst::Select { w, cond, f, a: self.int(), b: self.int() };
                self.push(inst)
            }
            _ => {
                let f = self.flag();
                let a = self.ir.push(Inst::Pack(f));
                self.packed(a)
            }
        }
    }

    fn memory(&mut self) {
        self.before_fault();
        let (width, size) = (self.width(), self.rng.pick(&VecSize::ALL));
        let (addr, mut mem) = (self.addr(), self.mem());
        let kind = self.rng.below(14);
        mem.align = kind < 10 && self.rng.one_in(5);
        let inst = match kind {
            12 => {
                let (width, len, mask) = (self.wide_width(), self.vec_len(), self.vec());
                Inst::LoadMasked { width, len, addr, mask, mem }
            }
            13 => {
                let (width, len, mask) = (self.wide_width(), self.vec_len(), self.vec());
                Inst::StoreMasked { width, len, addr, v: self.vec(), mask, mem }
            }
            0..4 => {
                mem.for_write = self.rng.one_in(8);
                Inst::Load { width, ext: self.rng.pick(&Ext::ALL), addr, mem }
            }
            4..7 => Inst::Store { width, addr, v: self.int(), mem },
            7 | 8 => Inst::LoadVec { size, addr, mem },
            9 => Inst::StoreVec { size, addr, v: self.vec(), mem },
            10 => Inst::AtomicRmw { op: self.rng.pick(&RmwOp::ALL), width, addr, v: self.int(), mem },
            _ => {
                // Half of them find what they expect.
                let expect = if self.rng.one_in(2) {
                    let probe = Inst::Load { width, ext: Ext::Zero, addr, mem };
                    self.push(probe)
                } else {
                    self.int()
                };
                Inst::AtomicCas { width, addr, expect, new: self.int(), mem }
            }
        };
        self.push(inst);
    }

    fn vector(&mut self) {
        let imm = self.rng.below(256) as u8;
        let inst = match self.rng.below(8) {
            0..4 => {
                let (op, a) = (self.vec_op(), self.vec());
                let len = self.rng.pick(op.lens());
                // What the host lacks is not made.
                let op = if HostVec::detect().has(op, len) { op } else { VecOp::Xor };
                let b = if op.operands() == 1 || self.rng.one_in(5) { a } else { self.vec() };
                let imm = if op.has_imm() { imm } else { 0 };
                Inst::Vec { op, len, a, b, imm }
            }
            4 => Inst::VecFromInt { w: self.wide_width(), a: self.int() },
            5 => Inst::VecToInt { w: self.wide_width(), a: self.vec() },
            6 if self.rng.one_in(2) => {
                let op = self.rng.pick(Vec3Op::ALL);
                let op = if HostVec::detect().has3(op) { op } else { Vec3Op::SelectI8 };
                Inst::Vec3 { op, len: self.len(op.max_len()), a: self.vec(), b: self.vec(), c: self.vec() }
            }
            6 => {
                let op = self.rng.pick(VecInsOp::ALL);
                let imm = if op.has_imm() { imm } else { 0 };
                Inst::VecIns { op, a: self.vec(), b: self.int(), imm }
            }
            _ => {
                let (op, a) = (self.rng.pick(VecTestOp::ALL), self.vec());
                let b = if op.operands() == 1 { a } else { self.vec() };
                let imm = if op.has_imm() { imm } else { 0 };
                let test = Inst::VecTest { op, len: self.len(op.max_len()), a, b, imm };
                match op.text().starts_with("test") || op.text().starts_with("compare") {
                    true => {
                        // Packed flags.
                        let a = self.ir.push(test);
                        self.packed(a);
                    }
                    false => {
                        self.push(test);
                    }
                }
                return;
            }
        };
        self.push(inst);
    }

    /// Makes a value of packed flags. Their bit 9 is unspecified, so nothing but the flags or the masked integer is
    /// picked later.
    fn packed(&mut self, a: Value) -> Value {
        if self.rng.one_in(2) {
            return self.push(Inst::Flags { op: FlagOp::Unpack, w: Width::W64, a, b: a, old: None });
        }
        let b = self.push(Inst::Const(flags::ALL as u64));
        self.push(Inst::Bin { op: BinOp::And, w: Width::W32, a, b })
    }

    fn call(&mut self) {
        let id = self.rng.pick(&[
            helper::MIX,
            helper::COUNT,
            helper::READ,
            helper::WRITE,
            helper::MAY_FAULT,
            helper::ALL,
            helper::SWAP,
        ]);
        let desc = &HELPERS[id.0 as usize];
        if desc.effects.faults {
            self.before_fault();
        }
        let args: Vec<Value> = (0..desc.args).map(|_| self.int()).collect();
        if id == helper::ALL && self.rng.one_in(2) {
            // Helpers that change modes find the next program counter set.
            let next = self.push(Inst::Const(self.pc + 4));
            self.push(Inst::Set(global::PC, next));
        }
        let r = self.ir.call(id, &args);
        self.ints.push(r);
        if desc.effects.writes != GlobalSet::NONE {
            // It may have written: nothing may fault any more in this guest instruction.
            self.sets = true;
        }
    }

    fn terminal(&mut self) {
        let inst = match self.rng.below(8) {
            0..3 => Inst::Goto(self.exit()),
            3..6 => {
                let (cond, f) = (self.cond(), self.flag());
                Inst::Branch { cond, f, taken: self.exit(), fall: self.exit() }
            }
            6 => {
                self.set_pc();
                Inst::GotoIndirect
            }
            _ => {
                self.set_pc();
                Inst::Leave { code: self.rng.below(10) as u32 }
            }
        };
        self.push(inst);
    }

    fn set_pc(&mut self) {
        let pc = self.int();
        self.push(Inst::Set(global::PC, pc));
    }
}
