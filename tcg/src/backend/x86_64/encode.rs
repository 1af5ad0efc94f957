//! Instruction encoding for families whose member is chosen at run time.
//!
//! Single instructions with fixed mnemonics are written with `dynasm!`; this module has the families that the
//! emitter indexes by operation and width (SDM volume 2, chapter 2 and appendix A). All memory operands here are
//! `[base + disp]` or `[base + index]`.

use dynasmrt::{AssemblyOffset, DynasmApi};

use crate::ir::{Cond, Ext, Width};

/// Host integer registers by hardware number.
pub mod r {
    #![allow(missing_docs)]
    pub const RAX: u8 = 0;
    pub const RCX: u8 = 1;
    pub const RDX: u8 = 2;
    pub const RBX: u8 = 3;
    pub const RSP: u8 = 4;
    pub const RBP: u8 = 5;
    pub const RSI: u8 = 6;
    pub const RDI: u8 = 7;
    pub const R8: u8 = 8;
    pub const R9: u8 = 9;
    pub const R10: u8 = 10;
    pub const R11: u8 = 11;
    pub const R12: u8 = 12;
    pub const R13: u8 = 13;
    pub const R14: u8 = 14;
    pub const R15: u8 = 15;
}

/// The eight classic arithmetic operations, by their opcode digit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
#[allow(missing_docs)]
pub enum Alu {
    Add = 0,
    Or = 1,
    Adc = 2,
    Sbb = 3,
    And = 4,
    Sub = 5,
    Xor = 6,
    Cmp = 7,
}

/// Shifts and rotates, by their opcode digit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
#[allow(missing_docs)]
pub enum Shift {
    Rol = 0,
    Ror = 1,
    Shl = 4,
    Shr = 5,
    Sar = 7,
}

/// A memory operand.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mem {
    /// `[base + disp]`.
    Base(u8, i32),
    /// `[base + index]`.
    Index(u8, u8),
    /// `[base + (index << shift) + disp]`.
    Scaled(u8, u8, u8, i32),
}

/// Bytes that are appended at once, eight at most.
#[derive(Clone, Copy, Default)]
struct Word {
    bytes: u64,
    bits: u32,
}

impl Word {
    #[inline(always)]
    fn push(&mut self, byte: u8) {
        self.push_if(true, byte);
    }

    /// Without a jump.
    #[inline(always)]
    fn push_if(&mut self, wanted: bool, byte: u8) {
        debug_assert!(self.bits < 64);
        self.bytes |= (u64::from(byte) * u64::from(wanted)) << self.bits;
        self.bits += 8 * u32::from(wanted);
    }
}

/// A growing buffer of host code; also the target of `dynasm!`.
#[derive(Default, Debug)]
pub struct Asm {
    /// The bytes so far.
    pub buf: Vec<u8>,
    last_lea: Option<Lea>,
}

/// Where a `lea` was emitted, and what it computes.
#[derive(Clone, Copy, Debug)]
pub struct Lea {
    start: usize,
    end: usize,
    dst: u8,
    w: Width,
    base: u8,
    index: Option<(u8, u8)>,
    disp: i32,
}

impl Extend<u8> for Asm {
    fn extend<T: IntoIterator<Item = u8>>(&mut self, iter: T) {
        self.buf.extend(iter);
    }
}

impl<'a> Extend<&'a u8> for Asm {
    fn extend<T: IntoIterator<Item = &'a u8>>(&mut self, iter: T) {
        self.buf.extend(iter);
    }
}

impl DynasmApi for Asm {
    fn offset(&self) -> AssemblyOffset {
        AssemblyOffset(self.buf.len())
    }

    fn push(&mut self, byte: u8) {
        self.buf.push(byte);
    }

    fn align(&mut self, alignment: usize, with: u8) {
        while !self.buf.len().is_multiple_of(alignment) {
            self.buf.push(with);
        }
    }
}

impl Asm {
    /// Bytes so far.
    pub fn len(&self) -> usize {
        self.buf.len()
    }

    #[inline]
    fn byte(&mut self, b: u8) {
        self.buf.push(b);
    }

    /// Appends a little-endian 32-bit immediate.
    #[inline]
    pub fn imm32(&mut self, v: i32) {
        self.buf.extend_from_slice(&v.to_le_bytes());
    }

    /// Overwrites the 32-bit field at `at` with a displacement to `target`, both offsets in this buffer.
    pub fn patch_rel32(&mut self, at: usize, target: usize) {
        let rel = (target as i64 - (at as i64 + 4)) as i32;
        self.buf[at..at + 4].copy_from_slice(&rel.to_le_bytes());
    }

    /// Appends the bytes of a word.
    #[inline(always)]
    fn word(&mut self, word: Word) {
        // One store of a fixed size and a length that is put right afterwards is what makes emission quick.
        let len = self.buf.len() + word.bits as usize / 8;
        self.buf.extend_from_slice(&word.bytes.to_le_bytes());
        self.buf.truncate(len);
    }

    /// Prefixes, opcode and ModRM of a register-register form. REX is also there where SPL … DIL are meant.
    #[inline(always)]
    fn word_rr(w: Width, opcode: &[u8], reg: u8, rm: u8) -> Word {
        let mut word = Word::default();
        word.push_if(w == Width::W16, 0x66);
        let rex = 0x40 | ((w == Width::W64) as u8) << 3 | (reg >> 3) << 2 | rm >> 3;
        word.push_if(rex != 0x40 || w == Width::W8 && (reg >= 4 || rm >= 4), rex);
        opcode.iter().for_each(|b| word.push(*b));
        word.push(0xc0 | (reg & 7) << 3 | rm & 7);
        word
    }

    #[inline(always)]
    fn op_rr(&mut self, w: Width, opcode: &[u8], reg: u8, rm: u8) {
        self.word(Self::word_rr(w, opcode, reg, rm));
    }

    /// A register form with a byte behind it.
    #[inline(always)]
    fn op_ri8(&mut self, w: Width, opcode: &[u8], reg: u8, rm: u8, imm: u8) {
        let mut word = Self::word_rr(w, opcode, reg, rm);
        word.push(imm);
        self.word(word);
    }

    /// ModRM, SIB and displacement.
    #[inline]
    pub fn modrm_mem(&mut self, reg: u8, mem: Mem) {
        self.finish_mem(Word::default(), reg, mem);
    }

    /// Appends a word, and ModRM, SIB and displacement behind it.
    #[inline(always)]
    fn finish_mem(&mut self, mut word: Word, reg: u8, mem: Mem) {
        let reg = (reg & 7) << 3;
        match mem {
            Mem::Base(base, disp) => {
                let b = base & 7;
                let short = disp == disp as i8 as i32;
                let mode = match disp {
                    0 if b != 5 => 0x00,
                    _ if short => 0x40,
                    _ => 0x80,
                };
                word.push(mode | reg | b);
                word.push_if(b == 4, 0x24);
                word.push_if(mode == 0x40, disp as u8);
                self.word(word);
                if mode == 0x80 {
                    self.imm32(disp);
                }
            }
            Mem::Index(base, index) => {
                debug_assert!(index != r::RSP);
                let mode = if base & 7 == 5 { 0x40 } else { 0x00 };
                word.push(mode | 0x04 | reg);
                word.push((index & 7) << 3 | base & 7);
                word.push_if(mode != 0, 0);
                self.word(word);
            }
            Mem::Scaled(base, index, shift, disp) => {
                debug_assert!(index != r::RSP && shift < 4);
                let short = disp == disp as i8 as i32;
                let mode = match disp {
                    0 if base & 7 != 5 => 0x00,
                    _ if short => 0x40,
                    _ => 0x80,
                };
                word.push(mode | 0x04 | reg);
                word.push(shift << 6 | (index & 7) << 3 | base & 7);
                word.push_if(mode == 0x40, disp as u8);
                self.word(word);
                if mode == 0x80 {
                    self.imm32(disp);
                }
            }
        }
    }

    #[inline(always)]
    fn op_rm(&mut self, w: Width, opcode: &[u8], reg: u8, mem: Mem) {
        self.op_rm_after(Word::default(), w, opcode, reg, mem);
    }

    #[inline(always)]
    fn op_rm_after(&mut self, mut word: Word, w: Width, opcode: &[u8], reg: u8, mem: Mem) {
        word.push_if(w == Width::W16, 0x66);
        let (x, b) = match mem {
            Mem::Base(base, _) => (0, base >> 3),
            Mem::Index(base, index) | Mem::Scaled(base, index, ..) => (index >> 3, base >> 3),
        };
        let rex = 0x40 | ((w == Width::W64) as u8) << 3 | (reg >> 3) << 2 | x << 1 | b;
        word.push_if(rex != 0x40 || w == Width::W8 && reg >= 4, rex);
        opcode.iter().for_each(|b| word.push(*b));
        self.finish_mem(word, reg, mem);
    }

    /// `op dst, src`.
    pub fn alu_rr(&mut self, op: Alu, w: Width, dst: u8, src: u8) {
        let base = (op as u8) << 3 | (w != Width::W8) as u8;
        self.op_rr(w, &[base], src, dst);
    }

    /// `op dst, [mem]`.
    pub fn alu_rm(&mut self, op: Alu, w: Width, dst: u8, mem: Mem) {
        let base = (op as u8) << 3 | 2 | (w != Width::W8) as u8;
        self.op_rm(w, &[base], dst, mem);
    }

    /// `op [mem], src`.
    pub fn alu_mr(&mut self, op: Alu, w: Width, mem: Mem, src: u8) {
        let base = (op as u8) << 3 | (w != Width::W8) as u8;
        self.op_rm(w, &[base], src, mem);
    }

    /// `op [mem], imm`, immediate as in [`Asm::alu_ri`].
    pub fn alu_mi(&mut self, op: Alu, w: Width, mem: Mem, imm: i32) {
        match w {
            Width::W8 => {
                self.op_rm(w, &[0x80], op as u8, mem);
                self.byte(imm as u8);
            }
            _ if imm == imm as i8 as i32 || w == Width::W16 && imm as i16 == imm as i8 as i16 => {
                self.op_rm(w, &[0x83], op as u8, mem);
                self.byte(imm as u8);
            }
            Width::W16 => {
                self.op_rm(w, &[0x81], op as u8, mem);
                self.buf.extend_from_slice(&(imm as i16).to_le_bytes());
            }
            _ => {
                self.op_rm(w, &[0x81], op as u8, mem);
                self.imm32(imm);
            }
        }
    }

    /// `op dst, imm`; the immediate is sign-extended to 64 bits, and truncated to narrower widths.
    pub fn alu_ri(&mut self, op: Alu, w: Width, dst: u8, imm: i32) {
        match w {
            Width::W8 => self.op_ri8(w, &[0x80], op as u8, dst, imm as u8),
            _ if imm == imm as i8 as i32 || w == Width::W16 && imm as i16 == imm as i8 as i16 => {
                self.op_ri8(w, &[0x83], op as u8, dst, imm as u8);
            }
            Width::W16 => {
                self.op_rr(w, &[0x81], op as u8, dst);
                self.buf.extend_from_slice(&(imm as i16).to_le_bytes());
            }
            _ => {
                self.op_rr(w, &[0x81], op as u8, dst);
                self.imm32(imm);
            }
        }
    }

    /// `test a, b`.
    pub fn test_rr(&mut self, w: Width, a: u8, b: u8) {
        self.op_rr(w, &[0x84 | (w != Width::W8) as u8], b, a);
    }

    /// `test a, imm`, immediate as in [`Asm::alu_ri`].
    pub fn test_ri(&mut self, w: Width, a: u8, imm: i32) {
        self.op_rr(w, &[0xf6 | (w != Width::W8) as u8], 0, a);
        match w {
            Width::W8 => self.byte(imm as u8),
            Width::W16 => self.buf.extend_from_slice(&(imm as i16).to_le_bytes()),
            _ => self.imm32(imm),
        }
    }

    /// `test [mem], a`.
    pub fn test_mr(&mut self, w: Width, mem: Mem, a: u8) {
        self.op_rm(w, &[0x84 | (w != Width::W8) as u8], a, mem);
    }

    /// `test [mem], imm`, immediate as in [`Asm::alu_ri`].
    pub fn test_mi(&mut self, w: Width, mem: Mem, imm: i32) {
        self.op_rm(w, &[0xf6 | (w != Width::W8) as u8], 0, mem);
        match w {
            Width::W8 => self.byte(imm as u8),
            Width::W16 => self.buf.extend_from_slice(&(imm as i16).to_le_bytes()),
            _ => self.imm32(imm),
        }
    }

    /// `bt a, n` in 16, 32 or 64 bits: C is that bit; other flags survive.
    pub fn bt_ri(&mut self, w: Width, a: u8, n: u8) {
        self.op_ri8(w, &[0x0f, 0xba], 4, a, n);
    }

    /// `bt [mem], n` in 16, 32 or 64 bits, as [`Asm::bt_ri`].
    pub fn bt_mi(&mut self, w: Width, mem: Mem, n: u8) {
        self.op_rm(w, &[0x0f, 0xba], 4, mem);
        self.byte(n);
    }

    /// `bt a, b` in 16, 32 or 64 bits, as [`Asm::bt_ri`].
    pub fn bt_rr(&mut self, w: Width, a: u8, b: u8) {
        self.op_rr(w, &[0x0f, 0xa3], b, a);
    }

    /// `mov dst, src` in 64 bits.
    pub fn mov_rr(&mut self, dst: u8, src: u8) {
        if dst != src {
            self.op_rr(Width::W64, &[0x89], src, dst);
        }
    }

    /// `mov dst, src` of the given width: 32 bits zero-extend, 8 and 16 bits merge. Always emitted.
    pub fn mov_rr_w(&mut self, w: Width, dst: u8, src: u8) {
        self.op_rr(w, &[0x88 | (w != Width::W8) as u8], src, dst);
    }

    /// `dst = imm`, shortest form that leaves the flags alone.
    pub fn mov_ri(&mut self, dst: u8, imm: u64) {
        if imm <= u32::MAX as u64 {
            let mut word = Word::default();
            word.push_if(dst >= 8, 0x41);
            word.push(0xb8 | dst & 7);
            word.bytes |= imm << word.bits;
            word.bits += 32;
            self.word(word);
        } else if imm as i64 == imm as i32 as i64 {
            self.op_rr(Width::W64, &[0xc7], 0, dst);
            self.imm32(imm as i32);
        } else {
            self.buf.extend_from_slice(&[0x48 | dst >> 3, 0xb8 | dst & 7]);
            self.buf.extend_from_slice(&imm.to_le_bytes());
        }
    }

    /// `mov dst, imm` in 8 or 16 bits, which merges.
    pub fn mov_low(&mut self, w: Width, dst: u8, imm: u16) {
        let imm = imm.to_le_bytes();
        match w {
            Width::W8 => self.op_ri8(w, &[0xc6], 0, dst, imm[0]),
            _ => {
                self.op_rr(Width::W16, &[0xc7], 0, dst);
                self.buf.extend_from_slice(&imm);
            }
        }
    }

    /// `mov dst, [mem]`: 32 and 64 bits; narrower ones zero-extend.
    pub fn load(&mut self, w: Width, dst: u8, mem: Mem) {
        match w {
            Width::W8 => self.op_rm(Width::W32, &[0x0f, 0xb6], dst, mem),
            Width::W16 => self.op_rm(Width::W32, &[0x0f, 0xb7], dst, mem),
            _ => self.op_rm(w, &[0x8b], dst, mem),
        }
    }

    /// `movsx dst, [mem]` to 32 or 64 bits.
    pub fn load_sx(&mut self, from: Width, to: Width, dst: u8, mem: Mem) {
        match from {
            Width::W8 => self.op_rm(to, &[0x0f, 0xbe], dst, mem),
            Width::W16 => self.op_rm(to, &[0x0f, 0xbf], dst, mem),
            Width::W32 if to == Width::W64 => self.op_rm(to, &[0x63], dst, mem),
            _ => self.op_rm(from, &[0x8b], dst, mem),
        }
    }

    /// `dst` = `from` bits at `mem`, extended.
    pub fn load_ext(&mut self, from: Width, ext: Ext, dst: u8, mem: Mem) {
        match ext {
            Ext::Zero => self.load(from, dst, mem),
            Ext::Sign32 if from >= Width::W32 => self.load(Width::W32, dst, mem),
            Ext::Sign32 => self.load_sx(from, Width::W32, dst, mem),
            Ext::Sign64 => self.load_sx(from, Width::W64, dst, mem),
        }
    }

    /// `mov [mem], src`.
    pub fn store(&mut self, w: Width, mem: Mem, src: u8) {
        self.op_rm(w, &[0x88 | (w != Width::W8) as u8], src, mem);
    }

    /// `mov [mem], imm`, immediate as in [`Asm::alu_ri`].
    pub fn store_imm(&mut self, w: Width, mem: Mem, imm: i32) {
        self.op_rm(w, &[0xc6 | (w != Width::W8) as u8], 0, mem);
        match w {
            Width::W8 => self.byte(imm as u8),
            Width::W16 => self.buf.extend_from_slice(&(imm as i16).to_le_bytes()),
            _ => self.imm32(imm),
        }
    }

    /// `test byte [mem], imm8`.
    pub fn test_mem8(&mut self, mem: Mem, imm: u8) {
        self.op_rm(Width::W32, &[0xf6], 0, mem);
        self.byte(imm);
    }

    /// `vzeroupper`.
    pub fn vzeroupper(&mut self) {
        self.buf.extend_from_slice(&[0xc5, 0xf8, 0x77]);
    }

    /// `cmp byte [mem], imm8`.
    pub fn cmp_mem8(&mut self, mem: Mem, imm: u8) {
        self.op_rm(Width::W32, &[0x80], 7, mem);
        self.byte(imm);
    }

    /// `cmp dword [mem], imm8`.
    pub fn cmp_mem32(&mut self, mem: Mem, imm: i8) {
        self.op_rm(Width::W32, &[0x83], 7, mem);
        self.byte(imm as u8);
    }

    /// `inc dword mem` (digit 0) or `dec dword mem` (digit 1).
    pub fn incdec_mem32(&mut self, digit: u8, mem: Mem) {
        self.op_rm(Width::W32, &[0xff], digit, mem);
    }

    /// `movzx dst, src`.
    pub fn movzx(&mut self, from: Width, dst: u8, src: u8) {
        match from {
            Width::W8 => self.extend_byte(Width::W32, 0xb6, dst, src),
            Width::W16 => self.op_rr(Width::W32, &[0x0f, 0xb7], dst, src),
            Width::W32 => self.mov_rr_w(Width::W32, dst, src),
            Width::W64 => self.mov_rr(dst, src),
        }
    }

    /// `movsx dst, src` to 32 or 64 bits.
    pub fn movsx(&mut self, from: Width, to: Width, dst: u8, src: u8) {
        match from {
            Width::W8 => self.extend_byte(to, 0xbe, dst, src),
            Width::W16 => self.op_rr(to, &[0x0f, 0xbf], dst, src),
            Width::W32 if to == Width::W64 => self.op_rr(to, &[0x63], dst, src),
            _ => self.movzx(from, dst, src),
        }
    }

    fn extend_byte(&mut self, to: Width, opcode: u8, dst: u8, src: u8) {
        let rex = 0x40 | ((to == Width::W64) as u8) << 3 | (dst >> 3) << 2 | src >> 3;
        let mut word = Word::default();
        word.push_if(rex != 0x40 || src >= 4, rex);
        [0x0f, opcode, 0xc0 | (dst & 7) << 3 | src & 7].iter().for_each(|b| word.push(*b));
        self.word(word);
    }

    /// `op dst, count`.
    pub fn shift_ri(&mut self, op: Shift, w: Width, dst: u8, count: u8) {
        self.op_ri8(w, &[0xc0 | (w != Width::W8) as u8], op as u8, dst, count);
    }

    /// `op dst, cl`.
    pub fn shift_rcl(&mut self, op: Shift, w: Width, dst: u8) {
        self.op_rr(w, &[0xd2 | (w != Width::W8) as u8], op as u8, dst);
    }

    /// `shlx`/`shrx`/`sarx dst, src, count` (BMI2) in 32 or 64 bits; leaves the flags alone.
    pub fn shiftx(&mut self, op: Shift, w: Width, dst: u8, src: u8, count: u8) {
        let pp = match op {
            Shift::Shl => 1,
            Shift::Shr => 3,
            _ => 2,
        };
        self.byte(0xc4);
        self.byte((!dst >> 3 & 1) << 7 | 0x40 | (!src >> 3 & 1) << 5 | 2);
        self.byte(((w == Width::W64) as u8) << 7 | (!count & 15) << 3 | pp);
        self.byte(0xf7);
        self.byte(0xc0 | (dst & 7) << 3 | src & 7);
    }

    /// `rorx dst, src, count` (BMI2) in 32 bits; leaves the flags alone.
    pub fn rorx32(&mut self, dst: u8, src: u8, count: u8) {
        self.byte(0xc4);
        self.byte((!dst >> 3 & 1) << 7 | 0x40 | (!src >> 3 & 1) << 5 | 3);
        self.buf.extend_from_slice(&[0x7b, 0xf0, 0xc0 | (dst & 7) << 3 | src & 7, count]);
    }

    /// Group 3 (`not` 2, `neg` 3, `mul` 4, `imul` 5, `div` 6, `idiv` 7).
    pub fn group3(&mut self, digit: u8, w: Width, reg: u8) {
        self.op_rr(w, &[0xf6 | (w != Width::W8) as u8], digit, reg);
    }

    /// `cdq` or `cqo`: RDX is filled with RAX's sign, in 32 or 64 bits.
    pub fn sign_to_rdx(&mut self, w: Width) {
        self.word(if w == Width::W64 {
            Word { bytes: 0x9948, bits: 16 }
        } else {
            Word { bytes: 0x99, bits: 8 }
        });
    }

    /// `inc` (digit 0) or `dec` (digit 1).
    pub fn incdec(&mut self, digit: u8, w: Width, reg: u8) {
        self.op_rr(w, &[0xfe | (w != Width::W8) as u8], digit, reg);
    }

    /// `imul dst, src` in 16, 32 or 64 bits.
    pub fn imul_rr(&mut self, w: Width, dst: u8, src: u8) {
        self.op_rr(w, &[0x0f, 0xaf], dst, src);
    }

    /// `imul dst, [mem]` in 16, 32 or 64 bits.
    pub fn imul_rm(&mut self, w: Width, dst: u8, mem: Mem) {
        self.op_rm(w, &[0x0f, 0xaf], dst, mem);
    }

    /// `imul dst, src, imm` in 32 or 64 bits.
    pub fn imul_rri(&mut self, w: Width, dst: u8, src: u8, imm: i32) {
        if imm == imm as i8 as i32 {
            self.op_rr(w, &[0x6b], dst, src);
            self.byte(imm as u8);
        } else {
            self.op_rr(w, &[0x69], dst, src);
            self.imm32(imm);
        }
    }

    /// `lzcnt` (0xbd), `tzcnt` (0xbc) or `popcnt` (0xb8) in 16, 32 or 64 bits.
    pub fn bitcount(&mut self, opcode: u8, w: Width, dst: u8, src: u8) {
        if w == Width::W16 {
            self.byte(0x66);
        }
        self.byte(0xf3);
        let rex = 0x40 | ((w == Width::W64) as u8) << 3 | (dst >> 3) << 2 | src >> 3;
        if rex != 0x40 {
            self.byte(rex);
        }
        self.buf.extend_from_slice(&[0x0f, opcode, 0xc0 | (dst & 7) << 3 | src & 7]);
    }

    /// `bswap` in 32 or 64 bits.
    pub fn bswap(&mut self, w: Width, reg: u8) {
        let rex = 0x40 | ((w == Width::W64) as u8) << 3 | reg >> 3;
        if rex != 0x40 {
            self.byte(rex);
        }
        self.byte(0x0f);
        self.byte(0xc8 | reg & 7);
    }

    /// `lea dst, [base + (index << scale) + disp]` in 32 or 64 bits; no index if `None`.
    pub fn lea(&mut self, w: Width, dst: u8, base: u8, index: Option<(u8, u8)>, disp: i32) {
        let start = self.len();
        self.encode_lea(w, dst, base, index, disp);
        self.last_lea = Some(Lea { start, end: self.len(), dst, w, base, index, disp });
    }

    /// `lea dst, [mem]` in 64 bits.
    pub fn lea_of(&mut self, dst: u8, mem: Mem) {
        match mem {
            Mem::Base(base, disp) => self.lea(Width::W64, dst, base, None, disp),
            Mem::Index(base, index) => self.lea(Width::W64, dst, base, Some((index, 0)), 0),
            Mem::Scaled(base, index, scale, disp) => {
                self.lea(Width::W64, dst, base, Some((index, scale)), disp)
            }
        }
    }

    /// Takes back the last instruction if it is a `lea` to `dst`.
    pub fn take_lea(&mut self, dst: u8) -> Option<Lea> {
        let lea = self.last_lea.filter(|lea| lea.end == self.len() && lea.dst == dst)?;
        self.buf.truncate(lea.start);
        Some(lea)
    }

    /// Emits a `lea` that was taken back, to another register.
    pub fn put_lea(&mut self, lea: Lea, dst: u8) {
        self.lea(lea.w, dst, lea.base, lea.index, lea.disp);
    }

    /// Begins anew.
    pub fn clear(&mut self) {
        self.buf.clear();
        self.last_lea = None;
    }

    fn encode_lea(&mut self, w: Width, dst: u8, base: u8, index: Option<(u8, u8)>, disp: i32) {
        let Some((index, scale)) = index else {
            self.op_rm(w, &[0x8d], dst, Mem::Base(base, disp));
            return;
        };
        debug_assert!(index != r::RSP);
        let rex = 0x40 | ((w == Width::W64) as u8) << 3 | (dst >> 3) << 2 | (index >> 3) << 1 | base >> 3;
        let mut word = Word::default();
        word.push_if(rex != 0x40, rex);
        word.push(0x8d);
        let mode = match disp {
            0 if base & 7 != 5 => 0x00,
            -128..=127 => 0x40,
            _ => 0x80,
        };
        word.push(mode | (dst & 7) << 3 | 4);
        word.push(scale << 6 | (index & 7) << 3 | base & 7);
        word.push_if(mode == 0x40, disp as u8);
        self.word(word);
        if mode == 0x80 {
            self.imm32(disp);
        }
    }

    /// `xchg a, b` in 64 bits.
    pub fn xchg(&mut self, a: u8, b: u8) {
        self.op_rr(Width::W64, &[0x87], a, b);
    }

    /// `setcc dst8`.
    pub fn setcc(&mut self, cond: Cond, dst: u8) {
        self.op_rr(Width::W8, &[0x0f, 0x90 | cond as u8], 0, dst);
    }

    /// `cmovcc dst, src` in 32 or 64 bits.
    pub fn cmov(&mut self, w: Width, cond: Cond, dst: u8, src: u8) {
        self.op_rr(w, &[0x0f, 0x40 | cond as u8], dst, src);
    }

    /// `shrd dst, src, cl`.
    pub fn shrd_cl(&mut self, w: Width, dst: u8, src: u8) {
        self.op_rr(w, &[0x0f, 0xad], src, dst);
    }

    /// `xchg [mem], reg` (0x86), `xadd` (0x0fc0) or `cmpxchg` (0x0fb0), the latter two with LOCK.
    pub fn atomic(&mut self, op: AtomicOp, w: Width, mem: Mem, reg: u8) {
        let wide = (w != Width::W8) as u8;
        let (lock, opcode): (bool, &[u8]) = match op {
            AtomicOp::Xchg => (false, &[0x86 | wide]),
            AtomicOp::Xadd => (true, &[0x0f, 0xc0 | wide]),
            AtomicOp::Cmpxchg => (true, &[0x0f, 0xb0 | wide]),
        };
        let mut prefix = Word::default();
        prefix.push_if(lock, 0xf0);
        self.op_rm_after(prefix, w, opcode, reg, mem);
    }

    /// `jcc rel32` with an empty field; its offset.
    pub fn jcc(&mut self, cond: Cond) -> usize {
        self.buf.extend_from_slice(&[0x0f, 0x80 | cond as u8, 0, 0, 0, 0]);
        self.len() - 4
    }

    /// `jmp rel32` with an empty field; its offset.
    pub fn jmp(&mut self) -> usize {
        self.buf.extend_from_slice(&[0xe9, 0, 0, 0, 0]);
        self.len() - 4
    }

    /// No-operations until `(len + ahead) % 4 == 0`.
    pub fn align4(&mut self, ahead: usize) {
        const NOPS: [u64; 4] = [0, 0x90, 0x9066, 0x001f0f];
        let pad = (4 - (self.len() + ahead) % 4) % 4;
        self.word(Word { bytes: NOPS[pad], bits: 8 * pad as u32 });
    }
}

/// See [`Asm::atomic`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AtomicOp {
    /// Exchange; locked by itself.
    Xchg,
    /// Exchange and add.
    Xadd,
    /// Compare with the accumulator and exchange.
    Cmpxchg,
}
