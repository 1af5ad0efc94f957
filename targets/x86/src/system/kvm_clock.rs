//! The paravirtual clock that guests of KVM know: two structures in guest memory that say how the time-stamp counter
//! becomes nanoseconds, and when the machine was started.
//!
//! A guest that finds KVM's signature in CPUID (leaf 40000000H) and the clock's feature bits behind it writes a physical
//! address to an MSR, and the structure appears there. It then reads the time with RDTSC and a multiplication, and needs no
//! calibration. Here the relation is fixed (both come from the machine's one clock), so the structure is written again
//! only when the guest moves its counter, or with the rest of a state.
//!
//! The structure's version is odd while it is written; a reader tries again when it was odd or has changed.
//!
//! Source: Linux, Documentation/virt/kvm/x86/msr.rst and cpuid.rst.

use super::Result;
use super::control;
use super::exception::gp;
use crate::state::X86Env;

/// MSRs.
pub mod index {
    /// Where the time of the start goes; the old number and the new one.
    pub const WALL_CLOCK: [u32; 2] = [0x11, 0x4b56_4d00];
    /// Where the time since the start goes, and bit 0 to switch it on.
    pub const SYSTEM_TIME: [u32; 2] = [0x12, 0x4b56_4d01];
}

/// What leaf 40000001H says in EAX: both pairs of MSRs, no need for delays by port 80H, and a clock that is the same on all
/// processors.
pub const FEATURES: u32 = 1 << 0 | 1 << 1 | 1 << 3 | 1 << 24;
/// What leaf 40000000H says in EBX, ECX and EDX.
pub const SIGNATURE: &[u8; 12] = b"KVMKVMKVM\0\0\0";

/// Bit 0 of the system time's MSR.
const ENABLED: u64 = 1;
/// Flag of the structure: the time is the same on all processors.
const STABLE: u8 = 1;

const NS_PER_SEC: u128 = 1_000_000_000;

/// The structures are 4-byte aligned and lie in memory that physical addresses reach.
fn check(env: &X86Env, address: u64) -> Result<()> {
    let beyond = u64::MAX << env.cpuid.phys_bits();
    if !env.cpuid.shows_kvm() || address & (beyond | 3) != 0 { Err(gp(0)) } else { Ok(()) }
}

/// Multiplier and shift by which a counter of `hz` becomes nanoseconds: `(count << shift) * multiplier >> 32`, a negative
/// shift being one to the right.
fn scale(hz: u64) -> (u32, i8) {
    let hz = u128::from(hz.max(1));
    for shift in -32i8..=63 {
        let (numerator, denominator) =
            if shift < 0 { (NS_PER_SEC << 32 << -shift, hz) } else { (NS_PER_SEC << 32, hz << shift) };
        // The first that fits has the most bits.
        if let Ok(multiplier) = u32::try_from(numerator / denominator) {
            return (multiplier, shift);
        }
    }
    (0, 0)
}

/// Nanoseconds of machine time.
fn machine_ns(env: &mut X86Env) -> u64 {
    let tsc = u128::from(env.platform.tsc());
    (tsc * NS_PER_SEC / u128::from(env.platform.tsc_hz().max(1))) as u64
}

/// Writes a structure that begins with its version.
fn publish(env: &mut X86Env, address: u64, body: &[u8]) {
    env.kvm_clock_version = env.kvm_clock_version.wrapping_add(2);
    let version = env.kvm_clock_version;
    env.platform.write_physical(address, &(version | 1).to_le_bytes());
    env.platform.write_physical(address + 4, body);
    env.platform.write_physical(address, &version.to_le_bytes());
}

/// WRMSR of the wall clock's address: the structure is written once.
pub fn write_wall_clock(env: &mut X86Env, address: u64) -> Result<()> {
    check(env, address)?;
    env.msr.kvm_wall_clock = address;
    let start = env.platform.wall_ns().saturating_sub(machine_ns(env));
    let seconds = (start / NS_PER_SEC as u64) as u32;
    let rest = (start % NS_PER_SEC as u64) as u32;
    publish(env, address, &[seconds.to_le_bytes(), rest.to_le_bytes()].concat());
    Ok(())
}

/// WRMSR of the system time's address.
pub fn write_system_time(env: &mut X86Env, value: u64) -> Result<()> {
    check(env, value & !ENABLED)?;
    env.msr.kvm_system_time = value;
    refresh(env);
    Ok(())
}

/// Writes the system time again, if the guest has it: after a change of the guest's time-stamp counter.
pub fn refresh(env: &mut X86Env) {
    let value = env.msr.kvm_system_time;
    if value & ENABLED == 0 {
        return;
    }
    let (multiplier, shift) = scale(env.platform.tsc_hz());
    let ns = machine_ns(env);
    let tsc = control::tsc(env);
    let mut body = [0; 28];
    body[4..12].copy_from_slice(&tsc.to_le_bytes());
    body[12..20].copy_from_slice(&ns.to_le_bytes());
    body[20..24].copy_from_slice(&multiplier.to_le_bytes());
    body[24] = shift as u8;
    body[25] = STABLE;
    publish(env, value & !ENABLED, &body);
}

/// RDMSR of either.
pub fn read(env: &X86Env, msr: u32) -> Result<u64> {
    check(env, 0)?;
    Ok(if index::WALL_CLOCK.contains(&msr) { env.msr.kvm_wall_clock } else { env.msr.kvm_system_time })
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::super::msr;
    use super::*;
    use crate::cpuid::{self, Dynamic};
    use crate::platform::{InvalidMsr, Platform};

    /// A machine with a clock that the test moves, and 64 bytes of memory at 0x1000.
    #[derive(Clone)]
    struct Machine(Arc<Mutex<(u64, [u8; 64])>>);

    impl Machine {
        fn new() -> Machine {
            Machine(Arc::new(Mutex::new((0, [0; 64]))))
        }
    }

    const HZ: u64 = 2_599_996_219;

    impl Platform for Machine {
        fn tsc(&mut self) -> u64 {
            self.0.lock().unwrap().0
        }
        fn tsc_hz(&self) -> u64 {
            HZ
        }
        fn wall_ns(&mut self) -> u64 {
            1_600_000_000_500_000_000 + (u128::from(self.tsc()) * NS_PER_SEC / u128::from(HZ)) as u64
        }
        fn write_physical(&mut self, phys: u64, bytes: &[u8]) {
            let at = (phys - 0x1000) as usize;
            self.0.lock().unwrap().1[at..at + bytes.len()].copy_from_slice(bytes);
        }
        // A deadline that is not armed.
        fn apic_msr_read(&mut self, _: u32) -> std::result::Result<u64, InvalidMsr> {
            Ok(0)
        }
    }

    fn word(memory: &[u8; 64], at: usize) -> u64 {
        u64::from_le_bytes(std::array::from_fn(|i| memory[at + i]))
    }

    /// What a guest computes of the structure at a count.
    fn guest_ns(memory: &[u8; 64], tsc: u64) -> u64 {
        let (mul, shift) = (word(memory, 24) & 0xffff_ffff, memory[28] as i8);
        let delta = tsc.wrapping_sub(word(memory, 8));
        let delta = if shift < 0 { delta >> -shift } else { delta << shift };
        ((u128::from(delta) * u128::from(mul)) >> 32) as u64 + word(memory, 16)
    }

    #[test]
    fn a_guest_computes_the_machines_time() {
        for (number, cpu) in [(0, "max"), (1, "max"), (0, "qemu64")] {
            let machine = Machine::new();
            let mut env = X86Env::new(Box::new(machine.clone()), cpuid::parse(cpu).unwrap());
            machine.0.lock().unwrap().0 = 123_456_789_012;
            msr::write(&mut env, index::SYSTEM_TIME[number], 0x1000 | 1).unwrap();
            assert_eq!(msr::read(&mut env, index::SYSTEM_TIME[1 - number]).unwrap(), 0x1001, "one register");
            let first = machine.0.lock().unwrap().1;
            assert_eq!((first[0] & 1, first[29] & STABLE), (0, STABLE));
            // A day later the multiplier's error is below 100 microseconds.
            let later = 123_456_789_012 + 86_400 * HZ;
            machine.0.lock().unwrap().0 = later;
            let (guest, real) = (guest_ns(&first, later), machine_ns(&mut env));
            assert!(guest.abs_diff(real) < 100_000, "{guest} {real}");
            // The guest moves its counter: the structure follows.
            msr::write(&mut env, msr::index::TSC, 5).unwrap();
            let second = machine.0.lock().unwrap().1;
            assert_ne!(second[..4], first[..4], "the version has changed");
            assert!(guest_ns(&second, 5).abs_diff(real) < 1000);
        }
    }

    #[test]
    fn the_wall_clock_is_the_time_of_the_start() {
        let machine = Machine::new();
        let mut env = X86Env::new(Box::new(machine.clone()), cpuid::parse("max").unwrap());
        machine.0.lock().unwrap().0 = 77 * HZ;
        msr::write(&mut env, index::WALL_CLOCK[1], 0x1010).unwrap();
        let memory = machine.0.lock().unwrap().1;
        assert_eq!((word(&memory, 16) & 1, word(&memory, 20)), (0, 1_600_000_000 | 500_000_000 << 32));
    }

    #[test]
    fn what_is_hidden_is_not_there() {
        for cpu in ["max,kvm=off", "max,-hypervisor"] {
            let mut env = X86Env::new(Box::new(Machine::new()), cpuid::parse(cpu).unwrap());
            for register in index::WALL_CLOCK.into_iter().chain(index::SYSTEM_TIME) {
                assert!(msr::write(&mut env, register, 0x1000).is_err(), "{cpu}");
                assert!(msr::read(&mut env, register).is_err(), "{cpu}");
            }
            let leaf = env.cpuid.query(0x4000_0000, 0, &Dynamic::default());
            assert!(leaf[1] != u32::from_le_bytes(*b"KVMK"), "{cpu}: {leaf:x?}");
        }
        let mut env = X86Env::new(Box::new(Machine::new()), cpuid::parse("max").unwrap());
        let leaves = [0, 1].map(|n| env.cpuid.query(0x4000_0000 + n, 0, &Dynamic::default()));
        assert_eq!(leaves[0][..2], [0x4000_0001, u32::from_le_bytes(*b"KVMK")]);
        assert_eq!(leaves[1], [FEATURES, 0, 0, 0]);
        // Misaligned, or beyond the physical addresses.
        assert!(msr::write(&mut env, index::WALL_CLOCK[0], 0x1002).is_err());
        assert!(msr::write(&mut env, index::SYSTEM_TIME[0], 1 << 60 | 1).is_err());
    }

    #[test]
    fn frequencies_are_scaled() {
        for hz in [1, 1000, 999_999_999, 1_000_000_000, 1_000_000_001, 2_600_000_000, 19_200_000_000] {
            let (multiplier, shift) = scale(hz);
            let second = if shift < 0 { u128::from(hz) >> -shift } else { u128::from(hz) << shift };
            let ns = (second * u128::from(multiplier)) >> 32;
            assert!(ns.abs_diff(NS_PER_SEC) <= 8, "{hz}: {ns}");
        }
    }
}
