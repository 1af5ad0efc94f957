//! Helpers of the integer instructions: exceptions, segment and alignment checks, division, rotation through carry,
//! flags of double shifts, decimal adjustment, wide compare-and-exchange.

use tessera_tcg::guest::{Effects, Shortcut};
use tessera_tcg::ir::{FlagOp, Width, flags};
use tessera_tcg::softmmu;

use super::{exception, fault, touches};
use crate::guest::X86;
use crate::state::{X86Env, global, reg, seg};
use crate::system::exception::vector;
use crate::system::segment;

helpers! { super::INT_BASE;
    /// `(vector, error)`: raises; an `error` of all ones means that there is no error code.
    RAISE = raise_exception(2), Effects::FAULTS;
    /// `(segment, offset, size, write)`: raises what an access of these bytes through the segment register raises by
    /// its hidden part alone (SDM volume 3, sections 5.3 to 5.5).
    CHECK_SEGMENT = check_segment(4), Effects::FAULTS;
    /// `(address, size)`: #AC unless aligned.
    CHECK_ALIGNMENT = check_alignment(2), Effects::FAULTS;
    /// `(ip)`: #GP(0) if the offset is beyond the limit of CS.
    CHECK_CODE = check_code(1), Effects::FAULTS;
    /// `(ip)`: #GP(0) unless the address is canonical.
    CHECK_CANONICAL = check_canonical(1), Effects::FAULTS;
    /// `(ax, divisor)`: AX after DIV of 8 bits.
    DIV8 = div8(2), Effects::FAULTS;
    /// `(dividend, divisor)`: quotient of an unsigned division of 32 by 16 bits.
    DIV16 = div16(2), Effects::FAULTS;
    /// `(high, low, divisor)`: quotient of an unsigned division of 64 by 32 bits.
    DIV32 = div32(3), Effects::FAULTS, Shortcut::Divide { signed: false, w: Width::W32 };
    /// `(high, low, divisor)`: quotient of an unsigned division of 128 by 64 bits.
    DIV64 = div64(3), Effects::FAULTS, Shortcut::Divide { signed: false, w: Width::W64 };
    /// `(ax, divisor)`: AX after IDIV of 8 bits.
    IDIV8 = idiv8(2), Effects::FAULTS;
    /// `(dividend, divisor)`: quotient of a signed division of 32 by 16 bits.
    IDIV16 = idiv16(2), Effects::FAULTS;
    /// `(high, low, divisor)`: quotient of a signed division of 64 by 32 bits.
    IDIV32 = idiv32(3), Effects::FAULTS, Shortcut::Divide { signed: true, w: Width::W32 };
    /// `(high, low, divisor)`: quotient of a signed division of 128 by 64 bits.
    IDIV64 = idiv64(3), Effects::FAULTS, Shortcut::Divide { signed: true, w: Width::W64 };
    /// `(value, count, packed flags, width)`: RCL's or RCR's result (RCR if bit 7 of the width is set).
    RC_RESULT = rc_result(4), Effects::PURE;
    /// As `RC_RESULT`: packed flags after it.
    RC_FLAGS = rc_flags(4), Effects::PURE;
    /// `(destination, source, count, packed flags, width)`: SHLD's result (SHRD if bit 7 of the width is set).
    SHD_RESULT = shd_result(5), Effects::PURE;
    /// As `SHD_RESULT`: packed flags after it.
    SHD_FLAGS = shd_flags(5), Effects::PURE;
    /// `(ax, packed flags, operation)`: decimal adjustment; AX in bits 15:0, packed flags in bits 47:32.
    DECIMAL = decimal(3), Effects::PURE;
    /// `(ax, base)`: AX after AAM; #DE for base 0.
    AAM = aam(2), Effects::FAULTS;
    /// `(address, mmu)`: CMPXCHG8B on EDX:EAX and ECX:EBX; 1 if equal.
    CMPXCHG8B = cmpxchg8b(2), touches(
        &[global::gpr(reg::RAX), global::gpr(reg::RBX), global::gpr(reg::RCX), global::gpr(reg::RDX)],
        &[global::gpr(reg::RAX), global::gpr(reg::RDX)],
        true,
    );
    /// `(address, mmu)`: CMPXCHG16B on RDX:RAX and RCX:RBX; 1 if equal.
    CMPXCHG16B = cmpxchg16b(2), touches(
        &[global::gpr(reg::RAX), global::gpr(reg::RBX), global::gpr(reg::RCX), global::gpr(reg::RDX)],
        &[global::gpr(reg::RAX), global::gpr(reg::RDX)],
        true,
    );
    /// `(crc, data, bytes)`: CRC32C accumulated over the low bytes of the data.
    CRC32 = crc32(3), Effects::PURE;
    /// `(value, control)`: BEXTR.
    BEXTR = bextr(2), Effects::PURE;
    /// `(value, mask)`: PDEP.
    PDEP = pdep(2), Effects::PURE;
    /// `(value, mask)`: PEXT.
    PEXT = pext(2), Effects::PURE;
    /// `()`: a random number.
    RANDOM = random(0), Effects::STATE;
    /// `(address, size, mmu)`: raises what a read of these bytes raises.
    PROBE_READ = probe_read(3), Effects::FAULTS;
    /// `(address, size, mmu)`: raises what a write of these bytes raises.
    PROBE_WRITE = probe_write(3), Effects::FAULTS;
    /// `(index, lower, upper)`, sign-extended: #BR unless in bounds.
    CHECK_BOUND = check_bound(3), Effects::FAULTS;
}

extern "C" fn raise_exception(env: &mut X86Env, vector: u64, error: u64) -> u64 {
    let error = if error == u64::MAX { None } else { Some(error as u32) };
    fault(env, exception(vector as u16, error))
}

extern "C" fn check_segment(env: &mut X86Env, segment: u64, offset: u64, size: u64, write: u64) -> u64 {
    match segment::check_segment(env, segment as usize & 7, offset, size.max(1), write != 0) {
        Ok(linear) => linear,
        Err(e) => fault(env, e),
    }
}

extern "C" fn check_alignment(env: &mut X86Env, address: u64, size: u64) -> u64 {
    if misaligned(address, size) {
        return fault(env, exception(vector::AC, Some(0)));
    }
    0
}

/// Whether an access that is to be aligned to `size` bytes raises #AC.
pub(super) fn misaligned(address: u64, size: u64) -> bool {
    // One that is not canonical: the access says so itself.
    let canonical = (address << 16) as i64 >> 16 == address as i64;
    canonical && address & size.wrapping_sub(1) != 0
}

extern "C" fn check_code(env: &mut X86Env, ip: u64) -> u64 {
    if ip > env.seg[seg::CS].limit as u64 {
        return fault(env, exception(vector::GP, Some(0)));
    }
    0
}

extern "C" fn check_canonical(env: &mut X86Env, ip: u64) -> u64 {
    if (ip << 16) as i64 >> 16 != ip as i64 {
        return fault(env, exception(vector::GP, Some(0)));
    }
    0
}

#[cold]
fn divide_error(env: &mut X86Env) -> u64 {
    fault(env, exception(vector::DE, None))
}

extern "C" fn div8(env: &mut X86Env, ax: u64, divisor: u64) -> u64 {
    let (n, d) = (ax as u16, divisor as u8 as u16);
    match n.checked_div(d) {
        Some(q) if q <= 0xff => q as u64 | ((n % d) as u64) << 8,
        _ => divide_error(env),
    }
}

extern "C" fn div16(env: &mut X86Env, dividend: u64, divisor: u64) -> u64 {
    match (dividend as u32).checked_div(divisor as u16 as u32) {
        Some(q) if q <= 0xffff => q as u64,
        _ => divide_error(env),
    }
}

extern "C" fn div32(env: &mut X86Env, high: u64, low: u64, divisor: u64) -> u64 {
    let (n, d) = (high << 32 | low as u32 as u64, divisor as u32 as u64);
    match n.checked_div(d) {
        Some(q) if q <= 0xffff_ffff => q,
        _ => divide_error(env),
    }
}

extern "C" fn div64(env: &mut X86Env, high: u64, low: u64, divisor: u64) -> u64 {
    if high >= divisor {
        return divide_error(env);
    }
    if high == 0 { low / divisor } else { (((high as u128) << 64 | low as u128) / divisor as u128) as u64 }
}

extern "C" fn idiv8(env: &mut X86Env, ax: u64, divisor: u64) -> u64 {
    let (n, d) = (ax as i16, divisor as i8 as i16);
    match n.checked_div(d) {
        Some(q) if q as i8 as i16 == q => q as u8 as u64 | ((n % d) as u8 as u64) << 8,
        _ => divide_error(env),
    }
}

extern "C" fn idiv16(env: &mut X86Env, dividend: u64, divisor: u64) -> u64 {
    match (dividend as i32).checked_div(divisor as i16 as i32) {
        Some(q) if q as i16 as i32 == q => q as u16 as u64,
        _ => divide_error(env),
    }
}

extern "C" fn idiv32(env: &mut X86Env, high: u64, low: u64, divisor: u64) -> u64 {
    let (n, d) = ((high << 32 | low as u32 as u64) as i64, divisor as i32);
    match n.checked_div(d as i64) {
        Some(q) if q as i32 as i64 == q => q as u32 as u64,
        _ => divide_error(env),
    }
}

extern "C" fn idiv64(env: &mut X86Env, high: u64, low: u64, divisor: u64) -> u64 {
    let (n, d) = (((high as u128) << 64 | low as u128) as i128, divisor as i64);
    if n as i64 as i128 == n
        && let Some(q) = (n as i64).checked_div(d)
    {
        return q as u64;
    }
    match n.checked_div(d as i128) {
        Some(q) if q as i64 as i128 == q => q as u64,
        _ => divide_error(env),
    }
}

/// Bit of the width argument that selects the right-going instruction of a pair.
pub const RIGHT: u64 = 0x80;

/// RCL or RCR: the result and the carry after it. `count` is already masked to 5 or 6 bits.
fn rotate_through_carry(value: u64, count: u64, carry: bool, bits: u32, right: bool) -> (u64, bool) {
    let mask = u64::MAX >> (64 - bits);
    let modulus = bits as u64 + 1;
    let count = (count % modulus) as u32;
    // One number of `bits + 1` bits, carry on top, rotated as a whole.
    let wide = (value & mask) as u128 | (carry as u128) << bits;
    let left = if right { (modulus as u32 - count) % modulus as u32 } else { count };
    let rotated = if left == 0 { wide } else { wide << left | wide >> (modulus as u32 - left) };
    (rotated as u64 & mask, rotated >> bits & 1 != 0)
}

fn rc(value: u64, count: u64, packed: u64, width: u64) -> (u64, bool) {
    let bits = (width & 0x7f) as u32;
    rotate_through_carry(value, count, packed as u32 & flags::C != 0, bits.clamp(8, 64), width & RIGHT != 0)
}

extern "C" fn rc_result(_: &mut X86Env, value: u64, count: u64, packed: u64, width: u64) -> u64 {
    rc(value, count, packed, width).0
}

extern "C" fn rc_flags(_: &mut X86Env, value: u64, count: u64, packed: u64, width: u64) -> u64 {
    let bits = ((width & 0x7f) as u32).clamp(8, 64);
    // A full turn counts as none.
    if count.is_multiple_of(bits as u64 + 1) {
        return packed;
    }
    let (_, carry) = rc(value, count, packed, width);
    let top = bits - 1;
    // Defined for a count of one: whether the sign changes. Silicon: of the first single step.
    let follows =
        if width & RIGHT != 0 { (packed as u32 & flags::C != 0) as u64 } else { value >> (top - 1) };
    let overflow = (value >> top ^ follows) & 1 != 0;
    let mut f = packed as u32 & !(flags::C | flags::V);
    if carry {
        f |= flags::C;
    }
    if overflow {
        f |= flags::V;
    }
    f as u64
}

/// SHLD or SHRD: the result and the last bit shifted out. Counts above the width (16 bits only) have an undefined
/// result by the manual; silicon shifts the triple `dst:src:dst` (SHLD) or `dst:src:dst` from the right (SHRD).
fn double_shift(dst: u64, src: u64, count: u64, bits: u32, right: bool) -> (u64, bool) {
    let mask = u64::MAX >> (64 - bits);
    let (dst, src, n) = ((dst & mask) as u128, (src & mask) as u128, count as u32);
    if bits == 16 {
        let three = dst << 32 | src << 16 | dst;
        return if right {
            ((three >> n) as u64 & mask, three >> (n - 1) & 1 != 0)
        } else {
            ((three >> (32 - n)) as u64 & mask, three >> (48 - n) & 1 != 0)
        };
    }
    if right {
        let pair = src << bits | dst;
        ((pair >> n) as u64 & mask, pair >> (n - 1) & 1 != 0)
    } else {
        let pair = dst << bits | src;
        ((pair >> (bits - n)) as u64 & mask, pair >> (2 * bits - n) & 1 != 0)
    }
}

fn double_shift_args(count: u64, width: u64) -> (u64, u32) {
    let bits = ((width & 0x7f) as u32).clamp(16, 64);
    (count & if bits == 64 { 63 } else { 31 }, bits)
}

extern "C" fn shd_result(_: &mut X86Env, dst: u64, src: u64, count: u64, _: u64, width: u64) -> u64 {
    let (count, bits) = double_shift_args(count, width);
    if count == 0 {
        return dst & (u64::MAX >> (64 - bits));
    }
    double_shift(dst, src, count, bits, width & RIGHT != 0).0
}

extern "C" fn shd_flags(_: &mut X86Env, dst: u64, src: u64, count: u64, packed: u64, width: u64) -> u64 {
    let (count, bits) = double_shift_args(count, width);
    if count == 0 {
        return packed;
    }
    let (result, carry) = double_shift(dst, src, count, bits, width & RIGHT != 0);
    let mut f = sign_zero_parity(result, bits);
    if carry {
        f |= flags::C;
    }
    // Defined for a count of one: whether the sign changes. Silicon: of the first single step.
    let follows = if width & RIGHT != 0 { src } else { dst >> (bits - 2) };
    if (dst >> (bits - 1) ^ follows) & 1 != 0 {
        f |= flags::V;
    }
    f as u64
}

fn sign_zero_parity(result: u64, bits: u32) -> u32 {
    let mut f = 0;
    if result & (u64::MAX >> (64 - bits)) == 0 {
        f |= flags::Z;
    }
    if result >> (bits - 1) & 1 != 0 {
        f |= flags::N;
    }
    if (result as u8).count_ones() & 1 == 0 {
        f |= flags::P;
    }
    f
}

/// Operations of the `DECIMAL` helper.
pub mod decimal_op {
    #![allow(missing_docs)]
    pub const DAA: u64 = 0;
    pub const DAS: u64 = 1;
    pub const AAA: u64 = 2;
    pub const AAS: u64 = 3;
    /// AAD, its base in bits 15:8.
    pub const AAD: u64 = 4;
}

/// SDM volume 2: AAA, AAD, AAS, DAA, DAS.
extern "C" fn decimal(_: &mut X86Env, ax: u64, packed: u64, op: u64) -> u64 {
    let (ax, packed) = (ax as u16, packed as u32);
    let (al, ah) = (ax as u8, (ax >> 8) as u8);
    let (carry, aux) = (packed & flags::C != 0, packed & flags::A != 0);
    let low_adjust = al & 15 > 9 || aux;
    let (ax, f) = match op & 0xff {
        decimal_op::DAA | decimal_op::DAS => {
            let subtract = op & 0xff == decimal_op::DAS;
            let high_adjust = al > 0x99 || carry;
            let mut result = al;
            let mut f = 0;
            let mut adjust = |by: u8| {
                result = if subtract { result.wrapping_sub(by) } else { result.wrapping_add(by) };
            };
            if low_adjust {
                adjust(6);
                f |= flags::A;
                // DAS: a borrow of the first step counts, too.
                if subtract && al < 6 {
                    f |= flags::C;
                }
            }
            if high_adjust {
                adjust(0x60);
                f |= flags::C;
            }
            (ax & 0xff00 | result as u16, f | sign_zero_parity(result as u64, 8))
        }
        decimal_op::AAA | decimal_op::AAS => {
            let by = if op & 0xff == decimal_op::AAA { 0x106u16 } else { 0x106u16.wrapping_neg() };
            let (adjusted, f) = if low_adjust { (ax.wrapping_add(by), flags::A | flags::C) } else { (ax, 0) };
            let result = adjusted & 0xff0f;
            (result, f | sign_zero_parity(result as u8 as u64, 8))
        }
        _ => {
            let tens = ah.wrapping_mul((op >> 8) as u8);
            // All flags are those of the addition, which the manual leaves open for C, A and V.
            let f = flags::compute(FlagOp::Add, Width::W8, al as u64, tens as u64, 0);
            (al.wrapping_add(tens) as u16, f)
        }
    };
    ax as u64 | (f as u64) << 32
}

extern "C" fn aam(env: &mut X86Env, ax: u64, base: u64) -> u64 {
    let (al, base) = (ax as u8, base as u8);
    if base == 0 {
        return divide_error(env);
    }
    ((al / base) as u64) << 8 | (al % base) as u64
}

extern "C" fn cmpxchg8b(env: &mut X86Env, address: u64, mmu: u64) -> u64 {
    let low = |n: usize| env.gpr[n] & 0xffff_ffff;
    let expect = low(reg::RAX) | low(reg::RDX) << 32;
    let new = low(reg::RBX) | low(reg::RCX) << 32;
    match softmmu::compare_exchange::<X86>(env, address, 8, expect as u128, new as u128, mmu as u8) {
        Ok(old) if old == expect as u128 => 1,
        Ok(old) => {
            env.gpr[reg::RAX] = old as u32 as u64;
            env.gpr[reg::RDX] = (old >> 32) as u32 as u64;
            0
        }
        Err(e) => fault(env, e),
    }
}

extern "C" fn cmpxchg16b(env: &mut X86Env, address: u64, mmu: u64) -> u64 {
    if address & 15 != 0 {
        return fault(env, exception(vector::GP, Some(0)));
    }
    let expect = env.gpr[reg::RAX] as u128 | (env.gpr[reg::RDX] as u128) << 64;
    let new = env.gpr[reg::RBX] as u128 | (env.gpr[reg::RCX] as u128) << 64;
    match softmmu::compare_exchange::<X86>(env, address, 16, expect, new, mmu as u8) {
        Ok(old) if old == expect => 1,
        Ok(old) => {
            env.gpr[reg::RAX] = old as u64;
            env.gpr[reg::RDX] = (old >> 64) as u64;
            0
        }
        Err(e) => fault(env, e),
    }
}

/// CRC-32C (polynomial 11EDC6F41h, reflected) of one byte, for all bytes.
static CRC32C: [u32; 256] = {
    let mut table = [0; 256];
    let mut n = 0;
    while n < 256 {
        let (mut crc, mut bit) = (n as u32, 0);
        while bit < 8 {
            crc = crc >> 1 ^ if crc & 1 != 0 { 0x82f6_3b78 } else { 0 };
            bit += 1;
        }
        table[n] = crc;
        n += 1;
    }
    table
};

/// Instructions that the host has, too. `None` if it has not.
mod host {
    #[cfg(target_arch = "x86_64")]
    macro_rules! instruction {
        ($feature:tt, $template:literal, $r:ident, $($operands:tt)*) => {
            if std::is_x86_feature_detected!($feature) {
                // SAFETY: the feature was detected, and the instruction computes in registers alone.
                unsafe {
                    std::arch::asm!($template, $($operands)*, options(pure, nomem, nostack, preserves_flags))
                };
                Some($r)
            } else {
                None
            }
        };
    }

    #[cfg(target_arch = "x86_64")]
    pub fn crc32(mut crc: u64, data: u64, bytes: u64) -> Option<u64> {
        match bytes {
            1 => instruction!("sse4.2", "crc32 {0:e}, {1}", crc, inout(reg) crc, in(reg_byte) data as u8),
            2 => instruction!("sse4.2", "crc32 {0:e}, {1:x}", crc, inout(reg) crc, in(reg) data),
            4 => instruction!("sse4.2", "crc32 {0:e}, {1:e}", crc, inout(reg) crc, in(reg) data),
            _ => instruction!("sse4.2", "crc32 {0:r}, {1:r}", crc, inout(reg) crc, in(reg) data),
        }
    }

    #[cfg(target_arch = "x86_64")]
    pub fn pdep(value: u64, mask: u64) -> Option<u64> {
        let r: u64;
        instruction!("bmi2", "pdep {}, {}, {}", r, out(reg) r, in(reg) value, in(reg) mask)
    }

    #[cfg(target_arch = "x86_64")]
    pub fn pext(value: u64, mask: u64) -> Option<u64> {
        let r: u64;
        instruction!("bmi2", "pext {}, {}, {}", r, out(reg) r, in(reg) value, in(reg) mask)
    }

    #[cfg(not(target_arch = "x86_64"))]
    pub fn crc32(_: u64, _: u64, _: u64) -> Option<u64> {
        None
    }

    #[cfg(not(target_arch = "x86_64"))]
    pub fn pdep(_: u64, _: u64) -> Option<u64> {
        None
    }

    #[cfg(not(target_arch = "x86_64"))]
    pub fn pext(_: u64, _: u64) -> Option<u64> {
        None
    }
}

extern "C" fn crc32(_: &mut X86Env, crc: u64, data: u64, bytes: u64) -> u64 {
    host::crc32(crc as u32 as u64, data, bytes).unwrap_or_else(|| crc32_by_table(crc, data, bytes))
}

fn crc32_by_table(crc: u64, data: u64, bytes: u64) -> u64 {
    let crc = data
        .to_le_bytes()
        .iter()
        .take(bytes as usize)
        .fold(crc as u32, |crc, &byte| crc >> 8 ^ CRC32C[(crc as u8 ^ byte) as usize]);
    crc as u64
}

extern "C" fn bextr(_: &mut X86Env, value: u64, control: u64) -> u64 {
    let (start, len) = (control as u8 as u32, (control >> 8) as u8 as u32);
    let shifted = value.checked_shr(start).unwrap_or(0);
    if len >= 64 { shifted } else { shifted & ((1 << len) - 1) }
}

extern "C" fn pdep(_: &mut X86Env, value: u64, mask: u64) -> u64 {
    host::pdep(value, mask).unwrap_or_else(|| deposit(value, mask))
}

extern "C" fn pext(_: &mut X86Env, value: u64, mask: u64) -> u64 {
    host::pext(value, mask).unwrap_or_else(|| extract(value, mask))
}

fn deposit(value: u64, mask: u64) -> u64 {
    let (mut rest, mut result, mut from) = (mask, 0, value);
    while rest != 0 {
        let lowest = rest & rest.wrapping_neg();
        if from & 1 != 0 {
            result |= lowest;
        }
        from >>= 1;
        rest ^= lowest;
    }
    result
}

fn extract(value: u64, mask: u64) -> u64 {
    let (mut rest, mut result, mut to) = (mask, 0, 0);
    while rest != 0 {
        let lowest = rest & rest.wrapping_neg();
        result |= ((value & lowest != 0) as u64) << to;
        to += 1;
        rest ^= lowest;
    }
    result
}

extern "C" fn random(env: &mut X86Env) -> u64 {
    env.platform.random()
}

extern "C" fn probe_read(env: &mut X86Env, address: u64, size: u64, mmu: u64) -> u64 {
    match softmmu::probe::<X86>(env, address, size, tessera_tcg::guest::Access::Read, mmu as u8) {
        Ok(()) => 0,
        Err(e) => fault(env, e),
    }
}

extern "C" fn probe_write(env: &mut X86Env, address: u64, size: u64, mmu: u64) -> u64 {
    match softmmu::probe::<X86>(env, address, size, tessera_tcg::guest::Access::Write, mmu as u8) {
        Ok(()) => 0,
        Err(e) => fault(env, e),
    }
}

extern "C" fn check_bound(env: &mut X86Env, index: u64, lower: u64, upper: u64) -> u64 {
    if (index as i64) < lower as i64 || index as i64 > upper as i64 {
        return fault(env, exception(vector::BR, None));
    }
    0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rotates_through_carry() {
        assert_eq!(rotate_through_carry(0x80, 1, true, 8, false), (0x01, true));
        assert_eq!(rotate_through_carry(0x01, 1, true, 8, true), (0x80, true));
        // Nine single steps are the identity.
        assert_eq!(rotate_through_carry(0x5a, 9, true, 8, false), (0x5a, true));
        assert_eq!(rotate_through_carry(1 << 63, 1, false, 64, false), (0, true));
    }

    #[test]
    fn double_shifts() {
        assert_eq!(double_shift(0x8000_0001, 0xf000_0000, 4, 32, false), (0x0000_001f, false));
        assert_eq!(double_shift(0x8000_0008, 0x0000_000f, 4, 32, true), (0xf800_0000, true));
        assert_eq!(double_shift(0x1234, 0xabcd, 4, 16, false), (0x234a, true));
        assert_eq!(double_shift(0x1234, 0xabcd, 4, 16, true), (0xd123, false));
    }

    #[test]
    fn crc_of_the_check_string() {
        let crc = b"123456789".iter().fold(!0u32 as u64, |c, &b| crc32_by_table(c, b as u64, 1));
        assert_eq!(!crc as u32, 0xe306_9283);
    }

    #[test]
    fn the_hosts_instructions_agree() {
        let mut seed = 0x9e37_79b9_7f4a_7c15u64;
        for _ in 0..1000 {
            let mut next = || {
                seed = seed.wrapping_mul(0xd134_2543_de82_ef95).wrapping_add(1);
                seed ^ seed >> 29
            };
            let (a, b) = (next(), next());
            for bytes in [1, 2, 4, 8] {
                let expect = crc32_by_table(a as u32 as u64, b, bytes);
                assert_eq!(host::crc32(a as u32 as u64, b, bytes).unwrap_or(expect), expect, "{bytes}");
            }
            assert_eq!(host::pdep(a, b).unwrap_or_else(|| deposit(a, b)), deposit(a, b));
            assert_eq!(host::pext(a, b).unwrap_or_else(|| extract(a, b)), extract(a, b));
        }
    }
}
