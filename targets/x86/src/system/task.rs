//! Hardware task switches (SDM volume 3, chapter 7).
//!
//! A switch has a point of no return: once the old task is saved and the new one's registers are loaded, exceptions (from
//! loading segments, mostly) belong to the *new* task. Everything that can be found out before is: the new TSS is read and
//! the old one probed first. After that point, a jump, call or return delivers such an exception itself; a switch by
//! gate, which is part of a delivery already, returns it. A switch runs alone, so that the software MMU has no reason to ask
//! for another try after that point.

use tessera_tcg::guest::Access;
use tessera_tcg::softmmu;

use super::exception::{deliver_exception, gp, np, ts, vector};
use super::segment::{
    self, Entry, check_ip, code_of, data_segment, fetch, is_null, mark_accessed, null_segment, set_access,
    stack_segment, system_type,
};
use super::stack::Stack;
use super::{Result, linear, read, system_mmu, write};
use crate::guest::X86;
use crate::mmu::{self, Paging};
use crate::state::{Cr0, RFlags, Segment, X86Env, seg};

/// Bytes of a 32-bit and a 16-bit TSS that a switch touches.
const SIZE32: usize = 0x68;
const SIZE16: usize = 0x2c;

/// What starts a switch.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Cause {
    Jump,
    Call,
    /// An interrupt or exception through a task gate.
    Gate,
    Return,
}

/// The dynamic part of a TSS, widened.
#[derive(Clone, Copy, Debug)]
struct Image {
    wide: bool,
    cr3: u64,
    ip: u64,
    flags: u64,
    gpr: [u64; 8],
    selectors: [u16; 6],
    ldt: u16,
    trap: bool,
}

impl Image {
    fn parse(bytes: &[u8; SIZE32], wide: bool) -> Image {
        let u16_at = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        let u32_at = |at: usize| (u16_at(at) as u64) | (u16_at(at + 2) as u64) << 16;
        if wide {
            Image {
                wide,
                cr3: u32_at(0x1c),
                ip: u32_at(0x20),
                flags: u32_at(0x24),
                gpr: std::array::from_fn(|n| u32_at(0x28 + 4 * n)),
                selectors: std::array::from_fn(|n| u16_at(0x48 + 4 * n)),
                ldt: u16_at(0x60),
                trap: bytes[0x64] & 1 != 0,
            }
        } else {
            Image {
                wide,
                cr3: 0,
                ip: u16_at(0x0e) as u64,
                flags: u16_at(0x10) as u64,
                // The upper halves of the registers are not part of a 16-bit task.
                gpr: std::array::from_fn(|n| u16_at(0x12 + 2 * n) as u64 | 0xffff_0000),
                selectors: std::array::from_fn(|n| if n < 4 { u16_at(0x22 + 2 * n) } else { 0 }),
                ldt: u16_at(0x2a),
                trap: false,
            }
        }
    }
}

/// A far jump to a TSS or task gate; violations of the TSS raise #GP(`code`).
pub fn switch_by_jump(env: &mut X86Env, selector: u16, code: u32) -> Result<()> {
    let flags = env.rflags();
    in_new_task(env, selector, Cause::Jump, code, flags)
}

/// A far call to a TSS or task gate.
pub fn switch_by_call(env: &mut X86Env, selector: u16, code: u32) -> Result<()> {
    let flags = env.rflags();
    in_new_task(env, selector, Cause::Call, code, flags)
}

/// IRET with EFLAGS.NT: back to the task that the TSS links to.
pub fn return_to_link(env: &mut X86Env) -> Result<()> {
    let tr = env.seg[seg::TR];
    let link = read(env, tr.base, 2)? as u16;
    let flags = env.rflags() & !RFlags::NT.bits();
    in_new_task(env, link, Cause::Return, code_of(link), flags)
}

/// An interrupt or exception through a task gate. `flags` goes into the old TSS. On `Err` the new task may be current.
pub fn switch_by_gate(
    env: &mut X86Env,
    selector: u16,
    ext: u32,
    error: Option<u32>,
    flags: u64,
) -> Result<()> {
    let image = switch(env, selector, Cause::Gate, code_of(selector) | ext, flags)?;
    load(env, &image, ext)?;
    if let Some(error) = error {
        let mut stack = Stack::current(env);
        stack.push(env, if image.wide { 4 } else { 2 }, error as u64)?;
        stack.commit(env);
    }
    Ok(())
}

fn in_new_task(env: &mut X86Env, selector: u16, cause: Cause, code: u32, flags: u64) -> Result<()> {
    let image = switch(env, selector, cause, code, flags)?;
    if let Err(e) = load(env, &image, 0) {
        // A shutdown that comes of it is seen when events are polled.
        let _ = deliver_exception(env, e);
    }
    env.update_mode();
    if env.shutdown {
        super::interrupt::request_exit(env);
    }
    super::interrupt::check_interrupts(env);
    Ok(())
}

/// The TSS descriptor, checked for `cause`.
fn descriptor(env: &mut X86Env, selector: u16, cause: Cause, code: u32) -> Result<Entry> {
    let bad = if cause == Cause::Return { ts(code) } else { gp(code) };
    if selector & 4 != 0 || is_null(selector) {
        return Err(bad);
    }
    let entry = fetch(env, selector, bad)?;
    let d = entry.desc;
    let kinds = match cause {
        Cause::Return => [system_type::TSS16_BUSY, system_type::TSS_BUSY],
        _ => [system_type::TSS16, system_type::TSS],
    };
    if d.is_segment() || !kinds.contains(&d.kind()) {
        return Err(bad);
    }
    if !d.present() {
        return Err(np(code));
    }
    let size = if d.kind() & 8 != 0 { SIZE32 } else { SIZE16 };
    if (d.limit() as usize) < size - 1 {
        return Err(ts(code));
    }
    Ok(entry)
}

/// Up to the point of no return: saves the old task, loads the registers that need no checks. Segments are left unusable.
fn switch(env: &mut X86Env, selector: u16, cause: Cause, code: u32, flags: u64) -> Result<Image> {
    let entry = descriptor(env, selector, cause, code)?;
    softmmu::require_alone::<X86>(env)?;
    let d = entry.desc;
    let wide = d.kind() & 8 != 0;
    let mmu = system_mmu(env);
    let links = matches!(cause, Cause::Call | Cause::Gate);

    let mut bytes = [0u8; SIZE32];
    let size = if wide { SIZE32 } else { SIZE16 };
    let new_base = linear(env, d.base());
    softmmu::load_bytes::<X86>(env, new_base, &mut bytes[..size], mmu)?;
    if links {
        softmmu::probe::<X86>(env, new_base, 2, Access::Write, mmu)?;
    }
    let old = env.seg[seg::TR];
    let old_wide = old.access & 8 != 0;
    let (from, to) = if old_wide { (0x20, 0x60) } else { (0x0e, 0x2a) };
    if (old.limit as u64) < to - 1 {
        return Err(ts(code_of(old.selector)));
    }
    let old_va = linear(env, old.base.wrapping_add(from));
    softmmu::probe::<X86>(env, old_va, to - from, Access::Write, mmu)?;

    save(env, &old, old_wide, flags)?;
    if matches!(cause, Cause::Jump | Cause::Return)
        && !is_null(old.selector)
        && let Some(entry) = segment::lookup(env, old.selector & !4)?
    {
        set_access(env, &entry, 0, 2)?;
    }
    if links {
        write(env, new_base, 2, old.selector as u64)?;
    }
    if cause != Cause::Return {
        set_access(env, &entry, 2, 0)?;
    }

    let mut image = Image::parse(&bytes, wide);
    if links {
        image.flags |= RFlags::NT.bits();
    }
    commit(env, &image, d.segment(selector));
    Ok(image)
}

fn save(env: &mut X86Env, tss: &Segment, wide: bool, flags: u64) -> Result<()> {
    let ip = env.ip();
    let (at_ip, at_gpr, at_seg, size, count) =
        if wide { (0x20, 0x28, 0x48, 4, 6) } else { (0x0e, 0x12, 0x22, 2, 4) };
    let put =
        |env: &mut X86Env, at: u64, value: u64, size: u32| write(env, tss.base.wrapping_add(at), size, value);
    put(env, at_ip, ip, size)?;
    put(env, at_ip + size as u64, flags, size)?;
    for n in 0..8 {
        let value = env.gpr[n as usize];
        put(env, at_gpr + n * size as u64, value, size)?;
    }
    for n in 0..count {
        let value = env.seg[n as usize].selector as u64;
        put(env, at_seg + n * size as u64, value, 2)?;
    }
    Ok(())
}

/// Makes the new task current, with segments that cannot be used yet.
fn commit(env: &mut X86Env, image: &Image, tss: Segment) {
    env.seg[seg::TR] = Segment { access: tss.access | 2, ..tss };
    env.cr0 |= Cr0::TS;
    if image.wide && env.cr0.contains(Cr0::PG) {
        env.cr3 = image.cr3;
    }
    env.set_rflags(image.flags);
    env.gpr[..8].copy_from_slice(&image.gpr);
    for (n, selector) in image.selectors.into_iter().enumerate() {
        env.set_segment(n, null_segment(selector));
    }
    env.seg[seg::LDTR] = null_segment(image.ldt);
    env.cpl = if image.flags & RFlags::VM.bits() != 0 { 3 } else { (image.selectors[seg::CS] & 3) as u8 };
    env.rip = image.ip & 0xffff_ffff;
    // The local breakpoints are the old task's.
    env.dr[7] &= !0x155;
    env.update_mode();
}

/// Loads what can fail: the page-directory pointers and the segment registers.
fn load(env: &mut X86Env, image: &Image, ext: u32) -> Result<()> {
    if image.wide && env.cr0.contains(Cr0::PG) {
        if Paging::of(env) == Paging::Pae {
            env.pdpte = mmu::load_pdptes(env, image.cr3)?;
        }
        let space = mmu::address_space(env);
        softmmu::flush_space::<X86>(env, space);
        softmmu::switch_space::<X86>(env);
    }
    load_ldt(env, image.ldt, ext)?;
    if image.flags & RFlags::VM.bits() != 0 {
        segment::enter_virtual(env, image.selectors);
        env.set_ip(image.ip);
        if image.ip > 0xffff {
            return Err(gp(ext));
        }
    } else {
        load_segments(env, image, ext)?;
    }
    env.update_mode();
    if image.trap {
        super::debug::pend(env, super::debug::BT);
    }
    Ok(())
}

fn load_ldt(env: &mut X86Env, selector: u16, ext: u32) -> Result<()> {
    if is_null(selector) {
        return Ok(());
    }
    let bad = ts(code_of(selector) | ext);
    if selector & 4 != 0 {
        return Err(bad);
    }
    let d = fetch(env, selector, bad)?.desc;
    if d.is_segment() || d.kind() != system_type::LDT || !d.present() {
        return Err(bad);
    }
    env.seg[seg::LDTR] = d.segment(selector);
    Ok(())
}

fn load_segments(env: &mut X86Env, image: &Image, ext: u32) -> Result<()> {
    let selector = image.selectors[seg::CS];
    let code = code_of(selector) | ext;
    if is_null(selector) {
        return Err(ts(ext));
    }
    let rpl = (selector & 3) as u8;
    let mut entry = fetch(env, selector, ts(code))?;
    let d = entry.desc;
    let level = if d.is_conforming() { d.dpl() <= rpl } else { d.dpl() == rpl };
    if !d.is_code() || !level {
        return Err(ts(code));
    }
    if !d.present() {
        return Err(np(code));
    }
    mark_accessed(env, &mut entry)?;
    segment::enter_code(env, entry.desc, selector, rpl, image.ip);

    let selector = image.selectors[seg::SS];
    if is_null(selector) {
        return Err(ts(ext));
    }
    let stack = stack_segment(env, selector, rpl, vector::TS, ext)?;
    env.set_segment(seg::SS, stack);
    for n in [seg::ES, seg::DS, seg::FS, seg::GS] {
        load_data(env, n, image.selectors[n], ext)?;
    }
    check_ip(env, d, image.ip, ext)
}

fn load_data(env: &mut X86Env, n: usize, selector: u16, ext: u32) -> Result<()> {
    if !is_null(selector) {
        let segment = data_segment(env, selector, vector::TS, ext)?;
        env.set_segment(n, segment);
    }
    Ok(())
}
