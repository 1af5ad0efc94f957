//! Files the emulator writes to, opened in two steps.
//!
//! A mistake on the command line must leave nothing written behind, and whether a file can be opened is only
//! known by opening it. So all files are opened first, without changing what is in them; once everything else
//! is in order they are emptied by [`OutputFile::commit`]. One that is dropped before that, and was not there
//! before, is removed again.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

/// A file that was opened for writing and not yet touched.
#[derive(Debug)]
pub struct OutputFile {
    file: Option<File>,
    path: PathBuf,
    created: bool,
}

impl OutputFile {
    /// Opens a file that exists, or makes an empty one.
    pub fn open(path: &Path) -> io::Result<Self> {
        let (file, created) = match File::options().write(true).create_new(true).open(path) {
            Ok(file) => (file, true),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                (File::options().write(true).open(path)?, false)
            }
            Err(error) => return Err(error),
        };
        Ok(OutputFile { file: Some(file), path: path.to_owned(), created })
    }

    /// Empties the file, for it will be used now.
    pub fn commit(mut self) -> io::Result<File> {
        let file = self.file.take().ok_or(io::ErrorKind::NotFound)?;
        // Devices and pipes have no length to set.
        if file.metadata()?.is_file() {
            file.set_len(0)?;
        }
        Ok(file)
    }
}

impl Drop for OutputFile {
    fn drop(&mut self) {
        if self.created && self.file.is_some() {
            // If it cannot be removed there is nothing better to do.
            let _ = fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn nothing_changes_before_commit() {
        let folder = std::env::temp_dir().join(format!("tessera-output-file-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let (old, new) = (folder.join("old"), folder.join("new"));
        fs::write(&old, "before").unwrap();
        drop((OutputFile::open(&old).unwrap(), OutputFile::open(&new).unwrap()));
        assert_eq!(fs::read(&old).unwrap(), b"before");
        assert!(!new.exists());
        for path in [&old, &new] {
            OutputFile::open(path).unwrap().commit().unwrap().write_all(b"now").unwrap();
            assert_eq!(fs::read(path).unwrap(), b"now");
        }
        assert!(OutputFile::open(&folder.join("missing/file")).is_err());
        fs::remove_dir_all(&folder).unwrap();
    }
}
