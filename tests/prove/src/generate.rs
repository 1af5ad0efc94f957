//! Makes cases: a sequence, and the state that it starts from.
//!
//! A case is a function of the seed, its number and the filter alone. The first numbers are *directed*: each instruction by
//! itself, several times. The others are random sequences, half of whose instructions are drawn from all there are and half
//! from those that integer code is made of. Registers have roles (pointers into the window, small numbers, values), so that
//! memory operands mostly find memory and repetitions end.

use iced_x86::{
    Code, Encoder, Instruction, InstructionInfoFactory, Mnemonic, OpAccess, OpCodeOperandKind as Op, OpKind,
    Register,
};

use crate::codes::Table;
use crate::frame::{Frame, at};
use crate::layout::{CODE, CS32, CS64};
use crate::operands::{self, Roles, gpr};
use crate::sequence::{Link, Sequence, Step, Target};
use crate::values::Pools;
use tessera_x86::testing::Rng;

/// How often each instruction comes by itself, before random sequences.
pub const DIRECTED_ROUNDS: u64 = 8;
/// Steps of a sequence, at most.
const STEPS: usize = 12;

/// A sequence with the state before it.
#[derive(Clone)]
pub struct Case {
    /// Number under its seed.
    pub number: u64,
    /// What runs.
    pub sequence: Sequence,
    /// From what.
    pub frame: Box<Frame>,
}

/// See the module documentation.
pub struct Generator {
    table: Table,
    pools: Pools,
    seed: u64,
    filtered: bool,
    info: InstructionInfoFactory,
    encoders: [Encoder; 2],
}

fn register(i: &mut Instruction, n: u32, r: Register) {
    i.set_op_kind(n, OpKind::Register);
    i.set_op_register(n, r);
}

/// `mov r32, v`
fn mov(n: u32, v: u32) -> Instruction {
    let mut i = Instruction::default();
    i.set_code(Code::Mov_r32_imm32);
    register(&mut i, 0, gpr(n, 4));
    i.set_op_kind(1, OpKind::Immediate32);
    i.set_immediate32(v);
    i
}

/// An instruction with one operand that is a register.
fn one(code: Code, r: Register) -> Instruction {
    let mut i = Instruction::default();
    i.set_code(code);
    register(&mut i, 0, r);
    i
}

/// `cmp r, r`: defines all flags.
fn compare(n: u32) -> Instruction {
    let mut i = one(Code::Cmp_r32_rm32, gpr(n, 4));
    register(&mut i, 1, gpr(n, 4));
    i
}

/// `code` with the memory operand of `of`.
fn same_memory(code: Code, of: &Instruction) -> Instruction {
    let mut i = Instruction::default();
    i.set_code(code);
    i.set_op_kind(0, OpKind::Memory);
    i.set_memory_base(of.memory_base());
    i.set_memory_index(of.memory_index());
    i.set_memory_index_scale(of.memory_index_scale());
    i.set_memory_displ_size(of.memory_displ_size());
    i.set_memory_displacement64(of.memory_displacement64());
    i.set_segment_prefix(of.segment_prefix());
    i
}

impl Generator {
    /// A generator of the cases of a seed.
    pub fn new(table: Table, seed: u64, filtered: bool) -> Generator {
        Generator {
            table,
            pools: Pools::new(),
            seed,
            filtered,
            info: InstructionInfoFactory::new(),
            encoders: [Encoder::new(64), Encoder::new(32)],
        }
    }

    /// The instructions to draw from.
    pub fn table(&self) -> &Table {
        &self.table
    }

    /// Cases that are directed: the numbers below this.
    pub fn directed(&self) -> u64 {
        self.table.entries.len() as u64 * DIRECTED_ROUNDS
    }

    /// Contents of the window for a batch.
    pub fn image(&self, batch: u64, out: &mut [u8]) {
        self.pools.fill(&mut Rng::new(self.seed ^ 0x1a6e, batch), out);
    }

    /// The case of a number.
    pub fn case(&mut self, number: u64) -> Case {
        let mut r = Rng::new(self.seed, number);
        loop {
            let (wide, single) = if number < self.directed() {
                let entry = self.table.entries[(number % self.table.entries.len() as u64) as usize];
                (entry.wide, Some(entry.code))
            } else {
                (!r.one_in(6), None)
            };
            let mut roles = self.roles(wide, &mut r);
            let frame = self.frame(&roles, &mut r);
            let mut sequence = Sequence { wide, steps: Vec::new() };
            if let Some(code) = single {
                roles.counter = None;
                let Some(step) = (0..64).find_map(|_| self.step(code, &roles, 0, 1, &mut r)) else {
                    panic!("{code:?} has operands of kinds that are not made");
                };
                sequence.steps.push(step);
            } else {
                self.steps(&mut sequence, &mut roles, &mut r);
            }
            sequence.define_flags();
            if sequence.steps.len() <= 48 {
                return Case { number, sequence, frame };
            }
        }
    }

    fn steps(&mut self, sequence: &mut Sequence, roles: &mut Roles, r: &mut Rng) {
        let count = 1 + r.below(STEPS);
        while sequence.steps.len() < count {
            let code = self.draw(roles.wide, r);
            let at = sequence.steps.len();
            let Some(step) = (0..8).find_map(|_| self.step(code, roles, at, count, r)) else { continue };
            self.note(&step, roles);
            sequence.steps.push(step);
        }
        if let Some(counter) = roles.counter {
            // Round again, a few times.
            let mut dec = Instruction::default();
            dec.set_code(if roles.wide { Code::Dec_rm64 } else { Code::Dec_r32 });
            register(&mut dec, 0, gpr(counter, if roles.wide { 8 } else { 4 }));
            let mut jump = Instruction::default();
            jump.set_code(if roles.wide { Code::Jne_rel32_64 } else { Code::Jne_rel32_32 });
            jump.set_op_kind(0, if roles.wide { OpKind::NearBranch64 } else { OpKind::NearBranch32 });
            let link = Link { insn: 1, target: Target::Branch, to: r.below(count) };
            sequence.steps.push(Step { insns: vec![dec, jump], link: Some(link), ..Step::default() });
        }
    }

    fn draw(&self, wide: bool, r: &mut Rng) -> Code {
        let chosen = self.table.chosen(wide);
        let from = match r.below(100) {
            0..=69 if self.filtered && !chosen.is_empty() => chosen,
            _ if self.filtered => self.table.core(wide),
            0..=54 => self.table.all(wide),
            _ => self.table.core(wide),
        };
        r.pick(from)
    }

    fn roles(&self, wide: bool, r: &mut Rng) -> Roles {
        let mut roles = Roles { wide, pointers: 0, small: 0, counter: None, labels: 0 };
        for n in 0..16 {
            match r.below(10) {
                0..=3 => roles.pointers |= 1 << n,
                4 | 5 => roles.small |= 1 << n,
                _ => {}
            }
        }
        let usual = |mask: &mut u16, n: usize, r: &mut Rng, percent: usize| {
            if r.percent(percent) {
                *mask |= 1 << n;
            }
        };
        usual(&mut roles.pointers, 4, r, 97);
        usual(&mut roles.pointers, 6, r, 70);
        usual(&mut roles.pointers, 7, r, 70);
        usual(&mut roles.pointers, 3, r, 30);
        usual(&mut roles.small, 1, r, 50);
        roles.small &= !roles.pointers;
        if !wide {
            roles.pointers &= 0xff;
            roles.small &= 0xff;
        }
        if r.one_in(8) {
            let counter = if wide { 15 } else { 5 };
            roles.counter = Some(counter);
            roles.pointers &= !(1 << counter);
            roles.small &= !(1 << counter);
        }
        roles
    }

    fn frame(&self, roles: &Roles, r: &mut Rng) -> Box<Frame> {
        let mut f = Box::new(Frame::new());
        f.cs = if roles.wide { CS64 } else { CS32 } as u64;
        for n in 0..16 {
            f.gpr[n] = if roles.pointers >> n & 1 != 0 {
                operands::address(r)
            } else if roles.small >> n & 1 != 0 {
                r.below(40) as u64
            } else if roles.counter == Some(n as u32) {
                1 + r.below(3) as u64
            } else {
                self.pools.int(r)
            };
        }
        if !roles.wide {
            f.gpr.iter_mut().for_each(|v| *v &= 0xffff_ffff);
        }
        // A stack has some room to either side more often than not.
        if roles.pointers & 16 != 0 && r.percent(80) {
            f.gpr[4] = (f.gpr[4] & !0xfff | 0x400) + r.below(0x800) as u64 & !7;
        }
        f.flags = 0x202 | r.word() & 0x8d5;
        for (flag, one_in) in [(1 << 10, 6), (1 << 18, 24), (1 << 21, 4)] {
            if r.one_in(one_in) {
                f.flags |= flag;
            }
        }
        (f.fs, f.gs) = (operands::address(r), operands::address(r));
        self.x87(&mut f, r);
        let mxcsr = if r.one_in(6) { r.word() & 0xffff } else { 0x1f80 | r.word() & 0xe07f };
        f.set(at::MXCSR, if r.one_in(3) { 0x1f80 } else { mxcsr });
        for n in 0..16 {
            let v = self.pools.vector(r);
            for (at, word) in [at::xmm(n).start, at::xmm(n).start + 8, at::ymm(n).start, at::ymm(n).start + 8]
                .into_iter()
                .zip(v)
            {
                f.xsave[at..at + 8].copy_from_slice(&word.to_le_bytes());
            }
        }
        f
    }

    fn x87(&self, f: &mut Frame, r: &mut Rng) {
        let masks = if r.one_in(6) { r.word() & 0x3f } else { 0x3f };
        let control = 0x40 | masks | if r.one_in(2) { 0x300 } else { r.word() & 0xf00 };
        let mut status = r.word() & 0x7f00 | if r.one_in(3) { r.word() & 0x7f } else { 0 };
        if status & !control & 0x3f != 0 {
            if r.one_in(3) {
                // Pending: the next waiting instruction raises #MF.
                status |= 0x8080;
            } else {
                status &= !0x3f;
            }
        }
        f.set(at::CONTROL, control);
        f.set(at::STATUS, status);
        let tags = match r.below(4) {
            0 => r.word() as u8,
            1 => 0,
            2 => 0xff,
            // Some registers from the top of the stack on.
            _ => (0xffu16.checked_shl(8 - r.below(8) as u32).unwrap_or(0) as u8)
                .rotate_right(8 - (status >> 11 & 7) as u32),
        };
        f.set(at::TAGS, tags as u64);
        f.set(at::OPCODE, r.word() & 0x7ff);
        f.set(at::IP, CODE + (r.word() & 0xff_ffff));
        f.set(at::DP, operands::address(r));
        for n in 0..8 {
            f.xsave[at::st(n)].copy_from_slice(&self.pools.f80(r));
        }
    }

    /// Notes what a step does to registers.
    fn note(&mut self, step: &Step, roles: &mut Roles) {
        for i in &step.insns {
            let keeps = i.is_string_instruction();
            let explicit = |n: u32| {
                (0..i.op_count()).any(|k| {
                    i.op_kind(k) == OpKind::Register
                        && i.op_register(k).is_gpr()
                        && i.op_register(k).full_register() == gpr(n, 8)
                })
            };
            for used in self.info.info(i).used_registers() {
                let r = used.register();
                if !r.is_gpr() || !writes(used.access()) {
                    continue;
                }
                let n = r.full_register() as u32 - Register::RAX as u32;
                if keeps && matches!(n, 6 | 7) || n == 4 && !explicit(4) {
                    continue;
                }
                roles.pointers &= !(1 << n);
                roles.small &= !(1 << n);
                roles.labels &= !(1 << n);
                if i.code() == Code::Mov_r32_imm32 && i.immediate32() < 64 {
                    roles.small |= 1 << n;
                }
            }
        }
        if step.goes_to_link
            && let Some(i) = step.insns.first()
            && i.op0_kind() == OpKind::Register
        {
            roles.labels |= 1 << (i.op0_register().full_register() as u32 - Register::RAX as u32);
        }
    }

    /// A step around an instruction, as number `at` of `count`; `None` if this draw came to nothing.
    fn step(&mut self, code: Code, roles: &Roles, at: usize, count: usize, r: &mut Rng) -> Option<Step> {
        let mut i = Instruction::default();
        i.set_code(code);
        let info = code.op_code();
        let mut branch = false;
        for n in 0..info.op_count() {
            let kind = info.op_kind(n);
            operands::operand(&mut i, n, kind, roles, r)?;
            branch |=
                matches!(kind, Op::br16_1 | Op::br16_2 | Op::br32_1 | Op::br32_4 | Op::br64_1 | Op::br64_4);
        }
        let memory_destination = i.op_count() > 0 && i.op0_kind() == OpKind::Memory;
        if info.can_use_lock_prefix() && memory_destination && r.one_in(4) || r.one_in(400) {
            i.set_has_lock_prefix(true);
        }
        if i.is_string_instruction() || info.can_use_rep_prefix() {
            match r.below(6) {
                0 | 1 if info.can_use_rep_prefix() => i.set_has_rep_prefix(true),
                2 if info.can_use_repne_prefix() => i.set_has_repne_prefix(true),
                _ => {}
            }
        }
        let mut step = Step::of(i);
        if branch {
            step.link =
                Some(Link { insn: 0, target: Target::Branch, to: at + 1 + r.below((count - at).min(3)) });
        }
        self.surround(&mut step, roles, at, count, r)?;
        let encoder = &mut self.encoders[if roles.wide { 0 } else { 1 }];
        for (k, i) in step.insns.iter().enumerate() {
            let mut i = *i;
            if step.link.is_some_and(|l| l.insn == k && l.target == Target::Branch) {
                if i.op0_kind() == OpKind::NearBranch16 {
                    i.set_near_branch16(CODE as u16 + 16);
                } else if roles.wide {
                    i.set_near_branch64(CODE + 16);
                } else {
                    i.set_near_branch32(CODE as u32 + 16);
                }
            }
            if i.is_ip_rel_memory_operand() && i.memory_displacement64() == 0 {
                i.set_memory_displacement64(CODE);
            }
            let fits = encoder.encode(&i, CODE).is_ok();
            let mut buffer = encoder.take_buffer();
            buffer.clear();
            encoder.set_buffer(buffer);
            if !fits {
                return None;
            }
        }
        if let Some(counter) = roles.counter {
            let counter = gpr(counter, 8);
            for i in &step.insns {
                let used = self.info.info(i).used_registers().iter();
                if used.into_iter().any(|u| u.register().full_register() == counter && writes(u.access())) {
                    return None;
                }
            }
        }
        Some(step)
    }

    /// Adds what an instruction needs before or behind it.
    fn surround(
        &mut self,
        step: &mut Step,
        roles: &Roles,
        at: usize,
        count: usize,
        r: &mut Rng,
    ) -> Option<()> {
        use Mnemonic::*;
        let i = step.insns[0];
        let register0 = |i: &Instruction| (i.op0_kind() == OpKind::Register).then(|| i.op0_register());
        let number = |r: Register| r.full_register() as u32 - Register::RAX as u32;
        let mut before = Vec::new();
        let mut after = Vec::new();
        match i.mnemonic() {
            Div | Idiv if r.percent(60) => before.push(mov(2, 0)),
            Xsave | Xsave64 | Xsaveopt | Xsaveopt64 | Xsavec | Xsavec64 | Xsaves | Xsaves64 => {
                // Of no component at all silicon touches the header only.
                before.extend([mov(0, 1 + r.below(7) as u32), mov(2, 0)]);
            }
            Xrstor | Xrstor64 | Xrstors | Xrstors64 => {
                before.extend([mov(0, r.below(8) as u32), mov(2, 0)]);
                if r.percent(60) {
                    let save = if i.mnemonic() == Xrstor64 { Code::Xsave64_mem } else { Code::Xsave_mem };
                    before.push(same_memory(save, &i));
                    before.push(mov(0, r.below(8) as u32));
                }
            }
            Fxrstor | Fxrstor64 if r.percent(60) => {
                let save =
                    if i.mnemonic() == Fxrstor64 { Code::Fxsave64_m512byte } else { Code::Fxsave_m512byte };
                before.push(same_memory(save, &i));
            }
            Xgetbv => {
                before.push(mov(1, r.pick(&[0, 0, 1, 2, 0xffff_ffff])));
                after.extend([mov(0, 1), mov(2, 1)]);
            }
            Rdpmc => before.push(mov(1, 0)),
            Rdtsc => after.extend([mov(0, 1), mov(2, 1)]),
            Rdtscp => after.extend([mov(0, 1), mov(2, 1), mov(1, 1)]),
            Rdpid => after.push(mov(number(register0(&i)?), 1)),
            Rdrand | Rdseed => {
                let n = number(register0(&i)?);
                after.extend([mov(n, 1), compare(n)]);
            }
            Bt | Bts | Btr | Btc
                if i.op0_kind() == OpKind::Memory && i.op1_kind() == OpKind::Register && r.percent(75) =>
            {
                let n = number(i.op1_register());
                let used = [i.memory_base(), i.memory_index()];
                if n != 4 && !used.iter().any(|u| u.is_gpr() && number(*u) == n) {
                    before.push(mov(n, r.below(1024) as u32));
                }
            }
            Ldmxcsr | Vldmxcsr if r.percent(60) => {
                let mut store = same_memory(Code::Mov_rm32_imm32, &i);
                store.set_op_kind(1, OpKind::Immediate32);
                store.set_immediate32(if r.one_in(2) { 0x1f80 } else { r.word() as u32 & 0xffff });
                before.push(store);
            }
            // A trap behind the next instruction only at the end: what overwrites a random number must come first.
            Popf | Popfd | Popfq if at + 1 < count || r.percent(50) => {
                let mut push = Instruction::default();
                push.set_code(if roles.wide { Code::Pushq_imm32 } else { Code::Pushd_imm32 });
                let kind = if roles.wide { OpKind::Immediate32to64 } else { OpKind::Immediate32 };
                push.set_op_kind(0, kind);
                let traps = at + 1 == count && r.one_in(3);
                let flags = (r.word() as u32 & if traps { 0x24_0fd5 } else { 0x24_0ed5 }) | 0x200;
                if roles.wide {
                    push.set_immediate32to64(flags as i32 as i64);
                } else {
                    push.set_immediate32(flags);
                }
                before.push(push);
            }
            Jmp | Call if step.link.is_none() && r.percent(80) => {
                let label = self.label(step, roles, at, count, r)?;
                let bytes = if roles.wide { 8 } else { 4 };
                let mut jump = i;
                if jump.code().op_code().op_kind(0)
                    != (if roles.wide { Op::r64_or_mem } else { Op::r32_or_mem })
                {
                    return Some(());
                }
                jump = Instruction::with1(jump.code(), gpr(label.1, bytes)).ok()?;
                step.insns = vec![label.0, jump];
                return Some(());
            }
            Jmp | Call if step.link.is_none() => {
                let r0 = register0(&i);
                if r0.is_some_and(|r| roles.labels >> number(r) & 1 != 0) {
                    return None;
                }
            }
            Ret if matches!(i.code(), Code::Retnq | Code::Retnq_imm16 | Code::Retnd | Code::Retnd_imm16)
                && r.percent(60) =>
            {
                let label = self.label(step, roles, at, count, r)?;
                let push = if roles.wide { Code::Push_r64 } else { Code::Push_r32 };
                let push = one(push, gpr(label.1, if roles.wide { 8 } else { 4 }));
                step.insns = vec![label.0, push, i];
                return Some(());
            }
            _ => {}
        }
        if (i.has_rep_prefix() || i.has_repne_prefix()) && i.is_string_instruction() && r.percent(70) {
            before.push(mov(1, r.below(40) as u32));
        }
        let index = i.memory_index();
        if index.is_xmm() || index.is_ymm() {
            let same = |a: Register, b: Register| {
                (a as u32 - Register::XMM0 as u32) % 32 == (b as u32 - Register::XMM0 as u32) % 32
            };
            let (to, mask) = (i.op0_register(), i.op2_register());
            if (same(to, mask) || same(to, index) || same(mask, index)) && !r.one_in(16) {
                return None;
            }
            if r.percent(75) {
                // Indices up to 255.
                let code = match (index.is_ymm(), r.one_in(2)) {
                    (false, false) => Code::VEX_Vpsrld_xmm_xmm_imm8,
                    (false, true) => Code::VEX_Vpsrlq_xmm_xmm_imm8,
                    (true, false) => Code::VEX_Vpsrld_ymm_ymm_imm8,
                    (true, true) => Code::VEX_Vpsrlq_ymm_ymm_imm8,
                };
                let bits = if matches!(code, Code::VEX_Vpsrlq_xmm_xmm_imm8 | Code::VEX_Vpsrlq_ymm_ymm_imm8) {
                    56
                } else {
                    24
                };
                before.push(Instruction::with3(code, index, index, bits).ok()?);
            }
        }
        if !before.is_empty() || !after.is_empty() {
            if let Some(link) = &mut step.link {
                link.insn += before.len();
            }
            before.append(&mut step.insns);
            before.append(&mut after);
            step.insns = before;
        }
        Some(())
    }

    /// An instruction that puts the address of a later step into a register, and that register.
    fn label(
        &self,
        step: &mut Step,
        roles: &Roles,
        at: usize,
        count: usize,
        r: &mut Rng,
    ) -> Option<(Instruction, u32)> {
        let n = roles.any(r);
        if n == 4 {
            return None;
        }
        let to = at + 1 + r.below((count - at).min(3));
        step.goes_to_link = true;
        if roles.wide {
            let mut lea = one(Code::Lea_r64_m, gpr(n, 8));
            lea.set_op_kind(1, OpKind::Memory);
            lea.set_memory_base(Register::RIP);
            lea.set_memory_displ_size(8);
            step.link = Some(Link { insn: 0, target: Target::Memory, to });
            Some((lea, n))
        } else {
            step.link = Some(Link { insn: 0, target: Target::Immediate, to });
            Some((mov(n, CODE as u32), n))
        }
    }
}

fn writes(access: OpAccess) -> bool {
    matches!(access, OpAccess::Write | OpAccess::CondWrite | OpAccess::ReadWrite | OpAccess::ReadCondWrite)
}
