//! The system functions on a small machine: 4 MiB of RAM, descriptor tables, ports that remember.

#[cfg(target_arch = "x86_64")]
mod breakpoints;
mod delivery;
#[cfg(target_arch = "x86_64")]
mod engine;
#[cfg(target_arch = "x86_64")]
mod groups;
#[cfg(target_arch = "x86_64")]
mod memos;
#[cfg(target_arch = "x86_64")]
mod models;
#[cfg(target_arch = "x86_64")]
mod paging;
#[cfg(target_arch = "x86_64")]
mod precise;
mod registers;
#[cfg(target_arch = "x86_64")]
mod rules;
#[cfg(target_arch = "x86_64")]
mod smm;
#[cfg(target_arch = "x86_64")]
mod templates;
#[cfg(target_arch = "x86_64")]
mod traces;
mod transfers;
mod walks;

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::sync::{Arc, Mutex};

use tessera_tcg::exec::{Context, Remote};
use tessera_tcg::guest::Exception;
use tessera_tcg::memory::{PhysMemory, RamPage};

use super::segment::{Descriptor, enter_code};
use super::{control, msr};
use crate::cpuid;
use crate::guest::X86;
use crate::platform::{InvalidMsr, Platform};
use crate::state::{Cr0, Cr4, Efer, RFlags, Segment, TableRegister, X86Env, reg, seg};

const SIZE: usize = 4 << 20;

/// RAM from physical address 0; nothing else.
struct Ram(*mut u8);

// SAFETY: a pointer to an allocation that the struct owns; accesses are those of one test's thread.
unsafe impl Send for Ram {}
// SAFETY: as above.
unsafe impl Sync for Ram {}

fn layout() -> Layout {
    Layout::from_size_align(SIZE, 4096).expect("a valid layout")
}

impl Drop for Ram {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout, and nobody has it after the last reference is gone.
        unsafe { dealloc(self.0, layout()) };
    }
}

impl PhysMemory for Ram {
    fn ram_page(&self, phys: u64) -> Option<RamPage> {
        let page = phys as usize & !0xfff;
        (phys < SIZE as u64).then(|| RamPage { host: self.0.wrapping_add(page), writable: true })
    }
    fn mmio_read(&self, phys: u64, _: u32) -> u64 {
        DEVICE.with_borrow_mut(|device| {
            device.accesses.push(('r', phys));
            if let Some((to, value)) = device.writes {
                // SAFETY: within the allocation and aligned, as the test says, whose thread is the only one.
                unsafe { self.0.add(to as usize).cast::<u64>().write(value) };
            }
        });
        u64::MAX
    }
    fn mmio_write(&self, phys: u64, _: u32, _: u64) {
        DEVICE.with_borrow_mut(|device| device.accesses.push(('w', phys)));
    }
}

/// What is where no RAM is; each test's thread has its own.
#[derive(Default)]
struct Device {
    /// Accesses: whether they read or write, and where.
    accesses: Vec<(char, u64)>,
    /// Where in RAM it writes, and what, when it is read.
    writes: Option<(u64, u64)>,
}

thread_local! {
    static DEVICE: std::cell::RefCell<Device> = std::cell::RefCell::default();
}

/// What the platform is told and tells.
#[derive(Default)]
struct Board {
    tsc: u64,
    deadline: u64,
    interrupt: Option<u8>,
    /// An interrupt that shows up once events have been looked at.
    interrupt_after_poll: Option<u8>,
    /// Somebody who asks for events again whenever they are looked at.
    again: Option<Arc<Remote>>,
    nmi: bool,
    smi: bool,
    init: bool,
    /// Entries to and exits from system-management mode.
    smm: Vec<bool>,
    /// Stop when that mode has been left.
    stop_after_smm: bool,
    tpr: u8,
    a20_closed: bool,
    written: Vec<(u16, u32, u32)>,
    next_input: u32,
    ferr: bool,
    /// IGNNE# is not asserted.
    honour_ferr: bool,
}

struct TestPlatform(Arc<Mutex<Board>>);

impl TestPlatform {
    fn board(&self) -> std::sync::MutexGuard<'_, Board> {
        self.0.lock().expect("no test panics with the lock")
    }
}

impl Platform for TestPlatform {
    fn port_in(&mut self, _: u16, size: u32) -> u32 {
        let mut board = self.board();
        board.next_input += 1;
        board.next_input & u32::MAX >> (32 - 8 * size)
    }
    fn port_out(&mut self, port: u16, size: u32, value: u32) {
        self.board().written.push((port, size, value));
    }
    fn tsc(&mut self) -> u64 {
        self.board().tsc
    }
    fn tsc_hz(&self) -> u64 {
        1_000_000_000
    }
    fn interrupt_pending(&self) -> bool {
        self.board().interrupt.is_some()
    }
    fn acknowledge_interrupt(&mut self) -> Option<u8> {
        self.board().interrupt.take()
    }
    fn take_nmi(&mut self) -> bool {
        std::mem::take(&mut self.board().nmi)
    }
    fn take_smi(&mut self) -> bool {
        std::mem::take(&mut self.board().smi)
    }
    fn take_init(&mut self) -> bool {
        std::mem::take(&mut self.board().init)
    }
    fn stop_requested(&self) -> bool {
        let board = self.board();
        board.stop_after_smm && board.smm.last() == Some(&false)
    }
    fn smm_changed(&mut self, active: bool) {
        self.board().smm.push(active);
    }
    fn take_sipi(&mut self) -> Option<u8> {
        None
    }
    fn event_pending(&self) -> bool {
        if let Some(remote) = &self.board().again {
            remote.kick();
        }
        let mut board = self.board();
        let later = board.interrupt_after_poll.take();
        if later.is_some() {
            board.interrupt = later;
            return false;
        }
        board.interrupt.is_some() || board.nmi || board.smi || board.init || board.stop_after_smm
    }
    fn tpr(&self) -> u8 {
        self.board().tpr
    }
    fn set_tpr(&mut self, class: u8) {
        self.board().tpr = class;
    }
    fn apic_base(&self) -> u64 {
        0xfee0_0900
    }
    fn set_apic_base(&mut self, _: u64) -> Result<(), InvalidMsr> {
        Err(InvalidMsr)
    }
    fn apic_msr_read(&mut self, msr: u32) -> Result<u64, InvalidMsr> {
        if msr == msr::index::TSC_DEADLINE { Ok(self.board().deadline) } else { Err(InvalidMsr) }
    }
    fn apic_msr_write(&mut self, msr: u32, value: u64) -> Result<(), InvalidMsr> {
        if msr != msr::index::TSC_DEADLINE {
            return Err(InvalidMsr);
        }
        self.board().deadline = value;
        Ok(())
    }
    fn a20_mask(&self) -> u64 {
        if self.board().a20_closed { !(1 << 20) } else { u64::MAX }
    }
    fn ferr(&mut self, asserted: bool) {
        self.board().ferr = asserted;
    }
    fn ignne(&self) -> bool {
        !self.board().honour_ferr
    }
}

const GDT: u64 = 0x1000;
const IDT: u64 = 0x2000;
const TSS: u64 = 0x3000;
const TSS2: u64 = 0x3800;
const HANDLER: u64 = 0x5000;
const KERNEL_STACK: u64 = 0x8000;
const RING0_STACK: u64 = 0x9000;
const USER_STACK: u64 = 0xa000;
const TABLES: u64 = 0x1_0000;
/// The fifth level's table.
const TOP_TABLE: u64 = 0x1_8000;

const CODE32: u16 = 0x08;
const DATA: u16 = 0x10;
const USER_CODE32: u16 = 0x1b;
const USER_DATA: u16 = 0x23;
const CODE64: u16 = 0x28;
const USER_CODE64: u16 = 0x33;
const TASK: u16 = 0x38;
const TASK2: u16 = 0x48;
/// A slot for what a test needs.
const SPARE: u16 = 0x50;

/// What has an environment and runs it, or lets tests do so.
trait Processor {
    fn new(env: Box<X86Env>, ram: Arc<Ram>) -> Self;
    fn env(&mut self) -> &mut X86Env;
}

impl Processor for Context<X86> {
    fn new(env: Box<X86Env>, ram: Arc<Ram>) -> Self {
        Context::new(env, ram, 8).expect("a small code cache")
    }
    fn env(&mut self) -> &mut X86Env {
        self.env_mut()
    }
}

struct Machine<P = Context<X86>> {
    processor: P,
    ram: Arc<Ram>,
    board: Arc<Mutex<Board>>,
}

impl<P: Processor> Machine<P> {
    /// After reset: real mode.
    fn real() -> Self {
        Self::of_model("max,+la57")
    }

    /// The same for any CPU model.
    fn of_model(model: &str) -> Self {
        // SAFETY: the layout is not empty.
        let ram = Arc::new(Ram(unsafe { alloc_zeroed(layout()) }));
        let board = Arc::new(Mutex::new(Board::default()));
        let model = cpuid::parse(model).expect("a model that exists");
        let env = X86Env::new(Box::new(TestPlatform(board.clone())), model);
        Machine { processor: P::new(env, ram.clone()), ram, board }
    }

    /// 32-bit protected mode without paging, flat segments, CPL 0.
    fn protected() -> Self {
        Self::real().into_protected()
    }

    fn into_protected(self) -> Self {
        let mut m = self;
        for (n, descriptor) in [
            0,
            0x00cf_9a00_0000_ffff,
            0x00cf_9200_0000_ffff,
            0x00cf_fa00_0000_ffff,
            0x00cf_f200_0000_ffff,
            0x00af_9a00_0000_ffff,
            0x00af_fa00_0000_ffff,
            system_descriptor(TSS, 0x20ff, 0x89),
            0,
            system_descriptor(TSS2, 0x67, 0x89),
        ]
        .into_iter()
        .enumerate()
        {
            m.put(GDT + 8 * n as u64, 8, descriptor);
        }
        m.put(TSS + 4, 4, RING0_STACK);
        m.put(TSS + 8, 2, DATA as u64);
        m.put(TSS + 0x66, 2, 0x100);
        let e = m.env();
        e.gdtr = TableRegister { base: GDT, limit: 0xff };
        e.idtr = TableRegister { base: IDT, limit: 0x7ff };
        control::write_cr0(e, (Cr0::PE | Cr0::ET | Cr0::NE | Cr0::WP).bits()).expect("allowed");
        m.set_level(0, false);
        super::tables::ltr(m.env(), TASK).expect("a good TSS");
        m
    }

    /// Long mode, 64-bit code, first 4 MiB mapped to themselves for everybody, in pages of 4 KiB. CPL 0.
    fn long() -> Self {
        Self::long_with(Cr4::empty())
    }

    /// The same with these bits of CR4, and with a fifth level of tables if LA57 is among them.
    fn long_with(cr4: Cr4) -> Self {
        let mut m = Self::protected();
        m.put(TABLES, 8, TABLES + 0x1007);
        m.put(TABLES + 0x1000, 8, TABLES + 0x2007);
        for n in 0..2 {
            m.put(TABLES + 0x2000 + 8 * n, 8, TABLES + 0x3007 + 0x1000 * n);
        }
        for n in 0..1024 {
            m.put(TABLES + 0x3000 + 8 * n, 8, n << 12 | 7);
        }
        m.put(TOP_TABLE, 8, TABLES | 7);
        m.put(TSS + 4, 8, RING0_STACK);
        m.put(TSS + 36, 8, RING0_STACK + 0x800);
        let e = m.env();
        control::write_cr4(e, (Cr4::PAE | Cr4::PGE | cr4).bits()).expect("allowed");
        let root = if cr4.contains(Cr4::LA57) { TOP_TABLE } else { TABLES };
        control::write_cr3(e, root).expect("allowed");
        control::write_efer(e, (Efer::LME | Efer::NXE | Efer::SCE).bits()).expect("allowed");
        let cr0 = e.cr0.bits();
        control::write_cr0(e, cr0 | Cr0::PG.bits()).expect("allowed");
        assert!(e.efer.contains(Efer::LMA));
        m.set_level(0, true);
        m
    }

    fn env(&mut self) -> &mut X86Env {
        self.processor.env()
    }

    /// Runs at a privilege level: code at 4000h, a stack, flat data.
    fn set_level(&mut self, cpl: u8, code64: bool) {
        let (code, data, stack) = match (cpl, code64) {
            (0, false) => (CODE32, DATA, KERNEL_STACK),
            (0, true) => (CODE64, DATA, KERNEL_STACK),
            (_, false) => (USER_CODE32, USER_DATA, USER_STACK),
            (_, true) => (USER_CODE64, USER_DATA, USER_STACK),
        };
        let read = |m: &Self, selector: u16| Descriptor(m.get(GDT + (selector & !7) as u64, 8) | 1 << 40);
        let (code_desc, data_desc) = (read(self, code), read(self, data));
        let e = self.env();
        for n in [seg::ES, seg::SS, seg::DS, seg::FS, seg::GS] {
            e.set_segment(n, data_desc.segment(data));
        }
        enter_code(e, code_desc, code, cpl, 0x4000);
        e.gpr[reg::RSP] = stack;
        e.update_mode();
    }

    fn put(&self, phys: u64, size: usize, value: u64) {
        assert!(phys as usize + size <= SIZE);
        let bytes = value.to_le_bytes();
        // SAFETY: in the allocation, as just checked.
        unsafe { self.ram.0.add(phys as usize).copy_from_nonoverlapping(bytes.as_ptr(), size) };
    }

    fn get(&self, phys: u64, size: usize) -> u64 {
        assert!(phys as usize + size <= SIZE);
        let mut bytes = [0u8; 8];
        // SAFETY: in the allocation, as just checked.
        unsafe { self.ram.0.add(phys as usize).copy_to_nonoverlapping(bytes.as_mut_ptr(), size) };
        u64::from_le_bytes(bytes)
    }

    /// A gate of protected mode (or, in long mode, of 16 bytes).
    fn gate(&mut self, vector: u64, access: u64, selector: u16, ip: u64, ist: u64) {
        let low =
            ip & 0xffff | (selector as u64) << 16 | access << 40 | ist << 32 | (ip >> 16 & 0xffff) << 48;
        if self.env().efer.contains(Efer::LMA) {
            self.put(IDT + 16 * vector, 8, low);
            self.put(IDT + 16 * vector + 8, 8, ip >> 32);
        } else {
            self.put(IDT + 8 * vector, 8, low);
        }
    }

    fn board(&self) -> std::sync::MutexGuard<'_, Board> {
        self.board.lock().expect("no test panics with the lock")
    }
}

fn system_descriptor(base: u64, limit: u64, access: u64) -> u64 {
    limit & 0xffff
        | (limit >> 16 & 0xf) << 48
        | (base & 0xff_ffff) << 16
        | (base >> 24 & 0xff) << 56
        | access << 40
}

fn raised<T: std::fmt::Debug>(result: super::Result<T>) -> (u16, Option<u32>) {
    let Exception { vector, error, .. } = result.expect_err("an exception");
    (vector, error)
}

/// Everything that must not change when something faults.
fn snapshot(e: &X86Env) -> ([u64; 16], u64, u64, [Segment; 8], u8) {
    (e.gpr, e.rip, e.rflags(), e.seg, e.cpl)
}

fn flag(e: &X86Env, f: RFlags) -> bool {
    e.rflags() & f.bits() != 0
}
