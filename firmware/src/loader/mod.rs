//! Starting a kernel without a boot loader: `-kernel`, `-initrd`, `-append`.
//!
//! The problem: a kernel file comes from outside and may be anything. The strategy: recognise what it is by its
//! signature, check every size it states against the file and against the RAM before the first byte is written, then
//! place kernel, initrd and command line and return the state in which the boot processor starts.
//!
//! - [`bzimage`]: Linux/x86 boot protocol 2.02 and newer, always by the 32-bit entry, for i386 and amd64 alike
//!   (Linux, Documentation/arch/x86/boot.rst, "32-bit boot protocol").
//! - [`pvh`]: ELF kernels with a PVH entry note (Xen, docs/misc/pvh.pandoc), which includes `vmlinux`.
//!
//! What is placed where (guest-physical):
//!
//! ```text
//! 0x06000   GDT                         0x10000   command line (up to 64 KiB)
//! 0x07000   boot_params / start info    1 MiB..   kernel
//!                                       top       initrd, below the ACPI tables
//! ```
//!
//! Invariants: nothing is written unless everything fits; nothing is allocated by a size that a file states.

use thiserror::Error;

use crate::e820::{self, E820Entry};
use crate::memory::{GuestMemory, MemoryError};

mod bzimage;
mod pvh;
#[cfg(test)]
mod tests;

/// Guest-physical address of the GDT the boot processor starts with.
const GDT_ADDR: u64 = 0x6000;
/// Guest-physical address of `boot_params` or the PVH start info.
const PARAMS_ADDR: u64 = 0x7000;
/// Guest-physical address of the command line.
const CMDLINE_ADDR: u64 = 0x1_0000;
/// Bytes reserved for the command line with its terminating zero.
const CMDLINE_MAX: usize = 0x1_0000;

/// Code selector at the boot entry: flat, 4 GiB, 32 bit (`__BOOT_CS`).
pub const BOOT_CS: u16 = 0x10;
/// Data selector at the boot entry: flat, 4 GiB (`__BOOT_DS`).
pub const BOOT_DS: u16 = 0x18;
/// The GDT in guest memory: null, unused, [`BOOT_CS`], [`BOOT_DS`].
const GDT: [u64; 4] = [0, 0, 0x00CF_9B00_0000_FFFF, 0x00CF_9300_0000_FFFF];

/// What to boot.
#[derive(Clone, Copy, Debug)]
pub struct LinuxBoot<'a> {
    /// The kernel file.
    pub kernel: &'a [u8],
    /// The initrd file, if one was named.
    pub initrd: Option<&'a [u8]>,
    /// The command line, without a terminating zero.
    pub cmdline: &'a [u8],
    /// The memory map from [`e820::build`].
    pub e820: &'a [E820Entry],
    /// Guest-physical address of the RSDP from [`tables::build`](crate::tables::build); 0 if there are no tables.
    pub rsdp: u64,
}

/// The state in which the boot processor starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BootEntry {
    /// 32-bit protected mode, paging off, interrupts off (EFLAGS = 2), A20 open; CR0 = PE (ET as the CPU has it). CS is
    /// [`BOOT_CS`] (base 0, limit 4 GiB, D=1, execute/read, accessed); DS, ES, FS, GS and SS are [`BOOT_DS`] (base 0,
    /// limit 4 GiB, B=1, read/write, accessed); the IDT limit is 0. Registers not named here are 0.
    Protected32 {
        /// Entry point.
        eip: u32,
        /// ESI: `boot_params` of the Linux protocol (0 for PVH).
        esi: u32,
        /// EBX: `hvm_start_info` of PVH (0 for Linux).
        ebx: u32,
        /// GDTR base.
        gdt_base: u32,
        /// GDTR limit.
        gdt_limit: u16,
    },
}

/// The option a [`LoadError`] is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BootOption {
    /// `-kernel`
    Kernel,
    /// `-initrd`
    Initrd,
    /// `-append`
    Append,
}

impl BootOption {
    /// The option as it is typed.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Kernel => "-kernel",
            Self::Initrd => "-initrd",
            Self::Append => "-append",
        }
    }
}

/// Why a kernel cannot be started. The message is one sentence without the name of the option or the file: the caller
/// prefixes [`LoadError::option`] and the path.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum LoadError {
    /// A kernel file of 0 bytes.
    #[error(
        "the file is empty; give a Linux bzImage (usually /boot/vmlinuz-*) or an ELF kernel with a PVH entry"
    )]
    KernelEmpty,
    /// Neither bzImage nor ELF.
    #[error(
        "the file is {what}; give a Linux bzImage (usually /boot/vmlinuz-*) or an ELF kernel with a PVH entry"
    )]
    NotAKernel {
        /// What the file looks like.
        what: &'static str,
    },
    /// The file is shorter than its own header says.
    #[error("the file is truncated: it has {have} bytes, but its header announces {need}; fetch it again")]
    KernelTruncated {
        /// Bytes in the file.
        have: u64,
        /// Bytes it must have.
        need: u64,
    },
    /// Boot protocol before 2.02, or a zImage.
    #[error(
        "the kernel speaks boot protocol {}.{:02}{}; use a bzImage of Linux 2.4 or newer",
        version >> 8, version & 0xFF, if *zimage { " and is a zImage that loads low" } else { "" }
    )]
    KernelTooOld {
        /// Protocol version, major in the high byte.
        version: u16,
        /// LOADED_HIGH is not set.
        zimage: bool,
    },
    /// A header field that contradicts the protocol.
    #[error("the kernel header is damaged: {field} is {value:#x}; fetch the file again")]
    KernelHeader {
        /// Name of the field in Documentation/arch/x86/boot.rst or the ELF specification.
        field: &'static str,
        /// Its value.
        value: u64,
    },
    /// The kernel does not fit into RAM.
    #[error(
        "the kernel needs RAM from {start:#x} to {end:#x}, but usable RAM ends at {ram_end:#x}; \
         give the guest at least {} MiB with -m", (end >> 20).saturating_add(2)
    )]
    KernelTooLarge {
        /// First address.
        start: u64,
        /// Address after the last byte, including what the kernel needs to unpack itself.
        end: u64,
        /// End of usable low RAM.
        ram_end: u64,
    },
    /// An ELF file for another machine or of another type.
    #[error("the ELF file is {what}; give an x86 kernel (bzImage, or ELF with a PVH entry)")]
    ElfKind {
        /// What it is.
        what: &'static str,
    },
    /// The ELF structures are inconsistent.
    #[error("the ELF file is damaged ({0}); fetch or build it again")]
    ElfDamaged(String),
    /// An ELF file without the note that names the PVH entry.
    #[error("the ELF kernel has no PVH entry note; build it with CONFIG_PVH=y or give its bzImage")]
    NoPvhEntry,
    /// An initrd of 0 bytes.
    #[error("the file is empty; give an initramfs (cpio archive) or leave the option out")]
    InitrdEmpty,
    /// The initrd does not fit between kernel and end of RAM.
    #[error(
        "the file has {size} bytes, but only {room} bytes of guest RAM are free for it{}",
        if *kernel_limit { "; this kernel takes no initrd at higher addresses, so use a smaller one" }
        else { "; give the guest more memory with -m or use a smaller initrd" }
    )]
    InitrdTooLarge {
        /// Bytes in the file.
        size: u64,
        /// Bytes free.
        room: u64,
        /// More RAM would not help: the kernel's `initrd_addr_max` is the limit.
        kernel_limit: bool,
    },
    /// The command line is longer than the kernel takes.
    #[error("the command line has {len} bytes, but this kernel takes at most {max}; shorten it")]
    CmdlineTooLong {
        /// Bytes given.
        len: usize,
        /// Bytes the kernel takes.
        max: usize,
    },
    /// A zero byte in the command line.
    #[error("the command line has a zero byte at offset {at}; remove it")]
    CmdlineNul {
        /// Where.
        at: usize,
    },
    /// The memory map promises RAM that is not there.
    #[error("the kernel cannot be placed: {0}")]
    Memory(#[from] MemoryError),
}

impl LoadError {
    /// The option whose value is wrong.
    #[must_use]
    pub fn option(&self) -> BootOption {
        match self {
            Self::InitrdEmpty | Self::InitrdTooLarge { .. } => BootOption::Initrd,
            Self::CmdlineTooLong { .. } | Self::CmdlineNul { .. } => BootOption::Append,
            _ => BootOption::Kernel,
        }
    }
}

/// Places kernel, initrd and command line in guest memory.
///
/// # Errors
/// [`LoadError`] for every file that cannot be booted; guest memory is unchanged then, unless the error is
/// [`LoadError::Memory`].
pub fn load_linux(mem: &mut dyn GuestMemory, boot: &LinuxBoot<'_>) -> Result<BootEntry, LoadError> {
    if boot.kernel.is_empty() {
        return Err(LoadError::KernelEmpty);
    }
    if boot.initrd.is_some_and(<[u8]>::is_empty) {
        return Err(LoadError::InitrdEmpty);
    }
    if let Some(at) = boot.cmdline.iter().position(|&byte| byte == 0) {
        return Err(LoadError::CmdlineNul { at });
    }
    if bzimage::recognise(boot.kernel) {
        bzimage::load(mem, boot)
    } else if boot.kernel.starts_with(b"\x7FELF") {
        pvh::load(mem, boot)
    } else {
        Err(LoadError::NotAKernel { what: describe(boot.kernel) })
    }
}

/// Names the common wrong files, so that the message helps.
fn describe(file: &[u8]) -> &'static str {
    const MAGICS: [(&[u8], &str); 9] = [
        (b"\x1F\x8B", "gzip-compressed data (unpack it first)"),
        (b"\xFD7zXZ", "xz-compressed data (unpack it first)"),
        (b"\x28\xB5\x2F\xFD", "zstd-compressed data (unpack it first)"),
        (b"BZh", "bzip2-compressed data (unpack it first)"),
        (b"!<arch>", "a Debian package or archive (unpack it first)"),
        (b"QFI\xFB", "a qcow2 disk image"),
        (b"070701", "a cpio archive (is it the initrd?)"),
        (b"MZ", "an EFI or DOS program that is not an x86 Linux kernel"),
        (b"#!", "a script"),
    ];
    if let Some((_, what)) = MAGICS.iter().find(|(magic, _)| file.starts_with(magic)) {
        return what;
    }
    if file.len() < 0x202 + 4 { "too short to be a kernel" } else { "not an x86 kernel" }
}

/// Checks the command line against what the kernel takes (`kernel_max` bytes without the zero).
fn check_cmdline(cmdline: &[u8], kernel_max: usize) -> Result<(), LoadError> {
    let max = kernel_max.min(CMDLINE_MAX - 1);
    if cmdline.len() > max {
        return Err(LoadError::CmdlineTooLong { len: cmdline.len(), max });
    }
    Ok(())
}

/// Finds the highest page-aligned place for an initrd of `size` bytes between `kernel_end` and the end of RAM, not
/// beyond `limit` (the last address the kernel takes plus one).
fn place_initrd(size: u64, kernel_end: u64, ram_end: u64, limit: u64) -> Result<u64, LoadError> {
    let top = ram_end.min(limit);
    let floor = kernel_end.checked_next_multiple_of(0x1000).unwrap_or(u64::MAX);
    match top.checked_sub(size).map(|addr| addr & !0xFFF) {
        Some(addr) if addr >= floor => Ok(addr),
        _ => Err(LoadError::InitrdTooLarge {
            size,
            room: top.saturating_sub(floor),
            kernel_limit: limit.saturating_sub(floor) < size,
        }),
    }
}

/// Writes what both protocols share and returns the entry state.
fn finish(
    mem: &mut dyn GuestMemory,
    cmdline: &[u8],
    eip: u32,
    esi: u32,
    ebx: u32,
) -> Result<BootEntry, MemoryError> {
    let gdt: Vec<u8> = GDT.iter().flat_map(|entry| entry.to_le_bytes()).collect();
    mem.write(GDT_ADDR, &gdt)?;
    mem.write(CMDLINE_ADDR, cmdline)?;
    mem.write(CMDLINE_ADDR + cmdline.len() as u64, &[0])?;
    Ok(BootEntry::Protected32 { eip, esi, ebx, gdt_base: GDT_ADDR as u32, gdt_limit: gdt.len() as u16 - 1 })
}

/// End of the usable RAM a kernel may be placed in.
fn ram_end(map: &[E820Entry]) -> u64 {
    e820::extended_ram(map).end
}
