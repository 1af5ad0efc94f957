//! ELF kernels with a PVH entry (Xen, docs/misc/pvh.pandoc; the note is XEN_ELFNOTE_PHYS32_ENTRY of elfnote.h).
//!
//! PVH enters in 32-bit protected mode with EBX pointing to a start info that names command line, modules, memory
//! map and RSDP: everything a loader knows, without a kernel-specific structure.

use object::Endianness;
use object::elf::{self, FileHeader32, FileHeader64};
use object::read::elf::{FileHeader, ProgramHeader};

use super::{BootEntry, LinuxBoot, LoadError, check_cmdline, finish, place_initrd, ram_end};
use super::{CMDLINE_ADDR, CMDLINE_MAX, PARAMS_ADDR};
use crate::memory::GuestMemory;
use crate::platform::EXTENDED_BASE;

const NOTE_PHYS32_ENTRY: u32 = 18;
const START_INFO_MAGIC: u32 = 0x336E_C578;
const START_INFO_SIZE: u64 = 56;
const MODULE_SIZE: u64 = 32;
static ZEROES: [u8; 0x1_0000] = [0; 0x1_0000];

/// A part of the file that goes to guest memory, checked against the file.
struct Segment<'a> {
    addr: u64,
    data: &'a [u8],
    /// Bytes to clear after the data.
    zeroes: u64,
}

struct Image<'a> {
    entry: u32,
    segments: Vec<Segment<'a>>,
}

/// Loads a file that starts with the ELF magic.
pub(super) fn load(mem: &mut dyn GuestMemory, boot: &LinuxBoot<'_>) -> Result<BootEntry, LoadError> {
    let image = match boot.kernel.get(4) {
        Some(&elf::ELFCLASS64) => parse::<FileHeader64<Endianness>>(boot.kernel)?,
        Some(&elf::ELFCLASS32) => parse::<FileHeader32<Endianness>>(boot.kernel)?,
        _ => return Err(LoadError::ElfDamaged("unknown class".into())),
    };
    let ram_end = ram_end(boot.e820);
    let mut kernel_end = EXTENDED_BASE;
    for segment in &image.segments {
        let end = segment.addr.saturating_add(segment.data.len() as u64).saturating_add(segment.zeroes);
        if segment.addr < EXTENDED_BASE || end > ram_end {
            return Err(LoadError::KernelTooLarge { start: segment.addr, end, ram_end });
        }
        kernel_end = kernel_end.max(end);
    }
    check_cmdline(boot.cmdline, CMDLINE_MAX - 1)?;
    let initrd = match boot.initrd {
        Some(data) => Some((place_initrd(data.len() as u64, kernel_end, ram_end, 1 << 32)?, data)),
        None => None,
    };

    for segment in &image.segments {
        mem.write(segment.addr, segment.data)?;
        let mut at = segment.addr + segment.data.len() as u64;
        let end = at + segment.zeroes;
        while at < end {
            let chunk = (end - at).min(ZEROES.len() as u64);
            mem.write(at, &ZEROES[..chunk as usize])?;
            at += chunk;
        }
    }
    if let Some((addr, data)) = initrd {
        mem.write(addr, data)?;
    }
    let initrd = initrd.map(|(addr, data)| (addr, data.len() as u64));
    mem.write(PARAMS_ADDR, &start_info(boot, initrd))?;
    Ok(finish(mem, boot.cmdline, image.entry, 0, PARAMS_ADDR as u32)?)
}

fn parse<Elf: FileHeader<Endian = Endianness>>(file: &[u8]) -> Result<Image<'_>, LoadError> {
    let damaged = |error: object::read::Error| LoadError::ElfDamaged(error.to_string());
    let header = Elf::parse(file).map_err(damaged)?;
    let endian = header.endian().map_err(damaged)?;
    if !matches!(header.e_machine(endian), elf::EM_X86_64 | elf::EM_386) {
        return Err(LoadError::ElfKind { what: "for another processor architecture" });
    }
    if !matches!(header.e_type(endian), elf::ET_EXEC | elf::ET_DYN) {
        return Err(LoadError::ElfKind { what: "an object or core file" });
    }
    let mut entry = None;
    let mut segments = Vec::new();
    for program in header.program_headers(endian, file).map_err(damaged)? {
        if program.p_type(endian) == elf::PT_LOAD {
            let data = program
                .data(endian, file)
                .map_err(|()| LoadError::ElfDamaged("a segment lies outside the file".into()))?;
            let memory_size: u64 = program.p_memsz(endian).into();
            let zeroes = memory_size.checked_sub(data.len() as u64).ok_or_else(|| {
                LoadError::ElfDamaged("a segment is larger in the file than in memory".into())
            })?;
            segments.push(Segment { addr: program.p_paddr(endian).into(), data, zeroes });
        }
        let Some(mut notes) = program.notes(endian, file).map_err(damaged)? else { continue };
        while let Some(note) = notes.next().map_err(damaged)? {
            if note.name() == b"Xen" && note.n_type(endian) == NOTE_PHYS32_ENTRY {
                entry = note.desc().first_chunk::<4>().map(|raw| u32::from_le_bytes(*raw));
            }
        }
    }
    segments.retain(|segment| !segment.data.is_empty() || segment.zeroes > 0);
    match entry {
        Some(_) if segments.is_empty() => Err(LoadError::ElfDamaged("nothing to load".into())),
        Some(entry) => Ok(Image { entry, segments }),
        None => Err(LoadError::NoPvhEntry),
    }
}

/// `hvm_start_info` version 1, followed by the module list and the memory map.
fn start_info(boot: &LinuxBoot<'_>, initrd: Option<(u64, u64)>) -> Vec<u8> {
    let modules = PARAMS_ADDR + START_INFO_SIZE;
    let memory_map = modules + MODULE_SIZE;
    let mut out = Vec::new();
    out.extend(START_INFO_MAGIC.to_le_bytes());
    out.extend(1u32.to_le_bytes()); // version
    out.extend(0u32.to_le_bytes()); // flags
    out.extend(u32::from(initrd.is_some()).to_le_bytes());
    out.extend(modules.to_le_bytes());
    out.extend(CMDLINE_ADDR.to_le_bytes());
    out.extend(boot.rsdp.to_le_bytes());
    out.extend(memory_map.to_le_bytes());
    out.extend((boot.e820.len() as u32).to_le_bytes());
    out.extend(0u32.to_le_bytes());
    let (addr, size) = initrd.unwrap_or_default();
    for word in [addr, size, 0, 0] {
        out.extend(word.to_le_bytes());
    }
    for entry in boot.e820 {
        out.extend(entry.addr.to_le_bytes());
        out.extend(entry.size.to_le_bytes());
        out.extend((entry.kind as u32).to_le_bytes());
        out.extend(0u32.to_le_bytes());
    }
    out
}
