//! The guest architecture as the translator sees it.
//!
//! Translating a block: one decoder runs over the bytes up to the end of the first page; each decoded instruction goes
//! through the dispatch table. A block ends after a control transfer, at its limits, at the page's end, or before an
//! instruction that crosses into the next page, so that only single-instruction blocks span pages.

use std::sync::Arc;

use iced_x86::{Decoder, DecoderError, DecoderOptions, FastFormatter, Instruction};
use tessera_tcg::env::Header;
use tessera_tcg::guest::{
    Access, BlockKey, CodeFetch, Exception, Guest, HelperDesc, MIN_FETCH, Mapping, Next, TranslateLimits,
    Translated,
};
use tessera_tcg::ir::{Builder, GlobalDesc, GlobalId};
use tessera_tcg::memory::{PAGE_MASK, PAGE_SIZE, PhysMemory};

use crate::helpers::{self, exception};
use crate::state::{self, X86Env, mmu_mode, mode};
use crate::system::exception::vector;
use crate::translate::{Translator, dispatch, trace, x87};

/// The x86-64 guest.
pub struct X86;

/// Longest instruction (SDM volume 2, section 2.3.11).
pub(crate) const MAX_INSN: usize = 15;

pub(crate) fn bitness(mode: u64) -> u32 {
    if mode & mode::CODE64 != 0 {
        64
    } else if mode & mode::CODE32 != 0 {
        32
    } else {
        16
    }
}

fn code_base(mode: u64) -> u64 {
    if mode & mode::CODE64 != 0 { 0 } else { mode >> mode::CODE_BASE_SHIFT }
}

/// Whether the instruction's last byte is beyond the limit of CS, if that is the usual one; other limits are checked when the
/// instruction runs, as blocks do not depend on them.
pub(crate) fn beyond_limit(mode: u64, ip: u64, len: usize) -> bool {
    mode & (mode::CODE_LIMIT | mode::DEBUG) == mode::CODE_LIMIT && ip + len as u64 - 1 > 0xffff
}

/// What a decoder says of the bytes that are no instruction.
pub(crate) fn invalid_length(i: &Instruction) -> bool {
    i.is_invalid() && i.len() >= MAX_INSN
}

impl Guest for X86 {
    type Env = X86Env;

    fn globals() -> &'static [GlobalDesc] {
        state::GLOBALS
    }

    fn pc_global() -> GlobalId {
        state::PC
    }

    fn helpers() -> &'static [HelperDesc] {
        &helpers::HELPERS
    }

    fn fp_control() -> Option<u32> {
        Some(std::mem::offset_of!(X86Env, mxcsr) as u32)
    }

    fn header(env: &mut X86Env) -> &mut Header {
        &mut env.header
    }

    fn block_key(env: &X86Env) -> BlockKey {
        BlockKey::new(env.rip, env.mode)
    }

    fn set_pc(env: &mut X86Env, pc: u64) {
        env.rip = pc;
    }

    fn translate(
        env: &X86Env,
        key: BlockKey,
        limits: TranslateLimits<'_>,
        code: &mut dyn CodeFetch,
        ir: &mut Builder,
    ) -> Result<Translated, Exception> {
        if !limits.path.is_empty() {
            return trace::translate(env, key, limits, code, ir);
        }
        let table = dispatch();
        let base = code_base(key.mode);
        let linear_mask = if key.mode & mode::CODE64 != 0 { u64::MAX } else { 0xffff_ffff };
        let start_ip = key.pc.wrapping_sub(base) & linear_mask;
        let mut t = Translator::new(ir, env, key, limits);
        let max_insns = if t.single { 1 } else { limits.max_insns.max(1) };

        let mut bytes = code.fetch(key.pc)?;
        let mut decoder = Decoder::with_ip(bitness(key.mode), bytes, start_ip, DecoderOptions::NONE);
        let mut i = Instruction::default();
        // Bytes and instructions that are done, the former before those at hand, and the bytes of the longest round.
        let (mut done, mut insns, mut before, mut longest) = (0usize, 0u32, 0usize, 0usize);
        while insns < max_insns && done < before + bytes.len() {
            let left = before + bytes.len() - done;
            let pc = key.pc.wrapping_add(done as u64) & linear_mask;
            if left < MAX_INSN && bytes.len() >= MIN_FETCH && (pc & PAGE_MASK) + (left as u64) < PAGE_SIZE {
                let Ok(more) = code.fetch(pc) else {
                    t.end_full(pc);
                    return Ok(Translated { bytes: longest.max(done) as u32, insns });
                };
                (bytes, before) = (more, done);
                let ip = start_ip.wrapping_add(done as u64) & linear_mask;
                decoder = Decoder::with_ip(bitness(key.mode), bytes, ip, DecoderOptions::NONE);
            }
            decoder.decode_out(&mut i);
            if i.is_invalid() && decoder.last_error() == DecoderError::NoMoreBytes {
                break;
            }
            let len = i.len().max(1);
            let ip = start_ip.wrapping_add(done as u64) & linear_mask;
            if beyond_limit(key.mode, ip, len) || invalid_length(&i) {
                if insns == 0 {
                    return Err(exception(vector::GP, Some(0)));
                }
                break;
            }
            t.x87_opcode = x87::opcode(&bytes[done - before..done - before + len]);
            t.instruction(table, pc, &i);
            done += len;
            insns += 1;
            if t.shadowed && !t.ended {
                // Behind an STI and the instruction after it, interrupts are looked at.
                t.goto_next();
            }
            if t.ended {
                return Ok(Translated { bytes: longest.max(done) as u32, insns });
            }
            if std::mem::take(&mut t.restarted) {
                longest = longest.max(done);
                (done, before) = (0, 0);
                bytes = code.fetch(key.pc)?;
                decoder = Decoder::with_ip(bitness(key.mode), bytes, start_ip, DecoderOptions::NONE);
            }
        }
        if insns > 0 {
            t.end_full(key.pc.wrapping_add(done as u64) & linear_mask);
            return Ok(Translated { bytes: longest.max(done) as u32, insns });
        }

        // The first instruction goes on in the next page. A decoder that has fifteen bytes never asks for more, so that there
        // is room, and no third page.
        let mut buf = [0u8; 2 * MAX_INSN];
        let bytes = &bytes[..bytes.len().min(MAX_INSN)];
        let page_bytes = bytes.len();
        buf[..page_bytes].copy_from_slice(bytes);
        let second = ((key.pc | PAGE_MASK).wrapping_add(1)) & linear_mask;
        let more = code.fetch(second)?;
        let more = &more[..more.len().min(MAX_INSN)];
        buf[page_bytes..page_bytes + more.len()].copy_from_slice(more);
        let joined = &buf[..page_bytes + more.len()];
        let mut decoder = Decoder::with_ip(bitness(key.mode), joined, start_ip, DecoderOptions::NONE);
        decoder.decode_out(&mut i);
        let len = i.len().max(1);
        if beyond_limit(key.mode, start_ip, len) || invalid_length(&i) {
            return Err(exception(vector::GP, Some(0)));
        }
        t.x87_opcode = x87::opcode(&joined[..len]);
        t.unroll = false;
        t.instruction(table, key.pc, &i);
        if !t.ended {
            t.end_full(t.next);
        }
        Ok(Translated { bytes: len as u32, insns: 1 })
    }

    fn dump(env: &X86Env) -> String {
        crate::system::dump(env)
    }

    fn disassemble(key: BlockKey, pc: u64, bytes: &[u8]) -> (String, usize) {
        let ip = pc.wrapping_sub(code_base(key.mode));
        let mut decoder = Decoder::with_ip(bitness(key.mode), bytes, ip, DecoderOptions::NONE);
        let i = decoder.decode();
        if i.is_invalid() {
            return ("(bad)".into(), 1);
        }
        let mut formatter = FastFormatter::new();
        let mut text = String::new();
        formatter.format(&i, &mut text);
        (text, i.len())
    }

    fn walk(
        env: &X86Env,
        memory: &Arc<dyn PhysMemory>,
        va: u64,
        access: Access,
        mmu: u8,
    ) -> Result<Mapping, Exception> {
        crate::mmu::walk(env, memory, va, access, mmu)
    }

    fn misaligned(_: u64) -> Exception {
        exception(vector::GP, Some(0))
    }

    fn main_mmu(mode: u64) -> u8 {
        (mode >> mode::MMU_SHIFT & 3) as u8
    }

    fn fetch_mmu(env: &X86Env) -> u8 {
        if env.cpl == 3 { mmu_mode::USER } else { mmu_mode::KERNEL }
    }

    fn address_space(env: &X86Env) -> u64 {
        crate::mmu::address_space(env)
    }

    fn address_bits(env: &X86Env) -> u32 {
        crate::mmu::address_bits(env)
    }

    fn changed_entry(env: &X86Env) -> Option<u64> {
        crate::mmu::changed_entry(env)
    }

    fn deliver_exception(env: &mut X86Env, exception: Exception) -> Next {
        crate::system::deliver_exception(env, exception)
    }

    fn left(env: &mut X86Env) {
        helpers::x87_native::save_unit(env);
    }

    fn handle_leave(env: &mut X86Env, code: u32) -> Next {
        crate::system::handle_leave(env, code)
    }

    fn poll_events(env: &mut X86Env) -> Next {
        crate::system::poll_events(env)
    }
}
