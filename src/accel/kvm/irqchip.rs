//! KVM's own interrupt controllers in place of the board's (`kernel-irqchip=on`).
//!
//! With `kernel-irqchip=split` KVM has the local APICs alone: the I/O APIC's messages go to them, they report the end of
//! level-triggered interrupts, and the vCPU is given the 8259s' interrupts as with the board's controllers.
//!
//! Problem: with the board's controllers each access to one is an exit, and each interrupt a conversation with KVM.
//! Strategy: KVM has an 8259 pair, an I/O APIC and local APICs of its own. They take the accesses before these become
//! exits; the board's controllers hand on their inputs ([`PcMachine::replace_controllers`]) and do nothing else. The i8254
//! and all other timers stay the board's.
//!
//! The controllers are reset by putting back the state in which KVM made them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use kvm_bindings::{
    KVM_CAP_SPLIT_IRQCHIP, KVM_IRQ_ROUTING_IRQCHIP, KVM_IRQ_ROUTING_MSI, KVM_IRQCHIP_IOAPIC,
    KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, KVM_MP_STATE_HALTED, KVM_MP_STATE_INIT_RECEIVED,
    KVM_MP_STATE_RUNNABLE, KVM_MP_STATE_UNINITIALIZED, KvmIrqRouting, kvm_enable_cap, kvm_irq_routing_entry,
    kvm_irqchip, kvm_lapic_state, kvm_mp_state, kvm_msi,
};
use kvm_ioctls::{Error, VcpuFd, VmFd};
use tessera_hw::boards::pc::PcMachine;
use tessera_hw::intc::apic_bus::{Message, MsiSink};
use tessera_hw::intc::i8259::I8259;
use tessera_hw::intc::ioapic::IoApic;
use tessera_hw_core::cpu::ApicPage;
use tessera_hw_core::irq::IrqSink;
use tessera_x86::cpu_state::PendingEvents;

use crate::accel::Control;

/// Inputs of the I/O APIC: the first interrupt numbers of the VM.
const IOAPIC_PINS: u32 = 24;
/// Inputs of the 8259s: the numbers behind those.
const PIC_PINS: u32 = 16;

/// Registers that the local APIC itself makes: version, PPR, LVT CMCI.
const OWN_REGISTERS: [usize; 3] = [0x03, 0x0a, 0x2f];

/// Register of the local vector table's entry for LINT1, and its value for NMIs.
const LVT_LINT1: usize = 0x36;
const LINT1_NMI: u32 = 0x400;

/// Inputs of one of KVM's controllers.
struct Inputs {
    vm: Arc<VmFd>,
    /// Number of input 0.
    first: u32,
}

impl IrqSink for Inputs {
    fn set_irq(&self, pin: u32, level: bool) {
        // It fails for numbers that have no route only; all of ours have one.
        let _ = self.vm.set_irq_line(self.first + pin, level);
    }
}

/// KVM's controllers of a machine with one vCPU.
pub struct KernelChips {
    vm: Arc<VmFd>,
    /// As they were made; none if KVM has the local APIC only.
    chips: Vec<kvm_irqchip>,
    lapic: kvm_lapic_state,
    /// The board's part, if KVM has the local APIC only.
    split: Option<Split>,
}

/// The board's controllers beside KVM's local APIC.
struct Split {
    pic: Arc<I8259>,
    /// Level of the 8259s' INTR.
    intr: Arc<AtomicBool>,
    io_apic: Arc<IoApic>,
}

fn refused(what: &'static str) -> impl Fn(Error) -> String {
    move |error| format!("cannot {what} ({error}); leave out kernel-irqchip")
}

/// Makes the controllers of a VM that has no vCPU yet. An error is the rest of a sentence that begins with "KVM".
pub fn create(vm: &VmFd) -> Result<(), String> {
    vm.create_irq_chip().map_err(refused("make interrupt controllers"))?;
    let route = |gsi: u32, chip: u32, pin: u32| {
        let mut entry = kvm_irq_routing_entry { gsi, type_: KVM_IRQ_ROUTING_IRQCHIP, ..Default::default() };
        entry.u.irqchip.irqchip = chip;
        entry.u.irqchip.pin = pin;
        entry
    };
    let ioapic = (0..IOAPIC_PINS).map(|pin| route(pin, KVM_IRQCHIP_IOAPIC, pin));
    let pic = (0..PIC_PINS).map(|pin| {
        let chip = if pin < 8 { KVM_IRQCHIP_PIC_MASTER } else { KVM_IRQCHIP_PIC_SLAVE };
        route(IOAPIC_PINS + pin, chip, pin % 8)
    });
    let routes: Vec<_> = ioapic.chain(pic).collect();
    let routes = KvmIrqRouting::from_entries(&routes)
        .map_err(|_| "cannot hold the machine's interrupts".to_owned())?;
    vm.set_gsi_routing(&routes).map_err(refused("wire interrupt controllers"))
}

/// Has KVM make local APICs for a VM that has no vCPU yet. An error is the rest of a sentence that begins with "KVM".
pub fn create_split(vm: &VmFd) -> Result<(), String> {
    let mut cap = kvm_enable_cap { cap: KVM_CAP_SPLIT_IRQCHIP, ..Default::default() };
    cap.args[0] = IOAPIC_PINS.into();
    vm.enable_cap(&cap).map_err(refused("make local APICs alone"))
}

fn message(address: u64, data: u32) -> kvm_msi {
    kvm_msi { address_lo: address as u32, address_hi: (address >> 32) as u32, data, ..Default::default() }
}

/// Tells KVM whose end it is to report.
fn route_levels(vm: &VmFd, messages: &[Message]) {
    let entry = |(gsi, message): (usize, &Message)| {
        let (address, data) = message.to_msi();
        let mut entry =
            kvm_irq_routing_entry { gsi: gsi as u32, type_: KVM_IRQ_ROUTING_MSI, ..Default::default() };
        entry.u.msi.address_lo = address as u32;
        entry.u.msi.address_hi = (address >> 32) as u32;
        entry.u.msi.data = data;
        entry
    };
    let routes: Vec<_> = messages.iter().enumerate().map(entry).collect();
    if let Ok(routes) = KvmIrqRouting::from_entries(&routes)
        && let Err(error) = vm.set_gsi_routing(&routes)
    {
        tracing::warn!(target: "unimp", "KVM does not take the routes of level-triggered interrupts ({error})");
    }
}

impl KernelChips {
    /// The controllers that [`create`] or [`create_split`] (then with the board's others) made, as they are now: with a
    /// vCPU, before it runs.
    pub fn new(vm: &Arc<VmFd>, vcpu: &VcpuFd, others: Option<&PcMachine>) -> Result<KernelChips, String> {
        let mut chips = Vec::new();
        let kernels: &[u32] = match others {
            Some(_) => &[],
            None => &[KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, KVM_IRQCHIP_IOAPIC],
        };
        for &chip_id in kernels {
            let mut chip = kvm_irqchip { chip_id, ..Default::default() };
            vm.get_irqchip(&mut chip).map_err(refused("tell of its interrupt controllers"))?;
            chips.push(chip);
        }
        let mut lapic = vcpu.get_lapic().map_err(refused("tell of its local APIC"))?;
        // NMI through LINT1, as with the board's; LINT0 is KVM's choice, the same.
        put_register(&mut lapic, LVT_LINT1, LINT1_NMI);
        let split = others.map(|board| Split {
            pic: board.pic.clone(),
            intr: Arc::default(),
            io_apic: board.io_apic.clone(),
        });
        Ok(KernelChips { vm: vm.clone(), chips, lapic, split })
    }

    /// Puts them in place of the board's. `control` is the vCPU's.
    pub fn connect(&self, board: &PcMachine, control: &Arc<Control>) {
        let vm = self.vm.clone();
        let send: MsiSink = Box::new(move |address, data| {
            // A message that nobody takes is lost, as on hardware.
            let _ = vm.signal_msi(message(address, data));
        });
        if let Some(split) = &self.split {
            board.apic_bus.replace(send);
            let (intr, control) = (split.intr.clone(), control.clone());
            board.pic.on_output(Box::new(move |level| {
                if intr.swap(level, Ordering::AcqRel) != level && level {
                    control.kick();
                }
            }));
            let vm = self.vm.clone();
            board.io_apic.on_level_messages(Box::new(move |messages| route_levels(&vm, messages)));
            return;
        }
        let inputs = |first| Arc::new(Inputs { vm: self.vm.clone(), first });
        board.replace_controllers(inputs(IOAPIC_PINS), inputs(0), send);
    }

    /// Whether the board's 8259s have an interrupt.
    pub fn pic_waits(&self) -> bool {
        self.split.as_ref().is_some_and(|split| split.intr.load(Ordering::Acquire))
    }

    /// The vector of the board's 8259s.
    pub fn acknowledge_pic(&self) -> Option<u8> {
        self.split.as_ref().map(|split| split.pic.acknowledge())
    }

    /// KVM's local APIC ended a level-triggered interrupt.
    pub fn end_of_interrupt(&self, vector: u8) {
        if let Some(split) = &self.split {
            split.io_apic.end_of_interrupt(vector);
        }
    }

    /// Puts them into their state after power-on.
    pub fn reset(&self, vcpu: &VcpuFd) -> Result<(), String> {
        let failed = |error| format!("KVM does not reset its interrupt controllers ({error})");
        for chip in &self.chips {
            self.vm.set_irqchip(chip).map_err(failed)?;
        }
        vcpu.set_lapic(&self.lapic).map_err(failed)
    }
}

fn put_register(lapic: &mut kvm_lapic_state, n: usize, value: u32) {
    for (i, byte) in value.to_le_bytes().into_iter().enumerate() {
        lapic.regs[16 * n + i] = byte as _;
    }
}

/// The registers of KVM's local APIC.
pub fn apic_page(vcpu: &VcpuFd) -> Result<ApicPage, String> {
    let lapic = vcpu.get_lapic().map_err(|error| format!("KVM does not tell its local APIC ({error})"))?;
    let byte = |at: usize| lapic.regs[at] as u8;
    Ok(std::array::from_fn(|n| u32::from_le_bytes(std::array::from_fn(|i| byte(16 * n + i)))))
}

/// Sets the registers of KVM's local APIC, but for those that are its own.
pub fn set_apic_page(vcpu: &VcpuFd, page: &ApicPage) -> Result<(), String> {
    let failed = |error| format!("KVM does not take a local APIC's registers ({error})");
    let mut lapic = vcpu.get_lapic().map_err(failed)?;
    for (n, register) in page.iter().enumerate().filter(|(n, _)| !OWN_REGISTERS.contains(n)) {
        put_register(&mut lapic, n, *register);
    }
    vcpu.set_lapic(&lapic).map_err(failed)
}

/// Takes over what KVM knows of a vCPU that does not execute.
pub fn get_activity(vcpu: &VcpuFd, events: &mut PendingEvents) -> Result<(), String> {
    let state = vcpu.get_mp_state().map_err(|error| format!("KVM does not tell its activity ({error})"))?;
    events.halted = state.mp_state == KVM_MP_STATE_HALTED;
    events.wait_for_sipi = matches!(state.mp_state, KVM_MP_STATE_INIT_RECEIVED | KVM_MP_STATE_UNINITIALIZED);
    Ok(())
}

/// Tells KVM whether the vCPU executes.
pub fn set_activity(vcpu: &VcpuFd, events: &PendingEvents) -> Result<(), String> {
    let mp_state = match events {
        PendingEvents { wait_for_sipi: true, .. } => KVM_MP_STATE_INIT_RECEIVED,
        PendingEvents { halted: true, .. } => KVM_MP_STATE_HALTED,
        _ => KVM_MP_STATE_RUNNABLE,
    };
    vcpu.set_mp_state(kvm_mp_state { mp_state })
        .map_err(|error| format!("KVM does not take an activity ({error})"))
}
