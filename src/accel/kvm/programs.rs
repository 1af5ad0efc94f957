//! The bare-metal programs under both engines, compared check by check.
//!
//! Each program prints a line for each of its checks. Behind each line both engines are stopped, at the same instruction, and
//! everything that the guest could see is compared: one [`CpuState`] each, field by field, and all of memory, by a hash of
//! each page. So a difference is told with the check that made it.
//!
//! What may differ is in two tables: [`fields`], for what is not the guest's doing, and [`KNOWN`], for checks behind which a
//! KVM that is a software implementation leaves something else than a processor. Checks that KVM does not run at all are those of
//! `tests/bare`; each is named with its reason. Where KVM cannot be had the test says so and passes.

use std::collections::BTreeSet;
use std::hash::{DefaultHasher, Hasher};
use std::sync::mpsc::RecvTimeoutError;
use std::sync::{Mutex, OnceLock, PoisonError, Weak};
use std::time::Duration;

use tessera_bare::{Assembled, Program, Variant, programs};
use tessera_firmware::e820;
use tessera_firmware::loader::{LinuxBoot, load_linux};

use tessera_hw::boards::pc::{DebugExitConfig, LoaderMemory, PcConfig};
use tessera_hw_core::backend::{CharBackend, CharFrontend};
use tessera_hw_core::event::MachineEvent;
use tessera_hw_core::timers::TimerThread;
use tessera_x86::state::{RFlags, reg};

use super::*;
use crate::accel::debug::{DebugStop, Step};
use crate::accel::tcg::TcgEngine;
use crate::accel::{boot_state, drive};
use crate::cli::{self, Invocation, Tcg};

/// What the programs need.
const RAM: u64 = 4 << 20;
const PAGE: usize = 4096;
/// How long a check may take.
const LIMIT: Duration = Duration::from_secs(30);
/// Exit status of a program whose checks all passed.
const PASSED: u32 = 1;

const USER_GATES: &str = "a software KVM raises #UD for INT n in ring 3, by which the check leaves it";
const WALKS: &str = "a software KVM sets accessed bits when a walk has succeeded, not as it goes";
const CROSSING: &str = "a software KVM writes the first page before it looks at the second";
const CPUID: &str = "a software KVM answers CPUID as the host's processor does, whatever the model";
const FLAGS: &str = "a software KVM clears EFLAGS.AC when it delivers an exception";
const LATE: &str = "KVM delivers what the guest sends itself when it next enters the guest";
const TIME: &str = "a bit of port 61h toggles with time";
const OPEN: &str = "the manual leaves it open";
const TRANSLATOR: &str = "the translator finds out when it fetches there, not in the jump";

/// Differences that a KVM in software makes, and those that the manual allows: program, check, what differs (the beginning of a
/// difference's line), why. `*` is any.
const KNOWN: &[(&str, &str, &str, &str)] = &[
    ("segments", "POPF and IRET in ring 3 keep IF and IOPL", "memory", USER_GATES),
    ("segments", "IOPL 3 opens CLI, STI and ports", "memory", TIME),
    // RF in the frame of an abort.
    ("gates", "double faults", "memory 0x690:", OPEN),
    ("long", "near jumps to addresses that are not canonical", "*", TRANSLATOR),
    ("long", "near returns to addresses that are not canonical", "*", TRANSLATOR),
    ("long", "the end", "*", TRANSLATOR),
    ("paging", "*", "memory 0x22010:", WALKS),
    ("paging", "*", "memory 0x24000:", WALKS),
    ("debug", "*", "memory 0x22010:", WALKS),
    ("debug", "*", "memory 0x24000:", WALKS),
    ("paging", "accesses that fault leave no dirty bit", "memory 0x30ff8:", CROSSING),
    ("paging", "ENTER looks at its whole frame", "memory 0x31008:", CROSSING),
    // Which byte of a descriptor is missing.
    ("paging", "descriptor tables are read as ring 0", "CpuState cr2:", OPEN),
    ("paging", "descriptor tables are read as ring 0", "memory 0x6a8:", OPEN),
    ("paging", "SMAP and implicit accesses: AC does not help", "memory 0x6c8:", FLAGS),
    ("interrupts", "NMI is blocked until IRET", "memory", LATE),
    ("fpu", "alignment check", "memory", FLAGS),
    ("control", "CPUID shows CR4.OSXSAVE", "*", CPUID),
    ("control", "XSETBV and XGETBV", "memory", CPUID),
    // What is left in registers of CPUID's answer.
    ("control", "*", "CpuState.gpr 0x1f8b00e9,", CPUID),
    ("control", "*", "memory 0x6f0:", CPUID),
    ("control", "*", "memory 0x7fd0:", CPUID),
];

/// Number of the local APIC's register that counts time.
const CURRENT_COUNT: usize = 0x39;

/// The same for KVM's own interrupt controllers.
const KNOWN_WITH_OWN_CHIPS: &[(&str, &str, &str, &str)] = &[
    ("interrupts", "an interrupt in the middle of REP", "*", LATE),
    ("interrupts", "NMI comes with IF clear", "memory", LATE),
    ("interrupts", "the end", "*", LATE),
];

/// Makes equal what two runs of one program need not agree in, whoever executes them.
fn fields(by_tcg: &mut CpuState, by_kvm: &CpuState) {
    // The guest's TSC is the host's under a KVM that does not shift it, and a deadline is a time.
    by_tcg.msrs.tsc_offset = by_kvm.msrs.tsc_offset;
    by_tcg.tsc_deadline = by_kvm.tsc_deadline;
    by_tcg.apic.0[CURRENT_COUNT] = by_kvm.apic.0[CURRENT_COUNT];
}

/// The debug console: stops the vCPU behind each line.
#[derive(Default)]
struct Lines {
    control: OnceLock<Arc<Control>>,
    text: Mutex<Vec<u8>>,
}

impl CharBackend for Lines {
    fn write(&self, data: &[u8]) -> usize {
        self.text.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(data);
        if let Some(control) = self.control.get().filter(|_| data.contains(&b'\n')) {
            control.stop();
        }
        data.len()
    }

    fn attach(&self, _: Weak<dyn CharFrontend>) {}
}

/// How a program ended.
#[derive(Debug, PartialEq)]
enum End {
    /// By the exit device.
    Status(u32),
    /// Otherwise.
    Stopped(String),
}

/// What there is of a machine between two checks.
struct Moment {
    state: CpuState,
    /// A hash of each page of memory.
    pages: Vec<u64>,
}

/// A machine with a program. Its time stands still between two checks.
struct Run {
    board: PcMachine,
    engine: Box<dyn Engine>,
    lines: Arc<Lines>,
    _timers: TimerThread,
}

impl Run {
    fn new(assembled: &Assembled, engine: impl FnOnce(&PcMachine) -> Option<Box<dyn Engine>>) -> Option<Run> {
        let lines = Arc::new(Lines::default());
        let board = PcMachine::build(PcConfig {
            debug_consoles: vec![(0xe9, lines.clone())],
            debug_exit: vec![DebugExitConfig { iobase: 0xf4, iosize: 4 }],
            ..PcConfig::new(RAM)
        })
        .unwrap();
        let info = board.platform().clone();
        let e820 = e820::build(info.machine, &info.ram);
        let boot = LinuxBoot { kernel: &assembled.file, initrd: None, cmdline: b"", e820: &e820, rsdp: 0 };
        let entry = load_linux(&mut LoaderMemory(&board.address_space), &boot).unwrap();
        let mut engine = engine(&board)?;
        let _ = lines.control.set(engine.control());
        engine.reset();
        let mut state = engine.state().unwrap();
        boot_state(&mut state, &entry);
        engine.set_state(&state).unwrap();
        board.pause();
        let _timers = TimerThread::spawn(board.timers.clone()).unwrap();
        Some(Run { board, engine, lines, _timers })
    }

    /// Lets the vCPU go on until it stops, within reason.
    fn go(&mut self) -> Stop {
        let control = self.engine.control();
        control.resume();
        let (done, wait) = std::sync::mpsc::channel::<()>();
        let watchdog = std::thread::spawn(move || {
            if wait.recv_timeout(LIMIT) == Err(RecvTimeoutError::Timeout) {
                control.stop();
            }
        });
        self.board.resume();
        let stop = drive(&mut *self.engine);
        self.board.pause();
        drop(done);
        watchdog.join().unwrap();
        stop
    }

    /// Runs to the end of the next line: the line, or how the program ended.
    fn next_line(&mut self) -> Result<String, End> {
        let stop = self.go();
        let text = std::mem::take(&mut *self.lines.text.lock().unwrap_or_else(PoisonError::into_inner));
        let text = String::from_utf8_lossy(&text).into_owned();
        match (stop, self.board.events.take()) {
            (_, Some(MachineEvent::DebugExit(status))) => Err(End::Status(status)),
            (Stop::Requested, None) if text.ends_with('\n') => Ok(text.trim().to_owned()),
            (stop, event) => Err(End::Stopped(format!("{stop:?}, {event:?}, after {text:?}"))),
        }
    }

    fn moment(&mut self) -> Moment {
        let mut bytes = vec![0; RAM as usize];
        self.board.address_space.read_bytes(0, &mut bytes);
        let hash = |page: &[u8]| {
            let mut hasher = DefaultHasher::new();
            hasher.write(page);
            hasher.finish()
        };
        Moment { state: self.engine.state().unwrap(), pages: bytes.chunks(PAGE).map(hash).collect() }
    }

    fn page(&self, n: usize) -> Vec<u8> {
        let mut bytes = vec![0; PAGE];
        self.board.address_space.read_bytes((n * PAGE) as u64, &mut bytes);
        bytes
    }
}

/// What differs between two moments, a line each.
fn differences(tcg: &mut Run, kvm: &mut Run) -> Vec<String> {
    let (mut by_tcg, by_kvm) = (tcg.moment(), kvm.moment());
    fields(&mut by_tcg.state, &by_kvm.state);
    let registers = by_kvm.state.differences(&by_tcg.state);
    let mut lines: Vec<String> = registers.lines().map(str::to_owned).collect();
    for n in (0..by_tcg.pages.len()).filter(|n| by_tcg.pages[*n] != by_kvm.pages[*n]) {
        let words = |page: Vec<u8>| -> Vec<[u8; 8]> {
            page.chunks_exact(8).map(|word| std::array::from_fn(|n| word[n])).collect()
        };
        let pairs = words(kvm.page(n)).into_iter().zip(words(tcg.page(n))).enumerate();
        lines.extend(pairs.filter(|(_, (a, b))| a != b).map(|(word, (a, b))| {
            let (a, b) = (u64::from_le_bytes(a), u64::from_le_bytes(b));
            format!("memory {:#x}: {a:#018x} | {b:#018x}", n * PAGE + 8 * word)
        }));
    }
    lines
}

/// The check that a line is about.
fn check_of(line: &Result<String, End>) -> String {
    let Ok(line) = line else { return "the end".into() };
    let name = line
        .strip_prefix("ok ")
        .or_else(|| line.strip_prefix("FAIL ")?.split_once(": ").map(|(name, _)| name));
    name.unwrap_or(line).to_owned()
}

fn config(cpu: &str) -> Config {
    let line = ["-accel", "kvm", "-cpu", cpu].map(std::ffi::OsString::from);
    let Ok(Invocation::Run(config)) = cli::parse(line) else { panic!("-cpu {cpu} is not understood") };
    *config
}

/// A machine with a program under the translator, and one under KVM. `None` if KVM cannot be had.
fn machines(program: &Program, assembled: &Assembled, chip: IrqChip) -> Option<(Run, Run)> {
    let config = config(program.cpu);
    let kvm = Run::new(assembled, |board| match KvmEngine::new(board, &config, chip) {
        Ok((engine, _)) => Some(Box::new(engine)),
        Err(Unavailable::Kvm(why)) => {
            println!("skipped: KVM {why}");
            None
        }
        Err(Unavailable::Request(why)) => panic!("{why}"),
    })?;
    let tcg = Run::new(assembled, |board| {
        // Stopped behind the very instruction that ended the line.
        let settings = Tcg { one_insn: true, ..Tcg::default() };
        let model = tessera_x86::cpuid::parse(program.cpu).unwrap();
        Some(Box::new(TcgEngine::new(board, &config, model, &settings).unwrap()))
    })?;
    Some((tcg, kvm))
}

/// Runs a program under both; what is wrong. `None` if KVM cannot be had.
fn compare(program: &Program, assembled: &Assembled, chip: IrqChip) -> Option<Vec<String>> {
    let (mut tcg, mut kvm) = machines(program, assembled, chip)?;
    let mut wrong = Vec::new();
    let (mut compared, mut before) = (0, BTreeSet::new());
    loop {
        let (by_tcg, by_kvm) = (tcg.next_line(), kvm.next_line());
        let (check, other) = (check_of(&by_tcg), check_of(&by_kvm));
        if check != other {
            wrong.push(format!("KVM is at {by_kvm:?}, the translator at {by_tcg:?}"));
            break;
        }
        compared += 1;
        let mut all: BTreeSet<_> = differences(&mut tcg, &mut kvm).into_iter().collect();
        if by_tcg != by_kvm {
            all.insert(format!("outcome {by_kvm:?} | {by_tcg:?}"));
        }
        let known = |line: &str| {
            let own: &[_] = if chip == IrqChip::Off { &[] } else { KNOWN_WITH_OWN_CHIPS };
            let row = KNOWN.iter().chain(own).find(|(name, at, what, _)| {
                *name == program.name
                    && (*at == check || *at == "*")
                    && (*what == "*" || line.starts_with(what))
            });
            row.map(|(.., why)| *why)
        };
        // What an earlier check has left is that one's.
        let new: Vec<_> = all.difference(&before).collect();
        let reasons: BTreeSet<_> = new.iter().filter_map(|line| known(line)).collect();
        reasons.iter().for_each(|why| println!("  {} {check}: not compared whole: {why}", program.name));
        wrong.extend(new.iter().filter(|line| known(line).is_none()).map(|line| format!("{check}: {line}")));
        before = all;
        match by_tcg {
            Ok(_) => {}
            Err(End::Status(PASSED)) => break,
            // A check fails that is known to.
            Err(End::Status(_)) if before.iter().any(|line| line.starts_with("outcome")) => break,
            Err(end) => {
                wrong.push(format!("{end:?}"));
                break;
            }
        }
    }
    println!("{}: {compared} moments compared", program.name);
    Some(wrong)
}

/// How many instructions are stepped through.
const STEPS: usize = 400;
/// And the most rounds of an instruction.
const ROUNDS: usize = 5000;

/// From a breakpoint at a program's first instruction in its home mode on, each step leaves the same state. `None` if KVM cannot
/// be had.
fn steps_agree(name: &str, chip: IrqChip) -> Option<()> {
    let program = programs().into_iter().find(|program| program.name == name).unwrap();
    let assembled = program.assemble(Variant::Kvm).unwrap();
    let main = assembled.symbols.iter().find(|(_, name)| name == "main").unwrap().0;
    let (mut tcg, mut kvm) = machines(&program, &assembled, chip)?;
    let breakpoint = DebugRequest { breakpoints: vec![main], ..DebugRequest::default() };
    let step = DebugRequest { step: Some(Step::One), ..breakpoint.clone() };
    for run in [&mut tcg, &mut kvm] {
        run.engine.set_debug(&breakpoint).unwrap();
        assert_eq!(run.go(), Stop::Debug(DebugStop::Breakpoint), "{name}");
        run.engine.set_debug(&step).unwrap();
    }
    for n in 0..STEPS {
        // In the midst of a repeated instruction, of which the two may take more or fewer rounds at once, RF is set.
        let by_kvm = stepped(&mut kvm, |state| state.rflags & RFlags::RF.bits() == 0);
        let mut by_tcg =
            stepped(&mut tcg, |state| (state.rip, state.gpr[reg::RCX]) == (by_kvm.rip, by_kvm.gpr[reg::RCX]));
        fields(&mut by_tcg, &by_kvm);
        let differences = by_kvm.differences(&by_tcg);
        let shows_step = |(a, b): (&u64, &u64)| a ^ b == RFlags::TF.bits();
        if chip != IrqChip::Off && n > 20 && by_kvm.gpr.iter().zip(&by_tcg.gpr).any(shows_step) {
            println!("{name}: not compared after step {n}: PUSHF shows the guest the TF of KVM's own steps");
            return Some(());
        }
        assert!(by_kvm == by_tcg, "{name}, step {n}, KVM | translator:\n{differences}");
    }
    Some(())
}

/// Steps until the instruction is done, which is after one step unless it is a repeated one.
fn stepped(run: &mut Run, done: impl Fn(&CpuState) -> bool) -> CpuState {
    let mut state = None;
    for _ in 0..ROUNDS {
        assert_eq!(run.go(), Stop::Debug(DebugStop::Stepped));
        if done(state.insert(run.engine.state().unwrap())) {
            break;
        }
    }
    state.unwrap()
}

#[test]
fn breakpoints_and_single_steps_agree_in_every_mode() {
    for chip in [IrqChip::Off, IrqChip::On, IrqChip::Split] {
        for program in ["real", "segments", "long"] {
            if steps_agree(program, chip).is_none() {
                return;
            }
        }
    }
}

fn all_agree(chip: IrqChip) {
    let mut wrong = Vec::new();
    for program in programs() {
        let assembled = program.assemble(Variant::Kvm).unwrap();
        let left_out = assembled.checks.iter().filter_map(|check| Some((&check.name, check.left_out?)));
        left_out.for_each(|(name, why)| println!("  {} {name}: left out: {why}", program.name));
        if assembled.checks.iter().all(|check| check.left_out.is_some()) {
            continue;
        }
        let Some(found) = compare(&program, &assembled, chip) else { return };
        wrong.extend(found.into_iter().map(|line| format!("{}: {line}", program.name)));
    }
    assert!(wrong.is_empty(), "KVM | translator:\n{}", wrong.join("\n"));
}

#[test]
fn programs_leave_the_same_state_behind_each_check() {
    all_agree(IrqChip::Off);
}

#[test]
fn programs_leave_the_same_state_with_kvms_own_interrupt_controllers() {
    all_agree(IrqChip::On);
}
