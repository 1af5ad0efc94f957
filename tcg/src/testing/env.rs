//! The test guest's environment, globals and helpers.

use std::alloc::Layout;
use std::mem::{offset_of, size_of};

use super::SplitMix;
use crate::backend::GuestInfo;
use crate::env::Header;
use crate::guest::{Effects, Exception, HelperDesc};
use crate::ir::{GlobalDesc, GlobalId, GlobalSet, Ty, flags};

/// The environment. Zero is a valid value of every field.
#[repr(C)]
pub struct TestEnv {
    /// The translator's part. Its pointers are null until a test that runs generated code sets them.
    pub header: Header,
    /// Globals `r0` to `r15`.
    pub int: [u64; 16],
    /// Global `pc`.
    pub pc: u64,
    /// Global `flags`.
    pub flags: u32,
    /// Floating-point control and status word.
    pub fp_control: u32,
    /// Globals `x0` to `x7` (128 bits) and `y0` to `y7` (256 bits).
    pub vec: [[u64; 4]; 8],
    /// Words that no global covers.
    pub scratch: [u64; 8],
    /// Changed by each helper that is not pure, so that calls left out, doubled or reordered show.
    pub calls: u64,
    /// Counted down by blocks that jump to their own start.
    pub rounds: u64,
    /// Address of the exception that a helper raised last.
    pub fault_address: u64,
}

impl TestEnv {
    /// Random globals.
    pub(super) fn new(rng: &mut SplitMix) -> Box<TestEnv> {
        let mut env = TestEnv::zeroed();
        env.int.fill_with(|| rng.int());
        env.pc = rng.word();
        env.flags = rng.word() as u32 & flags::ALL;
        env.fp_control = crate::interp::vec::DEFAULT_CONTROL;
        for v in &mut env.vec {
            v.fill_with(|| rng.int());
        }
        env.scratch.fill_with(|| rng.int());
        env
    }

    fn zeroed() -> Box<TestEnv> {
        let layout = Layout::new::<TestEnv>();
        // SAFETY: the layout is that of `TestEnv`, which is not zero-sized; all-zero bytes are a valid `TestEnv`
        // (integers, atomics of integers and raw pointers only); the box owns the allocation.
        unsafe {
            let p = std::alloc::alloc_zeroed(layout).cast::<TestEnv>();
            if p.is_null() {
                std::alloc::handle_alloc_error(layout);
            }
            Box::from_raw(p)
        }
    }

    /// A copy; the header's pointers are shared.
    pub fn duplicate(&self) -> Box<TestEnv> {
        let mut copy = TestEnv::zeroed();
        // SAFETY: source and destination are distinct live `TestEnv`s, which own nothing and have no destructor.
        unsafe { std::ptr::copy_nonoverlapping(self, &mut *copy, 1) };
        copy
    }

    /// The environment as bytes.
    pub fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: the slice covers exactly `self`, which was allocated zeroed, so that padding is initialised, too;
        // every byte pattern is valid for the fields (integers and raw pointers).
        unsafe { std::slice::from_raw_parts_mut((self as *mut TestEnv).cast::<u8>(), size_of::<TestEnv>()) }
    }

    /// The exception that a helper raised last.
    pub fn exception(&self) -> Exception {
        Exception { vector: 13, error: None, address: self.fault_address }
    }

    fn digest(&mut self, v: u64) -> u64 {
        self.calls = mix(self.calls ^ v);
        self.calls
    }

    fn raise(&mut self, address: u64) {
        self.header.helper_fault = 1;
        self.fault_address = address;
    }
}

/// Numbers of the globals.
pub mod global {
    use crate::ir::GlobalId;

    /// `r0` to `r15`.
    pub const fn int(n: u8) -> GlobalId {
        GlobalId(n)
    }
    /// Condition flags.
    pub const FLAGS: GlobalId = GlobalId(16);
    /// Program counter.
    pub const PC: GlobalId = GlobalId(17);
    /// `x0` to `x7`: 128 bits.
    pub const fn x(n: u8) -> GlobalId {
        GlobalId(18 + n)
    }
    /// `y0` to `y7`: 256 bits, the low half of which is `x`.
    pub const fn y(n: u8) -> GlobalId {
        GlobalId(26 + n)
    }
}

const fn int(name: &'static str, offset: usize, pin: Option<u8>) -> GlobalDesc {
    GlobalDesc { name, ty: Ty::Int, offset: offset as u32, bytes: 8, pin, overlaps: None }
}

const fn r(name: &'static str, n: usize) -> GlobalDesc {
    int(name, offset_of!(TestEnv, int) + 8 * n, Some(n as u8))
}

const fn vec(name: &'static str, n: usize, bytes: u8, overlaps: GlobalId) -> GlobalDesc {
    let offset = (offset_of!(TestEnv, vec) + 32 * n) as u32;
    GlobalDesc { name, ty: Ty::Vec, offset, bytes, pin: None, overlaps: Some(overlaps) }
}

const fn x(name: &'static str, n: usize) -> GlobalDesc {
    vec(name, n, 16, global::y(n as u8))
}

const fn y(name: &'static str, n: usize) -> GlobalDesc {
    vec(name, n, 32, global::x(n as u8))
}

/// The globals.
pub static GLOBALS: &[GlobalDesc] = &[
    r("r0", 0),
    r("r1", 1),
    r("r2", 2),
    r("r3", 3),
    r("r4", 4),
    r("r5", 5),
    r("r6", 6),
    r("r7", 7),
    r("r8", 8),
    r("r9", 9),
    r("r10", 10),
    r("r11", 11),
    r("r12", 12),
    r("r13", 13),
    r("r14", 14),
    r("r15", 15),
    GlobalDesc {
        name: "flags",
        ty: Ty::Flags,
        offset: offset_of!(TestEnv, flags) as u32,
        bytes: 4,
        pin: None,
        overlaps: None,
    },
    int("pc", offset_of!(TestEnv, pc), None),
    x("x0", 0),
    x("x1", 1),
    x("x2", 2),
    x("x3", 3),
    x("x4", 4),
    x("x5", 5),
    x("x6", 6),
    x("x7", 7),
    y("y0", 0),
    y("y1", 1),
    y("y2", 2),
    y("y3", 3),
    y("y4", 4),
    y("y5", 5),
    y("y6", 6),
    y("y7", 7),
];

/// The guest as backends, passes and the interpreter see it.
pub fn guest() -> GuestInfo {
    GuestInfo {
        globals: GLOBALS,
        pc: global::PC,
        helpers: HELPERS,
        fp_control: Some(offset_of!(TestEnv, fp_control) as u32),
    }
}

/// One round of a hash.
fn mix(v: u64) -> u64 {
    SplitMix::new(v).word()
}

const fn set(globals: &[GlobalId]) -> GlobalSet {
    let mut s = GlobalSet::NONE;
    let mut i = 0;
    while i < globals.len() {
        s = s.or(GlobalSet::of(globals[i]));
        i += 1;
    }
    s
}

/// The helpers; see [`helper`].
pub static HELPERS: &[HelperDesc] = &[
    HelperDesc {
        name: "mix",
        func: || helper::mix2 as *const (),
        args: 2,
        effects: Effects::PURE,
        shortcut: None,
    },
    HelperDesc {
        name: "count",
        func: || helper::count as *const (),
        args: 5,
        effects: Effects::STATE,
        shortcut: None,
    },
    HelperDesc {
        name: "read",
        func: || helper::read as *const (),
        args: 1,
        effects: Effects {
            reads: set(&[global::int(0), global::int(1), global::FLAGS, global::x(0), global::y(1)]),
            ..Effects::STATE
        },
        shortcut: None,
    },
    HelperDesc {
        name: "write",
        func: || helper::write as *const (),
        args: 1,
        effects: Effects {
            writes: set(&[global::int(1), global::int(2), global::FLAGS, global::x(0), global::y(2)]),
            ..Effects::STATE
        },
        shortcut: None,
    },
    HelperDesc {
        name: "may_fault",
        func: || helper::may_fault as *const (),
        args: 1,
        effects: Effects::FAULTS,
        shortcut: None,
    },
    HelperDesc {
        name: "all",
        func: || helper::all as *const (),
        args: 2,
        effects: Effects::ALL,
        shortcut: None,
    },
    HelperDesc {
        name: "swap",
        func: || helper::swap as *const (),
        args: 0,
        effects: Effects {
            reads: set(&[global::int(3), global::int(4), global::x(3)]),
            writes: set(&[global::int(3), global::int(4), global::y(3)]),
            ..Effects::STATE
        },
        shortcut: None,
    },
];

/// The helpers' functions, by index in [`HELPERS`].
pub mod helper {
    use super::{TestEnv, mix};
    use crate::ir::HelperId;

    /// Pure.
    pub const MIX: HelperId = HelperId(0);
    /// Changes other state; five arguments.
    pub const COUNT: HelperId = HelperId(1);
    /// Reads globals.
    pub const READ: HelperId = HelperId(2);
    /// Writes globals that it does not read; some only when its argument is odd.
    pub const WRITE: HelperId = HelperId(3);
    /// Faults when bits 2:0 of its argument are zero.
    pub const MAY_FAULT: HelperId = HelperId(4);
    /// Reads and writes anything; faults when bits 2:0 of its first argument are zero.
    pub const ALL: HelperId = HelperId(5);
    /// Exchanges two globals and clears the high half of a third.
    pub const SWAP: HelperId = HelperId(6);

    pub(super) extern "C" fn mix2(_: &mut TestEnv, a: u64, b: u64) -> u64 {
        mix(a ^ mix(b))
    }

    pub(super) extern "C" fn count(env: &mut TestEnv, a: u64, b: u64, c: u64, d: u64, e: u64) -> u64 {
        let digest = [a, b, c, d, e].into_iter().fold(1, |h, v| mix(h ^ v));
        env.digest(digest)
    }

    pub(super) extern "C" fn read(env: &mut TestEnv, a: u64) -> u64 {
        let flags = env.flags & crate::ir::flags::ALL;
        let scalars = [env.int[0], env.int[1], flags as u64, a];
        let vectors = env.vec[0][..2].iter().chain(&env.vec[1]);
        let digest = scalars.iter().chain(vectors).fold(2, |h, v| mix(h ^ v));
        env.digest(digest)
    }

    pub(super) extern "C" fn write(env: &mut TestEnv, a: u64) -> u64 {
        env.int[1] = mix(a);
        env.vec[0][..2].fill(a);
        if a & 1 != 0 {
            env.int[2] = mix(a.wrapping_add(1));
            env.flags = mix(a) as u32 & crate::ir::flags::ALL;
            env.vec[2] = [a, mix(a), 1, 2];
        }
        env.digest(a)
    }

    pub(super) extern "C" fn may_fault(env: &mut TestEnv, a: u64) -> u64 {
        if a & 7 == 0 {
            env.raise(a);
            return 0;
        }
        env.digest(a)
    }

    pub(super) extern "C" fn all(env: &mut TestEnv, a: u64, b: u64) -> u64 {
        let flags = env.flags & crate::ir::flags::ALL;
        let mut digest = mix(a ^ mix(b) ^ env.pc ^ (flags as u64) << 32);
        digest = env.int.iter().chain(env.vec.iter().flatten()).fold(digest, |h, v| mix(h ^ v));
        if a & 7 == 0 {
            env.raise(digest);
            return digest;
        }
        env.int[(b & 15) as usize] = digest;
        env.vec[(b >> 4 & 7) as usize][(b >> 7 & 3) as usize] = digest;
        if b >> 9 & 1 != 0 {
            env.pc = digest;
            env.flags = digest as u32 & crate::ir::flags::ALL;
        }
        env.digest(digest)
    }

    pub(super) extern "C" fn swap(env: &mut TestEnv) -> u64 {
        env.int.swap(3, 4);
        env.vec[3][2..].fill(0);
        env.vec[3].swap(0, 1);
        env.digest(3)
    }

    /// Calls a helper from Rust.
    ///
    /// # Panics
    /// If there is no such helper.
    pub fn call(env: &mut TestEnv, id: HelperId, args: [u64; 5]) -> u64 {
        let [a, b, c, d, e] = args;
        match id {
            MIX => mix2(env, a, b),
            COUNT => count(env, a, b, c, d, e),
            READ => read(env, a),
            WRITE => write(env, a),
            MAY_FAULT => may_fault(env, a),
            ALL => all(env, a, b),
            SWAP => swap(env),
            _ => panic!("no helper {}", id.0),
        }
    }
}
