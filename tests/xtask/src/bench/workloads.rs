//! The table of workloads, and the binaries and RAM disks that hold them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::Side;
use super::session::{self, Answer, Image, Kit, Session, TRANSLATOR};
use crate::guests::{Files, GUESTS, Guest};
use crate::packages::PackageError;
use crate::programs::{BASE, COMPILER, COMPILER_WITHOUT};
use crate::project;
use crate::trees::{Recipe, Tree, own_file};

/// Workloads that run in the same system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Starts of systems.
    Boot,
    /// Our own, below `tests/workloads`.
    Own,
    /// Programs from Debian's packages.
    Debian,
}

impl Kind {
    /// In the order in which they run.
    pub const ALL: [Kind; 3] = [Kind::Boot, Kind::Own, Kind::Debian];

    /// What the command line calls the group.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Boot => "boots",
            Kind::Own => "own",
            Kind::Debian => "programs",
        }
    }
}

/// A workload.
pub struct Workload {
    /// Its name.
    pub name: String,
    /// Its group.
    pub kind: Kind,
    /// Whether it runs only when asked for.
    pub slow: bool,
    what: What,
}

/// What a workload does.
enum What {
    /// Start a system until it takes orders.
    Boot,
    /// Start one of the guests until it has arrived.
    BootGuest(&'static Guest),
    /// Start a Debian system with systemd to the login prompt.
    Login,
    /// One of our own.
    Own,
    /// One of our own, in systems whose code cache has so many MiB.
    SmallCache(&'static str, u32),
    /// A shell command in the tree of packages.
    Shell(&'static str),
}

/// Files of the tree that are the programs' input.
const INPUT: &[&str] = &["integer.c", "control.c", "vector.c", "memory.c", "workloads.h"];

/// Programs from packages; those with a path are such that busybox's shell would take its own. Their input comes with them: the compiler's own binary, and our sources.
const PROGRAMS: &[(&str, &str)] = &[
    ("gzip", "head -c 4000000 /usr/lib/gcc/x86_64-linux-gnu/12/cc1 > in && /bin/gzip -c in > out"),
    (
        "xz",
        "head -c 800000 /usr/lib/gcc/x86_64-linux-gnu/12/cc1 > in && /usr/bin/xz -6 -T1 -c in > out && /usr/bin/xz -dc out > in",
    ),
    ("sha256", "openssl dgst -sha256 -out sum /usr/lib/gcc/x86_64-linux-gnu/12/cc1"),
    (
        "aes",
        "openssl enc -aes-256-cbc -K 0123456789abcdef -iv 0123456789abcdef -out out \
         -in /usr/lib/gcc/x86_64-linux-gnu/12/cc1",
    ),
    ("gcc", "gcc-12 -O2 -c -o a.o /bench/control.c && gcc-12 -O2 -c -o b.o /bench/vector.c"),
    ("python", "python3.11 /bench/loop.py"),
    // Programs that end soon, as scripts start them.
    (
        "exec",
        "i=0; while [ $i -lt 20 ]; do /bin/gzip --version > out && openssl version > out; i=$((i + 1)); done",
    ),
];

/// Packages of these programs, besides the compiler's.
const PACKAGES: &[&str] = &[
    "gzip",
    "xz-utils",
    "liblzma5",
    "openssl",
    "libssl3",
    "python3.11-minimal",
    "libpython3.11-minimal",
    "libexpat1",
];

/// Every workload.
pub fn all(program: &Path) -> Result<Vec<Workload>> {
    let workload = |name: &str, kind, what| Workload { name: name.to_owned(), kind, slow: false, what };
    let mut all = vec![workload("boot", Kind::Boot, What::Boot), workload("login", Kind::Boot, What::Login)];
    for guest in GUESTS {
        let name = format!("boot-{}", guest.name);
        all.push(Workload { slow: true, ..workload(&name, Kind::Boot, What::BootGuest(guest)) });
    }
    let listed = Command::new(program).arg("list").output().context("cannot run the workloads")?;
    if !listed.status.success() {
        bail!("{} list failed", program.display());
    }
    let own = String::from_utf8_lossy(&listed.stdout).into_owned();
    all.extend(own.lines().map(|name| workload(name, Kind::Own, What::Own)));
    // A quarter of what the workload's code becomes on the host; not much else runs then.
    all.push(workload("phased-code-quarter", Kind::Own, What::SmallCache("phased-code", 11)));
    all.extend(PROGRAMS.iter().map(|(name, command)| workload(name, Kind::Debian, What::Shell(command))));
    Ok(all)
}

impl Workload {
    /// Whether a name on the command line means this one among others: its group, or the start of its name.
    pub fn is_among(&self, name: &str) -> bool {
        self.kind.name() == name
            || self.name.strip_prefix(name).is_some_and(|rest| rest.starts_with('-') && !self.slow)
    }

    /// Whether it runs in a system that others run in, too.
    pub fn shares_a_system(&self) -> bool {
        matches!(self.what, What::Own | What::Shell(_))
    }

    /// Runs it once on one side, starting that side's system if need be. `None`: there is nothing to run there.
    pub fn run(
        &self,
        kit: &Kit,
        image: &Image,
        side: &Side,
        session: &mut Option<Session>,
    ) -> Result<Option<Answer>> {
        let order = match self.what {
            What::Boot | What::BootGuest(_) | What::Login if *side == Side::Native => return Ok(None),
            What::Boot => {
                let session = Session::start(kit, image, side, TRANSLATOR)?;
                let took = session.boot.clone();
                session.end()?;
                return Ok(Some(Answer::Took(took)));
            }
            What::BootGuest(guest) => {
                return boots(guest.obtain(&project::target_dir()?), kit, side, guest.arrival()).map(Some);
            }
            What::Login => {
                let tree = crate::login_system::tree(&project::target_dir()?);
                let files =
                    tree.map(|tree| Files { initrd: tree.initrd, memory: 1024, ..image.files.clone() });
                return boots(files, kit, side, crate::login_system::PROMPT).map(Some);
            }
            What::SmallCache(..) if *side == Side::Native => return Ok(None),
            What::SmallCache(name, size) => {
                let mut session = Session::start(kit, image, side, &format!("tcg,tb-size={size}"))?;
                let answer = session.run(name, &format!("run {name}"))?;
                session.end()?;
                return Ok(Some(answer));
            }
            What::Own => format!("run {}", self.name),
            What::Shell(command) => format!("shell {} {command}", self.name),
        };
        let running = match session {
            Some(running) => running,
            None => session.insert(Session::start(kit, image, side, TRANSLATOR)?),
        };
        running.run(&self.name, &order).map(Some)
    }
}

/// A boot to a line on the console, if there is something to boot.
fn boots(files: Result<Files, PackageError>, kit: &Kit, side: &Side, arrival: &str) -> Result<Answer> {
    match files {
        Ok(files) => session::boot_to(kit, &files, side, arrival),
        Err(PackageError::Unavailable(reason)) => Ok(Answer::Skipped(reason)),
        Err(PackageError::Broken(error)) => Err(error),
    }
}

/// Builds the program that holds our own workloads; says where it is.
pub fn build(target: &Path) -> Result<PathBuf> {
    let folder = project::root().join("tests/workloads");
    let mut sources: Vec<_> = fs::read_dir(&folder)
        .with_context(|| format!("cannot read {}", folder.display()))?
        .flatten()
        .map(|entry| entry.path())
        .collect();
    sources.sort();
    let program = target.join("guests/workloads");
    if !sources.iter().any(|source| is_older(&program, source)) {
        return Ok(program);
    }
    fs::create_dir_all(target.join("guests"))?;
    let unfinished = program.with_extension(std::process::id().to_string());
    let status = Command::new("cc")
        .args(["-O2", "-Wall", "-Wextra", "-static", "-o"])
        .arg(&unfinished)
        .args(sources.iter().filter(|source| source.extension().is_some_and(|extension| extension == "c")))
        .arg("-lm")
        .status()
        .context("cannot run cc: the workloads need a C compiler (Debian: gcc and libc6-dev)")?;
    if !status.success() {
        bail!("cc failed on {}", folder.display());
    }
    fs::rename(&unfinished, &program)?;
    Ok(program)
}

/// Whether a file is older than another; a missing one is.
fn is_older(file: &Path, than: &Path) -> bool {
    let time = |path: &Path| fs::metadata(path).and_then(|metadata| metadata.modified()).ok();
    time(file) < time(than)
}

/// The tree of packages, with the workloads' program as its first process.
pub fn debian_tree(target: &Path, program: &Path) -> Result<Tree, PackageError> {
    let packages: Vec<_> = BASE.iter().chain(COMPILER).chain(PACKAGES).copied().collect();
    let program = fs::read(program).context("cannot read the workloads' program")?;
    let names: Vec<_> = INPUT.iter().map(|name| format!("bench/{name}")).collect();
    let mut files = vec![("init", program, true), ("bench/loop.py", own_file("workloads/loop.py")?, false)];
    for (source, name) in INPUT.iter().zip(&names) {
        files.push((name, own_file(&format!("workloads/{source}"))?, false));
    }
    let recipe = Recipe { name: "bench", packages: &packages, without: COMPILER_WITHOUT, files };
    Tree::make(target, &recipe)
}
