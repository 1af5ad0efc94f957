//! A Debian root file system with systemd that boots to the login prompt, in an initial RAM disk.
//!
//! The packages' installation scripts do not run: what they would write and a boot needs (users, groups, the name of
//! the machine) comes from here.

use std::path::Path;

use crate::packages::PackageError;
use crate::trees::{Recipe, Tree};

/// What the console shows when somebody may log in.
pub const PROMPT: &str = "tessera login: ";

/// systemd, udev, D-Bus, a shell and the login, with their libraries.
const PACKAGES: &[&str] = &[
    "base-files",
    "bash",
    "coreutils",
    "dash",
    "dbus",
    "dbus-bin",
    "dbus-daemon",
    "dbus-system-bus-common",
    "grep",
    "kmod",
    "libacl1",
    "libapparmor1",
    "libargon2-1",
    "libattr1",
    "libaudit1",
    "libblkid1",
    "libbz2-1.0",
    "libc6",
    "libcap-ng0",
    "libcap2",
    "libcrypt1",
    "libcryptsetup12",
    "libdbus-1-3",
    "libdevmapper1.02.1",
    "libexpat1",
    "libfdisk1",
    "libffi8",
    "libgcc-s1",
    "libgcrypt20",
    "libgmp10",
    "libgpg-error0",
    "libip4tc2",
    "libjson-c5",
    "libkmod2",
    "liblz4-1",
    "liblzma5",
    "libmount1",
    "libp11-kit0",
    "libpam-modules",
    "libpam-runtime",
    "libpam0g",
    "libpcre2-8-0",
    "libseccomp2",
    "libselinux1",
    "libsmartcols1",
    "libssl3",
    "libsystemd-shared",
    "libsystemd0",
    "libtinfo6",
    "libudev1",
    "libuuid1",
    "libzstd1",
    "login",
    "mount",
    "netbase",
    "sed",
    "systemd",
    "systemd-sysv",
    "udev",
    "util-linux",
    "zlib1g",
];

const USERS: &str = "\
root:x:0:0:root:/root:/bin/bash
daemon:x:1:1:daemon:/usr/sbin:/usr/sbin/nologin
messagebus:x:100:100::/nonexistent:/usr/sbin/nologin
systemd-network:x:998:998::/:/usr/sbin/nologin
nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin
";

const GROUPS: &str = "\
root:x:0:
daemon:x:1:
adm:x:4:
tty:x:5:
disk:x:6:
lp:x:7:
dialout:x:20:
cdrom:x:24:
tape:x:26:
audio:x:29:
utmp:x:43:
video:x:44:
kmem:x:15:
input:x:101:
sgx:x:102:
kvm:x:103:
render:x:104:
messagebus:x:100:
systemd-journal:x:999:
systemd-network:x:998:
nogroup:x:65534:
";

/// Makes the tree below `target`.
pub fn tree(target: &Path) -> Result<Tree, PackageError> {
    let text = |path, contents: &str| (path, contents.as_bytes().to_vec(), false);
    let recipe = Recipe {
        name: "login",
        packages: PACKAGES,
        without: &[
            "usr/share/zoneinfo",
            "usr/share/i18n",
            "usr/share/bash-completion",
            "usr/share/zsh",
            "usr/share/perl5",
            "usr/lib/x86_64-linux-gnu/perl",
            "usr/lib/x86_64-linux-gnu/gconv",
            "lib/udev/hwdb.d",
            "usr/lib/udev/hwdb.d",
        ],
        files: vec![
            text("etc/passwd", USERS),
            text("etc/group", GROUPS),
            text("etc/shadow", "root::19000:0:99999:7:::\n"),
            text("etc/hostname", "tessera\n"),
            text("etc/machine-id", "0123456789abcdef0123456789abcdef\n"),
            text("etc/fstab", ""),
            ("init", b"#!/bin/sh\nexec /lib/systemd/systemd\n".to_vec(), true),
        ],
    };
    Tree::make(target, &recipe)
}
