//! From instructions to IR.
//!
//! Problem: some 2,000 encodings, five modes, and a translation that is most of what booting costs. Strategy: iced-x86
//! decodes; a table indexed by its `Code` ([`dispatch`]) gives a translate function; families live in one file each and
//! list their instructions as [`Row`]s; everything a translate function needs is in the [`Translator`]. Nothing is
//! allocated for an instruction.
//!
//! Invariants that translate functions uphold:
//! - Within an instruction, whatever can fault (memory accesses, faulting helpers, segment checks) comes before the
//!   first `Set` of a global: state is precise by that alone. A read-modify-write loads `for_write`, so its store cannot
//!   fault and may follow.
//! - An instruction that goes elsewhere than to the next one ends the block by exactly one of the methods in
//!   [`exits`]; those see to single-stepping, polling and what may be chained.
//! - A value handed on as *raw* has its meaning in the low bits of its width only, see [`operand`].
//!
//! To add an instruction: a row and a function in its family's file. To add a family: a file with `ROWS`, named in
//! `FAMILIES` below.

use std::sync::LazyLock;

use iced_x86::{Code, EncodingKind, Instruction, Mnemonic};
use tessera_tcg::guest::{BlockKey, TranslateLimits};
use tessera_tcg::ir::{Builder, Inst, MemFlags, Value};

use crate::helpers;
use crate::state::{X86Env, leave, mode};
use crate::system::exception::vector;

pub mod exits;
pub mod operand;
pub(crate) mod trace;

mod avx;
mod avx_fma;
mod avx_half;
#[cfg(all(test, target_arch = "x86_64", target_os = "linux"))]
mod compat_oracle;
mod crypto;
#[cfg(all(test, target_arch = "x86_64"))]
mod engine_oracle;
mod int_alu;
mod int_bits;
mod int_control;
mod int_move;
mod int_muldiv;
mod int_shift;
mod int_stack;
mod int_string;
mod mmx;
#[cfg(all(test, target_arch = "x86_64"))]
mod oracle;
mod sse;
mod sse_float;
mod sse_int;
mod sse_move;
mod system;
pub mod undefined;
#[cfg(test)]
#[path = "tests.rs"]
mod unit_tests;
pub(crate) mod x87;
#[cfg(all(test, target_arch = "x86_64"))]
mod x87_oracle;

/// Where instructions are looked up; a later family overrides an earlier one.
const FAMILIES: &[&[Row]] = &[
    int_alu::ROWS,
    int_bits::ROWS,
    int_control::ROWS,
    int_move::ROWS,
    int_muldiv::ROWS,
    int_shift::ROWS,
    int_stack::ROWS,
    int_string::ROWS,
    system::ROWS,
    x87::ROWS,
    mmx::ROWS,
    sse::ROWS,
    sse_move::SIMPLE_ROWS,
    sse_move::ROWS,
    sse_move::CODE_ROWS,
    sse_int::SIMPLE_ROWS,
    sse_int::ROWS,
    sse_float::SIMPLE_ROWS,
    sse_float::ROWS,
    sse_float::CODE_ROWS,
    avx::SIMPLE_ROWS,
    avx::ROWS,
    avx_fma::ROWS,
    avx_half::ROWS,
    crypto::ROWS,
    crypto::OTHER_ROWS,
];

/// Translates one instruction.
pub type TranslateFn = fn(&mut Translator<'_>, &Instruction);

/// A row of a family's table.
#[derive(Clone, Copy)]
pub enum Row {
    /// Every encoding of a mnemonic.
    All(Mnemonic, TranslateFn),
    /// One encoding; goes before rows that name its mnemonic.
    One(Code, TranslateFn),
}

/// The translate function of every encoding, indexed by `Code as usize`.
pub fn dispatch() -> &'static [TranslateFn] {
    static TABLE: LazyLock<Vec<TranslateFn>> = LazyLock::new(|| {
        let mut by_mnemonic: Vec<TranslateFn> = vec![unsupported; Mnemonic::values().len()];
        let mut exact: Vec<(Code, TranslateFn)> = Vec::new();
        for row in FAMILIES.iter().copied().flatten() {
            match *row {
                Row::All(mnemonic, f) => by_mnemonic[mnemonic as usize] = f,
                Row::One(code, f) => exact.push((code, f)),
            }
        }
        let mut table: Vec<TranslateFn> =
            Code::values().map(|code| by_mnemonic[code.mnemonic() as usize]).collect();
        for (code, f) in exact {
            table[code as usize] = f;
        }
        table[Code::INVALID as usize] = |t, _| t.undefined();
        table
    });
    &TABLE
}

/// An instruction that decodes but that no family has: #UD, with a note in the log.
fn unsupported(t: &mut Translator<'_>, i: &Instruction) {
    tracing::debug!(target: "unimp", pc = format_args!("{:#x}", t.pc), code = ?i.code(), "instruction raises #UD");
    t.undefined();
}

/// What a translate function works with.
pub struct Translator<'a> {
    /// The block being built.
    pub b: &'a mut Builder,
    /// The environment: for what never changes while the machine runs, such as CPUID. Anything else must be in the mode.
    pub env: &'a X86Env,
    /// The block's mode bits ([`mode`]).
    pub mode: u64,
    /// Linear address of this instruction.
    pub pc: u64,
    /// Linear address of the next instruction.
    pub next: u64,
    /// Of an x87 instruction: the opcode that FSTENV shows, see [`x87::opcode`].
    pub x87_opcode: u16,
    /// Base of CS; 0 in 64-bit code.
    pub cs_base: u64,
    /// MMU mode of data accesses.
    pub mmu: u8,
    /// The block is this one instruction, and is left to the execution loop after it.
    pub single: bool,
    /// This instruction is in the shadow of an STI: exits after it poll for events.
    pub shadowed: bool,
    /// The instruction just translated opened a shadow (STI) and left the block open: the next one is the block's last.
    pub opens_shadow: bool,
    /// The x87 unit's state is in the host's unit (see `x87`).
    x87_loaded: bool,
    /// Forward branches that the block, or its current round, may still go on behind.
    pub side_exits: u8,
    /// The path to follow, if the block is a trace.
    pub trail: Option<trace::Trail>,
    /// Those that a round may.
    all_side_exits: u8,
    /// Linear address of the block's first instruction.
    start: u64,
    /// The block may have several rounds.
    pub unroll: bool,
    /// Jumps to the block's start so far.
    rounds: u32,
    /// Instructions so far.
    insns: u32,
    /// The instruction just translated jumps to the block's start, where the block goes on.
    pub restarted: bool,
    /// The block has its terminal.
    pub ended: bool,
}

impl<'a> Translator<'a> {
    /// A translator for a block.
    pub fn new(
        b: &'a mut Builder,
        env: &'a X86Env,
        key: BlockKey,
        limits: TranslateLimits<'_>,
    ) -> Translator<'a> {
        let BlockKey { pc: start, mode, .. } = key;
        let side_exits = if limits.side_exits { exits::MAX_SIDE_EXITS } else { 0 };
        Translator {
            b,
            env,
            mode,
            pc: 0,
            next: 0,
            x87_opcode: 0,
            cs_base: if mode & mode::CODE64 != 0 { 0 } else { mode >> mode::CODE_BASE_SHIFT },
            mmu: <crate::guest::X86 as tessera_tcg::guest::Guest>::main_mmu(mode),
            single: limits.single_step || mode & (mode::TRAP | mode::SHADOW) != 0,
            shadowed: false,
            opens_shadow: false,
            x87_loaded: false,
            trail: None,
            side_exits,
            all_side_exits: side_exits,
            start,
            unroll: limits.unroll && limits.path.is_empty(),
            rounds: 0,
            insns: 0,
            restarted: false,
            ended: false,
        }
    }

    /// Translates one instruction, which is at `pc`.
    pub fn instruction(&mut self, table: &[TranslateFn], pc: u64, i: &Instruction) {
        self.pc = pc;
        self.next = self.wrap(pc.wrapping_add(i.len() as u64));
        self.shadowed = std::mem::take(&mut self.opens_shadow);
        self.insns += 1;
        self.b.push(Inst::InsnStart { pc });
        if self.is(mode::DEBUG) {
            let pc = self.b.iconst(pc);
            self.b.call(helpers::system::CHECK_BREAKPOINT, &[pc]);
        }
        if self.is(mode::CODE_LIMIT | mode::DEBUG) {
            // Odd limits are rare: check each instruction's last byte instead of having a block mode for each limit.
            let last = self.b.iconst(self.next.wrapping_sub(1).wrapping_sub(self.cs_base) & 0xffff_ffff);
            self.b.call(helpers::int::CHECK_CODE, &[last]);
        }
        if !self.env.cpuid.allows(i.code()) && !matches!(i.mnemonic(), Mnemonic::Lzcnt | Mnemonic::Tzcnt) {
            return self.undefined();
        }
        // Outside protected mode, VEX is not recognised (SDM volume 2, section 2.3.12).
        if !self.protected() && !matches!(i.encoding(), EncodingKind::Legacy | EncodingKind::D3NOW) {
            return self.undefined();
        }
        table[i.code() as usize](self, i);
    }

    /// Whether all of these mode bits are set.
    #[inline]
    pub fn is(&self, bits: u64) -> bool {
        self.mode & bits == bits
    }

    /// 64-bit code.
    #[inline]
    pub fn code64(&self) -> bool {
        self.is(mode::CODE64)
    }

    /// Protected mode (long mode included), not virtual-8086.
    #[inline]
    pub fn protected(&self) -> bool {
        self.mode & (mode::PROTECTED | mode::V86) == mode::PROTECTED
    }

    /// Current privilege level.
    #[inline]
    pub fn cpl(&self) -> u8 {
        (self.mode >> mode::CPL_SHIFT & 3) as u8
    }

    /// I/O privilege level.
    #[inline]
    pub fn iopl(&self) -> u8 {
        (self.mode >> mode::IOPL_SHIFT & 3) as u8
    }

    /// Memory flags of an ordinary data access.
    #[inline]
    pub fn mem(&self) -> MemFlags {
        MemFlags { mmu: self.mmu, for_write: false, align: false }
    }

    /// Memory flags of a load whose bytes are stored to next.
    #[inline]
    pub fn mem_for_write(&self) -> MemFlags {
        MemFlags { mmu: self.mmu, for_write: true, align: false }
    }

    /// A linear address: 32 bits unless in 64-bit code.
    #[inline]
    pub fn wrap(&self, linear: u64) -> u64 {
        if self.code64() { linear } else { linear & 0xffff_ffff }
    }

    /// Architectural instruction pointer (offset in CS) of the next instruction.
    #[inline]
    pub fn next_ip(&self) -> u64 {
        self.wrap(self.next.wrapping_sub(self.cs_base))
    }

    /// Calls a helper.
    #[inline]
    pub fn call(&mut self, helper: tessera_tcg::ir::HelperId, args: &[Value]) -> Value {
        self.b.call(helper, args)
    }

    /// Raises an exception unconditionally; ends the block.
    pub fn raise(&mut self, vector: u16, error: Option<u32>) {
        let vector = self.b.iconst(vector as u64);
        let error = self.b.iconst(error.map_or(u64::MAX, u64::from));
        self.b.call(helpers::int::RAISE, &[vector, error]);
        // Never reached, but a block needs a terminal.
        self.leave(leave::RESUME);
    }

    /// Raises #UD; ends the block.
    pub fn undefined(&mut self) {
        self.raise(vector::UD, None);
    }

    /// Raises #GP(0); ends the block.
    pub fn protection(&mut self) {
        self.raise(vector::GP, Some(0));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cpuid_claims_is_there() {
        let cpuid = crate::cpuid::parse("max").unwrap();
        let table = dispatch();
        let missing: std::collections::BTreeSet<_> = Code::values()
            .filter(|&code| code != Code::INVALID && cpuid.allows(code))
            // Not what data directives of an assembler encode, nor forms that decode as FWAIT and another instruction.
            .filter(|code| code.op_code().is_instruction() && !code.op_code().fwait())
            .filter(|code| {
                !matches!(code.mnemonic(), Mnemonic::Db | Mnemonic::Dw | Mnemonic::Dd | Mnemonic::Dq)
            })
            .filter(|&code| std::ptr::fn_addr_eq(table[code as usize], unsupported as TranslateFn))
            .map(|code| format!("{:?}", code.mnemonic()))
            .collect();
        assert!(missing.is_empty(), "{missing:?}");
    }

    #[test]
    fn no_instruction_is_claimed_twice() {
        let mut mnemonics = std::collections::HashSet::new();
        let mut codes = std::collections::HashSet::new();
        for row in FAMILIES.iter().copied().flatten() {
            match *row {
                Row::All(m, _) => assert!(mnemonics.insert(m), "{m:?}"),
                Row::One(c, _) => assert!(codes.insert(c), "{c:?}"),
            }
        }
    }
}
