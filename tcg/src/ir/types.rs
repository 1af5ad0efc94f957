//! The small vocabulary shared by every IR instruction: values, widths, conditions, globals.

use std::fmt;

/// An SSA value: the result of the instruction with the same index in its [`Block`](super::Block).
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Value(pub u32);

impl Value {
    /// Index of the defining instruction in [`Block::insts`](super::Block::insts).
    #[inline]
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

impl fmt::Debug for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "v{}", self.0)
    }
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "v{}", self.0)
    }
}

/// The type of an SSA value.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Ty {
    /// 64 bits. Narrow operations read the low bits of their inputs and zero-extend their result,
    /// so there are no truncation or extension instructions between widths.
    Int,
    /// The six condition flags; see [`flags`](super::flags) for the packed layout.
    Flags,
    /// 256 bits. 128-bit operations read the low half and zero the high half of their result.
    Vec,
}

/// Operation width of integer instructions and size of integer memory accesses.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum Width {
    /// 8 bits.
    W8,
    /// 16 bits.
    W16,
    /// 32 bits.
    W32,
    /// 64 bits.
    W64,
}

impl Width {
    /// All widths, narrow to wide.
    pub const ALL: [Width; 4] = [Width::W8, Width::W16, Width::W32, Width::W64];

    /// Width in bits: 8, 16, 32 or 64.
    #[inline]
    pub fn bits(self) -> u32 {
        8 << self as u32
    }

    /// Width in bytes: 1, 2, 4 or 8.
    #[inline]
    pub fn bytes(self) -> u32 {
        1 << self as u32
    }

    /// All-ones in this width, zero above.
    #[inline]
    pub fn mask(self) -> u64 {
        u64::MAX >> (64 - self.bits())
    }

    /// The width of `bytes` bytes, if there is one.
    pub fn from_bytes(bytes: u32) -> Option<Width> {
        Self::ALL.into_iter().find(|w| w.bytes() == bytes)
    }

    /// Sign-extends the low bits of `v` to 64 bits.
    #[inline]
    pub fn sign_extend(self, v: u64) -> u64 {
        let shift = 64 - self.bits();
        ((v << shift) as i64 >> shift) as u64
    }
}

/// Length of a vector operation.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum VecLen {
    /// 128 bits.
    V128,
    /// 256 bits.
    V256,
}

/// Size of a vector memory access; narrower than the register loads zero the rest.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum VecSize {
    /// 4 bytes (lane 0).
    B4,
    /// 8 bytes.
    B8,
    /// 16 bytes.
    B16,
    /// 32 bytes.
    B32,
}

impl VecSize {
    /// All sizes, narrow to wide.
    pub const ALL: [VecSize; 4] = [VecSize::B4, VecSize::B8, VecSize::B16, VecSize::B32];

    /// Size in bytes.
    #[inline]
    pub fn bytes(self) -> u32 {
        4 << self as u32
    }
}

/// Condition over a flags value. The sixteen combinations that the flags layout can express; the
/// odd ones negate the even ones (`self ^ 1`).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u8)]
pub enum Cond {
    /// V set (overflow).
    O = 0,
    /// V clear.
    NO,
    /// C set: unsigned below.
    B,
    /// C clear: unsigned above or equal.
    AE,
    /// Z set: equal.
    E,
    /// Z clear: not equal.
    NE,
    /// C or Z set: unsigned below or equal.
    BE,
    /// C and Z clear: unsigned above.
    A,
    /// N set: negative.
    S,
    /// N clear.
    NS,
    /// P set: even parity of the result's low byte.
    P,
    /// P clear.
    NP,
    /// N != V: signed less.
    L,
    /// N == V: signed greater or equal.
    GE,
    /// Z set or N != V: signed less or equal.
    LE,
    /// Z clear and N == V: signed greater.
    G,
}

impl Cond {
    /// All conditions in encoding order.
    pub const ALL: [Cond; 16] = [
        Cond::O,
        Cond::NO,
        Cond::B,
        Cond::AE,
        Cond::E,
        Cond::NE,
        Cond::BE,
        Cond::A,
        Cond::S,
        Cond::NS,
        Cond::P,
        Cond::NP,
        Cond::L,
        Cond::GE,
        Cond::LE,
        Cond::G,
    ];

    /// The condition that holds exactly when `self` does not.
    #[inline]
    pub fn negate(self) -> Cond {
        Self::ALL[self as usize ^ 1]
    }
}

/// Index of a global in the guest's [`GlobalDesc`] table; below 64.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct GlobalId(pub u8);

/// A set of globals as a bit mask.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct GlobalSet(pub u64);

impl GlobalSet {
    /// No global.
    pub const NONE: GlobalSet = GlobalSet(0);
    /// Every global.
    pub const ALL: GlobalSet = GlobalSet(u64::MAX);

    /// The set of one global.
    #[inline]
    pub const fn of(g: GlobalId) -> GlobalSet {
        GlobalSet(1 << g.0)
    }

    /// Whether `g` is in the set.
    #[inline]
    pub const fn contains(self, g: GlobalId) -> bool {
        self.0 >> g.0 & 1 != 0
    }

    /// Union.
    #[inline]
    pub const fn or(self, other: GlobalSet) -> GlobalSet {
        GlobalSet(self.0 | other.0)
    }

    /// Adds `g`.
    #[inline]
    pub fn insert(&mut self, g: GlobalId) {
        self.0 |= 1 << g.0;
    }

    /// Removes `g`.
    #[inline]
    pub fn remove(&mut self, g: GlobalId) {
        self.0 &= !(1 << g.0);
    }

    /// The members in ascending order.
    pub fn iter(self) -> impl Iterator<Item = GlobalId> {
        let mut rest = self.0;
        std::iter::from_fn(move || {
            if rest == 0 {
                return None;
            }
            let g = rest.trailing_zeros() as u8;
            rest &= rest - 1;
            Some(GlobalId(g))
        })
    }
}

impl fmt::Debug for GlobalSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter().map(|g| g.0)).finish()
    }
}

/// What the translator knows of one piece of guest state.
#[derive(Clone, Copy, Debug)]
pub struct GlobalDesc {
    /// Name in the text form, `[a-z][a-z0-9_]*`.
    pub name: &'static str,
    /// Type. `Int` occupies 8 bytes of the environment, `Flags` 4 (packed layout, upper half zero),
    /// `Vec` 16 or 32 (`bytes`).
    pub ty: Ty,
    /// Byte offset from the start of the guest's environment.
    pub offset: u32,
    /// Size in the environment in bytes.
    pub bytes: u8,
    /// Preference for a host register that survives block boundaries: 0 is the most wanted,
    /// `None` never. Only `Int` globals can be pinned.
    pub pin: Option<u8>,
    /// Another global that names the low half or the whole of the same storage, if any.
    pub overlaps: Option<GlobalId>,
}

/// Globals that a front end need not read again ([`Builder::remembering`](super::Builder::remembering)): those that nothing
/// else is a name for. Not the program counter `pc`, which the side exits of a block set.
pub fn plain_globals(globals: &[GlobalDesc], pc: GlobalId) -> GlobalSet {
    let mut plain = GlobalSet::NONE;
    (0..globals.len()).for_each(|g| plain.insert(GlobalId(g as u8)));
    plain.remove(pc);
    for (g, desc) in globals.iter().enumerate() {
        if let Some(other) = desc.overlaps {
            plain.remove(other);
            plain.remove(GlobalId(g as u8));
        }
    }
    plain
}
