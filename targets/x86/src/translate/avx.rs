//! AVX and AVX2: what has no legacy SSE counterpart. All other VEX instructions share their rows with their legacy forms, see
//! [`sse`](super::sse).

use tessera_tcg::ir::VecOp;

use super::Row;
use super::sse::{simple, vex_rows};

/// Rows of this family that are one vector operation.
pub(super) const SIMPLE_ROWS: &[Row] = vex_rows! {
    simple:
        Vpblendd BlendF32;
};
