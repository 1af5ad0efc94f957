//! Assembles the embedded ROM (see `rom/mod.rs`) and hands it to the crate as `rom.bin` and `speed_loop.bin`.

use std::path::PathBuf;
use std::{env, fs};

mod rom;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=rom");
    println!("cargo::rerun-if-changed=src/bios/speed_model.rs");
    let out = PathBuf::from(env::var("OUT_DIR")?);
    let image = rom::assemble()?;
    fs::write(out.join("rom.bin"), &image.rom)?;
    fs::write(out.join("speed_loop.bin"), &image.speed_loop)?;
    // For whoever debugs the ROM: symbol addresses, sorted.
    let map: Vec<String> = image.symbols.iter().map(|(addr, name)| format!("{addr:06x} {name}\n")).collect();
    fs::write(out.join("rom.map"), map.concat())?;
    Ok(())
}
