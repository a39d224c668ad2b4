//! /proc/PID/smaps: mappings with their `VmFlags`. (The maps file alone does not tell MAP_GROWSDOWN and its like.)

use super::ProcError;
use crate::Pid;
use std::{
    fs::File,
    io::{BufRead, BufReader},
};

/// Bytes that are read at once; the kernel hands out a page.
const BUFFER: usize = 16 << 10;

/// The two letters of one flag in a `VmFlags:` line, Documentation/filesystems/proc.rst.
pub type VmFlag = [u8; 2];

/// A mapping.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mapping {
    /// First byte.
    pub start: u64,
    /// First byte behind it.
    pub end: u64,
    /// PROT_* bits.
    pub prot: u32,
    /// MAP_SHARED.
    pub shared: bool,
    /// Byte offset in the file.
    pub offset: u64,
    /// Major and minor number of the file's device.
    pub device: (u32, u32),
    /// The file's inode number; 0 where nothing is mapped.
    pub inode: u64,
    /// Path, `[name]`, or empty. Newlines are escaped as the kernel does.
    pub path: Vec<u8>,
    /// `VmFlags:`; empty when read from maps.
    pub flags: Vec<VmFlag>,
    /// `ProtectionKey:`, 0 for none; pkeys(7). 0 when read from maps.
    pub protection_key: u32,
}

impl Mapping {
    /// Reads all mappings of a process with their flags.
    ///
    /// # Errors
    /// [`ProcError`].
    pub fn read_all(pid: Pid) -> Result<Vec<Self>, ProcError> {
        Self::read_file(&format!("/proc/{pid}/smaps"))
    }

    /// Reads all mappings of a process without their flags, which is much faster.
    ///
    /// # Errors
    /// [`ProcError`].
    pub fn read_all_without_flags(pid: Pid) -> Result<Vec<Self>, ProcError> {
        Self::read_file(&format!("/proc/{pid}/maps"))
    }

    /// Line by line: of many mappings the text is much longer than what it tells.
    fn read_file(path: &str) -> Result<Vec<Self>, ProcError> {
        let unreadable = |source| ProcError::Read {
            path: path.to_owned(),
            source,
        };
        let file = File::open(path).map_err(unreadable)?;
        let mut reader = BufReader::with_capacity(BUFFER, file);
        let (mut mappings, mut line) = (Vec::new(), Vec::new());
        while reader.read_until(b'\n', &mut line).map_err(unreadable)? > 0 {
            let whole = line.strip_suffix(b"\n").unwrap_or(&line);
            Self::parse_next(&mut mappings, whole).map_err(|field| ProcError::Field {
                path: path.to_owned(),
                field,
            })?;
            line.clear();
        }
        Ok(mappings)
    }

    /// Parses the text of maps or smaps.
    ///
    /// # Errors
    /// The name of the malformed field.
    pub fn parse_all(text: &[u8]) -> Result<Vec<Self>, &'static str> {
        let mut mappings = Vec::new();
        for line in text.split(|b| *b == b'\n') {
            Self::parse_next(&mut mappings, line)?;
        }
        Ok(mappings)
    }

    /// Parses a line, which begins another mapping or tells more of the last one.
    fn parse_next(mappings: &mut Vec<Self>, line: &[u8]) -> Result<(), &'static str> {
        if let Some(key) = line.strip_prefix(b"ProtectionKey:") {
            let last = mappings.last_mut().ok_or("ProtectionKey")?;
            let number = std::str::from_utf8(key).ok().and_then(|text| text.trim().parse().ok());
            last.protection_key = number.ok_or("ProtectionKey")?;
        } else if line.first().is_some_and(u8::is_ascii_uppercase) {
            if let Some(flags) = line.strip_prefix(b"VmFlags:") {
                let last = mappings.last_mut().ok_or("VmFlags")?;
                last.flags = flags
                    .split(|b| *b == b' ')
                    .filter_map(|word| word.try_into().ok())
                    .collect();
            }
        } else if !line.is_empty() {
            mappings.push(Self::parse(line)?);
        }
        Ok(())
    }

    fn parse(line: &[u8]) -> Result<Self, &'static str> {
        let mut words = Words(line);
        let range = words.next_text().ok_or("address")?;
        let (start, end) = range.split_once('-').ok_or("address")?;
        let perms = words.next_word().filter(|word| word.len() == 4).ok_or("perms")?;
        let offset = words.next_text().ok_or("offset")?;
        let device = words.next_text().ok_or("dev")?;
        let (major, minor) = device.split_once(':').ok_or("dev")?;
        let inode = words.next_text().ok_or("inode")?;
        let bit = |at: usize, letter, bit| if perms[at] == letter { bit } else { 0 };
        Ok(Self {
            start: u64::from_str_radix(start, 16).map_err(|_| "address")?,
            end: u64::from_str_radix(end, 16).map_err(|_| "address")?,
            prot: bit(0, b'r', 1) | bit(1, b'w', 2) | bit(2, b'x', 4),
            shared: perms[3] == b's',
            offset: u64::from_str_radix(offset, 16).map_err(|_| "offset")?,
            device: (
                u32::from_str_radix(major, 16).map_err(|_| "dev")?,
                u32::from_str_radix(minor, 16).map_err(|_| "dev")?,
            ),
            inode: inode.parse().map_err(|_| "inode")?,
            path: words.0.trim_ascii_start().to_vec(),
            flags: Vec::new(),
            protection_key: 0,
        })
    }

    /// Whether the kernel reported this flag.
    #[must_use]
    pub fn has(&self, flag: &VmFlag) -> bool {
        self.flags.contains(flag)
    }

    /// Bytes.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.end - self.start
    }

    /// Whether it is empty, which the kernel never reports.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.start == self.end
    }
}

struct Words<'a>(&'a [u8]);

impl<'a> Words<'a> {
    fn next_word(&mut self) -> Option<&'a [u8]> {
        let text = self.0.trim_ascii_start();
        let end = text.iter().position(|b| *b == b' ').unwrap_or(text.len());
        let (word, rest) = text.split_at(end);
        self.0 = rest;
        (!word.is_empty()).then_some(word)
    }

    fn next_text(&mut self) -> Option<&'a str> {
        self.next_word().and_then(|word| std::str::from_utf8(word).ok())
    }
}

#[cfg(test)]
mod tests {
    use super::{Mapping, Pid};
    use nix::sys::mman::{self, MapFlags, ProtFlags};
    use std::{num::NonZeroUsize, os::unix::ffi::OsStrExt};

    #[test]
    fn reads_smaps() {
        let text = b"5500-5600 r-xp 00001000 fd:01 77                         /a b (deleted)\nSize: 4 kB\n\
            VmFlags: rd ex mr mw me \n7ffd00000000-7ffd00001000 rw-s 00000000 00:00 0 \nProtectionKey:         5\n\
            VmFlags: rd wr gd \n";
        let maps = Mapping::parse_all(text).expect("good text");
        assert_eq!(maps.len(), 2);
        assert_eq!(
            (maps[0].start, maps[0].end, maps[0].prot, maps[0].shared),
            (0x5500, 0x5600, 5, false)
        );
        assert_eq!((maps[0].offset, maps[0].device, maps[0].inode), (0x1000, (0xfd, 1), 77));
        assert_eq!(maps[0].path, b"/a b (deleted)");
        assert_eq!((maps[0].protection_key, maps[1].protection_key), (0, 5));
        assert!(maps[1].shared && maps[1].has(b"gd") && maps[1].path.is_empty());
    }

    #[test]
    fn a_name_that_ends_in_a_space_keeps_it() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("mapped ");
        std::fs::write(&path, [1; 4096]).expect("a file");
        let file = std::fs::File::open(&path).expect("it");
        let length = NonZeroUsize::new(4096).expect("a length");
        // SAFETY: a new mapping anywhere.
        let place = unsafe {
            let flags = MapFlags::MAP_PRIVATE;
            mman::mmap(None, length, ProtFlags::PROT_READ, flags, &file, 0).expect("mapped")
        };
        let own = Pid::new(std::process::id() as i32);
        for read in [Mapping::read_all, Mapping::read_all_without_flags] {
            let all = read(own).expect("its mappings");
            let found = all.iter().find(|mapping| mapping.start == place.as_ptr() as u64);
            let found = found.expect("the mapping");
            assert_eq!(found.path, path.as_os_str().as_bytes());
            assert_eq!((found.len(), found.prot), (4096, 1));
        }
        // SAFETY: nobody uses it.
        unsafe { mman::munmap(place, 4096) }.expect("unmapped");
    }

    #[test]
    fn names_the_malformed_field() {
        assert_eq!(Mapping::parse_all(b"zz r-xp 0 0:0 0\n"), Err("address"));
        assert_eq!(Mapping::parse_all(b"1-2 r-xp 0 0:0\n"), Err("inode"));
    }
}
