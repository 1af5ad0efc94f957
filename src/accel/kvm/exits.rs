//! What KVM leaves to us when it returns: accesses to ports, registers and MSRs, halts, and what it cannot execute.
//!
//! No writes are coalesced (KVM_REGISTER_COALESCED_MMIO). It would pay for registers that are written often and do nothing by
//! themselves, like a frame buffer's; this machine has none. To its shell Debian's kernel writes to ports some 500 times,
//! 318 of them to the address of the PCI configuration space, which shares a doubleword with the reset register, and a
//! reset must not wait. None of them goes to the POST code port; the index of the RTC is written 6 times by the firmware.

use std::ops::RangeInclusive;

use kvm_bindings::{KVM_INTERNAL_ERROR_EMULATION, kvm_debug_exit_arch};
use kvm_ioctls::VcpuExit;
use tessera_tcg::guest::{BlockKey, Guest};
use tessera_x86::cpu_state::CpuState;
use tessera_x86::guest::X86;
use tessera_x86::state::{Segment, mode, seg};

use super::assist::Assist;
use super::{Bus, KvmEngine, TSC_DEADLINE, memory, raw, state};
use crate::accel::{Engine, Stop};

/// The MSRs of the x2APIC.
const X2APIC: RangeInclusive<u32> = 0x800..=0x8ff;
/// Longest instruction.
const MAX_INSTRUCTION: usize = 15;
/// A20 as an address bit.
const A20_BIT: u64 = 1 << 20;

/// What an exit leaves to us.
enum Left {
    Nothing,
    Window,
    Port,
    Read {
        address: u64,
        len: usize,
    },
    Write {
        address: u64,
        data: [u8; 8],
        len: usize,
    },
    ReadMsr(u32),
    WriteMsr(u32, u64),
    /// Of a level-triggered one with this vector.
    EndOfInterrupt(u8),
    Halt,
    Debug(kvm_debug_exit_arch),
    Shutdown,
    FailedEntry(u64),
    InternalError,
}

impl Left {
    fn of(exit: VcpuExit<'_>) -> Result<Left, String> {
        Ok(match exit {
            VcpuExit::IoIn(..) | VcpuExit::IoOut(..) => Left::Port,
            VcpuExit::MmioRead(address, data) => Left::Read { address, len: data.len() },
            VcpuExit::MmioWrite(address, from) => {
                let mut data = [0; 8];
                data[..from.len()].copy_from_slice(from);
                Left::Write { address, data, len: from.len() }
            }
            VcpuExit::X86Rdmsr(access) => Left::ReadMsr(access.index),
            VcpuExit::X86Wrmsr(access) => Left::WriteMsr(access.index, access.data),
            VcpuExit::IoapicEoi(vector) => Left::EndOfInterrupt(vector),
            VcpuExit::Hlt => Left::Halt,
            VcpuExit::Debug(why) => Left::Debug(why),
            VcpuExit::IrqWindowOpen => Left::Window,
            VcpuExit::SetTpr | VcpuExit::Intr | VcpuExit::Nmi => Left::Nothing,
            VcpuExit::Shutdown => Left::Shutdown,
            VcpuExit::FailEntry(reason, _) => Left::FailedEntry(reason),
            VcpuExit::InternalError => Left::InternalError,
            VcpuExit::MemoryFault { gpa, .. } => {
                return Err(format!("KVM cannot reach the guest's memory at {gpa:#x}"));
            }
            other => return Err(format!("KVM returns for a reason that this machine has not: {other:?}")),
        })
    }
}

impl KvmEngine {
    /// Enters the guest once and does what the exit asks for. `Some` when the vCPU stops.
    pub(super) fn step(&mut self) -> Result<Option<Stop>, String> {
        self.counters.runs += 1;
        self.incomplete = false;
        if self.chips.is_none() {
            let run = self.vcpu.get_kvm_run();
            (run.cr8, run.apic_base) = (self.bus.irq.cr8().into(), self.bus.irq.apic_base());
        }
        let left = match self.vcpu.run() {
            Ok(exit) => Left::of(exit)?,
            Err(error) if matches!(error.errno(), libc::EINTR | libc::EAGAIN) => {
                self.counters.interrupted += 1;
                Left::Nothing
            }
            Err(error) => return Err(format!("KVM fails to execute the guest ({error})")),
        };
        self.fresh = true;
        if self.chips.is_none() {
            // Before the exit is looked at, which may change them again.
            self.take_registers();
        }
        match left {
            Left::Nothing => {}
            Left::Window => self.counters.windows += 1,
            Left::EndOfInterrupt(vector) => {
                if let Some(chips) = &self.chips {
                    chips.end_of_interrupt(vector);
                }
            }
            Left::Port => {
                self.counters.ports += 1;
                self.incomplete = true;
                self.port_access()?;
            }
            Left::Read { address, len } => {
                self.counters.mmio += 1;
                self.incomplete = true;
                let mut data = [0; 8];
                self.bus.read(address, &mut data[..len]);
                raw::answer_mmio(&mut self.vcpu, data);
            }
            Left::Write { address, data, len } => {
                self.counters.mmio += 1;
                self.incomplete = true;
                self.bus.write(address, &data[..len]);
            }
            Left::ReadMsr(index) => {
                self.counters.msrs += 1;
                self.incomplete = true;
                let value = self.read_msr(index);
                raw::answer_msr(&mut self.vcpu, value);
            }
            Left::WriteMsr(index, value) => {
                self.counters.msrs += 1;
                self.incomplete = true;
                let done = self.write_msr(index, value);
                raw::answer_msr(&mut self.vcpu, done.then_some(value));
            }
            Left::Halt => {
                self.counters.halts += 1;
                self.halted = true;
            }
            // For what nobody asks for any more, the guest just goes on.
            Left::Debug(why) => return Ok(self.debug.stop(&why).map(Stop::Debug)),
            Left::Shutdown => {
                self.shutdown = true;
                return Ok(Some(Stop::TripleFault(self.dump())));
            }
            Left::FailedEntry(reason) => {
                return Err(format!(
                    "the host's processor refuses the guest's state (hardware reason {reason:#x})\n{}",
                    self.dump()
                ));
            }
            Left::InternalError => return self.internal_error(),
        }
        Ok(None)
    }

    fn read_msr(&mut self, index: u32) -> Option<u64> {
        match index {
            _ if X2APIC.contains(&index) => self.bus.irq.read_x2apic(index).ok(),
            TSC_DEADLINE => Some(match self.bus.irq.tsc_deadline() {
                0 => 0,
                armed => armed.wrapping_add(self.conversion.guest_tsc_offset(&self.vcpu)),
            }),
            _ => {
                tracing::debug!(target: "guest_errors", "read of MSR {index:#x} raises #GP");
                None
            }
        }
    }

    fn write_msr(&mut self, index: u32, value: u64) -> bool {
        match index {
            _ if X2APIC.contains(&index) => self.bus.irq.write_x2apic(index, value).is_ok(),
            TSC_DEADLINE => {
                // 0 disarms, in the guest's time and in the machine's.
                let deadline = match value {
                    0 => 0,
                    _ => value.wrapping_sub(self.conversion.guest_tsc_offset(&self.vcpu)).max(1),
                };
                self.bus.irq.set_tsc_deadline(deadline);
                true
            }
            _ => {
                tracing::debug!(target: "guest_errors", "write of {value:#x} to MSR {index:#x} raises #GP");
                false
            }
        }
    }

    fn port_access(&mut self) -> Result<(), String> {
        let access = raw::port_access(&mut self.vcpu, self.run_size)
            .ok_or("KVM reports a port access that is none")?;
        for value in access.data.chunks_exact_mut(access.size.into()) {
            if access.input {
                let read = self.bus.ports.read(access.port, access.size).to_le_bytes();
                value.copy_from_slice(&read[..value.len()]);
            } else {
                let mut bytes = [0; 4];
                bytes[..value.len()].copy_from_slice(value);
                self.bus.ports.write(access.port, access.size, u32::from_le_bytes(bytes));
            }
        }
        Ok(())
    }

    /// KVM could not go on. If that is because it does not know the instruction, the translator executes it.
    fn internal_error(&mut self) -> Result<Option<Stop>, String> {
        let (reason, data) =
            raw::internal_error(&mut self.vcpu).ok_or("KVM reports an internal error that is none")?;
        if reason != KVM_INTERNAL_ERROR_EMULATION {
            let data: Vec<String> = data.iter().map(|word| format!("{word:#x}")).collect();
            return Err(format!(
                "KVM reports its internal error {reason} ({})\n{}",
                data.join(", "),
                self.dump()
            ));
        }
        let state = self.get()?;
        tracing::debug!(target: "unimp", "KVM does not execute `{}` at {:#x}", self.instruction(&state), state.rip);
        self.counters.assisted += 1;
        let state = self.assist()?.execute(&state);
        self.set(&state)?;
        Ok(self.shutdown.then(|| Stop::TripleFault(self.dump())))
    }

    /// The translator, made when it is first needed.
    pub(super) fn assist(&mut self) -> Result<&mut Assist, String> {
        if let Some(platform) = self.assist_platform.take() {
            self.assist = Some(Assist::new(platform, self.bus.space.clone())?);
        }
        self.assist.as_mut().ok_or_else(|| "the translator, which is to help KVM, did not start".into())
    }

    /// The instruction that the vCPU is at, in assembly language.
    fn instruction(&self, state: &CpuState) -> String {
        let long = state::is_64_bit(state);
        let base = if long { 0 } else { state.segments[seg::CS].base };
        let mut bytes = Vec::new();
        for n in 0..MAX_INSTRUCTION as u64 {
            let linear = base.wrapping_add(state.rip).wrapping_add(n);
            let linear = if long { linear } else { linear & 0xffff_ffff };
            match self.vcpu.translate_gva(linear) {
                Ok(found) if found.valid != 0 => {
                    bytes.push(self.bus.space.read(found.physical_address, 1) as u8)
                }
                _ => break,
            }
        }
        let bits = if long {
            mode::CODE64
        } else if state.segments[seg::CS].access & Segment::DB != 0 {
            mode::CODE32
        } else {
            0
        };
        X86::disassemble(BlockKey::new(state.rip, bits), state.rip, &bytes).0
    }
}

impl Bus {
    /// The address that a processor puts out.
    fn physical(&self, address: u64) -> u64 {
        if self.a20.enabled() || address >= memory::A20_REACH { address } else { address & !A20_BIT }
    }

    fn read(&self, address: u64, data: &mut [u8]) {
        let address = self.physical(address);
        match data.len() {
            1 | 2 | 4 | 8 => {
                let value = self.space.read(address, data.len() as u8).to_le_bytes();
                data.copy_from_slice(&value[..data.len()]);
            }
            _ => {
                for (n, byte) in data.iter_mut().enumerate() {
                    *byte = self.space.read(address.wrapping_add(n as u64), 1) as u8;
                }
            }
        }
    }

    fn write(&self, address: u64, data: &[u8]) {
        let address = self.physical(address);
        match data.len() {
            1 | 2 | 4 | 8 => {
                let mut bytes = [0; 8];
                bytes[..data.len()].copy_from_slice(data);
                self.space.write(address, data.len() as u8, u64::from_le_bytes(bytes));
            }
            _ => {
                for (n, &byte) in data.iter().enumerate() {
                    self.space.write(address.wrapping_add(n as u64), 1, byte.into());
                }
            }
        }
    }
}
