//! Prints what the hot device paths cost: `cargo run --release -p tessera-hw --example hot_paths`.

use std::sync::Arc;
use std::time::Instant;

use tessera_hw::boards::pc::{PcConfig, PcMachine};
use tessera_hw_core::backend::NullBackend;
use tessera_hw_core::cpu::CpuIrq;
use tessera_hw_core::timers::TimerThread;

fn time(what: &str, mut f: impl FnMut()) {
    const N: u32 = 1_000_000;
    let start = Instant::now();
    (0..N).for_each(|_| f());
    println!("{what:<40} {:>7.1} ns", start.elapsed().as_nanos() as f64 / f64::from(N));
}

fn main() {
    let mut config = PcConfig::new(256 << 20);
    config.serial[0] = Some(Arc::new(NullBackend));
    let m = PcMachine::build(config).expect("a machine");
    let _timers = TimerThread::spawn(m.timers.clone()).expect("a timer thread");
    let cpu: Arc<dyn CpuIrq> = m.cpus().next().expect("a CPU");
    let s = &m.address_space;
    s.write(0xfee0_00f0, 4, 0x1ff);
    s.write(0xfed0_0010, 4, 1);
    let mut sum = 0u64;
    time("clock: TSC", || sum = sum.wrapping_add(m.clock.tsc()));
    time("clock: nanoseconds", || sum = sum.wrapping_add(m.clock.now_ns()));
    time("RAM lookup", || {
        s.lookup(0x100_0000 + (sum & 0xfff));
    });
    time("serial: read LSR", || sum += u64::from(m.ports.read(0x3fd, 1)));
    time("serial: write THR", || m.ports.write(0x3f8, 1, 0x41));
    time("PM timer", || sum += u64::from(m.ports.read(0x608, 4)));
    time("HPET counter", || sum = sum.wrapping_add(s.read(0xfed0_00f0, 4)));
    time("local APIC: TPR write (page)", || s.write(0xfee0_0080, 4, 0));
    time("local APIC: EOI (page)", || s.write(0xfee0_00b0, 4, 0));
    time("local APIC: CR8 write", || cpu.set_cr8(0));
    s.write(0xfee0_0320, 4, 0x4_00ec);
    let far = m.clock.tsc_hz() * 3600;
    time("local APIC: TSC deadline, later", || cpu.set_tsc_deadline(m.clock.tsc() + far));
    s.write(0xfee0_0320, 4, 0x1_00ec);
    time("self IPI, acknowledge, EOI", || {
        s.write(0xfee0_0300, 4, 0x4_00f0);
        cpu.acknowledge();
        s.write(0xfee0_00b0, 4, 0);
    });
    assert_ne!(sum, 1);
}
