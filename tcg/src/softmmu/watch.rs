//! Watched ranges of guest-virtual memory: data breakpoints of the guest, and watchpoints of a debugger.
//!
//! Problem: an access to a watched range must be noticed, by whomever it is done (generated code, helpers, delivery of
//! exceptions), at the end of the very instruction that did it; and nobody may pay for it who watches nothing.
//!
//! Strategy: a page with a watched range gets no tag in the first level for the accesses that are watched, as a page with
//! code has none for writes; so generated code leaves such accesses to the slow path, and nothing changes elsewhere. The
//! slow path compares. An access that hits while a block runs is not done but raises
//! [`RETRY_VECTOR`]: the execution loop runs that one instruction again, alone, and there the hit is recorded, with the
//! end of the instruction being the end of the block. What runs outside of blocks records at once.
//!
//! Invariants:
//! - A tag in the first level says that no watch wants to know of that access, and there are large entries only while there
//!   are no watches. (`fill` for new entries; adding a watch flushes.)
//! - A hit is recorded only for an access that is done. Whoever delivers an exception *instead* of the instruction's
//!   completion drops what the instruction recorded ([`drop_watch_hits`]).
//! - Hits are bounded: one of each watch and direction until they are taken.

use super::fill::runtime;
use super::{RETRY_VECTOR, Running, page_of};
use crate::guest::{Exception, Guest};
use crate::memory::PAGE_MASK;

/// Which accesses a watch is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum WatchKind {
    /// Reads.
    Read,
    /// Writes.
    Write,
    /// Both.
    ReadWrite,
}

impl WatchKind {
    /// Whether it is for writes (`write`) or reads.
    #[inline]
    pub fn covers(self, write: bool) -> bool {
        match self {
            WatchKind::Read => !write,
            WatchKind::Write => write,
            WatchKind::ReadWrite => true,
        }
    }
}

/// Whose watch it is, and who takes its hits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum WatchOwner {
    /// The guest's own debug registers.
    Guest,
    /// A debugger outside of the guest.
    Debugger,
}

/// A watched range of guest-virtual addresses, in every address space and MMU mode.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Watch {
    /// Whose it is.
    pub owner: WatchOwner,
    /// The owner's name of it.
    pub tag: u32,
    /// First address.
    pub first: u64,
    /// Last address, not below the first.
    pub last: u64,
    /// Accesses that hit.
    pub kind: WatchKind,
}

impl Watch {
    /// Whether `len` bytes (not 0) at `va` have a byte in common with the range. Accesses wrap around.
    fn overlaps(&self, va: u64, len: u64) -> bool {
        va.wrapping_sub(self.first) <= self.last.wrapping_sub(self.first) || self.first.wrapping_sub(va) < len
    }
}

/// An access to a watched range.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct WatchHit {
    /// [`Watch::tag`].
    pub tag: u32,
    /// Address of the access (not of the range).
    pub address: u64,
    /// Bytes of the access.
    pub len: u64,
    /// Whether it was a write.
    pub write: bool,
}

/// The watches of a vCPU and what they have seen.
#[derive(Default)]
pub(crate) struct Watches {
    list: Vec<Watch>,
    hits: Vec<(WatchOwner, WatchHit)>,
}

impl Watches {
    /// Whether anything is watched.
    #[inline]
    pub fn any(&self) -> bool {
        !self.list.is_empty()
    }

    /// Whether reads and writes of a page need the slow path. Watched reads slow down writes, too: those that are part of a
    /// read-modify-write.
    #[inline]
    pub fn of_page(&self, va: u64) -> (bool, bool) {
        if self.list.is_empty() { (false, false) } else { self.look_up(page_of(va)) }
    }

    #[cold]
    fn look_up(&self, page: u64) -> (bool, bool) {
        let any = |write| self.list.iter().any(|w| w.kind.covers(write) && w.overlaps(page, PAGE_MASK + 1));
        let read = any(false);
        (read, read || any(true))
    }

    fn record(&mut self, va: u64, len: u64, write: bool) -> bool {
        let Watches { list, hits } = self;
        let mut found = false;
        for w in list.iter().filter(|w| w.kind.covers(write) && w.overlaps(va, len)) {
            found = true;
            let known = |(owner, hit): &(WatchOwner, WatchHit)| {
                (*owner, hit.tag, hit.write) == (w.owner, w.tag, write)
            };
            if !hits.iter().any(known) {
                hits.push((w.owner, WatchHit { tag: w.tag, address: va, len, write }));
            }
        }
        found
    }
}

/// To be called before an access that is done for certain: records it if it is watched, or, while a block runs, has it done
/// again alone.
#[inline]
pub(super) fn watched<G: Guest>(env: &mut G::Env, va: u64, len: u64, write: bool) -> Result<(), Exception> {
    // SAFETY: the environment is bound; the reference is gone when this returns.
    let rt = unsafe { runtime::<G>(env) };
    if rt.mmu.watches.list.is_empty() || len == 0 { Ok(()) } else { compare::<G>(env, va, len, write) }
}

#[cold]
fn compare<G: Guest>(env: &mut G::Env, va: u64, len: u64, write: bool) -> Result<(), Exception> {
    retry::<G>(env, va, len, write)?;
    // SAFETY: the environment is bound; no reference to its runtime is in use.
    let rt = unsafe { runtime::<G>(env) };
    if rt.mmu.watches.record(va, len, write) {
        G::header(env).exit_request.set();
    }
    Ok(())
}

/// Only the retry of [`watched`]: for the load of a read-modify-write, whose store may not fail.
pub(crate) fn retry<G: Guest>(env: &mut G::Env, va: u64, len: u64, write: bool) -> Result<(), Exception> {
    // SAFETY: the environment is bound; the reference is gone when this returns.
    let mmu = unsafe { &runtime::<G>(env).mmu };
    let hit = |w: &Watch| w.kind.covers(write) && w.overlaps(va, len);
    if mmu.running == Running::Block && mmu.watches.list.iter().any(hit) {
        return Err(Exception { vector: RETRY_VECTOR, error: None, address: va });
    }
    Ok(())
}

/// Watches a range. Several may overlap; a pair of owner and tag names one (an older one is replaced).
pub fn add_watch<G: Guest>(env: &mut G::Env, watch: Watch) {
    remove_watch::<G>(env, watch.owner, watch.tag);
    // SAFETY: the environment is bound; no reference to its runtime is in use.
    let rt = unsafe { runtime::<G>(env) };
    rt.mmu.watches.list.push(watch);
    super::flush_all::<G>(env);
}

/// Ends a watch; whether there was one. Hits that were not taken stay.
pub fn remove_watch<G: Guest>(env: &mut G::Env, owner: WatchOwner, tag: u32) -> bool {
    // SAFETY: the environment is bound; no reference to its runtime is in use.
    let list = unsafe { &mut runtime::<G>(env).mmu.watches.list };
    let before = list.len();
    list.retain(|w| (w.owner, w.tag) != (owner, tag));
    // Pages that lose their last watch are filled with tags again when the slow path next sees them.
    list.len() != before
}

/// All watches.
pub fn watches<G: Guest>(env: &mut G::Env) -> Vec<Watch> {
    // SAFETY: the environment is bound; the reference is gone when this returns.
    unsafe { runtime::<G>(env) }.mmu.watches.list.clone()
}

/// Whether an owner's watches were hit since it last took the hits. Cheap.
#[inline]
pub fn has_watch_hits<G: Guest>(env: &mut G::Env, owner: WatchOwner) -> bool {
    // SAFETY: the environment is bound; the reference is gone when this returns.
    let hits = unsafe { &runtime::<G>(env).mmu.watches.hits };
    !hits.is_empty() && hits.iter().any(|(o, _)| *o == owner)
}

/// Takes the hits of an owner's watches, in the order in which they came.
pub fn take_watch_hits<G: Guest>(env: &mut G::Env, owner: WatchOwner) -> Vec<WatchHit> {
    // SAFETY: the environment is bound; the reference is gone when this returns.
    let hits = unsafe { &mut runtime::<G>(env).mmu.watches.hits };
    if hits.is_empty() {
        return Vec::new();
    }
    let taken = hits.iter().filter(|(o, _)| *o == owner).map(|(_, hit)| *hit).collect();
    hits.retain(|(o, _)| *o != owner);
    taken
}

/// Forgets what the guest's own watches have seen: the instruction that hit them does not complete. A debugger still wants to
/// know, as the access was made.
pub fn drop_watch_hits<G: Guest>(env: &mut G::Env) {
    // SAFETY: the environment is bound; the reference is gone when this returns.
    let hits = unsafe { &mut runtime::<G>(env).mmu.watches.hits };
    hits.retain(|(owner, _)| *owner != WatchOwner::Guest);
}

/// Sees to it that the instruction runs alone: for a helper that, once it has begun, cannot be given up. Called before it has
/// any effect; in a block it raises [`RETRY_VECTOR`], and nothing later in the instruction does.
pub fn require_alone<G: Guest>(env: &mut G::Env) -> Result<(), Exception> {
    // SAFETY: the environment is bound; the reference is gone when this returns.
    match unsafe { runtime::<G>(env) }.mmu.running {
        Running::Block => Err(Exception { vector: RETRY_VECTOR, error: None, address: 0 }),
        Running::Nothing | Running::Once => Ok(()),
    }
}

/// Whether one instruction runs alone, perhaps after a first try in a block that had to be given up.
pub fn runs_alone<G: Guest>(env: &mut G::Env) -> bool {
    // SAFETY: the environment is bound; the reference is gone when this returns.
    unsafe { runtime::<G>(env) }.mmu.running == Running::Once
}

#[cfg(test)]
mod tests {
    use super::super::{host_bytes, load, load_bytes, store, store_bytes};
    use super::*;
    use crate::code_cache::MIN_MIB;
    use crate::exec::Context;
    use crate::exec::toy::{Toy, ToyEnv, ToyMemory};
    use crate::guest::Access;
    use WatchOwner::{Debugger, Guest as Own};

    fn context() -> Context<Toy> {
        let mut c: Context<Toy> = Context::new(ToyEnv::new(), ToyMemory::new(), MIN_MIB).unwrap();
        c.env_mut().map(1, 0x4000, 0x4000);
        c.env_mut().map(1, 0x5000, 0x5000);
        c
    }

    fn watch(owner: WatchOwner, tag: u32, first: u64, last: u64, kind: WatchKind) -> Watch {
        Watch { owner, tag, first, last, kind }
    }

    fn hits(c: &mut Context<Toy>, owner: WatchOwner) -> Vec<(u32, u64, u64, bool)> {
        let found = has_watch_hits::<Toy>(c.env_mut(), owner);
        let hits = take_watch_hits::<Toy>(c.env_mut(), owner);
        assert_eq!(found, !hits.is_empty());
        hits.into_iter().map(|h| (h.tag, h.address, h.len, h.write)).collect()
    }

    #[test]
    fn accesses_hit_what_they_overlap() {
        let mut c = context();
        // The pages are in the first level when the watches come.
        load::<Toy>(c.env_mut(), 0x4000, 8, 0).unwrap();
        store::<Toy>(c.env_mut(), 0x5000, 8, 1, 0).unwrap();
        add_watch::<Toy>(c.env_mut(), watch(Own, 1, 0x4ffe, 0x5001, WatchKind::Write));
        add_watch::<Toy>(c.env_mut(), watch(Debugger, 7, 0x5001, 0x5001, WatchKind::ReadWrite));
        assert_eq!(watches::<Toy>(c.env_mut()).len(), 2);
        load::<Toy>(c.env_mut(), 0x4ffe, 4, 0).unwrap();
        assert_eq!(hits(&mut c, Own), []);
        assert_eq!(hits(&mut c, Debugger), [(7, 0x4ffe, 4, false)]);
        for (va, own, debugger) in
            [(0x4ffa, 0, 0), (0x4ffb, 1, 0), (0x4ffe, 1, 1), (0x5001, 1, 1), (0x5002, 0, 0)]
        {
            store::<Toy>(c.env_mut(), va, 4, 9, 0).unwrap();
            assert_eq!((hits(&mut c, Own).len(), hits(&mut c, Debugger).len()), (own, debugger), "{va:x}");
        }
        // One hit of each watch and direction, the first one.
        store_bytes::<Toy>(c.env_mut(), 0x4f00, &[1; 0x200], 0).unwrap();
        store::<Toy>(c.env_mut(), 0x5000, 1, 9, 0).unwrap();
        assert_eq!(hits(&mut c, Own), [(1, 0x4f00, 0x200, true)]);
        // What is not done does not count.
        hits(&mut c, Debugger);
        assert!(store::<Toy>(c.env_mut(), 0x5ffe, 4, 0, 0).is_err());
        assert!(load_bytes::<Toy>(c.env_mut(), 0x5000, &mut [0; 0x2000], 0).is_err());
        assert_eq!((hits(&mut c, Own), hits(&mut c, Debugger)), (vec![], vec![]));
    }

    #[test]
    fn watched_pages_are_not_accessed_directly_until_the_watch_is_gone() {
        let mut c = context();
        let direct = |c: &mut Context<Toy>, access| {
            host_bytes::<Toy>(c.env_mut(), 0x4800, access, 0).unwrap().is_some()
        };
        add_watch::<Toy>(c.env_mut(), watch(Own, 0, 0x4000, 0x4000, WatchKind::Write));
        assert!(direct(&mut c, Access::Read) && !direct(&mut c, Access::Write));
        // Replaced: one of an owner and tag.
        add_watch::<Toy>(c.env_mut(), watch(Own, 0, 0x4000, 0x4000, WatchKind::Read));
        assert!(!direct(&mut c, Access::Read));
        assert!(!remove_watch::<Toy>(c.env_mut(), Debugger, 0));
        assert!(remove_watch::<Toy>(c.env_mut(), Own, 0));
        assert!(direct(&mut c, Access::Read) && direct(&mut c, Access::Write));
        store::<Toy>(c.env_mut(), 0x4000, 8, 1, 0).unwrap();
        assert_eq!(hits(&mut c, Own), []);
    }

    #[test]
    fn ranges_at_the_end_of_the_address_space() {
        let w = watch(Own, 0, u64::MAX - 1, u64::MAX, WatchKind::Write);
        assert!(w.overlaps(u64::MAX, 1) && w.overlaps(u64::MAX - 3, 3) && w.overlaps(u64::MAX - 7, 16));
        assert!(!w.overlaps(0, 8) && !w.overlaps(u64::MAX - 3, 2));
        let w = watch(Own, 0, 0, 0, WatchKind::Write);
        assert!(w.overlaps(u64::MAX, 2) && !w.overlaps(u64::MAX, 1));
    }

    #[test]
    fn a_guest_drops_only_its_own_hits() {
        let mut c = context();
        add_watch::<Toy>(c.env_mut(), watch(Own, 0, 0x4000, 0x4007, WatchKind::Write));
        add_watch::<Toy>(c.env_mut(), watch(Debugger, 0, 0x4000, 0x4007, WatchKind::Write));
        store::<Toy>(c.env_mut(), 0x4000, 1, 0, 0).unwrap();
        drop_watch_hits::<Toy>(c.env_mut());
        assert_eq!((hits(&mut c, Own).len(), hits(&mut c, Debugger).len()), (0, 1));
    }
}
