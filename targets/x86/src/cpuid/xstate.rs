//! Layout of the XSAVE area (SDM volume 1, section 13.4): which state components exist, their sizes and places.
//!
//! The offsets of the standard format are fixed here once and for all, whichever components a model has, so that an area
//! saved under one model has the same shape under another.

use super::{Feature, FeatureSet};

/// Numbers of state components.
pub mod component {
    /// x87.
    pub const X87: u32 = 0;
    /// XMM registers and MXCSR.
    pub const SSE: u32 = 1;
    /// Upper halves of the YMM registers.
    pub const AVX: u32 = 2;
    /// PKRU.
    pub const PKRU: u32 = 9;
}

/// A state component beyond the legacy area.
#[derive(Clone, Copy, Debug)]
pub struct Component {
    /// Its number: the bit in XCR0.
    pub index: u32,
    /// Bytes.
    pub size: u32,
    /// Offset in the standard format.
    pub offset: u32,
    /// The feature that brings it.
    pub feature: Feature,
}

/// End of the legacy area and the XSAVE header: offset of the first extended component.
pub const EXTENDED: u32 = 576;

/// The extended components in order of their numbers.
pub const COMPONENTS: &[Component] = &[
    Component { index: component::AVX, size: 256, offset: EXTENDED, feature: Feature::AVX },
    Component { index: component::PKRU, size: 8, offset: EXTENDED + 256, feature: Feature::PKU },
];

/// XCR0 bits that exist with these features.
pub fn supported(features: &FeatureSet) -> u64 {
    if !features.has(Feature::XSAVE) {
        return 0;
    }
    COMPONENTS.iter().filter(|c| features.has(c.feature)).fold(
        1 << component::X87 | if features.has(Feature::SSE) { 1 << component::SSE } else { 0 },
        |m, c| m | 1 << c.index,
    )
}

/// Bytes of the standard format for the components in `mask`.
pub fn standard_size(mask: u64) -> u32 {
    enabled(mask).map(|c| c.offset + c.size).max().unwrap_or(EXTENDED)
}

/// Bytes of the compacted format for the components in `mask`.
pub fn compact_size(mask: u64) -> u32 {
    enabled(mask).fold(EXTENDED, |at, c| at + c.size)
}

/// The extended components in `mask`.
pub fn enabled(mask: u64) -> impl Iterator<Item = &'static Component> {
    COMPONENTS.iter().filter(move |c| mask >> c.index & 1 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn components_do_not_overlap() {
        let mut end = EXTENDED;
        for c in COMPONENTS {
            assert!(c.offset >= end, "component {}", c.index);
            end = c.offset + c.size;
        }
        assert_eq!(standard_size(3), EXTENDED);
        assert_eq!(compact_size(3 | 1 << component::PKRU), EXTENDED + 8);
        assert_eq!(standard_size(3 | 1 << component::PKRU), EXTENDED + 256 + 8);
    }
}
