//! Small devices of the board.

pub mod a20;
pub mod coprocessor;
pub mod isa_debug_exit;
pub mod port92;
pub mod post_code;
