//! Routines that look at the rest of a software TLB's table, for accesses that missed the first way: one for each way to go on
//! when there is nothing to find ([`OnMiss`]), MMU mode, direction and size, at a fixed distance from each other. The larger
//! sizes are for groups of accesses.
//!
//! They look at the second way; then at the first, because what missed may have been the test of a group that does not fit its
//! page, and a page that is in the first way need not be in the second; then at the large entries. At last most call a
//! function of the runtime ([`RuntimeFns::refill`](crate::backend::RuntimeFns::refill)) that enters the page: it needs to know
//! no more than the address, so nothing but what a call destroys is saved, and no side table is looked at. What is left after
//! that needs the access's slow path: faults, devices, watched pages, stores to code, accesses across pages.
//!
//! Called with RAX = guest-virtual address; RCX is scratch, nothing else changes. On return the host's carry flag is set if
//! the access may be done directly; then RAX is the entry's addend, else unspecified.
//!
//! ```text
//! ; a store only:
//! mov  rcx, [env.runtime]
//! sub  rax, [rcx + window.start]                       ; where stores beside code go all the time: see `softmmu::window`
//! cmp  rax, [rcx + window.room]                        ; of this size
//! jae  outside
//! mov  rax, [rcx + window.addend]
//! ret
//! outside: add rax, [rcx + window.start]
//! ; both:
//! push rdx
//! mov  rdx, rax               mov  rcx, rdx
//! shr  rdx, 12                shr  rcx, 9
//! and  ecx, -2                xor  ecx, edx            ; index: n ^ (n >> 9 & !1)
//! and  ecx, ENTRIES - 1       shl  ecx, 5
//! add  rcx, [env.tlb[mmu]]
//! lea  rdx, [rax + n - 1]     and  rdx, -4096
//! cmp  rdx, [rcx + SECOND_WAY + tag]
//! jne  first
//! ; a store only:
//! mov  rdx, [rcx + SECOND_WAY + lines]
//! mov  rdx, [rdx]
//! ror  rax, 6                 shrx rdx, rdx, rax       ; bit 0: line of the first byte
//! rol  rax, 6                 and  eax, 63
//! add  eax, n - 1             shr  eax, 6
//! inc  eax                    bzhi rdx, rdx, rax       ; as many lines as the access touches
//! jne  miss
//! ; both:
//! mov  rdx, [env.runtime]
//! dec  dword [rdx + second_way_left]
//! js   miss
//! mov  rax, [rcx + SECOND_WAY + addend]
//! pop  rdx
//! stc
//! ret
//! miss: pop rdx; test rsp, rsp; ret
//! first:
//! mov  ecx, eax               shr  ecx, 7              ; RDX: the page of the last byte, as above
//! and  ecx, INDEX_MASK        add  rcx, [env.tlb[mmu]]
//! cmp  rdx, [rcx + tag]       je   first_hit
//! mov  rcx, rax               shr  rcx, 21
//! and  ecx, LARGE_ENTRIES - 1 shl  ecx, 5
//! add  rcx, [env.tlb[mmu]]
//! and  rdx, -1 << 21
//! cmp  rdx, [rcx + LARGE + tag]
//! jne  refill
//! dec  dword [runtime.large_left]
//! js   refill
//! mov  rax, [rcx + LARGE + addend]
//! pop  rdx
//! stc
//! ret
//! first_hit:                                           ; likewise, with the first way's addend
//! refill:                                              ; or else as `miss`
//! pop  rdx
//! mov  ecx, how
//! jmp  call_refill
//! ```
//!
//! An access that crosses pages within a large one hits there. One that crosses large ones does not: its index is that of the
//! first byte's, its tag that of the last one's, which belongs at another index.
//!
//! A page that another one displaced from the first way goes back there by way of the slow path, once in so many hits
//! (`second_way_left`). For one with code, which cannot go there, the slow path opens a window.

use std::mem::offset_of;

use super::control::emit_load_tlb;
use super::emitter::{env_mem, runtime_mem};
use super::encode::{Alu, Asm, Mem, Shift, r};
use super::thunks::{call, pop, push};
use super::vec::{VecMem, emit_vec_load, emit_vec_store};
use super::{CALLER_SAVED, ENV_BIAS, VEC_ALLOC};
use crate::backend::Refill;
use crate::env::{Header, Runtime};
use crate::ir::{Cond, VecSize, Width};
use crate::softmmu::{
    ACCESS_SIZES, LARGE, LARGE_BITS, LARGE_ENTRIES, MMU_MODES, SECOND_WAY, SecondWayEntry, TLB_ENTRIES,
    TlbEntry, Window, Windows,
};

/// Bytes from one routine to the next.
const STRIDE: usize = 320;

/// Routines of one [`OnMiss`].
const ROUTINES: usize = MMU_MODES * 2 * ACCESS_SIZES;

/// What a routine does when the page is not in the TLB.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum OnMiss {
    /// It says so.
    Return,
    /// It calls the runtime. No vector register is in use.
    Refill,
    /// It calls the runtime. Vector registers are in use, but the upper halves of all are zero.
    RefillVec,
}

impl OnMiss {
    const ALL: [OnMiss; 3] = [OnMiss::Return, OnMiss::Refill, OnMiss::RefillVec];
}

/// Address of the routine for accesses of a size that is a power of two, the first being at `base`.
pub fn routine(base: u64, on_miss: OnMiss, of: Refill) -> u64 {
    let Refill { mmu, write, bytes } = of;
    let size = bytes.trailing_zeros() as usize;
    debug_assert!(bytes.is_power_of_two() && size < ACCESS_SIZES);
    let n = (mmu as usize % MMU_MODES * 2 + write as usize) * ACCESS_SIZES + size;
    base + ((on_miss as usize * ROUTINES + n) * STRIDE) as u64
}

/// All routines, in the order in which they lie.
fn all() -> impl Iterator<Item = (OnMiss, Refill)> {
    OnMiss::ALL.into_iter().flat_map(|on_miss| {
        (0..ROUTINES).map(move |n| {
            let (mmu, write, bytes) =
                ((n / ACCESS_SIZES / 2) as u8, (n / ACCESS_SIZES) & 1 != 0, 1 << (n % ACCESS_SIZES));
            (on_miss, Refill { mmu, write, bytes })
        })
    })
}

/// The name of the routine at an address, the first being at `base`.
pub fn name_of(base: u64, address: u64) -> Option<String> {
    let (on_miss, Refill { mmu, write, bytes }) =
        all().find(|(on_miss, of)| routine(base, *on_miss, *of) == address)?;
    let then = match on_miss {
        OnMiss::Return => "",
        OnMiss::Refill => "_refill",
        OnMiss::RefillVec => "_refill_vec",
    };
    Some(format!("second_way_{}{bytes}_mmu{mmu}{then}", if write { "store" } else { "load" }))
}

/// Appends all routines; `refill` is [`RuntimeFns::refill`](crate::backend::RuntimeFns::refill). Returns the offset of the first.
pub fn emit(asm: &mut Asm, refill: usize) -> usize {
    let refill_at = [false, true].map(|vec| {
        let at = asm.len();
        emit_refill(asm, refill, vec);
        at
    });
    asm.buf.resize(asm.len().next_multiple_of(16), 0xcc);
    let first = asm.len();
    for (on_miss, of) in all() {
        let end = asm.len() + STRIDE;
        let refill = match on_miss {
            OnMiss::Return => None,
            OnMiss::Refill => Some(refill_at[0]),
            OnMiss::RefillVec => Some(refill_at[1]),
        };
        one(asm, of, refill);
        assert!(asm.len() <= end, "a routine fits its place");
        asm.buf.resize(end, 0xcc);
    }
    first
}

/// Jumped to from a routine, with the address in RAX and how it is accessed in RCX: calls the runtime, and returns for the routine.
fn emit_refill(asm: &mut Asm, refill: usize, vec: bool) {
    const SLOT: i32 = 16;
    let saved = CALLER_SAVED;
    let vectors = if vec { VEC_ALLOC } else { 0..0 };
    // With the return address of the routine, this keeps the stack aligned.
    let frame = SLOT * i32::from(vectors.end) + if saved.len().is_multiple_of(2) { 8 } else { 0 };
    for reg in saved {
        push(asm, reg);
    }
    asm.lea(Width::W64, r::RSP, r::RSP, None, -frame);
    for reg in vectors.clone() {
        emit_vec_store(&mut asm.buf, VecSize::B16, reg, VecMem::base(r::RSP, SLOT * i32::from(reg)));
    }
    asm.lea(Width::W64, r::RDI, r::RBP, None, -ENV_BIAS);
    asm.mov_rr(r::RSI, r::RAX);
    asm.mov_rr(r::RDX, r::RCX);
    call(asm, refill);
    for reg in vectors {
        emit_vec_load(&mut asm.buf, VecSize::B16, reg, VecMem::base(r::RSP, SLOT * i32::from(reg)));
    }
    asm.lea(Width::W64, r::RSP, r::RSP, None, frame);
    for reg in saved.into_iter().rev() {
        pop(asm, reg);
    }
    emit_load_tlb(asm);
    // Carry unless it is REFILL_NONE: bt eax, 0; cmc; ret
    asm.buf.extend_from_slice(&[0x0f, 0xba, 0xe0, 0, 0xf5, 0xc3]);
}

fn one(asm: &mut Asm, of: Refill, refill: Option<usize>) {
    let Refill { mmu, write, bytes } = of;
    let (size, bytes) = (bytes.trailing_zeros() as usize, i32::from(bytes));
    let mmu = mmu as usize;
    const ENTRY_BITS: u8 = size_of::<SecondWayEntry>().trailing_zeros() as u8;
    const FIRST_BITS: u8 = size_of::<TlbEntry>().trailing_zeros() as u8;
    let table = env_mem((offset_of!(Header, tlb) + 8 * mmu) as u32);
    let field = |offset: usize| Mem::Base(r::RCX, (SECOND_WAY + offset) as i32);
    let (read_tag, write_tag) = (offset_of!(SecondWayEntry, read), offset_of!(SecondWayEntry, write));
    if write {
        look_at_window(asm, mmu, size);
    }
    push(asm, r::RDX);
    asm.mov_rr(r::RDX, r::RAX);
    asm.shift_ri(Shift::Shr, Width::W64, r::RDX, 12);
    asm.mov_rr(r::RCX, r::RDX);
    asm.shift_ri(Shift::Shr, Width::W64, r::RCX, 9);
    asm.alu_ri(Alu::And, Width::W32, r::RCX, -2);
    asm.alu_rr(Alu::Xor, Width::W32, r::RCX, r::RDX);
    asm.alu_ri(Alu::And, Width::W32, r::RCX, TLB_ENTRIES as i32 - 1);
    asm.shift_ri(Shift::Shl, Width::W32, r::RCX, ENTRY_BITS);
    asm.alu_rm(Alu::Add, Width::W64, r::RCX, env_mem((offset_of!(Header, tlb) + 8 * mmu) as u32));
    asm.lea(Width::W64, r::RDX, r::RAX, None, bytes - 1);
    asm.alu_ri(Alu::And, Width::W64, r::RDX, -4096);
    asm.alu_rm(Alu::Cmp, Width::W64, r::RDX, field(if write { write_tag } else { read_tag }));
    let first = asm.jcc(Cond::NE);
    let mut misses = vec![];
    if write {
        asm.load(Width::W64, r::RDX, field(offset_of!(SecondWayEntry, lines)));
        asm.load(Width::W64, r::RDX, Mem::Base(r::RDX, 0));
        asm.shift_ri(Shift::Ror, Width::W64, r::RAX, 6);
        asm.shiftx(Shift::Shr, Width::W64, r::RDX, r::RDX, r::RAX);
        asm.shift_ri(Shift::Rol, Width::W64, r::RAX, 6);
        asm.alu_ri(Alu::And, Width::W32, r::RAX, 63);
        asm.alu_ri(Alu::Add, Width::W32, r::RAX, bytes - 1);
        asm.shift_ri(Shift::Shr, Width::W32, r::RAX, 6);
        asm.incdec(0, Width::W32, r::RAX);
        // bzhi rdx, rdx, rax
        asm.buf.extend_from_slice(&[0xc4, 0xe2, 0xf8, 0xf5, 0xd2]);
        misses.push(asm.jcc(Cond::NE));
    }
    misses.push(count_down(asm, offset_of!(Runtime, second_way_left)));
    emit_hit(asm, SECOND_WAY + offset_of!(SecondWayEntry, addend));
    let here = asm.len();
    asm.patch_rel32(first, here);
    let addend = offset_of!(TlbEntry, addend);
    let tag = if write { offset_of!(TlbEntry, write) } else { offset_of!(TlbEntry, read) };
    asm.mov_rr(r::RCX, r::RAX);
    asm.shift_ri(Shift::Shr, Width::W32, r::RCX, 12 - FIRST_BITS);
    asm.alu_ri(Alu::And, Width::W32, r::RCX, ((TLB_ENTRIES - 1) << FIRST_BITS) as i32);
    asm.alu_rm(Alu::Add, Width::W64, r::RCX, table);
    asm.alu_rm(Alu::Cmp, Width::W64, r::RDX, Mem::Base(r::RCX, tag as i32));
    let first_hit = asm.jcc(Cond::E);
    asm.mov_rr(r::RCX, r::RAX);
    asm.shift_ri(Shift::Shr, Width::W64, r::RCX, LARGE_BITS as u8);
    asm.alu_ri(Alu::And, Width::W32, r::RCX, LARGE_ENTRIES as i32 - 1);
    asm.shift_ri(Shift::Shl, Width::W32, r::RCX, FIRST_BITS);
    asm.alu_rm(Alu::Add, Width::W64, r::RCX, table);
    asm.alu_ri(Alu::And, Width::W64, r::RDX, -1 << LARGE_BITS);
    asm.alu_rm(Alu::Cmp, Width::W64, r::RDX, Mem::Base(r::RCX, (LARGE + tag) as i32));
    let not_large = asm.jcc(Cond::NE);
    let large_misses = [not_large, count_down(asm, offset_of!(Runtime, large_left))];
    emit_hit(asm, LARGE + addend);
    let here = asm.len();
    asm.patch_rel32(first_hit, here);
    emit_hit(asm, addend);
    match refill {
        Some(refill) => {
            let here = asm.len();
            for jump in large_misses {
                asm.patch_rel32(jump, here);
            }
            pop(asm, r::RDX);
            asm.mov_ri(r::RCX, of.encode().into());
            let out = asm.jmp();
            asm.patch_rel32(out, refill);
        }
        None => misses.extend(large_misses),
    }
    let miss = asm.len();
    for jump in misses {
        asm.patch_rel32(jump, miss);
    }
    pop(asm, r::RDX);
    asm.test_rr(Width::W64, r::RSP, r::RSP);
    asm.buf.push(0xc3);
}

/// Counts down a field of the runtime. Returns the jump that is taken when it was 0.
fn count_down(asm: &mut Asm, field: usize) -> usize {
    asm.incdec_mem32(1, runtime_mem(field));
    asm.jcc(Cond::S)
}

/// Returns a hit: the addend is at this distance from RCX.
fn emit_hit(asm: &mut Asm, addend: usize) {
    asm.load(Width::W64, r::RAX, Mem::Base(r::RCX, addend as i32));
    pop(asm, r::RDX);
    // stc; ret
    asm.buf.extend_from_slice(&[0xf9, 0xc3]);
}

/// Returns a hit if the access is in the window of its MMU mode.
fn look_at_window(asm: &mut Asm, mmu: usize, size: usize) {
    let window = offset_of!(Runtime, windows) + offset_of!(Windows, modes) + mmu * size_of::<Window>();
    let field = |offset: usize| runtime_mem(window + offset);
    asm.alu_rm(Alu::Sub, Width::W64, r::RAX, field(offset_of!(Window, start)));
    asm.alu_rm(Alu::Cmp, Width::W64, r::RAX, field(offset_of!(Window, room) + 8 * size));
    let outside = asm.jcc(Cond::AE);
    asm.load(Width::W64, r::RAX, field(offset_of!(Window, addend)));
    asm.buf.push(0xc3);
    let here = asm.len();
    asm.patch_rel32(outside, here);
    asm.alu_rm(Alu::Add, Width::W64, r::RAX, field(offset_of!(Window, start)));
}
