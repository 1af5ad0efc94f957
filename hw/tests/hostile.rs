//! A guest that does anything it can to every port and every register, with random widths and values: nothing panics, hangs or
//! grows. One process and one test, since it watches the memory of the whole process.

mod common;

use std::time::{Duration, Instant};

use common::config;
use tessera_hw::boards::pc::{MachineKind, PcMachine, layout};
use tessera_hw_core::clock::Clock;
use tessera_hw_core::timers::TimerThread;

#[test]
fn survives_hostile_guests() {
    survives_a_hostile_guest();
    survives_hostile_vcpus_on_the_host_clock();
}

/// Numbers from a seed (xorshift64*).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }
    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
    /// Random, or one of the values at which things happen.
    fn value(&mut self) -> u64 {
        let bit = 1 << self.below(64);
        match self.below(6) {
            0 => 0,
            1 => u64::MAX,
            2 => bit,
            3 => self.below(16),
            _ => self.next(),
        }
    }
}

/// Not known here; then growth is not looked for.
#[cfg(not(target_os = "linux"))]
fn resident() -> u64 {
    0
}

/// Resident memory of this process in bytes.
#[cfg(target_os = "linux")]
fn resident() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    statm.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4096
}

/// Does to the machine what a hostile guest can: anything to every port and register.
fn torment(m: &PcMachine, r: &mut Random) {
    let cpus: Vec<_> = m.cpus().collect();
    let pages = [0xfee0_0000u64, 0xfec0_0000, 0xfed0_0000, layout::MCFG_BASE, 0xf_0000, 0x9_f000, 0xb_f000];
    let blocks: [(u16, u64); 16] = [
        (0x20, 2),
        (0xa0, 2),
        (0x4d0, 2),
        (0x40, 4),
        (0x60, 5),
        (0x70, 2),
        (0x80, 32),
        (0x92, 1),
        (0x3f8, 8),
        (0x2f8, 8),
        (0x600, 16),
        (0xcf8, 8),
        (0xe9, 1),
        (0x402, 1),
        (0xf4, 4),
        (0, 0x1_0000),
    ];
    let size = 1u8 << r.below(4);
    match r.below(16) {
        0..7 => {
            let (base, len) = blocks[r.below(16) as usize];
            let (port, size) = (base.wrapping_add(r.below(len) as u16), size.min(4));
            if r.below(2) == 0 {
                m.ports.read(port, size);
            } else {
                m.ports.write(port, size, r.value() as u32)
            }
        }
        7..13 => {
            let at =
                pages[r.below(7) as usize] + if r.below(8) == 0 { r.below(0x1008) } else { r.below(64) << 4 };
            if r.below(2) == 0 {
                m.address_space.read(at, size);
            } else {
                m.address_space.write(at, size, r.value())
            }
        }
        13 => {
            let cpu = &cpus[r.below(cpus.len() as u64) as usize];
            let msr = 0x800 + r.below(0x100) as u32;
            match r.below(8) {
                0 => drop(cpu.read_x2apic(msr)),
                1 => drop(cpu.write_x2apic(msr, r.value())),
                2 => cpu.set_tsc_deadline(r.value()),
                3 => cpu.set_cr8(r.value() as u8),
                4 if r.below(64) == 0 => drop(cpu.set_apic_base(r.value() & 0xf_ffff_ffff_ffff)),
                5 => cpu.set_tsc_offset(r.value()),
                _ => {
                    let _ = (cpu.tsc_deadline(), cpu.apic_id(), cpu.apic_base());
                }
            }
        }
        14 => {
            for cpu in &cpus {
                let _ = (cpu.acknowledge(), cpu.take_nmi(), cpu.take_init(), cpu.take_sipi());
            }
            m.ports.write(0x20, 1, 0x20);
            m.ports.write(0xa0, 1, 0x20);
        }
        _ => {
            m.clock.advance(match r.below(8) {
                0 => r.below(1 << 36),
                _ => r.below(1 << 20),
            });
            m.timers.run_expired();
            let _ = m.events.take();
        }
    }
}

fn survives_a_hostile_guest() {
    for (seed, kind) in [(1u64, MachineKind::Pc), (2, MachineKind::Q35)] {
        let (mut config, com1) = config(kind, Clock::manual(2_600_000_000));
        config.cpus = 3;
        let m = PcMachine::build(config).unwrap();
        let mut r = Random(0x9e37_79b9_7f4a_7c15 ^ seed);
        let mut before = 0;
        let started = Instant::now();
        for round in 0..150 {
            for _ in 0..20_000 {
                torment(&m, &mut r);
            }
            com1.send(&[r.next() as u8; 3]);
            com1.take();
            let saved = m.save();
            if r.below(4) == 0 {
                m.restore(&saved).expect("what it saves it takes");
            }
            if round % 8 == 7 {
                m.reset();
            }
            if round == 4 {
                before = resident();
            }
        }
        assert!(resident() < before + (1 << 20), "memory grew from {before} to {}", resident());
        assert!(started.elapsed() < Duration::from_secs(60));
    }
}

fn survives_hostile_vcpus_on_the_host_clock() {
    let (mut config, com1) = config(MachineKind::Pc, Clock::host());
    config.cpus = 2;
    let m = PcMachine::build(config).unwrap();
    let mut timers = TimerThread::spawn(m.timers.clone()).unwrap();
    let until = Instant::now() + Duration::from_millis(700);
    std::thread::scope(|s| {
        for cpu in 0..2 {
            let m = &m;
            s.spawn(move || {
                tessera_hw_core::cpu::set_current(cpu);
                let mut r = Random(77 + u64::from(cpu));
                while Instant::now() < until {
                    (0..1000).for_each(|_| torment(m, &mut r));
                }
            });
        }
        s.spawn(|| {
            while Instant::now() < until {
                com1.send(b"abc");
                com1.take();
                std::thread::sleep(Duration::from_millis(1));
            }
        });
    });
    timers.stop();
    // Whatever they did, a reset machine works.
    m.reset();
    m.ports.write(0x3f8, 1, b'!'.into());
    assert!(com1.take().contains(&b'!'));
}
