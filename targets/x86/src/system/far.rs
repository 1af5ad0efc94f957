//! Far jumps, calls and returns (SDM volume 2, JMP, CALL, RET; volume 3, section 5.8).
//!
//! The program counter is that of the next instruction when these are called: a call pushes it, a task switch saves it.

use super::exception::{gp, inner_stack, inner_stack_long, np, ts, vector};
use super::segment::{
    self, Descriptor, Entry, check_ip, code_of, drop_privileged_segments, enter_code, fetch, fetch_upper,
    is_null, mark_accessed, null_stack, returned_code, returned_stack, stack_segment, system_type,
};
use super::stack::{Stack, set_stack_pointer};
use super::{Result, data_mmu, long_mode, selectors, task};
use crate::state::{Segment, X86Env, reg, seg};

/// Raises #GP(0) for an offset beyond the limit of CS in real or virtual-8086 mode.
fn check_flat(env: &X86Env, ip: u64) -> Result<()> {
    let limit = if super::virtual_8086(env) { 0xffff } else { env.seg[seg::CS].limit as u64 };
    if ip > limit { Err(gp(0)) } else { Ok(()) }
}

/// Real or virtual-8086 mode: no descriptors.
fn enter_flat(env: &mut X86Env, selector: u16, ip: u64) -> Result<()> {
    let virtual_mode = super::virtual_8086(env);
    check_flat(env, ip)?;
    let segment = if virtual_mode {
        segment::virtual_segment(selector)
    } else {
        segment::real_segment(&env.seg[seg::CS], seg::CS, selector)
    };
    env.set_segment(seg::CS, segment);
    env.set_ip(ip);
    env.update_mode();
    Ok(())
}

/// The descriptor of a far jump's or call's target.
fn target(env: &mut X86Env, selector: u16) -> Result<Entry> {
    if is_null(selector) {
        return Err(gp(0));
    }
    fetch(env, selector, gp(code_of(selector)))
}

/// Checks a code segment that is entered without change of privilege: directly (`rpl` given) or through a gate.
fn same_level(env: &X86Env, d: Descriptor, selector: u16, rpl: Option<u8>) -> Result<()> {
    let code = code_of(selector);
    let bad = if d.is_conforming() {
        d.dpl() > env.cpl
    } else {
        d.dpl() != env.cpl || rpl.is_some_and(|rpl| rpl > env.cpl)
    };
    if bad || long_mode(env) && d.long() && d.big() {
        return Err(gp(code));
    }
    if d.present() { Ok(()) } else { Err(np(code)) }
}

/// Far JMP to `selector:ip`. `ip` is cut to the operand size.
pub fn jump(env: &mut X86Env, selector: u16, ip: u64) -> Result<()> {
    if !selectors(env) {
        return enter_flat(env, selector, ip);
    }
    let mut entry = target(env, selector)?;
    let d = entry.desc;
    if d.is_code() {
        same_level(env, d, selector, Some((selector & 3) as u8))?;
        check_ip(env, d, ip, 0)?;
        mark_accessed(env, &mut entry)?;
        let cpl = env.cpl;
        enter_code(env, entry.desc, selector, cpl, ip);
        env.update_mode();
        return Ok(());
    }
    match system_target(env, &entry, selector)? {
        Target::Task(tss, code) => task::switch_by_jump(env, tss, code),
        Target::Gate(gate) => {
            let mut entry = gate_target(env, &gate)?;
            same_level(env, entry.desc, gate.selector, None)?;
            check_ip(env, entry.desc, gate.ip, 0)?;
            mark_accessed(env, &mut entry)?;
            let cpl = env.cpl;
            enter_code(env, entry.desc, gate.selector, cpl, gate.ip);
            env.update_mode();
            Ok(())
        }
    }
}

/// What a system descriptor leads to.
enum Target {
    /// A TSS, by selector; violations carry the second word.
    Task(u16, u32),
    Gate(CallGate),
}

/// A call gate.
struct CallGate {
    selector: u16,
    ip: u64,
    /// Bytes of an item on the stack.
    size: u32,
    /// Items to copy.
    parameters: u32,
}

fn system_target(env: &mut X86Env, entry: &Entry, selector: u16) -> Result<Target> {
    let d = entry.desc;
    let code = code_of(selector);
    let rpl = (selector & 3) as u8;
    if d.is_segment() {
        return Err(gp(code));
    }
    let gate =
        |ip, size, parameters| Target::Gate(CallGate { selector: (d.0 >> 16) as u16, ip, size, parameters });
    let low = d.0 & 0xffff;
    let wide = low | d.0 >> 32 & 0xffff_0000;
    let found = match d.kind() {
        system_type::CALL_GATE if long_mode(env) => {
            let upper = fetch_upper(env, selector, entry, gp(code))?;
            gate(wide | upper << 32, 8, 0)
        }
        system_type::CALL_GATE => gate(wide, 4, (d.0 >> 32 & 0x1f) as u32),
        _ if long_mode(env) => return Err(gp(code)),
        system_type::CALL_GATE16 => gate(low, 2, (d.0 >> 32 & 0x1f) as u32),
        system_type::TASK_GATE => {
            let tss = (d.0 >> 16) as u16;
            Target::Task(tss, code_of(tss))
        }
        system_type::TSS16 | system_type::TSS => Target::Task(selector, code),
        _ => return Err(gp(code)),
    };
    if d.dpl() < env.cpl || d.dpl() < rpl {
        return Err(gp(code));
    }
    if !d.present() {
        return Err(np(code));
    }
    Ok(found)
}

/// The code segment that a call gate names.
fn gate_target(env: &mut X86Env, gate: &CallGate) -> Result<Entry> {
    if is_null(gate.selector) {
        return Err(gp(0));
    }
    let code = code_of(gate.selector);
    let entry = fetch(env, gate.selector, gp(code))?;
    let d = entry.desc;
    let wrong_size = long_mode(env) && (!d.long() || d.big());
    if !d.is_code() || d.dpl() > env.cpl || wrong_size {
        return Err(gp(code));
    }
    Ok(entry)
}

/// Far CALL to `selector:ip` with an operand size of 2, 4 or 8 bytes.
pub fn call(env: &mut X86Env, selector: u16, ip: u64, size: u32) -> Result<()> {
    let return_ip = env.ip();
    let return_cs = env.seg[seg::CS].selector as u64;
    if !selectors(env) {
        let mut stack = Stack::current(env);
        stack.reserve(env, size, 2)?;
        check_flat(env, ip)?;
        stack.push(env, size, return_cs)?;
        stack.push(env, size, return_ip)?;
        enter_flat(env, selector, ip)?;
        stack.commit(env);
        return Ok(());
    }
    let mut entry = target(env, selector)?;
    let d = entry.desc;
    if d.is_code() {
        same_level(env, d, selector, Some((selector & 3) as u8))?;
        check_ip(env, d, ip, 0)?;
        let mut stack = Stack::current(env);
        stack.reserve(env, size, 2)?;
        stack.push(env, size, return_cs)?;
        stack.push(env, size, return_ip)?;
        mark_accessed(env, &mut entry)?;
        stack.commit(env);
        let cpl = env.cpl;
        enter_code(env, entry.desc, selector, cpl, ip);
        env.update_mode();
        return Ok(());
    }
    match system_target(env, &entry, selector)? {
        Target::Task(tss, code) => task::switch_by_call(env, tss, code),
        Target::Gate(gate) => call_gate(env, &gate, return_cs, return_ip),
    }
}

fn call_gate(env: &mut X86Env, gate: &CallGate, return_cs: u64, return_ip: u64) -> Result<()> {
    let mut entry = gate_target(env, gate)?;
    let d = entry.desc;
    let code = code_of(gate.selector);
    if !d.present() {
        return Err(np(code));
    }
    check_ip(env, d, gate.ip, 0)?;
    let inner = !d.is_conforming() && d.dpl() < env.cpl;
    let (cpl, size) = (if inner { d.dpl() } else { env.cpl }, gate.size);
    let old_ss = env.seg[seg::SS].selector as u64;
    let old_sp = env.gpr[reg::RSP];
    let mut stack;
    let mut new_ss = None;
    if !inner {
        stack = Stack::current(env);
        stack.reserve(env, size, 2)?;
    } else if long_mode(env) {
        let rsp = inner_stack_long(env, cpl, 0, 0)?;
        stack = Stack::new(Segment::default(), true, rsp, data_mmu(env, cpl), 0);
        new_ss = Some(null_stack(cpl));
        stack.reserve(env, size, 4)?;
        stack.push(env, size, old_ss)?;
        stack.push(env, size, old_sp)?;
    } else {
        let (selector, sp) = inner_stack(env, cpl, 0)?;
        if is_null(selector) {
            return Err(ts(0));
        }
        let segment = stack_segment(env, selector, cpl, vector::TS, 0)?;
        let old = Stack::current(env);
        stack = Stack::new(segment, false, sp, data_mmu(env, cpl), code_of(selector));
        new_ss = Some(segment);
        for n in 0..gate.parameters {
            old.peek(env, (n * size) as u64, size)?;
        }
        stack.reserve(env, size, 4 + gate.parameters as u64)?;
        stack.push(env, size, old_ss)?;
        stack.push(env, size, old_sp)?;
        for n in (0..gate.parameters).rev() {
            let item = old.peek(env, (n * size) as u64, size)?;
            stack.push(env, size, item)?;
        }
    }
    stack.push(env, size, return_cs)?;
    stack.push(env, size, return_ip)?;
    mark_accessed(env, &mut entry)?;
    if let Some(segment) = new_ss {
        env.set_segment(seg::SS, segment);
    }
    stack.commit(env);
    enter_code(env, entry.desc, gate.selector, cpl, gate.ip);
    env.update_mode();
    Ok(())
}

/// Far RET with an operand size of 2, 4 or 8 bytes, dropping `drop` bytes of parameters.
pub fn ret(env: &mut X86Env, size: u32, drop: u64) -> Result<()> {
    let mut stack = Stack::current(env);
    let ip = stack.pop(env, size)?;
    let selector = stack.pop(env, size)? as u16;
    if !selectors(env) {
        stack.skip(drop);
        enter_flat(env, selector, ip)?;
        stack.commit(env);
        return Ok(());
    }
    let cpl = env.cpl;
    let mut entry = returned_code(env, selector, ip)?;
    let rpl = (selector & 3) as u8;
    stack.skip(drop);
    if rpl == cpl {
        mark_accessed(env, &mut entry)?;
        stack.commit(env);
        enter_code(env, entry.desc, selector, cpl, ip);
        env.update_mode();
        return Ok(());
    }

    let sp = stack.pop(env, size)?;
    let ss_selector = stack.pop(env, size)? as u16;
    let segment = returned_stack(env, ss_selector, &entry, rpl)?;
    mark_accessed(env, &mut entry)?;
    enter_code(env, entry.desc, selector, rpl, ip);
    env.set_segment(seg::SS, segment);
    let mask = if env.code64() { u64::MAX } else { 0xffff_ffff };
    set_stack_pointer(env, sp.wrapping_add(drop) & mask);
    drop_privileged_segments(env);
    env.update_mode();
    Ok(())
}
