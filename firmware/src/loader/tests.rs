use proptest::prelude::*;

use super::*;
use crate::platform::{MachineKind, RamLayout};

const MIB: u64 = 1 << 20;

/// A made-up bzImage: protocol 2.15, relocatable, 2 MiB aligned, one setup sector, `code` as the 32-bit part.
fn bzimage(code: &[u8]) -> Vec<u8> {
    let mut file = vec![0u8; 1024];
    file[0x1F1] = 1;
    file[0x1F4..0x1F8].copy_from_slice(&(code.len().div_ceil(16) as u32).to_le_bytes());
    file[0x1FE..0x202].copy_from_slice(&[0x55, 0xAA, 0xEB, 0x6A]);
    file[0x202..0x206].copy_from_slice(b"HdrS");
    file[0x206..0x208].copy_from_slice(&0x020Fu16.to_le_bytes());
    file[0x211] = 1;
    file[0x22C..0x230].copy_from_slice(&0x7FFF_FFFFu32.to_le_bytes());
    file[0x230..0x234].copy_from_slice(&0x20_0000u32.to_le_bytes());
    file[0x234] = 1;
    file[0x238..0x23C].copy_from_slice(&2047u32.to_le_bytes());
    file[0x258..0x260].copy_from_slice(&0x100_0000u64.to_le_bytes());
    file[0x260..0x264].copy_from_slice(&0x40_0000u32.to_le_bytes());
    file.extend_from_slice(code);
    file
}

/// A 64-bit ELF with one segment at 1 MiB and, if asked for, a PVH note.
fn elf(note_type: Option<u32>) -> Vec<u8> {
    let mut file = Vec::new();
    file.extend(b"\x7FELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
    file.extend(2u16.to_le_bytes());
    file.extend(62u16.to_le_bytes());
    file.extend(1u32.to_le_bytes());
    for value in [0u64, 64, 0] {
        file.extend(value.to_le_bytes());
    }
    file.extend(0u32.to_le_bytes());
    for value in [64u16, 56, 2, 64, 0, 0] {
        file.extend(value.to_le_bytes());
    }
    let mut program = |kind: u32, offset: u64, addr: u64, size: u64, memory: u64| {
        file.extend(kind.to_le_bytes());
        file.extend(7u32.to_le_bytes());
        for value in [offset, addr, addr, size, memory, 4] {
            file.extend(value.to_le_bytes());
        }
    };
    program(1, 0x100, MIB, 16, 0x2_0000);
    program(4, 0x110, 0, if note_type.is_some() { 20 } else { 0 }, 0);
    file.resize(0x100, 0);
    file.extend([0xF4; 16]);
    file.extend(4u32.to_le_bytes());
    file.extend(4u32.to_le_bytes());
    file.extend(note_type.unwrap_or(0).to_le_bytes());
    file.extend(b"Xen\0");
    file.extend(0x10_0004u32.to_le_bytes());
    file
}

struct Guest {
    ram: Vec<u8>,
    map: Vec<E820Entry>,
}

impl Guest {
    fn new(mib: u64) -> Self {
        let layout = RamLayout { low: mib * MIB, high: 0 };
        Self { ram: vec![0xCC; (mib * MIB) as usize], map: e820::build(MachineKind::Pc, &layout) }
    }

    fn load(&mut self, kernel: &[u8], initrd: Option<&[u8]>, cmdline: &[u8]) -> Result<BootEntry, LoadError> {
        let boot = LinuxBoot { kernel, initrd, cmdline, e820: &self.map, rsdp: 0xF_0000 };
        load_linux(&mut self.ram, &boot)
    }

    fn u32_at(&self, addr: usize) -> u32 {
        u32::from_le_bytes(*self.ram[addr..].first_chunk().unwrap())
    }

    fn u64_at(&self, addr: usize) -> u64 {
        u64::from_le_bytes(*self.ram[addr..].first_chunk().unwrap())
    }
}

#[test]
fn a_bzimage_is_placed_where_it_wants_to_run() {
    let mut guest = Guest::new(64);
    let kernel = bzimage(&[0x90; 4096]);
    let initrd = [0xABu8; 5000];
    let entry = guest.load(&kernel, Some(&initrd), b"console=ttyS0").unwrap();
    let BootEntry::Protected32 { eip, esi, ebx, gdt_base, gdt_limit } = entry;
    assert_eq!((eip, ebx, gdt_limit), (0x100_0000, 0, 31));
    assert_eq!(&guest.ram[0x100_0000..0x100_1000], [0x90; 4096]);

    let params = esi as usize;
    assert_eq!(guest.ram[params + 0x210], 0xFF, "type_of_loader");
    assert_eq!(guest.ram[params + 0x211], 0x81, "loadflags");
    assert_eq!(&guest.ram[params + 0x202..params + 0x206], b"HdrS");
    assert_eq!(guest.ram[params + 0x1EF], 0, "sentinel");
    assert_eq!(guest.u64_at(params + 0x70), 0xF_0000, "RSDP");
    let initrd_at = guest.u32_at(params + 0x218) as usize;
    let top = (64 * MIB - crate::platform::ACPI_AREA_SIZE) as usize;
    assert_eq!(initrd_at, (top - 5000) & !0xFFF);
    assert_eq!(guest.u32_at(params + 0x21C), 5000);
    assert_eq!(&guest.ram[initrd_at..initrd_at + 5000], initrd);
    let cmdline = guest.u32_at(params + 0x228) as usize;
    assert_eq!(&guest.ram[cmdline..cmdline + 14], b"console=ttyS0\0");
    assert_eq!(usize::from(guest.ram[params + 0x1E8]), guest.map.len());
    assert_eq!(guest.u64_at(params + 0x2D0 + 8), 0x9FC00);
    // The code descriptor: flat, 32 bit, execute/read, accessed.
    assert_eq!(guest.u64_at(gdt_base as usize + usize::from(BOOT_CS)), 0x00CF_9B00_0000_FFFF);
    assert_eq!(guest.u64_at(gdt_base as usize + usize::from(BOOT_DS)), 0x00CF_9300_0000_FFFF);
}

#[test]
fn a_kernel_that_cannot_be_moved_is_loaded_at_1_mib_and_its_run_area_kept_free() {
    let mut guest = Guest::new(24);
    let mut kernel = bzimage(&[0x90; 4096]);
    kernel[0x234] = 0;
    let BootEntry::Protected32 { eip, .. } = guest.load(&kernel, None, b"").unwrap();
    assert_eq!(eip, 0x10_0000);
    // 16 MiB + init_size 4 MiB are taken: 4 MiB less the tables are left.
    let error = guest.load(&kernel, Some(&vec![1; 4 << 20]), b"").unwrap_err();
    assert_eq!(
        error,
        LoadError::InitrdTooLarge { size: 4 << 20, room: (4 << 20) - 0x2_0000, kernel_limit: false }
    );
}

#[test]
fn the_initrd_stays_below_the_kernels_limit() {
    let mut guest = Guest::new(64);
    let mut kernel = bzimage(&[0x90; 64]);
    kernel[0x22C..0x230].copy_from_slice(&0x17F_FFFFu32.to_le_bytes());
    let BootEntry::Protected32 { esi, .. } = guest.load(&kernel, Some(&[7; 4096]), b"").unwrap();
    assert_eq!(guest.u32_at(esi as usize + 0x218), 0x17F_F000);
    let error = guest.load(&kernel, Some(&vec![7; 0x40_1000]), b"").unwrap_err();
    assert!(matches!(error, LoadError::InitrdTooLarge { kernel_limit: true, .. }), "{error}");
    assert_eq!(error.option().as_str(), "-initrd");
}

#[test]
fn wrong_files_are_named() {
    let mut guest = Guest::new(64);
    let mut says = |kernel: &[u8]| guest.load(kernel, None, b"").unwrap_err().to_string();
    assert!(says(b"").contains("is empty"));
    assert!(says(b"hello").contains("too short"));
    assert!(says(&[0; 4096]).contains("not an x86 kernel"));
    assert!(says(b"\x1F\x8B\x08 rest").contains("gzip"));
    assert!(says(b"!<arch>\ndebian-binary").contains("Debian package"));
    let whole = bzimage(&[0x90; 4096]);
    assert!(says(&whole[..2000]).contains("it has 2000 bytes, but its header announces 5120"));
    assert!(says(&whole[..0x210]).contains("truncated"));
    let mut old = whole.clone();
    old[0x206] = 1;
    assert!(says(&old).contains("boot protocol 2.01"));
    let mut low = whole.clone();
    low[0x211] = 0;
    assert!(says(&low).contains("zImage"));
    let mut odd = whole.clone();
    odd[0x230] = 3;
    assert!(says(&odd).contains("kernel_alignment is 0x200003"));
}

#[test]
fn too_little_ram_says_how_much_is_needed() {
    let mut guest = Guest::new(16);
    let error = guest.load(&bzimage(&[0x90; 64]), None, b"").unwrap_err();
    assert!(matches!(error, LoadError::KernelTooLarge { start: 0x100_0000, end: 0x140_0000, .. }));
    assert!(error.to_string().ends_with("at least 22 MiB with -m"), "{error}");
    assert!(guest.ram.iter().all(|&byte| byte == 0xCC), "nothing is written");
    let mut none = Guest { ram: Vec::new(), map: Vec::new() };
    assert!(matches!(none.load(&bzimage(&[0; 16]), None, b""), Err(LoadError::KernelTooLarge { .. })));
}

#[test]
fn command_lines_are_bounded() {
    let mut guest = Guest::new(64);
    let kernel = bzimage(&[0x90; 64]);
    assert!(guest.load(&kernel, None, &[b'a'; 2047]).is_ok());
    let error = guest.load(&kernel, None, &[b'a'; 2048]).unwrap_err();
    assert_eq!(error, LoadError::CmdlineTooLong { len: 2048, max: 2047 });
    assert_eq!(error.option().as_str(), "-append");
    assert_eq!(guest.load(&kernel, None, b"a\0b").unwrap_err(), LoadError::CmdlineNul { at: 1 });
    let mut boundless = kernel.clone();
    boundless[0x238..0x23C].copy_from_slice(&u32::MAX.to_le_bytes());
    let error = guest.load(&boundless, None, &vec![b'a'; 1 << 16]).unwrap_err();
    assert_eq!(error, LoadError::CmdlineTooLong { len: 1 << 16, max: 0xFFFF });
}

#[test]
fn an_elf_kernel_needs_its_pvh_note() {
    let mut guest = Guest::new(4);
    let BootEntry::Protected32 { eip, esi, ebx, .. } =
        guest.load(&elf(Some(18)), Some(&[5; 100]), b"quiet").unwrap();
    assert_eq!((eip, esi), (0x10_0004, 0));
    assert_eq!(&guest.ram[0x10_0000..0x10_0010], [0xF4; 16]);
    assert_eq!(guest.ram[0x10_0010..0x12_0000].iter().find(|&&byte| byte != 0), None, "bss is cleared");
    assert_eq!(guest.ram[0x12_0000], 0xCC);
    let info = ebx as usize;
    assert_eq!(guest.u32_at(info), 0x336E_C578);
    assert_eq!(guest.u32_at(info + 12), 1, "modules");
    let module = guest.u64_at(info + 16) as usize;
    assert_eq!(guest.u64_at(module + 8), 100);
    assert_eq!(guest.ram[guest.u64_at(module) as usize], 5);
    assert_eq!(&guest.ram[guest.u64_at(info + 24) as usize..][..6], b"quiet\0");
    assert_eq!(guest.u64_at(info + 32), 0xF_0000);
    assert_eq!(guest.u32_at(info + 48) as usize, guest.map.len());
    let map = guest.u64_at(info + 40) as usize;
    assert_eq!(guest.u64_at(map + 8), 0x9FC00);

    assert_eq!(guest.load(&elf(Some(1)), None, b"").unwrap_err(), LoadError::NoPvhEntry);
    assert_eq!(guest.load(&elf(None), None, b"").unwrap_err(), LoadError::NoPvhEntry);
    let mut arm = elf(Some(18));
    arm[18] = 183;
    assert!(guest.load(&arm, None, b"").unwrap_err().to_string().contains("another processor"));
    let mut huge = elf(Some(18));
    huge[64 + 40..64 + 48].copy_from_slice(&u64::MAX.to_le_bytes());
    assert!(matches!(guest.load(&huge, None, b""), Err(LoadError::KernelTooLarge { .. })));
}

#[test]
fn every_truncation_is_an_error() {
    let mut guest = Guest::new(24);
    for whole in [bzimage(&[0x90; 512]), elf(Some(18))] {
        for len in 0..whole.len() - 16 {
            assert!(guest.load(&whole[..len], None, b"").is_err(), "{len} of {}", whole.len());
        }
    }
}

proptest! {
    /// Bytes of a valid header are replaced at random: an error or a placement inside RAM, never a panic and never
    /// [`LoadError::Memory`], which would mean that a check was missed.
    #[test]
    fn mutated_headers_never_panic(
        is_elf in any::<bool>(),
        changes in proptest::collection::vec((0usize..0x120, any::<u8>()), 1..12),
    ) {
        let mut file = if is_elf { elf(Some(18)) } else { bzimage(&[0x90; 512]) };
        // The interesting bytes of a bzImage start at 0x1F0.
        let base = if is_elf { 0 } else { 0x1F0 };
        for (at, value) in changes {
            if let Some(byte) = file.get_mut(base + at) {
                *byte = value;
            }
        }
        let mut guest = Guest::new(24);
        match guest.load(&file, Some(&[1; 64]), b"console=ttyS0") {
            Ok(_) => {}
            Err(LoadError::Memory(error)) => prop_assert!(false, "{}", error),
            Err(error) => prop_assert!(!error.to_string().is_empty()),
        }
    }
}
