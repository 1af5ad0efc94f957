//! Debian packages without root.
//!
//! Problem: the guests that matter are kernels and installers which people run, and those come as
//! Debian packages. They must be had on a fresh machine, by a user who is not root, whose package lists
//! may be empty or old, and by several runs of the tests at once.
//!
//! Strategy: apt is told to keep its state and its cache in a folder of ours. It reads this machine's
//! own sources and settings (so mirrors and proxies keep working), updates its lists there, and
//! downloads there; `dpkg-deb` and `tar` unpack just the files that are asked for. What was unpacked stays,
//! under the package's name and version.
//!
//! Invariants:
//! - Nothing outside our folder is written.
//! - An unpacked package's folder appears complete or not at all: it is filled beside its final name and
//!   renamed.
//! - One process at a time works in the folder: it holds `lock`.

use std::fs::{self, File};
use std::io::{Read, Seek};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, anyhow};

use crate::project;

/// Package lists older than this are fetched anew.
const LISTS_STALE_AFTER: Duration = Duration::from_secs(14 * 24 * 3600);

/// What takes longer than this says what it is doing.
const QUIET_FOR: Duration = Duration::from_secs(2);

/// A package, and what is wanted of it.
pub struct Package {
    /// The package's name. It may be a meta package, see `follow`.
    pub name: &'static str,
    /// For a meta package: the start of the name of the dependency that is really meant.
    pub follow: Option<&'static str>,
    /// Which files to unpack: `tar` patterns, such as `./boot/vmlinuz-*`.
    pub files: &'static [&'static str],
}

/// Why a package was not obtained.
#[derive(Debug, thiserror::Error)]
pub enum PackageError {
    /// This machine cannot have it: no apt, no sources, no network, no such package. One sentence.
    #[error("{0}")]
    Unavailable(String),
    /// Something broke that should not have.
    #[error(transparent)]
    Broken(#[from] anyhow::Error),
}

impl From<std::io::Error> for PackageError {
    fn from(error: std::io::Error) -> Self {
        PackageError::Broken(error.into())
    }
}

/// The folder in which packages are kept, locked for this process.
pub struct Packages {
    folder: PathBuf,
    _lock: File,
}

/// One record of `apt-cache show`.
#[derive(Clone)]
struct Record {
    name: String,
    version: String,
    depends: String,
}

impl Record {
    fn parse(text: &str) -> Option<Self> {
        let field = |key: &str| {
            text.lines()
                .find_map(|line| line.strip_prefix(key)?.strip_prefix(": "))
                .map(|value| value.trim().to_owned())
        };
        Some(Record {
            name: field("Package")?,
            version: field("Version")?,
            depends: field("Depends").unwrap_or_default(),
        })
    }
}

impl Packages {
    /// Opens (and makes, if need be) the folder `guests` below `target`; waits for another process that
    /// is at work there.
    pub fn open(target: &Path) -> Result<Self, PackageError> {
        let folder = target.join("guests");
        for part in ["apt/state/lists/partial", "apt/cache/archives/partial", "unpacked"] {
            fs::create_dir_all(folder.join(part))
                .with_context(|| format!("cannot make {}", folder.join(part).display()))?;
        }
        let lock = File::create(folder.join("lock")).context("cannot make the lock file of the packages")?;
        if lock.try_lock().is_err() {
            eprintln!("waiting for another process that obtains packages ...");
            lock.lock()?;
        }
        Ok(Packages { folder, _lock: lock })
    }

    /// Obtains a package; returns the folder that holds the files asked for.
    ///
    /// The newest version the sources offer is taken. Without reachable sources, a version that an
    /// earlier run has unpacked serves.
    pub fn obtain(&self, package: &Package) -> Result<PathBuf, PackageError> {
        for tool in ["apt-get", "apt-cache", "dpkg-deb", "tar"] {
            if !project::installed(tool) {
                return self.unpacked_earlier(package).ok_or_else(|| {
                    PackageError::Unavailable(format!(
                        "Debian's packages cannot be had here, because this machine has no {tool}"
                    ))
                });
            }
        }
        let updated = if self.lists_are_fresh() { None } else { Some(self.update()) };
        let mut record = self.resolve(package)?;
        if record.is_none() && updated.is_none() {
            self.update()?;
            record = self.resolve(package)?;
        }
        let Some(mut record) = record else {
            let reason = match updated {
                Some(Err(error)) => error.to_string(),
                _ => format!(
                    "the package {} cannot be had here, because this machine's package sources have none of that name",
                    package.name
                ),
            };
            return self.unpacked_earlier(package).ok_or(PackageError::Unavailable(reason));
        };
        let mut destination = self.destination(&record);
        if !destination.exists()
            && let Err(first) = self.unpack(package, &record, &destination)
        {
            // The lists may name a version that the mirror has dropped since.
            if matches!(first, PackageError::Broken(_)) || updated.is_some() {
                return Err(first);
            }
            self.update()?;
            record = self.resolve(package)?.ok_or(first)?;
            destination = self.destination(&record);
            if !destination.exists() {
                self.unpack(package, &record, &destination)?;
            }
        }
        Ok(destination)
    }

    /// Obtains packages with all their files; returns their folders in the order of the names.
    ///
    /// What is missing is downloaded in one go. Dependencies are the caller's: it names what it needs.
    pub fn obtain_all(&self, names: &[&'static str]) -> Result<Vec<PathBuf>, PackageError> {
        let whole = |name| Package { name, follow: None, files: &["./*"] };
        let earlier = || names.iter().map(|name| self.unpacked_earlier(&whole(name))).collect::<Option<_>>();
        if !["apt-get", "apt-cache", "dpkg-deb", "tar"].into_iter().all(project::installed) {
            return earlier().ok_or_else(|| {
                PackageError::Unavailable(
                    "Debian's packages cannot be had here, because this machine has no apt".into(),
                )
            });
        }
        if !self.lists_are_fresh()
            && let Err(error) = self.update()
        {
            return earlier().ok_or(error);
        }
        let (mut records, mut missing) = self.missing(names)?;
        if !missing.is_empty() && self.download(&missing).is_err() {
            // The lists may name versions that the mirror has dropped since.
            self.update()?;
            (records, missing) = self.missing(names)?;
            self.download(&missing)?;
        }
        for record in missing {
            self.extract(&self.archive(&record.name)?, &["./*"], &self.destination(&record))?;
        }
        Ok(records.iter().map(|record| self.destination(record)).collect())
    }

    /// The candidates of packages, and those of them that are not unpacked yet.
    fn missing(&self, names: &[&str]) -> Result<(Vec<Record>, Vec<Record>), PackageError> {
        let records = self.show(names)?;
        let mut found = Vec::new();
        for name in names {
            let Some(record) = records.iter().find(|record| record.name == *name) else {
                return Err(PackageError::Unavailable(format!(
                    "the package {name} cannot be had here, because this machine's package sources have none of that name"
                )));
            };
            found.push(record.clone());
        }
        let missing = found.iter().filter(|record| !self.destination(record).exists()).cloned().collect();
        Ok((found, missing))
    }

    fn destination(&self, record: &Record) -> PathBuf {
        self.folder.join("unpacked").join(format!("{}_{}", record.name, record.version.replace(':', "%3a")))
    }

    /// The newest folder of this package (or of one that its meta package could stand for).
    fn unpacked_earlier(&self, package: &Package) -> Option<PathBuf> {
        let flavour = package.follow.map(|prefix| package.name.strip_prefix(prefix).unwrap_or(package.name));
        let mut found: Vec<_> = fs::read_dir(self.folder.join("unpacked"))
            .ok()?
            .flatten()
            .filter(|entry| {
                let name = entry.file_name().to_string_lossy().into_owned();
                let Some((name, _version)) = name.split_once('_') else { return false };
                match (package.follow, flavour) {
                    (Some(prefix), Some(flavour)) => kernel_flavour(name, prefix) == Some(flavour),
                    _ => name == package.name,
                }
            })
            .filter_map(|entry| Some((entry.metadata().ok()?.modified().ok()?, entry.path())))
            .collect();
        found.sort();
        found.pop().map(|(_, path)| path)
    }

    /// Options that make apt keep everything of its own in our folder.
    fn apt(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command
            .env("LC_ALL", "C")
            .arg(format!("-oDir::State={}", self.folder.join("apt/state").display()))
            .arg(format!("-oDir::Cache={}", self.folder.join("apt/cache").display()))
            // The target folder need not be readable to the user that apt downloads as.
            .arg("-oAPT::Sandbox::User=root")
            .arg("-oAcquire::Languages=none")
            .arg("-oAcquire::IndexTargets::deb::DEP-11::DefaultEnabled=false")
            .arg("-oAcquire::Retries=2")
            .arg("-oAcquire::http::Timeout=30")
            .arg("-oAPT::Update::Post-Invoke::=")
            .arg("-q");
        command
    }

    fn lists_are_fresh(&self) -> bool {
        let stamp = self.folder.join("apt/updated");
        fs::metadata(stamp)
            .and_then(|metadata| metadata.modified())
            .is_ok_and(|at| SystemTime::now().duration_since(at).is_ok_and(|age| age < LISTS_STALE_AFTER))
    }

    fn update(&self) -> Result<(), PackageError> {
        let mut command = self.apt("apt-get");
        command.arg("update");
        self.run(command, "fetching Debian's package lists")?;
        let lists = self.folder.join("apt/state/lists");
        let any = fs::read_dir(lists)?
            .flatten()
            .any(|list| list.file_name().to_string_lossy().contains("_Packages"));
        if !any {
            return Err(PackageError::Unavailable(
                "Debian's packages cannot be had here, because this machine's apt has no package sources \
                 (see /etc/apt/sources.list.d)"
                    .into(),
            ));
        }
        File::create(self.folder.join("apt/updated"))?;
        Ok(())
    }

    /// The candidate version of a package, a meta package replaced by what it stands for.
    fn resolve(&self, package: &Package) -> Result<Option<Record>, PackageError> {
        let Some(record) = self.show(&[package.name])?.pop() else { return Ok(None) };
        let Some(prefix) = package.follow else { return Ok(Some(record)) };
        let real = record
            .depends
            .split(',')
            .filter_map(|dependency| dependency.split_whitespace().next())
            .find(|name| name.starts_with(prefix))
            .ok_or_else(|| anyhow!("{} depends on nothing called {prefix}*", package.name))?;
        Ok(self.show(&[real])?.pop())
    }

    /// The candidates of these packages, as far as the sources have them.
    fn show(&self, names: &[&str]) -> Result<Vec<Record>, PackageError> {
        let output = self
            .apt("apt-cache")
            .args(["show", "--no-all-versions"])
            .args(names)
            .stderr(Stdio::null())
            .output()?;
        Ok(String::from_utf8_lossy(&output.stdout).split("\n\n").filter_map(Record::parse).collect())
    }

    /// Downloads a package and unpacks the files that are wanted of it.
    fn unpack(&self, package: &Package, record: &Record, destination: &Path) -> Result<(), PackageError> {
        self.download(std::slice::from_ref(record))?;
        self.extract(&self.archive(&record.name)?, package.files, destination)
    }

    /// Downloads packages into the folder `work`.
    fn download(&self, records: &[Record]) -> Result<(), PackageError> {
        let work = self.folder.join("work");
        if work.exists() {
            fs::remove_dir_all(&work)?;
        }
        fs::create_dir_all(&work)?;
        let mut command = self.apt("apt-get");
        command.current_dir(&work).arg("download");
        command.args(records.iter().map(|record| format!("{}={}", record.name, record.version)));
        let what = match records {
            [record] => format!("{} {}", record.name, record.version),
            _ => format!("{} packages", records.len()),
        };
        self.run(command, &format!("downloading {what}"))
    }

    /// The archive of a package that was downloaded.
    fn archive(&self, name: &str) -> Result<PathBuf, PackageError> {
        fs::read_dir(self.folder.join("work"))?
            .flatten()
            .find(|entry| {
                let file = entry.file_name().to_string_lossy().into_owned();
                file.ends_with(".deb") && file.split_once('_').is_some_and(|(package, _)| package == name)
            })
            .map(|entry| entry.path())
            .ok_or_else(|| anyhow!("apt-get download of {name} left no package").into())
    }

    /// Unpacks files of an archive that was downloaded, and removes it.
    fn extract(&self, archive: &Path, files: &[&str], destination: &Path) -> Result<(), PackageError> {
        let unpacked = self.folder.join("work/files");
        fs::create_dir_all(&unpacked)?;
        let mut contents = Command::new("dpkg-deb")
            .arg("--fsys-tarfile")
            .arg(archive)
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot run dpkg-deb")?;
        let tar = Command::new("tar")
            .args(["-x", "--no-same-owner", "--wildcards", "-C"])
            .arg(&unpacked)
            .args(files)
            .stdin(contents.stdout.take().context("dpkg-deb has no output")?)
            .status()
            .context("cannot run tar")?;
        let listed = contents.wait()?;
        if !tar.success() || !listed.success() {
            return Err(anyhow!("cannot unpack {}", archive.display()).into());
        }
        fs::rename(&unpacked, destination)?;
        fs::remove_file(archive)?;
        Ok(())
    }

    /// Runs a command that may take long; its failure means that the packages cannot be had.
    fn run(&self, mut command: Command, what: &str) -> Result<(), PackageError> {
        let mut log = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(self.folder.join("apt/last.log"))?;
        let mut child = command
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log.try_clone()?)
            .spawn()
            .with_context(|| format!("cannot run {:?}", command.get_program()))?;
        let started = Instant::now();
        let mut announced = false;
        let status = loop {
            if let Some(status) = child.try_wait()? {
                break status;
            }
            if !announced && started.elapsed() > QUIET_FOR {
                eprintln!("{what} ...");
                announced = true;
            }
            std::thread::sleep(Duration::from_millis(20));
        };
        if status.success() {
            return Ok(());
        }
        let mut text = String::new();
        log.rewind()?;
        log.read_to_string(&mut text)?;
        let said = text
            .lines()
            .rfind(|line| line.starts_with("E:") || line.starts_with("W:"))
            .unwrap_or("it said nothing");
        Err(PackageError::Unavailable(format!(
            "Debian's packages cannot be had here: {what} failed ({said})"
        )))
    }
}

/// `linux-image-6.1.0-44-cloud-amd64` is of the flavour `cloud-amd64` (with the prefix `linux-image-`).
fn kernel_flavour<'a>(name: &'a str, prefix: &str) -> Option<&'a str> {
    let rest = name.strip_prefix(prefix)?;
    let is_version = |part: &str| part.starts_with(|c: char| c.is_ascii_digit());
    let start = rest.split('-').take_while(|part| is_version(part)).map(|part| part.len() + 1).sum::<usize>();
    rest.get(start..)
}

#[cfg(test)]
mod tests {
    use super::kernel_flavour;

    #[test]
    fn flavours_of_kernel_packages() {
        let flavour = |name| kernel_flavour(name, "linux-image-");
        assert_eq!(flavour("linux-image-6.1.0-44-cloud-amd64"), Some("cloud-amd64"));
        assert_eq!(flavour("linux-image-6.1.0-44-amd64"), Some("amd64"));
        assert_eq!(flavour("linux-image-6.1.0-44-rt-amd64"), Some("rt-amd64"));
        assert_eq!(flavour("busybox-static"), None);
    }
}
