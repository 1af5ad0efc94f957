//! Fetching code: a TLB for instruction pages, and the names that make jump cache entries valid.
//!
//! Problem: the jump cache and chained jumps reach a block by its virtual address alone, without a walk. They are right
//! as long as the address space, the block mode and the mapping of the block's pages are those under which the entry was
//! made.
//!
//! Strategy: each combination of a space's *code id* and a block mode gets an epoch, a 16-bit number that is part of
//! every tag ([`JumpEntry`](crate::jump_cache::JumpEntry)). As long as all code that a space runs in a mode is in global pages (a kernel's, mostly), the
//! combination has no epoch of its own but one that all such spaces share: switching between them keeps the jump cache
//! warm. A space gets a new code id when a mapping goes that a jump may rely on. Which ones may is
//! told by filters of the pages that were ever fetched from, one a space and one for global pages (`page_filter`). They may
//! say yes wrongly, which costs a renewal of what the jump cache has, never no. Flushing a data page renames nothing.
//!
//! Invariants:
//! - Under a shared epoch there are only entries for blocks in global pages.
//! - A page in the TLB is in the filter of its space or of global pages, so a jump cache entry, which is made after a
//!   lookup here, is covered.
//! - An epoch is issued once until they wrap around; then the jump cache is cleared. Their number depends on how many bits
//!   addresses have (see there); when that changes, they start anew.

use std::hash::{BuildHasher, RandomState};

use super::{MMU_MODES, MmuState, Spaces, page_of};
use crate::env::Runtime;
use crate::guest::{Access, Exception, Guest};
use crate::memory::PAGE_MASK;

/// Entries of the fetch TLB; a power of two.
const ENTRIES: usize = 512;
/// Combinations whose epochs are remembered; a power of two.
const NAMES: usize = 128;
/// Epochs are 1 to this; see [`JumpEntry`](crate::jump_cache::JumpEntry).
const LAST_EPOCH: u64 = 0x7ffd;
/// The same where addresses have more than 48 bits.
const LAST_WIDE_EPOCH: u64 = 0x7e;

#[derive(Clone, Copy)]
struct Entry {
    /// Guest-virtual page address and MMU mode.
    tag: u64,
    asid: u64,
    /// Guest-physical page address.
    phys: u64,
}

/// Where code is fetched from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Fetched {
    /// Guest-physical address.
    pub phys: u64,
    /// The mapping belongs to every address space.
    pub global: bool,
}

const EMPTY: Entry = Entry { tag: u64::MAX, asid: 0, phys: 0 };

#[derive(Clone, Copy)]
struct Name {
    code_id: u64,
    mode: u64,
    /// 0: no combination.
    epoch: u64,
    /// The jump tag of the epoch.
    tag: u64,
}

const NO_NAME: Name = Name { code_id: 0, mode: 0, epoch: 0, tag: 0 };

pub(crate) struct FetchTlb {
    entries: Box<[Entry]>,
    names: [Name; NAMES],
    last_epoch: u64,
    /// Addresses have more than 48 bits.
    wide: bool,
    /// For the secret part of jump tags.
    secret: RandomState,
    /// All combinations were renamed since [`jump_tag`] was last asked: the tag in the header is stale.
    renamed: bool,
    /// The tag in the header has a shared epoch.
    shared: bool,
    /// Block mode that the tag in the header is for.
    pub(super) mode: Option<u64>,
}

/// What a flush of a page found.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub(super) struct Found {
    /// Jumps of this space may rely on the page.
    pub local: bool,
    /// Jumps of every space may.
    pub global: bool,
}

fn index(page: u64, mmu: u8, asid: u64) -> usize {
    let spread = asid.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 55;
    ((page >> 12) ^ u64::from(mmu) << 7 ^ spread) as usize % ENTRIES
}

impl FetchTlb {
    pub fn new() -> FetchTlb {
        FetchTlb {
            entries: vec![EMPTY; ENTRIES].into_boxed_slice(),
            names: [NO_NAME; NAMES],
            last_epoch: 0,
            wide: false,
            secret: RandomState::new(),
            renamed: false,
            shared: false,
            mode: None,
        }
    }

    /// Whether the jump tag in the header is stale, or for another mode.
    #[inline]
    pub fn stale(&self, mode: u64) -> bool {
        self.renamed || self.mode != Some(mode)
    }

    /// Whether only blocks in global pages may be entered under the jump tag in the header.
    #[inline]
    pub fn shared(&self) -> bool {
        self.shared
    }

    #[inline]
    fn get(&self, page: u64, mmu: u8, asid: u64, global_asid: u64) -> Option<Fetched> {
        for asid in [asid, global_asid] {
            let e = &self.entries[index(page, mmu, asid)];
            if e.tag == page | u64::from(mmu) && e.asid == asid {
                return Some(Fetched { phys: e.phys, global: asid == global_asid });
            }
        }
        None
    }

    fn insert(&mut self, page: u64, mmu: u8, asid: u64, phys: u64) {
        self.entries[index(page, mmu, asid)] = Entry { tag: page | u64::from(mmu), asid, phys };
    }

    /// Drops all pages of a space, or all that are global.
    fn drop_space(&mut self, asid: u64) {
        for e in self.entries.iter_mut().filter(|e| e.asid == asid) {
            *e = EMPTY;
        }
    }

    /// Drops the page of `1 << bits` bytes that contains `va`, if it is of one of two spaces.
    fn drop_page(&mut self, va: u64, bits: u32, asids: [u64; 2]) {
        let page = page_of(va);
        if bits > 12 {
            for e in &mut self.entries {
                if e.tag >> bits == va >> bits && asids.contains(&e.asid) {
                    *e = EMPTY;
                }
            }
            return;
        }
        for mmu in 0..MMU_MODES as u8 {
            for asid in asids {
                let e = &mut self.entries[index(page, mmu, asid)];
                if page_of(e.tag) == page && e.asid == asid {
                    *e = EMPTY;
                }
            }
        }
    }

    fn slot(code_id: u64, mode: u64) -> usize {
        let h = (code_id ^ mode.rotate_left(32)).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 57;
        h as usize % NAMES
    }

    /// The jump tag of a combination, if it has an epoch.
    #[inline]
    fn known(&self, code_id: u64, mode: u64) -> Option<u64> {
        let name = &self.names[Self::slot(code_id, mode)];
        (name.epoch != 0 && name.code_id == code_id && name.mode == mode).then_some(name.tag)
    }

    /// Gives a combination a new epoch; its jump tag. The flag says that the jump cache must be cleared first.
    #[cold]
    fn issue(&mut self, code_id: u64, mode: u64) -> (u64, bool) {
        let wrapped = self.last_epoch == if self.wide { LAST_WIDE_EPOCH } else { LAST_EPOCH };
        if wrapped {
            self.names.fill(NO_NAME);
            self.last_epoch = 0;
        }
        self.last_epoch += 1;
        let (epoch, tag) = (self.last_epoch, self.tag(self.last_epoch));
        self.names[Self::slot(code_id, mode)] = Name { code_id, mode, epoch, tag };
        (tag, wrapped)
    }

    /// The jump tag of an epoch.
    fn tag(&self, epoch: u64) -> u64 {
        let shift = if self.wide { 56 } else { 48 };
        let secret = self.secret.hash_one(epoch) & ((1 << shift) - 1);
        epoch << shift | if self.wide { secret } else { secret & !(1 << 47) }
    }

    /// Takes note of whether addresses have more than 48 bits; the answer says that the jump cache must be cleared.
    pub(super) fn set_wide(&mut self, wide: bool) -> bool {
        if self.wide == wide {
            return false;
        }
        self.wide = wide;
        self.names.fill(NO_NAME);
        self.last_epoch = 0;
        self.renamed = true;
        true
    }
}

/// The jump tag of the current space and `mode`; `local` if code in pages that are not global is to be entered under it.
pub(crate) fn jump_tag(rt: &mut Runtime, mode: u64, local: bool) -> u64 {
    let MmuState { spaces, fetch, .. } = &mut rt.mmu;
    let own = spaces.current().code_id;
    fetch.renamed = false;
    fetch.mode = Some(mode);
    let of_own = fetch.known(own, mode);
    fetch.shared = !local && of_own.is_none();
    let code_id = if fetch.shared { spaces.global_code_id() } else { own };
    let known = if fetch.shared { fetch.known(code_id, mode) } else { of_own };
    if let Some(tag) = known {
        return tag;
    }
    let (tag, wrapped) = fetch.issue(code_id, mode);
    if wrapped {
        rt.jump_cache.clear();
    }
    tag
}

/// Drops the page that contains `va` of the space in `slot`, if any, and of all spaces, and the large pages around it whose
/// sizes are given as a bit mask of their log2. Whether jumps may rely on them is the answer.
pub(super) fn drop_page(
    spaces: &Spaces,
    fetch: &mut FetchTlb,
    slot: Option<usize>,
    va: u64,
    sizes: u64,
) -> Found {
    let global_asid = spaces.global_asid();
    let asids = [slot.map_or(global_asid, |s| spaces.asid_of(s)), global_asid];
    let mut found = Found::default();
    for bits in super::set_bits(sizes | 1 << 12) {
        let local = slot.is_some_and(|s| spaces.fetched(Some(s)).may_have(va, bits));
        let global = spaces.fetched(None).may_have(va, bits);
        if local || global {
            found = Found { local: found.local || local, global: found.global || global };
            fetch.drop_page(va, bits, asids);
        }
    }
    found
}

/// Guest-physical address that code at `va` is fetched from. `rt` is the runtime of `env`.
#[inline]
pub(crate) fn fetch_page<G: Guest>(env: &G::Env, rt: &mut Runtime, va: u64) -> Result<Fetched, Exception> {
    let mmu = G::fetch_mmu(env);
    let spaces = &rt.mmu.spaces;
    match rt.mmu.fetch.get(page_of(va), mmu, spaces.current().asid, spaces.global_asid()) {
        Some(page) => Ok(Fetched { phys: page.phys | va & PAGE_MASK, ..page }),
        None => walk::<G>(env, rt, va, mmu),
    }
}

#[cold]
fn walk<G: Guest>(env: &G::Env, rt: &mut Runtime, va: u64, mmu: u8) -> Result<Fetched, Exception> {
    rt.mmu.stats.fetch_walks += 1;
    let mapping = G::walk(env, &rt.mmu.memory, va, Access::Execute, mmu);
    note_changes::<G>(env, rt);
    let mapping = mapping?;
    let bits = u32::from(mapping.page_bits).clamp(12, 63);
    let phys = page_of(mapping.phys);
    tracing::trace!(target: "mmu", "fetch {va:#x} mode {mmu} -> {phys:#x}");
    let MmuState { spaces, fetch, .. } = &mut rt.mmu;
    let (asid, slot) = match mapping.global {
        true => (spaces.global_asid(), None),
        false => (spaces.current().asid, Some(spaces.current_slot())),
    };
    if spaces.fetched(slot).is_full() {
        spaces.fetched_mut(slot).clear();
        fetch.drop_space(asid);
        fetch.renamed = true;
        spaces.rename_code(slot);
    }
    spaces.fetched_mut(slot).note(va, 12);
    if bits > 12 {
        spaces.fetched_mut(slot).note(va, bits);
        spaces.note_large(va, bits, mapping.global);
    }
    fetch.insert(page_of(va), mmu, asid, phys);
    Ok(Fetched { phys: phys | va & PAGE_MASK, global: mapping.global })
}

/// After a walk: blocks that were made from entries that it changed go. A block that runs goes on, as on a processor that has
/// fetched ahead.
#[inline]
pub(super) fn note_changes<G: Guest>(env: &G::Env, rt: &mut Runtime) {
    while let Some(phys) = G::changed_entry(env) {
        if rt.blocks.has_code(page_of(phys)) {
            rt.blocks.invalidate(phys & !7, 8, &mut rt.jump_cache);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::env::JUMP_TAG_NONE;
    use crate::jump_cache::JumpEntry;

    /// All pairs of tags that two epochs and two canonical addresses make.
    #[test]
    fn canonical_addresses_of_different_epochs_never_meet() {
        for wide in [false, true] {
            let mut f = FetchTlb::new();
            f.set_wide(wide);
            let bits = if wide { 57 } else { 48 };
            let last = if wide { LAST_WIDE_EPOCH } else { LAST_EPOCH };
            let unused = 64 - bits;
            // Whether some two canonical addresses differ by this.
            let difference = |d: u64| (d as i64) << unused >> unused == d as i64;
            let epochs: Vec<u64> = (1..=last).step_by(if wide { 1 } else { 61 }).chain([last]).collect();
            let tags: Vec<u64> = epochs.iter().map(|&e| f.tag(e)).collect();
            for (n, a) in tags.iter().enumerate() {
                assert!(!difference(a ^ JumpEntry::EMPTY.tag), "{a:x}");
                assert!(!difference(a ^ JUMP_TAG_NONE), "{a:x}");
                for b in &tags[..n] {
                    assert!(a == b || !difference(a ^ b), "{a:x} {b:x}");
                }
            }
            assert!(!difference(JUMP_TAG_NONE ^ JumpEntry::EMPTY.tag));
            assert!(tags.iter().any(|t| t & 0x7fff_ffff != 0), "there is a secret part");
        }
    }

    #[test]
    fn epochs_are_issued_once_and_wrap_with_a_clear() {
        let mut f = FetchTlb::new();
        let (first, wrapped) = f.issue(7, 1);
        assert_eq!((f.tag(1), false), (first, wrapped));
        assert_eq!((f.known(7, 1), f.known(7, 2), f.known(8, 1)), (Some(first), None, None));
        for epoch in 2..=LAST_EPOCH {
            assert_eq!(f.issue(1000 + epoch, 0), (f.tag(epoch), false));
        }
        assert_eq!(f.issue(1 << 40, 0), (f.tag(1), true));
        assert_eq!((f.known(1000 + LAST_EPOCH, 0), f.known(1 << 40, 0)), (None, Some(f.tag(1))));
    }

    #[test]
    fn dropping_a_page_says_who_may_have_jumped_to_it() {
        const KERNEL: u64 = 0xffff_8000_0000_0000;
        let (mut f, mut spaces) = (FetchTlb::new(), Spaces::new());
        let (own, other, global_asid) = (spaces.asid_of(3), spaces.asid_of(4), spaces.global_asid());
        spaces.fetched_mut(Some(3)).note(0x5000, 12);
        f.insert(0x5000, 1, own, 0x9000);
        spaces.fetched_mut(None).note(KERNEL, 12);
        spaces.fetched_mut(None).note(KERNEL, 21);
        f.insert(KERNEL, 0, global_asid, 0x20_0000);
        let local = Some(Fetched { phys: 0x9000, global: false });
        let global = Some(Fetched { phys: 0x20_0000, global: true });
        assert_eq!(f.get(0x5000, 1, own, global_asid), local);
        assert_eq!(f.get(0x5000, 1, other, global_asid), None);
        assert_eq!(f.get(0x5000, 0, own, global_asid), None);
        assert_eq!(f.get(KERNEL, 0, other, global_asid), global);
        assert_eq!(drop_page(&spaces, &mut f, Some(3), 0x6000, 0), Found::default());
        assert_eq!(drop_page(&spaces, &mut f, Some(4), 0x5000, 0), Found::default());
        assert_eq!(drop_page(&spaces, &mut f, None, 0x5000, 0), Found::default());
        assert_eq!(f.get(0x5000, 1, own, global_asid), local);
        let found = drop_page(&spaces, &mut f, Some(3), 0x5123, 0);
        assert_eq!(found, Found { local: true, global: false });
        assert_eq!(f.get(0x5000, 1, own, global_asid), None);
        let found = drop_page(&spaces, &mut f, None, KERNEL + 0x10_0000, 1 << 21);
        assert_eq!(found, Found { local: false, global: true });
        assert_eq!(f.get(KERNEL, 0, other, global_asid), None);
    }

    #[test]
    fn a_space_that_goes_leaves_the_others() {
        let mut f = FetchTlb::new();
        f.insert(0x5000, 1, 10, 0x9000);
        f.insert(0x5000, 1, 11, 0xa000);
        f.drop_space(10);
        assert_eq!(f.get(0x5000, 1, 10, 1), None);
        assert_eq!(f.get(0x5000, 1, 11, 1), Some(Fetched { phys: 0xa000, global: false }));
    }
}
