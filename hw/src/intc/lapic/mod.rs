//! The local APIC: each vCPU's own interrupt controller and timer.
//!
//! [`Lapic`] is the state machine: registers, priorities, local vector table, timer, latches for NMI, INIT and start-up.
//! What it cannot do alone it returns as an [`Effect`]: an interprocessor interrupt, or the end of a level-triggered
//! interrupt that the I/O APIC waits for. [`LocalApic`] wires it to the vCPU ([`CpuIrq`]), the timer queue, the other APICs
//! and the 8259s.
//!
//! After every change `drive` publishes, as one atomic word, what waits for the vCPU, and kicks it when something new does.
//! Effects are carried out after the APIC's own lock is released, since they come back to this or another APIC.
//!
//! The timer's input clock is [`TIMER_HZ`]; a CPU model that enumerates CPUID leaf 15H must give the same number as its
//! crystal frequency.
//!
//! Source: Intel SDM, volume 3, chapter "Advanced Programmable Interrupt Controller (APIC)".

mod page;
mod registers;
mod state;
#[cfg(test)]
mod tests;
mod timer;

use std::sync::atomic::{AtomicU8, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, OnceLock, RwLock, Weak};

pub use registers::TIMER_HZ;
pub use state::{Delivery, Effect, Ipi, Lapic};
use tessera_hw_core::clock::Clock;
use tessera_hw_core::cpu::{ApicPage, CpuIrq, GpFault, Kick};
use tessera_hw_core::device::Wired;
use tessera_hw_core::lock;
use tessera_hw_core::log::GUEST_ERRORS;
use tessera_hw_core::timers::{DeviceTimer, Timers};

use super::apic_bus::{ApicBus, Destination, Message};
use super::i8259::I8259;

/// Told when the guest moves, enables or disables the register page: `Some(base)` while it is in memory.
pub type WindowHook = Box<dyn Fn(Option<u64>) + Send + Sync>;

/// A [`Lapic`] with everything around it.
pub struct LocalApic {
    name: String,
    state: Mutex<Lapic>,
    /// What [`CpuIrq::signals`] shows.
    signals: AtomicU32,
    /// CR8, so that reading it takes no lock.
    priority: AtomicU8,
    kick: RwLock<Option<Kick>>,
    clock: Arc<Clock>,
    timer: DeviceTimer,
    bus: Weak<ApicBus>,
    pic: OnceLock<Arc<I8259>>,
    window: OnceLock<WindowHook>,
}

impl LocalApic {
    /// The APIC of CPU `id`; CPU 0 is the boot processor.
    pub fn new(id: u32, bus: Weak<ApicBus>, timers: &Arc<Timers>) -> Arc<Self> {
        let apic = Arc::new(Self {
            name: format!("lapic{id}"),
            state: Mutex::new(Lapic::new(id)),
            signals: AtomicU32::new(0),
            priority: AtomicU8::new(0),
            kick: RwLock::new(None),
            clock: Arc::clone(timers.clock()),
            timer: DeviceTimer::default(),
            bus,
            pic: OnceLock::new(),
            window: OnceLock::new(),
        });
        apic.timer.connect(timers, &apic, |a, now| {
            let mut state = lock(&a.state);
            state.expire(now);
            a.drive(&mut state);
        });
        apic
    }

    /// Connects the 8259s whose INTR drives LINT0 (the boot CPU only).
    pub fn connect_pic(&self, pic: Arc<I8259>) {
        let _first_call_wins = self.pic.set(pic);
    }

    /// Registers who maps the register page.
    pub fn connect_window(&self, hook: WindowHook) {
        let _first_call_wins = self.window.set(hook);
    }

    /// Runs `f` on the state and publishes what follows.
    fn with<R>(&self, f: impl FnOnce(&mut Lapic) -> R) -> R {
        let mut state = lock(&self.state);
        let r = f(&mut state);
        self.drive(&mut state);
        r
    }

    /// The time, for registers that depend on it; the others are the busiest and spare the clock.
    fn time_for(&self, register: u32) -> u64 {
        if registers::is_timeless(register) { 0 } else { self.clock.now_ns() }
    }

    /// Carries out an effect; no lock of this APIC may be held.
    fn perform(&self, effect: Effect) {
        let bus = || self.bus.upgrade();
        match effect {
            Effect::None => {}
            Effect::EndOfInterrupt(vector) => {
                if let Some(b) = bus() {
                    b.end_of_interrupt(vector);
                }
            }
            Effect::Ipi(ipi) => {
                if let Some(b) = bus() {
                    b.send_ipi(&ipi);
                }
            }
        }
    }

    /// Makes the vCPU look at the machine's state: calls the kick that the accelerator registered.
    pub fn kick(&self) {
        if let Some(kick) = &*self.kick.read().unwrap_or_else(std::sync::PoisonError::into_inner) {
            kick();
        }
    }

    /// Level of the LINT0 pin.
    pub fn set_lint0(&self, level: bool) {
        self.with(|s| s.set_lint0(level));
    }

    /// An NMI from outside (a pulse on LINT1).
    pub fn pulse_lint1(&self) {
        self.with(Lapic::pulse_lint1);
    }

    /// Delivers a message that was found to be for this APIC.
    pub fn accept(&self, message: &Message) {
        self.with(|s| s.accept(message.delivery, message.vector, message.level_triggered));
    }

    /// Whether a message to `destination` is for this APIC.
    pub fn matches(&self, destination: Destination) -> bool {
        lock(&self.state).matches(destination)
    }

    /// Processor priority, for lowest-priority arbitration.
    pub fn processor_priority(&self) -> u8 {
        lock(&self.state).ppr()
    }

    /// Reads the register page. Registers are 32 bits wide, at multiples of 16.
    pub fn mmio_read(&self, offset: u64, size: u8) -> u64 {
        let reg = (offset >> 4) as u32 & 0xff;
        let value = match offset & 0xf {
            0..4 => lock(&self.state).read_register(reg, self.time_for(reg)).unwrap_or(0),
            _ => 0,
        };
        if size != 4 || offset & 3 != 0 {
            tracing::debug!(target: GUEST_ERRORS, "APIC read of {size} bytes at {offset:#x}");
        }
        u64::from(value) >> (8 * (offset & 3))
    }

    /// Writes the register page. Anything but an aligned 32-bit write is undefined and here ignored.
    pub fn mmio_write(&self, offset: u64, size: u8, value: u64) {
        if size < 4 || offset & 0xf != 0 {
            tracing::debug!(target: GUEST_ERRORS, "APIC write of {size} bytes at {offset:#x}");
            return;
        }
        let reg = (offset >> 4) as u32 & 0xff;
        let now = self.time_for(reg);
        let effect = self.with(|s| s.write_register(reg, value as u32, now));
        self.perform(effect);
    }

    fn publish_window(&self, state: &Lapic) {
        if let Some(hook) = self.window.get() {
            hook(state.window());
        }
    }
}

impl Wired for LocalApic {
    type State = Lapic;
    fn name(&self) -> &str {
        &self.name
    }
    fn state(&self) -> &Mutex<Lapic> {
        &self.state
    }
    fn drive(&self, state: &mut Lapic) {
        // Only this function stores to these, under the lock.
        self.priority.store(state.cr8(), Ordering::Release);
        let (new, old) = (state.signals(), self.signals.load(Ordering::Relaxed));
        if new != old {
            self.signals.store(new, Ordering::Release);
            if new & !old != 0 {
                self.kick();
            }
        }
        self.timer.set(state.deadline());
        if state.take_window_change() {
            self.publish_window(state);
        }
    }
}

impl CpuIrq for LocalApic {
    fn signals(&self) -> &AtomicU32 {
        &self.signals
    }

    fn acknowledge(&self) -> Option<u8> {
        let (vector, ask_pic) = self.with(|s| {
            let vector = s.acknowledge();
            (vector, vector.is_none() && s.wants_pic())
        });
        if ask_pic && let Some(pic) = self.pic.get() {
            return Some(pic.acknowledge());
        }
        vector
    }

    fn take_nmi(&self) -> bool {
        self.with(Lapic::take_nmi)
    }
    fn take_init(&self) -> bool {
        self.with(Lapic::take_init)
    }
    fn take_sipi(&self) -> Option<u8> {
        self.with(Lapic::take_sipi)
    }

    fn apic_id(&self) -> u32 {
        lock(&self.state).id()
    }

    fn cr8(&self) -> u8 {
        self.priority.load(Ordering::Acquire)
    }
    fn set_cr8(&self, priority: u8) {
        self.with(|s| s.set_tpr(priority << 4));
    }

    fn apic_base(&self) -> u64 {
        lock(&self.state).base_msr()
    }
    fn set_apic_base(&self, value: u64) -> Result<(), GpFault> {
        self.with(|s| s.set_base_msr(value))
    }

    fn read_x2apic(&self, msr: u32) -> Result<u64, GpFault> {
        lock(&self.state).read_x2apic(msr, self.time_for(msr.wrapping_sub(0x800)))
    }
    fn write_x2apic(&self, msr: u32, value: u64) -> Result<(), GpFault> {
        let now = self.time_for(msr.wrapping_sub(0x800));
        let effect = self.with(|s| s.write_x2apic(msr, value, now))?;
        self.perform(effect);
        Ok(())
    }

    fn apic_page(&self) -> ApicPage {
        lock(&self.state).page(self.clock.now_ns())
    }
    fn set_apic_page(&self, page: &ApicPage) {
        self.with(|s| s.set_page(page, self.clock.now_ns()));
    }

    fn tsc_deadline(&self) -> u64 {
        lock(&self.state).tsc_deadline(self.clock.now_ns())
    }
    fn set_tsc_deadline(&self, tsc: u64) {
        self.with(|s| s.set_tsc_deadline(tsc, &self.clock));
    }
    fn set_tsc_offset(&self, offset: u64) {
        self.with(|s| s.set_tsc_offset(offset, &self.clock));
    }

    fn set_kick(&self, kick: Kick) {
        *self.kick.write().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(kick);
    }
}
