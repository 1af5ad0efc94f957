//! The DSDT's code: processors, the PCI root with its interrupt links, ISA devices, and the sleep state S5.
//!
//! Interrupt links are fixed (nothing to program): in PIC mode all machines use ISA IRQ 10 and 11, in APIC mode the GSIs
//! of [`pirq_gsi`]. `_PIC` records which mode the guest is in and `_PRT` returns the matching routing.

use acpi_tables::aml::{
    AddressSpace, AddressSpaceCacheable, Device, EISAName, IO, If, Interrupt, Memory32Fixed, Method, Name,
    Package, PackageBuilder, Path, ResourceTemplate, Return, Scope, Store,
};
use acpi_tables::aml::{Arg, Equal};
use acpi_tables::{Aml, AmlSink};

use crate::platform::{
    HIGH_RAM_BASE, HPET_BASE, MCFG_BASE, MCFG_SIZE, MachineKind, PCI_MMIO32_END, PIRQ_ISA_IRQ, PlatformInfo,
    pci_pin_to_pirq, pirq_gsi,
};

/// The "present, enabled, shown, functioning" answer of `_STA`.
const STA_PRESENT: u8 = 0x0F;
/// Same, but not shown in a user interface.
const STA_HIDDEN: u8 = 0x0B;
/// Size of the 64-bit PCI memory window.
const PCI_MMIO64_SIZE: u64 = 1 << 39;

/// An ISA interrupt as the small resource descriptor without flags: edge triggered, active high (ACPI 6.5, section
/// 6.4.2.1).
struct Irq(u8);

impl Aml for Irq {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        sink.byte(0x22);
        sink.word(1 << self.0);
    }
}

/// Already encoded terms.
struct Raw(Vec<u8>);

impl Aml for Raw {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        sink.vec(&self.0);
    }
}

fn encode(term: &dyn Aml) -> Raw {
    let mut bytes = Vec::new();
    term.to_aml_bytes(&mut bytes);
    Raw(bytes)
}

fn path(name: &str) -> Path {
    Path::new(name)
}

/// A device with a `_HID`, optional unit number and fixed resources.
fn device(name: &str, hid: &str, uid: Option<u8>, resources: Vec<&dyn Aml>) -> Raw {
    let hid = EISAName::new(hid);
    let mut children = vec![encode(&Name::new(path("_HID"), &hid))];
    if let Some(uid) = uid {
        children.push(encode(&Name::new(path("_UID"), &uid)));
    }
    children.push(encode(&Name::new(path("_STA"), &STA_PRESENT)));
    children.push(encode(&Name::new(path("_CRS"), &ResourceTemplate::new(resources))));
    encode(&Device::new(path(name), refs(&children)))
}

fn refs(terms: &[Raw]) -> Vec<&dyn Aml> {
    terms.iter().map(|term| term as &dyn Aml).collect()
}

/// The AML of the DSDT, without table header.
pub(super) fn aml(info: &PlatformInfo) -> Vec<u8> {
    let mut out = Vec::new();
    // S5: SLP_TYPa 0, SLP_TYPb 0.
    let zero = 0u8;
    Name::new(path("_S5_"), &Package::new(vec![&zero, &zero, &zero, &zero])).to_aml_bytes(&mut out);
    Name::new(path("PICM"), &zero).to_aml_bytes(&mut out);
    let set = Store::new(&path("PICM"), &Arg(0)).encode();
    Method::new(path("_PIC"), 1, false, vec![&set]).to_aml_bytes(&mut out);

    let mut system_bus: Vec<Raw> = (0..info.apic_ids.len()).map(processor).collect();
    if info.hpet {
        let memory = Memory32Fixed::new(false, HPET_BASE, 0x400);
        system_bus.push(device("HPET", "PNP0103", Some(0), vec![&memory]));
    }
    if info.pci {
        system_bus.extend(links(info.machine));
        system_bus.push(pci_root(info));
    } else {
        system_bus.extend(isa_devices(info));
    }
    Scope::new(path("_SB_"), refs(&system_bus)).to_aml_bytes(&mut out);
    out
}

/// Processor `index`; its `_UID` is the processor UID of the MADT.
fn processor(index: usize) -> Raw {
    let hid = Name::new(path("_HID"), &"ACPI0007").encode();
    let uid = Name::new(path("_UID"), &(index as u32)).encode();
    encode(&Device::new(path(&format!("C{index:03X}")), vec![&hid, &uid]))
}

/// The link devices: LNKA–LNKD for PIC mode, and on machines whose APIC wiring differs GSIA–GSID for APIC mode.
fn links(machine: MachineKind) -> Vec<Raw> {
    let isa = (0u8..4).map(|pirq| link('L', pirq, u32::from(PIRQ_ISA_IRQ[usize::from(pirq)])));
    let apic = (0u8..4).map(|pirq| link('G', pirq, pirq_gsi(machine, pirq)));
    match machine {
        MachineKind::Pc => isa.collect(),
        MachineKind::Q35 => isa.chain(apic).collect(),
    }
}

fn link_name(kind: char, pirq: u8) -> String {
    let letter = char::from(b'A' + pirq);
    match kind {
        'L' => format!("LNK{letter}"),
        _ => format!("GSI{letter}"),
    }
}

/// A link whose one possible setting is also the current one.
fn link(kind: char, pirq: u8, gsi: u32) -> Raw {
    let interrupt = Interrupt::new(true, false, false, true, gsi);
    let settings = ResourceTemplate::new(vec![&interrupt]);
    let uid = if kind == 'L' { pirq } else { 0x10 + pirq };
    let children = [
        encode(&Name::new(path("_HID"), &EISAName::new("PNP0C0F"))),
        encode(&Name::new(path("_UID"), &uid)),
        encode(&Name::new(path("_STA"), &STA_HIDDEN)),
        encode(&Name::new(path("_PRS"), &settings)),
        encode(&Name::new(path("_CRS"), &settings)),
        encode(&Method::new(path("_SRS"), 1, false, vec![])),
        encode(&Method::new(path("_DIS"), 0, false, vec![])),
    ];
    encode(&Device::new(path(&link_name(kind, pirq)), refs(&children)))
}

/// The routing of all slots and pins to the links named by `kind`.
fn routing(kind: char) -> Raw {
    let mut table = PackageBuilder::new();
    for slot in 0u8..32 {
        for pin in 0u8..4 {
            let address = u32::from(slot) << 16 | 0xFFFF;
            let name = path(&link_name(kind, pci_pin_to_pirq(slot, pin)));
            table.add_element(&Package::new(vec![&address, &pin, &name, &0u8]));
        }
    }
    encode(&table)
}

fn pci_root(info: &PlatformInfo) -> Raw {
    let express = info.machine == MachineKind::Q35;
    let mut children = Vec::new();
    if express {
        children.push(encode(&Name::new(path("_HID"), &EISAName::new("PNP0A08"))));
        children.push(encode(&Name::new(path("_CID"), &EISAName::new("PNP0A03"))));
    } else {
        children.push(encode(&Name::new(path("_HID"), &EISAName::new("PNP0A03"))));
    }
    children.push(encode(&Name::new(path("_UID"), &0u8)));
    children.push(encode(&Name::new(path("_CRS"), &ResourceTemplate::new(refs(&root_windows(info))))));
    children.push(encode(&Name::new(path("PRTL"), &routing('L'))));
    if express {
        // Without this method a guest leaves PCI Express features (and MMCONFIG) to the firmware: grant all but hot plug,
        // which no board has.
        let granted = And32 { arg: 3, mask: 0x1C };
        children.push(encode(&Method::new(path("_OSC"), 4, false, vec![&granted])));
        children.push(encode(&Name::new(path("PRTG"), &routing('G'))));
        let apic = path("PRTG");
        let pic = path("PRTL");
        let give_apic = Return::new(&apic);
        let give_pic = Return::new(&pic);
        let mode = path("PICM");
        let in_apic_mode = Equal::new(&mode, &1u8);
        let choose = If::new(&in_apic_mode, vec![&give_apic]);
        children.push(encode(&Method::new(path("_PRT"), 0, false, vec![&choose, &give_pic])));
    } else {
        let pic = path("PRTL");
        let give_pic = Return::new(&pic);
        children.push(encode(&Method::new(path("_PRT"), 0, false, vec![&give_pic])));
    }
    let bridge_slot: u32 = if express { 31 } else { 1 };
    let mut bridge = vec![encode(&Name::new(path("_ADR"), &(bridge_slot << 16)))];
    bridge.extend(isa_devices(info));
    children.push(encode(&Device::new(path("ISA_"), refs(&bridge))));
    encode(&Device::new(path("PCI0"), refs(&children)))
}

/// Address ranges the root bridge passes on to its bus.
fn root_windows(info: &PlatformInfo) -> Vec<Raw> {
    let memory32 = |start: u64, end: u64| {
        encode(&AddressSpace::new_memory(
            AddressSpaceCacheable::NotCacheable,
            true,
            start as u32,
            (end - 1) as u32,
            None,
        ))
    };
    let mut windows = vec![
        encode(&AddressSpace::<u16>::new_bus_number(0, 0xFF)),
        encode(&IO::new(0xCF8, 0xCF8, 1, 8)),
        encode(&AddressSpace::<u16>::new_io(0, 0xCF7, None)),
        encode(&AddressSpace::<u16>::new_io(0xD00, 0xFFFF, None)),
        memory32(0xA_0000, 0xC_0000),
    ];
    // From the end of RAM to the interrupt controllers, without the configuration window.
    let start = match info.machine {
        MachineKind::Pc => info.ram.low.next_multiple_of(1 << 24),
        MachineKind::Q35 => MCFG_BASE + MCFG_SIZE,
    };
    windows.push(memory32(start.clamp(0x100_0000, 0xFE00_0000), PCI_MMIO32_END));
    let high = info.ram.high_end().max(HIGH_RAM_BASE).next_multiple_of(PCI_MMIO64_SIZE);
    windows.push(encode(&AddressSpace::<u64>::new_memory(
        AddressSpaceCacheable::Cacheable,
        true,
        high,
        high + (PCI_MMIO64_SIZE - 1),
        None,
    )));
    windows
}

fn isa_devices(info: &PlatformInfo) -> Vec<Raw> {
    let mut devices = Vec::new();
    // Two bytes of CMOS address space and its extension.
    devices.push(device("RTC_", "PNP0B00", None, vec![&IO::new(0x70, 0x70, 1, 8), &Irq(8)]));
    if info.i8042 {
        let ports = [IO::new(0x60, 0x60, 1, 1), IO::new(0x64, 0x64, 1, 1)];
        devices.push(device("KBD_", "PNP0303", None, vec![&ports[0], &ports[1], &Irq(1)]));
        devices.push(device("MOU_", "PNP0F13", None, vec![&Irq(12)]));
    }
    for (index, port) in info.serial.iter().enumerate().take(9) {
        let uid = index as u8 + 1;
        let io = IO::new(port.io, port.io, 1, 8);
        devices.push(device(&format!("COM{uid}"), "PNP0501", Some(uid), vec![&io, &Irq(port.irq & 15)]));
    }
    // What no other device claims: the fixed ACPI registers, and the configuration window so that guests trust MCFG.
    let pm = IO::new(0x600, 0x600, 1, 0x40);
    let window = Memory32Fixed::new(false, MCFG_BASE as u32, MCFG_SIZE as u32);
    let mut claimed: Vec<&dyn Aml> = vec![&pm];
    if info.machine == MachineKind::Q35 && info.pci {
        claimed.push(&window);
    }
    devices.push(device("MBRD", "PNP0C02", Some(0), claimed));
    devices
}

/// `_OSC` of the PCI root: clears the control bits outside `mask` in the third dword of the capabilities buffer in the
/// argument and returns the buffer.
struct And32 {
    arg: u8,
    mask: u32,
}

impl Aml for And32 {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        const ARG0: u8 = 0x68;
        let buffer = ARG0 + self.arg;
        // CreateDWordField (ArgN, 8, CDW3); And (CDW3, mask, CDW3); Return (ArgN)
        sink.vec(&[0x8A, buffer, 0x0A, 8]);
        sink.vec(b"CDW3");
        sink.byte(0x7B);
        sink.vec(b"CDW3");
        sink.byte(0x0C);
        sink.dword(self.mask);
        sink.vec(b"CDW3");
        sink.vec(&[0xA4, buffer]);
    }
}

/// Encoding as a method, for terms that would otherwise borrow temporaries.
trait Encode: Aml + Sized {
    fn encode(&self) -> Raw {
        encode(self)
    }
}

impl<T: Aml> Encode for T {}
