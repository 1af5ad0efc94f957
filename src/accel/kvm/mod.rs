//! The host's KVM as the engine of the machine.
//!
//! Problem: the same machine, with the same devices, is to run on the host's processor. Strategy: the board stays what it
//! is; KVM gets its memory as slots ([`memory`]), and everything that is not memory comes back as an exit that goes to
//! the buses of the board, on the vCPU's thread. Interrupt controllers and timers are the board's: before each entry the
//! vCPU is given what waits for it, or KVM is asked to return as soon as it can take an interrupt. On demand KVM's own
//! interrupt controllers take their place ([`irqchip`]), and none of this is needed.
//!
//! Invariants:
//! - Between two calls of [`Engine::run`] the last KVM_RUN is complete: an access that was left to us has been finished,
//!   so the state can be read and replaced.
//! - Nothing is missed: a kick that comes after the look at what waits makes the next KVM_RUN return at once
//!   ([`raw::Kick`]).
//! - `halted` and `wait_for_sipi` are ours, since KVM keeps them only with its own interrupt controller.
//!
//! What KVM itself lacks: FERR# (IRQ 13 for x87 errors with CR0.NE clear), and system-management mode as this machine has
//! none.
//!
//! | file | what is there |
//! |---|---|
//! | `open` | whether KVM can be had |
//! | `exits` | what an exit asks for |
//! | `memory` | memory slots |
//! | `cpuid` | CPU models |
//! | `irqchip` | KVM's own interrupt controllers |
//! | `state` | the processor's state, there and back |
//! | `debug` | breakpoints and steps |
//! | `detached` | what the translator knows about states |
//! | `assist` | the translator executes what KVM does not |
//! | `tests`, `programs` | states there and back; the bare-metal programs under both engines |
//! | `raw` | shared memory and missing ioctls: the unsafe code |

mod assist;
mod cpuid;
mod debug;
mod detached;
mod exits;
mod irqchip;
mod memory;
mod open;
#[cfg(test)]
mod programs;
mod raw;
mod state;
#[cfg(test)]
mod tests;

use std::fmt::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use kvm_bindings::{
    KVM_CAP_EXIT_ON_EMULATION_FAILURE, KVM_CAP_X86_USER_SPACE_MSR, KVM_MSR_EXIT_REASON_FILTER,
    KVM_MSR_EXIT_REASON_INVAL, KVM_MSR_EXIT_REASON_UNKNOWN, kvm_enable_cap,
};
use kvm_ioctls::{Cap, MsrFilterDefaultAction, MsrFilterRange, MsrFilterRangeFlags, VcpuFd, VmFd};
use tessera_hw::boards::pc::PcMachine;
use tessera_hw::intc::lapic::TIMER_HZ;
use tessera_hw::misc::a20::A20;
use tessera_hw_core::cpu::{CpuIrq, signal};
use tessera_hw_core::event::Events;
use tessera_hw_core::mem::{AddressSpace, MemoryObserver};
use tessera_hw_core::ports::PortBus;
use tessera_x86::cpu_state::CpuState;
use tessera_x86::cpuid::CpuidTable;
use tessera_x86::state::{Segment, seg};

use self::assist::Assist;
use self::debug::Debug;
use self::irqchip::KernelChips;
use self::memory::Slots;
use self::raw::Kick;
use self::state::Conversion;
use super::debug::DebugRequest;
use super::tcg::{self, PcPlatform};
use super::{Control, Engine, Stop};
use crate::cli::{Config, IrqChip};

/// IA32_TSC_DEADLINE.
const TSC_DEADLINE: u32 = 0x6e0;
/// IA32_ARCH_CAPABILITIES.
const ARCH_CAPABILITIES: u32 = 0x10a;
/// IA32_MCG_CAP: ten banks and IA32_MCG_CTL, as under the translator.
const MACHINE_CHECKS: u64 = 1 << 8 | 10;
/// Three pages that no board uses, for the task that KVM keeps to run real mode on old Intel processors, and one more for
/// its identity-mapped page table: below the ROM's 16 MiB.
const TSS: usize = 0xfeff_d000;
const IDENTITY_MAP: u64 = 0xfeff_c000;

/// Why this engine cannot be had.
pub enum Unavailable {
    /// KVM is not what it would have to be; the text is the rest of a sentence that begins with "KVM".
    Kvm(String),
    /// What was asked for cannot be had with any KVM; the text is a sentence.
    Request(String),
}

/// Follows changes of the memory map.
struct Observer {
    changed: Arc<AtomicBool>,
    control: Arc<Control>,
}

impl MemoryObserver for Observer {
    fn on_dma_write(&self, _: u64, _: u64) {
        // The host's processor sees what is written.
    }

    fn on_map_change(&self) {
        self.changed.store(true, Ordering::Release);
        self.control.kick();
    }
}

/// What exits and waits are counted for.
#[derive(Default)]
struct Counters {
    runs: u64,
    ports: u64,
    mmio: u64,
    msrs: u64,
    halts: u64,
    windows: u64,
    interrupts: u64,
    interrupted: u64,
    assisted: u64,
}

/// The board as exits reach it.
struct Bus {
    space: Arc<AddressSpace>,
    ports: Arc<PortBus>,
    irq: Arc<dyn CpuIrq>,
    a20: Arc<A20>,
    events: Events,
}

/// KVM as the engine of one vCPU. The order of the fields is that in which they are dropped: first what uses memory.
pub struct KvmEngine {
    vcpu: VcpuFd,
    vm: Arc<VmFd>,
    /// KVM's interrupt controllers, if they are used. The board's are otherwise.
    chips: Option<KernelChips>,
    slots: Slots,
    conversion: Conversion,
    bus: Bus,
    cpuid: CpuidTable,
    signature: u32,
    run_size: usize,
    control: Arc<Control>,
    kick: Arc<Kick>,
    /// The memory map or A20 changed since the last look.
    remapped: Arc<AtomicBool>,
    halted: bool,
    wait_for_sipi: bool,
    /// KVM has finished a triple fault.
    shutdown: bool,
    /// What `kvm_run` says of interrupts is of the current state.
    fresh: bool,
    /// The last KVM_RUN left something to be completed by the next.
    incomplete: bool,
    /// Executes what KVM does not, once that was needed; until then, what it will be made with.
    assist: Option<Assist>,
    assist_platform: Option<Box<PcPlatform>>,
    /// What went wrong outside of [`Engine::run`].
    failed: Option<String>,
    /// What a debugger wants.
    debug: Debug,
    counters: Counters,
}

impl KvmEngine {
    /// The engine of the board's first vCPU. Nothing of the board has changed if this fails. The second value is what to
    /// warn the user of, a sentence each.
    pub fn new(
        board: &PcMachine,
        config: &Config,
        chip: IrqChip,
    ) -> Result<(KvmEngine, Vec<String>), Unavailable> {
        let kvm = open::open().map_err(Unavailable::Kvm)?;
        let supported = cpuid::Supported::of(&kvm).map_err(Unavailable::Kvm)?;
        let text = config.cpu.as_deref().unwrap_or("max");
        let model = cpuid::model(text, &supported, |table| {
            table.set_frequencies(board.clock.tsc_hz(), TIMER_HZ);
        })
        .map_err(|error| Unavailable::Request(format!("-cpu {text}: {error}")))?;

        let refused = |what: &'static str| {
            move |error: kvm_ioctls::Error| {
                Unavailable::Kvm(format!("does not work: it cannot {what} ({error})"))
            }
        };
        let vm = Arc::new(kvm.create_vm().map_err(refused("make a virtual machine"))?);
        vm.set_tss_address(TSS).map_err(refused("place its TSS"))?;
        if vm.check_extension(Cap::SetIdentityMapAddr) {
            vm.set_identity_map_address(IDENTITY_MAP).map_err(refused("place its page table"))?;
        }
        match chip {
            IrqChip::Off => {}
            IrqChip::On => irqchip::create(&vm).map_err(Unavailable::Kvm)?,
            IrqChip::Split => irqchip::create_split(&vm).map_err(Unavailable::Kvm)?,
        }
        let own_msrs = chip != IrqChip::Off || user_msrs(&vm);
        let mut all_failures =
            kvm_enable_cap { cap: KVM_CAP_EXIT_ON_EMULATION_FAILURE, ..Default::default() };
        all_failures.args[0] = 1;
        // Without it (before Linux 5.14) user code gets #UD for what KVM does not know, and only the rest comes to us.
        let _ = vm.enable_cap(&all_failures);
        let mut vcpu = vm.create_vcpu(0).map_err(refused("make a vCPU"))?;
        let mut entries = model.entries;
        if !own_msrs {
            // These are the interrupt controller's, which is ours.
            for e in entries.as_mut_slice().iter_mut().filter(|e| e.function == 1) {
                e.ecx &= !cpuid::APIC_FEATURES;
            }
        }
        vcpu.set_cpuid2(&entries).map_err(refused("take the CPU model"))?;
        let plain = |error: std::io::Error| Unavailable::Kvm(format!("does not work: {error}"));
        raw::set_machine_checks(&vcpu, MACHINE_CHECKS).map_err(plain)?;
        for index in state::set_msrs(&vcpu, &[(ARCH_CAPABILITIES, model.capabilities)]) {
            tracing::debug!(target: "unimp", "KVM refuses MSR {index:#x}");
        }
        let kick = Kick::new(&mut vcpu).map_err(plain)?;
        let chips = match chip {
            IrqChip::Off => None,
            IrqChip::On => Some(KernelChips::new(&vm, &vcpu, None).map_err(Unavailable::Kvm)?),
            IrqChip::Split => Some(KernelChips::new(&vm, &vcpu, Some(board)).map_err(Unavailable::Kvm)?),
        };

        let irq = board.cpus().next().ok_or_else(|| Unavailable::Kvm("has no CPU to run".into()))?;
        let space = board.address_space.clone();
        let mut slots = Slots::new(space.clone(), u32::try_from(kvm.get_nr_memslots()).unwrap_or(u32::MAX));
        slots
            .sync(&vm, board.a20.enabled())
            .map_err(|why| Unavailable::Kvm(format!("does not work: {why}")))?;
        let power_up = detached::power_up(&model.table, model.signature);
        let conversion = Conversion::new(
            &vcpu,
            space.clone(),
            board.clock.clone(),
            supported.xsave_layout(),
            power_up.msrs.clone(),
        );
        let run_size = vm.run_size();
        let debug = Debug::new(&vm);

        // From here on nothing fails.
        let kicked = kick.clone();
        let control = Control::new(Box::new(move || kicked.kick()));
        let waiting = control.clone();
        irq.set_kick(Arc::new(move || waiting.kick()));
        if let Some(chips) = &chips {
            chips.connect(board, &control);
        }
        let platform = Box::new(PcPlatform::new(board, irq.clone(), control.clone()));
        let remapped = Arc::new(AtomicBool::new(false));
        space.set_observer(Arc::new(Observer { changed: remapped.clone(), control: control.clone() }));
        let (gate, told) = (remapped.clone(), control.clone());
        board.a20.on_change(Box::new(move |_| {
            gate.store(true, Ordering::Release);
            told.kick();
        }));
        let engine = KvmEngine {
            vcpu,
            vm,
            chips,
            slots,
            conversion,
            bus: Bus {
                space,
                ports: board.ports.clone(),
                irq,
                a20: board.a20.clone(),
                events: board.events.clone(),
            },
            cpuid: model.table,
            signature: model.signature,
            run_size,
            control,
            kick,
            remapped,
            halted: false,
            wait_for_sipi: false,
            shutdown: false,
            fresh: false,
            incomplete: false,
            assist: None,
            assist_platform: Some(platform),
            failed: None,
            debug,
            counters: Counters::default(),
        };
        Ok((engine, model.warnings))
    }

    fn stop_requested(&self) -> bool {
        self.control.stop_requested() || self.bus.events.pending()
    }

    /// Gives the vCPU what waits for it. `Some` when it cannot execute.
    fn take_events(&mut self) -> Result<Option<Stop>, String> {
        let irq = self.bus.irq.clone();
        let mut waiting = irq.signals().load(Ordering::Acquire);
        if waiting & signal::INIT != 0 && irq.take_init() {
            let state = self.get()?;
            let boot_cpu = irq.apic_base() & 1 << 8 != 0;
            self.set(&detached::init(&self.cpuid, self.signature, &state))?;
            self.wait_for_sipi = !boot_cpu;
            waiting = irq.signals().load(Ordering::Acquire);
        }
        if self.wait_for_sipi {
            let Some(vector) = irq.take_sipi() else { return Ok(Some(Stop::Halted)) };
            let mut state = self.get()?;
            let base = u64::from(vector) << 12;
            let selector = u16::from(vector) << 8;
            state.segments[seg::CS] = Segment { base, limit: 0xffff, access: 0x9b, selector };
            state.rip = 0;
            state.events.wait_for_sipi = false;
            self.set(&state)?;
        }
        if waiting & signal::NMI != 0 && irq.take_nmi() {
            self.vcpu.nmi().map_err(|error| format!("KVM does not take an NMI ({error})"))?;
            self.halted = false;
        }
        let mut window = 0;
        if waiting & signal::INTR != 0 {
            let run = self.vcpu.get_kvm_run();
            let ready = if self.halted {
                self.interruptible()
            } else {
                self.fresh && run.if_flag != 0 && run.ready_for_interrupt_injection != 0
            };
            if !ready {
                window = 1;
            } else if let Some(vector) = irq.acknowledge() {
                raw::interrupt(&self.vcpu, vector)
                    .map_err(|error| format!("KVM does not take an interrupt ({error})"))?;
                self.counters.interrupts += 1;
                self.halted = false;
                // One at a time: the next when this one has been delivered.
                window = u8::from(irq.pending());
            }
        }
        if self.halted {
            return Ok(Some(Stop::Halted));
        }
        self.vcpu.get_kvm_run().request_interrupt_window = window;
        Ok(None)
    }

    /// Gives the vCPU the interrupt of the board's 8259s, which KVM's local APIC may let through.
    fn take_pic_interrupt(&mut self) -> Result<(), String> {
        let Some(chips) = self.chips.as_ref().filter(|chips| chips.pic_waits()) else {
            self.vcpu.get_kvm_run().request_interrupt_window = 0;
            return Ok(());
        };
        let run = self.vcpu.get_kvm_run();
        let ready = self.fresh && run.if_flag != 0 && run.ready_for_interrupt_injection != 0;
        run.request_interrupt_window = u8::from(!ready);
        if ready && let Some(vector) = chips.acknowledge_pic() {
            raw::interrupt(&self.vcpu, vector)
                .map_err(|error| format!("KVM does not take an interrupt ({error})"))?;
            self.counters.interrupts += 1;
        }
        Ok(())
    }

    /// Takes over what the guest did to the registers of the interrupt controller that the processor itself has.
    fn take_registers(&mut self) {
        let run = self.vcpu.get_kvm_run();
        let (cr8, base) = (run.cr8 as u8 & 0xf, run.apic_base);
        if cr8 != self.bus.irq.cr8() {
            self.bus.irq.set_cr8(cr8);
        }
        if base != self.bus.irq.apic_base() && self.bus.irq.set_apic_base(base).is_err() {
            // KVM checks less; what it let pass is taken back at the next entry.
            tracing::debug!(target: "guest_errors", "IA32_APIC_BASE = {base:#x} is not possible");
        }
    }

    /// Finishes what the last KVM_RUN left to us.
    fn complete(&mut self) -> Result<(), String> {
        while self.incomplete {
            self.kick.complete_only();
            // Without events to take nothing but the rest of an instruction happens.
            self.step()?;
        }
        Ok(())
    }

    fn run_until_stop(&mut self) -> Result<Stop, String> {
        self.kick.enter();
        self.conversion.follow_clock(&self.vcpu);
        if self.shutdown {
            return Ok(Stop::TripleFault(self.dump()));
        }
        if let Some(stop) = self.debugged()? {
            return Ok(stop);
        }
        loop {
            self.kick.acknowledge();
            if self.stop_requested() {
                self.complete()?;
                return Ok(Stop::Requested);
            }
            if self.remapped.swap(false, Ordering::AcqRel) {
                self.slots.sync(&self.vm, self.bus.a20.enabled())?;
            }
            // An access is complete before an event comes, as on the processor.
            if self.chips.is_none()
                && self.incomplete
                && self.bus.irq.signals().load(Ordering::Acquire) & (signal::INIT | signal::SIPI) != 0
            {
                self.complete()?;
                continue;
            }
            if self.chips.is_some() {
                self.take_pic_interrupt()?;
            } else if let Some(stop) = self.take_events()? {
                return Ok(stop);
            }
            if let Some(stop) = self.step()? {
                return Ok(stop);
            }
        }
    }

    fn get(&mut self) -> Result<CpuState, String> {
        let mut state = self.conversion.get(&self.vcpu)?;
        let events = &mut state.events;
        (events.halted, events.wait_for_sipi, events.shutdown) =
            (self.halted, self.wait_for_sipi, self.shutdown);
        if self.chips.is_some() {
            irqchip::get_activity(&self.vcpu, events)?;
            state.tsc_deadline = self.conversion.deadline(&self.vcpu);
        } else {
            let irq = &self.bus.irq;
            (state.cr8, state.apic_base, state.tsc_deadline) =
                (irq.cr8(), irq.apic_base(), irq.tsc_deadline());
        }
        Ok(state)
    }

    fn set(&mut self, state: &CpuState) -> Result<(), String> {
        self.incomplete = false;
        self.fresh = false;
        self.conversion.set(&self.vcpu, state)?;
        let events = &state.events;
        self.shutdown = events.shutdown;
        if self.chips.is_some() {
            irqchip::set_activity(&self.vcpu, events)?;
            self.conversion.set_deadline(&self.vcpu, state.tsc_deadline);
        } else {
            let irq = &self.bus.irq;
            // A base that the interrupt controller refuses cannot have come from a processor with the same one.
            let _ = irq.set_apic_base(state.apic_base);
            irq.set_cr8(state.cr8);
            irq.set_tsc_deadline(state.tsc_deadline);
            (self.halted, self.wait_for_sipi) = (events.halted, events.wait_for_sipi);
        }
        Ok(())
    }
}

/// Has KVM leave to us the MSRs of the interrupt controller. False where it cannot.
fn user_msrs(vm: &VmFd) -> bool {
    let mut cap = kvm_enable_cap { cap: KVM_CAP_X86_USER_SPACE_MSR, ..Default::default() };
    cap.args[0] =
        (KVM_MSR_EXIT_REASON_INVAL | KVM_MSR_EXIT_REASON_UNKNOWN | KVM_MSR_EXIT_REASON_FILTER).into();
    // KVM would drop writes to IA32_TSC_DEADLINE without its own APIC. A cleared bit in the map means: not KVM's.
    let deadline = MsrFilterRange {
        flags: MsrFilterRangeFlags::READ | MsrFilterRangeFlags::WRITE,
        base: TSC_DEADLINE,
        msr_count: 1,
        bitmap: &[0],
    };
    vm.check_extension(Cap::X86UserSpaceMsr)
        && vm.check_extension(Cap::X86MsrFilter)
        && vm.enable_cap(&cap).is_ok()
        && vm.set_msr_filter(MsrFilterDefaultAction::ALLOW, &[deadline]).is_ok()
}

impl Engine for KvmEngine {
    fn run(&mut self) -> Stop {
        if let Some(why) = self.failed.take() {
            return Stop::Failed(why);
        }
        self.run_until_stop().unwrap_or_else(Stop::Failed)
    }

    fn reset(&mut self) {
        let mut state = detached::power_up(&self.cpuid, self.signature);
        (state.cr8, state.apic_base) = (self.bus.irq.cr8(), self.bus.irq.apic_base());
        self.remapped.store(true, Ordering::Release);
        let chips = self.chips.as_ref().map_or(Ok(()), |chips| chips.reset(&self.vcpu));
        self.failed = chips.and_then(|()| self.set(&state)).err();
    }

    fn state(&mut self) -> Result<CpuState, String> {
        self.complete()?;
        let mut state = self.get()?;
        state.apic.0 = match &self.chips {
            Some(_) => irqchip::apic_page(&self.vcpu)?,
            None => self.bus.irq.apic_page(),
        };
        state.normalise();
        Ok(state)
    }

    fn set_state(&mut self, state: &CpuState) -> Result<(), String> {
        self.set(state)?;
        if self.chips.is_some() {
            irqchip::set_apic_page(&self.vcpu, &state.apic.0)?;
            // Which timer it is for, the registers say.
            self.conversion.set_deadline(&self.vcpu, state.tsc_deadline);
        } else {
            tcg::set_apic(&*self.bus.irq, state);
        }
        Ok(())
    }

    fn set_debug(&mut self, request: &DebugRequest) -> Result<(), String> {
        self.debug.set(&self.vcpu, request)
    }

    fn control(&self) -> Arc<Control> {
        self.control.clone()
    }

    fn awake(&self) -> bool {
        let waiting = self.bus.irq.signals().load(Ordering::Acquire);
        self.chips.is_some()
            || waiting & !signal::INTR != 0
            || waiting != 0 && self.interruptible()
            || self.bus.events.pending()
    }

    fn dump(&self) -> String {
        match self.conversion.get(&self.vcpu) {
            Ok(mut state) => {
                state.events.halted = self.halted;
                detached::dump(&self.cpuid, &state)
            }
            Err(why) => why,
        }
    }

    fn statistics(&self) -> String {
        let c = &self.counters;
        let mut text = String::new();
        // Writing to a string cannot fail.
        let _ = write!(
            text,
            "{} entries: {} port accesses, {} MMIO, {} MSRs, {} halts, {} interrupt windows, {} kicks, \
             {} instructions for the translator; {} interrupts",
            c.runs, c.ports, c.mmio, c.msrs, c.halts, c.windows, c.interrupted, c.assisted, c.interrupts
        );
        text
    }
}

impl KvmEngine {
    /// Whether a halted vCPU takes interrupts.
    fn interruptible(&self) -> bool {
        const IF: u64 = 1 << 9;
        self.vcpu.get_regs().is_ok_and(|regs| regs.rflags & IF != 0)
    }
}

impl Drop for KvmEngine {
    fn drop(&mut self) {
        self.kick.disarm();
        self.control.detach();
    }
}
