//! Initial RAM disks: busybox and a script for the kernels to boot to, and whole trees of files.
//!
//! The format is the "new ASCII" cpio archive, described in the kernel's documentation
//! (`Documentation/driver-api/early-userspace/buffer-format.rst`): for each file a header of 8-digit
//! hexadecimal fields, the name with a terminating zero, and the contents, both padded to 4 bytes;
//! an entry called `TRAILER!!!` ends it.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use flate2::Compression;
use flate2::write::GzEncoder;

/// The script prints this first of all: the kernel has reached userland.
pub const MARKER: &str = "userland reached";

/// The shell's prompt on the console.
pub const PROMPT: &str = "/ # ";

const INIT: &str = r#"#!/bin/busybox sh
/bin/busybox echo "userland reached"
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sysfs /sys
/bin/busybox mount -t devtmpfs devtmpfs /dev
/bin/busybox --install -s /bin
export PATH=/bin HOME=/ TERM=vt102
while true; do
    setsid cttyhack sh
done
"#;

const DIRECTORY: u32 = 0o040755;
const FILE: u32 = 0o100644;
const EXECUTABLE: u32 = 0o100755;
const LINK: u32 = 0o120777;
const CHARACTER_DEVICE: u32 = 0o020600;

/// An archive under construction.
struct Archive<W: Write> {
    out: W,
    inode: u32,
    written: usize,
}

impl<W: Write> Archive<W> {
    fn new(out: W) -> Self {
        Archive { out, inode: 0, written: 0 }
    }

    fn put(&mut self, bytes: &[u8]) -> Result<()> {
        self.out.write_all(bytes)?;
        self.written += bytes.len();
        let padding = self.written.next_multiple_of(4) - self.written;
        self.out.write_all(&[0; 4][..padding])?;
        self.written += padding;
        Ok(())
    }

    /// Adds an entry; `device` is the major and minor number of a device file, else zero.
    fn add(&mut self, name: &str, mode: u32, device: (u32, u32), contents: &[u8]) -> Result<()> {
        self.inode += 1;
        let links = if mode & 0o170000 == 0o040000 { 2 } else { 1 };
        let name_size = u32::try_from(name.len() + 1)?;
        let size = u32::try_from(contents.len()).context("a file is too large for the archive")?;
        let fields = [self.inode, mode, 0, 0, links, 0, size, 0, 0, device.0, device.1, name_size, 0]
            .map(|f| format!("{f:08X}"));
        let mut header = format!("070701{}{name}", fields.concat()).into_bytes();
        header.push(0);
        self.put(&header)?;
        self.put(contents)
    }

    fn finish(mut self) -> Result<W> {
        self.add("TRAILER!!!", 0, (0, 0), &[])?;
        Ok(self.out)
    }
}

/// Packs a folder into an archive at `path`, uncompressed: the kernel copies faster than it decompresses.
///
/// What lies in the tree's `tmp` is left out; `dev/console` is added. Everything belongs to root.
pub fn write_tree(path: &Path, tree: &Path) -> Result<()> {
    replace_file(path, |out| {
        let mut archive = Archive::new(out);
        add_folder(&mut archive, tree, Path::new(""))?;
        archive.add("dev/console", CHARACTER_DEVICE, (5, 1), &[])?;
        archive.finish()?;
        Ok(())
    })
}

fn add_folder<W: Write>(archive: &mut Archive<W>, tree: &Path, folder: &Path) -> Result<()> {
    let mut entries: Vec<_> = fs::read_dir(tree.join(folder))?.collect::<std::io::Result<_>>()?;
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        let relative = folder.join(entry.file_name());
        let name = relative.to_str().context("a file's name is not UTF-8")?;
        let kind = entry.file_type()?;
        if kind.is_symlink() {
            let to = fs::read_link(entry.path())?;
            archive.add(name, LINK, (0, 0), to.as_os_str().as_encoded_bytes())?;
        } else if kind.is_dir() {
            archive.add(name, DIRECTORY, (0, 0), &[])?;
            if name != "tmp" {
                add_folder(archive, tree, &relative)?;
            }
        } else if kind.is_file() {
            let runs = entry.metadata()?.permissions().mode() & 0o111 != 0;
            let contents = fs::read(entry.path())?;
            archive.add(name, if runs { EXECUTABLE } else { FILE }, (0, 0), &contents)?;
        }
    }
    Ok(())
}

/// Writes a file such that another process that reads it sees the old one or the new one.
fn replace_file(path: &Path, fill: impl FnOnce(&mut BufWriter<File>) -> Result<()>) -> Result<()> {
    let unfinished = PathBuf::from(format!("{}.{}", path.display(), std::process::id()));
    let mut out = BufWriter::new(
        File::create(&unfinished).with_context(|| format!("cannot write {}", unfinished.display()))?,
    );
    fill(&mut out)?;
    out.flush()?;
    fs::rename(&unfinished, path)?;
    Ok(())
}

/// Packs one program as `/init` into an archive at `path`, with nothing else but a console.
pub fn write_program(path: &Path, program: &Path) -> Result<()> {
    let contents = fs::read(program).with_context(|| format!("cannot read {}", program.display()))?;
    replace_file(path, |out| {
        let mut archive = Archive::new(out);
        archive.add("dev", DIRECTORY, (0, 0), &[])?;
        archive.add("dev/console", CHARACTER_DEVICE, (5, 1), &[])?;
        archive.add("init", EXECUTABLE, (0, 0), &contents)?;
        archive.finish()?;
        Ok(())
    })
}

/// Packs `busybox` and the script into a gzip-compressed archive at `path`.
pub fn write(path: &Path, busybox: &Path) -> Result<()> {
    let program = fs::read(busybox).with_context(|| format!("cannot read {}", busybox.display()))?;
    let mut archive = Archive::new(GzEncoder::new(Vec::new(), Compression::default()));
    for folder in ["bin", "dev", "proc", "sys", "tmp", "root"] {
        archive.add(folder, DIRECTORY, (0, 0), &[])?;
    }
    archive.add("dev/console", CHARACTER_DEVICE, (5, 1), &[])?;
    archive.add("bin/busybox", EXECUTABLE, (0, 0), &program)?;
    archive.add("init", EXECUTABLE, (0, 0), INIT.as_bytes())?;
    let packed = archive.finish()?.finish()?;
    replace_file(path, |out| Ok(out.write_all(&packed)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_laid_out_as_documented() {
        let mut archive = Archive::new(Vec::new());
        archive.add("dev/console", CHARACTER_DEVICE, (5, 1), &[]).unwrap();
        archive.add("a", EXECUTABLE, (0, 0), b"hello").unwrap();
        let bytes = archive.finish().unwrap();
        let text = |range: std::ops::Range<usize>| std::str::from_utf8(&bytes[range]).unwrap();
        assert_eq!(text(0..6), "070701");
        assert_eq!(text(6 + 8..6 + 16), "00002180", "mode of the device");
        assert_eq!(text(6 + 72..6 + 80), "00000005", "major number");
        assert_eq!(text(6 + 80..6 + 88), "00000001", "minor number");
        assert_eq!(text(110..121), "dev/console");
        // 110 bytes of header and 12 of name, padded to 124; then the second entry.
        assert_eq!(text(124..130), "070701");
        assert_eq!(text(130 + 48..130 + 56), "00000005", "size of the contents");
        assert_eq!(text(124 + 112..124 + 117), "hello");
        assert_eq!(text(244..250), "070701", "the trailer is aligned");
        assert!(bytes.len().is_multiple_of(4));
    }

    #[test]
    fn the_script_prints_the_marker() {
        assert!(INIT.contains(MARKER));
    }
}
