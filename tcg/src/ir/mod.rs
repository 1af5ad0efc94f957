//! The intermediate representation: a single-entry, multiple-exit block in SSA form.
//!
//! A [`Block`] is a vector of [`Inst`]; an instruction's index is the [`Value`] it defines. Guest state is reached
//! by explicit `Get`/`Set` of typed globals, so that a value can live in a host register from one guest
//! instruction to the next without a word in memory. Nothing here knows a guest or a host.
//!
//! Invariants (checked by [`verify`](verify::verify)): every operand is defined by an earlier instruction and has the
//! type its user expects; exactly one terminal, last; exits referred to exist; the rule of observers (see [`Inst`]).

mod block;
mod effects;
pub mod flags;
mod inst;
pub mod text;
mod types;
pub mod vec;
pub mod vec3;
pub mod verify;

pub use block::{Block, Builder, Exit};
pub use flags::FlagOp;
pub use inst::{BinOp, CallArgs, ExitId, Ext, HelperId, Inst, MemFlags, RmwOp, UnOp};
pub use types::{Cond, GlobalDesc, GlobalId, GlobalSet, Ty, Value, VecLen, VecSize, Width, plain_globals};
pub use vec::{VecInsOp, VecOp, VecTestOp};
pub use vec3::Vec3Op;
