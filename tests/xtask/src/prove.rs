//! `cargo xtask prove`: the translator against the host's silicon.
//!
//! What happens is in the package `tessera-prove`; here its program is built for speed and run with the same arguments.

use std::process::ExitCode;

use anyhow::{Context, Result};

use crate::project;

/// Builds and runs the program.
pub fn run(arguments: &[String]) -> Result<ExitCode> {
    let status = project::cargo()
        .args(["run", "--quiet", "--release", "--package", "tessera-prove", "--"])
        .args(arguments)
        .status()
        .context("cannot run cargo")?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
