//! Accelerators: what executes the guest's instructions.
//!
//! An [`Engine`] runs one vCPU of the machine on its own thread. The machine knows nothing else of it: it starts the
//! thread, kicks it from any other, and is told why it stopped. `tcg` joins the translator to the devices; the two
//! crates never meet elsewhere. `kvm` has the host's processor execute the guest. Both get and set one [`CpuState`].

pub mod debug;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
pub mod kvm;
pub mod meter;
mod sampler;
pub mod statistics;
pub mod tcg;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Instant;

use tessera_firmware::loader::{BOOT_CS, BOOT_DS, BootEntry};
use tessera_hw::boards::pc::PcMachine;
use tessera_x86::cpu_state::CpuState;
use tessera_x86::cpuid;
use tessera_x86::state::{Cr0, RFlags, Segment, TableRegister, reg, seg};

use crate::cli::{Accel, Config, Tcg, UsageError};
use debug::{DebugRequest, DebugStop, Listing};
use meter::Meter;

/// Makes the engine of the machine's first vCPU: the first that can be had of those that the command line prefers. Why
/// one cannot be had is told in a line.
pub fn engine(board: &PcMachine, config: &Config) -> Result<Box<dyn Engine>, UsageError> {
    let mut choices = config.accels.iter().peekable();
    while let Some(choice) = choices.next() {
        let why = match choice {
            Accel::Tcg(settings) => return tcg_engine(board, config, settings),
            Accel::Kvm(chip) => match kvm_engine(board, config, chip.unwrap_or_default())? {
                Ok(engine) => return Ok(engine),
                Err(why) => why,
            },
        };
        match choices.peek() {
            Some(next) => eprintln!("tessera: KVM {why}; using {} instead", next.name()),
            None => return Err(UsageError(format!("-accel kvm: KVM {why}; or use -accel tcg"))),
        }
    }
    Err(UsageError("-accel: none is named; give tcg or kvm".into()))
}

fn tcg_engine(board: &PcMachine, config: &Config, settings: &Tcg) -> Result<Box<dyn Engine>, UsageError> {
    let failed =
        |why| UsageError(format!("-accel tcg: the host does not allow it ({why}); see the host's limits"));
    let text = config.cpu.as_deref().unwrap_or("max");
    let (cpu, warnings) = cpuid::parse_for(text, &cpuid::models::IMPLEMENTED)
        .map_err(|error| UsageError(format!("-cpu {text}: {error}")))?;
    warn(&warnings);
    Ok(Box::new(tcg::TcgEngine::new(board, config, cpu, settings).map_err(failed)?))
}

/// KVM's engine, or the rest of a sentence that begins with "KVM" and says why it cannot be had.
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
fn kvm_engine(
    board: &PcMachine,
    config: &Config,
    chip: crate::cli::IrqChip,
) -> Result<Result<Box<dyn Engine>, String>, UsageError> {
    match kvm::KvmEngine::new(board, config, chip) {
        Ok((engine, warnings)) => {
            warn(&warnings);
            Ok(Ok(Box::new(engine)))
        }
        Err(kvm::Unavailable::Kvm(why)) => Ok(Err(why)),
        Err(kvm::Unavailable::Request(why)) => Err(UsageError(why)),
    }
}

#[cfg(not(all(target_os = "linux", target_arch = "x86_64")))]
fn kvm_engine(
    _: &PcMachine,
    _: &Config,
    _: crate::cli::IrqChip,
) -> Result<Result<Box<dyn Engine>, String>, UsageError> {
    Ok(Err("executes x86-64 guests on x86-64 Linux only".into()))
}

fn warn(warnings: &[String]) {
    for warning in warnings {
        eprintln!("tessera: warning: {warning}");
    }
}

/// Why a vCPU stopped executing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stop {
    /// It waits for an interrupt.
    Halted,
    /// [`Control::stop`] was called.
    Requested,
    /// What [`Engine::set_debug`] asked for has come.
    Debug(DebugStop),
    /// A triple fault. The text shows the CPU's state.
    TripleFault(String),
    /// The engine cannot go on, for a reason that is not the guest's. The text says why.
    Failed(String),
}

/// One vCPU's executor.
pub trait Engine: Send {
    /// Executes until something happens that the engine does not handle by itself.
    fn run(&mut self) -> Stop;
    /// Puts the CPU in its power-up state.
    fn reset(&mut self);
    /// The whole architectural state of the CPU, which is not executing. An error is a sentence.
    fn state(&mut self) -> Result<CpuState, String>;
    /// Replaces the state of the CPU, which is not executing. After an error, a sentence, the CPU must be reset.
    fn set_state(&mut self, state: &CpuState) -> Result<(), String>;
    /// Takes over what a debugger wants, from the next run on. An error is a sentence that says what cannot be had; the
    /// old request then stays.
    fn set_debug(&mut self, request: &DebugRequest) -> Result<(), String>;
    /// What becomes of the code at a linear address in the current mode. An error is a sentence.
    fn list(&mut self, _linear: u64) -> Result<Listing, String> {
        Err("there are no translated blocks under KVM; use -accel tcg".into())
    }
    /// The translations of addresses that the engine keeps for the current address space, a line each.
    fn cached_translations(&mut self) -> Result<String, String> {
        Err("the host's processor does not show its TLB; use -accel tcg".into())
    }
    /// The handle by which other threads reach the vCPU.
    fn control(&self) -> Arc<Control>;
    /// Whether a halted CPU has a reason to go on.
    fn awake(&self) -> bool;
    /// The CPU's registers for people.
    fn dump(&self) -> String;
    /// What the engine did so far, for people.
    fn statistics(&self) -> String;
}

/// Granularity in pages, as in [`Segment::access`].
const FLAT_ACCESS: u16 = 1 << 15;
/// Code, execute and read, accessed, as in [`Segment::access`].
const CODE_ACCESS: u16 = 0x1b;
/// Data, read and write, accessed, as in [`Segment::access`].
const DATA_ACCESS: u16 = 0x13;

/// Where a loaded kernel begins, for a CPU in its power-up state.
pub fn boot_state(state: &mut CpuState, entry: &BootEntry) {
    let BootEntry::Protected32 { eip, esi, ebx, gdt_base, gdt_limit } = *entry;
    state.cr0 |= (Cr0::PE | Cr0::ET).bits();
    state.gdtr = TableRegister { base: gdt_base.into(), limit: gdt_limit };
    state.idtr = TableRegister { base: 0, limit: 0 };
    let flat = |selector, kind| Segment {
        base: 0,
        limit: u32::MAX,
        access: kind | Segment::PRESENT | Segment::DB | FLAT_ACCESS,
        selector,
    };
    state.segments[seg::CS] = flat(BOOT_CS, CODE_ACCESS);
    for n in [seg::DS, seg::ES, seg::FS, seg::GS, seg::SS] {
        state.segments[n] = flat(BOOT_DS, DATA_ACCESS);
    }
    state.gpr = [0; 16];
    state.gpr[reg::RSI] = esi.into();
    state.gpr[reg::RBX] = ebx.into();
    state.rflags = RFlags::ONE.bits();
    state.rip = eip.into();
}

/// How other threads reach a vCPU: they may ask it to look at events, or to stop.
#[derive(Default)]
pub struct Control {
    stop: AtomicBool,
    kicked: Mutex<bool>,
    wake: Condvar,
    /// How long the vCPU ran, waiting included, and how long it waited.
    ran: Meter,
    idle: Meter,
    /// Makes translated code return to its loop; set by the engine.
    interrupt: Mutex<Option<Box<dyn Fn() + Send>>>,
}

impl Control {
    /// A handle whose kicks also call `interrupt`.
    pub fn new(interrupt: Box<dyn Fn() + Send>) -> Arc<Control> {
        Arc::new(Control { interrupt: Mutex::new(Some(interrupt)), ..Control::default() })
    }

    /// Makes the vCPU look at its events soon: leaves generated code, or wakes it from its halt.
    pub fn kick(&self) {
        *self.kicked.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.wake.notify_one();
        if let Some(interrupt) = &*self.interrupt.lock().unwrap_or_else(PoisonError::into_inner) {
            interrupt();
        }
    }

    /// Makes [`Engine::run`] return with [`Stop::Requested`].
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Release);
        self.kick();
    }

    /// Whether a stop was asked for and not yet withdrawn.
    pub fn stop_requested(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }

    /// Lets the vCPU run again after a stop.
    pub fn resume(&self) {
        self.stop.store(false, Ordering::Release);
    }

    /// Sleeps until the next kick, or returns at once if there was one since the last call.
    pub fn wait(&self) {
        let mut kicked = self.kicked.lock().unwrap_or_else(PoisonError::into_inner);
        while !*kicked {
            kicked = self.wake.wait(kicked).unwrap_or_else(PoisonError::into_inner);
        }
        *kicked = false;
    }

    /// Drops the engine's interrupt before the engine goes.
    fn detach(&self) {
        *self.interrupt.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

/// Runs a vCPU on the calling thread until it is stopped or faults for good; sleeps while it is halted.
pub fn drive(engine: &mut dyn Engine) -> Stop {
    let control = engine.control();
    let start = Instant::now();
    let stop = loop {
        match engine.run() {
            Stop::Halted => {
                let halted = Instant::now();
                while !engine.awake() && !control.stop_requested() {
                    control.wait();
                }
                control.idle.add_since(halted);
            }
            stop => break stop,
        }
    };
    control.ran.add_since(start);
    stop
}
