//! x87 instructions: each is one helper call.
//!
//! A memory source is loaded by the IR and handed to the helper; a memory destination is stored to by the helper, which must
//! know whether the store succeeds before it pops.
//!
//! While all exceptions are masked, most are a host instruction instead ([`native`]).
//!
//! What FSTENV shows of the last instruction (SDM volume 1, sections 8.1.8 and 8.1.9; control instructions are not shown):
//! its address is recorded after the helper has succeeded. Its opcode, and with FDP_EXCPTN_ONLY its operand's address, are
//! architectural only if it raised an unmasked exception: before the helper they are put where it finds them then
//! ([`X87Operand`]). CPUs without SSE2 record the opcode always, those without FDP_EXCPTN_ONLY the operand's address;
//! those with ZERO_FCS_FDS never the selectors.

use iced_x86::{Instruction, MemorySize, Mnemonic, OpKind, Register};
use tessera_tcg::ir::{BinOp, Cond, Exit, Ext, FlagOp, GlobalSet, HelperId, Inst, Value, Width};

use super::operand::segment_number;
use super::{Row, Translator};
use crate::cpuid::Feature;
use crate::helpers::x87::{
    self as helper, Misc, Source, arith_code, compare_code, layout_code, store_checks, store_code,
};
use crate::helpers::x87_host::{Binary, Format};
use crate::helpers::x87_image::Layout;
use crate::helpers::x87_native as native;
use crate::state::{Fpu, Segment, X86Env, X87Operand, mode, reg, seg};
use crate::system::exception::vector;

/// Rows of this family.
pub(super) const ROWS: &[Row] = &[
    Row::All(Mnemonic::Wait, wait),
    Row::All(Mnemonic::Fadd, |t, i| arith(t, i, Binary::Add, false)),
    Row::All(Mnemonic::Faddp, |t, i| arith(t, i, Binary::Add, true)),
    Row::All(Mnemonic::Fiadd, |t, i| arith(t, i, Binary::Add, false)),
    Row::All(Mnemonic::Fmul, |t, i| arith(t, i, Binary::Mul, false)),
    Row::All(Mnemonic::Fmulp, |t, i| arith(t, i, Binary::Mul, true)),
    Row::All(Mnemonic::Fimul, |t, i| arith(t, i, Binary::Mul, false)),
    Row::All(Mnemonic::Fsub, |t, i| arith(t, i, Binary::Sub, false)),
    Row::All(Mnemonic::Fsubp, |t, i| arith(t, i, Binary::Sub, true)),
    Row::All(Mnemonic::Fisub, |t, i| arith(t, i, Binary::Sub, false)),
    Row::All(Mnemonic::Fsubr, |t, i| arith(t, i, Binary::SubReverse, false)),
    Row::All(Mnemonic::Fsubrp, |t, i| arith(t, i, Binary::SubReverse, true)),
    Row::All(Mnemonic::Fisubr, |t, i| arith(t, i, Binary::SubReverse, false)),
    Row::All(Mnemonic::Fdiv, |t, i| arith(t, i, Binary::Div, false)),
    Row::All(Mnemonic::Fdivp, |t, i| arith(t, i, Binary::Div, true)),
    Row::All(Mnemonic::Fidiv, |t, i| arith(t, i, Binary::Div, false)),
    Row::All(Mnemonic::Fdivr, |t, i| arith(t, i, Binary::DivReverse, false)),
    Row::All(Mnemonic::Fdivrp, |t, i| arith(t, i, Binary::DivReverse, true)),
    Row::All(Mnemonic::Fidivr, |t, i| arith(t, i, Binary::DivReverse, false)),
    Row::All(Mnemonic::Fcom, |t, i| compare(t, i, 0, false)),
    Row::All(Mnemonic::Fcomp, |t, i| compare(t, i, 1, false)),
    Row::All(Mnemonic::Fcompp, |t, i| compare(t, i, 2, false)),
    Row::All(Mnemonic::Ficom, |t, i| compare(t, i, 0, false)),
    Row::All(Mnemonic::Ficomp, |t, i| compare(t, i, 1, false)),
    Row::All(Mnemonic::Fucom, |t, i| compare(t, i, 0, true)),
    Row::All(Mnemonic::Fucomp, |t, i| compare(t, i, 1, true)),
    Row::All(Mnemonic::Fucompp, |t, i| compare(t, i, 2, true)),
    Row::All(Mnemonic::Fcomi, |t, i| compare_to_flags(t, i, 0, false)),
    Row::All(Mnemonic::Fcomip, |t, i| compare_to_flags(t, i, 1, false)),
    Row::All(Mnemonic::Fucomi, |t, i| compare_to_flags(t, i, 0, true)),
    Row::All(Mnemonic::Fucomip, |t, i| compare_to_flags(t, i, 1, true)),
    Row::All(Mnemonic::Fld, load),
    Row::All(Mnemonic::Fild, load),
    Row::All(Mnemonic::Fbld, load),
    Row::All(Mnemonic::Fld1, |t, i| constant(t, i, 0)),
    Row::All(Mnemonic::Fldl2t, |t, i| constant(t, i, 1)),
    Row::All(Mnemonic::Fldl2e, |t, i| constant(t, i, 2)),
    Row::All(Mnemonic::Fldpi, |t, i| constant(t, i, 3)),
    Row::All(Mnemonic::Fldlg2, |t, i| constant(t, i, 4)),
    Row::All(Mnemonic::Fldln2, |t, i| constant(t, i, 5)),
    Row::All(Mnemonic::Fldz, |t, i| constant(t, i, 6)),
    Row::All(Mnemonic::Fst, |t, i| store(t, i, false, false)),
    Row::All(Mnemonic::Fstp, |t, i| store(t, i, true, false)),
    Row::All(Mnemonic::Fstpnce, |t, i| store_register(t, i, 2)),
    Row::All(Mnemonic::Fist, |t, i| store(t, i, false, false)),
    Row::All(Mnemonic::Fistp, |t, i| store(t, i, true, false)),
    Row::All(Mnemonic::Fisttp, |t, i| store(t, i, true, true)),
    Row::All(Mnemonic::Fbstp, |t, i| store(t, i, true, false)),
    Row::All(Mnemonic::Fxch, exchange),
    Row::All(Mnemonic::Ffree, |t, i| free(t, i, false)),
    Row::All(Mnemonic::Ffreep, |t, i| free(t, i, true)),
    Row::All(Mnemonic::Fnop, nop),
    Row::All(Mnemonic::Fchs, |t, i| misc(t, i, Misc::ChangeSign)),
    Row::All(Mnemonic::Fabs, |t, i| misc(t, i, Misc::Absolute)),
    Row::All(Mnemonic::Ftst, |t, i| misc(t, i, Misc::Test)),
    Row::All(Mnemonic::Fxam, |t, i| misc(t, i, Misc::Examine)),
    Row::All(Mnemonic::Fincstp, |t, i| misc(t, i, Misc::IncrementTop)),
    Row::All(Mnemonic::Fdecstp, |t, i| misc(t, i, Misc::DecrementTop)),
    Row::All(Mnemonic::Fsqrt, |t, i| misc(t, i, Misc::Sqrt)),
    Row::All(Mnemonic::Frndint, |t, i| misc(t, i, Misc::Round)),
    Row::All(Mnemonic::F2xm1, |t, i| misc(t, i, Misc::PowerMinus1)),
    Row::All(Mnemonic::Fsin, |t, i| misc(t, i, Misc::Sine)),
    Row::All(Mnemonic::Fcos, |t, i| misc(t, i, Misc::Cosine)),
    Row::All(Mnemonic::Fscale, |t, i| misc(t, i, Misc::Scale)),
    Row::All(Mnemonic::Fprem, |t, i| misc(t, i, Misc::Remainder)),
    Row::All(Mnemonic::Fprem1, |t, i| misc(t, i, Misc::RemainderNearest)),
    Row::All(Mnemonic::Fpatan, |t, i| misc(t, i, Misc::ArcTangent)),
    Row::All(Mnemonic::Fyl2x, |t, i| misc(t, i, Misc::YLog2X)),
    Row::All(Mnemonic::Fyl2xp1, |t, i| misc(t, i, Misc::YLog2XPlus1)),
    Row::All(Mnemonic::Fptan, |t, i| misc(t, i, Misc::Tangent)),
    Row::All(Mnemonic::Fsincos, |t, i| misc(t, i, Misc::SineCosine)),
    Row::All(Mnemonic::Fxtract, |t, i| misc(t, i, Misc::Extract)),
    Row::All(Mnemonic::Fcmovb, |t, i| move_if(t, i, Cond::B)),
    Row::All(Mnemonic::Fcmove, |t, i| move_if(t, i, Cond::E)),
    Row::All(Mnemonic::Fcmovbe, |t, i| move_if(t, i, Cond::BE)),
    Row::All(Mnemonic::Fcmovu, |t, i| move_if(t, i, Cond::P)),
    Row::All(Mnemonic::Fcmovnb, |t, i| move_if(t, i, Cond::AE)),
    Row::All(Mnemonic::Fcmovne, |t, i| move_if(t, i, Cond::NE)),
    Row::All(Mnemonic::Fcmovnbe, |t, i| move_if(t, i, Cond::A)),
    Row::All(Mnemonic::Fcmovnu, |t, i| move_if(t, i, Cond::NP)),
    Row::All(Mnemonic::Fninit, |t, _| control(t, helper::INIT)),
    Row::All(Mnemonic::Fnclex, |t, _| control(t, helper::CLEAR)),
    // Of the 8087 and the 287: no operations since (SDM volume 2, appendix on x87 opcodes).
    Row::All(Mnemonic::Fneni, |t, _| ignored(t)),
    Row::All(Mnemonic::Fndisi, |t, _| ignored(t)),
    Row::All(Mnemonic::Fnsetpm, |t, _| ignored(t)),
    Row::All(Mnemonic::Fldcw, fldcw),
    Row::All(Mnemonic::Fnstcw, |t, i| store_word(t, i, CONTROL)),
    Row::All(Mnemonic::Fnstsw, |t, i| store_word(t, i, STATUS)),
    Row::All(Mnemonic::Fnstenv, |t, i| state(t, i, helper::STORE_STATE, true)),
    Row::All(Mnemonic::Fnsave, |t, i| state(t, i, helper::STORE_STATE, true)),
    Row::All(Mnemonic::Fldenv, |t, i| state(t, i, helper::LOAD_STATE, false)),
    Row::All(Mnemonic::Frstor, |t, i| state(t, i, helper::LOAD_STATE, false)),
];

const FPU: u32 = std::mem::offset_of!(X86Env, fpu) as u32;
const CONTROL: u32 = FPU + std::mem::offset_of!(Fpu, control) as u32;
const STATUS: u32 = FPU + std::mem::offset_of!(Fpu, status) as u32;
const IP: u32 = FPU + std::mem::offset_of!(Fpu, ip) as u32;
const CS: u32 = FPU + std::mem::offset_of!(Fpu, cs) as u32;
const DP: u32 = FPU + std::mem::offset_of!(Fpu, dp) as u32;
const DS: u32 = FPU + std::mem::offset_of!(Fpu, ds) as u32;
const OPCODE: u32 = FPU + std::mem::offset_of!(Fpu, opcode) as u32;
const NUMBER: u32 = std::mem::offset_of!(X86Env, x87_number) as u32;
const LAST: u32 = std::mem::offset_of!(X86Env, x87_operand) as u32;
const LAST_DP: u32 = LAST + std::mem::offset_of!(X87Operand, dp) as u32;
const LAST_DS: u32 = LAST + std::mem::offset_of!(X87Operand, ds) as u32;
const LAST_OPCODE: u32 = LAST + std::mem::offset_of!(X87Operand, opcode) as u32;

fn selector(n: usize) -> u32 {
    let segment = std::mem::offset_of!(X86Env, seg) + n * size_of::<Segment>();
    (segment + std::mem::offset_of!(Segment, selector)) as u32
}

/// The opcode that FSTENV shows of an instruction with these bytes (SDM volume 1, section 8.1.9): the low three bits of the
/// escape byte (D8H to DFH), and the ModRM byte. 0 if it is not an x87 instruction.
#[inline]
pub(crate) fn opcode(bytes: &[u8]) -> u16 {
    for (n, &byte) in bytes.iter().enumerate() {
        match byte {
            0xd8..=0xdf => return (byte as u16 & 7) << 8 | bytes.get(n + 1).map_or(0, |&b| b as u16),
            // Prefixes, REX among them, none of which looks like an escape.
            0x26 | 0x2e | 0x36 | 0x3e | 0x40..=0x4f | 0x64..=0x67 | 0xf0 | 0xf2 | 0xf3 => {}
            _ => return 0,
        }
    }
    0
}

/// The memory operand of an instruction.
struct Operand {
    segment: usize,
    offset: Value,
    linear: Value,
}

impl Translator<'_> {
    /// Whether x87 instructions are available; if not, #NM is raised and the block ended.
    fn x87_available(&mut self) -> bool {
        if self.mode & (mode::FPU_EM | mode::FPU_TS) == 0 {
            return true;
        }
        self.raise(vector::NM, None);
        false
    }

    fn x87_operand(&mut self, i: &Instruction, bytes: u32, write: bool) -> Operand {
        let segment = segment_number(i.memory_segment());
        let offset = self.offset(i);
        let linear = self.linear(segment, offset, bytes, write);
        Operand { segment, offset, linear }
    }

    /// Calls the helper of an instruction that is not a control instruction, and records where the instruction and its
    /// operand are.
    fn x87_call(&mut self, operand: Option<&Operand>, helper: HelperId, args: &[Value]) -> Value {
        if let Some(native) = native_twin(helper)
            && self.x87_native()
        {
            let r = self.call(native, args);
            self.x87_pointer();
            return r;
        }
        self.x87_home();
        let has = |f| self.env.cpuid.has(f);
        let selectors = !self.code64() && !has(Feature::ZERO_FCS_FDS);
        let exceptional = has(Feature::FDP_EXCPTN_ONLY);
        let always_opcode = !has(Feature::SSE2);
        let opcode = self.b.iconst(self.x87_opcode as u64);
        self.b.push(Inst::EnvStore { width: Width::W16, offset: LAST_OPCODE, v: opcode });
        if let Some(operand) = operand {
            self.b.push(Inst::EnvStore { width: Width::W64, offset: LAST_DP, v: operand.offset });
            if selectors {
                self.x87_selector(operand.segment, LAST_DS);
            }
        }
        let r = self.call(helper, args);
        self.x87_pointer();
        if selectors {
            self.x87_selector(seg::CS, CS);
        }
        if always_opcode {
            self.b.push(Inst::EnvStore { width: Width::W16, offset: OPCODE, v: opcode });
        }
        if let Some(operand) = operand
            && !exceptional
        {
            self.b.push(Inst::EnvStore { width: Width::W64, offset: DP, v: operand.offset });
            if selectors {
                self.x87_selector(operand.segment, DS);
            }
        }
        r
    }

    /// Records where the instruction is.
    fn x87_pointer(&mut self) {
        let ip = self.b.iconst(self.wrap(self.pc.wrapping_sub(self.cs_base)));
        self.b.push(Inst::EnvStore { width: Width::W64, offset: IP, v: ip });
    }

    /// Whether x87 instructions may be the host's. All but the exception masks depends on the CPU model alone, so
    /// that code of every mode knows where the unit's state may be.
    fn x87_may_be_native(&self) -> bool {
        let has = |f| self.env.cpuid.has(f);
        cfg!(target_arch = "x86_64")
            && !self.is(mode::X87_UNMASKED)
            && has(Feature::FDP_EXCPTN_ONLY)
            && has(Feature::ZERO_FCS_FDS)
            && has(Feature::SSE2)
    }

    /// If x87 instructions may be the host's: sees to it that the unit's state is there.
    fn x87_native(&mut self) -> bool {
        let native = self.x87_may_be_native();
        if native && !self.x87_loaded {
            self.call(native::LOAD_UNIT, &[]);
            self.x87_loaded = true;
        }
        native
    }

    /// Before an instruction that finds the unit's state in the environment.
    pub(super) fn x87_home(&mut self) {
        if self.x87_may_be_native() {
            self.call(native::SAVE_UNIT, &[]);
            self.x87_loaded = false;
        }
    }

    /// Behind an instruction that may have masked or unmasked exceptions: if it has, another block goes on.
    fn x87_masks_changed(&mut self) {
        if self.single {
            return;
        }
        let offset = std::mem::offset_of!(X86Env, mode) as u32;
        let now = self.b.push(Inst::EnvLoad { width: Width::W64, offset });
        let was = self.b.iconst(self.mode);
        let f = self.b.flags(FlagOp::Sub, Width::W64, now, was);
        let exit = self.b.exit(Exit {
            pc: self.next,
            indirect: false,
            poll: false,
            chain: false,
            dead: GlobalSet::NONE,
        });
        self.b.push(Inst::ExitIf { cond: Cond::NE, f, exit });
    }

    fn x87_selector(&mut self, from: usize, to: u32) {
        let v = self.b.push(Inst::EnvLoad { width: Width::W16, offset: selector(from) });
        self.b.push(Inst::EnvStore { width: Width::W16, offset: to, v });
    }

    fn constants(&mut self, values: [u64; 2]) -> [Value; 2] {
        values.map(|v| self.b.iconst(v))
    }
}

/// The row that does what `helper` does on the host's unit.
fn native_twin(helper: HelperId) -> Option<HelperId> {
    Some(match helper {
        helper::ARITH => native::ARITH,
        helper::ARITH_MEMORY => native::ARITH_MEMORY,
        helper::COMPARE => native::COMPARE,
        helper::LOAD => native::LOAD,
        helper::LOAD_REGISTER => native::LOAD_REGISTER,
        helper::LOAD_CONSTANT => native::LOAD_CONSTANT,
        helper::STORE_REGISTER => native::STORE_REGISTER,
        helper::MISC => native::MISC,
        helper::EXCHANGE => native::EXCHANGE,
        helper::FREE => native::FREE,
        helper::MOVE_IF => native::MOVE_IF,
        _ => return None,
    })
}

/// Number of the register operand that is not the implied ST(0).
fn register(i: &Instruction) -> usize {
    (0..i.op_count())
        .filter(|&n| i.op_kind(n) == OpKind::Register && i.op_register(n).is_st())
        .map(|n| i.op_register(n).number())
        .max()
        .unwrap_or(1)
}

fn source(i: &Instruction) -> Source {
    match i.memory_size() {
        MemorySize::Float32 => Source::F32,
        MemorySize::Float64 => Source::F64,
        MemorySize::Float80 => Source::F80,
        MemorySize::Int16 => Source::I16,
        MemorySize::Int32 => Source::I32,
        MemorySize::Int64 => Source::I64,
        _ => Source::Bcd,
    }
}

/// Loads a memory source of up to 64 bits.
fn load_source(t: &mut Translator<'_>, i: &Instruction) -> (Value, Operand) {
    let bytes = i.memory_size().size() as u32;
    let operand = t.x87_operand(i, bytes, false);
    let v = t.load(super::operand::width_of(bytes as usize), operand.linear);
    (v, operand)
}

fn is_memory(i: &Instruction) -> bool {
    (0..i.op_count()).any(|n| i.op_kind(n) == OpKind::Memory)
}

fn wait(t: &mut Translator<'_>, _: &Instruction) {
    if t.is(mode::FPU_MP | mode::FPU_TS) {
        return t.raise(vector::NM, None);
    }
    // Under TS without MP the mode does not tell whether an exception may be pending.
    if t.is(mode::X87_UNMASKED) || t.is(mode::FPU_TS) {
        t.call(helper::WAIT, &[]);
    }
}

fn arith(t: &mut Translator<'_>, i: &Instruction, op: Binary, pop: bool) {
    if !t.x87_available() {
        return;
    }
    if is_memory(i) {
        let (v, operand) = load_source(t, i);
        let code = t.b.iconst(arith_code(op, source(i), 0, false, false));
        t.x87_call(Some(&operand), helper::ARITH_MEMORY, &[code, v]);
        return;
    }
    let to_i = i.op0_register() != Register::ST0;
    let code = t.b.iconst(arith_code(op, Source::Register, register(i), to_i, pop));
    t.x87_call(None, helper::ARITH, &[code]);
}

fn compare_call(
    t: &mut Translator<'_>,
    i: &Instruction,
    pops: u8,
    quiet: bool,
    condition: bool,
) -> Option<Value> {
    if !t.x87_available() {
        return None;
    }
    let (source, v, operand) = if is_memory(i) {
        let (v, operand) = load_source(t, i);
        (source(i), v, Some(operand))
    } else {
        (Source::Register, t.b.iconst(0), None)
    };
    let code = t.b.iconst(compare_code(source, register(i), pops, quiet, condition));
    Some(t.x87_call(operand.as_ref(), helper::COMPARE, &[code, v]))
}

fn compare(t: &mut Translator<'_>, i: &Instruction, pops: u8, quiet: bool) {
    compare_call(t, i, pops, quiet, true);
}

fn compare_to_flags(t: &mut Translator<'_>, i: &Instruction, pops: u8, quiet: bool) {
    if let Some(packed) = compare_call(t, i, pops, quiet, false) {
        t.set_packed_flags(packed);
    }
}

fn load(t: &mut Translator<'_>, i: &Instruction) {
    if !t.x87_available() {
        return;
    }
    if !is_memory(i) {
        let n = t.b.iconst(i.op_register(i.op_count() - 1).number() as u64);
        t.x87_call(None, helper::LOAD_REGISTER, &[n]);
        return;
    }
    let source = source(i);
    let code = t.b.iconst(source as u64);
    let (low, high, operand) = if matches!(source, Source::F80 | Source::Bcd) {
        let operand = t.x87_operand(i, 10, false);
        let upper = t.b.bin_imm(BinOp::Add, Width::W64, operand.linear, 8);
        let mem = t.mem();
        let low = t.b.load(Width::W64, Ext::Zero, operand.linear, mem);
        let high = t.b.load(Width::W16, Ext::Zero, upper, mem);
        (low, high, operand)
    } else {
        let (v, operand) = load_source(t, i);
        (v, t.b.iconst(0), operand)
    };
    t.x87_call(Some(&operand), helper::LOAD, &[code, low, high]);
}

fn constant(t: &mut Translator<'_>, _: &Instruction, n: u64) {
    if !t.x87_available() {
        return;
    }
    let n = t.b.iconst(n);
    t.x87_call(None, helper::LOAD_CONSTANT, &[n]);
}

fn store(t: &mut Translator<'_>, i: &Instruction, pop: bool, truncate: bool) {
    if !t.x87_available() {
        return;
    }
    if !is_memory(i) {
        return store_register(t, i, pop as u64);
    }
    let format = match (source(i), truncate) {
        (Source::F32, _) => Some(Format::F32),
        (Source::F64, _) => Some(Format::F64),
        (Source::I16, false) => Some(Format::I16),
        (Source::I32, false) => Some(Format::I32),
        (Source::I64, false) => Some(Format::I64),
        (Source::I16, true) => Some(Format::TruncatedI16),
        (Source::I32, true) => Some(Format::TruncatedI32),
        (Source::I64, true) => Some(Format::TruncatedI64),
        (Source::F80, _) => None,
        _ => Some(Format::Bcd),
    };
    let bytes = format.map_or(10, Format::bytes);
    if t.x87_may_be_native() {
        let operand = t.x87_operand(i, bytes as u32, true);
        return store_native(t, store_code(format, pop), bytes, operand.linear);
    }
    // An exception that is pending, or unmasked and now raised, comes before what is wrong with the address, so the helper checks.
    let operand = t.x87_operand(i, 0, true);
    let segment = t.segment_checked(operand.segment).then_some(operand.segment);
    let code = store_code(format, pop) | store_checks(segment, t.alignment_checked());
    let [code, mmu] = t.constants([code, t.mmu as u64]);
    t.x87_call(Some(&operand), helper::STORE, &[code, operand.linear, mmu, operand.offset]);
}

/// A store must be known to succeed before the unit changes.
fn store_native(t: &mut Translator<'_>, code: u64, bytes: usize, address: Value) {
    let (first, second) = if bytes == 10 { (8, Some(2)) } else { (bytes, None) };
    let width = super::operand::width_of(first);
    let mem = t.mem_for_write();
    t.b.load(width, Ext::Zero, address, mem);
    let second = second.map(|bytes| {
        let at = t.b.bin_imm(BinOp::Add, Width::W64, address, 8);
        let width = super::operand::width_of(bytes);
        t.b.load(width, Ext::Zero, at, mem);
        (width, at)
    });
    t.x87_native();
    let code = t.b.iconst(code);
    let v = t.call(native::TAKE, &[code]);
    let upper = second.map(|(width, at)| {
        let offset = NUMBER + 8;
        (width, at, t.b.push(Inst::EnvLoad { width, offset }))
    });
    let mem = t.mem();
    t.b.store(width, address, v, mem);
    if let Some((width, at, v)) = upper {
        t.b.store(width, at, v, mem);
    }
    t.x87_pointer();
}

fn store_register(t: &mut Translator<'_>, i: &Instruction, pop: u64) {
    if !t.x87_available() {
        return;
    }
    let [n, pop] = t.constants([i.op0_register().number() as u64, pop]);
    t.x87_call(None, helper::STORE_REGISTER, &[n, pop]);
}

fn exchange(t: &mut Translator<'_>, i: &Instruction) {
    if !t.x87_available() {
        return;
    }
    let n = t.b.iconst(register(i) as u64);
    t.x87_call(None, helper::EXCHANGE, &[n]);
}

fn free(t: &mut Translator<'_>, i: &Instruction, pop: bool) {
    if !t.x87_available() {
        return;
    }
    let [n, pop] = t.constants([i.op0_register().number() as u64, pop as u64]);
    t.x87_call(None, helper::FREE, &[n, pop]);
}

fn nop(t: &mut Translator<'_>, _: &Instruction) {
    if !t.x87_available() {
        return;
    }
    if t.x87_may_be_native() {
        return t.x87_pointer();
    }
    t.x87_call(None, helper::WAIT, &[]);
}

fn misc(t: &mut Translator<'_>, _: &Instruction, op: Misc) {
    if !t.x87_available() {
        return;
    }
    let op = t.b.iconst(op as u64);
    t.x87_call(None, helper::MISC, &[op]);
}

fn move_if(t: &mut Translator<'_>, i: &Instruction, cond: Cond) {
    if !t.x87_available() {
        return;
    }
    let f = t.flags();
    let condition = t.b.set_cond(cond, f);
    let n = t.b.iconst(register(i) as u64);
    t.x87_call(None, helper::MOVE_IF, &[n, condition]);
}

fn control(t: &mut Translator<'_>, helper: HelperId) {
    if t.x87_available() {
        t.x87_home();
        t.call(helper, &[]);
        t.x87_masks_changed();
    }
}

fn ignored(t: &mut Translator<'_>) {
    t.x87_available();
}

fn fldcw(t: &mut Translator<'_>, i: &Instruction) {
    if !t.x87_available() {
        return;
    }
    let (v, _) = load_source(t, i);
    let may_be_native = t.x87_may_be_native();
    t.call(if may_be_native { native::LOAD_CONTROL } else { helper::LOAD_CONTROL }, &[v]);
    t.x87_masks_changed();
}

/// FNSTCW and FNSTSW: neither waits.
fn store_word(t: &mut Translator<'_>, i: &Instruction, offset: u32) {
    if !t.x87_available() {
        return;
    }
    let v = if offset == STATUS && t.x87_native() {
        t.call(native::STATUS, &[])
    } else {
        t.b.push(Inst::EnvLoad { width: Width::W16, offset })
    };
    if is_memory(i) {
        t.write(i, 0, v);
    } else {
        t.set_gpr(reg::RAX, Width::W16, v);
    }
}

fn state(t: &mut Translator<'_>, i: &Instruction, helper: HelperId, write: bool) {
    if !t.x87_available() {
        return;
    }
    let size = i.memory_size();
    let layout = Layout {
        wide: matches!(size, MemorySize::FpuEnv28 | MemorySize::FpuState108),
        protected: t.protected(),
    };
    let registers = matches!(size, MemorySize::FpuState94 | MemorySize::FpuState108);
    let bytes = if registers { layout.saved_bytes() } else { layout.bytes() };
    let addr = t.address(i, bytes as u32, write);
    let [code, mmu] = t.constants([layout_code(layout, registers), t.mmu as u64]);
    t.x87_home();
    t.call(helper, &[code, addr, mmu]);
    t.x87_masks_changed();
}
