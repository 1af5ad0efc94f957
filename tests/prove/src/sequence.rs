//! A sequence of instructions, independent of where it lies.
//!
//! It consists of [`Step`]s: an instruction with what must go with it (an instruction before that prepares operands, one
//! behind that overwrites what is not comparable). Branches and code addresses name the step they lead to, so steps can be
//! left out when a mismatch is shrunk.

use iced_x86::{Code, Encoder, Instruction, Mnemonic, OpKind, Register, RflagsBits};

use crate::layout::{FINISH32, FINISH64};

/// What of an instruction depends on where a step lies.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Target {
    /// The branch target.
    Branch,
    /// The address of a RIP-relative memory operand.
    Memory,
    /// The immediate, 32 bits.
    Immediate,
}

/// A reference to a step.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Link {
    /// Which of the step's instructions.
    pub insn: usize,
    /// What of it.
    pub target: Target,
    /// The step; the number of steps for the end of the sequence.
    pub to: usize,
}

/// Instructions that stay together.
#[derive(Clone, Debug, Default)]
pub struct Step {
    /// In order.
    pub insns: Vec<Instruction>,
    /// The step that one of them refers to.
    pub link: Option<Link>,
    /// Where control goes by the link from the last instruction (an indirect jump), if that is not the branch itself.
    pub goes_to_link: bool,
    /// It only makes flags defined, so it may be made anew.
    pub is_wash: bool,
}

impl Step {
    /// A step of one instruction.
    pub fn of(i: Instruction) -> Step {
        Step { insns: vec![i], ..Step::default() }
    }
}

/// A sequence.
#[derive(Clone, Debug)]
pub struct Sequence {
    /// 64-bit code; else 32-bit code.
    pub wide: bool,
    /// In order.
    pub steps: Vec<Step>,
}

/// An instruction in its place.
#[derive(Clone, Copy, Debug)]
pub struct Placed {
    /// Its address.
    pub ip: u64,
    /// The instruction; branch targets and such are set.
    pub insn: Instruction,
    /// Flags (RFLAGS bits) that are undefined before it.
    pub undefined: u32,
}

/// A sequence at an address.
#[derive(Clone, Debug, Default)]
pub struct Code64 {
    /// The bytes, the jump at the end included.
    pub bytes: Vec<u8>,
    /// Its instructions, without the jump at the end.
    pub insns: Vec<Placed>,
    /// Flags that are undefined at the end.
    pub undefined: u32,
    /// Flags that are undefined somewhere.
    pub ever_undefined: u32,
}

impl Code64 {
    /// The flags that are undefined when execution stops at an address.
    pub fn undefined_at(&self, ip: u64, end: u64) -> u32 {
        if ip == end {
            return self.undefined;
        }
        self.insns.iter().find(|p| p.ip == ip).map_or(self.ever_undefined, |p| p.undefined)
    }
}

/// From iced's bits to those of RFLAGS.
fn eflags(bits: u32) -> u32 {
    let mut out = 0;
    for (of, flag) in [
        (RflagsBits::OF, 1 << 11),
        (RflagsBits::SF, 1 << 7),
        (RflagsBits::ZF, 1 << 6),
        (RflagsBits::AF, 1 << 4),
        (RflagsBits::CF, 1),
        (RflagsBits::PF, 1 << 2),
    ] {
        if bits & of != 0 {
            out |= flag;
        }
    }
    out
}

/// The flags that an instruction reads.
pub fn flags_read(i: &Instruction) -> u32 {
    eflags(i.rflags_read())
}

/// What of `undefined` flags is undefined after an instruction.
fn undefined_after(i: &Instruction, undefined: u32) -> u32 {
    use Mnemonic::*;
    let made = eflags(i.rflags_undefined());
    let written = eflags(i.rflags_written() | i.rflags_cleared() | i.rflags_set());
    let last = i.op_count().saturating_sub(1);
    // Shifts by zero and repetitions zero times change no flags; comparisons on the x87 may fault and change none.
    let maybe = match i.mnemonic() {
        Shl | Sal | Shr | Sar | Rol | Ror | Rcl | Rcr | Shld | Shrd => {
            i.op_kind(last) == OpKind::Register || i.immediate8() & 31 == 0 || i.immediate8() & 63 == 0
        }
        Cmpsb | Cmpsw | Cmpsd | Cmpsq | Scasb | Scasw | Scasd | Scasq => {
            i.has_rep_prefix() || i.has_repne_prefix()
        }
        Fcomi | Fcomip | Fucomi | Fucomip => true,
        _ => false,
    };
    if maybe { undefined | made } else { undefined & !written | made }
}

/// Registers that a 64-bit instruction may not be given as flags' wash: none; CMP of these two.
fn wash(wide: bool, n: u32) -> Step {
    let mut i = Instruction::default();
    let (a, b) = (n % 4, n / 4 % 4);
    if wide {
        i.set_code(Code::Cmp_r64_rm64);
        i.set_op0_kind(OpKind::Register);
        i.set_op0_register(Register::RAX + a);
        i.set_op1_kind(OpKind::Register);
        i.set_op1_register(Register::RAX + b);
    } else {
        i.set_code(Code::Cmp_r32_rm32);
        i.set_op0_kind(OpKind::Register);
        i.set_op0_register(Register::EAX + a);
        i.set_op1_kind(OpKind::Register);
        i.set_op1_register(Register::EAX + b);
    }
    Step { is_wash: true, ..Step::of(i) }
}

impl Sequence {
    /// Adds comparisons where an instruction would look at undefined flags, so that none does.
    ///
    /// Flow is followed in order: a branch forward carries what is undefined to its target; a branch back must not bring
    /// anything there that was not undefined before.
    pub fn define_flags(&mut self) {
        self.drop_steps(|s| s.is_wash);
        let old = std::mem::take(&mut self.steps);
        let count = old.len();
        let mut incoming = vec![0u32; count + 1];
        let mut place = Vec::with_capacity(count + 1);
        let mut undefined = 0;
        let mut at_step = vec![0u32; count];
        for (n, step) in old.into_iter().enumerate() {
            undefined |= incoming[n];
            place.push(self.steps.len());
            // What it reads, or carries back.
            let mut then = undefined;
            let mut bad = 0;
            for i in &step.insns {
                bad |= flags_read(i) & then;
                then = undefined_after(i, then);
            }
            if let Some(link) = step.link
                && link.to <= n
            {
                bad |= then & !at_step.get(link.to).copied().unwrap_or(0);
            }
            if bad != 0 {
                self.steps.push(wash(self.wide, n as u32 * 5 + 1));
                undefined = 0;
            }
            at_step[n] = undefined;
            for (k, i) in step.insns.iter().enumerate() {
                if let Some(link) = step.link
                    && (link.insn == k && link.target == Target::Branch
                        || step.goes_to_link && k + 1 == step.insns.len())
                    && link.to > n
                {
                    incoming[link.to] |= undefined;
                }
                undefined = undefined_after(i, undefined);
            }
            self.steps.push(step);
        }
        place.push(self.steps.len());
        for step in &mut self.steps {
            if let Some(link) = &mut step.link {
                link.to = place[link.to];
            }
        }
    }

    /// Leaves out steps; who referred to one refers to the next that stays.
    pub fn drop_steps(&mut self, gone: impl Fn(&Step) -> bool) {
        let mut place = Vec::with_capacity(self.steps.len() + 1);
        let mut kept = 0;
        for step in &self.steps {
            place.push(kept);
            kept += usize::from(!gone(step));
        }
        place.push(kept);
        self.steps.retain(|s| !gone(s));
        for step in &mut self.steps {
            if let Some(link) = &mut step.link {
                link.to = place[link.to];
            }
        }
    }

    /// Leaves out the step of that number.
    pub fn drop_step(&mut self, n: usize) {
        let count = std::cell::Cell::new(0);
        // `drop_steps` asks twice, in order.
        let total = self.steps.len();
        self.drop_steps(|_| {
            let at = count.get();
            count.set((at + 1) % total);
            at == n
        });
    }

    /// Encodes for an address; `None` if that is impossible (a short branch that is too far).
    pub fn place(&self, at: u64, encoder: &mut Encoder, out: &mut Code64) -> Option<()> {
        // What an encoding that failed has left.
        drop(encoder.take_buffer());
        let mut starts = [0u64; 65];
        let has_links = self.steps.iter().any(|s| s.link.is_some());
        // Lengths do not depend on targets in reach.
        let passes = if has_links { 2 } else { 1 };
        for pass in 0..passes {
            out.bytes.clear();
            out.insns.clear();
            let mut ip = at;
            for (n, step) in self.steps.iter().enumerate() {
                *starts.get_mut(n)? = ip;
                for (k, insn) in step.insns.iter().enumerate() {
                    let mut insn = *insn;
                    if let Some(link) = step.link
                        && link.insn == k
                    {
                        let to = if pass + 1 == passes { starts[link.to] } else { ip };
                        match link.target {
                            // With a 16-bit operand size, the upper half of EIP is cut off.
                            Target::Branch if insn.op0_kind() == OpKind::NearBranch16 => {
                                insn.set_near_branch16(to as u16)
                            }
                            Target::Branch if self.wide => insn.set_near_branch64(to),
                            Target::Branch => insn.set_near_branch32(to as u32),
                            Target::Memory => insn.set_memory_displacement64(to),
                            Target::Immediate => insn.set_immediate32(to as u32),
                        }
                    }
                    encoder.encode(&insn, ip).ok()?;
                    let bytes = encoder.take_buffer();
                    out.bytes.extend_from_slice(&bytes);
                    insn.set_ip(ip);
                    insn.set_len(bytes.len());
                    out.insns.push(Placed { ip, insn, undefined: 0 });
                    ip += bytes.len() as u64;
                    encoder.set_buffer({
                        let mut b = bytes;
                        b.clear();
                        b
                    });
                }
            }
            *starts.get_mut(self.steps.len())? = ip;
        }
        let end = at + out.bytes.len() as u64;
        let finish = if self.wide { FINISH64 } else { FINISH32 };
        out.bytes.push(0xe9);
        out.bytes.extend_from_slice(&(finish.wrapping_sub(end + 5) as u32).to_le_bytes());
        self.note_undefined(out);
        Some(())
    }

    fn note_undefined(&self, out: &mut Code64) {
        let mut incoming = [0u32; 65];
        let mut undefined = 0;
        let mut at = 0;
        out.ever_undefined = 0;
        for (n, step) in self.steps.iter().enumerate() {
            undefined |= incoming[n];
            for (k, i) in step.insns.iter().enumerate() {
                out.insns[at].undefined = undefined;
                at += 1;
                if let Some(link) = step.link
                    && (link.insn == k && link.target == Target::Branch
                        || step.goes_to_link && k + 1 == step.insns.len())
                    && link.to > n
                {
                    incoming[link.to] |= undefined;
                }
                undefined = undefined_after(i, undefined);
                out.ever_undefined |= undefined;
            }
        }
        out.undefined = undefined | incoming[self.steps.len()];
    }
}

#[cfg(test)]
mod tests {
    use iced_x86::{Decoder, DecoderOptions};

    use super::*;
    use crate::layout::CODE;

    fn step(code: Code, registers: &[Register]) -> Step {
        let mut i = Instruction::default();
        i.set_code(code);
        for (n, r) in registers.iter().enumerate() {
            i.set_op_kind(n as u32, OpKind::Register);
            i.set_op_register(n as u32, *r);
        }
        Step::of(i)
    }

    /// `je` to a step.
    fn je(to: usize) -> Step {
        let mut i = Instruction::default();
        i.set_code(Code::Je_rel8_64);
        i.set_op_kind(0, OpKind::NearBranch64);
        Step { link: Some(Link { insn: 0, target: Target::Branch, to }), ..Step::of(i) }
    }

    fn place(sequence: &Sequence) -> Code64 {
        let mut out = Code64::default();
        sequence.place(CODE + 0x100, &mut Encoder::new(64), &mut out).expect("it can be encoded");
        out
    }

    #[test]
    fn undefined_flags_are_not_looked_at() {
        let mul = step(Code::Mul_rm64, &[Register::RCX]);
        let sets = step(Code::Sets_rm8, &[Register::AL]);
        let setb = step(Code::Setb_rm8, &[Register::AL]);
        let mut s = Sequence { wide: true, steps: vec![mul.clone(), setb, sets] };
        s.define_flags();
        let washes: Vec<_> = s.steps.iter().map(|s| s.is_wash).collect();
        // MUL defines CF, but not SF.
        assert_eq!(washes, [false, false, true, false]);
        assert_eq!(place(&s).undefined, 0);

        let mut s = Sequence { wide: true, steps: vec![mul] };
        s.define_flags();
        let placed = place(&s);
        assert_eq!(placed.undefined, 0xd4, "SF, ZF, AF and PF");
        assert_eq!(placed.undefined_at(CODE + 0x100, 0), 0);
    }

    #[test]
    fn what_a_branch_skips_may_not_have_defined_flags() {
        let mul = step(Code::Mul_rm64, &[Register::RCX]);
        let add = step(Code::Add_rm64_r64, &[Register::RAX, Register::RCX]);
        let sets = step(Code::Sets_rm8, &[Register::AL]);
        // je would read an undefined ZF, so it gets a comparison; the target of another branch is not helped by that.
        let mut jump = je(3);
        jump.insns[0].set_code(Code::Jb_rel8_64);
        let mut s = Sequence { wide: true, steps: vec![mul, jump, add, sets] };
        s.define_flags();
        assert!(s.steps[3].is_wash, "before SETS: the branch comes there with what MUL left undefined");
        assert_eq!(s.steps[1].link.expect("a branch").to, 3, "the branch goes to the comparison");
    }

    #[test]
    fn branches_follow_their_step() {
        let nop = step(Code::Nopd, &[]);
        let mut s = Sequence { wide: true, steps: vec![nop.clone(), je(3), nop.clone(), nop] };
        s.drop_step(0);
        assert_eq!(s.steps.len(), 3);
        let placed = place(&s);
        assert_eq!(placed.insns[0].insn.near_branch_target(), placed.insns[2].ip);
        let decoded = Decoder::with_ip(64, &placed.bytes, CODE + 0x100, DecoderOptions::NONE).decode();
        assert_eq!(decoded.near_branch_target(), placed.insns[2].ip);
        s.drop_step(2);
        s.drop_step(1);
        let placed = place(&s);
        assert_eq!(placed.insns[0].insn.near_branch_target(), CODE + 0x100 + placed.bytes.len() as u64 - 5);
    }
}
