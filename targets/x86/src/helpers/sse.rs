//! Helpers of the sse instructions.

helpers! { super::SSE_BASE; }
