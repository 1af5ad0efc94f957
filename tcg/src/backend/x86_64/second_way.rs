//! Routines that look at the rest of a software TLB's table, for accesses that missed the first way: one for each MMU
//! mode, direction and size, at a fixed distance from each other.
//!
//! They look at the second way; then at the first, because what missed may have been the test of a whole access group that does
//! not fit its page, and a page that is in the first way need not be in the second; then at the large entries.
//!
//! Called with RAX = guest-virtual address; RCX is scratch, nothing else changes. On return the host's flags say "equal" if
//! the access may be done directly; then RAX is the entry's addend.
//!
//! ```text
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
//! test rdx, rdx               jz   displaced           ; no code in the page
//! ror  rax, 6                 bt   rdx, rax            ; line of the first byte
//! jc   miss
//! rol  rax, 6                 add  rax, n - 1
//! shr  rax, 6                 bt   rdx, rax            ; and of the last one
//! jc   miss
//! hit:                                                 ; a load: behind `displaced`
//! mov  rax, [rcx + SECOND_WAY + addend]
//! pop  rdx
//! cmp  eax, eax
//! ret
//! ; both:
//! displaced:
//! mov  rdx, [env.runtime]
//! dec  dword [rdx + second_way_left]
//! jns  hit                                              ; a load falls through to it
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
//! jne  miss
//! mov  rdx, [env.runtime]
//! dec  dword [rdx + large_left]
//! js   miss
//! mov  rax, [rcx + LARGE + addend]
//! pop  rdx
//! cmp  eax, eax
//! ret
//! first_hit:                                           ; likewise, with the first way's addend
//! ```
//!
//! An access that crosses pages within a large one hits there. One that crosses large ones does not: its index is that of the
//! first byte's, its tag that of the last one's, which belongs at another index.
//!
//! A page that another one displaced from the first way goes back there by way of the slow path, once in so many hits
//! (`second_way_left`). Where code keeps it from there, that would be of no use, so such stores do not count.

use std::mem::offset_of;

use super::emitter::{env_mem, runtime_mem};
use super::encode::{Alu, Asm, Mem, Shift, r};
use super::thunks::{pop, push};
use crate::env::{Header, Runtime};
use crate::ir::{Cond, Width};
use crate::softmmu::{
    LARGE, LARGE_BITS, LARGE_ENTRIES, MMU_MODES, SECOND_WAY, SecondWayEntry, TLB_ENTRIES, TlbEntry,
};

/// Bytes from one routine to the next.
const STRIDE: usize = 288;
/// Sizes: 1, 2, 4, … 32 bytes.
const SIZES: usize = 6;

/// Address of the routine for accesses of `bytes` bytes (a power of two), the first being at `base`.
pub fn routine(base: u64, mmu: u8, write: bool, bytes: u32) -> u64 {
    let size = bytes.trailing_zeros() as usize;
    debug_assert!(bytes.is_power_of_two() && size < SIZES);
    let n = (mmu as usize % MMU_MODES * 2 + write as usize) * SIZES + size;
    base + (n * STRIDE) as u64
}

/// The name of the routine at an address, the first being at `base`.
pub fn name_of(base: u64, address: u64) -> Option<String> {
    let mut all = (0..MMU_MODES as u8).flat_map(|mmu| {
        [false, true]
            .into_iter()
            .flat_map(move |write| (0..SIZES).map(move |size| (mmu, write, 1u32 << size)))
    });
    let (mmu, write, bytes) = all.find(|&(mmu, write, bytes)| routine(base, mmu, write, bytes) == address)?;
    Some(format!("second_way_{}{bytes}_mmu{mmu}", if write { "store" } else { "load" }))
}

/// Appends all routines.
pub fn emit(asm: &mut Asm) {
    for mmu in 0..MMU_MODES {
        for write in [false, true] {
            for size in 0..SIZES {
                let end = asm.len() + STRIDE;
                one(asm, mmu, write, 1 << size);
                assert!(asm.len() <= end, "a routine fits its place");
                asm.buf.resize(end, 0xcc);
            }
        }
    }
}

fn one(asm: &mut Asm, mmu: usize, write: bool, bytes: i32) {
    const ENTRY_BITS: u8 = size_of::<SecondWayEntry>().trailing_zeros() as u8;
    const FIRST_BITS: u8 = size_of::<TlbEntry>().trailing_zeros() as u8;
    let table = env_mem((offset_of!(Header, tlb) + 8 * mmu) as u32);
    let field = |offset: usize| Mem::Base(r::RCX, (SECOND_WAY + offset) as i32);
    let (read_tag, write_tag) = (offset_of!(SecondWayEntry, read), offset_of!(SecondWayEntry, write));
    push(asm, r::RDX);
    asm.mov_rr(r::RDX, r::RAX);
    asm.shift_ri(Shift::Shr, Width::W64, r::RDX, 12);
    asm.mov_rr(r::RCX, r::RDX);
    asm.shift_ri(Shift::Shr, Width::W64, r::RCX, 9);
    asm.alu_ri(Alu::And, Width::W32, r::RCX, -2);
    asm.alu_rr(Alu::Xor, Width::W32, r::RCX, r::RDX);
    asm.alu_ri(Alu::And, Width::W32, r::RCX, TLB_ENTRIES as i32 - 1);
    asm.shift_ri(Shift::Shl, Width::W32, r::RCX, ENTRY_BITS);
    asm.alu_rm(Alu::Add, Width::W64, r::RCX, table);
    asm.lea(Width::W64, r::RDX, r::RAX, None, bytes - 1);
    asm.alu_ri(Alu::And, Width::W64, r::RDX, -4096);
    asm.alu_rm(Alu::Cmp, Width::W64, r::RDX, field(if write { write_tag } else { read_tag }));
    let first = asm.jcc(Cond::NE);
    let mut misses = vec![];
    let mut displaced = None;
    let mut hit = None;
    if write {
        asm.load(Width::W64, r::RDX, field(offset_of!(SecondWayEntry, lines)));
        asm.load(Width::W64, r::RDX, Mem::Base(r::RDX, 0));
        asm.test_rr(Width::W64, r::RDX, r::RDX);
        displaced = Some(asm.jcc(Cond::E));
        asm.shift_ri(Shift::Ror, Width::W64, r::RAX, 6);
        misses.push(jump_if_bit(asm, r::RDX, r::RAX));
        if bytes > 1 {
            asm.shift_ri(Shift::Rol, Width::W64, r::RAX, 6);
            asm.alu_ri(Alu::Add, Width::W64, r::RAX, bytes - 1);
            asm.shift_ri(Shift::Shr, Width::W64, r::RAX, 6);
            misses.push(jump_if_bit(asm, r::RDX, r::RAX));
        }
        hit = Some(asm.len());
        emit_hit(asm, SECOND_WAY + offset_of!(SecondWayEntry, addend));
    }
    if let Some(jump) = displaced {
        let here = asm.len();
        asm.patch_rel32(jump, here);
    }
    count_down(asm, offset_of!(Runtime, second_way_left));
    match hit {
        Some(hit) => {
            let jump = asm.jcc(Cond::NS);
            asm.patch_rel32(jump, hit);
            misses.push(asm.jmp());
        }
        None => {
            misses.push(asm.jcc(Cond::S));
            emit_hit(asm, SECOND_WAY + offset_of!(SecondWayEntry, addend));
        }
    }
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
    misses.push(asm.jcc(Cond::NE));
    count_down(asm, offset_of!(Runtime, large_left));
    misses.push(asm.jcc(Cond::S));
    emit_hit(asm, LARGE + addend);
    let here = asm.len();
    asm.patch_rel32(first_hit, here);
    emit_hit(asm, addend);
    let miss = asm.len();
    for jump in misses {
        asm.patch_rel32(jump, miss);
    }
    pop(asm, r::RDX);
    asm.test_rr(Width::W64, r::RSP, r::RSP);
    asm.buf.push(0xc3);
}

/// Counts down a field of the runtime, which RDX then points to.
fn count_down(asm: &mut Asm, field: usize) {
    asm.load(Width::W64, r::RDX, runtime_mem());
    // dec dword
    asm.buf.push(0xff);
    asm.modrm_mem(1, Mem::Base(r::RDX, field as i32));
}

/// Returns a hit: the addend is at this distance from RCX.
fn emit_hit(asm: &mut Asm, addend: usize) {
    asm.load(Width::W64, r::RAX, Mem::Base(r::RCX, addend as i32));
    pop(asm, r::RDX);
    asm.alu_rr(Alu::Cmp, Width::W32, r::RAX, r::RAX);
    asm.buf.push(0xc3);
}

/// Jumps if the bit of `word` is set that the low six bits of `index` name.
fn jump_if_bit(asm: &mut Asm, word: u8, index: u8) -> usize {
    debug_assert!(word < 8 && index < 8);
    // bt word, index
    asm.buf.extend_from_slice(&[0x48, 0x0f, 0xa3, 0xc0 | index << 3 | word]);
    asm.jcc(Cond::B)
}
