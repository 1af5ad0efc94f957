//! The backward pass: dead code, and sets that nothing observes.
//!
//! Invariant: walking up, `live` holds the storage whose value at this point something below may look at. A wide vector
//! global that contains a narrow one stands for its upper part only, so that setting the narrow one does not make
//! the rest dead, and setting the wide one makes both.

use super::OptFlags;
use crate::backend::GuestInfo;
use crate::ir::{Block, Exit, GlobalId, GlobalSet, Inst, Value};

/// The pass and its scratch memory.
pub struct Backward {
    opts: OptFlags,
    guest: GuestInfo,
    /// Globals that contain another one.
    wide: GlobalSet,
    /// For each global, the storage it covers.
    storage: [GlobalSet; 64],
    used: Vec<bool>,
    map: Vec<Value>,
}

impl Backward {
    /// The pass for one guest.
    pub fn new(opts: OptFlags, guest: GuestInfo) -> Backward {
        let mut storage = [GlobalSet::NONE; 64];
        let mut wide = GlobalSet::NONE;
        for (i, desc) in guest.globals.iter().enumerate() {
            let g = GlobalId(i as u8);
            storage[i] = GlobalSet::of(g);
            if let Some(other) = desc.overlaps {
                let bytes = guest.globals[other.0 as usize].bytes;
                // Of two names for the same storage, the later one counts as the wider.
                if bytes < desc.bytes || bytes == desc.bytes && other < g {
                    wide.insert(g);
                    storage[i].insert(other);
                }
            }
        }
        for (i, desc) in guest.globals.iter().enumerate() {
            if let Some(other) = desc.overlaps
                && guest.globals[other.0 as usize].bytes == desc.bytes
            {
                storage[i].insert(other);
            }
        }
        Backward { opts, guest, wide, storage, used: Vec::new(), map: Vec::new() }
    }

    /// The storage that a set of globals covers.
    fn storage_of(&self, set: GlobalSet) -> GlobalSet {
        let mut all = set;
        for g in GlobalSet(set.0 & self.wide.0).iter() {
            all = all.or(self.storage[g.0 as usize]);
        }
        all
    }

    /// What is looked at after leaving by an exit; leaving by one that is not indirect sets the program counter.
    fn live_at_exit(&self, exit: &Exit) -> GlobalSet {
        let pc = if exit.indirect { GlobalSet::NONE } else { GlobalSet::of(self.guest.pc) };
        GlobalSet(!self.storage_of(exit.dead).0 & !pc.0)
    }

    /// Drops what is dead and closes the gaps.
    pub fn run(&mut self, block: &mut Block) {
        self.used.clear();
        self.used.resize(block.insts.len(), false);
        let code = self.opts.contains(OptFlags::DEAD_CODE);
        let sets = self.opts.contains(OptFlags::DEAD_SETS);
        let pc = GlobalSet::of(self.guest.pc);
        // A fault makes everything visible but the program counter, which becomes the instruction's address.
        let at_fault = GlobalSet(!pc.0);
        let mut live = GlobalSet::ALL;
        let exits = &block.exits;
        for i in (0..block.insts.len()).rev() {
            let inst = &mut block.insts[i];
            // One match does everything that depends on the kind of instruction, for mispredicted jumps are what
            // this pass spends its time on.
            match inst {
                Inst::Set(g, v) => {
                    let storage = self.storage[g.0 as usize];
                    if sets && live.0 & storage.0 == 0 {
                        *inst = Inst::Nop;
                    } else {
                        live = GlobalSet(live.0 & !storage.0);
                        self.used[v.index()] = true;
                    }
                }
                Inst::ZeroUpper(set) => {
                    // A wide global's own bit stands for its upper part.
                    let wanted = GlobalSet(set.0 & live.0);
                    if sets && wanted == GlobalSet::NONE {
                        *inst = Inst::Nop;
                    } else {
                        live = GlobalSet(live.0 & !set.0);
                        if sets {
                            *set = wanted;
                        }
                    }
                }
                Inst::Get(g) => {
                    if code && !self.used[i] {
                        *inst = Inst::Nop;
                    } else {
                        live = live.or(self.storage[g.0 as usize]);
                    }
                }
                Inst::Const(_) | Inst::EnvLoad { .. } => {
                    if code && !self.used[i] {
                        *inst = Inst::Nop;
                    }
                }
                Inst::Bin { a, b, .. } => {
                    let (a, b) = (*a, *b);
                    if code && !self.used[i] {
                        *inst = Inst::Nop;
                    } else {
                        self.used[a.index()] = true;
                        self.used[b.index()] = true;
                    }
                }
                Inst::Load { addr, .. } | Inst::LoadVec { addr, .. } => {
                    live = live.or(at_fault);
                    self.used[addr.index()] = true;
                }
                Inst::Store { addr, v, .. } | Inst::StoreVec { addr, v, .. } => {
                    live = live.or(at_fault);
                    self.used[addr.index()] = true;
                    self.used[v.index()] = true;
                }
                Inst::Call { helper, .. } => {
                    let effects = &self.guest.helpers[helper.0 as usize].effects;
                    if code && effects.pure && !self.used[i] {
                        *inst = Inst::Nop;
                    } else {
                        if effects.faults {
                            live = live.or(at_fault);
                        }
                        live = live.or(self.storage_of(effects.reads));
                        self.mark_uses(inst);
                    }
                }
                Inst::ExitIf { f, exit, .. } => {
                    live = live.or(self.live_at_exit(&exits[exit.0 as usize]));
                    self.used[f.index()] = true;
                }
                Inst::Goto(exit) => live = self.live_at_exit(&exits[exit.0 as usize]),
                Inst::Branch { f, taken, fall, .. } => {
                    let taken = self.live_at_exit(&exits[taken.0 as usize]);
                    live = taken.or(self.live_at_exit(&exits[fall.0 as usize]));
                    self.used[f.index()] = true;
                }
                Inst::GotoIndirect | Inst::Leave { .. } => live = GlobalSet::ALL,
                Inst::Nop | Inst::InsnStart { .. } => {}
                _ => {
                    if code && !self.used[i] && inst.is_pure() {
                        *inst = Inst::Nop;
                    } else {
                        if inst.is_memory() {
                            live = live.or(at_fault);
                        }
                        self.mark_uses(inst);
                    }
                }
            }
        }
        let first = block.insts.iter().position(|inst| matches!(inst, Inst::Nop));
        if let Some(first) = first {
            self.compact(block, first);
        }
    }

    fn mark_uses(&mut self, inst: &Inst) {
        let used = &mut self.used;
        inst.for_each_use(|v| used[v.index()] = true);
    }

    /// Removes the [`Inst::Nop`]s, of which the first is instruction `first`.
    fn compact(&mut self, block: &mut Block, first: usize) {
        let map = &mut self.map;
        map.clear();
        let mut to = first;
        // What is above the first keeps its place.
        let renew = |map: &[Value], v: Value| v.index().checked_sub(first).map_or(v, |n| map[n]);
        for from in first..block.insts.len() {
            map.push(Value(to as u32));
            let mut inst = block.insts[from];
            match &mut inst {
                Inst::Nop => continue,
                Inst::Const(_) | Inst::Get(_) | Inst::InsnStart { .. } => {}
                Inst::Set(_, v) => *v = renew(map, *v),
                Inst::Bin { a, b, .. } => {
                    *a = renew(map, *a);
                    *b = renew(map, *b);
                }
                Inst::Load { addr, .. } => *addr = renew(map, *addr),
                inst => inst.map_uses(|v| renew(map, v)),
            }
            block.insts[to] = inst;
            to += 1;
        }
        block.insts.truncate(to);
    }
}
