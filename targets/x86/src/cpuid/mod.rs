//! What CPUID says.

/// CPUID leaves and the features they claim.
#[derive(Clone, Debug, Default)]
pub struct CpuidTable {}
