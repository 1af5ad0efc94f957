//! The int_shift family.

use super::Row;

/// Rows of this family.
pub(super) const ROWS: &[Row] = &[];
