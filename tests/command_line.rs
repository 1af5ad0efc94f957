//! Mistakes on the command line: each is one sentence on standard error that names the option, the value and
//! the way out; the exit status is 1, nothing is started and nothing is written.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

/// A folder of a test's own, gone at its end.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("tessera-{name}-{}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Folder(path)
    }

    fn file(&self, name: &str, contents: &[u8]) -> String {
        fs::write(self.0.join(name), contents).unwrap();
        self.path(name)
    }

    fn path(&self, name: &str) -> String {
        self.0.join(name).to_str().unwrap().to_owned()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).unwrap();
    }
}

fn tessera(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_tessera")).args(arguments).stdin(Stdio::null()).output().unwrap()
}

/// Every file in a folder, and what is in it.
fn snapshot(folder: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut files: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .flatten()
        .map(|entry| (entry.path(), fs::read(entry.path()).unwrap_or_default()))
        .collect();
    files.sort();
    files
}

/// A file that says of itself that it is a bzImage of the boot protocol 2.15, with 4 KiB of code.
fn bzimage() -> Vec<u8> {
    let mut file = vec![0; 1024 + 4096];
    let mut put = |at: usize, bytes: &[u8]| file[at..at + bytes.len()].copy_from_slice(bytes);
    put(0x1F1, &[1]); // setup_sects
    put(0x1F4, &256u32.to_le_bytes()); // syssize, in paragraphs
    put(0x1FE, &[0x55, 0xAA]);
    put(0x200, &[0xEB, 0x66]); // jump over the header, whose length it tells
    put(0x202, b"HdrS");
    put(0x206, &0x020Fu16.to_le_bytes());
    put(0x211, &[1]); // loaded high
    put(0x22C, &0x7FFF_FFFFu32.to_le_bytes()); // initrd_addr_max
    put(0x230, &0x20_0000u32.to_le_bytes()); // kernel_alignment
    put(0x234, &[1]); // relocatable
    put(0x238, &2047u32.to_le_bytes()); // cmdline_size
    put(0x258, &0x100_0000u64.to_le_bytes()); // pref_address
    put(0x260, &0x10_0000u32.to_le_bytes()); // init_size
    // hlt, and back.
    file[1024..1027].copy_from_slice(&[0xF4, 0xEB, 0xFD]);
    file
}

/// Runs a line that must fail, with `-serial file:` before it, which must not be written; and checks that the
/// message has these parts.
fn refused(folder: &Folder, arguments: &[&str], parts: &[&str]) {
    let before = snapshot(&folder.0);
    let serial = format!("file:{}", folder.path("serial-output"));
    let mut line = vec!["-serial", serial.as_str()];
    line.extend(arguments);
    let output = tessera(&line);
    let errors = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{arguments:?}: {errors}");
    assert!(output.stdout.is_empty(), "{arguments:?} prints on standard output");
    assert_eq!(errors.lines().count(), 1, "{arguments:?}: not one sentence: {errors}");
    assert!(errors.starts_with("tessera: ") && errors.len() < 1000, "{arguments:?}: {errors}");
    for part in parts {
        assert!(errors.contains(part), "{arguments:?}: {part:?} is not in {errors}");
    }
    assert!(errors.contains("; "), "{arguments:?}: no way out in {errors}");
    assert_eq!(snapshot(&folder.0), before, "{arguments:?} changed files");
}

#[test]
fn files_that_cannot_be_booted() {
    let folder = Folder::new("kernel-files");
    let mut truncated = bzimage();
    truncated.truncate(3000);
    let (missing, empty) = (folder.path("missing"), folder.file("empty", b""));
    let (truncated, text) =
        (folder.file("truncated", &truncated), folder.file("text", b"#!/bin/sh\necho hello\n"));
    let (elf, short) =
        (folder.file("elf", b"\x7FELF\x02\x01\x01"), folder.file("short", &bzimage()[..0x203]));
    for kernel in [&missing, &empty, &truncated, &text, &elf, &short] {
        refused(&folder, &["-kernel", kernel], &["-kernel", kernel]);
    }
    refused(&folder, &["-kernel", &folder.path("")], &["-kernel"]);
    let good = folder.file("good", &bzimage());
    refused(&folder, &["-kernel", &good, "-initrd", &missing], &["-initrd", &missing]);
    refused(&folder, &["-kernel", &good, "-initrd", &empty], &["-initrd", &empty]);
    let large = folder.path("large");
    fs::File::create(&large).unwrap().set_len(200 << 20).unwrap();
    refused(&folder, &["-m", "64", "-kernel", &good, "-initrd", &large], &["-initrd", &large, "-m"]);
    refused(&folder, &["-m", "8", "-kernel", &good], &["-kernel", &good, "-m"]);
    let long = "x".repeat(2048);
    refused(&folder, &["-kernel", &good, "-append", &long], &["-append", "2048", "2047"]);
}

#[test]
fn values_that_mean_nothing() {
    let folder = Folder::new("values");
    for size in ["0", "17P", "abc"] {
        refused(&folder, &["-m", size], &["-m", size]);
    }
    refused(&folder, &["-cpu", "80986"], &["-cpu", "80986", "help"]);
    refused(&folder, &["-cpu", "max,+fish"], &["-cpu", "fish"]);
    refused(&folder, &["-machine", "isapc"], &["-machine", "isapc", "q35"]);
    refused(&folder, &["-device", "fish"], &["-device", "fish"]);
    refused(&folder, &["-fish"], &["-fish", "-help"]);
    refused(&folder, &["-drive", "file=x"], &["-drive", "not supported by Tessera yet"]);
    refused(&folder, &["-accel", "xen"], &["-accel", "xen", "not supported by Tessera yet"]);
    refused(&folder, &["-smp", "2"], &["-smp", "2"]);
    refused(&folder, &["-d", "fish"], &["-d", "fish"]);
}

#[test]
fn places_that_cannot_be_opened() {
    let folder = Folder::new("places");
    refused(&folder, &["-serial", "file:/nonexistent/x"], &["-serial", "/nonexistent/x"]);
    refused(&folder, &["-serial", "unix:/nonexistent/x,server=on,wait=off"], &["-serial", "/nonexistent/x"]);
    refused(&folder, &["-debugcon", "file:/nonexistent/x"], &["-debugcon", "/nonexistent/x"]);
    refused(&folder, &["-d", "int", "-D", "/nonexistent/x"], &["-D", "/nonexistent/x"]);
    // What is there already stays as it is, whichever of several things cannot be opened.
    let old = folder.file("old", b"precious");
    refused(&folder, &["-d", "int", "-D", &old, "-serial", "file:/nonexistent/x"], &["/nonexistent/x"]);
    refused(&folder, &["-serial", &format!("file:{old}"), "-kernel", "/nonexistent/k"], &["/nonexistent/k"]);
}

#[test]
fn places_where_no_debugger_can_call() {
    let folder = Folder::new("debuggers");
    for place in ["tcp", "tcp:1234", "tcp::port", "tcp::99999", "unix:", "pty"] {
        refused(&folder, &["-gdb", place], &["-gdb", place, "tcp::PORT"]);
    }
    refused(&folder, &["-gdb", "unix:/nonexistent/x"], &["-gdb", "/nonexistent/x"]);
    refused(&folder, &["-gdb", "tcp:host.invalid:1234"], &["-gdb", "host.invalid"]);
    // An address for documentation (RFC 5737), which is nobody's.
    refused(&folder, &["-gdb", "tcp:192.0.2.1:1234"], &["-gdb", "192.0.2.1:1234", "address of this host"]);
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let place = format!("tcp::{}", taken.local_addr().unwrap().port());
    refused(&folder, &["-gdb", &place], &["-gdb", "in use", "port that is free"]);
    let socket = folder.path("socket");
    let _taken = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    refused(&folder, &["-gdb", &format!("unix:{socket}")], &["-gdb", &socket, "path that is free"]);
}

#[test]
fn questions_are_answered() {
    for question in [
        &["-help"] as &[_],
        &["--help"],
        &["-version"],
        &["-cpu", "help"],
        &["-machine", "help"],
        &["-d", "help"],
    ] {
        let output = tessera(question);
        assert!(
            output.status.success() && output.stderr.is_empty() && !output.stdout.is_empty(),
            "{question:?}"
        );
    }
}
