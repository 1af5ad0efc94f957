//! What the repository promises of itself: who may depend on whom, and that README.md's file map is true.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Which of the project's own packages each package may use, for whatever purpose (tests and builds
/// included).
const MAY_USE: &[(&str, &[&str])] = &[
    ("tessera-tcg", &[]),
    ("tessera-x86", &["tessera-tcg"]),
    ("tessera-hw-core", &[]),
    ("tessera-hw", &["tessera-hw-core", "tessera-firmware"]),
    ("tessera-asm", &[]),
    ("tessera-firmware", &["tessera-asm"]),
    ("tessera-bare", &["tessera-asm"]),
    (
        "tessera",
        &["tessera-tcg", "tessera-x86", "tessera-hw-core", "tessera-hw", "tessera-firmware", "tessera-bare"],
    ),
    ("tessera-golden", &["tessera-tcg", "tessera-x86"]),
    ("tessera-prove", &["tessera-tcg", "tessera-x86", "tessera-bare"]),
    ("xtask", &[]),
];

/// Folders whose subfolders the file map must name.
const MAPPED: &[&str] =
    &["src", "tcg/src", "targets/x86/src", "hw/core/src", "hw/src", "firmware", "firmware/src", "tests"];

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

#[test]
fn dependencies_go_one_way() {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version=1", "--no-deps", "--offline"])
        .current_dir(root())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let mut uses: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for package in metadata["packages"].as_array().unwrap() {
        let own = package["dependencies"].as_array().unwrap().iter().filter(|on| on["path"].is_string());
        uses.insert(package["name"].as_str().unwrap(), own.map(|on| on["name"].as_str().unwrap()).collect());
    }
    let known: BTreeSet<_> = MAY_USE.iter().map(|(name, _)| *name).collect();
    assert_eq!(uses.keys().copied().collect::<BTreeSet<_>>(), known, "say here what a new package may use");
    for (name, allowed) in MAY_USE {
        let extra: Vec<_> = uses[name].iter().filter(|used| !allowed.contains(used)).collect();
        assert!(extra.is_empty(), "{name} must not depend on {extra:?}: see the file map in README.md");
    }
}

/// The paths in README.md's file map: the first column of its table.
fn file_map() -> BTreeSet<String> {
    let readme = fs::read_to_string(root().join("README.md")).unwrap();
    let (_, map) = readme.split_once("## File map").expect("README.md has a section \"File map\"");
    let map = map.split("\n## ").next().unwrap();
    map.lines()
        .filter_map(|line| {
            Some(line.strip_prefix("| `")?.split_once('`')?.0.trim_end_matches('/').to_owned())
        })
        .collect()
}

#[test]
fn the_file_map_names_what_is_there() {
    let map = file_map();
    assert!(map.len() > 20, "the file map has only {} lines", map.len());
    let gone: Vec<_> = map.iter().filter(|path| !root().join(path).exists()).collect();
    assert!(gone.is_empty(), "README.md's file map names what does not exist: {gone:?}");
}

#[test]
fn the_file_map_is_complete() {
    let map = file_map();
    let mut missing = Vec::new();
    for folder in MAPPED {
        for entry in fs::read_dir(root().join(folder)).unwrap().flatten() {
            let path = format!("{folder}/{}", entry.file_name().to_string_lossy());
            let in_parent = MAPPED.iter().any(|mapped| *mapped == path);
            if entry.path().is_dir() && has_files(&entry.path()) && !in_parent && !map.contains(&path) {
                missing.push(path);
            }
        }
    }
    assert!(missing.is_empty(), "README.md's file map does not name {missing:?}");
}

fn has_files(folder: &Path) -> bool {
    fs::read_dir(folder).unwrap().flatten().any(|entry| {
        let path = entry.path();
        if path.is_dir() { has_files(&path) } else { true }
    })
}
