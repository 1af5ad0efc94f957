//! Both sides together: places a batch of cases, runs it natively and in the guest, compares.

use std::sync::Arc;

use anyhow::{Result, bail};
use iced_x86::{Encoder, Mnemonic, OpKind};
use tessera_tcg::opt::OptFlags;

use crate::compare::{After, Stop, agree, describe};
use crate::frame::{Frame, NONE, STUCK};
use crate::generate::Case;
use crate::guest::{Config, GuestCpu, GuestMemory, Watchdog};
use crate::layout::{CODE, CODE_BYTES, FIRST, IMAGE, PAGE};
use crate::native::{BATCH, Native};
use crate::sequence::Code64;
use tessera_x86::testing::Rng;

/// How the vCPUs of a rig translate. The first two are as the program runs guests.
pub fn configs(seed: u64) -> Vec<Config> {
    let mut r = Rng::new(seed, 0xc0f1);
    let usual = Config::USUAL;
    let mut all = vec![
        usual,
        Config { opt: OptFlags::all(), ..usual },
        Config { opt: OptFlags::empty(), ..usual },
        Config { opt: OptFlags::empty(), interpret: true, ..usual },
        Config { max_insns: 1, ..usual },
        Config { max_insns: 3, chain: false, ..usual },
        Config { hot: 0, ..usual },
    ];
    for n in 0..3 {
        let opt = OptFlags::from_bits_truncate(r.word() as u32);
        all.push(Config { opt, count: n == 0, ..usual });
    }
    all
}

/// Which of the configurations a batch runs under: mostly the first two.
pub fn config_of(seed: u64, batch: u64) -> usize {
    let mut r = Rng::new(seed ^ 0xc0f2, batch);
    match r.below(100) {
        0..=44 => 0,
        45..=64 => 1,
        65 | 66 => 3,
        _ => r.pick(&[2, 4, 5, 6, 6, 7, 8, 9]),
    }
}

/// What came of a case.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// Both sides agree.
    Agree,
    /// They do not.
    Differ,
    /// It could not be placed, or has no end natively.
    Skipped,
}

/// Both sides.
pub struct Rig {
    // Before `native`, whose code area it leads to.
    cpus: Vec<GuestCpu>,
    memory: Arc<GuestMemory>,
    native: Native,
    encoders: [Encoder; 2],
    cursor: usize,
    codes: Vec<Code64>,
    placed: Vec<bool>,
    guest: Box<Frame>,
}

impl Rig {
    /// A rig with these configurations.
    pub fn new(configs: &[Config], watchdog: &Watchdog) -> Result<Rig> {
        let mut native = Native::new()?;
        // SAFETY: the rig drops the memory and all vCPUs before the native side, whose code area this is; code is written in
        // `place` only, when no guest runs.
        let memory = Arc::new(unsafe { GuestMemory::new(native.code_address())? });
        let cpus =
            configs.iter().map(|c| GuestCpu::new(memory.clone(), *c, watchdog)).collect::<Result<_>>()?;
        Ok(Rig {
            cpus,
            memory,
            native,
            encoders: [Encoder::new(64), Encoder::new(32)],
            cursor: FIRST,
            codes: (0..BATCH).map(|_| Code64::default()).collect(),
            placed: vec![false; BATCH],
            guest: Box::new(Frame::new()),
        })
    }

    /// The configurations.
    pub fn configs(&self) -> Vec<Config> {
        self.cpus.iter().map(|c| c.config).collect()
    }

    /// The vCPU of a configuration.
    pub fn cpu(&self, n: usize) -> &GuestCpu {
        &self.cpus[n]
    }

    /// The same.
    pub fn cpu_mut(&mut self, n: usize) -> &mut GuestCpu {
        &mut self.cpus[n]
    }

    /// Native children that had to be replaced.
    pub fn replaced(&self) -> u64 {
        self.native.replaced
    }

    /// Makes room for `count` sequences.
    fn make_room(&mut self, count: usize) {
        const MOST: usize = 1024;
        if self.cursor + count * MOST > CODE_BYTES {
            self.cursor = FIRST;
            self.cpus.iter_mut().for_each(GuestCpu::code_changed);
        }
    }

    fn place(&mut self, n: usize, case: &Case) -> bool {
        self.cursor = self.cursor.next_multiple_of(16);
        // Some sequences go over a page's end: they start so far before it that they reach it.
        if case.number % 16 == 7 {
            let room = PAGE - self.cursor % PAGE;
            self.cursor += room.saturating_sub(1 + (case.number / 16 % 64) as usize);
        }
        let encoder = &mut self.encoders[if case.sequence.wide { 0 } else { 1 }];
        let code = &mut self.codes[n];
        let at = self.cursor;
        if case.sequence.place(CODE + at as u64, encoder, code).is_none()
            || at + code.bytes.len() > CODE_BYTES
        {
            return false;
        }
        self.native.code()[at..at + code.bytes.len()].copy_from_slice(&code.bytes);
        self.cursor += code.bytes.len();
        true
    }

    /// Runs cases from an image of the window, on the vCPU number `cpu`; tells of each its verdict, and how it differed.
    pub fn run(
        &mut self,
        cases: &[Case],
        image: &[u8],
        cpu: usize,
        mut each: impl FnMut(usize, Verdict, &str),
    ) -> Result<()> {
        assert!(cases.len() <= BATCH && image.len() == IMAGE);
        self.make_room(cases.len() + 4);
        let start_of_batch = self.cursor;
        for (n, case) in cases.iter().enumerate() {
            self.placed[n] = self.place(n, case);
            let start = self.codes[n].insns.first().map_or(0, |p| p.ip);
            let exchange = self.native.exchange();
            exchange.frames[n].clone_from(&case.frame);
            exchange.frames[n].rip = if self.placed[n] { start } else { CODE };
        }
        // A wild jump may have led to what lay here before, and left a translation of it.
        let placed = (start_of_batch as u64, (self.cursor - start_of_batch) as u64);
        self.cpus.iter().for_each(|cpu| cpu.code_written(placed.0, placed.1));
        self.native.exchange().template.copy_from_slice(image);
        self.native.run(cases.len())?;
        for (n, case) in cases.iter().enumerate() {
            if !self.placed[n] || self.native.exchange().frames[n].vector == STUCK {
                each(n, Verdict::Skipped, "");
                continue;
            }
            self.guest.clone_from(&case.frame);
            self.guest.rip = self.codes[n].insns.first().map_or(0, |p| p.ip);
            self.memory.set_image(image);
            self.cpus[cpu].run(&mut self.guest);
            let stop = self.stop(n);
            let exchange = self.native.exchange();
            let native = After { frame: &exchange.frames[n], image: &exchange.images[n] };
            let guest = After { frame: &self.guest, image: self.memory.image() };
            if agree(native, guest, &stop) {
                each(n, Verdict::Agree, "");
            } else {
                let before = After { frame: &case.frame, image };
                each(n, Verdict::Differ, &describe(before, native, guest, &stop));
            }
        }
        Ok(())
    }

    /// Where the native run of the case ended.
    fn stop(&mut self, n: usize) -> Stop {
        let frame = &self.native.exchange().frames[n];
        let (vector, rip) = (frame.vector, frame.rip);
        let code = &self.codes[n];
        let has = |which: &[Mnemonic]| code.insns.iter().any(|p| which.contains(&p.insn.mnemonic()));
        let has_arpl = has(&[Mnemonic::Arpl]);
        let narrow = |kind| matches!(kind, OpKind::MemorySegESI | OpKind::MemoryESEDI);
        let narrow_string = code.insns.iter().position(|p| {
            p.insn.is_string_instruction() && (narrow(p.insn.op0_kind()) || narrow(p.insn.op1_kind()))
        });
        let has_narrow_string = narrow_string.is_some();
        let uses_narrow_string = narrow_string.is_some_and(|n| n + 1 < code.insns.len());
        let has_zeroing = has(&[Mnemonic::Vzeroall, Mnemonic::Vzeroupper]);
        let has_area = has(&[
            Mnemonic::Xsave,
            Mnemonic::Xsave64,
            Mnemonic::Xsaveopt,
            Mnemonic::Xsaveopt64,
            Mnemonic::Xsavec,
            Mnemonic::Xsavec64,
        ]);
        let (undefined, insn) = if vector == NONE {
            (code.undefined, None)
        } else {
            let end = code.insns.last().map_or(0, |p| p.ip + p.insn.len() as u64);
            (code.undefined_at(rip, end), code.insns.iter().find(|p| p.ip == rip).map(|p| p.insn))
        };
        Stop { undefined, insn, has_arpl, has_area, has_zeroing, has_narrow_string, uses_narrow_string }
    }

    /// Runs one case.
    pub fn run_one(&mut self, case: &Case, image: &[u8], cpu: usize) -> Result<Verdict> {
        let mut verdict = Verdict::Skipped;
        self.run(std::slice::from_ref(case), image, cpu, |_, v, _| verdict = v)?;
        Ok(verdict)
    }

    /// After [`Rig::run_one`]: where the case lay, what both sides left, and where the native side stopped.
    pub fn last(&mut self, look: impl FnOnce(&Code64, After<'_>, After<'_>, &Stop)) -> Result<()> {
        if !self.placed[0] {
            bail!("the case could not be placed");
        }
        let stop = self.stop(0);
        let exchange = self.native.exchange();
        let native = After { frame: &exchange.frames[0], image: &exchange.images[0] };
        look(&self.codes[0], native, After { frame: &self.guest, image: self.memory.image() }, &stop);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use iced_x86::{Code, Instruction, Register};

    use super::*;
    use crate::sequence::{Sequence, Step};

    fn case(insns: &[Instruction]) -> Case {
        let steps = insns.iter().map(|i| Step::of(*i)).collect();
        let mut frame = Box::new(Frame::new());
        frame.cs = crate::layout::CS64 as u64;
        frame.gpr = std::array::from_fn(|n| n as u64 * 3);
        Case { number: 0, sequence: Sequence { wide: true, steps }, frame }
    }

    /// Both sides see the same ends: completion, faults with their codes, and traps.
    #[test]
    fn ends_agree() {
        let mut rig = Rig::new(&[Config::USUAL], &Watchdog::default()).expect("a rig");
        let image = vec![0; IMAGE];
        let mem = |address: u64| {
            let mut i = Instruction::with2(Code::Mov_rm32_r32, Register::EAX, Register::ECX).unwrap();
            i.set_op0_kind(OpKind::Memory);
            i.set_memory_displ_size(8);
            i.set_memory_displacement64(address);
            i
        };
        let page = PAGE as u64;
        for (insns, vector, error) in [
            (vec![Instruction::with2(Code::Add_rm64_r64, Register::RAX, Register::RCX).unwrap()], NONE, 0),
            (vec![mem(crate::layout::IMAGE_AT + 8)], NONE, 0),
            // A page that is missing, one that is read-only, and the first behind a writable one.
            (vec![mem(crate::layout::WINDOW)], 14, 6),
            (vec![mem(crate::layout::IMAGE_AT + 2 * page)], 14, 7),
            (vec![mem(crate::layout::IMAGE_AT + 2 * page - 2)], 14, 7),
            (vec![Instruction::with1(Code::Div_rm64, Register::RAX).unwrap()], 0, 0),
            (vec![Instruction::with(Code::Ud2)], 6, 0),
            (vec![Instruction::with(Code::Hlt)], 13, 0),
            (vec![Instruction::with(Code::Int3)], 3, 0),
        ] {
            let mut case = case(&insns);
            case.frame.gpr[0] = 0;
            assert_eq!(rig.run_one(&case, &image, 0).unwrap(), Verdict::Agree, "{insns:?}");
            rig.last(|_, native, guest, _| {
                assert_eq!((native.frame.vector, native.frame.error), (vector, error), "{insns:?}");
                assert_eq!(guest.frame.vector, vector);
            })
            .unwrap();
        }
    }

    /// A sequence without end is left out, and the next one runs.
    #[test]
    fn stuck_sequences_are_skipped() {
        let mut rig = Rig::new(&[Config::USUAL], &Watchdog::default()).expect("a rig");
        let mut endless = case(&[Instruction::with_branch(Code::Jmp_rel8_64, 0).unwrap()]);
        endless.sequence.steps[0].link =
            Some(crate::sequence::Link { insn: 0, target: crate::sequence::Target::Branch, to: 0 });
        let image = vec![0; IMAGE];
        assert_eq!(rig.run_one(&endless, &image, 0).unwrap(), Verdict::Skipped);
        assert_eq!(rig.replaced(), 1);
        let add = Instruction::with2(Code::Add_rm64_r64, Register::RAX, Register::RCX).unwrap();
        assert_eq!(rig.run_one(&case(&[add]), &image, 0).unwrap(), Verdict::Agree);
    }

    /// What this process has mapped is not there for a sequence: its code, its constants, its stack, its heap and its libraries.
    #[test]
    fn nothing_of_the_host_is_reached() {
        let mut rig = Rig::new(&[Config::USUAL], &Watchdog::default()).expect("a rig");
        let image = vec![0; IMAGE];
        let own = nothing_of_the_host_is_reached as *const () as u64;
        let constant = &PAGE as *const usize as u64;
        let library = libc::getpid as *const () as u64;
        for at in [own, constant, &raw const own as u64, image.as_ptr() as u64, library] {
            let load = Instruction::with2(
                Code::Mov_r64_rm64,
                Register::RCX,
                iced_x86::MemoryOperand::with_base(Register::RAX),
            );
            let jump = Instruction::with1(Code::Jmp_rm64, Register::RAX);
            for insn in [load.unwrap(), jump.unwrap()] {
                let mut case = case(&[insn]);
                case.frame.gpr[0] = at;
                assert_eq!(rig.run_one(&case, &image, 0).unwrap(), Verdict::Agree, "{insn:?} at {at:#x}");
                rig.last(|_, native, _, _| {
                    assert_eq!((native.frame.vector, native.frame.address), (14, at), "{insn:?}");
                })
                .unwrap();
            }
        }
    }

    /// A difference is seen: the same sequence from another state.
    #[test]
    fn differences_show() {
        let mut rig = Rig::new(&[Config::USUAL], &Watchdog::default()).expect("a rig");
        let add = Instruction::with2(Code::Add_rm64_r64, Register::RAX, Register::RCX).unwrap();
        let image = vec![0; IMAGE];
        assert_eq!(rig.run_one(&case(&[add]), &image, 0).unwrap(), Verdict::Agree);
        rig.last(|_, native, guest, stop| {
            let mut other = guest.frame.clone();
            other.gpr[3] += 1;
            assert!(!agree(native, After { frame: &other, ..guest }, stop));
            let mut other = guest.frame.clone();
            other.xsave[600] ^= 1;
            assert!(!agree(native, After { frame: &other, ..guest }, stop));
            let mut image = guest.image.to_vec();
            image[17] ^= 1;
            assert!(!agree(native, After { image: &image, ..guest }, stop));
        })
        .unwrap();
    }
}
