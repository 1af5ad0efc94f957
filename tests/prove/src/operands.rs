//! Operands: registers, memory and immediates of every kind, drawn so that most instructions find something to work on.

use iced_x86::{Code, Instruction, MemorySize, Mnemonic, OpCodeOperandKind as Op, OpKind, Register};

use crate::layout::{CODE, IMAGE_AT, PAGE, WINDOW, WINDOW_PAGES};
use tessera_x86::testing::Rng;

/// What the registers are good for at the place where an instruction is made.
#[derive(Clone, Debug)]
pub struct Roles {
    /// 64-bit code.
    pub wide: bool,
    /// General registers that lead into the window, one bit each.
    pub pointers: u16,
    /// General registers with small numbers.
    pub small: u16,
    /// The loop counter, which nothing else may use.
    pub counter: Option<u32>,
    /// Registers that hold code addresses: not to be jumped to again.
    pub labels: u16,
}

impl Roles {
    fn registers(&self) -> usize {
        if self.wide { 16 } else { 8 }
    }

    /// A general register for an operand; RSP and the loop counter hardly or never.
    pub fn any(&self, r: &mut Rng) -> u32 {
        loop {
            let n =
                if r.percent(60) { r.pick(&[0, 1, 2, 3, 6, 7]) } else { r.below(self.registers()) as u32 };
            if Some(n) != self.counter && (n != 4 || r.one_in(24)) {
                return n;
            }
        }
    }

    fn one_of(&self, mask: u16, r: &mut Rng) -> Option<u32> {
        let mask = match self.counter {
            Some(n) => mask & !(1 << n),
            None => mask,
        };
        if mask == 0 {
            return None;
        }
        let nth = r.below(mask.count_ones() as usize);
        (0..16).filter(|n| mask >> n & 1 != 0).nth(nth)
    }
}

/// A general register of a size in bytes.
pub fn gpr(n: u32, bytes: u32) -> Register {
    match bytes {
        8 => Register::RAX + n,
        4 => Register::EAX + n,
        2 => Register::AX + n,
        _ => byte_register(n),
    }
}

fn byte_register(n: u32) -> Register {
    // AL … BL are followed by the high bytes in iced's numbering; SPL and on need REX.
    match n {
        0..=3 => Register::AL + n,
        _ => Register::SPL + (n - 4),
    }
}

/// An address in the window for an access, mostly one that is good, often at an edge.
pub fn address(r: &mut Rng) -> u64 {
    let page = PAGE as u64;
    match r.below(16) {
        // In the middle of a writable page.
        0..=8 => IMAGE_AT + r.pick(&[0, 1, 3]) * page + 256 + 64 * r.below(52) as u64,
        9 => IMAGE_AT + r.pick(&[0, 1, 3]) * page + 256 + r.below(3000) as u64,
        10 => IMAGE_AT + 2 * page + 256 + 16 * r.below(200) as u64,
        // Just before or at the start of a page, whatever it is.
        11 | 12 => WINDOW + (1 + r.below(WINDOW_PAGES as usize) as u64) * page - r.below(64) as u64,
        13 => WINDOW + (1 + r.below(WINDOW_PAGES as usize) as u64) * page - 16 * r.below(8) as u64,
        // From one writable page to the other.
        14 => IMAGE_AT + page - r.below(48) as u64,
        _ => WINDOW + r.below((WINDOW_PAGES * page) as usize) as u64,
    }
}

fn displacement(r: &mut Rng, size: u64) -> i64 {
    let size = size.clamp(1, 64) as i64;
    match r.below(16) {
        0..=6 => 0,
        7..=11 => size * (r.below(9) as i64 - 4),
        12 => r.word() as i8 as i64,
        13 => 64 * (r.below(40) as i64 - 20),
        14 => r.below(256) as i64 - 128,
        _ => size * 2,
    }
}

/// Makes a memory operand.
fn memory(i: &mut Instruction, n: u32, roles: &Roles, r: &mut Rng, index: Option<Register>) {
    i.set_op_kind(n, OpKind::Memory);
    let size = match i.memory_size() {
        MemorySize::Unknown => 8,
        size => size.size() as u64,
    };
    // A register that is an address itself has the size of the other one.
    let forced = matches!(i.mnemonic(), Mnemonic::Movdir64b).then(|| i.op0_register().size());
    let wide = forced.map_or(roles.wide && !r.one_in(24), |size| size == 8);
    if forced == Some(2) {
        i.set_memory_base(Register::BX);
        return;
    }
    let register = |n: u32| gpr(n, if wide { 8 } else { 4 });
    let big = if wide { 8 } else { 4 };
    let set_displacement = |i: &mut Instruction, v: i64| {
        let v = if wide { v as u64 } else { v as u32 as u64 };
        let short = v as i64 as i8 as i64 == v as i64 || !wide && v as i32 as i8 as i32 == v as i32;
        i.set_memory_displ_size(if v == 0 {
            0
        } else if short {
            1
        } else {
            big
        });
        i.set_memory_displacement64(v);
    };
    if let Some(index) = index {
        i.set_memory_index(index);
        i.set_memory_index_scale(r.pick(&[1, 2, 4, 8]));
    }
    // Of these ways some have an address size of their own.
    let how = if forced.is_some() { 63 } else { r.below(64) };
    let pointer = roles.one_of(roles.pointers, r);
    match (how, pointer) {
        // RIP-relative.
        (0..=2, _) if roles.wide && index.is_none() => {
            i.set_memory_base(Register::RIP);
            i.set_memory_displ_size(8);
            i.set_memory_displacement64(address(r));
        }
        // An address as displacement.
        (3 | 4, _) => set_displacement(i, address(r) as i64),
        // Anywhere.
        (5, _) => {
            i.set_memory_base(register(roles.any(r)));
            set_displacement(i, r.word() as i32 as i64);
        }
        // Through FS or GS, which lead into the window themselves.
        (6 | 7, _) if roles.wide => {
            i.set_segment_prefix(r.pick(&[Register::FS, Register::GS]));
            if let Some(small) = roles.one_of(roles.small, r) {
                i.set_memory_base(register(small));
            } else if wide {
                set_displacement(i, 8);
            }
            if i.memory_base() == Register::None {
                set_displacement(i, 64);
            }
        }
        // 16-bit addressing: nothing is mapped there.
        (8, _) if !roles.wide && index.is_none() => {
            i.set_memory_base(r.pick(&[Register::BX, Register::SI, Register::BP]));
            i.set_memory_displ_size(1);
            i.set_memory_displacement64(8);
        }
        (_, Some(base)) => {
            i.set_memory_base(register(base));
            if index.is_none()
                && r.one_in(6)
                && let Some(small) = roles.one_of(roles.small, r)
                && small != 4
            {
                i.set_memory_index(register(small));
                i.set_memory_index_scale(r.pick(&[1, 2, 4, 8]));
            }
            let v = displacement(r, size);
            set_displacement(i, v);
            if r.one_in(40) {
                i.set_segment_prefix(r.pick(&[Register::DS, Register::ES, Register::CS, Register::SS]));
            }
        }
        (_, None) if forced.is_some() => i.set_memory_base(register(roles.any(r))),
        (_, None) => set_displacement(i, address(r) as i64),
    }
}

fn vector_number(roles: &Roles, r: &mut Rng) -> u32 {
    if roles.wide && r.percent(30) { r.below(16) as u32 } else { r.pick(&[0, 1, 2, 3, 7]) }
}

fn immediate32(r: &mut Rng) -> u32 {
    if r.one_in(3) { r.word() as u32 } else { r.int() as u32 }
}

/// What an operand became.
enum Made {
    Reg(Register),
    Memory,
    Done,
}

/// Gives operand `n` of `i` a value; `None` if sequences have no operands of its kind.
pub fn operand(i: &mut Instruction, n: u32, kind: Op, roles: &Roles, r: &mut Rng) -> Option<()> {
    use Made::{Done, Memory, Reg};
    let in_memory = r.below(5) < 3;
    let address_bytes = if roles.wide && !r.one_in(32) { 8 } else { 4 };
    let made = match kind {
        Op::mem | Op::mem_mib | Op::sibmem | Op::mem_mpx => Memory,
        Op::mem_offs => {
            i.set_op_kind(n, OpKind::Memory);
            let v = if r.one_in(8) { r.int() } else { address(r) };
            i.set_memory_displ_size(if roles.wide { 8 } else { 4 });
            i.set_memory_displacement64(if roles.wide { v } else { v as u32 as u64 });
            Done
        }
        Op::mem_vsib32x | Op::mem_vsib64x | Op::mem_vsib32y | Op::mem_vsib64y => {
            let first = if matches!(kind, Op::mem_vsib32x | Op::mem_vsib64x) {
                Register::XMM0
            } else {
                Register::YMM0
            };
            let index = first + vector_number(roles, r);
            memory(i, n, roles, r, Some(index));
            return Some(());
        }
        Op::r8_or_mem
        | Op::r16_or_mem
        | Op::r32_or_mem
        | Op::r64_or_mem
        | Op::mm_or_mem
        | Op::xmm_or_mem
        | Op::ymm_or_mem
            if in_memory =>
        {
            Memory
        }
        Op::r8_or_mem | Op::r8_reg | Op::r8_opcode => Reg(if !roles.wide || r.one_in(4) {
            Register::AL + r.below(8) as u32
        } else {
            byte_register(roles.any(r))
        }),
        Op::r16_or_mem | Op::r16_reg | Op::r16_rm | Op::r16_opcode => Reg(gpr(roles.any(r), 2)),
        Op::r32_or_mem | Op::r32_reg | Op::r32_rm | Op::r32_opcode | Op::r32_vvvv => {
            Reg(gpr(roles.any(r), 4))
        }
        Op::r64_or_mem | Op::r64_reg | Op::r64_rm | Op::r64_opcode | Op::r64_vvvv => {
            Reg(gpr(roles.any(r), 8))
        }
        Op::r16_reg_mem | Op::r32_reg_mem | Op::r64_reg_mem => {
            // The register is an address.
            let bytes = match kind {
                Op::r16_reg_mem => 2,
                Op::r32_reg_mem => 4,
                _ => 8,
            };
            Reg(gpr(roles.one_of(roles.pointers, r).unwrap_or_else(|| roles.any(r)), bytes))
        }
        Op::seg_reg => {
            Reg(r.pick(&[Register::ES, Register::CS, Register::SS, Register::DS, Register::FS, Register::GS]))
        }
        Op::mm_or_mem | Op::mm_reg | Op::mm_rm => Reg(Register::MM0 + r.pick(&[0, 1, 2, 7])),
        Op::xmm_or_mem | Op::xmm_reg | Op::xmm_rm | Op::xmm_vvvv | Op::xmm_is4 => {
            Reg(Register::XMM0 + vector_number(roles, r))
        }
        Op::ymm_or_mem | Op::ymm_reg | Op::ymm_rm | Op::ymm_vvvv | Op::ymm_is4 => {
            Reg(Register::YMM0 + vector_number(roles, r))
        }
        Op::cr_reg => Reg(Register::CR0 + r.pick(&[0, 2, 3, 4])),
        Op::dr_reg => Reg(Register::DR0 + r.pick(&[0, 3, 6, 7])),
        Op::es => Reg(Register::ES),
        Op::cs => Reg(Register::CS),
        Op::ss => Reg(Register::SS),
        Op::ds => Reg(Register::DS),
        Op::fs => Reg(Register::FS),
        Op::gs => Reg(Register::GS),
        Op::al => Reg(Register::AL),
        Op::cl => Reg(Register::CL),
        Op::ax => Reg(Register::AX),
        Op::dx => Reg(Register::DX),
        Op::eax => Reg(Register::EAX),
        Op::rax => Reg(Register::RAX),
        Op::st0 => Reg(Register::ST0),
        Op::sti_opcode => Reg(Register::ST0 + r.below(8) as u32),
        Op::imm8 => {
            let second = (0..n).any(|m| matches!(i.op_kind(m), OpKind::Immediate16 | OpKind::Immediate8));
            let v = if r.one_in(2) { r.word() as u8 } else { r.below(40) as u8 };
            if second {
                i.set_op_kind(n, OpKind::Immediate8_2nd);
                i.set_immediate8_2nd(if i.code() == Code::Enterd_imm16_imm8 { v & 7 } else { v });
            } else {
                i.set_op_kind(n, OpKind::Immediate8);
                i.set_immediate8(v);
            }
            Done
        }
        Op::imm8_const_1 => {
            i.set_op_kind(n, OpKind::Immediate8);
            i.set_immediate8(1);
            Done
        }
        Op::imm8sex16 => {
            i.set_op_kind(n, OpKind::Immediate8to16);
            i.set_immediate8to16(r.word() as i8 as i16);
            Done
        }
        Op::imm8sex32 => {
            i.set_op_kind(n, OpKind::Immediate8to32);
            i.set_immediate8to32(r.word() as i8 as i32);
            Done
        }
        Op::imm8sex64 => {
            i.set_op_kind(n, OpKind::Immediate8to64);
            i.set_immediate8to64(r.word() as i8 as i64);
            Done
        }
        Op::imm16 => {
            i.set_op_kind(n, OpKind::Immediate16);
            let v = r.int() as u16;
            // Sizes of frames and of arguments: mostly such that the stack stays in the window.
            let stack = matches!(i.mnemonic(), Mnemonic::Enter | Mnemonic::Ret);
            i.set_immediate16(if stack && !r.one_in(8) { v & 0x7f } else { v });
            Done
        }
        Op::imm32 => {
            i.set_op_kind(n, OpKind::Immediate32);
            i.set_immediate32(immediate32(r));
            Done
        }
        Op::imm32sex64 => {
            i.set_op_kind(n, OpKind::Immediate32to64);
            i.set_immediate32to64(immediate32(r) as i32 as i64);
            Done
        }
        Op::imm64 => {
            i.set_op_kind(n, OpKind::Immediate64);
            i.set_immediate64(r.int());
            Done
        }
        Op::seg_rSI => {
            i.set_op_kind(n, if address_bytes == 8 { OpKind::MemorySegRSI } else { OpKind::MemorySegESI });
            Done
        }
        Op::es_rDI => {
            // Both operands of a string instruction have the same address size.
            let narrow = n == 1 && i.op0_kind() == OpKind::MemorySegESI;
            let same = n == 1 && i.op0_kind() == OpKind::MemorySegRSI;
            let narrow = narrow || !same && address_bytes == 4;
            i.set_op_kind(n, if narrow { OpKind::MemoryESEDI } else { OpKind::MemoryESRDI });
            Done
        }
        Op::seg_rDI => {
            i.set_op_kind(n, if address_bytes == 8 { OpKind::MemorySegRDI } else { OpKind::MemorySegEDI });
            Done
        }
        Op::seg_rBX_al => {
            i.set_op_kind(n, OpKind::Memory);
            i.set_memory_base(if address_bytes == 8 { Register::RBX } else { Register::EBX });
            i.set_memory_index(Register::AL);
            Done
        }
        // Overwritten where the branch leads to a step.
        Op::br16_1 | Op::br16_2 => {
            i.set_op_kind(n, OpKind::NearBranch16);
            i.set_near_branch16(r.word() as u16);
            Done
        }
        Op::br32_1 | Op::br32_4 => {
            i.set_op_kind(n, OpKind::NearBranch32);
            i.set_near_branch32(CODE as u32);
            Done
        }
        Op::br64_1 | Op::br64_4 => {
            i.set_op_kind(n, OpKind::NearBranch64);
            i.set_near_branch64(CODE);
            Done
        }
        _ => return None,
    };
    match made {
        Reg(register) => {
            i.set_op_kind(n, OpKind::Register);
            i.set_op_register(n, register);
        }
        Memory => memory(i, n, roles, r, None),
        Done => {}
    }
    if kind == Op::seg_rSI && n == 1 && i.op0_kind() == OpKind::MemoryESRDI {
        i.set_op_kind(1, OpKind::MemorySegRSI);
    }
    if kind == Op::seg_rSI && n == 1 && i.op0_kind() == OpKind::MemoryESEDI {
        i.set_op_kind(1, OpKind::MemorySegESI);
    }
    Some(())
}
