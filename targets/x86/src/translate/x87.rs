//! The x87 family.

use super::Row;

/// Rows of this family.
pub(super) const ROWS: &[Row] = &[];
