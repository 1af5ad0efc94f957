//! Routines that look at the second way of a software TLB's table, for accesses that missed the first: one for each MMU
//! mode, direction and size, at a fixed distance from each other. The larger sizes are for groups of accesses.
//!
//! Called with RAX = guest-virtual address; RCX is scratch, nothing else changes. On return the host's carry flag is set if
//! the access may be done directly; then RAX is the entry's addend.
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
//! jne  miss
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
//! ```
//!
//! A page that another one displaced from the first way goes back there by way of the slow path, once in so many hits
//! (`second_way_left`). For one with code, which cannot go there, the slow path opens a window.

use std::mem::offset_of;

use super::emitter::{env_mem, runtime_mem};
use super::encode::{Alu, Asm, Mem, Shift, r};
use super::thunks::{pop, push};
use crate::env::{Header, Runtime};
use crate::ir::{Cond, Width};
use crate::softmmu::{ACCESS_SIZES, MMU_MODES, SECOND_WAY, SecondWayEntry, TLB_ENTRIES, Window, Windows};

/// Bytes from one routine to the next.
const STRIDE: usize = 208;

/// Address of the routine for accesses of `bytes` bytes (a power of two), the first being at `base`.
pub fn routine(base: u64, mmu: u8, write: bool, bytes: u32) -> u64 {
    let size = bytes.trailing_zeros() as usize;
    debug_assert!(bytes.is_power_of_two() && size < ACCESS_SIZES);
    let n = (mmu as usize % MMU_MODES * 2 + write as usize) * ACCESS_SIZES + size;
    base + (n * STRIDE) as u64
}

/// The name of the routine at an address, the first being at `base`.
pub fn name_of(base: u64, address: u64) -> Option<String> {
    let mut all = (0..MMU_MODES as u8).flat_map(|mmu| {
        [false, true]
            .into_iter()
            .flat_map(move |write| (0..ACCESS_SIZES).map(move |size| (mmu, write, 1u32 << size)))
    });
    let (mmu, write, bytes) = all.find(|&(mmu, write, bytes)| routine(base, mmu, write, bytes) == address)?;
    Some(format!("second_way_{}{bytes}_mmu{mmu}", if write { "store" } else { "load" }))
}

/// Appends all routines.
pub fn emit(asm: &mut Asm) {
    for mmu in 0..MMU_MODES {
        for write in [false, true] {
            for size in 0..ACCESS_SIZES {
                let end = asm.len() + STRIDE;
                one(asm, mmu, write, size);
                assert!(asm.len() <= end, "a routine fits its place");
                asm.buf.resize(end, 0xcc);
            }
        }
    }
}

fn one(asm: &mut Asm, mmu: usize, write: bool, size: usize) {
    const ENTRY_BITS: u8 = size_of::<SecondWayEntry>().trailing_zeros() as u8;
    let bytes = 1 << size;
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
    let mut misses = vec![asm.jcc(Cond::NE)];
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
    // dec dword
    asm.buf.push(0xff);
    asm.modrm_mem(1, runtime_mem(offset_of!(Runtime, second_way_left)));
    misses.push(asm.jcc(Cond::S));
    asm.load(Width::W64, r::RAX, field(offset_of!(SecondWayEntry, addend)));
    pop(asm, r::RDX);
    // stc; ret
    asm.buf.extend_from_slice(&[0xf9, 0xc3]);
    let miss = asm.len();
    for jump in misses {
        asm.patch_rel32(jump, miss);
    }
    pop(asm, r::RDX);
    asm.test_rr(Width::W64, r::RSP, r::RSP);
    asm.buf.push(0xc3);
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
