//! Whether what a block does with its own address is the same wherever it is.
//!
//! Problem: a compiler that knows an address may decide by it: which way a branch goes that compares it with another constant,
//! whether half of it, a divisor, is zero. Three samples that agree do not show that a fourth address would (see `templates`).
//! Strategy: an address, or what is as near to it as data is to code, may be added to, stored, accessed, compared with what is
//! not known, and handed to helpers that the host's code does not stand in for. A block that does anything else with it is not to
//! be copied.
//!
//! Invariant: what the front end made is looked at, before any pass has folded it.

use std::collections::HashMap;

use crate::backend::GuestInfo;
use crate::ir::{BinOp, Block, FlagOp, GlobalId, Inst, Value, Width};

/// Constants that are less far than this from the block's address may follow from it.
const NEAR: u64 = 1 << 33;

/// What a compiler may know of a value.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Known {
    /// All, and it is the same at each address.
    Constant,
    /// Nothing.
    Nothing,
    /// It moves with the block's address, or is made of something that does.
    Moves,
}

/// Whether nothing is decided in a block at `pc` by what it knows of its address.
pub(super) fn is_indifferent(block: &Block, guest: &GuestInfo, pc: u64) -> bool {
    let mut globals: HashMap<GlobalId, Known> = HashMap::new();
    let mut values: Vec<Known> = Vec::with_capacity(block.insts.len());
    for inst in &block.insts {
        let known = |v: Value| values[v.index()];
        let mut most = Known::Constant;
        inst.for_each_use(|v| most = most.max(known(v)));
        let known = match *inst {
            Inst::Const(c) if c.wrapping_sub(pc).wrapping_add(NEAR) < 2 * NEAR => Known::Moves,
            Inst::Get(global) => globals.get(&global).copied().unwrap_or(Known::Nothing),
            Inst::Set(global, v) => {
                globals.insert(global, known(v));
                Known::Nothing
            }
            Inst::Bin { op: BinOp::Add | BinOp::Sub, w: Width::W64, .. }
            | Inst::Lea { w: Width::W64, .. } => most,
            // A comparison with something that is not known is not decided.
            Inst::Flags { op: FlagOp::Add | FlagOp::Sub, w: Width::W64, a, b, old: None } => {
                if known(a).min(known(b)) == Known::Nothing { Known::Nothing } else { most }
            }
            Inst::Call { helper, .. } => {
                if most == Known::Moves && guest.helpers[helper.0 as usize].shortcut.is_some() {
                    return false;
                }
                Known::Nothing
            }
            Inst::EnvLoad { .. }
            | Inst::EnvStore { .. }
            | Inst::Load { .. }
            | Inst::Store { .. }
            | Inst::LoadVec { .. }
            | Inst::StoreVec { .. }
            | Inst::AtomicRmw { .. }
            | Inst::AtomicCas { .. } => Known::Nothing,
            _ if most == Known::Moves => return false,
            _ => most,
        };
        values.push(known);
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::text::parse;
    use crate::testing::guest;

    const PC: u64 = 0x7f12_3456_7000;

    fn indifferent(text: &str) -> bool {
        let text = format!(
            "insn {PC:#x}\nv1 = const {:#x}\nv2 = get r1\nv3 = const 0x600000000000\n{text}",
            PC + 77
        );
        is_indifferent(&parse(&text, &guest()).expect("valid text"), &guest(), PC)
    }

    #[test]
    fn addresses_may_be_moved_and_accessed() {
        for text in [
            "v4 = add.64 v1, v2\nv5 = load.64 [v4] mmu0\nv6 = and.32 v5, v3\nset r1, v6\nleave 0\n",
            "set r1, v1\nf4 = flags.sub.64 v1, v3\nset flags, f4\nleave 0\n",
            "f4 = flags.sub.64 v1, v2\nv5 = setcond.b f4\nset r2, v5\nleave 0\n",
            "v4 = and.32 v2, v3\nf5 = flags.sub.64 v2, v3\nv6 = setcond.b f5\nset r2, v6\nleave 0\n",
            "store.64 [v2] mmu0, v1\nleave 0\n",
        ] {
            assert!(indifferent(text), "{text}");
        }
    }

    #[test]
    fn nothing_may_be_decided_by_them() {
        for text in [
            "f4 = flags.sub.64 v1, v3\nv5 = setcond.b f4\nset r2, v5\nleave 0\n",
            "set r2, v1\nv5 = get r2\nf6 = flags.sub.64 v3, v5\nv7 = setcond.b f6\nset r2, v7\nleave 0\n",
            "f4 = flags.sub.64 v1, v3\nset flags, f4\nf6 = get flags\nv7 = setcond.b f6\nset r2, v7\nleave 0\n",
            "v4 = add.64 v1, v3\nv5 = shl.64 v4, v3\nset r2, v5\nleave 0\n",
            "v4 = and.64 v1, v2\nset r2, v4\nleave 0\n",
            "f4 = flags.sub.32 v1, v2\nset flags, f4\nleave 0\n",
        ] {
            assert!(!indifferent(text), "{text}");
        }
    }
}
