//! What unit tests of the analyses begin with: a block of the [testing guest](crate::testing::guest), from its text.

use super::X86_64;
use super::groups::Groups;
use super::liveness::Liveness;
use crate::backend::HostBackend;
use crate::ir::text::parse;
use crate::ir::{Block, Inst};
use crate::testing::guest;

/// A block, and what its values stand for.
#[track_caller]
pub fn begun(text: &str) -> (Block, Liveness) {
    let block = parse(text, &guest()).expect("valid text");
    let backend = X86_64::new(guest()).expect("the host runs the backend");
    let mut live = Liveness::default();
    live.begin(&block, &guest(), backend.kinds.pinned);
    (block, live)
}

/// The same, and the groups of its accesses, none of which last for rounds.
#[track_caller]
pub fn grouped(text: &str) -> (Block, Liveness, Groups) {
    let (block, live) = begun(text);
    let mut groups = Groups::default();
    groups.run(&block, &live, guest().helpers, None);
    (block, live, groups)
}

/// Where in a block the accesses are, in order.
pub fn accesses(block: &Block) -> impl Iterator<Item = usize> {
    let access = |inst: &Inst| {
        matches!(inst, Inst::Load { .. } | Inst::Store { .. } | Inst::LoadVec { .. } | Inst::StoreVec { .. })
    };
    block.insts.iter().enumerate().filter(move |(_, inst)| access(inst)).map(|(at, _)| at)
}
