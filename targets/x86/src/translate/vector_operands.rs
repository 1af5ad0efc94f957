//! What the vector oracle feeds to instructions: random states full of edge cases, and instructions with random operands.

use iced_x86::{Code, EncodingKind, Instruction, Mnemonic, OpCodeOperandKind as Op, OpKind, Register};

use super::{ARITHMETIC, DATA_BYTES, State};
use crate::testing::Rng;

/// Zeros, one, denormals, the ends of the normal range, infinities, NaNs quiet and signalling, and where conversions to
/// integers end, in binary64.
const EDGES_F64: [u64; 20] = [
    0,
    1 << 63,
    0x3ff0 << 48,
    1,
    0x800f_ffff_ffff_ffff,
    0x0010 << 48,
    0x7fef_ffff_ffff_ffff,
    0xffef_ffff_ffff_ffff,
    0x7ff0 << 48,
    0xfff0 << 48,
    0x7ff8_0000_0000_0001,
    0xfff8 << 48,
    0x7ff4_0000_0000_0002,
    0xfff0_0000_0000_0001,
    0x4330 << 48,
    0x41df_ffff_ffe0_0000,
    0xc1e0_0000_0020_0000,
    0x43e0 << 48,
    0x47ef_ffff_f000_0000,
    0x380f_ffff_f000_0000,
];

/// The same in binary32.
const EDGES_F32: [u32; 18] = [
    0,
    1 << 31,
    0x3f80_0000,
    1,
    0x807f_ffff,
    0x0080_0000,
    0x7f7f_ffff,
    0xff7f_ffff,
    0x7f80_0000,
    0xff80_0000,
    0x7fc0_0001,
    0xffc0_0000,
    0x7fa0_0002,
    0xff80_0001,
    0x4f00_0000,
    0xcf00_0000,
    0x5f00_0000,
    0x4b7f_ffff,
];

/// Eight bytes, often at an edge of a floating-point format.
fn lanes(r: &mut Rng) -> u64 {
    match r.below(5) {
        0 => r.word(),
        1 => r.pick(&EDGES_F64),
        2 => r.pick(&EDGES_F32) as u64 | (r.pick(&EDGES_F32) as u64) << 32,
        3 => r.word() & 0x0f0f_0f0f_0f0f_0f0f,
        _ => r.word() & 0x83ff_ffff_83ff_ffff | 0x3c00_0000_3c00_0000,
    }
}

fn f80(r: &mut Rng) -> [u8; 10] {
    let (exponent, mantissa) = match r.below(8) {
        0 => (0, 0),
        1 => (0x7fff, 1 << 63),
        2 => (0x7fff, 3 << 62 | r.word() >> 2),
        3 => (0x7fff, 1 << 63 | r.word() >> 2),
        4 => (0, r.word() >> 1),
        5 => (r.word() as u16, r.word()),
        _ => (0x3ff0 + r.below(32) as u16, 1 << 63 | r.word()),
    };
    let sign = (r.word() as u16) & 0x8000;
    let mut v = [0; 10];
    v[..8].copy_from_slice(&mantissa.to_le_bytes());
    v[8..].copy_from_slice(&(exponent & 0x7fff | sign).to_le_bytes());
    v
}

/// A random state.
pub fn state(r: &mut Rng) -> State {
    let mut s = State::ZERO;
    s.high = std::array::from_fn(|_| [lanes(r), lanes(r)]);
    let control = 0x7f | (r.word() as u16) & 0xf00;
    s.fx[0..2].copy_from_slice(&control.to_le_bytes());
    let status = (r.word() as u16) & 0x7f3f;
    s.fx[2..4].copy_from_slice(&status.to_le_bytes());
    s.fx[4] = if r.below(4) == 0 { r.word() as u8 } else { 0xff >> r.below(2) * r.below(8) };
    let mxcsr = 0x1f80 | r.word() as u32 & 0xe07f;
    s.fx[24..28].copy_from_slice(&mxcsr.to_le_bytes());
    for n in 0..8 {
        s.fx[32 + 16 * n..][..10].copy_from_slice(&f80(r));
    }
    for n in 0..32 {
        s.fx[160 + 8 * n..][..8].copy_from_slice(&lanes(r).to_le_bytes());
    }
    for n in 0..DATA_BYTES / 16 {
        let mut chunk = [0; 16];
        if r.below(3) == 0 {
            chunk[..10].copy_from_slice(&f80(r));
        } else {
            chunk[..8].copy_from_slice(&lanes(r).to_le_bytes());
            chunk[8..].copy_from_slice(&lanes(r).to_le_bytes());
        }
        s.data[16 * n..][..16].copy_from_slice(&chunk);
    }
    for g in &mut s.gpr {
        *g = r.word();
    }
    s.rflags = r.word() & ARITHMETIC;
    s
}

/// Registers to choose from: few, so that operands coincide.
const NUMBERS: [u32; 5] = [0, 1, 5, 9, 15];
const NUMBERS_32: [u32; 5] = [0, 1, 4, 6, 7];

/// Builds the instruction for 64-bit code with any registers.
pub fn build_any(code: Code, r: &mut Rng) -> Option<Instruction> {
    let numbers: [u32; 5] = std::array::from_fn(|_| r.below(16) as u32);
    build_with(code, 64, numbers, r)
}

/// Builds the instruction with random operands for code of `bits` bits; `None` if it has operands that this test does not
/// make.
pub fn build(code: Code, bits: u32, r: &mut Rng) -> Option<Instruction> {
    build_with(code, bits, if bits == 64 { NUMBERS } else { NUMBERS_32 }, r)
}

/// As [`build`], with these vector registers to choose from.
fn build_with(code: Code, bits: u32, numbers: [u32; 5], r: &mut Rng) -> Option<Instruction> {
    let mut i = Instruction::default();
    i.set_code(code);
    let info = code.op_code();
    // Operands of gathers must differ.
    let mut distinct = numbers;
    distinct.rotate_left(r.below(5));
    let gathers = (0..info.op_count()).any(|n| vsib(info.op_kind(n)).is_some());
    for n in 0..info.op_count() {
        let memory = r.below(2) == 0;
        let number = if gathers { distinct[n as usize] } else { numbers[r.below(5)] };
        let (xmm, ymm) = (Register::XMM0 + number, Register::YMM0 + number);
        let mm = [Register::MM0, Register::MM1, Register::MM5, Register::MM7][r.below(4)];
        let r32 = [Register::EAX, Register::ECX, Register::EDX, Register::EBX][r.below(4)];
        let r64 = [Register::RAX, Register::RCX, Register::RDX, Register::RBX][r.below(4)];
        let sti = [Register::ST0, Register::ST1, Register::ST2, Register::ST6][r.below(4)];
        let register = match info.op_kind(n) {
            Op::xmm_reg | Op::xmm_rm | Op::xmm_vvvv | Op::xmm_is4 => xmm,
            Op::ymm_reg | Op::ymm_rm | Op::ymm_vvvv | Op::ymm_is4 => ymm,
            Op::xmm_or_mem if !memory => xmm,
            Op::ymm_or_mem if !memory => ymm,
            Op::mm_reg | Op::mm_rm => mm,
            Op::mm_or_mem if !memory => mm,
            Op::r32_reg | Op::r32_rm => r32,
            Op::r32_or_mem if !memory => r32,
            Op::r64_reg | Op::r64_rm => r64,
            Op::r64_or_mem if !memory => r64,
            Op::st0 => Register::ST0,
            Op::sti_opcode => sti,
            Op::ax => Register::AX,
            Op::xmm_or_mem | Op::ymm_or_mem | Op::mm_or_mem | Op::r32_or_mem | Op::r64_or_mem | Op::mem => {
                Register::None
            }
            kind if vsib(kind).is_some() => {
                let (first, _) = vsib(kind)?;
                i.set_memory_index(first + number);
                i.set_memory_index_scale(1 << r.below(4));
                Register::None
            }
            Op::imm8 => {
                i.set_op_kind(n, OpKind::Immediate8);
                i.set_immediate8(if r.below(2) == 0 { r.word() as u8 } else { r.below(24) as u8 });
                continue;
            }
            Op::seg_rDI => {
                i.set_op_kind(n, if bits == 64 { OpKind::MemorySegRDI } else { OpKind::MemorySegEDI });
                continue;
            }
            _ => return None,
        };
        if register == Register::None {
            i.set_op_kind(n, OpKind::Memory);
            i.set_memory_base(if bits == 64 { Register::RSI } else { Register::ESI });
            i.set_memory_displ_size(1);
            i.set_memory_displacement64(displacement(&i, r));
        } else {
            i.set_op_kind(n, OpKind::Register);
            i.set_op_register(n, register);
        }
    }
    Some(i)
}

/// The first register of a vector of indices, and their bytes.
pub fn vsib(kind: Op) -> Option<(Register, usize)> {
    match kind {
        Op::mem_vsib32x => Some((Register::XMM0, 4)),
        Op::mem_vsib64x => Some((Register::XMM0, 8)),
        Op::mem_vsib32y => Some((Register::YMM0, 4)),
        Op::mem_vsib64y => Some((Register::YMM0, 8)),
        _ => None,
    }
}

/// A displacement at which the memory operand lies in the data, aligned if it must be. Those that need not be aligned are
/// often across the middle.
fn displacement(i: &Instruction, r: &mut Rng) -> u64 {
    use Mnemonic::*;
    let aligned =
        matches!(i.mnemonic(), Vmovaps | Vmovapd | Vmovdqa | Vmovntps | Vmovntpd | Vmovntdq | Vmovntdqa);
    match i.encoding() {
        EncodingKind::Legacy => 16 * r.below(8) as u64,
        _ if i.memory_index() != Register::None => DATA_BYTES as u64 / 2,
        _ if aligned => 32 * r.below(7) as u64,
        _ if r.below(3) == 0 => r.below(DATA_BYTES - 32) as u64,
        _ => DATA_BYTES as u64 / 2 - r.below(32) as u64,
    }
}

/// Makes the indices of a gather small.
pub fn limit_indices(i: &Instruction, state: &mut State, r: &mut Rng) {
    let info = i.code().op_code();
    let Some((_, bytes)) = (0..info.op_count()).find_map(|n| vsib(info.op_kind(n))) else { return };
    let mut small = || r.below(16) as i64 - 8;
    for at in 0..4 {
        let v = match bytes {
            4 => small() as u32 as u64 | (small() as u32 as u64) << 32,
            _ => small() as u64,
        };
        state.set_word(i.memory_index().number(), at, v);
    }
}
