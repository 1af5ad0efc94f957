//! `cargo xtask golden`: the host code of guest snippets, as it is and as it is written down.
//!
//! What happens is in the package `tessera-golden`, whose tests do it.

use std::process::ExitCode;

use anyhow::{Context, Result};

use crate::project;

/// Compares, or writes the files anew.
pub fn run(bless: bool) -> Result<ExitCode> {
    let mut command = project::cargo();
    command.args(["test", "--quiet", "--package", "tessera-golden", "--test", "golden", "--", "--nocapture"]);
    if bless {
        command.env("TESSERA_BLESS", "1");
    }
    let status = command.status().context("cannot run cargo")?;
    if bless && status.success() {
        println!("wrote tests/golden/expected");
    }
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
