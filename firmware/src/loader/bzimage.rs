//! Linux `bzImage` (Documentation/arch/x86/boot.rst; field offsets from its "real-mode kernel header" table).
//!
//! The 16-bit setup code of the file is not run: what it would ask the BIOS is answered in `boot_params` (the "zero
//! page", Documentation/arch/x86/zero-page.rst), and the 32-bit code is entered at its start.

use super::{BootEntry, LinuxBoot, LoadError, check_cmdline, finish, place_initrd, ram_end};
use super::{CMDLINE_ADDR, PARAMS_ADDR};
use crate::e820::E820Entry;
use crate::memory::GuestMemory;
use crate::platform::EXTENDED_BASE;

// Offsets in the file, which are also offsets in boot_params.
const SETUP_SECTS: usize = 0x1F1;
const SYSSIZE: usize = 0x1F4;
const JUMP: usize = 0x200;
const HEADER_MAGIC: usize = 0x202;
const VERSION: usize = 0x206;
const TYPE_OF_LOADER: usize = 0x210;
const LOADFLAGS: usize = 0x211;
const CODE32_START: usize = 0x214;
const RAMDISK_IMAGE: usize = 0x218;
const RAMDISK_SIZE: usize = 0x21C;
const HEAP_END_PTR: usize = 0x224;
const CMD_LINE_PTR: usize = 0x228;
const INITRD_ADDR_MAX: usize = 0x22C;
const KERNEL_ALIGNMENT: usize = 0x230;
const RELOCATABLE: usize = 0x234;
const CMDLINE_SIZE: usize = 0x238;
const SETUP_DATA: usize = 0x250;
const PREF_ADDRESS: usize = 0x258;
const INIT_SIZE: usize = 0x260;
/// End of the room for the header in boot_params.
const HEADER_ROOM_END: usize = 0x290;

// Offsets in boot_params only.
const ACPI_RSDP_ADDR: usize = 0x070;
const E820_ENTRIES: usize = 0x1E8;
const E820_TABLE: usize = 0x2D0;
const E820_MAX: usize = 128;
const BOOT_PARAMS_SIZE: usize = 0x1000;

const LOADED_HIGH: u8 = 1 << 0;
const CAN_USE_HEAP: u8 = 1 << 7;
/// "Boot loader without an assigned number".
const LOADER_UNDEFINED: u8 = 0xFF;
/// `initrd_addr_max` before protocol 2.03.
const OLD_INITRD_MAX: u32 = 0x37FF_FFFF;
/// Longest command line before protocol 2.06.
const OLD_CMDLINE_MAX: u32 = 255;

/// Whether the file carries the boot sector signature and the header's magic.
pub(super) fn recognise(file: &[u8]) -> bool {
    bytes::<4>(file, HEADER_MAGIC) == Some(*b"HdrS") && bytes::<2>(file, 0x1FE) == Some([0x55, 0xAA])
}

fn bytes<const N: usize>(file: &[u8], at: usize) -> Option<[u8; N]> {
    file.get(at..)?.first_chunk::<N>().copied()
}

/// The header fields a loader needs, checked, with the protocol's defaults for older versions.
struct Header {
    version: u16,
    /// Offset of the 32-bit code in the file.
    code_offset: u64,
    /// Its size in bytes.
    code_size: u64,
    initrd_addr_max: u32,
    cmdline_size: u32,
    /// `None` if the kernel runs only where it says.
    alignment: Option<u32>,
    /// Where the kernel unpacks itself to, and how much it needs from there (protocol 2.10).
    runtime: Option<(u64, u32)>,
    /// End of the header in the file.
    header_end: usize,
}

impl Header {
    fn parse(file: &[u8]) -> Result<Self, LoadError> {
        let truncated = |need: u64| LoadError::KernelTruncated { have: file.len() as u64, need };
        let u8_at = |at| bytes::<1>(file, at).map(|b| b[0]).ok_or(truncated(at as u64 + 1));
        let u16_at = |at| bytes(file, at).map(u16::from_le_bytes).ok_or(truncated(at as u64 + 2));
        let u32_at = |at| bytes(file, at).map(u32::from_le_bytes).ok_or(truncated(at as u64 + 4));
        let u64_at = |at| bytes(file, at).map(u64::from_le_bytes).ok_or(truncated(at as u64 + 8));

        let version = u16_at(VERSION)?;
        let zimage = u8_at(LOADFLAGS)? & LOADED_HIGH == 0;
        if version < 0x0202 || zimage {
            return Err(LoadError::KernelTooOld { version, zimage });
        }
        // 0 means 4 for the sake of very old kernels.
        let setup_sects = match u8_at(SETUP_SECTS)? {
            0 => 4,
            sectors => sectors,
        };
        let code_offset = (u64::from(setup_sects) + 1) * 512;
        let paragraphs = match u32_at(SYSSIZE)? {
            size if version >= 0x0204 => size,
            size => size & 0xFFFF,
        };
        // The size is rounded up to 16 bytes; the file need not be.
        let code_size = u64::from(paragraphs) * 16;
        let file_size = file.len() as u64;
        if code_size == 0 {
            return Err(LoadError::KernelHeader { field: "syssize", value: 0 });
        }
        if file_size + 15 < code_offset + code_size {
            return Err(truncated(code_offset + code_size));
        }
        let code_size = code_size.min(file_size - code_offset);

        let header_end = HEADER_MAGIC + usize::from(u8_at(JUMP + 1)?);
        let header_end = header_end.min(HEADER_ROOM_END).min(file.len());

        let relocatable = version >= 0x0205 && u8_at(RELOCATABLE)? != 0;
        let alignment = if relocatable { Some(u32_at(KERNEL_ALIGNMENT)?) } else { None };
        if let Some(value) = alignment
            && !value.is_power_of_two()
        {
            return Err(LoadError::KernelHeader { field: "kernel_alignment", value: value.into() });
        }
        let runtime =
            if version >= 0x020A { Some((u64_at(PREF_ADDRESS)?, u32_at(INIT_SIZE)?)) } else { None };
        Ok(Self {
            version,
            code_offset,
            code_size,
            initrd_addr_max: if version >= 0x0203 { u32_at(INITRD_ADDR_MAX)? } else { OLD_INITRD_MAX },
            cmdline_size: if version >= 0x0206 { u32_at(CMDLINE_SIZE)? } else { OLD_CMDLINE_MAX },
            alignment,
            runtime,
            header_end,
        })
    }

    /// Where the 32-bit code is placed, and the range of RAM that must stay free for the kernel until it runs.
    fn place(&self, ram_end: u64) -> Result<(u64, std::ops::Range<u64>), LoadError> {
        let fits = |start: u64, size: u64| {
            let end = start.saturating_add(size);
            if start >= EXTENDED_BASE && end <= ram_end {
                Ok(start..end)
            } else {
                Err(LoadError::KernelTooLarge { start, end, ram_end })
            }
        };
        let Some((pref_address, init_size)) = self.runtime else {
            return fits(EXTENDED_BASE, self.code_size).map(|range| (EXTENDED_BASE, range));
        };
        let need = u64::from(init_size).max(self.code_size);
        if pref_address < EXTENDED_BASE {
            return Err(LoadError::KernelHeader { field: "pref_address", value: pref_address });
        }
        let runtime = fits(pref_address, need)?;
        match self.alignment {
            // Loaded where it wants to run, it has no reason to move out of the way first. A kernel that is loaded
            // below pref_address moves there itself, so that no place below is any cheaper.
            Some(alignment) => {
                let start = pref_address.next_multiple_of(u64::from(alignment));
                fits(start, need).map(|range| (start, range))
            }
            None => {
                let loaded = fits(EXTENDED_BASE, self.code_size)?;
                Ok((EXTENDED_BASE, EXTENDED_BASE..runtime.end.max(loaded.end)))
            }
        }
    }
}

/// Loads a file for which [`recognise`] said yes.
pub(super) fn load(mem: &mut dyn GuestMemory, boot: &LinuxBoot<'_>) -> Result<BootEntry, LoadError> {
    let header = Header::parse(boot.kernel)?;
    let ram_end = ram_end(boot.e820);
    check_cmdline(boot.cmdline, header.cmdline_size as usize)?;
    let (load_addr, busy) = header.place(ram_end)?;
    let code32 = u32::try_from(load_addr)
        .map_err(|_| LoadError::KernelHeader { field: "pref_address", value: load_addr })?;
    let initrd = match boot.initrd {
        Some(data) => {
            let limit = u64::from(header.initrd_addr_max) + 1;
            Some((place_initrd(data.len() as u64, busy.end, ram_end, limit)?, data))
        }
        None => None,
    };

    let mut params = Params::new(&boot.kernel[SETUP_SECTS..header.header_end]);
    params.put(TYPE_OF_LOADER, &[LOADER_UNDEFINED]);
    params.bytes[LOADFLAGS] |= CAN_USE_HEAP;
    params.put(HEAP_END_PTR, &0xFE00u16.to_le_bytes());
    params.put(CODE32_START, &code32.to_le_bytes());
    params.put(CMD_LINE_PTR, &(CMDLINE_ADDR as u32).to_le_bytes());
    if let Some((addr, data)) = initrd {
        // Both fit: the initrd lies in low RAM.
        params.put(RAMDISK_IMAGE, &(addr as u32).to_le_bytes());
        params.put(RAMDISK_SIZE, &(data.len() as u32).to_le_bytes());
    }
    if header.version >= 0x0209 {
        params.put(SETUP_DATA, &0u64.to_le_bytes());
    }
    params.put(ACPI_RSDP_ADDR, &boot.rsdp.to_le_bytes());
    params.put_e820(boot.e820);

    // Everything fits: from here on guest memory changes.
    let code = header.code_offset as usize..(header.code_offset + header.code_size) as usize;
    mem.write(load_addr, &boot.kernel[code])?;
    if let Some((addr, data)) = initrd {
        mem.write(addr, data)?;
    }
    mem.write(PARAMS_ADDR, &params.bytes[..])?;
    Ok(finish(mem, boot.cmdline, code32, PARAMS_ADDR as u32, 0)?)
}

/// `boot_params`, all zero where nobody says otherwise (which stands for: no VGA, no EFI, no EDD, no APM).
struct Params {
    bytes: Box<[u8; BOOT_PARAMS_SIZE]>,
}

impl Params {
    fn new(setup_header: &[u8]) -> Self {
        let mut params = Self { bytes: Box::new([0; BOOT_PARAMS_SIZE]) };
        params.put(SETUP_SECTS, setup_header);
        params
    }

    fn put(&mut self, at: usize, data: &[u8]) {
        self.bytes[at..at + data.len()].copy_from_slice(data);
    }

    fn put_e820(&mut self, map: &[E820Entry]) {
        let count = map.len().min(E820_MAX);
        self.put(E820_ENTRIES, &[count as u8]);
        for (index, entry) in map[..count].iter().enumerate() {
            let at = E820_TABLE + index * 20;
            self.put(at, &entry.addr.to_le_bytes());
            self.put(at + 8, &entry.size.to_le_bytes());
            self.put(at + 16, &(entry.kind as u32).to_le_bytes());
        }
    }
}
