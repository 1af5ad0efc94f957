//! FXSAVE, XSAVE and their inverses (SDM volume 1, sections 10.5 and 13.7 to 13.11).
//!
//! An area is built or parsed in a buffer of the host. What an instruction does not define stays as it is: only the
//! [`Parts`] that it saves are copied to guest memory.
//!
//! Choices: XSAVEOPT and XSAVEC use the init optimisation (a component in its initial configuration is not written), not
//! the modified one. There are no supervisor components ([`SUPERVISOR`]), so XSAVES and XRSTORS differ from XSAVEC and XRSTOR
//! by their privilege and by what they refuse. The front ends see to #UD and #NM; alignment is checked here.

use tessera_tcg::guest::Access;
use tessera_tcg::softmmu;

use super::control::write_pkru;
use super::exception::gp;
use super::{Result, data_mmu};
use crate::cpuid::Feature;
use crate::cpuid::xstate::{self, COMPONENTS, component};
use crate::guest::X86;
use crate::helpers::sse::{MXCSR_EXISTING, mxcsr, set_mxcsr};
use crate::helpers::x87::report;
use crate::helpers::x87_image;
use crate::state::{Fpu, X86Env};

const X87: u64 = 1 << component::X87;
const SSE: u64 = 1 << component::SSE;
const AVX: u64 = 1 << component::AVX;
const PKRU: u64 = 1 << component::PKRU;
const COMPACT: u64 = 1 << 63;
/// MXCSR after initialisation.
const MXCSR_INIT: u32 = 0x1f80;

/// Bytes of the largest area: legacy region, header, all components.
const AREA: usize = 576 + 256 + 8;
const HEADER: usize = 512;

type Area = [u8; AREA];

/// Which of the XSAVE family.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Form {
    /// XSAVE.
    Plain,
    /// XSAVEOPT.
    Optimised,
    /// XSAVEC.
    Compact,
    /// XSAVES: XSAVEC that also saves what IA32_XSS enables.
    Supervisor,
}

/// Which bytes of an area are to be written: stretches in ascending order.
#[derive(Default)]
struct Parts {
    stretches: [(usize, usize); 8],
    count: usize,
}

impl Parts {
    /// Adds `len` bytes from `start` on.
    fn add(&mut self, start: usize, len: usize) {
        match self.stretches[..self.count].last_mut() {
            Some((at, before)) if *at + *before == start => *before += len,
            _ => {
                self.stretches[self.count] = (start, len);
                self.count += 1;
            }
        }
    }

    /// Copies them to guest memory, which is known to be writable.
    fn store(&self, env: &mut X86Env, va: u64, area: &[u8], mmu: u8) -> Result<()> {
        self.stretches[..self.count].iter().try_for_each(|&(start, len)| {
            let bytes = &area[start..start + len];
            softmmu::store_bytes::<X86>(env, va.wrapping_add(start as u64), bytes, mmu)
        })
    }
}

fn put(area: &mut [u8], at: usize, value: u64, len: usize) {
    area[at..at + len].copy_from_slice(&value.to_le_bytes()[..len]);
}

fn get(area: &[u8], at: usize, len: usize) -> u64 {
    let mut word = [0; 8];
    word[..len].copy_from_slice(&area[at..at + len]);
    u64::from_le_bytes(word)
}

/// Supervisor state components that exist: the bits that IA32_XSS can have.
pub const SUPERVISOR: u64 = 0;

/// Components that an instruction may name.
fn enabled(env: &X86Env, supervisor: bool) -> u64 {
    env.xcr0 | if supervisor { env.msr.xss } else { 0 }
}

/// Number of XMM registers that are saved: eight outside of 64-bit mode.
fn xmm_count(env: &X86Env) -> usize {
    if env.code64() { 16 } else { 8 }
}

/// x87 part of the legacy region; `wide` stores 64-bit pointers (REX.W).
pub(crate) fn put_x87(fpu: &Fpu, area: &mut [u8], wide: bool) {
    x87_image::store_fx(fpu, wide, area);
}

pub(crate) fn get_x87(area: &[u8], wide: bool) -> Fpu {
    let mut fpu = Fpu::INITIAL;
    x87_image::load_fx(&mut fpu, wide, area);
    fpu
}

/// Loads the x87 unit from the legacy region.
fn load_x87(env: &mut X86Env, area: &[u8], wide: bool) {
    let before = env.fpu.status;
    env.fpu = get_x87(area, wide);
    report(env, before);
    if env.cpuid.has(Feature::ZERO_FCS_FDS) {
        (env.fpu.cs, env.fpu.ds) = (0, 0);
    }
}

fn put_mxcsr(env: &mut X86Env, area: &mut [u8]) {
    let word = mxcsr(env);
    put(area, 24, word as u64, 4);
    put(area, 28, MXCSR_EXISTING as u64, 4);
}

fn put_xmm(env: &X86Env, area: &mut [u8]) {
    for n in 0..xmm_count(env) {
        put(area, 160 + 16 * n, env.vec[n].0[0], 8);
        put(area, 168 + 16 * n, env.vec[n].0[1], 8);
    }
}

fn get_xmm(env: &mut X86Env, area: &[u8]) {
    for n in 0..xmm_count(env) {
        env.vec[n].0[0] = get(area, 160 + 16 * n, 8);
        env.vec[n].0[1] = get(area, 168 + 16 * n, 8);
    }
}

/// Copies a part of the area at `va` from guest memory.
fn load_part(
    env: &mut X86Env,
    (va, mmu): (u64, u8),
    area: &mut [u8],
    start: usize,
    len: usize,
) -> Result<()> {
    softmmu::load_bytes::<X86>(env, va.wrapping_add(start as u64), &mut area[start..start + len], mmu)
}

/// Raises what writing an area raises. Silicon looks at its end first.
fn probe_area(env: &mut X86Env, va: u64, len: u64, mmu: u8) -> Result<()> {
    softmmu::probe::<X86>(env, va.wrapping_add(len - 1), 1, Access::Write, mmu)?;
    softmmu::probe::<X86>(env, va, len, Access::Write, mmu)
}

/// FXSAVE (with REX.W if `wide`) to a linear address.
pub fn fxsave(env: &mut X86Env, va: u64, wide: bool) -> Result<()> {
    if va & 15 != 0 {
        return Err(gp(0));
    }
    let mut area = [0u8; 512];
    put_x87(&env.fpu, &mut area, wide);
    put_mxcsr(env, &mut area);
    put_xmm(env, &mut area);
    let len = 160 + 16 * xmm_count(env);
    let mmu = data_mmu(env, env.cpl);
    probe_area(env, va, 512, mmu)?;
    softmmu::store_bytes::<X86>(env, va, &area[..len], mmu)
}

/// FXRSTOR.
pub fn fxrstor(env: &mut X86Env, va: u64, wide: bool) -> Result<()> {
    if va & 15 != 0 {
        return Err(gp(0));
    }
    let mut area = [0u8; 512];
    let mmu = data_mmu(env, env.cpl);
    // Silicon looks at the end first.
    softmmu::probe::<X86>(env, va.wrapping_add(511), 1, Access::Read, mmu)?;
    softmmu::load_bytes::<X86>(env, va, &mut area, mmu)?;
    let word = get(&area, 24, 4) as u32;
    if word & !MXCSR_EXISTING != 0 {
        return Err(gp(0));
    }
    load_x87(env, &area, wide);
    env.update_fpu_mode();
    get_xmm(env, &area);
    set_mxcsr(env, word);
    Ok(())
}

/// The state components that are not in their initial configuration (XINUSE).
pub fn in_use(env: &X86Env) -> u64 {
    let (mut low, mut high) = (0, 0);
    for v in &env.vec[..xmm_count(env)] {
        low |= v.0[0] | v.0[1];
        high |= v.0[2] | v.0[3];
    }
    let bit = |component: u64, used: bool| if used { component } else { 0 };
    bit(X87, !is_initial(&env.fpu)) | bit(SSE, low != 0) | bit(AVX, high != 0) | bit(PKRU, env.pkru != 0)
}

/// Whether the x87 unit is in its initial configuration.
fn is_initial(fpu: &Fpu) -> bool {
    let words = |f: &Fpu| (f.control, f.status, f.valid, f.opcode, f.ip, f.cs, f.dp, f.ds);
    // The registers last, and all at once.
    words(fpu) == words(&Fpu::INITIAL) && fpu.regs.as_flattened() == Fpu::INITIAL.regs.as_flattened()
}

/// Bytes of an extended component that an instruction accesses: outside of 64-bit mode, half of the registers.
fn component_size(env: &X86Env, index: u32) -> usize {
    match index {
        component::AVX => 16 * xmm_count(env),
        _ => 8,
    }
}

fn put_component(env: &X86Env, index: u32, out: &mut [u8]) {
    match index {
        component::AVX => {
            for n in 0..xmm_count(env) {
                put(out, 16 * n, env.vec[n].0[2], 8);
                put(out, 16 * n + 8, env.vec[n].0[3], 8);
            }
        }
        _ => put(out, 0, env.pkru as u64, 8),
    }
}

fn get_component(env: &mut X86Env, index: u32, from: Option<&[u8]>) {
    match index {
        component::AVX => {
            for n in 0..xmm_count(env) {
                env.vec[n].0[2] = from.map_or(0, |f| get(f, 16 * n, 8));
                env.vec[n].0[3] = from.map_or(0, |f| get(f, 16 * n + 8, 8));
            }
        }
        _ => write_pkru(env, from.map_or(0, |f| get(f, 0, 4) as u32)),
    }
}

/// XSAVE, XSAVEOPT, XSAVEC or XSAVES of the components in `mask` (EDX:EAX).
pub fn xsave(env: &mut X86Env, va: u64, mask: u64, form: Form, wide: bool) -> Result<()> {
    let supervisor = form == Form::Supervisor;
    if supervisor && env.cpl != 0 || va & 63 != 0 {
        return Err(gp(0));
    }
    let mmu = data_mmu(env, env.cpl);
    let rfbm = mask & enabled(env, supervisor);
    let mut used = in_use(env);
    let compact = matches!(form, Form::Compact | Form::Supervisor);
    if compact && mxcsr(env) != MXCSR_INIT {
        used |= SSE;
    }
    // What is written: XSAVE writes initial configurations, too.
    let saved = if form == Form::Plain { rfbm } else { rfbm & used };

    // The whole area must be writable before any of it is written.
    let len = if compact { xstate::compact_size(rfbm) } else { xstate::standard_size(rfbm) } as usize;
    let mut area: Area = [0; AREA];
    let area = &mut area[..len];
    probe_area(env, va, len as u64, mmu)?;

    let mut parts = Parts::default();
    if saved & X87 != 0 {
        put_x87(&env.fpu, area, wide);
        parts.add(0, 24);
    }
    let control = if compact { saved & SSE != 0 } else { rfbm & (SSE | AVX) != 0 };
    if control {
        put_mxcsr(env, area);
        parts.add(24, 8);
    }
    if saved & X87 != 0 {
        parts.add(32, 128);
    }
    if saved & SSE != 0 {
        put_xmm(env, area);
        parts.add(160, 16 * xmm_count(env));
    }
    if compact {
        put(area, HEADER, rfbm & used, 8);
        put(area, HEADER + 8, rfbm | COMPACT, 8);
        parts.add(HEADER, 16);
    } else {
        let old = softmmu::load::<X86>(env, va.wrapping_add(HEADER as u64), 8, mmu)?;
        put(area, HEADER, old & !rfbm | used & rfbm, 8);
        parts.add(HEADER, 8);
    }
    let mut at = xstate::EXTENDED;
    for c in COMPONENTS.iter().filter(|c| rfbm >> c.index & 1 != 0) {
        let start = if compact { at } else { c.offset } as usize;
        at += c.size;
        if saved >> c.index & 1 != 0 {
            let size = component_size(env, c.index);
            put_component(env, c.index, &mut area[start..start + size]);
            parts.add(start, size);
        }
    }
    parts.store(env, va, area, mmu)
}

/// XRSTOR, or as `supervisor` XRSTORS, of the components in `mask` (EDX:EAX).
pub fn xrstor(env: &mut X86Env, va: u64, mask: u64, supervisor: bool, wide: bool) -> Result<()> {
    if supervisor && env.cpl != 0 || va & 63 != 0 {
        return Err(gp(0));
    }
    let mmu = data_mmu(env, env.cpl);
    let known = enabled(env, supervisor);
    let rfbm = mask & known;
    let mut area: Area = [0; AREA];
    // Silicon looks at XCOMP_BV first.
    softmmu::probe::<X86>(env, va.wrapping_add(HEADER as u64 + 8), 8, Access::Read, mmu)?;
    load_part(env, (va, mmu), &mut area, HEADER, 64)?;
    let (bv, comp) = (get(&area, HEADER, 8), get(&area, HEADER + 8, 8));
    let compact = comp & COMPACT != 0;
    let layout = comp & !COMPACT;
    // What is to be loaded is looked at before the header is, whether the area has it or not.
    let load_control = if compact { rfbm & bv & SSE != 0 } else { rfbm & (SSE | AVX) != 0 };
    if rfbm & X87 != 0 {
        load_part(env, (va, mmu), &mut area, 0, 160)?;
    }
    if load_control || rfbm & SSE != 0 {
        load_part(env, (va, mmu), &mut area, 24, 8)?;
    }
    if rfbm & SSE != 0 {
        load_part(env, (va, mmu), &mut area, 160, 16 * xmm_count(env))?;
    }
    let mut at = xstate::EXTENDED;
    let mut starts = [0; COMPONENTS.len()];
    for (c, start) in COMPONENTS.iter().zip(&mut starts) {
        *start = if compact { at } else { c.offset } as usize;
        at += if layout >> c.index & 1 != 0 { c.size } else { 0 };
        if rfbm >> c.index & 1 != 0 && (!compact || layout >> c.index & 1 != 0) {
            // Silicon looks at the end first.
            let size = component_size(env, c.index);
            softmmu::probe::<X86>(env, va.wrapping_add((*start + size) as u64 - 1), 1, Access::Read, mmu)?;
            load_part(env, (va, mmu), &mut area, *start, size)?;
        }
    }
    // The standard form does not look at the rest of the header (section 13.8.1).
    let reserved_zero = if compact { 16..64 } else { 8..24 };
    let bad =
        if compact { layout & !known != 0 || bv & !layout != 0 } else { supervisor || bv & !known != 0 };
    // The compacted format exists with XSAVEC or XSAVES.
    let unknown = compact && !env.cpuid.has(Feature::XSAVEC) && !env.cpuid.has(Feature::XSAVES);
    if bad || unknown || area[HEADER..][reserved_zero].iter().any(|&b| b != 0) {
        return Err(gp(0));
    }
    let control = get(&area, 24, 4) as u32;
    if load_control && control & !MXCSR_EXISTING != 0 {
        return Err(gp(0));
    }

    if rfbm & X87 != 0 {
        if bv & X87 != 0 {
            load_x87(env, &area, wide);
        } else {
            env.fpu = Fpu::INITIAL;
        }
        env.update_fpu_mode();
    }
    if rfbm & SSE != 0 {
        if bv & SSE != 0 {
            get_xmm(env, &area);
        } else {
            for n in 0..xmm_count(env) {
                env.vec[n].0[0] = 0;
                env.vec[n].0[1] = 0;
            }
        }
    }
    for (c, start) in COMPONENTS.iter().zip(starts) {
        if rfbm >> c.index & 1 != 0 {
            let from = (bv >> c.index & 1 != 0).then(|| &area[start..start + c.size as usize]);
            get_component(env, c.index, from);
        }
    }
    if load_control {
        set_mxcsr(env, control);
    } else if compact && rfbm & SSE != 0 {
        set_mxcsr(env, MXCSR_INIT);
    }
    Ok(())
}
