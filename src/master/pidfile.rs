//! The pid file: written whole or not at all, removed only by its owner.
//! Written before readiness is told. Never trusted to say who runs.

use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

/// A pid file with our pid in it.
pub(super) struct PidFile {
    path: PathBuf,
}

impl PidFile {
    /// The file that this process wrote before it became another program.
    pub(super) fn adopt(path: &Path) -> Self {
        Self { path: path.to_owned() }
    }

    /// Writes our pid, replacing what is there in one step.
    pub(super) fn write(path: &Path) -> io::Result<Self> {
        if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
            fs::create_dir_all(folder)?;
        }
        let draft = path.with_extension(format!("pid.{}", std::process::id()));
        // Left behind by a process of the same pid, or put there by somebody else: not ours to write into.
        let _absent = fs::remove_file(&draft);
        let mut file = fs::OpenOptions::new().write(true).create_new(true).open(&draft)?;
        writeln!(file, "{}", std::process::id())?;
        file.sync_all()?;
        fs::rename(&draft, path)?;
        Ok(Self { path: path.to_owned() })
    }
}

impl Drop for PidFile {
    /// A successor's pid stays.
    fn drop(&mut self) {
        let ours = fs::read_to_string(&self.path).is_ok_and(|text| text.trim() == std::process::id().to_string());
        if ours {
            // Nothing is left to do about a file that cannot be removed.
            let _ = fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_its_owner_removes_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("deep/proxy.pid");
        let file = PidFile::write(&path).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), format!("{}\n", std::process::id()));
        fs::write(&path, "1\n").unwrap();
        drop(file);
        assert_eq!(fs::read_to_string(&path).unwrap(), "1\n");
        drop(PidFile::write(&path).unwrap());
        assert!(!path.exists());
    }
}
