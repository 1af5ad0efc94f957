//! Which instructions can be proven here, by iced's `Code`.
//!
//! Everything that the model claims, that the host has, and whose effects user mode can see and control. What cannot is
//! listed in [`EXCLUDED`] with the reason, and [`coverage`](crate::coverage) says what else covers it.

use iced_x86::{Code, CpuidFeature, EncodingKind, Mnemonic, OpCodeOperandKind as Op};
use tessera_x86::cpuid::{CpuidTable, Word};

/// Instructions that no sequence contains, and why.
pub const EXCLUDED: &[(Mnemonic, &str)] = {
    use Mnemonic::*;
    const KERNEL: &str = "natively enters the host's kernel";
    const UMIP: &str = "the host's kernel answers in place of the processor (UMIP)";
    const MODEL: &str = "tells which processor it is";
    const SELECTORS: &str = "depends on descriptors that are the kernel's";
    &[
        (Syscall, KERNEL),
        (Sysenter, KERNEL),
        (Int, KERNEL),
        (Sgdt, UMIP),
        (Sidt, UMIP),
        (Sldt, UMIP),
        (Str, UMIP),
        (Smsw, UMIP),
        (Cpuid, MODEL),
        (Iret, SELECTORS),
        (Iretd, SELECTORS),
        (Iretq, SELECTORS),
        (Retf, SELECTORS),
        (Lds, SELECTORS),
        (Les, SELECTORS),
        (Lss, SELECTORS),
        (Lfs, SELECTORS),
        (Lgs, SELECTORS),
        (Lar, SELECTORS),
        (Lsl, SELECTORS),
        (Verr, SELECTORS),
        (Verw, SELECTORS),
    ]
};

/// How an instruction is dealt with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum How {
    /// Sequences contain it.
    Native,
    /// They cannot, for this reason.
    Excluded(&'static str),
    /// The model does not have it.
    Unclaimed,
}

/// Whether `code` is an encoding of its own: not a data directive of assemblers, nor a form that decodes as FWAIT and
/// another instruction.
pub fn is_encoding(code: Code) -> bool {
    code != Code::INVALID
        && code.op_code().is_instruction()
        && !code.op_code().fwait()
        && !matches!(code.mnemonic(), Mnemonic::Db | Mnemonic::Dw | Mnemonic::Dd | Mnemonic::Dq)
}

/// How an instruction of `model` is dealt with, whatever this host has.
pub fn how(model: &CpuidTable, code: Code) -> How {
    if !is_encoding(code) || !model.allows(code) {
        return How::Unclaimed;
    }
    let info = code.op_code();
    if let Some((_, reason)) = EXCLUDED.iter().find(|(m, _)| *m == code.mnemonic()) {
        return How::Excluded(reason);
    }
    if !info.mode64() && !info.mode32() {
        return How::Excluded("exists in 16-bit code only");
    }
    let operands = || (0..info.op_count()).map(|n| info.op_kind(n));
    if operands().any(|k| matches!(k, Op::farbr2_2 | Op::farbr4_2))
        || code.is_jmp_far_indirect()
        || code.is_call_far_indirect()
    {
        return How::Excluded("depends on descriptors that are the kernel's");
    }
    let writes_segment = matches!(code.mnemonic(), Mnemonic::Mov | Mnemonic::Pop)
        && matches!(info.op_kind(0), Op::seg_reg | Op::es | Op::ss | Op::ds | Op::fs | Op::gs);
    if writes_segment {
        return How::Excluded("depends on descriptors that are the kernel's");
    }
    if code.cpuid_features().contains(&CpuidFeature::PKU) {
        return How::Excluded("needs an operating system that uses protection keys");
    }
    How::Native
}

/// The model's table without the features that this host lacks, and the names of these.
pub fn host_part(model: &CpuidTable) -> (CpuidTable, Vec<&'static str>) {
    let mut host = *model.features();
    let leaf = |leaf: u32, sub: u32| std::arch::x86_64::__cpuid_count(leaf, sub);
    let highest = leaf(7, 0).eax;
    // The words that enumerate instructions for user mode.
    for (word, value) in [
        (Word::L1Edx, leaf(1, 0).edx),
        (Word::L1Ecx, leaf(1, 0).ecx),
        (Word::L7Ebx, leaf(7, 0).ebx),
        (Word::L7Ecx, leaf(7, 0).ecx),
        (Word::L7Sub1Eax, if highest > 0 { leaf(7, 1).eax } else { 0 }),
        (Word::XsaveEax, leaf(0xd, 1).eax),
        (Word::Ext1Edx, leaf(0x8000_0001, 0).edx),
        (Word::Ext1Ecx, leaf(0x8000_0001, 0).ecx),
    ] {
        host.set_word(word, value);
    }
    let missing: Vec<_> = model.features().missing_in(&host).map(|f| f.name()).collect();
    let text = missing.iter().fold("max".to_owned(), |text, name| format!("{text},-{name}"));
    (tessera_x86::cpuid::parse(&text).expect("features of `max`"), missing)
}

/// A sentence about the instructions that cannot be run because this host lacks them, if there are any.
pub fn left_out(model: &CpuidTable) -> Option<String> {
    let (host, missing) = host_part(model);
    let native = |table| Code::values().filter(|&c| how(table, c) == How::Native).count();
    let (all, here) = (native(model), native(&host));
    (here < all).then(|| {
        format!(
            "{} of {all} encodings are left out: this host lacks some of {}",
            all - here,
            missing.join(", ")
        )
    })
}

/// An instruction that sequences contain.
#[derive(Clone, Copy)]
pub struct Entry {
    /// It.
    pub code: Code,
    /// In 64-bit code; else in 32-bit code.
    pub wide: bool,
}

/// The instructions to draw from.
pub struct Table {
    /// For 64-bit code and for 32-bit code: all.
    all: [Vec<Code>; 2],
    /// And those that integer code is mostly made of.
    core: [Vec<Code>; 2],
    /// Those that the filter names.
    chosen: [Vec<Code>; 2],
    /// Every instruction with its modes, chosen ones only.
    pub entries: Vec<Entry>,
}

impl Table {
    /// The instructions of the model that this host has; `filter` (lower case) chooses by name and feature.
    pub fn new(model: &CpuidTable, filter: Option<&str>) -> Table {
        let (host, _) = host_part(model);
        let mut t = Table {
            all: Default::default(),
            core: Default::default(),
            chosen: Default::default(),
            entries: Vec::new(),
        };
        for code in Code::values().filter(|&c| how(&host, c) == How::Native) {
            for (n, wide) in [(0, true), (1, false)] {
                let info = code.op_code();
                // 16-bit branches in 64-bit code are AMD's.
                let short =
                    || (0..info.op_count()).any(|n| matches!(info.op_kind(n), Op::br16_1 | Op::br16_2));
                if !(if wide { info.mode64() && !short() } else { info.mode32() }) {
                    continue;
                }
                t.all[n].push(code);
                if is_core(code) {
                    t.core[n].push(code);
                }
                if filter.is_none_or(|text| is_named(code, text)) {
                    t.chosen[n].push(code);
                    t.entries.push(Entry { code, wide });
                }
            }
        }
        t
    }

    fn of(wide: bool) -> usize {
        if wide { 0 } else { 1 }
    }

    /// All instructions.
    pub fn all(&self, wide: bool) -> &[Code] {
        &self.all[Table::of(wide)]
    }

    /// Plain integer instructions.
    pub fn core(&self, wide: bool) -> &[Code] {
        &self.core[Table::of(wide)]
    }

    /// Those that the filter names.
    pub fn chosen(&self, wide: bool) -> &[Code] {
        &self.chosen[Table::of(wide)]
    }
}

/// Whether a filter means this instruction: by a part of its code's name or a feature's name.
fn is_named(code: Code, text: &str) -> bool {
    format!("{code:?}").to_lowercase().contains(text)
        || code.cpuid_features().iter().any(|f| format!("{f:?}").to_lowercase() == text)
}

fn is_core(code: Code) -> bool {
    use Mnemonic::*;
    code.encoding() == EncodingKind::Legacy
        && matches!(
            code.mnemonic(),
            Add | Sub
                | And
                | Or
                | Xor
                | Adc
                | Sbb
                | Cmp
                | Test
                | Inc
                | Dec
                | Neg
                | Not
                | Shl
                | Shr
                | Sar
                | Rol
                | Ror
                | Rcl
                | Rcr
                | Imul
                | Mov
                | Movzx
                | Movsx
                | Movsxd
                | Lea
                | Xchg
                | Push
                | Pop
                | Bt
                | Bts
                | Setb
                | Sete
                | Setl
                | Seto
                | Cmovb
                | Cmove
                | Cmovl
                | Cmovs
                | Jb
                | Je
                | Jl
                | Jbe
                | Jle
                | Jo
                | Js
                | Jp
                | Jmp
                | Stc
                | Cmc
                | Lahf
                | Sahf
                | Pushfq
                | Cwd
                | Cdq
                | Cqo
                | Cdqe
                | Xadd
                | Cmpxchg
                | Shld
                | Bsf
                | Bsr
        )
        && how_core(code)
}

/// Not the forms of these mnemonics that are about other than integers.
fn how_core(code: Code) -> bool {
    let info = code.op_code();
    (0..info.op_count())
        .all(|n| !matches!(info.op_kind(n), Op::cr_reg | Op::dr_reg | Op::tr_reg | Op::seg_reg))
}
