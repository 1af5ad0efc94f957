//! The guests: which kernel, which initial RAM disk, which parameters.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, anyhow};

use crate::initramfs;
use crate::packages::{Package, PackageError, Packages};

/// What a kernel boots to.
pub enum Userland {
    /// Busybox and a shell, packed by [`initramfs`].
    Busybox,
    /// The initial RAM disk that comes with the kernel, at this path in the package.
    Packaged(&'static str),
}

/// A guest system, unmodified from Debian.
pub struct Guest {
    /// The name it has here.
    pub name: &'static str,
    /// The package that holds the kernel.
    pub package: Package,
    /// The kernel's folder in the package.
    pub folder: &'static str,
    /// The start of the kernel's file name.
    pub kernel: &'static str,
    /// What it boots to.
    pub userland: Userland,
    /// Guest memory in MiB.
    pub memory: u32,
    /// What `uname -m` says there.
    pub machine: &'static str,
}

/// Every guest the project boots.
pub const GUESTS: &[Guest] = &[
    debian_kernel("cloud", "linux-image-cloud-amd64"),
    debian_kernel("amd64", "linux-image-amd64"),
    debian_kernel("rt", "linux-image-rt-amd64"),
    installer(
        "installer-amd64",
        "debian-installer-12-netboot-amd64",
        &["*/text/debian-installer/amd64/linux", "*/text/debian-installer/amd64/initrd.gz"],
        "usr/lib/debian-installer/images/12/amd64/text/debian-installer/amd64",
        "x86_64",
    ),
    installer(
        "installer-i386",
        "debian-installer-12-netboot-i386",
        &["*/text/debian-installer/i386/linux", "*/text/debian-installer/i386/initrd.gz"],
        "usr/lib/debian-installer/images/12/i386/text/debian-installer/i386",
        "i686",
    ),
];

/// A kernel for amd64, by the package that follows its newest version.
const fn debian_kernel(name: &'static str, package: &'static str) -> Guest {
    Guest {
        name,
        package: Package { name: package, follow: Some("linux-image-"), files: &["./boot/vmlinuz-*"] },
        folder: "boot",
        kernel: "vmlinuz-",
        userland: Userland::Busybox,
        memory: 512,
        machine: "x86_64",
    }
}

/// An installer of Debian, whose files are in one folder.
const fn installer(
    name: &'static str,
    package: &'static str,
    files: &'static [&'static str],
    folder: &'static str,
    machine: &'static str,
) -> Guest {
    Guest {
        name,
        package: Package { name: package, follow: None, files },
        folder,
        kernel: "linux",
        userland: Userland::Packaged("initrd.gz"),
        memory: 1024,
        machine,
    }
}

/// The first thing the installer asks.
const FIRST_SCREEN: &str = "Select a language";

const BUSYBOX: Package = Package { name: "busybox-static", follow: None, files: &["./bin/busybox"] };

/// The files of a guest that was obtained.
#[derive(Clone)]
pub struct Files {
    /// The kernel image.
    pub kernel: PathBuf,
    /// The initial RAM disk.
    pub initrd: PathBuf,
    /// Guest memory in MiB.
    pub memory: u32,
}

/// The guest of that name.
pub fn named(name: &str) -> Option<&'static Guest> {
    GUESTS.iter().find(|guest| guest.name == name)
}

impl Guest {
    /// What its console shows once it has booted.
    pub fn arrival(&self) -> &'static str {
        match self.userland {
            Userland::Busybox => initramfs::MARKER,
            Userland::Packaged(_) => FIRST_SCREEN,
        }
    }

    /// Obtains the kernel and the initial RAM disk, below `target`.
    pub fn obtain(&self, target: &Path) -> Result<Files, PackageError> {
        let packages = Packages::open(target)?;
        let (folder, kernel) = self.obtain_kernel(&packages)?;
        let initrd = match self.userland {
            Userland::Packaged(name) => folder.join(name),
            Userland::Busybox => {
                let path = target.join("guests/busybox.cpio.gz");
                initramfs::write(&path, &packages.obtain(&BUSYBOX)?.join("bin/busybox"))?;
                path
            }
        };
        Ok(Files { kernel, initrd, memory: self.memory })
    }

    /// The kernel's folder, and the kernel in it.
    fn obtain_kernel(&self, packages: &Packages) -> Result<(PathBuf, PathBuf), PackageError> {
        let folder = packages.obtain(&self.package)?.join(self.folder);
        let kernel = fs::read_dir(&folder)
            .with_context(|| format!("{} has no folder {}", self.package.name, folder.display()))?
            .flatten()
            .map(|entry| entry.path())
            .find(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(self.kernel)))
            .ok_or_else(|| anyhow!("{} holds no kernel", self.package.name))?;
        Ok((folder, kernel))
    }
}

/// The kernel that programs and workloads run on: the cloud guest's.
pub fn kernel(target: &Path) -> Result<PathBuf, PackageError> {
    let guest = named("cloud").context("the table of guests has no cloud guest")?;
    Ok(guest.obtain_kernel(&Packages::open(target)?)?.1)
}

impl Files {
    /// The command line a person would type; `append` are the kernel's parameters.
    pub fn command(&self, emulator: &Path, append: &str) -> Command {
        let mut command = Command::new(emulator);
        command
            .arg("-m")
            .arg(self.memory.to_string())
            .args(["-nographic", "-no-reboot", "-kernel"])
            .arg(&self.kernel)
            .arg("-initrd")
            .arg(&self.initrd)
            .args(["-append", append]);
        command
    }
}
