//! Guest-physical memory: page tables, the little that a kernel needs, the window, and the shared code area.

use tessera_tcg::memory::{PhysMemory, RamPage};

use crate::layout::{
    CODE, CODE_BYTES, CS32, CS64, DATA_SELECTOR, DONE, IMAGE, IMAGE_AT, PAGE, PAGES, PageKind, WINDOW,
};

/// Private RAM, from physical address 0.
const RAM: usize = 2 << 20;
const TABLES: u64 = 0x1000;
const GDT: u64 = 0x8_0000;
const IDT: u64 = 0x8_1000;
const TSS: u64 = 0x8_2000;
const STACK: u64 = 0x8_3000;
const HANDLERS: u64 = 0x8_4000;
const KERNEL_PAGES: u64 = 5;
const DONE_PAGE: u64 = 0x9_0000;
/// The window's pages.
const IMAGE_PHYS: u64 = 0x10_0000;
/// The code area.
pub const CODE_PHYS: u64 = 0x100_0000;
/// Virtual address of the kernel's pages.
const KERNEL: u64 = 0xffff_8000_0000_0000;

/// Limit of the GDT: 16 entries, as Linux has it.
pub const GDT_LIMIT: u16 = 127;

const USER: u64 = 4;
const WRITE: u64 = 2;
const NO_EXECUTE: u64 = 1 << 63;
/// Present, accessed, dirty.
const THERE: u64 = 0x61;

/// Virtual addresses of what the kernel has.
pub struct Kernel {
    /// CR3.
    pub cr3: u64,
    /// Base of the GDT.
    pub gdt: u64,
    /// Base of the IDT.
    pub idt: u64,
    /// Base of the TSS.
    pub tss: u64,
}

/// Guest memory. It is used by one thread at a time.
pub struct GuestMemory {
    ram: memmap2::MmapRaw,
    code: *mut u8,
}

// SAFETY: plain memory behind raw pointers, used by the thread that has the vCPU; the code area lives as long as the native
// side, which the owner of both drops last.
unsafe impl Send for GuestMemory {}
// SAFETY: as above.
unsafe impl Sync for GuestMemory {}

impl PhysMemory for GuestMemory {
    fn ram_page(&self, phys: u64) -> Option<RamPage> {
        let page = phys & !(PAGE as u64 - 1);
        if page < RAM as u64 {
            return Some(RamPage { host: self.ram.as_mut_ptr().wrapping_add(page as usize), writable: true });
        }
        let at = page.wrapping_sub(CODE_PHYS);
        (at < CODE_BYTES as u64)
            .then(|| RamPage { host: self.code.wrapping_add(at as usize), writable: false })
    }
    fn ram_range(&self, phys: u64, len: u64) -> Option<RamPage> {
        let end = phys.checked_add(len)?;
        let code_end = CODE_PHYS + CODE_BYTES as u64;
        let one = end <= RAM as u64 || (CODE_PHYS..code_end).contains(&phys) && end <= code_end;
        if one { self.ram_page(phys) } else { None }
    }
    fn mmio_read(&self, _: u64, size: u32) -> u64 {
        u64::MAX >> (64 - 8 * size)
    }
    fn mmio_write(&self, _: u64, _: u32, _: u64) {}
}

impl GuestMemory {
    /// Memory with everything in place.
    ///
    /// # Safety
    /// `code` leads to [`CODE_BYTES`] of memory that stays as long as the result, and that nobody writes to while the guest
    /// runs.
    pub unsafe fn new(code: *mut u8) -> std::io::Result<GuestMemory> {
        let memory = GuestMemory { ram: memmap2::MmapOptions::new().len(RAM).map_anon()?.into(), code };
        let mut next = TABLES + PAGE as u64;
        for n in 0..CODE_BYTES as u64 / PAGE as u64 {
            let at = n * PAGE as u64;
            memory.map(&mut next, CODE + at, (CODE_PHYS + at) | THERE | USER);
        }
        let mut phys = IMAGE_PHYS;
        for (n, kind) in PAGES.into_iter().enumerate() {
            let write = match kind {
                PageKind::Missing => continue,
                PageKind::Writable => WRITE,
                PageKind::ReadOnly => 0,
            };
            memory.map(&mut next, WINDOW + (n * PAGE) as u64, phys | THERE | USER | NO_EXECUTE | write);
            phys += PAGE as u64;
        }
        memory.map(&mut next, DONE, DONE_PAGE | THERE | USER);
        for n in 0..KERNEL_PAGES {
            memory.map(&mut next, KERNEL + n * PAGE as u64, (GDT + n * PAGE as u64) | THERE | WRITE);
        }
        memory.write(DONE_PAGE, &[0x0f, 0x0b].repeat(PAGE / 2));
        memory.descriptors();
        Ok(memory)
    }

    /// Virtual addresses and CR3.
    pub fn kernel(&self) -> Kernel {
        Kernel { cr3: TABLES, gdt: KERNEL, idt: KERNEL + IDT - GDT, tss: KERNEL + TSS - GDT }
    }

    fn descriptors(&self) {
        let (code32, code64, data) = (0x00cf_9b00_0000_ffffu64, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff);
        let user = 3 << 45;
        // Linux's order, so that selectors mean the same.
        let tss = KERNEL + TSS - GDT;
        let tss_low = 0x67 | (tss & 0xff_ffff) << 16 | 0x8b << 40 | (tss >> 24 & 0xff) << 56;
        let entries = [
            (1, code32),
            (2, code64),
            (3, data),
            (CS32 as u64 / 8, code32 | user),
            (DATA_SELECTOR as u64 / 8, data | user),
            (CS64 as u64 / 8, code64 | user),
            (8, tss_low),
            (9, tss >> 32),
        ];
        for (n, entry) in entries {
            self.write(GDT + 8 * n, &entry.to_le_bytes());
        }
        // RSP0; no I/O permission map within the limit.
        self.write(TSS + 4, &(KERNEL + STACK - GDT + PAGE as u64).to_le_bytes());
        self.write(TSS + 0x66, &0x68u16.to_le_bytes());
        for vector in 0..32 {
            let handler = KERNEL + HANDLERS - GDT + 16 * vector;
            // An interrupt gate; software may use those of INT3 and INTO.
            let dpl = if matches!(vector, 3 | 4) { 3 } else { 0 };
            let low =
                handler & 0xffff | 0x10 << 16 | (0x8e00 | dpl << 13) << 32 | (handler >> 16 & 0xffff) << 48;
            self.write(IDT + 16 * vector, &low.to_le_bytes());
            self.write(IDT + 16 * vector + 8, &(handler >> 32).to_le_bytes());
            self.write(HANDLERS + 16 * vector, &[0xf4]);
        }
    }

    /// Vector whose handler has halted with this instruction pointer.
    pub fn handler_vector(&self, rip: u64) -> u64 {
        rip.wrapping_sub(KERNEL + HANDLERS - GDT) / 16
    }

    /// Words on the kernel's stack; zero if RSP is elsewhere.
    pub fn kernel_stack(&self, rsp: u64) -> [u64; 4] {
        let at = rsp.wrapping_sub(KERNEL + STACK - GDT);
        if at > PAGE as u64 - 32 {
            return [0; 4];
        }
        std::array::from_fn(|n| {
            let mut word = [0; 8];
            self.read(STACK + at + 8 * n as u64, &mut word);
            u64::from_le_bytes(word)
        })
    }

    fn map(&self, next: &mut u64, va: u64, entry: u64) {
        let mut table = TABLES;
        for level in [39, 30, 21] {
            let slot = table + (va >> level & 511) * 8;
            let mut word = [0; 8];
            self.read(slot, &mut word);
            let mut inner = u64::from_le_bytes(word);
            if inner == 0 {
                inner = *next | THERE | USER | WRITE;
                *next += PAGE as u64;
                self.write(slot, &inner.to_le_bytes());
            }
            table = inner & !0xfff;
        }
        self.write(table + (va >> 12 & 511) * 8, &entry.to_le_bytes());
    }

    fn write(&self, phys: u64, bytes: &[u8]) {
        assert!(phys as usize + bytes.len() <= RAM);
        // SAFETY: in bounds, as just checked, and no vCPU runs on this memory, which belongs to one thread.
        unsafe {
            std::ptr::copy_nonoverlapping(
                bytes.as_ptr(),
                self.ram.as_mut_ptr().add(phys as usize),
                bytes.len(),
            );
        }
    }

    fn read(&self, phys: u64, bytes: &mut [u8]) {
        assert!(phys as usize + bytes.len() <= RAM);
        // SAFETY: as in `write`.
        unsafe {
            std::ptr::copy_nonoverlapping(
                self.ram.as_ptr().add(phys as usize),
                bytes.as_mut_ptr(),
                bytes.len(),
            );
        }
    }

    /// Sets the window's contents.
    pub fn set_image(&self, image: &[u8]) {
        assert!(image.len() == IMAGE);
        self.write(IMAGE_PHYS, image);
    }

    /// The window's contents.
    pub fn image(&self) -> &[u8] {
        // SAFETY: within the RAM; no vCPU runs while a caller on the only thread holds it.
        unsafe { std::slice::from_raw_parts(self.ram.as_ptr().add(IMAGE_PHYS as usize), IMAGE) }
    }

    /// Code from a virtual address to the end of its page.
    pub fn code(&self, va: u64) -> Option<&[u8]> {
        let at = va.checked_sub(CODE).filter(|at| *at < CODE_BYTES as u64)? as usize;
        let len = PAGE - at % PAGE;
        // SAFETY: within the code area by the check; nobody writes to it while the guest runs.
        Some(unsafe { std::slice::from_raw_parts(self.code.add(at), len) })
    }
}

const _: () = assert!(IMAGE_AT == WINDOW + PAGE as u64);
