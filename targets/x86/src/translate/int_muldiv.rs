//! The int_muldiv family.

use super::Row;

/// Rows of this family.
pub(super) const ROWS: &[Row] = &[];
