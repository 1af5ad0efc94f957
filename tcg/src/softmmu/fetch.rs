//! Fetching code: a TLB for instruction pages, and the names that make jump cache entries valid.
//!
//! Problem: the jump cache and chained jumps reach a block by its virtual address alone, without a walk. They are right
//! as long as the address space, the block mode and the mapping of the block's pages are those under which the entry was
//! made.
//!
//! Strategy: each combination of a space's *code id* and a block mode gets an epoch, a 16-bit number that is part of
//! every tag ([`JumpEntry`]). As long as all code that a space runs in a mode is in global pages (a kernel's, mostly), the
//! combination has no epoch of its own but one that all such spaces share: switching between them keeps the jump cache
//! warm. A space gets a new code id when a mapping goes that a jump may rely on. Which ones may is
//! told by a filter of pages that were ever fetched from since the filter was cleared; it may say yes wrongly, which
//! costs a refill of the jump cache, never no. Flushing a data page renames nothing.
//!
//! Invariants:
//! - Under a shared epoch there are only entries for blocks in global pages.
//! - A page in the TLB is in the filter, so a jump cache entry, which is made after a lookup here, is covered.
//! - An epoch is issued once until they wrap around; then the jump cache is cleared. Their number depends on how many bits
//!   addresses have ([`JumpEntry`] says why); when that changes, they start anew.

use std::hash::{BuildHasher, RandomState};

use super::{MMU_MODES, MmuState, page_of};
use crate::env::{JumpEntry, Runtime};
use crate::guest::{Access, Exception, Guest};
use crate::memory::PAGE_MASK;

/// Entries of the fetch TLB; a power of two.
const ENTRIES: usize = 512;
/// 64-bit words of the filter.
const FILTER_WORDS: usize = 1024;
/// Pages noted in the filter when it is cleared: an eighth of its bits.
const FILTER_LIMIT: u32 = FILTER_WORDS as u32 * 64 / 8;
/// Combinations whose epochs are remembered; a power of two.
const NAMES: usize = 128;
/// Epochs are 1 to this; see [`JumpEntry`].
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
    epoch: u64,
}

pub(crate) struct FetchTlb {
    entries: Box<[Entry]>,
    filter: Box<[u64]>,
    noted: u32,
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

fn filter_bit(va: u64, bits: u32, asid: u64) -> (usize, u64) {
    let h =
        ((va >> bits) ^ asid.rotate_right(20) ^ u64::from(bits) << 52).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let h = (h >> 48) as usize;
    (h / 64, 1 << (h % 64))
}

impl FetchTlb {
    pub fn new() -> FetchTlb {
        FetchTlb {
            entries: vec![EMPTY; ENTRIES].into_boxed_slice(),
            filter: vec![0; FILTER_WORDS].into_boxed_slice(),
            noted: 0,
            names: [Name { code_id: 0, mode: 0, epoch: 0 }; NAMES],
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

    fn insert(&mut self, page: u64, mmu: u8, asid: u64, phys: u64, bits: u32) {
        self.note(page, 12, asid);
        if bits > 12 {
            self.note(page, bits, asid);
        }
        self.entries[index(page, mmu, asid)] = Entry { tag: page | u64::from(mmu), asid, phys };
    }

    fn note(&mut self, va: u64, bits: u32, asid: u64) {
        let (word, bit) = filter_bit(va, bits, asid);
        self.noted += u32::from(self.filter[word] & bit == 0);
        self.filter[word] |= bit;
    }

    fn noted(&self, va: u64, bits: u32, asid: u64) -> bool {
        let (word, bit) = filter_bit(va, bits, asid);
        self.filter[word] & bit != 0
    }

    /// Drops a page of the space `asid` and of all spaces, and the large pages around it whose sizes are given as a
    /// bit mask of their log2.
    pub(super) fn drop_page(&mut self, va: u64, sizes: u64, asid: u64, global_asid: u64) -> Found {
        let page = page_of(va);
        let mut found = Found::default();
        for bits in (12..64).filter(|b| (sizes | 1 << 12) >> b & 1 != 0) {
            let of = Found { local: self.noted(va, bits, asid), global: self.noted(va, bits, global_asid) };
            if !of.local && !of.global {
                continue;
            }
            found = Found { local: found.local | of.local, global: found.global | of.global };
            if bits == 12 {
                for mmu in 0..MMU_MODES as u8 {
                    for asid in [asid, global_asid] {
                        let e = &mut self.entries[index(page, mmu, asid)];
                        if page_of(e.tag) == page && e.asid == asid {
                            *e = EMPTY;
                        }
                    }
                }
            } else {
                for e in &mut self.entries {
                    if e.tag >> bits == va >> bits && (e.asid == asid || e.asid == global_asid) {
                        *e = EMPTY;
                    }
                }
            }
        }
        found
    }

    fn slot(code_id: u64, mode: u64) -> usize {
        let h = (code_id ^ mode.rotate_left(32)).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 57;
        h as usize % NAMES
    }

    /// The epoch of a combination, if it has one.
    fn known(&self, code_id: u64, mode: u64) -> Option<u64> {
        let name = self.names[Self::slot(code_id, mode)];
        (name.epoch != 0 && name.code_id == code_id && name.mode == mode).then_some(name.epoch)
    }

    /// The epoch of a combination; the flag says that the jump cache must be cleared first.
    fn epoch(&mut self, code_id: u64, mode: u64) -> (u64, bool) {
        if let Some(epoch) = self.known(code_id, mode) {
            return (epoch, false);
        }
        let wrapped = self.last_epoch == if self.wide { LAST_WIDE_EPOCH } else { LAST_EPOCH };
        if wrapped {
            self.names.fill(Name { code_id: 0, mode: 0, epoch: 0 });
            self.last_epoch = 0;
        }
        self.last_epoch += 1;
        self.names[Self::slot(code_id, mode)] = Name { code_id, mode, epoch: self.last_epoch };
        (self.last_epoch, wrapped)
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
        self.names.fill(Name { code_id: 0, mode: 0, epoch: 0 });
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
    fetch.shared = !local && fetch.known(own, mode).is_none();
    let code_id = if fetch.shared { spaces.global_code_id() } else { own };
    let (epoch, wrapped) = fetch.epoch(code_id, mode);
    if wrapped {
        rt.jump_cache.fill(JumpEntry::EMPTY);
    }
    fetch.tag(epoch)
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
    if fetch.noted > FILTER_LIMIT {
        fetch.filter.fill(0);
        fetch.noted = 0;
        fetch.entries.fill(EMPTY);
        fetch.renamed = true;
        spaces.rename_code(None);
    }
    let asid = if mapping.global { spaces.global_asid() } else { spaces.current().asid };
    if bits > 12 {
        spaces.note_large(va, bits, mapping.global);
    }
    fetch.insert(page_of(va), mmu, asid, phys, bits);
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
        let (first, wrapped) = f.epoch(7, 1);
        assert_eq!((first, wrapped), (1, false));
        assert_eq!(f.epoch(7, 1), (1, false));
        let mut seen = 1;
        for n in 0..LAST_EPOCH - 1 {
            let (e, wrapped) = f.epoch(1000 + n, 0);
            assert!(!wrapped);
            seen += 1;
            assert_eq!(e, seen);
        }
        assert_eq!(f.epoch(1 << 40, 0), (1, true));
        assert!(f.last_epoch == 1);
    }

    #[test]
    fn dropping_a_page_says_who_may_have_jumped_to_it() {
        let mut f = FetchTlb::new();
        f.insert(0x5000, 1, 10, 0x9000, 12);
        f.insert(0xffff_8000_0000_0000, 0, 1, 0x20_0000, 21);
        assert_eq!(f.get(0x5000, 1, 10, 1), Some(Fetched { phys: 0x9000, global: false }));
        assert_eq!(f.get(0x5000, 1, 11, 1), None);
        assert_eq!(f.get(0x5000, 0, 10, 1), None);
        let global = Fetched { phys: 0x20_0000, global: true };
        assert_eq!(f.get(0xffff_8000_0000_0000, 0, 77, 1), Some(global));
        assert_eq!(f.drop_page(0x6000, 0, 10, 1), Found::default());
        assert_eq!(f.drop_page(0x5000, 0, 11, 1), Found::default());
        assert_eq!(f.get(0x5000, 1, 10, 1), Some(Fetched { phys: 0x9000, global: false }));
        assert_eq!(f.drop_page(0x5123, 0, 10, 1), Found { local: true, global: false });
        assert_eq!(f.get(0x5000, 1, 10, 1), None);
        let elsewhere = 0xffff_8000_0010_0000;
        assert_eq!(f.drop_page(elsewhere, 1 << 21, 10, 1), Found { local: false, global: true });
        assert_eq!(f.get(0xffff_8000_0000_0000, 0, 77, 1), None);
    }
}
