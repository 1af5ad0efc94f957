use std::process::Command;

use super::*;
use crate::platform::{COM_PORTS, MachineKind, RamLayout};

const MIB: u64 = 1 << 20;

/// Only the ranges that were written, so that a guest of many GiB costs nothing.
#[derive(Default)]
struct Sparse(Vec<(u64, Vec<u8>)>);

impl GuestMemory for Sparse {
    fn write(&mut self, addr: u64, data: &[u8]) -> Result<(), MemoryError> {
        self.0.push((addr, data.to_vec()));
        Ok(())
    }
}

impl Sparse {
    fn at(&self, addr: u64, len: usize) -> &[u8] {
        let (start, data) = self
            .0
            .iter()
            .find(|(start, data)| (*start..*start + data.len() as u64).contains(&addr))
            .unwrap_or_else(|| panic!("nothing at {addr:#x}"));
        &data[(addr - start) as usize..][..len]
    }

    fn u32_at(&self, addr: u64) -> u32 {
        u32::from_le_bytes(*self.at(addr, 4).first_chunk().unwrap())
    }

    /// An ACPI table, its length and checksum verified.
    fn table(&self, addr: u64) -> &[u8] {
        let table = self.at(addr, self.u32_at(addr + 4) as usize);
        assert_eq!(sum(table), 0, "checksum of {}", String::from_utf8_lossy(&table[..4]));
        table
    }

    /// All tables by way of RSDP and XSDT, RSDT compared: signature and bytes, the DSDT last.
    fn acpi(&self) -> Vec<(String, Vec<u8>)> {
        let rsdp = self.at(RSDP_ADDR, 36);
        assert_eq!(&rsdp[..8], b"RSD PTR ");
        assert_eq!((sum(&rsdp[..20]), sum(rsdp)), (0, 0));
        let rsdt = self.table(u64::from(self.u32_at(RSDP_ADDR + 16)));
        let xsdt = self.table(u64::from(self.u32_at(RSDP_ADDR + 24)));
        assert_eq!((rsdt.len() - 36) * 2, xsdt.len() - 36);
        let mut found = Vec::new();
        for (short, long) in rsdt[36..].chunks(4).zip(xsdt[36..].chunks(8)) {
            assert_eq!((short, [0; 4].as_slice()), (&long[..4], &long[4..]));
            let table = self.table(u64::from(u32::from_le_bytes(*short.first_chunk().unwrap())));
            found.push((String::from_utf8(table[..4].to_vec()).unwrap(), table.to_vec()));
        }
        let fadt = &found[0].1;
        assert_eq!(fadt[40..44], fadt[140..144], "DSDT and X_DSDT");
        let dsdt = self.table(u64::from(u32::from_le_bytes(*fadt[40..].first_chunk().unwrap())));
        let facs = u64::from(u32::from_le_bytes(*fadt[36..].first_chunk().unwrap()));
        assert_eq!((self.at(facs, 4), facs % 64), (b"FACS".as_slice(), 0));
        found.push(("DSDT".into(), dsdt.to_vec()));
        found
    }
}

fn sum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |sum, &byte| sum.wrapping_add(byte))
}

fn built(info: &PlatformInfo) -> Sparse {
    let mut mem = Sparse::default();
    assert_eq!(build(&mut mem, info), Ok(RSDP_ADDR));
    mem
}

fn machines() -> Vec<PlatformInfo> {
    let pc = PlatformInfo::new(MachineKind::Pc, RamLayout::for_machine(MachineKind::Pc, 512 * MIB), 1);
    let q35 = PlatformInfo::new(MachineKind::Q35, RamLayout::for_machine(MachineKind::Q35, 8192 * MIB), 4);
    let mut many = q35.clone();
    many.apic_ids = (0..300).collect();
    many.serial = COM_PORTS.to_vec();
    let mut bare = pc.clone();
    bare.pci = false;
    bare.hpet = false;
    bare.i8042 = false;
    bare.serial.clear();
    vec![pc, q35, many, bare]
}

#[test]
fn acpi_tables_are_reachable_and_sum_to_zero() {
    let names = |info| -> Vec<String> { built(info).acpi().into_iter().map(|table| table.0).collect() };
    let machines = machines();
    assert_eq!(names(&machines[0]), ["FACP", "APIC", "HPET", "DSDT"]);
    assert_eq!(names(&machines[1]), ["FACP", "APIC", "HPET", "MCFG", "DSDT"]);
    assert_eq!(names(&machines[3]), ["FACP", "APIC", "DSDT"]);
}

#[test]
fn tables_lie_where_the_memory_map_has_no_usable_ram() {
    for info in machines() {
        let map = crate::e820::build(info.machine, &info.ram);
        for (addr, data) in &built(&info).0 {
            let end = addr + data.len() as u64;
            let inside = map.iter().find(|entry| entry.addr <= *addr && end <= entry.end());
            let kind = inside.unwrap_or_else(|| panic!("{addr:#x} is in no entry")).kind;
            assert_ne!(kind, crate::e820::E820Type::Ram, "{addr:#x}");
        }
    }
}

#[test]
fn the_fadt_names_the_fixed_hardware() {
    let fadt = built(&machines()[0]).acpi().remove(0).1;
    let u32_at = |at: usize| u32::from_le_bytes(*fadt[at..].first_chunk().unwrap());
    assert_eq!(fadt.len(), 276);
    assert_eq!([u32_at(56), u32_at(64), u32_at(76)], [0x600, 0x604, 0x608]);
    assert_eq!(u32_at(48), 0, "no SMI command port");
    assert_eq!(u32_at(112) & (1 << 10 | 1 << 8), 1 << 10 | 1 << 8, "reset register, 32-bit timer");
    assert_eq!(&fadt[116..128], [1, 8, 0, 1, 0xF9, 0x0C, 0, 0, 0, 0, 0, 0]);
    assert_eq!(fadt[128], 0x0F);
    assert_eq!(u16::from_le_bytes([fadt[109], fadt[110]]), 0b111);
}

#[test]
fn the_madt_lists_every_processor_once() {
    let mem = built(&machines()[2]);
    let madt = mem.acpi().remove(1).1;
    let (mut at, mut ids, mut overrides) = (44, Vec::new(), Vec::new());
    while at < madt.len() {
        let entry = &madt[at..at + usize::from(madt[at + 1])];
        match entry[0] {
            0 => ids.push(u32::from(entry[3])),
            9 => ids.push(u32::from_le_bytes(*entry[4..].first_chunk().unwrap())),
            2 => overrides.push((entry[3], entry[4], entry[8])),
            _ => {}
        }
        at += entry.len();
    }
    assert_eq!(at, madt.len());
    assert_eq!(ids, (0..300).collect::<Vec<u32>>());
    assert_eq!(overrides, [(0, 2, 0), (9, 9, 0xD)]);
}

#[test]
fn the_mp_table_counts_its_entries() {
    for info in machines() {
        let mem = built(&info);
        let pointer = mem.at(MP_POINTER, 16);
        assert_eq!((&pointer[..4], sum(pointer)), (b"_MP_".as_slice(), 0));
        let head = mem.at(MP_TABLE, 44);
        let length = usize::from(u16::from_le_bytes([head[4], head[5]]));
        let table = mem.at(MP_TABLE, length);
        assert_eq!((&table[..4], sum(table)), (b"PCMP".as_slice(), 0));
        let (mut at, mut count) = (44, 0);
        while at < length {
            at += if table[at] == 0 { 20 } else { 8 };
            count += 1;
        }
        assert_eq!((at, count), (length, u16::from_le_bytes([table[34], table[35]])));
    }
}

#[test]
fn smbios_structures_can_be_walked() {
    for info in machines() {
        let mem = built(&info);
        let anchor = mem.at(SMBIOS_ANCHOR, 31);
        assert_eq!((sum(anchor), sum(&anchor[16..])), (0, 0));
        assert_eq!((&anchor[..4], &anchor[16..21]), (b"_SM_".as_slice(), b"_DMI_".as_slice()));
        let length = usize::from(u16::from_le_bytes([anchor[22], anchor[23]]));
        let table = mem.at(SMBIOS_TABLE, length);
        let (mut at, mut kinds) = (0, Vec::new());
        while at < length {
            kinds.push(table[at]);
            at += usize::from(table[at + 1]);
            at += table[at..].windows(2).position(|pair| pair == [0, 0]).expect("end of strings") + 2;
        }
        assert_eq!(at, length);
        assert_eq!(kinds.len(), usize::from(u16::from_le_bytes([anchor[28], anchor[29]])));
        kinds.dedup();
        assert_eq!(kinds, [0, 1, 3, 4, 16, 17, 19, 32, 127]);
        // Lengths that SMBIOS 2.8 prescribes.
        assert_eq!(table[1], 0x18);
    }
}

#[test]
fn what_cannot_be_described_is_an_error() {
    let mut mem = Sparse::default();
    let mut info = machines().remove(0);
    info.apic_ids.clear();
    assert_eq!(build(&mut mem, &info), Err(TablesError::CpuCount(0)));
    info.apic_ids = (0..2000).collect();
    assert_eq!(build(&mut mem, &info), Err(TablesError::CpuCount(2000)));
    info.apic_ids = vec![0];
    info.ram.low = MIB;
    assert_eq!(build(&mut mem, &info), Err(TablesError::TooLittleRam { low: MIB }));
    assert!(mem.0.is_empty());
    info.ram = RamLayout { low: 3 << 30, high: 1 << 46 };
    info.apic_ids = (0..MAX_CPUS as u32).collect();
    assert_eq!(build(&mut mem, &info), Ok(RSDP_ADDR), "the largest machine fits");
}

/// Every table goes through Intel's disassembler, and the DSDT's listing back through its compiler, without an error or
/// a warning.
#[test]
fn iasl_accepts_every_table() {
    if Command::new("iasl").arg("-v").output().is_err() {
        eprintln!("skipped: iasl is not installed (Debian package acpica-tools)");
        return;
    }
    for (index, info) in machines().iter().enumerate() {
        let dir = std::env::temp_dir().join(format!("tessera-iasl-{}-{index}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        for (name, table) in built(info).acpi() {
            let file = dir.join(format!("{name}.aml"));
            std::fs::write(&file, &table).unwrap();
            let output = Command::new("iasl").arg("-d").arg(&file).output().unwrap();
            let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
            text += &String::from_utf8_lossy(&output.stderr);
            let listing = std::fs::read_to_string(file.with_extension("dsl")).unwrap_or_default();
            let bad =
                |text: &str| text.contains("rror") || text.contains("arning") || text.contains("nvalid");
            assert!(output.status.success() && !bad(&text) && !bad(&listing), "{name}: {text}\n{listing}");
            if name == "DSDT" {
                let output = Command::new("iasl").arg(file.with_extension("dsl")).output().unwrap();
                let text = String::from_utf8_lossy(&output.stdout).into_owned();
                assert!(text.contains("0 Errors, 0 Warnings"), "{name}: {text}\n{listing}");
            }
        }
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
