//! File trees made of Debian packages, for guests to boot to.
//!
//! Problem: a real program needs its libraries, its data and a loader, which lie in a dozen packages.
//!
//! Strategy: the packages' folders are merged by hard links into one tree below `target/guests/trees`, which is
//! packed into an initial RAM disk. The same tree serves on the host as a root folder ([`Tree::run_natively`]),
//! so that one script runs on the same files in the guest and on the silicon.
//!
//! Invariants:
//! - A tree is complete or absent: it is filled under another name and renamed.
//! - It is made anew when a package, a list or one of our own files has changed; the stamp beside it tells.

use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, anyhow, bail};

use crate::initramfs;
use crate::packages::{PackageError, Packages};
use crate::project;

/// What no program here reads.
const NEVER_NEEDED: &[&str] = &[
    "usr/share/doc",
    "usr/share/man",
    "usr/share/info",
    "usr/share/locale",
    "usr/share/lintian",
    "usr/share/bug",
    "usr/share/gcc",
    "usr/share/gdb",
];

/// Folders that every guest has, whatever its packages hold.
const FOLDERS: &[&str] = &["bin", "dev", "proc", "root", "run", "sys", "tmp", "etc"];

/// What a tree is made of.
pub struct Recipe<'a> {
    /// The name of its folder.
    pub name: &'a str,
    /// The packages, dependencies included; `busybox-static` gives all of its commands.
    pub packages: &'a [&'static str],
    /// Folders and files that are left out, with all below them.
    pub without: &'a [&'a str],
    /// Files of our own: where they go, their contents, and whether they are executable.
    pub files: Vec<(&'a str, Vec<u8>, bool)>,
}

/// A tree that was made.
pub struct Tree {
    /// Its root folder.
    pub root: PathBuf,
    /// The initial RAM disk that holds it.
    pub initrd: PathBuf,
}

impl Tree {
    /// Obtains the packages and makes the tree, below `target`, unless it is there already.
    pub fn make(target: &Path, recipe: &Recipe<'_>) -> Result<Self, PackageError> {
        let packages = Packages::open(target)?;
        let folders = packages.obtain_all(recipe.packages)?;
        let trees = target.join("guests/trees");
        fs::create_dir_all(&trees)?;
        let tree =
            Tree { root: trees.join(recipe.name), initrd: trees.join(format!("{}.cpio", recipe.name)) };
        let stamp = stamp(recipe, &folders);
        let stamp_file = trees.join(format!("{}.stamp", recipe.name));
        if fs::read_to_string(&stamp_file).is_ok_and(|found| found == stamp) && tree.root.exists() {
            return Ok(tree);
        }
        tree.fill(recipe, &folders)?;
        initramfs::write_tree(&tree.initrd, &tree.root)?;
        fs::write(stamp_file, stamp)?;
        Ok(tree)
    }

    fn fill(&self, recipe: &Recipe<'_>, folders: &[PathBuf]) -> Result<()> {
        let unfinished = self.root.with_extension("unfinished");
        for old in [&unfinished, &self.root] {
            if old.exists() {
                fs::remove_dir_all(old)?;
            }
        }
        for folder in FOLDERS {
            fs::create_dir_all(unfinished.join(folder))?;
        }
        // On the host, nothing is mounted there: a plain file takes what is thrown away.
        fs::write(unfinished.join("dev/null"), [])?;
        for folder in folders {
            let leave_out = |path: &str| {
                NEVER_NEEDED.iter().chain(recipe.without).any(|out| Path::new(path).starts_with(out))
            };
            merge(folder, &unfinished, Path::new(""), &leave_out)
                .with_context(|| format!("cannot merge {}", folder.display()))?;
        }
        for (name, contents, runs) in &recipe.files {
            let path = unfinished.join(name);
            if let Some(parent) = path.parent() {
                fs::create_dir_all(parent)?;
            }
            fs::write(&path, contents)?;
            fs::set_permissions(&path, fs::Permissions::from_mode(if *runs { 0o755 } else { 0o644 }))?;
        }
        link_busybox(&unfinished)?;
        fs::rename(&unfinished, &self.root)?;
        Ok(())
    }

    /// A shell command on the host with the tree as its root folder; `None` where that is not allowed.
    pub fn run_natively(&self, command: &str) -> Option<Command> {
        // Root may do it; another user may in a user namespace of its own, unless the system forbids that.
        let as_root = ["chroot"].as_slice();
        let in_namespace = ["unshare", "--user", "--map-root-user", "chroot"].as_slice();
        let shell = |prefix: &[&str], command: &str| {
            let mut line = Command::new(prefix[0]);
            line.args(&prefix[1..]).arg(&self.root).args(["/bin/busybox", "sh", "-c", command]);
            line.env_clear()
                .env("PATH", "/usr/bin:/usr/sbin:/bin:/sbin")
                .env("HOME", "/root")
                .env("LC_ALL", "C");
            line
        };
        let works = |prefix: &&[&str]| {
            let mut line = shell(prefix, "true");
            line.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
            line.status().is_ok_and(|status| status.success())
        };
        let prefix = [as_root, in_namespace].into_iter().find(works)?;
        let mut line = shell(prefix, command);
        line.stdin(Stdio::null());
        Some(line)
    }

    /// Empties the tree's `tmp`.
    pub fn clean(&self) -> Result<()> {
        let folder = self.root.join("tmp");
        fs::remove_dir_all(&folder)?;
        Ok(fs::create_dir(&folder)?)
    }
}

/// What a tree depends on, as text.
fn stamp(recipe: &Recipe<'_>, folders: &[PathBuf]) -> String {
    let mut text = String::new();
    for folder in folders {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "package {}", folder.display());
    }
    let _ = writeln!(text, "without {:?} {:?} {:?}", NEVER_NEEDED, recipe.without, FOLDERS);
    for (name, contents, runs) in &recipe.files {
        let _ = writeln!(text, "file {name} {runs} {:08x} {}", crc32(contents), contents.len());
    }
    text
}

fn crc32(bytes: &[u8]) -> u32 {
    let mut sum = flate2::Crc::new();
    sum.update(bytes);
    sum.sum()
}

/// Adds a package's files to a tree by hard links.
fn merge(package: &Path, tree: &Path, folder: &Path, leave_out: &dyn Fn(&str) -> bool) -> Result<()> {
    for entry in fs::read_dir(package.join(folder))? {
        let entry = entry?;
        let relative = folder.join(entry.file_name());
        if leave_out(&relative.to_string_lossy()) {
            continue;
        }
        let to = tree.join(&relative);
        let kind = entry.file_type()?;
        if kind.is_dir() {
            // A folder of one package may be a link in another, as `lib` is where `/usr` is merged.
            fs::create_dir_all(&to)?;
            merge(package, tree, &relative, leave_out)?;
        } else if kind.is_symlink() {
            if to.symlink_metadata().is_err() {
                symlink(fs::read_link(entry.path())?, &to)?;
            }
        } else if kind.is_file() && to.symlink_metadata().is_err() {
            fs::hard_link(entry.path(), &to)?;
        }
    }
    Ok(())
}

/// Gives busybox's commands their names, as far as no package has such a command.
fn link_busybox(tree: &Path) -> Result<()> {
    let busybox = tree.join("bin/busybox");
    if !busybox.exists() {
        return Ok(());
    }
    let listed = Command::new(&busybox).arg("--list").output().context("cannot run busybox")?;
    if !listed.status.success() {
        bail!("busybox --list failed");
    }
    for name in String::from_utf8_lossy(&listed.stdout).lines() {
        let elsewhere =
            ["bin", "sbin", "usr/bin", "usr/sbin"].iter().map(|folder| tree.join(folder).join(name));
        if elsewhere.into_iter().all(|path| path.symlink_metadata().is_err()) {
            symlink("busybox", tree.join("bin").join(name))?;
        }
    }
    Ok(())
}

/// A file of this repository, below `tests`.
pub fn own_file(path: &str) -> Result<Vec<u8>> {
    let path = project::root().join("tests").join(path);
    fs::read(&path).map_err(|error| anyhow!("cannot read {}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn merges_packages_and_leaves_out_what_is_not_wanted() {
        let base = std::env::temp_dir().join(format!("tessera-trees-{}", std::process::id()));
        let write = |path: &str, text: &str| {
            let path = base.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        write("one/usr/bin/tool", "1");
        write("one/usr/share/doc/tool/copyright", "c");
        write("two/usr/bin/other", "2");
        write("two/usr/lib/big", "b");
        let recipe = Recipe {
            name: "t",
            packages: &[],
            without: &["usr/lib/big"],
            files: vec![("run.sh", b"x".to_vec(), true)],
        };
        let tree = Tree { root: base.join("tree"), initrd: base.join("tree.cpio") };
        tree.fill(&recipe, &[base.join("one"), base.join("two")]).unwrap();
        let has = |path: &str| tree.root.join(path).exists();
        assert!(has("usr/bin/tool") && has("usr/bin/other") && has("run.sh") && has("proc"));
        assert!(!has("usr/share/doc") && !has("usr/lib/big"));
        assert_ne!(stamp(&recipe, &[]), stamp(&recipe, &[base.join("one")]));
        fs::remove_dir_all(&base).unwrap();
    }
}
