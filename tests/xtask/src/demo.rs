//! `cargo xtask demo`: a Linux shell in an emulated PC, on this terminal.

use std::path::PathBuf;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result};

use crate::guests;
use crate::packages::PackageError;
use crate::project;

/// Builds the program, obtains Debian's cloud kernel and boots it to a shell; without packages, runs the
/// guest that is built into the program. The exit code is the emulator's.
pub fn run(emulator: Option<PathBuf>, extra: &[String]) -> Result<ExitCode> {
    let program = project::emulator(emulator)?;
    let guest = guests::named("cloud").context("the table of guests has no cloud guest")?;
    let mut command = match guest.obtain(&project::target_dir()?) {
        Ok(files) => {
            println!("Booting {}; `poweroff -f` or Ctrl-A x ends it.", file_name(&files.kernel));
            files.command(&program, "console=ttyS0")
        }
        Err(PackageError::Unavailable(reason)) => {
            println!("{reason}; running the embedded guest instead.");
            Command::new(&program)
        }
        Err(PackageError::Broken(error)) => return Err(error),
    };
    let status =
        command.args(extra).status().with_context(|| format!("cannot start {}", program.display()))?;
    Ok(ExitCode::from(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1)))
}

fn file_name(path: &std::path::Path) -> String {
    path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
}
