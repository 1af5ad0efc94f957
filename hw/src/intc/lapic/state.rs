//! The local APIC's registers and what they do.

use serde::{Deserialize, Serialize};
use tessera_hw_core::clock::Clock;
use tessera_hw_core::cpu::{GpFault, signal};
use tessera_hw_core::device::StateMachine;
use tessera_hw_core::log::{GUEST_ERRORS, UNIMP};

use super::registers::{self as reg, base, esr, lvt};
use super::timer::{ApicTimer, Mode};
use crate::intc::apic_bus::Destination;

/// Delivery mode of a message, in the encoding of ICR, redirection entries and MSI data (bits 10:8).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// To every destination.
    Fixed,
    /// To the destination that is least busy.
    LowestPriority,
    /// System management interrupt.
    Smi,
    /// Non-maskable interrupt.
    Nmi,
    /// INIT.
    Init,
    /// Start-up, to a vCPU that waits for it.
    Startup,
    /// As if from an 8259.
    ExtInt,
    /// Undefined encoding.
    Reserved,
}

impl Delivery {
    /// Decodes the three bits.
    pub fn from_bits(bits: u32) -> Self {
        match bits & 7 {
            0 => Self::Fixed,
            1 => Self::LowestPriority,
            2 => Self::Smi,
            4 => Self::Nmi,
            5 => Self::Init,
            6 => Self::Startup,
            7 => Self::ExtInt,
            _ => Self::Reserved,
        }
    }

    /// The three bits.
    pub fn bits(self) -> u32 {
        match self {
            Self::Fixed => 0,
            Self::LowestPriority => 1,
            Self::Smi => 2,
            Self::Reserved => 3,
            Self::Nmi => 4,
            Self::Init => 5,
            Self::Startup => 6,
            Self::ExtInt => 7,
        }
    }
}

/// An interprocessor interrupt that the guest asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ipi {
    /// APIC that sends it.
    pub from: u32,
    /// What.
    pub delivery: Delivery,
    /// Vector, or start page.
    pub vector: u8,
    /// To whom.
    pub destination: Destination,
}

/// What a register write asks of others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Nothing.
    None,
    /// A level-triggered interrupt with this vector was ended.
    EndOfInterrupt(u8),
    /// Send this.
    Ipi(Ipi),
}

/// 256 bits, one a vector.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Vectors(pub(super) [u64; 4]);

impl Vectors {
    fn set(&mut self, v: u8, on: bool) {
        let (word, bit) = (&mut self.0[usize::from(v >> 6)], 1u64 << (v & 63));
        if on {
            *word |= bit;
        } else {
            *word &= !bit;
        }
    }
    fn get(&self, v: u8) -> bool {
        self.0[usize::from(v >> 6)] >> (v & 63) & 1 != 0
    }
    fn highest(&self) -> Option<u8> {
        let i = (0..4).rev().find(|&i| self.0[i] != 0)?;
        Some((i as u8) << 6 | (63 - self.0[i].leading_zeros() as u8))
    }
    /// Register `i` of eight.
    fn word(&self, i: u32) -> u32 {
        (self.0[(i as usize >> 1) & 3] >> (32 * (i & 1))) as u32
    }
}

/// A local APIC. Times are guest nanoseconds.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Lapic {
    id: u32,
    /// xAPIC ID register, writable in that mode.
    pub(super) xapic_id: u8,
    base_msr: u64,
    pub(super) tpr: u8,
    pub(super) ldr: u32,
    pub(super) dfr: u32,
    pub(super) svr: u32,
    pub(super) isr: Vectors,
    pub(super) tmr: Vectors,
    pub(super) irr: Vectors,
    pub(super) esr: u32,
    /// Errors since the last write to ESR, which moves them there.
    errors: u32,
    pub(super) icr: u64,
    pub(super) lvt: [u32; 6],
    pub(super) timer: ApicTimer,
    tsc_offset: u64,
    lint0: bool,
    nmi: bool,
    init: bool,
    sipi: Option<u8>,
    /// After INIT, and for all but the boot CPU after reset.
    awaits_sipi: bool,
    /// The register page moved and nobody was told yet.
    window_changed: bool,
}

impl Lapic {
    /// APIC number `id` after power-on; 0 is the boot processor's.
    pub fn new(id: u32) -> Self {
        let mut apic = Self {
            id,
            xapic_id: id as u8,
            base_msr: base::RESET,
            tpr: 0,
            ldr: 0,
            dfr: u32::MAX,
            svr: 0xff,
            isr: Vectors::default(),
            tmr: Vectors::default(),
            irr: Vectors::default(),
            esr: 0,
            errors: 0,
            icr: 0,
            lvt: [lvt::MASKED; 6],
            timer: ApicTimer::default(),
            tsc_offset: 0,
            lint0: false,
            nmi: false,
            init: false,
            sipi: None,
            awaits_sipi: id != 0,
            window_changed: true,
        };
        if id == 0 {
            apic.base_msr |= base::BSP;
            // Virtual wire mode, as firmware leaves it: the 8259s reach the boot CPU through LINT0 (MultiProcessor
            // Specification 1.4, section 3.6.2), NMI through LINT1.
            apic.lvt[lvt::LINT0] = 0x700;
            apic.lvt[lvt::LINT1] = 0x400;
        }
        apic
    }

    /// The APIC ID that messages are addressed to.
    pub fn id(&self) -> u32 {
        if self.x2apic() { self.id } else { self.xapic_id.into() }
    }

    pub(super) fn x2apic(&self) -> bool {
        self.base_msr & base::EXTD != 0
    }

    fn hardware_enabled(&self) -> bool {
        self.base_msr & base::ENABLE != 0
    }

    fn software_enabled(&self) -> bool {
        self.hardware_enabled() && self.svr & reg::SVR_ENABLE != 0
    }

    /// Where the register page is, if it is in memory.
    pub fn window(&self) -> Option<u64> {
        (self.hardware_enabled() && !self.x2apic()).then_some(self.base_msr & base::ADDRESS)
    }

    pub(super) fn take_window_change(&mut self) -> bool {
        std::mem::take(&mut self.window_changed)
    }

    // ---- priorities -------------------------------------------------------------------------------------------------

    /// Processor priority: the higher of the task's and that of the highest interrupt in service.
    pub fn ppr(&self) -> u8 {
        let serving = self.isr.highest().unwrap_or(0) & 0xf0;
        if self.tpr & 0xf0 >= serving { self.tpr } else { serving }
    }

    /// The vector that would be delivered now.
    fn deliverable(&self) -> Option<u8> {
        if !self.software_enabled() {
            return None;
        }
        self.irr.highest().filter(|v| v >> 4 > self.ppr() >> 4)
    }

    /// Whether the 8259s' INTR is up and passes this APIC.
    pub fn wants_pic(&self) -> bool {
        let open = !self.hardware_enabled()
            || (self.lvt[lvt::LINT0] & lvt::MASKED == 0
                && Delivery::from_bits(self.lvt[lvt::LINT0] >> 8) == Delivery::ExtInt);
        self.lint0 && open
    }

    /// What waits for the vCPU, as [`signal`] bits.
    pub fn signals(&self) -> u32 {
        let mut s = 0;
        if self.wants_pic() || self.deliverable().is_some() {
            s |= signal::INTR;
        }
        if self.nmi {
            s |= signal::NMI;
        }
        if self.init {
            s |= signal::INIT;
        }
        if self.sipi.is_some() {
            s |= signal::SIPI;
        }
        s
    }

    /// The vCPU takes the highest deliverable interrupt.
    pub fn acknowledge(&mut self) -> Option<u8> {
        let v = self.deliverable()?;
        self.irr.set(v, false);
        self.isr.set(v, true);
        Some(v)
    }

    fn end_of_interrupt(&mut self) -> Effect {
        let Some(v) = self.isr.highest() else { return Effect::None };
        self.isr.set(v, false);
        if self.tmr.get(v) { Effect::EndOfInterrupt(v) } else { Effect::None }
    }

    /// Task priority in units of CR8.
    pub fn cr8(&self) -> u8 {
        self.tpr >> 4
    }

    /// Sets the task priority register.
    pub fn set_tpr(&mut self, tpr: u8) {
        self.tpr = tpr;
    }

    // ---- interrupts in ----------------------------------------------------------------------------------------------

    fn error(&mut self, bit: u32) {
        self.errors |= bit;
        let entry = self.lvt[lvt::ERROR];
        if entry & lvt::MASKED == 0 && entry & 0xff >= 16 {
            self.request(entry as u8, false);
        }
    }

    fn request(&mut self, vector: u8, level: bool) {
        if !self.software_enabled() {
            return;
        }
        self.irr.set(vector, true);
        self.tmr.set(vector, level);
    }

    /// Takes a message addressed to this APIC.
    pub fn accept(&mut self, delivery: Delivery, vector: u8, level_triggered: bool) {
        match delivery {
            Delivery::Fixed | Delivery::LowestPriority if vector < 16 => {
                if self.software_enabled() {
                    self.error(esr::RECEIVED_ILLEGAL_VECTOR);
                }
            }
            Delivery::Fixed | Delivery::LowestPriority => self.request(vector, level_triggered),
            Delivery::Nmi => self.nmi = true,
            Delivery::Init => {
                self.init = true;
                self.awaits_sipi = true;
            }
            Delivery::Startup if self.awaits_sipi => self.sipi = Some(vector),
            Delivery::Startup => {}
            Delivery::Smi | Delivery::ExtInt | Delivery::Reserved => {
                tracing::debug!(target: UNIMP, "APIC {}: message with delivery mode {delivery:?}", self.id);
            }
        }
    }

    fn local_interrupt(&mut self, entry: usize) {
        let value = self.lvt[entry];
        if value & lvt::MASKED != 0 || !self.hardware_enabled() {
            return;
        }
        match Delivery::from_bits(value >> 8) {
            // Asked for as long as the pin is up: see `wants_pic`.
            Delivery::ExtInt => {}
            Delivery::Init => tracing::debug!(target: UNIMP, "INIT by a local interrupt pin"),
            mode => self.accept(mode, value as u8, false),
        }
    }

    /// Level of LINT0, to which the 8259s' INTR is wired.
    pub fn set_lint0(&mut self, level: bool) {
        let rising = level && !self.lint0;
        self.lint0 = level;
        if rising {
            self.local_interrupt(lvt::LINT0);
        }
    }

    /// A pulse on LINT1: NMI as a rule.
    pub fn pulse_lint1(&mut self) {
        if self.hardware_enabled() {
            self.local_interrupt(lvt::LINT1);
        } else {
            self.nmi = true;
        }
    }

    /// Takes the waiting NMI.
    pub fn take_nmi(&mut self) -> bool {
        std::mem::take(&mut self.nmi)
    }

    /// Takes the waiting INIT and goes to the state after INIT: as after power-on, but for the ID and the base register.
    pub fn take_init(&mut self) -> bool {
        if !std::mem::take(&mut self.init) {
            return false;
        }
        let fresh = Self::new(self.id);
        *self = Self {
            xapic_id: self.xapic_id,
            base_msr: self.base_msr,
            tsc_offset: self.tsc_offset,
            lint0: self.lint0,
            sipi: self.sipi,
            awaits_sipi: true,
            window_changed: false,
            ..fresh
        };
        true
    }

    /// Takes the waiting start-up.
    pub fn take_sipi(&mut self) -> Option<u8> {
        let v = self.sipi.take();
        if v.is_some() {
            self.awaits_sipi = false;
        }
        v
    }

    /// Whether a message to `destination` is for this APIC. 0xFF in 8 bits and all ones in 32 are for everybody.
    pub fn matches(&self, destination: Destination) -> bool {
        if !self.hardware_enabled() {
            return false;
        }
        match destination {
            Destination::All => true,
            Destination::AllBut(from) => self.id != from,
            Destination::OnlyApic(id) => self.id == id,
            Destination::Physical(id) => id == self.id(),
            Destination::Logical(mda) if self.x2apic() => {
                let ldr = self.logical_id();
                mda >> 16 == ldr >> 16 && mda & ldr & 0xffff != 0
            }
            Destination::Logical(mda) => {
                let own = self.ldr >> 24;
                if self.dfr >> 28 == 0xf {
                    mda & own & 0xff != 0
                } else {
                    (mda >> 4 & 0xf) == own >> 4 && mda & own & 0xf != 0
                }
            }
        }
    }

    /// Logical ID in x2APIC mode: cluster and bit follow from the ID.
    fn logical_id(&self) -> u32 {
        (self.id >> 4) << 16 | 1 << (self.id & 0xf)
    }

    // ---- timer ------------------------------------------------------------------------------------------------------

    pub(super) fn timer_mode(&self) -> Mode {
        Mode::of(self.lvt[lvt::TIMER])
    }

    /// When [`Self::expire`] must be called next.
    pub fn deadline(&self) -> Option<u64> {
        // A masked timer counts too, but nobody hears: it is caught up with when it is unmasked.
        self.timer.fires_at().filter(|_| self.lvt[lvt::TIMER] & lvt::MASKED == 0 && self.software_enabled())
    }

    /// Lets what the timer did until `now` have happened.
    pub fn expire(&mut self, now: u64) {
        if self.timer.fired(self.timer_mode(), now) && self.lvt[lvt::TIMER] & lvt::MASKED == 0 {
            self.accept(Delivery::Fixed, self.lvt[lvt::TIMER] as u8, false);
        }
    }

    /// IA32_TSC_DEADLINE: 0 once it has passed.
    pub fn tsc_deadline(&self, now: u64) -> u64 {
        match self.timer.fires_at() {
            Some(at) if at > now => self.timer.tsc_deadline,
            _ => 0,
        }
    }

    /// Writes IA32_TSC_DEADLINE; ignored in other modes. A count that has passed fires at once.
    pub fn set_tsc_deadline(&mut self, tsc: u64, clock: &Clock) {
        let now = clock.now_ns();
        self.expire(now);
        if self.timer_mode() == Mode::TscDeadline {
            self.timer.set_deadline(tsc, self.deadline_ns(tsc, clock));
            self.expire(now);
        }
    }

    /// The time of a count of this vCPU's TSC.
    fn deadline_ns(&self, tsc: u64, clock: &Clock) -> u64 {
        if clock.tsc().wrapping_add(self.tsc_offset) >= tsc {
            0
        } else {
            clock.ns_at_tsc(tsc.wrapping_sub(self.tsc_offset))
        }
    }

    /// The vCPU's TSC is `offset` ahead of the machine's; an armed deadline moves.
    pub fn set_tsc_offset(&mut self, offset: u64, clock: &Clock) {
        self.tsc_offset = offset;
        let tsc = self.timer.tsc_deadline;
        if self.timer_mode() == Mode::TscDeadline && tsc != 0 && self.timer.fires_at().is_some() {
            self.timer.set_deadline(tsc, self.deadline_ns(tsc, clock));
            self.expire(clock.now_ns());
        }
    }

    // ---- registers --------------------------------------------------------------------------------------------------

    /// Reads register number `r`; `None` for one that does not exist.
    pub fn read_register(&mut self, r: u32, now: u64) -> Option<u32> {
        let value = self.peek_register(r, now);
        if value.is_none() {
            self.error(esr::ILLEGAL_REGISTER);
            tracing::debug!(target: GUEST_ERRORS, "APIC {}: read of register {r:#x}", self.id);
        }
        value
    }

    pub(super) fn peek_register(&self, r: u32, now: u64) -> Option<u32> {
        Some(match r {
            reg::ID if self.x2apic() => self.id,
            reg::ID => u32::from(self.xapic_id) << 24,
            reg::VERSION => reg::VERSION_VALUE,
            reg::TPR => self.tpr.into(),
            // Arbitration priority exists on no processor since Pentium 4; reads as 0 there.
            reg::APR => 0,
            reg::PPR => self.ppr().into(),
            reg::EOI => 0,
            reg::LDR if self.x2apic() => self.logical_id(),
            reg::LDR => self.ldr,
            reg::DFR => self.dfr,
            reg::SVR => self.svr,
            reg::ISR..reg::TMR => self.isr.word(r - reg::ISR),
            reg::TMR..reg::IRR => self.tmr.word(r - reg::TMR),
            reg::IRR..reg::ESR => self.irr.word(r - reg::IRR),
            reg::ESR => self.esr,
            reg::ICR_LOW => self.icr as u32,
            reg::ICR_HIGH => (self.icr >> 32) as u32,
            reg::LVT_TIMER..=reg::LVT_ERROR => self.lvt[(r - reg::LVT_TIMER) as usize],
            reg::INITIAL_COUNT => self.timer.initial,
            reg::CURRENT_COUNT => self.timer.current(self.timer_mode(), now),
            reg::DIVIDE => self.timer.divide.into(),
            _ => return None,
        })
    }

    /// Writes register number `r` in xAPIC mode. Read-only ones ignore it; one that does not exist is an error in ESR.
    pub fn write_register(&mut self, r: u32, value: u32, now: u64) -> Effect {
        match r {
            reg::ID => self.xapic_id = (value >> 24) as u8,
            reg::LDR => self.ldr = value & 0xff00_0000,
            reg::DFR => self.dfr = value | 0x0fff_ffff,
            reg::ICR_HIGH => self.icr = self.icr & 0xffff_ffff | u64::from(value & 0xff00_0000) << 32,
            reg::ICR_LOW => {
                let icr = self.icr & !0xffff_ffff | u64::from(value);
                let to = (icr >> 56) as u32;
                return self.send(icr, if to == 0xff { u32::MAX } else { to });
            }
            reg::VERSION | reg::APR | reg::PPR | reg::ISR..reg::ESR | reg::CURRENT_COUNT => {
                tracing::debug!(target: GUEST_ERRORS, "APIC {}: write to read-only register {r:#x}", self.id);
            }
            _ => return self.write_common(r, value, now),
        }
        Effect::None
    }

    /// Registers that both modes write alike.
    fn write_common(&mut self, r: u32, value: u32, now: u64) -> Effect {
        match r {
            reg::EOI => return self.end_of_interrupt(),
            reg::TPR => self.tpr = value as u8,
            reg::SVR => {
                self.expire(now);
                self.svr = value & 0x1ff;
                if value & reg::SVR_ENABLE == 0 {
                    self.lvt.iter_mut().for_each(|e| *e |= lvt::MASKED);
                }
            }
            reg::ESR => self.esr = std::mem::take(&mut self.errors),
            reg::LVT_TIMER..=reg::LVT_ERROR => self.write_lvt((r - reg::LVT_TIMER) as usize, value, now),
            reg::INITIAL_COUNT => {
                self.expire(now);
                if self.timer_mode() != Mode::TscDeadline {
                    self.timer.load(value, now);
                }
            }
            reg::DIVIDE => {
                self.expire(now);
                self.timer.set_divide(value as u8, self.timer_mode(), now);
            }
            _ => {
                self.error(esr::ILLEGAL_REGISTER);
                tracing::debug!(target: GUEST_ERRORS, "APIC {}: write of register {r:#x}", self.id);
            }
        }
        Effect::None
    }

    fn write_lvt(&mut self, entry: usize, value: u32, now: u64) {
        self.expire(now);
        let mut value = value & lvt::WRITABLE[entry];
        if self.svr & reg::SVR_ENABLE == 0 {
            value |= lvt::MASKED;
        }
        if entry == lvt::TIMER {
            let (old, new) = (self.timer_mode(), Mode::of(value));
            if old != new && (old == Mode::TscDeadline || new == Mode::TscDeadline) {
                self.timer.disarm();
            }
        }
        self.lvt[entry] = value;
    }

    /// A write to ICR; `to` is the destination with "everybody" as all ones.
    fn send(&mut self, icr: u64, to: u32) -> Effect {
        // Delivery status (bit 12) is always idle: sending takes no time.
        self.icr = icr & 0xffff_ffff_000c_cfff;
        let delivery = Delivery::from_bits((icr >> 8) as u32);
        let vector = icr as u8;
        if matches!(delivery, Delivery::Fixed | Delivery::LowestPriority) && vector < 16 {
            self.error(esr::SEND_ILLEGAL_VECTOR);
            return Effect::None;
        }
        let deassert = icr & 1 << 14 == 0;
        if delivery == Delivery::Init && deassert {
            // INIT level de-assert only synchronised arbitration IDs on processors before Pentium 4.
            return Effect::None;
        }
        let destination = match icr >> 18 & 3 {
            1 => Destination::OnlyApic(self.id),
            2 => Destination::All,
            3 => Destination::AllBut(self.id),
            _ if to == u32::MAX => Destination::All,
            _ if icr & 1 << 11 != 0 => Destination::Logical(to),
            _ => Destination::Physical(to),
        };
        Effect::Ipi(Ipi { from: self.id, delivery, vector, destination })
    }

    /// Reads x2APIC MSR 800H to 8FFH.
    pub fn read_x2apic(&mut self, msr: u32, now: u64) -> Result<u64, GpFault> {
        if !self.x2apic() {
            return Err(GpFault);
        }
        match msr.wrapping_sub(0x800) {
            reg::ICR_LOW => Ok(self.icr),
            reg::EOI | reg::DFR | reg::ICR_HIGH | reg::APR | reg::SELF_IPI => Err(GpFault),
            r => self.peek_register(r, now).map(u64::from).ok_or(GpFault),
        }
    }

    /// Writes x2APIC MSR 800H to 8FFH. #GP for reserved bits, read-only and missing registers.
    pub fn write_x2apic(&mut self, msr: u32, value: u64, now: u64) -> Result<Effect, GpFault> {
        if !self.x2apic() {
            return Err(GpFault);
        }
        let r = msr.wrapping_sub(0x800);
        let allowed = match r {
            reg::ICR_LOW => 0xffff_ffff_000c_dfff,
            reg::EOI | reg::ESR => 0,
            reg::TPR | reg::SELF_IPI => 0xff,
            reg::SVR => 0x1ff,
            reg::LVT_TIMER..=reg::LVT_ERROR => {
                u64::from(lvt::WRITABLE[(r - reg::LVT_TIMER) as usize]) | 0x5000
            }
            reg::INITIAL_COUNT => 0xffff_ffff,
            reg::DIVIDE => 0xb,
            _ => return Err(GpFault),
        };
        if value & !allowed != 0 {
            return Err(GpFault);
        }
        Ok(match r {
            reg::ICR_LOW => self.send(value, (value >> 32) as u32),
            reg::SELF_IPI => {
                // A register of its own: ICR keeps what it had.
                let icr = self.icr;
                let effect = self.send(1 << 18 | 1 << 14 | value, 0);
                self.icr = icr;
                effect
            }
            _ => self.write_common(r, value as u32, now),
        })
    }

    /// IA32_APIC_BASE.
    pub fn base_msr(&self) -> u64 {
        self.base_msr
    }

    /// Writes IA32_APIC_BASE. #GP for reserved bits and for the transitions that the manual forbids (section "x2APIC State
    /// Transitions"): to x2APIC from disabled, from x2APIC back to xAPIC.
    pub fn set_base_msr(&mut self, value: u64) -> Result<(), GpFault> {
        if value & !(base::ADDRESS | base::BSP | base::EXTD | base::ENABLE) != 0 {
            return Err(GpFault);
        }
        let (was_enabled, was_extd) = (self.hardware_enabled(), self.x2apic());
        let (enabled, extd) = (value & base::ENABLE != 0, value & base::EXTD != 0);
        if extd && (!enabled || !was_enabled) || was_extd && enabled && !extd {
            return Err(GpFault);
        }
        if was_enabled && !enabled {
            // Disabled and enabled again it is as after power-on (section "Enabling or Disabling the Local APIC").
            *self = Self {
                lint0: self.lint0,
                tsc_offset: self.tsc_offset,
                nmi: self.nmi,
                init: self.init,
                sipi: self.sipi,
                awaits_sipi: self.awaits_sipi,
                ..Self::new(self.id)
            };
        }
        if extd && !was_extd {
            // The destination bits of ICR have another place and size.
            self.icr &= 0xffff_ffff;
        }
        self.base_msr = value;
        self.window_changed = true;
        Ok(())
    }
}

impl StateMachine for Lapic {
    const VERSION: u16 = 1;
    fn reset(&mut self) {
        *self = Self { lint0: self.lint0, ..Self::new(self.id) };
    }
    fn check(&self) -> Result<(), &'static str> {
        let masks_ok = self.lvt.iter().zip(lvt::WRITABLE).all(|(v, w)| v & !w == 0);
        if !masks_ok || self.timer.divide & !0xb != 0 {
            return Err("register bits that cannot be set");
        }
        Ok(())
    }
}
