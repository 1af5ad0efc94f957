//! A toy guest for tests of the execution loop and the software MMU.
//!
//! Instructions are six bytes at any alignment: opcode, registers (`a` in the low nibble, `b` in the high one), signed
//! 32-bit immediate. Addresses are translated by a list of mappings in the environment.

use std::mem::offset_of;
use std::sync::{Arc, Mutex};

use crate::env::Header;
use crate::guest::{
    Access, BlockKey, CodeFetch, Effects, Exception, Guest, HelperDesc, Mapping, Next, TranslateLimits,
    Translated,
};
use crate::ir::{
    BinOp, Builder, Cond, Exit, Ext, FlagOp, GlobalDesc, GlobalId, GlobalSet, HelperId, Inst, MemFlags,
    RmwOp, Ty, Width,
};
use crate::memory::{PAGE_MASK, PAGE_SIZE, PhysMemory, RamPage};
use crate::softmmu;

/// RAM from 0 to this, ROM in its last page, MMIO above.
pub(crate) const RAM: u64 = 8 << 20;
/// The ROM page.
pub(crate) const ROM: u64 = RAM - PAGE_SIZE;

#[repr(C, align(4096))]
struct Page([u8; PAGE_SIZE as usize]);

/// Memory of the toy machine; MMIO reads give the address, writes are recorded.
pub(crate) struct ToyMemory {
    pages: *mut Page,
    pub written: Mutex<Vec<(u64, u32, u64)>>,
    pub read: Mutex<Vec<(u64, u32)>>,
}

// SAFETY: the memory is accessed by raw reads and writes only, and freed when nobody has the object any more.
unsafe impl Send for ToyMemory {}
// SAFETY: as above.
unsafe impl Sync for ToyMemory {}

impl ToyMemory {
    pub fn new() -> Arc<ToyMemory> {
        let pages: Box<[Page]> = (0..RAM / PAGE_SIZE).map(|_| Page([0; PAGE_SIZE as usize])).collect();
        let pages = Box::leak(pages).as_mut_ptr();
        Arc::new(ToyMemory { pages, written: Mutex::default(), read: Mutex::default() })
    }

    pub fn poke(&self, phys: u64, bytes: &[u8]) {
        assert!(phys + bytes.len() as u64 <= RAM);
        // SAFETY: just checked to be in bounds.
        unsafe {
            let to = self.pages.cast::<u8>().add(phys as usize);
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len());
        }
    }

    pub fn peek(&self, phys: u64, size: usize) -> u64 {
        assert!(phys + 8 <= RAM);
        let mut bytes = [0; 8];
        // SAFETY: just checked to be in bounds.
        unsafe {
            let from = self.pages.cast::<u8>().add(phys as usize);
            std::ptr::copy_nonoverlapping(from, bytes.as_mut_ptr(), size);
        }
        u64::from_le_bytes(bytes)
    }
}

impl Drop for ToyMemory {
    fn drop(&mut self) {
        let slice = std::ptr::slice_from_raw_parts_mut(self.pages, (RAM / PAGE_SIZE) as usize);
        // SAFETY: made by `Box::leak` of a slice of this length.
        drop(unsafe { Box::from_raw(slice) });
    }
}

impl PhysMemory for ToyMemory {
    fn ram_page(&self, phys: u64) -> Option<RamPage> {
        let host = self.pages.wrapping_add((phys / PAGE_SIZE) as usize).cast();
        (phys < RAM).then_some(RamPage { host, writable: phys < ROM })
    }

    fn ram_range(&self, phys: u64, len: u64) -> Option<RamPage> {
        let end = phys.checked_add(len)?;
        let one = end <= ROM || (ROM..RAM).contains(&phys) && end <= RAM;
        if one { self.ram_page(phys) } else { None }
    }

    fn mmio_read(&self, phys: u64, size: u32) -> u64 {
        self.read.lock().unwrap().push((phys, size));
        phys & (u64::MAX >> (64 - 8 * size))
    }

    fn mmio_write(&self, phys: u64, size: u32, value: u64) {
        self.written.lock().unwrap().push((phys, size, value));
    }
}

/// A mapping of one page (or large page) in one address space, or in all (`global`).
#[derive(Clone, Copy)]
pub(crate) struct ToyMapping {
    pub space: u64,
    pub va: u64,
    pub mapping: Mapping,
}

/// The environment.
#[repr(C)]
pub(crate) struct ToyEnv {
    pub header: Header,
    pub r: [u64; 8],
    pub pc: u64,
    pub flags: u32,
    pub space: u64,
    pub mode: u64,
    pub mappings: Vec<ToyMapping>,
    /// Walks so far, of each kind of access.
    pub walks: Mutex<[u32; 3]>,
    /// Exceptions delivered: with the program counter and registers at that time.
    pub exceptions: Vec<(Exception, u64, [u64; 8])>,
    /// Where exceptions go on; 0 ends the run with code 100.
    pub handler: u64,
    pub polls: u32,
    /// Ends the run with code 77 at this poll.
    pub stop_at_poll: u32,
    /// Program counters at polls.
    pub polled_at: Vec<u64>,
}

impl ToyEnv {
    pub fn new() -> Box<ToyEnv> {
        Box::new(ToyEnv {
            header: Header::new(),
            r: [0; 8],
            pc: 0,
            flags: 0,
            space: 1,
            mode: 0,
            mappings: Vec::new(),
            walks: Mutex::default(),
            exceptions: Vec::new(),
            handler: 0,
            polls: 0,
            stop_at_poll: u32::MAX,
            polled_at: Vec::new(),
        })
    }

    pub fn map(&mut self, space: u64, va: u64, phys: u64) -> &mut Mapping {
        let mapping = Mapping {
            phys,
            page_bits: 12,
            alike_bits: 12,
            read: true,
            write: true,
            execute: true,
            global: false,
        };
        self.mappings.push(ToyMapping { space, va, mapping });
        &mut self.mappings.last_mut().unwrap().mapping
    }

    /// Maps `0..RAM`, and as much MMIO, to itself in space 1.
    pub fn identity(&mut self) {
        for page in 0..2 * RAM / PAGE_SIZE {
            self.map(1, page * PAGE_SIZE, page * PAGE_SIZE);
        }
    }

    pub fn walk_count(&self, access: Access) -> u32 {
        self.walks.lock().unwrap()[access as usize]
    }
}

/// Opcodes.
#[derive(Clone, Copy, Debug)]
#[repr(u8)]
pub(crate) enum Op {
    Halt,
    MovI,
    AddI,
    /// `a = [b + imm]`
    Load,
    /// `[b + imm] = a`
    Store,
    Store8,
    /// Relative to the instruction.
    Jmp,
    /// If `a` is not zero.
    Jnz,
    /// To the address in `a`.
    JmpR,
    /// `[b + imm] = a` by a helper.
    HelperStore,
    /// Flushes the page of the address in `a`.
    FlushPage,
    /// Switches to the space in `a`.
    SetSpace,
    /// Raises exception 9 by a helper.
    Fault,
    /// `[b + imm] += a`, old value to `a`.
    AtomicAdd,
    /// Asks for a poll.
    Kick,
    /// One instruction runs before events are looked at.
    Shadow,
}

/// Assembles an instruction.
pub(crate) fn asm(op: Op, a: u8, b: u8, imm: i32) -> [u8; 6] {
    let i = imm.to_le_bytes();
    [op as u8, a | b << 4, i[0], i[1], i[2], i[3]]
}

/// Length of an instruction.
pub(crate) const LEN: u64 = 6;

extern "C" fn helper_store(env: &mut ToyEnv, va: u64, v: u64) -> u64 {
    if let Err(e) = softmmu::store::<Toy>(env, va, 8, v, 0) {
        softmmu::raise::<Toy>(env, e);
    }
    0
}

extern "C" fn helper_flush(env: &mut ToyEnv, va: u64) -> u64 {
    softmmu::flush_page::<Toy>(env, env.space, va);
    0
}

extern "C" fn helper_space(env: &mut ToyEnv, space: u64) -> u64 {
    env.space = space;
    softmmu::switch_space::<Toy>(env);
    0
}

extern "C" fn helper_fault(env: &mut ToyEnv) -> u64 {
    softmmu::raise::<Toy>(env, Exception { vector: 9, error: None, address: 0 });
    0
}

extern "C" fn helper_kick(env: &mut ToyEnv) -> u64 {
    env.header.exit_request.set();
    0
}

static HELPERS: &[HelperDesc] = &[
    HelperDesc {
        name: "store",
        func: || helper_store as *const (),
        args: 2,
        effects: Effects::FAULTS,
        shortcut: None,
    },
    HelperDesc {
        name: "flush",
        func: || helper_flush as *const (),
        args: 1,
        effects: Effects::ALL,
        shortcut: None,
    },
    HelperDesc {
        name: "space",
        func: || helper_space as *const (),
        args: 1,
        effects: Effects::ALL,
        shortcut: None,
    },
    HelperDesc {
        name: "fault",
        func: || helper_fault as *const (),
        args: 0,
        effects: Effects::FAULTS,
        shortcut: None,
    },
    HelperDesc {
        name: "kick",
        func: || helper_kick as *const (),
        args: 0,
        effects: Effects::STATE,
        shortcut: None,
    },
];

const PC: GlobalId = GlobalId(8);

const fn reg(name: &'static str, n: usize) -> GlobalDesc {
    let offset = (offset_of!(ToyEnv, r) + 8 * n) as u32;
    GlobalDesc { name, ty: Ty::Int, offset, bytes: 8, pin: Some(n as u8), overlaps: None }
}

static GLOBALS: &[GlobalDesc] = &[
    reg("r0", 0),
    reg("r1", 1),
    reg("r2", 2),
    reg("r3", 3),
    reg("r4", 4),
    reg("r5", 5),
    reg("r6", 6),
    reg("r7", 7),
    GlobalDesc {
        name: "pc",
        ty: Ty::Int,
        offset: offset_of!(ToyEnv, pc) as u32,
        bytes: 8,
        pin: None,
        overlaps: None,
    },
];

/// The guest.
pub(crate) struct Toy;

impl Guest for Toy {
    type Env = ToyEnv;

    fn globals() -> &'static [GlobalDesc] {
        GLOBALS
    }
    fn pc_global() -> GlobalId {
        PC
    }
    fn helpers() -> &'static [HelperDesc] {
        HELPERS
    }
    fn fp_control() -> Option<u32> {
        None
    }
    fn header(env: &mut ToyEnv) -> &mut Header {
        &mut env.header
    }
    fn block_key(env: &ToyEnv) -> BlockKey {
        BlockKey::new(env.pc, env.mode)
    }
    fn set_pc(env: &mut ToyEnv, pc: u64) {
        env.pc = pc;
    }

    fn translate(
        _: &ToyEnv,
        key: BlockKey,
        limits: TranslateLimits<'_>,
        code: &mut dyn CodeFetch,
        ir: &mut Builder,
    ) -> Result<Translated, Exception> {
        let mut t = Front { ir, page: key.pc & !PAGE_MASK };
        let mut pc = key.pc;
        for n in 1.. {
            let mut insn = [0; LEN as usize];
            let head = code.fetch(pc)?;
            let len = head.len().min(LEN as usize);
            insn[..len].copy_from_slice(&head[..len]);
            if len < LEN as usize {
                match code.fetch(pc + len as u64) {
                    Ok(rest) => insn[len..].copy_from_slice(&rest[..LEN as usize - len]),
                    Err(e) if n == 1 => return Err(e),
                    Err(_) => {
                        t.goto(pc);
                        return Ok(Translated { bytes: (pc - key.pc) as u32, insns: n - 1 });
                    }
                }
            }
            let ended = t.insn(pc, insn);
            pc += LEN;
            let last = n >= limits.max_insns || pc & !PAGE_MASK != t.page;
            if !ended && last {
                t.goto(pc);
            }
            if ended || last {
                return Ok(Translated { bytes: (pc - key.pc) as u32, insns: n });
            }
        }
        unreachable!()
    }

    fn disassemble(_: BlockKey, _: u64, bytes: &[u8]) -> (String, usize) {
        (format!("op {}", bytes[0]), bytes.len().min(LEN as usize))
    }

    fn walk(
        env: &ToyEnv,
        _: &Arc<dyn PhysMemory>,
        va: u64,
        access: Access,
        mmu: u8,
    ) -> Result<Mapping, Exception> {
        env.walks.lock().unwrap()[access as usize] += 1;
        let fault = Exception { vector: 14, error: Some(access as u32 | u32::from(mmu) << 8), address: va };
        // The last one counts, so that a test can map something anew.
        let m = env.mappings.iter().rev().find(|m| {
            let bits = m.mapping.page_bits;
            (m.space == env.space || m.mapping.global) && m.va >> bits == va >> bits
        });
        let Some(m) = m else { return Err(fault) };
        let allowed = match access {
            Access::Read => m.mapping.read,
            Access::Write => m.mapping.write,
            Access::Execute => m.mapping.execute,
        };
        let within = va & ((1 << m.mapping.page_bits) - 1) & !PAGE_MASK;
        if allowed { Ok(Mapping { phys: m.mapping.phys + within, ..m.mapping }) } else { Err(fault) }
    }

    fn misaligned(va: u64) -> Exception {
        Exception { vector: 17, error: None, address: va }
    }

    fn main_mmu(_: u64) -> u8 {
        0
    }

    fn fetch_mmu(_: &ToyEnv) -> u8 {
        0
    }
    fn address_space(env: &ToyEnv) -> u64 {
        env.space
    }

    fn deliver_exception(env: &mut ToyEnv, exception: Exception) -> Next {
        env.exceptions.push((exception, env.pc, env.r));
        if env.handler == 0 {
            return Next::Exit(100);
        }
        env.pc = env.handler;
        Next::Continue
    }

    fn handle_leave(_: &mut ToyEnv, code: u32) -> Next {
        match code {
            0 => Next::Exit(0),
            2 => Next::ContinueOne,
            _ => Next::Continue,
        }
    }

    fn poll_events(env: &mut ToyEnv) -> Next {
        env.polls += 1;
        env.polled_at.push(env.pc);
        if env.polls >= env.stop_at_poll { Next::Exit(77) } else { Next::Continue }
    }
}

struct Front<'a> {
    ir: &'a mut Builder,
    page: u64,
}

const MEM: MemFlags = MemFlags { mmu: 0, for_write: false, align: false };

impl Front<'_> {
    fn exit(&mut self, from: u64, pc: u64) -> crate::ir::ExitId {
        let chain = pc & !PAGE_MASK == self.page;
        self.ir.exit(Exit { pc, indirect: false, poll: pc <= from, chain, dead: GlobalSet::NONE })
    }

    fn goto(&mut self, pc: u64) {
        let exit = self.exit(0, pc);
        self.ir.push(Inst::Goto(exit));
    }

    /// Whether the instruction ends the block.
    fn insn(&mut self, pc: u64, insn: [u8; 6]) -> bool {
        let (a, b) = (GlobalId(insn[1] & 7), GlobalId(insn[1] >> 4 & 7));
        let imm = i64::from(i32::from_le_bytes([insn[2], insn[3], insn[4], insn[5]]));
        let op = |o: Op| insn[0] == o as u8;
        self.ir.push(Inst::InsnStart { pc });
        let address = |ir: &mut Builder| {
            let base = ir.get(b);
            ir.add_imm(Width::W64, base, imm)
        };
        if op(Op::MovI) {
            let v = self.ir.iconst(imm as u64);
            self.ir.set(a, v);
        } else if op(Op::AddI) {
            let v = self.ir.get(a);
            let v = self.ir.bin_imm(BinOp::Add, Width::W64, v, imm as u64);
            self.ir.set(a, v);
        } else if op(Op::Load) {
            let addr = address(self.ir);
            let v = self.ir.load(Width::W64, Ext::Zero, addr, MEM);
            self.ir.set(a, v);
        } else if op(Op::Store) || op(Op::Store8) {
            let addr = address(self.ir);
            let v = self.ir.get(a);
            self.ir.store(if op(Op::Store) { Width::W64 } else { Width::W8 }, addr, v, MEM);
        } else if op(Op::AtomicAdd) {
            let addr = address(self.ir);
            let v = self.ir.get(a);
            let old = self.ir.push(Inst::AtomicRmw { op: RmwOp::Add, width: Width::W64, addr, v, mem: MEM });
            self.ir.set(a, old);
        } else if op(Op::HelperStore) {
            let addr = address(self.ir);
            let v = self.ir.get(a);
            self.ir.call(HelperId(0), &[addr, v]);
        } else if op(Op::Fault) {
            self.ir.call(HelperId(3), &[]);
        } else if op(Op::Kick) {
            self.ir.call(HelperId(4), &[]);
        } else if op(Op::Jmp) {
            let exit = self.exit(pc, pc.wrapping_add(imm as u64));
            self.ir.push(Inst::Goto(exit));
            return true;
        } else if op(Op::Jnz) {
            let v = self.ir.get(a);
            let f = self.ir.flags(FlagOp::And, Width::W64, v, v);
            let taken = self.exit(pc, pc.wrapping_add(imm as u64));
            let fall = self.exit(pc, pc + LEN);
            self.ir.push(Inst::Branch { cond: Cond::NE, f, taken, fall });
            return true;
        } else if op(Op::JmpR) {
            let v = self.ir.get(a);
            self.ir.set(PC, v);
            self.ir.push(Inst::GotoIndirect);
            return true;
        } else {
            let code = if op(Op::Halt) {
                0
            } else if op(Op::Shadow) {
                2
            } else {
                let v = self.ir.get(a);
                self.ir.call(HelperId(if op(Op::FlushPage) { 1 } else { 2 }), &[v]);
                1
            };
            let next = self.ir.iconst(pc + LEN);
            self.ir.set(PC, next);
            self.ir.push(Inst::Leave { code });
            return true;
        }
        false
    }
}
