//! Traces: blocks along a path that the guest has taken.
//!
//! Problem: what is executed most is loops, which go from block to block; at each block's end flags and registers go home,
//! and each indirect jump looks for its target. Strategy: the engine records which instructions a hot loop executes one after
//! the other, and has a block made of just these. A jump that the path follows is no end of the block:
//! - a direct jump or call is nothing (but for the return address that a call pushes);
//! - a conditional branch leaves by a side exit if it goes the other way;
//! - an indirect jump or a return leaves by a side exit unless it goes to the same address as on the path.
//!
//! Invariants:
//! - A trace is as good as any other block for its start: the path decides what is fast, never what is right.
//! - No cycle of chained blocks is without a poll, although the jumps within a trace do not poll: what leads to its start polls,
//!   and so do all exits behind a jump that went back or to an address that is not known in advance.

use iced_x86::{Decoder, DecoderError, DecoderOptions, Instruction};
use tessera_tcg::guest::{BlockKey, CodeFetch, Exception, TranslateLimits, Translated};
use tessera_tcg::ir::{Builder, Cond, Exit, FlagOp, GlobalSet, Inst, Value, Width};

use super::{Translator, dispatch, x87};
use crate::guest::{MAX_INSN, beyond_limit, bitness, invalid_length};
use crate::helpers::exception;
use crate::state::{PC, X86Env};
use crate::system::exception::vector;

/// Where a trace goes on.
#[derive(Clone, Copy, Debug)]
pub struct Trail {
    /// Its start.
    pub head: u64,
    /// Address of the instruction that follows the current one on the path, if any does.
    next: Option<u64>,
    /// That is the start again, and the trace ends.
    closes: bool,
    /// The current instruction has jumped there.
    went: bool,
    /// A jump on the path so far went back, or somewhere by a register.
    back: bool,
}

impl Trail {
    /// Whether an exit to `target` polls, wherever it is.
    pub fn polls(&self, target: u64) -> bool {
        self.back || target == self.head
    }
}

impl Translator<'_> {
    /// Goes on at `target` within the block, if that is where the path goes on.
    pub(super) fn follow(&mut self, target: u64) -> bool {
        let pc = self.pc;
        match &mut self.trail {
            Some(trail) if trail.next == Some(target) && !trail.closes && !self.single && !self.shadowed => {
                trail.went = true;
                trail.back |= target <= pc;
                true
            }
            _ => false,
        }
    }

    /// [`Translator::branch`], if the path goes one of its ways: the other is a side exit.
    pub(super) fn follow_branch(&mut self, cond: Cond, f: Value, taken: u64, fall: u64) -> bool {
        let (cond, other) = if self.follow(taken) {
            (cond.negate(), fall)
        } else if self.follow(fall) {
            (cond, taken)
        } else {
            return false;
        };
        let exit = if self.is_near(other) {
            self.near_exit(other)
        } else {
            self.b.exit(Exit { pc: other, indirect: false, poll: false, chain: false, dead: GlobalSet::NONE })
        };
        self.b.push(Inst::ExitIf { cond, f, exit });
        true
    }

    /// [`Translator::goto_indirect`] to a linear address, if the path goes somewhere: any other is a side exit.
    pub(super) fn follow_indirect(&mut self, linear: Value) -> bool {
        let Some(trail) = self.trail.as_mut().filter(|_| !self.single && !self.shadowed) else {
            return false;
        };
        let Some(next) = trail.next else { return false };
        (trail.went, trail.back) = (true, true);
        let expected = self.b.iconst(next);
        let f = self.b.flags(FlagOp::Sub, Width::W64, linear, expected);
        let exit = Exit { pc: 0, indirect: true, poll: false, chain: false, dead: GlobalSet::NONE };
        let exit = self.b.exit(exit);
        self.b.set(PC, linear);
        self.b.push(Inst::ExitIf { cond: Cond::NE, f, exit });
        true
    }
}

/// [`Guest::translate`](tessera_tcg::guest::Guest::translate) along `limits.path`.
pub fn translate(
    env: &X86Env,
    key: BlockKey,
    limits: TranslateLimits<'_>,
    code: &mut dyn CodeFetch,
    ir: &mut Builder,
) -> Result<Translated, Exception> {
    let table = dispatch();
    let mut t = Translator::new(ir, env, key, limits);
    let mut i = Instruction::default();
    let mut insns = 0;
    let last = limits.path.len() - 1;
    // A path that comes back to its start says so at its end.
    let loops = last > 0 && limits.path[last] == key.pc;
    let mut goes_on = key.pc;
    for (n, &pc) in limits.path[..=last - usize::from(loops)].iter().enumerate() {
        debug_assert_eq!(pc, goes_on);
        let mut buf = [0; MAX_INSN];
        let ip = t.wrap(pc.wrapping_sub(t.cs_base));
        let mut decode = |bytes: &[u8]| {
            let mut decoder = Decoder::with_ip(bitness(key.mode), bytes, ip, DecoderOptions::NONE);
            decoder.decode_out(&mut i);
            i.is_invalid() && decoder.last_error() == DecoderError::NoMoreBytes
        };
        let mut len = match code.fetch(pc) {
            Ok(bytes) => copy(bytes, &mut buf),
            Err(exception) if n == 0 => return Err(exception),
            Err(_) => break,
        };
        let mut cut = decode(&buf[..len]);
        if cut
            && len < MAX_INSN
            && let Ok(more) = code.fetch(t.wrap(pc.wrapping_add(len as u64)))
        {
            // It goes on in another page.
            len += copy(more, &mut buf[len..]);
            cut = decode(&buf[..len]);
        }
        let bytes = &buf[..len];
        if cut || beyond_limit(key.mode, ip, i.len().max(1)) || invalid_length(&i) {
            if n == 0 {
                return Err(exception(vector::GP, Some(0)));
            }
            break;
        }
        let next = limits.path.get(n + 1).copied();
        let back = t.trail.is_some_and(|trail| trail.back);
        t.trail = Some(Trail { head: key.pc, next, closes: loops && n + 1 == last, went: false, back });
        t.x87_opcode = x87::opcode(&bytes[..i.len().max(1)]);
        t.instruction(table, pc, &i);
        insns += 1;
        if t.shadowed && !t.ended {
            t.goto_next();
        }
        if t.ended {
            break;
        }
        goes_on = next.filter(|_| t.trail.is_some_and(|trail| trail.went)).unwrap_or(t.next);
        if next != Some(goes_on) || t.single {
            break;
        }
    }
    if !t.ended {
        t.end_full(goes_on);
    }
    Ok(Translated { bytes: 0, insns })
}

/// Copies what there is room for; how much that was.
fn copy(from: &[u8], to: &mut [u8]) -> usize {
    let len = from.len().min(to.len());
    to[..len].copy_from_slice(&from[..len]);
    len
}
