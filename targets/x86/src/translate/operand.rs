//! Operands: registers, effective addresses, segments, loads and stores, the stack, flags.
//!
//! A *raw* value of width `w` means something in its low `w` bits only; that is enough for every narrow IR operation and
//! for stores. [`Translator::zx`] makes the rest zero where that matters (addresses, 64-bit arithmetic on narrower data).
//! Writes of registers take raw values: a write of 8 or 16 bits keeps the other bits of the register, one of 32 bits
//! zeroes the upper half (SDM volume 1, section 3.4.1.1).

use iced_x86::{Instruction, Mnemonic, OpKind, Register};
use tessera_tcg::ir::{BinOp, Ext, FlagOp, Inst, Value, Width};

use super::Translator;
use crate::helpers;
use crate::state::{global, mode, reg, seg};

/// Where an operand is that is read and then written.
#[derive(Clone, Copy)]
pub enum Place {
    /// A general register.
    Reg(Register),
    /// Memory at a linear address.
    Mem(Value),
}

/// A general register as the IR sees it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct GprView {
    number: usize,
    width: Width,
    /// Bits 15:8 (AH, CH, DH, BH).
    high: bool,
}

fn gpr_view(r: Register) -> GprView {
    let n = r as usize;
    let view = |number, width| GprView { number, width, high: false };
    if n >= Register::RAX as usize && n <= Register::R15 as usize {
        view(n - Register::RAX as usize, Width::W64)
    } else if n >= Register::EAX as usize && n < Register::RAX as usize {
        view(n - Register::EAX as usize, Width::W32)
    } else if n >= Register::AX as usize && n < Register::EAX as usize {
        view(n - Register::AX as usize, Width::W16)
    } else if n >= Register::SPL as usize && n < Register::AX as usize {
        view(n - Register::SPL as usize + 4, Width::W8)
    } else if n >= Register::AH as usize && n < Register::SPL as usize {
        GprView { number: n - Register::AH as usize, width: Width::W8, high: true }
    } else {
        debug_assert!((Register::AL as usize..=Register::BL as usize).contains(&n), "{r:?}");
        view(n.wrapping_sub(Register::AL as usize) & 15, Width::W8)
    }
}

/// Number of a segment register ([`seg`]).
pub fn segment_number(r: Register) -> usize {
    (r as usize).wrapping_sub(Register::ES as usize).min(seg::GS)
}

/// Number of a general register; AH to BH are those of AX to BX.
pub fn register_number(r: Register) -> usize {
    gpr_view(r).number
}

/// Width of a general register.
pub fn register_width(r: Register) -> Width {
    gpr_view(r).width
}

/// The width of so many bytes; 64 bits for sizes that no integer has.
pub fn width_of(bytes: usize) -> Width {
    match bytes {
        1 => Width::W8,
        2 => Width::W16,
        4 => Width::W32,
        _ => Width::W64,
    }
}

/// The alignment that #AC asks of an access of so many bytes (SDM volume 3, table 6-7). Whole vectors are not checked:
/// silicon completes a misaligned access, or raises #GP where alignment is asked for.
fn alignment(bytes: u32) -> u32 {
    match bytes {
        2 | 4 | 8 => bytes,
        6 => 4,
        10 => 8,
        // FSTENV and FSAVE, 16-bit and 32-bit.
        14 | 94 => 2,
        28 | 108 => 4,
        // FXSAVE and XSAVE, which want more, but as #GP.
        512.. => 4,
        _ => 1,
    }
}

impl Translator<'_> {
    // ----- registers -----

    /// All 64 bits of general register `n`.
    #[inline]
    pub fn gpr(&mut self, n: usize) -> Value {
        self.b.get(global::gpr(n))
    }

    /// Writes the low `w` bits of general register `n` (bits 7:0 for 8).
    pub fn set_gpr(&mut self, n: usize, w: Width, v: Value) {
        let g = global::gpr(n);
        let v = match w {
            Width::W64 => v,
            Width::W32 => self.zx(Width::W32, v),
            _ => {
                let old = self.b.get(g);
                self.b.push(Inst::Insert { a: old, b: v, pos: 0, len: w.bits() as u8 })
            }
        };
        self.b.set(g, v);
    }

    /// Value of a general register, raw.
    pub fn reg(&mut self, r: Register) -> Value {
        let view = gpr_view(r);
        let v = self.gpr(view.number);
        if view.high { self.b.push(Inst::Extract { a: v, pos: 8, len: 8 }) } else { v }
    }

    /// Value of a general register, zero-extended.
    pub fn reg_zx(&mut self, r: Register) -> Value {
        let v = self.reg(r);
        self.zx(register_width(r), v)
    }

    /// Writes a general register.
    pub fn set_reg(&mut self, r: Register, v: Value) {
        let view = gpr_view(r);
        if view.high {
            let g = global::gpr(view.number);
            let old = self.b.get(g);
            let v = self.b.push(Inst::Insert { a: old, b: v, pos: 8, len: 8 });
            self.b.set(g, v);
        } else {
            self.set_gpr(view.number, view.width, v);
        }
    }

    /// Zero-extends a raw value of width `w`; nothing is emitted if its definition says that it is already.
    pub fn zx(&mut self, w: Width, v: Value) -> Value {
        if w == Width::W64 || self.is_zero_extended(w, v) {
            return v;
        }
        self.b.extend(w, Ext::Zero, v)
    }

    /// Sign-extends a raw value of width `w` to 64 bits.
    pub fn sx(&mut self, w: Width, v: Value) -> Value {
        if w == Width::W64 {
            return v;
        }
        self.b.extend(w, Ext::Sign64, v)
    }

    fn is_zero_extended(&self, w: Width, v: Value) -> bool {
        match self.b.block().insts[v.index()] {
            Inst::Const(c) => c & !w.mask() == 0,
            Inst::Bin { w: of, .. }
            | Inst::Un { w: of, .. }
            | Inst::Carry { w: of, .. }
            | Inst::Lea { w: of, .. }
            | Inst::ShiftPair { w: of, .. }
            | Inst::AtomicRmw { width: of, .. }
            | Inst::AtomicCas { width: of, .. }
            | Inst::EnvLoad { width: of, .. } => of <= w,
            Inst::Extract { len, .. } => len as u32 <= w.bits(),
            Inst::SetCond { .. } | Inst::Pack(_) => w != Width::W8,
            Inst::Extend { from, ext, .. } | Inst::Load { width: from, ext, .. } => match ext {
                Ext::Zero => from <= w,
                Ext::Sign32 => w == Width::W32,
                Ext::Sign64 => false,
            },
            _ => false,
        }
    }

    // ----- operands of instructions -----

    /// Width of operand `n`.
    pub fn width(&self, i: &Instruction, n: u32) -> Width {
        match i.op_kind(n) {
            OpKind::Register => register_width(i.op_register(n)),
            OpKind::Memory => width_of(i.memory_size().size()),
            OpKind::Immediate8 => Width::W8,
            OpKind::Immediate16 | OpKind::Immediate8to16 => Width::W16,
            OpKind::Immediate32 | OpKind::Immediate8to32 => Width::W32,
            _ => Width::W64,
        }
    }

    /// Value of operand `n`: general register or memory (raw, memory zero-extended), or immediate (sign-extended as the
    /// instruction says).
    pub fn read(&mut self, i: &Instruction, n: u32) -> Value {
        match i.op_kind(n) {
            OpKind::Register => self.reg(i.op_register(n)),
            OpKind::Memory => {
                let w = width_of(i.memory_size().size());
                let addr = self.address(i, w.bytes(), false);
                self.load(w, addr)
            }
            _ => self.b.iconst(i.immediate(n)),
        }
    }

    /// Value of operand `n`, zero-extended from width `w`.
    pub fn read_zx(&mut self, i: &Instruction, n: u32, w: Width) -> Value {
        let v = self.read(i, n);
        self.zx(w, v)
    }

    /// Writes operand `n`, a register or memory.
    pub fn write(&mut self, i: &Instruction, n: u32, v: Value) {
        let place = self.place(i, n);
        let w = self.width(i, n);
        self.store_place(place, w, v);
    }

    /// Where operand `n` is; checks segment and alignment for writing.
    pub fn place(&mut self, i: &Instruction, n: u32) -> Place {
        match i.op_kind(n) {
            OpKind::Register => Place::Reg(i.op_register(n)),
            _ => {
                let bytes = i.memory_size().size() as u32;
                Place::Mem(self.address(i, bytes, true))
            }
        }
    }

    /// Reads a place that will be written.
    pub fn load_place(&mut self, place: Place, w: Width) -> Value {
        match place {
            Place::Reg(r) => self.reg(r),
            Place::Mem(addr) => {
                let mem = self.mem_for_write();
                self.b.load(w, Ext::Zero, addr, mem)
            }
        }
    }

    /// Writes a place.
    pub fn store_place(&mut self, place: Place, w: Width, v: Value) {
        match place {
            Place::Reg(r) => self.set_reg(r, v),
            Place::Mem(addr) => self.store(w, addr, v),
        }
    }

    /// Loads from a linear address, zero-extended.
    pub fn load(&mut self, w: Width, addr: Value) -> Value {
        let mem = self.mem();
        self.b.load(w, Ext::Zero, addr, mem)
    }

    /// Stores to a linear address.
    pub fn store(&mut self, w: Width, addr: Value, v: Value) {
        let mem = self.mem();
        self.b.store(w, addr, v, mem);
    }

    // ----- addresses -----

    /// Address size of the memory operand.
    pub fn address_width(&self, i: &Instruction) -> Width {
        let of = |r: Register| match r.size() {
            2 => Width::W16,
            4 => Width::W32,
            _ => Width::W64,
        };
        match (i.memory_base(), i.memory_index()) {
            (Register::None, Register::None) => match i.memory_displ_size() {
                2 => Width::W16,
                4 => Width::W32,
                _ => Width::W64,
            },
            (Register::None, index) if !index.is_vector_register() => of(index),
            (Register::None, _) => {
                if i.memory_displ_size() == 8 {
                    Width::W64
                } else {
                    Width::W32
                }
            }
            (base, _) => of(base),
        }
    }

    /// Offset of the memory operand in its segment (what LEA computes), zero-extended from the address size.
    pub fn offset(&mut self, i: &Instruction) -> Value {
        let w = self.address_width(i);
        let disp = i.memory_displacement64();
        let base = i.memory_base();
        let index = i.memory_index();
        let index = if index.is_vector_register() { Register::None } else { index };
        if base == Register::RIP || base == Register::EIP {
            return self.b.iconst(disp & w.mask());
        }
        let scale = i.memory_index_scale().trailing_zeros() as u8;
        match (base, index) {
            (Register::None, Register::None) => self.b.iconst(disp & w.mask()),
            (base, Register::None) => {
                let v = self.reg(base);
                self.offset_sum(w, v, disp)
            }
            (Register::None, index) => {
                let v = self.reg(index);
                let v = if scale == 0 { v } else { self.b.bin_imm(BinOp::Shl, w, v, scale as u64) };
                self.offset_sum(w, v, disp)
            }
            (base, index) => {
                let base = self.reg(base);
                let index = self.reg(index);
                if w == Width::W16 {
                    let sum = self.b.bin(BinOp::Add, w, base, index);
                    return self.offset_sum(w, sum, disp);
                }
                self.b.push(Inst::Lea { w, base, index, scale, disp: disp as u32 as i32 })
            }
        }
    }

    fn offset_sum(&mut self, w: Width, v: Value, disp: u64) -> Value {
        if disp & w.mask() == 0 {
            return self.zx(w, v);
        }
        self.b.add_imm(w, v, w.sign_extend(disp) as i64)
    }

    /// Linear address of the memory operand, checked for an access of `bytes` bytes.
    pub fn address(&mut self, i: &Instruction, bytes: u32, write: bool) -> Value {
        let offset = self.offset(i);
        let alignment = match i.mnemonic() {
            // Vector accesses that are not checked.
            Mnemonic::Vcvtph2ps | Mnemonic::Vcvtps2ph => 1,
            // Not outside of CPL 0 at all.
            Mnemonic::Xsaves | Mnemonic::Xsaves64 | Mnemonic::Xrstors | Mnemonic::Xrstors64 => 1,
            _ => alignment(bytes),
        };
        self.linear_aligned(segment_number(i.memory_segment()), offset, (bytes, alignment), write)
    }

    /// Linear address of an offset (zero-extended from its address size) in segment `n`, checked for an access of `bytes`
    /// bytes (0: no check but for the segment's base).
    pub fn linear(&mut self, n: usize, offset: Value, bytes: u32, write: bool) -> Value {
        self.linear_aligned(n, offset, (bytes, alignment(bytes)), write)
    }

    fn linear_aligned(
        &mut self,
        n: usize,
        offset: Value,
        (bytes, alignment): (u32, u32),
        write: bool,
    ) -> Value {
        let linear = if self.code64() {
            if n >= seg::FS {
                let base = self.b.get(global::seg_base(n));
                self.b.bin(BinOp::Add, Width::W64, base, offset)
            } else {
                offset
            }
        } else {
            self.legacy_linear(n, offset, bytes, write)
        };
        if self.alignment_checked() && alignment > 1 {
            let size = self.b.iconst(alignment as u64);
            self.b.call(helpers::int::CHECK_ALIGNMENT, &[linear, size]);
        }
        linear
    }

    /// A linear address that was computed from another, in the width that the mode has.
    pub fn wrap_address(&mut self, linear: Value) -> Value {
        if self.code64() { linear } else { self.zx(Width::W32, linear) }
    }

    fn legacy_linear(&mut self, n: usize, offset: Value, bytes: u32, write: bool) -> Value {
        if self.segment_checked(n) && bytes != 0 {
            let segment = self.b.iconst(n as u64);
            let size = self.b.iconst(bytes as u64);
            let write = self.b.iconst(write as u64);
            self.b.call(helpers::int::CHECK_SEGMENT, &[segment, offset, size, write]);
        }
        match n {
            seg::CS => self.b.add_imm(Width::W32, offset, self.cs_base as i64),
            seg::FS | seg::GS => self.add_base(n, offset),
            _ if self.is(mode::SEGMENTED) => self.add_base(n, offset),
            _ => offset,
        }
    }

    /// Whether accesses must be checked for their alignment.
    pub fn alignment_checked(&self) -> bool {
        self.is(mode::ALIGN)
    }

    /// Whether accesses through segment register `n` must be checked against its hidden part.
    pub fn segment_checked(&self, n: usize) -> bool {
        if self.code64() {
            return false;
        }
        match n {
            seg::CS => self.mode & (mode::PROTECTED | mode::SEGMENTED) != 0,
            seg::FS => self.is(mode::FS_CHECKED),
            seg::GS => self.is(mode::GS_CHECKED),
            _ => self.is(mode::SEGMENTED),
        }
    }

    fn add_base(&mut self, n: usize, offset: Value) -> Value {
        let base = self.b.get(global::seg_base(n));
        self.b.bin(BinOp::Add, Width::W32, base, offset)
    }

    // ----- the stack -----

    /// Width of the stack pointer.
    #[inline]
    pub fn stack_width(&self) -> Width {
        if self.code64() {
            Width::W64
        } else if self.is(mode::STACK32) {
            Width::W32
        } else {
            Width::W16
        }
    }

    /// Linear address of an offset in the stack segment, cut to the stack's width.
    pub fn stack_address(&mut self, offset: Value, bytes: u32, write: bool) -> Value {
        let offset = self.zx(self.stack_width(), offset);
        self.linear(seg::SS, offset, bytes, write)
    }

    /// The stack pointer `delta` bytes on, zero-extended from the stack's width.
    pub fn stack_pointer(&mut self, delta: i64) -> Value {
        let sp = self.gpr(reg::RSP);
        let w = self.stack_width();
        let v = self.b.add_imm(w, sp, delta);
        self.zx(w, v)
    }

    /// Sets the stack pointer (in the stack's width).
    pub fn set_stack_pointer(&mut self, v: Value) {
        let w = self.stack_width();
        self.set_gpr(reg::RSP, w, v);
    }

    /// Pushes the low `w` bits of `v`: a store, then the stack pointer.
    pub fn push(&mut self, w: Width, v: Value) {
        let sp = self.stack_pointer(-(w.bytes() as i64));
        let addr = self.stack_address(sp, w.bytes(), true);
        self.store(w, addr, v);
        self.set_stack_pointer(sp);
    }

    /// Loads `w` bits from the stack at `delta` above the stack pointer, which stays.
    pub fn peek(&mut self, w: Width, delta: i64) -> Value {
        let sp = self.stack_pointer(delta);
        let addr = self.stack_address(sp, w.bytes(), false);
        self.load(w, addr)
    }

    /// Adds to the stack pointer.
    pub fn drop_stack(&mut self, bytes: i64) {
        let sp = self.stack_pointer(bytes);
        self.set_stack_pointer(sp);
    }

    // ----- flags -----

    /// Current arithmetic flags.
    #[inline]
    pub fn flags(&mut self) -> Value {
        self.b.get(global::FLAGS)
    }

    /// Sets the arithmetic flags to a flags value.
    #[inline]
    pub fn set_flags(&mut self, f: Value) {
        self.b.set(global::FLAGS, f);
    }

    /// Sets the arithmetic flags from a packed integer.
    pub fn set_packed_flags(&mut self, packed: Value) {
        let f = self.b.flags(FlagOp::Unpack, Width::W32, packed, packed);
        self.set_flags(f);
    }

    /// Current arithmetic flags as a packed integer.
    pub fn packed_flags(&mut self) -> Value {
        let f = self.flags();
        self.b.push(Inst::Pack(f))
    }

    /// Flags of the comparison of `v` with zero: E if zero.
    pub fn test_zero(&mut self, w: Width, v: Value) -> Value {
        self.b.flags(FlagOp::And, w, v, v)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registers_are_numbered_as_encoded() {
        let view = |r| {
            let v = gpr_view(r);
            (v.number, v.width, v.high)
        };
        assert_eq!(view(Register::BL), (3, Width::W8, false));
        assert_eq!(view(Register::BH), (3, Width::W8, true));
        assert_eq!(view(Register::SPL), (4, Width::W8, false));
        assert_eq!(view(Register::R15L), (15, Width::W8, false));
        assert_eq!(view(Register::R8W), (8, Width::W16, false));
        assert_eq!(view(Register::EDI), (7, Width::W32, false));
        assert_eq!(view(Register::R15), (15, Width::W64, false));
        assert_eq!(segment_number(Register::GS), seg::GS);
    }
}
