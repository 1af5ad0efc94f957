//! The backward pass: dead code, and sets that nothing observes.
//!
//! Invariant: walking up, `live` holds the storage whose value at this point something below may look at. A wide vector
//! global that contains a narrow one stands for its upper part only, so that setting the narrow one does not make
//! the rest dead, and setting the wide one makes both.

use super::OptFlags;
use super::effects::FloatOps;
use crate::backend::GuestInfo;
use crate::ir::{Block, Exit, GlobalId, GlobalSet, Inst, Value};

/// The pass and its scratch memory.
pub struct Backward {
    opts: OptFlags,
    guest: GuestInfo,
    float: FloatOps,
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
        Backward { opts, guest, float: FloatOps::new(), wide, storage, used: Vec::new(), map: Vec::new() }
    }

    /// The storage that a set of globals covers.
    fn storage_of(&self, set: GlobalSet) -> GlobalSet {
        let mut all = set;
        for g in GlobalSet(set.0 & self.wide.0).iter() {
            all = all.or(self.storage[g.0 as usize]);
        }
        all
    }

    /// What is looked at after leaving by an exit; leaving sets the program counter.
    fn live_at_exit(&self, exit: &Exit) -> GlobalSet {
        GlobalSet(!self.storage_of(exit.dead).0 & !GlobalSet::of(self.guest.pc).0)
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
        for i in (0..block.insts.len()).rev() {
            let inst = block.insts[i];
            let dead = match inst {
                Inst::Nop => true,
                Inst::Set(g, _) => {
                    let storage = self.storage[g.0 as usize];
                    let dead = sets && live.0 & storage.0 == 0;
                    if !dead {
                        live = GlobalSet(live.0 & !storage.0);
                    }
                    dead
                }
                Inst::Get(g) => {
                    let dead = code && !self.used[i];
                    if !dead {
                        live = live.or(self.storage[g.0 as usize]);
                    }
                    dead
                }
                Inst::EnvLoad { .. } => code && !self.used[i],
                Inst::Call { helper, .. } => {
                    let effects = &self.guest.helpers[helper.0 as usize].effects;
                    if effects.faults {
                        live = live.or(at_fault);
                    }
                    live = live.or(self.storage_of(effects.reads));
                    code && effects.pure && !self.used[i]
                }
                Inst::ExitIf { exit, .. } => {
                    live = live.or(self.live_at_exit(&block.exits[exit.0 as usize]));
                    false
                }
                Inst::Goto(exit) => {
                    live = self.live_at_exit(&block.exits[exit.0 as usize]);
                    false
                }
                Inst::Branch { taken, fall, .. } => {
                    let taken = self.live_at_exit(&block.exits[taken.0 as usize]);
                    live = taken.or(self.live_at_exit(&block.exits[fall.0 as usize]));
                    false
                }
                Inst::GotoIndirect | Inst::Leave { .. } => {
                    live = GlobalSet::ALL;
                    false
                }
                _ if inst.is_memory() => {
                    live = live.or(at_fault);
                    false
                }
                _ => code && !self.used[i] && self.float.is_pure(&inst),
            };
            if dead {
                block.insts[i] = Inst::Nop;
            } else {
                let used = &mut self.used;
                inst.for_each_use(|v| used[v.index()] = true);
            }
        }
        self.compact(block);
    }

    /// Removes the [`Inst::Nop`]s.
    fn compact(&mut self, block: &mut Block) {
        self.map.clear();
        let mut to = 0;
        for from in 0..block.insts.len() {
            let mut inst = block.insts[from];
            self.map.push(Value(to as u32));
            if inst == Inst::Nop {
                continue;
            }
            inst.map_uses(|v| self.map[v.index()]);
            block.insts[to] = inst;
            to += 1;
        }
        block.insts.truncate(to);
    }
}
