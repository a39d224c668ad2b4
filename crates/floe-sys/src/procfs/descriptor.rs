//! /proc/PID/fd and /proc/PID/fdinfo.

use super::ProcError;
use crate::Pid;
use nix::{
    fcntl::{OFlag, openat, readlinkat},
    sys::stat::Mode,
};
use std::{
    ffi::OsString,
    fs::File,
    io::{self, Read},
    os::unix::ffi::OsStringExt,
};

/// The lines of /proc/PID/fdinfo/N that every kind of file has.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FdInfo {
    /// Byte position.
    pub position: u64,
    /// open(2) flags, O_CLOEXEC among them.
    pub flags: u32,
    /// The mount it was opened through.
    pub mount: u64,
    /// Inode number.
    pub inode: u64,
    /// Lines of `lock:`; locks held through this open file.
    pub locks: Vec<String>,
}

impl FdInfo {
    /// Parses the text.
    ///
    /// # Errors
    /// The name of the malformed line.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        let mut info = Self::default();
        for (key, value) in text.lines().filter_map(|line| line.split_once(':')) {
            let value = value.trim();
            match key {
                "pos" => info.position = value.parse::<i64>().map_err(|_| "pos")? as u64,
                "flags" => info.flags = u32::from_str_radix(value, 8).map_err(|_| "flags")?,
                "mnt_id" => info.mount = value.parse().map_err(|_| "mnt_id")?,
                "ino" => info.inode = value.parse().map_err(|_| "ino")?,
                "lock" => info.locks.push(value.to_owned()),
                _ => {}
            }
        }
        Ok(info)
    }
}

/// Links and information about descriptors of one process. The two directories are looked up once for all.
#[derive(Debug)]
pub struct Descriptors {
    pid: Pid,
    links: File,
    infos: File,
    buffer: Vec<u8>,
}

impl Descriptors {
    /// Those of a process.
    ///
    /// # Errors
    /// [`ProcError::Read`].
    pub fn open(pid: Pid) -> Result<Self, ProcError> {
        let open = |name| {
            let path = format!("/proc/{pid}/{name}");
            File::open(&path).map_err(|source| ProcError::Read { path, source })
        };
        Ok(Self {
            pid,
            links: open("fd")?,
            infos: open("fdinfo")?,
            buffer: vec![0; 4 << 10],
        })
    }

    /// Where the link of one leads.
    ///
    /// # Errors
    /// [`ProcError::Read`].
    pub fn link(&self, number: i32) -> Result<Vec<u8>, ProcError> {
        let target = readlinkat(&self.links, number.to_string().as_str());
        target.map(OsString::into_vec).map_err(|error| ProcError::Read {
            path: format!("/proc/{}/fd/{number}", self.pid),
            source: error.into(),
        })
    }

    /// Position, flags and the like of one.
    ///
    /// # Errors
    /// [`ProcError`].
    pub fn info(&mut self, number: i32) -> Result<FdInfo, ProcError> {
        let path = format!("/proc/{}/fdinfo/{number}", self.pid);
        let filled = match self.fill(number) {
            Ok(filled) => filled,
            Err(source) => return Err(ProcError::Read { path, source }),
        };
        let text = String::from_utf8_lossy(&self.buffer[..filled]);
        FdInfo::parse(&text).map_err(|field| ProcError::Field { path, field })
    }

    fn fill(&mut self, number: i32) -> io::Result<usize> {
        let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC;
        let name = number.to_string();
        let mut file = File::from(openat(&self.infos, name.as_str(), flags, Mode::empty())?);
        let mut filled = 0;
        loop {
            let got = file.read(&mut self.buffer[filled..])?;
            filled += got;
            // These files come in one piece where there is room for it.
            if filled < self.buffer.len() {
                return Ok(filled);
            }
            self.buffer.resize(2 * filled, 0);
        }
    }
}

/// How many descriptors a process has: the size of /proc/PID/fd, which Linux 6.2 and later tell.
///
/// # Errors
/// [`ProcError::Read`].
pub fn descriptor_count(pid: Pid) -> Result<u64, ProcError> {
    let path = format!("/proc/{pid}/fd");
    match std::fs::metadata(&path) {
        Ok(metadata) => Ok(metadata.len()),
        Err(source) => Err(ProcError::Read { path, source }),
    }
}

/// The numbers of a process's descriptors, lowest first.
///
/// # Errors
/// [`ProcError::Read`].
pub fn descriptors(pid: Pid) -> Result<Vec<i32>, ProcError> {
    let path = format!("/proc/{pid}/fd");
    let wrap = |source| ProcError::Read {
        path: path.clone(),
        source,
    };
    let mut found = Vec::new();
    for entry in std::fs::read_dir(&path).map_err(wrap)? {
        found.extend(
            entry
                .map_err(wrap)?
                .file_name()
                .to_str()
                .and_then(|name| name.parse::<i32>().ok()),
        );
    }
    found.sort_unstable();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::{Descriptors, FdInfo, descriptor_count};
    use crate::Pid;
    use std::{fs::File, os::fd::AsRawFd};

    #[test]
    fn tells_of_each() {
        let own = Pid::new(std::process::id() as i32);
        let file = File::open("/dev/null").expect("open");
        let mut all = Descriptors::open(own).expect("its own");
        assert_eq!(all.link(file.as_raw_fd()).expect("a link"), b"/dev/null");
        assert_eq!(all.info(file.as_raw_fd()).expect("it is there").position, 0);
        assert!(all.info(i32::MAX).is_err_and(|error| error.is_gone()));
    }

    #[test]
    fn counts_those_of_a_process() {
        let own = Pid::new(std::process::id() as i32);
        let before = descriptor_count(own).expect("its own");
        let more: Vec<File> = (0..100).map(|_| File::open("/dev/null").expect("open")).collect();
        assert!(descriptor_count(own).expect("its own") >= before + 50);
        drop(more);
    }

    #[test]
    fn reads_the_common_lines() {
        let text =
            "pos:\t-1\nflags:\t0100002\nmnt_id:\t27\nino:\t99\nlock:\t1: FLOCK  ADVISORY  WRITE 7 fd:01:9 0 EOF\n";
        let info = FdInfo::parse(text).expect("good text");
        assert_eq!(
            (info.position, info.flags, info.mount, info.inode),
            (u64::MAX, 0o100_002, 27, 99)
        );
        assert_eq!(info.locks.len(), 1);
        assert_eq!(FdInfo::parse("pos:\tx\n"), Err("pos"));
    }
}
