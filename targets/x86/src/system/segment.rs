//! Descriptors and segment registers (SDM volume 3, chapters 3 and 5).

use tessera_tcg::guest::Exception;
use tessera_tcg::softmmu;

use super::exception::{gp, np, ss, vector};
use super::{Result, linear, long_mode, read, selectors, system_mmu, virtual_8086};
use crate::guest::X86;
use crate::state::{RFlags, Segment, TableRegister, X86Env, seg};

/// Types of system descriptors (SDM volume 3, table 3-2).
pub mod system_type {
    #![allow(missing_docs)]
    pub const TSS16: u8 = 1;
    pub const LDT: u8 = 2;
    pub const TSS16_BUSY: u8 = 3;
    pub const CALL_GATE16: u8 = 4;
    pub const TASK_GATE: u8 = 5;
    pub const INTERRUPT_GATE16: u8 = 6;
    pub const TRAP_GATE16: u8 = 7;
    pub const TSS: u8 = 9;
    pub const TSS_BUSY: u8 = 11;
    pub const CALL_GATE: u8 = 12;
    pub const INTERRUPT_GATE: u8 = 14;
    pub const TRAP_GATE: u8 = 15;
}

/// The 8 bytes of a descriptor.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Descriptor(pub u64);

impl Descriptor {
    /// Base, 32 bits.
    pub fn base(self) -> u64 {
        self.0 >> 16 & 0xff_ffff | self.0 >> 32 & 0xff00_0000
    }

    /// Offset of the last byte, granularity applied.
    pub fn limit(self) -> u32 {
        let raw = (self.0 & 0xffff | self.0 >> 32 & 0xf_0000) as u32;
        if self.0 >> 55 & 1 != 0 { raw << 12 | 0xfff } else { raw }
    }

    /// Access rights as [`Segment::access`] holds them.
    pub fn access(self) -> u16 {
        (self.0 >> 40 & 0xf0ff) as u16
    }

    /// DPL.
    pub fn dpl(self) -> u8 {
        (self.0 >> 45 & 3) as u8
    }

    /// P.
    pub fn present(self) -> bool {
        self.0 >> 47 & 1 != 0
    }

    /// A code or data segment (S set).
    pub fn is_segment(self) -> bool {
        self.0 >> 44 & 1 != 0
    }

    /// Type field, 4 bits.
    pub fn kind(self) -> u8 {
        (self.0 >> 40 & 0xf) as u8
    }

    /// A code segment.
    pub fn is_code(self) -> bool {
        self.is_segment() && self.kind() & 8 != 0
    }

    /// A conforming code segment.
    pub fn is_conforming(self) -> bool {
        self.is_code() && self.kind() & 4 != 0
    }

    /// A data segment that can be written.
    pub fn is_writable(self) -> bool {
        self.is_segment() && self.kind() & 0xa == 2
    }

    /// A segment that can be read.
    pub fn is_readable(self) -> bool {
        self.is_segment() && (self.kind() & 8 == 0 || self.kind() & 2 != 0)
    }

    /// L: 64-bit code.
    pub fn long(self) -> bool {
        self.0 >> 53 & 1 != 0
    }

    /// D/B.
    pub fn big(self) -> bool {
        self.0 >> 54 & 1 != 0
    }

    /// The segment register that holds it.
    pub fn segment(self, selector: u16) -> Segment {
        Segment { base: self.base(), limit: self.limit(), access: self.access(), selector }
    }
}

/// A descriptor and where it lies.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    /// Its linear address.
    pub va: u64,
    /// Its bytes.
    pub desc: Descriptor,
}

/// Whether a selector is null (its RPL does not matter).
#[inline]
pub fn is_null(selector: u16) -> bool {
    selector & !3 == 0
}

/// The selector part of an error code.
#[inline]
pub fn code_of(selector: u16) -> u32 {
    selector as u32 & 0xfffc
}

/// Linear address of the descriptor of `len` bytes that a selector names; `None` beyond the table.
pub fn locate(env: &X86Env, selector: u16, len: u32) -> Option<u64> {
    let (base, limit) = if selector & 4 == 0 {
        let TableRegister { base, limit } = env.gdtr;
        (base, limit as u32)
    } else {
        let ldt = &env.seg[seg::LDTR];
        if ldt.access & Segment::PRESENT == 0 {
            return None;
        }
        (ldt.base, ldt.limit)
    };
    let index = selector as u32 & !7;
    (index + len - 1 <= limit).then(|| linear(env, base.wrapping_add(index as u64)))
}

/// Reads the descriptor that a selector names, if the table has it.
pub fn lookup(env: &mut X86Env, selector: u16) -> Result<Option<Entry>> {
    let Some(va) = locate(env, selector, 8) else { return Ok(None) };
    Ok(Some(Entry { va, desc: Descriptor(read(env, va, 8)?) }))
}

/// Reads the descriptor that a selector names, or raises `fault`.
pub fn fetch(env: &mut X86Env, selector: u16, fault: Exception) -> Result<Entry> {
    lookup(env, selector)?.ok_or(fault)
}

/// Upper half of a 16-byte descriptor whose lower half is `entry`, or `fault` if the table ends before it.
pub fn fetch_upper(env: &mut X86Env, selector: u16, entry: &Entry, fault: Exception) -> Result<u64> {
    if locate(env, selector, 16).is_none() {
        return Err(fault);
    }
    let upper = read(env, entry.va.wrapping_add(8), 8)?;
    // The type field of the upper half is zero (SDM volume 3, section 5.8.3.1).
    if upper >> 40 & 0x1f != 0 { Err(fault) } else { Ok(upper) }
}

/// Sets bits in the access-rights byte of a descriptor in memory, atomically.
pub fn set_access(env: &mut X86Env, entry: &Entry, set: u8, clear: u8) -> Result<()> {
    let (va, mmu) = (linear(env, entry.va.wrapping_add(5)), system_mmu(env));
    let mut old = (entry.desc.0 >> 40) as u8;
    loop {
        let new = old & !clear | set;
        if new == old {
            return Ok(());
        }
        let seen = softmmu::compare_exchange::<X86>(env, va, 1, old as u128, new as u128, mmu)? as u8;
        if seen == old {
            return Ok(());
        }
        old = seen;
    }
}

/// Marks a code or data segment as accessed, in memory and in the copy.
pub fn mark_accessed(env: &mut X86Env, entry: &mut Entry) -> Result<()> {
    if entry.desc.0 >> 40 & 1 == 0 {
        set_access(env, entry, 1, 0)?;
        entry.desc.0 |= 1 << 40;
    }
    Ok(())
}

impl X86Env {
    /// Sets a segment register, hidden part included. The caller calls `update_mode` before blocks run again.
    #[inline]
    pub fn set_segment(&mut self, n: usize, segment: Segment) {
        self.seg[n] = segment;
        if let Some(base) = self.seg_base.get_mut(n) {
            *base = segment.base;
        }
    }

    /// Sets the base of a segment register.
    #[inline]
    pub fn set_segment_base(&mut self, n: usize, base: u64) {
        self.seg[n].base = base;
        self.seg_base[n] = base;
    }
}

/// What a null selector leaves in a segment register: not usable, base 0.
pub fn null_segment(selector: u16) -> Segment {
    Segment { base: 0, limit: 0, access: 0, selector }
}

/// A segment as virtual-8086 mode has it (SDM volume 3, section 20.1).
pub fn virtual_segment(selector: u16) -> Segment {
    Segment { base: (selector as u64) << 4, limit: 0xffff, access: 0xf3, selector }
}

/// A segment register after a load in real mode: base and selector are new, the limit stays (which is how "unreal" mode
/// works), and the rights are those of present, writable data for everything but CS.
pub fn real_segment(old: &Segment, n: usize, selector: u16) -> Segment {
    let access = if n == seg::CS { old.access } else { old.access & 0x5000 | 0x93 };
    Segment { base: (selector as u64) << 4, limit: old.limit, access, selector }
}

/// What loading `selector` into data or stack segment register `n` makes of it, by the rules of the current mode; the
/// register is not changed (SDM volume 2, MOV).
pub fn prepare(env: &mut X86Env, n: usize, selector: u16) -> Result<Segment> {
    if virtual_8086(env) {
        return Ok(virtual_segment(selector));
    }
    if !selectors(env) {
        return Ok(real_segment(&env.seg[n], n, selector));
    }
    if n == seg::SS {
        prepare_stack(env, selector)
    } else if is_null(selector) {
        Ok(null_segment(selector))
    } else {
        data_segment(env, selector, vector::GP, 0)
    }
}

/// The data segment that a non-null selector names. Violations raise `vector` (#GP or #TS) with the selector and `ext`; a segment
/// that is not present, #NP.
pub fn data_segment(env: &mut X86Env, selector: u16, vector: u16, ext: u32) -> Result<Segment> {
    let code = code_of(selector) | ext;
    let bad = Exception { vector, error: Some(code), address: 0 };
    let mut entry = fetch(env, selector, bad)?;
    let d = entry.desc;
    let rpl = (selector & 3) as u8;
    if !d.is_readable() || !d.is_conforming() && (rpl > d.dpl() || env.cpl > d.dpl()) {
        return Err(bad);
    }
    if !d.present() {
        return Err(np(code));
    }
    mark_accessed(env, &mut entry)?;
    Ok(entry.desc.segment(selector))
}

fn prepare_stack(env: &mut X86Env, selector: u16) -> Result<Segment> {
    let cpl = env.cpl;
    if is_null(selector) {
        if env.code64() && cpl != 3 && (selector & 3) as u8 == cpl {
            return Ok(null_stack(cpl));
        }
        return Err(gp(0));
    }
    stack_segment(env, selector, cpl, vector::GP, 0)
}

/// SS holding the null selector of a privilege level in 64-bit mode. DPL is the CPL even so.
pub fn null_stack(cpl: u8) -> Segment {
    Segment { base: 0, limit: 0, access: (cpl as u16) << 5, selector: cpl as u16 }
}

/// The stack segment that a non-null selector names, for use at privilege level `cpl`. Violations raise `vector`
/// (#GP or #TS) with the selector and `ext`; a segment that is not present, #SS.
pub fn stack_segment(env: &mut X86Env, selector: u16, cpl: u8, vector: u16, ext: u32) -> Result<Segment> {
    let code = code_of(selector) | ext;
    let bad = Exception { vector, error: Some(code), address: 0 };
    let mut entry = fetch(env, selector, bad)?;
    let d = entry.desc;
    if (selector & 3) as u8 != cpl || d.dpl() != cpl || !d.is_writable() {
        return Err(bad);
    }
    if !d.present() {
        return Err(ss(code));
    }
    mark_accessed(env, &mut entry)?;
    Ok(entry.desc.segment(selector))
}

/// Loads ES, SS, DS, FS or GS. The mode word is brought up to date.
pub fn load_segment(env: &mut X86Env, n: usize, selector: u16) -> Result<()> {
    let segment = prepare(env, n, selector)?;
    env.set_segment(n, segment);
    env.update_mode();
    Ok(())
}

/// After a return to an outer privilege level: data segments that the new level may not use become null (SDM volume 2,
/// RET). The CPL is already the new one.
pub fn drop_privileged_segments(env: &mut X86Env) {
    for n in [seg::ES, seg::DS, seg::FS, seg::GS] {
        let s = env.seg[n];
        let conforming = s.access & 0x1c == 0x1c;
        if s.access & Segment::PRESENT != 0 && !conforming && s.dpl() < env.cpl {
            env.set_segment(n, null_segment(0));
        }
    }
}

/// Whether `len` bytes at `offset` (32 bits) lie within the limit of a segment outside of 64-bit mode.
pub fn within_limit(s: &Segment, offset: u64, len: u64) -> bool {
    let last = offset + (len - 1);
    if s.access & 0x1c == 0x14 {
        // Expand-down data.
        let top = if s.access & Segment::DB != 0 { 0xffff_ffff } else { 0xffff };
        offset > s.limit as u64 && last <= top
    } else {
        // A flat segment wraps around.
        last <= s.limit as u64 || s.limit == u32::MAX
    }
}

/// Linear address of `len` bytes at `offset` in segment register `n`, or the exception that an access raises by
/// segmentation alone (SDM volume 3, sections 5.3 to 5.5; in 64-bit mode, canonical form).
pub fn check_segment(env: &X86Env, n: usize, offset: u64, len: u64, write: bool) -> Result<u64> {
    let raise = || if n == seg::SS { ss(0) } else { gp(0) };
    let s = &env.seg[n];
    if env.code64() {
        let base = if n >= seg::FS { s.base } else { 0 };
        let va = base.wrapping_add(offset);
        let ok = crate::mmu::canonical(env, va) && crate::mmu::canonical(env, va.wrapping_add(len - 1));
        return if ok { Ok(va) } else { Err(raise()) };
    }
    let offset = offset & 0xffff_ffff;
    if selectors(env) {
        let code = s.access & 8 != 0;
        let second = s.access & 2 != 0;
        let typed = if write { !code && second } else { !code || second };
        if s.access & Segment::PRESENT == 0 || !typed {
            return Err(raise());
        }
    }
    if !within_limit(s, offset, len) {
        return Err(raise());
    }
    Ok(s.base.wrapping_add(offset) & 0xffff_ffff)
}

/// Raises the exception that running code at `ip` in a code segment raises: beyond the limit, or not canonical.
pub fn check_ip(env: &X86Env, cs: Descriptor, ip: u64, ext: u32) -> Result<()> {
    let ok =
        if long_mode(env) && cs.long() { crate::mmu::canonical(env, ip) } else { ip <= cs.limit() as u64 };
    if ok { Ok(()) } else { Err(gp(ext)) }
}

/// The code segment that far RET and IRET return to at `ip`, at the privilege level that the selector asks for: as far out as the
/// current one, or further. Nothing is changed yet.
pub fn returned_code(env: &mut X86Env, selector: u16, ip: u64) -> Result<Entry> {
    if is_null(selector) {
        return Err(gp(0));
    }
    let code = code_of(selector);
    let entry = fetch(env, selector, gp(code))?;
    let d = entry.desc;
    let rpl = (selector & 3) as u8;
    let level = if d.is_conforming() { d.dpl() <= rpl } else { d.dpl() == rpl };
    let both = long_mode(env) && d.long() && d.big();
    if !d.is_code() || rpl < env.cpl || !level || both {
        return Err(gp(code));
    }
    if !d.present() {
        return Err(np(code));
    }
    check_ip(env, d, ip, 0)?;
    Ok(entry)
}

/// The stack segment for code that far RET and IRET return to at privilege level `cpl`: in 64-bit mode above ring 3, none
/// will do.
pub fn returned_stack(env: &mut X86Env, selector: u16, code: &Entry, cpl: u8) -> Result<Segment> {
    if !is_null(selector) {
        return stack_segment(env, selector, cpl, vector::GP, 0);
    }
    let to64 = long_mode(env) && code.desc.long();
    if !to64 || cpl == 3 || (selector & 3) as u8 != cpl {
        return Err(gp(0));
    }
    Ok(Segment { selector, ..null_stack(cpl) })
}

/// Makes `entry` the code segment at privilege level `cpl` and goes to `ip`. Nothing of it can fail. The mode word is
/// *not* brought up to date: callers have more to change.
pub fn enter_code(env: &mut X86Env, desc: Descriptor, selector: u16, cpl: u8, ip: u64) {
    env.set_segment(seg::CS, desc.segment(selector & !3 | cpl as u16));
    env.cpl = cpl;
    env.set_ip(ip);
}

/// Enters virtual-8086 mode's segments: all six from selectors, CPL 3.
pub fn enter_virtual(env: &mut X86Env, selectors: [u16; 6]) {
    env.eflags |= RFlags::VM.bits();
    for (n, selector) in selectors.into_iter().enumerate() {
        env.set_segment(n, virtual_segment(selector));
    }
    env.cpl = 3;
}

#[cfg(test)]
mod unit_tests {
    use super::*;

    #[test]
    fn descriptors_unpack() {
        // 64-bit kernel code, flat 32-bit user data, a 16-bit TSS at 12345678h.
        let code = Descriptor(0x00af_9b00_0000_ffff);
        assert!(code.is_code() && code.long() && !code.big() && code.present() && code.dpl() == 0);
        assert_eq!(code.limit(), u32::MAX);
        assert_eq!(code.access(), 0xa09b);
        let data = Descriptor(0x00cf_f300_0000_ffff);
        assert!(data.is_writable() && !data.is_code() && data.big() && data.dpl() == 3);
        let tss = Descriptor(0x1200_8134_5678_002b);
        assert_eq!((tss.base(), tss.limit(), tss.kind()), (0x1234_5678, 0x2b, system_type::TSS16));
        assert!(!tss.is_segment());
    }

    #[test]
    fn limits_by_direction() {
        let up = Segment { base: 0, limit: 0xfff, access: 0x93, selector: 0 };
        assert!(within_limit(&up, 0xffc, 4) && !within_limit(&up, 0xffd, 4));
        let down = Segment { access: 0x97, ..up };
        assert!(!within_limit(&down, 0xfff, 1) && within_limit(&down, 0x1000, 4));
        assert!(within_limit(&down, 0xfffc, 4) && !within_limit(&down, 0xfffd, 4));
        let down_big = Segment { access: 0x4097, ..up };
        assert!(within_limit(&down_big, 0xffff_fffc, 4));
        let flat = Segment { limit: u32::MAX, ..up };
        assert!(within_limit(&flat, 0xffff_fffe, 4));
    }

    #[test]
    fn real_mode_keeps_the_limit() {
        let unreal = Segment { base: 0, limit: u32::MAX, access: 0xc093, selector: 8 };
        let s = real_segment(&unreal, seg::DS, 0x1234);
        assert_eq!((s.base, s.limit, s.selector), (0x12340, u32::MAX, 0x1234));
        assert_eq!(s.access, 0x4093);
    }
}
