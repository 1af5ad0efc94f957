//! The PC: i440FX or Q35 with the ISA devices every kernel expects.
//!
//! [`PcMachine::build`] makes the whole machine from a [`PcConfig`] and starts nothing. The program then loads a kernel or
//! firmware, starts a [`tessera_hw_core::timers::TimerThread`] on [`PcMachine::timers`], runs vCPUs against
//! [`PcMachine::address_space`], [`PcMachine::ports`] and their [`CpuIrq`], and waits on [`PcMachine::events`].
//!
//! # Reset
//! A reset request only sets an event and kicks the vCPUs. The program stops them, calls [`PcMachine::reset`] and sets the
//! vCPUs' own state; the first of them starts, the others wait for a start-up message.

pub mod layout;
mod memory;

use std::io;
use std::sync::Arc;

pub use memory::LoaderMemory;
use tessera_firmware::platform::{PlatformInfo, SerialPort};
pub use tessera_firmware::{MachineKind, RamLayout};
use tessera_hw_core::backend::CharBackend;
use tessera_hw_core::clock::Clock;
use tessera_hw_core::cpu::CpuIrq;
use tessera_hw_core::device::{Device, Section, StateError, damaged, decode, encode};
use tessera_hw_core::event::Events;
use tessera_hw_core::irq::{IrqLine, IrqSink};
use tessera_hw_core::mem::{AddressSpace, GuestRam, MapError};
use tessera_hw_core::ports::{PortBus, TooManyClaims};
use tessera_hw_core::timers::Timers;

use crate::acpi::pm::{self, AcpiPm};
use crate::acpi::reset::ResetControl;
use crate::char::debugcon::DebugConsole;
use crate::char::serial16550::Serial16550;
use crate::input::i8042::{I8042, I8042Port, I8042Ports};
use crate::intc::apic_bus::{ApicBus, ApicWindow, MsiSink};
use crate::intc::i8259::{I8259, PicPort, PicPorts};
use crate::intc::ioapic::{self, IoApic};
use crate::intc::lapic::LocalApic;
use crate::misc::a20::A20;
use crate::misc::coprocessor::Coprocessor;
use crate::misc::isa_debug_exit::IsaDebugExit;
use crate::misc::port92::Port92;
use crate::misc::post_code::Scratch;
use crate::pci::{ConfigPorts, ConfigWindow, PciBus, bridges};
use crate::timer::LegacyGate;
use crate::timer::hpet::{HpetDevice, HpetLines};
use crate::timer::i8254::{I8254, PitPorts, SystemControlPort};
use crate::timer::rtc::Mc146818;

/// Most vCPUs: 8-bit APIC IDs, 255 being everybody.
pub const MAX_CPUS: u32 = 255;

/// Where an `isa-debug-exit` listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DebugExitConfig {
    /// First port.
    pub iobase: u16,
    /// Number of ports: 1, 2 or 4.
    pub iosize: u16,
}

impl Default for DebugExitConfig {
    /// The defaults of the device's options `iobase` and `iosize`.
    fn default() -> Self {
        Self { iobase: 0x501, iosize: 2 }
    }
}

/// What the machine is to have.
pub struct PcConfig {
    /// Which board.
    pub kind: MachineKind,
    /// RAM in bytes.
    pub ram: u64,
    /// vCPUs, 1 to [`MAX_CPUS`].
    pub cpus: u32,
    /// COM1 to COM4; a port without backend is not there.
    pub serial: [Option<Arc<dyn CharBackend>>; 4],
    /// Debug consoles and their ports.
    pub debug_consoles: Vec<(u16, Arc<dyn CharBackend>)>,
    /// `isa-debug-exit` devices.
    pub debug_exit: Vec<DebugExitConfig>,
    /// A ROM that ends at 4 GiB: whole pages, at most 16 MiB.
    pub rom: Option<Vec<u8>>,
    /// The machine's clock.
    pub clock: Arc<Clock>,
}

impl PcConfig {
    /// A `pc` with `ram` bytes, one vCPU and nothing optional, on the host's clock.
    pub fn new(ram: u64) -> Self {
        Self {
            kind: MachineKind::Pc,
            ram,
            cpus: 1,
            serial: [const { None }; 4],
            debug_consoles: Vec::new(),
            debug_exit: Vec::new(),
            rom: None,
            clock: Arc::new(Clock::host()),
        }
    }
}

/// Why a machine could not be built.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// The host gives no memory.
    #[error("cannot map {0} bytes of guest memory: {1}")]
    Ram(u64, #[source] io::Error),
    /// More RAM than there are addresses.
    #[error("{0} bytes are more RAM than the machine has addresses for")]
    TooMuchRam(u64),
    /// Too few or too many vCPUs.
    #[error("{0} CPUs; the machine takes 1 to {MAX_CPUS}")]
    Cpus(u32),
    /// A ROM that cannot be placed.
    #[error("a ROM of {0} bytes; it must be whole pages of 4096 bytes and at most 16 MiB")]
    RomSize(u64),
    /// An `isa-debug-exit` of a size that cannot be written in one access.
    #[error("isa-debug-exit with iosize {0}; it must be 1, 2 or 4")]
    DebugExitSize(u16),
    /// The port bus is full.
    #[error(transparent)]
    Ports(#[from] TooManyClaims),
    /// The address space refuses a mapping.
    #[error(transparent)]
    Map(#[from] MapError),
}

/// Hands an ISA IRQ to the 8259s and to its I/O APIC input.
struct IsaRouter {
    pic: Arc<I8259>,
    /// By ISA IRQ.
    gsi: Vec<Option<IrqLine>>,
}

impl IrqSink for IsaRouter {
    fn set_irq(&self, pin: u32, level: bool) {
        self.pic.set_irq(pin, level);
        if let Some(Some(line)) = self.gsi.get(pin as usize) {
            line.set(level);
        }
    }
}

/// Drives LINT0 of the boot CPU.
struct Lint0(Arc<LocalApic>);

impl IrqSink for Lint0 {
    fn set_irq(&self, _pin: u32, level: bool) {
        self.0.set_lint0(level);
    }
}

/// A PC. Everything in it is shared and may be used from any thread.
pub struct PcMachine {
    /// Guest-physical memory.
    pub address_space: Arc<AddressSpace>,
    /// The block behind all RAM: low part first, then what is above 4 GiB.
    pub ram: Arc<GuestRam>,
    /// I/O ports.
    pub ports: Arc<PortBus>,
    /// Guest time.
    pub clock: Arc<Clock>,
    /// Deadlines in guest time; nothing serves them until a timer thread is started.
    pub timers: Arc<Timers>,
    /// Where the guest's requests for power-off and reset arrive.
    pub events: Events,
    /// The A20 line.
    pub a20: Arc<A20>,
    /// Error logic of the x87 unit.
    pub coprocessor: Arc<Coprocessor>,
    /// Message bus of the APICs: local APICs, and delivery of MSIs.
    pub apic_bus: Arc<ApicBus>,
    /// The 24 I/O APIC inputs; a device takes a [`IrqLine::share`] of one.
    pub gsi: Vec<IrqLine>,
    /// The ISA IRQs, 0 to 15.
    pub isa_irqs: Vec<IrqLine>,
    /// PCI bus 0.
    pub pci: Arc<PciBus>,
    /// Power button and PM timer.
    pub pm: Arc<AcpiPm>,
    /// Keyboard.
    pub keyboard: Arc<I8042>,
    /// The 8259s.
    pub pic: Arc<I8259>,
    /// The I/O APIC.
    pub io_apic: Arc<IoApic>,
    config_ports: Arc<ConfigPorts>,
    /// In the order in which they are reset: those that drive interrupts before those that receive them.
    devices: Vec<Arc<dyn Device>>,
    rom: Option<Vec<u8>>,
    platform: PlatformInfo,
}

impl PcMachine {
    /// Builds the machine in its state after power-on.
    pub fn build(config: PcConfig) -> Result<Self, BuildError> {
        if !(1..=MAX_CPUS).contains(&config.cpus) {
            return Err(BuildError::Cpus(config.cpus));
        }
        // Half of 52 bits of physical addresses are for RAM.
        if config.ram > 1 << 51 {
            return Err(BuildError::TooMuchRam(config.ram));
        }
        let layout = RamLayout::for_machine(config.kind, config.ram);
        let space = Arc::new(AddressSpace::new());
        let ram = memory::map_ram(&space, layout)?;
        if let Some(rom) = &config.rom {
            memory::map_rom(&space, rom)?;
        }
        let mut b = Builder {
            timers: Timers::new(Arc::clone(&config.clock)),
            space,
            ports: Arc::new(PortBus::new()),
            events: Events::new(),
            devices: Vec::new(),
        };

        let Controllers { bus: apic_bus, pic, io_apic } = b.interrupt_controllers(config.cpus)?;
        let gsi: Vec<IrqLine> =
            (0..ioapic::PINS as u32).map(|pin| IrqLine::new(io_apic.clone(), pin)).collect();
        let isa: Arc<IsaRouter> = Arc::new(IsaRouter {
            pic: pic.clone(),
            gsi: (0..layout::ISA_IRQS)
                .map(|irq| layout::isa_gsi(irq).map(|n| gsi[n as usize].share()))
                .collect(),
        });
        let isa_irqs: Vec<IrqLine> = (0..layout::ISA_IRQS).map(|n| IrqLine::new(isa.clone(), n)).collect();

        b.timer_devices(&isa_irqs, &gsi, layout, config.cpus)?;
        let a20 = A20::new();
        let keyboard = b.keyboard(&isa_irqs, &a20)?;
        let coprocessor = Coprocessor::new(isa_irqs[layout::COPROCESSOR_IRQ as usize].share());
        b.ports.add(layout::COPROCESSOR, 2, 1, coprocessor.clone())?;
        b.devices.push(coprocessor.clone());
        let pm = b.power(&isa_irqs)?;
        let serial = b.characters(&config, &isa_irqs)?;
        let (pci, config_ports) = b.pci(config.kind)?;
        // Interrupt controllers last: their inputs have been driven by then.
        b.devices.push(pic.clone());
        b.devices.push(io_apic.clone());
        b.devices.extend(apic_bus.cpus().iter().map(|c| c.clone() as Arc<dyn Device>));

        let kicked = Arc::downgrade(&apic_bus);
        b.events.on_post(Arc::new(move || {
            if let Some(bus) = kicked.upgrade() {
                bus.cpus().iter().for_each(|c| c.kick());
            }
        }));
        let mut platform = PlatformInfo::new(config.kind, layout, config.cpus);
        platform.serial = serial;
        let machine = Self {
            address_space: b.space,
            ram,
            ports: b.ports,
            clock: config.clock,
            timers: b.timers,
            events: b.events,
            a20,
            coprocessor,
            apic_bus,
            gsi,
            isa_irqs,
            pci,
            pm,
            keyboard,
            pic,
            io_apic,
            config_ports,
            devices: b.devices,
            rom: config.rom,
            platform,
        };
        machine.reset();
        Ok(machine)
    }

    /// What the firmware's tables are to say about this machine.
    pub fn platform(&self) -> &PlatformInfo {
        &self.platform
    }

    /// The interrupt controllers of the vCPUs, the boot CPU's first.
    pub fn cpus(&self) -> impl Iterator<Item = Arc<dyn CpuIrq>> {
        self.apic_bus.cpus().iter().map(|c| c.clone() as Arc<dyn CpuIrq>)
    }

    /// Hands on what comes to the interrupt controllers, for an accelerator that has controllers of its own: the inputs of
    /// the 8259s and of the I/O APIC, and message-signalled interrupts. Once, before the machine runs.
    pub fn replace_controllers(&self, pic: Arc<dyn IrqSink>, io_apic: Arc<dyn IrqSink>, msi: MsiSink) {
        self.pic.replace(pic);
        self.io_apic.replace(io_apic);
        self.apic_bus.replace(msi);
    }

    /// Resets every device, while no vCPU runs. RAM keeps what it has, but for the firmware's copy below 1 MiB; a request
    /// that is still waiting is dropped.
    pub fn reset(&self) {
        self.devices.iter().for_each(|d| d.reset());
        self.config_ports.reset();
        self.a20.set(true);
        if let Some(rom) = &self.rom {
            memory::shadow_rom(&self.address_space, rom);
        }
        self.events.take();
    }

    /// Stops guest time. vCPUs are to be stopped before.
    pub fn pause(&self) {
        self.clock.stop();
        self.timers.clock_changed();
    }

    /// Continues guest time.
    pub fn resume(&self) {
        self.clock.resume();
        self.timers.clock_changed();
    }

    /// Sends an NMI to every vCPU, as the button on a server's front does.
    pub fn inject_nmi(&self) {
        self.apic_bus.cpus().iter().for_each(|c| c.pulse_lint1());
    }

    /// Saves the state of clock and devices (not RAM), while paused.
    pub fn save(&self) -> Vec<Section> {
        let clock = encode(CLOCK, 1, &(self.clock.now_ns(), self.clock.wall_ns(), self.a20.enabled()));
        std::iter::once(clock).chain(self.devices.iter().map(|d| d.save())).collect()
    }

    /// Takes over a state that a machine with the same devices saved, while paused. After an error the machine must be reset.
    pub fn restore(&self, sections: &[Section]) -> Result<(), StateError> {
        let find = |name: &str| {
            let missing = || StateError::Damaged { name: name.to_owned(), what: "it is missing".to_owned() };
            sections.iter().find(|s| s.name == name).ok_or_else(missing)
        };
        let clock = find(CLOCK)?;
        let (now, wall, a20): (u64, u64, bool) = decode(clock, 1)?;
        if now > i64::MAX as u64 {
            return Err(damaged(clock, "time out of range"));
        }
        self.clock.set_now_ns(now);
        self.clock.set_wall_ns(wall);
        self.a20.set(a20);
        for d in &self.devices {
            d.restore(find(d.name())?)?;
        }
        self.timers.clock_changed();
        Ok(())
    }
}

/// Section of the clock and of what has no device of its own.
const CLOCK: &str = "clock";

/// What all devices are built with.
struct Builder {
    timers: Arc<Timers>,
    space: Arc<AddressSpace>,
    ports: Arc<PortBus>,
    events: Events,
    devices: Vec<Arc<dyn Device>>,
}

/// The interrupt controllers, wired to each other.
struct Controllers {
    bus: Arc<ApicBus>,
    pic: Arc<I8259>,
    io_apic: Arc<IoApic>,
}

impl Builder {
    fn interrupt_controllers(&mut self, cpus: u32) -> Result<Controllers, BuildError> {
        let bus = ApicBus::new();
        let io_apic = IoApic::new(Arc::clone(&bus));
        let apics: Vec<_> =
            (0..cpus).map(|i| LocalApic::new(i, Arc::downgrade(&bus), &self.timers)).collect();
        let boot = Arc::clone(&apics[0]);
        bus.connect(apics, &io_apic);
        let pic = I8259::new(IrqLine::new(Arc::new(Lint0(Arc::clone(&boot))), 0));
        boot.connect_pic(Arc::clone(&pic));
        for (base, which) in [
            (layout::PIC_MASTER, PicPorts::Master),
            (layout::PIC_SLAVE, PicPorts::Slave),
            (layout::ELCR, PicPorts::Elcr),
        ] {
            self.ports.add(base, 2, 1, Arc::new(PicPort(Arc::clone(&pic), which)))?;
        }
        let id = self.space.add_mmio(io_apic.clone())?;
        self.space.map_mmio(layout::IOAPIC_BASE.into(), layout::REGISTER_PAGE, id, 0)?;
        // The register page goes where the boot CPU's base register says; all CPUs have theirs at the same place.
        let id = self.space.add_mmio(Arc::new(ApicWindow(Arc::clone(&bus))))?;
        let window = self.space.map_mmio(layout::LAPIC_BASE.into(), layout::REGISTER_PAGE, id, 2)?;
        let space = Arc::downgrade(&self.space);
        boot.connect_window(Box::new(move |base| {
            if let (Some(space), Some(base)) = (space.upgrade(), base) {
                space.move_mapping(window, base);
            }
        }));
        Ok(Controllers { bus, pic, io_apic })
    }

    fn timer_devices(
        &mut self,
        isa: &[IrqLine],
        gsi: &[IrqLine],
        ram: RamLayout,
        cpus: u32,
    ) -> Result<(), BuildError> {
        let (irq0, irq8) = (&isa[layout::PIT_IRQ as usize], &isa[layout::RTC_IRQ as usize]);
        let gates = [LegacyGate::new(irq0.share()), LegacyGate::new(irq8.share())];
        let pit = I8254::new(IrqLine::new(gates[0].clone(), 0), &self.timers);
        self.ports.add(layout::PIT, 4, 1, Arc::new(PitPorts(Arc::clone(&pit))))?;
        self.ports.add(layout::SYSTEM_CONTROL, 1, 1, Arc::new(SystemControlPort(Arc::clone(&pit))))?;
        let rtc = Mc146818::new(ram.low, ram.high, cpus, IrqLine::new(gates[1].clone(), 0), &self.timers);
        self.ports.add(layout::RTC, 2, 1, rtc.clone())?;
        let lines = HpetLines {
            inputs: gsi.iter().map(IrqLine::share).collect(),
            legacy: [irq0.share(), irq8.share()],
            gates,
        };
        let hpet = HpetDevice::new(lines, &self.timers);
        let id = self.space.add_mmio(hpet.clone())?;
        self.space.map_mmio(layout::HPET_BASE.into(), layout::REGISTER_PAGE, id, 0)?;
        self.devices.extend([pit as Arc<dyn Device>, rtc, hpet]);
        Ok(())
    }

    fn keyboard(&mut self, isa: &[IrqLine], a20: &Arc<A20>) -> Result<Arc<I8042>, BuildError> {
        let irq = isa[layout::KEYBOARD_IRQ as usize].share();
        let k = I8042::new(irq, Arc::clone(a20), self.events.clone());
        self.ports.add(layout::KEYBOARD_DATA, 1, 1, Arc::new(I8042Ports(k.clone(), I8042Port::Data)))?;
        self.ports.add(
            layout::KEYBOARD_COMMAND,
            1,
            1,
            Arc::new(I8042Ports(k.clone(), I8042Port::Command)),
        )?;
        self.ports.add(layout::PORT_92, 1, 1, Arc::new(Port92::new(Arc::clone(a20), self.events.clone())))?;
        self.ports.add(layout::DELAY, 1, 1, Arc::<Scratch>::default())?;
        self.ports.add(layout::SCRATCH, 16, 1, Arc::<Scratch>::default())?;
        self.devices.push(k.clone());
        Ok(k)
    }

    fn power(&mut self, isa: &[IrqLine]) -> Result<Arc<AcpiPm>, BuildError> {
        let sci = isa[usize::from(layout::SCI_IRQ)].share();
        let pm = AcpiPm::new(sci, self.events.clone(), &self.timers);
        self.ports.add(layout::PM1A_EVENT, pm::BLOCK_LEN, 4, pm.clone())?;
        self.devices.push(pm.clone());
        Ok(pm)
    }

    fn characters(&mut self, config: &PcConfig, isa: &[IrqLine]) -> Result<Vec<SerialPort>, BuildError> {
        let mut present = Vec::new();
        for (i, (backend, port)) in config.serial.iter().zip(layout::COM_PORTS).enumerate() {
            let Some(backend) = backend else { continue };
            let irq = isa[usize::from(port.irq)].share();
            let serial = Serial16550::new(i, irq, Arc::clone(backend), &self.timers);
            self.ports.add(port.io, 8, 1, serial.clone())?;
            self.devices.push(serial);
            present.push(port);
        }
        for (port, backend) in &config.debug_consoles {
            self.ports.add(*port, 1, 1, Arc::new(DebugConsole::new(Arc::clone(backend))))?;
        }
        for exit in &config.debug_exit {
            if !matches!(exit.iosize, 1 | 2 | 4) {
                return Err(BuildError::DebugExitSize(exit.iosize));
            }
            let device = Arc::new(IsaDebugExit(self.events.clone()));
            self.ports.add(exit.iobase, exit.iosize, exit.iosize as u8, device)?;
        }
        Ok(present)
    }

    fn pci(&mut self, kind: MachineKind) -> Result<(Arc<PciBus>, Arc<ConfigPorts>), BuildError> {
        let bus = PciBus::new();
        let functions = match kind {
            MachineKind::Pc => bridges::i440fx(),
            MachineKind::Q35 => bridges::q35(),
        };
        for (at, function) in functions {
            let function = Arc::new(function);
            bus.plug(at, function.clone());
            self.devices.push(function);
        }
        let config = ConfigPorts::new(Arc::clone(&bus));
        self.ports.add(layout::PCI_CONFIG, 8, 4, config.clone())?;
        // A byte of the address register that only 32-bit accesses reach.
        let reset = Arc::new(ResetControl::new(self.events.clone()));
        self.ports.add(layout::RESET_PORT, 1, 1, reset.clone())?;
        self.devices.push(reset);
        if kind == MachineKind::Q35 {
            let id = self.space.add_mmio(Arc::new(ConfigWindow(Arc::clone(&bus))))?;
            self.space.map_mmio(layout::MCFG_BASE, layout::MCFG_SIZE, id, 0)?;
        }
        Ok((bus, config))
    }
}
