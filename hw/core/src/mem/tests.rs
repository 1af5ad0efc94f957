use std::sync::Mutex;

use super::*;
use crate::lock;

/// Registers that remember writes and answer reads with their offset.
#[derive(Default)]
struct Probe(Mutex<Vec<(u64, u8, u64)>>);

impl MmioDevice for Probe {
    fn read(&self, offset: u64, size: u8) -> u64 {
        offset << 8 | u64::from(size)
    }
    fn write(&self, offset: u64, size: u8, value: u64) {
        lock(&self.0).push((offset, size, value));
    }
}

#[derive(Default)]
struct Seen(Mutex<(Vec<(u64, u64)>, u32)>);

impl MemoryObserver for Seen {
    fn on_dma_write(&self, phys: u64, len: u64) {
        lock(&self.0).0.push((phys, len));
    }
    fn on_map_change(&self) {
        lock(&self.0).1 += 1;
    }
}

fn space() -> (AddressSpace, Arc<GuestRam>, Arc<Probe>) {
    let s = AddressSpace::new();
    let ram = Arc::new(GuestRam::new(0x10000).unwrap());
    s.map_memory(0, 0x8000, &ram, 0, true, 0).unwrap();
    s.map_memory(0x10_0000, 0x8000, &ram, 0x8000, true, 0).unwrap();
    s.set_fast_ram(&[(0x10_0000, 0x8000)]);
    let probe = Arc::new(Probe::default());
    let id = s.add_mmio(probe.clone()).unwrap();
    s.map_mmio(0x8000, 0x1000, id, 0).unwrap();
    (s, ram, probe)
}

#[test]
fn finds_ram_registers_and_holes() {
    let (s, ram, probe) = space();
    assert!(matches!(s.lookup(0x7ff0), Region::Ram { offset: 0x7ff0, len: 0x10, writable: true, .. }));
    assert!(matches!(s.lookup(0x10_0010), Region::Ram { offset: 0x8010, len: 0x7ff0, .. }));
    assert!(matches!(s.lookup(0x8004), Region::Mmio { offset: 4, len: 0xffc, .. }));
    assert!(matches!(s.lookup(0x9000), Region::Unmapped { len: 0xf_7000 }));
    assert!(matches!(s.lookup(u64::MAX), Region::Unmapped { len: 1 }));
    s.write(0x10_0010, 8, 0x1122_3344_5566_7788);
    assert_eq!(ram.read(0x8010, 8), Some(0x1122_3344_5566_7788));
    assert_eq!(s.read(0x8010, 4), 0x1004);
    assert_eq!(s.read(0x9000, 2), 0xffff);
    s.write(0x8020, 2, 0xabcd_1234);
    assert_eq!(*lock(&probe.0), [(0x20, 2, 0x1234)]);
}

#[test]
fn splits_what_crosses_regions() {
    let (s, ram, probe) = space();
    s.write(0x7ffe, 4, 0xaabb_ccdd);
    assert_eq!(ram.read(0x7ffe, 2), Some(0xccdd));
    assert_eq!(*lock(&probe.0), [(0, 1, 0xbb), (1, 1, 0xaa)]);
    assert_eq!(s.read(0x10_7ffe, 4), 0xffff_0000, "two bytes of RAM, then nothing");
    assert_eq!(s.read(u64::MAX, 8) & 0xff, 0xff);
}

#[test]
fn overlays_show_and_go() {
    let (s, ram, _) = space();
    ram.write(0x9000, 4, 0x1234_5678);
    let rom = Arc::new(GuestRam::new(0x1000).unwrap());
    rom.write(0, 4, 0xdead_beef);
    let id = s.map_memory(0x10_1000, 0x1000, &rom, 0, false, 1).unwrap();
    assert_eq!(s.read(0x10_1000, 4), 0xdead_beef);
    s.write(0x10_1000, 4, 0);
    assert_eq!(s.read(0x10_1000, 4), 0xdead_beef, "ROM keeps its bytes");
    assert!(matches!(s.lookup(0x10_0000), Region::Ram { len: 0x1000, .. }));
    assert!(s.move_mapping(id, 0x10_2000));
    assert_eq!(s.read(0x10_1000, 4), 0x1234_5678);
    assert_eq!(s.read(0x10_2000, 4), 0xdead_beef);
    assert!(s.unmap(id));
    assert!(!s.unmap(id));
    assert!(matches!(s.lookup(0x10_2000), Region::Ram { offset: 0xa000, len: 0x6000, writable: true, .. }));
}

#[test]
fn dma_reaches_ram_and_tells_the_observer() {
    let (s, _, probe) = space();
    let seen = Arc::new(Seen::default());
    s.set_observer(seen.clone());
    let data: Vec<u8> = (1..=8).collect();
    s.write_bytes(0x7ffc, &data);
    assert_eq!(*lock(&probe.0), [(0, 4, 0x0807_0605)]);
    assert_eq!(lock(&seen.0).0, [(0x7ffc, 4)]);
    let mut back = [0; 8];
    s.read_bytes(0x7ffc, &mut back);
    assert_eq!(back, [1, 2, 3, 4, 4, 0, 0, 0]);
    s.map_memory(0x20_0000, 0x1000, &Arc::new(GuestRam::new(0x1000).unwrap()), 0, true, 0).unwrap();
    assert_eq!(lock(&seen.0).1, 1);
}

#[test]
fn refuses_bad_ranges() {
    let (s, ram, _) = space();
    assert!(s.map_memory(0, 0x10001, &ram, 0, true, 0).is_err());
    assert!(s.map_memory(u64::MAX, 2, &ram, 0, true, 0).is_err());
    assert!(s.map_memory(0, 0, &ram, 0, true, 0).is_err());
    for _ in 1..MAX_MMIO {
        s.add_mmio(Arc::new(Probe::default())).unwrap();
    }
    assert_eq!(s.add_mmio(Arc::new(Probe::default())).unwrap_err(), MapError::Full);
}
