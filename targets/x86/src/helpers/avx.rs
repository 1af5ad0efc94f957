//! Helpers of the AVX instructions whose lanes access memory each for itself: masked moves and gathers.
//!
//! They work on the registers in the environment, by number: a gather that faults on its way leaves what it has done in its
//! destination and its mask, so that it can be restarted, which no other instruction does and no other way of returning
//! a result allows.

use tessera_tcg::guest::{Access, Effects, Exception};
use tessera_tcg::ir::GlobalSet;
use tessera_tcg::memory::PAGE_MASK;
use tessera_tcg::softmmu;

use super::fault;
use crate::guest::X86;
use crate::state::{X86Env, global, seg};
use crate::system::segment;

/// All vector registers, under both of their names.
const VECTORS: GlobalSet = {
    let mut set = GlobalSet::NONE;
    let mut n = 0;
    while n < 16 {
        set = set.or(GlobalSet::of(global::xmm(n))).or(GlobalSet::of(global::ymm(n)));
        n += 1;
    }
    set
};

helpers! { super::AVX_BASE;
    /// `(offset, operands)`: loads the lanes that the mask selects; the others are zero. [`LaneAccess`] has the operands.
    MASKED_LOAD = masked_load(2), Effects { reads: VECTORS, writes: VECTORS, faults: true, pure: false };
    /// `(offset, operands)`: stores the lanes that the mask selects.
    MASKED_STORE = masked_store(2), Effects { reads: VECTORS, writes: GlobalSet::NONE, faults: true, pure: false };
    /// `(offset, operands)`: loads the lanes that the mask selects from an address each, and clears the mask lane by lane.
    GATHER = gather(2), Effects { reads: VECTORS, writes: VECTORS, faults: true, pure: false };
}

/// Operands of an instruction whose lanes access memory each for itself.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct LaneAccess {
    /// Number of the register loaded or stored.
    pub data: u8,
    /// Number of the mask register; a lane takes part if its top bit is set.
    pub mask: u8,
    /// Number of the register with the indices, of gathers.
    pub index: u8,
    /// Segment of the memory operand.
    pub segment: u8,
    /// MMU mode.
    pub mmu: u8,
    /// Bytes of a lane, 4 or 8.
    pub lane_bytes: u8,
    /// Bytes of an index, 4 or 8.
    pub index_bytes: u8,
    /// Number of lanes.
    pub lanes: u8,
    /// Bits by which an index is shifted left.
    pub scale: u8,
    /// Offsets wrap at 32 bits (address size).
    pub narrow: bool,
}

impl LaneAccess {
    /// In one integer, for a helper's argument.
    pub fn pack(self) -> u64 {
        let LaneAccess { data, mask, index, segment, mmu, lane_bytes, index_bytes, lanes, scale, narrow } =
            self;
        let fields = [data, mask, index, segment, mmu, lane_bytes, index_bytes, lanes, scale, narrow as u8];
        fields.iter().rev().fold(0, |packed, &f| packed << 4 | (f & 15) as u64)
    }

    /// From one integer.
    pub fn unpack(packed: u64) -> LaneAccess {
        let field = |n: u32| (packed >> (4 * n) & 15) as u8;
        LaneAccess {
            data: field(0),
            mask: field(1),
            index: field(2),
            segment: field(3),
            mmu: field(4),
            lane_bytes: field(5),
            index_bytes: field(6),
            lanes: field(7),
            scale: field(8),
            narrow: field(9) != 0,
        }
    }

    /// A lane of a register.
    fn get(self, env: &X86Env, register: u8, n: usize) -> u64 {
        lane(&env.vec[register as usize & 15].0, self.lane_bytes, n)
    }

    /// Whether lane `n` takes part.
    fn selected(self, env: &X86Env, n: usize) -> bool {
        self.get(env, self.mask, n) >> (8 * self.lane_bytes - 1) & 1 != 0
    }

    /// Linear address of lane `n` of a contiguous operand.
    fn contiguous(self, env: &X86Env, offset: u64, n: usize, write: bool) -> Result<u64, Exception> {
        let bytes = self.lane_bytes as u64;
        segment::check_segment(
            env,
            self.segment as usize & 7,
            offset.wrapping_add(n as u64 * bytes),
            bytes,
            write,
        )
    }
}

fn lane(words: &[u64; 4], bytes: u8, n: usize) -> u64 {
    match bytes {
        8 => words[n & 3],
        _ => words[n / 2 & 3] >> (32 * (n & 1)) & 0xffff_ffff,
    }
}

fn set_lane(words: &mut [u64; 4], bytes: u8, n: usize, v: u64) {
    match bytes {
        8 => words[n & 3] = v,
        _ => {
            let (word, shift) = (&mut words[n / 2 & 3], 32 * (n & 1));
            *word = *word & !(0xffff_ffff << shift) | (v & 0xffff_ffff) << shift;
        }
    }
}

extern "C" fn masked_load(env: &mut X86Env, offset: u64, operands: u64) -> u64 {
    match load_lanes(env, offset, LaneAccess::unpack(operands)) {
        Ok(()) => 0,
        Err(e) => fault(env, e),
    }
}

fn load_lanes(env: &mut X86Env, offset: u64, access: LaneAccess) -> Result<(), Exception> {
    let mut result = [0; 4];
    for n in 0..access.lanes as usize {
        if access.selected(env, n) {
            let va = access.contiguous(env, offset, n, false)?;
            let v = softmmu::load::<X86>(env, va, access.lane_bytes as u32, access.mmu)?;
            set_lane(&mut result, access.lane_bytes, n, v);
        }
    }
    env.vec[access.data as usize & 15].0 = result;
    Ok(())
}

extern "C" fn masked_store(env: &mut X86Env, offset: u64, operands: u64) -> u64 {
    match store_lanes(env, offset, LaneAccess::unpack(operands)) {
        Ok(()) => 0,
        Err(e) => fault(env, e),
    }
}

fn store_lanes(env: &mut X86Env, offset: u64, access: LaneAccess) -> Result<(), Exception> {
    let mut places = [None; 8];
    // All lanes must be writable before the first is written.
    for (n, place) in places.iter_mut().enumerate().take(access.lanes as usize) {
        if access.selected(env, n) {
            let va = access.contiguous(env, offset, n, true)?;
            *place = Some(va);
        }
    }
    let bytes = access.lane_bytes as u64;
    let first = places.iter().flatten().next().copied().unwrap_or(0);
    let last = places.iter().flatten().next_back().map_or(0, |va| va.wrapping_add(bytes - 1));
    for &va in places.iter().flatten() {
        if let Err(mut e) = softmmu::probe::<X86>(env, va, bytes, Access::Write, access.mmu) {
            if e.vector == 14 && (e.address ^ first) & !PAGE_MASK != 0 {
                // In the second page silicon tells the last byte.
                e.address = last;
            }
            return Err(e);
        }
    }
    for (n, place) in places.iter().enumerate() {
        if let &Some(va) = place {
            let v = access.get(env, access.data, n);
            softmmu::store::<X86>(env, va, access.lane_bytes as u32, v, access.mmu)?;
        }
    }
    Ok(())
}

extern "C" fn gather(env: &mut X86Env, offset: u64, operands: u64) -> u64 {
    match gather_lanes(env, offset, LaneAccess::unpack(operands)) {
        Ok(()) => 0,
        Err(e) => fault(env, e),
    }
}

/// SDM volume 2, VGATHERDPS: lanes in ascending order, each leaving its result and a zero in the mask before the next one;
/// what they have done stays if one of them faults. What lies above the lanes is cleared in the end.
fn gather_lanes(env: &mut X86Env, offset: u64, access: LaneAccess) -> Result<(), Exception> {
    let bytes = access.lane_bytes;
    let lanes = access.lanes as usize;
    let indices = env.vec[access.index as usize & 15].0;
    let mut data = env.vec[access.data as usize & 15].0;
    // A lane's mask is its top bit; all of the lane's bits follow it, also above the lanes that there are indices for, within
    // the vector's length.
    let vector = lanes * bytes.max(access.index_bytes) as usize;
    let mut mask = [0; 4];
    for n in (0..vector / bytes as usize).filter(|&n| access.selected(env, n)) {
        set_lane(&mut mask, bytes, n, u64::MAX);
    }
    // In 64-bit code a segment has a base at most, and walks find addresses that are not canonical.
    let segment = access.segment as usize & 7;
    let flat = env.code64().then(|| if segment >= seg::FS { env.seg[segment].base } else { 0 });
    let mut done = Ok(());
    for n in 0..lanes {
        if lane(&mask, bytes, n) == 0 {
            continue;
        }
        match gather_lane(env, offset, flat, access, lane(&indices, access.index_bytes, n)) {
            Ok(v) => {
                set_lane(&mut data, bytes, n, v);
                if vector <= 16 {
                    // Each lane is a write of a 128-bit register.
                    data[2..].fill(0);
                }
            }
            Err(e) => {
                done = Err(e);
                break;
            }
        }
        set_lane(&mut mask, bytes, n, 0);
    }
    if done.is_ok() {
        mask = [0; 4];
        for n in lanes..32 / bytes as usize {
            set_lane(&mut data, bytes, n, 0);
        }
    }
    env.vec[access.data as usize & 15].0 = data;
    env.vec[access.mask as usize & 15].0 = mask;
    done
}

/// `flat` is the segment's base where nothing else of it is to be checked.
fn gather_lane(
    env: &mut X86Env,
    offset: u64,
    flat: Option<u64>,
    access: LaneAccess,
    index: u64,
) -> Result<u64, Exception> {
    let index = if access.index_bytes == 4 { index as i32 as u64 } else { index };
    let mut offset = offset.wrapping_add(index << access.scale);
    if access.narrow {
        offset &= 0xffff_ffff;
    }
    let bytes = access.lane_bytes as u64;
    let va = match flat {
        Some(base) => base.wrapping_add(offset),
        None => segment::check_segment(env, access.segment as usize & 7, offset, bytes, false)?,
    };
    // Silicon checks no alignment.
    softmmu::load::<X86>(env, va, access.lane_bytes as u32, access.mmu)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operands_survive_packing() {
        let operands = LaneAccess {
            data: 15,
            mask: 7,
            index: 9,
            segment: 5,
            mmu: 2,
            lane_bytes: 8,
            index_bytes: 4,
            lanes: 8,
            scale: 3,
            narrow: true,
        };
        assert_eq!(LaneAccess::unpack(operands.pack()), operands);
        assert_eq!(LaneAccess::unpack(LaneAccess::default().pack()), LaneAccess::default());
    }

    #[test]
    fn lanes_are_where_the_words_have_them() {
        let mut words = [0; 4];
        set_lane(&mut words, 4, 3, 0x1234_5678_9abc_def0);
        set_lane(&mut words, 8, 2, 7);
        assert_eq!(words, [0, 0x9abc_def0_0000_0000, 7, 0]);
        assert_eq!((lane(&words, 4, 3), lane(&words, 4, 2), lane(&words, 4, 4)), (0x9abc_def0, 0, 7));
    }
}
