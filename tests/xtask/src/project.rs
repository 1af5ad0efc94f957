//! The repository, its target folder, and cargo.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

/// The repository's root folder.
pub fn root() -> PathBuf {
    // This package lies at tests/xtask.
    let nearby = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    nearby.canonicalize().unwrap_or(nearby)
}

/// A cargo command in the repository's root folder.
pub fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root());
    command
}

/// Cargo's target folder for this workspace, wherever the user has put it.
pub fn target_dir() -> Result<PathBuf> {
    let output = cargo()
        .args(["metadata", "--format-version=1", "--no-deps"])
        .stderr(Stdio::inherit())
        .output()
        .context("cannot run cargo metadata")?;
    if !output.status.success() {
        bail!("cargo metadata failed");
    }
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    let folder = metadata["target_directory"].as_str().context("cargo metadata names no target folder")?;
    Ok(PathBuf::from(folder))
}

/// Builds the release program and returns its path.
pub fn build_release() -> Result<PathBuf> {
    let status = cargo().args(["build", "--release", "--package", "tessera"]).status()?;
    if !status.success() {
        bail!("the release build failed");
    }
    Ok(target_dir()?.join("release/tessera"))
}

/// The emulator to drive: the one the user named, or this project's release build.
pub fn emulator(chosen: Option<PathBuf>) -> Result<PathBuf> {
    match chosen {
        Some(program) => Ok(program),
        None => build_release(),
    }
}

/// Whether `program` is this project's emulator rather than a stand-in that takes the same options.
pub fn is_tessera(program: &Path) -> bool {
    Command::new(program)
        .arg("-version")
        .stdin(Stdio::null())
        .output()
        .is_ok_and(|output| String::from_utf8_lossy(&output.stdout).to_lowercase().starts_with("tessera"))
}

/// Whether a program of this name is on the search path.
pub fn installed(program: &str) -> bool {
    std::env::var_os("PATH")
        .is_some_and(|path| std::env::split_paths(&path).any(|folder| folder.join(program).is_file()))
}
