//! The files a guest is started from: kernel and initial RAM disk.
//!
//! They are read when the machine starts and, if the guest resets it, again: between, their contents are in
//! guest memory only. What cannot be read twice (a pipe) is kept.

use std::fs::File;
use std::io::{self, Read, Seek};
use std::path::{Path, PathBuf};

use crate::backends::chardev::plain;
use crate::cli::UsageError;

/// A file that was found to be readable.
#[derive(Debug)]
pub struct GuestFile {
    option: &'static str,
    path: PathBuf,
    file: File,
    /// The contents of what cannot be read twice.
    kept: Option<Vec<u8>>,
}

impl GuestFile {
    /// Opens the file that `option` names.
    pub fn open(option: &'static str, path: &Path) -> Result<Self, UsageError> {
        let file = File::open(path).map_err(|error| unreadable(option, path, &error))?;
        Ok(GuestFile { option, path: path.to_owned(), file, kept: None })
    }

    /// The contents, which must be at most `limit` bytes: the guest's memory.
    pub fn read(&mut self, limit: u64) -> Result<Vec<u8>, UsageError> {
        if let Some(kept) = &self.kept {
            return Ok(kept.clone());
        }
        let (option, path) = (self.option, self.path.as_path());
        let failed = |error: &io::Error| unreadable(option, path, error);
        let regular = self.file.metadata().map_err(|error| failed(&error))?.is_file();
        if regular {
            self.file.rewind().map_err(|error| failed(&error))?;
        }
        let mut contents = Vec::new();
        (&self.file).take(limit + 1).read_to_end(&mut contents).map_err(|error| failed(&error))?;
        if contents.len() as u64 > limit {
            return Err(UsageError(format!(
                "{option} {}: the file is larger than the guest's memory of {} MiB; \
                 give the guest more with -m or use a smaller file",
                path.display(),
                limit >> 20
            )));
        }
        if !regular {
            self.kept = Some(contents.clone());
        }
        Ok(contents)
    }

    /// How messages call it: the option and the path.
    pub fn name(&self) -> String {
        format!("{} {}", self.option, self.path.display())
    }
}

fn unreadable(option: &str, path: &Path, error: &io::Error) -> UsageError {
    UsageError(format!(
        "{option} {}: it cannot be read ({}); name a file that can",
        path.display(),
        plain(error)
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_read_twice_and_bounded() {
        let path = std::env::temp_dir().join(format!("tessera-guest-file-{}", std::process::id()));
        std::fs::write(&path, vec![7; 3 << 20]).unwrap();
        let mut file = GuestFile::open("-initrd", &path).unwrap();
        std::fs::remove_file(&path).unwrap();
        for _ in 0..2 {
            assert_eq!(file.read(4 << 20).unwrap().len(), 3 << 20);
        }
        let message = file.read(2 << 20).unwrap_err().to_string();
        assert!(
            message.contains("-initrd") && message.contains("2 MiB") && message.contains("-m"),
            "{message}"
        );
        let mut endless = GuestFile::open("-kernel", Path::new("/dev/zero")).unwrap();
        assert!(endless.read(1 << 20).is_err());
        let mut folder = GuestFile::open("-kernel", Path::new("/")).unwrap();
        assert!(folder.read(1 << 20).unwrap_err().to_string().contains("cannot be read"));
    }
}
