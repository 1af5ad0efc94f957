//! Every row decodes to the instruction it names with the operands it was given, and computes what the
//! interpreter does.

use iced_x86::{Decoder, DecoderOptions, Instruction, OpKind, Register};

use super::three::{Form as Form3, Which, emit_vec3, form, overwritten};
use super::*;
use crate::backend::HostVec;
use crate::interp::Word4;
use crate::interp::vec::{compute, compute_ins, compute_test, compute3};
use crate::ir::Vec3Op;

const LENS: [VecLen; 2] = [VecLen::V128, VecLen::V256];

/// Lengths that an operation exists in.
fn lens(max: VecLen) -> &'static [VecLen] {
    if max == VecLen::V128 { &LENS[..1] } else { &LENS }
}

/// Decodes an instruction before and after which there may be moves between vector registers.
fn decode_among_moves(bytes: &[u8]) -> Instruction {
    let mut decoder = Decoder::with_ip(64, bytes, 0, DecoderOptions::NONE);
    let others: Vec<_> = decoder.iter().filter(|i| i.mnemonic() != iced_x86::Mnemonic::Vmovdqa).collect();
    assert!(others.len() == 1 && !others[0].is_invalid(), "{bytes:02x?}");
    others[0]
}

fn decode(bytes: &[u8]) -> Instruction {
    let insn = Decoder::with_ip(64, bytes, 0, DecoderOptions::NONE).decode();
    assert!(!insn.is_invalid(), "{bytes:02x?}");
    assert_eq!(insn.len(), bytes.len(), "{bytes:02x?} {insn:?}");
    insn
}

fn mnemonic(insn: &Instruction) -> String {
    format!("{:?}", insn.mnemonic()).to_lowercase()
}

/// Numbers of the register operands, in the order of the assembler's notation.
fn registers(insn: &Instruction) -> Vec<u8> {
    (0..insn.op_count())
        .filter(|&n| insn.op_kind(n) == OpKind::Register)
        .map(|n| insn.op_register(n).number() as u8)
        .collect()
}

/// Register choices that between them set and clear every extension bit.
const CHOICES: [(u8, u8, u8); 4] = [(1, 2, 3), (9, 2, 3), (1, 10, 3), (1, 2, 11)];

#[test]
fn every_vector_row_decodes_to_its_instruction() {
    for &op in VecOp::ALL {
        for &len in op.lens() {
            for (dst, a, b) in CHOICES {
                let mut code = Vec::new();
                emit_vec(&mut code, op, len, dst, a, b, 5);
                let legacy = matches!(vec_row(op).form, Legacy | LegacyI);
                let insn = if legacy { decode_among_moves(&code) } else { decode(&code) };
                assert_eq!(mnemonic(&insn), vec_row(op).name, "{op:?}");
                let expect = match op.operands() {
                    _ if legacy => vec![dst, b],
                    2 => vec![dst, a, b],
                    _ => vec![dst, a],
                };
                assert_eq!(registers(&insn), expect, "{op:?} {insn:?}");
                assert_eq!(op.has_imm(), (0..insn.op_count()).any(|n| insn.op_kind(n) == OpKind::Immediate8));
                if len == VecLen::V256 {
                    assert!((0..insn.op_count()).any(|n| insn.op_register(n).is_ymm()), "{op:?}");
                }
            }
        }
    }
}

#[test]
fn every_three_vector_row_decodes_to_its_instruction() {
    for &op in Vec3Op::ALL {
        for (dst, c) in [(9, 4), (9, 12), (2, 4), (3, 4), (4, 4)] {
            let mut code = Vec::new();
            emit_vec3(&mut code, op, (op.max_len(), VecLen::V256), dst, 2, 3, c);
            let insn = decode_among_moves(&code);
            let (name, operands) = match form(op) {
                Form3::Four(row) => (row.name.to_string(), vec![dst, 2, 3, c]),
                Form3::Accumulate(row) => {
                    let place = if dst == 2 || dst == 3 { SCRATCH } else { dst };
                    (row.name.to_string(), vec![place, 2, 3])
                }
                Form3::Rounds(row) => (row.name.to_string(), vec![SCRATCH, 3]),
                Form3::Fma { row, suffix, lends } => {
                    let which = lends.unwrap_or(match dst {
                        2 => Which::A,
                        3 => Which::B,
                        _ => Which::C,
                    });
                    let (form, others) = match which {
                        Which::A => (132, [c, 3]),
                        Which::B => (213, [2, c]),
                        Which::C => (231, [2, 3]),
                    };
                    let place = if others.contains(&dst) { SCRATCH } else { dst };
                    (format!("{}{form}{suffix}", row.name), vec![place, others[0], others[1]])
                }
            };
            assert_eq!((mnemonic(&insn), registers(&insn)), (name, operands), "{op:?} to {dst}");
            // Where the register allocator does what `overwritten` asks for, it is one instruction.
            let (best, avoid) = overwritten(op, 2, 3, c);
            assert_eq!(avoid >> best & 1, 0);
            if dst == best && !matches!(form(op), Form3::Rounds(_)) {
                decode(&code);
            }
        }
    }
}

#[test]
fn every_insertion_row_decodes_to_its_instruction() {
    for &op in VecInsOp::ALL {
        for (dst, a, b) in CHOICES {
            let mut code = Vec::new();
            emit_vec_ins(&mut code, op, dst, a, b, 1);
            let insn = decode(&code);
            assert_eq!((mnemonic(&insn).as_str(), registers(&insn)), (ins_row(op).name, vec![dst, a, b]));
            let general = insn.op_register(2);
            assert!(if op.text().contains("i64") { general.is_gpr64() } else { general.is_gpr32() });
        }
    }
}

#[test]
fn every_test_row_decodes_to_its_instruction() {
    for &op in VecTestOp::ALL {
        for &len in lens(op.max_len()) {
            for (dst, a, b) in CHOICES {
                let mut code = Vec::new();
                emit_vec_test(&mut code, op, len, dst, a, b, 1);
                let (row, result) = test_row(op);
                let insn = match result {
                    TestResult::Register => decode(&code),
                    TestResult::Flags => {
                        let insn = Decoder::with_ip(64, &code, 0, DecoderOptions::NONE).decode();
                        let mut only = Vec::new();
                        assert!(emit_vec_test_flags(&mut only, op, len, a, b));
                        assert_eq!(code[..insn.len()], only);
                        insn
                    }
                };
                assert_eq!(mnemonic(&insn), row.name);
                let expect = if result == TestResult::Flags { vec![a, b] } else { vec![dst, a] };
                assert_eq!(registers(&insn), expect, "{op:?}");
            }
        }
    }
}

#[test]
fn moves_decode_with_every_kind_of_address() {
    let mut mems = vec![VecMem::indexed(5, 12), VecMem::indexed(13, 1)];
    for base in [0, 4, 5, 12, 13] {
        mems.extend([0, 8, -129, 0x1234_5678].map(|disp| VecMem::base(base, disp)));
    }
    for mem in mems {
        for size in VecSize::ALL {
            for store in [false, true] {
                let mut code = Vec::new();
                if store {
                    emit_vec_store(&mut code, size, 9, mem);
                } else {
                    emit_vec_load(&mut code, size, 9, mem);
                }
                let insn = decode(&code);
                assert_eq!(insn.op_kind(store as u32 ^ 1), OpKind::Memory);
                assert_eq!(insn.memory_size().size() as u32, size.bytes());
                assert_eq!(insn.memory_base().number() as u8, mem.base);
                assert_eq!(insn.memory_displacement64() as i32, mem.disp);
                match mem.index {
                    Some(index) => assert_eq!(insn.memory_index().number() as u8, index),
                    None => assert_eq!(insn.memory_index(), Register::None),
                }
                assert_eq!(registers(&insn), [9]);
            }
        }
    }
    for wide in [false, true] {
        let (mut from, mut to) = (Vec::new(), Vec::new());
        emit_vec_from_int(&mut from, wide, 9, 3);
        emit_vec_to_int(&mut to, wide, 11, 2);
        assert_eq!(registers(&decode(&from)), [9, 3]);
        assert_eq!(registers(&decode(&to)), [11, 2]);
    }
    let mut code = Vec::new();
    emit_vec_move(&mut code, VecLen::V256, 9, 10);
    assert_eq!(registers(&decode(&code)), [9, 10]);
    code.clear();
    emit_vec_zero(&mut code, 12);
    assert_eq!(registers(&decode(&code)), [12, 12, 12]);
}

/// Inputs and outputs of the code under test.
#[repr(C, align(32))]
struct Io {
    a: Word4,
    b: Word4,
    c: Word4,
    vector: Word4,
    integer: u64,
    control: u32,
    saved: u32,
}

#[cfg(target_arch = "x86_64")]
mod native {
    use super::*;

    /// Runs `body` with `a`, `b`, `c` in vector registers 1 to 3 and `integer` in rdx; results are taken from vector
    /// register 0 and from rcx.
    fn run(io: &mut Io, body: impl Fn(&mut Vec<u8>)) {
        const RDI: u8 = 7;
        let at = |offset: usize| VecMem::base(RDI, offset as i32);
        let mut code = Vec::new();
        // stmxcsr/ldmxcsr [rdi + disp32]
        let control = |code: &mut Vec<u8>, ext: u8, offset: usize| {
            code.extend([0x0f, 0xae, 0x87 | ext << 3]);
            code.extend((offset as u32).to_le_bytes());
        };
        control(&mut code, 3, std::mem::offset_of!(Io, saved));
        control(&mut code, 2, std::mem::offset_of!(Io, control));
        emit_vec_load(&mut code, VecSize::B32, 1, at(std::mem::offset_of!(Io, a)));
        emit_vec_load(&mut code, VecSize::B32, 2, at(std::mem::offset_of!(Io, b)));
        emit_vec_load(&mut code, VecSize::B32, 3, at(std::mem::offset_of!(Io, c)));
        // mov rdx, [rdi + disp32]
        code.extend([0x48, 0x8b, 0x97]);
        code.extend((std::mem::offset_of!(Io, integer) as u32).to_le_bytes());
        body(&mut code);
        emit_vec_store(&mut code, VecSize::B32, 0, at(std::mem::offset_of!(Io, vector)));
        // mov [rdi + disp32], rcx
        code.extend([0x48, 0x89, 0x8f]);
        code.extend((std::mem::offset_of!(Io, integer) as u32).to_le_bytes());
        control(&mut code, 3, std::mem::offset_of!(Io, control));
        control(&mut code, 2, std::mem::offset_of!(Io, saved));
        code.extend([0xc5, 0xf8, 0x77, 0xc3]); // vzeroupper; ret
        let mut map = memmap2::MmapMut::map_anon(4096).expect("an anonymous page");
        map[..code.len()].copy_from_slice(&code);
        let map = map.make_exec().expect("an executable page");
        // SAFETY: the page holds the function assembled above, which follows the C calling convention and accesses
        // `io` alone.
        unsafe {
            let f: extern "C" fn(*mut Io) = std::mem::transmute(map.as_ptr());
            f(io);
        }
    }

    /// xorshift64*; the top bits are good enough to pick test inputs.
    struct Random(u64);

    impl Random {
        fn next(&mut self) -> u64 {
            self.0 ^= self.0 >> 12;
            self.0 ^= self.0 << 25;
            self.0 ^= self.0 >> 27;
            self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
        }

        /// Words that are random, or made of lanes with few and special values.
        fn word(&mut self) -> u64 {
            const SPECIAL64: [u64; 12] = [
                0,
                1 << 63,
                0x3ff0_0000_0000_0000,
                0x7ff0_0000_0000_0000,
                0xfff0_0000_0000_0000,
                0x7ff8_0000_0000_0001,
                0x7ff4_0000_0000_0002,
                0x0000_0000_0000_0001,
                0x000f_ffff_ffff_ffff,
                0x41e0_0000_0000_0000,
                0xc3e0_0000_0000_0000,
                0x4004_0000_0000_0000,
            ];
            const SPECIAL32: [u32; 12] = [
                0,
                1 << 31,
                0x3f80_0000,
                0x7f80_0000,
                0xff80_0000,
                0x7fc0_0001,
                0x7fa0_0002,
                1,
                0x007f_ffff,
                0x4f00_0000,
                0x3fc0_0000,
                0x4020_0000,
            ];
            let r = self.next() >> 16;
            match r & 3 {
                0 => self.next(),
                1 => SPECIAL64[(r >> 8) as usize % 12],
                2 => {
                    SPECIAL32[(r >> 8) as usize % 12] as u64
                        | (SPECIAL32[(r >> 16) as usize % 12] as u64) << 32
                }
                // Ordinary numbers: exponents near the bias.
                _ => self.next() & 0x83ff_ffff_83ff_ffff | 0x3c00_0000_3c00_0000,
            }
        }

        fn io(&mut self) -> Io {
            let mut vector = || std::array::from_fn(|_| self.word());
            let (a, b, c) = (vector(), vector(), vector());
            // Rounding, flush to zero and denormals-are-zeros vary; exceptions are masked.
            let control = 0x1f80 | self.next() as u32 & 0xe040;
            Io { a, b, c, vector: [0; 4], integer: self.next(), control, saved: 0 }
        }
    }

    /// Operations whose choice among several NaN operands the manual leaves open.
    fn nan_choice_is_open(op: VecOp) -> bool {
        matches!(op, VecOp::DotF32 | VecOp::DotF64)
    }

    fn has_nan(v: Word4) -> bool {
        v.iter().any(|&w| {
            f64::from_bits(w).is_nan()
                || f32::from_bits(w as u32).is_nan()
                || f32::from_bits((w >> 32) as u32).is_nan()
        })
    }

    #[test]
    fn vector_rows_agree_with_the_interpreter() {
        let mut random = Random(0x9e37_79b9_7f4a_7c15);
        let host = HostVec::detect();
        for &op in VecOp::ALL {
            for &len in op.lens() {
                if !host.has(op, len) {
                    println!("skipped: this host lacks {op:?} in {len:?}");
                    continue;
                }
                for _ in 0..60 {
                    let mut io = random.io();
                    let imm = if op.has_imm() {
                        random.next() as u8 & if op.text().starts_with("cmp") { 31 } else { 255 }
                    } else {
                        0
                    };
                    if op.text().starts_with("sh") && random.next() & 1 == 0 {
                        io.b[0] &= 63;
                    }
                    let mut control = io.control;
                    let expect = compute(op, len, io.a, io.b, imm, &mut control);
                    let (a, b) = (io.a, io.b);
                    let before = io.control;
                    run(&mut io, |code| emit_vec(code, op, len, 0, 1, 2, imm));
                    if nan_choice_is_open(op) && has_nan(io.vector) {
                        continue;
                    }
                    assert_eq!(
                        io.vector, expect,
                        "{op:?} {len:?} imm {imm:#x} control {before:#x}\na {a:x?}\nb {b:x?}\nnative {:x?}\nexpect {expect:x?}",
                        io.vector
                    );
                    assert_eq!(
                        io.control, control,
                        "{op:?} {len:?} imm {imm:#x}\na {a:x?}\nb {b:x?} control {before:#x}"
                    );
                }
            }
        }
    }

    #[test]
    fn three_vector_rows_agree_with_the_interpreter() {
        let mut random = Random(0xa076_1d64_78bd_642f);
        let host = HostVec::detect();
        for &op in Vec3Op::ALL.iter().filter(|&&op| host.has3(op)) {
            for &len in lens(op.max_len()) {
                // The result in a register of its own, and over each operand.
                for dst in (0..4).cycle().take(120) {
                    let mut io = random.io();
                    let (a, b, c) = (io.a, io.b, io.c);
                    let mut control = io.control;
                    let expect = compute3(op, len, a, b, c, &mut control);
                    run(&mut io, |code| {
                        emit_vec3(code, op, (len, VecLen::V256), dst, 1, 2, 3);
                        emit_vec_move(code, VecLen::V256, 0, dst);
                    });
                    assert_eq!(
                        (io.vector, io.control),
                        (expect, control),
                        "{op:?} {len:?} to {dst}\na {a:x?}\nb {b:x?}\nc {c:x?}"
                    );
                }
            }
        }
    }

    #[test]
    fn other_rows_agree_with_the_interpreter() {
        let mut random = Random(0xd1b5_4a32_d192_ed03);
        for _ in 0..60 {
            for &op in VecInsOp::ALL {
                let (mut io, imm) = (random.io(), if op.has_imm() { random.next() as u8 } else { 0 });
                let mut control = io.control;
                let expect = compute_ins(op, io.a, io.integer, imm, &mut control);
                run(&mut io, |code| emit_vec_ins(code, op, 0, 1, 2, imm));
                assert_eq!((io.vector, io.control), (expect, control), "{op:?}");
            }
            for &op in VecTestOp::ALL {
                for &len in lens(op.max_len()) {
                    let (mut io, imm) = (random.io(), if op.has_imm() { random.next() as u8 } else { 0 });
                    let mut control = io.control;
                    let expect = compute_test(op, len, io.a, io.b, imm, &mut control);
                    run(&mut io, |code| emit_vec_test(code, op, len, 1, 1, 2, imm));
                    // Bit 9 of packed flags is unspecified.
                    let flags = test_row(op).1 == TestResult::Flags;
                    let got = if flags { io.integer & !0x200 } else { io.integer };
                    assert_eq!((got, io.control), (expect, control), "{op:?} {:x?} {:x?}", io.a, io.b);
                }
            }
        }
    }
}
