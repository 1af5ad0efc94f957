//! A translated snippet as text in which nothing depends on where things lie.
//!
//! Addresses become names: jumps inside of a block go to labels, `L` in the hot part and `C` in the cold part, numbered as
//! they come; thunks and helpers have their own names; fields of the environment are called `env.FIELD`, those of the runtime
//! `runtime.FIELD`. The words by which a block leaves are written as what they say. Padding is neither shown nor
//! counted.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::mem::offset_of;

use iced_x86::{
    Decoder, DecoderOptions, FastFormatter, Instruction, Mnemonic, OpKind, Register, SymbolResolver,
    SymbolResult,
};
use tessera_tcg::backend::Outcome;
use tessera_tcg::backend::x86_64::ENV_BIAS;
use tessera_tcg::env::{Header, RUNTIME_DISTANCE, Runtime, SPILL_SLOTS};
use tessera_tcg::exec::Listing;
use tessera_tcg::guest::Guest;
use tessera_tcg::jump_cache::JumpEntry;
use tessera_tcg::softmmu::MMU_MODES;
use tessera_x86::guest::X86;
use tessera_x86::state::X86Env;

use crate::rig::Translated;
use crate::snippet::{Mode, Snippet};

/// Host and guest instructions of a snippet.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Counts {
    /// Guest instructions.
    pub guest: usize,
    /// Host instructions in the hot part, the poll at the entry and side exits included.
    pub hot: usize,
    /// Host instructions in the cold part: slow paths, and stubs of jumps that are not linked.
    pub cold: usize,
}

/// The text of a snippet, and what was counted.
pub fn text(snippet: &Snippet, translated: &Translated) -> (String, Counts) {
    let mut counts = Counts::default();
    let mut body = String::new();
    for block in &translated.blocks {
        one(&mut body, &mut counts, snippet.mode, block, translated);
    }
    let Counts { guest, hot, cold } = counts;
    let heading =
        format!("=== {} ({}): {guest} guest, {hot} hot, {cold} cold\n", snippet.name, snippet.mode.name());
    (heading + &body, counts)
}

fn one(out: &mut String, counts: &mut Counts, mode: Mode, block: &Listing, translated: &Translated) {
    out.push_str("guest\n");
    // Writing to a string cannot fail, here and below.
    for insn in decode(mode.bits(), block.key.pc, &block.guest) {
        counts.guest += 1;
        let _ = writeln!(out, "    {}", format(&insn, FastFormatter::new()));
    }
    let parts = block.host.each_ref().map(|(address, code)| {
        let mut insns = decode(64, *address, code);
        insns.retain(|insn| !matches!(insn.mnemonic(), Mnemonic::Nop | Mnemonic::Int3));
        insns
    });
    counts.hot += parts[0].len();
    counts.cold += parts[1].len();
    let labels = labels(&parts, block);
    for (name, insns) in ["hot", "cold"].iter().zip(&parts) {
        let _ = writeln!(out, "{name}");
        for insn in insns {
            let names = Names {
                labels: labels.clone(),
                calls: block.optimized.clone(),
                thunks: thunks(insn, translated),
            };
            let formatter = FastFormatter::try_with_options(Some(Box::new(names)));
            let line = format(insn, formatter.expect("without constraints"));
            let label = labels.get(&insn.ip()).map_or(String::new(), |label| format!("{label}:"));
            let _ = writeln!(out, "{label:<4}{line}");
        }
    }
}

fn decode(bits: u32, ip: u64, code: &[u8]) -> Vec<Instruction> {
    Decoder::with_ip(bits, code, ip, DecoderOptions::NONE).into_iter().collect()
}

fn format(insn: &Instruction, mut formatter: FastFormatter) -> String {
    formatter.options_mut().set_space_after_operand_separator(true);
    formatter.options_mut().set_rip_relative_addresses(true);
    let mut line = String::new();
    formatter.format(insn, &mut line);
    line
}

/// Labels by address: of the targets of jumps, and of the instructions that they are written at, which differ if a jump leads
/// to padding.
fn labels(parts: &[Vec<Instruction>; 2], block: &Listing) -> BTreeMap<u64, String> {
    let jumps = || parts.iter().flatten().filter(|insn| insn.op0_kind() == OpKind::NearBranch64);
    let mut labels = BTreeMap::new();
    for (letter, ((address, code), insns)) in ['L', 'C'].iter().zip(block.host.iter().zip(parts)) {
        let inside = *address..address + code.len() as u64;
        let targets = jumps().map(Instruction::near_branch_target).filter(|target| inside.contains(target));
        // By the instruction that is reached.
        let mut reached: BTreeMap<u64, Vec<u64>> = BTreeMap::new();
        for target in targets {
            if let Some(insn) = insns.iter().find(|insn| insn.ip() >= target) {
                reached.entry(insn.ip()).or_default().push(target);
            }
        }
        for (n, (ip, targets)) in (1..).zip(reached) {
            for address in targets.into_iter().chain([ip]) {
                labels.insert(address, format!("{letter}{n}"));
            }
        }
    }
    labels
}

/// The name of the thunk that an instruction jumps to or calls.
fn thunks(insn: &Instruction, translated: &Translated) -> Option<String> {
    (insn.op0_kind() == OpKind::NearBranch64)
        .then(|| translated.vcpu.host_name(insn.near_branch_target()))
        .flatten()
}

/// Names for one instruction's operands.
struct Names {
    labels: BTreeMap<u64, String>,
    /// The block's IR, which says which of several helpers at an address was meant.
    calls: String,
    thunks: Option<String>,
}

impl SymbolResolver for Names {
    fn symbol(
        &mut self,
        insn: &Instruction,
        _operand: u32,
        operand: Option<u32>,
        address: u64,
        _size: u32,
    ) -> Option<SymbolResult<'_>> {
        let kind = insn.try_op_kind(operand?).ok()?;
        let name = match kind {
            OpKind::NearBranch64 => self.labels.get(&address).or(self.thunks.as_ref()).cloned(),
            OpKind::Memory => field(insn),
            OpKind::Immediate64 => self.helper(address).or_else(|| outcome(address)),
            _ => None,
        };
        name.map(|name| SymbolResult::with_string(address, name))
    }
}

impl Names {
    /// The helper, or what stands in for one, at an address.
    fn helper(&self, address: u64) -> Option<String> {
        use tessera_tcg::guest::Shortcut;
        let mut found = None;
        for desc in X86::helpers() {
            let shortcut = match desc.shortcut {
                Some(Shortcut::Unless { func, .. }) => Some(func() as u64),
                _ => None,
            };
            if (desc.func)() as u64 == address || shortcut == Some(address) {
                let name = format!("helper.{}", desc.name);
                if self.calls.contains(&format!("call {}(", desc.name)) {
                    return Some(name);
                }
                found = found.or(Some(name));
            }
        }
        found
    }
}

/// What a word says that generated code leaves with.
fn outcome(word: u64) -> Option<String> {
    if !(1..=5).contains(&(word >> 56)) {
        return None;
    }
    Some(match Outcome::decode(word) {
        // The number of the block is that of the run.
        Outcome::Exit { exit, .. } => format!("outcome.exit{exit}"),
        Outcome::Lookup => "outcome.lookup".into(),
        Outcome::Poll { .. } => "outcome.poll".into(),
        Outcome::Exception => "outcome.exception".into(),
        Outcome::Leave(code) => format!("outcome.leave{code}"),
    })
}

/// The name of the field that a memory operand is.
fn field(insn: &Instruction) -> Option<String> {
    let displacement = insn.memory_displacement64();
    match insn.memory_base() {
        Register::RBP if insn.mnemonic() == Mnemonic::Lea && displacement as i64 == -i64::from(ENV_BIAS) => {
            Some("env".into())
        }
        Register::RBP => {
            let offset = (displacement as i64).wrapping_add(ENV_BIAS.into());
            if offset < 0 {
                // The runtime lies before the environment.
                runtime_field(offset.wrapping_add(RUNTIME_DISTANCE as i64) as u64)
            } else {
                Some(env_field(offset as u64))
            }
        }
        _ => None,
    }
}

/// The environment's fields by offset; the name of one holds up to the next.
fn env_field(offset: u64) -> String {
    let mut fields = vec![
        (offset_of!(Header, exit_request), "env.exit_request".to_owned()),
        (offset_of!(Header, helper_fault), "env.helper_fault".into()),
        (offset_of!(Header, tlb_main), "env.tlb_main".into()),
        (offset_of!(Header, jump_tag), "env.jump_tag".into()),
    ];
    fields.extend((0..MMU_MODES).map(|mmu| (offset_of!(Header, tlb) + 8 * mmu, format!("env.tlb{mmu}"))));
    fields.extend(X86::globals().iter().map(|g| (g.offset as usize, format!("env.{}", g.name))));
    macro_rules! named {
        ($($name:ident)*) => { $( fields.push((offset_of!(X86Env, $name), concat!("env.", stringify!($name)).into())); )* };
    }
    named!(mxcsr fpu x87_operand x87_resident x87_number seg gdtr idtr cr0 cr2 cr3 cr4 efer pdpte dr xcr0 pkru msr
        mode cpl interrupt_shadow debug_shadow repeating halted pending_debug a20_mask cpuid);
    // Of names for the same place the first counts: the sort is stable.
    fields.sort_by_key(|(at, _)| *at);
    let below = fields.iter().rev().find(|(at, _)| *at as u64 <= offset);
    let Some((start, _)) = below else { return format!("env+{offset:#x}") };
    let (at, name) = fields.iter().find(|(at, _)| at == start).expect("it was just found");
    match offset - *at as u64 {
        0 => name.clone(),
        more => format!("{name}+{more:#x}"),
    }
}

/// The runtime's fields that blocks use.
fn runtime_field(offset: u64) -> Option<String> {
    let slot = offset.wrapping_sub(offset_of!(Runtime, spill) as u64);
    if slot < 8 * SPILL_SLOTS as u64 {
        return Some(format!("runtime.spill{}", slot / 8));
    }
    jump_cache_field(offset)
}

/// The fields of the first entry of the jump cache, to which an index is added.
fn jump_cache_field(offset: u64) -> Option<String> {
    const TAG: u64 = (offset_of!(Runtime, jump_cache) + offset_of!(JumpEntry, tag)) as u64;
    const CODE: u64 = (offset_of!(Runtime, jump_cache) + offset_of!(JumpEntry, code)) as u64;
    match offset {
        TAG => Some("runtime.jump_cache.tag".into()),
        CODE => Some("runtime.jump_cache.code".into()),
        _ => None,
    }
}
