//! Archives that a kernel unpacks as its first file system: Documentation/driver-api/early-userspace/buffer-format.rst ("newc").

use std::{
    collections::BTreeSet,
    fs,
    os::unix::{ffi::OsStrExt, fs::MetadataExt},
    path::Path,
};

const FOLDER: u32 = 0o040_755;
const LINK: u32 = 0o120_777;
const FILE: u32 = 0o100_000;
const CHARACTER_DEVICE: u32 = 0o020_600;

/// An archive, of files of root's.
#[derive(Debug, Default)]
pub struct Archive {
    bytes: Vec<u8>,
    entries: u32,
    folders: BTreeSet<Vec<u8>>,
}

impl Archive {
    /// Adds a folder, and those that it is in.
    pub fn folder(&mut self, path: &Path) {
        if path.as_os_str().is_empty() || !self.folders.insert(path.as_os_str().as_bytes().to_vec()) {
            return;
        }
        if let Some(parent) = path.parent() {
            self.folder(parent);
        }
        self.entry(path, (FOLDER, 0), (0, 0), &[]);
    }

    /// Adds a symbolic link.
    pub fn link(&mut self, path: &Path, to: &Path) {
        if let Some(parent) = path.parent() {
            self.folder(parent);
        }
        self.entry(path, (LINK, 0), (0, 0), to.as_os_str().as_bytes());
    }

    /// Adds a file of this host, with its permissions and time of change.
    ///
    /// # Panics
    /// Where it can't be read.
    pub fn file(&mut self, path: &Path, of: &Path) {
        let content = fs::read(of).unwrap_or_else(|error| panic!("{}: {error}", of.display()));
        let found = fs::metadata(of).expect("its metadata");
        self.add(path, (FILE | found.mode() & 0o777, found.mtime() as u32), &content);
    }

    /// Adds a file.
    pub fn bytes(&mut self, path: &Path, mode: u32, content: &[u8]) {
        self.add(path, (FILE | mode, 0), content);
    }

    fn add(&mut self, path: &Path, what: (u32, u32), content: &[u8]) {
        if let Some(parent) = path.parent() {
            self.folder(parent);
        }
        self.entry(path, what, (0, 0), content);
    }

    /// Adds /dev/console, without which the first program has no streams.
    pub fn console(&mut self) {
        self.folder(Path::new("dev"));
        self.entry(Path::new("dev/console"), (CHARACTER_DEVICE, 0), (5, 1), &[]);
    }

    fn entry(&mut self, path: &Path, (mode, time): (u32, u32), (major, minor): (u32, u32), content: &[u8]) {
        self.entries += 1;
        let name = path.as_os_str().as_bytes();
        let size = content.len() as u32;
        let words = [
            self.entries,
            mode,
            0,
            0,
            1,
            time,
            size,
            0,
            0,
            major,
            minor,
            name.len() as u32 + 1,
            0,
        ];
        self.bytes.extend_from_slice(b"070701");
        words
            .iter()
            .for_each(|word| self.bytes.extend_from_slice(format!("{word:08x}").as_bytes()));
        self.bytes.extend_from_slice(name);
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(content);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    /// The whole of it.
    #[must_use]
    pub fn finish(mut self) -> Vec<u8> {
        self.entry(Path::new("TRAILER!!!"), (0, 0), (0, 0), &[]);
        self.bytes
    }
}
