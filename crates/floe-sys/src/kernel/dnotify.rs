//! What directories were told to tell of, F_NOTIFY of fcntl(2): fs/notify/dnotify/dnotify.c.

use super::{FileMemory, tasks};
use crate::{Pid, descriptor::directory_notice, mount};
use std::{
    fs::File,
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd},
};

/// What is asked for here.
pub(super) const STRUCTURES: [&str; 6] = [
    "inode",
    "fsnotify_mark_connector",
    "fsnotify_mark",
    "dnotify_mark",
    "dnotify_struct",
    "file",
];

/// DN_*: what a directory can tell of, and that it goes on to.
const EVENTS: [u32; 6] = [1, 2, 4, 8, 16, 32];
const MULTISHOT: u32 = 1 << 31;

/// Who watches a file, and how often it is watched through one open file: more than there can be.
const MOST: usize = 1 << 20;

/// That a directory tells of something by a signal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirectoryNotice {
    /// Which processes asked for it: one, and those that share its descriptors.
    pub processes: Vec<Pid>,
    /// The number that it has the directory by.
    pub number: i32,
    /// DN_*.
    pub events: u32,
}

/// By whose table, by which number, and what.
type Asked = (u64, i32, u32);

/// What the kernel's numbers mean.
struct Meaning {
    /// The group of all marks of this kind.
    group: u64,
    /// What it makes of each of DN_*.
    events: Vec<(u32, u32)>,
}

impl FileMemory {
    /// What was asked for through an open file of the caller's, by one of `processes`, which stand still.
    ///
    /// # Errors
    /// Those of reading; EINVAL where the kernel tells of nothing (fs.dir-notify-enable).
    pub fn directory_notices(&self, directory: BorrowedFd<'_>, processes: &[Pid]) -> io::Result<Vec<DirectoryNotice>> {
        let meaning = self.meaning()?;
        let raw = self.asked(directory, Some(meaning.group))?.1;
        if raw.is_empty() || processes.is_empty() {
            return Ok(Vec::new());
        }
        let memory = &self.0;
        let all = tasks::all(memory)?;
        let mut owners = Vec::new();
        for process in processes {
            let leader = *all.get(&process.raw()).ok_or(io::ErrorKind::NotFound)?;
            for table in tasks::of_threads(memory, leader, "files")? {
                owners.push((table, *process));
            }
        }
        let notices = raw.into_iter().map(|(owner, number, mask)| {
            let own = owners.iter().filter(|(table, _)| *table == owner);
            let events = meaning.events.iter().filter(|(_, bits)| mask & bits == *bits);
            DirectoryNotice {
                processes: own.map(|(_, pid)| *pid).collect(),
                number,
                events: events.fold(0, |all, (event, _)| all | event),
            }
        });
        Ok(notices.collect())
    }

    /// The group of the marks of a directory, and what was asked for.
    fn asked(&self, directory: BorrowedFd<'_>, wanted: Option<u64>) -> io::Result<(u64, Vec<Asked>)> {
        let memory = &self.0;
        let file = memory.file(directory)?;
        let inode = memory.member("file", file, "f_inode")?;
        let connector = memory.member("inode", inode, "i_fsnotify_marks")?;
        if connector == 0 {
            return Ok((0, Vec::new()));
        }
        let node = memory.types.offset("fsnotify_mark", "obj_list")?;
        let mut place = memory.member("fsnotify_mark_connector", connector, "list")?;
        for _ in 0..MOST {
            if place == 0 {
                return Ok((0, Vec::new()));
            }
            let mark = place.wrapping_sub(node);
            let group = memory.member("fsnotify_mark", mark, "group")?;
            if wanted.is_none_or(|wanted| wanted == group) {
                return Ok((group, self.through(mark, file)?));
            }
            place = memory.word(place)?;
        }
        Err(io::Error::other("the kernel's list of marks has no end"))
    }

    /// What was asked for through one open file.
    fn through(&self, mark: u64, file: u64) -> io::Result<Vec<Asked>> {
        let memory = &self.0;
        let own = mark - memory.types.offset("dnotify_mark", "fsn_mark")?;
        let mut place = memory.member("dnotify_mark", own, "dn")?;
        let mut found = Vec::new();
        for _ in 0..MOST {
            if place == 0 {
                return Ok(found);
            }
            let member = |member| memory.member("dnotify_struct", place, member);
            if member("dn_filp")? == file {
                found.push((member("dn_owner")?, member("dn_fd")? as i32, member("dn_mask")? as u32));
            }
            place = member("dn_next")?;
        }
        Err(io::Error::other("the kernel's list of notices has no end"))
    }

    /// Found by a directory that nobody else has.
    fn meaning(&self) -> io::Result<Meaning> {
        let root = mount::file_system(c"tmpfs")?;
        let root = File::open(format!("/proc/self/fd/{}", root.as_raw_fd()))?;
        let ask = |events| -> io::Result<(u64, u32)> {
            directory_notice(root.as_fd(), events)?;
            let (group, asked) = self.asked(root.as_fd(), None)?;
            directory_notice(root.as_fd(), 0)?;
            match asked[..] {
                [(_, _, mask)] => Ok((group, mask)),
                _ => Err(io::Error::other("what a directory is told is not found again")),
            }
        };
        let (group, first) = ask(EVENTS[0])?;
        // What all have in common says nothing.
        let common = EVENTS[1..]
            .iter()
            .try_fold(first, |all, event| Ok::<_, io::Error>(all & ask(*event)?.1))?;
        let mut events = Vec::new();
        for event in EVENTS {
            events.push((event, ask(event)?.1 & !common));
        }
        events.push((MULTISHOT, ask(EVENTS[0] | MULTISHOT)?.1 & !first));
        Ok(Meaning { group, events })
    }
}

#[cfg(test)]
mod tests {
    use super::{DirectoryNotice, MULTISHOT};
    use crate::{Pid, descriptor::directory_notice, kernel::FileMemory, mount};
    use std::{
        fs::File,
        os::fd::{AsFd, AsRawFd},
    };

    #[test]
    fn what_was_asked_for_is_seen() {
        let root = mount::file_system(c"tmpfs").expect("as root");
        let open = || File::open(format!("/proc/self/fd/{}", root.as_raw_fd())).expect("open");
        let (one, other, silent) = (open(), open(), open());
        let memory = FileMemory::open().expect("as root");
        let own = Pid::new(std::process::id() as i32);
        let mut wanted = Vec::new();
        for (file, events) in [(&one, 4 | 8 | MULTISHOT), (&other, 1 | 2 | 16 | 32)] {
            directory_notice(file.as_fd(), events).expect("a directory");
            wanted.push(DirectoryNotice {
                processes: vec![own],
                number: file.as_raw_fd(),
                events,
            });
        }
        let seen = |file: &File| memory.directory_notices(file.as_fd(), &[own]).expect("read");
        assert_eq!([seen(&one), seen(&other)].concat(), wanted);
        assert_eq!(seen(&silent), []);
        assert_eq!(seen(&File::open("/").expect("open")), []);
    }
}
