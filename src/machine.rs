//! Builds the machine that the command line describes, and runs it to its end.
//!
//! Strategy: [`Machine::build`] does everything that can fail for a reason the user can mend, and changes
//! nothing outside the process: it opens files, makes the board, loads the kernel. [`Machine::run`] then
//! starts the threads and serves the main loop until the guest, the user or a signal ends the machine.
//!
//! Threads: one a vCPU ([`Vcpu`]), one for timers, and this one. A reset is done here, while no vCPU runs.

use std::io::{self, stderr};
use std::sync::Arc;
use std::time::Duration;

use tessera_firmware::loader::{self, BootEntry, BootOption, LinuxBoot};
use tessera_firmware::{GuestMemory, bios, e820, tables};
use tessera_hw::boards::pc::{DebugExitConfig, LoaderMemory, PcConfig, PcMachine};
use tessera_hw_core::clock::Clock;
use tessera_hw_core::event::MachineEvent;
use tessera_hw_core::timers::TimerThread;

use crate::accel::{self, Engine, Stop};
use crate::backends::chardev::{self, Opened, plain};
use crate::backends::output_file::OutputFile;
use crate::cli::{Config, UsageError};
use crate::debug::gdb::{Ask, GdbServer, Listening, StopReason};
use crate::debug::log;
use crate::event_loop::{EventLoop, Happening, Waker};
use crate::guest_files::GuestFile;
use crate::native_speed;
use crate::vcpu::Vcpu;

/// The exit status after a debug exit keeps the low byte, as any exit status does.
const STATUS_MASK: u32 = 0xFF;
/// The port of the debug console.
const DEBUG_CONSOLE: u16 = 0xE9;
/// How long the main loop waits for the end of a debugger's step before it looks after other things.
const STEP: Duration = Duration::from_millis(2);
/// How much of a long value a message shows.
const SHOWN: usize = 60;

/// Why the machine's run is over.
#[derive(Debug)]
enum End {
    /// The guest, or the user, wants it so.
    Wanted {
        /// The process's exit status.
        status: u8,
    },
    /// A signal asked for it.
    Signal(i32),
    /// The guest triple-faulted and may not be reset; the text shows the processor's state.
    TripleFault(String),
    /// What executes the guest cannot go on; the text says why.
    Failed(String),
    /// The emulator itself failed.
    Broken(String),
}

/// What the guest is started from.
struct Guest {
    kernel: Option<GuestFile>,
    initrd: Option<GuestFile>,
    append: Vec<u8>,
}

/// A machine, ready to run.
pub struct Machine {
    config: Config,
    guest: Guest,
    board: PcMachine,
    /// What executes the guest, until the vCPU's thread has it.
    engine: Option<Box<dyn Engine>>,
    waker: Waker,
    /// Where the first vCPU begins; `None` for the reset vector.
    entry: Option<BootEntry>,
    connections: Vec<Opened>,
    log_file: Option<OutputFile>,
    /// Where debuggers call, until the vCPU's thread exists.
    listening: Option<Listening>,
    gdb: Option<GdbServer>,
    /// The vCPU is stopped for a debugger, and guest time with it.
    held: bool,
    /// It has just made a step for one, who will soon want the next.
    stepped: bool,
    /// Guest time goes on for a debugger's step only, and nobody has told the timers.
    timers_sleep: bool,
    /// The guest has powered the machine off, and it stays.
    off: bool,
}

impl Machine {
    /// Builds the machine. Nothing outside the process has changed if this fails.
    pub fn build(config: Config) -> Result<Self, UsageError> {
        let mut guest = Guest {
            kernel: config.kernel.as_deref().map(|path| GuestFile::open("-kernel", path)).transpose()?,
            initrd: config.initrd.as_deref().map(|path| GuestFile::open("-initrd", path)).transpose()?,
            append: config.append.as_encoded_bytes().to_vec(),
        };
        let log_file = config.log.file.as_deref().map(open_log).transpose()?;
        let listening = config.gdb.as_ref().map(|spec| spec.open()).transpose()?;
        let waker = Waker::new().map_err(|error| internal("the main loop", &error))?;

        let mut connections = Vec::new();
        let mut connect = |option: &str, label: &str, spec: &Option<chardev::CharSpec>| {
            let Some(spec) = spec else { return Ok(None) };
            let opened = chardev::open(option, label, spec, &waker)?;
            let backend = opened.backend();
            connections.push(opened);
            Ok(Some(backend))
        };
        let mut serial = [const { None }; 4];
        for (index, (port, spec)) in serial.iter_mut().zip(&config.serial).enumerate() {
            *port = connect("-serial", &format!("serial{index}"), spec)?;
        }
        let debugcon = connect("-debugcon", "debugcon", &config.debugcon)?;

        let board = PcMachine::build(PcConfig {
            kind: config.machine,
            ram: config.ram,
            cpus: 1,
            serial,
            debug_consoles: debugcon.map(|backend| (DEBUG_CONSOLE, backend)).into_iter().collect(),
            debug_exit: config
                .debug_exit
                .map(|device| DebugExitConfig { iobase: device.iobase, iosize: device.iosize })
                .into_iter()
                .collect(),
            // A kernel needs none, and what is not there is not in the way.
            rom: config.kernel.is_none().then(|| bios::rom().to_vec()),
            clock: Arc::new(Clock::host()),
        })
        .map_err(|error| {
            let mib = config.ram >> 20;
            UsageError(format!(
                "-m {mib}M: the machine cannot be built ({error}); give the guest less memory"
            ))
        })?;
        let entry = guest.load(&board, &config)?;
        let engine = Some(accel::engine(&board, &config)?);
        Ok(Machine {
            config,
            guest,
            board,
            engine,
            waker,
            entry,
            connections,
            log_file,
            listening,
            gdb: None,
            held: false,
            stepped: false,
            timers_sleep: false,
            off: false,
        })
    }

    /// Runs the machine to its end; returns the exit status. The terminal is as it was when this returns.
    pub fn run(mut self) -> Result<u8, UsageError> {
        match self.log_file.take() {
            Some(file) => {
                let file = file.commit().map_err(|error| internal("-D", &error))?;
                log::start(&self.config.log, Box::new(file));
            }
            None => log::start(&self.config.log, Box::new(stderr())),
        }
        let (mut endpoints, mut raw_mode) = (Vec::new(), None);
        for connection in std::mem::take(&mut self.connections) {
            let started =
                connection.start(self.config.escape).map_err(|error| internal("-serial", &error))?;
            endpoints.extend(started.endpoint);
            raw_mode = started.raw_mode.or(raw_mode);
        }
        let mut event_loop = EventLoop::new(self.waker.clone(), endpoints)
            .map_err(|error| internal("the main loop", &error))?;
        let outcome = self.execute(&mut event_loop, || {
            if let Some(raw_mode) = &raw_mode {
                raw_mode.enter_again();
            }
        });
        event_loop.finish();
        drop(event_loop);
        drop(raw_mode);
        let name = self.config.name.as_deref().map(|name| format!(" ({name})")).unwrap_or_default();
        match outcome.map_err(|error| internal("the main loop", &error))? {
            End::Wanted { status } => Ok(status),
            End::Signal(signal) => {
                eprintln!("tessera{name}: ended by signal {signal}");
                Ok(0)
            }
            End::TripleFault(state) => {
                eprintln!("tessera{name}: triple fault, and -no-reboot is given\n{}", state.trim_end());
                Ok(0)
            }
            End::Failed(why) => Err(UsageError(why)),
            End::Broken(why) => Err(UsageError(format!(
                "the emulator failed: {why}; this is a mistake in Tessera, please report it"
            ))),
        }
    }

    /// The main loop, from the machine's start to its end.
    fn execute(&mut self, event_loop: &mut EventLoop, continued: impl Fn()) -> io::Result<End> {
        let engine = self.engine.take().ok_or_else(|| io::Error::other("the machine has run"))?;
        let mut vcpu = Vcpu::spawn(0, engine, self.waker.clone())?;
        let (control, waker) = (vcpu.control(), self.waker.clone());
        self.board.events.on_post(Arc::new(move || {
            control.kick();
            waker.wake();
        }));
        let _timers = TimerThread::spawn(self.board.timers.clone())?;
        vcpu.reset(self.entry.take());
        self.held = self.config.stopped;
        if let Some((listening, handle)) = self.listening.take().zip(vcpu.handle()) {
            self.gdb = Some(GdbServer::new(listening, &self.board, handle, !self.held));
        }
        if self.held {
            self.board.pause();
        } else {
            vcpu.run();
        }
        let end = loop {
            let mut end = None;
            let others = self.gdb.as_ref().map(GdbServer::interest).unwrap_or_default();
            for happening in event_loop.wait(&others, std::mem::take(&mut self.stepped))? {
                match happening {
                    Happening::Quit => end = end.or(Some(End::Wanted { status: 0 })),
                    Happening::Signal(signal) => end = end.or(Some(End::Signal(signal))),
                    Happening::Continued => continued(),
                }
            }
            let end = match end {
                Some(end) => Some(end),
                None => self.look(&mut vcpu).or_else(|| self.serve_debugger(&mut vcpu)),
            };
            if let Some(end) = end {
                break end;
            }
        };
        if let (End::Wanted { status }, Some(gdb)) = (&end, &mut self.gdb) {
            gdb.ended(*status);
        }
        // Nothing of the guest happens from here on.
        let _ = vcpu.stop();
        if self.config.log.items.iter().any(|item| item.name == "stats")
            && let Some(statistics) = vcpu.statistics()
        {
            tracing::info!(target: "stats", "{statistics}");
        }
        Ok(end)
    }

    /// Acts on what the guest or its vCPU has come to.
    fn look(&mut self, vcpu: &mut Vcpu) -> Option<End> {
        let report = match vcpu.take_report() {
            Some(report) => report,
            // The vCPU runs until it notices the request, or is made to.
            None if self.board.events.pending() => vcpu.stop(),
            None => return None,
        };
        self.act(vcpu, report)
    }

    /// Acts on why the vCPU has stopped, and on what the guest has asked for meanwhile.
    fn act(&mut self, vcpu: &mut Vcpu, report: Result<Stop, String>) -> Option<End> {
        let event = self.board.events.take();
        match (report, event) {
            (Err(why), _) => Some(End::Broken(why)),
            (Ok(Stop::Failed(why)), _) => Some(End::Failed(why)),
            (Ok(Stop::TripleFault(state)), _) if self.config.no_reboot => Some(End::TripleFault(state)),
            (Ok(Stop::TripleFault(_)), _) | (Ok(_), Some(MachineEvent::Reset)) => self.reset(vcpu),
            (Ok(_), Some(MachineEvent::Shutdown)) if self.config.no_shutdown => {
                self.board.pause();
                self.off = true;
                None
            }
            (Ok(_), Some(MachineEvent::Shutdown)) => Some(End::Wanted { status: 0 }),
            (Ok(_), Some(MachineEvent::DebugExit(status))) => {
                Some(End::Wanted { status: (status & STATUS_MASK) as u8 })
            }
            (Ok(Stop::Debug(stop)), None) => {
                self.hold(&StopReason::Debug(stop));
                None
            }
            (Ok(_), None) => {
                self.proceed(vcpu);
                None
            }
        }
    }

    /// Lets the vCPU go on, unless a debugger holds it or the machine is off.
    fn proceed(&mut self, vcpu: &mut Vcpu) {
        if !self.held && !self.off {
            vcpu.run();
        }
    }

    /// The vCPU has stopped and is the debugger's now. Guest time stands still meanwhile.
    fn hold(&mut self, reason: &StopReason) {
        if !self.held {
            self.held = true;
            if self.timers_sleep {
                self.board.clock.stop();
            } else {
                self.board.pause();
            }
        }
        if let Some(gdb) = &mut self.gdb {
            gdb.stopped(reason);
        }
    }

    /// Does what debuggers ask for.
    fn serve_debugger(&mut self, vcpu: &mut Vcpu) -> Option<End> {
        while let Some(ask) = self.gdb.as_mut().and_then(GdbServer::service) {
            let end = match ask {
                Ask::Stop if self.held => {
                    self.hold(&StopReason::Interrupted);
                    None
                }
                Ask::Stop => match vcpu.stop() {
                    Ok(Stop::Requested) if !self.board.events.pending() => {
                        self.hold(&StopReason::Interrupted);
                        None
                    }
                    // If the guest has asked for something, that comes first; the debugger asks again.
                    report => self.act(vcpu, report),
                },
                Ask::Resume | Ask::Release => self.release(vcpu),
                Ask::Reset => match self.restart(vcpu) {
                    Ok(()) => {
                        self.gdb.iter_mut().for_each(GdbServer::changed);
                        None
                    }
                    Err(end) => Some(end),
                },
                Ask::Kill => Some(End::Wanted { status: 0 }),
            };
            if end.is_some() {
                return end;
            }
        }
        None
    }

    /// Lets the guest go on as the debugger wants.
    fn release(&mut self, vcpu: &mut Vcpu) -> Option<End> {
        let gdb = self.gdb.as_mut()?;
        let told = gdb.tell_engine();
        let step = gdb.steps();
        self.timers_sleep = step && !gdb.timers_in_steps();
        gdb.resumed();
        if self.off {
            self.held = false;
            return None;
        }
        if let Err(why) = told {
            self.hold(&StopReason::Refused(why));
            return None;
        }
        self.held = false;
        if self.timers_sleep {
            // Time passes in a step, but timers need not hear of it.
            self.board.clock.resume();
        } else {
            self.board.resume();
        }
        vcpu.run();
        if !step {
            return None;
        }
        let report = vcpu.take_report_soon(STEP);
        if report.is_none() && std::mem::take(&mut self.timers_sleep) {
            // It waits for something: a halted CPU for its timer, say.
            self.board.resume();
        }
        self.stepped = report.is_some();
        self.act(vcpu, report?)
    }

    /// Resets the machine, whose vCPU is stopped, and starts it again.
    fn reset(&mut self, vcpu: &mut Vcpu) -> Option<End> {
        if self.config.no_reboot {
            return Some(End::Wanted { status: 0 });
        }
        match self.restart(vcpu) {
            Ok(()) => {
                self.proceed(vcpu);
                None
            }
            Err(end) => Some(end),
        }
    }

    /// Puts the machine, whose vCPU is stopped, where it starts.
    fn restart(&mut self, vcpu: &mut Vcpu) -> Result<(), End> {
        self.board.reset();
        self.off = false;
        let entry = self.guest.load(&self.board, &self.config);
        let entry =
            entry.map_err(|error| End::Broken(format!("the guest cannot be started again: {error}")))?;
        vcpu.reset(entry);
        Ok(())
    }
}

impl Guest {
    /// Places the tables, and the kernel or what the firmware wants to know, in the memory of a board that
    /// was just made or reset.
    fn load(&mut self, board: &PcMachine, config: &Config) -> Result<Option<BootEntry>, UsageError> {
        let mut memory = LoaderMemory(&board.address_space);
        let ram = config.ram;
        let Some(kernel_file) = &mut self.kernel else {
            memory
                .write(bios::NATIVE_SPEED_ADDR, &native_speed::measure().to_le_bytes())
                .map_err(|error| internal("-m", &error))?;
            return Ok(None);
        };
        let mut info = board.platform().clone();
        info.uuid = config.uuid.unwrap_or(info.uuid);
        let rsdp = tables::build(&mut memory, &info)
            .map_err(|error| UsageError(format!("-m {}M: {error}", ram >> 20)))?;
        let kernel = kernel_file.read(ram)?;
        let initrd = self.initrd.as_mut().map(|file| file.read(ram)).transpose()?;
        let boot = LinuxBoot {
            kernel: &kernel,
            initrd: initrd.as_deref(),
            cmdline: &self.append,
            e820: &e820::build(info.machine, &info.ram),
            rsdp,
        };
        let entry = loader::load_linux(&mut memory, &boot).map_err(|error| {
            let name = match (error.option(), &self.initrd) {
                (BootOption::Initrd, Some(file)) => file.name(),
                (BootOption::Append, _) => format!("-append {}", shortened(&self.append)),
                _ => kernel_file.name(),
            };
            UsageError(format!("{name}: {error}"))
        })?;
        Ok(Some(entry))
    }
}

fn open_log(path: &std::path::Path) -> Result<OutputFile, UsageError> {
    OutputFile::open(path).map_err(|error| {
        UsageError(format!(
            "-D {}: it cannot be written ({}); name a file that can",
            path.display(),
            plain(&error)
        ))
    })
}

/// The start of a text that may be very long.
fn shortened(text: &[u8]) -> String {
    let text = String::from_utf8_lossy(text);
    match text.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text.into_owned(),
    }
}

/// An error of the host that no value of an option mends.
fn internal(what: &str, error: &dyn std::fmt::Display) -> UsageError {
    UsageError(format!("{what}: the host does not allow it ({error}); see the host's limits"))
}
