//! The translator behind the machine: the adapters between what the CPU wants and what the board has.

use std::fmt::Write;
use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock};

use tessera_hw::boards::pc::PcMachine;
use tessera_hw::intc::lapic::TIMER_HZ;
use tessera_hw::misc::a20::A20;
use tessera_hw::misc::coprocessor::Coprocessor;
use tessera_hw_core::clock::Clock;
use tessera_hw_core::cpu::{CpuIrq, signal};
use tessera_hw_core::event::Events;
use tessera_hw_core::mem::{AddressSpace, MemoryObserver, Region};
use tessera_hw_core::ports::PortBus;
use tessera_hw_core::timers::Timers;
use tessera_tcg::backend::x86_64::X86_64;
use tessera_tcg::exec::{BREAKPOINT, Options, Remote, Vcpu};
use tessera_tcg::memory::{PAGE_MASK, PhysMemory, RamPage};
use tessera_tcg::softmmu::{self, Watch, WatchOwner};
use tessera_x86::cpu_state::CpuState;
use tessera_x86::cpuid::CpuidTable;
use tessera_x86::guest::X86;
use tessera_x86::platform::{InvalidMsr, Platform, hashed_random};
use tessera_x86::state::{RFlags, X86Env, reg};
use tessera_x86::system::{self, exit};

use super::debug::{DebugRequest, DebugStop, Listing, Step, Watchpoint};
use super::meter::{Meter, timed};
use super::sampler::Sampler;
use super::statistics::{self, Times};
use super::{Control, Engine, Stop};
use crate::cli::{Config, Tcg};

/// MSR IA32_TSC_DEADLINE.
const TSC_DEADLINE: u32 = 0x6e0;

/// The time that a vCPU spends in devices.
#[derive(Default)]
struct DeviceTime {
    ports: Meter,
    memory: Meter,
}

/// Guest-physical memory for the translator.
pub struct Memory {
    space: Arc<AddressSpace>,
    time: Option<Arc<DeviceTime>>,
}

impl Memory {
    /// Memory whose devices' time nobody takes.
    pub fn new(space: Arc<AddressSpace>) -> Memory {
        Memory { space, time: None }
    }
}

impl PhysMemory for Memory {
    fn ram_page(&self, phys: u64) -> Option<RamPage> {
        match self.space.lookup(phys & !PAGE_MASK) {
            Region::Ram { host, len, writable, .. } if len > PAGE_MASK => Some(RamPage { host, writable }),
            _ => None,
        }
    }

    fn ram_range(&self, phys: u64, bytes: u64) -> Option<RamPage> {
        match self.space.lookup(phys & !PAGE_MASK) {
            Region::Ram { host, len, writable, .. } if len >= bytes => Some(RamPage { host, writable }),
            _ => None,
        }
    }

    fn mmio_read(&self, phys: u64, size: u32) -> u64 {
        timed(self.time.as_ref().map(|time| &time.memory), || self.space.read(phys, size as u8))
    }

    fn mmio_write(&self, phys: u64, size: u32, value: u64) {
        timed(self.time.as_ref().map(|time| &time.memory), || self.space.write(phys, size as u8, value));
    }
}

/// Tells the translator what devices do to memory.
struct Observer(Arc<Remote>);

impl MemoryObserver for Observer {
    fn on_dma_write(&self, phys: u64, len: u64) {
        self.0.written(phys, len);
    }

    fn on_map_change(&self) {
        self.0.layout_changed();
    }
}

/// [`Platform`] over the board.
pub(super) struct PcPlatform {
    ports: Arc<PortBus>,
    clock: Arc<Clock>,
    timers: Arc<Timers>,
    space: Arc<AddressSpace>,
    irq: Arc<dyn CpuIrq>,
    a20: Arc<A20>,
    coprocessor: Arc<Coprocessor>,
    /// While a request of the guest waits here, the vCPU stops.
    events: Events,
    control: Arc<Control>,
    /// If somebody wants to know.
    time: Option<Arc<DeviceTime>>,
    random: Random,
}

/// The operating system's random numbers, fetched some at a time.
#[derive(Default)]
struct Random {
    words: [u64; 32],
    left: usize,
}

impl Random {
    fn next(&mut self) -> Option<u64> {
        if self.left == 0 {
            let mut bytes = [0u8; 256];
            // Requests of up to 256 bytes are answered in full once the pool is ready, and wait until it is.
            match rustix::rand::getrandom(&mut bytes[..], rustix::rand::GetRandomFlags::empty()) {
                Ok(n) if n == bytes.len() => {}
                _ => return None,
            }
            for (word, bytes) in self.words.iter_mut().zip(bytes.chunks_exact(8)) {
                *word = u64::from_le_bytes(std::array::from_fn(|i| bytes[i]));
            }
            self.left = self.words.len();
        }
        self.left -= 1;
        Some(std::mem::take(&mut self.words[self.left]))
    }
}

impl PcPlatform {
    /// What the CPU behind `irq` has around it.
    pub(super) fn new(board: &PcMachine, irq: Arc<dyn CpuIrq>, control: Arc<Control>) -> PcPlatform {
        PcPlatform {
            ports: board.ports.clone(),
            clock: board.clock.clone(),
            timers: board.timers.clone(),
            space: board.address_space.clone(),
            irq,
            a20: board.a20.clone(),
            coprocessor: board.coprocessor.clone(),
            events: board.events.clone(),
            control,
            time: None,
            random: Random::default(),
        }
    }
}

impl Platform for PcPlatform {
    fn port_in(&mut self, port: u16, size: u32) -> u32 {
        timed(self.time.as_ref().map(|time| &time.ports), || self.ports.read(port, size as u8))
    }

    fn port_out(&mut self, port: u16, size: u32, value: u32) {
        timed(self.time.as_ref().map(|time| &time.ports), || self.ports.write(port, size as u8, value));
    }

    fn tsc(&mut self) -> u64 {
        // A guest that waits by its clock does not see ticks missing because the host has no time for the timer thread.
        let (now, tsc) = self.clock.now_ns_and_tsc();
        self.timers.run_overdue(now);
        tsc
    }

    fn tsc_hz(&self) -> u64 {
        self.clock.tsc_hz()
    }

    fn random(&mut self) -> u64 {
        // Which cannot fail on a system that has the call; a guest whose random numbers stop would wait for ever.
        self.random.next().unwrap_or_else(hashed_random)
    }

    fn wall_ns(&mut self) -> u64 {
        self.clock.wall_ns()
    }

    fn write_physical(&mut self, phys: u64, bytes: &[u8]) {
        self.space.write_bytes(phys, bytes);
    }

    fn interrupt_pending(&self) -> bool {
        self.irq.pending()
    }

    fn acknowledge_interrupt(&mut self) -> Option<u8> {
        self.irq.acknowledge()
    }

    fn take_nmi(&mut self) -> bool {
        self.irq.take_nmi()
    }

    fn take_smi(&mut self) -> bool {
        // No device of this board raises SMI.
        false
    }

    fn take_init(&mut self) -> bool {
        self.irq.take_init()
    }

    fn take_sipi(&mut self) -> Option<u8> {
        self.irq.take_sipi()
    }

    fn event_pending(&self) -> bool {
        self.irq.signals().load(Ordering::Acquire) != 0 || self.stop_requested()
    }

    fn stop_requested(&self) -> bool {
        self.control.stop_requested() || self.events.pending()
    }

    fn tpr(&self) -> u8 {
        self.irq.cr8()
    }

    fn set_tpr(&mut self, class: u8) {
        self.irq.set_cr8(class);
    }

    fn apic_base(&self) -> u64 {
        self.irq.apic_base()
    }

    fn set_apic_base(&mut self, value: u64) -> Result<(), InvalidMsr> {
        self.irq.set_apic_base(value).map_err(|_| InvalidMsr)
    }

    fn apic_msr_read(&mut self, msr: u32) -> Result<u64, InvalidMsr> {
        if msr == TSC_DEADLINE {
            return Ok(self.irq.tsc_deadline());
        }
        self.irq.read_x2apic(msr).map_err(|_| InvalidMsr)
    }

    fn apic_msr_write(&mut self, msr: u32, value: u64) -> Result<(), InvalidMsr> {
        if msr == TSC_DEADLINE {
            self.irq.set_tsc_deadline(value);
            return Ok(());
        }
        self.irq.write_x2apic(msr, value).map_err(|_| InvalidMsr)
    }

    fn a20_mask(&self) -> u64 {
        if self.a20.enabled() { u64::MAX } else { !(1 << 20) }
    }

    fn ferr(&mut self, asserted: bool) {
        self.coprocessor.set_error(asserted);
    }

    fn ignne(&self) -> bool {
        self.coprocessor.ignores()
    }
}

/// Gives the board's local APIC the registers of a state, whose IA32_APIC_BASE it has.
pub(super) fn set_apic(irq: &dyn CpuIrq, state: &CpuState) {
    irq.set_apic_page(&state.apic.0);
    // Which timer it is for, the registers say.
    irq.set_tsc_deadline(state.tsc_deadline);
}

/// Makes the debugger's watches those of `watchpoints`, by their index.
pub(super) fn set_watchpoints(env: &mut X86Env, watchpoints: &[Watchpoint]) {
    let wanted: Vec<Watch> = (0..)
        .zip(watchpoints)
        .map(|(tag, watch)| Watch {
            owner: WatchOwner::Debugger,
            tag,
            first: *watch.range.start(),
            last: *watch.range.end(),
            kind: watch.kind,
        })
        .collect();
    let mut old = softmmu::watches::<X86>(env);
    old.retain(|watch| watch.owner == WatchOwner::Debugger);
    if old != wanted {
        for watch in old {
            softmmu::remove_watch::<X86>(env, watch.owner, watch.tag);
        }
        for watch in wanted {
            softmmu::add_watch::<X86>(env, watch);
        }
    }
}

/// The first access to a range of `watchpoints` since the last call.
pub(super) fn watched(env: &mut X86Env, watchpoints: &[Watchpoint]) -> Option<DebugStop> {
    let hits = softmmu::take_watch_hits::<X86>(env, WatchOwner::Debugger);
    // One access may hit several, and a write that is watched says more than a read.
    let hit = hits.iter().find(|hit| hit.write).or(hits.first())?;
    let watch = watchpoints.get(hit.tag as usize)?;
    Some(DebugStop::Watch { address: hit.address.max(*watch.range.start()), kind: watch.kind })
}

/// The translator as the engine of one vCPU.
pub struct TcgEngine {
    vcpu: Vcpu<X86, X86_64>,
    /// Finds what is hot, unless that is not wanted.
    sampler: Option<Sampler>,
    irq: Arc<dyn CpuIrq>,
    control: Arc<Control>,
    devices: Option<Arc<DeviceTime>>,
    /// What the debugger wants.
    debug: DebugRequest,
    /// Breakpoints and watchpoints are not yet those of `debug`.
    debug_changed: bool,
    /// Linear address of the breakpoint that the last run ended at: to go on from there is to pass it.
    at_breakpoint: Option<u64>,
}

impl TcgEngine {
    /// The engine of the board's first vCPU. An error is a sentence.
    pub fn new(
        board: &PcMachine,
        config: &Config,
        mut cpuid: CpuidTable,
        settings: &Tcg,
    ) -> Result<TcgEngine, String> {
        let remote: Arc<OnceLock<Arc<Remote>>> = Arc::default();
        let kicked = remote.clone();
        let control = Control::new(Box::new(move || {
            if let Some(remote) = kicked.get() {
                remote.kick();
            }
        }));
        let irq = board.cpus().next().ok_or("the machine has no CPU")?;
        let waiting = control.clone();
        irq.set_kick(Arc::new(move || waiting.kick()));
        let mut platform = PcPlatform::new(board, irq.clone(), control.clone());
        let count = config.log.items.iter().any(|item| item.name == "stats");
        let devices = count.then(Arc::<DeviceTime>::default);
        platform.time = devices.clone();
        cpuid.set_frequencies(board.clock.tsc_hz(), TIMER_HZ);
        let env = X86Env::new(Box::new(platform), cpuid);
        let mut options = Options::default();
        if let Some(bytes) = settings.code_cache {
            options.cache_mib = (bytes >> 20) as u32;
        }
        if settings.one_insn {
            options.max_insns = 1;
        }
        options.opt = settings.opt.unwrap_or(options.opt);
        options.chain = !config.log.items.iter().any(|item| item.name == "nochain");
        options.log_filter =
            config.log.ranges.iter().map(|r| *r.start()..r.end().saturating_add(1)).collect();
        options.count = count;
        options.hot = settings.hot.unwrap_or(options.hot);
        let memory = Arc::new(Memory { space: board.address_space.clone(), time: devices.clone() });
        let vcpu = Vcpu::new(env, memory, options).map_err(|error| error.to_string())?;
        board.address_space.set_observer(Arc::new(Observer(vcpu.remote().clone())));
        let noticed = vcpu.remote().clone();
        board.a20.on_change(Box::new(move |_| noticed.kick()));
        // Set once, here.
        let _ = remote.set(vcpu.remote().clone());
        let sampler = vcpu.wants_samples().then(|| Sampler::spawn(vcpu.remote().clone())).transpose();
        let sampler = sampler.map_err(|error| format!("no thread to sample the guest: {error}"))?;
        Ok(TcgEngine {
            vcpu,
            sampler,
            irq,
            control,
            devices,
            debug: DebugRequest::default(),
            debug_changed: false,
            at_breakpoint: None,
        })
    }

    /// Makes breakpoints and watchpoints what the debugger wants. They change while it looks at the stopped guest, and
    /// are often the same again when it lets the guest go on.
    fn apply_debug(&mut self) {
        if !std::mem::take(&mut self.debug_changed) {
            return;
        }
        self.vcpu.set_breakpoints(&self.debug.breakpoints);
        set_watchpoints(self.vcpu.env_mut(), &self.debug.watchpoints);
    }

    /// The first access to a watched range that was not told yet.
    fn watched(&mut self) -> Option<Stop> {
        watched(self.vcpu.env_mut(), &self.debug.watchpoints).map(Stop::Debug)
    }

    /// Executes one instruction and no events. `Some` if the CPU cannot go on, or a watched range was accessed.
    fn one(&mut self) -> Option<Stop> {
        match self.vcpu.run_one() {
            Some(exit::SHUTDOWN) => return Some(Stop::TripleFault(self.dump())),
            Some(exit::HALTED) | None => {}
            Some(_) => return Some(Stop::Requested),
        }
        system::io::refresh_a20(self.vcpu.env_mut());
        self.watched()
    }

    /// Lets the CPU take an event. `Some` if it has one to tell of, or waits for another.
    fn take_event(&mut self) -> Option<Stop> {
        match self.vcpu.look_at_events()? {
            exit::HALTED => Some(Stop::Halted),
            exit::SHUTDOWN => Some(Stop::TripleFault(self.dump())),
            exit::WATCHED => Some(self.watched().unwrap_or(Stop::Debug(DebugStop::Stepped))),
            _ => Some(Stop::Requested),
        }
    }

    fn step(&mut self, step: &Step) -> Stop {
        if self.control.stop_requested() {
            return Stop::Requested;
        }
        let env = self.vcpu.env();
        if env.halted || env.wait_for_sipi || env.shutdown {
            // Only an event gets it further.
            return self.take_event().unwrap_or(Stop::Debug(DebugStop::Stepped));
        }
        loop {
            let before = place(self.vcpu.env());
            if self.debug.interrupts
                && let Some(stop) = self.take_event()
            {
                return stop;
            }
            if place(self.vcpu.env()) == before
                && let Some(stop) = self.one()
            {
                return stop;
            }
            let env = self.vcpu.env();
            let done = match step {
                Step::One => true,
                Step::Within(range) => !range.contains(&env.ip()) || env.halted,
            };
            if done {
                return Stop::Debug(DebugStop::Stepped);
            }
            if self.debug.breakpoints.contains(&env.rip) {
                return Stop::Debug(DebugStop::Breakpoint);
            }
            if env.platform.stop_requested() {
                return Stop::Requested;
            }
        }
    }
}

/// What an event that the CPU takes changes: at least one of instruction and stack pointer.
fn place(env: &X86Env) -> (u64, u64) {
    (env.rip, env.gpr[reg::RSP])
}

impl Engine for TcgEngine {
    fn run(&mut self) -> Stop {
        self.apply_debug();
        let at_breakpoint = self.at_breakpoint.take();
        if let Some(step) = self.debug.step.clone() {
            return self.step(&step);
        }
        if at_breakpoint == Some(self.vcpu.env().rip)
            && let Some(stop) = self.one()
        {
            return stop;
        }
        let code = match &self.sampler {
            Some(sampler) => sampler.during(|| self.vcpu.run()),
            None => self.vcpu.run(),
        };
        match code {
            exit::HALTED => Stop::Halted,
            exit::SHUTDOWN => Stop::TripleFault(self.dump()),
            exit::WATCHED => self.watched().unwrap_or(Stop::Requested),
            BREAKPOINT => {
                self.at_breakpoint = Some(self.vcpu.env().rip);
                Stop::Debug(DebugStop::Breakpoint)
            }
            _ => Stop::Requested,
        }
    }

    fn reset(&mut self) {
        self.vcpu.env_mut().reset();
        self.vcpu.clear_code();
        self.vcpu.state_changed();
    }

    fn state(&mut self) -> Result<CpuState, String> {
        let mut state = self.vcpu.env_mut().cpu_state();
        state.apic.0 = self.irq.apic_page();
        state.normalise();
        Ok(state)
    }

    fn set_state(&mut self, state: &CpuState) -> Result<(), String> {
        let env = self.vcpu.env_mut();
        env.set_cpu_state(state);
        set_apic(&*self.irq, state);
        self.vcpu.state_changed();
        Ok(())
    }

    fn set_debug(&mut self, request: &DebugRequest) -> Result<(), String> {
        self.debug_changed |= (&self.debug.breakpoints, &self.debug.watchpoints)
            != (&request.breakpoints, &request.watchpoints);
        self.debug = request.clone();
        Ok(())
    }

    fn list(&mut self, linear: u64) -> Result<Listing, String> {
        self.vcpu.list(linear).map_err(|exception| {
            format!("the code at {linear:#x} cannot be fetched: it raises exception {}", exception.vector)
        })
    }

    fn cached_translations(&mut self) -> Result<String, String> {
        const MODES: [&str; 3] = ["kernel", "user", "kernel under SMAP"];
        let mut text = String::new();
        for page in softmmu::cached_pages::<X86>(self.vcpu.env_mut()) {
            let mark = |allowed, mark| if allowed { mark } else { '-' };
            let mode = MODES.get(usize::from(page.mmu)).copied().unwrap_or("other");
            // Writing to a string cannot fail.
            let _ = writeln!(
                text,
                "{:016x}: {:016x} {}{} {mode}",
                page.va,
                page.phys,
                mark(page.read, 'r'),
                mark(page.write, 'w')
            );
        }
        Ok(text)
    }

    fn control(&self) -> Arc<Control> {
        self.control.clone()
    }

    fn awake(&self) -> bool {
        // An interrupt that the CPU does not take (EFLAGS.IF clear) wakes nobody.
        let env = self.vcpu.env();
        let interruptible = env.eflags & RFlags::IF.bits() != 0;
        let waiting = self.irq.signals().load(Ordering::Acquire);
        waiting & !signal::INTR != 0 || waiting != 0 && interruptible || env.platform.stop_requested()
    }

    fn dump(&self) -> String {
        system::dump(self.vcpu.env())
    }

    fn statistics(&self) -> String {
        let times = Times {
            total: self.control.ran.sum(),
            idle: self.control.idle.sum(),
            devices: self.devices.as_ref().map(|devices| [devices.ports.sum(), devices.memory.sum()]),
        };
        statistics::text(&self.vcpu.stats(), &times)
    }
}

impl Drop for TcgEngine {
    fn drop(&mut self) {
        self.control.detach();
    }
}
