//! The PC as a whole: what its devices do together.

mod common;

use std::sync::Arc;
use std::time::{Duration, Instant};

use common::config;
use tessera_hw::boards::pc::{
    BuildError, DebugExitConfig, LoaderMemory, MachineKind, PcConfig, PcMachine, layout,
};
use tessera_hw_core::backend::MemoryBackend;
use tessera_hw_core::clock::Clock;
use tessera_hw_core::event::MachineEvent;
use tessera_hw_core::mem::Region;
use tessera_hw_core::timers::TimerThread;

fn machine() -> (PcMachine, Arc<MemoryBackend>) {
    let (config, com1) = config(MachineKind::Pc, Clock::manual(1_000_000_000));
    (PcMachine::build(config).unwrap(), com1)
}

/// Lets time pass in small steps.
fn run(m: &PcMachine, ns: u64) {
    for _ in 0..ns / 10_000 {
        m.clock.advance(10_000);
        m.timers.run_expired();
    }
}

fn init_pics(m: &PcMachine, master_mask: u32) {
    for (port, base, cascade, mask) in [(0x20u16, 0x20, 4, master_mask), (0xa0, 0x28, 2, 0xff)] {
        m.ports.write(port, 1, 0x11);
        for v in [base, cascade, 1, mask] {
            m.ports.write(port + 1, 1, v);
        }
    }
}

fn ioapic_entry(m: &PcMachine, pin: u64, entry: u64) {
    let base = u64::from(layout::IOAPIC_BASE);
    for (i, v) in [(1, entry >> 32), (0, entry & 0xffff_ffff)] {
        m.address_space.write(base, 4, 0x10 + 2 * pin + i);
        m.address_space.write(base + 0x10, 4, v);
    }
}

fn apic(m: &PcMachine, reg: u64, value: u64) {
    m.address_space.write(u64::from(layout::LAPIC_BASE) + reg, 4, value);
}

#[test]
fn the_timer_reaches_the_cpu_through_the_8259s() {
    let (m, _) = machine();
    let cpu = m.cpus().next().unwrap();
    assert!(!cpu.pending(), "quiet after power-on");
    init_pics(&m, 0xfe);
    for (port, v) in [(0x43, 0x34), (0x40, 0x9c), (0x40, 0x2e)] {
        m.ports.write(port, 1, v);
    }
    let mut ticks = 0;
    for _ in 0..100 {
        run(&m, 1_000_000);
        while let Some(v) = cpu.acknowledge() {
            if v == 0x20 {
                ticks += 1;
            }
            m.ports.write(0x20, 1, 0x20);
        }
    }
    // 100 Hz for 100 ms, and the edge of the first count.
    assert!((9..=11).contains(&ticks), "{ticks}");
}

#[test]
fn the_timer_reaches_the_cpu_through_the_io_apic_at_input_2() {
    let (m, _) = machine();
    let cpu = m.cpus().next().unwrap();
    apic(&m, 0xf0, 0x1ff);
    ioapic_entry(&m, 2, 0x30);
    for (port, v) in [(0x43, 0x34), (0x40, 0x9c), (0x40, 0x2e)] {
        m.ports.write(port, 1, v);
    }
    run(&m, 11_000_000);
    assert_eq!(cpu.acknowledge(), Some(0x30));
    apic(&m, 0xb0, 0);
    run(&m, 11_000_000);
    assert_eq!(cpu.acknowledge(), Some(0x30));
}

#[test]
fn the_serial_port_interrupts_and_speaks() {
    let (m, com1) = machine();
    let cpu = m.cpus().next().unwrap();
    apic(&m, 0xf0, 0x1ff);
    ioapic_entry(&m, 4, 0x34);
    m.ports.write(0x3fa, 1, 1);
    m.ports.write(0x3f9, 1, 1);
    b"hi".iter().for_each(|&b| m.ports.write(0x3f8, 1, b.into()));
    assert_eq!(com1.take(), b"hi");
    assert_eq!(com1.send(b"x"), 1);
    assert_eq!(cpu.acknowledge(), Some(0x34));
    assert_eq!(m.ports.read(0x3f8, 1), u32::from(b'x'));
    assert_eq!(m.ports.read(0x3fd, 1), 0x60);
    assert_eq!(m.ports.read(0x3e8 + 5, 1), 0xff, "COM3 is not there");
    assert_eq!(m.platform().serial.len(), 2);
}

#[test]
fn level_interrupts_repeat_until_served() {
    let (m, _) = machine();
    let cpu = m.cpus().next().unwrap();
    apic(&m, 0xf0, 0x1ff);
    ioapic_entry(&m, 9, 0x8039);
    m.ports.write(0x602, 2, 0x0100);
    m.pm.press_power_button();
    assert_eq!(cpu.acknowledge(), Some(0x39));
    apic(&m, 0xb0, 0);
    assert_eq!(cpu.acknowledge(), Some(0x39), "not served: again");
    m.ports.write(0x600, 2, 0x0100);
    apic(&m, 0xb0, 0);
    assert_eq!(cpu.acknowledge(), None);
}

#[test]
fn every_clock_tells_the_same_time() {
    let (m, _) = machine();
    m.address_space.write(0xfed0_0010, 4, 1);
    let start = m.address_space.read(0xfed0_00f0, 8);
    let pm = m.ports.read(0x608, 4);
    // Counter 2 as a one-shot, as kernels calibrate by it.
    m.ports.write(0x61, 1, 1);
    for (port, v) in [(0x43, 0xb0), (0x42, 0xff), (0x42, 0xff)] {
        m.ports.write(port, 1, v);
    }
    m.clock.advance(50_000_000);
    assert_eq!(m.address_space.read(0xfed0_00f0, 8) - start, 5_000_000);
    assert_eq!(m.ports.read(0x608, 4) - pm, 178_977);
    let low = m.ports.read(0x42, 1);
    let count = 0xffff - (low | m.ports.read(0x42, 1) << 8);
    assert_eq!(count, 59_659, "50 ms at 1.193182 MHz");
    assert_eq!(m.clock.tsc(), 50_000_000);
}

#[test]
fn memory_is_where_a_pc_has_it() {
    let (mut config, _) = config(MachineKind::Pc, Clock::manual(1));
    config.ram = 5 << 30;
    config.rom = Some((0..0x1_0000u32).map(|i| (i >> 8) as u8).collect());
    let m = PcMachine::build(config).unwrap();
    let s = &m.address_space;
    assert!(matches!(s.lookup(0x9_fff0), Region::Ram { len: 0x10, writable: true, .. }));
    assert!(matches!(s.lookup(0xa_0000), Region::Unmapped { len: 0x2_0000 }));
    assert!(matches!(s.lookup(0xc_0000), Region::Ram { writable: true, .. }));
    assert!(matches!(s.lookup(0xc000_0000), Region::Unmapped { .. }), "the hole begins at 3 GiB");
    assert!(matches!(s.lookup(1 << 32), Region::Ram { offset: 0xc000_0000, .. }));
    assert!(matches!(s.lookup((6 << 30) - 1), Region::Ram { len: 1, .. }));
    assert!(matches!(s.lookup(6 << 30), Region::Unmapped { .. }));
    assert_eq!(s.read(0xffff_fff0, 1), 0xff);
    assert_eq!(s.read(0xf_1200, 1), 0x12, "and below 1 MiB");
    s.write(0xf_1200, 1, 0);
    m.reset();
    assert_eq!(s.read(0xf_1200, 1), 0x12);
    let mut loader = LoaderMemory(s);
    use tessera_firmware::GuestMemory;
    assert!(loader.write(0x9_fffe, &[1, 2]).is_ok());
    assert!(loader.write(0x9_ffff, &[1, 2]).is_err());
    assert!(loader.write(0xffff_0000, &[1]).is_err(), "ROM");
    assert!(loader.write(u64::MAX, &[1, 2]).is_err());
}

#[test]
fn q35_has_the_configuration_window_and_its_bridges() {
    let (config, _) = config(MachineKind::Q35, Clock::manual(1));
    let m = PcMachine::build(config).unwrap();
    assert_eq!(m.address_space.read(layout::MCFG_BASE, 4), 0x29c0_8086);
    m.ports.write(0xcf8, 4, 0x8000_f800);
    assert_eq!(m.ports.read(0xcfc, 4), 0x2918_8086);
    m.ports.write(0xcf9, 1, 0x0f);
    assert_eq!(m.events.take(), Some(MachineEvent::Reset));
    assert_eq!(m.ports.read(0xcf8, 4), 0x8000_f800, "the byte at 0xCF9 is another register");
}

#[test]
fn the_guest_can_end_and_move_things() {
    let (m, _) = machine();
    let cpu = m.cpus().next().unwrap();
    let kicked = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let flag = kicked.clone();
    cpu.set_kick(Arc::new(move || flag.store(true, std::sync::atomic::Ordering::Relaxed)));
    m.ports.write(0x604, 2, 0x2000);
    assert_eq!(m.events.take(), Some(MachineEvent::Shutdown));
    assert!(kicked.load(std::sync::atomic::Ordering::Relaxed), "the vCPU is to look");
    m.ports.write(0xf4, 1, 3);
    assert_eq!(m.events.take(), Some(MachineEvent::DebugExit(7)));
    m.ports.write(0x64, 1, 0xfe);
    assert_eq!(m.events.take(), Some(MachineEvent::Reset));
    // The APIC's page moves, over RAM too.
    cpu.set_apic_base(0x10_0900).unwrap();
    assert_eq!(m.address_space.read(0x10_0030, 4), 0x0005_0014);
    assert_eq!(m.address_space.read(0xfee0_0030, 4), 0xffff_ffff);
    m.reset();
    assert_eq!(m.address_space.read(0xfee0_0030, 4), 0x0005_0014);
    assert_eq!(m.address_space.read(0x10_0030, 4), 0);
    m.inject_nmi();
    assert!(cpu.take_nmi());
}

#[test]
fn state_is_saved_and_restored_whole() {
    let (m, _) = machine();
    let cpu = m.cpus().next().unwrap();
    apic(&m, 0xf0, 0x1ff);
    apic(&m, 0x3e0, 0xb);
    apic(&m, 0x320, 0x2_0040);
    apic(&m, 0x380, 1_000_000);
    m.ports.write(0x92, 1, 0);
    run(&m, 500_000);
    m.pause();
    let saved = m.save();
    let (other, _) = machine();
    other.pause();
    other.restore(&saved).unwrap();
    // Taking a state over also catches up with the clock, so the original is made to do the same.
    m.restore(&saved).unwrap();
    for (a, b) in m.save().iter().zip(other.save()) {
        assert!(*a == b, "{} differs", b.name);
    }
    assert!(!other.a20.enabled());
    other.resume();
    run(&other, 600_000);
    assert_eq!(other.cpus().next().unwrap().acknowledge(), Some(0x40), "the timer goes on");
    assert_eq!(cpu.acknowledge(), None);
    for i in 0..saved.len() {
        let mut cut = saved.clone();
        cut[i].data.pop();
        assert!(other.restore(&cut).is_err(), "{}", cut[i].name);
        cut.remove(i);
        assert!(other.restore(&cut).is_err());
    }
}

#[test]
fn refuses_impossible_machines() {
    let build = |f: fn(&mut PcConfig)| {
        let mut c = PcConfig { clock: Arc::new(Clock::manual(1)), ..PcConfig::new(1 << 20) };
        f(&mut c);
        PcMachine::build(c).err()
    };
    assert!(build(|_| {}).is_none());
    assert!(matches!(build(|c| c.cpus = 0), Some(BuildError::Cpus(0))));
    assert!(matches!(build(|c| c.cpus = 256), Some(BuildError::Cpus(256))));
    assert!(matches!(build(|c| c.ram = u64::MAX), Some(BuildError::TooMuchRam(_))));
    assert!(matches!(build(|c| c.ram = 1 << 50), Some(BuildError::Ram(..))));
    assert!(matches!(build(|c| c.rom = Some(vec![0; 100])), Some(BuildError::RomSize(100))));
    assert!(matches!(
        build(|c| c.debug_exit = vec![DebugExitConfig { iosize: 3, ..Default::default() }]),
        Some(BuildError::DebugExitSize(3))
    ));
}

#[test]
fn the_timer_thread_does_not_spin_on_tiny_periods() {
    let (config, _) = config(MachineKind::Pc, Clock::host());
    let m = PcMachine::build(config).unwrap();
    let _timers = TimerThread::spawn(m.timers.clone()).unwrap();
    let kicks = Arc::new(std::sync::atomic::AtomicU32::new(0));
    let counted = kicks.clone();
    let cpu = m.cpus().next().unwrap();
    cpu.set_kick(Arc::new(move || {
        counted.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    }));
    apic(&m, 0xf0, 0x1ff);
    apic(&m, 0x3e0, 0xb);
    apic(&m, 0x320, 0x2_0040);
    apic(&m, 0x380, 1);
    let until = Instant::now() + Duration::from_millis(100);
    while Instant::now() < until {
        if cpu.acknowledge().is_some() {
            apic(&m, 0xb0, 0);
        }
        std::thread::yield_now();
    }
    let n = kicks.load(std::sync::atomic::Ordering::Relaxed);
    assert!((1..=100_000 / 20 + 1).contains(&n), "{n} interrupts in 100 ms of a period of 1 ns");
}
