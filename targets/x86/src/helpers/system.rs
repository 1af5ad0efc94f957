//! Helpers of the system instructions: thin wrappers that turn the functions of [`crate::system`] into what generated
//! code calls.
//!
//! Those that go elsewhere (far transfers, returns, system calls) find the program counter at the next instruction, and the
//! block ends after them. Effects are named as narrowly as possible for the frequent ones, so that calls leave the
//! guest's registers where they are.

use tessera_tcg::guest::Effects;
use tessera_tcg::ir::GlobalSet;

use super::{exception, fault, touches};
use crate::cpuid::Feature;
use crate::state::{Cr4, X86Env, global, reg, seg};
use crate::system::exception::{Origin, gp, software_interrupt, ud, vector};
use crate::system::{
    self, Result, control, debug, far, flags, io, iret as iret_, msr, segment, syscall as fast,
};
use crate::system::{tables, xsave as area};

/// Reads and writes the bases of the data segments.
const SEGMENT: Effects = touches(
    &[],
    &[
        global::seg_base(seg::ES),
        global::seg_base(seg::SS),
        global::seg_base(seg::DS),
        global::seg_base(seg::FS),
        global::seg_base(seg::GS),
    ],
    true,
);
/// May fault, and looks at IF.
const INTERRUPTS: Effects = touches(&[global::EFLAGS], &[], true);
/// May fault, and changes flags that are not arithmetic.
const FLAGS: Effects = touches(&[global::EFLAGS], &[global::EFLAGS], true);

helpers! { super::SYSTEM_BASE;
    /// `(segment, selector)`: loads ES, DS, FS or GS.
    LOAD_SEGMENT = load_segment(2), SEGMENT;
    /// `(selector)`: loads SS, and opens an interrupt shadow (MOV, POP).
    LOAD_SS = load_ss(1), SEGMENT;
    /// `(segment, base)`: writes the base of FS or GS; #GP(0) unless canonical.
    WRITE_BASE = write_base(2), SEGMENT;
    /// `(selector, ip)`: far jump.
    FAR_JUMP = far_jump(2), Effects::ALL;
    /// `(selector, ip, operand bytes)`: far call.
    FAR_CALL = far_call(3), Effects::ALL;
    /// `(operand bytes, bytes to drop)`: far return.
    FAR_RET = far_ret(2), Effects::ALL;
    /// `(operand bytes)`: IRET.
    IRET = iret(1), Effects::ALL;
    /// `(vector)`: INT n.
    INT = int_n(1), Effects::ALL;
    /// `()`: INT1.
    INT1 = int1(0), Effects::ALL;
    /// `()`: INT3.
    INT3 = int3(0), Effects::ALL;
    /// `()`: INTO; nothing unless the overflow flag is set.
    INTO = into(0), Effects::ALL;
    /// `()`: SYSCALL.
    SYSCALL = syscall(0), Effects::ALL;
    /// `(operand bytes)`: SYSRET.
    SYSRET = sysret(1), Effects::ALL;
    /// `()`: SYSENTER.
    SYSENTER = sysenter(0), Effects::ALL;
    /// `(operand bytes)`: SYSEXIT.
    SYSEXIT = sysexit(1), Effects::ALL;
    /// `(image, operand bytes)`: POPF.
    POPF = popf(2), Effects::ALL;
    /// `(operand bytes)`: the image that PUSHF pushes in virtual-8086 mode below IOPL 3.
    PUSHF_VIRTUAL = pushf_virtual(1), touches(&[global::FLAGS, global::DF, global::EFLAGS], &[], true);
    /// `()`: CLI below IOPL.
    CLI_VIRTUAL = cli(0), FLAGS;
    /// `()`: STI.
    STI = sti(0), FLAGS;
    /// `()`: opens an interrupt shadow.
    OPEN_SHADOW = open_shadow(0), touches(&[global::EFLAGS], &[], false);
    /// `(on)`: STAC or CLAC.
    SET_AC = set_ac(1), touches(&[global::EFLAGS], &[global::EFLAGS], false);
    /// `()`: CR8.
    READ_CR8 = read_cr8(0), Effects::STATE;
    /// `(value)`: MOV to CR8.
    WRITE_CR8 = write_cr8(1), INTERRUPTS;
    /// `(value)`: MOV to CR3.
    WRITE_CR3 = write_cr3(1), Effects::FAULTS;
    /// `(register, value)`: MOV to CR0 or CR4.
    WRITE_CR = write_cr(2), Effects::ALL;
    /// `(value)`: LMSW.
    LMSW = lmsw(1), Effects::ALL;
    /// `()`: CLTS.
    CLTS = clts(0), touches(&[global::EFLAGS], &[], false);
    /// `(register)`: MOV from a debug register.
    READ_DR = read_dr(1), Effects::FAULTS;
    /// `(register, value)`: MOV to a debug register.
    WRITE_DR = write_dr(2), Effects::ALL;
    /// `(pc)`: #DB if an instruction breakpoint is set at this linear address.
    CHECK_BREAKPOINT = check_breakpoint(1), FLAGS;
    /// `(address)`: INVLPG.
    INVLPG = invlpg(1), Effects::STATE;
    /// `(type, descriptor's address)`: INVPCID.
    INVPCID = invpcid(2), Effects::FAULTS;
    /// `()`: the time-stamp counter.
    RDTSC = rdtsc(0), Effects::STATE;
    /// `()`: CPUID of EAX and ECX.
    CPUID = cpuid(0), touches(
        &[global::gpr(reg::RAX), global::gpr(reg::RCX)],
        &[global::gpr(reg::RAX), global::gpr(reg::RBX), global::gpr(reg::RCX), global::gpr(reg::RDX)],
        false,
    );
    /// `(index)`: RDMSR.
    RDMSR = rdmsr(1), Effects::FAULTS;
    /// `(index, value)`: WRMSR.
    WRMSR = wrmsr(2), touches(
        &[global::EFLAGS],
        &[global::seg_base(seg::FS), global::seg_base(seg::GS)],
        true,
    );
    /// `(index)`: RDPMC.
    RDPMC = rdpmc(1), Effects::FAULTS;
    /// `(index)`: XGETBV, which tells of all registers whether they are in use.
    XGETBV = xgetbv(1), Effects { reads: GlobalSet::ALL, ..Effects::FAULTS };
    /// `(index, value)`: XSETBV.
    XSETBV = xsetbv(2), Effects::ALL;
    /// `(index)`: RDPKRU.
    RDPKRU = rdpkru(1), Effects::FAULTS;
    /// `(index, value)`: WRPKRU; `index` has ECX in its low and EDX in its high half.
    WRPKRU = wrpkru(2), Effects::FAULTS;
    /// `()`: RSM.
    RSM = rsm(0), Effects::ALL;
    /// `(port, bytes)`: IN.
    IN = port_in(2), Effects::FAULTS;
    /// `(port, bytes, value)`: OUT.
    OUT = port_out(3), Effects::FAULTS;
    /// `(operation, pc)`: INS or OUTS, see [`io::StringIo`].
    STRING_IO = string_io(2), Effects::ALL;
    /// `(address, operand bytes)`: LGDT.
    LGDT = lgdt(2), Effects::FAULTS;
    /// `(address, operand bytes)`: LIDT.
    LIDT = lidt(2), Effects::FAULTS;
    /// `(is IDT, address, operand bytes)`: SGDT or SIDT.
    STORE_TABLE = store_table(3), Effects::FAULTS;
    /// `(selector)`: LLDT.
    LLDT = lldt(1), Effects::FAULTS;
    /// `(selector)`: LTR.
    LTR = ltr(1), Effects::FAULTS;
    /// `(selector)`: LAR's result, or all ones.
    LAR = lar(1), Effects::FAULTS;
    /// `(selector)`: LSL's result, or all ones.
    LSL = lsl(1), Effects::FAULTS;
    /// `(selector, write)`: VERR or VERW: 1 if it may be accessed so.
    VERIFY = verify(2), Effects::FAULTS;
    /// `(address, REX.W)`: FXSAVE.
    FXSAVE = fxsave(2), Effects::ALL;
    /// `(address, REX.W)`: FXRSTOR.
    FXRSTOR = fxrstor(2), Effects::ALL;
    /// `(address, mask, form, REX.W)`: XSAVE (form 0), XSAVEOPT (1), XSAVEC (2), XSAVES (3).
    XSAVE = xsave(4), Effects::ALL;
    /// `(address, mask, is XRSTORS, REX.W)`: XRSTOR or XRSTORS.
    XRSTOR = xrstor(4), Effects::ALL;
}

/// Ends a helper that returns nothing.
#[inline]
fn done(env: &mut X86Env, result: Result<()>) -> u64 {
    value(env, result.map(|()| 0))
}

/// Ends a helper that returns a value.
#[inline]
fn value(env: &mut X86Env, result: Result<u64>) -> u64 {
    match result {
        Ok(v) => v,
        Err(e) => fault(env, e),
    }
}

extern "C" fn load_segment(env: &mut X86Env, n: u64, selector: u64) -> u64 {
    let result = segment::load_segment(env, n as usize & 7, selector as u16);
    done(env, result)
}

extern "C" fn load_ss(env: &mut X86Env, selector: u64) -> u64 {
    let result = segment::load_segment(env, seg::SS, selector as u16);
    if result.is_ok() {
        // In a shadow that another load has opened there is none: a chain of them must not hold interrupts off forever.
        let open = !env.debug_shadow;
        env.interrupt_shadow |= open;
        env.debug_shadow = true;
        env.update_privilege();
    }
    done(env, result)
}

extern "C" fn write_base(env: &mut X86Env, n: u64, base: u64) -> u64 {
    if !crate::mmu::canonical_base(env, base) {
        return fault(env, gp(0));
    }
    env.set_segment_base(if n as usize == seg::FS { seg::FS } else { seg::GS }, base);
    0
}

extern "C" fn far_jump(env: &mut X86Env, selector: u64, ip: u64) -> u64 {
    let result = far::jump(env, selector as u16, ip);
    done(env, result)
}

extern "C" fn far_call(env: &mut X86Env, selector: u64, ip: u64, size: u64) -> u64 {
    let result = far::call(env, selector as u16, ip, size as u32);
    done(env, result)
}

extern "C" fn far_ret(env: &mut X86Env, size: u64, drop: u64) -> u64 {
    let result = far::ret(env, size as u32, drop);
    done(env, result)
}

extern "C" fn iret(env: &mut X86Env, size: u64) -> u64 {
    let result = iret_::iret(env, size as u32);
    done(env, result)
}

extern "C" fn int_n(env: &mut X86Env, vector: u64) -> u64 {
    let result = system::exception::int_n(env, vector as u8);
    done(env, result)
}

extern "C" fn int1(env: &mut X86Env) -> u64 {
    let result = software_interrupt(env, vector::DB as u8, Origin::PrivilegedSoftware);
    done(env, result)
}

extern "C" fn int3(env: &mut X86Env) -> u64 {
    let result = software_interrupt(env, vector::BP as u8, Origin::Software);
    done(env, result)
}

extern "C" fn into(env: &mut X86Env) -> u64 {
    if env.flags & tessera_tcg::ir::flags::V == 0 {
        return 0;
    }
    let result = software_interrupt(env, vector::OF as u8, Origin::Software);
    done(env, result)
}

extern "C" fn syscall(env: &mut X86Env) -> u64 {
    let result = fast::syscall(env);
    done(env, result)
}

extern "C" fn sysret(env: &mut X86Env, size: u64) -> u64 {
    let result = fast::sysret(env, size as u32);
    done(env, result)
}

extern "C" fn sysenter(env: &mut X86Env) -> u64 {
    let result = fast::sysenter(env);
    done(env, result)
}

extern "C" fn sysexit(env: &mut X86Env, size: u64) -> u64 {
    let result = fast::sysexit(env, size as u32);
    done(env, result)
}

extern "C" fn popf(env: &mut X86Env, image: u64, size: u64) -> u64 {
    let result = flags::popf(env, image, size as u32);
    done(env, result)
}

extern "C" fn pushf_virtual(env: &mut X86Env, size: u64) -> u64 {
    let result = flags::pushf(env, size as u32);
    value(env, result)
}

extern "C" fn cli(env: &mut X86Env) -> u64 {
    let result = flags::cli(env);
    done(env, result)
}

extern "C" fn sti(env: &mut X86Env) -> u64 {
    let result = flags::sti(env);
    done(env, result)
}

extern "C" fn open_shadow(env: &mut X86Env) -> u64 {
    env.interrupt_shadow = true;
    env.update_privilege();
    0
}

extern "C" fn set_ac(env: &mut X86Env, on: u64) -> u64 {
    flags::set_ac(env, on != 0);
    0
}

extern "C" fn read_cr8(env: &mut X86Env) -> u64 {
    control::read_cr8(env)
}

extern "C" fn write_cr8(env: &mut X86Env, v: u64) -> u64 {
    let result = control::write_cr8(env, v);
    done(env, result)
}

extern "C" fn write_cr3(env: &mut X86Env, v: u64) -> u64 {
    let result = control::write_cr3(env, v);
    done(env, result)
}

extern "C" fn write_cr(env: &mut X86Env, n: u64, v: u64) -> u64 {
    let result = control::write_cr(env, n as usize, v);
    done(env, result)
}

extern "C" fn lmsw(env: &mut X86Env, v: u64) -> u64 {
    let result = control::lmsw(env, v);
    done(env, result)
}

extern "C" fn clts(env: &mut X86Env) -> u64 {
    control::clts(env);
    0
}

extern "C" fn read_dr(env: &mut X86Env, n: u64) -> u64 {
    let result = debug::read(env, n as usize);
    value(env, result)
}

extern "C" fn write_dr(env: &mut X86Env, n: u64, v: u64) -> u64 {
    let result = debug::write(env, n as usize, v);
    done(env, result)
}

extern "C" fn check_breakpoint(env: &mut X86Env, pc: u64) -> u64 {
    let result = debug::check_code(env, pc);
    done(env, result)
}

extern "C" fn invlpg(env: &mut X86Env, va: u64) -> u64 {
    control::invlpg(env, va);
    0
}

extern "C" fn invpcid(env: &mut X86Env, kind: u64, va: u64) -> u64 {
    let result = control::invpcid(env, kind, va);
    done(env, result)
}

extern "C" fn rdtsc(env: &mut X86Env) -> u64 {
    control::tsc(env)
}

extern "C" fn cpuid(env: &mut X86Env) -> u64 {
    let (leaf, sub) = (env.gpr[reg::RAX] as u32, env.gpr[reg::RCX] as u32);
    let [a, b, c, d] = env.cpuid.query(leaf, sub, &control::cpuid_state(env));
    env.gpr[reg::RAX] = a as u64;
    env.gpr[reg::RBX] = b as u64;
    env.gpr[reg::RCX] = c as u64;
    env.gpr[reg::RDX] = d as u64;
    0
}

extern "C" fn rdmsr(env: &mut X86Env, index: u64) -> u64 {
    let result = msr::read(env, index as u32);
    value(env, result)
}

extern "C" fn wrmsr(env: &mut X86Env, index: u64, v: u64) -> u64 {
    let result = msr::write(env, index as u32, v);
    done(env, result)
}

/// There are no performance counters: every index is invalid.
extern "C" fn rdpmc(env: &mut X86Env, _index: u64) -> u64 {
    fault(env, gp(0))
}

/// #UD unless `bit` of CR4 is set.
fn enabled(env: &X86Env, bit: Cr4) -> Result<()> {
    if env.cr4.contains(bit) { Ok(()) } else { Err(ud()) }
}

extern "C" fn xgetbv(env: &mut X86Env, index: u64) -> u64 {
    let result = enabled(env, Cr4::OSXSAVE).and_then(|()| control::xgetbv(env, index as u32));
    value(env, result)
}

extern "C" fn xsetbv(env: &mut X86Env, index: u64, v: u64) -> u64 {
    let result = enabled(env, Cr4::OSXSAVE).and_then(|()| match env.cpl {
        0 => control::xsetbv(env, index as u32, v),
        _ => Err(gp(0)),
    });
    done(env, result)
}

extern "C" fn rdpkru(env: &mut X86Env, index: u64) -> u64 {
    let result = enabled(env, Cr4::PKE).and_then(|()| match index as u32 {
        0 => Ok(env.pkru as u64),
        _ => Err(gp(0)),
    });
    value(env, result)
}

extern "C" fn wrpkru(env: &mut X86Env, index: u64, v: u64) -> u64 {
    if let Err(e) = enabled(env, Cr4::PKE) {
        return fault(env, e);
    }
    if index != 0 {
        return fault(env, gp(0));
    }
    control::write_pkru(env, v as u32);
    0
}

extern "C" fn rsm(env: &mut X86Env) -> u64 {
    let result = system::smm::resume(env);
    done(env, result)
}

extern "C" fn port_in(env: &mut X86Env, port: u64, size: u64) -> u64 {
    let result = io::check_permission(env, port as u16, size as u32);
    let result = result.map(|()| io::port_in(env, port as u16, size as u32));
    value(env, result)
}

extern "C" fn port_out(env: &mut X86Env, port: u64, size: u64, v: u64) -> u64 {
    let result = io::check_permission(env, port as u16, size as u32);
    let result = result.map(|()| io::port_out(env, port as u16, size as u32, v));
    done(env, result)
}

extern "C" fn string_io(env: &mut X86Env, op: u64, pc: u64) -> u64 {
    let result = io::string_io(env, io::StringIo::unpack(op), pc);
    done(env, result)
}

extern "C" fn lgdt(env: &mut X86Env, va: u64, size: u64) -> u64 {
    let result = tables::lgdt(env, va, size as u32);
    done(env, result)
}

extern "C" fn lidt(env: &mut X86Env, va: u64, size: u64) -> u64 {
    let result = tables::lidt(env, va, size as u32);
    done(env, result)
}

extern "C" fn store_table(env: &mut X86Env, idt: u64, va: u64, size: u64) -> u64 {
    let result = tables::store_table(env, idt != 0, va, size as u32);
    done(env, result)
}

extern "C" fn lldt(env: &mut X86Env, selector: u64) -> u64 {
    let result = tables::lldt(env, selector as u16);
    done(env, result)
}

extern "C" fn ltr(env: &mut X86Env, selector: u64) -> u64 {
    let result = tables::ltr(env, selector as u16);
    done(env, result)
}

extern "C" fn lar(env: &mut X86Env, selector: u64) -> u64 {
    let result = tables::lar(env, selector as u16);
    value(env, result.map(|r| r.unwrap_or(u64::MAX)))
}

extern "C" fn lsl(env: &mut X86Env, selector: u64) -> u64 {
    let result = tables::lsl(env, selector as u16);
    value(env, result.map(|r| r.unwrap_or(u64::MAX)))
}

extern "C" fn verify(env: &mut X86Env, selector: u64, write: u64) -> u64 {
    let result = tables::verify(env, selector as u16, write != 0);
    value(env, result.map(u64::from))
}

extern "C" fn fxsave(env: &mut X86Env, va: u64, wide: u64) -> u64 {
    let result = area::fxsave(env, va, wide != 0);
    done(env, result)
}

extern "C" fn fxrstor(env: &mut X86Env, va: u64, wide: u64) -> u64 {
    let result = area::fxrstor(env, va, wide != 0);
    done(env, result)
}

/// #UD without CR4.OSXSAVE, #NM under CR0.TS.
fn xsave_enabled(env: &X86Env) -> Result<()> {
    enabled(env, Cr4::OSXSAVE)?;
    debug_assert!(env.cpuid.has(Feature::XSAVE));
    if env.cr0.contains(crate::state::Cr0::TS) { Err(exception(vector::NM, None)) } else { Ok(()) }
}

extern "C" fn xsave(env: &mut X86Env, va: u64, mask: u64, form: u64, wide: u64) -> u64 {
    use area::Form::*;
    let form = [Plain, Optimised, Compact, Supervisor][form.min(3) as usize];
    let result = xsave_enabled(env).and_then(|()| area::xsave(env, va, mask, form, wide != 0));
    done(env, result)
}

extern "C" fn xrstor(env: &mut X86Env, va: u64, mask: u64, supervisor: u64, wide: u64) -> u64 {
    let result = xsave_enabled(env).and_then(|()| area::xrstor(env, va, mask, supervisor != 0, wide != 0));
    done(env, result)
}
