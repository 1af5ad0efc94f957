//! System-management mode: SMI, the state save area, RSM (SDM volume 3, chapter 34; AMD64 manual volume 2, chapter 10).
//!
//! An SMI saves the processor's state at SMBASE + FE00h and starts at SMBASE + 8000h in a mode like real mode with 4 GiB
//! segments; RSM restores what it finds there, which may be changed: SMBASE among it.
//!
//! Choices:
//! - *Layout.* Processors with long mode use AMD's 64-bit layout (revision 20064h), which is documented and the one that
//!   firmware for virtual machines knows; others the 32-bit layout of Intel's (revision 20000h), whose reserved part
//!   holds the hidden state ([`Legacy`]). Intel's own 64-bit layout is not used: its place for hidden state is not documented.
//! - I/O instruction restart is not claimed (bit 16 of the revision); the field is zero and RSM does not look at it.
//!   SMBASE relocation is (bit 17).
//! - SMIs, INITs and the A20 gate wait for RSM. NMIs are blocked on entry; IRET unblocks them in the handler, and RSM blocks
//!   them again if they were before the SMI.
//! - What RSM finds and no processor could have saved (bits that do not exist, paging without protection) is a shutdown.
//!
//! Whoever owns the memory hides SMRAM outside of this mode: [`Platform::smm_changed`] tells it.
//!
//! [`Platform::smm_changed`]: crate::platform::Platform::smm_changed

use tessera_tcg::softmmu;

use super::interrupt::request_exit;
use super::{Result, control, debug, io};
use crate::cpuid::Feature;
use crate::guest::X86;
use crate::mmu::{self, Paging};
use crate::state::{Cr0, Cr4, Efer, RFlags, Segment, TableRegister, X86Env, mmu_mode, seg};

/// SMBASE after reset.
pub const SMBASE_RESET: u64 = 0x3_0000;
/// Offset of the handler from SMBASE.
const ENTRY: u64 = 0x8000;
/// Offset of the save area from SMBASE.
const SAVE_AREA: u64 = 0xfe00;
/// Bytes of the save area.
const SIZE: usize = 512;

/// The save area; offsets are those of the manuals, from SMBASE + FE00h (or 8000h + 7E00h) on.
struct Area([u8; SIZE]);

impl Area {
    fn put(&mut self, at: usize, len: usize, value: u64) {
        self.0[at..at + len].copy_from_slice(&value.to_le_bytes()[..len]);
    }

    fn get(&self, at: usize, len: usize) -> u64 {
        let mut word = [0; 8];
        word[..len].copy_from_slice(&self.0[at..at + len]);
        u64::from_le_bytes(word)
    }
}

/// What is restored, in one piece to be checked before any of it becomes current.
struct Saved {
    gpr: [u64; 16],
    ip: u64,
    flags: u64,
    cr0: u64,
    cr3: u64,
    cr4: u64,
    efer: u64,
    dr6: u64,
    dr7: u64,
    segments: [Segment; 8],
    gdtr: TableRegister,
    idtr: TableRegister,
    smbase: u64,
    halted: bool,
}

impl Saved {
    fn of(env: &X86Env) -> Saved {
        Saved {
            gpr: env.gpr,
            ip: env.ip(),
            flags: env.rflags(),
            cr0: env.cr0.bits(),
            cr3: env.cr3,
            cr4: env.cr4.bits(),
            efer: env.efer.bits(),
            dr6: env.dr[6],
            dr7: env.dr[7],
            segments: env.seg,
            gdtr: env.gdtr,
            idtr: env.idtr,
            smbase: env.msr.smbase,
            halted: env.halted,
        }
    }
}

/// Offsets of the 64-bit layout (AMD64 manual volume 2, table 10-1), less FE00h.
mod long {
    /// Of each segment and table register: selector, attributes, limit, base.
    pub const ES: usize = 0x00;
    pub const GDTR: usize = 0x60;
    pub const LDTR: usize = 0x70;
    pub const IDTR: usize = 0x80;
    pub const TR: usize = 0x90;
    pub const AUTO_HALT: usize = 0xc9;
    pub const EFER: usize = 0xd0;
    pub const REVISION: usize = 0xfc;
    pub const SMBASE: usize = 0x100;
    pub const CR4: usize = 0x148;
    pub const CR3: usize = 0x150;
    pub const CR0: usize = 0x158;
    pub const DR7: usize = 0x160;
    pub const DR6: usize = 0x168;
    pub const RFLAGS: usize = 0x170;
    pub const RIP: usize = 0x178;
    /// R15 down to R8, RDI down to RAX.
    pub const R15: usize = 0x180;
    pub const VALUE: u64 = 0x2_0064;
}

/// Offsets of the 32-bit layout (SDM volume 3, table 34-1), less 7E00h. From `HIDDEN` on lies what the manual reserves, in an
/// order of our own: base, limit and rights of ES, CS, SS, DS, FS, GS, LDTR, TR (ten bytes each), bases of GDTR and IDTR,
/// their limits, CR4, IA32_EFER.
struct Legacy;

impl Legacy {
    const SMBASE: usize = 0xf8;
    const REVISION: usize = 0xfc;
    const AUTO_HALT: usize = 0x102;
    const HIDDEN: usize = 0x104;
    const TABLES: usize = Self::HIDDEN + 80;
    const CR4: usize = Self::TABLES + 12;
    const EFER: usize = Self::CR4 + 4;
    /// ES, CS, SS, DS, FS, GS, LDTR, TR.
    const SELECTORS: usize = 0x1a8;
    const DR7: usize = 0x1c8;
    const DR6: usize = 0x1cc;
    const EAX: usize = 0x1d0;
    const EIP: usize = 0x1f0;
    const EFLAGS: usize = 0x1f4;
    const CR3: usize = 0x1f8;
    const CR0: usize = 0x1fc;
    const VALUE: u64 = 0x2_0000;
}

/// Where the registers are in the 64-bit layout, in our numbering: ES to GS follow each other.
fn long_segment(n: usize) -> usize {
    match n {
        seg::LDTR => long::LDTR,
        seg::TR => long::TR,
        n => long::ES + 16 * n,
    }
}

fn save_long(s: &Saved, area: &mut Area) {
    for (n, segment) in s.segments.iter().enumerate() {
        let at = long_segment(n);
        area.put(at, 2, segment.selector as u64);
        // Attributes in 12 bits: G, D/B, L and AVL follow P.
        area.put(at + 2, 2, (segment.access & 0xff | segment.access >> 4 & 0xf00) as u64);
        area.put(at + 4, 4, segment.limit as u64);
        area.put(at + 8, 8, segment.base);
    }
    for (at, table) in [(long::GDTR, s.gdtr), (long::IDTR, s.idtr)] {
        area.put(at + 4, 2, table.limit as u64);
        area.put(at + 8, 8, table.base);
    }
    area.put(long::AUTO_HALT, 1, s.halted as u64);
    area.put(long::REVISION, 4, long::VALUE);
    area.put(long::SMBASE, 4, s.smbase);
    for (at, value) in [
        (long::EFER, s.efer),
        (long::CR4, s.cr4),
        (long::CR3, s.cr3),
        (long::CR0, s.cr0),
        (long::DR7, s.dr7),
        (long::DR6, s.dr6),
        (long::RFLAGS, s.flags),
        (long::RIP, s.ip),
    ] {
        area.put(at, 8, value);
    }
    for (n, value) in s.gpr.into_iter().enumerate() {
        area.put(long_gpr(n), 8, value);
    }
}

/// R15 to R8, then RDI, RSI, RBP, RSP, RBX, RDX, RCX, RAX: the reverse of the registers' numbers.
fn long_gpr(n: usize) -> usize {
    long::R15 + 8 * (15 - n)
}

fn load_long(area: &Area) -> Saved {
    let table = |at: usize| TableRegister { limit: area.get(at + 4, 2) as u16, base: area.get(at + 8, 8) };
    Saved {
        gpr: std::array::from_fn(|n| area.get(long_gpr(n), 8)),
        ip: area.get(long::RIP, 8),
        flags: area.get(long::RFLAGS, 8),
        cr0: area.get(long::CR0, 8),
        cr3: area.get(long::CR3, 8),
        cr4: area.get(long::CR4, 8),
        efer: area.get(long::EFER, 8),
        dr6: area.get(long::DR6, 8),
        dr7: area.get(long::DR7, 8),
        segments: std::array::from_fn(|n| {
            let at = long_segment(n);
            let attributes = area.get(at + 2, 2) as u16;
            Segment {
                selector: area.get(at, 2) as u16,
                access: attributes & 0xff | (attributes & 0xf00) << 4,
                limit: area.get(at + 4, 4) as u32,
                base: area.get(at + 8, 8),
            }
        }),
        gdtr: table(long::GDTR),
        idtr: table(long::IDTR),
        smbase: area.get(long::SMBASE, 4),
        halted: area.get(long::AUTO_HALT, 1) & 1 != 0,
    }
}

/// EAX, ECX, EDX, EBX, ESP, EBP, ESI, EDI in ascending order: that of their numbers.
fn save_legacy(s: &Saved, area: &mut Area) {
    for (n, segment) in s.segments.iter().enumerate() {
        area.put(Legacy::SELECTORS + 4 * n, 4, segment.selector as u64);
        let at = Legacy::HIDDEN + 10 * n;
        area.put(at, 4, segment.base);
        area.put(at + 4, 4, segment.limit as u64);
        area.put(at + 8, 2, segment.access as u64);
    }
    area.put(Legacy::TABLES, 4, s.gdtr.base);
    area.put(Legacy::TABLES + 4, 4, s.idtr.base);
    area.put(Legacy::TABLES + 8, 2, s.gdtr.limit as u64);
    area.put(Legacy::TABLES + 10, 2, s.idtr.limit as u64);
    area.put(Legacy::AUTO_HALT, 2, s.halted as u64);
    for (n, value) in s.gpr[..8].iter().enumerate() {
        area.put(Legacy::EAX + 4 * n, 4, *value);
    }
    for (at, value) in [
        (Legacy::SMBASE, s.smbase),
        (Legacy::REVISION, Legacy::VALUE),
        (Legacy::CR4, s.cr4),
        (Legacy::EFER, s.efer),
        (Legacy::DR7, s.dr7),
        (Legacy::DR6, s.dr6),
        (Legacy::EIP, s.ip),
        (Legacy::EFLAGS, s.flags),
        (Legacy::CR3, s.cr3),
        (Legacy::CR0, s.cr0),
    ] {
        area.put(at, 4, value);
    }
}

fn load_legacy(area: &Area) -> Saved {
    let word = |at: usize| area.get(at, 4);
    let table = |n: usize| TableRegister {
        base: word(Legacy::TABLES + 4 * n),
        limit: area.get(Legacy::TABLES + 8 + 2 * n, 2) as u16,
    };
    Saved {
        gpr: std::array::from_fn(|n| if n < 8 { word(Legacy::EAX + 4 * n) } else { 0 }),
        ip: word(Legacy::EIP),
        flags: word(Legacy::EFLAGS),
        cr0: word(Legacy::CR0),
        cr3: word(Legacy::CR3),
        cr4: word(Legacy::CR4),
        efer: word(Legacy::EFER),
        dr6: word(Legacy::DR6),
        dr7: word(Legacy::DR7),
        segments: std::array::from_fn(|n| {
            let at = Legacy::HIDDEN + 10 * n;
            Segment {
                selector: area.get(Legacy::SELECTORS + 4 * n, 2) as u16,
                base: word(at),
                limit: word(at + 4) as u32,
                access: area.get(at + 8, 2) as u16,
            }
        }),
        gdtr: table(0),
        idtr: table(1),
        smbase: word(Legacy::SMBASE),
        halted: area.get(Legacy::AUTO_HALT, 2) & 1 != 0,
    }
}

/// Whether this CPU uses the 64-bit layout.
fn is_long(env: &X86Env) -> bool {
    env.cpuid.has(Feature::LM)
}

/// Takes an SMI, between instructions: saves the state and goes to the handler.
pub fn enter(env: &mut X86Env) {
    tracing::debug!(target: "int", "SMI at {:016x}, SMBASE {:x}", env.rip, env.msr.smbase);
    let saved = Saved::of(env);
    let mut area = Area([0; SIZE]);
    if is_long(env) {
        save_long(&saved, &mut area);
    } else {
        save_legacy(&saved, &mut area);
    }
    env.smm = true;
    env.smm_nmi_blocked = env.nmi_blocked;
    env.nmi_blocked = true;
    env.halted = false;
    env.repeating = false;
    env.platform.smm_changed(true);

    env.set_rflags(0);
    env.cr0 -= Cr0::PE | Cr0::EM | Cr0::TS | Cr0::PG;
    env.cr4 = Cr4::empty();
    env.efer = Efer::empty();
    env.dr[7] = debug::DR7_RESET;
    env.cpl = 0;
    let base = env.msr.smbase;
    let flat = Segment { base: 0, limit: u32::MAX, access: 0x8093, selector: 0 };
    for n in [seg::ES, seg::SS, seg::DS, seg::FS, seg::GS] {
        env.set_segment(n, flat);
    }
    env.set_segment(seg::CS, Segment { base, access: 0x809b, selector: (base >> 4) as u16, ..flat });
    env.set_ip(ENTRY);
    io::refresh_a20(env);
    mmu::flush_and_switch(env);
    env.update_mode();
    // Paging is off, so this cannot fail; where there is no memory it goes nowhere.
    let va = base.wrapping_add(SAVE_AREA) & 0xffff_ffff;
    let stored = softmmu::store_bytes::<X86>(env, va, &area.0, mmu_mode::KERNEL);
    debug_assert!(stored.is_ok());
}

/// RSM, in system-management mode.
pub fn resume(env: &mut X86Env) -> Result<()> {
    let mut area = Area([0; SIZE]);
    let va = env.msr.smbase.wrapping_add(SAVE_AREA) & 0xffff_ffff;
    // The handler may run with paging on, but the processor does not look for the area through its tables.
    read_physical(env, va, &mut area.0);
    let saved = if is_long(env) { load_long(&area) } else { load_legacy(&area) };
    if !is_valid(env, &saved) {
        tracing::debug!(target: "int", "RSM finds an invalid state: shutdown");
        env.shutdown = true;
        request_exit(env);
        return Ok(());
    }
    env.smm = false;
    env.nmi_blocked = env.smm_nmi_blocked;
    env.smm_nmi_blocked = false;
    env.platform.smm_changed(false);
    restore(env, &saved);
    // SMIs, NMIs and INITs may have waited, and so may a halted processor have to.
    request_exit(env);
    Ok(())
}

/// What RSM checks (SDM volume 3, section 34.4.1): otherwise it is a shutdown.
fn is_valid(env: &X86Env, s: &Saved) -> bool {
    let cr0 = Cr0::from_bits_retain(s.cr0);
    let combination = (cr0.contains(Cr0::PE) || !cr0.contains(Cr0::PG))
        && (cr0.contains(Cr0::CD) || !cr0.contains(Cr0::NW));
    let efer = Efer::from_bits_retain(s.efer);
    let long = efer.contains(Efer::LMA);
    let cr4 = Cr4::from_bits_retain(s.cr4);
    let long_ok = long == (cr0.contains(Cr0::PG) && efer.contains(Efer::LME))
        && if long {
            cr4.contains(Cr4::PAE) && s.flags & RFlags::VM.bits() == 0
        } else {
            !cr4.contains(Cr4::PCIDE)
        };
    s.cr0 >> 32 == 0
        && combination
        && control::cr4_exists(env, s.cr4)
        && control::efer_exists(env, s.efer)
        && long_ok
        && (!long || s.cr3 >> env.cpuid.phys_bits() == 0)
}

fn restore(env: &mut X86Env, s: &Saved) {
    env.cr0 = Cr0::from_bits_truncate(s.cr0) | Cr0::ET;
    env.cr3 = s.cr3;
    env.cr4 = Cr4::from_bits_truncate(s.cr4);
    env.efer = Efer::from_bits_truncate(s.efer);
    env.gpr = s.gpr;
    env.set_rflags(s.flags);
    for (n, segment) in s.segments.into_iter().enumerate() {
        env.set_segment(n, segment);
    }
    env.gdtr = s.gdtr;
    env.idtr = s.idtr;
    debug::restore(env, s.dr6, s.dr7);
    env.msr.smbase = s.smbase;
    env.halted = s.halted;
    env.cpl = if !env.cr0.contains(Cr0::PE) {
        0
    } else if s.flags & RFlags::VM.bits() != 0 {
        3
    } else {
        env.seg[seg::SS].dpl()
    };
    env.set_ip(s.ip);
    io::refresh_a20(env);
    if Paging::of(env) == Paging::Pae {
        // Entries with reserved bits set fault when they are used.
        env.pdpte = mmu::load_pdptes(env, env.cr3).unwrap_or([0; 4]);
    }
    mmu::flush_and_switch(env);
    env.update_mode();
}

/// Reads guest-physical memory; what is not RAM reads as ones.
fn read_physical(env: &X86Env, phys: u64, buf: &mut [u8]) {
    let memory = mmu::memory(env);
    let mut at = 0;
    while at < buf.len() {
        let here = phys + at as u64;
        let n = (buf.len() - at).min(4096 - (here as usize & 0xfff));
        match memory.ram_page(here & !0xfff) {
            // SAFETY: the page has 4096 bytes that are valid as long as the memory object lives, and `n` of them follow
            // the offset; the buffer is Rust memory.
            Some(page) => unsafe {
                let from = page.host.add(here as usize & 0xfff);
                std::ptr::copy_nonoverlapping(from, buf[at..].as_mut_ptr(), n);
            },
            None => buf[at..at + n].fill(0xff),
        }
        at += n;
    }
}
