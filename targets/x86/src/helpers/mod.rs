//! Functions that generated code calls for what is too long, too rare or too stateful to be IR.
//!
//! The table that the translator sees, [`HELPERS`], is the concatenation of one part a file; each part is written
//! with the [`helpers!`] macro, which makes a typed constant ([`HelperId`]) of every row, so that a call costs no
//! lookup: `t.b.call(helpers::int::DIV_U32, &[..])`.
//!
//! Rules for a helper (see `tessera_tcg::guest`):
//! - It is `extern "C" fn(env: &mut X86Env, …u64) -> u64` with at most five arguments; the macro checks the type.
//! - It reads and writes only those globals that its `Effects` name; all others may be in host registers.
//! - It faults by [`fault`], before it has written any global; it then returns anything.
//! - It never panics, whatever the guest passes.

use tessera_tcg::guest::{Effects, Exception, HelperDesc};
use tessera_tcg::ir::{GlobalId, GlobalSet, HelperId};

use crate::guest::X86;
use crate::state::X86Env;

/// Declares one part of the helper table.
///
/// `helpers! { base; NAME = function(number of arguments), effects; … }` defines `pub const NAME: HelperId` for every
/// row and `pub(super) const TABLE`, the part's rows in order. `base` is the part's first index in [`HELPERS`].
macro_rules! helpers {
    (@shortcut) => { None };
    (@shortcut $shortcut:expr) => { Some($shortcut) };
    ($base:expr; $($(#[$meta:meta])* $id:ident = $func:ident($args:tt), $effects:expr $(, $shortcut:expr)?;)*) => {
        #[allow(dead_code, non_camel_case_types, clippy::upper_case_acronyms, clippy::enum_variant_names)]
        enum Row { $($id,)* }
        $(
            $(#[$meta])*
            pub const $id: tessera_tcg::ir::HelperId = tessera_tcg::ir::HelperId($base + Row::$id as u16);
        )*
        /// The rows of this part.
        pub(super) const TABLE: &[tessera_tcg::guest::HelperDesc] = &[$(
            tessera_tcg::guest::HelperDesc {
                name: stringify!($func),
                func: || {
                    let func: $crate::helpers::helper_type!($args) = $func;
                    func as *const ()
                },
                args: $args,
                effects: $effects,
                shortcut: helpers!(@shortcut $($shortcut)?),
            },
        )*];
    };
}

/// The function type of a helper with so many arguments.
macro_rules! helper_type {
    (0) => { extern "C" fn(&mut $crate::state::X86Env) -> u64 };
    (1) => { extern "C" fn(&mut $crate::state::X86Env, u64) -> u64 };
    (2) => { extern "C" fn(&mut $crate::state::X86Env, u64, u64) -> u64 };
    (3) => { extern "C" fn(&mut $crate::state::X86Env, u64, u64, u64) -> u64 };
    (4) => { extern "C" fn(&mut $crate::state::X86Env, u64, u64, u64, u64) -> u64 };
    (5) => { extern "C" fn(&mut $crate::state::X86Env, u64, u64, u64, u64, u64) -> u64 };
}
pub(crate) use helper_type;

pub mod avx;
pub mod int;
pub mod int_string;
pub mod sse;
pub mod system;
pub mod vec_op;
pub mod x87;
mod x87_codes;
pub mod x87_host;
pub mod x87_image;
pub mod x87_native;
mod x87_number;
pub mod x87_state;

const INT_BASE: u16 = 0;
const INT_STRING_BASE: u16 = INT_BASE + int::TABLE.len() as u16;
const SYSTEM_BASE: u16 = INT_STRING_BASE + int_string::TABLE.len() as u16;
const SSE_BASE: u16 = SYSTEM_BASE + system::TABLE.len() as u16;
const X87_BASE: u16 = SSE_BASE + sse::TABLE.len() as u16;
const VEC_OP_BASE: u16 = X87_BASE + x87::TABLE.len() as u16;
const AVX_BASE: u16 = VEC_OP_BASE + vec_op::TABLE.len() as u16;
const X87_NATIVE_BASE: u16 = AVX_BASE + avx::TABLE.len() as u16;
const COUNT: usize = X87_NATIVE_BASE as usize + x87_native::TABLE.len();

/// Every helper, by [`HelperId`].
pub static HELPERS: [HelperDesc; COUNT] = {
    let parts = [
        int::TABLE,
        int_string::TABLE,
        system::TABLE,
        sse::TABLE,
        x87::TABLE,
        vec_op::TABLE,
        avx::TABLE,
        x87_native::TABLE,
    ];
    let mut all = [int::TABLE[0]; COUNT];
    let (mut part, mut n) = (0, 0);
    while part < parts.len() {
        let mut row = 0;
        while row < parts[part].len() {
            all[n] = parts[part][row];
            row += 1;
            n += 1;
        }
        part += 1;
    }
    all
};

/// Description of a helper.
pub fn desc(id: HelperId) -> &'static HelperDesc {
    &HELPERS[id.0 as usize]
}

/// Raises `exception` from a helper; the return value is for the helper to return.
#[cold]
pub fn fault(env: &mut X86Env, exception: Exception) -> u64 {
    tessera_tcg::softmmu::raise::<X86>(env, exception);
    0
}

/// An exception by vector and error code.
pub fn exception(vector: u16, error: Option<u32>) -> Exception {
    Exception { vector, error, address: 0 }
}

/// Effects of a helper that reads and writes the given globals.
pub const fn touches(reads: &[GlobalId], writes: &[GlobalId], faults: bool) -> Effects {
    Effects { reads: set_of(reads), writes: set_of(writes), faults, pure: false }
}

const fn set_of(globals: &[GlobalId]) -> GlobalSet {
    let (mut set, mut n) = (GlobalSet::NONE, 0);
    while n < globals.len() {
        set = set.or(GlobalSet::of(globals[n]));
        n += 1;
    }
    set
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_name_their_rows() {
        assert_eq!(desc(int::RAISE).name, "raise_exception");
        assert_eq!(HELPERS.len(), COUNT);
        let mut names: Vec<_> = HELPERS.iter().map(|h| h.name).collect();
        names.sort_unstable();
        let all = names.len();
        names.dedup();
        assert_eq!(names.len(), all, "two helpers share a name");
    }
}
