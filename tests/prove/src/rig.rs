//! Both sides together: places a batch of cases, runs it natively and in the guest, compares.

use std::sync::Arc;

use anyhow::{Result, bail};
use iced_x86::Encoder;
use tessera_tcg::opt::OptFlags;

use crate::compare::{After, agree};
use crate::frame::{Frame, STUCK};
use crate::generate::Case;
use crate::guest::{Config, GuestCpu, GuestMemory, Watchdog};
use crate::layout::{CODE, CODE_BYTES, FIRST, IMAGE, PAGE};
use crate::native::{BATCH, Native};
use crate::rng::Rng;
use crate::sequence::Code64;

/// How the vCPUs of a rig translate. The first is as the program runs guests.
pub fn configs(seed: u64) -> Vec<Config> {
    let mut r = Rng::new(seed, 0xc0f1);
    let usual = Config::USUAL;
    let mut all = vec![
        usual,
        Config { passes: OptFlags::empty(), ..usual },
        Config { passes: OptFlags::empty(), interpret: true, ..usual },
        Config { max_insns: 1, ..usual },
        Config { max_insns: 3, chain: false, ..usual },
    ];
    for _ in 0..3 {
        let passes = OptFlags::from_bits_truncate(r.word() as u8);
        all.push(Config { passes, ..usual });
    }
    all
}

/// Which of the configurations a batch runs under: mostly the first.
pub fn config_of(seed: u64, batch: u64) -> usize {
    let mut r = Rng::new(seed ^ 0xc0f2, batch);
    match r.below(100) {
        0..=64 => 0,
        65 | 66 => 2,
        _ => r.pick(&[1, 3, 4, 5, 6, 7]),
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
        let cpus = configs.iter().map(|c| GuestCpu::new(memory.clone(), *c, watchdog)).collect::<Result<_>>()?;
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
        if case.sequence.place(CODE + at as u64, encoder, code).is_none() || at + code.bytes.len() > CODE_BYTES {
            return false;
        }
        self.native.code()[at..at + code.bytes.len()].copy_from_slice(&code.bytes);
        self.cursor += code.bytes.len();
        true
    }

    /// Runs cases from an image of the window, on the vCPU number `cpu`.
    pub fn run(&mut self, cases: &[Case], image: &[u8], cpu: usize, mut each: impl FnMut(usize, Verdict)) -> Result<()> {
        assert!(cases.len() <= BATCH && image.len() == IMAGE);
        self.make_room(cases.len() + 4);
        for (n, case) in cases.iter().enumerate() {
            self.placed[n] = self.place(n, case);
            let start = self.codes[n].insns.first().map_or(0, |p| p.ip);
            let exchange = self.native.exchange();
            exchange.frames[n].clone_from(&case.frame);
            exchange.frames[n].rip = if self.placed[n] { start } else { CODE };
        }
        self.native.exchange().template.copy_from_slice(image);
        self.native.run(cases.len())?;
        for (n, case) in cases.iter().enumerate() {
            if !self.placed[n] || self.native.exchange().frames[n].vector == STUCK {
                each(n, Verdict::Skipped);
                continue;
            }
            self.guest.clone_from(&case.frame);
            self.guest.rip = self.codes[n].insns.first().map_or(0, |p| p.ip);
            self.memory.set_image(image);
            self.cpus[cpu].run(&mut self.guest);
            let undefined = self.undefined(n);
            let exchange = self.native.exchange();
            let native = After { frame: &exchange.frames[n], image: &exchange.images[n] };
            let guest = After { frame: &self.guest, image: self.memory.image() };
            each(n, if agree(native, guest, undefined) { Verdict::Agree } else { Verdict::Differ });
        }
        Ok(())
    }

    /// Flags that are undefined where the native run of the case ended.
    fn undefined(&mut self, n: usize) -> u32 {
        let frame = &self.native.exchange().frames[n];
        let (vector, rip) = (frame.vector, frame.rip);
        let code = &self.codes[n];
        if vector == crate::frame::NONE { code.undefined } else {
            let end = code.insns.last().map_or(0, |p| p.ip + p.insn.len() as u64);
            code.undefined_at(rip, end)
        }
    }

    /// Runs one case.
    pub fn run_one(&mut self, case: &Case, image: &[u8], cpu: usize) -> Result<Verdict> {
        let mut verdict = Verdict::Skipped;
        self.run(std::slice::from_ref(case), image, cpu, |_, v| verdict = v)?;
        Ok(verdict)
    }

    /// After [`Rig::run_one`]: where the case lay, what both sides left, and the undefined flags.
    pub fn last(&mut self, look: impl FnOnce(&Code64, After<'_>, After<'_>, u32)) -> Result<()> {
        if !self.placed[0] {
            bail!("the case could not be placed");
        }
        let undefined = self.undefined(0);
        let exchange = self.native.exchange();
        let native = After { frame: &exchange.frames[0], image: &exchange.images[0] };
        look(&self.codes[0], native, After { frame: &self.guest, image: self.memory.image() }, undefined);
        Ok(())
    }
}
